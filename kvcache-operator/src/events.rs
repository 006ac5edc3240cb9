//! Events, for those who ask `kubectl describe`.
//!
//! An event is published when a condition changes, so that a resync publishes none. What happens again within minutes
//! is counted in the event that is there (kube's recorder, events.k8s.io/v1).

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::apply::FIELD_MANAGER;

/// Publishes events. Clones share what they remember.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// Events of the operator of this identity.
    pub fn new(client: Client, identity: String) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(identity) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Publishes the changes between two sets of conditions. A failure is logged and otherwise ignored: the conditions
    /// say the same.
    pub async fn publish(&self, before: &[Condition], after: &[Condition], about: &ObjectReference) {
        for condition in changed(before, after) {
            let event = Event {
                type_: if is_good(condition) { EventType::Normal } else { EventType::Warning },
                reason: condition.reason.clone(),
                note: Some(shortened(&condition.message)),
                action: condition.type_.clone(),
                secondary: None,
            };
            self.send(&event, about).await;
        }
    }

    /// Tells the author of a spec what in it has no effect.
    pub async fn note(&self, notes: &[String], about: &ObjectReference) {
        if notes.is_empty() {
            return;
        }
        let event = Event {
            type_: EventType::Normal,
            reason: "NoEffect".to_owned(),
            note: Some(shortened(&notes.join("; "))),
            action: "Accepted".to_owned(),
            secondary: None,
        };
        self.send(&event, about).await;
    }

    async fn send(&self, event: &Event, about: &ObjectReference) {
        let published = self.recorder.publish(event, about);
        match tokio::time::timeout(PATIENCE, published).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("event {} of {}: {error}", event.reason, name(about)),
            Err(_) => log::warn!("event {} of {}: no answer", event.reason, name(about)),
        }
    }
}

/// Conditions that are new or say something else than before. A first sight of what is as it should be, or only on its
/// way, is no news.
fn changed<'a>(before: &'a [Condition], after: &'a [Condition]) -> impl Iterator<Item = &'a Condition> {
    after.iter().filter(move |condition| {
        let previous = before.iter().find(|previous| previous.type_ == condition.type_);
        match previous {
            Some(previous) => (&previous.status, &previous.reason) != (&condition.status, &condition.reason),
            None => !is_good(condition),
        }
    })
}

/// `Progressing` is good either way; of the others, `True` is.
fn is_good(condition: &Condition) -> bool {
    condition.status == "True" || (condition.type_ == "Progressing" && condition.reason != "Held")
}

/// The API server takes at most 1 kB.
fn shortened(message: &str) -> String {
    let mut end = message.len().min(NOTE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

fn name(about: &ObjectReference) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&about.namespace), part(&about.name))
}

const NOTE_BYTES_MAX: usize = 1000;
/// An event is not worth holding up a reconciliation for longer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn condition(type_: &str, status: &str, reason: &str) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: String::new(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        }
    }

    #[test]
    fn only_what_changed_is_news() {
        let accepted = condition("Accepted", "True", "Valid");
        let refused = condition("Accepted", "False", "InvalidSpec");
        let news = |before: &[Condition], after: &[Condition]| changed(before, after).count();
        assert_eq!(news(&[], std::slice::from_ref(&accepted)), 0);
        assert_eq!(news(&[], std::slice::from_ref(&refused)), 1);
        assert_eq!(news(std::slice::from_ref(&accepted), std::slice::from_ref(&accepted)), 0);
        assert_eq!(news(std::slice::from_ref(&accepted), std::slice::from_ref(&refused)), 1);
        assert_eq!(news(std::slice::from_ref(&refused), std::slice::from_ref(&accepted)), 1);
        let other = condition("Accepted", "False", "UnknownBackend");
        assert_eq!(news(&[refused], &[other]), 1);
        assert_eq!(news(&[], &[condition("Progressing", "False", "Settled")]), 0);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let message = "ü".repeat(800);
        assert_eq!(shortened(&message), "ü".repeat(500));
        assert_eq!(shortened("short"), "short");
    }
}
