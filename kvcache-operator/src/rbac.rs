//! What the operator may do in a cluster, in one table. `deploy/` is written from it, and tests compare it with what the
//! operator asks of an API server.
//!
//! No verb on all resources, no resource of all groups, nothing executed in pods, no roles made or bound.

use serde_json::{Value, json};

/// Verbs on one kind of object, and what they are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// API group; empty for the core's.
    pub group: &'static str,
    /// Plural, with the subresource if it is about one.
    pub resource: &'static str,
    /// Verbs.
    pub verbs: &'static [&'static str],
}

const fn grant(group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Grant {
    Grant { group, resource, verbs }
}

const KVCACHES: &str = "orchestration.aibrix.ai";
const READ: &[&str] = &["get", "list", "watch"];
/// Applying an object needs `patch`, and `create` where it is not there yet.
const OWN: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// In the namespaces that are served.
pub const SERVED: &[Grant] = &[
    // Its finalizer is in the object itself, its conditions in the status.
    grant(KVCACHES, "kvcaches", &["get", "list", "watch", "patch"]),
    grant(KVCACHES, "kvcaches/status", &["patch"]),
    // Owner references that block the owner's deletion, where the cluster checks who sets them.
    grant(KVCACHES, "kvcaches/finalizers", &["update"]),
    grant("apps", "statefulsets", OWN),
    grant("", "services", OWN),
    grant("", "configmaps", OWN),
    grant("", "serviceaccounts", OWN),
    grant("policy", "poddisruptionbudgets", OWN),
    grant("", "pods", READ),
    // The passwords of Redis. Watched, by name only, once a cache names one.
    grant("", "secrets", READ),
    grant("events.k8s.io", "events", &["create", "patch"]),
];

/// In the operator's own namespace.
pub const OWN_NAMESPACE: &[Grant] = &[grant("coordination.k8s.io", "leases", &["get", "create", "update"])];

/// Whether the table has a verb on a resource of a served namespace or, for leases, of the operator's own.
pub fn allows(group: &str, resource: &str, verb: &str) -> bool {
    SERVED
        .iter()
        .chain(OWN_NAMESPACE)
        .any(|grant| grant.group == group && grant.resource == resource && grant.verbs.contains(&verb))
}

/// Grants as rules of a role.
pub fn rules(grants: &[Grant]) -> Value {
    let rule = |grant: &Grant| json!({ "apiGroups": [grant.group], "resources": [grant.resource], "verbs": grant.verbs });
    grants.iter().map(rule).collect()
}

/// Everything that `kubectl apply` needs: account, roles, bindings.
pub fn objects(namespace: &str) -> Vec<Value> {
    let account = json!({ "kind": "ServiceAccount", "name": NAME, "namespace": namespace });
    let role = |kind: &str, metadata: Value, grants: &[Grant]| json!({ "apiVersion": RBAC, "kind": kind, "metadata": metadata, "rules": rules(grants) });
    let binding = |kind: &str, role: &str, metadata: Value| {
        json!({
            "apiVersion": RBAC,
            "kind": kind,
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": NAME },
            "subjects": [account]
        })
    };
    let labels = json!({ "app.kubernetes.io/name": NAME });
    let own = json!({ "name": NAME, "namespace": namespace, "labels": labels });
    let wide = json!({ "name": NAME, "labels": labels });
    let user = |name: &str, into: &str| {
        let key = format!("rbac.authorization.k8s.io/aggregate-to-{into}");
        json!({ "name": name, "labels": { "app.kubernetes.io/name": NAME, key: "true" } })
    };
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": own }),
        role("ClusterRole", wide.clone(), SERVED),
        binding("ClusterRoleBinding", "ClusterRole", wide),
        role("Role", own.clone(), OWN_NAMESPACE),
        binding("RoleBinding", "Role", own),
        role("ClusterRole", user("kvcaches-view", "view"), VIEWERS),
        role("ClusterRole", user("kvcaches-edit", "edit"), EDITORS),
    ]
}

/// Name of the operator's account, roles and bindings.
pub const NAME: &str = "kvcache-operator";

const RBAC: &str = "rbac.authorization.k8s.io/v1";
/// People: whoever may view or edit a namespace may view or edit its caches.
pub const VIEWERS: &[Grant] = &[grant(KVCACHES, "kvcaches", READ)];
/// In addition to that.
pub const EDITORS: &[Grant] = &[
    grant(KVCACHES, "kvcaches", &["create", "update", "patch", "delete"]),
    grant(KVCACHES, "kvcaches/scale", &["get", "update", "patch"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_granted_wholesale() {
        for grant in SERVED.iter().chain(OWN_NAMESPACE).chain(VIEWERS).chain(EDITORS) {
            let all = [grant.group, grant.resource].into_iter().chain(grant.verbs.iter().copied());
            assert!(all.clone().all(|word| !word.contains('*')), "{grant:?}");
            assert!(!grant.verbs.is_empty(), "{grant:?}");
            let dangerous =
                ["pods/exec", "pods/attach", "pods/portforward", "roles", "clusterroles", "rolebindings"];
            assert!(!dangerous.contains(&grant.resource), "{grant:?}");
            assert!(
                grant.verbs.iter().all(|verb| !["escalate", "bind", "impersonate"].contains(verb)),
                "{grant:?}"
            );
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_not_allowed() {
        assert!(allows("apps", "statefulsets", "patch"));
        assert!(allows("coordination.k8s.io", "leases", "update"));
        assert!(!allows("apps", "statefulsets", "update"));
        assert!(!allows("", "secrets", "create"));
        assert!(!allows("", "pods", "delete"));
        assert!(!allows("apps", "deployments", "get"));
    }

    #[test]
    fn every_resource_stands_in_the_table_once() {
        for grants in [SERVED, OWN_NAMESPACE, VIEWERS, EDITORS] {
            for (index, grant) in grants.iter().enumerate() {
                let again = grants[..index]
                    .iter()
                    .any(|other| (other.group, other.resource) == (grant.group, grant.resource));
                assert!(!again, "{grant:?}");
            }
        }
    }
}
