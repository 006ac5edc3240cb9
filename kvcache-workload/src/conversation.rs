//! Conversations of several turns.

use crate::arrivals::Rate;
use crate::distribution::Distribution;
use crate::error::{Error, InvalidParameter};
use crate::random::Random;
use crate::request::Request;
use crate::sessions::{self, Context, TURNS_MAX, Turn};
use crate::share::{Chooser, Popularity};
use crate::streams;

/// Conversations: each turn's prompt is all that was said before, the answers included, and a new message.
#[derive(Clone, PartialEq, Debug)]
pub struct Conversation {
    /// How many conversations.
    pub sessions: u64,
    /// Turns of each, at least 1 and at most 1000.
    pub turns: Distribution,
    /// Tokens of a user's message.
    pub turn_tokens: Distribution,
    /// Tokens of an answer.
    pub output_tokens: Distribution,
    /// Tokens of a system prompt, which conversations share.
    pub system_tokens: Distribution,
    /// How many system prompts there are.
    pub system_prompts: u64,
    /// Which of them a conversation has.
    pub popularity: Popularity,
    /// Pause between an answer and the next message.
    pub think_ms: Distribution,
    /// For timestamps: how long a token of an answer is taken to need.
    pub token_ms: f64,
    /// Longest prompt: messages are cut to it, and a conversation that has reached it ends.
    pub input_tokens_max: u64,
    /// When conversations begin.
    pub rate: Rate,
    /// Of everything that is drawn.
    pub seed: u64,
}

impl Conversation {
    /// The requests, in the order of arrival. Memory: the turns of the conversations that are under way.
    ///
    /// # Errors
    ///
    /// If a parameter is impossible.
    pub fn requests(&self) -> Result<impl Iterator<Item = Result<Request, Error>> + use<>, InvalidParameter> {
        sessions::check(self.sessions, self.input_tokens_max, self.token_ms)?;
        let chooser = Chooser::new(self.popularity, self.system_prompts)?;
        let (make, starts) = (self.clone(), self.rate.times(self.seed));
        let first_stream = streams::first(self.seed, "conversation");
        let mut next_stream = first_stream + self.system_prompts;
        let sessions = (0..self.sessions)
            .map(move |session| Ok(make.session(session, &chooser, first_stream, &mut next_stream)));
        Ok(sessions::interleaved(sessions, starts))
    }

    fn session(
        &self,
        session: u64,
        chooser: &Chooser,
        first_stream: u64,
        next_stream: &mut u64,
    ) -> Vec<Turn> {
        // A sequence of its own, so that conversation 5 is the same however many there are.
        let mut random = Random::nth(self.seed, "conversation", session);
        let system = chooser.choose(&mut random);
        let mut of_system = Random::nth(self.seed, "system prompts", system);
        let mut context = Context::new(self.input_tokens_max);
        context.add(first_stream + system, self.system_tokens.sample_count(&mut of_system, 0));
        let mut turns = Vec::new();
        let mut answer_ms = None;
        for turn in 0..self.turns.sample_count(&mut random, 1).min(TURNS_MAX) {
            let message_tokens = self.turn_tokens.sample_count(&mut random, 1);
            let output_tokens = self.output_tokens.sample_count(&mut random, 1);
            let think_ms = answer_ms.map(|_| self.think_ms.sample(&mut random).max(0.0));
            if !context.add(*next_stream, message_tokens) {
                break;
            }
            let request = Request {
                output_tokens: Some(output_tokens),
                session_id: Some(session.to_string()),
                turn: Some(turn as u32),
                think_ms,
                ..Request::new(context.content())
            };
            turns.push(Turn { gap_ms: answer_ms.unwrap_or(0.0) + think_ms.unwrap_or(0.0), request });
            context.add(*next_stream + 1, output_tokens);
            *next_stream += 2;
            answer_ms = Some(output_tokens as f64 * self.token_ms);
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::request::{Content, Piece};

    fn conversation(sessions: u64, seed: u64) -> Conversation {
        let parse = |text: &str| text.parse().expect(text);
        Conversation {
            sessions,
            turns: parse("normal:3.55:2.89"),
            turn_tokens: parse("pareto:80:472"),
            output_tokens: parse("lognormal:200:200"),
            system_tokens: parse("uniform:100:900"),
            system_prompts: 3,
            popularity: Popularity::Uniform,
            think_ms: parse("lognormal:20000:20000"),
            token_ms: 20.0,
            input_tokens_max: 4000,
            rate: "poisson:1".parse().expect("a rate"),
            seed,
        }
    }

    fn made(conversation: &Conversation) -> Vec<Request> {
        let requests = conversation.requests().expect("possible");
        requests.map(|request| request.expect("generators do not fail")).collect()
    }

    fn pieces(request: &Request) -> &[Piece] {
        match &request.content {
            Content::Pieces(pieces) => pieces,
            other => panic!("{other:?}"),
        }
    }

    fn tokens(request: &Request) -> u64 {
        request.content.input_tokens().expect("pieces")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn each_turn_has_all_that_came_before(seed: u64) {
            let requests = made(&conversation(60, seed));
            prop_assert!(requests.is_sorted_by_key(|request| request.timestamp_ms.expect("timed") as u64));
            let mut last: HashMap<String, Request> = HashMap::new();
            for request in requests {
                let session = request.session_id.clone().expect("set");
                prop_assert!(tokens(&request) <= 4000);
                if let Some(before) = last.get(&session) {
                    prop_assert_eq!(request.turn, before.turn.map(|turn| turn + 1));
                    let (old, new) = (pieces(before), pieces(&request));
                    prop_assert_eq!(&new[..old.len()], old);
                    // The answer, cut to the room, and a message.
                    prop_assert_eq!(new.len(), old.len() + 2);
                    let room = 4000 - tokens(before);
                    prop_assert_eq!(new[old.len()].tokens, before.output_tokens.expect("set").min(room));
                    let gap = request.timestamp_ms.expect("timed") - before.timestamp_ms.expect("timed");
                    let answer = before.output_tokens.expect("set") as f64 * 20.0;
                    prop_assert!((gap - answer - request.think_ms.expect("set")).abs() < 0.01);
                } else {
                    prop_assert_eq!((request.turn, request.think_ms), (Some(0), None));
                }
                last.insert(session, request);
            }
            prop_assert_eq!(last.len(), 60);
        }
    }

    #[test]
    fn turns_and_lengths_are_those_asked_for() {
        let mut long = conversation(20_000, 9);
        (long.system_tokens, long.input_tokens_max) = ("0".parse().expect("a number"), 1 << 20);
        let requests = made(&long);
        // Rounding, and no turn at all counting as one, make 3.87 of a mean of 3.55.
        let turns = requests.len() as f64 / 20_000.0;
        assert!((turns - 3.87).abs() < 0.1, "{turns}");
        let outputs = requests.iter().filter_map(|request| request.output_tokens).sum::<u64>();
        let mean = outputs as f64 / requests.len() as f64;
        assert!((mean - 200.0).abs() < 5.0, "{mean}");
        let mut messages: Vec<u64> =
            requests.iter().filter_map(|r| pieces(r).last().map(|p| p.tokens)).collect();
        messages.sort_unstable();
        // Pareto of exponent 2.014 and smallest value 40.3.
        assert_eq!((messages[0], messages[messages.len() / 2]), (40, 57));
    }

    #[test]
    fn conversations_share_few_system_prompts() {
        let requests = made(&conversation(300, 1));
        let mut lengths: HashMap<u64, u64> = HashMap::new();
        for request in &requests {
            let system = pieces(request)[0];
            assert_eq!(*lengths.entry(system.stream).or_insert(system.tokens), system.tokens);
        }
        assert_eq!(lengths.len(), 3);
    }

    #[test]
    fn more_conversations_leave_the_first_as_they_were() {
        let of_first = |sessions| -> Vec<u64> {
            let requests = made(&conversation(sessions, 4));
            requests.iter().filter(|r| r.session_id.as_deref() == Some("0")).map(tokens).collect()
        };
        assert_eq!(of_first(1), of_first(50));
    }

    #[test]
    fn impossible_parameters_are_refused() {
        let refused = |change: fn(&mut Conversation)| {
            let mut conversation = conversation(5, 1);
            change(&mut conversation);
            conversation.requests().err().expect("impossible").to_string()
        };
        assert!(refused(|of| of.sessions = 0).contains("0 sessions are asked for, give 1 to"));
        assert!(refused(|of| of.input_tokens_max = 0).contains("prompts of at most 0 tokens"));
        assert!(refused(|of| of.token_ms = f64::NAN).contains("NaN ms for a token"));
        assert!(refused(|of| of.token_ms = -1.0).contains("-1 ms for a token"));
        assert!(refused(|of| of.system_prompts = 0).contains("at least one prefix"));
    }
}
