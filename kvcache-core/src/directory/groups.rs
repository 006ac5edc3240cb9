//! Finds the longest prefix that every KV cache group of an engine can restore.
//!
//! Groups differ in what a hit needs: *full attention* the whole prefix, *sliding window* only the last window before
//! the boundary, *state* (Mamba) the one block that ends there.

use super::Residency;

/// What a group needs for a hit at a boundary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupKind {
    /// Every block before the boundary.
    Full,
    /// The blocks that cover the last `window_tokens - 1` tokens before the boundary: the next token sees itself and
    /// those.
    Sliding {
        /// Size of the attention window, in tokens.
        window_tokens: usize,
    },
    /// The block that ends at the boundary: it holds the running state.
    State,
}

/// One group's blocks of a request.
#[derive(Clone, Copy, Debug)]
pub struct GroupPrefix<'a> {
    /// What the group needs.
    pub kind: GroupKind,
    /// Tokens of one slot of this group.
    pub slot_tokens: usize,
    /// Residency of the request's slots, from its first token on.
    pub residency: &'a [Residency],
}

/// The largest boundaries that all groups can restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupMatch {
    /// Tokens restorable now.
    pub ready_tokens: usize,
    /// Tokens restorable once the fills under way have succeeded; at least `ready_tokens`.
    pub pending_tokens: usize,
}

impl GroupKind {
    /// The first slot that a hit at `boundary` tokens needs; the last one is the slot that ends at the boundary.
    pub fn first_slot(self, slot_tokens: usize, boundary: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::Sliding { window_tokens } => boundary.saturating_sub(window_tokens.saturating_sub(1)) / slot_tokens,
            Self::State => (boundary / slot_tokens).saturating_sub(1),
        }
    }
}

/// Finds the boundaries, at most `limit` tokens. Linear in the slots. A boundary is a multiple of every group's slot.
pub fn match_groups(groups: &[GroupPrefix<'_>], limit: usize) -> GroupMatch {
    let ready_tokens = boundary(groups, limit, |residency| residency == Residency::Ready);
    let pending_tokens = boundary(groups, limit, |residency| residency != Residency::Absent);
    GroupMatch { ready_tokens, pending_tokens }
}

fn boundary(groups: &[GroupPrefix<'_>], limit: usize, usable: impl Fn(Residency) -> bool) -> usize {
    let step = groups.iter().map(|group| group.slot_tokens).fold(1, lcm);
    let mut limit = limit;
    // For each group and slot: how many consecutive usable slots end there.
    let mut runs: Vec<Vec<u32>> = Vec::with_capacity(groups.len());
    for group in groups {
        limit = limit.min(group.residency.len() * group.slot_tokens);
        if group.kind == GroupKind::Full {
            let leading = group.residency.iter().take_while(|residency| usable(**residency)).count();
            limit = limit.min(leading * group.slot_tokens);
            runs.push(Vec::new());
            continue;
        }
        let mut run = 0;
        runs.push(
            group
                .residency
                .iter()
                .map(|residency| {
                    run = if usable(*residency) { run + 1 } else { 0 };
                    run
                })
                .collect(),
        );
    }
    let mut candidate = limit / step * step;
    while candidate > 0 {
        let restorable = groups.iter().zip(&runs).all(|(group, runs)| {
            let last = candidate / group.slot_tokens - 1;
            let needed = last + 1 - group.kind.first_slot(group.slot_tokens, candidate);
            group.kind == GroupKind::Full || runs[last] as usize >= needed
        });
        if restorable {
            return candidate;
        }
        candidate -= step;
    }
    0
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Says it by the definition: a boundary is good if each group has what it needs before it.
    fn oracle(groups: &[GroupPrefix<'_>], limit: usize, usable: impl Fn(Residency) -> bool) -> usize {
        (0..=limit)
            .rev()
            .find(|boundary| {
                groups.iter().all(|group| {
                    let slots = boundary / group.slot_tokens;
                    if boundary % group.slot_tokens != 0 || slots > group.residency.len() {
                        return false;
                    }
                    (0..slots).all(|slot| {
                        let end = (slot + 1) * group.slot_tokens;
                        let needed = match group.kind {
                            GroupKind::Full => true,
                            // The token at `boundary` sees tokens above `boundary - window`.
                            GroupKind::Sliding { window_tokens } => end + window_tokens > boundary + 1,
                            GroupKind::State => end == *boundary,
                        };
                        !needed || usable(group.residency[slot])
                    })
                })
            })
            .unwrap_or(0)
    }

    fn residency() -> impl Strategy<Value = Vec<Residency>> {
        prop::collection::vec(
            prop_oneof![3 => Just(Residency::Ready), 1 => Just(Residency::Filling), 1 => Just(Residency::Absent)],
            0..40,
        )
    }

    proptest! {
        #[test]
        fn the_boundary_is_the_largest_that_every_group_can_restore(
            full in residency(), sliding in residency(), state in residency(),
            window_tokens in 1usize..100, limit in 0usize..500, sizes in prop::sample::select(vec![(8, 8, 8), (8, 16, 8), (4, 6, 12)]),
            used in 1usize..8,
        ) {
            let all = [
                GroupPrefix { kind: GroupKind::Full, slot_tokens: sizes.0, residency: &full },
                GroupPrefix { kind: GroupKind::Sliding { window_tokens }, slot_tokens: sizes.1, residency: &sliding },
                GroupPrefix { kind: GroupKind::State, slot_tokens: sizes.2, residency: &state },
            ];
            let groups: Vec<_> = all.into_iter().enumerate().filter(|(i, _)| used >> i & 1 == 1).map(|(_, g)| g).collect();
            let got = match_groups(&groups, limit);
            prop_assert_eq!(got.ready_tokens, oracle(&groups, limit, |r| r == Residency::Ready));
            prop_assert_eq!(got.pending_tokens, oracle(&groups, limit, |r| r != Residency::Absent));
        }
    }

    #[test]
    fn a_window_needs_only_its_last_slots() {
        let residency = [Residency::Absent, Residency::Absent, Residency::Ready, Residency::Ready];
        let group = |window_tokens| GroupPrefix {
            kind: GroupKind::Sliding { window_tokens },
            slot_tokens: 10,
            residency: &residency,
        };
        assert_eq!(match_groups(&[group(21)], 100).ready_tokens, 40);
        assert_eq!(match_groups(&[group(22)], 100).ready_tokens, 0);
    }
}
