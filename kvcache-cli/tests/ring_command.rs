//! Runs the built `kvcache ring` as a user would.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use kvcache_core::ring::RingDocument;

fn ring(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvcache")).arg("ring").args(args).output().expect("the binary runs")
}

/// With `text` on the standard input, as `kubectl get … | kvcache ring --from -` has it.
fn piped(text: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvcache"));
    command.args(["ring", "--from", "-"]).args(args);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads all of it");
    child.wait_with_output().expect("it ends")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&stdout(&ring(&[args, &["--json"]].concat()))).expect("one object")
}

fn error(args: &[&str]) -> String {
    let output = ring(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).expect("text").trim_end().to_owned()
}

/// A file that is removed with its value.
struct TestFile(PathBuf);

impl TestFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kvcache-ring-test-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("a file for the test");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path of text")
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The loads are those of the core's golden table.
#[test]
fn a_change_is_shown_with_its_moves() {
    let text = stdout(&ring(&["a:12345", "b:12345,C:12345", "--add", "d:12345"]));
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["member", "slots", "of", "mean"]);
    assert_eq!(
        rows[1..4],
        [["a:12345", "1364", "0.999"], ["b:12345", "1371", "1.004"], ["c:12345", "1361", "0.997"]]
    );
    assert_eq!(rows[4].join(" "), "3 members, 1365.3 slots on average, the fullest has 1.004 times that");
    assert_eq!(rows[6].join(" "), "after the change: d:12345 joined, nobody left");
    assert_eq!((rows[11][0], rows[11][3]), ("d:12345", "-"));
    assert!(text.ends_with(" times the 1024 that have to\n"), "{text}");
}

#[test]
fn json_has_the_promised_keys() {
    let report = json(&["kv-0", "kv-1", "kv-2", "kv-3", "--remove", "kv-2", "--slots"]);
    assert_eq!(report["slot_count"], 4096);
    let slots =
        |ring: &serde_json::Value, at: usize| ring["members"][at]["slots"].as_u64().expect("a number");
    let change = &report["change"];
    assert_eq!((&change["joined"], &change["left"]), (&serde_json::json!([]), &serde_json::json!(["kv-2"])));
    // Nobody else's slots move: a ring of three is far from the bound on loads.
    assert_eq!(change["moved_slots"], slots(&report["ring"], 2));
    assert_eq!(
        (&change["least_slots"], &change["ratio"]),
        (&(slots(&report["ring"], 2) as f64).into(), &1.0.into())
    );
    assert!(change["ring"]["balance"].as_f64().expect("a number") < 1.1);
    assert_eq!(change["ring"]["mean_slots"].as_f64(), Some(4096.0 / 3.0));

    // The runs of all members are all slots, each once.
    let mut seen = [false; 4096];
    for member in change["ring"]["members"].as_array().expect("an array") {
        for run in member["runs"].as_array().expect("runs") {
            let end = |at: usize| run[at].as_u64().expect("a number") as usize;
            for slot in &mut seen[end(0)..=end(1)] {
                assert!(!std::mem::replace(slot, true));
            }
        }
    }
    assert_eq!(seen, [true; 4096]);
    assert!(report["ring"]["members"][0].get("runs").is_none(), "only of the last ring");
}

#[test]
fn a_key_is_held_by_its_slots_owner_and_replicas() {
    let key = "34120000000000000000000000000000";
    let report = json(&["a", "b", "c", "--key", key, "--holders", "2"]);
    assert_eq!(report["keys"][0]["key"], key);
    assert_eq!(report["keys"][0]["slot"], 0x234);
    let holders = report["keys"][0]["holders"].as_array().expect("an array");
    assert_eq!(holders.len(), 2);
    let text = stdout(&ring(&["a", "b", "c", "--key", key]));
    assert!(
        text.contains(&format!("key {key}: slot 564, held by {}, then ", holders[0].as_str().expect("text")))
    );
}

const PUBLISHED: &str = r#"{"nodes":[
    {"name":"kv-0","addr":"10.0.0.7","port":12345,"slots":[{"start":4000,"end":99}]},
    {"name":"kv-1","addr":"10.0.0.8","port":12345,"slots":[{"start":100,"end":2999}]}],"version":7}"#;

#[test]
fn members_are_read_from_files_and_urls() {
    let ours = TestFile::new("ours.json", r#"{"members":["b:1","a:1"]}"#);
    assert_eq!(json(&["--from", ours.path()])["ring"], json(&["a:1", "b:1"])["ring"]);
    assert_eq!(json(&["--from", &format!("file://{}", ours.path())])["ring"], json(&["a:1", "b:1"])["ring"]);
    assert_eq!(json(&["--from", "tcp://a:1,b:1"])["ring"], json(&["a:1", "b:1"])["ring"]);

    let nodes = TestFile::new("nodes.json", PUBLISHED);
    assert_eq!(json(&["--from", nodes.path()])["ring"], json(&["kv-0", "kv-1"])["ring"]);
    let published = json(&["--from", nodes.path(), "--published"]);
    assert_eq!(published["ring"]["members"][1]["slots"], 2900);
    assert_eq!(published["range_faults"]["wrapped"], 1);
    let text = stdout(&ring(&["--from", nodes.path(), "--published"]));
    assert!(text.contains("published ranges: 1 wrapped, 0 slots claimed twice, 0 slots unclaimed"), "{text}");
}

/// The bytes that the core writes.
const GOLDEN_RING: &str = include_str!("../../kvcache-core/src/ring/golden_ring.json");

/// What the operator publishes says the same in a mounted file, on the standard input, and in the object that kubectl
/// prints.
#[test]
fn a_published_ring_is_read_from_its_file_and_from_its_config_map() {
    let servers =
        (0..3).map(|n| (format!("kv-{n}"), format!("10.0.0.{n}:12345").parse().expect("an address")));
    let ring = RingDocument::of(&servers.collect(), 7, Default::default()).expect("a ring").to_json();
    let file = TestFile::new("ring.json", &ring);
    let report = json(&["--from", file.path(), "--published", "--slots"]);
    assert_eq!(report["ring"], json(&["kv-0", "kv-1", "kv-2", "--slots"])["ring"]);
    assert_eq!(
        report["range_faults"],
        serde_json::json!({"wrapped": 0, "claimed_twice": 0, "unclaimed": 0, "out_of_bounds": 0})
    );
    let url = format!("file://{}?placement=published", file.path());
    assert_eq!(json(&["--from", &url, "--slots"]), report);

    let config_map = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kv-ring"}, "data": {"ring.json": ring}
    });
    let config_map = serde_json::to_string_pretty(&config_map).expect("text");
    for text in [&ring, &config_map] {
        let output = piped(text, &["--published", "--slots", "--json"]);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&stdout(&output)).expect("one object"), report);
    }
    // Where a key lives and what a scale-out moves.
    let asked = stdout(&piped(&config_map, &["--add", "kv-3", "--key", "34120000000000000000000000000000"]));
    assert!(
        asked.contains("after the change: kv-3 joined") && asked.contains("slot 564, held by "),
        "{asked}"
    );

    assert!(
        stdout(&piped(GOLDEN_RING, &[])).starts_with("member   slots   of mean\nkv-0      4096     1.000\n")
    );
}

#[test]
fn an_object_without_a_ring_is_told() {
    let error = |text: &str| {
        let output = piped(text, &[]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("text").trim_end().to_owned()
    };
    let begin = "kvcache: --from: members file from the standard input:";
    assert_eq!(
        error("apiVersion: v1\ndata: {}\nkind: ConfigMap\n"),
        format!("{begin} this is YAML: write `kubectl get configmap NAME-ring -o json`")
    );
    assert_eq!(
        error(r#"{"apiVersion":"v1","items":[],"kind":"List"}"#),
        format!("{begin} this is a List, not a ConfigMap: write `kubectl get configmap NAME-ring -o json`")
    );
    for empty in [r#"{"kind":"ConfigMap"}"#, r#"{"kind":"ConfigMap","data":{"env":"A=1"}}"#] {
        assert_eq!(
            error(empty),
            format!("{begin} this ConfigMap has no ring.json: that of a KVCache called NAME is NAME-ring")
        );
    }
    let broken = r#"{"kind":"ConfigMap","data":{"ring.json":"{\"nodes\":["}}"#;
    assert!(error(broken).starts_with(&format!("{begin} not a list of members: EOF")));
    assert!(error("").starts_with(&format!("{begin} not a list of members: EOF")));
}

#[test]
fn what_is_no_ring_is_refused() {
    assert_eq!(error(&["a", "b", "a"]), "kvcache: the ring names \"a\" twice: each server is listed once");
    assert_eq!(
        error(&["a", "--add", "a"]),
        "kvcache: the ring names \"a\" twice: each server is listed once"
    );
    assert_eq!(error(&["a", "--remove", "a"]), "kvcache: the ring has no members: name at least one server");
    assert_eq!(
        error(&["a", "b", "--remove", "c"]),
        "kvcache: member \"c\" cannot leave, it is not in the ring; its members: a, b"
    );
    assert_eq!(
        error(&["a", "--key", "12"]),
        "kvcache: \"12\" is no block's key: a key is 32 hexadecimal digits"
    );
    assert_eq!(
        error(&["a", "--key", "3412000000000000000000000000000g"]),
        "kvcache: \"3412000000000000000000000000000g\" is no block's key: a key is 32 hexadecimal digits"
    );
    assert_eq!(error(&["tcp://a:1"]), "kvcache: \"tcp://a:1\" is a URL, not a member: write --from with it");
    assert_eq!(ring(&[]).status.code(), Some(2), "no members");
    assert_eq!(ring(&["a", "--published"]).status.code(), Some(2));
}

#[test]
fn a_source_that_cannot_be_read_is_told() {
    assert!(error(&["--from", "/nowhere.json"]).contains("members file /nowhere.json: No such file"));
    assert!(error(&["--from", "file:///nowhere.json"]).contains("members file /nowhere.json: No such file"));
    let broken = TestFile::new("broken.json", "{\"members\":[");
    assert!(error(&["--from", broken.path()]).contains("not a list of members: EOF"));
    let nobody = TestFile::new("nobody.json", r#"{"nodes":null}"#);
    assert!(error(&["--from", nobody.path()]).contains("the list of members is empty"));
    let plain = TestFile::new("plain.json", r#"{"members":["a:1"]}"#);
    assert!(error(&["--from", plain.path(), "--published"]).contains("publishes no ranges of slots"));
    let url = "rdis://u:secret@h/k";
    let unknown = error(&["--from", url]);
    assert!(unknown.contains("unknown scheme \"rdis\" (did you mean redis?)") && !unknown.contains("secret"));
    // A port that was bound a moment ago and is closed: nobody answers.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let down = error(&["--from", &format!("redis://u:secret@127.0.0.1:{port}/kvcache_nodes")]);
    assert!(down.contains("is it running and reachable from here?") && !down.contains("secret"), "{down}");
}
