//! The cluster's objects as the watches tell of them, found by the cache that they belong to.
//!
//! A reconciliation reads from here only, so that one that finds everything as it should be asks the API server for
//! nothing. What the operator itself writes is entered at once: the watch tells of it later, and until then another
//! look would write it again.
//!
//! Of an object only what somebody reads is kept. A mirror can keep a note in place of what is large and would be read
//! again at every look.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

use crate::api::label;

/// A cache: the namespace and the name of its `KVCache`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CacheKey {
    /// Namespace of the cache and of all its objects.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The cache that an object belongs to by its label.
pub fn by_label<K: Resource>(object: &K) -> Option<CacheKey> {
    let name = object.labels().get(label::NAME)?.clone();
    Some(CacheKey { namespace: object.namespace()?, name })
}

/// The cache that a `KVCache` is.
pub fn by_name<K: Resource>(object: &K) -> Option<CacheKey> {
    Some(CacheKey { namespace: object.namespace()?, name: object.meta().name.clone()? })
}

/// Objects of one kind, fed by one watch, each with a note.
#[derive(Debug)]
pub struct Mirror<K, N = ()> {
    belongs_to: fn(&K) -> Option<CacheKey>,
    trim: fn(&mut K) -> N,
    inner: RwLock<Inner<K, N>>,
}

#[derive(Debug)]
struct Inner<K, N> {
    objects: HashMap<CacheKey, BTreeMap<String, Entry<K, N>>>,
    /// The cache of each object, as it may leave one by a change of its label. By namespace and name.
    homes: HashMap<(String, String), CacheKey>,
    /// A list that is being read; none between two.
    list: Option<List<K, N>>,
}

#[derive(Debug)]
struct List<K, N> {
    listed: Vec<Entry<K, N>>,
    /// What was written meanwhile, which it may lack.
    written: HashSet<(String, String)>,
}

#[derive(Debug)]
struct Entry<K, N> {
    object: Arc<K>,
    note: N,
}

impl<K: Resource, N: Clone> Mirror<K, N> {
    /// An empty one. `belongs_to` tells the cache of an object; `trim` takes out of it what is not to be kept, and tells
    /// what is to be known of that.
    pub fn new(belongs_to: fn(&K) -> Option<CacheKey>, trim: fn(&mut K) -> N) -> Self {
        let inner = Inner { objects: HashMap::new(), homes: HashMap::new(), list: None };
        Self { belongs_to, trim, inner: RwLock::new(inner) }
    }

    /// Takes in what the watch tells. Returns the caches that it concerns; none where it tells of what is known already,
    /// such as the operator's own writes.
    pub fn observe(&self, event: Event<K>) -> Vec<CacheKey> {
        match event {
            Event::Apply(object) => {
                // Trimmed before the others have to wait.
                let entry = self.entry(object);
                self.enter(&mut self.write(), entry)
            }
            Event::Delete(object) => {
                let mut inner = self.write();
                match inner.find(&object) {
                    // An old deletion, of an object that was created again since.
                    Some(known) if known.uid() != object.uid() && is_newer(known, &object) => Vec::new(),
                    _ => inner.drop_object(&id(&object)).into_iter().collect(),
                }
            }
            Event::Init => {
                self.write().list = Some(List { listed: Vec::new(), written: HashSet::new() });
                Vec::new()
            }
            Event::InitApply(object) => {
                let entry = self.entry(object);
                if let Some(list) = &mut self.write().list {
                    list.listed.push(entry);
                }
                Vec::new()
            }
            Event::InitDone => {
                let mut inner = self.write();
                let Some(List { listed, written }) = inner.list.take() else { return Vec::new() };
                let present: HashSet<(String, String)> =
                    listed.iter().map(|entry| id(&*entry.object)).collect();
                let gone: Vec<_> = inner.homes.keys().filter(|id| !present.contains(*id)).cloned().collect();
                let mut keys = Vec::new();
                for id in gone.into_iter().filter(|id| !written.contains(id)) {
                    keys.extend(inner.drop_object(&id));
                }
                for entry in listed {
                    keys.extend(self.enter(&mut inner, entry));
                }
                keys
            }
        }
    }

    /// Takes in what the operator wrote.
    pub fn wrote(&self, object: K) {
        let entry = self.entry(object);
        let mut inner = self.write();
        if let Some(list) = &mut inner.list {
            list.written.insert(id(&*entry.object));
        }
        self.enter(&mut inner, entry);
    }

    /// Takes out what the operator deleted.
    pub fn deleted(&self, object: &K) {
        self.write().drop_object(&id(object));
    }

    /// A cache's object of this name.
    pub fn get(&self, key: &CacheKey, name: &str) -> Option<Arc<K>> {
        self.read().objects.get(key)?.get(name).map(|entry| Arc::clone(&entry.object))
    }

    /// A cache's object of this name, and the note of it.
    pub fn noted(&self, key: &CacheKey, name: &str) -> Option<(Arc<K>, N)> {
        let inner = self.read();
        let entry = inner.objects.get(key)?.get(name)?;
        Some((Arc::clone(&entry.object), entry.note.clone()))
    }

    /// All objects of a cache, in the order of their names.
    pub fn of(&self, key: &CacheKey) -> Vec<Arc<K>> {
        let inner = self.read();
        let entries = inner.objects.get(key).into_iter().flat_map(BTreeMap::values);
        entries.map(|entry| Arc::clone(&entry.object)).collect()
    }

    /// All objects of a cache with their notes, in the order of their names.
    pub fn all_noted(&self, key: &CacheKey) -> Vec<(Arc<K>, N)> {
        let inner = self.read();
        let entries = inner.objects.get(key).into_iter().flat_map(BTreeMap::values);
        entries.map(|entry| (Arc::clone(&entry.object), entry.note.clone())).collect()
    }

    /// All caches that have such objects.
    pub fn keys(&self) -> Vec<CacheKey> {
        self.read().objects.keys().cloned().collect()
    }

    fn entry(&self, mut object: K) -> Entry<K, N> {
        let note = (self.trim)(&mut object);
        Entry { object: Arc::new(object), note }
    }

    fn enter(&self, inner: &mut Inner<K, N>, entry: Entry<K, N>) -> Vec<CacheKey> {
        let object = &*entry.object;
        if inner.find(object).is_some_and(|known| is_newer(known, object) || is_same(known, object)) {
            return Vec::new();
        }
        let id = id(object);
        let key = (self.belongs_to)(object);
        let mut keys = Vec::new();
        if inner.homes.get(&id) != key.as_ref() {
            keys.extend(inner.drop_object(&id));
        }
        if let Some(key) = key {
            inner.objects.entry(key.clone()).or_default().insert(id.1.clone(), entry);
            inner.homes.insert(id, key.clone());
            keys.push(key);
        }
        keys
    }

    // A panic while the lock is held leaves complete entries, of which the next list corrects the rest.
    fn read(&self) -> RwLockReadGuard<'_, Inner<K, N>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner<K, N>> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Resource, N> Inner<K, N> {
    fn find(&self, object: &K) -> Option<&K> {
        let id = id(object);
        self.objects.get(self.homes.get(&id)?)?.get(&id.1).map(|entry| &*entry.object)
    }

    fn drop_object(&mut self, id: &(String, String)) -> Option<CacheKey> {
        let key = self.homes.remove(id)?;
        if let Some(objects) = self.objects.get_mut(&key) {
            objects.remove(&id.1);
            if objects.is_empty() {
                self.objects.remove(&key);
            }
        }
        Some(key)
    }
}

fn id<K: Resource>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Whether an object was written later. Resource versions are numbers of one sequence (as Kubernetes promises since
/// 1.35, and etcd did before); of anything else, what comes last counts.
fn is_newer<K: Resource>(known: &K, other: &K) -> bool {
    let version = |object: &K| object.resource_version().and_then(|version| version.parse::<u64>().ok());
    matches!((version(known), version(other)), (Some(known), Some(other)) if known > other)
}

/// Whether it is one version of one object.
fn is_same<K: Resource>(known: &K, other: &K) -> bool {
    let version = |object: &K| object.resource_version().filter(|version| !version.is_empty());
    version(known).is_some() && version(known) == version(other) && known.uid() == other.uid()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn map(name: &str, cache: &str, uid: &str, version: u64) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".to_owned());
        map.metadata.name = Some(name.to_owned());
        map.metadata.uid = Some(uid.to_owned());
        map.metadata.resource_version = Some(version.to_string());
        map.metadata.labels = Some([(label::NAME.to_owned(), cache.to_owned())].into());
        map
    }

    fn key(name: &str) -> CacheKey {
        CacheKey { namespace: "ns".to_owned(), name: name.to_owned() }
    }

    fn versions(mirror: &Mirror<ConfigMap>, cache: &str) -> Vec<String> {
        mirror
            .of(&key(cache))
            .iter()
            .map(|map| format!("{}@{}", map.name_any(), map.resource_version().unwrap()))
            .collect()
    }

    #[test]
    fn objects_are_found_by_their_cache_and_move_with_their_label() {
        let mirror = Mirror::new(by_label, |_| ());
        assert_eq!(mirror.observe(Event::Apply(map("a", "one", "u", 1))), [key("one")]);
        assert_eq!(mirror.observe(Event::Apply(map("a", "two", "u", 2))), [key("one"), key("two")]);
        assert!(mirror.of(&key("one")).is_empty());
        assert_eq!(versions(&mirror, "two"), ["a@2"]);
        // A watch by label tells of a lost label as a deletion, with an object that no longer has it.
        let mut unlabelled = map("a", "", "u", 3);
        unlabelled.metadata.labels = None;
        assert_eq!(mirror.observe(Event::Delete(unlabelled)), [key("two")]);
        assert!(mirror.keys().is_empty());
    }

    #[test]
    fn what_was_written_is_not_undone_by_older_news() {
        let mirror = Mirror::new(by_label, |_| ());
        mirror.wrote(map("a", "one", "u", 5));
        assert!(mirror.observe(Event::Apply(map("a", "one", "u", 4))).is_empty());
        assert_eq!(versions(&mirror, "one"), ["a@5"]);
        // The deletion of the object that had this name before.
        assert!(mirror.observe(Event::Delete(map("a", "one", "before", 3))).is_empty());
        assert_eq!(versions(&mirror, "one"), ["a@5"]);
        assert_eq!(mirror.observe(Event::Delete(map("a", "one", "u", 6))), [key("one")]);
    }

    #[test]
    fn what_is_known_is_no_news() {
        let mirror = Mirror::new(by_label, |_| ());
        mirror.wrote(map("a", "one", "u", 5));
        assert!(mirror.observe(Event::Apply(map("a", "one", "u", 5))).is_empty(), "the echo of the write");
        assert_eq!(mirror.observe(Event::Apply(map("a", "one", "u", 6))), [key("one")]);
        // Another object, made anew with the name; its version means nothing to this one's.
        assert_eq!(mirror.observe(Event::Apply(map("a", "one", "v", 6))), [key("one")]);
        let mut unversioned = map("b", "one", "u", 0);
        unversioned.metadata.resource_version = None;
        assert_eq!(mirror.observe(Event::Apply(unversioned.clone())), [key("one")]);
        assert_eq!(mirror.observe(Event::Apply(unversioned)), [key("one")], "nobody knows");
    }

    #[test]
    fn what_is_trimmed_is_noted_however_it_comes() {
        let size = |map: &mut ConfigMap| map.data.take().map_or(0, |data| data.len());
        let mirror = Mirror::new(by_label, size);
        let with = |name: &str, version, keys: usize| {
            let data = (0..keys).map(|key| (key.to_string(), String::new())).collect();
            ConfigMap { data: Some(data), ..map(name, "one", "u", version) }
        };
        mirror.observe(Event::Init);
        mirror.observe(Event::InitApply(with("listed", 1, 3)));
        mirror.observe(Event::InitDone);
        mirror.observe(Event::Apply(with("told", 2, 4)));
        mirror.wrote(with("written", 3, 5));
        for (name, keys) in [("listed", 3), ("told", 4), ("written", 5)] {
            let (map, note) = mirror.noted(&key("one"), name).expect("known");
            assert_eq!((map.data.as_ref(), note), (None, keys), "{name}");
        }
        mirror.observe(Event::Apply(with("told", 7, 1)));
        assert_eq!(mirror.noted(&key("one"), "told").map(|(_, note)| note), Some(1));
        assert!(mirror.noted(&key("one"), "other").is_none());
    }

    #[test]
    fn a_list_replaces_all_but_what_was_written_while_it_was_read() {
        let mirror = Mirror::new(by_label, |_| ());
        mirror.observe(Event::Apply(map("gone", "one", "g", 1)));
        mirror.observe(Event::Apply(map("kept", "two", "k", 2)));
        mirror.observe(Event::Init);
        mirror.observe(Event::InitApply(map("kept", "two", "k", 2)));
        mirror.observe(Event::InitApply(map("new", "three", "n", 3)));
        mirror.wrote(map("written", "four", "w", 5));
        assert_eq!(versions(&mirror, "one"), ["gone@1"], "until the list is complete");
        let mut keys = mirror.observe(Event::InitDone);
        keys.sort();
        assert_eq!(keys, [key("one"), key("three")], "the kept one is no news");
        assert!(versions(&mirror, "one").is_empty());
        assert_eq!(versions(&mirror, "four"), ["written@5"]);
        mirror.observe(Event::Init);
        mirror.observe(Event::InitDone);
        assert!(mirror.keys().is_empty(), "the next list knows of it");
        mirror.wrote(map("written", "four", "x", 6));
        mirror.observe(Event::Init);
        mirror.observe(Event::InitDone);
        assert!(mirror.keys().is_empty(), "a list that began after the write knows of it too");
    }

    /// Watches last for weeks.
    #[test]
    fn nothing_is_kept_of_what_was_written_and_is_gone() {
        let mirror = Mirror::new(by_label, |_| ());
        mirror.observe(Event::Init);
        mirror.wrote(map("during", "one", "u", 1));
        mirror.observe(Event::InitDone);
        for version in 2..100 {
            let object = map(&version.to_string(), "one", "u", version);
            mirror.wrote(object.clone());
            mirror.observe(Event::Delete(object));
        }
        let inner = mirror.read();
        assert_eq!((inner.homes.len(), inner.list.is_none()), (1, true));
    }

    #[test]
    fn a_list_that_broke_off_is_forgotten() {
        let mirror = Mirror::new(by_label, |_| ());
        mirror.observe(Event::Init);
        mirror.observe(Event::InitApply(map("deleted", "one", "d", 1)));
        mirror.observe(Event::Init);
        mirror.observe(Event::InitApply(map("there", "two", "t", 2)));
        assert_eq!(mirror.observe(Event::InitDone), [key("two")]);
        assert_eq!(mirror.keys(), [key("two")]);
    }
}
