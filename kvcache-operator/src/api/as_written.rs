//! Caches as lists and watches deliver them.
//!
//! A list is read as a whole: were its items of the type [`KVCache`], one `replicas: "three"` that an API server
//! without our schema has stored would make the list unreadable, and no cache would be served any more. So items are
//! [`AsWritten`], which anything with the metadata of an object can be read as.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::refusal::Problems;
use super::{Accepted, KVCache, Options, Problem, Reason, Refusal, accept, annotation};

/// A cache of which what can be read is there, and what cannot is said.
#[derive(Clone, PartialEq, Debug)]
pub struct AsWritten {
    /// The cache without what cannot be read.
    pub cache: KVCache,
    /// Fields that cannot be read, and fields of AIBrix v0.2 that have another place now.
    problems: Vec<Problem>,
}

/// What a cache asks for. Two that are equal ask for the same; what others write into a status is not in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AskedFor {
    uid: Option<String>,
    /// Counts the specs.
    generation: Option<i64>,
    is_to_go: bool,
    annotations: BTreeMap<String, String>,
}

impl AsWritten {
    /// What it asks for.
    pub fn asked_for(&self) -> AskedFor {
        let metadata = self.meta();
        let annotations = metadata.annotations.iter().flatten().filter(|(key, _)| annotation::is_read(key));
        AskedFor {
            uid: metadata.uid.clone(),
            generation: metadata.generation,
            is_to_go: metadata.deletion_timestamp.is_some(),
            annotations: annotations.map(|(key, value)| (key.clone(), value.clone())).collect(),
        }
    }

    /// Reads an object.
    ///
    /// # Errors
    ///
    /// If it is none: its metadata cannot be read.
    pub fn from_value(mut object: Value) -> Result<Self, serde_json::Error> {
        let mut problems = of_v0_2(&object);
        loop {
            if let Value::Object(fields) = &mut object {
                fields.entry("spec").or_insert_with(|| Value::Object(serde_json::Map::new()));
            }
            match KVCache::deserialize(&object) {
                Ok(cache) => return Ok(Self { cache, problems }),
                Err(error) => {
                    // Without the metadata there is no object to refuse.
                    let path = culprit(&object, &error.to_string());
                    if path.is_empty() || path[0] == Step::Key("metadata".to_owned()) {
                        return Err(error);
                    }
                    // A status is the operator's own: it is written anew.
                    if path[0] != Step::Key("status".to_owned()) {
                        let message =
                            format!("it cannot be read ({error}): give what is expected, or leave it out");
                        problems.push(Problem { field: written(&path), message });
                    }
                    remove(&mut object, &path);
                }
            }
        }
    }

    /// [`accept`], which refuses what cannot be read as well.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn accept(&self, options: &Options) -> Result<Accepted, Refusal> {
        let accepted = accept(&self.cache, options);
        if self.problems.is_empty() {
            return accepted;
        }
        let mut refusal = match accepted {
            Err(refusal) if refusal.is_unclaimed() => return Err(refusal),
            Err(refusal) => Refusal { reason: Reason::InvalidSpec, ..refusal },
            Ok(_) => Refusal { reason: Reason::InvalidSpec, problems: Vec::new() },
        };
        refusal.problems.splice(0..0, self.problems.iter().cloned());
        Err(refusal)
    }
}

impl<'de> Deserialize<'de> for AsWritten {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_value(Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Serialize for AsWritten {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.cache.serialize(serializer)
    }
}

impl Resource for AsWritten {
    type DynamicType = <KVCache as Resource>::DynamicType;
    type Scope = <KVCache as Resource>::Scope;

    fn kind(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        KVCache::kind(dynamic)
    }

    fn group(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        KVCache::group(dynamic)
    }

    fn version(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        KVCache::version(dynamic)
    }

    fn plural(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        KVCache::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        self.cache.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.cache.meta_mut()
    }
}

/// Fields of AIBrix v0.2. A server with today's schema drops them before anyone sees them.
fn of_v0_2(object: &Value) -> Vec<Problem> {
    let mut problems = Problems::default();
    for (pointer, field, remedy) in [
        ("/spec/replicas", "spec.replicas", "write spec.cache.replicas"),
        ("/spec/cacheSpec", "spec.cacheSpec", "write spec.cache, with cpu and memory under resources.limits"),
        ("/spec/service/port", "spec.service.port", "write spec.service.ports, a list"),
    ] {
        if object.pointer(pointer).is_some_and(|value| !value.is_null()) {
            problems.add(field, format!("it is of AIBrix v0.2 and means nothing since: {remedy}"));
        }
    }
    problems.into_refusal().map(|refusal| refusal.problems).unwrap_or_default()
}

/// A step on the way to a field.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

/// The innermost value without which the object is read, or has another error. Empty if it is the whole object.
fn culprit(object: &Value, error: &str) -> Vec<Step> {
    let mut path = Vec::new();
    'inward: loop {
        for step in steps(at(object, &path)) {
            let mut without = object.clone();
            path.push(step);
            remove(&mut without, &path);
            if KVCache::deserialize(&without).map_or_else(|other| other.to_string() != error, |_| true) {
                continue 'inward;
            }
            path.pop();
        }
        return path;
    }
}

fn steps(value: Option<&Value>) -> Vec<Step> {
    match value {
        Some(Value::Object(fields)) => fields.keys().cloned().map(Step::Key).collect(),
        Some(Value::Array(items)) => (0..items.len()).map(Step::Index).collect(),
        _ => Vec::new(),
    }
}

fn at<'a>(object: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Index(index) => value.get(index),
    })
}

fn remove(object: &mut Value, path: &[Step]) {
    let Some((last, before)) = path.split_last() else { return };
    let parent = before.iter().try_fold(object, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    });
    match (parent, last) {
        (Some(Value::Object(fields)), Step::Key(key)) => {
            fields.remove(key);
        }
        (Some(Value::Array(items)), Step::Index(index)) if *index < items.len() => {
            items.remove(*index);
        }
        _ => {}
    }
}

fn written(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.extend([".", key.as_str()]),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn options() -> Options {
        Options { adopt: BTreeSet::new(), server_image: "s".to_owned(), redis_image: "r".to_owned() }
    }

    fn written_as(spec: Value) -> AsWritten {
        let annotations = json!({"kvcache.orchestration.aibrix.ai/backend": "kvcache"});
        let metadata =
            json!({"name": "prompts", "namespace": "models", "uid": "u", "annotations": annotations});
        AsWritten::from_value(json!({"metadata": metadata, "spec": spec})).expect("metadata")
    }

    #[test]
    fn what_cannot_be_read_is_named_and_the_rest_is_there() {
        for (spec, field, says) in [
            (json!({"cache": {"replicas": "three"}}), "spec.cache.replicas", "expected i32"),
            (
                json!({"cache": {"env": [{"name": "A"}, {"name": "B", "value": 1}]}}),
                "spec.cache.env[1].value",
                "integer `1`",
            ),
            (json!({"cache": "x"}), "spec.cache", "expected struct"),
            (json!({"service": {"type": "ClusterIP"}}), "spec.service", "missing field `ports`"),
            (json!({"server": {"ring": {"minReadySeconds": -1}}}), "spec.server.ring.minReadySeconds", "-1"),
            (
                json!({"cache": {"template": {"spec": {"containers": {}}}}}),
                "spec.cache.template.spec.containers",
                "map",
            ),
            (json!("nothing"), "spec", "nothing"),
        ] {
            let written = written_as(spec.clone());
            let refusal = written.accept(&options()).expect_err(field);
            assert_eq!(refusal.reason, Reason::InvalidSpec);
            assert_eq!(refusal.problems[0].field, field, "{refusal}");
            assert!(refusal.problems[0].message.contains(says), "{refusal}");
            assert_eq!(written.meta().name.as_deref(), Some("prompts"));
        }
    }

    #[test]
    fn all_faults_of_a_spec_are_found() {
        let written = written_as(json!({
            "cache": {"replicas": "three", "env": [{"name": 5}], "imagePullPolicy": "Sometimes"},
            "mode": 7
        }));
        let refusal = written.accept(&options()).expect_err("four faults");
        let fields: BTreeSet<&str> = refusal.problems.iter().map(|problem| problem.field.as_str()).collect();
        let expected =
            ["spec.cache.env[0].name", "spec.cache.imagePullPolicy", "spec.cache.replicas", "spec.mode"];
        // The variable without its name is a fault, too.
        assert!(expected.iter().all(|field| fields.contains(field)), "{refusal}");
    }

    /// The operator's list stays readable whatever one of its items holds.
    #[test]
    fn one_malformed_object_does_not_hide_the_others() {
        let list: Vec<AsWritten> = serde_json::from_value(json!([
            {"metadata": {"name": "good"}, "spec": {}},
            {"metadata": {"name": "bad"}, "spec": {"cache": {"replicas": {}}}, "status": {"current": "none"}},
            {"metadata": {"name": "bare"}}
        ]))
        .expect("a list");
        let names: Vec<_> = list.iter().filter_map(|item| item.meta().name.clone()).collect();
        assert_eq!(names, ["good", "bad", "bare"]);
        assert_eq!(list[1].cache.status.as_ref().and_then(|status| status.current), None);
    }

    #[test]
    fn yaml_of_v0_2_is_refused_with_todays_fields() {
        let written = written_as(json!({
            "replicas": 1,
            "service": {"type": "ClusterIP", "port": 9600},
            "cacheSpec": {"image": "vineyardd", "cpu": "8000m", "memory": "150Gi"}
        }));
        let refusal = written.accept(&options()).expect_err("v0.2");
        let fields: Vec<&str> = refusal.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(
            fields,
            ["spec.replicas", "spec.cacheSpec", "spec.service.port", "spec.service"],
            "{refusal}"
        );
        assert!(refusal.to_string().contains("write spec.cache.replicas"), "{refusal}");
    }

    #[test]
    fn a_malformed_cache_of_another_operator_is_left_alone() {
        let mut written = written_as(json!({"cache": {"replicas": "three"}}));
        written.cache.metadata.annotations = None;
        assert!(written.accept(&options()).expect_err("no backend").is_unclaimed());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z]{0,5}".prop_map(Value::from),
        ];
        let key = prop::sample::select(vec![
            "cache",
            "replicas",
            "env",
            "name",
            "value",
            "service",
            "ports",
            "port",
            "server",
            "ring",
            "template",
            "spec",
            "containers",
            "metadata",
            "redis",
            "runtime",
            "resources",
            "limits",
            "memory",
            "capacity",
        ]);
        leaf.prop_recursive(5, 40, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Whatever the spec is: it ends, nothing panics, and what is refused says why.
        #[test]
        fn any_spec_is_accepted_or_refused(spec in any_json()) {
            let written = written_as(spec);
            if let Err(refusal) = written.accept(&options()) {
                prop_assert!(!refusal.problems.is_empty());
                prop_assert!(refusal.problems.iter().all(|problem| !problem.message.is_empty()));
            }
        }
    }
}
