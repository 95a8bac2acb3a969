//! The kernel's side of the dataplane: one small file per kernel interface.

pub mod addresses;
pub mod conntrack;
pub mod kernel;
pub mod nft;
pub mod routes;

/// `portolan cleanup`: removes everything of ours from the kernel of this network namespace.
pub async fn cleanup() -> anyhow::Result<()> {
    kernel::Kernel::open()?.cleanup()?;
    routes::Routes::open()?.cleanup().await
}
