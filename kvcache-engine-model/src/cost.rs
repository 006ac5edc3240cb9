//! How long computing a step takes.

use serde::{Deserialize, Serialize};

use crate::time::from_us;

/// Linear costs of a step.
///
/// A forward pass reads the weights (the fixed part), multiplies them with every token, and lets every token attend
/// to its context. A pass with prompts and answers reads the weights once: of both fixed parts the larger one
/// counts.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeCost {
    /// Every step: choosing the batch, launching, sampling. Nothing else runs meanwhile. Microseconds.
    pub step_us: f64,
    /// Fixed part of a forward pass with prompt tokens. Microseconds.
    pub prefill_us: f64,
    /// Each prompt token. Microseconds.
    pub prefill_token_us: f64,
    /// Each prompt token for each token that it attends to. Nanoseconds.
    pub prefill_context_ns: f64,
    /// Fixed part of a forward pass with tokens of answers. Microseconds.
    pub decode_us: f64,
    /// Each sequence that gets a token of its answer. Microseconds.
    pub decode_sequence_us: f64,
    /// Each token that those attend to. Nanoseconds.
    pub decode_context_ns: f64,
}

/// What a forward pass computes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Batch {
    /// Prompt tokens.
    pub prefill_tokens: u64,
    /// Over all prompt tokens, how many tokens each attends to, itself included.
    pub prefill_context: u64,
    /// Sequences that get a token of their answer.
    pub decode_sequences: u64,
    /// Over those, how many tokens each attends to, itself included.
    pub decode_context: u64,
}

impl Batch {
    /// Adds `tokens` tokens of a prompt of which `computed` are there already.
    pub fn add_prefill(&mut self, computed: u64, tokens: u64) {
        self.prefill_tokens += tokens;
        self.prefill_context += tokens * computed + tokens * (tokens + 1) / 2;
    }

    /// Adds the next token of an answer, of a sequence of which `computed` tokens are there already.
    pub fn add_decode(&mut self, computed: u64) {
        self.decode_sequences += 1;
        self.decode_context += computed + 1;
    }

    /// Nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.prefill_tokens == 0 && self.decode_sequences == 0
    }
}

impl ComputeCost {
    /// Nanoseconds of a forward pass, without [`step_us`](Self::step_us).
    pub fn forward_ns(&self, batch: &Batch) -> f64 {
        let prefill_us = if batch.prefill_tokens > 0 { self.prefill_us } else { 0.0 };
        let decode_us = if batch.decode_sequences > 0 { self.decode_us } else { 0.0 };
        from_us(prefill_us.max(decode_us))
            + from_us(self.prefill_token_us) * batch.prefill_tokens as f64
            + self.prefill_context_ns * batch.prefill_context as f64
            + from_us(self.decode_sequence_us) * batch.decode_sequences as f64
            + self.decode_context_ns * batch.decode_context as f64
    }

    /// Nanoseconds in which a prompt of so many tokens is computed alone, in steps of `step_tokens_max`.
    pub fn prefill_ns(&self, tokens: u64, step_tokens_max: u64) -> f64 {
        let steps = tokens.div_ceil(step_tokens_max.max(1));
        let context = tokens as f64 * (tokens as f64 + 1.0) / 2.0;
        steps as f64 * from_us(self.step_us + self.prefill_us)
            + from_us(self.prefill_token_us) * tokens as f64
            + self.prefill_context_ns * context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: ComputeCost = ComputeCost {
        step_us: 1000.0,
        prefill_us: 10.0,
        prefill_token_us: 1.0,
        prefill_context_ns: 2.0,
        decode_us: 20.0,
        decode_sequence_us: 3.0,
        decode_context_ns: 5.0,
    };

    #[test]
    fn a_pass_reads_the_weights_once() {
        let mut batch = Batch::default();
        assert_eq!((batch.is_empty(), COST.forward_ns(&batch)), (true, 0.0));
        batch.add_prefill(100, 3);
        // 101 + 102 + 103 tokens are attended to.
        assert_eq!(batch.prefill_context, 306);
        assert_eq!(COST.forward_ns(&batch), 10_000.0 + 3_000.0 + 612.0);
        batch.add_decode(9);
        assert_eq!(COST.forward_ns(&batch), 20_000.0 + 3_000.0 + 612.0 + 3_000.0 + 50.0);
    }

    #[test]
    fn chunks_cost_what_the_prompt_costs_and_their_steps() {
        let mut whole = Batch::default();
        whole.add_prefill(0, 250);
        let (mut first, mut second, mut third) = (whole, whole, whole);
        for (batch, computed, tokens) in
            [(&mut first, 0, 100), (&mut second, 100, 100), (&mut third, 200, 50)]
        {
            *batch = Batch::default();
            batch.add_prefill(computed, tokens);
        }
        let chunks: f64 = [first, second, third].iter().map(|batch| COST.forward_ns(batch)).sum();
        assert_eq!(chunks, COST.forward_ns(&whole) + 20_000.0);
        assert_eq!(COST.prefill_ns(250, 100), chunks + 3_000_000.0);
    }
}
