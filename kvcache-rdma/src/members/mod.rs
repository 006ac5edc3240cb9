//! Who the ring's servers are, and who of them holds what.
//!
//! A [`RemoteUrl`] says where the list of members comes from: the URL itself, a watched file, or the key that AIBrix
//! publishes in Redis. [`Members`] keeps the current list together with its slot table. Lists are read and tables are
//! built on a thread of their own, so that neither a slow source nor a change of membership makes anybody wait: readers
//! take the [`MemberSnapshot`] of the moment. A source that fails leaves the last list in use.
//!
//! All clients of one cache should take their members from the same place: a member's *name* places it on the ring, and
//! a URL knows only addresses where AIBrix's key has names of pods.

#[cfg(test)]
mod fake_redis;
mod file_source;
pub mod fuzz_entry;
mod member_list;
mod members_json;
mod pause;
mod percent;
mod redis_source;
mod refresh;
#[cfg(test)]
mod refresh_tests;
mod remote_url;
mod resp;
mod snapshot;
mod source;
#[cfg(test)]
mod test_folder;

pub use kvcache_core::ring::{ServerAddress, ServerAddressError};

pub use file_source::FileSource;
pub use member_list::{Member, MemberList, MembersError};
pub use members_json::MembersJsonError;
pub use redis_source::{RedisKey, RedisSource};
pub use refresh::{Members, OpenError, RefreshConfig, RefreshStatus};
pub use remote_url::{MembersFrom, RemoteUrl, RemoteUrlError, Transport};
pub use snapshot::{MemberSnapshot, PlacementSource};
pub use source::{MemberSource, Reading, SourceError};
