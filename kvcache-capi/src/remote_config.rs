//! Settings of L2, which the cache and both halves have in common.

use kvcache_assembly::RemoteSettings;
use kvcache_core::fingerprint::Namespace;

use crate::json::Settings;
use crate::status::Failure;

/// Those that are of no use without "remote".
const OF_REMOTE: [&str; 9] = [
    "ingestion",
    "replicas",
    "token_file",
    "tls_ca",
    "tls_name",
    "shared_memory",
    "remote_timeout_s",
    "remote_fetch_wait_s",
    "remote_presence_wait_s",
];

/// Every setting that [`remote_of`] and [`namespace_of`] read, and `own`.
pub(crate) fn known(own: &[&'static str]) -> Vec<&'static str> {
    let mut known = own.to_vec();
    known.extend(["namespace", "namespace_id", "remote"]);
    known.extend(OF_REMOTE);
    known
}

/// L2, if `url` or the JSON's "remote" says where it is.
pub(crate) fn remote_of(json: &Settings<'_>, url: Option<String>) -> Result<Option<RemoteSettings>, Failure> {
    let Some(url) = json.text("remote")?.or(url) else {
        return match OF_REMOTE.iter().find(|name| json.has(name)) {
            Some(name) => {
                Err(json.wrong(name, "it is of no use without \"remote\": set that, or leave this out"))
            }
            None => Ok(None),
        };
    };
    let mut remote = RemoteSettings::new(url);
    if let Some(ingestion) = json.text("ingestion")? {
        remote.ingestion = ingestion;
    }
    if let Some(replicas) = json.count("replicas")? {
        remote.replicas = usize::try_from(replicas).unwrap_or(usize::MAX);
    }
    for (name, place) in [
        ("remote_timeout_s", &mut remote.timeout_s),
        ("remote_fetch_wait_s", &mut remote.fetch_wait_s),
        ("remote_presence_wait_s", &mut remote.presence_wait_s),
    ] {
        if let Some(seconds) = json.seconds(name)? {
            *place = seconds;
        }
    }
    remote.token_file = json.text("token_file")?.map(Into::into);
    remote.tls_ca = json.text("tls_ca")?.map(Into::into);
    remote.tls_name = json.text("tls_name")?;
    remote.shared_memory = json.flag("shared_memory")?.unwrap_or(true);
    Ok(Some(remote))
}

const NAME_IT: &str =
    "blocks that others can find need one: name the model and everything else that makes them different";

/// The namespace of one half of an engine, by name or as a fingerprint. With `remote` or a slab it has to be there.
pub(crate) fn namespace_of(json: &Settings<'_>, is_shared: bool) -> Result<[u8; 16], Failure> {
    match (json.text("namespace")?, json.fingerprint("namespace_id")?) {
        (Some(_), Some(_)) => {
            Err(json.wrong("namespace_id", "\"namespace\" is set as well: set the name, or its fingerprint"))
        }
        (None, None) if is_shared => Err(json.wrong("namespace", NAME_IT)),
        (Some(name), None) if is_shared && name.trim().is_empty() => Err(json.wrong("namespace", NAME_IT)),
        (name, None) => Ok(Namespace::of_text(name.as_deref().unwrap_or("")).0),
        (None, Some(id)) => Ok(id),
    }
}
