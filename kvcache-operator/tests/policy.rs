//! The optional admission policy: rules that see the backend's annotation.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::fs;
use std::path::Path;

use kube::core::cel::{VapEvaluator, VapExpression};
use kvcache_operator::api::annotation::BACKEND;
use serde_json::{Value, json};

fn policy() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policy/kvcaches.yaml");
    serde_saphyr::from_multiple(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The policy's rules, with what its variables stand for in their place.
fn rules() -> Vec<VapExpression> {
    let policy = &policy()[0]["spec"];
    let expand = |text: &Value| {
        let mut text = text.as_str().unwrap().to_owned();
        for variable in policy["variables"].as_array().unwrap() {
            let name = format!("variables.{}", variable["name"].as_str().unwrap());
            text = text.replace(&name, &format!("({})", variable["expression"].as_str().unwrap()));
        }
        // kube-cel takes keys of maps for names of fields here, and escapes them.
        let escaped = BACKEND.replace('.', "__dot__").replace('/', "__slash__");
        text.replace(&format!("'{BACKEND}'"), &format!("'{escaped}'"))
    };
    let rule = |rule: &Value| VapExpression {
        expression: expand(&rule["expression"]),
        message: None,
        message_expression: Some(expand(&rule["messageExpression"])),
    };
    policy["validations"].as_array().unwrap().iter().map(rule).collect()
}

/// What the policy says against a write: nothing if it is allowed.
fn objections(object: &Value, old: Option<&Value>) -> Vec<String> {
    let builder = VapEvaluator::builder().object(object.clone());
    let evaluator = match old {
        Some(old) => builder.old_object(old.clone()).build(),
        None => builder.build(),
    };
    let results = evaluator.evaluate(&rules());
    results
        .into_iter()
        .filter(|result| !result.passed)
        .map(|result| result.message.unwrap_or_default())
        .collect()
}

fn cache(name: &str, backend: Option<&str>, spec: Value) -> Value {
    let mut metadata = json!({ "name": name });
    if let Some(backend) = backend {
        metadata["annotations"] = json!({ BACKEND: backend });
    }
    json!({ "metadata": metadata, "spec": spec })
}

#[test]
fn the_backend_stays() {
    let with = |backend| cache("cache", backend, json!({}));
    let (ours, theirs, none) = (with(Some("kvcache")), with(Some("infinistore")), with(None));
    assert_eq!(objections(&ours, None), Vec::<String>::new());
    assert_eq!(objections(&ours, Some(&ours)), Vec::<String>::new());
    assert_eq!(objections(&none, Some(&none)), Vec::<String>::new());
    // One without a backend may get one.
    assert_eq!(objections(&ours, Some(&none)), Vec::<String>::new());
    for changed in [&theirs, &none] {
        let said = objections(changed, Some(&ours));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].contains("cannot change from kvcache") && said[0].contains("make a new KVCache"),
            "{said:?}"
        );
    }
}

#[test]
fn names_of_ours_leave_room_for_their_services() {
    let (longest, longer) = ("a".repeat(46), "a".repeat(47));
    assert_eq!(objections(&cache(&longest, Some("kvcache"), json!({})), None), Vec::<String>::new());
    assert_eq!(objections(&cache(&longer, Some("vineyard"), json!({})), None), Vec::<String>::new());
    let said = objections(&cache(&longer, Some("kvcache"), json!({})), None);
    assert!(said.len() == 1 && said[0].contains(&longer) && said[0].contains("at most 46"), "{said:?}");
}

#[test]
fn a_limit_of_ours_leaves_room_for_blocks() {
    let with = |backend, limit| {
        cache("cache", Some(backend), json!({ "cache": { "resources": { "limits": { "memory": limit } } } }))
    };
    assert_eq!(objections(&with("kvcache", json!("513Mi")), None), Vec::<String>::new());
    assert_eq!(objections(&with("vineyard", json!("256Mi")), None), Vec::<String>::new());
    for limit in [json!("512Mi"), json!(536_870_912)] {
        let said = objections(&with("kvcache", limit), None);
        assert!(said.len() == 1 && said[0].contains("spec.cache.resources.limits.memory is 5"), "{said:?}");
    }
    // The definition's own rules judge those.
    let mut own = with("kvcache", json!("256Mi"));
    own["spec"]["server"] = json!({ "headroom": "64Mi" });
    assert_eq!(objections(&own, None), Vec::<String>::new());
}

#[test]
fn the_policy_is_bound_and_names_the_resource() {
    let [policy, binding] = policy().try_into().unwrap();
    assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    let rule = &policy["spec"]["matchConstraints"]["resourceRules"][0];
    assert_eq!(rule["resources"], json!(["kvcaches"]));
    assert_eq!(rule["apiGroups"], json!(["orchestration.aibrix.ai"]));
}
