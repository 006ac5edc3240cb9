//! Memory of a server: blocks and everything else fit into the limit, or the kernel ends the server some day.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kvcache_core::byte_size::ByteSize;

use crate::api::quantity::{Amount, of_bytes};
use crate::api::refusal::Problems;
use crate::api::{Backend, Reason, ServerSpec};

const GIB: u64 = 1 << 30;
/// Threads, buffers of connections, the index of blocks (60 bytes for 16 KiB, 0.4 % of the capacity).
const HEADROOM_BYTES: u64 = 512 << 20;
/// What `kvcache serve` takes at least.
const CAPACITY_BYTES_MIN: u64 = 1 << 20;
/// InfiniStore counts its pool in GiB, and AIBrix gives it one at least.
const CAPACITY_BYTES_WITHOUT_LIMIT: u64 = GIB;
const LIMIT: &str = "spec.cache.resources.limits.memory";
const CAPACITY: &str = "spec.server.capacity";
const HEADROOM: &str = "spec.server.headroom";

/// How a server's memory is divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Memory {
    pub capacity_bytes: u64,
    pub headroom_bytes: u64,
}

/// Divides the limit, as far as the spec does not say.
pub(super) fn divided(
    limit: Option<&Quantity>,
    server: Option<&ServerSpec>,
    backend: Backend,
    problems: &mut Problems,
    notes: &mut Vec<String>,
) -> Option<Memory> {
    let limit = match limit {
        // A limit that is no quantity is a problem already.
        Some(limit) => Some(Amount::parse(limit)?.units()),
        None => None,
    };
    let asked = server.and_then(|server| server.capacity.as_ref());
    let headroom = match server.and_then(|server| server.headroom.as_ref()) {
        Some(headroom) => bytes(HEADROOM, headroom, 0, problems)?,
        None => HEADROOM_BYTES,
    };
    let (unit, unit_name) = match backend {
        Backend::KvCache => (CAPACITY_BYTES_MIN, "1Mi"),
        Backend::InfiniStore => (GIB, "1Gi, in which InfiniStore counts"),
    };
    let capacity = match asked {
        Some(asked) => {
            let asked = bytes(CAPACITY, asked, unit, problems)?;
            match backend {
                Backend::KvCache => asked,
                Backend::InfiniStore => asked / unit * unit,
            }
        }
        None => match limit {
            Some(limit) => by_default(limit, headroom, backend),
            None => {
                notes.push(format!(
                    "without {LIMIT} and {CAPACITY} each server keeps {} for blocks: set one of them",
                    ByteSize(CAPACITY_BYTES_WITHOUT_LIMIT)
                ));
                CAPACITY_BYTES_WITHOUT_LIMIT
            }
        },
    };
    let Some(limit) = limit else {
        return Some(Memory { capacity_bytes: capacity, headroom_bytes: headroom });
    };
    let wanted = capacity.max(unit).checked_add(headroom);
    if capacity < unit || wanted.is_none_or(|wanted| wanted > limit) {
        let least = capacity.max(unit).saturating_add(headroom);
        let lower = match asked {
            Some(_) if limit >= headroom.saturating_add(unit) => {
                format!(", or lower {CAPACITY} to {} at most", of_bytes((limit - headroom) / unit * unit).0)
            }
            _ => String::new(),
        };
        problems.add_as(
            Reason::MemoryTooSmall,
            LIMIT,
            format!(
                "{} is too small: {} for blocks (at least {unit_name}) and {} for everything else are {}: raise the \
                 limit to {}{lower}",
                ByteSize(limit),
                ByteSize(capacity.max(unit)),
                ByteSize(headroom),
                ByteSize(least),
                of_bytes(least).0,
            ),
        );
        return None;
    }
    Some(Memory { capacity_bytes: capacity, headroom_bytes: limit - capacity })
}

/// AIBrix's share of the limit: nine tenths; less where the headroom needs more. InfiniStore's share is whole GiB, one
/// at least.
fn by_default(limit: u64, headroom: u64, backend: Backend) -> u64 {
    // In this order nothing overflows; what is lost is below ten bytes.
    let share = limit / 10 * 9 + limit % 10 * 9 / 10;
    let capacity = share.min(limit.saturating_sub(headroom));
    match backend {
        Backend::KvCache => capacity,
        Backend::InfiniStore => (capacity / GIB * GIB).max(GIB),
    }
}

fn bytes(field: &str, quantity: &Quantity, min: u64, problems: &mut Problems) -> Option<u64> {
    let Some(amount) = Amount::parse(quantity) else {
        problems.add(field, format!("{:?} is no quantity: write 32Gi or 512Mi", quantity.0));
        return None;
    };
    if amount.is_negative() || amount.units() < min {
        let hint = if quantity.0.ends_with('m') { " (m means thousandths: write Mi)" } else { "" };
        problems
            .add(field, format!("{:?} is too small{hint}: give at least {}", quantity.0, of_bytes(min).0));
        return None;
    }
    Some(amount.units())
}
