//! Objects are written where something is missing, and only there.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kvcache_operator::apply::{APPLIED, Place, apply, look, remove};
use serde_json::{Value, json};

use crate::support::api_server::{ApiServer, Key};

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({
        "metadata": {
            "name": "a", "namespace": "ns", "labels": { "ours": "1" },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "KVCache", "name": "kv", "uid": "owner", "controller": true,
            }],
        },
        "spec": spec,
    }))
    .expect("a service")
}

fn key() -> Key {
    Key::new("services", "ns", "a")
}

async fn make(server: &ApiServer, wanted: &Service) -> Option<Service> {
    let api: Api<Service> = Api::namespaced(server.client("one"), "ns");
    let place = look(&api, "a", None, "owner").await.expect("an answer");
    apply(&api, wanted, &place).await.expect("an answer")
}

fn ports() -> Value {
    json!({ "ports": [{ "name": "x", "port": 80, "protocol": "TCP" }], "selector": { "app": "a", "role": "b" } })
}

#[tokio::test]
async fn an_object_is_written_once_and_again_only_when_something_is_missing() {
    let server = ApiServer::new();
    assert!(make(&server, &service(ports())).await.is_some());
    assert!(make(&server, &service(ports())).await.is_none(), "defaults are no difference");
    server.edit(&key(), |object| object["metadata"]["labels"]["theirs"] = json!("2"));
    assert!(make(&server, &service(ports())).await.is_none(), "nor is what others add");
    server.edit(&key(), |object| object["spec"]["selector"]["app"] = json!("else"));
    assert!(make(&server, &service(ports())).await.is_some());
    let live = server.get(&key()).unwrap();
    assert_eq!(live["spec"]["selector"]["app"], "a");
    assert_eq!(live["metadata"]["labels"]["theirs"], "2");
}

#[tokio::test]
async fn a_field_that_is_no_longer_wanted_goes() {
    let server = ApiServer::new();
    make(&server, &service(ports())).await;
    let smaller = service(json!({
        "ports": [{ "name": "x", "port": 80, "protocol": "TCP" }], "selector": { "app": "a" },
    }));
    assert!(make(&server, &smaller).await.is_some());
    assert!(server.get(&key()).unwrap()["spec"]["selector"].get("role").is_none());
    assert!(make(&server, &smaller).await.is_none());
    server.edit(&key(), |object| object["metadata"]["annotations"][APPLIED] = json!("else"));
    assert!(make(&server, &smaller).await.is_some(), "the mark is restored");
}

#[tokio::test]
async fn whose_place_it_is_decides_what_may_be_done() {
    let server = ApiServer::new();
    let api: Api<Service> = Api::namespaced(server.client("one"), "ns");
    assert_eq!(look(&api, "a", None, "owner").await.unwrap(), Place::Free);
    make(&server, &service(ports())).await;
    assert!(matches!(look(&api, "a", None, "owner").await.unwrap(), Place::Ours(_)));
    let place = look(&api, "a", None, "another").await.unwrap();
    let Place::Foreign(foreign) = &place else { panic!("{place:?}") };
    assert_eq!(foreign.to_string(), "Service a is of KVCache kv");
    // Kubernetes calls many owners, and only one of them controls.
    server.edit(&key(), |object| object["metadata"]["ownerReferences"][0]["controller"] = json!(false));
    assert!(matches!(look(&api, "a", None, "owner").await.unwrap(), Place::Foreign(_)));
    server.edit(&key(), |object| object["metadata"]["ownerReferences"][0]["controller"] = json!(true));
    let before = server.get(&key());
    assert_eq!(apply(&api, &service(json!({})), &place).await.unwrap(), None);
    server.edit(&key(), |object| object["metadata"]["finalizers"] = json!(["x"]));
    server.delete(&key());
    let place = look(&api, "a", None, "owner").await.unwrap();
    assert_eq!(place, Place::Deleting);
    assert_eq!(apply(&api, &service(ports()), &place).await.unwrap(), None);
    assert_eq!(server.get(&key()).unwrap()["spec"], before.unwrap()["spec"]);
}

#[tokio::test]
async fn what_took_the_place_of_the_object_that_was_looked_at_is_not_written_to() {
    let server = ApiServer::new();
    let api: Api<Service> = Api::namespaced(server.client("one"), "ns");
    make(&server, &service(ports())).await;
    let old = Arc::new(api.get("a").await.unwrap());
    server.delete(&key());
    let theirs = server.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "ns", "name": "a" }, "spec": ports(),
    }));
    let place = look(&api, "a", Some(Arc::clone(&old)), "owner").await.unwrap();
    let error = apply(&api, &service(json!({})), &place).await.unwrap_err();
    assert_eq!(error.reason(), "conflict");
    assert_eq!(remove(&api, &*old).await.unwrap_err().reason(), "conflict");
    assert_eq!(server.get(&key()), Some(theirs));
    server.delete(&key());
    remove(&api, &*old).await.expect("gone is as good");
}
