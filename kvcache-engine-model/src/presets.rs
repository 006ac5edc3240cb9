//! Machines to start from. Each number has its origin beside it, or says that it is assumed.

use crate::profile::Profile;

/// Names of the presets.
pub const PRESET_NAMES: [&str; 3] = ["a100-8b", "h100-8b", "h100x4-70b"];

/// A preset, if there is one of that name.
pub fn preset(name: &str) -> Option<Profile> {
    let json = match name {
        "a100-8b" => include_str!("../presets/a100-8b.json"),
        "h100-8b" => include_str!("../presets/h100-8b.json"),
        "h100x4-70b" => include_str!("../presets/h100x4-70b.json"),
        _ => return None,
    };
    // A test reads each of them.
    Some(serde_json::from_str(json).expect("presets are well formed"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The names of all numbers and switches in a profile.
    fn fields(value: &Value, prefix: &str, out: &mut Vec<String>) {
        for (name, value) in value.as_object().expect("an object") {
            match value {
                Value::Object(_) if name == "origins" => {}
                Value::Object(_) => fields(value, &format!("{prefix}{name}."), out),
                Value::Number(_) | Value::Bool(_) => out.push(format!("{prefix}{name}")),
                _ => {}
            }
        }
    }

    #[test]
    fn every_number_of_a_preset_has_an_origin() {
        for name in PRESET_NAMES {
            let profile = preset(name).expect("a preset");
            assert_eq!((profile.name.as_str(), profile.check()), (name, Ok(())));
            let mut numbers = Vec::new();
            fields(&serde_json::to_value(&profile).expect("a value"), "", &mut numbers);
            numbers.sort();
            let origins: Vec<String> = profile.origins.keys().cloned().collect();
            assert_eq!(origins, numbers, "{name}");
        }
        assert_eq!(preset("a100"), None);
    }
}
