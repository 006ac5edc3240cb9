//! Schemas of fields whose types are Kubernetes' own. Written out small: AIBrix's resource definition inlines three
//! whole pod templates and is 862 KB long.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A pod template: whatever the API server takes in a workload. Its labels and annotations survive.
pub(super) fn pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true })
}

/// Requests and limits of a container.
pub(super) fn resources(_: &mut SchemaGenerator) -> Schema {
    let amounts = || {
        json_schema!({
            "type": "object",
            "nullable": true,
            "additionalProperties": {
                "pattern": QUANTITY,
                "x-kubernetes-int-or-string": true
            }
        })
    };
    json_schema!({
        "type": "object",
        "nullable": true,
        "properties": { "limits": amounts(), "requests": amounts() },
        "x-kubernetes-preserve-unknown-fields": true
    })
}

/// Environment variables of a container.
pub(super) fn env(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "nullable": true,
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
        "items": {
            "type": "object",
            "required": ["port"],
            "properties": {
                "name": { "type": "string" },
                "port": { "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 },
                "protocol": { "type": "string" },
                "targetPort": { "x-kubernetes-int-or-string": true },
                "nodePort": { "type": "integer", "format": "int32", "minimum": 0, "maximum": 65535 },
                "appProtocol": { "type": "string" }
            }
        }
    })
}

/// An amount with a unit.
pub(super) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "nullable": true,
        "pattern": QUANTITY,
        "x-kubernetes-int-or-string": true
    })
}

/// Conditions, one of each type.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "nullable": true,
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

/// Kubernetes' own pattern of quantities.
const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";
