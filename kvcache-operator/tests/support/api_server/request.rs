//! Requests: what a path and a query ask for, and the record of it.

use std::collections::BTreeMap;

use hyper::body::Bytes;
use hyper::http::request::Parts;
use hyper::{Method, header};
use serde_json::{Value, json};

use super::answer::Answer;
use super::faults::Fault;
use super::selector::{fields_match, labels_match};
use super::store::{Key, Store};

/// What a request does, in the words of RBAC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
}

impl Verb {
    pub fn writes(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }

    /// As RBAC spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Logged {
    /// Who sent it.
    pub client: String,
    pub at: jiff::Timestamp,
    pub verb: Verb,
    pub group: String,
    /// The resource and the subresource, as RBAC spells them: `kvcaches/status`.
    pub resource: String,
    pub name: Option<String>,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub content_type: Option<String>,
    pub body: Value,
    pub fault: Option<Fault>,
}

impl Logged {
    /// Leases and events: written beside the work.
    pub fn is_bookkeeping(&self) -> bool {
        matches!(self.resource.as_str(), "leases" | "events")
    }
}

/// A request, understood.
#[derive(Clone)]
pub struct Call {
    /// Who sent it.
    pub client: String,
    pub verb: Verb,
    pub resource: &'static Resource,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
    pub query: BTreeMap<String, String>,
    pub body: Value,
    path: String,
    content_type: Option<String>,
    is_metadata_only: bool,
}

impl Call {
    pub(super) fn parse(client: &str, parts: &Parts, body: &Bytes) -> Result<Self, Answer> {
        let path = parts.uri.path().to_owned();
        let query = query(parts.uri.query().unwrap_or_default());
        let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
        let (group, rest) = match steps.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, _version, rest @ ..] => (*group, rest),
            _ => return Err(Answer::not_found(&path)),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let [plural, rest @ ..] = rest else { return Err(Answer::not_found(&path)) };
        let resource =
            RESOURCES.iter().find(|resource| resource.group == group && resource.plural == *plural);
        let resource = resource.ok_or_else(|| Answer::not_found(&path))?;
        let (name, subresource) = (rest.first(), rest.get(1));
        let is_watch = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
        let verb = match (&parts.method, name) {
            (&Method::GET, Some(_)) => Verb::Get,
            (&Method::GET, None) if is_watch => Verb::Watch,
            (&Method::GET, None) => Verb::List,
            (&Method::POST, None) => Verb::Create,
            (&Method::PUT, Some(_)) => Verb::Update,
            (&Method::PATCH, Some(_)) => Verb::Patch,
            (&Method::DELETE, Some(_)) => Verb::Delete,
            _ => return Err(Answer::refused(405, "MethodNotAllowed", format!("{} {path}", parts.method))),
        };
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = match body.is_empty() {
            true => Value::Null,
            // YAML is a superset of JSON, and JSON is what kube sends.
            false => serde_json::from_slice(body).map_err(|error| Answer::bad_request(error.to_string()))?,
        };
        Ok(Self {
            client: client.to_owned(),
            verb,
            resource,
            namespace,
            name: name.map(|name| (*name).to_owned()),
            subresource: subresource.map(|name| (*name).to_owned()),
            query,
            body,
            content_type: text(header::CONTENT_TYPE),
            is_metadata_only: text(header::ACCEPT)
                .is_some_and(|accept| accept.contains("as=PartialObjectMetadata")),
            path,
        })
    }

    pub(super) fn logged(&self, at: jiff::Timestamp, fault: Option<Fault>) -> Logged {
        let subresource = self.subresource.iter().flat_map(|name| ["/", name.as_str()]);
        Logged {
            client: self.client.clone(),
            at,
            verb: self.verb,
            group: self.resource.group.to_owned(),
            resource: [self.resource.plural].into_iter().chain(subresource).collect(),
            name: self.name.clone().or_else(|| self.body["metadata"]["name"].as_str().map(str::to_owned)),
            path: self.path.clone(),
            query: self.query.clone(),
            content_type: self.content_type.clone(),
            body: self.body.clone(),
            fault,
        }
    }

    /// Whether an object is among those that a list or a watch asks for.
    pub(super) fn selects(&self, key: &Key, object: &Value) -> bool {
        key.plural == self.resource.plural
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && self.query.get("labelSelector").is_none_or(|selector| labels_match(selector, object))
            && self.query.get("fieldSelector").is_none_or(|selector| fields_match(selector, object))
    }

    /// An object as this request wants to see it.
    pub(super) fn view(&self, object: &Value) -> Value {
        match self.is_metadata_only {
            false => object.clone(),
            true => json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"],
            }),
        }
    }

    pub(super) fn execute(&self, store: &mut Store, now: jiff::Timestamp) -> Answer {
        self.answer(store, now).unwrap_or_else(|refused| refused)
    }

    fn answer(&self, store: &mut Store, now: jiff::Timestamp) -> Result<Answer, Answer> {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        let subresource = self.subresource.as_deref();
        if subresource.is_some_and(|name| name != "status") {
            return Err(Answer::not_found(&self.path));
        }
        let manager = self.query.get("fieldManager").map_or("unknown", String::as_str);
        let name = self.name.as_deref().or_else(|| self.body["metadata"]["name"].as_str());
        let key = Key::new(self.resource.plural, namespace, name.unwrap_or_default());
        match self.verb {
            Verb::Get => match store.get(&key) {
                Some(object) => Ok(Answer::ok(self.view(object))),
                None => Err(Answer::not_found(&key)),
            },
            Verb::List => self.list(store),
            Verb::Create if namespace.is_empty() || key.name.is_empty() => {
                Err(Answer::invalid("an object needs a name and a namespace"))
            }
            Verb::Create => store.create(&key, self.body.clone(), manager, now).map(Answer::created),
            Verb::Update => store.replace(&key, self.body.clone(), subresource, manager, now).map(Answer::ok),
            Verb::Patch => self.patch(store, &key, subresource, now).map(Answer::ok),
            Verb::Delete => store.delete(&key, &self.body, now).map(Answer::ok),
            Verb::Watch => Err(Answer::bad_request("a watch is not answered at once")),
        }
    }

    /// A page of a list. Pages are read one after the other while objects change; the watch that begins where the first
    /// page was read tells of that.
    fn list(&self, store: &Store) -> Result<Answer, Answer> {
        let number = |field| self.query.get(field).and_then(|text| text.parse::<usize>().ok());
        let limit = number("limit").filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let (revision, begin) =
            match self.query.get("continue").map(|token| token.split('/').collect::<Vec<_>>()) {
                None => (store.revision(), None),
                Some(token) => match token.as_slice() {
                    [revision, namespace, name] => {
                        let revision = revision.parse().map_err(|_| Answer::bad_request("continue"))?;
                        store.since(revision).ok_or_else(Answer::gone)?;
                        (revision, Some(Key::new(self.resource.plural, namespace, name)))
                    }
                    _ => return Err(Answer::bad_request("continue")),
                },
            };
        let mut selected = store.all(self.resource.plural).filter(|(key, object)| {
            begin.as_ref().is_none_or(|begin| *key >= begin) && self.selects(key, object)
        });
        let items: Vec<Value> = selected.by_ref().take(limit).map(|(_, object)| self.view(object)).collect();
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if let Some((key, _)) = selected.next() {
            metadata["continue"] = json!(format!("{revision}/{}/{}", key.namespace, key.name));
        }
        Ok(Answer::ok(json!({
            "apiVersion": self.resource.api_version(),
            "kind": format!("{}List", self.resource.kind),
            "metadata": metadata,
            "items": items,
        })))
    }

    fn patch(
        &self,
        store: &mut Store,
        key: &Key,
        subresource: Option<&str>,
        now: jiff::Timestamp,
    ) -> Result<Value, Answer> {
        let manager = self.query.get("fieldManager").map(String::as_str);
        match self.content_type.as_deref() {
            Some("application/apply-patch+yaml") => {
                let manager =
                    manager.ok_or_else(|| Answer::bad_request("fieldManager is required for apply patch"))?;
                let is_complete = self.body["apiVersion"] == json!(self.resource.api_version())
                    && self.body["kind"] == self.resource.kind
                    && self.body["metadata"]["name"] == json!(key.name);
                if !is_complete {
                    return Err(Answer::bad_request("apiVersion, kind and name must be those of the path"));
                }
                let force = self.query.get("force").is_some_and(|force| force == "true");
                store.apply(key, &self.body, subresource, (manager, force), now)
            }
            Some("application/merge-patch+json") => {
                store.merge(key, &self.body, subresource, manager.unwrap_or("unknown"), now)
            }
            other => Err(Answer::refused(415, "UnsupportedMediaType", format!("{other:?}"))),
        }
    }
}

/// A kind of object.
#[derive(PartialEq, Eq, Debug)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
}

impl Resource {
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }
}

const fn resource(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
) -> Resource {
    Resource { group, version, plural, kind }
}

/// What the server knows.
pub const RESOURCES: [Resource; 11] = [
    resource("orchestration.aibrix.ai", "v1alpha1", "kvcaches", "KVCache"),
    resource("apps", "v1", "statefulsets", "StatefulSet"),
    resource("", "v1", "services", "Service"),
    resource("", "v1", "configmaps", "ConfigMap"),
    resource("", "v1", "secrets", "Secret"),
    resource("", "v1", "serviceaccounts", "ServiceAccount"),
    resource("", "v1", "pods", "Pod"),
    resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    resource("coordination.k8s.io", "v1", "leases", "Lease"),
    resource("events.k8s.io", "v1", "events", "Event"),
    resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
];

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit =
                    || rest.next().and_then(|digit| (digit as char).to_digit(16)).unwrap_or(0) as u8;
                digit() * 16 + digit()
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
