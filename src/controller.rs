//! stub
pub async fn command(_: crate::cli::Controller) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
