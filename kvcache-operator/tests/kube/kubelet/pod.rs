//! The life of one pod: from its binding to the removal of its object.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::invocation::{Invocation, Place, Refusal, invocation};
use super::probe::{Check, Health, Probes};
use super::status::{Ended, PodState, State};
use super::{Entry, Order, PodEnd, Shared, locked, volumes};
use crate::loopback::LoopbackAddress;
use crate::process::{Process, command};

/// What becomes of a container.
enum Next {
    /// It ended, or has to be: another one, here.
    Restart,
    /// The same at another address.
    Move,
    /// The pod was deleted: it is asked to end within this time.
    Terminate { grace: Duration },
    /// Nobody knows the pod any more.
    Vanish,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    api: Api<Pod>,
    name: String,
    uid: String,
    folder: PathBuf,
    pod: Arc<Pod>,
    objects: watch::Receiver<Option<Arc<Pod>>>,
    orders: mpsc::UnboundedReceiver<Order>,
    state: PodState,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        entry: Arc<Entry>,
        pod: Arc<Pod>,
        objects: watch::Receiver<Option<Arc<Pod>>>,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> Self {
        let api = Api::namespaced(shared.client.clone(), &shared.settings.namespace);
        let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
        let state = PodState::new(
            container.map(|container| container.name.clone()).unwrap_or_default(),
            container.and_then(|container| container.image.clone()).unwrap_or_default(),
        );
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let name = entry.name.clone();
        let folder =
            shared.settings.folder.join(format!("{name}-{}", uid.split('-').next().unwrap_or_default()));
        Self { shared, entry, api, name, uid, folder, pod, objects, orders, state }
    }

    /// Runs the pod until its object is gone.
    pub(super) async fn live(mut self) {
        if self.pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
            self.bind().await;
        }
        if let Err(error) = std::fs::create_dir_all(&self.folder) {
            return self.complain(&format!("no folder {}: {error}", self.folder.display()));
        }
        loop {
            let address = LoopbackAddress::lease();
            self.state.ip = Some(address.ip());
            match self.run_at(&address).await {
                Next::Move => {}
                Next::Terminate { .. } => return self.remove().await,
                Next::Restart | Next::Vanish => return,
            }
        }
    }

    /// As the scheduler does. Only a bound pod is deleted gracefully.
    async fn bind(&self) {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": self.name, "uid": self.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self.shared.settings.node},
        });
        let made: Result<serde_json::Value, _> =
            self.api.create_subresource("binding", &self.name, &PostParams::default(), &binding).await;
        if let Err(error) = made {
            self.complain(&format!("cannot be bound: {error}"));
        }
    }

    /// Runs the container at an address, again and again.
    async fn run_at(&mut self, address: &LoopbackAddress) -> Next {
        let mut is_first = true;
        loop {
            let started = match self.prepare(address).await {
                Ok((invocation, probes, container)) => {
                    self.start(&invocation).map(|process| (process, probes, invocation, container))
                }
                Err(refusal) => Err(refusal),
            };
            let next = match started {
                Ok((process, probes, invocation, container)) => {
                    let next = self.watch_over(&process, probes).await;
                    if let Next::Terminate { grace } = next {
                        self.terminate(&process, &invocation, &container, grace, address).await;
                    }
                    next
                }
                Err(Refusal { reason, message }) => {
                    let waiting = State::Waiting { reason: reason.to_owned(), message };
                    if self.state.state != waiting {
                        self.complain(&format!("{waiting:?}"));
                        self.report(waiting).await;
                    }
                    Next::Restart
                }
            };
            if !matches!(next, Next::Restart) {
                if matches!(next, Next::Move) {
                    self.state.restarts += 1;
                }
                return next;
            }
            // Its first end is taken for an accident; what cannot be started is tried again after a while.
            if !is_first || self.state.last.is_none() {
                let delay = self.shared.settings.restart_delay;
                if let Ok(next) = tokio::time::timeout(delay, self.deleted()).await {
                    return next;
                }
            }
            is_first = false;
        }
    }

    async fn prepare(&self, address: &LoopbackAddress) -> Result<(Invocation, Probes, Container), Refusal> {
        let settings = &self.shared.settings;
        let spec = self.pod.spec.as_ref();
        let container = match spec.map(|spec| (spec.containers.as_slice(), spec.init_containers.as_deref())) {
            Some(([container], None | Some([]))) => container.clone(),
            _ => return Err(Refusal::config("this kubelet runs pods of one container".to_owned())),
        };
        let fetched = volumes::fetch(&self.shared.client, &self.pod, &container, &self.folder).await?;
        let place = Place { ip: address.ip(), node: &settings.node, folder: &self.folder };
        let choices = (&settings.programs, settings.overrides.as_slice());
        let invocation = invocation(&self.pod, &container, &fetched, &place, choices)?;
        let probes = Probes::of(&container, address.ip(), settings.probe_period_max)?;
        Ok((invocation, probes, container))
    }

    fn start(&self, invocation: &Invocation) -> Result<Process, Refusal> {
        let mut program = command(&invocation.program);
        // Of this machine's environment, nothing but where programs are.
        program.args(&invocation.args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        program.envs(&invocation.env).current_dir(&self.folder);
        Process::start(program, &self.folder.join("log"))
            .map_err(|error| Refusal { reason: "RunContainerError", message: error.to_string() })
    }

    /// Keeps the pod's status until something becomes of its container.
    async fn watch_over(&mut self, process: &Process, probes: Probes) -> Next {
        let started = Timestamp::now();
        let (sender, mut health) = watch::channel(Health::default());
        let (shared, name) = (Arc::clone(&self.shared), self.name.clone());
        let probing = probes.follow(move || shared.is_held(&name), sender);
        tokio::pin!(probing);
        self.state.has_started = false;
        self.show(Some(process));
        self.report(State::Running { since: started }).await;
        let mut is_moved = false;
        loop {
            tokio::select! {
                () = &mut probing => {}
                status = process.ended() => {
                    self.state.last = Some(Ended { status, started, finished: Timestamp::now() });
                    self.state.set_ready(false);
                    self.state.has_started = false;
                    self.show(None);
                    if is_moved {
                        return Next::Move;
                    }
                    self.state.restarts += 1;
                    self.report(State::Waiting { reason: "CrashLoopBackOff".to_owned(), message: said(status) }).await;
                    return Next::Restart;
                }
                _ = health.changed() => {
                    let Health { has_started, is_ready, is_dead } = *health.borrow_and_update();
                    if is_dead {
                        self.complain("its probes failed, so it is restarted");
                        process.signal(Signal::KILL);
                        continue;
                    }
                    self.state.has_started = has_started;
                    self.state.set_ready(is_ready);
                    self.show(Some(process));
                    self.report(State::Running { since: started }).await;
                }
                Some(order) = self.orders.recv() => match order {
                    Order::Crash => process.signal(Signal::KILL),
                    Order::Freeze => process.signal(Signal::STOP),
                    Order::Thaw => process.signal(Signal::CONT),
                    Order::Move => {
                        is_moved = true;
                        process.signal(Signal::KILL);
                    }
                },
                next = deleted(&mut self.objects, &mut self.pod) => {
                    if !matches!(next, Next::Vanish) {
                        return next;
                    }
                    self.show(None);
                    self.record(None, Duration::ZERO);
                    return next;
                }
            }
        }
    }

    /// preStop, SIGTERM, patience, SIGKILL.
    async fn terminate(
        &mut self,
        process: &Process,
        invocation: &Invocation,
        container: &Container,
        grace: Duration,
        address: &LoopbackAddress,
    ) {
        let start = Instant::now();
        let started = Timestamp::now();
        let deadline = tokio::time::Instant::now() + grace;
        if let Err(error) =
            tokio::time::timeout_at(deadline, self.pre_stop(invocation, container, address)).await
        {
            self.complain(&format!("preStop took longer than the grace period: {error}"));
        }
        process.signal(Signal::TERM);
        // Whoever removes the object does not wait for the process.
        let ended = tokio::select! {
            ended = tokio::time::timeout_at(deadline, process.ended()) => ended.ok(),
            _ = self.objects.wait_for(Option::is_none) => None,
        };
        if ended.is_none() {
            process.signal(Signal::KILL);
        }
        let status = process.ended().await;
        self.record(ended.and_then(|status| status.code()), start.elapsed());
        self.state.set_ready(false);
        self.state.has_started = false;
        self.show(None);
        self.report(State::Terminated(Ended { status, started, finished: Timestamp::now() })).await;
    }

    async fn pre_stop(&self, invocation: &Invocation, container: &Container, address: &LoopbackAddress) {
        let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref())
        else {
            return;
        };
        if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or_default())).await;
        } else if let Some(get) = &hook.http_get {
            match Check::http(get, container, address.ip()) {
                Ok(check) if check.ask(PRE_STOP_TIMEOUT).await => {}
                outcome => self.complain(&format!("preStop failed: {outcome:?}")),
            }
        } else if let Some(line) = hook.exec.as_ref().and_then(|exec| exec.command.as_ref()) {
            match self.exec(line, invocation) {
                Ok(process) => {
                    let status = process.ended().await;
                    if !status.success() {
                        self.complain(&format!("preStop {line:?}: {status}"));
                    }
                }
                Err(Refusal { message, .. }) => self.complain(&format!("preStop failed: {message}")),
            }
        }
    }

    /// Another program in the container, with its environment.
    fn exec(&self, line: &[String], container: &Invocation) -> Result<Process, Refusal> {
        let (program, args) = self.shared.settings.programs.resolve("", line)?;
        self.start(&Invocation { program: program.path().to_owned(), args, env: container.env.clone() })
    }

    /// Removes the object of a pod that has ended.
    async fn remove(&self) {
        let only_this = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        while let Err(error) = self.api.delete(&self.name, &only_this).await {
            if is_gone(&error) {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn deleted(&mut self) -> Next {
        deleted(&mut self.objects, &mut self.pod).await
    }

    /// Writes the pod's status; again until it is written, or nobody wants it.
    async fn report(&mut self, state: State) {
        self.state.state = state;
        let patch = json!({"metadata": {"uid": self.uid}, "status": self.state.to_json()});
        let params = PatchParams::default();
        while let Err(error) = self.api.patch_status(&self.name, &params, &Patch::Merge(&patch)).await {
            match error {
                error if is_gone(&error) => return,
                kube::Error::Api(status) if (400..429).contains(&status.code) => {
                    return self.complain(&format!("its status is refused: {}", status.message));
                }
                _ => tokio::time::sleep(RETRY).await,
            }
        }
    }

    fn show(&self, process: Option<&Process>) {
        let mut view = locked(&self.entry.view);
        view.ip = self.state.ip.filter(|_| process.is_some());
        view.pid = process.map(Process::pid);
        view.restarts = self.state.restarts;
        view.is_ready = self.state.is_ready();
    }

    fn record(&self, exit_code: Option<i32>, took: Duration) {
        locked(&self.shared.ends).push(PodEnd { name: self.name.clone(), exit_code, took });
    }

    fn complain(&self, what: &str) {
        eprintln!("kubelet: pod {}: {what}", self.name);
    }
}

/// Waits until the pod is deleted, or gone.
async fn deleted(objects: &mut watch::Receiver<Option<Arc<Pod>>>, last: &mut Arc<Pod>) -> Next {
    let seen = objects
        .wait_for(|object| object.as_ref().is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()));
    match seen.await.map(|object| object.clone()) {
        Ok(Some(pod)) => {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
            *last = pod;
            Next::Terminate { grace: Duration::from_secs(u64::try_from(grace).unwrap_or_default()) }
        }
        Ok(None) | Err(_) => Next::Vanish,
    }
}

fn said(status: ExitStatus) -> String {
    format!("the process ended, {status}")
}

/// Not there any more, or another one of that name.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
}

const RETRY: Duration = Duration::from_millis(200);
const PRE_STOP_TIMEOUT: Duration = Duration::from_secs(30);
