//! Paths of fields, as managed fields name them: `f:name` of an object, `k:{"name":"x"}` of a list with keys,
//! `v:"x"` of a set. Lists without keys are atomic.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// One field, from the top.
pub type Path = Vec<String>;

/// All leaves of a configuration, and the items of its lists, but for what identifies the object.
pub fn owned(configuration: &Value) -> BTreeSet<Path> {
    let mut paths = BTreeSet::new();
    walk(configuration, "", &mut Vec::new(), &mut paths);
    paths.retain(|path| !is_identity(path));
    paths
}

/// How a list's items are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListKind {
    Keyed(&'static [&'static str]),
    Set,
    Atomic,
}

/// The kind of a list by its field's name: the same in every object that is stored here.
pub fn list_kind(field: &str, items: &[Value]) -> ListKind {
    let keys: &'static [&'static str] = match field {
        "finalizers" => return ListKind::Set,
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => &["name"],
        "ports" if items.iter().all(|item| item.get("containerPort").is_some()) => {
            &["containerPort", "protocol"]
        }
        "ports" => &["port", "protocol"],
        "volumeMounts" => &["mountPath"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        "conditions" => &["type"],
        "ownerReferences" => &["uid"],
        _ => return ListKind::Atomic,
    };
    if items.iter().all(|item| keys.iter().all(|key| item.get(key).is_some())) {
        ListKind::Keyed(keys)
    } else {
        ListKind::Atomic
    }
}

/// The step to an item of a keyed list.
pub fn item_step(item: &Value, keys: &[&str]) -> String {
    let named: Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), item[*key].clone())).collect();
    format!("k:{}", Value::Object(named))
}

/// The step to a member of a set.
pub fn member_step(item: &Value) -> String {
    format!("v:{item}")
}

/// The value at a path.
pub fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    let Some((step, rest)) = path.split_first() else { return Some(object) };
    let next = match step.split_once(':')? {
        ("f", name) => object.get(name)?,
        _ => object.as_array()?.iter().find(|item| is_item(item, step))?,
    };
    at(next, rest)
}

/// Takes away what is at a path, if it is there.
pub fn remove(object: &mut Value, path: &[String]) {
    let Some((step, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        match object {
            Value::Object(fields) => drop(fields.remove(step.trim_start_matches("f:"))),
            Value::Array(items) => items.retain(|item| !is_item(item, step)),
            _ => {}
        }
        return;
    }
    let next = match object {
        Value::Object(fields) => fields.get_mut(step.trim_start_matches("f:")),
        Value::Array(items) => items.iter_mut().find(|item| is_item(item, step)),
        _ => None,
    };
    if let Some(next) = next {
        remove(next, rest);
    }
}

/// Whether an item is the one that a step names.
fn is_item(item: &Value, step: &str) -> bool {
    match step.split_once(':') {
        Some(("k", keys)) => match serde_json::from_str::<Map<String, Value>>(keys) {
            Ok(keys) => keys.iter().all(|(key, value)| item.get(key) == Some(value)),
            Err(_) => false,
        },
        Some(("v", _)) => member_step(item) == step,
        _ => false,
    }
}

fn walk(value: &Value, field: &str, path: &mut Path, paths: &mut BTreeSet<Path>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                path.push(format!("f:{name}"));
                walk(value, name, path, paths);
                path.pop();
            }
        }
        Value::Array(items) if !items.is_empty() => match list_kind(field, items) {
            ListKind::Atomic => drop(paths.insert(path.clone())),
            kind => {
                for item in items {
                    path.push(match kind {
                        ListKind::Keyed(keys) => item_step(item, keys),
                        _ => member_step(item),
                    });
                    paths.insert(path.clone());
                    if matches!(kind, ListKind::Keyed(_)) {
                        walk(item, "", path, paths);
                    }
                    path.pop();
                }
            }
        },
        _ => drop(paths.insert(path.clone())),
    }
}

fn is_identity(path: &Path) -> bool {
    let steps: Vec<&str> = path.iter().map(String::as_str).collect();
    matches!(
        steps[..],
        ["f:apiVersion" | "f:kind"]
            | [
                "f:metadata",
                "f:name"
                    | "f:namespace"
                    | "f:uid"
                    | "f:resourceVersion"
                    | "f:generation"
                    | "f:creationTimestamp"
                    | "f:deletionTimestamp"
                    | "f:managedFields",
                ..
            ]
    )
}
