//! Which addresses are this host's.

use std::net::{IpAddr, UdpSocket};

/// Whether connections to `ip` stay on this host: the loopback, or an address that one of its interfaces has.
///
/// Asks the system whether a socket could have that address, which sends nothing. Not more than a hint: behind it may be
/// a forwarded port.
pub(crate) fn is_this_host(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok_and(|_| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_interfaces_are_this_hosts() {
        assert!(is_this_host("127.0.0.1".parse().unwrap()));
        assert!(is_this_host("::1".parse().unwrap()));
        // Documentation addresses (RFC 5737), the wildcard.
        for strange in ["192.0.2.1", "203.0.113.77", "0.0.0.0"] {
            assert!(!is_this_host(strange.parse().unwrap()), "{strange}");
        }
    }
}
