//! Requests of a workload as the API wants them.

use std::num::NonZeroU64;

use hyper::body::Bytes;
use kvcache_workload::{Content, InvalidParameter, Message, Request, Vocabulary};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Which of the two APIs is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Api {
    /// Messages are a chat, all else completions.
    #[default]
    Auto,
    /// `/completions`, which messages cannot be sent to.
    Completions,
    /// `/chat/completions`, which token ids cannot be sent to. A text is the message of a user.
    Chat,
}

/// How requests are written.
#[derive(Clone, Debug)]
pub struct BodyOptions {
    /// Name of the model.
    pub model: String,
    /// Which API is spoken.
    pub api: Api,
    /// The token ids that prompts are made of which the workload knows only the sharing of.
    pub vocabulary: Vocabulary,
    /// Tokens of an answer of which the workload does not say it.
    pub output_tokens: NonZeroU64,
    /// Leaves out what is not OpenAI's: `ignore_eos` and `min_tokens`. Answers may then be shorter than asked for.
    pub plain_openai: bool,
    /// More fields; `null` leaves one of ours out.
    pub extra: Map<String, Value>,
}

/// Writes requests.
#[derive(Debug)]
pub(crate) struct Bodies {
    options: BodyOptions,
}

/// A request, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) is_chat: bool,
    pub(crate) body: Bytes,
    pub(crate) asked_tokens: u64,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<Prompt<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a [Message]>,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Prompt<'a> {
    Tokens(Vec<u32>),
    Text(&'a str),
}

impl Bodies {
    /// # Errors
    ///
    /// If an extra field is one that the workload or another option determines.
    pub(crate) fn new(options: BodyOptions) -> Result<Self, InvalidParameter> {
        match RESERVED.iter().find(|(name, _)| options.extra.contains_key(*name)) {
            Some((name, reason)) => {
                Err(InvalidParameter::new(format!("`{name}` cannot be among the extra fields: {reason}")))
            }
            None => Ok(Self { options }),
        }
    }

    /// Whether the API can be asked this.
    ///
    /// # Errors
    ///
    /// What to do otherwise.
    pub(crate) fn check(&self, request: &Request) -> Result<(), &'static str> {
        match (self.options.api, &request.content) {
            (Api::Completions, Content::Messages { .. }) => {
                Err("it has messages, which only the chat API takes; use the API `chat` or `auto`")
            }
            (Api::Chat, Content::Pieces(_) | Content::Hashes { .. }) => Err(
                "its prompt is token ids, which only completions take; use the API `completions` or `auto`",
            ),
            _ if request.content.input_tokens() == Some(0) => Err("its prompt is empty"),
            _ => Ok(()),
        }
    }

    /// Writes a request. Cost: a few nanoseconds for each token of the prompt.
    pub(crate) fn prepare(&self, request: &Request) -> Prepared {
        let asked_tokens = request.output_tokens.unwrap_or(self.options.output_tokens.get()).max(1);
        let fields = self.fields(asked_tokens);
        let tokens = request.tokens(self.options.vocabulary).map(Prompt::Tokens);
        let (user, prompt, messages);
        match &request.content {
            Content::Messages { messages: given, .. } => (prompt, messages) = (None, Some(given.as_slice())),
            Content::Prompt { text, .. } if self.options.api == Api::Chat => {
                user = [user_message(text)];
                (prompt, messages) = (None, Some(user.as_slice()));
            }
            Content::Prompt { text, .. } => (prompt, messages) = (Some(Prompt::Text(text)), None),
            Content::Pieces(_) | Content::Hashes { .. } => (prompt, messages) = (tokens, None),
        }
        let is_chat = messages.is_some();
        let body = Body { model: &self.options.model, prompt, messages, fields };
        // Maps with text as keys, and no floats of ours: always JSON.
        let body = serde_json::to_vec(&body).expect("JSON").into();
        Prepared { is_chat, body, asked_tokens }
    }

    fn fields(&self, asked_tokens: u64) -> Map<String, Value> {
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        set("max_tokens", asked_tokens.into());
        set("temperature", 0.into());
        set("stream", true.into());
        set("stream_options", json!({"include_usage": true}));
        if !self.options.plain_openai {
            set("ignore_eos", true.into());
            set("min_tokens", asked_tokens.into());
        }
        fields.extend(self.options.extra.clone());
        fields.retain(|_, value| !value.is_null());
        fields
    }
}

fn user_message(text: &str) -> Message {
    let mut message = Message::new();
    message.insert("role".to_owned(), "user".into());
    message.insert("content".to_owned(), text.into());
    message
}

const RESERVED: [(&str, &str); 5] = [
    ("model", "it is an option of its own"),
    ("prompt", "prompts are those of the workload"),
    ("messages", "messages are those of the workload"),
    ("max_tokens", "the length of an answer is the `output_length` of its line in the workload"),
    ("stream", "without a stream there is no time of the first token"),
];

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use kvcache_workload::Piece;

    use super::*;

    fn options(extra: Value) -> BodyOptions {
        BodyOptions {
            model: "m".to_owned(),
            api: Api::Auto,
            vocabulary: Vocabulary { first: 1000, count: NonZeroU32::new(10).expect("not zero") },
            output_tokens: NonZeroU64::new(128).expect("not zero"),
            plain_openai: false,
            extra: extra.as_object().cloned().expect("an object"),
        }
    }

    fn body(options: BodyOptions, content: Content) -> (bool, Value) {
        let bodies = Bodies::new(options).expect("good");
        let request = Request { output_tokens: Some(7), ..Request::new(content) };
        bodies.check(&request).expect("can be sent");
        let prepared = bodies.prepare(&request);
        assert_eq!(prepared.asked_tokens, 7);
        (prepared.is_chat, serde_json::from_slice(&prepared.body).expect("JSON"))
    }

    fn text() -> Content {
        Content::Prompt { text: "hi".to_owned(), input_tokens: None }
    }

    #[test]
    fn tokens_are_a_completion() {
        let content = Content::Pieces(vec![Piece { stream: 1, tokens: 3 }]);
        let (is_chat, mut body) = body(options(json!({})), content);
        assert!(!is_chat);
        let tokens = body["prompt"].take();
        assert!(
            tokens
                .as_array()
                .expect("tokens")
                .iter()
                .all(|id| (1000..1010).contains(&id.as_u64().expect("an id")))
        );
        assert_eq!(tokens.as_array().expect("tokens").len(), 3);
        let expected = json!({
            "model": "m", "prompt": null, "max_tokens": 7, "min_tokens": 7, "ignore_eos": true, "temperature": 0,
            "stream": true, "stream_options": {"include_usage": true},
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn text_is_a_completion_or_a_message() {
        let (is_chat, body_) = body(options(json!({})), text());
        assert_eq!((is_chat, &body_["prompt"]), (false, &json!("hi")));
        let chat = BodyOptions { api: Api::Chat, ..options(json!({})) };
        let (is_chat, body_) = body(chat, text());
        assert_eq!((is_chat, &body_["messages"]), (true, &json!([{"role": "user", "content": "hi"}])));
        let messages = vec![user_message("hi")];
        let (is_chat, body_) = body(options(json!({})), Content::Messages { messages, input_tokens: None });
        assert_eq!((is_chat, &body_["messages"][0]["content"]), (true, &json!("hi")));
    }

    #[test]
    fn fields_are_added_and_left_out() {
        let options = options(json!({"temperature": null, "top_p": 0.5, "min_tokens": 2}));
        let (_, body_) = body(options.clone(), text());
        assert_eq!((&body_["top_p"], &body_["min_tokens"]), (&json!(0.5), &json!(2)));
        assert!(body_.get("temperature").is_none());
        let (_, body_) = body(BodyOptions { plain_openai: true, extra: Map::new(), ..options }, text());
        assert!(body_.get("ignore_eos").is_none() && body_.get("min_tokens").is_none());
        assert_eq!(body_["max_tokens"], 7);
    }

    #[test]
    fn what_the_workload_determines_is_no_extra_field() {
        for (name, _) in RESERVED {
            let error = Bodies::new(options(json!({name: 1}))).expect_err(name).to_string();
            assert!(error.starts_with(&format!("`{name}` cannot be among the extra fields")), "{error}");
        }
    }

    #[test]
    fn an_api_that_cannot_take_a_request_is_told() {
        let tokens = Content::Pieces(vec![Piece { stream: 1, tokens: 3 }]);
        let messages = Content::Messages { messages: Vec::new(), input_tokens: None };
        for (api, content, expected) in [
            (Api::Chat, tokens, "which only completions take"),
            (Api::Completions, messages, "which only the chat API takes"),
            (Api::Auto, Content::Pieces(Vec::new()), "its prompt is empty"),
        ] {
            let bodies = Bodies::new(BodyOptions { api, ..options(json!({})) }).expect("good");
            let reason = bodies.check(&Request::new(content)).expect_err("cannot be sent");
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn an_answer_has_the_length_that_is_known_or_given() {
        let bodies = Bodies::new(options(json!({}))).expect("good");
        for (known, expected) in [(None, 128), (Some(0), 1), (Some(5), 5)] {
            let request = Request { output_tokens: known, ..Request::new(text()) };
            assert_eq!(bodies.prepare(&request).asked_tokens, expected);
        }
    }
}
