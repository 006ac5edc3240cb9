//! `kvcache ring`: who holds which slots, and what a change of members moves.

mod members;
mod report;
mod text;

use std::num::NonZeroUsize;

use kvcache_core::BlockKey;
use kvcache_core::ring::{MemberListError, RingSlot, SlotTable};

use members::FromError;
use report::Report;

/// Prints how a ring's slots lie on its members, and what moves when members come and go.
///
/// Every client of the ring works the same placement out from the members' names alone. Keys fall into 4096 slots.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Members by name, as in 10.0.0.7:12345 or kv-0; a server's address is its name unless its source gives it one.
    #[arg(value_name = "MEMBER", value_delimiter = ',', required_unless_present = "from")]
    members: Vec<String>,
    /// Reads the members from a JSON file (- is the standard input), or from where a `remote=` URL says: tcp://…,
    /// file:///…, redis://… A file may also be the ConfigMap of a KVCache, from `kubectl get configmap NAME-ring -o json`.
    #[arg(long, value_name = "FILE|URL", conflicts_with = "members")]
    from: Option<String>,
    /// Uses the ranges of slots that the source published, instead of the placement that follows from the names.
    #[arg(long, requires = "from", conflicts_with_all = ["members", "add", "remove"])]
    published: bool,
    /// A member that joins; may be given several times.
    #[arg(long, value_name = "MEMBER", value_delimiter = ',')]
    add: Vec<String>,
    /// A member that leaves; may be given several times.
    #[arg(long, value_name = "MEMBER", value_delimiter = ',')]
    remove: Vec<String>,
    /// A block's key, 32 hexadecimal digits: says who holds it, after the change if there is one.
    #[arg(long, value_name = "HEX")]
    key: Vec<String>,
    /// How many members to name for a key: the owner, then the replicas in their order.
    #[arg(long, value_name = "COUNT", default_value = "3")]
    holders: NonZeroUsize,
    /// Lists every member's slots, after the change if there is one.
    #[arg(long)]
    slots: bool,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Works out what `args` ask for; returns the text to print.
///
/// # Errors
///
/// If the members make no ring, cannot be read, or a key is no key.
pub(crate) fn run(args: &Args) -> Result<String, RingError> {
    let keys = args.key.iter().map(|text| parse_key(text)).collect::<Result<Vec<_>, _>>()?;
    let (before, faults) = match &args.from {
        Some(from) => members::read(from, args.published)?,
        None => {
            let names =
                args.members.iter().map(|name| members::named(name)).collect::<Result<Vec<_>, _>>()?;
            (SlotTable::new(&names)?, None)
        }
    };
    let after = changed(&before, &args.add, &args.remove)?;
    let report = Report::new(&before, after.as_ref(), faults, &keys, args.holders.get(), args.slots);
    if args.json { Ok(serde_json::to_string_pretty(&report)? + "\n") } else { Ok(report.text()) }
}

/// The table after the change, if there is one.
fn changed(before: &SlotTable, add: &[String], remove: &[String]) -> Result<Option<SlotTable>, RingError> {
    if add.is_empty() && remove.is_empty() {
        return Ok(None);
    }
    let mut names = before.members().to_vec();
    for name in remove {
        let name = members::named(name)?;
        let at = names.iter().position(|known| *known == name);
        names.remove(
            at.ok_or_else(|| RingError::NotThere { name: name.clone(), known: before.members().join(", ") })?,
        );
    }
    for name in add {
        names.push(members::named(name)?);
    }
    Ok(Some(SlotTable::new(&names)?))
}

fn parse_key(text: &str) -> Result<BlockKey, RingError> {
    let mut key = [0; BlockKey::BYTES];
    let digits = || RingError::Key { text: text.to_owned() };
    if text.len() != 2 * BlockKey::BYTES || !text.is_ascii() {
        return Err(digits());
    }
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        for &digit in pair {
            *byte = *byte << 4 | char::from(digit).to_digit(16).ok_or_else(digits)? as u8;
        }
    }
    Ok(BlockKey(key))
}

/// The slots of each member as runs, by index.
fn runs_of(table: &SlotTable) -> Vec<Vec<[usize; 2]>> {
    let mut runs: Vec<Vec<[usize; 2]>> = vec![Vec::new(); table.members().len()];
    for slot in RingSlot::all() {
        let index = slot.index();
        let own = &mut runs[table.owner(slot)];
        match own.last_mut() {
            Some([_, end]) if *end + 1 == index => *end = index,
            _ => own.push([index, index]),
        }
    }
    runs
}

/// Why a ring is not printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error(transparent)]
    Members(#[from] MemberListError),
    #[error(transparent)]
    From(#[from] FromError),
    #[error("member {name:?} cannot leave, it is not in the ring; its members: {known}")]
    NotThere { name: String, known: String },
    #[error("{text:?} is no block's key: a key is 32 hexadecimal digits")]
    Key { text: String },
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}
