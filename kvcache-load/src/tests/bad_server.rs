//! Servers that hang, cut, refuse or talk nonsense.

use super::server::{answer, part, response, stream_end, stream_head, token};
use super::*;

/// One request to a server that does this.
async fn one(options: &LoadOptions, steps: impl Fn(&Asked) -> Vec<Step> + Send + Sync + 'static) -> Run {
    run(options, shaped(1, "constant:1"), steps).await
}

fn ended_ms(run: &Run) -> u64 {
    run.records[0].ended_us / 1000
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_is_not_waited_for_for_ever() {
    let limits = |first_token, token, request| Timeouts {
        first_token: ms(first_token),
        token: ms(token),
        request: ms(request),
        ..Timeouts::default()
    };
    let silent = |_: &Asked| vec![Step::Hang];
    let headed = |_: &Asked| vec![stream_head(), Step::Hang];
    // Comments keep connections alive and are no tokens.
    let pings = |_: &Asked| {
        let mut steps = vec![stream_head()];
        (0..100).for_each(|_| steps.extend([part(": ping\n\n"), Step::Wait(ms(50))]));
        steps
    };
    let stalls = |_: &Asked| {
        vec![
            stream_head(),
            Step::Wait(ms(500)),
            part(&token(false, 0)),
            Step::Wait(ms(200)),
            part(&token(false, 1)),
            Step::Hang,
        ]
    };
    let never_done = |asked: &Asked| {
        let mut steps = answer(asked, ms(10), &[], 0);
        steps.truncate(steps.len() - 2);
        steps.push(Step::Hang);
        steps
    };
    type Server = fn(&Asked) -> Vec<Step>;
    let cases: [(Server, Timeouts, u64, &str, &str); 8] = [
        (silent, limits(700, 300, 9000), 700, "first token timeout", "no token after 0.7 s"),
        (headed, limits(700, 300, 9000), 700, "first token timeout", "no token after 0.7 s"),
        (pings, limits(700, 300, 9000), 700, "first token timeout", "no token after 0.7 s"),
        (stalls, limits(700, 300, 9000), 1000, "token timeout", "no further token after 0.3 s"),
        (stalls, limits(700, 900, 9000), 1600, "token timeout", "no further token after 0.9 s"),
        (never_done, limits(700, 300, 9000), 310, "token timeout", "no further token after 0.3 s"),
        (stalls, limits(700, 900, 1200), 1200, "request timeout", "not answered after 1.2 s"),
        (silent, limits(700, 300, 500), 500, "request timeout", "not answered after 0.5 s"),
    ];
    for (server, timeouts, expected_ms, kind, message) in cases {
        let run = one(&LoadOptions { timeouts, ..options() }, server).await;
        assert_eq!((run.kinds(), run.message()), (vec![kind.to_owned()], message.to_owned()));
        assert_eq!(ended_ms(&run), expected_ms, "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn connections_that_end_early_are_told_apart() {
    let at_once = one(&options(), |_| vec![Step::Close]).await;
    assert_eq!(at_once.kinds(), ["reset"]);
    let in_head =
        one(&options(), |_| vec![Step::Send(b"HTTP/1.1 200 OK\r\ncont".to_vec()), Step::Close]).await;
    assert_eq!(in_head.kinds(), ["reset"]);
    let in_stream = one(&options(), |_| vec![stream_head(), part(&token(false, 0)), Step::Close]).await;
    assert_eq!(in_stream.kinds(), ["stream cut"]);
    let unfinished = one(&options(), |_| vec![stream_head(), part(&token(false, 0)), stream_end()]).await;
    assert_eq!(unfinished.message(), "the stream ended after 1 parts, before the answer did");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_reached_is_told_apart() {
    for (refuses, kind) in
        [(io::ErrorKind::ConnectionRefused, "connect"), (io::ErrorKind::TimedOut, "connect timeout")]
    {
        let connector = Connector { refuses: Some(refuses), ..connector(|_| Vec::new()) };
        let (options, mut seen) = (options(), Seen::default());
        let run = run_until(connector, &options, shaped(2, "constant:1"), &mut seen, std::future::pending());
        let run = run.await.expect("a run");
        assert_eq!(run.kinds(), [kind, kind]);
        assert!(run.summary.errors[kind].first.contains("as the test wants"), "{:?}", run.summary.errors);
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_is_named() {
    let html = |_: &Asked| response("200 OK", "content-type: text/html\r\n", "<html>\n<p>hello</p>");
    assert_eq!(
        one(&options(), html).await.message(),
        "an answer of type `text/html` instead of text/event-stream: `<html> <p>hello</p>`"
    );
    let untyped = |_: &Asked| response("200 OK", "", "{}");
    assert!(one(&options(), untyped).await.message().starts_with("an answer without a type"));
    let no_http = |_: &Asked| vec![Step::Send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()), Step::Hang];
    assert_eq!(one(&options(), no_http).await.kinds(), ["reset"]);
    let no_json = |_: &Asked| vec![stream_head(), part("data: word word\n\n"), Step::Hang];
    assert!(one(&options(), no_json).await.message().contains("an event that cannot be read"));
    let endless = |_: &Asked| {
        let mut steps = vec![stream_head()];
        steps.extend((0..100).map(|_| part(&"x".repeat(60_000))));
        steps
    };
    let run = one(&options(), endless).await;
    assert_eq!(run.kinds(), ["garbage"]);
    assert_eq!(run.message(), "a line or event of more than 1048576 bytes");
    let failed = |_: &Asked| {
        vec![
            stream_head(),
            part(&token(false, 0)),
            part("data: {\"error\": {\"message\": \"out of memory\"}}\n\n"),
        ]
    };
    let run = one(&options(), failed).await;
    assert_eq!(
        (run.kinds(), run.message()),
        (vec!["server error in stream".to_owned()], "out of memory".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn refusals_are_counted_with_what_was_said() {
    let reply = |asked: &Asked| match asked.number {
        0 => response("400 Bad Request", "", "{\"error\": {\"message\": \"too long\", \"code\": 400}}"),
        1 => response("429 Too Many Requests", "retry-after: 7\r\n", "slow down"),
        2 => response("404 Not Found", "", "{\"detail\": \"Not Found\"}"),
        3 => response("500 Internal Server Error", "", ""),
        _ => response("307 Temporary Redirect", "location: /elsewhere\r\n", ""),
    };
    let run = run(&options(), shaped(5, "constant:10"), reply).await;
    assert_eq!(run.kinds(), ["status 400", "status 429", "status 404", "status 500", "status 307"]);
    let first = |kind: &str| run.summary.errors[kind].first.as_str();
    assert_eq!((first("status 400"), first("status 429")), ("too long", "slow down"));
    assert_eq!((first("status 404"), first("status 500")), ("Not Found", "without a reason"));
    assert_eq!(run.asked.len(), 5, "nothing is sent again");
}

/// The times are those of the whole: from the first try.
#[tokio::test(start_paused = true)]
async fn refused_requests_are_sent_again_where_that_is_wanted() {
    let reply = |asked: &Asked| match asked.number {
        0 => response("429 Too Many Requests", "retry-after: 3\r\n", ""),
        1 => response("503 Service Unavailable", "", ""),
        2 => response("503 Service Unavailable", "retry-after: Wed, 21 Oct 2026 07:28:00 GMT\r\n", ""),
        _ => answer(asked, ms(10), &[], 0),
    };
    let retry = LoadOptions { retries_max: 3, ..options() };
    let again = one(&retry, reply).await;
    assert_eq!((again.summary.answered, again.summary.retries), (1, 3));
    let at: Vec<u64> = again.asked.iter().map(|(_, at)| *at).collect();
    assert_eq!(at, [0, 3000, 5000, 9000]);
    assert_eq!(again.summary.ttft.expect("a time").max_ms, 9010.0);
    let once = one(&LoadOptions { retries_max: 1, ..options() }, reply).await;
    assert_eq!((once.kinds(), once.summary.retries), (vec!["status 503".to_owned()], 1));
    let other = |_: &Asked| response("500 Internal Server Error", "", "");
    assert_eq!(one(&retry, other).await.asked.len(), 1);
}
