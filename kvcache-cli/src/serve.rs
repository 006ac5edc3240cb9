//! `kvcache serve`: a cache server that InfiniStore's clients and ours connect to.

mod stderr_log;

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use kvcache_core::eviction::PolicyRegistry;
use kvcache_rdma::verbs::PortWish;
use kvcache_rdma::verbs_server::{AdmissionLimits, VerbsServerConfig};
use kvcache_server::{
    RdmaConfig, RdmaUsage, Server, ServerConfig, Timeouts, TlsFiles, Token, run_until_signal,
};

use crate::doctor::machine_memory_bytes;
use kvcache_core::byte_size::ByteSize;

/// Runs a cache server until it is asked to end (SIGTERM or Ctrl-C).
///
/// It speaks InfiniStore's protocol over TCP, so that existing clients work unchanged, and needs no RDMA device. When
/// clients can connect it prints one line of JSON: `{"event":"ready","listen":"127.0.0.1:12345",...}`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address and port for clients; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:12345", value_parser = address)]
    listen: SocketAddr,
    /// Memory for values, such as 4GiB. It is taken as it is used, unless --populate is given.
    #[arg(long, value_name = "SIZE")]
    capacity: ByteSize,
    /// Address and port for management over HTTP: /healthz, /readyz, /metrics, /kvmap_len and POST /purge.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    manage: Option<SocketAddr>,
    /// Eviction policy.
    #[arg(long, value_name = "NAME", default_value = PolicyRegistry::DEFAULT)]
    eviction: String,
    /// Longest value [default: as long as the capacity].
    #[arg(long, value_name = "SIZE")]
    max_value: Option<ByteSize>,
    /// Values at most, however small [default: one for every 16 KiB of capacity].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    max_values: Option<u32>,
    /// File with a token that clients must know. InfiniStore's clients have none: they are refused, see --allow-stock.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Serves clients that cannot send a token, although there is one.
    #[arg(long, requires = "token_file")]
    allow_stock: bool,
    /// Certificate chain (PEM): every connection is then TLS.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Connections at a time; more are closed at once.
    #[arg(long, value_name = "COUNT", default_value = "4096")]
    max_connections: NonZeroUsize,
    /// Seconds after which a silent connection is closed [default: never].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    idle_timeout: Option<u64>,
    /// Threads that serve [default: as many as cores, 8 at most].
    #[arg(long, value_name = "COUNT")]
    threads: Option<NonZeroUsize>,
    /// Takes all memory at the start, in the background.
    #[arg(long)]
    populate: bool,
    /// Does without shared memory: clients of this host use TCP like all others.
    #[arg(long)]
    no_shared_memory: bool,
    /// Whether clients are served over RDMA as well. All of the capacity is pinned then.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    rdma: Rdma,
    /// RDMA device, such as mlx5_0 [default: the first with an active port].
    #[arg(long, value_name = "NAME")]
    rdma_device: Option<String>,
    /// Port of the device, counted from 1 [default: the first active one].
    #[arg(long, value_name = "NUMBER")]
    rdma_port: Option<u8>,
    /// Index of the port's GID [default: RoCE v2 with an IPv4 address, if there is one].
    #[arg(long, value_name = "INDEX")]
    rdma_gid: Option<u32>,
    /// Queue pairs at most; each pins 6 MiB.
    #[arg(long, value_name = "COUNT", default_value = "512")]
    rdma_max_connections: NonZeroUsize,
    /// What is logged to standard error: error, warn, info, debug or off.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = level)]
    log: log::LevelFilter,
}

/// When RDMA is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Rdma {
    /// Where a device is; otherwise a line in the log says why not.
    Auto,
    /// Never.
    Off,
    /// Or the server does not start.
    Required,
}

/// Runs the server that `args` describe; returns when it has been asked to end.
///
/// # Errors
///
/// If it cannot start: the message names the setting and the remedy.
pub(crate) fn run(args: &Args) -> Result<String, ServeError> {
    stderr_log::start(args.log);
    run_until_signal(config(args)?, ready)?;
    Ok(String::new())
}

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Server(#[from] kvcache_server::Error),
    #[error("--capacity {asked} is less than {CAPACITY_MIN}: there would be room for next to nothing")]
    CapacityTooSmall { asked: ByteSize },
    #[error("--max-value {asked} is not between 1 and --capacity {capacity}: a longer value never fits")]
    MaxValue { asked: ByteSize, capacity: ByteSize },
    #[error("--capacity {asked} is more than the memory of this machine, {memory}: give less")]
    CapacityTooLarge { asked: ByteSize, memory: ByteSize },
}

const CAPACITY_MIN: ByteSize = ByteSize(1 << 20);

fn config(args: &Args) -> Result<ServerConfig, ServeError> {
    let asked = args.capacity;
    if asked < CAPACITY_MIN {
        return Err(ServeError::CapacityTooSmall { asked });
    }
    if let Some(memory) = machine_memory_bytes().map(ByteSize).filter(|memory| asked > *memory) {
        return Err(ServeError::CapacityTooLarge { asked, memory });
    }
    if let Some(longest) = args.max_value.filter(|longest| longest.0 == 0 || *longest > asked) {
        return Err(ServeError::MaxValue { asked: longest, capacity: asked });
    }
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(TlsFiles { certificate: certificate.clone(), key: key.clone() })
        }
        _ => None,
    };
    Ok(ServerConfig {
        listen: args.listen,
        manage: args.manage,
        capacity_bytes: asked.0,
        eviction: args.eviction.clone(),
        values_max: args.max_values,
        value_bytes_max: args.max_value.map(|bytes| bytes.0),
        token: args.token_file.as_deref().map(Token::from_file).transpose()?,
        allow_stock: args.allow_stock,
        tls,
        connections_max: args.max_connections.get(),
        threads: args.threads.map(NonZeroUsize::get),
        populate: args.populate,
        shared_memory: !args.no_shared_memory,
        rdma: RdmaConfig {
            usage: match args.rdma {
                Rdma::Auto => RdmaUsage::IfPresent,
                Rdma::Off => RdmaUsage::Off,
                Rdma::Required => RdmaUsage::Required,
            },
            port: PortWish {
                device: args.rdma_device.clone(),
                port: args.rdma_port,
                gid_index: args.rdma_gid,
            },
            verbs: VerbsServerConfig {
                limits: AdmissionLimits {
                    connections: args.rdma_max_connections.get(),
                    ..AdmissionLimits::default()
                },
                ..VerbsServerConfig::default()
            },
        },
        timeouts: Timeouts { idle: args.idle_timeout.map(Duration::from_secs), ..Timeouts::default() },
        ..ServerConfig::default()
    })
}

/// Whoever has started us reads this line to learn the ports.
fn ready(server: &Server) {
    let line = serde_json::json!({
        "event": "ready",
        "listen": server.address().to_string(),
        "manage": server.manage_address().map(|address| address.to_string()),
        "capacity_bytes": server.store().pool().capacity_bytes(),
        "pid": std::process::id(),
    });
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        log::warn!("nobody reads that the server is ready: {error}");
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let resolved = text.to_socket_addrs().map_err(|error| error.to_string());
    resolved
        .and_then(|mut addresses| addresses.next().ok_or_else(|| "the name has no address".to_owned()))
        .map_err(|error| {
            format!("{error}; use an address and a port, such as 127.0.0.1:12345 or [::1]:12345")
        })
}

fn level(text: &str) -> Result<log::LevelFilter, String> {
    text.parse().map_err(|_| "use error, warn, info, debug or off".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_port() {
        assert_eq!(address("127.0.0.1:7").map(|address| address.port()), Ok(7));
        assert_eq!(address("[::1]:0").map(|address| address.is_ipv6()), Ok(true));
        for bad in ["127.0.0.1", "12345", "127.0.0.1:99999", ""] {
            let error = address(bad).unwrap_err();
            assert!(error.contains("such as 127.0.0.1:12345"), "{error}");
        }
    }
}
