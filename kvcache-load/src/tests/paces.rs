//! When requests are sent.

use super::server::answer;
use super::*;

fn after_100_ms(asked: &Asked) -> Vec<Step> {
    answer(asked, ms(100), &[], 0)
}

#[tokio::test(start_paused = true)]
async fn an_open_loop_does_not_wait_for_answers() {
    let slow = |asked: &Asked| answer(asked, ms(60_000), &[], 0);
    let run = run(&options(), shaped(300, "constant:100"), slow).await;
    assert_eq!(run.sent_ms(), (0..300).map(|index| index * 10).collect::<Vec<_>>());
}

/// The first request is sent at once, whatever its timestamp.
#[tokio::test(start_paused = true)]
async fn turns_wait_for_the_turn_before() {
    let requests = vec![
        turn("a", 5000, 0),
        turn("a", 5050, 0),
        turn("b", 5060, 0),
        turn("a", 5070, 0),
        turn("a", 6000, 0),
    ];
    let run = run(&options(), requests, after_100_ms).await;
    assert_eq!(run.sent_ms(), [0, 100, 60, 200, 1000]);
    let due: Vec<u64> = run.records.iter().map(|record| record.due_us / 1000).collect();
    assert_eq!(due, [0, 100, 60, 200, 1000], "a turn is due when the earlier one has ended");
    assert_eq!(run.summary.late, 0);
}

#[tokio::test(start_paused = true)]
async fn turns_may_go_by_pauses_for_thought() {
    let requests =
        vec![turn("a", 0, 7), turn("b", 50, 7), turn("a", 60, 30), turn("b", 70, 1000), turn("a", 80, 0)];
    let think = LoadOptions { pace: Pace::Think, ..options() };
    let run = run(&think, requests, after_100_ms).await;
    assert_eq!(run.sent_ms(), [0, 50, 130, 1150, 230]);
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_serves_so_many_sessions_at_a_time() {
    let requests = vec![
        turn("a", 0, 0),
        turn("b", 0, 0),
        turn("c", 0, 0),
        turn("a", 0, 50),
        turn("b", 0, 500),
        turn("d", 0, 0),
    ];
    let closed = LoadOptions { pace: concurrency(2), ..options() };
    let run = run(&closed, requests, after_100_ms).await;
    // a takes 0 to 250, then c to 350 and d to 450 are in its place.
    assert_eq!(run.sent_ms(), [0, 0, 250, 150, 600, 350]);
    assert_eq!(run.summary.offered_per_s, None);
    assert_eq!(run.summary.late, 0);
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_may_be_wider_than_the_workload() {
    let requests = (0..3).map(|index| Ok(prompt(index))).collect();
    let run = run(&LoadOptions { pace: concurrency(50_000), ..options() }, requests, after_100_ms).await;
    assert_eq!(run.sent_ms(), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_bound_on_requests_under_way_holds() {
    let bounded = LoadOptions { in_flight_max: 3, ..options() };
    let run = run(&bounded, shaped(30, "constant:1000"), after_100_ms).await;
    let expected: Vec<u64> =
        (0..30).map(|index| index / 3 * 100 + if index < 3 { index } else { index % 3 }).collect();
    assert_eq!(run.sent_ms(), expected);
    assert_eq!(run.summary.late, 27);
}

/// More turns of one session than are held, and other requests behind them: all are sent in the end.
#[tokio::test(start_paused = true)]
async fn a_long_session_does_not_end_in_a_deadlock() {
    let mut requests: Vec<_> = (0..17_000).map(|_| turn("a", 0, 0)).collect();
    requests.push(Ok(Request { timestamp_ms: Some(0.0), ..prompt(1) }));
    let bounded = LoadOptions { in_flight_max: 2, ..options() };
    let run = run(&bounded, requests, |asked| answer(asked, ms(1), &[], 0)).await;
    assert_eq!(run.summary.answered, 17_001);
    let sent = run.sent_ms();
    assert!(sent[..17_000].windows(2).all(|pair| pair[0] < pair[1]), "one after the other");
}

#[tokio::test(start_paused = true)]
async fn without_times_nothing_can_be_sent_at_its_time() {
    for pace in [Pace::Timestamps, Pace::Think] {
        let mut requests = shaped(2, "constant:10");
        requests.push(Ok(prompt(9)));
        let run = run(&LoadOptions { pace, ..options() }, requests, after_100_ms).await;
        let End::Failed(error) = run.end else { panic!("{:?}", run.end) };
        assert!(
            error.to_string().contains("request 2 (from 0) has no timestamp to go by; give a rate"),
            "{error}"
        );
        assert_eq!(run.summary.answered, 2, "what was sent is answered");
    }
}
