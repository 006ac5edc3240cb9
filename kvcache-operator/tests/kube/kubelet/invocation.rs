//! From a container of a pod to the command line of a process on this machine.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EnvVarSource, ObjectFieldSelector, Pod};

use super::volumes::{Keys, Mount};

/// Why a container cannot be started, as a pod's status says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn config(message: String) -> Self {
        Self { reason: "CreateContainerConfigError", message }
    }

    fn image(message: String) -> Self {
        Self { reason: "ErrImagePull", message }
    }
}

/// What images hold: the programs that containers can run here.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// `kvcache`, which is also the entry point of its image.
    pub(crate) kvcache: PathBuf,
    /// `redis-server`, for images with redis in their name.
    pub(crate) redis: Option<PathBuf>,
    /// What else there is.
    pub(crate) images: Vec<Image>,
}

/// An image of which a test says what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Image {
    /// The last part of its name, without a tag.
    pub(crate) name: String,
    /// Its entry point.
    pub(crate) program: PathBuf,
    /// Variables that the container has besides its own, for what a real one finds in files.
    pub(crate) env: Vec<(String, String)>,
}

impl Programs {
    /// Those that `make test-kube` names.
    ///
    /// # Panics
    ///
    /// Without `KVCACHE_TOOL`.
    pub(crate) fn from_env() -> Self {
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        let kvcache = path("KVCACHE_TOOL").expect("KVCACHE_TOOL names the tool: use `make test-kube`");
        Self { kvcache, redis: path("REDIS_SERVER"), images: Vec::new() }
    }

    /// What a command runs in a container of an image, and its arguments.
    pub(super) fn resolve(
        &self,
        image: &str,
        line: &[String],
    ) -> Result<(Program<'_>, Vec<String>), Refusal> {
        let named = line.first().and_then(|word| word.rsplit('/').next()).unwrap_or_default();
        let with = |program, name: &str| {
            (program, line.iter().skip(usize::from(named == name)).cloned().collect::<Vec<_>>())
        };
        let image_name =
            image.rsplit('/').next().and_then(|name| name.split([':', '@']).next()).unwrap_or_default();
        if let Some(found) = self.images.iter().find(|known| known.name == image_name) {
            return Ok(with(Program::Given(found), &found.name));
        }
        if named == "kvcache" || named == "serve" {
            return Ok(with(Program::Kvcache(&self.kvcache), "kvcache"));
        }
        // Its entry point takes flags alone.
        if named == "redis-server"
            || (image_name.contains("redis") && !named.starts_with(char::is_alphabetic))
        {
            let redis = self.redis.as_deref().ok_or_else(|| {
                Refusal::image(format!("{image}: no redis-server here, REDIS_SERVER names none"))
            })?;
            return Ok(with(Program::Redis(redis), "redis-server"));
        }
        Err(Refusal::image(format!("{image} with {line:?} is nothing that can be run here")))
    }
}

/// A program that containers run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Program<'a> {
    Kvcache(&'a Path),
    Redis(&'a Path),
    Given(&'a Image),
}

impl Program<'_> {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Kvcache(path) | Self::Redis(path) => path,
            Self::Given(image) => &image.program,
        }
    }
}

/// A flag that containers are started with, whatever their pod says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Override {
    pub(crate) flag: String,
    /// `None` for a switch.
    pub(crate) value: Option<String>,
}

/// Where a pod runs.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) ip: Ipv4Addr,
    pub(super) node: &'a str,
    /// For what the program writes.
    pub(super) folder: &'a Path,
}

/// A process to be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Invocation {
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
}

/// What a container's volumes, secrets and config maps came to.
#[derive(Clone, Default, Debug)]
pub(super) struct Fetched {
    pub(super) keys: Keys,
    pub(super) mounts: Vec<Mount>,
}

/// How a container is started.
pub(super) fn invocation(
    pod: &Pod,
    container: &Container,
    fetched: &Fetched,
    place: &Place<'_>,
    (programs, overrides): (&Programs, &[Override]),
) -> Result<Invocation, Refusal> {
    let mut env = environment(pod, container, &fetched.keys, place)?;
    let line: Vec<String> =
        container.command.iter().chain(&container.args).flatten().map(|word| expanded(word, &env)).collect();
    let (program, mut args) = programs.resolve(container.image.as_deref().unwrap_or_default(), &line)?;
    for text in args.iter_mut().chain(env.values_mut()) {
        *text = at_home(text, place.ip, &fetched.mounts);
    }
    match program {
        Program::Kvcache(_) => overrides.iter().for_each(|wanted| overwrite(&mut args, wanted)),
        Program::Redis(_) => {
            // It listens on all addresses, and writes into the folder that it is started in.
            let folder = place.folder.display().to_string();
            for (flag, value) in [("--bind", place.ip.to_string()), ("--dir", folder)] {
                overwrite(&mut args, &Override { flag: flag.to_owned(), value: Some(value) });
            }
        }
        Program::Given(image) => env.extend(image.env.iter().cloned()),
    }
    Ok(Invocation { program: program.path().to_owned(), args, env })
}

fn environment(
    pod: &Pod,
    container: &Container,
    keys: &Keys,
    place: &Place<'_>,
) -> Result<BTreeMap<String, String>, Refusal> {
    let mut env = BTreeMap::new();
    if container.env_from.as_ref().is_some_and(|sources| !sources.is_empty()) {
        return Err(Refusal::config("envFrom is not known to this kubelet".to_owned()));
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => from_source(pod, source, keys, place)
                .map_err(|message| Refusal::config(format!("env {}: {message}", variable.name)))?,
            (value, None) => Some(expanded(value.as_deref().unwrap_or_default(), &env)),
        };
        env.extend(value.map(|value| (variable.name.clone(), value)));
    }
    Ok(env)
}

/// `None` for a variable that is not set, as its source is optional and missing.
fn from_source(
    pod: &Pod,
    source: &EnvVarSource,
    keys: &Keys,
    place: &Place<'_>,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return downward(pod, field, place).map(Some);
    }
    let (wanted, is_optional) = match (&source.secret_key_ref, &source.config_map_key_ref) {
        (Some(secret), None) => (("Secret", &secret.name, &secret.key), secret.optional),
        (None, Some(map)) => (("ConfigMap", &map.name, &map.key), map.optional),
        _ => return Err(format!("this kubelet does not know {source:?}")),
    };
    let value = keys.get(&(wanted.0, wanted.1.clone(), wanted.2.clone())).cloned();
    if value.is_none() && is_optional != Some(true) {
        return Err(format!("{} {:?} has no key {:?}, or does not exist", wanted.0, wanted.1, wanted.2));
    }
    Ok(value)
}

fn downward(pod: &Pod, field: &ObjectFieldSelector, place: &Place<'_>) -> Result<String, String> {
    let path = field.field_path.as_str();
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let bracket = |map: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "spec.nodeName" => place.node.to_owned(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.podIP" | "status.podIPs" => place.ip.to_string(),
        "status.hostIP" => super::HOST_IP.to_string(),
        _ => bracket(&meta.labels, "metadata.labels")
            .or_else(|| bracket(&meta.annotations, "metadata.annotations"))
            .ok_or_else(|| format!("there is no field {path:?}"))?,
    })
}

/// The text with `$(NAME)` replaced where there is such a variable, and `$$` by one dollar, as Kubernetes does.
fn expanded(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        done.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let name = rest.strip_prefix('(').and_then(|after| after.split_once(')'));
        if let Some(after) = rest.strip_prefix('$') {
            done.push('$');
            rest = after;
        } else if let Some((value, after)) = name.and_then(|(name, after)| Some((env.get(name)?, after))) {
            done.push_str(value);
            rest = after;
        } else {
            done.push('$');
        }
    }
    done + rest
}

/// An argument as it has to be outside of a container: with the pod's address for all addresses, and real paths.
fn at_home(text: &str, ip: Ipv4Addr, mounts: &[Mount]) -> String {
    let (flag, value) = text.split_once('=').map_or(("", text), |(flag, value)| (flag, value));
    let mut value = value.to_owned();
    for anywhere in ["0.0.0.0", "[::]", "::"] {
        let after = value.strip_prefix(anywhere);
        if let Some(after) = after.filter(|after| after.is_empty() || after.starts_with(':')) {
            value = format!("{ip}{after}");
            break;
        }
    }
    for Mount { path, folder } in mounts {
        let after = value.strip_prefix(path.as_str());
        if let Some(after) = after.filter(|after| after.is_empty() || after.starts_with('/')) {
            value = format!("{}{after}", folder.display());
            break;
        }
    }
    if flag.is_empty() && !text.starts_with('=') { value } else { format!("{flag}={value}") }
}

fn overwrite(args: &mut Vec<String>, wanted: &Override) {
    let Override { flag, value } = wanted;
    let joined = format!("{flag}=");
    let at = args.iter().position(|arg| arg == flag || arg.starts_with(&joined));
    match (at, value) {
        (None, _) => args.extend([flag].into_iter().chain(value).cloned()),
        (Some(_), None) => {}
        (Some(at), Some(value)) if args[at] == *flag => {
            if at + 1 < args.len() {
                args[at + 1].clone_from(value);
            } else {
                args.push(value.clone());
            }
        }
        (Some(at), Some(value)) => args[at] = format!("{joined}{value}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(127, 70, 0, 9);

    fn programs() -> Programs {
        let image = Image {
            name: "kvcache-operator".to_owned(),
            program: "/real/operator".into(),
            env: vec![("KUBECONFIG".to_owned(), "/real/config".to_owned())],
        };
        Programs {
            kvcache: "/real/kvcache".into(),
            redis: Some("/real/redis-server".into()),
            images: vec![image],
        }
    }

    fn started(container: serde_json::Value, fetched: &Fetched) -> Result<Invocation, Refusal> {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "kv-0", "namespace": "ns", "uid": "u", "labels": {"a/b": "label"}},
        }))
        .expect("a pod");
        let container: Container = serde_json::from_value(container).expect("a container");
        let place = Place { ip: IP, node: "node-a", folder: Path::new("/work") };
        let overrides = [
            Override { flag: "--capacity".to_owned(), value: Some("64MiB".to_owned()) },
            Override { flag: "--no-shared-memory".to_owned(), value: None },
        ];
        invocation(&pod, &container, fetched, &place, (&programs(), &overrides))
    }

    #[test]
    fn a_servers_own_command_line_with_the_pods_address() {
        let container = json!({
            "name": "server", "image": "registry/kvcache:1",
            "command": ["/usr/bin/kvcache"],
            "args": ["serve", "--listen", "$(POD_IP):12345", "--manage=0.0.0.0:8088", "--capacity=30GiB",
                "--token-file", "/etc/token/value"],
            "env": [
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
                {"name": "ME", "value": "$(WHO) $$(WHO) $(NOBODY) $"},
                {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": true}}},
            ],
        });
        let fetched = Fetched {
            keys: Keys::from([(("Secret", "s".to_owned(), "k".to_owned()), "hidden".to_owned())]),
            mounts: vec![Mount { path: "/etc/token".to_owned(), folder: "/work/token".into() }],
        };
        let Invocation { program, args, env } = started(container, &fetched).expect("it can be started");
        assert_eq!(program, Path::new("/real/kvcache"));
        let expected =
            ["serve", "--listen", "127.70.0.9:12345", "--manage=127.70.0.9:8088", "--capacity=64MiB"];
        assert_eq!(args[..5], expected);
        assert_eq!(args[5..], ["--token-file", "/work/token/value", "--no-shared-memory"]);
        let named = |name: &str| env.get(name).map(String::as_str);
        assert_eq!(named("ME"), Some("label $(WHO) $(NOBODY) $"));
        assert_eq!((named("SECRET"), named("MAYBE")), (Some("hidden"), None));
    }

    #[test]
    fn an_image_without_a_command_has_an_entry_point() {
        let with = |image, args: &[&str]| {
            started(json!({"name": "c", "image": image, "args": args}), &Fetched::default())
        };
        let server = with("registry/anything", &["serve", "--capacity", "1GiB"]).expect("our image");
        assert_eq!(server.args, ["serve", "--capacity", "64MiB", "--no-shared-memory"]);
        let redis = with("redis:7.4", &["--save", ""]).expect("redis");
        assert_eq!(redis.program, Path::new("/real/redis-server"));
        assert_eq!(redis.args, ["--save", "", "--bind", "127.70.0.9", "--dir", "/work"]);
        let operator =
            with("registry:5000/kvcache-operator:0.1.0", &["--listen=0.0.0.0:8080"]).expect("given");
        assert_eq!(
            (operator.program.to_str(), operator.args),
            (Some("/real/operator"), vec!["--listen=127.70.0.9:8080".to_owned()])
        );
        assert_eq!(operator.env["KUBECONFIG"], "/real/config");
        let unknown = with("registry/anything", &["infinistore"]).expect_err("nothing of ours");
        assert_eq!(unknown.reason, "ErrImagePull");
        assert!(unknown.message.contains("infinistore"), "{unknown:?}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let secret = json!({"name": "c", "image": "i", "args": ["serve"], "env": [
            {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
        ]});
        let refusal = started(secret, &Fetched::default()).expect_err("there is no secret");
        assert_eq!(refusal.reason, "CreateContainerConfigError");
        let message = "env P: Secret \"s\" has no key \"password\", or does not exist";
        assert_eq!(refusal.message, message);
        let field = json!({"name": "c", "image": "i", "args": ["serve"], "env": [
            {"name": "P", "valueFrom": {"fieldRef": {"fieldPath": "status.nonsense"}}},
        ]});
        let refusal = started(field, &Fetched::default()).expect_err("there is no field");
        assert!(refusal.message.contains("status.nonsense"), "{refusal:?}");
    }
}
