//! The compact little-endian encoding of what the two halves send each other: plans down, reports up.
//!
//! Both ends are the same version of this library in one engine, so there is no negotiation; the decoder still trusts
//! nothing, because a mismatch must become an error and never a wrong copy.

/// Bytes that are not what the other half would have sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "malformed {what} at byte {offset} of {bytes}: both halves of the connector must run the same version"
)]
pub struct Malformed {
    what: &'static str,
    offset: usize,
    bytes: usize,
}

#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn array(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// A length and the bytes.
    pub(crate) fn slice(&mut self, value: &[u8]) {
        self.u32(value.len() as u32);
        self.bytes.extend_from_slice(value);
    }

    /// A count, then each item.
    pub(crate) fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.u32(items.len() as u32);
        for item in items {
            write(self, item);
        }
    }
}

pub(crate) struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes, offset: 0 }
    }

    pub(crate) fn malformed(&self) -> Malformed {
        Malformed { what: self.what, offset: self.offset, bytes: self.bytes.len() }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.offset.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed())?;
        let out = &self.bytes[self.offset..end];
        self.offset = end;
        Ok(out)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn slice(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.u32()? as usize;
        self.take(count)
    }

    /// A slice of at most `max` bytes.
    pub(crate) fn slice_up_to(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let slice = self.slice()?;
        if slice.len() <= max { Ok(slice) } else { Err(self.malformed()) }
    }

    pub(crate) fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed()),
        }
    }

    /// Reads a count, then that many items of at least `item_bytes` bytes each: a count that lies allocates nothing.
    pub(crate) fn list<T>(
        &mut self,
        item_bytes: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.u32()? as usize;
        if count > (self.bytes.len() - self.offset) / item_bytes.max(1) {
            return Err(self.malformed());
        }
        (0..count).map(|_| read(self)).collect()
    }

    /// Ends the decoding: nothing may be left.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.offset == self.bytes.len() { Ok(()) } else { Err(self.malformed()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::BlockKey;
    use crate::directory::{FillId, Resident};
    use crate::eviction::SlotId;
    use crate::fingerprint::ShardFingerprint;
    use crate::plan::{EngineHash, Job, JobId, JobKind, StepPlan, Transfer};
    use crate::report::{Hello, JobEnd, RemoteShard, Report};

    fn key() -> impl Strategy<Value = BlockKey> {
        any::<[u8; 16]>().prop_map(BlockKey)
    }

    fn job_id() -> impl Strategy<Value = JobId> {
        any::<(u32, u64)>().prop_map(|(epoch, number)| JobId { epoch, number })
    }

    prop_compose! {
        fn transfer()(slot in any::<u32>(), fill in any::<u64>(), group in any::<u16>(), key in key(), parent in key(),
                      hash in prop::collection::vec(any::<u8>(), 0..33), blocks in prop::collection::vec(any::<u32>(), 0..5)) -> Transfer {
            let engine_hash = EngineHash::new(&hash);
            Transfer { slot: SlotId(slot), fill: FillId(fill), group, key, parent, engine_hash, blocks }
        }
    }

    prop_compose! {
        fn job()(id in job_id(), kind in prop::sample::select(vec![JobKind::LoadLayerwise, JobKind::LoadAsync, JobKind::Offload, JobKind::Fetch, JobKind::Demote]),
                 request in ".{0,9}", transfers in prop::collection::vec(transfer(), 0..4),
                 lost_blocks in prop::collection::vec(any::<u32>(), 0..4)) -> Job {
            Job { id, kind, request, transfers, lost_blocks }
        }
    }

    prop_compose! {
        fn plan()(epoch in any::<u64>(), settled in any::<u64>(), jobs in prop::collection::vec(job(), 0..4),
                  forgotten in prop::collection::vec(any::<u32>(), 0..4), cancelled in prop::collection::vec(job_id(), 0..3),
                  generation in any::<u64>()) -> StepPlan {
            let forgotten = forgotten.into_iter().map(SlotId).collect();
            StepPlan { epoch, settled, jobs, forgotten, cancelled, generation }
        }
    }

    prop_compose! {
        fn resident()(slot in any::<u32>(), fill in any::<u64>(), key in key(), parent in key()) -> Resident {
            Resident { slot: SlotId(slot), key, parent, fill: FillId(fill) }
        }
    }

    prop_compose! {
        fn hello()(slot_count in any::<u32>(), slot_bytes in any::<u64>(), copy_threads in any::<u32>(), fill in any::<u64>(),
                   epoch in any::<u64>(), remote in prop::option::of(any::<([u8; 16], u64)>()), warm in prop::collection::vec(resident(), 0..4)) -> Hello {
            let remote = remote.map(|(shard, value_bytes)| RemoteShard { shard: ShardFingerprint(shard), value_bytes });
            Hello { slot_count, slot_bytes, copy_threads, warm, highest_fill: FillId(fill), epoch, remote }
        }
    }

    prop_compose! {
        fn report()(rank in any::<u32>(), usable_slots in any::<u32>(), hello in prop::option::of(hello()),
                    ended in prop::collection::vec((job_id(), any::<bool>(), prop::collection::vec(any::<u32>(), 0..3)), 0..5),
                    load in any::<[u64; 4]>()) -> Report {
            let ended = ended.into_iter().map(|(id, ok, failed)| JobEnd { id, ok, failed }).collect();
            let [loaded_bytes, load_ns, fetched_bytes, fetch_ns] = load;
            Report { rank, usable_slots, hello, ended, loaded_bytes, load_ns, fetched_bytes, fetch_ns }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(plan in plan(), report in report()) {
            prop_assert_eq!(StepPlan::decode(&plan.encode()), Ok(plan));
            prop_assert_eq!(Report::decode(&report.encode()), Ok(report));
        }

        /// Cut, lengthened and altered bytes: an error or a value that encodes to exactly these bytes, never a panic.
        #[test]
        fn altered_bytes_never_panic_and_never_mean_two_things(
            plan in plan(), report in report(), cut in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), tail in prop::collection::vec(any::<u8>(), 0..3),
        ) {
            for original in [plan.encode(), report.encode()] {
                prop_assert!(StepPlan::decode(&original[..cut.index(original.len())]).is_err());
                prop_assert!(Report::decode(&original[..cut.index(original.len())]).is_err());
                let mut bytes = original;
                for (at, value) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *value;
                }
                bytes.extend_from_slice(&tail);
                if let Ok(plan) = StepPlan::decode(&bytes) {
                    prop_assert_eq!(plan.encode(), bytes.clone());
                }
                if let Ok(report) = Report::decode(&bytes) {
                    prop_assert_eq!(report.encode(), bytes);
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            let _ = (StepPlan::decode(&bytes), Report::decode(&bytes));
            if let Some(version) = bytes.first_mut() {
                *version = 2;
            }
            let _ = (StepPlan::decode(&bytes), Report::decode(&bytes));
        }
    }

    /// A count that lies is refused before anything is allocated for it.
    #[test]
    fn a_count_without_items_is_refused() {
        let mut plan = StepPlan::default().encode();
        let jobs = plan.len() - 4;
        plan[jobs..].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = StepPlan::decode(&plan).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "malformed step plan at byte {} of {}: both halves of the connector must run the same version",
                plan.len(),
                plan.len()
            )
        );
        let mut report = Report::default().encode();
        let hellos = report.len() - 4;
        report[hellos..].copy_from_slice(&2u32.to_le_bytes());
        assert!(Report::decode(&report).is_err());
    }

    #[test]
    fn other_versions_and_two_hellos_are_refused() {
        let mut plan = StepPlan::default().encode();
        plan[0] = 1;
        assert!(StepPlan::decode(&plan).is_err() && StepPlan::decode(&[]).is_err());
        let hello = Hello {
            slot_count: 1,
            slot_bytes: 1,
            copy_threads: 0,
            warm: Vec::new(),
            highest_fill: FillId(0),
            epoch: 0,
            remote: None,
        };
        let one = Report { hello: Some(hello), ..Report::default() }.encode();
        let none = Report::default().encode();
        let mut two = one.clone();
        two.extend_from_slice(&one[none.len()..]);
        two[none.len() - 4..none.len()].copy_from_slice(&2u32.to_le_bytes());
        assert!(Report::decode(&one).is_ok() && Report::decode(&two).is_err());
    }
}
