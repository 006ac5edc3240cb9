//! The placement of a ring: which member holds which slot.

use std::fmt;

use super::assignment::assign;
use super::preference::Preference;
use super::{MEMBERS_MAX, MemberListError, RING_SLOTS};
use crate::BlockKey;

/// One of the [`RING_SLOTS`] parts of the key space.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RingSlot(u16);

impl RingSlot {
    /// The slot of a block: the low 12 bits of its key's first two bytes, read as a little-endian number.
    ///
    /// All shards of a block are on the members of one slot, so that one server's failure costs whole blocks.
    #[inline]
    pub fn of(key: &BlockKey) -> Self {
        let [low, high, ..] = key.0;
        Self(u16::from_le_bytes([low, high]) % RING_SLOTS as u16)
    }

    /// The slot with this index, if there is one.
    pub fn new(index: u16) -> Option<Self> {
        (usize::from(index) < RING_SLOTS).then_some(Self(index))
    }

    /// All slots.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        (0..RING_SLOTS as u16).map(Self)
    }

    /// Below [`RING_SLOTS`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Who holds which slot, worked out from the members' names alone.
///
/// Immutable: a change of membership makes another table. 140 bytes a member and 8 KiB.
///
/// ```
/// use kvcache_core::BlockKey;
/// use kvcache_core::ring::SlotTable;
///
/// let three = SlotTable::new(&["a:12345", "b:12345", "c:12345"])?;
/// let four = SlotTable::new(&["d:12345", "c:12345", "b:12345", "a:12345"])?;
/// let key = BlockKey([7; 16]);
/// assert!(three.members().contains(&three.owner_name(SlotTable::slot_of(&key)).to_owned()));
/// // About a quarter of the slots move, all of them to the newcomer or nearly so.
/// assert!(three.moves_to(&four).len() <= 4096 / 4 * 11 / 10);
/// # Ok::<(), kvcache_core::ring::MemberListError>(())
/// ```
#[derive(Clone)]
pub struct SlotTable {
    members: Vec<String>,
    preferences: Vec<Preference>,
    owners: Vec<u16>,
}

impl SlotTable {
    /// The table of these members. Their order makes no difference.
    ///
    /// The fullest member holds at most `max(⌈mean⌉, ⌊1.1 mean⌋)` slots. Adding one to `n` members moves at
    /// most 1.3 of the mean up to 64 members where names differ by a number (at most 1.21 was seen), and in 9,996 of
    /// 10,000 cases where they do not (at most 1.42). Beyond that members hold few slots, and rounding stirs them: the
    /// steps to 100 members moved 1.2 of the mean on average, those to 200 members 1.6, those to 500 members 2.4. Where the
    /// bound of a member falls by one slot, all that were at it give one away: 37 of the mean at worst, 7 % of the slots,
    /// from 455 to 456 members. Cost: about 0.1 ms for 3 members, 0.4 ms for 64, 0.9 ms for
    /// 500, 30 ms for 4096.
    ///
    /// # Errors
    ///
    /// If the list is empty, names somebody twice or not at all, or is longer than [`MEMBERS_MAX`].
    pub fn new<M: AsRef<str>>(members: &[M]) -> Result<Self, MemberListError> {
        let members = sorted(members)?;
        let preferences: Vec<_> = members.iter().map(|name| Preference::of(name)).collect();
        let owners = assign(&preferences);
        Ok(Self { members, preferences, owners })
    }

    /// The table of these members with slots where somebody else decided to have them; `None` is nobody's, and falls
    /// to its owner in the table of [`SlotTable::new`]. Owners are indices into `members` as they were passed.
    pub(super) fn with_owners<M: AsRef<str>>(
        members: &[M],
        owners: &[Option<usize>],
    ) -> Result<Self, MemberListError> {
        let mut table = Self::new(members)?;
        let index: Vec<u16> =
            members.iter().map(|name| table.index_of(name.as_ref()).unwrap_or(0) as u16).collect();
        for (slot, owner) in table.owners.iter_mut().zip(owners) {
            *slot = owner.map_or(*slot, |member| index[member]);
        }
        Ok(table)
    }

    /// The members' names in alphabetical order; everything here that is called an index is one of this list.
    pub fn members(&self) -> &[String] {
        &self.members
    }

    /// The index of the member called `name`.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.members.binary_search_by(|member| member.as_str().cmp(name)).ok()
    }

    /// The slot of a block: [`RingSlot::of`].
    #[inline]
    pub fn slot_of(key: &BlockKey) -> RingSlot {
        RingSlot::of(key)
    }

    /// The index of the member that holds `slot`.
    #[inline]
    pub fn owner(&self, slot: RingSlot) -> usize {
        usize::from(self.owners[slot.index()])
    }

    /// The name of the member that holds `slot`.
    pub fn owner_name(&self, slot: RingSlot) -> &str {
        &self.members[self.owner(slot)]
    }

    /// The indices of the first `count` members that hold `slot` where each slot has replicas: first its owner, then
    /// the others as they rank it. Fewer if the ring has fewer; no member twice.
    ///
    /// A newcomer enters these orders somewhere and moves nobody else, except where it changes an owner. The first costs
    /// nothing, each further one a few nanoseconds a member.
    pub fn holders(&self, slot: RingSlot, count: usize) -> Holders<'_> {
        Holders { table: self, slot, left: count.min(self.members.len()), last: None }
    }

    /// How many slots each member holds.
    pub fn loads(&self) -> Vec<u32> {
        let mut loads = vec![0; self.members.len()];
        for &owner in &self.owners {
            loads[usize::from(owner)] += 1;
        }
        loads
    }

    /// The slots that another member holds in `other`, in order.
    pub fn moves_to(&self, other: &Self) -> Vec<RingSlot> {
        let theirs: Vec<Option<usize>> = self.members.iter().map(|name| other.index_of(name)).collect();
        RingSlot::all().filter(|&slot| theirs[self.owner(slot)] != Some(other.owner(slot))).collect()
    }
}

/// Equal members hold equal slots.
impl PartialEq for SlotTable {
    fn eq(&self, other: &Self) -> bool {
        self.members == other.members && self.owners == other.owners
    }
}

impl Eq for SlotTable {}

impl fmt::Debug for SlotTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.members.iter().zip(self.loads())).finish()
    }
}

/// The members that hold a slot: see [`SlotTable::holders`].
#[derive(Clone)]
pub struct Holders<'a> {
    table: &'a SlotTable,
    slot: RingSlot,
    left: usize,
    /// The last replica's rank, tie and index plus 1, by which they are ordered.
    last: Option<(u16, u64, usize)>,
}

impl Iterator for Holders<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let owner = self.table.owner(self.slot);
        let Some(last) = self.last else {
            // Below the order of every replica, since their last part counts from 1.
            self.last = Some((0, 0, 0));
            return Some(owner);
        };
        let slot = self.slot.0;
        let next = (self.table.preferences.iter().enumerate())
            .filter(|&(index, _)| index != owner)
            .map(|(index, preference)| (preference.rank(slot), preference.tie(slot), index + 1))
            .filter(|&order| order > last)
            .min()?;
        self.last = Some(next);
        Some(next.2 - 1)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Holders<'_> {}

fn sorted<M: AsRef<str>>(members: &[M]) -> Result<Vec<String>, MemberListError> {
    if members.is_empty() {
        return Err(MemberListError::Empty);
    }
    if members.len() > MEMBERS_MAX {
        return Err(MemberListError::TooMany { count: members.len() });
    }
    if let Some(position) = members.iter().position(|name| name.as_ref().is_empty()) {
        return Err(MemberListError::Nameless { position: position + 1 });
    }
    let mut sorted: Vec<String> = members.iter().map(|name| name.as_ref().to_owned()).collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(MemberListError::Duplicate { name: pair[0].clone() }),
        None => Ok(sorted),
    }
}
