//! What holds for the objects of every cache that is accepted.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;

use proptest::prelude::*;

use super::*;
use crate::api::Pods;

/// Specs of which many are accepted: each part is left out, sound, or now and then wrong.
fn specs() -> impl Strategy<Value = (&'static str, Value)> {
    let quantity = prop::sample::select(vec!["600Mi", "4Gi", "10000Mi", "120Gi", "1e10", "64G"]);
    let resources = (quantity, prop::bool::ANY, prop::bool::ANY).prop_map(|(memory, rdma, cpu)| {
        let mut limits = json!({"memory": memory});
        if rdma {
            limits["vke.volcengine.com/rdma"] = json!(1);
        }
        if cpu {
            limits["cpu"] = json!("2500m");
        }
        json!({"limits": limits})
    });
    let env = prop::collection::vec(
        (prop::sample::select(vec!["A", "B", "MY_POD_IP", "AIBRIX_KVCACHE_NAME"]), "[a-z]{0,3}")
            .prop_map(|(name, value)| json!({"name": name, "value": value})),
        0..4,
    );
    let template = prop::sample::select(vec![
        Value::Null,
        json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 12345, "name": "kv"}]}]}}),
        json!({
            "metadata": {"labels": {"kvcache.orchestration.aibrix.ai/role": "other", "x": "y"}},
            "spec": {"containers": [{"name": "kvcache-server"}, {"name": "side"}]}
        }),
    ]);
    let metadata = prop::sample::select(vec![
        Value::Null,
        json!({"redis": {"runtime": {}}}),
        json!({"redis": {"runtime": {"template": {"spec": {"containers": [{"name": "r"}]}}}}}),
        json!({"redis": {"externalConnection": {"address": "redis:6379"}}}),
    ]);
    let ports = prop::sample::select(vec![
        Value::Null,
        json!({"ports": [{"port": 7000}]}),
        json!({"ports": [{"name": "service", "port": 1}, {"name": "admin", "port": 2, "targetPort": "manage"}]}),
        json!({"type": "ClusterIP", "ports": [{"name": "service", "port": 53}, {"name": "x", "port": 53, "protocol": "UDP"}]}),
    ]);
    (
        prop::sample::select(vec!["kvcache", "infinistore"]),
        -1_i32..6,
        prop::option::weighted(0.8, resources),
        env,
        prop_oneof![3 => Just(Value::Null), 1 => template],
        metadata,
        ports,
        prop::option::of(prop::sample::select(vec!["100Mi", "3Gi", "1T"])),
    )
        .prop_map(|(backend, replicas, resources, env, template, metadata, service, capacity)| {
            let cache = json!({
                "replicas": replicas, "image": "i:1", "env": env, "resources": resources, "template": template
            });
            let server = capacity.map(|capacity| json!({"capacity": capacity}));
            (backend, json!({"cache": cache, "metadata": metadata, "service": service, "server": server}))
        })
}

/// Whether `labels` has all of `selector`.
fn selects(selector: &Value, labels: &Value) -> bool {
    let (Some(selector), Some(labels)) = (selector.as_object(), labels.as_object()) else { return false };
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn check(accepted: &Accepted) -> Result<(), TestCaseError> {
    let objects = sent(accepted);
    prop_assert_eq!(&objects, &sent(&accepted.clone()), "the same cache gives the same objects");
    let mut seen = BTreeMap::new();
    let pods: Vec<&Value> = objects.iter().filter(|object| object["kind"] == "StatefulSet").collect();
    for object in &objects {
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        prop_assert!(
            seen.insert((object["kind"].to_string(), name.to_owned()), ()).is_none(),
            "{} twice",
            name
        );
        prop_assert!(name.len() <= 63);
        prop_assert_eq!(&metadata["namespace"], "models");
        prop_assert_eq!(&metadata["ownerReferences"][0]["uid"], "5c3a");
        for (key, value) in [
            ("kvcache.orchestration.aibrix.ai/name", "prompts"),
            ("app.kubernetes.io/instance", "prompts"),
            ("app.kubernetes.io/managed-by", "kvcache-operator"),
        ] {
            prop_assert_eq!(&metadata["labels"][key], value);
        }
    }
    for set in &pods {
        let template = &set["spec"]["template"];
        prop_assert!(selects(&set["spec"]["selector"]["matchLabels"], &template["metadata"]["labels"]));
        let governing = &set["spec"]["serviceName"];
        prop_assert!(
            objects
                .iter()
                .any(|object| object["kind"] == "Service" && object["metadata"]["name"] == *governing)
        );
        prop_assert!(template["spec"]["hostIPC"].is_null() && template["spec"]["hostNetwork"].is_null());
        for container in template["spec"]["containers"].as_array().expect("containers") {
            let names: Vec<&Value> =
                container["env"].as_array().into_iter().flatten().map(|v| &v["name"]).collect();
            let distinct: std::collections::HashSet<_> = names.iter().map(|name| name.to_string()).collect();
            prop_assert_eq!(names.len(), distinct.len(), "server-side apply refuses a name twice");
            let ports = container["ports"].as_array().into_iter().flatten();
            prop_assert!(ports.clone().all(|port| port["protocol"].is_string()));
            let numbers: Vec<String> =
                ports.map(|port| format!("{}/{}", port["containerPort"], port["protocol"])).collect();
            let distinct: BTreeSet<&String> = numbers.iter().collect();
            prop_assert_eq!(distinct.len(), numbers.len());
            prop_assert!(container["securityContext"]["privileged"].is_null());
        }
    }
    for object in objects.iter().filter(|object| object["kind"] == "Service") {
        // Each service selects the pods of exactly one StatefulSet.
        let selected = pods.iter().filter(|set| {
            selects(&object["spec"]["selector"], &set["spec"]["template"]["metadata"]["labels"])
        });
        prop_assert_eq!(selected.count(), 1, "{}", object["metadata"]["name"]);
        let ports = object["spec"]["ports"].as_array().expect("ports");
        prop_assert!(!ports.is_empty());
        prop_assert!(ports.iter().all(|port| port["protocol"].is_string() && !port["targetPort"].is_null()));
        let distinct: BTreeSet<String> =
            ports.iter().map(|port| format!("{}/{}", port["port"], port["protocol"])).collect();
        prop_assert_eq!(distinct.len(), ports.len());
    }
    if let Pods::Built(pod) = &accepted.workload.pods {
        let limit = pod.resources.limits.as_ref().and_then(|limits| limits.get("memory"));
        if let Some(limit) = limit.and_then(crate::api::units) {
            prop_assert_eq!(
                pod.capacity_bytes + pod.headroom_bytes,
                limit,
                "nothing is left and nothing lent"
            );
        }
        prop_assert!(pod.capacity_bytes >= 1 << 20);
    }
    prop_assert!(accepted.ports.serve != accepted.ports.manage);
    Ok(())
}

proptest! {
    #[test]
    fn objects_of_every_accepted_cache_are_sound((backend, spec) in specs()) {
        // What is refused is the business of `api::accept`.
        if let Ok(accepted) = accept(&cache(backend, spec), &options()) {
            check(&accepted)?;
        }
    }
}

#[test]
fn most_of_those_specs_are_accepted() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = specs();
    let accepted = (0..200).filter(|_| {
        let (backend, spec) = strategy.new_tree(&mut runner).expect("a spec").current();
        accept(&cache(backend, spec), &options()).is_ok()
    });
    let count = accepted.count();
    assert!(count > 60, "{count} of 200: the property would be about too few");
}

#[test]
fn the_shapes_are_sound() {
    for (shape, accepted) in shapes() {
        check(&accepted).unwrap_or_else(|error| panic!("{shape}: {error}"));
    }
}

/// The server's arguments hold `$(MY_POD_IP):12345`, which for an IPv6 address has no brackets.
#[test]
fn addresses_of_pods_are_understood_with_a_port_behind_them() {
    for (text, address) in [("10.0.0.7:12345", "10.0.0.7:12345"), ("fd00::7:12345", "[fd00::7]:12345")] {
        let mut addresses = text.to_socket_addrs().expect(text);
        assert_eq!(addresses.next().map(|found| found.to_string()).as_deref(), Some(address));
    }
}
