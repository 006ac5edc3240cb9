//! What `remote=` says: how servers are spoken to, and who they are.
//!
//! | URL | members |
//! |---|---|
//! | `tcp://a:12345,b:12345` | these, over TCP; `tls://` likewise with TLS, `rdma://` over RDMA |
//! | `infinistore+rdma://a:12345`, `infinistore+tcp://…` | these; the names say that the servers are InfiniStore's |
//! | `file:///etc/kv/members.json` | those in the file, watched |
//! | `redis://[user:password@]host[:6379]/[db/]kvcache_nodes` | those under the key, watched |
//!
//! Options follow a question mark: `transport=tcp|tls|rdma` for sources that do not say it themselves, and
//! `placement=computed|published`. With RDMA there are `rdma_device=NAME`, `rdma_port=NUMBER` and `rdma_gid=INDEX`, which
//! mean what `kvcache serve` means by them. A user, a password, a key or a path may hold `%2F` and the like.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use kvcache_core::nearest_name::nearest_name;

use super::percent::decoded;
use super::redis_source::RedisKey;
use super::{Member, MemberList, MembersError, PlacementSource, ServerAddress};
use crate::verbs::PortWish;

/// How servers are spoken to. Which of the wire's extensions a server knows is found out when it is connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// TLS over TCP.
    Tls,
    /// RDMA verbs, set up over TCP.
    Rdma,
}

/// Where the list of members comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MembersFrom {
    /// The URL lists them.
    Url(MemberList),
    /// A JSON file that is read again every second.
    File(PathBuf),
    /// A key of a Redis server that is read again every few seconds.
    Redis(RedisKey),
}

/// A parsed `remote=`. Shows no password.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteUrl {
    /// How servers are spoken to.
    pub transport: Transport,
    /// Who they are.
    pub members: MembersFrom,
    /// Who decides which of them holds what.
    pub placement: PlacementSource,
    /// Which port this side uses, with [`Transport::Rdma`].
    pub rdma: PortWish,
}

/// What the part after a scheme is.
#[derive(Clone, Copy)]
enum Rest {
    Addresses(Transport),
    File,
    Redis,
}

/// New transports and sources are added here.
const SCHEMES: [(&str, Rest); 7] = [
    ("tcp", Rest::Addresses(Transport::Tcp)),
    ("tls", Rest::Addresses(Transport::Tls)),
    ("rdma", Rest::Addresses(Transport::Rdma)),
    ("infinistore+tcp", Rest::Addresses(Transport::Tcp)),
    ("infinistore+rdma", Rest::Addresses(Transport::Rdma)),
    ("file", Rest::File),
    ("redis", Rest::Redis),
];

const TRANSPORTS: [(&str, Transport); 3] =
    [("tcp", Transport::Tcp), ("tls", Transport::Tls), ("rdma", Transport::Rdma)];

const PLACEMENTS: [(&str, PlacementSource); 2] =
    [("computed", PlacementSource::Computed), ("published", PlacementSource::Published)];

const OPTIONS: [&str; 5] = ["transport", "placement", "rdma_device", "rdma_port", "rdma_gid"];

impl FromStr for RemoteUrl {
    type Err = RemoteUrlError;

    fn from_str(url: &str) -> Result<Self, RemoteUrlError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| RemoteUrlError::NoScheme {
            url: without_password(url),
            known: list(SCHEMES.map(|(name, _)| name)),
        })?;
        let known = SCHEMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(scheme));
        let (_, kind) = known.ok_or_else(|| RemoteUrlError::UnknownScheme {
            scheme: scheme.to_owned(),
            nearest: nearest(scheme, SCHEMES.map(|(name, _)| name)),
            known: list(SCHEMES.map(|(name, _)| name)),
        })?;
        let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
        let start = scheme.len() + "://".len();
        let (transport, members) = match kind {
            Rest::Addresses(transport) => (Some(*transport), MembersFrom::Url(addresses(rest, start)?)),
            Rest::File => (None, MembersFrom::File(path(rest)?)),
            Rest::Redis => (None, MembersFrom::Redis(RedisKey::parse(rest)?)),
        };
        let options = Options::parse(options)?;
        if let (Some(said), Some(option)) = (transport, options.transport)
            && said != option
        {
            return Err(RemoteUrlError::TransportTwice { scheme: scheme.to_owned() });
        }
        let transport = transport.or(options.transport).unwrap_or_default();
        if transport != Transport::Rdma && options.rdma != PortWish::default() {
            return Err(RemoteUrlError::RdmaOption);
        }
        Ok(Self { transport, members, placement: options.placement.unwrap_or_default(), rdma: options.rdma })
    }
}

/// The addresses that stand between commas; `start` is where they begin in the URL.
fn addresses(text: &str, start: usize) -> Result<MemberList, RemoteUrlError> {
    if text.is_empty() {
        return Err(RemoteUrlError::NoAddress);
    }
    let mut members = Vec::new();
    let mut position = start;
    for part in text.split(',') {
        let address: ServerAddress = part.trim().parse().map_err(|source| RemoteUrlError::Address {
            position: position + 1,
            source: MembersError::Address { position: members.len() + 1, source },
        })?;
        members.push(Member::at(address));
        position += part.len() + 1;
    }
    Ok(MemberList::new(members)?)
}

fn path(text: &str) -> Result<PathBuf, RemoteUrlError> {
    if !text.starts_with('/') || text.ends_with('/') {
        return Err(RemoteUrlError::Path { path: text.to_owned() });
    }
    Ok(PathBuf::from(decoded(text).ok_or(RemoteUrlError::Percent { what: "path" })?))
}

#[derive(Default)]
struct Options {
    transport: Option<Transport>,
    placement: Option<PlacementSource>,
    rdma: PortWish,
}

impl Options {
    fn parse(text: &str) -> Result<Self, RemoteUrlError> {
        let mut options = Self::default();
        for option in text.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match name {
                "transport" => options.transport = Some(one_of("transport", value, &TRANSPORTS)?),
                "placement" => options.placement = Some(one_of("placement", value, &PLACEMENTS)?),
                "rdma_device" if value.is_empty() => {
                    return Err(not_one("rdma_device", value, "a name, as in mlx5_0"));
                }
                "rdma_device" => options.rdma.device = Some(value.to_owned()),
                "rdma_port" => options.rdma.port = Some(number("rdma_port", value, 1)?),
                "rdma_gid" => options.rdma.gid_index = Some(number::<u8>("rdma_gid", value, 0)?.into()),
                _ => {
                    return Err(RemoteUrlError::UnknownOption {
                        option: name.to_owned(),
                        nearest: nearest(name, OPTIONS),
                        known: list(OPTIONS),
                    });
                }
            }
        }
        Ok(options)
    }
}

fn one_of<T: Copy>(option: &'static str, value: &str, known: &[(&str, T)]) -> Result<T, RemoteUrlError> {
    let found = known.iter().find(|(name, _)| *name == value);
    found.map(|(_, value)| *value).ok_or_else(|| RemoteUrlError::OptionValue {
        option,
        value: value.to_owned(),
        known: list(known.iter().map(|(name, _)| *name)),
    })
}

fn number<T: FromStr + PartialOrd>(option: &'static str, value: &str, min: T) -> Result<T, RemoteUrlError> {
    let known = if option == "rdma_port" { "a number from 1 to 255" } else { "a number from 0 to 255" };
    // `parse` alone would take "+1".
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse().ok().filter(|number| digits && *number >= min);
    number.ok_or_else(|| not_one(option, value, known))
}

fn not_one(option: &'static str, value: &str, known: &str) -> RemoteUrlError {
    RemoteUrlError::OptionValue { option, value: value.to_owned(), known: known.to_owned() }
}

fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest_name(name, known).map(str::to_owned)
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// A text that may be a URL of Redis with its scheme forgotten.
fn without_password(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => text.to_owned(),
    }
}

/// Why `remote=` cannot be understood. No message holds a password.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteUrlError {
    /// There is no `://`.
    #[error(
        "remote {url:?} has no scheme: write tcp://host:port,host:port or one of {known}, followed by ://"
    )]
    NoScheme {
        /// The value.
        url: String,
        /// The known schemes.
        known: String,
    },
    /// The scheme is not known.
    #[error("remote has the unknown scheme {scheme:?}{}; known: {known}", did_you_mean(nearest.as_deref()))]
    UnknownScheme {
        /// The scheme.
        scheme: String,
        /// The known one that was probably meant.
        nearest: Option<String>,
        /// The known schemes.
        known: String,
    },
    /// No address follows the scheme.
    #[error("remote names no server: write at least one host:port after ://")]
    NoAddress,
    /// An address cannot be read.
    #[error("remote, character {position}: {source}")]
    Address {
        /// Where the address begins, counted from 1.
        position: usize,
        /// What is wrong.
        source: MembersError,
    },
    /// The addresses make no list.
    #[error("remote: {0}")]
    Members(#[from] MembersError),
    /// The file's path is not absolute or names a folder.
    #[error("remote path {path:?} names no file: write file:///folder/members.json, with three slashes")]
    Path {
        /// What follows the scheme.
        path: String,
    },
    /// The Redis server or its key cannot be read.
    #[error(
        "remote, redis: {reason}; write redis://host:6379/kvcache_nodes or redis://user:password@host:6379/0/kvcache_nodes"
    )]
    Redis {
        /// What is wrong.
        reason: String,
    },
    /// A percent sign is not followed by two hexadecimal digits, or what they spell is no text.
    #[error(
        "remote: in the {what}, % must be followed by two hexadecimal digits; a percent sign itself is %25"
    )]
    Percent {
        /// The part of the URL.
        what: &'static str,
    },
    /// The option is not known.
    #[error("remote has the unknown option {option:?}{}; known: {known}", did_you_mean(nearest.as_deref()))]
    UnknownOption {
        /// The option.
        option: String,
        /// The known one that was probably meant.
        nearest: Option<String>,
        /// The known options.
        known: String,
    },
    /// The option does not take this value.
    #[error("remote option {option} cannot be {value:?}; known: {known}")]
    OptionValue {
        /// The option.
        option: &'static str,
        /// The value.
        value: String,
        /// What it can be.
        known: String,
    },
    /// A port was chosen for a transport that has none.
    #[error("remote chooses an RDMA port and is not over RDMA: write rdma://, or leave the options out")]
    RdmaOption,
    /// Scheme and option name different transports.
    #[error("remote says the transport twice: the scheme {scheme:?} has one, so leave the option out")]
    TransportTwice {
        /// The scheme.
        scheme: String,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!(" (did you mean {nearest}?)")).unwrap_or_default()
}

/// The URL in its shortest form, without user and password.
impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = TRANSPORTS.iter().find(|(_, transport)| *transport == self.transport);
        let transport = transport.map_or("tcp", |(name, _)| *name);
        match &self.members {
            MembersFrom::Url(members) => {
                let addresses: Vec<_> = members.members().iter().map(|m| m.address.to_string()).collect();
                write!(f, "{transport}://{}", addresses.join(","))?;
                let options = self.rdma_options().join("&");
                return if options.is_empty() { Ok(()) } else { write!(f, "?{options}") };
            }
            MembersFrom::File(path) => write!(f, "file://{}", path.display())?,
            MembersFrom::Redis(key) => write!(f, "{key}")?,
        }
        write!(f, "?transport={transport}")?;
        if self.placement == PlacementSource::Published {
            f.write_str("&placement=published")?;
        }
        self.rdma_options().iter().try_for_each(|option| write!(f, "&{option}"))
    }
}

impl RemoteUrl {
    fn rdma_options(&self) -> Vec<String> {
        let PortWish { device, port, gid_index } = &self.rdma;
        let device = device.as_ref().map(|device| format!("rdma_device={device}"));
        let port = port.map(|port| format!("rdma_port={port}"));
        let gid = gid_index.map(|index| format!("rdma_gid={index}"));
        device.into_iter().chain(port).chain(gid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> RemoteUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn error(text: &str) -> String {
        text.parse::<RemoteUrl>().expect_err(text).to_string()
    }

    #[test]
    fn addresses_are_listed_after_a_transport() {
        let remote = url("tcp://b:12345,a:12345");
        assert_eq!((remote.transport, remote.placement), (Transport::Tcp, PlacementSource::Computed));
        assert_eq!(remote.to_string(), "tcp://a:12345,b:12345");
        assert_eq!(url("TLS://[::1]:1").to_string(), "tls://[::1]:1");
        assert_eq!(url("infinistore+rdma://10.0.0.7:12345").transport, Transport::Rdma);
        assert_eq!(url("infinistore+tcp://10.0.0.7:12345").transport, Transport::Tcp);
    }

    #[test]
    fn a_port_can_be_chosen_for_rdma() {
        let remote = url("rdma://a:1?rdma_gid=3&rdma_device=mlx5_0&rdma_port=2");
        let wish = PortWish { device: Some("mlx5_0".to_owned()), port: Some(2), gid_index: Some(3) };
        assert_eq!(remote.rdma, wish);
        assert_eq!(remote.to_string(), "rdma://a:1?rdma_device=mlx5_0&rdma_port=2&rdma_gid=3");
        assert_eq!(url(&remote.to_string()), remote);
        let remote = url("file:///m.json?transport=rdma&rdma_device=mlx5_0");
        assert_eq!(url(&remote.to_string()), remote);
    }

    #[test]
    fn files_and_redis_are_sources() {
        let remote = url("file:///etc/kv%20cache/members.json?transport=rdma");
        assert_eq!(remote.members, MembersFrom::File("/etc/kv cache/members.json".into()));
        assert_eq!(remote.transport, Transport::Rdma);
        let remote = url("redis://kv:s%40cret@redis.kv.svc/2/kvcache_nodes?placement=published");
        assert_eq!(
            remote.to_string(),
            "redis://redis.kv.svc:6379/2/kvcache_nodes?transport=tcp&placement=published"
        );
        assert!(!format!("{remote:?}").contains("cret"), "{remote:?}");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        let schemes = "tcp, tls, rdma, infinistore+tcp, infinistore+rdma, file, redis";
        for (text, message) in [
            ("tpc://a:1", format!("remote has the unknown scheme \"tpc\" (did you mean tcp?); known: {schemes}")),
            ("infinistore+rmda://a:1", format!("remote has the unknown scheme \"infinistore+rmda\" (did you mean infinistore+rdma?); known: {schemes}")),
            ("a:12345", format!("remote \"a:12345\" has no scheme: write tcp://host:port,host:port or one of {schemes}, followed by ://")),
            ("u:secret@h:1", format!("remote \"…@h:1\" has no scheme: write tcp://host:port,host:port or one of {schemes}, followed by ://")),
            ("tcp://", "remote names no server: write at least one host:port after ://".into()),
            ("tcp://a:1,b", "remote, character 11: member 2: \"b\" is not a server's address: the port is missing; write host:port, as in 10.0.0.7:12345".into()),
            ("tcp://a:1,", "remote, character 11: member 2: \"\" is not a server's address: the port is missing; write host:port, as in 10.0.0.7:12345".into()),
            ("tcp://a:1/x", "remote, character 7: member 1: \"a:1/x\" is not a server's address: the port must be a number from 1 to 65535".into()),
            ("tcp://a:1,A:1", "remote: the ring names \"a:1\" twice: each server is listed once".into()),
            ("file://members.json", "remote path \"members.json\" names no file: write file:///folder/members.json, with three slashes".into()),
            ("file:///a%zz", "remote: in the path, % must be followed by two hexadecimal digits; a percent sign itself is %25".into()),
            ("tcp://a:1?transprot=tls", "remote has the unknown option \"transprot\" (did you mean transport?); known: transport, placement, rdma_device, rdma_port, rdma_gid".into()),
            ("rdma://a:1?rdma_prot=1", "remote has the unknown option \"rdma_prot\" (did you mean rdma_port?); known: transport, placement, rdma_device, rdma_port, rdma_gid".into()),
            ("rdma://a:1?rdma_port=0", "remote option rdma_port cannot be \"0\"; known: a number from 1 to 255".into()),
            ("rdma://a:1?rdma_gid=256", "remote option rdma_gid cannot be \"256\"; known: a number from 0 to 255".into()),
            ("rdma://a:1?rdma_device=", "remote option rdma_device cannot be \"\"; known: a name, as in mlx5_0".into()),
            ("tcp://a:1?rdma_device=mlx5_0", "remote chooses an RDMA port and is not over RDMA: write rdma://, or leave the options out".into()),
            ("file:///a?transport=udp", "remote option transport cannot be \"udp\"; known: tcp, tls, rdma".into()),
            ("tcp://a:1?transport=rdma", "remote says the transport twice: the scheme \"tcp\" has one, so leave the option out".into()),
        ] {
            assert_eq!(error(text), message, "{text}");
        }
    }
}
