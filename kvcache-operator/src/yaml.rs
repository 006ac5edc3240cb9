//! YAML as people read it, from values; for the files that are generated from code.

use std::fmt::Write;

use serde_json::{Map, Value};

/// A document in block style. Keys are sorted, whatever order the value has them in, with those that say what an object
/// is first.
pub fn document(value: &Value) -> String {
    let mut text = String::new();
    block(&mut text, value, 0);
    text
}

fn block(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in sorted(object) {
                pad(text, indent);
                entry(text, key, value, indent);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                pad(text, indent);
                item(text, value, indent);
            }
        }
        other => {
            pad(text, indent);
            text.push_str(&scalar(other));
            text.push('\n');
        }
    }
}

/// `key:` and its value, behind the indentation.
fn entry(text: &mut String, key: &str, value: &Value, indent: usize) {
    // Writing to a string cannot fail.
    let _ = write!(text, "{}:", plain_or_quoted(key));
    match value {
        Value::Object(object) if !object.is_empty() => {
            text.push('\n');
            block(text, value, indent + 1);
        }
        // A list stands no deeper than its key, as kubectl prints it.
        Value::Array(list) if !list.is_empty() => {
            text.push('\n');
            block(text, value, indent);
        }
        other => {
            let _ = writeln!(text, " {}", scalar(other));
        }
    }
}

/// `- ` and its value; an object's first key stands in the same line.
fn item(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (index, (key, value)) in sorted(object).into_iter().enumerate() {
                if index == 0 {
                    text.push_str("- ");
                } else {
                    pad(text, indent + 1);
                }
                entry(text, key, value, indent + 1);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            text.push_str("-\n");
            block(text, value, indent + 1);
        }
        other => {
            let _ = writeln!(text, "- {}", scalar(other));
        }
    }
}

fn sorted(object: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = object.iter().collect();
    entries
        .sort_by_key(|(key, _)| (FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len()), *key));
    entries
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(string) => plain_or_quoted(string),
        // Numbers, booleans, null, `{}` and `[]` are the same in YAML.
        other => other.to_string(),
    }
}

/// Without quotes only what no version of YAML takes for anything but a string. JSON's quotes are YAML's as well.
fn plain_or_quoted(string: &str) -> String {
    let plain = string.starts_with(|c: char| c.is_ascii_alphabetic())
        && string.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte))
        && !NOT_STRINGS.contains(&string.to_ascii_lowercase().as_str());
    if plain { string.to_owned() } else { Value::from(string).to_string() }
}

fn pad(text: &mut String, indent: usize) {
    for _ in 0..indent {
        text.push_str("  ");
    }
}

const FIRST: [&str; 4] = ["apiVersion", "kind", "metadata", "name"];
const NOT_STRINGS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_lists_and_scalars_in_block_style() {
        let value = json!({
            "spec": { "list": [{ "b": 1, "name": "x" }, "plain", [1, 2], []], "empty": {} },
            "kind": "K"
        });
        let text = "\
kind: K
spec:
  empty: {}
  list:
  - name: x
    b: 1
  - plain
  -
    - 1
    - 2
  - []
";
        assert_eq!(document(&value), text);
    }

    #[test]
    fn strings_stay_strings() {
        for string in ["yes", "Null", "1", "", "*", "a: b", "two\nlines", "- x", "it's", "#", "1e3", "~"] {
            assert_eq!(document(&json!(string)), format!("{}\n", json!(string)), "{string}");
        }
        assert_eq!(document(&json!("apps/v1")), "apps/v1\n");
    }
}
