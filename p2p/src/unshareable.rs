//! [`Unshareable`]: to which questions origins gave an answer a moment ago that serves nobody but who asked.
//!
//! An answer of unknown length, or one that is `private` or `no-store`, goes to the caller whose request it answers. Those who
//! came meanwhile would each become the next to ask, one after the other, and the hundredth would wait for a hundred round trips to
//! an origin that could have answered all at once. So they are told, and so is who comes within the next seconds: each goes to the
//! origin for himself, at the same time.
//!
//! Invariant: it is said only to who would ask the origin the very same, a [`Question`]. Whether an answer can be shared may hang on
//! anything in the request: a cookie makes a page personal, one client's name gets a file and another's a page about it. If the
//! word held for the content, whoever sends an odd header every few seconds would take popular content from everybody. He takes it from
//! those alone who send the same. Not told apart is
//! - which request it is (traces, ids), and what the engine sets or leaves out itself;
//! - the value of Authorization for content with a digest, for each pull of an image has a token of its own. Such content is shared
//!   whatever its origin says of caches, and an origin knows its length or does not, whose token it ever is. That there is one
//!   counts: without, another server may answer.
//!
//! A part is another question than all of it: what is made while it is sent may have no length and no parts, and what is cut off at a
//! certain place has both.
//!
//! The operator's rules have let the same question pass, with the same URL and priority, or it would not have been asked; nobody asks
//! the scheduler again for these seconds. That, and the moment at which content can be shared after all, are noticed so much later.
//!
//! Plain state behind a lock, `now` passed in. Nothing of a request is kept but a hash.

use crate::OpenRequest;
use crate::download::first_ask;
use crate::origin::Ask;
use http::{HeaderMap, HeaderName, header};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long it is remembered: longer than a crowd takes to come, and no longer than a client that was unlucky tries again.
const TTL: Duration = Duration::from_secs(10);
/// Questions that are remembered.
const MAX_QUESTIONS: usize = 4096;

/// Headers of a request on which no answer hangs: they are not sent, or say which request it is.
const INDIFFERENT: [HeaderName; 12] = [
    header::ACCEPT_ENCODING,
    header::CONTENT_LENGTH,
    header::HOST,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::RANGE,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-request-id"),
];

/// All that an origin's answer may depend on, and whether it may be asked: a hash of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Question([u8; 32]);

/// Questions whose answers served who asked alone.
#[derive(Debug, Default)]
pub(crate) struct Unshareable(Mutex<Questions>);

#[derive(Debug, Default)]
struct Questions {
    until: HashMap<Question, Instant>,
    /// When the last of them is forgotten.
    last: Option<Instant>,
}

// === impl Question ===

impl Question {
    pub(crate) fn of(request: &OpenRequest) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut put = |part: &[u8]| {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        };
        put(request.task.as_bytes());
        put(request.url.as_str().as_bytes());
        let whole = first_ask(request.want) == Ask::All;
        put(&[request.digest.is_some().into(), whole.into()]);
        put(&request.priority.number().to_le_bytes());
        for (name, value) in asked(&request.headers) {
            let is_own = request.digest.is_some() && *name == header::AUTHORIZATION;
            put(name.as_str().as_bytes());
            put(if is_own { &[] } else { value });
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// The headers that count. Clients send them in any order; several of one name have theirs.
fn asked(headers: &HeaderMap) -> Vec<(&HeaderName, &[u8])> {
    let counts = |name: &HeaderName| !INDIFFERENT.contains(name);
    let mut asked: Vec<_> =
        headers.iter().filter(|(name, _)| counts(name)).map(|(name, it)| (name, it.as_bytes())).collect();
    asked.sort_by_key(|(name, _)| name.as_str());
    asked
}

// === impl Unshareable ===

impl Unshareable {
    /// An origin has answered this, for who asked alone.
    pub(crate) fn note(&self, question: Question, now: Instant) {
        let mut questions = self.lock();
        if questions.until.len() >= MAX_QUESTIONS {
            questions.until.retain(|_, until| *until > now);
        }
        if questions.until.len() < MAX_QUESTIONS || questions.until.contains_key(&question) {
            questions.until.insert(question, now + TTL);
            questions.last = Some(now + TTL);
        }
    }

    /// Whether the answer to this request would be for its caller alone. Costs nothing while nothing is remembered.
    pub(crate) fn is_answer_to(&self, request: &OpenRequest, now: Instant) -> bool {
        let any = self.lock().last.is_some_and(|last| last > now);
        let question = any.then(|| Question::of(request));
        question.is_some_and(|question| self.lock().until.get(&question).is_some_and(|until| *until > now))
    }

    fn lock(&self) -> MutexGuard<'_, Questions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Want;
    use darter_protocol::{ByteRange, Digest, Priority, TaskId};

    fn request(headers: &[(&'static str, &'static str)]) -> OpenRequest {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), http::HeaderValue::from_static(value)));
        let url = "http://example.org/x".parse().unwrap();
        OpenRequest { url, headers: headers.collect(), ..OpenRequest::imported(TaskId::from([1; 32])) }
    }

    fn by_digest(request: OpenRequest) -> OpenRequest {
        OpenRequest { digest: Some(Digest::Sha256([7; 32])), ..request }
    }

    fn is_one(a: &OpenRequest, b: &OpenRequest) -> bool {
        Question::of(a) == Question::of(b)
    }

    #[test]
    fn who_asks_in_other_words_asks_something_else() {
        let plain = request(&[("accept", "*/*"), ("user-agent", "apt")]);
        let again =
            request(&[("user-agent", "apt"), ("accept", "*/*"), ("x-request-id", "7"), ("range", "x")]);
        assert!(is_one(&plain, &again), "in another order, as another request");
        for other in [
            request(&[("accept", "*/*")]),
            request(&[("accept", "*/*"), ("user-agent", "wget")]),
            request(&[("accept", "*/*"), ("user-agent", "apt"), ("cookie", "odd")]),
            request(&[("accept", "*/*"), ("user-agent", "apt"), ("user-agent", "apt")]),
            OpenRequest { url: "http://example.org/x?y".parse().unwrap(), ..plain.clone() },
            OpenRequest { task: TaskId::from([2; 32]), ..plain.clone() },
            OpenRequest { priority: Priority::level(2).unwrap(), ..plain.clone() },
            OpenRequest { want: Want::Suffix(1), ..plain.clone() },
            by_digest(plain.clone()),
        ] {
            assert!(!is_one(&plain, &other), "{:?}", other.headers);
        }
        let [one, another] = [0, 9].map(|start| ByteRange::new(start, 10).unwrap());
        let part = |range| OpenRequest { want: Want::Range(range), ..plain.clone() };
        assert!(is_one(&part(one), &part(another)));
    }

    #[test]
    fn whose_token_it_is_counts_unless_the_content_has_a_digest() {
        let [one, two, nobody] = [
            request(&[("authorization", "Bearer 1")]),
            request(&[("authorization", "Bearer 2")]),
            request(&[]),
        ];
        assert!(!is_one(&one, &two));
        let [one, two, nobody] = [one, two, nobody].map(by_digest);
        assert!(is_one(&one, &two) && !is_one(&one, &nobody));
    }

    #[test]
    fn it_holds_for_seconds_and_for_the_same_question_alone() {
        let (unshareable, now) = (Unshareable::default(), Instant::now());
        let (popular, odd) = (request(&[]), request(&[("cookie", "odd")]));
        unshareable.note(Question::of(&odd), now);
        assert!(unshareable.is_answer_to(&odd, now + TTL - Duration::from_millis(1)));
        assert!(!unshareable.is_answer_to(&popular, now));
        assert!(!unshareable.is_answer_to(&odd, now + TTL));
        // What is asked again afterwards is found out again.
        unshareable.note(Question::of(&popular), now + TTL);
        assert!(!unshareable.is_answer_to(&odd, now + TTL));
        assert!(unshareable.is_answer_to(&popular, now + TTL));
    }

    #[test]
    fn many_questions_take_no_more_room_than_there_is() {
        let (unshareable, now) = (Unshareable::default(), Instant::now());
        let nth = |n: usize| {
            let url = format!("http://example.org/{n}").parse().unwrap();
            OpenRequest { url, ..request(&[]) }
        };
        for n in 0..2 * MAX_QUESTIONS {
            unshareable.note(Question::of(&nth(n)), now);
        }
        assert_eq!(unshareable.lock().until.len(), MAX_QUESTIONS);
        assert!(unshareable.is_answer_to(&nth(0), now), "who comes too late is not remembered");
        unshareable.note(Question::of(&nth(2 * MAX_QUESTIONS)), now + TTL);
        assert_eq!(unshareable.lock().until.len(), 1);
    }
}
