//! A list of members with its placement.

use kvcache_core::BlockKey;
use kvcache_core::ring::{RangeFaults, SlotTable};

use super::{MemberList, MembersError};

/// Who decides which member holds which slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PlacementSource {
    /// The table that follows from the members' names: balanced, and members that join or leave move little.
    #[default]
    Computed,
    /// The ranges that the source published, repaired where they are faulty; computed where it published none.
    ///
    /// AIBrix's own ranges are worth following only to keep what a ring of ours stored under them: its clients name
    /// blocks differently, so they share no blocks with ours wherever these lie.
    Published,
}

/// The members of the ring and their slots, at one generation. Immutable.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberSnapshot {
    generation: u64,
    list: MemberList,
    table: Option<SlotTable>,
    faults: RangeFaults,
}

impl MemberSnapshot {
    /// The snapshot of `list`. Builds the slot table, which takes up to a millisecond.
    ///
    /// # Errors
    ///
    /// Never for a list that was made by [`MemberList::new`]; the table checks names again.
    pub fn new(generation: u64, list: MemberList, placement: PlacementSource) -> Result<Self, MembersError> {
        if list.is_empty() {
            return Ok(Self { generation, list, table: None, faults: RangeFaults::default() });
        }
        let names = list.members().iter().map(|member| member.name.as_str());
        let (table, faults) = match (placement, list.ranges()) {
            (PlacementSource::Published, Some(ranges)) => {
                SlotTable::from_ranges(&names.zip(ranges.iter().cloned()).collect::<Vec<_>>())?
            }
            _ => (SlotTable::new(&names.collect::<Vec<_>>())?, RangeFaults::default()),
        };
        Ok(Self { generation, list, table: Some(table), faults })
    }

    /// Counts the lists of one source: 0 before the first, then one more for each list that differs from the last.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The members.
    pub fn list(&self) -> &MemberList {
        &self.list
    }

    /// The slot table; none if the ring has no members. Its indices are those of [`MemberList::members`].
    pub fn table(&self) -> Option<&SlotTable> {
        self.table.as_ref()
    }

    /// What was repaired in published ranges.
    pub fn range_faults(&self) -> RangeFaults {
        self.faults
    }

    /// The indices of the members that hold `key`, the first choice first: `replicas` of them, fewer if the ring has
    /// fewer, none if it has nobody.
    pub fn holders(&self, key: &BlockKey, replicas: usize) -> impl Iterator<Item = usize> + '_ {
        let slot = SlotTable::slot_of(key);
        self.table.iter().flat_map(move |table| table.holders(slot, replicas))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGES: &str = r#"{"nodes":[{"name":"a","addr":"h","port":1,"slots":[{"start":0,"end":4000}]},
                             {"name":"b","addr":"h","port":2,"slots":[{"start":4001,"end":4094}]}]}"#;

    #[test]
    fn published_ranges_count_only_where_they_are_asked_for() {
        let list = MemberList::from_json(RANGES.as_bytes()).unwrap();
        let computed = MemberSnapshot::new(1, list.clone(), PlacementSource::Computed).unwrap();
        assert_eq!(computed.table(), Some(&SlotTable::new(&["a", "b"]).unwrap()));
        let published = MemberSnapshot::new(1, list, PlacementSource::Published).unwrap();
        assert_eq!(published.range_faults().unclaimed, 1);
        assert!(published.table().unwrap().loads()[0] >= 4001);
        let plain = MemberList::from_json(br#"{"members":["h:1","h:2"]}"#).unwrap();
        let without = MemberSnapshot::new(1, plain, PlacementSource::Published).unwrap();
        assert_eq!(without.table(), Some(&SlotTable::new(&["h:1", "h:2"]).unwrap()));
    }

    #[test]
    fn indices_are_those_of_the_list() {
        let list = MemberList::from_json(br#"{"members":["c:1","a:1","b:1"]}"#).unwrap();
        let snapshot = MemberSnapshot::new(1, list, PlacementSource::Computed).unwrap();
        let names: Vec<_> = snapshot.list().members().iter().map(|member| &member.name).collect();
        assert!(snapshot.table().unwrap().members().iter().eq(names));
        for byte in 0..=255 {
            let key = BlockKey([byte; 16]);
            let holders: Vec<usize> = snapshot.holders(&key, 2).collect();
            assert_eq!(holders.len(), 2);
            assert_eq!(holders[0], snapshot.table().unwrap().owner(SlotTable::slot_of(&key)));
        }
    }

    #[test]
    fn a_ring_of_nobody_holds_nothing() {
        let snapshot = MemberSnapshot::new(3, MemberList::default(), PlacementSource::Computed).unwrap();
        assert_eq!((snapshot.generation(), snapshot.table()), (3, None));
        assert_eq!(snapshot.holders(&BlockKey([1; 16]), 3).count(), 0);
    }
}
