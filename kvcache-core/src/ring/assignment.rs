//! Gives every slot to a member: best ranks first, no more to anyone than it has room for.

use super::RING_SLOTS;
use super::preference::{Preference, SIDE};

/// Most slots of one of `members` members: a tenth more than the mean, or the mean rounded up where that is more.
pub(super) const fn room(members: usize) -> usize {
    let tenth_more = RING_SLOTS * 11 / (members * 10);
    let mean_up = RING_SLOTS.div_ceil(members);
    if tenth_more > mean_up { tenth_more } else { mean_up }
}

/// The owner of every slot, as an index into `members` (1 to 4096 of them).
///
/// Walks the pairs of member and slot by rank. A pair is made if the slot is free and the member has room, which is
/// the only stable matching: both sides prefer the lower rank. Cost: at most 4096 pairs a member, in practice the first
/// `4096 * 10 / n`, since then the slots have run out.
pub(super) fn assign(members: &[Preference]) -> Vec<u16> {
    let mut owners = vec![FREE; RING_SLOTS];
    // The rank at which a slot was given away: at the same rank another member may still have the better tie.
    let mut given_at = vec![0u16; RING_SLOTS];
    let mut left = vec![room(members.len()); members.len()];
    let mut free = RING_SLOTS;
    for level in 0..SIDE as u8 {
        let lines: Vec<_> = members.iter().map(|member| member.line(level)).collect();
        for index in 0..SIDE as u8 {
            let rank = u16::from(level) * SIDE as u16 + u16::from(index);
            for (member, line) in lines.iter().enumerate() {
                if left[member] == 0 {
                    continue;
                }
                let slot = line.slot(index);
                let at = usize::from(slot);
                let holder = usize::from(owners[at]);
                if owners[at] == FREE {
                    free -= 1;
                } else if given_at[at] == rank && members[member].tie(slot) < members[holder].tie(slot) {
                    left[holder] += 1;
                } else {
                    continue;
                }
                owners[at] = member as u16;
                given_at[at] = rank;
                left[member] -= 1;
            }
            if free == 0 {
                return owners;
            }
        }
    }
    owners
}

const FREE: u16 = u16::MAX;
