//! Some of what a real server writes into an object that nobody asked for: defaults, allocated addresses, quantities
//! in their canonical form. An operator that compares carelessly writes for ever because of them.

use serde_json::{Value, json};

/// Fills an object in.
pub fn fill(object: &mut Value, number: u64) {
    match object["kind"].as_str().unwrap_or_default() {
        "Service" => service(object, number),
        "StatefulSet" => stateful_set(object),
        "Pod" => pod_spec(&mut object["spec"]),
        "PodDisruptionBudget" => {}
        _ => {}
    }
}

fn service(object: &mut Value, number: u64) {
    let spec = &mut object["spec"];
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    default(spec, "internalTrafficPolicy", json!("Cluster"));
    default(spec, "ipFamilies", json!(["IPv4"]));
    default(spec, "ipFamilyPolicy", json!("SingleStack"));
    default(spec, "clusterIP", json!(format!("10.96.{}.{}", number / 250 % 250, number % 250 + 1)));
    let address = spec["clusterIP"].clone();
    default(spec, "clusterIPs", json!([address]));
    for port in list(spec, "ports") {
        default(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        default(port, "targetPort", number);
    }
}

fn stateful_set(object: &mut Value) {
    let spec = &mut object["spec"];
    default(spec, "replicas", json!(1));
    default(spec, "podManagementPolicy", json!("OrderedReady"));
    default(spec, "revisionHistoryLimit", json!(10));
    default(spec, "updateStrategy", json!({}));
    default(&mut spec["updateStrategy"], "type", json!("RollingUpdate"));
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        default(&mut spec["updateStrategy"], "rollingUpdate", json!({}));
        default(&mut spec["updateStrategy"]["rollingUpdate"], "partition", json!(0));
    }
    default(
        spec,
        "persistentVolumeClaimRetentionPolicy",
        json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
    );
    spec["template"]["metadata"]["creationTimestamp"] = Value::Null;
    pod_spec(&mut spec["template"]["spec"]);
}

fn pod_spec(spec: &mut Value) {
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "dnsPolicy", json!("ClusterFirst"));
    default(spec, "schedulerName", json!("default-scheduler"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "securityContext", json!({}));
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        default(spec, "serviceAccount", account);
    }
    for field in ["containers", "initContainers"] {
        for container in list(spec, field) {
            default(container, "terminationMessagePath", json!("/dev/termination-log"));
            default(container, "terminationMessagePolicy", json!("File"));
            default(container, "imagePullPolicy", json!("IfNotPresent"));
            default(container, "resources", json!({}));
            for port in list(container, "ports") {
                default(port, "protocol", json!("TCP"));
            }
            for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
                if let Some(probe) = container.get_mut(probe) {
                    default(probe, "timeoutSeconds", json!(1));
                    default(probe, "periodSeconds", json!(10));
                    default(probe, "successThreshold", json!(1));
                    default(probe, "failureThreshold", json!(3));
                    if let Some(http) = probe.get_mut("httpGet") {
                        default(http, "scheme", json!("HTTP"));
                    }
                }
            }
            for amounts in ["requests", "limits"] {
                if let Some(Value::Object(amounts)) = container["resources"].get_mut(amounts) {
                    amounts.values_mut().for_each(canonical);
                }
            }
            for variable in list(container, "env") {
                if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
                    default(field, "apiVersion", json!("v1"));
                }
            }
        }
    }
    for volume in list(spec, "volumes") {
        if let Some(empty) = volume.get_mut("emptyDir") {
            if let Some(limit) = empty.get_mut("sizeLimit") {
                canonical(limit);
            }
        } else if let Some(map) = volume.get_mut("configMap") {
            default(map, "defaultMode", json!(420));
        } else if let Some(secret) = volume.get_mut("secret") {
            default(secret, "defaultMode", json!(420));
        }
    }
}

fn list<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

fn default(object: &mut Value, field: &str, value: Value) {
    if object.is_null() {
        *object = json!({});
    }
    let Value::Object(fields) = object else { return };
    let entry = fields.entry(field).or_insert(Value::Null);
    if entry.is_null() {
        *entry = value;
    }
}

/// Binary and decimal amounts whose number is a multiple of the next unit, and thousandths, as the server prints them.
fn canonical(quantity: &mut Value) {
    let text = match quantity {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    if let (Some((whole, part)), "") = (number.split_once('.'), unit) {
        let thousandths =
            whole.parse::<u64>().unwrap_or(0) * 1000 + format!("{part:0<3}")[..3].parse::<u64>().unwrap_or(0);
        *quantity = match thousandths % 1000 {
            0 => json!((thousandths / 1000).to_string()),
            _ => json!(format!("{thousandths}m")),
        };
        return;
    }
    let (Ok(mut number), Some(mut unit)) = (number.parse::<u64>(), UNITS.iter().position(|u| *u == unit))
    else {
        *quantity = json!(text);
        return;
    };
    let factor = if unit < DECIMAL { 1024 } else { 1000 };
    let last = if unit < DECIMAL { DECIMAL - 1 } else { UNITS.len() - 1 };
    while unit < last && number != 0 && number.is_multiple_of(factor) {
        number /= factor;
        unit += 1;
    }
    *quantity = json!(format!("{number}{}", UNITS[unit]));
}

const UNITS: [&str; 12] = ["Ki", "Mi", "Gi", "Ti", "Pi", "m", "", "k", "M", "G", "T", "P"];
const DECIMAL: usize = 5;
