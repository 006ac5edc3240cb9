//! One question at a time for each Redis, and none while it is known not to answer.
//!
//! A Redis that is dead takes seconds from whoever asks it, and it may be that of many caches. Few workers look at all
//! caches: with a turn for each server, one that is dead holds one of them at most, now and then, and the others go on
//! with other caches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvcache_core::ring::ServerAddress;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::redis::RedisError;
use crate::clock::Jitter;

/// The servers that are being asked, and those that did not answer. Bounded by these.
#[derive(Debug)]
pub struct Turns {
    servers: Mutex<HashMap<ServerAddress, Server>>,
    jitter: Jitter,
}

/// Whether a server that is known not to answer is asked all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// Not before its time.
    None,
    /// There is news of it, or no other time to ask: as soon as nobody else asks it.
    Now,
}

/// Why a server was not asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotAsked {
    /// It did not answer lately.
    Down {
        /// When it may be asked again.
        until: Instant,
        /// What came of the last question.
        why: String,
    },
    /// Others ask it, and get no answer quickly.
    Busy {
        /// Whether it did not answer lately either. If not, it is slow, or many ask it: whoever waits gets an answer.
        is_down: bool,
    },
}

#[derive(Debug)]
struct Server {
    turn: Arc<Semaphore>,
    asked_since: Option<Instant>,
    /// Those who ask or wait.
    visitors: usize,
    failures: u32,
    down: Option<(Instant, String)>,
}

impl Turns {
    /// Nobody asks, and no server is known. The seed decides the jitter of retries.
    pub fn new(seed: u64) -> Self {
        Self { servers: Mutex::default(), jitter: Jitter::new(seed) }
    }

    /// Waits for a turn at a server: for a quarter of a second, and only where the server is not known to be slow or dead.
    /// Whatever a question needs is to be had within the turn: those who get none have asked nobody for anything.
    ///
    /// # Errors
    ///
    /// [`NotAsked`], at once or after that wait.
    pub async fn turn<'a>(
        &'a self,
        address: &'a ServerAddress,
        urgency: Urgency,
    ) -> Result<Turn<'a>, NotAsked> {
        let visit = Visit::begin(self, address);
        let turn = visit.turn(urgency)?;
        let Ok(Ok(permit)) = timeout(QUICK, turn.acquire_owned()).await else { return Err(visit.busy()) };
        // What those before have found out.
        visit.turn(urgency)?;
        visit.server(|server| server.asked_since = Some(Instant::now()));
        Ok(Turn { _permit: permit, visit })
    }

    fn servers(&self) -> MutexGuard<'_, HashMap<ServerAddress, Server>> {
        // Every change of it is complete before anything can panic.
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn at a server, until it is dropped, with or without an answer. Nobody else asks the server meanwhile.
#[derive(Debug)]
pub struct Turn<'a> {
    // Given back before the visit ends, and with it maybe all that is known of the server.
    _permit: OwnedSemaphorePermit,
    visit: Visit<'a>,
}

impl Turn<'_> {
    /// Notes what the server said, for those who ask next.
    pub fn heard<T>(&self, answer: &Result<T, RedisError>) {
        let why = answer.as_ref().err().filter(|error| error.is_of_server()).map(ToString::to_string);
        self.visit.server(|server| match why {
            Some(why) => {
                server.failures = server.failures.saturating_add(1);
                let wait = self.visit.turns.jitter.spread(backoff(server.failures));
                server.down = Some((Instant::now() + wait, why));
            }
            None => (server.failures, server.down) = (0, None),
        });
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.visit.server(|server| server.asked_since = None);
    }
}

/// One who asks or waits, until it is dropped, with or without an answer.
#[derive(Debug)]
struct Visit<'a> {
    turns: &'a Turns,
    address: &'a ServerAddress,
}

impl<'a> Visit<'a> {
    fn begin(turns: &'a Turns, address: &'a ServerAddress) -> Self {
        let mut servers = turns.servers();
        if !servers.contains_key(address) {
            let now = Instant::now();
            servers.retain(|_, server| server.visitors > 0 || server.is_remembered(now));
        }
        servers.entry(address.clone()).or_insert_with(Server::new).visitors += 1;
        Self { turns, address }
    }

    fn server<T>(&self, change: impl FnOnce(&mut Server) -> T) -> T {
        // There is one from the beginning to the end of the visit.
        change(self.turns.servers().entry(self.address.clone()).or_insert_with(Server::new))
    }

    /// The turn to wait for, where there is any use in that.
    fn turn(&self, urgency: Urgency) -> Result<Arc<Semaphore>, NotAsked> {
        let now = Instant::now();
        self.server(|server| match (&server.down, server.asked_since) {
            (Some((until, why)), _) if urgency == Urgency::None && *until > now => {
                Err(NotAsked::Down { until: *until, why: why.clone() })
            }
            (Some(_), Some(_)) => Err(NotAsked::Busy { is_down: true }),
            (None, Some(since)) if now.duration_since(since) >= QUICK => {
                Err(NotAsked::Busy { is_down: false })
            }
            _ => Ok(Arc::clone(&server.turn)),
        })
    }

    fn busy(&self) -> NotAsked {
        NotAsked::Busy { is_down: self.server(|server| server.down.is_some()) }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut servers = self.turns.servers();
        if let Some(server) = servers.get_mut(self.address) {
            server.visitors -= 1;
            if server.visitors == 0 && server.down.is_none() {
                servers.remove(self.address);
            }
        }
    }
}

impl Server {
    fn new() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), asked_since: None, visitors: 0, failures: 0, down: None }
    }

    fn is_remembered(&self, now: Instant) -> bool {
        self.down.as_ref().is_some_and(|(until, _)| now < *until + MEMORY)
    }
}

/// 2 s, 4 s, ... 128 s.
fn backoff(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.clamp(1, 7))
}

/// A Redis answers within milliseconds. Whoever waits for his turn for longer waits for one that is slow or dead.
const QUICK: Duration = Duration::from_millis(250);
/// For how long a server that nobody asks any more is known to have failed.
const MEMORY: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn address(port: u16) -> ServerAddress {
        ServerAddress::new("redis.example", port).unwrap()
    }

    async fn answers(after: Duration) -> Result<(), RedisError> {
        tokio::time::sleep(after).await;
        Ok(())
    }

    async fn fails(after: Duration) -> Result<(), RedisError> {
        tokio::time::sleep(after).await;
        Err(RedisError::Io { server: address(1), source: io::ErrorKind::ConnectionRefused.into() })
    }

    async fn refuses() -> Result<(), RedisError> {
        Err(RedisError::Refused { server: address(1), command: "AUTH", message: "WRONGPASS".to_owned() })
    }

    impl Turns {
        async fn ask<T>(
            &self,
            address: &ServerAddress,
            urgency: Urgency,
            question: impl Future<Output = Result<T, RedisError>>,
        ) -> Result<Result<T, RedisError>, NotAsked> {
            let turn = self.turn(address, urgency).await?;
            let answer = question.await;
            turn.heard(&answer);
            Ok(answer)
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn questions_to_a_quick_server_follow_one_another() {
        let (turns, address, start) = (Turns::new(1), address(1), Instant::now());
        let ask = || turns.ask(&address, Urgency::None, answers(ms(50)));
        let (a, b, c) = tokio::join!(ask(), ask(), ask());
        for answer in [a, b, c] {
            assert!(matches!(answer, Ok(Ok(()))), "{answer:?}");
        }
        assert_eq!(start.elapsed(), ms(150));
        assert!(turns.servers().is_empty(), "nothing is to be remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_keeps_one_and_lets_the_others_go() {
        let (turns, address, start) = (Turns::new(1), address(1), Instant::now());
        let first = async {
            let answer = turns.ask(&address, Urgency::None, fails(ms(5000))).await;
            assert!(matches!(answer, Ok(Err(RedisError::Io { .. }))), "{answer:?}");
        };
        let second = async {
            let answer = turns.ask(&address, Urgency::None, answers(ms(1))).await;
            assert_eq!((answer.unwrap_err(), start.elapsed()), (NotAsked::Busy { is_down: false }, QUICK));
        };
        let third = async {
            tokio::time::sleep(ms(300)).await;
            for urgency in [Urgency::None, Urgency::Now] {
                let answer = turns.ask(&address, urgency, answers(ms(1))).await;
                let busy = NotAsked::Busy { is_down: false };
                assert_eq!((answer.unwrap_err(), start.elapsed()), (busy, ms(300)), "at once");
            }
            let other = super::tests::address(2);
            assert!(
                turns.ask(&other, Urgency::None, answers(ms(1))).await.is_ok(),
                "another is not concerned"
            );
        };
        tokio::join!(first, second, third);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_failed_is_left_alone_longer_each_time_but_for_news() {
        let (turns, address) = (Turns::new(1), address(1));
        for wait in [2, 4, 8, 16, 32, 64, 128, 128] {
            assert!(turns.ask(&address, Urgency::None, fails(ms(10))).await.is_ok());
            let Err(NotAsked::Down { until, why }) = turns.ask(&address, Urgency::None, answers(ms(1))).await
            else {
                panic!("asked")
            };
            assert!(why.contains("redis.example:1"), "{why}");
            let left = (until - Instant::now()).as_secs_f64();
            assert!((f64::from(wait)..1.5 * f64::from(wait)).contains(&left), "{left} s, not {wait} s");
            tokio::time::sleep_until(until).await;
        }
        assert!(turns.ask(&address, Urgency::None, fails(ms(10))).await.is_ok());
        let Err(NotAsked::Down { until, .. }) = turns.ask(&address, Urgency::None, answers(ms(1))).await
        else {
            panic!("asked")
        };
        // When it may be asked again, one does, and no other waits for what becomes of it.
        tokio::time::sleep_until(until).await;
        let start = Instant::now();
        let again = async { assert!(turns.ask(&address, Urgency::None, fails(ms(100))).await.is_ok()) };
        let meanwhile = async {
            for urgency in [Urgency::None, Urgency::Now] {
                let answer = turns.ask(&address, urgency, answers(ms(1))).await;
                let busy = NotAsked::Busy { is_down: true };
                assert_eq!((answer.unwrap_err(), start.elapsed()), (busy, Duration::ZERO));
            }
        };
        tokio::join!(again, meanwhile);
        // Whoever asks now finds out for all.
        assert!(turns.ask(&address, Urgency::Now, answers(ms(1))).await.is_ok());
        assert!(matches!(turns.ask(&address, Urgency::None, answers(ms(1))).await, Ok(Ok(()))));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_his_turn_learns_that_the_server_is_down() {
        let (turns, address, start) = (Turns::new(1), address(1), Instant::now());
        let first = async { assert!(turns.ask(&address, Urgency::None, fails(ms(100))).await.is_ok()) };
        let second = async {
            let answer = turns.ask(&address, Urgency::None, answers(ms(1))).await;
            assert!(matches!(answer, Err(NotAsked::Down { .. })), "{answer:?}");
            assert_eq!(start.elapsed(), ms(100));
        };
        tokio::join!(first, second);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_server_refuses_is_an_answer() {
        let (turns, address) = (Turns::new(1), address(1));
        for _ in 0..3 {
            let answer = turns.ask(&address, Urgency::None, refuses()).await;
            assert!(matches!(answer, Ok(Err(RedisError::Refused { .. }))), "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_is_dropped_gives_its_turn_back() {
        let (turns, address) = (Turns::new(1), address(1));
        assert!(timeout(ms(400), turns.ask(&address, Urgency::None, answers(ms(5000)))).await.is_err());
        assert!(matches!(turns.ask(&address, Urgency::None, answers(ms(1))).await, Ok(Ok(()))));
        assert!(turns.servers().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_without_a_question_says_nothing_of_the_server() {
        let (turns, address) = (Turns::new(1), address(1));
        assert!(turns.ask(&address, Urgency::None, fails(ms(10))).await.is_ok());
        drop(turns.turn(&address, Urgency::Now).await.expect("a turn"));
        let answer = turns.ask(&address, Urgency::None, answers(ms(1))).await;
        assert!(matches!(answer, Err(NotAsked::Down { .. })), "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn servers_that_nobody_asks_any_more_are_forgotten() {
        let turns = Turns::new(1);
        for port in 1..=100 {
            assert!(turns.ask(&address(port), Urgency::None, fails(ms(10))).await.is_ok());
        }
        assert_eq!(turns.servers().len(), 100);
        tokio::time::sleep(MEMORY + ms(4000)).await;
        assert!(turns.ask(&address(200), Urgency::None, answers(ms(1))).await.is_ok());
        assert_eq!(turns.servers().len(), 0);
    }
}
