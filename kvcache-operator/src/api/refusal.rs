//! Why a resource is not served, in words that its author can act on.

use std::fmt;

use super::Reason;

/// A resource that cannot be served as it is. What runs for it already is left alone.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", list(.problems))]
pub struct Refusal {
    /// The reason of the condition `Accepted`.
    pub reason: Reason,
    /// Everything that is wrong, not only what was found first. Never empty.
    pub problems: Vec<Problem>,
}

impl Refusal {
    /// Whether the resource may be another operator's. If nothing of it ran here before, it is left alone.
    pub fn is_unclaimed(&self) -> bool {
        self.reason == Reason::UnknownBackend
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where, as in `spec.cache.replicas`.
    pub field: String,
    /// The value, why it cannot work, and what would.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}

/// Problems as they are found.
#[derive(Default)]
pub(super) struct Problems {
    found: Vec<(Reason, Problem)>,
}

impl Problems {
    /// Notes a problem of the most frequent kind, [`Reason::InvalidSpec`].
    pub(super) fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add_as(Reason::InvalidSpec, field, message);
    }

    /// Notes a problem that has a reason of its own.
    pub(super) fn add_as(&mut self, reason: Reason, field: impl Into<String>, message: impl Into<String>) {
        self.found.push((reason, Problem { field: field.into(), message: message.into() }));
    }

    /// The refusal, if there is something to refuse. Its reason is the problems' own where they agree.
    pub(super) fn into_refusal(self) -> Option<Refusal> {
        let reason = self.found.first()?.0;
        let same = self.found.iter().all(|(other, _)| *other == reason);
        let problems = self.found.into_iter().map(|(_, problem)| problem).collect();
        Some(Refusal { reason: if same { reason } else { Reason::InvalidSpec }, problems })
    }
}
