//! Schemas of fields whose types are Kubernetes' own. Written out small: AIBrix's resource definition inlines three
//! whole pod templates and is 862 KB long.

use schemars::transform::transform_subschemas;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::rules;

/// Fields that may be left out may not be null, as in AIBrix's definition: the API server drops a null (`resources:`
/// with nothing behind it) before it fills in defaults and before rules ask `has(...)`.
pub(super) fn without_null(schema: &mut Schema) {
    transform_subschemas(&mut without_null, schema);
    let Some(object) = schema.as_object_mut() else { return };
    // Formats that Kubernetes does not know make it warn at every write.
    if object.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
        object.remove("format");
    }
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    let Some(Value::Array(variants)) = object.get_mut("anyOf") else { return };
    variants.retain(|variant| variant != &json!({ "type": "null" }));
    if let [Value::Object(only)] = variants.as_mut_slice() {
        let only = std::mem::take(only);
        object.remove("anyOf");
        for (key, value) in only {
            // What the field says of itself is more than what its type says of all such fields.
            object.entry(key).or_insert(value);
        }
    }
}

/// A pod template: whatever the API server takes in a workload. Its labels and annotations survive.
pub(super) fn pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// Requests and limits of a container.
pub(super) fn resources(_: &mut SchemaGenerator) -> Schema {
    let amounts = || {
        json_schema!({
            "type": "object",
            "additionalProperties": {
                "pattern": QUANTITY,
                "maxLength": QUANTITY_CHARACTERS_MAX,
                "x-kubernetes-int-or-string": true
            }
        })
    };
    json_schema!({
        "type": "object",
        "properties": { "limits": amounts(), "requests": amounts() },
        "x-kubernetes-preserve-unknown-fields": true
    })
}

/// Environment variables of a container.
pub(super) fn env(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": { "name": { "type": "string" }, "value": { "type": "string" } },
            "x-kubernetes-preserve-unknown-fields": true
        }
    })
}

/// Ports of a service, at least one.
pub(super) fn service_ports(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": PORTS_MAX,
        "items": {
            "type": "object",
            "required": ["port"],
            "x-kubernetes-validations": rules::port(),
            "properties": {
                "name": { "type": "string", "maxLength": 63 },
                "port": { "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 },
                "protocol": { "type": "string", "maxLength": 32, "default": "TCP" },
                "targetPort": { "maxLength": 63, "nullable": false, "x-kubernetes-int-or-string": true },
                "nodePort": { "type": "integer", "format": "int32", "minimum": 0, "maximum": 65535 },
                "appProtocol": { "type": "string" }
            }
        }
    })
}

/// An amount with a unit.
pub(super) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "pattern": QUANTITY,
        "maxLength": QUANTITY_CHARACTERS_MAX,
        "nullable": false,
        "x-kubernetes-int-or-string": true
    })
}

/// Conditions, one of each type.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 }
            }
        }
    })
}

/// Bounds the cost of the rules that compare each port with each other.
const PORTS_MAX: u32 = 32;

/// Bounds the cost of reading a quantity in a rule. The largest, in canonical form, have 20.
const QUANTITY_CHARACTERS_MAX: u32 = 64;

/// Kubernetes' own pattern of quantities.
const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";
