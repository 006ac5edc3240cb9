//! Where lists of members come from, one reading at a time.

use super::{MemberList, MembersJsonError};

/// A place that says who the members are. Read again and again on a thread of its own, so reading may block.
pub trait MemberSource: Send + 'static {
    /// Reads the list. An empty one means that there are no members; what could not be read is an error.
    ///
    /// # Errors
    ///
    /// If the source cannot be reached or what it says is no list. The last list then stays in use.
    fn read(&mut self) -> Result<Reading, SourceError>;
}

/// What a source said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reading {
    /// The same text as in the last reading that was no error.
    Unchanged,
    /// A list, which may equal the last one.
    List(MemberList),
}

/// Why a source could not be read. Messages name the source; none holds a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The file cannot be read.
    #[error("members file {path}: {source}; the file holds {{\"members\": [\"host:port\", …]}}")]
    File {
        /// Its path.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Redis cannot be reached, or did not answer in time.
    #[error("redis at {server}: {source}; is it running and reachable from here?")]
    Redis {
        /// Its host and port.
        server: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Redis answered with an error.
    #[error("redis at {server} refused {command}: {message}{}", remedy(message))]
    RedisRefused {
        /// Its host and port.
        server: String,
        /// The command.
        command: &'static str,
        /// The error, shortened.
        message: String,
    },
    /// What answered does not speak Redis's protocol.
    #[error("{server} does not answer like redis: {reason}; is the port right, and does it want TLS?")]
    NotRedis {
        /// Its host and port.
        server: String,
        /// What came.
        reason: String,
    },
    /// The key holds nothing.
    #[error(
        "redis at {server} has nothing under {key:?}: has the ring been published, and is the database right?"
    )]
    NoKey {
        /// Its host and port.
        server: String,
        /// The key.
        key: String,
    },
    /// What was read is no list.
    #[error("{origin}: {source}")]
    Text {
        /// The file, or the server and the key.
        origin: String,
        /// What is wrong.
        source: MembersJsonError,
    },
}

fn remedy(message: &str) -> &'static str {
    match message.split(' ').next() {
        Some("NOAUTH") => "; put the password into the URL, as in redis://user:password@host/kvcache_nodes",
        Some("WRONGPASS") => "; check the user and the password in the URL",
        Some("WRONGTYPE") => "; the key must hold a string with the ring's JSON",
        Some("LOADING") => "; it will answer when it has read its data",
        _ => "",
    }
}
