//! The operator's program: flags, log, signals, exit codes.

mod flags;
mod stderr_log;

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use kube::{Client, Config};
use kvcache_operator::clock::system_clock;
use kvcache_operator::http;
use kvcache_operator::operator::run;
use kvcache_operator::reconcile::Reconciler;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use flags::Flags;

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    stderr_log::start(flags.log_level);
    match operate(flags).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            log::error!("{message}");
            ExitCode::FAILURE
        }
    }
}

async fn operate(flags: Flags) -> Result<(), String> {
    let plan = flags.plan(RandomState::new().hash_one(std::process::id()))?;
    let mut terminated = listen_for(SignalKind::terminate())?;
    let mut interrupted = listen_for(SignalKind::interrupt())?;
    let client = connect().await.map_err(|error| {
        format!("no way to an API server: {error}; run in a pod with a service account, or set KUBECONFIG")
    })?;
    let listener = TcpListener::bind(flags.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", flags.listen))?;
    let clock = system_clock();
    let reconciler = Arc::new(Reconciler::new(
        client,
        flags.options(),
        flags.settings(),
        Arc::clone(&clock),
        flags.identity(plan.seed),
        plan.seed,
    ));
    let (ready, is_ready) = watch::channel(false);
    let http = tokio::spawn(http::serve(listener, Arc::clone(reconciler.metrics()), is_ready, clock));
    let stop = async {
        tokio::select! { _ = terminated.recv() => {}, _ = interrupted.recv() => {} }
    };
    let ended = run(reconciler, plan, ready, stop).await;
    http.abort();
    ended.map_err(|ended| format!("ends: {ended}"))
}

async fn connect() -> Result<Client, Box<dyn Error>> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(Duration::from_secs(10));
    // A watch hears a bookmark every minute: one that hears nothing for so long has lost its server.
    config.read_timeout = Some(Duration::from_secs(295));
    Ok(Client::try_from(config)?)
}

fn listen_for(kind: SignalKind) -> Result<Signal, String> {
    signal(kind).map_err(|error| format!("cannot wait for signals: {error}"))
}
