//! Work in the background, with real threads. `tests/background_loom.rs` tries its interleavings.

use std::sync::mpsc;
use std::time::Instant;

use crate::background::{Background, Outcome, Progress, cancelled, deadline};
use crate::status::kvc_status::{KVC_BUSY, KVC_CANCELLED, KVC_INTERNAL};

fn ended(background: &Background, ticket: u64) -> Outcome {
    match background.wait(ticket, deadline(10_000)) {
        Progress::Ended(outcome) => outcome,
        Progress::Pending => panic!("ticket {ticket} is pending"),
        Progress::Unknown => panic!("ticket {ticket} is unknown"),
    }
}

#[test]
fn an_outcome_is_told_once() {
    let background = Background::new(2, 8).unwrap();
    let ticket = background.submit(|| Ok(7)).unwrap();
    assert_eq!(ended(&background, ticket).unwrap(), 7);
    assert!(matches!(background.wait(ticket, Instant::now()), Progress::Unknown));
    assert_eq!(background.list_ended(&mut [0; 4]), 0, "what was seen is not listed");
}

/// As many as allowed are out, seen or not; what waits is pending, and ends are listed in their order.
#[test]
fn tickets_are_bounded_and_listed() {
    let background = Background::new(1, 2).unwrap();
    let (go, waiting) = mpsc::channel::<()>();
    let first = background.submit(move || waiting.recv().map(|()| 1).map_err(|_| cancelled())).unwrap();
    let second = background.submit(|| Ok(2)).unwrap();
    assert_eq!(background.submit(|| Ok(3)).unwrap_err().status, KVC_BUSY);
    assert!(matches!(background.wait(first, Instant::now()), Progress::Pending));
    go.send(()).unwrap();
    assert_eq!(ended(&background, second).unwrap(), 2);
    let mut places = [0; 4];
    assert_eq!(background.list_ended(&mut places), 1);
    assert_eq!(places[0], first);
    assert!(background.submit(|| Ok(3)).unwrap() > second);
    assert_eq!(ended(&background, first).unwrap(), 1);
}

#[test]
fn closing_cancels_what_has_not_begun_and_waits_for_the_rest() {
    let background = Background::new(1, 8).unwrap();
    let (began, has_begun) = mpsc::channel();
    let (go, waiting) = mpsc::channel::<()>();
    let running = background
        .submit(move || {
            began.send(()).map_err(|_| cancelled())?;
            waiting.recv().map(|()| 1).map_err(|_| cancelled())
        })
        .unwrap();
    let queued = background.submit(|| Ok(2)).unwrap();
    has_begun.recv().unwrap();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| background.close());
        assert_eq!(ended(&background, queued).unwrap_err().status, KVC_CANCELLED);
        assert!(!closing.is_finished(), "it waits for what has begun");
        go.send(()).unwrap();
    });
    assert_eq!(ended(&background, running).unwrap(), 1);
    assert_eq!(background.submit(|| Ok(3)).unwrap_err().status, KVC_CANCELLED);
}

/// A program that has read the event and has too few places is woken again for the rest.
#[test]
fn what_did_not_fit_a_list_is_heard_of_again() {
    let background = Background::new(1, 8).unwrap();
    for number in 0..3 {
        background.submit(move || Ok(number)).unwrap();
    }
    // When the one thread has come to this, they have ended.
    let (began, has_begun) = mpsc::channel();
    let (_go, waiting) = mpsc::channel::<()>();
    background
        .submit(move || {
            began.send(()).map_err(|_| cancelled())?;
            waiting.recv().map(|()| 0).map_err(|_| cancelled())
        })
        .unwrap();
    has_begun.recv().unwrap();
    let is_set = || {
        let mut events = 0u64;
        // SAFETY: eight bytes of a number that lives through the call.
        unsafe { libc::read(background.event_fd(), (&raw mut events).cast(), 8) == 8 }
    };
    assert!(is_set() && !is_set());
    assert_eq!(background.list_ended(&mut [0; 2]), 2);
    assert!(is_set(), "one is left");
    assert_eq!(background.list_ended(&mut [0; 2]), 1);
    assert!(!is_set(), "none is left");
}

/// What had not begun before a panic does not begin, and everybody learns of their end.
#[test]
fn a_panic_is_the_outcome_of_all_that_is_left() {
    let background = Background::new(1, 8).unwrap();
    let (go, waiting) = mpsc::channel::<()>();
    let panics = background
        .submit(move || {
            let _ = waiting.recv();
            panic!("planted")
        })
        .unwrap();
    let queued = background.submit(|| Ok(1)).unwrap();
    assert!(!background.defect().is_noted());
    go.send(()).unwrap();
    for (ticket, words) in
        [(panics, "caught, please report it: planted"), (queued, "caught in this cache before")]
    {
        let failure = ended(&background, ticket).unwrap_err();
        assert!(failure.status == KVC_INTERNAL && failure.text.contains(words), "{failure:?}");
    }
    assert!(background.defect().is_noted());
}
