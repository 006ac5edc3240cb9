//! What has come from L2 and waits, and who gets the room that it leaves.

use super::*;

/// A quarter of 16 slots.
const SHARE: usize = 4;

fn roomy() -> RemoteTierConfig {
    RemoteTierConfig { fetch_job_slots: 16, ..tier() }
}

/// A request of a document enters, and L2 says that it has all of it: what is fetched for it.
fn enter(rig: &mut Rig, id: &str, document: u64, blocks: usize, now: u64) -> Vec<Job> {
    add(&mut rig.planner, id, document, blocks);
    rig.planner.prefetch(id, blocks * BLOCK, ms(now));
    rig.answer(|_| true);
    jobs(rig, now)
}

fn jobs(rig: &mut Rig, now: u64) -> Vec<Job> {
    let jobs = rig.jobs(now);
    rig.planner.check().unwrap();
    jobs
}

fn held(rig: &Rig) -> usize {
    rig.planner.check().unwrap();
    rig.planner.remote.as_ref().unwrap().room.held()
}

/// A request enters, and all that it wants of L2 comes.
fn fetched(rig: &mut Rig, id: &str, document: u64, blocks: usize, now: u64) {
    for job in enter(rig, id, document, blocks, now) {
        rig.end(&job, &[]);
    }
}

fn admit(rig: &mut Rig, id: &str, blocks: usize, tokens: usize, now: u64) {
    let expected = if tokens == 0 { Lookup::Miss(MissReason::Absent) } else { hit(tokens) };
    assert_eq!(rig.planner.lookup(id, 0, blocks * BLOCK, ms(now)), expected);
    rig.planner.commit_load(id, tokens, &table(1..blocks as u32 + 1));
    rig.planner.check().unwrap();
}

#[test]
fn what_has_come_counts_until_its_request_is_admitted() {
    let mut rig = Rig::new(roomy(), 16);
    fetched(&mut rig, "a", 1, 5, 0);
    assert_eq!(held(&rig), SHARE);
    assert_eq!(kinds(&enter(&mut rig, "b", 2, 5, 1)), []);
    assert_eq!(rig.planner.stats().remote.unwrap().refused_fetches, 1);
    assert_eq!((jobs(&mut rig, 2), rig.asked()), (vec![], 0), "nothing has changed");
    admit(&mut rig, "a", 5, 16, 3);
    assert_eq!(held(&rig), 0);
    assert_eq!(kinds(&jobs(&mut rig, 4)), [(JobKind::LoadLayerwise, 4)]);
    assert_eq!(rig.answer(|_| true).len(), 4, "there is room now");
    assert_eq!(kinds(&jobs(&mut rig, 5)), [(JobKind::Fetch, 4)]);
    assert_eq!(rig.planner.stats().remote.unwrap().refused_fetches, 1);
}

#[test]
fn what_has_come_is_not_evicted_while_its_request_waits() {
    let mut rig = Rig::new(RemoteTierConfig { ingestion: Ingestion::Hot, ..roomy() }, 16);
    fetched(&mut rig, "a", 1, 5, 0);
    for document in 2..12 {
        assert_eq!(store(&mut rig.planner, document, 4)[0].stored.len(), 4);
        assert_eq!(held(&rig), SHARE);
    }
    assert_eq!(rig.planner.lookup("a", 0, 20, ms(1)), hit(16));
    // And not once its request is gone.
    rig.planner.finish("a");
    assert_eq!(held(&rig), 0);
    (12..16).for_each(|document| drop(store(&mut rig.planner, document, 4)));
    add(&mut rig.planner, "b", 1, 5);
    assert!(matches!(rig.planner.lookup("b", 0, 20, ms(2)), Lookup::Wait));
    assert_eq!(rig.answer(|_| false).len(), 4);
}

#[test]
fn a_part_comes_at_once_and_the_rest_later() {
    let mut rig = Rig::new(roomy(), 32);
    fetched(&mut rig, "a", 1, 7, 0);
    let part = enter(&mut rig, "b", 2, 7, 1);
    assert_eq!(kinds(&part), [(JobKind::Fetch, 2)]);
    rig.end(&part[0], &[]);
    assert_eq!(held(&rig), 8);
    admit(&mut rig, "a", 7, 24, 2);
    jobs(&mut rig, 3);
    assert_eq!(rig.answer(|_| true).len(), 4);
    let rest = jobs(&mut rig, 4);
    assert_eq!(kinds(&rest), [(JobKind::Fetch, 4)]);
    assert_eq!(rest[0].transfers[0].parent, part[0].transfers[1].key);
    rig.end(&rest[0], &[]);
    admit(&mut rig, "b", 7, 24, 5);
    assert_eq!(held(&rig), 0);
}

#[test]
fn room_goes_to_who_came_first() {
    let mut rig = Rig::new(roomy(), 64);
    fetched(&mut rig, "a", 1, 13, 0);
    let part = enter(&mut rig, "b", 2, 9, 1);
    assert_eq!(kinds(&part), [(JobKind::Fetch, 4)], "of eight");
    assert_eq!(kinds(&enter(&mut rig, "c", 3, 9, 2)), []);
    rig.planner.finish("a");
    assert_eq!(held(&rig), 0);
    jobs(&mut rig, 3);
    assert_eq!(rig.asked(), 2, "there is room for four of the one and eight of the other");
    // Whoever comes now comes after them, though they are still being asked about.
    assert_eq!(rig.planner.remote.as_ref().unwrap().room.room_for(99, part[0].transfers.len()), 0);
    rig.answer(|_| true);
    rig.answer(|_| true);
    assert_eq!(kinds(&jobs(&mut rig, 4)), [(JobKind::Fetch, 4), (JobKind::Fetch, 8)]);
    assert_eq!(kinds(&enter(&mut rig, "d", 4, 9, 5)), []);
}

/// A part that would be too short to be loaded is no reason to ask again and again.
#[test]
fn who_asked_in_vain_is_called_when_there_is_more_room() {
    let mut rig = Rig::of(PlannerConfig { min_load_tokens: 24, ..config() }, roomy(), 32);
    fetched(&mut rig, "a", 1, 7, 0);
    assert_eq!(held(&rig), 6);
    assert_eq!(kinds(&enter(&mut rig, "b", 2, 9, 1)), [], "two slots of eight are free, six are the least");
    for now in 2..5 {
        assert_eq!((jobs(&mut rig, now), rig.asked()), (vec![], 0));
    }
    rig.planner.finish("a");
    jobs(&mut rig, 5);
    rig.answer(|_| true);
    assert_eq!(kinds(&jobs(&mut rig, 6)), [(JobKind::Fetch, 8)]);
}

/// Whoever queues is not told to wait for room, nor longer for an answer than who asks once.
#[test]
fn nobody_waits_for_room() {
    let mut rig = Rig::new(roomy(), 16);
    fetched(&mut rig, "a", 1, 5, 0);
    add(&mut rig.planner, "b", 2, 5);
    assert_eq!(rig.planner.lookup("b", 0, 20, ms(0)), Lookup::Wait, "for an answer");
    rig.answer(|_| true);
    assert_eq!(rig.planner.lookup("b", 0, 20, ms(1)), Lookup::Miss(MissReason::Absent));
    rig.planner.finish("a");
    jobs(&mut rig, 2);
    assert_eq!(rig.asked(), 1);
    assert_eq!(rig.planner.lookup("b", 0, 20, ms(4)), Lookup::Wait, "within what it may wait");
    assert_eq!(rig.planner.lookup("b", 0, 20, ms(5)), Lookup::Miss(MissReason::Absent));
    // It begins, and is not called any more.
    rig.planner.commit_load("b", 0, &[]);
    rig.answer(|_| true);
    assert_eq!(kinds(&jobs(&mut rig, 6)), []);
    assert_eq!(rig.asked(), 0);
}

#[test]
fn who_has_asked_often_asks_no_more() {
    let mut rig = Rig::new(roomy(), 16);
    add(&mut rig.planner, "b", 1, 30);
    rig.planner.prefetch("b", 120, ms(0));
    let mut asked = 0;
    while rig.asked() > 0 {
        asked += 1;
        // There is always more than finds room, and what is fetched never comes.
        rig.answer(|_| true);
        for job in jobs(&mut rig, asked) {
            let failed: Vec<u32> = (0..job.transfers.len() as u32).collect();
            rig.end(&job, &failed);
        }
        rig.planner.remote.as_mut().unwrap().failed_in_row = 0;
        jobs(&mut rig, asked);
    }
    assert_eq!(asked, u64::from(FetchRoom::QUESTIONS_MAX));
}

/// An engine that takes others first gives back what is held for a request that it leaves behind.
#[test]
fn nothing_is_held_for_ever() {
    let mut rig = Rig::new(roomy(), 16);
    fetched(&mut rig, "a", 1, 3, 0);
    fetched(&mut rig, "b", 2, 3, 0);
    assert_eq!(held(&rig), SHARE);
    jobs(&mut rig, 1_000_000);
    assert_eq!(held(&rig), SHARE, "nobody is before its turn, however long that takes");
    admit(&mut rig, "b", 3, 8, 1_000_000);
    jobs(&mut rig, 1_000_049);
    assert_eq!(held(&rig), 2);
    jobs(&mut rig, 1_000_050);
    assert_eq!(held(&rig), 0);
    assert_eq!(rig.planner.lookup("a", 0, 12, ms(1_000_051)), hit(8), "nothing else has needed the slots");
}

#[test]
fn two_that_want_the_same_hold_it_until_both_are_gone() {
    let mut rig = Rig::new(roomy(), 16);
    let jobs = enter(&mut rig, "a", 1, 5, 0);
    add(&mut rig.planner, "b", 1, 5);
    assert_eq!(rig.planner.lookup("b", 0, 20, ms(1)), Lookup::Wait);
    rig.end(&jobs[0], &[]);
    assert_eq!(held(&rig), SHARE);
    rig.planner.finish("a");
    assert_eq!(held(&rig), SHARE);
    admit(&mut rig, "b", 5, 16, 2);
    assert_eq!(held(&rig), 0);
}

#[test]
fn nothing_is_held_over_a_reset_or_for_who_is_gone() {
    let mut rig = Rig::new(roomy(), 32);
    fetched(&mut rig, "a", 1, 5, 0);
    let late = enter(&mut rig, "b", 2, 5, 1);
    enter(&mut rig, "c", 3, 5, 1);
    rig.planner.reset();
    assert_eq!((held(&rig), rig.planner.directory().unwrap().stats().draining), (0, 4));
    rig.end(&late[0], &[]);
    assert_eq!((held(&rig), rig.planner.directory().unwrap().free_slots()), (0, 32));
    jobs(&mut rig, 2);
    assert_eq!(rig.asked(), 0, "nobody queues");
    let jobs = enter(&mut rig, "d", 4, 5, 3);
    rig.planner.finish("d");
    rig.end(&jobs[0], &[]);
    assert_eq!(held(&rig), 0);
}

/// What cannot be loaded leaves L1, though others wait for it.
#[test]
fn what_cannot_be_loaded_is_not_held() {
    let mut rig = Rig::new(roomy(), 16);
    let fetch = enter(&mut rig, "a", 1, 5, 0);
    add(&mut rig.planner, "b", 1, 5);
    rig.planner.lookup("b", 0, 20, ms(1));
    rig.end(&fetch[0], &[]);
    admit(&mut rig, "a", 5, 16, 2);
    assert_eq!(held(&rig), SHARE);
    let load = jobs(&mut rig, 3);
    end(&mut rig.planner, load[0].id, false);
    assert_eq!((held(&rig), rig.planner.directory().unwrap().free_slots()), (0, 16));
}

/// A policy that deems no block worth a victim is not asked where there is an L2, which blocks reach through L1.
#[test]
fn with_an_l2_nothing_is_declined() {
    for (has_l2, stored) in [(false, 0), (true, 2)] {
        let mut planner =
            Planner::new(config(), Box::new(|slots| Box::new(super::super::Witness::new(slots))));
        if has_l2 {
            planner = planner.with_remote(tier(), Box::new(Scripted(Arc::default())));
        }
        planner.absorb(&if has_l2 { remote_hello(0, 16, 1, 0) } else { hello(0, 16) });
        for document in 1..5 {
            assert_eq!(store(&mut planner, document, 4)[0].stored.len(), 4);
        }
        let offered = store(&mut planner, 5, 2);
        assert_eq!(offered.iter().map(|ended| ended.stored.len()).sum::<usize>(), stored);
        assert_eq!(planner.directory().unwrap().stats().not_worth, 2 - stored as u64);
    }
}

/// A part of one group is of no use without its part of the others.
#[test]
fn a_part_is_of_all_groups() {
    let group = |kind| GroupConfig { kind, block_tokens: BLOCK };
    let groups = vec![group(GroupKind::Full), group(GroupKind::Sliding { window_tokens: 9 })];
    let script = Arc::new(Mutex::new(Script::default()));
    let planner = new(PlannerConfig { groups, ..config() })
        .with_remote(roomy(), Box::new(Scripted(Arc::clone(&script))));
    let mut rig = Rig { planner, script };
    rig.planner.absorb(&remote_hello(0, 32, 1, 0));
    // Eight slots: for six blocks of the first group and the two of the window, or for less and no window.
    let parts = enter(&mut rig, "a", 1, 12, 0);
    let of = |group| parts[0].transfers.iter().filter(|of| of.group == group).count();
    assert_eq!((of(0), of(1)), (6, 2));
    rig.end(&parts[0], &[]);
    assert_eq!(rig.planner.lookup("a", 0, 48, ms(1)), Lookup::Hit { tokens: 24, asynchronous: true });
    // With room for two slots, a window of two blocks and what is before it find none.
    rig.planner.finish("a");
    let filler = enter(&mut rig, "b", 2, 5, 2);
    assert_eq!(filler[0].transfers.len(), 6);
    let small = enter(&mut rig, "c", 3, 12, 3);
    assert_eq!(small.iter().map(|job| job.transfers.len()).sum::<usize>(), 2, "one block, and its window");
}
