//! Child processes that end with the test, however it ends.
//!
//! The kernel kills a child when the *thread* that started it ends, not its process. So each child has a thread of its own
//! that starts it and waits for it: it lives exactly as long. `setpriv` asks the kernel for that and becomes the program.

use std::fs::File;
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use tokio::sync::watch;

/// A command that runs `program` until its end or ours.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A running process, in a group of its own; killed with its group when this is dropped.
pub(crate) struct Process {
    pid: Pid,
    /// Whether the number is still the process's: it is the only one to be signalled while this is locked.
    is_alive: Arc<Mutex<bool>>,
    ended: watch::Receiver<Option<ExitStatus>>,
    stdin: Option<ChildStdin>,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a command made by [`command`]; what it writes is appended to the file `log`.
    ///
    /// # Errors
    ///
    /// The log cannot be written, or `setpriv` (util-linux) is missing. If the program is, it ends at once.
    pub(crate) fn start(mut command: Command, log: &Path) -> std::io::Result<Self> {
        use std::os::unix::process::CommandExt;

        let output = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let is_alive = Arc::new(Mutex::new(true));
        let (end, ended) = watch::channel(None);
        let (tell, told) = mpsc::channel();
        let alive = Arc::clone(&is_alive);
        let thread = std::thread::Builder::new().name("child".to_owned()).spawn(move || {
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => return tell.send(Err(error)).unwrap_or_default(),
            };
            let pid = Pid::from_child(&child);
            tell.send(Ok((pid, child.stdin.take()))).unwrap_or_default();
            // It stays a zombie for now, so that its number and that of its group are nobody else's.
            let ended = || waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            let _ = rustix::io::retry_on_intr(ended);
            let mut alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
            *alive = false;
            // What it started itself does not outlive it.
            let _ = kill_process_group(pid, Signal::KILL);
            end.send_replace(child.wait().ok());
        })?;
        match told.recv() {
            Ok(Ok((pid, stdin))) => Ok(Self { pid, is_alive, ended, stdin, thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(gone) => Err(std::io::Error::other(gone)),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Its standard input, once; whoever takes it says when it ends.
    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Signals the process, not its group: as a container's first process is. Nothing happens if it has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let is_alive = self.is_alive.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_alive {
            // Fails only for a process that is gone, which is what is wanted then.
            let _ = kill_process(self.pid, signal);
        }
    }

    /// How it ended, if it has.
    pub(crate) fn end(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await.expect("its thread says how it ended");
        status.expect("waited for")
    }

    fn kill(&self) {
        let is_alive = self.is_alive.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_alive {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if let Some(thread) = self.thread.take() {
            // Milliseconds: nothing survives SIGKILL.
            let _ = thread.join();
        }
    }
}

/// Whether there is a process of this number, zombies included.
pub(crate) fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (Process, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = command(Path::new("/bin/sh"));
        command.args(["-c", script]);
        (Process::start(command, &folder.path().join("log")).expect("started"), folder)
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_told() {
        let (process, folder) = shell("echo here; exit 3");
        assert_eq!(process.ended().await.code(), Some(3));
        assert_eq!(process.end().and_then(|status| status.code()), Some(3));
        assert_eq!(std::fs::read_to_string(folder.path().join("log")).expect("a log"), "here\n");
        process.signal(Signal::TERM);
        assert!(!exists(process.pid()));
    }

    #[tokio::test]
    async fn what_is_dropped_is_killed_with_its_children() {
        let (process, folder) = shell("sleep 1000 & echo $!; wait");
        let log = folder.path().join("log");
        let child: i32 = crate::wait::until("the number of the child", crate::wait::SHORT, || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            std::future::ready(text.trim().parse().ok())
        })
        .await;
        assert!(exists(child) && exists(process.pid()));
        let pid = process.pid();
        drop(process);
        assert!(!exists(pid));
        // Its own parent is gone, so that somebody else reaps it.
        crate::wait::until("the child is gone", crate::wait::SHORT, || {
            let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            std::future::ready((state.is_empty() || state.contains(") Z ")).then_some(()))
        })
        .await;
    }

    #[tokio::test]
    async fn a_process_outlives_the_thread_that_asked_for_it() {
        let (process, _folder) = std::thread::spawn(|| shell("sleep 1000")).join().expect("no panic");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!(process.end(), None);
        process.signal(Signal::TERM);
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(process.ended().await.signal(), Some(15));
    }
}
