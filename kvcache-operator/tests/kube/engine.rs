//! What an engine does with a cache: it finds the servers by the cache's two ConfigMaps alone, reads through them, and
//! verifies every byte.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use serde_json::Value;

use crate::mounted_ring::MountedRing;
use crate::objects::NAMESPACE;
use crate::ring_history::explained;
use crate::ring_load::{RingLoad, number, violations};
use crate::world::World;

/// A running client of a cache.
pub(crate) struct Engine {
    load: RingLoad,
    ring: MountedRing,
}

/// What has become of an engine's values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Values that were stored and then missing.
    pub(crate) lost: u64,
    /// How many the changes of the ring explain.
    pub(crate) explained: u64,
}

impl Engine {
    /// Starts one, which finds what the cache's connection says, and waits until all its values are stored.
    pub(crate) async fn start(world: &World, cache: &str) -> Self {
        let folder = world.plane.folder().join(format!("mounted-{cache}"));
        let ring = MountedRing::follow(world.client.clone(), cache, folder).await;
        let maps = Api::<ConfigMap>::namespaced(world.client.clone(), NAMESPACE);
        let connection =
            maps.get(&format!("{cache}-connection")).await.expect("a connection").data.expect("data");
        let config: Value = serde_json::from_str(&connection["KV_TRANSFER_CONFIG"]).expect("JSON");
        let remote = config["kv_connector_extra_config"]["remote"].as_str().expect("a URL");
        // The connection names the folder of a pod.
        let mount = kvcache_operator::plan::RING_FOLDER;
        assert!(remote.contains(mount), "{remote}");
        let remote = remote.replace(mount, &ring.folder().display().to_string());
        let values = VALUES.to_string();
        // A machine that is busy is slow, and what is slow is no loss.
        let flags = [
            "--read-through",
            "--values",
            &values,
            "--value-bytes",
            "512,4096,20000",
            "--rate",
            "600",
            "--patience-ms",
            "10000",
            "--silence-ms",
            "4000",
        ];
        let load = RingLoad::start(&remote, world.plane.folder(), &flags);
        let engine = Self { load, ring };
        engine.has_all("at first").await;
        engine
    }

    pub(crate) fn ring(&self) -> &MountedRing {
        &self.ring
    }

    /// Waits until everything is stored and could be read since now.
    pub(crate) async fn has_all(&self, when: &str) -> Value {
        let is_whole = |report: &Value| report["losses"]["stored"].as_u64() == Some(VALUES);
        let report = self.load.until(&format!("all values are stored {when}"), is_whole).await;
        let read = number(&report, "/get/done");
        // A turn of all values, and those that were under way.
        let more = |report: &Value| is_whole(report) && number(report, "/get/done") > read + 2 * VALUES;
        self.load.until(&format!("all values are read {when}"), more).await
    }

    /// Ends it. It was never served a wrong byte, and lost no more since the ring of this index than that ring's changes
    /// explain.
    pub(crate) async fn end(self, since: usize) -> Outcome {
        let report = self.load.end().await;
        assert_eq!(violations(&report), 0, "{report}");
        let (lost, explained) = explained(&report, &self.ring.history().changes_since(since));
        Outcome { lost, explained }
    }
}

/// More than a few for each hundred slots, and read in a second or two.
pub(crate) const VALUES: u64 = 800;
