//! The ring's ConfigMap as the pod of an engine has it: a folder that a kubelet keeps current.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use kvcache_core::ring::RingDocument;
use tokio::task::AbortHandle;

use crate::objects::NAMESPACE;
use crate::ring_history::RingHistory;
use crate::wait;

/// A mounted ConfigMap, for as long as it is not dropped.
pub(crate) struct MountedRing {
    folder: PathBuf,
    history: Arc<Mutex<RingHistory>>,
    task: AbortHandle,
}

impl MountedRing {
    /// Mounts the ring of a cache into a new folder, and waits until it is there.
    pub(crate) async fn follow(client: Client, cache: &str, folder: PathBuf) -> Self {
        std::fs::create_dir(&folder).expect("the test's own folder");
        let history = Arc::new(Mutex::new(RingHistory::default()));
        let task = tokio::spawn(keep(client, format!("{cache}-ring"), folder.clone(), Arc::clone(&history)));
        let mounted = Self { folder, history, task: task.abort_handle() };
        wait::until("the ring is mounted", wait::LONG, || {
            std::future::ready(mounted.folder.join("ring.json").exists().then_some(()))
        })
        .await;
        mounted
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// All rings so far that differ from the ones before.
    pub(crate) fn history(&self) -> RingHistory {
        assert!(!self.task.is_finished(), "a ring was published that is none: its panic is above");
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for MountedRing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(client: Client, name: String, folder: PathBuf, history: Arc<Mutex<RingHistory>>) {
    let maps = Api::<ConfigMap>::namespaced(client, NAMESPACE);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher(maps, config).default_backoff().boxed();
    let mut written = None;
    while let Some(event) = events.next().await {
        let Ok(Event::Apply(map) | Event::InitApply(map)) = event else { continue };
        assert_eq!(map.name_any(), name);
        let data = map.data.unwrap_or_default();
        if written.as_ref() == Some(&data) {
            continue;
        }
        if let Some(text) = data.get("ring.json") {
            let ring = RingDocument::from_json(text.as_bytes()).expect("a ring");
            history.lock().unwrap_or_else(PoisonError::into_inner).add(ring);
        }
        swap(&folder, &data).expect("the test's own folder");
        written = Some(data);
    }
}

/// Files are links to files of a folder behind a link, and that link is what changes, all at once.
fn swap(folder: &Path, data: &std::collections::BTreeMap<String, String>) -> std::io::Result<()> {
    let link = folder.join("..data");
    let old = std::fs::read_link(&link).ok();
    let number =
        old.as_ref().and_then(|old| old.to_str()?.strip_prefix("..")?.parse::<u64>().ok()).unwrap_or(0) + 1;
    let new = format!("..{number}");
    std::fs::create_dir(folder.join(&new))?;
    for (key, value) in data {
        std::fs::write(folder.join(&new).join(key), value)?;
    }
    let next = folder.join("..data_tmp");
    symlink(&new, &next)?;
    std::fs::rename(&next, &link)?;
    for key in data.keys() {
        let file = folder.join(key);
        if !file.is_symlink() {
            symlink(Path::new("..data").join(key), file)?;
        }
    }
    old.map_or(Ok(()), |old| std::fs::remove_dir_all(folder.join(old)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_text_takes_the_place_of_the_old_one() {
        let folder = tempfile::tempdir().expect("a folder");
        for text in ["one", "two", "three"] {
            swap(folder.path(), &[("ring.json".to_owned(), text.to_owned())].into()).expect("written");
            assert_eq!(std::fs::read_to_string(folder.path().join("ring.json")).expect("a file"), text);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 3);
    }
}
