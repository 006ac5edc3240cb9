//! What the client measures is what the server did.

use super::server::answer;
use super::*;

/// First tokens and gaps that are different for every request.
fn plan(number: u64) -> (u64, Vec<u64>) {
    let first = 20 + number * 37 % 211;
    (first, (0..3 + number % 4).map(|index| 1 + (number * 13 + index * 7) % 29).collect())
}

fn planned(asked: &Asked) -> Vec<Step> {
    let (first, gaps) = plan(asked.number);
    let gaps: Vec<Duration> = gaps.into_iter().map(ms).collect();
    answer(asked, ms(first), &gaps, 4)
}

/// The p-th percentile of all values, at most so much too high as the histogram makes it.
fn assert_percentile(got_ms: f64, mut values: Vec<u64>, percent: usize) {
    values.sort_unstable();
    let exact = values[(values.len() * percent).div_ceil(100) - 1] as f64;
    assert!(got_ms >= exact && got_ms <= exact * 1.001, "p{percent}: {got_ms} instead of {exact}");
}

#[tokio::test(start_paused = true)]
async fn every_time_is_the_servers() {
    let run = run(&options(), shaped(200, "constant:20"), planned).await;
    assert!(matches!(run.end, End::Complete));
    assert_eq!((run.summary.answered, run.summary.failed, run.summary.unfinished), (200, 0, 0));
    let (mut ttft, mut itl, mut e2e) = (Vec::new(), Vec::new(), Vec::new());
    for record in &run.records {
        let (first, gaps) = plan(record.index);
        assert_eq!((record.due_us, record.sent_us), (record.index * 50_000, record.index * 50_000));
        let answered = record.outcome.as_ref().expect("answered");
        assert_eq!(answered.first_us, Some(record.sent_us + first * 1000));
        let got: Vec<u64> = answered.gaps_us.iter().map(|us| u64::from(*us)).collect();
        assert_eq!(got, gaps.iter().map(|gap| gap * 1000).collect::<Vec<_>>());
        let whole = first + gaps.iter().sum::<u64>();
        assert_eq!(answered.ended_us, record.sent_us + whole * 1000);
        assert_eq!(answered.output_tokens, gaps.len() as u64 + 1);
        assert_eq!((answered.prompt_tokens, answered.cached_tokens), (Some(10), Some(4)));
        ttft.push(first);
        itl.extend(gaps);
        e2e.push(whole);
    }
    for (percentiles, values) in [(run.summary.ttft, ttft), (run.summary.itl, itl), (run.summary.e2e, e2e)] {
        let percentiles = percentiles.expect("times");
        assert_percentile(percentiles.p50_ms, values.clone(), 50);
        assert_percentile(percentiles.p90_ms, values.clone(), 90);
        assert_percentile(percentiles.p95_ms, values.clone(), 95);
        assert_percentile(percentiles.p99_ms, values.clone(), 99);
        assert_eq!(percentiles.max_ms, *values.iter().max().expect("some") as f64);
        let mean = values.iter().sum::<u64>() as f64 / values.len() as f64;
        assert!((percentiles.mean_ms / mean - 1.0).abs() < 1e-9);
    }
    assert_eq!((run.summary.offered_per_s, run.summary.late), (Some(20.0), 0));
    assert_eq!((run.summary.cached_tokens, run.summary.cached_ratio), (Some(800), Some(0.4)));
}

/// The role comes at once and is no token.
#[tokio::test(start_paused = true)]
async fn chats_are_measured_from_their_first_word() {
    let text = Request {
        timestamp_ms: Some(0.0),
        ..Request::new(Content::Prompt { text: "hi".to_owned(), input_tokens: None })
    };
    let chat = LoadOptions { body: BodyOptions { api: Api::Chat, ..options().body }, ..options() };
    let run = run(&chat, vec![Ok(text)], planned).await;
    assert_eq!(run.asked[0].0.line, "POST /v1/chat/completions");
    assert_eq!(run.asked[0].0.body["messages"][0]["content"], "hi");
    assert_eq!(run.summary.ttft.expect("a time").max_ms, 20.0);
}

/// A server that stands still for two seconds and can only do one thing at a time: measured from sending, few requests
/// were slow; measured from when they were due, all those that came meanwhile were.
#[tokio::test(start_paused = true)]
async fn requests_that_could_not_be_sent_count_their_wait() {
    let stalls = |asked: &Asked| answer(asked, ms(if asked.number == 0 { 2000 } else { 10 }), &[], 0);
    let one = LoadOptions { in_flight_max: 1, slo: Some("ttft=100".parse().expect("limits")), ..options() };
    let run = run(&one, shaped(101, "constant:50"), stalls).await;
    assert_eq!(run.summary.ttft.expect("times").p99_ms.round(), 10.0);
    let from_due = run.summary.ttft_from_due.expect("times");
    // Request i is due after 20 i ms, and sent 2000 + 10 (i - 1) ms after the start.
    let waits: Vec<u64> = (0..101).map(|i| if i == 0 { 2000 } else { 2000 + 10 * i - 20 * i }).collect();
    assert_percentile(from_due.p50_ms, waits.clone(), 50);
    assert_eq!(from_due.mean_ms, waits.iter().sum::<u64>() as f64 / 101.0);
    assert_eq!(run.summary.late, 100);
    assert_eq!(run.summary.lag.expect("times").max_ms, 1980.0);
    assert_eq!(run.summary.good, Some(0));
}

/// Whatever becomes of them, and whether they could be sent or not.
#[tokio::test(start_paused = true)]
async fn the_offered_rate_is_that_of_all_that_were_due() {
    let one = LoadOptions { in_flight_max: 1, warmup: 3, ..options() };
    let hangs = |asked: &Asked| if asked.number < 5 { planned(asked) } else { vec![Step::Hang] };
    let stop = tokio::time::sleep(ms(3010));
    let run =
        run_until(connector(hangs), &one, shaped(1000, "constant:20"), &mut Seen::default(), stop).await;
    let run = run.expect("a run");
    assert_eq!((run.summary.answered, run.summary.unfinished), (2, 1));
    let offered_per_s = run.summary.offered_per_s.expect("a rate");
    assert!((offered_per_s - 20.0).abs() < 1e-9, "{offered_per_s}");
}

#[tokio::test(start_paused = true)]
async fn the_warmup_is_sent_and_not_counted() {
    let warm = LoadOptions { warmup: 15, ..options() };
    let run = run(&warm, shaped(20, "constant:10"), planned).await;
    assert_eq!((run.summary.warmup, run.summary.answered), (15, 5));
    assert_eq!(run.records.iter().filter(|record| record.is_warmup).count(), 15);
    assert_eq!(
        run.summary.ttft.expect("times").max_ms,
        (15..20).map(|i| plan(i).0).max().expect("some") as f64
    );
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_once_a_second() {
    let run = run(&options(), shaped(31, "constant:10"), planned).await;
    let elapsed: Vec<f64> = run.progress.iter().map(|progress| progress.elapsed_s).collect();
    assert_eq!(elapsed, [1.0, 2.0, 3.0]);
    assert_eq!(run.progress[1].sent, run.progress[1].in_flight + run.progress[1].answered);
    assert!(run.progress[1].answered >= 15 && run.progress[1].ttft_ms_p50 > 20.0);
}

#[tokio::test(start_paused = true)]
async fn the_key_is_sent_and_the_list_of_models_asked_for() {
    let keyed = LoadOptions { api_key: Some("secret".to_owned()), check_model: true, ..options() };
    let reply = |asked: &Asked| {
        assert!(asked.headers.contains("authorization: bearer secret"), "{}", asked.headers);
        if asked.line == "GET /v1/models" { server::models(&["other", "model"]) } else { planned(asked) }
    };
    let run = run(&keyed, shaped(3, "constant:10"), reply).await;
    assert_eq!((run.summary.answered, run.asked.len()), (3, 4));
    let body = &run.asked[1].0.body;
    assert_eq!((&body["model"], &body["stream"]), (&"model".into(), &true.into()));
}
