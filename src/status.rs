//! `portolan status`: nodes, sessions, pools, and what is announced or withheld, from the API objects alone.

use anyhow::Context;
use kube::api::{Api, ListParams};
use portolan_api::{Advertisement, BGPPeer, IPAddressPool, IPAllocation, NodeStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{cli, watch};

mod table;
mod text;

/// Everything the command shows; `-o json` prints it as it is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub nodes: Vec<NodeStatus>,
    pub peers: Vec<BGPPeer>,
    pub pools: Vec<IPAddressPool>,
    pub advertisements: Vec<Advertisement>,
    pub allocations: Vec<IPAllocation>,
}

pub async fn run(arguments: cli::Status) -> anyhow::Result<()> {
    let client = watch::client(arguments.api.kubeconfig.as_deref()).await?;
    let report = Report {
        nodes: list(&client, "NodeStatus").await?,
        peers: list(&client, "BGPPeer").await?,
        pools: list(&client, "IPAddressPool").await?,
        advertisements: list(&client, "Advertisement").await?,
        allocations: list(&client, "IPAllocation").await?,
    };
    match arguments.output {
        cli::Output::Text => print!("{}", text::render(&report)),
        cli::Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}

async fn list<K>(client: &kube::Client, kind: &str) -> anyhow::Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let objects = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    Ok(objects.with_context(|| format!("cannot list {kind} objects: is the chart installed?"))?.items)
}
