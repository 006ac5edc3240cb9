//! Custom resources for an API server that is older than CEL.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use serde_json::Value;

use crate::wait;

/// Applies a definition server-side, without its CEL rules, and waits until objects of it can be listed.
pub(crate) async fn apply(client: &Client, definition: &Value) {
    let (definition, rules) = without_cel(definition.clone());
    if rules > 0 {
        eprintln!(
            "NOT TESTED HERE: {rules} CEL rules of {} are left out, this API server is older than CEL",
            definition["metadata"]["name"]
        );
    }
    let typed: CustomResourceDefinition =
        serde_json::from_value(definition.clone()).expect("a custom resource definition");
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let manager = PatchParams::apply("tests").force();
    api.patch(&typed.name_any(), &manager, &Patch::Apply(&definition))
        .await
        .expect("the definition is accepted");
    let version = &typed.spec.versions.iter().find(|version| version.served).expect("a served version").name;
    let kind = GroupVersionKind::gvk(&typed.spec.group, version, &typed.spec.names.kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &typed.spec.names.plural);
    let objects = Api::<DynamicObject>::all_with(client.clone(), &resource);
    wait::until("objects of the definition can be listed", wait::SHORT, || async {
        objects.list(&kube::api::ListParams::default()).await.ok().map(drop)
    })
    .await;
}

/// The definition without its CEL rules, and how many there were. Server-side apply of Kubernetes 1.20 refuses them as a field
/// that no schema has.
pub(crate) fn without_cel(mut definition: Value) -> (Value, usize) {
    let removed = remove_rules(&mut definition);
    (definition, removed)
}

fn remove_rules(value: &mut Value) -> usize {
    match value {
        Value::Object(fields) => {
            let own = fields.remove(RULES).map_or(0, |rules| rules.as_array().map_or(1, Vec::len));
            own + fields.values_mut().map(remove_rules).sum::<usize>()
        }
        Value::Array(items) => items.iter_mut().map(remove_rules).sum(),
        _ => 0,
    }
}

const RULES: &str = "x-kubernetes-validations";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_removed_and_counted_at_every_depth() {
        let rules = json!([{"rule": "self.a > 0"}, {"rule": "self.b > 0"}]);
        let definition = json!({"spec": {"versions": [{"schema": {
            "properties": {"spec": {"type": "object", (RULES): rules, "properties": {"a": {(RULES): [{"rule": "x"}]}}}},
        }}]}});
        let (left, count) = without_cel(definition);
        assert_eq!(count, 3);
        let spec = &left["spec"]["versions"][0]["schema"]["properties"]["spec"];
        assert_eq!(*spec, json!({"type": "object", "properties": {"a": {}}}));
    }
}
