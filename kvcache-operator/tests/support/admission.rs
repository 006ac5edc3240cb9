//! What an API server does to an object before it stores it: nulls and unknown fields are dropped, defaults filled in,
//! the schema and the rules checked. An oracle in plain steps, for schemas without `oneOf` and the like.

use kube::CustomResourceExt;
use kube::core::cel::Validator;
use kvcache_operator::api::KVCache;
use serde_json::{Map, Value, json};

/// The schema of the resource's definition.
pub(crate) fn schema() -> Value {
    let definition = serde_json::to_value(KVCache::crd()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// The object as it would be stored, or everything that is said against it.
pub(crate) fn admit(object: &Value, old: Option<&Value>) -> Result<Value, Vec<String>> {
    let schema = schema();
    let mut object = object.clone();
    let metadata = object["metadata"].clone();
    prune(&schema, &mut object, true);
    fill(&schema, &mut object);
    let mut problems = Vec::new();
    check(&schema, &object, "", &mut problems);
    object["metadata"] = metadata;
    // Rules are asked of what has its shape only: they read fields that are required without a question.
    if problems.is_empty()
        && let Err(errors) = Validator::new().validate(&schema, &object, old)
    {
        problems.extend(errors.iter().map(ToString::to_string));
    }
    if problems.is_empty() { Ok(object) } else { Err(problems) }
}

fn is_set(schema: &Value, key: &str) -> bool {
    schema[key] == true
}

fn prune(schema: &Value, value: &mut Value, is_root: bool) {
    match value {
        Value::Object(object) => {
            let keep = |key: &str| {
                schema["properties"].get(key).is_some()
                    || schema.get("additionalProperties").is_some()
                    || is_set(schema, "x-kubernetes-preserve-unknown-fields")
                    || (is_root && ["apiVersion", "kind", "metadata"].contains(&key))
            };
            object.retain(|key, _| keep(key));
            object.retain(|key, value| {
                let known = schema["properties"].get(key);
                !(value.is_null() && known.is_some_and(|field| !is_set(field, "nullable")))
            });
            for (key, value) in object {
                let inner = schema["properties"].get(key).or(schema.get("additionalProperties"));
                if let Some(inner) = inner {
                    prune(inner, value, false);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| prune(&schema["items"], item, false)),
        _ => {}
    }
}

fn fill(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, field) in schema["properties"].as_object().unwrap_or(&Map::new()) {
                if let Some(default) = field.get("default") {
                    object.entry(key).or_insert_with(|| default.clone());
                }
                if let Some(value) = object.get_mut(key) {
                    fill(field, value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| fill(&schema["items"], item)),
        _ => {}
    }
}

fn check(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let path = path.trim_start_matches('.');
    let has_type = match schema["type"].as_str() {
        _ if is_set(schema, "x-kubernetes-int-or-string") => {
            value.is_string() || value.is_i64() || value.is_u64()
        }
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !has_type {
        problems.push(format!("{path}: Invalid value: {value}: must be of type {}", schema["type"]));
        return;
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            problems.push(format!("{path}.{name}: Required value"));
        }
    }
    let outside = |low: &str, high: &str, number: i64| {
        schema[low].as_f64().is_some_and(|low| (number as f64) < low)
            || schema[high].as_f64().is_some_and(|high| number as f64 > high)
    };
    let is_outside = match value {
        Value::Number(number) => outside("minimum", "maximum", number.as_i64().unwrap_or(i64::MAX)),
        Value::String(string) => outside("minLength", "maxLength", string.chars().count() as i64),
        Value::Array(list) => outside("minItems", "maxItems", list.len() as i64),
        _ => false,
    };
    if is_outside {
        let bound =
            |key: &str| schema[key].as_f64().map_or_else(|| "any".to_owned(), |bound| bound.to_string());
        let [low, high] = match value {
            Value::Number(_) => ["minimum", "maximum"],
            Value::String(_) => ["minLength", "maxLength"],
            _ => ["minItems", "maxItems"],
        };
        problems.push(format!(
            "{path}: Invalid value: {value}: should be at least {} and at most {}",
            bound(low),
            bound(high)
        ));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        problems.push(format!("{path}: Unsupported value: {value}"));
    }
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let inner = schema["properties"].get(key).or(schema.get("additionalProperties"));
                check(inner.unwrap_or(&json!({})), value, &format!("{path}.{key}"), problems);
            }
        }
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                check(&schema["items"], item, &format!("{path}[{index}]"), problems);
            }
        }
        _ => {}
    }
}
