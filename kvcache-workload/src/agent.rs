//! Sessions of agents that call tools.

use crate::arrivals::Rate;
use crate::distribution::Distribution;
use crate::error::{Error, InvalidParameter};
use crate::random::Random;
use crate::request::Request;
use crate::sessions::{self, Context, TURNS_MAX, Turn};
use crate::streams;

/// Agents: a task, and in each turn a plan that calls tools in parallel, their results, and an answer.
///
/// A turn with `n` rounds of tools is `n + 1` requests: one that answers the user or plans, and one after each round.
/// Each has all that came before it in its prompt, the answers and results included. The pause before a request that
/// comes after tools is that of the slowest tool.
#[derive(Clone, PartialEq, Debug)]
pub struct Agent {
    /// How many sessions.
    pub sessions: u64,
    /// Turns of a session: what a user asks for.
    pub turns: Distribution,
    /// Rounds of tools in a turn.
    pub rounds: Distribution,
    /// Tools that are called in parallel in a round.
    pub tools: Distribution,
    /// How long a tool takes.
    pub tool_ms: Distribution,
    /// How often a call of a tool fails and is made again, from 0 to 1.
    pub retry: f64,
    /// How often it is made again at most.
    pub retries_max: u32,
    /// Tokens of the system prompt and the descriptions of tools, which all sessions share.
    pub system_tokens: u64,
    /// Tokens of the task.
    pub task_tokens: Distribution,
    /// Tokens of what the user says in later turns.
    pub user_tokens: Distribution,
    /// Tokens of a tool's result.
    pub tool_tokens: Distribution,
    /// Tokens of each answer of the model, calls of tools included.
    pub output_tokens: Distribution,
    /// Pause between an answer and what the user says next.
    pub think_ms: Distribution,
    /// For timestamps: how long a token of an answer is taken to need.
    pub token_ms: f64,
    /// Longest prompt: what is added is cut to it, and a session that has reached it ends.
    pub input_tokens_max: u64,
    /// When sessions begin.
    pub rate: Rate,
    /// Of everything that is drawn.
    pub seed: u64,
}

impl Agent {
    /// The requests, in the order of arrival. Memory: the turns of the sessions that are under way.
    ///
    /// # Errors
    ///
    /// If a parameter is impossible.
    pub fn requests(&self) -> Result<impl Iterator<Item = Result<Request, Error>> + use<>, InvalidParameter> {
        sessions::check(self.sessions, self.input_tokens_max, self.token_ms)?;
        if !(0.0..=1.0).contains(&self.retry) {
            return Err(InvalidParameter::new(format!("tools fail with {}, give 0 to 1", self.retry)));
        }
        let (make, starts) = (self.clone(), self.rate.times(self.seed));
        let first_stream = streams::first(self.seed, "agent");
        let mut next_stream = first_stream + 1;
        let sessions =
            (0..self.sessions).map(move |session| Ok(make.session(session, first_stream, &mut next_stream)));
        Ok(sessions::interleaved(sessions, starts))
    }

    fn session(&self, session: u64, first_stream: u64, next_stream: &mut u64) -> Vec<Turn> {
        let mut random = Random::nth(self.seed, "agent", session);
        let mut context = Context::new(self.input_tokens_max);
        context.add(first_stream, self.system_tokens);
        let mut session =
            Session { id: session.to_string(), context, next_stream, turns: Vec::new(), answer_ms: 0.0 };
        for turn in 0..self.turns.sample_count(&mut random, 1).min(TURNS_MAX) {
            let (said, think_ms) = match turn {
                0 => (&self.task_tokens, None),
                _ => (&self.user_tokens, Some(self.think_ms.sample(&mut random).max(0.0))),
            };
            if !session.add(said.sample_count(&mut random, 1)) {
                return session.turns;
            }
            session.request(self.output_tokens.sample_count(&mut random, 1), self.token_ms, think_ms);
            for _ in 0..self.rounds.sample_count(&mut random, 0).min(TURNS_MAX) {
                let mut round_ms: f64 = 0.0;
                for _ in 0..self.tools.sample_count(&mut random, 1).min(TURNS_MAX) {
                    round_ms = round_ms.max(self.call_ms(&mut random));
                    if !session.add(self.tool_tokens.sample_count(&mut random, 1)) {
                        return session.turns;
                    }
                }
                session.request(
                    self.output_tokens.sample_count(&mut random, 1),
                    self.token_ms,
                    Some(round_ms),
                );
                if session.turns.len() as u64 >= TURNS_MAX {
                    return session.turns;
                }
            }
        }
        session.turns
    }

    /// How long a call takes, with the calls that failed before it.
    fn call_ms(&self, random: &mut Random) -> f64 {
        let mut call_ms = self.tool_ms.sample(random).max(0.0);
        for _ in 0..self.retries_max {
            if random.unit() >= self.retry {
                break;
            }
            call_ms += self.tool_ms.sample(random).max(0.0);
        }
        call_ms
    }
}

/// A session that is being made.
struct Session<'a> {
    id: String,
    context: Context,
    next_stream: &'a mut u64,
    turns: Vec<Turn>,
    answer_ms: f64,
}

impl Session<'_> {
    /// Adds so many new tokens; false if there is no room.
    fn add(&mut self, tokens: u64) -> bool {
        *self.next_stream += 1;
        self.context.add(*self.next_stream - 1, tokens)
    }

    /// A request with all that there is, whose answer is part of the next.
    fn request(&mut self, output_tokens: u64, token_ms: f64, pause_ms: Option<f64>) {
        let request = Request {
            output_tokens: Some(output_tokens),
            session_id: Some(self.id.clone()),
            turn: Some(self.turns.len() as u32),
            think_ms: pause_ms,
            ..Request::new(self.context.content())
        };
        self.turns.push(Turn { gap_ms: self.answer_ms + pause_ms.unwrap_or(0.0), request });
        self.answer_ms = output_tokens as f64 * token_ms;
        self.add(output_tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Content, Piece};

    fn agent() -> Agent {
        let parse = |text: &str| text.parse().expect(text);
        Agent {
            sessions: 400,
            turns: parse("uniform:2:5"),
            rounds: parse("1"),
            tools: parse("uniform:1:4"),
            tool_ms: parse("200"),
            retry: 0.1,
            retries_max: 1,
            system_tokens: 256,
            task_tokens: parse("256"),
            user_tokens: parse("50"),
            tool_tokens: parse("70"),
            output_tokens: parse("60"),
            think_ms: parse("1000"),
            token_ms: 10.0,
            input_tokens_max: 131_072,
            rate: "poisson:0.5".parse().expect("a rate"),
            seed: 17,
        }
    }

    fn sessions(agent: &Agent) -> Vec<Vec<Request>> {
        let mut sessions = vec![Vec::new(); agent.sessions as usize];
        for request in agent.requests().expect("possible") {
            let request = request.expect("generators do not fail");
            let number: usize = request.session_id.as_deref().expect("set").parse().expect("a number");
            sessions[number].push(request);
        }
        sessions
    }

    fn tokens(request: &Request) -> Vec<u64> {
        match &request.content {
            Content::Pieces(pieces) => pieces.iter().map(|piece| piece.tokens).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_turn_is_a_plan_its_tools_and_an_answer() {
        for session in sessions(&agent()) {
            assert!([4, 6, 8, 10].contains(&session.len()), "2 to 5 turns of 2 requests");
            assert_eq!(tokens(&session[0]), [256, 256]);
            for (index, pair) in session.windows(2).enumerate() {
                let (before, after) = (tokens(&pair[0]), tokens(&pair[1]));
                assert_eq!(after[..before.len()], before);
                assert_eq!(after[before.len()], 60, "the answer is said");
                let added = &after[before.len() + 1..];
                let pause = pair[1].think_ms.expect("set");
                if index % 2 == 0 {
                    assert!((1..=4).contains(&added.len()) && added.iter().all(|tokens| *tokens == 70));
                    assert!(pause == 200.0 || pause == 400.0, "once, or again");
                } else {
                    assert_eq!((added, pause), (&[50][..], 1000.0));
                }
                let gap = pair[1].timestamp_ms.expect("timed") - pair[0].timestamp_ms.expect("timed");
                assert!((gap - 600.0 - pause).abs() < 0.001);
            }
        }
    }

    /// A round of `n` tools takes twice as long if one of `n` calls fails: `1 - 0.9^n`, on average over 1 to 4.
    #[test]
    fn calls_fail_as_often_as_asked_for() {
        let sessions = sessions(&Agent { sessions: 4000, ..agent() });
        let pauses = sessions.iter().flat_map(|session| session.iter().skip(1).step_by(2));
        let pauses: Vec<f64> = pauses.filter_map(|request| request.think_ms).collect();
        let share = pauses.iter().filter(|pause| **pause == 400.0).count() as f64 / pauses.len() as f64;
        let expected = 1.0 - (1..=4).map(|tools| 0.9f64.powi(tools)).sum::<f64>() / 4.0;
        assert!((share - expected).abs() < 0.02, "{share} {expected}");
    }

    #[test]
    fn all_sessions_share_the_system_prompt_and_nothing_else() {
        let mut streams = std::collections::HashMap::new();
        for (number, session) in sessions(&agent()).iter().enumerate() {
            let Some(Content::Pieces(pieces)) = session.last().map(|request| &request.content) else {
                panic!()
            };
            for Piece { stream, .. } in &pieces[1..] {
                assert_eq!(streams.insert(*stream, number), None);
            }
            assert_eq!(pieces[0].stream, streams::first(17, "agent"));
        }
    }

    #[test]
    fn a_session_ends_where_its_prompt_is_full() {
        let full = Agent { input_tokens_max: 600, ..agent() };
        for session in sessions(&full) {
            let lengths: Vec<u64> = session.iter().map(|request| tokens(request).iter().sum()).collect();
            // 60 of an answer leave 28 tokens: one tool's result is cut to them, a second one has no room.
            assert!(lengths == [512] || lengths == [512, 600], "{lengths:?}");
        }
    }

    #[test]
    fn impossible_parameters_are_refused() {
        let refused = |agent: Agent| agent.requests().err().expect("impossible").to_string();
        assert!(refused(Agent { retry: 1.5, ..agent() }).contains("tools fail with 1.5, give 0 to 1"));
        assert!(refused(Agent { retry: f64::NAN, ..agent() }).contains("NaN"));
        assert!(refused(Agent { sessions: 0, ..agent() }).contains("0 sessions"));
    }
}
