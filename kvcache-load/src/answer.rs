//! A streamed answer, read as its bytes arrive. Time is an argument.

use crate::chunk::{Chunk, Usage};
use crate::failure::{Failure, excerpt};
use crate::sse::EventReader;

/// What has come of an answer so far.
#[derive(Default, Debug)]
pub(crate) struct Answer {
    events: EventReader,
    state: State,
}

#[derive(Default, Debug)]
struct State {
    first_us: Option<u64>,
    /// When the last part came, the one included that only says that the answer has ended.
    last_us: Option<u64>,
    /// When the last part with a token came.
    token_us: Option<u64>,
    gaps_us: Vec<u32>,
    chunks: u64,
    usage: Option<Usage>,
    is_finished: bool,
    done_us: Option<u64>,
}

/// A whole answer. Times are those of [`Answer::read`].
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Answered {
    /// When the first token came; `None` if there is none.
    pub first_us: Option<u64>,
    /// When the last one came.
    pub last_us: Option<u64>,
    /// When the server had said that it is done.
    pub ended_us: u64,
    /// From each part with tokens to the next one, in microseconds.
    pub gaps_us: Vec<u32>,
    /// Tokens as the server counts them, or else parts with tokens.
    pub output_tokens: u64,
    /// The server did not say how many tokens there are.
    pub is_counted: bool,
    /// Tokens of the prompt as the server counts them.
    pub prompt_tokens: Option<u64>,
    /// Of these, those that it had in a cache.
    pub cached_tokens: Option<u64>,
}

impl Answer {
    /// Reads what has arrived at `now_us`.
    pub(crate) fn read(&mut self, bytes: &[u8], now_us: u64) -> Result<(), Failure> {
        let state = &mut self.state;
        self.events.read(bytes, |data| state.event(data, now_us))
    }

    /// When there was progress last.
    pub(crate) fn progress_us(&self) -> Option<u64> {
        self.state.last_us
    }

    /// Ends the answer, whose last bytes have come at `now_us`.
    pub(crate) fn end(mut self, now_us: u64) -> Result<Answered, Failure> {
        let state = &mut self.state;
        self.events.end(|data| if data == DONE { state.event(data, now_us) } else { Ok(()) })?;
        let state = self.state;
        if state.done_us.is_none() && !state.is_finished {
            let chunks = state.chunks;
            return Err(Failure::Cut(format!(
                "the stream ended after {chunks} parts, before the answer did"
            )));
        }
        let usage = state.usage.unwrap_or_default();
        Ok(Answered {
            first_us: state.first_us,
            last_us: state.last_us,
            ended_us: state.done_us.unwrap_or(now_us),
            gaps_us: state.gaps_us,
            output_tokens: usage.completion_tokens.unwrap_or(state.chunks),
            is_counted: usage.completion_tokens.is_none(),
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens),
        })
    }
}

impl State {
    fn event(&mut self, data: &[u8], now_us: u64) -> Result<(), Failure> {
        // What a server says after its last word is of no interest.
        if self.done_us.is_some() {
            return Ok(());
        }
        if data == DONE {
            self.done_us = Some(now_us);
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|error| {
            Failure::Garbage(format!("an event that cannot be read: {error}: `{}`", excerpt(data)))
        })?;
        if let Some(error) = chunk.error {
            return Err(Failure::Server(message(&error)));
        }
        if chunk.choices.is_none() && chunk.usage.is_none() {
            return Err(Failure::Garbage(format!(
                "an event with neither `choices` nor `usage`: `{}`",
                excerpt(data)
            )));
        }
        self.usage = chunk.usage.or(self.usage);
        let choices = chunk.choices.unwrap_or_default();
        self.is_finished |= choices.iter().any(|choice| choice.is_finished());
        if choices.iter().any(|choice| choice.brings_token()) {
            self.token(now_us)?;
        } else if self.first_us.is_some() && !choices.is_empty() {
            self.last_us = Some(now_us);
        }
        Ok(())
    }

    fn token(&mut self, now_us: u64) -> Result<(), Failure> {
        if self.chunks == CHUNKS_MAX {
            return Err(Failure::Garbage(format!("an answer of more than {CHUNKS_MAX} parts")));
        }
        self.chunks += 1;
        match self.token_us {
            Some(before_us) => {
                self.gaps_us.push(u32::try_from(now_us.saturating_sub(before_us)).unwrap_or(u32::MAX));
            }
            None => self.first_us = Some(now_us),
        }
        self.token_us = Some(now_us);
        self.last_us = Some(now_us);
        Ok(())
    }
}

/// What a JSON value says of an error, as OpenAI, vLLM and other servers write it.
pub(crate) fn message(error: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().map(|text| excerpt(text.as_bytes()));
    let within = ["message", "detail", "error"].iter().find_map(|name| error.get(name));
    match within {
        Some(inner) => text(inner).unwrap_or_else(|| message(inner)),
        None => text(error).unwrap_or_else(|| excerpt(error.to_string().as_bytes())),
    }
}

const DONE: &[u8] = b"[DONE]";

/// Parts of an answer at most, of 4 bytes each.
const CHUNKS_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(text: &str) -> String {
        format!("data: {{\"choices\": [{{\"text\": \"{text}\", \"finish_reason\": null}}]}}\n\n")
    }

    const FINISH: &str = "data: {\"choices\": [{\"text\": \"\", \"finish_reason\": \"length\"}]}\n\n";
    const USAGE: &str = "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 9, \"completion_tokens\": 5, \
                         \"prompt_tokens_details\": {\"cached_tokens\": 8}}}\n\n";
    const END: &str = "data: [DONE]\n\n";

    /// An answer of these parts at these times.
    fn read(parts: &[(u64, &str)]) -> Result<Answered, Failure> {
        let mut answer = Answer::default();
        for (now_us, part) in parts {
            answer.read(part.as_bytes(), *now_us)?;
        }
        answer.end(parts.last().map_or(0, |(now_us, _)| *now_us))
    }

    #[test]
    fn times_are_those_of_the_parts() {
        let (a, b) = (token("a"), token(""));
        let both = format!("{a}{b}");
        let answered = read(&[(100, &a), (130, &b), (190, &both), (200, FINISH), (210, USAGE), (220, END)])
            .expect("whole");
        let expected = Answered {
            first_us: Some(100),
            last_us: Some(200),
            ended_us: 220,
            gaps_us: vec![30, 60, 0],
            output_tokens: 5,
            is_counted: false,
            prompt_tokens: Some(9),
            cached_tokens: Some(8),
        };
        assert_eq!(answered, expected);
    }

    /// A part counts when its last byte has come.
    #[test]
    fn a_cut_at_every_byte_changes_nothing_but_times() {
        let stream = format!(": hello\n\n{}{}{FINISH}{USAGE}{END}", token("a"), token("\\u00e9"));
        let whole = read(&[(7, &stream)]).expect("whole");
        assert_eq!((whole.gaps_us.as_slice(), whole.output_tokens), (&[0][..], 5));
        for cut in 1..stream.len() {
            let mut answer = Answer::default();
            answer.read(&stream.as_bytes()[..cut], 7).expect("good");
            answer.read(&stream.as_bytes()[cut..], 7).expect("good");
            assert_eq!(answer.end(7).expect("whole"), whole, "{cut}");
        }
    }

    #[test]
    fn without_usage_parts_are_counted() {
        let answered = read(&[(1, &token("a")), (2, &token("b")), (3, END)]).expect("whole");
        assert_eq!((answered.output_tokens, answered.is_counted, answered.cached_tokens), (2, true, None));
        let answered = read(&[(1, &token("a")), (2, FINISH)]).expect("finished, if not done");
        assert_eq!((answered.output_tokens, answered.ended_us), (1, 2));
        assert_eq!(read(&[(5, END)]).expect("empty").first_us, None);
    }

    #[test]
    fn an_answer_that_ends_early_is_cut() {
        let error = read(&[(1, &token("a"))]).expect_err("cut");
        assert_eq!(error, Failure::Cut("the stream ended after 1 parts, before the answer did".to_owned()));
        assert_eq!(read(&[]).expect_err("nothing").kind(), "stream cut");
        assert_eq!(read(&[(1, "data: {\"choi")]).expect_err("cut").kind(), "stream cut");
    }

    #[test]
    fn garbage_is_named() {
        for (stream, expected) in [
            ("data: {\"choices\": [}\n\n", "an event that cannot be read"),
            ("data: \n\n", "an event that cannot be read"),
            ("data: {\"choices\": 7}\n\n", "invalid type"),
            ("data: {\"choices\": [], \"usage\": {\"prompt_tokens\": -1}}\n\n", "invalid value"),
            ("data: {\"object\": \"error\"}\n\n", "neither `choices` nor `usage`: `{\"object\": \"error\"}`"),
        ] {
            let error = read(&[(1, stream)]).expect_err(stream);
            assert_eq!(error.kind(), "garbage");
            assert!(error.to_string().contains(expected), "{error}");
        }
        let mut answer = Answer::default();
        let line = vec![b'x'; 1 << 20];
        answer.read(&line, 1).expect("as long as a line may be");
        assert_eq!(answer.read(b"x", 1).expect_err("too long").kind(), "garbage");
    }

    proptest! {
        /// What the fuzz target does, with streams that are nearly good.
        #[test]
        fn nothing_panics_and_cuts_do_not_matter(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just(token("a").into_bytes()),
                    Just(FINISH.as_bytes().to_vec()),
                    Just(USAGE.as_bytes().to_vec()),
                    Just(END.as_bytes().to_vec()),
                    Just(b"data: {\"error\": [{\"message\": {}}]}\n\n".to_vec()),
                    proptest::collection::vec(any::<u8>(), 0..20),
                ],
                0..8,
            ),
            damage in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
            part_bytes in 1usize..40,
        ) {
            let mut stream = parts.concat();
            if let (Some((index, byte)), false) = (damage, stream.is_empty()) {
                let at = index.index(stream.len());
                stream[at] = byte;
            }
            let whole = crate::fuzz_entry(&stream, stream.len());
            prop_assert_eq!(crate::fuzz_entry(&stream, part_bytes), whole);
        }
    }

    #[test]
    fn an_answer_has_a_longest() {
        let mut state = State { chunks: CHUNKS_MAX - 1, ..State::default() };
        assert!(state.token(1).is_ok());
        assert!(state.token(1).expect_err("too many").to_string().contains("more than 1048576 parts"));
    }

    #[test]
    fn what_the_server_says_of_its_failure_is_kept() {
        for (error, expected) in [
            ("{\"message\": \"out of memory\", \"code\": 500}", "out of memory"),
            ("\"too long\"", "too long"),
            ("{\"detail\": {\"error\": \"x\"}}", "x"),
            ("{\"code\": 5}", "{\"code\":5}"),
        ] {
            let stream = format!("{}data: {{\"error\": {error}}}\n\n", token("a"));
            assert_eq!(read(&[(1, &stream)]).expect_err("failed"), Failure::Server(expected.to_owned()));
        }
    }
}
