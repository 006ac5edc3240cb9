//! Faults, by a seed or aimed at one kind of request.

use super::answer::Answer;
use super::request::Call;

/// What goes wrong with one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// 409, and nothing happens.
    Conflict,
    /// 500, and nothing happens.
    Error,
    /// 500, and what was asked for happened.
    ErrorAfter,
    /// No answer, and nothing happens.
    Hang,
    /// No answer, and what was asked for happened.
    HangAfter,
    /// 403, and nothing happens.
    Forbidden,
    /// 422, and nothing happens.
    Invalid,
    /// A watch ends right away.
    Cut,
    /// A watch is told that its history is gone.
    Gone,
}

impl Fault {
    pub(super) fn after(self) -> bool {
        matches!(self, Self::ErrorAfter | Self::HangAfter | Self::Cut | Self::Gone)
    }

    pub(super) fn answer(self) -> Option<Answer> {
        match self {
            Self::Conflict => Some(Answer::conflict("injected: the object has been modified")),
            Self::Error | Self::ErrorAfter => Some(Answer::refused(500, "InternalError", "injected")),
            Self::Invalid => {
                Some(Answer::invalid("injected: updates to fields other than these are forbidden"))
            }
            Self::Forbidden => Some(Answer::refused(403, "Forbidden", "injected")),
            Self::Hang | Self::HangAfter | Self::Cut | Self::Gone => None,
        }
    }
}

type Aim = (Box<dyn Fn(&Call) -> bool + Send>, Fault, usize);

/// When requests fail. None, by default.
#[derive(Default)]
pub struct Faults {
    random: Option<(u64, u64)>,
    aimed: Vec<Aim>,
}

impl Faults {
    /// One request of `one_in` fails, in a way that the seed decides.
    pub fn seeded(seed: u64, one_in: u64) -> Self {
        // Seeds that differ little give sequences that differ much.
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { random: Some((state, one_in)), aimed: Vec::new() }
    }

    /// The next `times` requests that match fail like this.
    pub fn aimed(
        mut self,
        matches: impl Fn(&Call) -> bool + Send + 'static,
        fault: Fault,
        times: usize,
    ) -> Self {
        self.aimed.push((Box::new(matches), fault, times));
        self
    }

    pub(super) fn next(&mut self, call: &Call) -> Option<Fault> {
        for (matches, fault, times) in &mut self.aimed {
            if *times > 0 && matches(call) {
                *times -= 1;
                return Some(*fault);
            }
        }
        let (state, one_in) = self.random.as_mut()?;
        if !draw(state).is_multiple_of(*one_in) {
            return None;
        }
        use super::Verb;
        use Fault::{Conflict, Cut, Error, ErrorAfter, Gone, Hang, HangAfter};
        let choices: &[Fault] = match call.verb {
            Verb::Watch => &[Error, Cut, Gone],
            verb if verb.writes() => &[Conflict, Error, ErrorAfter, Hang, HangAfter],
            _ => &[Error, Hang],
        };
        Some(choices[(draw(state) % choices.len() as u64) as usize])
    }
}

/// SplitMix64 (Steele et al., OOPSLA 2014).
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
