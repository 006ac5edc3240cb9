//! What two RDMA peers tell each other before their queue pairs can talk.

use crate::DecodeError;
use crate::reader::Reader;

/// One side's queue pair, 30 bytes packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionInfo {
    /// Number of the queue pair.
    pub queue_pair: u32,
    /// First packet sequence number that this side sends.
    pub packet_sequence: u32,
    /// Global id of the port, as the device stores it.
    pub gid: [u8; 16],
    /// Local id of the port; 0 on Ethernet.
    pub lid: u16,
    /// Active MTU as the verbs enumeration: 1 = 256 bytes up to 5 = 4096 bytes.
    pub mtu_code: u32,
}

impl ConnectionInfo {
    /// Bytes of the packed form.
    pub const BYTES: usize = 30;

    /// The bytes as sent.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&self.queue_pair.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.packet_sequence.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.gid);
        bytes[24..26].copy_from_slice(&self.lid.to_le_bytes());
        bytes[26..30].copy_from_slice(&self.mtu_code.to_le_bytes());
        bytes
    }

    /// Reads exactly 30 bytes.
    ///
    /// # Errors
    ///
    /// Another length, or an MTU that the enumeration does not have.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("connection info", bytes);
        let info = Self {
            queue_pair: reader.u32()?,
            packet_sequence: reader.u32()?,
            gid: reader.array()?,
            lid: reader.u16()?,
            mtu_code: reader.u32()?,
        };
        reader.finish()?;
        if !(1..=5).contains(&info.mtu_code) {
            return Err(DecodeError::BadValue {
                what: "the MTU code, which goes from 1 to 5,",
                found: info.mtu_code.into(),
            });
        }
        Ok(info)
    }

    /// The MTU in bytes.
    pub fn mtu_bytes(&self) -> u32 {
        128 << self.mtu_code.clamp(1, 5)
    }
}
