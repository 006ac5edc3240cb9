//! Workloads: requests in the order in which they arrive, with what their prompts share.
//!
//! How much a cache gains depends on the traffic, so one file has to serve them all: the replay against a policy, the
//! model of an engine and the client of a live one. That file says of each prompt which tokens it has in common with
//! others, without the tokens where they are not needed: as [pieces](Content::Pieces) of token streams, as
//! [ids of blocks](Content::Hashes) like the public Mooncake traces (Qin et al., FAST 2025), or as text.
//! `docs/workloads.md` describes the format.
//!
//! - [`Share`], [`Conversation`] and [`Agent`] make workloads from a seed, the same on every machine.
//! - [`Reader`] reads such files, plain or compressed; [`Writer`] writes them.
//! - [`Converter`] takes conversations, batches, logs and traces in other formats.
//! - [`Shape`] gives requests other times, [`Describer`] says what is in a workload.
//! - [`Blocks`] cuts a prompt into the blocks of a cache, of any length, and names them.
//! - [`Request::tokens`] are the tokens to send to a live engine.
//!
//! ```
//! use std::num::NonZeroU64;
//! use kvcache_workload::{Blocks, ReadOptions, Reader};
//!
//! let file = r#"{"timestamp": 0, "pieces": [[1, 40], [2, 10]]}
//! {"timestamp": 250, "pieces": [[1, 40], [3, 30]]}"#;
//! let requests = Reader::new(file.as_bytes(), "two.jsonl", ReadOptions::default())?.collect::<Result<Vec<_>, _>>()?;
//! let blocks = Blocks::new(NonZeroU64::new(16).expect("not zero"));
//! let (first, second) = (blocks.ids(&requests[0]), blocks.ids(&requests[1]));
//! assert_eq!((first.len(), second.len()), (3, 4));
//! assert_eq!(first[..2], second[..2]);
//! assert_ne!(first[2], second[2], "the prompts part at token 40");
//! # Ok::<(), kvcache_workload::Error>(())
//! ```

#![forbid(unsafe_code)]

mod agent;
mod arrivals;
mod blocks;
mod conversation;
mod convert;
mod describe;
mod distribution;
mod error;
mod line;
mod output;
mod presets;
mod random;
mod reader;
mod request;
mod sessions;
mod shape;
mod share;
mod source;
mod streams;
mod tokens;
mod writer;
mod zstd_frames;

pub use agent::Agent;
pub use arrivals::Rate;
pub use blocks::{Blocks, BytesPerToken};
pub use conversation::Conversation;
pub use convert::{Chat, ConvertOptions, Converter, Log, TextAs, TimeUnit};
pub use describe::{Arrivals, Describer, Description, Lengths, Sharing};
pub use distribution::Distribution;
pub use error::{Error, InvalidParameter};
pub use output::Output;
pub use presets::Preset;
pub use reader::{BadLine, BadLines, BadLinesPolicy, ReadOptions, Reader};
pub use request::{Content, INPUT_TOKENS_MAX, Message, Piece, Request};
pub use shape::{Shape, sessions_at};
pub use share::{Popularity, Share, ShareClass, ShareLengths};
pub use tokens::{Vocabulary, token};
pub use writer::{Header, Writer};
