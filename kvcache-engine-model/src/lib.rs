//! A model of a serving engine: what a cache does to the times that users see.
//!
//! A replay of a trace says how many blocks a cache has. What that is worth depends on time: how long prompts wait for
//! each other, whether loading hides behind computing, and whether the engine keeps up at all. This is a
//! discrete-event simulation of an engine with continuous batching as vLLM V1 does it. Each step has a batch, chosen as
//! vLLM's scheduler chooses it, and takes as long as a few linear costs say ([`Profile`]). Behind the engine is the
//! connector with the real [`Directory`](kvcache_core::directory::Directory) and the real eviction policies.
//!
//! - [`Profile`] is a machine and a model: costs, capacities, links. [`preset`] has some, each number with its origin.
//! - [`Traffic`] is a workload in the engine's blocks, made from requests of `kvcache-workload`.
//! - [`Setup`] is what is compared: no cache, the engine's own, a connector that moves whole requests, or one that goes
//!   layer by layer; each without or with an L2.
//! - [`Simulation::run`] serves the traffic and returns an [`Outcome`].
//! - [`fit`] finds the costs of computing from measured steps.
//!
//! There is no I/O, and no clock: times are integers of nanoseconds, so that the same input gives the same bytes on
//! every machine. `docs/simulate.md` says what is modelled and what is left out.
//!
//! ```
//! use std::num::NonZeroU64;
//! use kvcache_engine_model::{Options, Setup, Simulation, Traffic, preset};
//! use kvcache_workload::{Blocks, Content, Piece, Request};
//!
//! let profile = preset("a100-8b").expect("a preset");
//! let blocks = Blocks::new(NonZeroU64::new(profile.block_tokens.into()).expect("not zero"));
//! let mut traffic = Traffic::new(blocks, 100);
//! for second in 0..2 {
//!     let shared = Piece { stream: 1, tokens: 4000 };
//!     let own = Piece { stream: 2 + second, tokens: 100 };
//!     let mut request = Request::new(Content::Pieces(vec![shared, own]));
//!     request.timestamp_ms = Some(second as f64 * 1000.0);
//!     traffic.push(&request)?;
//! }
//! let run = |setup: &str| {
//!     Simulation::new(&profile, setup.parse::<Setup>()?, &traffic, &Options::default())?.run(&mut |_| {})
//! };
//! let (none, prefix) = (run("none")?, run("prefix")?);
//! assert_eq!((none.hit_tokens.device, prefix.hit_tokens.device), (0, 4000));
//! assert!(prefix.ttft_s.mean < none.ttft_s.mean);
//! # Ok::<(), kvcache_engine_model::Error>(())
//! ```

#![forbid(unsafe_code)]

mod arrivals;
mod block_pool;
mod connector;
mod cost;
mod error;
mod fit;
mod histogram;
mod link;
mod outcome;
mod predict;
mod presets;
mod profile;
mod remote;
mod setup;
mod simulation;
mod time;
mod traffic;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use cost::{Batch, ComputeCost};
pub use error::Error;
pub use fit::{Fitted, MeasuredStep, fit};
pub use outcome::{HitTokens, Outcome, Served, Summary, Tiers};
pub use predict::{HitIn, predict_ttft_s};
pub use presets::{PRESET_NAMES, preset};
pub use profile::{ConnectorCost, HostLink, L2, Profile};
pub use setup::{Loading, Setup};
pub use simulation::{Options, Progress, Simulation};
pub use traffic::Traffic;
