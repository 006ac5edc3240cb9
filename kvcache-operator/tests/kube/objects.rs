//! Objects that several tests apply.

use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Of the test's objects.
pub(crate) const NAMESPACE: &str = "caches";

/// Applies an object as an operator does.
pub(crate) async fn apply<K>(api: &Api<K>, object: &Value) -> K
where
    K: Clone + DeserializeOwned + std::fmt::Debug + Serialize,
{
    let name = object["metadata"]["name"].as_str().expect("a name");
    api.patch(name, &PatchParams::apply("tests").force(), &Patch::Apply(object)).await.expect("accepted")
}

/// Creates [`NAMESPACE`].
pub(crate) async fn namespace(client: &Client) {
    let namespace: Namespace =
        serde_json::from_value(json!({"metadata": {"name": NAMESPACE}})).expect("a namespace");
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await.expect("created");
}
