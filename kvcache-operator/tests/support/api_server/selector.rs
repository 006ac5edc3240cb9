//! Label and field selectors, as they stand in a query.

use serde_json::Value;

/// Whether an object's labels match a selector such as `a=b,c!=d,e,!f,g in (h,i)`.
pub fn labels_match(selector: &str, object: &Value) -> bool {
    requirements(selector).iter().all(|requirement| {
        let label = |key: &str| object["metadata"]["labels"][key.trim()].as_str();
        let values = |list: &str| -> Vec<String> {
            list.trim_matches(|c| " ()".contains(c)).split(',').map(|v| v.trim().to_owned()).collect()
        };
        if let Some((key, list)) = requirement.split_once(" notin ") {
            label(key).is_none_or(|value| !values(list).iter().any(|v| v == value))
        } else if let Some((key, list)) = requirement.split_once(" in ") {
            label(key).is_some_and(|value| values(list).iter().any(|v| v == value))
        } else if let Some((key, value)) = requirement.split_once("!=") {
            label(key) != Some(value.trim())
        } else if let Some((key, value)) = requirement.split_once('=') {
            label(key) == Some(value.trim_start_matches('=').trim())
        } else if let Some(key) = requirement.strip_prefix('!') {
            label(key).is_none()
        } else {
            label(requirement).is_some()
        }
    })
}

/// Whether an object matches `metadata.name=x,metadata.namespace=y`.
pub fn fields_match(selector: &str, object: &Value) -> bool {
    selector.split(',').filter(|part| !part.is_empty()).all(|part| {
        let (path, value) = part.split_once('=').unwrap_or((part, ""));
        let pointer = format!("/{}", path.replace('.', "/"));
        object.pointer(&pointer).and_then(Value::as_str) == Some(value.trim_start_matches('='))
    })
}

/// Splits at the commas that are not inside parentheses.
fn requirements(selector: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in selector.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("never empty").push(c);
    }
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}
