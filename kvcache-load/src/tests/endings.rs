//! How runs begin and end.

use super::server::{answer, models, response};
use super::*;

fn after_100_ms(asked: &Asked) -> Vec<Step> {
    answer(asked, ms(100), &[], 0)
}

/// Why a run does not begin.
async fn refused(
    options: &LoadOptions,
    reply: impl Fn(&Asked) -> Vec<Step> + Send + Sync + 'static,
) -> String {
    let requests = shaped(3, "constant:1");
    let result =
        run_until(connector(reply), options, requests, &mut Seen::default(), std::future::pending()).await;
    result.err().expect("it does not begin").to_string()
}

#[tokio::test(start_paused = true)]
async fn after_the_time_answers_under_way_are_waited_for() {
    let timed = LoadOptions { duration: Some(ms(1050)), drain: ms(500), ..options() };
    let run_ = run(&timed, shaped(1000, "constant:10"), after_100_ms).await;
    assert!(matches!(run_.end, End::Duration) && run_.end.is_partial());
    assert_eq!((run_.summary.answered, run_.summary.unfinished), (11, 0));
    let slow = |asked: &Asked| answer(asked, ms(if asked.number == 9 { 60_000 } else { 100 }), &[], 0);
    let run_ = run(&timed, shaped(1000, "constant:10"), slow).await;
    assert!(matches!(run_.end, End::Duration));
    assert_eq!((run_.summary.answered, run_.summary.unfinished), (10, 1));
    let run_ = run(&timed, shaped(5, "constant:10"), after_100_ms).await;
    assert!(matches!(run_.end, End::Complete), "it was done before");
    let closed = LoadOptions { pace: concurrency(2), ..timed };
    let run_ = run(&closed, shaped(1000, "concurrency:2"), after_100_ms).await;
    assert!(matches!(run_.end, End::Duration));
    assert_eq!((run_.summary.answered, run_.summary.unfinished), (22, 0));
}

#[tokio::test(start_paused = true)]
async fn a_run_can_be_interrupted() {
    let stop = tokio::time::sleep(ms(250));
    let requests = shaped(1000, "constant:10");
    let run = run_until(connector(after_100_ms), &options(), requests, &mut Seen::default(), stop).await;
    let run = run.expect("a run");
    assert!(matches!(run.end, End::Interrupted));
    // Sent after 0, 100 and 200 ms.
    assert_eq!((run.summary.answered, run.summary.unfinished), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn too_many_failures_end_a_run() {
    let reply = |asked: &Asked| match asked.number % 2 {
        0 => response("500 Internal Server Error", "", "broken"),
        _ => after_100_ms(asked),
    };
    let few = LoadOptions { errors_max: 5, ..options() };
    let run = run(&few, shaped(1000, "constant:100"), reply).await;
    assert!(matches!(run.end, End::Errors));
    assert_eq!((run.summary.failed, run.asked.len()), (5, 9));
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_breaks_off_ends_a_run_with_what_was_sent() {
    let mut requests = shaped(3, "constant:10");
    requests.push(Err(WorkloadError::Empty { path: "x.jsonl".into() }));
    let run_ = run(&options(), requests, after_100_ms).await;
    let End::Failed(error) = run_.end else { panic!("{:?}", run_.end) };
    assert!(error.to_string().contains("x.jsonl: holds no request"), "{error}");
    assert_eq!(run_.summary.answered, 3);
    let chat = LoadOptions { body: BodyOptions { api: Api::Chat, ..options().body }, ..options() };
    for pace in [Pace::Timestamps, concurrency(1)] {
        let run = run(&LoadOptions { pace, ..chat.clone() }, shaped(3, "constant:10"), after_100_ms).await;
        let End::Failed(error) = run.end else { panic!("{:?}", run.end) };
        assert!(
            error.to_string().starts_with("request 0 (from 0) cannot be sent: its prompt is token ids"),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn results_that_cannot_be_written_end_a_run() {
    let mut seen = Seen { fails: true, ..Seen::default() };
    let requests = shaped(1000, "constant:10");
    let run =
        run_until(connector(after_100_ms), &options(), requests, &mut seen, std::future::pending()).await;
    let run = run.expect("a run");
    let End::Failed(error) = run.end else { panic!("{:?}", run.end) };
    assert_eq!(error.to_string(), "cannot write results: the disk is full");
    assert_eq!(run.records.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn wrong_names_keys_and_addresses_are_told_at_once() {
    let checked = LoadOptions { check_model: true, ..options() };
    assert_eq!(
        refused(&checked, |_| models(&["llama", "qwen"])).await,
        "http://test/v1/models has no model `model`, it serves `llama`, `qwen`"
    );
    assert!(refused(&checked, |_| models(&[])).await.ends_with("it serves none"));
    let error =
        refused(&checked, |_| response("401 Unauthorized", "", "{\"error\": \"Unauthorized\"}")).await;
    assert_eq!(error, "http://test/v1/models: refused with status 401: Unauthorized; give the server's key");
    let error = refused(&checked, |_| vec![Step::Close]).await;
    assert!(error.ends_with("is the address right, and the server running?"), "{error}");
    let error = refused(&checked, |_| vec![Step::Hang]).await;
    assert!(error.contains("not answered after 30 s"), "{error}");
    let connector = Connector { refuses: Some(io::ErrorKind::ConnectionRefused), ..connector(after_100_ms) };
    let (requests, mut seen) = (shaped(1, "constant:1"), Seen::default());
    let run = run_until(connector, &checked, requests, &mut seen, std::future::pending());
    let error = run.await.err().expect("refused").to_string();
    assert!(error.starts_with("http://test/v1/models: ") && error.contains("as the test wants"), "{error}");
    let keyed = LoadOptions { api_key: Some("a\nb".to_owned()), ..checked };
    assert!(refused(&keyed, after_100_ms).await.contains("characters that a header cannot have"));
}

/// Servers that have no list of models, or another one, may serve all the same.
#[tokio::test(start_paused = true)]
async fn an_endpoint_without_a_list_of_models_is_used() {
    let checked = LoadOptions { check_model: true, ..options() };
    for list in ["{}", "[1]", "<html>"] {
        let reply = |asked: &Asked| match asked.line.as_str() {
            "GET /v1/models" => response("200 OK", "", list),
            _ => after_100_ms(asked),
        };
        assert_eq!(run(&checked, shaped(2, "constant:10"), reply).await.summary.answered, 2);
    }
    let reply = |asked: &Asked| match asked.line.as_str() {
        "GET /v1/models" => response("404 Not Found", "", ""),
        _ => after_100_ms(asked),
    };
    assert_eq!(run(&checked, shaped(2, "constant:10"), reply).await.summary.answered, 2);
}
