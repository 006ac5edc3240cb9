//! What can go wrong.

/// Why there is no simulation.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number of the profile is impossible.
    #[error("profile `{profile}`: {field} is {value}: {remedy}")]
    Profile {
        /// The profile's name.
        profile: String,
        /// The field, with the object that it is in.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        remedy: &'static str,
    },
    /// There is no such preset.
    #[error("`{name}` is no preset; there are {}", crate::presets::PRESET_NAMES.join(", "))]
    Preset {
        /// What was asked for.
        name: String,
    },
    /// There is no such set-up.
    #[error("`{name}` is no set-up; there are {}", crate::setup::Setup::names())]
    Setup {
        /// What was asked for.
        name: String,
    },
    /// The set-up needs an L2.
    #[error(
        "set-up `{setup}` needs an L2, and profile `{profile}` has none: give it `l2`, or leave the set-up out"
    )]
    NoL2 {
        /// The set-up.
        setup: String,
        /// The profile's name.
        profile: String,
    },
    /// The set-up needs an L1.
    #[error(
        "set-up `{setup}` needs an L1, and profile `{profile}` has l1_blocks 0: raise it, or leave the set-up out"
    )]
    NoL1 {
        /// The set-up.
        setup: String,
        /// The profile's name.
        profile: String,
    },
    /// The policy is not known.
    #[error(transparent)]
    Policy(#[from] kvcache_core::eviction::PolicyError),
    /// Requests without times, and nothing says how many are served at a time.
    #[error(
        "request {request} (from 0) has no timestamp; give a rate or how many sessions are served at a time"
    )]
    NoTimes {
        /// The first such request.
        request: usize,
    },
    /// A timestamp is no time.
    #[error(
        "request {request} (from 0) has timestamp {timestamp_ms} ms, give 0 to {} ms",
        Self::TIMESTAMP_MS_MAX
    )]
    Timestamp {
        /// The request.
        request: usize,
        /// What it has.
        timestamp_ms: f64,
    },
    /// The traffic is in other blocks than the engine's.
    #[error(
        "the traffic has blocks of {traffic} tokens and profile `{profile}` of {engine}: make it with those"
    )]
    BlockTokens {
        /// Of the traffic.
        traffic: u64,
        /// Of the profile.
        engine: u64,
        /// The profile's name.
        profile: String,
    },
    /// More different blocks, or longer requests, than can be numbered.
    #[error("the traffic has too many {what}, at most {most} can be simulated")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// How many there may be.
        most: u64,
    },
    /// Too little was measured to find costs.
    #[error("{found} steps {what} are too few to fit {costs} costs: measure at least so many that differ")]
    TooFewSteps {
        /// Of which kind.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many unknowns.
        costs: usize,
    },
    /// A measured step cannot be.
    #[error("measured step {index} (from 0): {reason}")]
    MeasuredStep {
        /// Its place.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Latest time of an arrival: some 30 years, so that sums of times fit.
    pub const TIMESTAMP_MS_MAX: f64 = 1e12;
}
