//! The objects, their history and the rules of writing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::answer::Answer;
use super::apply::{self, Manager, Owners};
use super::{defaults, request};

/// Where an object is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// The resource, in the plural, such as `pods`. No two groups here share one.
    pub plural: String,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(plural: &str, namespace: &str, name: &str) -> Self {
        Self { plural: plural.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Where an object belongs by what is written in it.
    pub fn of(object: &Value) -> Self {
        let kind = object["kind"].as_str().unwrap_or_default();
        let resource = request::RESOURCES.iter().find(|resource| resource.kind == kind);
        let resource = resource.unwrap_or_else(|| panic!("no resource of kind {kind:?}"));
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        Self { plural: resource.plural.to_owned(), namespace: text("namespace"), name: text("name") }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\" in {:?}", self.plural, self.name, self.namespace)
    }
}

/// One change, for watches. `before` and `after` decide whether it was an addition for a selector.
pub struct Change {
    pub revision: u64,
    pub key: Key,
    pub before: Option<Arc<Value>>,
    pub after: Option<Arc<Value>>,
}

struct Stored {
    object: Arc<Value>,
    owners: Owners,
}

/// All objects.
#[derive(Default)]
pub struct Store {
    revision: u64,
    uids: u64,
    objects: BTreeMap<Key, Stored>,
    history: Vec<Change>,
    compacted: u64,
}

impl Store {
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key).map(|stored| &*stored.object)
    }

    pub fn all(&self, plural: &str) -> impl Iterator<Item = (&Key, &Value)> {
        let objects = self.objects.iter().filter(move |(key, _)| key.plural == plural);
        objects.map(|(key, stored)| (key, &*stored.object))
    }

    pub fn managers(&self, key: &Key, path: &[&str]) -> Vec<String> {
        let path: Vec<String> = path.iter().map(|step| (*step).to_owned()).collect();
        let owners = self.objects.get(key).into_iter().flat_map(|stored| &stored.owners);
        owners.filter(|(_, paths)| paths.contains(&path)).map(|(manager, _)| manager.0.clone()).collect()
    }

    pub fn dump(&self) -> Vec<Value> {
        self.objects.values().map(|stored| Value::clone(&stored.object)).collect()
    }

    pub fn restore(&mut self, objects: Vec<Value>) {
        for object in objects {
            let version =
                object["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok());
            self.revision = self.revision.max(version.unwrap_or(0));
            self.uids += 1;
            self.objects.insert(Key::of(&object), Stored { object: Arc::new(object), owners: Owners::new() });
        }
        self.compacted = self.revision;
    }

    pub fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.revision;
    }

    /// Changes after a revision; `None` if the history does not reach back that far.
    pub fn since(&self, revision: u64) -> Option<&[Change]> {
        if revision < self.compacted {
            return None;
        }
        let start = self.history.partition_point(|change| change.revision <= revision);
        Some(&self.history[start..])
    }

    /// Creates or replaces, whatever its resource version.
    pub fn put(&mut self, object: Value, manager: &str, now: jiff::Timestamp) -> Result<Value, Answer> {
        let key = Key::of(&object);
        match self.objects.contains_key(&key) {
            true => self.replace(&key, object, None, manager, now),
            false => self.create(&key, object, manager, now),
        }
    }

    pub fn create(
        &mut self,
        key: &Key,
        object: Value,
        manager: &str,
        now: jiff::Timestamp,
    ) -> Result<Value, Answer> {
        if self.objects.contains_key(key) {
            return Err(Answer::refused(409, "AlreadyExists", format!("{key} already exists")));
        }
        if object["metadata"]["resourceVersion"].is_string() {
            return Err(Answer::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let object = without_status(&object, key);
        let mut owners = Owners::new();
        apply::note_update(&Value::Null, &object, &mut owners, &update(manager, ""));
        self.settle(key, None, object, owners, now)
    }

    /// Replaces an object, or only its status. A resource version in it must be the current one.
    pub fn replace(
        &mut self,
        key: &Key,
        object: Value,
        subresource: Option<&str>,
        manager: &str,
        now: jiff::Timestamp,
    ) -> Result<Value, Answer> {
        let stored = self.objects.get(key).ok_or_else(|| Answer::not_found(key))?;
        let (before, mut owners) = (Arc::clone(&stored.object), stored.owners.clone());
        check(&before, &object)?;
        let after = only(&before, object, subresource, has_status(key));
        apply::note_update(&before, &after, &mut owners, &update(manager, subresource.unwrap_or_default()));
        self.settle(key, Some(before), after, owners, now)
    }

    /// JSON merge patch (RFC 7386).
    pub fn merge(
        &mut self,
        key: &Key,
        patch: &Value,
        subresource: Option<&str>,
        manager: &str,
        now: jiff::Timestamp,
    ) -> Result<Value, Answer> {
        let mut object = self.get(key).ok_or_else(|| Answer::not_found(key))?.clone();
        // The check of a resource version in the patch needs the patch's own.
        check(&object, patch)?;
        merge_patch(&mut object, patch);
        self.replace(key, object, subresource, manager, now)
    }

    /// Server-side apply. Creates the object if there is none, but for a subresource.
    pub fn apply(
        &mut self,
        key: &Key,
        configuration: &Value,
        subresource: Option<&str>,
        (manager, force): (&str, bool),
        now: jiff::Timestamp,
    ) -> Result<Value, Answer> {
        let manager = (manager.to_owned(), "Apply", subresource.unwrap_or_default().to_owned());
        let Some(stored) = self.objects.get(key) else {
            if subresource.is_some() {
                return Err(Answer::not_found(key));
            }
            if configuration["metadata"]["uid"].is_string() {
                return Err(Answer::conflict("uid mismatch: no existing object was found"));
            }
            let (mut object, mut owners) = (json!({}), Owners::new());
            apply::apply(&mut object, &mut owners, &manager, &without_status(configuration, key), force)?;
            return self.settle(key, None, object, owners, now);
        };
        let (before, mut owners) = (Arc::clone(&stored.object), stored.owners.clone());
        check(&before, configuration)?;
        let mut object = Value::clone(&before);
        let configuration = match subresource {
            // Of a status, only the status is applied.
            Some(_) => &json!({ "status": configuration["status"].clone() }),
            // And of the rest, all but the status.
            None => &without_status(configuration, key),
        };
        apply::apply(&mut object, &mut owners, &manager, configuration, force)?;
        let after = only(&before, object, subresource, has_status(key));
        self.settle(key, Some(before), after, owners, now)
    }

    /// Deletes, or marks for deletion while there are finalizers. What the object owns goes with it.
    pub fn delete(&mut self, key: &Key, options: &Value, now: jiff::Timestamp) -> Result<Value, Answer> {
        let before = Arc::clone(&self.objects.get(key).ok_or_else(|| Answer::not_found(key))?.object);
        for field in ["uid", "resourceVersion"] {
            if let Some(wanted) = options.pointer(&format!("/preconditions/{field}"))
                && *wanted != before["metadata"][field]
            {
                return Err(Answer::conflict(format!("Precondition failed: {field} of {key}")));
            }
        }
        if before["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty()) {
            if before["metadata"]["deletionTimestamp"].is_null() {
                let mut object = Value::clone(&before);
                object["metadata"]["deletionTimestamp"] = json!(now.to_string());
                object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
                let owners = self.objects[key].owners.clone();
                return self.settle(key, Some(before), object, owners, now);
            }
            return Ok(Value::clone(&before));
        }
        self.remove(key, now);
        Ok(Value::clone(&before))
    }

    fn remove(&mut self, key: &Key, now: jiff::Timestamp) {
        let Some(stored) = self.objects.remove(key) else { return };
        self.revision += 1;
        let mut last = Value::clone(&stored.object);
        last["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.history.push(Change {
            revision: self.revision,
            key: key.clone(),
            before: Some(Arc::new(last)),
            after: None,
        });
        let uid = &stored.object["metadata"]["uid"];
        let owned_by = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == *uid))
        };
        let dependents: Vec<Key> = self
            .objects
            .iter()
            .filter(|(other, stored)| other.namespace == key.namespace && owned_by(&stored.object))
            .map(|(key, _)| key.clone())
            .collect();
        for dependent in dependents {
            // A dependent with a finalizer stays until that is gone.
            let _ = self.delete(&dependent, &Value::Null, now);
        }
    }

    /// What every write ends with: defaults, versions, generation, history.
    fn settle(
        &mut self,
        key: &Key,
        before: Option<Arc<Value>>,
        mut object: Value,
        owners: Owners,
        now: jiff::Timestamp,
    ) -> Result<Value, Answer> {
        valid(&object)?;
        let number = match before {
            Some(_) => 0,
            None => {
                self.uids += 1;
                self.uids
            }
        };
        defaults::fill(&mut object, number);
        let resource = request::RESOURCES.iter().find(|resource| resource.plural == key.plural);
        if let Some(resource) = resource {
            object["apiVersion"] = json!(resource.api_version());
            object["kind"] = json!(resource.kind);
        }
        let metadata = &mut object["metadata"];
        metadata["namespace"] = json!(key.namespace);
        metadata["name"] = json!(key.name);
        match &before {
            Some(before) => {
                for field in ["uid", "creationTimestamp", "generation", "resourceVersion"] {
                    metadata[field] = before["metadata"][field].clone();
                }
                if object == **before {
                    // Who owns what may have changed all the same.
                    if let Some(stored) = self.objects.get_mut(key) {
                        stored.owners = owners;
                    }
                    return Ok(object);
                }
                if desired(&object) != desired(before) {
                    let generation = before["metadata"]["generation"].as_i64().unwrap_or(0);
                    object["metadata"]["generation"] = json!(generation + 1);
                }
            }
            None => {
                metadata["uid"] = json!(format!("00000000-0000-0000-0000-{number:012}"));
                metadata["creationTimestamp"] = json!(now.to_string());
                metadata["generation"] = json!(1);
            }
        }
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let after = Arc::new(object);
        let revision = self.revision;
        self.history.push(Change { revision, key: key.clone(), before, after: Some(Arc::clone(&after)) });
        self.objects.insert(key.clone(), Stored { object: Arc::clone(&after), owners });
        let metadata = &after["metadata"];
        let is_held = metadata["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        if metadata["deletionTimestamp"].is_string() && !is_held {
            self.remove(key, now);
        }
        Ok(Value::clone(&after))
    }
}

fn update(manager: &str, subresource: &str) -> Manager {
    (manager.to_owned(), "Update", subresource.to_owned())
}

fn has_status(key: &Key) -> bool {
    matches!(key.plural.as_str(), "kvcaches" | "statefulsets" | "pods" | "services" | "poddisruptionbudgets")
}

/// An object but for its status, which is written apart.
fn without_status(object: &Value, key: &Key) -> Value {
    let mut object = object.clone();
    if let Value::Object(fields) = &mut object
        && has_status(key)
    {
        fields.remove("status");
    }
    object
}

/// Of a write to the status, only the status counts; of another, all else.
fn only(before: &Value, mut object: Value, subresource: Option<&str>, has_status: bool) -> Value {
    match subresource {
        Some(_) => {
            let mut after = before.clone();
            after["status"] = object["status"].take();
            after
        }
        None => {
            if has_status && let Value::Object(fields) = &mut object {
                match before.get("status") {
                    Some(status) => drop(fields.insert("status".to_owned(), status.clone())),
                    None => drop(fields.remove("status")),
                }
            }
            // Marks that only the server sets.
            for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
                if let Some(mark) = before["metadata"].get(field) {
                    object["metadata"][field] = mark.clone();
                }
            }
            object
        }
    }
}

/// Whether the write means the object as it is.
fn check(before: &Value, written: &Value) -> Result<(), Answer> {
    let version = &written["metadata"]["resourceVersion"];
    if version.is_string() && *version != before["metadata"]["resourceVersion"] {
        return Err(Answer::conflict(
            "the object has been modified; please apply your changes to the latest version",
        ));
    }
    let uid = &written["metadata"]["uid"];
    if uid.is_string() && *uid != before["metadata"]["uid"] {
        return Err(Answer::conflict("Precondition failed: UID in precondition is another"));
    }
    Ok(())
}

fn valid(object: &Value) -> Result<(), Answer> {
    let owners = object["metadata"]["ownerReferences"].as_array();
    let controllers = owners.into_iter().flatten().filter(|owner| owner["controller"] == true).count();
    if controllers > 1 {
        return Err(Answer::invalid("Only one reference can have Controller set to true"));
    }
    Ok(())
}

/// The part whose changes count as a new generation.
fn desired(object: &Value) -> BTreeMap<&String, &Value> {
    let fields = object.as_object().into_iter().flatten();
    fields.filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status")).collect()
}

fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        match value {
            Value::Null => drop(target.remove(name)),
            value => merge_patch(target.entry(name.clone()).or_insert(Value::Null), value),
        }
    }
}
