//! The files of `deploy/` that follow from the code.

use kube::CustomResourceExt;
use serde_json::Value;

use crate::api::KVCache;
use crate::{rbac, yaml};

/// The namespace of the manifests.
pub const NAMESPACE: &str = "kvcache-system";

/// Each file's path below `deploy/`, and its text.
///
/// # Errors
///
/// If the resource's definition cannot be written as JSON, which no change at run time can cause.
pub fn files() -> Result<Vec<(&'static str, String)>, serde_json::Error> {
    let definition = serde_json::to_value(KVCache::crd())?;
    let chart = |grants| format!("{HEADER}{}", yaml::document(&rbac::rules(grants)));
    Ok(vec![
        ("crd/kvcaches.yaml", documents(&[definition])),
        ("base/rbac.yaml", documents(&rbac::objects(NAMESPACE))),
        ("helm/kvcache-operator/files/served-rules.yaml", chart(rbac::SERVED)),
        ("helm/kvcache-operator/files/own-namespace-rules.yaml", chart(rbac::OWN_NAMESPACE)),
        ("helm/kvcache-operator/files/view-rules.yaml", chart(rbac::VIEWERS)),
        ("helm/kvcache-operator/files/edit-rules.yaml", chart(rbac::EDITORS)),
    ])
}

fn documents(objects: &[Value]) -> String {
    let texts: Vec<String> = objects.iter().map(yaml::document).collect();
    format!("{HEADER}{}", texts.join("---\n"))
}

const HEADER: &str = "# Made by `make deploy-files` from kvcache-operator/src; do not edit.\n";
