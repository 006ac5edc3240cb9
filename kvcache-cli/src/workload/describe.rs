//! `kvcache workload describe`.

use std::fmt::Write;
use std::num::NonZeroU64;

use kvcache_workload::{Blocks, BytesPerToken, Describer, Description, Lengths};

use super::{ReadArgs, WorkloadError};
use crate::trace_file::bytes_per_token;

/// Says what is in a workload: requests, tokens, what prompts share, lengths and arrivals.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    read: ReadArgs,
    /// Bytes of a token, on average, of prompts that are text.
    #[arg(long, value_name = "BYTES", default_value = "4", value_parser = bytes_per_token)]
    bytes_per_token: BytesPerToken,
    /// Bytes of KV cache that a token needs, for a footprint in bytes. `kvcache doctor` and docs/sizing.md have
    /// numbers.
    #[arg(long, value_name = "BYTES")]
    kv_bytes_per_token: Option<NonZeroU64>,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<String, WorkloadError> {
    let mut reader = args.read.open()?;
    let blocks = Blocks::new(args.read.block_tokens).with_bytes_per_token(args.bytes_per_token);
    let mut describer = Describer::new(blocks);
    for request in &mut reader {
        describer.add(&request?);
    }
    args.read.say_what_was_left_out(&reader);
    let description = describer.finish();
    if args.json {
        return Ok(serde_json::to_string(&description)? + "\n");
    }
    let made_by = reader.header().and_then(|header| header.made_by.as_deref());
    Ok(text(&description, made_by, args.kv_bytes_per_token))
}

fn text(of: &Description, made_by: Option<&str>, kv_bytes_per_token: Option<NonZeroU64>) -> String {
    let (mut text, sharing) = (String::new(), &of.sharing);
    // Writing to a string cannot fail.
    if let Some(made_by) = made_by {
        let _ = writeln!(text, "made by {made_by}");
    }
    let _ = write!(text, "{} requests", of.requests);
    if of.sessions > 0 {
        let _ = write!(text, " of {} sessions", of.sessions);
    }
    let _ = writeln!(text, ", {} tokens in, {} out", of.input_tokens, of.output_tokens);
    for (class, count) in &of.classes {
        let _ = writeln!(text, "  class {class}: {count}");
    }
    let _ = writeln!(
        text,
        "blocks of {} tokens: {} accesses, {} distinct ({} tokens{})",
        sharing.block_tokens,
        sharing.accesses,
        sharing.distinct_blocks,
        sharing.footprint_tokens,
        kv_bytes_per_token.map_or(String::new(), |bytes| {
            let bytes = sharing.footprint_tokens as f64 * bytes.get() as f64;
            format!(", {:.2} GiB", bytes / f64::from(1 << 30))
        }),
    );
    let _ = writeln!(
        text,
        "an endless cache hits {:.4} of the blocks, {:.4} of the tokens",
        sharing.block_hit_ratio, sharing.token_hit_ratio
    );
    if let Some(arrivals) = &of.arrivals {
        let _ = write!(text, "arrivals: over {:.1} s", arrivals.duration_s);
        if let Some(per_second) = arrivals.per_second {
            let _ = write!(text, ", {per_second:.3} a second");
        }
        if let Some(variation) = arrivals.gap_variation {
            let _ = write!(text, ", times between them vary by {variation:.2} of their mean");
        }
        text.push('\n');
        if arrivals.earlier_than_the_one_before > 0 {
            let _ = writeln!(
                text,
                "{} requests are earlier than the one before",
                arrivals.earlier_than_the_one_before
            );
        }
    } else {
        text += "arrivals: no times\n";
    }
    let _ = writeln!(
        text,
        "\n{:<14} {:>10} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "mean", "min", "p50", "p90", "p99", "max"
    );
    row(&mut text, "tokens in", of.input_length.as_ref());
    row(&mut text, "tokens out", of.output_length.as_ref());
    row(&mut text, "turns", of.turns_per_session.as_ref());
    text
}

fn row(text: &mut String, name: &str, lengths: Option<&Lengths>) {
    if let Some(Lengths { mean, min, p50, p90, p99, max }) = lengths {
        let _ = writeln!(text, "{name:<14} {mean:>10.1} {min:>8} {p50:>8} {p90:>8} {p99:>8} {max:>8}");
    }
}
