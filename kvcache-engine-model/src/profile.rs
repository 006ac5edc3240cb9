//! A machine that serves a model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cost::ComputeCost;
use crate::error::Error;

/// Everything that a simulation knows of an engine, of the links beside it and of the caches behind it.
///
/// Amounts of memory and bandwidths are those of one engine, all its ranks together.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What it is called in reports.
    pub name: String,
    /// Tokens of a block of the engine.
    pub block_tokens: u32,
    /// Bytes of KV cache that a token needs, over all layers.
    pub kv_bytes_per_token: u64,
    /// Layers of the model: the steps in which loads overlap with computing.
    pub layers: u32,
    /// Blocks of the engine's KV cache.
    pub gpu_blocks: u32,
    /// Tokens that a step computes at most (vLLM's `max_num_batched_tokens`).
    pub step_tokens_max: u64,
    /// Requests that run at a time at most (vLLM's `max_num_seqs`).
    pub sequences_max: u32,
    /// Whether a prompt may be computed in several steps. Without it, one longer than a step is refused.
    #[serde(default = "yes")]
    pub chunked_prefill: bool,
    /// Costs of computing.
    pub compute: ComputeCost,
    /// Between the engine's memory and the host's.
    pub host_link: HostLink,
    /// Costs of the connector's own work.
    #[serde(default)]
    pub connector: ConnectorCost,
    /// Blocks that L1 holds; 0 if there is none.
    pub l1_blocks: u32,
    /// The servers, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<L2>,
    /// Where the numbers are from, by the name of their field, as `compute.step_us`.
    #[serde(default)]
    pub origins: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

/// The link between the engine's memory and the host's. Both directions at once, neither delays the other.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostLink {
    /// Host to device, 10^9 bytes a second.
    pub to_device_gb_s: f64,
    /// Device to host, 10^9 bytes a second.
    pub from_device_gb_s: f64,
    /// Beside the bytes, each layer's batch of copies. Microseconds.
    pub copy_us: f64,
}

/// Work of the connector in the engine's thread, while nothing is computed.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectorCost {
    /// Every step. Microseconds.
    pub step_us: f64,
    /// Each request that is admitted. Microseconds.
    pub request_us: f64,
    /// Each block of a request that is admitted: hashing and matching. Microseconds.
    pub block_us: f64,
    /// Engine blocks of a slot, the unit of L1 and L2.
    pub slot_blocks: u32,
}

impl Default for ConnectorCost {
    fn default() -> Self {
        Self { step_us: 0.0, request_us: 0.0, block_us: 0.0, slot_blocks: 1 }
    }
}

/// The servers of a ring, as one engine sees them.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L2 {
    /// Blocks that they hold.
    pub blocks: u32,
    /// Reading, 10^9 bytes a second.
    pub get_gb_s: f64,
    /// Writing, 10^9 bytes a second. Both at once, neither delays the other.
    pub put_gb_s: f64,
    /// What every request waits for before the first byte: asking what is there. Microseconds.
    pub latency_us: f64,
    /// Beside the bytes, each slot. Microseconds.
    pub slot_us: f64,
}

impl Profile {
    /// Whether such an engine can be.
    ///
    /// # Errors
    ///
    /// The first field that is impossible, with its value and the remedy.
    pub fn check(&self) -> Result<(), Error> {
        let counts = [
            ("block_tokens", u64::from(self.block_tokens), 1, 1 << 16, "give 1 to 65536 tokens"),
            ("kv_bytes_per_token", self.kv_bytes_per_token, 1, 1 << 32, "give 1 to 2^32 bytes"),
            ("layers", self.layers.into(), 1, 10_000, "give 1 to 10000"),
            ("gpu_blocks", self.gpu_blocks.into(), 2, 1 << 30, "give 2 to 2^30 blocks"),
            ("step_tokens_max", self.step_tokens_max, 1, 1 << 32, "give 1 to 2^32 tokens"),
            ("sequences_max", self.sequences_max.into(), 1, 1 << 20, "give 1 to 2^20 requests"),
            (
                "connector.slot_blocks",
                self.connector.slot_blocks.into(),
                1,
                1 << 16,
                "give 1 to 65536 blocks",
            ),
            ("l1_blocks", self.l1_blocks.into(), 0, 1 << 30, "give 0 to 2^30 blocks"),
            ("l2.blocks", self.l2.map_or(1, |l2| l2.blocks).into(), 1, 1 << 30, "give 1 to 2^30 blocks"),
        ];
        for (field, value, least, most, remedy) in counts {
            if !(least..=most).contains(&value) {
                return Err(self.impossible(field, value.to_string(), remedy));
            }
        }
        if self.connector.slot_blocks > self.gpu_blocks {
            let value = self.connector.slot_blocks.to_string();
            return Err(self.impossible(
                "connector.slot_blocks",
                value,
                "a slot is larger than gpu_blocks, lower it",
            ));
        }
        if self.l1_blocks > 0 && self.l1_slots() == 0 {
            let value = self.l1_blocks.to_string();
            return Err(self.impossible(
                "l1_blocks",
                value,
                "it holds no slot, give 0 or connector.slot_blocks and more",
            ));
        }
        if self.l2.is_some() && self.l2_slots() == 0 {
            let value = self.l2.map_or(0, |l2| l2.blocks).to_string();
            return Err(self.impossible(
                "l2.blocks",
                value,
                "it holds no slot, give connector.slot_blocks and more",
            ));
        }
        let l2 =
            self.l2.unwrap_or(L2 { blocks: 1, get_gb_s: 1.0, put_gb_s: 1.0, latency_us: 0.0, slot_us: 0.0 });
        for (field, value) in [
            ("host_link.to_device_gb_s", self.host_link.to_device_gb_s),
            ("host_link.from_device_gb_s", self.host_link.from_device_gb_s),
            ("l2.get_gb_s", l2.get_gb_s),
            ("l2.put_gb_s", l2.put_gb_s),
        ] {
            // 1e-6 GB/s is a kilobyte a second: slower than that, times do not fit.
            if !(1e-6..=1e6).contains(&value) {
                return Err(self.impossible(field, value.to_string(), "give 1e-6 to 1e6 GB/s"));
            }
        }
        let compute = &self.compute;
        for (field, value) in [
            ("compute.step_us", compute.step_us),
            ("compute.prefill_us", compute.prefill_us),
            ("compute.prefill_token_us", compute.prefill_token_us),
            ("compute.prefill_context_ns", compute.prefill_context_ns),
            ("compute.decode_us", compute.decode_us),
            ("compute.decode_sequence_us", compute.decode_sequence_us),
            ("compute.decode_context_ns", compute.decode_context_ns),
            ("host_link.copy_us", self.host_link.copy_us),
            ("connector.step_us", self.connector.step_us),
            ("connector.request_us", self.connector.request_us),
            ("connector.block_us", self.connector.block_us),
            ("l2.latency_us", l2.latency_us),
            ("l2.slot_us", l2.slot_us),
        ] {
            if !(0.0..=1e9).contains(&value) {
                return Err(self.impossible(field, value.to_string(), "give 0 to 1e9"));
            }
        }
        let prefill = compute.prefill_us + compute.prefill_token_us + compute.prefill_context_ns;
        let decode = compute.decode_us + compute.decode_sequence_us + compute.decode_context_ns;
        if compute.step_us + prefill.min(decode) <= 0.0 {
            let value = compute.step_us.to_string();
            return Err(self.impossible(
                "compute.step_us",
                value,
                "steps would take no time, raise it or the other costs",
            ));
        }
        Ok(())
    }

    fn impossible(&self, field: &'static str, value: String, remedy: &'static str) -> Error {
        Error::Profile { profile: self.name.clone(), field, value, remedy }
    }

    /// Tokens of a slot of L1 and L2.
    pub fn slot_tokens(&self) -> u64 {
        u64::from(self.block_tokens) * u64::from(self.connector.slot_blocks)
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_tokens() * self.kv_bytes_per_token
    }

    /// Slots of L1.
    pub fn l1_slots(&self) -> u32 {
        self.l1_blocks / self.connector.slot_blocks.max(1)
    }

    /// Slots of L2.
    pub fn l2_slots(&self) -> u32 {
        self.l2.map_or(0, |l2| l2.blocks / self.connector.slot_blocks.max(1))
    }

    /// The longest request that can be served, prompt and answer together: what the engine's memory holds, and without
    /// chunks what a step computes.
    pub fn request_tokens_max(&self) -> u64 {
        let memory = u64::from(self.gpu_blocks) * u64::from(self.block_tokens);
        if self.chunked_prefill { memory } else { memory.min(self.step_tokens_max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tiny_profile;

    #[test]
    fn impossible_numbers_are_named_with_their_remedy() {
        assert_eq!(tiny_profile().check(), Ok(()));
        type Change = fn(&mut Profile);
        let cases: [(&str, Change); 10] = [
            ("block_tokens is 0: give 1", |profile| profile.block_tokens = 0),
            ("gpu_blocks is 1: give 2", |profile| profile.gpu_blocks = 1),
            ("host_link.to_device_gb_s is 0: give", |profile| profile.host_link.to_device_gb_s = 0.0),
            ("l2.get_gb_s is NaN: give", |profile| {
                profile.l2.as_mut().expect("has one").get_gb_s = f64::NAN;
            }),
            ("compute.decode_us is -1: give 0", |profile| profile.compute.decode_us = -1.0),
            ("connector.step_us is inf: give 0", |profile| profile.connector.step_us = f64::INFINITY),
            ("compute.step_us is 0: steps would take no time", |profile| {
                profile.compute = ComputeCost::default();
            }),
            ("connector.slot_blocks is 1000: a slot is larger", |profile| {
                profile.connector.slot_blocks = 1000;
            }),
            ("l1_blocks is 3: it holds no slot", |profile| {
                (profile.l1_blocks, profile.connector.slot_blocks) = (3, 4);
            }),
            ("l2.blocks is 0: give 1", |profile| profile.l2.as_mut().expect("has one").blocks = 0),
        ];
        for (expected, change) in cases {
            let mut profile = tiny_profile();
            change(&mut profile);
            let error = profile.check().expect_err(expected).to_string();
            assert!(error.contains("profile `tiny`: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_request_has_to_fit() {
        let mut profile = tiny_profile();
        assert_eq!(profile.request_tokens_max(), u64::from(profile.gpu_blocks * profile.block_tokens));
        profile.chunked_prefill = false;
        assert_eq!(profile.request_tokens_max(), profile.step_tokens_max);
    }

    #[test]
    fn fields_that_nobody_knows_are_refused() {
        let mut json = serde_json::to_value(tiny_profile()).expect("a value");
        assert_eq!(serde_json::from_value::<Profile>(json.clone()).expect("the same"), tiny_profile());
        json["compute"]["step_ms"] = 3.into();
        let error = serde_json::from_value::<Profile>(json).expect_err("unknown field").to_string();
        assert!(error.contains("unknown field `step_ms`"), "{error}");
    }
}
