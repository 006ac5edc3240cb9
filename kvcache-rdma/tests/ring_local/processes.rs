//! Several processes with one server, some of which are killed or stopped in the middle.
//!
//! The test program runs itself: the tests below that are ignored are what the children do, told by [`ROLE`].

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kvcache_core::remote::RemoteOutcome;
use kvcache_server::{Server, ServerConfig};

use super::client::{Client, DONE, config};
use super::{local, metric, server};

/// What a child needs to know: an address, and a number.
const ROLE: &str = "KVCACHE_TEST_ROLE";

/// A child that is killed with its parent's test, whatever comes of that.
struct Process {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(test: &str, address: SocketAddr, number: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("processes::{test}"), "--ignored", "--nocapture", "--test-threads=1"])
            .env(ROLE, format!("{address} {number}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Reads until the child says `word`, and returns what follows on the line.
    fn wait_for(&mut self, word: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the child ended without saying {word}");
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            }
        }
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: takes numbers; the child is ours and was not waited for, so that the number is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }

    /// Whether it ended well.
    fn end(mut self) -> bool {
        drop(self.child.stdin.take());
        self.child.wait().unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a child: its address and number. `None` where someone runs the ignored tests by hand.
fn role() -> Option<(SocketAddr, u64)> {
    let role = std::env::var(ROLE).ok()?;
    let (address, number) = role.split_once(' ')?;
    Some((address.parse().unwrap(), number.parse().unwrap()))
}

fn say(words: &str) {
    println!("\n{words}");
    std::io::stdout().flush().unwrap();
}

/// A child that moves values without end.
#[test]
#[ignore = "a child of other tests"]
fn child_that_never_rests() {
    let Some((address, number)) = role() else { return };
    let client = Client::open(&config(address));
    client.until_local();
    say("ready");
    loop {
        let first = number * 1000;
        // How these end depends on what is done to us; what is got is compared in any case.
        client.put(first..first + 24, 1 << 20);
        client.get(first..first + 24, 1 << 20);
    }
}

/// A child that moves thousands of values, some of them everybody's.
#[test]
#[ignore = "a child of other tests"]
fn child_that_checks_every_byte() {
    let Some((address, number)) = role() else { return };
    let client = Client::open(&config(address));
    client.until_local();
    for round in 0..20 {
        let (count, bytes) = [(100, 4096), (40, 33_000), (4, 1 << 20), (60, 257)][round as usize % 4];
        let own = number * 1_000_000 + round * 1000;
        let common = 500_000_000 + round % 4 * 1000;
        for first in [own, common] {
            assert_eq!(client.put(first..first + count, bytes), vec![DONE; count as usize]);
            assert_eq!(client.get(first..first + count, bytes), vec![DONE; count as usize]);
        }
    }
    let stats = client.stats();
    let faults: u64 = stats.connections.values().flat_map(|(_, stats)| stats.faults).sum();
    assert_eq!(faults, 0, "{stats:#?}");
    say("done");
}

/// A child that is a server until its input ends.
#[test]
#[ignore = "a child of other tests"]
fn child_that_serves() {
    let Some((listen, _)) = role() else { return };
    let config =
        ServerConfig { listen, capacity_bytes: 64 << 20, threads: Some(2), ..ServerConfig::default() };
    let server = Server::start(config).unwrap();
    say(&format!("listens on {}", server.address()));
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// A child that moves values, and whose own child has copies of its descriptors, as a forked worker does.
#[test]
#[ignore = "a child of other tests"]
fn child_that_has_forked() {
    let Some((address, number)) = role() else { return };
    let client = Client::open(&config(address));
    client.until_local();
    // SAFETY: the new process makes system calls only: it waits until the test ends, and leaves.
    let worker = unsafe {
        let worker = libc::fork();
        if worker == 0 {
            while libc::read(0, [0_u8; 1].as_mut_ptr().cast(), 1) > 0 {}
            libc::_exit(0);
        }
        worker
    };
    say(&format!("its worker is {worker}"));
    loop {
        let first = number * 1000;
        client.put(first..first + 24, 1 << 20);
        client.get(first..first + 24, 1 << 20);
    }
}

/// A child that cannot map a pool: values go over TCP, and nobody notices.
#[test]
#[ignore = "a child of other tests"]
fn child_with_little_address_space() {
    let Some((address, _)) = role() else { return };
    let client = Client::open(&config(address));
    let pages: u64 = {
        let used = std::fs::read_to_string("/proc/self/statm").unwrap();
        used.split(' ').next().unwrap().parse().unwrap()
    };
    let limit = pages * 4096 + (512 << 20);
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: reads a structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
    // For so long that the Unix socket is tried several times.
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        assert_eq!(client.put(0..1, 1000), [DONE]);
        assert_eq!(client.get(0..1, 1000), [DONE]);
    }
    let stats = client.stats();
    assert!(stats.connections.values().all(|(_, connection)| !connection.shared_memory));
    assert!(stats.connections.values().all(|(_, it)| it.faults.iter().sum::<u64>() == 0), "{stats:#?}");
    say("done");
}

/// Whatever the child was doing, and wherever in it: all that it held is back, and nothing of it is half there.
#[test]
fn a_client_killed_in_the_middle_leaves_nothing_behind() {
    let server = server(|_| {});
    let client = local(&server);
    let connections = metric(&server, "connections");
    for number in 1..=8 {
        let mut child = Process::start("child_that_never_rests", server.address(), number);
        child.wait_for("ready");
        let before = metric(&server, "puts_total") + metric(&server, "hits_total");
        client.until("the child works", |_| {
            metric(&server, "puts_total") + metric(&server, "hits_total") > before + 10 * number
        });
        child.signal(libc::SIGKILL);
        assert!(!child.end());
        client.until("its connections are gone", |_| metric(&server, "connections") == connections);
        let first = number * 1000;
        for outcome in client.get(first..first + 24, 1 << 20) {
            assert!(matches!(outcome, RemoteOutcome::Done | RemoteOutcome::Missing), "{outcome:?}");
        }
        server.store().purge();
        client.until("the pool is empty", |_| metric(&server, "used_bytes") == 0);
        assert_eq!(server.store().reserved_bytes(), 0);
    }
}

/// A process that the dead one has forked keeps the connection open: that keeps no room.
#[test]
fn a_client_killed_after_it_has_forked_leaves_nothing_behind() {
    let server = server(|config| config.timeouts.lease = Duration::from_millis(50));
    let client = local(&server);
    for number in 1..=4 {
        let mut child = Process::start("child_that_has_forked", server.address(), number);
        let worker: libc::pid_t = child.wait_for("its worker is").parse().unwrap();
        // Stopped where it holds room.
        loop {
            child.signal(libc::SIGSTOP);
            client.put(50_000..50_001, 10);
            if server.store().reserved_bytes() > 0 {
                break;
            }
            child.signal(libc::SIGCONT);
        }
        child.signal(libc::SIGKILL);
        // To wait would close it, and the worker lives until it is closed.
        let input = child.child.stdin.take();
        child.child.wait().unwrap();
        client.until("the pool is empty", |_| {
            server.store().purge();
            metric(&server, "used_bytes") == 0
        });
        assert_eq!(server.store().reserved_bytes(), 0);
        let state = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
        assert!(state.contains(") S "), "the worker lives on: {state}");
        drop(input);
    }
}

#[test]
fn a_client_that_cannot_map_the_pool_uses_tcp() {
    let server = server(|config| config.capacity_bytes = 2 << 30);
    let mut child = Process::start("child_with_little_address_space", server.address(), 0);
    child.wait_for("done");
    assert!(child.end());
    assert_eq!(metric(&server, "shared_written_bytes_total"), 0);
}

/// The others go on, with all of the pool but what the stopped one is writing to; it goes on, too, when it may.
#[test]
fn a_stopped_client_keeps_nobody_from_working() {
    let server = server(|config| config.timeouts.lease = Duration::from_millis(50));
    let client = local(&server);
    for round in 1..=8_u64 {
        let mut child = Process::start("child_that_never_rests", server.address(), 1);
        child.wait_for("ready");
        let before = metric(&server, "puts_total");
        client.until("the child works", |_| metric(&server, "puts_total") > before + 7 * round);
        child.signal(libc::SIGSTOP);
        // The pool over and over: what the child had leased is overwritten by this.
        for first in [10_000, 20_000, 30_000, 40_000] {
            assert_eq!(client.put(first..first + 40, 1 << 20), [DONE; 40]);
            let found = client.get(first..first + 40, 1 << 20);
            assert!(
                found.iter().all(|outcome| matches!(outcome, RemoteOutcome::Done | RemoteOutcome::Missing))
            );
        }
        server.store().purge();
        // Its room: not more than one connection may hold.
        client.until("values are back", |_| metric(&server, "used_bytes") <= 8 << 20);
        child.signal(libc::SIGCONT);
        child.signal(libc::SIGKILL);
        assert!(!child.end());
        client.until("the pool is empty", |_| {
            server.store().purge();
            metric(&server, "used_bytes") == 0
        });
    }
}

#[test]
fn a_server_killed_in_the_middle_is_a_miss_and_comes_back() {
    let mut child = Process::start("child_that_serves", "127.0.0.1:0".parse().unwrap(), 0);
    let address: SocketAddr = child.wait_for("listens on").parse().unwrap();
    let client = Client::open(&config(address));
    for round in 0..4 {
        client.until_local();
        assert_eq!(client.put(0..16, 1 << 20), [DONE; 16]);
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| {
                // Until the server is gone: that is an end of every transfer, not its loss, and never wrong bytes.
                while client.get(0..16, 1 << 20) == [DONE; 16] && client.put(0..16, 1 << 20) == [DONE; 16] {}
            });
            (0..1000 * round).for_each(|_| std::thread::yield_now());
            child.signal(libc::SIGKILL);
            busy.join().unwrap();
        });
        assert!(!std::mem::replace(&mut child, Process::start("child_that_serves", address, 0)).end());
        child.wait_for("listens on");
        client.until_served(|| client.put(100..101, 10)[0] == DONE);
    }
}

#[test]
fn many_processes_share_one_cache() {
    let server = server(|config| config.capacity_bytes = 256 << 20);
    let mut children: Vec<Process> = (1..=4)
        .map(|number| Process::start("child_that_checks_every_byte", server.address(), number))
        .collect();
    children.iter_mut().for_each(|child| {
        child.wait_for("done");
    });
    assert!(children.into_iter().all(Process::end));
    assert_eq!(metric(&server, "puts_total"), 4 * 2 * 5 * (100 + 40 + 4 + 60));
    assert_eq!(metric(&server, "sent_bytes_total"), 0);
    server.store().purge();
    let client = local(&server);
    client.until("the pool is empty", |_| metric(&server, "used_bytes") == 0);
}
