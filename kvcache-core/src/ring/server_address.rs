//! Where a server listens.

use std::fmt;
use std::str::FromStr;

/// A server's host and port, as a client connects to it.
///
/// The host is a name, an IPv4 address or an IPv6 address; only the last is written in brackets (`[::1]:12345`). It is
/// kept as text: names are resolved when a connection is made, so that a server which moved is found again.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServerAddress {
    host: String,
    port: u16,
}

impl ServerAddress {
    /// An address of parts that are known already.
    ///
    /// # Errors
    ///
    /// Those of parsing `host:port`. IPv6 addresses come without brackets.
    pub fn new(host: &str, port: u16) -> Result<Self, ServerAddressError> {
        let invalid = |reason| ServerAddressError { text: format!("{host}:{port}"), reason };
        if host.is_empty() {
            return Err(invalid(Reason::NoHost));
        }
        if port == 0 {
            return Err(invalid(Reason::PortZero));
        }
        if host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(invalid(Reason::BareIpv6));
        }
        if let Some(bad) = host.chars().find(|&c| !(c.is_ascii_alphanumeric() || "-._:".contains(c))) {
            return Err(invalid(Reason::HostCharacter(bad)));
        }
        // Names of hosts are the same in either case, and equal members must have equal names on every client.
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }

    /// The host without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never zero.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for ServerAddress {
    type Err = ServerAddressError;

    fn from_str(text: &str) -> Result<Self, ServerAddressError> {
        let invalid = |reason| ServerAddressError { text: text.to_owned(), reason };
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest
                .split_once("]:")
                .filter(|(host, _)| host.contains(':'))
                .ok_or_else(|| invalid(Reason::Bracket))?,
            None => text.rsplit_once(':').ok_or_else(|| invalid(Reason::NoPort))?,
        };
        if !text.starts_with('[') && host.contains(':') {
            return Err(invalid(Reason::BareIpv6));
        }
        // `parse` alone would take "+12345".
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let number = port.parse::<u16>().ok().filter(|_| digits).ok_or_else(|| invalid(Reason::Port))?;
        Self::new(host, number).map_err(|error| ServerAddressError { text: text.to_owned(), ..error })
    }
}

/// A text that is not an address of a server.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is not a server's address: {reason}")]
pub struct ServerAddressError {
    text: String,
    reason: Reason,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum Reason {
    #[error("the host is missing; write host:port, as in 10.0.0.7:12345")]
    NoHost,
    #[error("the port is missing; write host:port, as in 10.0.0.7:12345")]
    NoPort,
    #[error("the port must be a number from 1 to 65535")]
    Port,
    #[error("port 0 cannot be connected to; give the port that the server prints when it starts")]
    PortZero,
    #[error("an IPv6 address is written in brackets, as in [fd00::7]:12345")]
    BareIpv6,
    #[error("after an opening bracket come an IPv6 address and \"]:port\", as in [fd00::7]:12345")]
    Bracket,
    #[error("character {0:?} cannot be in a host name; write host:port, as in 10.0.0.7:12345")]
    HostCharacter(char),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_were_read() {
        for text in ["10.0.0.7:12345", "cache-0.cache.kv.svc:1", "[fd00::7]:65535", "localhost:8080"] {
            let address: ServerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(ServerAddress::new(address.host(), address.port()), Ok(address));
        }
        assert_eq!("Cache-A:1".parse::<ServerAddress>().unwrap().to_string(), "cache-a:1");
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said() {
        for (text, reason) in [
            ("", Reason::NoPort),
            ("host", Reason::NoPort),
            (":12345", Reason::NoHost),
            ("host:", Reason::Port),
            ("host:+1", Reason::Port),
            ("host:65536", Reason::Port),
            ("host:0", Reason::PortZero),
            ("fd00::7:12345", Reason::BareIpv6),
            ("[fd00::7]", Reason::Bracket),
            ("[fd00::7", Reason::Bracket),
            ("[host]:1", Reason::Bracket),
            ("[zz::7]:1", Reason::BareIpv6),
            ("a b:1", Reason::HostCharacter(' ')),
            ("user@host:1", Reason::HostCharacter('@')),
        ] {
            let error = text.parse::<ServerAddress>().unwrap_err();
            assert_eq!(error, ServerAddressError { text: text.to_owned(), reason }, "{text}");
        }
    }
}
