//! How much of L1 is lent to what comes from L2 ahead of its request's turn.
//!
//! A queue can be longer than L1: what comes for the requests at its end would evict what has come for those at its
//! front, before any of them is admitted. So prefetched blocks have a share of the slots, and a block counts from when
//! it is sent for until its request's turn: while it is on its way, and while it is *held* for requests that wait. Whoever
//! finds too little room queues for it in the order in which requests have entered.
//!
//! This is the account alone: which slots are held for whom, and who is next. Whoever keeps it pins what is held.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::eviction::SlotId;

/// Numbers requests in the order in which they have entered.
pub type Arrival = u64;

/// The account of prefetched blocks. See the [module documentation](self).
///
/// Bounded by the share and by the requests that wait.
#[derive(Debug, Default)]
pub struct FetchRoom {
    share: usize,
    /// By slot that is held: for how many requests.
    holders: HashMap<SlotId, usize>,
    held: BTreeMap<Arrival, Held>,
    queue: BTreeMap<Arrival, Queued>,
}

/// Whoever queues is called when so many parts of the share are free. A part at once and the rest later brings more than
/// waiting for room for everything where the share is about a prompt long; smaller parts bring nothing more.
const CALLED_AT: usize = 8;

/// What is held for a request.
#[derive(Debug, Default)]
struct Held {
    slots: BTreeSet<SlotId>,
    /// When a request that entered later was first admitted before it.
    overtaken_at: Option<Duration>,
}

/// A request that wants more than there was room for.
#[derive(Debug)]
struct Queued {
    slots: usize,
    /// The room that it is called for.
    needs: usize,
    /// Whether it has been told that there is room.
    is_called: bool,
}

impl FetchRoom {
    /// How often L2 is asked for one request, which costs a round trip each time: who has asked so often queues no more.
    pub const QUESTIONS_MAX: u8 = 16;

    /// An account of `share` slots, with none of them in use.
    pub fn new(share: usize) -> Self {
        Self { share, ..Self::default() }
    }

    /// Slots that are held. Each counts once, for however many requests it is held.
    pub fn held(&self) -> usize {
        self.holders.len()
    }

    /// Slots that the request that entered as `arrival` may send for, while `fetching` slots are on their way: what is left
    /// of the share, less what those want who queue before it.
    pub fn room_for(&self, arrival: Arrival, fetching: usize) -> usize {
        let mut room = self.left(fetching);
        for queued in self.queue.range(..arrival).map(|(_, queued)| queued) {
            if room == 0 {
                break;
            }
            room = room.saturating_sub(queued.slots);
        }
        room
    }

    /// Whether a request queues.
    pub fn is_queued(&self, arrival: Arrival) -> bool {
        self.queue.contains_key(&arrival)
    }

    /// What is left of the share while `fetching` slots are on their way.
    pub fn left(&self, fetching: usize) -> usize {
        self.share.saturating_sub(fetching + self.held())
    }

    /// A request that entered as `arrival` would want `slots` more than it has sent for. With `in_vain` slots of room it could
    /// send for none of them, because so few are of no use to it or nothing could be evicted for them: then it is called
    /// again only when there is clearly more. Returns whether it queues: more than the share there will never be.
    pub fn queue(&mut self, arrival: Arrival, slots: usize, in_vain: Option<usize>) -> bool {
        let part = (self.share / CALLED_AT).max(1);
        let needs = match in_vain {
            None => slots.min(part),
            Some(room) if room < self.share => (room + part).min(self.share),
            Some(_) => {
                self.queue.remove(&arrival);
                return false;
            }
        };
        self.queue.insert(arrival, Queued { slots, needs, is_called: false });
        true
    }

    /// A request does not queue any more.
    pub fn leave_queue(&mut self, arrival: Arrival) {
        self.queue.remove(&arrival);
    }

    /// The next request that queues and has room now for all that it wants, or for an eighth of the share, or for more than
    /// it has tried with in vain. It keeps its place until it leaves the queue or queues anew, and is not called again
    /// before.
    pub fn call(&mut self, fetching: usize) -> Option<Arrival> {
        let mut room = self.left(fetching);
        for (arrival, queued) in &mut self.queue {
            if room < queued.needs {
                return None;
            }
            if !queued.is_called {
                queued.is_called = true;
                return Some(*arrival);
            }
            room = room.saturating_sub(queued.slots);
        }
        None
    }

    /// A slot's block has come for a request that waits. Returns whether nobody held it before: then it is to be pinned.
    pub fn hold(&mut self, arrival: Arrival, slot: SlotId) -> bool {
        if !self.held.entry(arrival).or_default().slots.insert(slot) {
            return false;
        }
        let holders = self.holders.entry(slot).or_default();
        *holders += 1;
        *holders == 1
    }

    /// A request is admitted or gone: it holds nothing and queues for nothing. Returns the slots that nobody holds any more,
    /// which are to be unpinned.
    pub fn leave(&mut self, arrival: Arrival) -> Vec<SlotId> {
        self.queue.remove(&arrival);
        let held = self.held.remove(&arrival).unwrap_or_default();
        held.slots.into_iter().filter(|slot| self.let_go(*slot)).collect()
    }

    /// A request is admitted: those that hold blocks and entered before it are overtaken.
    pub fn admit(&mut self, arrival: Arrival, now: Duration) -> Vec<SlotId> {
        for (_, held) in self.held.range_mut(..arrival) {
            held.overtaken_at.get_or_insert(now);
        }
        self.leave(arrival)
    }

    /// Nothing is held any longer for those that were overtaken `limit` ago. Returns the slots that are to be unpinned.
    ///
    /// An engine that takes others first may never come to a request. Where all wait in turn, nobody is overtaken, and
    /// nothing ends however long the queue is.
    pub fn expire(&mut self, limit: Duration, now: Duration) -> Vec<SlotId> {
        let is_over = |held: &Held| held.overtaken_at.is_some_and(|at| now.saturating_sub(at) >= limit);
        let over: Vec<Arrival> =
            self.held.iter().filter(|(_, held)| is_over(held)).map(|(arrival, _)| *arrival).collect();
        over.into_iter().flat_map(|arrival| self.leave(arrival)).collect()
    }

    /// A slot's block is gone. Returns whether the slot was held, and so is to be unpinned.
    pub fn lose(&mut self, slot: SlotId) -> bool {
        if self.holders.remove(&slot).is_none() {
            return false;
        }
        self.held.retain(|_, held| {
            held.slots.remove(&slot);
            !held.slots.is_empty()
        });
        true
    }

    /// Everything is forgotten. Returns the slots that were held.
    pub fn clear(&mut self) -> Vec<SlotId> {
        self.held.clear();
        self.queue.clear();
        self.holders.drain().map(|(slot, _)| slot).collect()
    }

    /// Slots that are held.
    pub(super) fn slots(&self) -> impl Iterator<Item = SlotId> {
        self.holders.keys().copied()
    }

    /// Those who queue, in order.
    pub(super) fn queued(&self) -> impl ExactSizeIterator<Item = Arrival> {
        self.queue.keys().copied()
    }

    /// Verifies the account by a recount; for tests. `waits` knows who is neither admitted nor gone.
    ///
    /// # Errors
    /// The first broken invariant, in words.
    pub fn check(&self, fetching: usize, waits: impl Fn(Arrival) -> bool) -> Result<(), String> {
        let mut counted: HashMap<SlotId, usize> = HashMap::new();
        for slot in self.held.values().flat_map(|held| &held.slots) {
            *counted.entry(*slot).or_default() += 1;
        }
        if counted != self.holders {
            return Err(format!("held for others than counted: {self:?}"));
        }
        if self.held.values().any(|held| held.slots.is_empty()) {
            return Err(format!("nothing is held for somebody: {self:?}"));
        }
        if fetching + self.held() > self.share {
            return Err(format!("{fetching} slots on their way are more than the share leaves: {self:?}"));
        }
        match self.held.keys().chain(self.queue.keys()).find(|arrival| !waits(**arrival)) {
            Some(arrival) => Err(format!("{arrival} does not wait any more: {self:?}")),
            None => Ok(()),
        }
    }

    fn let_go(&mut self, slot: SlotId) -> bool {
        let Some(holders) = self.holders.get_mut(&slot) else { return false };
        *holders -= 1;
        if *holders > 0 {
            return false;
        }
        self.holders.remove(&slot);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARE: usize = 16;

    #[derive(Clone, Copy, Debug)]
    enum Operation {
        Queue(Arrival, usize, Option<usize>),
        LeaveQueue(Arrival),
        Call(usize),
        Hold(Arrival, u32),
        Leave(Arrival),
        Admit(Arrival),
        Expire,
        Lose(u32),
        Clear,
    }

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        use Operation::*;
        let (arrival, slot) = (0u64..8, 0u32..10);
        let one = prop_oneof![
            3 => (arrival.clone(), 1usize..20, proptest::option::weighted(0.3, 0usize..=SHARE))
                .prop_map(|(arrival, slots, in_vain)| Queue(arrival, slots, in_vain)),
            1 => arrival.clone().prop_map(LeaveQueue),
            4 => (0usize..6).prop_map(Call),
            8 => (arrival.clone(), slot.clone()).prop_map(|(arrival, slot)| Hold(arrival, slot)),
            2 => arrival.clone().prop_map(Leave),
            2 => arrival.prop_map(Admit),
            2 => Just(Expire),
            1 => slot.prop_map(Lose),
            1 => Just(Clear),
        ];
        proptest::collection::vec(one, 1..80)
    }

    /// The account as lists: who holds what, who was overtaken when, and who queues for how many slots, with how many in
    /// vain, called or not.
    #[derive(Default)]
    struct Oracle {
        held: Vec<(Arrival, u32)>,
        overtaken: Vec<(Arrival, u64)>,
        queue: Vec<(Arrival, usize, Option<usize>, bool)>,
    }

    impl Oracle {
        fn slots(&self) -> BTreeSet<u32> {
            self.held.iter().map(|(_, slot)| *slot).collect()
        }

        fn left(&self, fetching: usize) -> usize {
            SHARE.saturating_sub(fetching + self.slots().len())
        }

        fn room_for(&self, arrival: Arrival, fetching: usize) -> usize {
            let before = self.queue.iter().filter(|(of, ..)| *of < arrival).map(|(_, slots, ..)| slots);
            self.left(fetching).saturating_sub(before.sum())
        }

        fn call(&mut self, fetching: usize) -> Option<Arrival> {
            self.queue.sort_unstable();
            for index in 0..self.queue.len() {
                let (arrival, slots, in_vain, is_called) = self.queue[index];
                let room = self.room_for(arrival, fetching);
                if in_vain.map_or(room < slots.min(SHARE / 8), |tried| room < SHARE.min(tried + SHARE / 8)) {
                    return None;
                }
                if !is_called {
                    self.queue[index].3 = true;
                    return Some(arrival);
                }
            }
            None
        }

        /// The slots that are held by nobody after `change`.
        fn let_go(&mut self, change: impl FnOnce(&mut Self)) -> Vec<u32> {
            let before = self.slots();
            change(self);
            let held = &self.held;
            self.overtaken.retain(|(arrival, _)| held.iter().any(|(of, _)| of == arrival));
            before.difference(&self.slots()).copied().collect()
        }

        fn leave(&mut self, arrival: Arrival) {
            self.held.retain(|(of, _)| *of != arrival);
            self.queue.retain(|(of, ..)| *of != arrival);
        }
    }

    fn sorted(slots: Vec<SlotId>) -> Vec<u32> {
        let mut slots: Vec<u32> = slots.into_iter().map(|slot| slot.0).collect();
        slots.sort_unstable();
        slots
    }

    proptest! {
        #[test]
        fn is_what_plain_lists_say(operations in operations()) {
            use Operation::*;
            let (mut room, mut oracle) = (FetchRoom::new(SHARE), Oracle::default());
            let limit = 5;
            for (now, operation) in (0u64..).zip(operations) {
                match operation {
                    Queue(arrival, slots, in_vain) => {
                        let is_hopeless = in_vain == Some(SHARE);
                        prop_assert_eq!(room.queue(arrival, slots, in_vain), !is_hopeless);
                        oracle.queue.retain(|(of, ..)| *of != arrival);
                        if !is_hopeless {
                            oracle.queue.push((arrival, slots, in_vain, false));
                        }
                    }
                    LeaveQueue(arrival) => {
                        room.leave_queue(arrival);
                        oracle.queue.retain(|(of, ..)| *of != arrival);
                    }
                    Call(fetching) => prop_assert_eq!(room.call(fetching), oracle.call(fetching)),
                    Hold(arrival, slot) => {
                        let is_first = !oracle.slots().contains(&slot);
                        prop_assert_eq!(room.hold(arrival, SlotId(slot)), is_first);
                        oracle.held.retain(|of| *of != (arrival, slot));
                        oracle.held.push((arrival, slot));
                    }
                    Leave(arrival) => {
                        let gone = oracle.let_go(|oracle| oracle.leave(arrival));
                        prop_assert_eq!(sorted(room.leave(arrival)), gone);
                    }
                    Admit(arrival) => {
                        let gone = oracle.let_go(|oracle| {
                            for (of, _) in &oracle.held {
                                if *of < arrival && oracle.overtaken.iter().all(|(known, _)| known != of) {
                                    oracle.overtaken.push((*of, now));
                                }
                            }
                            oracle.leave(arrival);
                        });
                        prop_assert_eq!(sorted(room.admit(arrival, Duration::from_secs(now))), gone);
                    }
                    Expire => {
                        let gone = oracle.let_go(|oracle| {
                            for (arrival, at) in oracle.overtaken.clone() {
                                if now - at >= limit {
                                    oracle.leave(arrival);
                                }
                            }
                        });
                        let expired = room.expire(Duration::from_secs(limit), Duration::from_secs(now));
                        prop_assert_eq!(sorted(expired), gone);
                    }
                    Lose(slot) => {
                        let gone = oracle.let_go(|oracle| oracle.held.retain(|(_, of)| *of != slot));
                        prop_assert_eq!(room.lose(SlotId(slot)), gone == [slot]);
                    }
                    Clear => {
                        let gone = oracle.let_go(|oracle| *oracle = Oracle::default());
                        prop_assert_eq!(sorted(room.clear()), gone);
                    }
                }
                prop_assert_eq!(room.held(), oracle.slots().len());
                for arrival in 0..9 {
                    prop_assert_eq!(room.room_for(arrival, 2), oracle.room_for(arrival, 2));
                }
                prop_assert_eq!(room.check(0, |_| true), Ok(()));
            }
        }
    }
}
