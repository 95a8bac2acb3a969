//! The kernel's side of the dataplane: one small file per kernel interface.

pub mod addresses;
pub mod conntrack;
pub mod kernel;
pub mod nft;
pub mod routes;

/// `portolan cleanup`: removes everything of ours from the kernel of this network namespace.
pub async fn cleanup() -> anyhow::Result<()> {
    let tables = kernel::Kernel::open().and_then(|mut kernel| kernel.cleanup());
    let routes = async { routes::Routes::open()?.cleanup().await }.await;
    let errors: Vec<anyhow::Error> = [tables, routes].into_iter().filter_map(Result::err).collect();
    if errors.is_empty() { Ok(()) } else { Err(kernel::joined(errors.into_iter())) }
}
