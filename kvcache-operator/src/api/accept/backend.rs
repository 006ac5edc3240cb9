//! Whose cache it is.

use std::collections::BTreeSet;

use crate::api::refusal::Problems;
use crate::api::{Backend, KVCache, Reason, annotation};

/// The backend, if this operator serves it. What it does not serve may be AIBrix's.
pub(super) fn claimed(
    cache: &KVCache,
    adopt: &BTreeSet<Backend>,
    problems: &mut Problems,
) -> Option<Backend> {
    let field = format!("metadata.annotations[{}]", annotation::BACKEND);
    let name = cache.metadata.annotations.as_ref().and_then(|all| all.get(annotation::BACKEND));
    let message = match name.map(|name| (name, name.parse::<Backend>())) {
        Some((_, Ok(backend))) if backend == Backend::KvCache || adopt.contains(&backend) => {
            return Some(backend);
        }
        Some((name, Ok(_))) => format!(
            "{name:?} is left to AIBrix's controller: write \"kvcache\" to run this operator's server, or start the \
             operator with --adopt-backends {name} where AIBrix's controller does not run"
        ),
        Some((name, Err(_))) => {
            format!("{name:?} is not served here: write \"kvcache\" to have this operator serve it")
        }
        None => "the annotation is missing, which means vineyard to AIBrix: write \"kvcache\" to have this operator \
                 serve it"
            .to_owned(),
    };
    problems.add_as(Reason::UnknownBackend, field, message);
    None
}
