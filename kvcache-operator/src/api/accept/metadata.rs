//! The store of the ring for AIBrix's engines.

use k8s_openapi::api::core::v1::EnvVar;

use super::{containers, pods};
use crate::api::refusal::Problems;
use crate::api::{
    ExternalConnection, Metadata, MetadataSpec, Options, Reason, RedisRuntime, RuntimeSpec, SecretKey,
};

const REDIS: &str = "spec.metadata.redis";
/// The variable that turns the password of a Redis in the cluster on.
pub(crate) const REDIS_PASSWORD: &str = "REDIS_PASSWORD";

/// The store, and [`Metadata::None`] also where there is a problem.
pub(super) fn store(metadata: Option<&MetadataSpec>, options: &Options, problems: &mut Problems) -> Metadata {
    let Some(metadata) = metadata else { return Metadata::None };
    if metadata.etcd.is_some() {
        problems.add_as(
            Reason::UnsupportedMetadata,
            "spec.metadata.etcd",
            "etcd is vineyard's and not served: use spec.metadata.redis, or leave spec.metadata out (the ring is in a \
             ConfigMap anyway)",
        );
    }
    let Some(redis) = &metadata.redis else {
        if metadata.etcd.is_none() {
            problems.add("spec.metadata", "it names no store: give it redis, or leave it out");
        }
        return Metadata::None;
    };
    match (&redis.external_connection, &redis.runtime) {
        (Some(_), Some(_)) => {
            problems.add(REDIS, "it has both externalConnection and runtime: keep one of them");
            Metadata::None
        }
        (None, None) => {
            problems.add(REDIS, "it has neither externalConnection nor runtime: give one of them");
            Metadata::None
        }
        (Some(connection), None) => external(connection, problems).unwrap_or(Metadata::None),
        (None, Some(runtime)) => in_cluster(runtime, options, problems),
    }
}

fn external(connection: &ExternalConnection, problems: &mut Problems) -> Option<Metadata> {
    let field = format!("{REDIS}.externalConnection");
    let text = connection.address.as_deref().unwrap_or_default().trim();
    let address = host_port(text).map_err(|why| {
        problems.add(
            format!("{field}.address"),
            format!("{text:?} {why}: write host:port, as in redis.example:6379"),
        );
    });
    let reference = connection.password_secret_ref.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let password = reference.map(secret_key).transpose().map_err(|why| {
        let text = reference.unwrap_or_default();
        problems.add(
            format!("{field}.passwordSecretRef"),
            format!("{text:?} {why}: write secret (the key is then password) or secret/key"),
        );
    });
    let ((host, port), password) = (address.ok()?, password.ok()?);
    Some(Metadata::External { host, port, password })
}

/// A host and a port; brackets around an IPv6 address are taken off.
fn host_port(text: &str) -> Result<(String, u16), &'static str> {
    if text.is_empty() {
        return Err("is no address");
    }
    if text.contains("://") {
        return Err("has a scheme, and only the host and the port are wanted");
    }
    let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
    // `parse` alone would take "+1".
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| digits && *port > 0);
    let port = port.ok_or("has a port that is no number from 1 to 65535")?;
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let address =
            inner.parse::<std::net::Ipv6Addr>().map_err(|_| "has no IPv6 address in its brackets")?;
        return Ok((address.to_string(), port));
    }
    if host.contains(':') {
        return Err("has several colons (an IPv6 address stands in brackets)");
    }
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if host.is_empty() || !host.bytes().all(known) {
        return Err("has no host's name before the port");
    }
    Ok((host.to_owned(), port))
}

fn secret_key(text: &str) -> Result<SecretKey, &'static str> {
    let (secret, key) = text.split_once('/').unwrap_or((text, "password"));
    let is_name =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if secret.len() > 253
        || !secret.bytes().all(is_name)
        || !secret.starts_with(edge)
        || !secret.ends_with(edge)
    {
        return Err("does not name a Secret (small letters, digits, dashes and dots)");
    }
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if key.is_empty() || key.len() > 253 || !key.bytes().all(is_key) {
        return Err("does not name a key of a Secret (letters, digits, -, _ and .)");
    }
    Ok(SecretKey { secret: secret.to_owned(), key: key.to_owned() })
}

fn in_cluster(runtime: &RuntimeSpec, options: &Options, problems: &mut Problems) -> Metadata {
    let field = format!("{REDIS}.runtime");
    if let Some(replicas) = runtime.replicas.filter(|replicas| *replicas != 1) {
        problems.add(
            format!("{field}.replicas"),
            format!(
                "{replicas} cannot be: one Redis is run, since several would not know of each other; give 1, or an \
                 externalConnection to a replicated one"
            ),
        );
    }
    let template = runtime.template.as_ref();
    let env = containers::env(&format!("{field}.env"), runtime.env.as_deref().unwrap_or_default(), problems);
    let image = runtime.image.as_deref().map(str::trim).filter(|image| !image.is_empty());
    Metadata::InCluster(Box::new(RedisRuntime {
        image: image.unwrap_or(&options.redis_image).to_owned(),
        pull_policy: containers::pull_policy(
            &format!("{field}.imagePullPolicy"),
            runtime.image_pull_policy.as_deref(),
            problems,
        ),
        password: password(&field, &env, problems),
        env,
        resources: containers::resources(&format!("{field}.resources"), runtime.resources.as_ref(), problems),
        template: template
            .and_then(|template| pods::template(&format!("{field}.template"), template, "redis", problems)),
    }))
}

/// Where the password of a Redis in the cluster is. Without one it is open to the cluster's network, as AIBrix's is,
/// whose engines could not give one.
fn password(field: &str, env: &[EnvVar], problems: &mut Problems) -> Option<SecretKey> {
    let variable = env.iter().find(|variable| variable.name == REDIS_PASSWORD)?;
    let reference = variable.value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref());
    match reference {
        Some(reference) if !reference.name.is_empty() => {
            Some(SecretKey { secret: reference.name.clone(), key: reference.key.clone() })
        }
        _ => {
            problems.add(
                format!("{field}.env[{REDIS_PASSWORD}]"),
                "it is in the open: take it from a Secret, with valueFrom.secretKeyRef",
            );
            None
        }
    }
}
