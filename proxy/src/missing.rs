//! [`Missing`]: what origins said a moment ago that they do not have, to the same caller.
//!
//! A build that looks for a file in five repositories, or a cluster whose pods try again and again to pull an image that nobody has
//! pushed yet, asks an origin for nothing a thousand times. Its 404 or 410 for content that would go through the peers is given
//! again for some seconds (`proxy.negativeTTL`): word for word, to the very same request with the same credentials, of which
//! nothing is kept but an HMAC. To others it says nothing: many a private registry answers 404 to those who may not see.
//!
//! A change of what the origin holds that goes through this proxy ends it at once: whoever pushes finds what he pushed.

use crate::entitle::Asker;
use crate::labels::Outcome;
use crate::pipeline::Answer;
use crate::refusal::Refusal;
use bytes::Bytes;
use darter_entitle::{Caller, Credentials};
use darter_rules::Target;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use moka::sync::Cache;
use std::time::Duration;
use tokio::time::Instant;

/// A longer answer is not kept, in bytes, nor one that does not say how long it is: an error in JSON or a page of a web server.
const MAX_BODY: u64 = 8 << 10;
/// Answers that are kept.
const MAX_KEPT: u64 = 4096;
/// No answer is given again for longer, whatever the operator says.
const MAX_TTL: Duration = Duration::from_secs(3600);

/// What an answer may depend on beside who asks.
const NEGOTIATED: [HeaderName; 3] = [header::ACCEPT, header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE];

/// Answers of origins that do not have what they were asked for.
pub(crate) struct Missing {
    /// By the HMAC of what was asked, in what words, and by whom.
    said: Cache<Caller, Said>,
    /// When something was last changed through this proxy, by `scheme://host:port`.
    written: Cache<String, Instant>,
    credentials: Credentials,
}

#[derive(Clone)]
struct Said {
    asked: Instant,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// A question whose answer may be kept.
pub(crate) struct Open {
    question: Caller,
    asked: Instant,
}

impl Missing {
    pub(crate) fn new() -> Self {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).expect("the system gives random bytes");
        Self {
            said: Cache::builder().max_capacity(MAX_KEPT).time_to_live(MAX_TTL).build(),
            written: Cache::builder().max_capacity(MAX_KEPT).time_to_live(MAX_TTL).build(),
            credentials: Credentials::new(key),
        }
    }

    /// What the origin said to the same question within `ttl`; or what to bring its answer back with. Nothing of either, where a
    /// client insists on the origin's word.
    pub(crate) fn ask(
        &self,
        target: &Target,
        asker: Asker<'_>,
        ttl: Duration,
    ) -> (Option<Answer>, Option<Open>) {
        let insists = says(asker.headers, &["no-cache", "no-store", "max-age=0"])
            || asker.headers.contains_key(header::PRAGMA);
        if ttl.is_zero() || insists {
            return (None, None);
        }
        let (question, asked) = (self.question(target, asker), Instant::now());
        let said = self.said.get(&question).filter(|said| {
            let changed = self.written.get(target.origin()).is_some_and(|written| said.asked <= written);
            said.asked.elapsed() < ttl && !changed
        });
        match said {
            Some(said) => (Some(said.answer()), None),
            None => (None, Some(Open { question, asked })),
        }
    }

    /// Keeps what an origin answered, if it is one of its own that says that nothing is there; gives it on.
    ///
    /// # Errors
    /// When the answer ends early, or stands still for longer than `idle`.
    pub(crate) async fn learn(
        &self,
        target: &Target,
        open: Open,
        answer: Answer,
        idle: Duration,
    ) -> Result<Answer, Refusal> {
        let Answer::Body(response, Outcome::Relayed, note) = answer else { return Ok(answer) };
        if !is_kept(&response) {
            return Ok(Answer::Body(response, Outcome::Relayed, note));
        }
        let (parts, body) = response.into_parts();
        let body = match tokio::time::timeout(idle, body.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => return Err(Refusal::bad_answer(target, "ended its answer early")),
            Err(_) => return Err(Refusal::bad_answer(target, "fell silent in its answer")),
        };
        let said = Said {
            asked: open.asked,
            status: parts.status,
            headers: parts.headers.clone(),
            body: body.clone(),
        };
        self.said.insert(open.question, said);
        Ok(Answer::Body(Response::from_parts(parts, crate::full(body)), Outcome::Relayed, note))
    }

    /// Something may have been changed there.
    pub(crate) fn written(&self, target: &Target) {
        self.written.insert(target.origin().to_owned(), Instant::now());
    }

    /// What is asked, and all that an answer may depend on. A URL may hold a credential, too.
    fn question(&self, target: &Target, Asker { headers, account }: Asker<'_>) -> Caller {
        let negotiated = NEGOTIATED.iter().flat_map(|name| {
            let values = headers.get_all(name).into_iter();
            values.map(move |value| (name, value))
        });
        let shown = crate::entitle::credentials(headers)
            .filter(|(name, _)| account.is_none() || *name != header::AUTHORIZATION);
        let shown = shown.chain(negotiated);
        let shown = shown.flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
        let account = account.into_iter().flat_map(|login| [b"account".as_slice(), login.as_bytes()]);
        self.credentials.caller([target.url().as_bytes()].into_iter().chain(shown).chain(account))
    }
}

impl Said {
    /// The same again, with its age (RFC 9111 section 5.1).
    fn answer(self) -> Answer {
        let mut response = Response::new(crate::full(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        let age = self.asked.elapsed();
        response.headers_mut().insert(header::AGE, HeaderValue::from(age.as_secs()));
        let note = format!("the origin said so {} ms ago", age.as_millis());
        let status = HeaderValue::from_static("darter; hit; detail=negative");
        response.headers_mut().insert(crate::p2p::CACHE_STATUS, status);
        Answer::Body(response, Outcome::Absent, Some(note))
    }
}

/// Whether an answer says that nothing is there, to everybody who asks in these words, and can be kept.
fn is_kept<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    let known = |name: &str| {
        let credential = [header::AUTHORIZATION, header::COOKIE];
        NEGOTIATED.iter().chain(&credential).any(|known| name.eq_ignore_ascii_case(known.as_str()))
    };
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let varies = items(headers, &header::VARY).any(|name| !known(name));
    matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::GONE)
        && length.is_some_and(|length| length <= MAX_BODY)
        && !says(headers, &["no-cache", "no-store", "max-age=0"])
        && !headers.contains_key(header::SET_COOKIE)
        && !varies
}

/// Whether Cache-Control says one of these.
fn says(headers: &HeaderMap, directives: &[&str]) -> bool {
    items(headers, &header::CACHE_CONTROL)
        .any(|said| directives.iter().any(|directive| said.eq_ignore_ascii_case(directive)))
}

fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}
