//! The objects of a few caches, to the byte. `UPDATE_GOLDEN=1 cargo nextest run -p kvcache-operator golden` writes
//! them anew: read the difference before you commit it.

use std::path::Path;

use kvcache_rdma::members::{MembersFrom, PlacementSource, RemoteUrl, Transport};

use super::*;

#[test]
fn objects_are_those_of_the_golden_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for (shape, accepted) in shapes() {
        let file = folder.join(format!("{shape}.json"));
        let mut text = serde_json::to_string_pretty(&sent(&accepted)).expect("JSON");
        text.push('\n');
        if update {
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(&file, text).expect("a file");
            continue;
        }
        let golden =
            std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(
            text == golden,
            "{shape} differs from {}: see UPDATE_GOLDEN in this file\n{text}",
            file.display()
        );
    }
}

/// What engines are told is what our own client understands.
#[test]
fn connections_are_read_by_the_client_that_they_are_for() {
    for (shape, accepted) in shapes() {
        let map = one(&accepted, "ConfigMap", "prompts-connection");
        let config: Value =
            serde_json::from_str(map["data"]["KV_TRANSFER_CONFIG"].as_str().expect("a text")).expect("JSON");
        assert_eq!(config["kv_connector"], "AIBrixOffloadingConnectorV1Type3");
        let remote = config["kv_connector_extra_config"]["remote"].as_str().expect("a text");
        let remote: RemoteUrl = remote.parse().unwrap_or_else(|error| panic!("{shape}: {error}"));
        assert_eq!(remote.members, MembersFrom::File("/etc/kvcache/ring/ring.json".into()));
        assert_eq!(remote.placement, PlacementSource::Published);
        let rdma = ["kvcache_rdma_redis", "infinistore_as_aibrix", "infinistore_template_external_redis"];
        let transport = if rdma.contains(&shape) { Transport::Rdma } else { Transport::Tcp };
        assert_eq!(remote.transport, transport, "{shape}");
        let engine = map["data"]["engine.yaml"].as_str().expect("a text");
        for part in
            ["{name: prompts-connection}", "mountPath: /etc/kvcache/ring,", "{name: prompts-ring, optional"]
        {
            assert!(engine.contains(part), "{part} in {engine}");
        }
    }
}

/// The variables say what AIBrix's engines, and ours, put together to a URL.
#[test]
fn aibrix_variables_lead_to_the_ring_in_redis() {
    let variable = |accepted: &Accepted, name: &str| {
        let map = one(accepted, "ConfigMap", "prompts-connection");
        map["data"][format!("AIBRIX_KV_CACHE_OL_{name}")].as_str().map(str::to_owned)
    };
    let url = |accepted: &Accepted| {
        let server = variable(accepted, "META_SERVICE_URL")?;
        let key = variable(accepted, "META_SERVICE_CLUSTER_META_KEY")?;
        Some(format!("{server}/{key}").parse::<RemoteUrl>().expect("a URL").to_string())
    };
    let shapes = shapes();
    let of = |name: &str| &shapes.iter().find(|(shape, _)| *shape == name).expect("a shape").1;
    let redis = "redis://prompts-redis.models.svc:6379/0";
    assert_eq!(
        url(of("kvcache_rdma_redis")),
        Some(format!("{redis}/kvcache_nodes/models/prompts?transport=tcp"))
    );
    assert_eq!(url(of("infinistore_as_aibrix")), Some(format!("{redis}/kvcache_nodes?transport=tcp")));
    assert_eq!(variable(of("infinistore_as_aibrix"), "INFINISTORE_CONNECTION_TYPE").as_deref(), Some("RDMA"));
    for secretive in ["kvcache", "redis_with_password", "infinistore_template_external_redis"] {
        assert_eq!(url(of(secretive)), None, "{secretive}");
    }
    let external = accepted(
        "kvcache",
        json!({"metadata": {"redis": {"externalConnection": {"address": "[fd00::7]:7000"}}}}),
    );
    assert_eq!(url(&external).as_deref(), Some("redis://[fd00::7]:7000/0/kvcache_nodes?transport=tcp"));
    assert_eq!(variable(&external, "INFINISTORE_CONNECTION_TYPE").as_deref(), Some("TCP"));
}
