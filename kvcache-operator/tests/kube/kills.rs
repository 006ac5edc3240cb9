//! The operator is killed again and again amid edits, at whatever request it is, and the next one ends up where it should.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kube::api::{Api, DeleteParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt};
use kvcache_operator::api::{KVCache, Options, accept};
use kvcache_operator::apply::Object;
use kvcache_operator::plan::{Desired, desired, names};
use kvcache_operator::satisfied::satisfied;
use serde_json::{Value, json};

use crate::bridge::Fuse;
use crate::engine::Engine;
use crate::life::everything;
use crate::objects::NAMESPACE;
use crate::operator::Operator;
use crate::wait;
use crate::world::{World, cache};

/// A sequence that follows from its seed (SplitMix64: Steele, Lea and Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }
}

/// What its users want of a cluster.
struct Wanted {
    /// It lives through all of it, and an engine uses it.
    kv: Value,
    /// It comes and goes.
    has_other: bool,
    has_redis: bool,
}

impl Wanted {
    /// Makes one of the edits that users make. Returns what was done.
    async fn edit(&mut self, world: &World, random: &mut Random, round: u64) -> String {
        let kind = random.below(12);
        let spec = &mut self.kv["spec"];
        let done = match kind {
            0 => {
                spec["cache"]["env"] = json!([{"name": "ROUND", "value": round.to_string()}]);
                "another variable".to_owned()
            }
            1 => {
                toggle(spec, "service", json!({"ports": ports()}));
                "other ports".to_owned()
            }
            2 | 3 if self.has_redis => {
                let is_there = toggle(spec, "metadata", json!({"redis": {"runtime": {}}}));
                format!("{} Redis", if is_there { "a" } else { "no" })
            }
            4 | 5 => {
                self.has_other = !self.has_other;
                if !self.has_other {
                    world.caches().delete("other", &DeleteParams::background()).await.expect("deleted");
                    return "the other is deleted".to_owned();
                }
                let mut other = cache("other");
                other["spec"]["cache"]["replicas"] = json!(1);
                world.apply(&other).await;
                return "another is created".to_owned();
            }
            _ => {
                let now = spec["cache"]["replicas"].as_u64().expect("a number");
                let next = 1 + (now + random.below(2)) % 3;
                spec["cache"]["replicas"] = json!(next);
                format!("{next} replicas")
            }
        };
        // A spec that cannot be served comes first, now and then.
        let is_bad = random.below(6) == 0;
        if is_bad {
            let mut bad = self.kv.clone();
            bad["spec"]["server"]["capacity"] = json!("32Gi");
            world.apply(&bad).await;
            tokio::time::sleep(Duration::from_millis(random.below(300))).await;
        }
        world.apply(&self.kv).await;
        format!("{done}{}", if is_bad { ", after a bad one" } else { "" })
    }

    /// Waits until the cluster is as it is wanted: each object as planned, and no others.
    async fn come_true(&self, world: &World) {
        let start = Instant::now();
        world.settled("kv").await;
        if self.has_other {
            world.settled("other").await;
        }
        while let Some(difference) = self.difference(world).await {
            assert!(start.elapsed() < wait::LONG, "the cluster is not as planned: {difference}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn difference(&self, world: &World) -> Option<String> {
        let mut expected = BTreeSet::new();
        for name in ["kv", "other"].into_iter().take(1 + usize::from(self.has_other)) {
            let cache: KVCache = world.caches().get(name).await.expect("a cache");
            let accepted = accept(&cache, &options()).expect("a right cache");
            for object in desired(&accepted) {
                expected.insert(format!("{}/{}", object.kind(), object.name()));
                if let Some(difference) = unlike(world, &object).await {
                    return Some(difference);
                }
            }
            expected.insert(format!("ConfigMap/{}", names::ring(name)));
            expected.extend((0..accepted.workload.replicas).map(|n| format!("Pod/{name}-{n}")));
            if cache.spec.metadata.is_some() {
                expected.insert(format!("Pod/{name}-redis-0"));
            }
        }
        let there: BTreeSet<String> =
            everything(&world.client).await.into_iter().map(|(name, _)| name).collect();
        let difference: Vec<&String> = expected.symmetric_difference(&there).collect();
        (!difference.is_empty()).then(|| format!("too many or missing: {difference:?}"))
    }
}

/// Sets a field, or takes it out if it is there. Whether it is there now.
fn toggle(spec: &mut Value, field: &str, value: Value) -> bool {
    let spec = spec.as_object_mut().expect("an object");
    let was_there = spec.remove(field).is_some();
    if !was_there {
        spec.insert(field.to_owned(), value);
    }
    !was_there
}

fn ports() -> Value {
    json!([{"name": "service", "port": 12_346, "targetPort": 12_346, "protocol": "TCP"}])
}

/// As the flags of [`Operator::start`] have it.
fn options() -> Options {
    Options {
        adopt: BTreeSet::new(),
        server_image: "kvcache-server:test".to_owned(),
        redis_image: "redis:7.4".to_owned(),
    }
}

/// In what an object is not as planned.
async fn unlike(world: &World, object: &Desired) -> Option<String> {
    let client = &world.client;
    match object {
        Desired::ServiceAccount(wanted) => unlike_live(client, &**wanted).await,
        Desired::Service(wanted) => unlike_live(client, &**wanted).await,
        Desired::StatefulSet(wanted) => unlike_live(client, &**wanted).await,
        Desired::PodDisruptionBudget(wanted) => unlike_live(client, &**wanted).await,
        Desired::ConfigMap(wanted) => unlike_live(client, &**wanted).await,
    }
}

async fn unlike_live<K>(client: &Client, wanted: &K) -> Option<String>
where
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    let api = Api::<K>::namespaced(client.clone(), NAMESPACE);
    let live = api.get_opt(&wanted.name_any()).await.expect("an answer");
    let json = |value: &K| serde_json::to_value(value).expect("JSON");
    let is_so = live.as_ref().is_some_and(|live| satisfied(&json(wanted), &json(live)));
    (!is_so).then(|| format!("{} {} is {live:?}", K::kind(&()), wanted.name_any()))
}

async fn start(world: &World, round: u64) -> Operator {
    let flags = ["--leader-election=false", "--redis-image=redis:7.4"];
    Operator::start(&world.plane, &format!("operator-{round}"), &flags).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_is_killed_fifty_times_leaves_it_to_the_next() {
    let Some(world) = World::start().await else { return };
    let seed = std::env::var("KUBE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(SEED);
    eprintln!("seed {seed}, which KUBE_SEED sets");
    let mut random = Random(seed);
    let mut kv = cache("kv");
    kv["spec"]["server"]["ring"]["minReadySeconds"] = json!(0);
    let has_redis = std::env::var_os("REDIS_SERVER").is_some();
    let mut wanted = Wanted { kv, has_other: false, has_redis };
    world.apply(&wanted.kv).await;
    let mut operator = start(&world, 0).await;
    let mut engine = None;
    let mut at_a_request = 0;
    for round in 1..=KILLS {
        let fuse = Fuse { write: 1 + random.below(6) as u32, is_done: random.below(2) == 0 };
        operator.bridge().arm(fuse);
        // The first one is killed amid the creation.
        let edit = match round {
            1 => "created".to_owned(),
            _ => wanted.edit(&world, &mut random, round).await,
        };
        let patience = Duration::from_millis(100 + random.below(1400));
        let is_blown = tokio::time::timeout(patience, operator.bridge().blown()).await.is_ok();
        at_a_request += u32::from(is_blown);
        eprintln!("round {round}: {edit}; {fuse:?}, blown: {is_blown}, else killed after {patience:?}");
        operator.kill().await;
        operator = start(&world, round).await;
        wanted.come_true(&world).await;
        if engine.is_none() {
            let started = Engine::start(&world, "kv").await;
            let since = started.ring().history().len() - 1;
            engine = Some((started, since));
        }
    }
    assert!(at_a_request > KILLS as u32 / 2, "killed at a request {at_a_request} times");
    let (engine, since) = engine.expect("one was started");
    engine.has_all("at the end").await;
    let outcome = engine.end(since).await;
    eprintln!("{at_a_request} of {KILLS} were killed at a write; {outcome:?}");
    operator.stop().await;
    world.kubelet.stop().await;
}

const KILLS: u64 = 50;
const SEED: u64 = 6;
