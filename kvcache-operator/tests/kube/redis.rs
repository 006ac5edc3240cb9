//! The ring in a real Redis, with a password that comes late, and taken away when the cache goes.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, DeleteParams};
use kvcache_core::ring::RingDocument;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::objects::{NAMESPACE, apply};
use crate::operator::Operator;
use crate::wait;
use crate::world::{World, cache, members};

/// What Redis has at a key.
async fn value(redis: Ipv4Addr, key: &str) -> Option<String> {
    let ask = async {
        let mut stream = TcpStream::connect((redis, 6379)).await.expect("it listens");
        let question = format!("AUTH {PASSWORD}\r\nGET {key}\r\nQUIT\r\n");
        stream.write_all(question.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    };
    let answer = tokio::time::timeout(wait::SHORT, ask).await.expect("in time");
    let rest = answer.strip_prefix("+OK\r\n$").unwrap_or_else(|| panic!("{answer}"));
    let (length, text) = rest.split_once("\r\n").expect("a line");
    let length: usize = length.parse().ok()?;
    Some(text[..length].to_owned())
}

const PASSWORD: &str = "hidden";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ring_is_in_redis_as_well_for_as_long_as_its_cache_is() {
    if std::env::var_os("KUBE_BIN").is_some() && std::env::var_os("REDIS_SERVER").is_none() {
        eprintln!("SKIPPED, nothing was tested: REDIS_SERVER names no redis-server");
        return;
    }
    let Some(world) = World::start().await else { return };
    let operator = Operator::start(&world.plane, "operator", &["--leader-election=false"]).await;
    operator.leads(wait::LONG).await;
    let pods = Api::<Pod>::namespaced(world.client.clone(), NAMESPACE);
    let redis = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "redis"}, "spec": {"containers": [{
        "name": "redis", "image": "redis:7.4", "args": ["--save", "", "--requirepass", PASSWORD],
        "readinessProbe": {"tcpSocket": {"port": 6379}},
    }]}});
    apply(&pods, &redis).await;
    let redis = wait::until("Redis is ready", wait::LONG, || {
        std::future::ready(world.kubelet.pods().iter().find(|pod| pod.is_ready).and_then(|pod| pod.ip))
    })
    .await;

    let with_redis = |name: &str| {
        let mut cache = cache(name);
        cache["spec"]["cache"]["replicas"] = json!(2);
        cache["spec"]["metadata"]["redis"]["externalConnection"] =
            json!({"address": format!("{redis}:6379"), "passwordSecretRef": "redis-access/word"});
        cache
    };
    world.apply(&with_redis("kv")).await;
    let message = world.says("kv", "MetadataReady", "False/SecretMissing").await;
    assert!(message.contains("redis-access"), "{message}");
    // The ring does not wait for it. The operator hears of the Secret by itself.
    let (_, ring) = world.settled("kv").await;
    assert_eq!(value(redis, "kvcache_nodes").await, None);
    let secrets = Api::<Secret>::namespaced(world.client.clone(), NAMESPACE);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis-access"},
        "stringData": {"word": PASSWORD}});
    apply(&secrets, &secret).await;
    world.says("kv", "MetadataReady", "True/Connected").await;
    let text = value(redis, "kvcache_nodes").await.expect("a ring");
    let stored = RingDocument::from_json(text.as_bytes()).expect("a ring");
    assert_eq!((&stored.nodes, stored.version), (&ring.nodes, ring.version));

    // Another cache that would write to the same key does not.
    world.apply(&with_redis("other")).await;
    let message = world.says("other", "MetadataReady", "False/KeyInUse").await;
    assert!(message.contains("kvcache_nodes") && message.contains("caches/kv"), "{message}");
    let mut other = with_redis("other");
    other["spec"]["server"]["ring"]["perClusterKey"] = json!(true);
    world.apply(&other).await;
    world.says("other", "MetadataReady", "True/Connected").await;

    let before = members(&ring)["kv-1"].clone();
    world.kubelet.move_to_another_address("kv-1");
    wait::until("Redis has the new address", wait::LONG, || async {
        let text = value(redis, "kvcache_nodes").await?;
        let stored = RingDocument::from_json(text.as_bytes()).ok()?;
        let is_published = stored.nodes == world.ring("kv").await?.nodes;
        (is_published && *members(&stored).get("kv-1")? != before).then_some(())
    })
    .await;
    world.settled("kv").await;

    world.settled("other").await;
    for name in ["kv", "other"] {
        world.caches().delete(name, &DeleteParams::background()).await.expect("deleted");
        wait::until("the cache is gone", wait::LONG, || async {
            world.caches().get_opt(name).await.ok()?.is_none().then_some(())
        })
        .await;
    }
    assert_eq!(value(redis, "kvcache_nodes").await, None);
    assert_eq!(value(redis, "kvcache_nodes/caches/other").await, None);
    operator.stop().await;
    world.kubelet.stop().await;
}
