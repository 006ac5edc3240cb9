//! Addresses of the loopback interface, each of one owner at a time on this machine.
//!
//! All of 127.0.0.0/8 reaches this machine, so that every pod and every control plane can have an address of its own with
//! the ports it always has. An owner listens on one more port of its address: that is what keeps other test processes away.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// An address that nobody else leases until this is dropped. None is leased twice by one process.
pub(crate) struct LoopbackAddress {
    ip: Ipv4Addr,
    _claim: TcpListener,
}

impl LoopbackAddress {
    /// # Panics
    ///
    /// If this system gives programs only 127.0.0.1.
    pub(crate) fn lease() -> Self {
        // Another process most likely starts elsewhere.
        static START: std::sync::LazyLock<u32> = std::sync::LazyLock::new(|| {
            let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            std::process::id().wrapping_mul(0x9e37_79b9) ^ time.subsec_nanos()
        });
        static LEASED: AtomicU32 = AtomicU32::new(0);
        let mut last_error = None;
        for _ in 0..ATTEMPTS_MAX {
            let number = START.wrapping_add(LEASED.fetch_add(1, Ordering::Relaxed)) % COUNT;
            let ip = Ipv4Addr::from(FIRST + number);
            match TcpListener::bind((ip, CLAIM_PORT)) {
                Ok(claim) => return Self { ip, _claim: claim },
                Err(error) => last_error = Some(error),
            }
        }
        panic!("no address of 127.0.0.0/8 can be had: {last_error:?}");
    }

    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.ip
    }
}

/// Away from what others use of 127.0.0.0/8, such as the stub resolver's 127.0.0.53.
const FIRST: u32 = u32::from_be_bytes([127, 64, 0, 1]);
const COUNT: u32 = 1 << 21;
/// Below the ports that systems give to outgoing connections.
const CLAIM_PORT: u16 = 10_009;
const ATTEMPTS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_owner() {
        let (one, other) = (LoopbackAddress::lease(), LoopbackAddress::lease());
        assert_ne!(one.ip(), other.ip());
        assert!(TcpListener::bind((one.ip(), CLAIM_PORT)).is_err());
        // The ports of two owners do not clash.
        let ports = [one.ip(), other.ip()].map(|ip| TcpListener::bind((ip, 12_345)).expect("nobody else's"));
        assert_eq!(ports[0].local_addr().expect("bound").port(), 12_345);
        let ip = one.ip();
        drop(one);
        assert!(TcpListener::bind((ip, CLAIM_PORT)).is_ok());
    }
}
