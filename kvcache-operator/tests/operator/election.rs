//! One operator writes at a time.

use kvcache_operator::operator::Ended;
use serde_json::json;

use crate::support::api_server::{Fault, Faults, Key};
use crate::support::cluster::{Cluster, NAMESPACE, pass};
use crate::support::controllers;

/// Who wrote, in the order of writing, each once per turn.
fn turns(cluster: &Cluster) -> Vec<String> {
    let mut writers: Vec<String> = cluster.server.writes().into_iter().map(|write| write.client).collect();
    writers.dedup();
    writers
}

#[tokio::test(start_paused = true)]
async fn of_two_operators_one_works_and_the_other_takes_over_when_it_dies() {
    let cluster = Cluster::new();
    let first = cluster.start_elected("one");
    pass(1).await;
    let second = cluster.start_elected("two");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    assert_eq!(turns(&cluster), ["one"]);
    assert!(*second.ready.borrow(), "who follows is ready too");
    first.kill();
    let died = cluster.server.now();
    controllers::kill(&cluster.server, NAMESPACE, "kv-1");
    pass(60).await;
    assert_eq!(turns(&cluster), ["one", "two"]);
    let writes = cluster.server.writes();
    let takeover = writes.iter().find(|write| write.client == "two").unwrap().at.duration_since(died);
    assert!((5..25).contains(&takeover.as_secs()), "{takeover}");
    assert_eq!(cluster.members("kv").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_is_stopped_gives_the_lease_back_and_the_next_begins_at_once() {
    let cluster = Cluster::new();
    let first = cluster.start_elected("one");
    pass(1).await;
    let _second = cluster.start_elected("two");
    cluster.put_cache("kv", |_| {});
    pass(60).await;
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(2));
    assert_eq!(first.stop().await, Ok(()));
    let stopped = cluster.server.now();
    let lease = cluster.server.get(&Key::new("leases", NAMESPACE, "kvcache-operator")).unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "");
    cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(1));
    pass(10).await;
    let writes = cluster.server.writes();
    let takeover =
        writes.iter().find(|write| write.client == "two").expect("it works").at.duration_since(stopped);
    assert!(takeover.as_secs() < 5, "{takeover}");
    assert_eq!(turns(&cluster), ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_renew_stops_before_another_may_begin_and_ends_with_an_error() {
    for fault in [Fault::Hang, Fault::Error, Fault::Forbidden] {
        let cluster = Cluster::new();
        let first = cluster.start_elected("one");
        pass(5).await;
        cluster.put_cache("kv", |_| {});
        pass(30).await;
        let _second = cluster.start_elected("two");
        pass(10).await;
        // Only the lease cannot be reached by the first; all else it could still write.
        let lease_of_first = |call: &crate::support::api_server::Call| {
            call.resource.plural == "leases" && (call.client == "one")
        };
        cluster.server.inject(Faults::default().aimed(lease_of_first, fault, usize::MAX));
        for replicas in 0..60 {
            cluster.put_cache("kv", |cache| cache["spec"]["cache"]["replicas"] = json!(replicas % 3 + 1));
            pass(1).await;
        }
        assert!(first.task.is_finished(), "{fault:?}");
        assert_eq!(turns(&cluster), ["one", "two"], "{fault:?}");
        let writes = cluster.server.writes();
        let last = writes.iter().rfind(|write| write.client == "one").unwrap().at;
        let next = writes.iter().find(|write| write.client == "two").unwrap().at;
        assert!(next.duration_since(last).as_secs() >= 3, "{fault:?}: {last}, then {next}");
        let mut first = first;
        assert_eq!((&mut first.task).await.unwrap(), Err(Ended::LeaseLost), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_taken_away_is_lost_at_once() {
    let cluster = Cluster::new();
    let mut first = cluster.start_elected("one");
    pass(5).await;
    cluster.server.edit(&Key::new("leases", NAMESPACE, "kvcache-operator"), |lease| {
        lease["spec"]["holderIdentity"] = json!("somebody");
    });
    pass(5).await;
    assert!(first.task.is_finished());
    assert_eq!((&mut first.task).await.unwrap(), Err(Ended::LeaseLost));
}
