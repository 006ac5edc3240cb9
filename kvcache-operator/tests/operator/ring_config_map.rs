//! The ConfigMap of a ring: what is written, and who loses when several write.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kvcache_operator::api::{Accepted, KVCache, Options, accept};
use kvcache_operator::error::Error;
use kvcache_operator::publish::config_map::publish;
use serde_json::json;

use crate::support::api_server::{ApiServer, Key};

fn accepted() -> Accepted {
    let cache: KVCache = serde_json::from_value(json!({
        "metadata": {
            "name": "prompts", "namespace": "models", "uid": "5c3a", "generation": 3,
            "annotations": {"kvcache.orchestration.aibrix.ai/backend": "kvcache"}
        },
        "spec": {}
    }))
    .expect("a cache");
    let options = Options {
        adopt: BTreeSet::new(),
        server_image: "registry.example/kvcache:1.0".to_owned(),
        redis_image: "registry.example/redis:7".to_owned(),
    };
    accept(&cache, &options).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn key() -> Key {
    Key::new("configmaps", "models", "prompts-ring")
}

fn maps(server: &ApiServer) -> Api<ConfigMap> {
    Api::namespaced(server.client("operator"), "models")
}

fn text(map: &ConfigMap) -> &str {
    &map.data.as_ref().expect("data")["ring.json"]
}

#[tokio::test]
async fn a_ring_is_made_and_replaced_and_leaves_what_others_have_added() {
    let (server, accepted) = (ApiServer::new(), accepted());
    let api = maps(&server);
    let first = publish(&api, &accepted, None, "one").await.expect("written");
    let labels = first.metadata.labels.as_ref().expect("labels");
    assert_eq!((text(&first), labels["kvcache.orchestration.aibrix.ai/name"].as_str()), ("one", "prompts"));
    let owners = first.metadata.owner_references.as_ref().expect("an owner");
    assert_eq!((owners.len(), owners[0].uid.as_str(), owners[0].controller), (1, "5c3a", Some(true)));

    let live = server.edit(&key(), |map| {
        map["metadata"]["annotations"] = json!({"note": "theirs"});
        map["metadata"]["labels"]["team"] = json!("theirs");
        map["data"]["other"] = json!("theirs");
    });
    let live: ConfigMap = serde_json::from_value(live).expect("a ConfigMap");
    let second = publish(&api, &accepted, Some(&live), "two").await.expect("written");
    assert_eq!(text(&second), "two");
    let stored = server.get(&key()).expect("it is there");
    assert_eq!(stored["data"], json!({"ring.json": "two", "other": "theirs"}));
    assert_eq!(stored["metadata"]["annotations"], json!({"note": "theirs"}));
    assert_eq!(stored["metadata"]["labels"]["team"], "theirs");
    assert_eq!(server.writes().len(), 2);
}

/// Two operators, one of which has not noticed that it no longer leads.
#[tokio::test]
async fn who_has_seen_an_older_one_loses() {
    let (server, accepted) = (ApiServer::new(), accepted());
    let api = maps(&server);
    let seen = publish(&api, &accepted, None, "one").await.expect("written");
    let again = publish(&api, &accepted, None, "nothing was there").await;
    assert!(matches!(again, Err(Error::Conflict { .. })), "{again:?}");
    let later = publish(&api, &accepted, Some(&seen), "two").await.expect("written");
    let stale = publish(&api, &accepted, Some(&seen), "of the past").await;
    assert!(matches!(stale, Err(Error::Conflict { .. })), "{stale:?}");
    assert_eq!(text(&later), "two");
    assert_eq!(server.get(&key()).expect("it is there")["data"]["ring.json"], "two");
    // Deleted by somebody: a conflict as well, so that it is looked at again and made anew.
    assert!(server.delete(&key()));
    let gone = publish(&api, &accepted, Some(&later), "three").await;
    assert!(matches!(gone, Err(Error::Conflict { .. })), "{gone:?}");
    publish(&api, &accepted, None, "three").await.expect("written");
}
