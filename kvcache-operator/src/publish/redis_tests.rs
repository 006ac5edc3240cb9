//! Publishing to a fake Redis, which can misbehave, and to a real one where there is one.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvcache_core::ring::RingDocument;

use super::RingOwner;
use super::fake_redis::{FakeRedis, Mood};
use super::redis::*;

/// A ring of two whose version tells it apart, and one that differs from it otherwise.
fn ring(version: u64, host: &str) -> RingDocument {
    let servers = ["kv-0", "kv-1"]
        .map(|name| (name.to_owned(), format!("{name}.{host}:12345").parse().expect("an address")));
    RingDocument::of(&BTreeMap::from(servers), version, BTreeMap::new()).expect("a ring")
}

fn owner(name: &str) -> RingOwner {
    RingOwner { name: format!("default/{name}"), uid: format!("uid-of-{name}") }
}

fn key(port: u16, key: &str) -> RingKey {
    RingKey {
        server: format!("127.0.0.1:{port}").parse().expect("an address"),
        password: None,
        key: key.to_owned(),
    }
}

/// Short enough to wait for, long enough for a machine under load.
const PATIENCE: Patience = Patience { connect: Duration::from_secs(5), whole: Duration::from_secs(20) };
const HASTE: Patience = Patience { connect: Duration::from_secs(5), whole: Duration::from_millis(100) };

async fn stored(key: &RingKey) -> Option<RingDocument> {
    match ask(key, "GET", &[&key.key], PATIENCE).await.expect("it answers") {
        kvcache_wire::RedisReply::Bulk(text) => {
            text.map(|text| RingDocument::from_json(&text).expect("a ring"))
        }
        other => panic!("{other:?}"),
    }
}

async fn say(key: &RingKey, command: &[&'static str]) {
    ask(key, command[0], &command[1..], PATIENCE).await.expect("it answers");
}

/// What holds for every Redis.
async fn conforms(port: u16) {
    use Published::{KeyInUse, Superseded, Unchanged, Written};
    let shared = key(port, KEY);
    let publish = async |key: &RingKey, ring: RingDocument, name: &str| {
        publish(key, &ring, &owner(name), PATIENCE).await
    };

    assert_eq!(publish(&shared, ring(1, "a"), "kv").await.expect("it answers"), Written);
    assert_eq!(publish(&shared, ring(1, "a"), "kv").await.expect("it answers"), Unchanged);
    assert_eq!(publish(&shared, ring(3, "a"), "kv").await.expect("it answers"), Written);
    // An operator that was asleep for a while, and two that made different rings of one version.
    assert_eq!(publish(&shared, ring(2, "a"), "kv").await.expect("it answers"), Superseded { version: 3 });
    assert_eq!(publish(&shared, ring(3, "b"), "kv").await.expect("it answers"), Superseded { version: 3 });
    let read = stored(&shared).await.expect("a ring");
    assert_eq!((read.nodes, read.version), (ring(3, "a").nodes, Some(3)));
    let ttl = ask(&shared, "TTL", &[KEY], PATIENCE).await.expect("it answers");
    assert_eq!(ttl, kvcache_wire::RedisReply::Integer(-1), "it does not expire");

    // Defect 6: two caches wrote over each other's ring. The second is refused, and has its own key if it wants.
    assert_eq!(
        publish(&shared, ring(9, "b"), "other").await.expect("it answers"),
        KeyInUse { owner: owner("kv") }
    );
    let own = key(port, "kvcache_nodes/default/other");
    assert_eq!(publish(&own, ring(9, "b"), "other").await.expect("it answers"), Written);
    assert_eq!(stored(&shared).await.expect("a ring").version, Some(3));

    // One's own ring is taken away, another's is not.
    let remove =
        async |key: &RingKey, name: &str| remove(key, &owner(name), PATIENCE).await.expect("it answers");
    assert_eq!(remove(&shared, "other").await, Removed::NotOurs);
    assert_eq!(remove(&own, "other").await, Removed::Gone);
    assert_eq!(remove(&own, "other").await, Removed::Gone);
    assert_eq!((stored(&own).await, stored(&shared).await.expect("a ring").version), (None, Some(3)));

    // What AIBrix's watcher left belongs to nobody: it is gone beyond, and not removed.
    say(&own, &["SET", "kvcache_nodes/default/other", r#"{"nodes":[],"version":57}"#]).await;
    assert_eq!(remove(&own, "other").await, Removed::NotOurs);
    assert_eq!(publish(&own, ring(2, "b"), "other").await.expect("it answers"), Superseded { version: 57 });
    assert_eq!(publish(&own, ring(58, "b"), "other").await.expect("it answers"), Written);

    // No ring at all: written over. No string: refused, and told.
    say(&own, &["SET", "kvcache_nodes/default/other", "{"]).await;
    assert_eq!(publish(&own, ring(59, "b"), "other").await.expect("it answers"), Written);
    say(&own, &["DEL", "kvcache_nodes/default/other"]).await;
    say(&own, &["LPUSH", "kvcache_nodes/default/other", "x"]).await;
    let wrong = publish(&own, ring(60, "b"), "other").await.expect_err("a list").to_string();
    assert!(wrong.contains("refused GET: WRONGTYPE") && wrong.contains("remove it, or set"), "{wrong}");

    // Without a password that it does not ask for.
    let with_password = RingKey { password: Some("s3cret".to_owned()), ..shared.clone() };
    let wrong =
        publish(&with_password, ring(60, "b"), "kv").await.expect_err("no password is wanted").to_string();
    assert!(wrong.contains("refused AUTH") && !wrong.contains("s3cret"), "{wrong}");
    assert!(!format!("{with_password:?}").contains("s3cret"));
}

/// Defect 7: the version was read and written without a transaction, so that a publisher that was overtaken wrote an
/// older ring over a newer one.
async fn publishers_race(port: u16) {
    let key = key(port, "race");
    let publishers = (0..8u64).map(|publisher| {
        let key = key.clone();
        tokio::spawn(async move {
            let (mut last, mut written) = (0, 0);
            for version in 1..=30 {
                let ring = ring(version, &format!("p{publisher}"));
                match publish(&key, &ring, &owner("kv"), PATIENCE).await {
                    Ok(Published::Written) => written += 1,
                    Ok(Published::Superseded { version: found }) => {
                        assert!(found >= version && found >= last, "{found} after {last}");
                        last = found;
                    }
                    Ok(Published::Unchanged) | Err(RedisError::Contended { .. }) => {}
                    other => panic!("{other:?}"),
                }
                let now = stored(&key).await.expect("a ring").version.expect("a version");
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
            written
        })
    });
    let mut written = 0;
    for publisher in publishers.collect::<Vec<_>>() {
        written += publisher.await.expect("it holds");
    }
    assert_eq!(stored(&key).await.expect("a ring").version, Some(30));
    assert!((1..=30).contains(&written), "each version is written by one: {written}");
}

#[tokio::test]
async fn the_fake_conforms() {
    let redis = FakeRedis::start().await;
    conforms(redis.port).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_publishers_that_race_none_writes_over_a_later_ring() {
    publishers_race(FakeRedis::start().await.port).await;
}

#[tokio::test]
async fn who_is_overtaken_while_writing_sees_it() {
    let redis = FakeRedis::start().await;
    let key = key(redis.port, KEY);
    let publish = async |version| publish(&key, &ring(version, "a"), &owner("kv"), PATIENCE).await;
    let theirs = |version| (KEY.to_owned(), owner("kv").text_of(&ring(version, "b")));
    redis.change(|state| state.before_exec.push_back(theirs(5)));
    assert_eq!(publish(4).await.expect("it answers"), Published::Superseded { version: 5 });
    redis.change(|state| state.before_exec.push_back(theirs(6)));
    assert_eq!(publish(9).await.expect("it answers"), Published::Written, "the other one was behind");
    // Another cache takes the key in between.
    let other = (KEY.to_owned(), owner("other").text_of(&ring(1, "b")));
    redis.change(|state| state.before_exec.push_back(other));
    assert_eq!(publish(10).await.expect("it answers"), Published::KeyInUse { owner: owner("other") });
    // Somebody writes all the time: this ends too.
    say(&key, &["SET", KEY, "?"]).await;
    redis.change(|state| state.before_exec.extend((0..9).map(|_| (KEY.to_owned(), "?".to_owned()))));
    let contended = publish(11).await.expect_err("others write").to_string();
    assert!(contended.ends_with(r#""kvcache_nodes" was written by others 4 times in a row"#), "{contended}");
}

#[tokio::test]
async fn passwords_are_said_and_their_absence_is_told() {
    let redis = FakeRedis::start().await;
    redis.change(|state| state.password = Some("s3cret".to_owned()));
    let key =
        |password: Option<&str>| RingKey { password: password.map(str::to_owned), ..key(redis.port, KEY) };
    let publish = async |key: RingKey| publish(&key, &ring(1, "a"), &owner("kv"), PATIENCE).await;
    assert_eq!(publish(key(Some("s3cret"))).await.expect("it is right"), Published::Written);
    let missing = publish(key(None)).await.expect_err("it is missing").to_string();
    assert!(missing.contains("refused WATCH: NOAUTH") && missing.contains("passwordSecretRef"), "{missing}");
    let wrong = publish(key(Some("wr0ng"))).await.expect_err("it is wrong").to_string();
    assert!(wrong.contains("WRONGPASS") && wrong.contains("check the password in the Secret"), "{wrong}");
    assert!(!wrong.contains("wr0ng"));
}

#[tokio::test]
async fn a_redis_that_misbehaves_takes_no_longer_than_it_may() {
    let redis = FakeRedis::start().await;
    let key = key(redis.port, KEY);
    let fails = async |mood, patience| {
        redis.change(|state| state.mood = mood);
        let begun = Instant::now();
        let publishing =
            publish(&key, &ring(1, "a"), &owner("kv"), patience).await.expect_err("it misbehaves");
        let removing = remove(&key, &owner("kv"), patience).await;
        (publishing, removing, begun.elapsed())
    };
    let (publishing, removing, took) = fails(Mood::Silent, HASTE).await;
    assert!(matches!(publishing, RedisError::TimedOut { .. }) && removing.is_err());
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(
        publishing.to_string(),
        format!("redis at 127.0.0.1:{} did not answer within 100 ms", redis.port)
    );
    let (http, ..) = fails(Mood::Http, PATIENCE).await;
    assert!(
        http.to_string().contains("does not answer like redis: the line \"HTTP/1.1 400 Bad Request\""),
        "{http}"
    );
    let (hung_up, ..) = fails(Mood::HangsUp, PATIENCE).await;
    assert!(hung_up.to_string().contains("is it running and reachable from here?"), "{hung_up}");
    let (full, ..) = fails(Mood::Full, PATIENCE).await;
    assert!(
        full.to_string().contains("refused SET: OOM") && full.to_string().contains("raise maxmemory"),
        "{full}"
    );
    redis.change(|state| state.mood = Mood::Serves);
    assert_eq!(stored(&key).await, None, "none of it was written");
}

#[tokio::test]
async fn a_redis_that_is_not_there_is_told() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port")
        .port();
    let down =
        publish(&key(port, KEY), &ring(1, "a"), &owner("kv"), PATIENCE).await.expect_err("nobody listens");
    assert!(matches!(down, RedisError::Io { .. }), "{down}");
    let nameless =
        RingKey { server: "no-such-host.invalid:6379".parse().expect("an address"), ..key(port, KEY) };
    assert!(remove(&nameless, &owner("kv"), PATIENCE).await.is_err());
}

/// A real server: the program that `REDIS_SERVER` names (`scripts/ensure_redis.sh` prints one), or `redis-server` on the path.
struct RealRedis {
    child: Child,
    port: u16,
}

impl RealRedis {
    fn start() -> Option<Self> {
        let program = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).ok()?.port();
        let mut command = Command::new(&program);
        command.args([
            "--bind",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        let child = match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => child,
            Err(error) => {
                eprintln!("SKIPPED, not tested with a real Redis: {program}: {error}");
                return None;
            }
        };
        let redis = Self { child, port };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{program} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(redis)
    }
}

impl Drop for RealRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_real_redis_conforms() {
    let Some(redis) = RealRedis::start() else { return };
    conforms(redis.port).await;
    publishers_race(redis.port).await;
}
