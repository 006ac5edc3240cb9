//! The control plane's keys, made for one test.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;

/// Files in the folder of a control plane.
pub(crate) struct Certificates {
    /// What clients trust.
    pub(crate) authority: PathBuf,
    pub(crate) authority_der: Vec<u8>,
    pub(crate) server: PathBuf,
    pub(crate) server_key: PathBuf,
    /// The same for a server of ours.
    pub(crate) tls: Arc<ServerConfig>,
    /// With which tokens of service accounts are signed.
    pub(crate) account_key: PathBuf,
    /// With which they are verified.
    pub(crate) account_public_key: PathBuf,
}

impl Certificates {
    /// Writes them into `folder`, for an API server at `ip`.
    pub(crate) fn make(folder: &Path, ip: Ipv4Addr) -> Self {
        let write = |name: &str, content: String| {
            let path = folder.join(name);
            std::fs::write(&path, content).expect("the test's own folder");
            path
        };
        let key = || KeyPair::generate().expect("a random key");
        let authority_key = key();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "control plane of a test");
        let certificate = authority.self_signed(&authority_key).expect("right parameters");
        let issuer = Issuer::new(authority, authority_key);

        let server_key = key();
        let mut server = CertificateParams::new(vec!["kubernetes.default.svc".to_owned()]).expect("a name");
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        server.subject_alt_names.push(SanType::IpAddress(ip.into()));
        let account_key = key();
        let signed = server.signed_by(&server_key, &issuer).expect("right parameters");
        let chain = vec![signed.der().clone()];
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, PrivatePkcs8KeyDer::from(server_key.serialize_der()).into())
            .expect("the key of the certificate");
        Self {
            tls: Arc::new(tls),
            authority: write("ca.pem", certificate.pem()),
            authority_der: certificate.der().to_vec(),
            server: write("apiserver.pem", signed.pem()),
            server_key: write("apiserver.key", server_key.serialize_pem()),
            account_key: write("service-accounts.key", account_key.serialize_pem()),
            account_public_key: write("service-accounts.pub", account_key.public_key_pem()),
        }
    }
}
