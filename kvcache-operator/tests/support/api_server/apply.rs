//! Server-side apply: who owns which field, what a manager may change, and what it takes away by leaving it out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::answer::Answer;
use super::fields::{self, ListKind, Path};

/// Who wrote a field: manager, `Apply` or `Update`, subresource.
pub type Manager = (String, &'static str, String);

/// The fields of an object, by manager.
pub type Owners = BTreeMap<Manager, BTreeSet<Path>>;

/// Applies a configuration to an object.
///
/// # Errors
///
/// 409 where another manager owns a field that would change, unless forced.
pub fn apply(
    live: &mut Value,
    owners: &mut Owners,
    manager: &Manager,
    configuration: &Value,
    force: bool,
) -> Result<(), Answer> {
    let wanted = fields::owned(configuration);
    let conflicts = conflicts(live, owners, manager, configuration, &wanted);
    if !conflicts.is_empty() && !force {
        let names: Vec<String> =
            conflicts.iter().map(|(owner, path)| format!("{owner:?}: {path:?}")).collect();
        return Err(Answer::conflict(format!("Apply failed with {} conflicts: {names:?}", names.len())));
    }
    for (owner, path) in conflicts {
        if let Some(paths) = owners.get_mut(&owner) {
            paths.remove(&path);
        }
    }
    let before = owners.insert(manager.clone(), wanted.clone()).unwrap_or_default();
    // The shortest first: an item goes as a whole while it still has the keys that name it.
    let mut dropped: Vec<&Path> = before.difference(&wanted).collect();
    dropped.sort_by_key(|path| path.len());
    for path in dropped {
        let is_shared = owners.values().any(|paths| paths.iter().any(|other| other.starts_with(path)));
        if !is_shared {
            fields::remove(live, path);
        }
    }
    merge(live, configuration, "");
    Ok(())
}

/// Notes who changed what by an ordinary write: changed fields belong to the writer alone.
pub fn note_update(before: &Value, after: &Value, owners: &mut Owners, manager: &Manager) {
    let now = fields::owned(after);
    let changed: BTreeSet<Path> =
        now.iter().filter(|path| fields::at(before, path) != fields::at(after, path)).cloned().collect();
    for paths in owners.values_mut() {
        paths.retain(|path| now.contains(path) && !changed.contains(path));
    }
    if !changed.is_empty() {
        owners.entry(manager.clone()).or_default().extend(changed);
    }
}

fn conflicts(
    live: &Value,
    owners: &Owners,
    manager: &Manager,
    configuration: &Value,
    wanted: &BTreeSet<Path>,
) -> Vec<(Manager, Path)> {
    let others = owners.iter().filter(|(owner, _)| *owner != manager);
    others
        .flat_map(|(owner, paths)| paths.intersection(wanted).map(move |path| (owner, path)))
        .filter(|(_, path)| fields::at(live, path) != fields::at(configuration, path))
        // An item is shared by all who own something in it.
        .filter(|(_, path)| !path.last().is_some_and(|step| step.starts_with("k:")))
        .map(|(owner, path)| (owner.clone(), path.clone()))
        .collect()
}

fn merge(live: &mut Value, configuration: &Value, field: &str) {
    match (live, configuration) {
        (Value::Object(live), Value::Object(configuration)) => {
            for (name, value) in configuration {
                merge(live.entry(name.clone()).or_insert(Value::Null), value, name);
            }
        }
        (Value::Array(live), Value::Array(configuration)) => {
            let kind = fields::list_kind(field, configuration);
            if kind == ListKind::Atomic {
                live.clone_from(configuration);
                return;
            }
            for item in configuration {
                let found = match kind {
                    ListKind::Keyed(keys) => {
                        live.iter_mut().find(|other| keys.iter().all(|key| other.get(key) == item.get(key)))
                    }
                    _ => live.iter_mut().find(|other| *other == item),
                };
                match found {
                    Some(found) => merge(found, item, ""),
                    None => live.push(item.clone()),
                }
            }
        }
        (live, configuration) => *live = configuration.clone(),
    }
}
