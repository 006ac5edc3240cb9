//! How a client finds out that the server speaks the extension, and what they agree on.

use crate::reader::Reader;
use crate::stock::{Header, Op};
use crate::{DecodeError, EncodeError, Status};

/// The one version of the extension so far. The layout of hello and welcome is the same in all versions.
pub const VERSION: u16 = 1;

/// Abilities beyond the version, one bit each. A peer ignores bits that it does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Features(pub u64);

impl Features {
    /// The server compares checksums before it publishes, where a put asks for it.
    pub const VERIFY_ON_PUT: Self = Self(1);
    /// The client maps the server's pool: two descriptors of it come with the welcome, and leases can be asked for.
    /// Over Unix sockets only.
    pub const SHARED_MEMORY: Self = Self(2);
    /// After the welcome the connection stays in InfiniStore's protocol, for an exchange of queue pairs: so a client over
    /// RDMA can give its token.
    pub const QUEUE_PAIR: Self = Self(4);

    /// Whether all of `others` are among these.
    pub fn contain(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Those that both have.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }
}

/// The name of the Unix socket beside TCP `port`, in the abstract namespace and without its leading zero byte.
pub fn local_socket_name(port: u16) -> String {
    format!("kvcache-{port}")
}

/// The client's opening: a stock request with the operation `H`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello<'a> {
    /// Lowest version that the client speaks.
    pub version_min: u16,
    /// Highest version that the client speaks.
    pub version_max: u16,
    /// What the client can make use of.
    pub features: Features,
    /// Proof that the client may use this server; empty where none is needed.
    pub token: &'a [u8],
}

impl<'a> Hello<'a> {
    /// Bytes before the token.
    pub const FIXED_BYTES: usize = 24;
    /// Longest token.
    pub const TOKEN_BYTES_MAX: usize = 4096;

    /// A hello of this version.
    pub fn new(token: &'a [u8]) -> Self {
        Self { version_min: VERSION, version_max: VERSION, features: Features::VERIFY_ON_PUT, token }
    }

    /// The whole request, its stock header included.
    ///
    /// # Errors
    ///
    /// A token above [`TOKEN_BYTES_MAX`](Self::TOKEN_BYTES_MAX).
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        EncodeError::check(
            "the length of the token in bytes",
            self.token.len(),
            Self::TOKEN_BYTES_MAX as u64,
        )?;
        let body_bytes = Self::FIXED_BYTES + self.token.len();
        let mut out = Vec::with_capacity(Header::BYTES + body_bytes);
        out.extend(Header { op: Op::Hello, body_bytes: body_bytes as u32 }.encode());
        out.extend(HELLO_MAGIC.to_le_bytes());
        out.extend(self.version_min.to_le_bytes());
        out.extend(self.version_max.to_le_bytes());
        out.extend(self.features.0.to_le_bytes());
        out.extend((self.token.len() as u16).to_le_bytes());
        out.extend([0; 6]);
        out.extend(self.token);
        Ok(out)
    }

    /// Reads the body.
    ///
    /// # Errors
    ///
    /// Another magic, an empty range of versions, and lengths that disagree.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("a hello", body);
        expect_magic("a hello", reader.u32()?, HELLO_MAGIC)?;
        let (version_min, version_max) = (reader.u16()?, reader.u16()?);
        if version_min > version_max {
            let (left, right) = (version_min.into(), version_max.into());
            return Err(DecodeError::Mismatch { what: "the range of versions is empty", left, right });
        }
        let features = Features(reader.u64()?);
        let token_bytes = usize::from(reader.u16()?);
        if token_bytes > Self::TOKEN_BYTES_MAX {
            let (found, max) = (token_bytes as u64, Self::TOKEN_BYTES_MAX as u64);
            return Err(DecodeError::AboveLimit { what: "the length of the token", found, max });
        }
        for _ in 0..3 {
            reader.zero_u16()?;
        }
        let token = reader.slice(token_bytes)?;
        reader.finish()?;
        Ok(Self { version_min, version_max, features, token })
    }
}

/// What a server accepts, of one request and of one connection.
///
/// Beyond the two in-flight limits the server stops reading until answers have left, so a client that writes more
/// without reading waits for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Keys of one request.
    pub keys_max: u32,
    /// Bytes of one key, prefix and suffix together.
    pub key_bytes_max: u32,
    /// Bytes of one value.
    pub value_bytes_max: u64,
    /// Payload bytes of one frame, in either direction. A get answers [`RETRY`](Status::RETRY) for the values beyond.
    pub payload_bytes_max: u64,
    /// Body and payload bytes of requests that are not answered yet.
    pub bytes_in_flight_max: u64,
    /// Requests that are not answered yet.
    pub requests_in_flight_max: u32,
    /// Body bytes of one frame.
    pub body_bytes_max: u32,
}

/// The server's answer to a good hello. A refusal is a status alone, as in every stock answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The version that this connection speaks from now on.
    pub version: u16,
    /// What both sides can do.
    pub features: Features,
    /// Drawn at the server's start: another number means that everything stored is gone.
    pub server_id: u64,
    /// What the server accepts.
    pub limits: Limits,
}

impl Welcome {
    /// Bytes of the body.
    pub const BYTES: usize = 64;

    /// The whole answer: status 200, length of the body, body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + Self::BYTES);
        out.extend(Status::OK.0.to_le_bytes());
        out.extend((Self::BYTES as u32).to_le_bytes());
        out.extend(WELCOME_MAGIC.to_le_bytes());
        out.extend(self.version.to_le_bytes());
        out.extend(CHECKSUM_XXH3_64.to_le_bytes());
        out.extend(self.features.0.to_le_bytes());
        out.extend(self.server_id.to_le_bytes());
        let limits = &self.limits;
        out.extend(limits.keys_max.to_le_bytes());
        out.extend(limits.key_bytes_max.to_le_bytes());
        out.extend(limits.value_bytes_max.to_le_bytes());
        out.extend(limits.payload_bytes_max.to_le_bytes());
        out.extend(limits.bytes_in_flight_max.to_le_bytes());
        out.extend(limits.requests_in_flight_max.to_le_bytes());
        out.extend(limits.body_bytes_max.to_le_bytes());
        out
    }

    /// Reads the body.
    ///
    /// # Errors
    ///
    /// Another length or magic, a checksum algorithm that is not ours, a limit of zero.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("a welcome", body);
        expect_magic("a welcome", reader.u32()?, WELCOME_MAGIC)?;
        let version = reader.u16()?;
        let algorithm = reader.u16()?;
        if algorithm != CHECKSUM_XXH3_64 {
            return Err(DecodeError::UnknownCode { what: "checksum algorithm", code: algorithm.into() });
        }
        let features = Features(reader.u64()?);
        let server_id = reader.u64()?;
        let limits = Limits {
            keys_max: reader.u32()?,
            key_bytes_max: reader.u32()?,
            value_bytes_max: reader.u64()?,
            payload_bytes_max: reader.u64()?,
            bytes_in_flight_max: reader.u64()?,
            requests_in_flight_max: reader.u32()?,
            body_bytes_max: reader.u32()?,
        };
        reader.finish()?;
        let Limits { keys_max, key_bytes_max, value_bytes_max, .. } = limits;
        let smallest = u64::from(keys_max.min(key_bytes_max).min(limits.requests_in_flight_max))
            .min(value_bytes_max)
            .min(limits.payload_bytes_max)
            .min(limits.bytes_in_flight_max)
            .min(limits.body_bytes_max.into());
        if smallest == 0 {
            return Err(DecodeError::BadValue { what: "a limit in the welcome", found: 0 });
        }
        Ok(Self { version, features, server_id, limits })
    }
}

fn expect_magic(what: &'static str, found: u32, wanted: u32) -> Result<(), DecodeError> {
    if found == wanted { Ok(()) } else { Err(DecodeError::BadMagic { what, found }) }
}

const HELLO_MAGIC: u32 = u32::from_le_bytes(*b"KVC?");
const WELCOME_MAGIC: u32 = u32::from_le_bytes(*b"KVC!");
const CHECKSUM_XXH3_64: u16 = 1;
