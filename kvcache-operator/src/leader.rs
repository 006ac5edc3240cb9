//! One operator at a time, by a Lease.
//!
//! The holder writes the Lease every few seconds. Whoever sees it unchanged for its whole duration, by his own clock,
//! may take it. The holder stops [`Settings::renew_within`] after the *sending* of its last successful renewal, and
//! that is shorter than the duration: before anyone else can begin, whatever the clocks of the machines say
//! (the scheme of client-go's leaderelection). The ring's version fences what a request on its way could still do.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::apply::FIELD_MANAGER;
use crate::clock::{Clock, Jitter};
use crate::error::{Error, answered};

/// Which Lease, and how long it lasts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The Lease's name.
    pub name: String,
    /// Who this operator is: unique among its replicas, such as its pod's name.
    pub identity: String,
    /// For how long others wait for a renewal.
    pub duration: Duration,
    /// For how long this operator acts after a renewal. Shorter than the duration.
    pub renew_within: Duration,
    /// Between two attempts to take or renew it.
    pub retry: Duration,
}

/// What this operator may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Another leads, or nobody knows: watch, and write nothing.
    Following,
    /// Reconcile.
    Leading,
    /// Led, and could not renew: to end, so that nothing goes on from what was believed before.
    Lost,
}

/// The Lease as it was last seen to change.
#[derive(Default, Debug)]
struct Seen {
    spec: Option<LeaseSpec>,
    at: Option<Instant>,
}

/// Takes the Lease when it is free and keeps it, until `stop` or until it is lost. Tells `standing` of every change.
///
/// Returns at once when the Lease is lost. After `stop` it gives the Lease back, so that another need not wait; whoever
/// stops it has ended all reconciling before.
pub async fn campaign(
    api: Api<Lease>,
    settings: Settings,
    clock: Clock,
    jitter: &Jitter,
    standing: watch::Sender<Standing>,
    stop: impl Future<Output = ()>,
) {
    let mut seen = Seen::default();
    let mut held_since = None;
    let mut stop = std::pin::pin!(stop);
    loop {
        let sent = Instant::now();
        let attempt = attempt(&api, &settings, &clock, &mut seen, held_since.is_some());
        // The end of what is held comes even while a request hangs.
        let end = held_since.map(|since: Instant| since + settings.renew_within);
        let result = tokio::select! {
            result = attempt => result,
            () = expired(end) => Ok(false),
            () = &mut stop => break,
        };
        match result {
            Ok(true) => {
                held_since = Some(sent);
                standing
                    .send_if_modified(|now| std::mem::replace(now, Standing::Leading) != Standing::Leading);
            }
            Ok(false) if held_since.is_some() => {
                standing.send_replace(Standing::Lost);
                return;
            }
            Ok(false) => {}
            Err(error) => log::warn!("lease {}: {error}", settings.name),
        }
        let end = held_since.map(|since: Instant| since + settings.renew_within);
        tokio::select! {
            () = sleep(jitter.spread(settings.retry)) => {}
            () = expired(end) => {
                standing.send_replace(Standing::Lost);
                return;
            }
            () = &mut stop => break,
        }
    }
    if held_since.is_some() {
        standing.send_replace(Standing::Following);
        if let Err(error) = release(&api, &settings).await {
            log::warn!("lease {}: not given back: {error}", settings.name);
        }
    }
}

async fn expired(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// One look at the Lease, and one write if it is ours to write. Whether it is ours afterwards.
async fn attempt(
    api: &Api<Lease>,
    settings: &Settings,
    clock: &Clock,
    seen: &mut Seen,
    is_held: bool,
) -> Result<bool, Error> {
    let lease = answered("get lease", api.get_opt(&settings.name)).await?;
    let spec = lease.as_ref().and_then(|lease| lease.spec.clone());
    if seen.at.is_none() || seen.spec != spec {
        *seen = Seen { spec: spec.clone(), at: Some(Instant::now()) };
    }
    let age = seen.at.map_or(Duration::ZERO, |at| at.elapsed());
    let Some(next) = next(spec.as_ref(), age, settings, clock(), is_held) else { return Ok(false) };
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let written = match lease {
        Some(mut lease) => {
            // Its resource version makes this fail if another was faster.
            lease.spec = Some(next);
            answered("renew lease", api.replace(&settings.name, &params, &lease)).await?
        }
        None => {
            let mut lease = Lease { spec: Some(next), ..Lease::default() };
            lease.metadata.name = Some(settings.name.clone());
            answered("create lease", api.create(&params, &lease)).await?
        }
    };
    *seen = Seen { spec: written.spec, at: Some(Instant::now()) };
    Ok(true)
}

/// What to write into the Lease, if it may be written: it is ours, given back, or unchanged for its whole duration.
fn next(
    spec: Option<&LeaseSpec>,
    unchanged_for: Duration,
    settings: &Settings,
    now: Timestamp,
    is_held: bool,
) -> Option<LeaseSpec> {
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty());
    let is_ours = holder == Some(&*settings.identity);
    // A lease that this process held and that another has taken since is lost, even if it could be taken again.
    if is_held && !is_ours {
        return None;
    }
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    let duration = seconds.map_or(settings.duration, Duration::from_secs);
    if !is_ours && holder.is_some() && unchanged_for < duration {
        return None;
    }
    let transitions = spec.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    let acquired = spec.and_then(|spec| spec.acquire_time.clone()).filter(|_| is_ours);
    Some(LeaseSpec {
        holder_identity: Some(settings.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(settings.duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: acquired.or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if is_ours { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    })
}

async fn release(api: &Api<Lease>, settings: &Settings) -> Result<(), Error> {
    let Some(mut lease) = answered("get lease", api.get_opt(&settings.name)).await? else { return Ok(()) };
    let Some(spec) = &mut lease.spec else { return Ok(()) };
    if spec.holder_identity.as_deref() != Some(&settings.identity) {
        return Ok(());
    }
    spec.holder_identity = Some(String::new());
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    answered("release lease", api.replace(&settings.name, &params, &lease)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            name: "lease".to_owned(),
            identity: "me".to_owned(),
            duration: Duration::from_secs(15),
            renew_within: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            acquire_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            ..LeaseSpec::default()
        }
    }

    fn after(seconds: u64, spec: Option<&LeaseSpec>, is_held: bool) -> Option<LeaseSpec> {
        next(spec, Duration::from_secs(seconds), &settings(), Timestamp::constant(99, 0), is_held)
    }

    #[test]
    fn a_lease_is_taken_when_free_and_no_earlier() {
        assert!(after(0, None, false).is_some(), "none");
        assert!(after(0, Some(&held_by("")), false).is_some(), "given back");
        assert!(after(14, Some(&held_by("other")), false).is_none(), "renewed lately");
        let taken = after(15, Some(&held_by("other")), false).expect("expired");
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("me"), Some(4)));
        assert_eq!(taken.acquire_time, Some(MicroTime(Timestamp::constant(99, 0))));
    }

    #[test]
    fn a_renewal_keeps_the_time_of_acquisition_and_counts_no_transition() {
        let renewed = after(1, Some(&held_by("me")), true).expect("ours");
        assert_eq!(renewed.lease_transitions, Some(3));
        assert_eq!(renewed.acquire_time, Some(MicroTime(Timestamp::UNIX_EPOCH)));
        assert_eq!(renewed.renew_time, Some(MicroTime(Timestamp::constant(99, 0))));
    }

    #[test]
    fn what_another_took_is_not_taken_back_by_who_led() {
        assert!(after(60, Some(&held_by("other")), true).is_none());
        assert!(after(60, None, true).is_none(), "deleted under us");
    }
}
