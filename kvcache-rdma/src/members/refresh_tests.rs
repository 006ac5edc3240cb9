//! Members under sources that change, fail and come back. Waits end with what they wait for; the limit is only for a
//! test that would hang.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::ring::SlotTable;

use super::fake_redis::{FakeRedis, Mood};
use super::test_folder::TestFolder;
use super::*;

const LIMIT: Duration = Duration::from_secs(30);

fn quick() -> RefreshConfig {
    let millisecond = Duration::from_millis(1);
    RefreshConfig {
        interval: millisecond,
        interval_max: 4 * millisecond,
        placement: PlacementSource::Computed,
        seed: 1,
    }
}

fn list(members: &[&str]) -> MemberList {
    let members = members.iter().map(|address| Member::at(address.parse().unwrap()));
    MemberList::new(members.collect()).unwrap()
}

fn names(snapshot: &MemberSnapshot) -> Vec<&str> {
    snapshot.list().members().iter().map(|member| member.name.as_str()).collect()
}

/// A source that answers what it is told, and blocks until it is told. Tells when it is dropped.
struct Scripted {
    readings: Receiver<Result<Reading, SourceError>>,
    _dropped: Sender<()>,
}

impl MemberSource for Scripted {
    fn read(&mut self) -> Result<Reading, SourceError> {
        self.readings.recv().unwrap_or(Ok(Reading::Unchanged))
    }
}

fn scripted() -> (Members, Sender<Result<Reading, SourceError>>, Receiver<()>) {
    let (tell, readings) = channel();
    let (dropped, ended) = channel();
    (Members::watch(Scripted { readings, _dropped: dropped }, quick()).unwrap(), tell, ended)
}

fn failure() -> SourceError {
    SourceError::File { path: "/x".to_owned(), source: std::io::ErrorKind::NotFound.into() }
}

#[test]
fn fixed_members_are_there_at_once() {
    let members = Members::fixed(list(&["b:1", "a:1"]), PlacementSource::Computed).unwrap();
    let snapshot = members.current();
    assert_eq!((names(&snapshot), snapshot.generation()), (vec!["a:1", "b:1"], 1));
    assert!(members.wait_until(LIMIT, |status| status.generation == 1));
    let members = Members::open(&"tcp://a:1".parse().unwrap(), 0).unwrap();
    assert_eq!(names(&members.current()), ["a:1"]);
}

#[test]
fn every_other_list_is_a_generation_and_failures_change_nothing() {
    let (members, tell, _ended) = scripted();
    // The source blocks: readers do not.
    assert_eq!(*members.current(), MemberSnapshot::default());
    assert_eq!(members.status(), RefreshStatus::default());

    tell.send(Ok(Reading::List(list(&["a:1", "b:1"])))).unwrap();
    assert!(members.wait_until(LIMIT, |status| status.readings == 1));
    let first = members.current();
    assert_eq!((first.generation(), names(&first)), (1, vec!["a:1", "b:1"]));

    // The same list again is no change: readers keep the very same snapshot.
    tell.send(Ok(Reading::List(list(&["b:1", "a:1"])))).unwrap();
    tell.send(Ok(Reading::Unchanged)).unwrap();
    assert!(members.wait_until(LIMIT, |status| status.readings == 3));
    assert!(std::ptr::eq(&*first, &*members.current()));

    for _ in 0..20 {
        tell.send(Err(failure())).unwrap();
    }
    assert!(members.wait_until(LIMIT, |status| status.failures == 20));
    let status = members.status();
    assert_eq!((status.failures_in_a_row, status.generation), (20, 1));
    assert!(status.last_error.unwrap().starts_with("members file /x: "));
    assert!(std::ptr::eq(&*first, &*members.current()));

    // Nobody is a list as well: the ring has no members, and nothing fails.
    tell.send(Ok(Reading::List(MemberList::default()))).unwrap();
    assert!(members.wait_until(LIMIT, |status| status.generation == 2));
    assert_eq!(members.current().holders(&BlockKey([7; 16]), 2).count(), 0);
    assert_eq!((members.status().failures_in_a_row, members.status().last_error), (0, None));

    tell.send(Ok(Reading::List(list(&["a:1"])))).unwrap();
    assert!(members.wait_until(LIMIT, |status| status.generation == 3));
    assert_eq!(names(&members.current()), ["a:1"]);
}

/// An empty list that comes first is a list: generation 1, not "nothing known yet".
#[test]
fn nobody_can_come_first() {
    let (members, tell, _ended) = scripted();
    tell.send(Ok(Reading::List(MemberList::default()))).unwrap();
    assert!(members.wait_until(LIMIT, |status| status.generation == 1));
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let (members, tell, ended) = scripted();
    let other = members.clone();
    drop(members);
    tell.send(Ok(Reading::List(list(&["a:1"])))).unwrap();
    assert!(other.wait_until(LIMIT, |status| status.generation == 1));
    drop((other, tell));
    assert_eq!(ended.recv_timeout(LIMIT), Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
}

/// Readers that never stop see whole snapshots only, in order.
#[test]
fn readers_see_lists_and_tables_that_belong_together() {
    let (members, tell, _ended) = scripted();
    let all = ["a:1", "b:1", "c:1", "d:1", "e:1"];
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut generation = 0;
                while generation < 200 {
                    let snapshot = members.current();
                    assert!(snapshot.generation() >= generation, "snapshots go forward");
                    generation = snapshot.generation();
                    let expected = (generation > 0).then(|| SlotTable::new(&names(&snapshot)).unwrap());
                    assert_eq!(snapshot.table(), expected.as_ref());
                }
            });
        }
        for round in 0..200 {
            tell.send(Ok(Reading::List(list(&all[..1 + round % 5])))).unwrap();
        }
    });
}

#[test]
fn a_watched_file_is_followed() {
    let folder = TestFolder::new();
    let path = folder.path().join("members.json");
    let replace = |text: &str| {
        let next = folder.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(&next, &path).unwrap();
    };
    let members = Members::watch(FileSource::new(&path), quick()).unwrap();
    assert!(members.wait_until(LIMIT, |status| status.failures > 0), "the file is not there yet");
    replace(r#"{"members":["a:1","b:1"]}"#);
    assert!(members.wait_until(LIMIT, |status| status.generation == 1));

    for broken in
        [r#"{"members":["a:1","#, r#"{"members":["a:1","a:1"]}"#, "", "[]", r#"{"members":["a:0"]}"#]
    {
        let failures = members.status().failures;
        replace(broken);
        // The second failure from here has read the broken text for certain.
        assert!(members.wait_until(LIMIT, |status| status.failures > failures + 1), "{broken}");
        assert_eq!(names(&members.current()), ["a:1", "b:1"], "{broken}");
    }
    std::fs::remove_file(&path).unwrap();
    let failures = members.status().failures;
    assert!(members.wait_until(LIMIT, |status| status.failures > failures + 1));
    assert_eq!(names(&members.current()), ["a:1", "b:1"]);

    replace(r#"{"members":["c:1"]}"#);
    assert!(members.wait_until(LIMIT, |status| status.generation == 2));
    replace(r#"{"members":[]}"#);
    assert!(members.wait_until(LIMIT, |status| status.generation == 3));
    assert!(members.current().table().is_none());
}

fn redis_key(redis: &FakeRedis, login: &str) -> RedisKey {
    let url = format!("redis://{login}127.0.0.1:{}/1/kvcache_nodes", redis.port());
    match url.parse::<RemoteUrl>().unwrap().members {
        MembersFrom::Redis(key) => key,
        other => panic!("{other:?}"),
    }
}

fn redis_source(redis: &FakeRedis, login: &str) -> RedisSource {
    RedisSource::new(redis_key(redis, login), LIMIT)
}

const NODES: &str = r#"{"nodes":[{"name":"kv-0","addr":"10.0.0.7","port":12345,"slots":[{"start":0,"end":4095}]}],"version":7}"#;

#[test]
fn a_key_of_redis_is_read_over_one_connection() {
    let redis = FakeRedis::start();
    redis.set_password("s3cret");
    redis.set(NODES);
    let mut source = redis_source(&redis, "kv:s3cret@");
    let Ok(Reading::List(list)) = source.read() else { panic!("a list") };
    assert_eq!((list.members()[0].name.as_str(), list.version()), ("kv-0", Some(7)));
    assert_eq!(source.read().unwrap(), Reading::Unchanged);
    redis.set(NODES.replace("kv-0", "kv-1"));
    assert!(matches!(source.read(), Ok(Reading::List(list)) if list.members()[0].name == "kv-1"));
    let get = "GET kvcache_nodes";
    assert_eq!(redis.commands(), ["AUTH kv s3cret", "SELECT 1", get, get, get]);

    // A connection that Redis has closed is made again, and nothing has failed.
    redis.hang_up();
    assert_eq!(source.read().unwrap(), Reading::Unchanged);
    assert_eq!(redis.commands()[5..], ["AUTH kv s3cret", "SELECT 1", get]);
}

#[test]
fn what_is_wrong_with_redis_is_said() {
    let mut redis = FakeRedis::start();
    let server = format!("127.0.0.1:{}", redis.port());
    let error = |redis: &FakeRedis, login: &str| redis_source(redis, login).read().unwrap_err().to_string();
    assert_eq!(
        error(&redis, ""),
        format!(
            "redis at {server} has nothing under \"kvcache_nodes\": has the ring been published, and is the database right?"
        )
    );
    redis.set("{\"nodes\":[{\"addr\"");
    assert!(
        error(&redis, "")
            .starts_with(&format!("redis at {server}, key \"kvcache_nodes\": not a list of members: EOF"))
    );
    redis.set(vec![b' '; (4 << 20) + 1]);
    assert!(error(&redis, "").contains("does not answer like redis: a string of 4194305 bytes"));
    redis.set(NODES);
    redis.set_mood(Mood::Http);
    assert!(error(&redis, "").contains("the line \"HTTP/1.1 400 Bad Request\"; is the port right"));
    redis.set_mood(Mood::HangsUp);
    assert!(error(&redis, "").starts_with(&format!("redis at {server}: ")));
    redis.set_mood(Mood::Serves);
    redis.set_password("s3cret");
    assert!(
        error(&redis, "")
            .contains("refused SELECT: NOAUTH Authentication required.; put the password into the URL")
    );
    let wrong = error(&redis, "wr0ng@");
    assert!(
        wrong.contains("refused AUTH: WRONGPASS") && wrong.contains("check the user and the password"),
        "{wrong}"
    );
    assert!(!wrong.contains("wr0ng"));
    redis.go_down();
    assert!(error(&redis, "").contains("is it running and reachable from here?"));
}

/// Neither silence nor a reply that never ends holds a reading beyond its time.
#[test]
fn a_reading_ends_when_its_time_is_over() {
    let redis = FakeRedis::start();
    redis.set(NODES);
    for mood in [Mood::Silent, Mood::Drips] {
        redis.set_mood(mood);
        let mut key = redis_key(&redis, "");
        key.database = 0;
        let error = RedisSource::new(key, Duration::from_millis(50)).read().unwrap_err();
        assert!(
            matches!(&error, SourceError::Redis { source, .. } if source.kind() == std::io::ErrorKind::TimedOut),
            "{mood:?}: {error:?}"
        );
    }
}

#[test]
fn redis_may_be_down_for_any_time() {
    let mut redis = FakeRedis::start();
    redis.set(NODES);
    let members = Members::watch(redis_source(&redis, ""), quick()).unwrap();
    assert!(members.wait_until(LIMIT, |status| status.generation == 1));
    let first = members.current();

    redis.go_down();
    assert!(members.wait_until(LIMIT, |status| status.failures_in_a_row > 100));
    assert!(std::ptr::eq(&*first, &*members.current()), "the last list stays in use");
    assert!(members.status().last_error.unwrap().contains("redis at 127.0.0.1:"));

    // It comes back with nothing in it, as a Redis does that keeps nothing: still the last list.
    redis.set("");
    redis.come_up();
    assert!(members.wait_until(LIMIT, |status| {
        status.last_error.as_ref().is_some_and(|error| error.contains("not a list of members"))
    }));
    assert!(std::ptr::eq(&*first, &*members.current()));

    // Published again: the next reading has it, and members that kept their names kept their slots.
    redis.set(r#"{"nodes":[{"name":"kv-0","addr":"10.0.0.99","port":12345},{"name":"kv-1","addr":"10.0.0.8","port":12345}],"version":1}"#);
    assert!(members.wait_until(LIMIT, |status| status.generation == 2 && status.failures_in_a_row == 0));
    let second = members.current();
    assert_eq!(names(&second), ["kv-0", "kv-1"]);
    assert_eq!(second.list().members()[0].address.to_string(), "10.0.0.99:12345");
    let moved = first.table().unwrap().moves_to(second.table().unwrap());
    assert!(moved.iter().all(|&slot| second.table().unwrap().owner_name(slot) == "kv-1"));

    redis.set(r#"{"nodes":null,"version":2}"#);
    assert!(members.wait_until(LIMIT, |status| status.generation == 3));
    assert!(members.current().list().is_empty());
}
