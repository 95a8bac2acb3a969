//! The cluster's certificate, keys and kubeconfigs.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;

use crate::topology::{CONTROL_PLANE, KUBERNETES_VIP};

/// Writes `ca.crt`, `server.crt`, `server.key` and `service-account.key` and `.pub` (the pair that
/// signs tokens) into `dir`.
pub fn write(dir: &Path) -> anyhow::Result<()> {
    let ca_key = KeyPair::generate()?;
    let mut ca = named(CertificateParams::default(), "portolan lab");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key)?;

    // The name each client knows the server by: the relay, the underlay, the `kubernetes` Service.
    let [v4, v6] = CONTROL_PLANE.both();
    let names = ["localhost", "127.0.0.1", "kubernetes.default.svc"].map(String::from).into_iter();
    let names = names.chain([v4.to_string(), v6.to_string(), KUBERNETES_VIP.to_string()]);
    let server_key = KeyPair::generate()?;
    let server = named(CertificateParams::new(names.collect::<Vec<_>>())?, "kube-apiserver");
    let server = server.signed_by(&server_key, &Issuer::new(ca, ca_key))?;

    let write = |name: &str, text: String| {
        std::fs::write(dir.join(name), text).with_context(|| format!("write {name} in {}", dir.display()))
    };
    write("ca.crt", ca_certificate.pem())?;
    write("server.crt", server.pem())?;
    write("server.key", server_key.serialize_pem())?;
    let tokens = KeyPair::generate()?;
    write("service-account.pub", tokens.public_key_pem())?;
    write("service-account.key", tokens.serialize_pem())
}

fn named(mut params: CertificateParams, name: &str) -> CertificateParams {
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// Writes a kubeconfig for `server` with a bearer token; the server is verified against `ca`.
pub fn write_kubeconfig(path: &Path, server: SocketAddr, ca: &Path, token: &str) -> anyhow::Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": format!("https://{server}"), "certificate-authority": ca}}],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    });
    // JSON is YAML.
    std::fs::write(path, serde_json::to_string_pretty(&config)?).with_context(|| path.display().to_string())
}

/// A secret of 32 hexadecimal digits.
pub fn random_token() -> anyhow::Result<String> {
    use std::io::Read;
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
