//! Runs the built `kvcache workload` as a user would.

mod document;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn kvcache(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvcache")).args(args).output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// What a command that cannot be done says, and its exit status.
fn refused(args: &[&str]) -> (String, Option<i32>) {
    let output = kvcache(&[&["workload"], args].concat());
    assert!(output.stdout.is_empty(), "{args:?}");
    (String::from_utf8(output.stderr).expect("text"), output.status.code())
}

/// An empty folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}

#[test]
fn the_header_says_how_to_make_the_file_again() {
    let path = folder("made_by").join("a.jsonl");
    let out = path.to_str().expect("text");
    let arguments = ["workload", "share", "--preset", "toolbench", "--requests", "40", "--seed", "7"];
    let output = kvcache(&[&arguments[..], &["--out", out]].concat());
    assert!(stdout(&output).is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("40 requests in "));
    let text = std::fs::read_to_string(&path).expect("written");
    let header: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert_eq!(header["seed"], 7);
    let command = header["made_by"].as_str().expect("a command");
    let again: Vec<&str> = command.split(' ').skip(1).collect();
    assert_eq!(again, arguments);
    assert_eq!(stdout(&kvcache(&again)), text);
    assert_eq!(text.lines().count(), 41);
}

#[test]
fn options_change_every_class_of_a_preset() {
    let text = stdout(&kvcache(&[
        "workload",
        "share",
        "--preset",
        "aibrix-shared",
        "--requests",
        "50",
        "--prompt-tokens",
        "100",
        "--output-tokens",
        "3",
        "--rate",
        "constant:2",
    ]));
    let requests: Vec<serde_json::Value> =
        text.lines().skip(1).map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(requests.len(), 50);
    assert!(requests.iter().all(|request| request["input_length"] == 100 && request["output_length"] == 3));
    assert_eq!(requests[49]["timestamp"], 24_500);
    for (class, prefix) in [("short", 95), ("long", 97), ("fresh", 3)] {
        let request = requests.iter().find(|request| request["class"] == class).expect(class);
        assert_eq!(request["pieces"][0][1], prefix);
    }
}

#[test]
fn impossible_parameters_are_refused_with_their_value() {
    for (args, expected) in [
        (&["share"][..], "nothing says how long prompts are; give --preset, --class"),
        (&["share", "--prompt-tokens", "5"], "--shared is missing beside the other"),
        (&["share", "--preset", "toolbench", "--requests", "0"], "no requests are asked for"),
        (&["share", "--preset", "toolbench", "--prefixes", "0"], "at least one prefix"),
        (&["conversation", "--sessions", "0"], "0 sessions are asked for"),
        (&["conversation", "--token-ms", "NaN"], "NaN ms for a token"),
        (&["agent", "--retry", "2"], "tools fail with 2, give 0 to 1"),
        (&["agent", "--out", "/nowhere/a.jsonl"], "cannot write /nowhere/a.jsonl"),
    ] {
        let (error, status) = refused(args);
        assert!(error.starts_with("kvcache: ") && error.contains(expected), "{args:?}: {error}");
        assert_eq!(status, Some(1), "{args:?}");
    }
    for (args, expected) in [
        (&["share", "--preset", "tools"][..], "`tools` is no preset; there are toolbench, "),
        (&["share", "--preset", "toolbench", "--rate", "poisson:-1"], "`-1` must be above 0"),
        (&["share", "--prompt-tokens", "normal:5:-1"], "`-1` must not be negative"),
        (&["share", "--class", "name=a,shared=1.5"], "next to no values from 0 to 1"),
        (&["conversation", "--sessions", "-3"], "unexpected argument"),
        (&["conversation", "--turns", "gauss:1:2"], "`gauss:1:2` is no distribution"),
    ] {
        let (error, status) = refused(args);
        assert!(error.contains(expected), "{args:?}: {error}");
        assert_eq!(status, Some(2), "{args:?}");
    }
    let (error, status) = refused(&["share", "--prompt-tokens", "5", "--shared", "1.5"]);
    assert!(error.contains("next to no values from 0 to 1"), "{error}");
    assert_eq!(status, Some(1));
}

/// Accesses, distinct blocks and what an endless cache hits are those that were counted when the traces came.
#[test]
fn describe_knows_the_traces() {
    for (name, requests, accesses, distinct, hit_ratio) in [
        ("conversation", 12_031, 288_500, 182_790, 0.3664),
        ("synthetic", 3_993, 121_877, 43_924, 0.6396),
        ("agentic_coding", 9_244, 1_944_879, 71_962, 0.9630),
    ] {
        let path = format!("{REPOSITORY}/benches/traces/{name}_trace.jsonl.zst");
        let text = stdout(&kvcache(&["workload", "describe", &path, "--json"]));
        let description: serde_json::Value = serde_json::from_str(&text).expect("one object");
        let sharing = &description["sharing"];
        assert_eq!(description["requests"], requests);
        assert_eq!((&sharing["accesses"], &sharing["distinct_blocks"]), (&accesses.into(), &distinct.into()));
        let got = sharing["block_hit_ratio"].as_f64().expect("a ratio");
        assert!((got - hit_ratio).abs() < 0.000_05, "{name}: {got}");
        assert_eq!(description["arrivals"]["earlier_than_the_one_before"], 0, "{name}");
    }
}

#[test]
fn describe_says_it_in_words() {
    let path = folder("describe").join("a.jsonl");
    std::fs::write(
        &path,
        "{\"timestamp\": 0, \"pieces\": [[1, 100], [2, 28]], \"output_length\": 8, \"class\": \"a\", \
          \"session_id\": 1}\n\
         {\"timestamp\": 500, \"pieces\": [[1, 100], [3, 28]], \"class\": \"b\", \"session_id\": 1}\n",
    )
    .expect("written");
    let path = path.to_str().expect("text");
    let text = stdout(&kvcache(&[
        "workload",
        "describe",
        path,
        "--block-tokens",
        "16",
        "--kv-bytes-per-token",
        "131072",
    ]));
    for expected in [
        "2 requests of 1 sessions, 256 tokens in, 8 out\n  class a: 1\n  class b: 1\n",
        "blocks of 16 tokens: 16 accesses, 10 distinct (160 tokens, 0.02 GiB)\n",
        "an endless cache hits 0.3750 of the blocks, 0.3750 of the tokens\n",
        "arrivals: over 0.5 s, 2.000 a second, times between them vary by 0.00 of their mean\n",
        "tokens in           128.0      128      128      128      128      128\n",
    ] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn shape_keeps_all_but_the_times() {
    let folder = folder("shape");
    let made = folder.join("made.jsonl");
    let made = made.to_str().expect("text");
    stdout(&kvcache(&["workload", "conversation", "--sessions", "30", "--out", made]));
    let lines = |text: &str| -> Vec<serde_json::Value> {
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let before = lines(&std::fs::read_to_string(made).expect("written"));
    let shaped =
        |args: &[&str]| lines(&stdout(&kvcache(&[&["workload", "shape", made, "--rate"], args].concat())));

    let mut constant = shaped(&["constant:4"]);
    assert_eq!(constant.len(), before.len());
    assert!(
        constant[0]["made_by"]
            .as_str()
            .expect("a command")
            .contains("conversation --sessions 30; kvcache workload shape")
    );
    for (index, (shaped, before)) in constant.iter_mut().zip(&before).enumerate().skip(1) {
        assert_eq!(shaped["timestamp"], (index - 1) * 250);
        shaped["timestamp"] = before["timestamp"].clone();
        assert_eq!(shaped, before);
    }
    let closed = shaped(&["concurrency:16"]);
    assert_eq!(closed[0]["concurrency"], 16);
    assert!(closed.iter().all(|request| request.get("timestamp").is_none()));
    assert_eq!(shaped(&["recorded"])[1..], before[1..]);
    let of_sessions = shaped(&["constant:0.5", "--of", "sessions"]);
    let starts =
        of_sessions.iter().filter(|request| request["turn"] == 0).map(|request| &request["timestamp"]);
    assert!(starts.eq((0..30).map(|n| serde_json::Value::from(n * 2000)).collect::<Vec<_>>().iter()));
    let (error, _) = refused(&["shape", made, "--rate", "recorded", "--of", "sessions"]);
    assert!(error.contains("only rates can be of sessions"), "{error}");
}

/// The files that the document converts.
const INPUTS: &[(&str, &str)] = &[
    (
        "sharegpt.json",
        r#"[
            {"id": "a", "conversations": [
                {"from": "system", "value": "Be brief."}, {"from": "human", "value": "What is a cache?"},
                {"from": "gpt", "value": "Memory of what was computed."}, {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "To compute it once."}]},
            {"id": "b", "conversations": []},
            {"id": "c", "messages": [{"role": "user", "content": "Hello"}]}
        ]"#,
    ),
    (
        "batch.jsonl",
        concat!(
            r#"{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "max_tokens": 9, "#,
            r#""messages": [{"role": "user", "content": "Hello"}]}}"#,
            "\n",
            r#"{"custom_id": "2", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Once upon a time"}}"#,
            "\n",
        ),
    ),
    (
        "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.680590,374,44\n2023-11-16 18:15:50.930590,396,109\n",
    ),
    (
        "gateway.jsonl",
        concat!(
            r#"{"at": 1700000002000, "request": {"messages": [{"role": "user", "content": "b"}]}, "user": "u"}"#,
            "\n",
            r#"{"at": 1700000001000, "request": {"messages": [{"role": "user", "content": "a"}]}, "user": "u", "#,
            r#""usage": {"completion_tokens": 7}}"#,
            "\n",
        ),
    ),
    (
        "bailian.jsonl",
        concat!(
            r#"{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 40, "output_length": 9, "#,
            r#""type": "text", "turn": 1, "hash_ids": [1, 2, 3]}"#,
            "\n",
            r#"{"chat_id": 160, "parent_chat_id": 159, "timestamp": 63, "input_length": 60, "output_length": 9, "#,
            r#""type": "text", "turn": 2, "hash_ids": [1, 2, 4, 5]}"#,
            "\n",
        ),
    ),
];

/// The requests of a converted file, and what was said about it.
fn converted(name: &str, args: &[&str]) -> (Vec<serde_json::Value>, String) {
    let folder = folder(&format!("convert-{name}-{}", args.join("").len()));
    let path = folder.join(name);
    let (_, content) = INPUTS.iter().find(|(input, _)| *input == name).expect("there");
    std::fs::write(&path, content).expect("written");
    let path = path.to_str().expect("text");
    let output = kvcache(&[&["workload", "convert", path], args].concat());
    let lines = stdout(&output);
    let requests = lines.lines().skip(1).map(|line| serde_json::from_str(line).expect("JSON")).collect();
    (requests, String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn conversations_become_sessions() {
    let args = ["--from", "sharegpt", "--bad-lines", "skip", "--rate", "constant:1", "--think-ms", "5000"];
    let (requests, said) = converted("sharegpt.json", &args);
    assert!(said.contains("1 line is left out: 6: a conversation in which no user says anything"), "{said}");
    let turns: Vec<(&str, u64, usize)> = requests
        .iter()
        .map(|request| {
            let messages = request["messages"].as_array().expect("a list").len();
            (
                request["session_id"].as_str().expect("text"),
                request["turn"].as_u64().expect("a number"),
                messages,
            )
        })
        .collect();
    assert_eq!(turns, [("0-a", 0, 2), ("2-c", 0, 1), ("0-a", 1, 4)]);
    assert_eq!(requests[2]["messages"][2]["content"], "Memory of what was computed.");
    // 28 bytes of an answer are 7 tokens of 20 ms, and then there is a pause.
    assert_eq!((&requests[0]["output_length"], &requests[2]["timestamp"]), (&7.into(), &5140.into()));
    assert_eq!(requests[1]["output_length"], serde_json::Value::Null, "nobody answered");

    let (pieces, _) = converted("sharegpt.json", &[&args[..], &["--content", "pieces"]].concat());
    let piece = |request: usize, index: usize| &pieces[request]["pieces"][index];
    assert_eq!(pieces[2]["pieces"].as_array().expect("a list").len(), 4);
    assert_eq!((piece(0, 0), piece(0, 1)), (piece(2, 0), piece(2, 1)));
    assert_eq!(pieces[2].get("messages"), None);

    let (error, status) = refused(&["convert", "/nowhere/a.json", "--from", "sharegpt"]);
    assert!(error.contains("cannot open /nowhere/a.json"), "{error}");
    assert_eq!(status, Some(1));
}

#[test]
fn batches_become_requests() {
    let (requests, _) = converted("batch.jsonl", &["--from", "openai-batch"]);
    assert_eq!(requests[0]["messages"][0]["content"], "Hello");
    assert_eq!((&requests[0]["output_length"], requests[0].get("timestamp")), (&9.into(), None));
    assert_eq!(requests[1]["prompt"], "Once upon a time");
    let (timed, _) = converted("batch.jsonl", &["--from", "openai-batch", "--rate", "constant:2"]);
    assert_eq!(timed[1]["timestamp"], 500);
}

#[test]
fn logs_become_requests_at_their_times() {
    let azure = ["--from", "log", "--time-field", "TIMESTAMP", "--input-field", "ContextTokens"];
    let (requests, _) =
        converted("azure.csv", &[&azure[..], &["--output-field", "GeneratedTokens"]].concat());
    assert_eq!((&requests[0]["timestamp"], &requests[1]["timestamp"]), (&0.into(), &4250.into()));
    assert_eq!((&requests[1]["input_length"], &requests[1]["output_length"]), (&396.into(), &109.into()));
    assert_ne!(requests[0]["pieces"][0][0], requests[1]["pieces"][0][0], "nothing is shared");

    let gateway =
        ["--from", "log", "--time-field", "at", "--time-unit", "ms", "--prompt-field", "request.messages"];
    let more = ["--output-field", "usage.completion_tokens", "--session-field", "user"];
    let (requests, _) = converted("gateway.jsonl", &[&gateway[..], &more, &["--sort"]].concat());
    assert_eq!(
        (&requests[0]["messages"][0]["content"], &requests[0]["output_length"]),
        (&"a".into(), &7.into())
    );
    assert_eq!((&requests[1]["timestamp"], &requests[1]["session_id"]), (&1000.into(), &"u".into()));
    let (unsorted, said) = converted("gateway.jsonl", &[&gateway[..], &["--bad-lines", "skip"]].concat());
    assert_eq!(unsorted.len(), 1);
    assert!(said.contains("2: `at` is 1700000001000, before the record above; sort with --sort"), "{said}");
}

#[test]
fn traces_of_other_formats_keep_their_sessions() {
    let args = ["--from", "hashes", "--time-unit", "s", "--block-tokens", "16", "--id-field", "chat_id"];
    let (requests, _) =
        converted("bailian.jsonl", &[&args[..], &["--parent-field", "parent_chat_id"]].concat());
    assert_eq!(requests[1]["timestamp"], 1886);
    assert_eq!((&requests[1]["session_id"], &requests[1]["turn"]), (&"159".into(), &1.into()));
    assert_eq!(
        (&requests[1]["block_tokens"], &requests[1]["hash_ids"]),
        (&16.into(), &[1, 2, 4, 5][..].into())
    );
    let (chained, _) = converted("bailian.jsonl", &["--from", "hashes", "--block-tokens", "16", "--chain"]);
    let ids = |request: usize| chained[request]["hash_ids"].as_array().expect("a list").clone();
    assert_eq!(ids(0)[..2], ids(1)[..2]);
    assert!(ids(0)[2] != ids(1)[2] && ids(0)[1] != 2);
}

#[test]
fn records_that_cannot_be_used_are_named() {
    let folder = folder("convert-bad");
    for (content, args, expected) in [
        (
            "{\"input_length\": 5}\n",
            &["--from", "log"][..],
            ":1: no field `timestamp`; there are input_length; name it",
        ),
        (
            "{\"timestamp\": 1}\n",
            &["--from", "log"],
            "no field `input_length`; there are timestamp; name it with --input-field",
        ),
        (
            "{\"timestamp\": \"noon\", \"input_length\": 5}\n",
            &["--from", "log"],
            "`timestamp`: \"noon\" is no time",
        ),
        (
            "{\"timestamp\": 1, \"input_length\": -5}\n",
            &["--from", "log"],
            "`input_length` is -5, expected a count",
        ),
        ("timestamp,input_length\n1\n", &["--from", "log"], ":2: 1 fields, where the first row has 2 names"),
        ("timestamp,input_length\n1,\"5\n", &["--from", "log"], "the file ends within a quoted field"),
        (
            "{\"timestamp\": 1, \"input_length\": 5, \"hash_ids\": [1, 2]}",
            &["--from", "hashes"],
            "give their length with --block-tokens",
        ),
        (
            "{\"timestamp\": 1, \"input_length\": 5, \"hash_ids\": [-1]}",
            &["--from", "hashes"],
            "-1 is no block id",
        ),
        (
            "[{\"conversations\": [{\"from\": \"me\", \"value\": \"hi\"}]}]",
            &["--from", "sharegpt"],
            "message 0 is from `me`",
        ),
        ("[{\"id\": 1}]", &["--from", "sharegpt"], "without a list `conversations` or `messages`"),
        ("[{\"id\": 1", &["--from", "sharegpt"], "the file ends within an object"),
        ("{}\n", &["--from", "openai-batch"], "a line without an object `body`"),
        (
            "{\"url\": \"/v1/embeddings\", \"body\": {\"input\": 1}}\n",
            &["--from", "openai-batch"],
            "a request of `/v1/embeddings`",
        ),
        ("nonsense\n", &["--from", "openai-batch"], ":1: not JSON: expected"),
        ("", &["--from", "sharegpt"], "holds no request"),
    ] {
        let path = folder.join("a.txt");
        std::fs::write(&path, content).expect("written");
        let out = folder.join("out.jsonl");
        let paths = ["convert", path.to_str().expect("text"), "--out", out.to_str().expect("text")];
        let (error, status) = refused(&[&paths[..], args].concat());
        assert!(error.contains(expected), "{content}: {error}");
        assert_eq!(status, Some(1), "{content}");
        assert!(!out.exists(), "what is not whole is called partial");
    }
}

/// Every block of shell commands in the document, one after the other in one folder.
#[test]
fn the_commands_in_the_document_work() {
    let folder = folder("document");
    std::os::unix::fs::symlink(Path::new(REPOSITORY).join("benches"), folder.join("benches"))
        .expect("a link");
    for (name, content) in INPUTS {
        std::fs::write(folder.join(name), content).expect("written");
    }
    let blocks = document::run("workloads.md", &folder, |block, _| block.to_owned());
    assert!(blocks.len() >= 3, "the document has examples");
    for (block, output) in blocks {
        assert!(!output.stdout.is_empty() || block.contains("--out"), "{block}");
    }
}
