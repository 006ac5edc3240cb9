//! A table of handles against a plain map.

use std::collections::HashMap;

use proptest::prelude::*;

use crate::handles::{Handle, Handles};

#[derive(Clone, Debug)]
enum Step {
    Insert,
    With(prop::sample::Index),
    Remove(prop::sample::Index),
    Forged(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Insert),
        2 => any::<prop::sample::Index>().prop_map(Step::With),
        2 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => any::<u64>().prop_map(Step::Forged),
    ]
}

proptest! {
    /// Every handle ever given finds its own value until it is removed, and nothing after that.
    #[test]
    fn handles_find_their_own_values(steps in prop::collection::vec(step(), 1..400)) {
        let table = Handles::new(3);
        let other = Handles::<u64>::new(4);
        let mut live = HashMap::new();
        let mut given: Vec<Handle> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Insert => {
                    let handle = table.insert(number).unwrap();
                    prop_assert!(!given.contains(&handle), "a handle is never given twice");
                    given.push(handle);
                    live.insert(handle, number);
                }
                Step::With(index) if !given.is_empty() => {
                    let handle = given[index.index(given.len())];
                    prop_assert_eq!(table.with(handle, |value| *value), live.get(&handle).copied());
                    prop_assert!(other.with(handle, |_| ()).is_none(), "of another kind");
                }
                Step::Remove(index) if !given.is_empty() => {
                    let handle = given[index.index(given.len())];
                    prop_assert_eq!(table.remove(handle, |value| value), live.remove(&handle));
                }
                Step::Forged(handle) if !given.contains(&Handle(handle)) => {
                    prop_assert!(table.with(Handle(handle), |_| ()).is_none());
                    prop_assert!(table.remove(Handle(handle), drop).is_none());
                }
                _ => {}
            }
        }
    }
}

/// Many at a time, over several chunks.
#[test]
fn tables_grow() {
    let table = Handles::new(0);
    let handles: Vec<Handle> = (0..10_000).map(|number| table.insert(number).unwrap()).collect();
    for (number, handle) in handles.iter().enumerate() {
        assert_eq!(table.with(*handle, |value| *value), Some(number));
    }
    assert!(handles.iter().all(|handle| table.remove(*handle, drop).is_some() && handle.0 != 0));
}
