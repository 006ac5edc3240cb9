//! The operator as a whole: watches, election, workers, and an orderly end.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock::Jitter;
use crate::leader::{Settings, Standing, campaign};
use crate::queue::{Next, Queue};
use crate::reconcile::Reconciler;
use crate::stores::Scope;

/// How the operator runs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The namespaces that it serves.
    pub scope: Scope,
    /// The Lease, and the namespace that it is in; none to lead without one.
    pub election: Option<(String, Settings)>,
    /// Caches that are looked at at the same time.
    pub workers: usize,
    /// Seed of all jitter.
    pub seed: u64,
}

/// Why the operator ended although nobody asked it to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// Its Lease ran out: another may lead, so it stopped at once.
    #[error("the lease was lost")]
    LeaseLost,
    /// A part of it broke.
    #[error("a worker or a watch ended")]
    Broken,
}

/// Runs until `stop`: then ends what is under way, gives the Lease back and returns. Tells `ready` once the cluster's
/// objects are known.
///
/// # Errors
///
/// If the Lease is lost. Whatever was under way is dropped where it is.
pub async fn run(
    reconciler: Arc<Reconciler>,
    plan: Plan,
    ready: watch::Sender<bool>,
    stop: impl Future<Output = ()>,
) -> Result<(), Ended> {
    let client = reconciler.client().clone();
    let queue = Arc::new(Queue::new(plan.seed));
    let stores = Arc::clone(reconciler.stores());
    let mut filled = ready.subscribe();
    // What the operator does ends when this is dropped, at the latest.
    let mut tasks: JoinSet<()> = JoinSet::new();
    tasks.spawn(stores.follow(client.clone(), plan.scope, Arc::clone(&queue), ready));

    let (stop_campaign, campaign_stopped) = watch::channel(false);
    let mut standing = start_campaign(&mut tasks, &reconciler, plan.election, plan.seed, campaign_stopped);
    let mut stop = std::pin::pin!(stop);

    let mut workers = JoinSet::new();
    let mut elected = standing.clone();
    let started = tokio::select! {
        () = &mut stop => false,
        lost = until(&mut standing, Standing::Lost) => return Err(lost),
        () = async {
            let _ = filled.wait_for(|filled| *filled).await;
            let _ = elected.wait_for(|standing| *standing == Standing::Leading).await;
        } => true,
    };
    if started {
        log::info!("leads: looks at all caches");
        reconciler.metrics().leads(true);
        // Whatever the watches told of before, another led then.
        queue.open();
        reconciler.stores().caches.keys().into_iter().for_each(|key| queue.add(key));
        for _ in 0..plan.workers.max(1) {
            workers.spawn(work(Arc::clone(&reconciler), Arc::clone(&queue)));
        }
        tokio::select! {
            biased;
            () = &mut stop => {}
            // Dropping the workers drops what they wait for.
            lost = until(&mut standing, Standing::Lost) => return Err(lost),
            _ = workers.join_next() => return Err(Ended::Broken),
            _ = tasks.join_next() => return Err(Ended::Broken),
        }
    }
    log::info!("stops: ends what is under way");
    queue.close();
    let all_done = async { while workers.join_next().await.is_some() {} };
    tokio::select! {
        _ = tokio::time::timeout(LAST_LOOKS, all_done) => {}
        lost = until(&mut standing, Standing::Lost) => return Err(lost),
    }
    workers.shutdown().await;
    reconciler.metrics().leads(false);
    // Only now: who gives the Lease back must have ended all writing.
    stop_campaign.send_replace(true);
    let _ = tokio::time::timeout(RELEASE, until(&mut standing, Standing::Following)).await;
    // The campaign says that it follows before it has written so.
    let _ = tokio::time::timeout(RELEASE, stop_campaign.closed()).await;
    Ok(())
}

fn start_campaign(
    tasks: &mut JoinSet<()>,
    reconciler: &Reconciler,
    election: Option<(String, Settings)>,
    seed: u64,
    mut stopped: watch::Receiver<bool>,
) -> watch::Receiver<Standing> {
    let Some((namespace, settings)) = election else {
        let (sender, standing) = watch::channel(Standing::Leading);
        // Kept, so that nobody takes its end for news.
        tasks.spawn(async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
            sender.send_replace(Standing::Following);
        });
        return standing;
    };
    let (sender, standing) = watch::channel(Standing::Following);
    let api: Api<Lease> = Api::namespaced(reconciler.client().clone(), &namespace);
    let clock = Arc::clone(reconciler.clock());
    tasks.spawn(async move {
        let stop = async { drop(stopped.wait_for(|stopped| *stopped).await) };
        campaign(api, settings, clock, &Jitter::new(seed), sender, stop).await;
    });
    standing
}

/// Waits for a standing. Tells that the Lease is lost, which is what all who wait here want to know.
async fn until(standing: &mut watch::Receiver<Standing>, wanted: Standing) -> Ended {
    match standing.wait_for(|standing| *standing == wanted).await {
        Ok(_) => Ended::LeaseLost,
        Err(_) => Ended::Broken,
    }
}

async fn work(reconciler: Arc<Reconciler>, queue: Arc<Queue>) {
    while let Some(key) = queue.next().await {
        reconciler.metrics().queue(queue.depth());
        let next = reconciler.look(&key).await;
        if next == Next::Never {
            log::debug!("{key}: gone");
        }
        queue.done(key, next);
    }
}

/// How long what is under way may take at the end. Kubernetes kills after 30 s.
const LAST_LOOKS: Duration = Duration::from_secs(15);
const RELEASE: Duration = Duration::from_secs(5);
