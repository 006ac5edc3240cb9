//! What a block is worth: its expected hits per slot and time, learnt from the traffic.
//!
//! Blocks are sorted into [classes](Class): how often they were used, and how long they had waited for their last use.
//! Of each class the table learns the *hazard*: of the blocks that have waited for an age, the share that is used before
//! the age has grown by half an octave. From that follows the worth of a block now, which is the best of all plans to
//! keep it for some more time `t`:
//!
//! ```text
//!                    chance of a use within t
//! worth = max over t ------------------------------------------
//!                    expected time until that use, t at most
//! ```
//!
//! This is the Gittins index (Gittins, *Bandit processes and dynamic allocation indices*, 1979) of a slot. It rises
//! while a use becomes due, as between the turns of a conversation, and falls when it is overdue. Hit density as a
//! measure is that of LHD (Beckmann, Chen and Cidon, NSDI 2018), which ranks by the mean over what its own evictions
//! leave; the index needs no such feedback.
//!
//! Hazards are estimated from a sample of all keys, stored or not, so that the cache's own decisions do not bias them.
//! Keys that have not come back yet count for the ages that they have reached (Kaplan and Meier, 1958). A class with few
//! samples takes after all classes of its number of uses, and these after all blocks, in proportion (Cox, 1972).

use super::recent::{Recent, Seen};

/// How often a block was used, and how long it had waited for its last use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::eviction) struct Class(u8);

/// Groups by uses: 1, 2, 3-4, 5-8, more.
const USES: usize = 5;
/// Groups by wait, as a share of the slot count in accesses: to 1/8, to about 1/3, to 1, to about 3, more; and never
/// waited.
const WAITS: usize = 6;
/// Number of classes.
pub(in crate::eviction) const CLASSES: usize = USES * WAITS;

impl Class {
    pub(in crate::eviction) const ALL: [Self; CLASSES] = {
        let mut all = [Self(0); CLASSES];
        let mut index = 0;
        while index < CLASSES {
            all[index] = Self(index as u8);
            index += 1;
        }
        all
    };

    pub(in crate::eviction) fn index(self) -> usize {
        self.0 as usize
    }

    fn of(uses: u8, wait: usize) -> Self {
        let uses = match uses {
            0..=1 => 0,
            2 => 1,
            3..=4 => 2,
            5..=8 => 3,
            _ => 4,
        };
        Self((uses * WAITS + wait) as u8)
    }
}

/// Uses are counted up to here: what is above is one group.
pub(in crate::eviction) const USES_MAX: u8 = 9;

/// The table of worths and what it is learnt from.
#[derive(Debug)]
pub(in crate::eviction) struct Worth {
    table: [[f64; AGES]; CLASSES],
    /// Uses by class and age before, of late.
    hits: [[f64; AGES]; CLASSES],
    /// Samples that were forgotten before they came back, by class and age, of late.
    forgotten: [[f64; AGES]; CLASSES],
    /// Samples that have not come back so far, by class and age; being counted.
    waiting: [[f64; AGES]; CLASSES],
    samples: Recent,
    /// One key of so many is a sample.
    keys_per_sample: u32,
    /// Binary logarithm of the accesses in the first bucket of ages.
    first_bucket_log2: u32,
    slot_count: f64,
    /// Waits in accesses at which the groups but the first one begin.
    wait_groups: [u32; WAITS - 2],
    /// Samples seen so far.
    seen: u64,
    step: Step,
    /// The clock at the last decay of `hits`.
    decayed_at: u32,
}

/// Learning goes on in small steps, one with each use of a sample: first the samples are counted, set by set, then the
/// table is made anew, group by group.
#[derive(Clone, Copy, Debug)]
enum Step {
    Count { set: usize },
    Solve { uses: usize },
}

/// Buckets of ages, of half an octave each but for the first one. The last one begins at 90 to 180 times the slot count.
const AGES: usize = 28;

impl Worth {
    pub(in crate::eviction) fn new(slot_count: u32) -> Self {
        let slots = slot_count.max(1) as usize;
        let entries = slots.max(SAMPLES_MIN.min(slots * SAMPLES_A_SLOT_MAX));
        let mut worth = Self {
            table: [[0.0; AGES]; CLASSES],
            hits: [[0.0; AGES]; CLASSES],
            forgotten: [[0.0; AGES]; CLASSES],
            waiting: [[0.0; AGES]; CLASSES],
            samples: Recent::new(entries),
            keys_per_sample: (REACH * slots).div_ceil(entries) as u32,
            first_bucket_log2: (slots / 45).max(1).ilog2(),
            slot_count: slots as f64,
            wait_groups: [1.0 / 8.0, 0.125f64.sqrt(), 1.0, 8f64.sqrt()]
                .map(|share| (share * slots as f64) as u32),
            seen: 0,
            step: Step::Count { set: 0 },
            decayed_at: 0,
        };
        (0..USES).for_each(|uses| worth.solve(uses));
        worth
    }

    /// The worth of a block of `class` that has waited for `age` accesses, in hits per slot and
    /// [first bucket](Self::bucket) of time.
    #[inline]
    pub(in crate::eviction) fn of(&self, class: Class, age: u32) -> f64 {
        self.table[class.index()][self.bucket(age)]
    }

    /// The class of a block with its `uses`th use, for which it had waited `wait` accesses; `None` if it was new.
    #[inline]
    pub(in crate::eviction) fn class(&self, uses: u8, wait: Option<u32>) -> Class {
        let group = wait.map(|wait| self.wait_groups.iter().filter(|end| wait >= **end).count());
        Class::of(uses, group.unwrap_or(WAITS - 1))
    }

    /// Notes that the key with this hash was used `now`, and is of `class` since.
    #[inline]
    pub(in crate::eviction) fn used(&mut self, hash: u32, class: Class, now: u32) {
        let is_sample = hash.wrapping_mul(0x9e37_79b1) <= u32::MAX / self.keys_per_sample;
        if is_sample {
            self.learn(hash, class, now);
        }
    }

    fn learn(&mut self, hash: u32, class: Class, now: u32) {
        if let Some(before) = self.samples.get(hash) {
            let age = self.bucket(now.wrapping_sub(before.at));
            self.hits[usize::from(before.note) - 1][age] += 1.0;
        }
        if let Some(other) = self.samples.put(hash, Seen { note: class.0 + 1, at: now }) {
            let age = self.bucket(now.wrapping_sub(other.at));
            self.forgotten[usize::from(other.note) - 1][age] += 1.0;
        }
        self.seen += 1;
        match self.step {
            Step::Count { set } => {
                let sets = self.samples.set_count();
                // In the beginning more at once: what little is known is worth most then.
                let at_once = (sets as u64 / (self.seen / 4).max(32)).max(1) as usize;
                let until = (set + at_once).min(sets);
                for set in set..until {
                    for sample in self.samples.in_set(set) {
                        let age = self.bucket(now.wrapping_sub(sample.at));
                        self.waiting[usize::from(sample.note) - 1][age] += 1.0;
                    }
                }
                self.step = if until < sets { Step::Count { set: until } } else { Step::Solve { uses: 0 } };
            }
            Step::Solve { uses } => {
                self.solve(uses);
                self.step =
                    if uses + 1 < USES { Step::Solve { uses: uses + 1 } } else { Step::Count { set: 0 } };
                if uses + 1 == USES {
                    self.waiting = [[0.0; AGES]; CLASSES];
                    self.decay(now);
                }
            }
        }
    }

    /// Old uses count less and less: traffic changes.
    fn decay(&mut self, now: u32) {
        let passed = f64::from(now.wrapping_sub(self.decayed_at));
        self.decayed_at = now;
        let kept = (1.0 - passed / (MEMORY * self.slot_count)).max(0.0);
        self.hits.iter_mut().chain(&mut self.forgotten).flatten().for_each(|count| *count *= kept);
    }

    /// Makes the table anew for the classes of one number of uses.
    fn solve(&mut self, uses: usize) {
        let scale = 1.0 / f64::from(self.keys_per_sample);
        let every = self.counts(0..CLASSES).hazards(|_| PRIOR_HAZARD, PRIOR_SAMPLES * scale);
        let classes = uses * WAITS..(uses + 1) * WAITS;
        let group = self.counts(classes.clone());
        // How much likelier a use is than of blocks in general.
        let weight = RATIO_SAMPLES * scale;
        let ratio = (group.hits() + weight * PRIOR_RATIOS[uses]) / (group.expected_hits(&every) + weight);
        let all = group.hazards(|age| (ratio * every[age]).min(1.0), GROUP_SAMPLES * scale);
        for class in classes {
            let hazards = self.counts(class..class + 1).hazards(|age| all[age], CLASS_SAMPLES * scale);
            self.table[class] = indices(&hazards);
        }
    }

    /// What was seen of some classes.
    fn counts(&self, classes: std::ops::Range<usize>) -> Counts {
        let mut counts = Counts { hits: [0.0; AGES], ended: [0.0; AGES] };
        for class in classes {
            for age in 0..AGES {
                counts.hits[age] += self.hits[class][age];
                counts.ended[age] += self.waiting[class][age] + self.forgotten[class][age];
            }
        }
        counts
    }

    /// The bucket of an age in accesses. The first one ends at a power of two from 1/90 to 1/45 of the slot count, each
    /// later one √2 times as far out as the one before it.
    #[inline]
    fn bucket(&self, age: u32) -> usize {
        let octave = age.max(1).ilog2();
        if octave < self.first_bucket_log2 || age == 0 {
            return 0;
        }
        // Whether the age is past the middle of its octave, 362/256 being √2.
        let is_upper = (u64::from(age) << 8) >> octave >= 362;
        (1 + 2 * (octave - self.first_bucket_log2) as usize + usize::from(is_upper)).min(AGES - 1)
    }

    pub(in crate::eviction) fn metadata_bytes(&self) -> usize {
        size_of::<Self>() + self.samples.metadata_bytes()
    }
}

/// Blocks by the age at which they were used, or were last seen waiting.
struct Counts {
    hits: [f64; AGES],
    ended: [f64; AGES],
}

impl Counts {
    fn hits(&self) -> f64 {
        self.hits.iter().sum()
    }

    /// By age: the blocks that were at risk of a use. Who was seen waiting within a bucket was there for half of it.
    fn at_risk(&self) -> [f64; AGES] {
        let mut at_risk = [0.0; AGES];
        let mut later = 0.0;
        for age in (0..AGES).rev() {
            at_risk[age] = later + self.hits[age] + 0.5 * self.ended[age];
            later += self.hits[age] + self.ended[age];
        }
        at_risk
    }

    /// The hits that there would have been with these hazards.
    fn expected_hits(&self, hazards: &[f64; AGES]) -> f64 {
        self.at_risk().iter().zip(hazards).map(|(at_risk, hazard)| at_risk * hazard).sum()
    }

    /// By age: the share of the blocks at risk that was used within the bucket, between what was seen and what is
    /// `expected`, which counts as much as `weight` blocks.
    fn hazards(&self, expected: impl Fn(usize) -> f64, weight: f64) -> [f64; AGES] {
        let at_risk = self.at_risk();
        std::array::from_fn(|age| {
            ((self.hits[age] + weight * expected(age)) / (at_risk[age] + weight)).min(1.0)
        })
    }
}

/// By age: the highest rate of uses that keeping a block for some time can give.
fn indices(hazards: &[f64; AGES]) -> [f64; AGES] {
    let mut indices = [0.0; AGES];
    for (age, index) in indices.iter_mut().enumerate() {
        let (mut unused, mut time) = (1.0, 0.0);
        for later in age..AGES {
            let still_unused = unused * (1.0 - hazards[later]);
            // Uses are spread evenly over the bucket.
            time += WIDTHS[later] * 0.5 * (unused + still_unused);
            unused = still_unused;
            *index = f64::max(*index, (1.0 - unused) / time);
        }
    }
    indices
}

/// Widths of the buckets, the first one being the unit.
const WIDTHS: [f64; AGES] = {
    let mut widths = [1.0; AGES];
    let mut start = 1.0;
    let mut age = 1;
    // An even number of ages: the last bucket, too, is the first half of an octave.
    while age < AGES {
        // √2 and 2 - √2: an octave is as long as all before it.
        let first = start * (std::f64::consts::SQRT_2 - 1.0);
        widths[age] = first;
        if age + 1 < AGES {
            widths[age + 1] = start - first;
        }
        start *= 2.0;
        age += 2;
    }
    widths
};

// Chosen once, over all traces in `benches/traces` at 18 capacities from 0.5 % to 50 % of the distinct blocks.

/// The hazard before anything is learnt: each doubling of the wait has an equal share of the uses.
const PRIOR_HAZARD: f64 = 0.18;
/// How many keys it counts as much as, at each age.
const PRIOR_SAMPLES: f64 = 300.0;
/// How much likelier a use is, by uses so far, than of all blocks.
const PRIOR_RATIOS: [f64; USES] = [0.56, 1.4, 2.0, 2.8, 4.2];
/// How many uses they count as much as.
const RATIO_SAMPLES: f64 = 100.0;
/// How many keys of one number of uses the hazards of all keys, in proportion, count as much as.
const GROUP_SAMPLES: f64 = 500.0;
/// How many keys of a class the hazards of all classes with as many uses count as much as. High, since the blocks of a
/// request come and go together: a hundred keys are few independent samples.
const CLASS_SAMPLES: f64 = 4000.0;
/// Samples reach back so many slot counts of distinct keys.
const REACH: usize = 8;
/// Samples of a small cache: as many as tables need.
const SAMPLES_MIN: usize = 16 << 10;
const SAMPLES_A_SLOT_MAX: usize = 64;
/// Uses count for this many slot counts of accesses on average.
const MEMORY: f64 = 46.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_begin_every_half_octave() {
        let worth = Worth::new(64 * 45);
        assert_eq!(worth.first_bucket_log2, 6);
        for (age, bucket) in
            [(0, 0), (63, 0), (64, 1), (90, 1), (91, 2), (127, 2), (128, 3), (180, 3), (181, 4)]
        {
            assert_eq!(worth.bucket(age), bucket, "{age}");
        }
        assert_eq!(worth.bucket(u32::MAX), AGES - 1);
        assert_eq!(Worth::new(1).bucket(0), 0);
        assert_eq!(Worth::new(1).bucket(1), 1);
    }

    #[test]
    fn widths_are_the_distances_of_the_beginnings() {
        let start = |age: usize| if age == 0 { 0.0 } else { 2f64.powf((age as f64 - 1.0) / 2.0) };
        for (age, width) in WIDTHS.iter().enumerate() {
            assert!((width - (start(age + 1) - start(age))).abs() < 1e-6 * width, "{age}");
        }
    }

    /// A use is due in bucket 10, and nowhere else: the worth rises until then, and there is none afterwards.
    #[test]
    fn worth_rises_until_a_use_is_due() {
        let mut hazards = [0.0; AGES];
        hazards[10] = 0.5;
        let indices = indices(&hazards);
        assert!(indices[..=10].is_sorted() && indices[0] > 0.0, "{indices:?}");
        assert_eq!(indices[11..], [0.0; AGES - 11]);
        // Half of the blocks are used, the others are kept in vain until the end of the bucket.
        let waiting: f64 = WIDTHS[..10].iter().sum();
        assert!((indices[0] - 0.5 / (waiting + 0.75 * WIDTHS[10])).abs() < 1e-12);
    }

    /// By hand: of ten blocks, two are used in bucket 3, one is last seen waiting in bucket 2, the others in bucket 5.
    #[test]
    fn hazards_count_who_is_at_risk() {
        let mut counts = Counts { hits: [0.0; AGES], ended: [0.0; AGES] };
        counts.hits[3] = 2.0;
        counts.ended[2] = 1.0;
        counts.ended[5] = 7.0;
        let at_risk = counts.at_risk();
        assert_eq!(at_risk[..7], [10.0, 10.0, 9.5, 9.0, 7.0, 3.5, 0.0]);
        let hazards = counts.hazards(|_| 0.5, 1.0);
        assert_eq!((hazards[3], hazards[6]), (2.5 / 10.0, 0.5));
        assert_eq!(counts.expected_hits(&[0.5; AGES]), 24.5);
    }

    #[test]
    fn learns_which_class_comes_back() {
        let slots = 1000;
        let mut worth = Worth::new(slots);
        let [new, again] = [worth.class(1, None), worth.class(2, Some(slots / 2))];
        let mut clock = 0;
        let hash = |key: u32| key.wrapping_mul(0x85eb_ca6b) ^ 0x1234_5678;
        let mut use_it = |worth: &mut Worth, key: u32, class: Class| {
            clock += 1;
            worth.used(hash(key), class, clock);
        };
        // A hundred keys go round; all others come once.
        for round in 0..200 {
            for key in 0..100 {
                use_it(&mut worth, key, if round == 0 { new } else { again });
                (0..4).for_each(|other| use_it(&mut worth, 1000 + round * 400 + key * 4 + other, new));
            }
        }
        let ratio = worth.of(again, 0) / worth.of(new, 0);
        assert!(ratio > 10.0, "{ratio}");
        assert!(worth.of(again, 400) > worth.of(again, 0), "a use is due after 500 accesses");
    }

    #[test]
    fn classes_tell_uses_and_waits_apart() {
        let worth = Worth::new(800);
        let class = |uses, wait| worth.class(uses, wait).index();
        assert_eq!([1, 2, 3, 4, 5, 8, 9].map(|uses| class(uses, None) / WAITS), [0, 1, 2, 2, 3, 3, 4]);
        let waits = [0, 99, 100, 281, 282, 799, 800, 2261, 2262, u32::MAX].map(|wait| class(1, Some(wait)));
        assert_eq!(waits, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
        assert_eq!(class(1, None), WAITS - 1);
    }
}
