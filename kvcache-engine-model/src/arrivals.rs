//! When each request arrives, which may depend on the end of others.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::error::Error;
use crate::traffic::Traffic;

/// Requests that are known to arrive, in the order of their times.
pub(crate) struct Arrivals<'a> {
    traffic: &'a Traffic,
    known: BinaryHeap<Reverse<(u64, usize)>>,
    /// Where sessions are served so many at a time: the first requests of those that have not begun.
    not_begun: Option<std::vec::IntoIter<usize>>,
}

impl<'a> Arrivals<'a> {
    pub(crate) fn new(traffic: &'a Traffic) -> Result<Self, Error> {
        let requests = traffic.requests().iter().enumerate();
        let firsts = requests.filter(|(_, request)| request.earlier.is_none()).map(|(index, _)| index);
        let mut arrivals = Self { traffic, known: BinaryHeap::new(), not_begun: None };
        match traffic.concurrency() {
            Some(sessions) => {
                arrivals.not_begun = Some(firsts.collect::<Vec<_>>().into_iter());
                (0..sessions).map_while(|_| arrivals.begin_session(0)).for_each(drop);
            }
            None => {
                for (request, of) in traffic.requests().iter().enumerate() {
                    let Some(timestamp_ns) = of.timestamp_ns else { return Err(Error::NoTimes { request }) };
                    if of.earlier.is_none() {
                        arrivals.known.push(Reverse((timestamp_ns, request)));
                    }
                }
            }
        }
        Ok(arrivals)
    }

    /// When the next request that is known arrives.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.known.peek().map(|Reverse((time_ns, _))| *time_ns)
    }

    /// A request that has arrived by now, and when.
    pub(crate) fn arrived(&mut self, now_ns: u64) -> Option<(u64, usize)> {
        if self.next_ns()? > now_ns {
            return None;
        }
        self.known.pop().map(|Reverse(arrival)| arrival)
    }

    /// A request has ended: its session goes on, or the next one begins.
    pub(crate) fn note_end(&mut self, request: usize, now_ns: u64) {
        let Some(later) = self.traffic.requests()[request].later else {
            self.begin_session(now_ns);
            return;
        };
        let of = &self.traffic.requests()[later];
        let time_ns = match of.timestamp_ns {
            Some(timestamp_ns) if self.not_begun.is_none() => timestamp_ns.max(now_ns),
            _ => now_ns.saturating_add(of.think_ns.unwrap_or(0)),
        };
        self.known.push(Reverse((time_ns, later)));
    }

    fn begin_session(&mut self, now_ns: u64) -> Option<()> {
        let first = self.not_begun.as_mut()?.next()?;
        self.known.push(Reverse((now_ns, first)));
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use kvcache_workload::{Blocks, Content, Request};

    use super::*;

    /// Requests by timestamp, session and pause.
    fn traffic(of: &[(Option<f64>, &str, Option<f64>)]) -> Traffic {
        let mut traffic = Traffic::new(Blocks::new(NonZeroU64::new(16).expect("not zero")), 1);
        for (timestamp_ms, session, think_ms) in of {
            let mut request = Request::new(Content::Pieces(Vec::new()));
            (request.timestamp_ms, request.think_ms) = (*timestamp_ms, *think_ms);
            request.session_id = (!session.is_empty()).then(|| (*session).to_owned());
            traffic.push(&request).expect("good");
        }
        traffic
    }

    const MS: u64 = 1_000_000;

    #[test]
    fn a_turn_waits_for_the_one_before() {
        let traffic = traffic(&[
            (Some(0.0), "a", None),
            (Some(1.0), "", None),
            (Some(2.0), "a", Some(9.0)),
            (Some(50.0), "a", None),
        ]);
        let mut arrivals = Arrivals::new(&traffic).expect("times");
        assert_eq!((arrivals.arrived(MS), arrivals.arrived(MS)), (Some((0, 0)), Some((MS, 1))));
        assert_eq!((arrivals.arrived(9 * MS), arrivals.next_ns()), (None, None));
        arrivals.note_end(1, 5 * MS);
        arrivals.note_end(0, 10 * MS);
        assert_eq!(arrivals.arrived(10 * MS), Some((10 * MS, 2)));
        arrivals.note_end(2, 20 * MS);
        assert_eq!(arrivals.next_ns(), Some(50 * MS));
    }

    #[test]
    fn so_many_sessions_at_a_time() {
        let mut traffic = traffic(&[
            (None, "a", None),
            (None, "b", None),
            (None, "a", Some(7.0)),
            (None, "", None),
            (None, "", None),
        ]);
        assert_eq!(Arrivals::new(&traffic).err(), Some(Error::NoTimes { request: 0 }));
        traffic.serve_at_a_time(Some(2));
        let mut arrivals = Arrivals::new(&traffic).expect("no times needed");
        assert_eq!(
            (arrivals.arrived(0), arrivals.arrived(0), arrivals.arrived(0)),
            (Some((0, 0)), Some((0, 1)), None)
        );
        arrivals.note_end(0, 3 * MS);
        assert_eq!(arrivals.next_ns(), Some(10 * MS), "after its pause");
        arrivals.note_end(1, 4 * MS);
        assert_eq!(arrivals.arrived(4 * MS), Some((4 * MS, 3)), "session b has ended");
        arrivals.note_end(3, 5 * MS);
        assert_eq!(arrivals.arrived(5 * MS), Some((5 * MS, 4)));
        arrivals.note_end(4, 6 * MS);
        assert_eq!((arrivals.arrived(9 * MS), arrivals.arrived(10 * MS)), (None, Some((10 * MS, 2))));
    }
}
