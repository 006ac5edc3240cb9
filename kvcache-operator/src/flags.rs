//! What the program can be told.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use kvcache_operator::api::{Backend, Options};
use kvcache_operator::leader;
use kvcache_operator::operator::Plan;
use kvcache_operator::reconcile::Settings;
use kvcache_operator::stores::Scope;
use log::LevelFilter;

/// Turns KVCache resources into running, stable rings of cache servers.
///
/// Ends with 0 when it is told to (SIGTERM, SIGINT), having finished what was under way and given its lease back; with 1
/// if it lost its lease or cannot start.
#[derive(Parser, Debug)]
#[command(name = "kvcache-operator", version)]
pub(crate) struct Flags {
    /// The one namespace whose caches are served; all of them if left out.
    #[arg(long, env = "WATCH_NAMESPACE", value_parser = name)]
    watch_namespace: Option<String>,

    /// Backends of AIBrix to serve as well, separated by commas: infinistore. AIBrix's own controller must not run then.
    #[arg(long, value_delimiter = ',')]
    adopt_backends: Vec<Backend>,

    /// Image of the servers of caches that name none.
    #[arg(long, default_value = concat!("kvcache-server:", env!("CARGO_PKG_VERSION")), value_parser = name)]
    server_image: String,

    /// Image of Redis for caches that ask for one and name none.
    #[arg(long, default_value = "redis:7.4", value_parser = name)]
    redis_image: String,

    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub(crate) listen: SocketAddr,

    /// Whether operators agree by a lease on one that works. Without it there must be one only.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    leader_election: bool,

    /// The name of the lease.
    #[arg(long, default_value = "kvcache-operator", value_parser = name)]
    lease: String,

    /// The namespace of the lease: the operator's own.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default", value_parser = name)]
    lease_namespace: String,

    /// Seconds for which others wait for the holder of the lease.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(3..=3600))]
    lease_seconds: u32,

    /// Seconds after its last renewal at which the holder stops; less than --lease-seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=3600))]
    renew_seconds: u32,

    /// Seconds between two attempts to take or renew the lease; less than --renew-seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=600))]
    retry_seconds: u32,

    /// This operator's name among its replicas; a random one if left out.
    #[arg(long, env = "POD_NAME", value_parser = name)]
    identity: Option<String>,

    /// Seconds after which a cache is looked at although nothing happened; spread by half as much again.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86400))]
    resync_seconds: u32,

    /// Caches that are worked on at the same time.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,

    /// What is logged: off, error, warn, info, debug or trace.
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_parser = level)]
    pub(crate) log_level: LevelFilter,
}

impl Flags {
    /// How the operator runs.
    pub(crate) fn plan(&self, seed: u64) -> Result<Plan, String> {
        if self.renew_seconds >= self.lease_seconds {
            return Err("--renew-seconds must be less than --lease-seconds".to_owned());
        }
        if self.retry_seconds >= self.renew_seconds {
            return Err("--retry-seconds must be less than --renew-seconds".to_owned());
        }
        let election = self.leader_election.then(|| {
            let settings = leader::Settings {
                name: self.lease.clone(),
                identity: self.identity(seed),
                duration: seconds(self.lease_seconds),
                renew_within: seconds(self.renew_seconds),
                retry: seconds(self.retry_seconds),
            };
            (self.lease_namespace.clone(), settings)
        });
        let scope = self.watch_namespace.clone().map_or(Scope::All, Scope::Namespace);
        Ok(Plan { scope, election, workers: self.workers.into(), seed })
    }

    /// What holds for all caches.
    pub(crate) fn options(&self) -> Options {
        Options {
            adopt: self.adopt_backends.iter().copied().collect::<BTreeSet<_>>(),
            server_image: self.server_image.clone(),
            redis_image: self.redis_image.clone(),
        }
    }

    /// The times of a look.
    pub(crate) fn settings(&self) -> Settings {
        Settings { resync: seconds(self.resync_seconds), ..Settings::default() }
    }

    /// The pod's name, or one that no other has: in containers, all processes are the first. The same for one seed.
    pub(crate) fn identity(&self, seed: u64) -> String {
        self.identity.clone().unwrap_or_else(|| format!("process-{seed:016x}"))
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

fn level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| "off, error, warn, info, debug or trace".to_owned())
}

fn name(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("must not be empty") } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn flags(arguments: &[&str]) -> Flags {
        Flags::try_parse_from([&["kvcache-operator"], arguments].concat()).expect("valid flags")
    }

    #[test]
    fn every_flag_is_explained() {
        Flags::command().debug_assert();
        for argument in Flags::command().get_arguments() {
            assert!(argument.get_help().is_some(), "--{}", argument.get_id());
        }
    }

    #[test]
    fn flags_say_how_to_run() {
        let plan = flags(&["--watch-namespace=models", "--identity=a"]).plan(1).expect("a plan");
        assert_eq!(plan.scope, Scope::Namespace("models".to_owned()));
        let (_, settings) = plan.election.expect("elected by default");
        assert_eq!((settings.identity.as_str(), settings.duration.as_secs()), ("a", 15));
        assert!(flags(&["--leader-election=false"]).plan(1).expect("a plan").election.is_none());
        assert!(flags(&["--adopt-backends=infinistore"]).options().adopt.contains(&Backend::InfiniStore));
    }

    /// Two operators of one name would both take themselves for the leader.
    #[test]
    fn an_operator_without_a_name_has_one_that_no_other_has() {
        let flags = Flags { identity: None, ..flags(&[]) };
        let identity =
            |seed| flags.plan(seed).expect("a plan").election.expect("elected by default").1.identity;
        assert_ne!(identity(1), identity(2));
        assert_eq!(identity(1), flags.identity(1), "events have it too");
    }

    #[test]
    fn times_that_cannot_work_are_refused() {
        for wrong in [&["--renew-seconds=15"], &["--retry-seconds=10"]] {
            assert!(flags(wrong).plan(1).is_err(), "{wrong:?}");
        }
        for wrong in [
            "--lease-seconds=0",
            "--adopt-backends=vineyard",
            "--watch-namespace=",
            "--identity=",
            "--listen=here",
        ] {
            assert!(Flags::try_parse_from(["kvcache-operator", wrong]).is_err(), "{wrong}");
        }
    }
}
