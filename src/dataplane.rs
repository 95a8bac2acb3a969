//! The kernel's side of the dataplane: one small file per kernel interface.

pub mod addresses;
pub mod conntrack;
pub mod kernel;
pub mod nft;
pub mod routes;
pub mod take_over;
pub mod watchtower;

use take_over::ipvs;

/// `portolan cleanup --kube-proxy`: removes what a kube-proxy of any mode left, and nothing of ours (S74). Does all it can, and
/// fails if anything is left. Connections through IPVS end.
pub fn cleanup_kube_proxy() -> anyhow::Result<()> {
    let mut outcome = take_over::remove();
    match ipvs::remove(ipvs::Connections::End, None) {
        Ok(pass) => {
            outcome.removed.extend(pass.removed);
            if let Some(what) = pass.foreign {
                tracing::info!(what, "virtual servers of others stay");
            }
        }
        Err(error) => outcome.failed.push(error),
    }
    outcome.removed.iter().for_each(|what| tracing::info!(what, "removed of kube-proxy"));
    let failed: Vec<String> = outcome.failed.iter().map(|error| format!("{error:#}")).collect();
    anyhow::ensure!(failed.is_empty(), "of kube-proxy could not be removed: {}", failed.join("; "));
    Ok(())
}

/// `portolan cleanup`: removes everything of ours from the kernel of this network namespace.
pub async fn cleanup() -> anyhow::Result<()> {
    let tables = kernel::Kernel::open().and_then(|mut kernel| kernel.cleanup());
    let routes = async { routes::Routes::open()?.cleanup().await }.await;
    let errors: Vec<anyhow::Error> = [tables, routes].into_iter().filter_map(Result::err).collect();
    if errors.is_empty() { Ok(()) } else { Err(kernel::joined(errors.into_iter())) }
}
