//! The cache's name, from which the names of its objects are made.

use crate::api::KVCache;
use crate::api::refusal::Problems;

/// The longest name of an object is `<name>-headless-service`, and a Service's name is a label of 63 characters. The
/// names of pods and revisions, which become labels too, are shorter.
const NAME_CHARACTERS_MAX: usize = 63 - "-headless-service".len();

/// The name, which becomes that of Services: stricter than what names of resources may be.
pub(super) fn name(cache: &KVCache, problems: &mut Problems) -> String {
    let name = cache.metadata.name.clone().unwrap_or_default();
    if name.len() > NAME_CHARACTERS_MAX {
        problems.add(
            "metadata.name",
            format!(
                "{name:?} has {} characters: take one of at most {NAME_CHARACTERS_MAX}, since \
                 {name}-headless-service is the name of a Service",
                name.len()
            ),
        );
    } else if !is_label(&name) {
        problems.add(
            "metadata.name",
            format!(
                "{name:?} cannot be the name of a Service: take one of small letters, digits and dashes that starts \
                 with a letter and ends with a letter or a digit"
            ),
        );
    }
    name
}

/// A label as in RFC 1035: what a Service can be called.
fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.bytes().all(inner) && name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.ends_with('-')
}
