//! Whether an object already is as it should be.
//!
//! The API server adds to what was applied: defaults, addresses, fields of other managers. So equality is the wrong
//! question; the right one is whether everything that is wanted is there. What is *no longer* wanted cannot be seen
//! that way, which is why [`apply`](crate::apply) also marks objects with a digest of what it applied.

use serde_json::Value;

/// Whether `live` has everything that `wanted` has.
///
/// Lists whose items have keys, such as containers, may have more items than wanted; other lists are compared item by
/// item. Amounts are compared by value (`1024Mi` is `1Gi`). An empty value equals a missing one, as the API server
/// leaves empty values out. Cost: linear in the size of `wanted`, but quadratic in the length of lists with keys.
pub fn satisfied(wanted: &Value, live: &Value) -> bool {
    covers(wanted, live, Place { field: "", parent: "" })
}

/// Where a value stands: its field and the field around that.
#[derive(Clone, Copy)]
struct Place<'a> {
    field: &'a str,
    parent: &'a str,
}

fn covers(wanted: &Value, live: &Value, place: Place<'_>) -> bool {
    match (wanted, live) {
        (wanted, Value::Null) => is_empty(wanted),
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().all(|(field, wanted)| {
            let place = Place { field, parent: place.field };
            covers(wanted, live.get(field).unwrap_or(&Value::Null), place)
        }),
        (Value::Array(wanted), Value::Array(live)) => {
            let inside = |wanted, live| covers(wanted, live, Place { field: "", parent: place.field });
            match keys(place.field, wanted) {
                Some(keys) => wanted.iter().all(|wanted| {
                    let same = |live: &&Value| keys.iter().all(|key| wanted.get(key) == live.get(key));
                    live.iter().find(same).is_some_and(|live| inside(wanted, live))
                }),
                None => {
                    wanted.len() == live.len()
                        && wanted.iter().zip(live).all(|(wanted, live)| inside(wanted, live))
                }
            }
        }
        (wanted, live) => {
            wanted == live || wanted.is_null() || (place.is_amount() && is_same_amount(wanted, live))
        }
    }
}

impl Place<'_> {
    fn is_amount(self) -> bool {
        matches!(self.parent, "limits" | "requests") || self.field == "sizeLimit"
    }
}

/// Values that the API server leaves out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

/// The keys by which the API server tells a list's items apart; none if it does not.
fn keys(field: &str, items: &[Value]) -> Option<&'static [&'static str]> {
    let keys: &'static [&'static str] = match field {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => &["name"],
        "ports" if items.iter().all(|item| item.get("containerPort").is_some()) => {
            &["containerPort", "protocol"]
        }
        "ports" => &["port", "protocol"],
        "volumeMounts" => &["mountPath"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        "ownerReferences" => &["uid"],
        _ => return None,
    };
    items.iter().all(|item| keys.iter().all(|key| item.get(key).is_some())).then_some(keys)
}

fn is_same_amount(wanted: &Value, live: &Value) -> bool {
    let amount = |value: &Value| match value {
        Value::String(text) => billionths(text),
        Value::Number(number) => billionths(&number.to_string()),
        _ => None,
    };
    amount(wanted).is_some_and(|wanted| amount(live) == Some(wanted))
}

/// A quantity in billionths, Kubernetes' smallest unit; `None` if it is none, or too large to count.
fn billionths(text: &str) -> Option<i128> {
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit: i128 = match unit {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => ONE,
        "k" => ONE * 1_000,
        "M" => ONE * 1_000_000,
        "G" => ONE * 1_000_000_000,
        "T" => ONE * 1_000_000_000_000,
        "P" => ONE * 1_000_000_000_000_000,
        "E" => ONE * 1_000_000_000_000_000_000,
        "Ki" => ONE << 10,
        "Mi" => ONE << 20,
        "Gi" => ONE << 30,
        "Ti" => ONE << 40,
        "Pi" => ONE << 50,
        "Ei" => ONE << 60,
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            10_i128.checked_pow(u32::try_from(power + 9).ok()?)?
        }
    };
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && part.is_empty() || !is_digits(whole) || !is_digits(part) {
        return None;
    }
    let mut amount = 0_i128;
    if !whole.is_empty() {
        amount = whole.parse::<i128>().ok()?.checked_mul(unit)?;
    }
    if !part.is_empty() {
        let scale = 10_i128.checked_pow(u32::try_from(part.len()).ok()?)?;
        amount = amount.checked_add(part.parse::<i128>().ok()?.checked_mul(unit)? / scale)?;
    }
    Some(sign * amount)
}

const ONE: i128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_and_others_add_is_no_difference() {
        let wanted = json!({
            "metadata": { "labels": { "a": "1" }, "ownerReferences": [{ "uid": "u", "controller": true }] },
            "spec": {
                "hostIPC": false, "tolerations": [],
                "containers": [{
                    "name": "cache", "image": "i",
                    "ports": [{ "containerPort": 1, "protocol": "TCP" }],
                    "resources": {
                        "limits": { "memory": "1024Mi", "cpu": "0.5" }, "requests": { "cpu": "0.1" },
                    },
                    "volumeMounts": [{ "mountPath": "/dev/shm", "name": "shm" }],
                }],
                "topologySpreadConstraints": [
                    { "topologyKey": "host", "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1 },
                ],
                "ports": [{ "port": 1, "protocol": "TCP", "targetPort": 1 }],
                "volumes": [{ "name": "shm", "emptyDir": { "medium": "Memory", "sizeLimit": "2048Ki" } }],
            },
        });
        let live = json!({
            "metadata": {
                "uid": "x", "labels": { "a": "1", "b": "2" },
                "ownerReferences": [{ "uid": "v" }, { "uid": "u", "controller": true }],
            },
            "spec": {
                "dnsPolicy": "ClusterFirst",
                "containers": [
                    { "name": "injected" },
                    {
                        "name": "cache", "image": "i", "imagePullPolicy": "Always",
                        "ports": [{ "containerPort": 1, "protocol": "TCP" }],
                        "resources": {
                            "limits": { "memory": "1Gi", "cpu": "500m" }, "requests": { "cpu": "100m" },
                        },
                        "volumeMounts": [
                            { "mountPath": "/token", "name": "injected" },
                            { "mountPath": "/dev/shm", "name": "shm" },
                        ],
                    },
                ],
                "topologySpreadConstraints": [
                    { "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1 },
                    { "topologyKey": "host", "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1 },
                ],
                "ports": [
                    { "port": 2, "protocol": "TCP", "targetPort": 2 },
                    { "port": 1, "protocol": "TCP", "targetPort": 1 },
                ],
                "volumes": [{ "name": "shm", "emptyDir": { "medium": "Memory", "sizeLimit": "2Mi" } }],
            },
        });
        assert!(satisfied(&wanted, &live));
    }

    #[test]
    fn what_is_missing_or_another_value_is_a_difference() {
        let wanted = json!({ "spec": {
            "replicas": 2, "args": ["a", "b"], "on": true,
            "containers": [{ "name": "cache", "resources": { "limits": { "memory": "1Gi" } } }],
        } });
        for (path, other) in [
            ("/spec/replicas", json!(3)),
            ("/spec/replicas", json!(null)),
            ("/spec/args", json!(["b", "a"])),
            ("/spec/args", json!(["a", "b", "c"])),
            ("/spec/on", json!(null)),
            ("/spec/containers/0/name", json!("other")),
            ("/spec/containers/0/resources/limits/memory", json!("2Gi")),
            ("/spec", json!({})),
        ] {
            let mut live = wanted.clone();
            *live.pointer_mut(path).unwrap() = other.clone();
            assert!(!satisfied(&wanted, &live), "{path} is {other}");
        }
    }

    #[test]
    fn amounts_are_equal_by_value_and_only_where_amounts_stand() {
        for (one, other) in [
            ("1Gi", "1024Mi"),
            ("1", "1000m"),
            ("0.5", "500m"),
            ("1e3", "1k"),
            (".5", "0.5"),
            ("2G", "2000M"),
            ("-1", "-1000m"),
            ("1E", "1000P"),
            ("1500000u", "1.5"),
        ] {
            assert_eq!(billionths(one), billionths(other), "{one} and {other}");
            assert!(billionths(one).is_some(), "{one}");
        }
        for text in
            ["", "Gi", "1Gb", "1.2.3", "--1", "1 Gi", "1e99", "99999999999999999999999999999999999999E"]
        {
            assert_eq!(billionths(text), None, "{text}");
        }
        assert!(!satisfied(&json!({ "data": { "x": "1Gi" } }), &json!({ "data": { "x": "1024Mi" } })));
        assert!(satisfied(&json!({ "limits": { "cpu": 1 } }), &json!({ "limits": { "cpu": "1" } })));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-3_i64..3).prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            let field = prop_oneof![Just("containers"), Just("env"), Just("name"), Just("limits"), Just("x")];
            let fields = prop::collection::vec((field.prop_map(str::to_owned), inner.clone()), 0..4);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                fields.prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn everything_satisfies_itself_and_what_it_grew_from(value in any_json(), added in any_json()) {
            // Items with the same keys twice are one item to the server, which refuses them.
            prop_assume!(!has_twins(&value));
            prop_assert!(satisfied(&value, &value));
            let mut grown = value.clone();
            if let Value::Object(fields) = &mut grown {
                fields.entry("added").or_insert(added);
                prop_assert!(satisfied(&value, &grown));
            }
        }
    }

    fn has_twins(value: &Value) -> bool {
        match value {
            Value::Object(fields) => fields.values().any(has_twins),
            Value::Array(items) => {
                let twins = |one: &Value, other: &Value| {
                    one.get("name").is_some() && one.get("name") == other.get("name")
                };
                (1..items.len()).any(|at| items[..at].iter().any(|other| twins(&items[at], other)))
                    || items.iter().any(has_twins)
            }
            _ => false,
        }
    }
}
