//! Tokens and TLS.

mod peer;

use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use kvcache_server::{Error, Server, ServerConfig, TlsFiles, Token};
use kvcache_wire::Status;
use kvcache_wire::stock::{Header, Op};
use peer::{ANY, Peer, content, hasty, put_item, server, wait_for};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const TOKEN: &[u8] = b"correct horse battery staple";

#[test]
fn the_token_opens_and_nothing_else_does() {
    let server = server(|config| config.token = Some(Token::new(TOKEN)));
    for wrong in [b"".as_slice(), b"correct horse battery staplf", &TOKEN[1..]] {
        let mut peer = Peer::connect(server.address());
        assert_eq!(peer.hello(wrong), Err(Status::UNAUTHORIZED));
        assert!(peer.is_closed());
    }
    wait_for(&server, "kvcache_server_errors_total{reason=\"unauthorized\"}", 3);
    let mut peer = Peer::connect(server.address());
    assert!(peer.hello(TOKEN).is_ok());
    assert_eq!(peer.put_batch(0, "", &[(put_item(b"x"), "k")], b"x"), [Status::OK]);
}

#[test]
fn stock_clients_are_refused_with_a_token_unless_allowed() {
    for allow_stock in [false, true] {
        let server = server(|config| {
            config.token = Some(Token::new(TOKEN));
            config.allow_stock = allow_stock;
        });
        let mut peer = Peer::connect(server.address());
        peer.request(Op::Exists, b"k");
        if allow_stock {
            assert_eq!(peer.number(), 1);
        } else {
            assert_eq!(peer.status(), Status::UNAUTHORIZED);
            assert!(peer.is_closed());
        }
    }
}

#[test]
fn who_is_unknown_is_refused_before_its_body() {
    let server = server(|config| config.token = Some(Token::new(TOKEN)));
    for (op, status) in [(Op::Match, Status::UNAUTHORIZED), (Op::Hello, Status::BAD_REQUEST)] {
        let mut peer = Peer::connect(server.address());
        peer.send(&Header { op, body_bytes: 4 << 20 }.encode());
        assert_eq!(peer.status(), status);
        assert!(peer.is_closed());
    }
}

struct Certificate {
    files: TlsFiles,
    root: CertificateDer<'static>,
    folder: PathBuf,
}

impl Certificate {
    fn new(name: &str) -> Self {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let folder = std::env::temp_dir().join(format!("kvcache-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let files = TlsFiles { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
        std::fs::write(&files.certificate, pair.cert.pem()).expect("a file");
        std::fs::write(&files.key, pair.signing_key.serialize_pem()).expect("a file");
        Self { files, root: pair.cert.der().clone(), folder }
    }

    fn connect(&self, server: &Server) -> Peer<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "localhost".try_into().expect("a name");
        let client = ClientConnection::new(Arc::new(config), name).expect("a client");
        Peer { stream: StreamOwned::new(client, Peer::connect(server.address()).stream) }
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn both_protocols_through_tls() {
    let certificate = Certificate::new("both");
    let server = server(|config| {
        config.tls = Some(certificate.files.clone());
        config.token = Some(Token::new(TOKEN));
        config.allow_stock = true;
    });
    let mut peer = certificate.connect(&server);
    let value = content(1, 3 << 20);
    assert_eq!(peer.put(b"k", &value), Status::OK);
    assert!(peer.get(b"k").as_ref() == Some(&value));
    assert!(peer.hello(TOKEN).is_ok());
    assert_eq!(peer.put_batch(0, "", &[(put_item(&value), "l")], &value), [Status::OK]);
    let got = peer.get_batch("", &[(ANY, "l"), (ANY, "k")]);
    assert!(got.iter().all(|(_, bytes)| *bytes == value));
}

#[test]
fn a_plain_client_at_a_tls_server_and_the_reverse() {
    let certificate = Certificate::new("mismatch");
    let with_tls = server(|config| {
        config.tls = Some(certificate.files.clone());
        config.timeouts = hasty();
    });
    let mut plain = Peer::connect(with_tls.address());
    plain.request(Op::Exists, b"k");
    let mut alert = Vec::new();
    let _ = std::io::Read::read_to_end(&mut plain.stream, &mut alert);
    wait_for(&with_tls, "kvcache_server_errors_total{reason=\"tls\"}", 1);
    // One that says nothing at all does not keep its place.
    assert!(Peer::connect(with_tls.address()).is_closed());

    let without = server(|_| {});
    let mut tls = certificate.connect(&without);
    assert!(std::io::Write::write_all(&mut tls.stream, b"x").is_err());
    wait_for(&without, "kvcache_server_errors_total{reason=\"bad_magic\"}", 1);
}

#[test]
fn files_that_are_no_certificate_are_named() {
    let certificate = Certificate::new("files");
    let start = |files: TlsFiles| {
        let config = ServerConfig { capacity_bytes: 1 << 20, tls: Some(files), ..ServerConfig::default() };
        Server::start(config).expect_err("unusable").to_string()
    };
    let missing = TlsFiles { certificate: "/no/such/cert.pem".into(), ..certificate.files.clone() };
    assert!(start(missing).starts_with("cannot read /no/such/cert.pem: "));
    let swapped =
        TlsFiles { certificate: certificate.files.key.clone(), key: certificate.files.certificate.clone() };
    let error = start(swapped);
    assert!(
        error.starts_with("cannot use the certificate ") && error.ends_with("belong together"),
        "{error}"
    );
    let other = Certificate::new("other");
    let foreign = TlsFiles { key: other.files.key.clone(), ..certificate.files.clone() };
    assert!(matches!(
        Server::start(ServerConfig { tls: Some(foreign), ..ServerConfig::default() }),
        Err(Error::Tls { .. })
    ));
}
