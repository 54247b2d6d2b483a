//! [`Realms`]: those who say who a client is, token services and registries, and how much they are asked at once.
//!
//! A thousand clients that start together ask their token service at the same moment, and each of their layers is a question
//! to the registry whether they may have it. So each host is asked no more than so many of these at once
//! (`proxy.maxAuthentications`), and those who ask for the same token with the same credentials share one answer.
//!
//! A token service is known by the challenge of a registry that named it, whose certificate was verified; one without TLS
//! that a registry with TLS names is none. Its path alone is its: what else lies on that host is as any other.

use crate::accounts::{self, TOKEN_TIMEOUT};
use crate::direct;
use crate::entitle::credentials;
use crate::headers::Switch;
use crate::labels::Outcome;
use crate::pipeline::Answer;
use crate::refusal::Refusal;
use crate::slots::{Slot, Slots};
use crate::together::Together;
use crate::{BoxError, Proxy};
use bytes::Bytes;
use darter_entitle::{Caller, Credentials};
use darter_rules::{Scheme, Target};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use moka::sync::Cache;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Token services that are known, and hosts whose questions are counted.
const MAX_KNOWN: u64 = 10_000;
/// For how long, when nobody names or asks them.
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// The longest answer that is shared, in bytes. Tokens reach tens of KiB.
const MAX_ANSWER: usize = 256 << 10;

/// Token services, and the questions that are under way.
pub(crate) struct Realms {
    /// By scheme, host, port and path.
    named: Cache<String, ()>,
    /// Whether one was ever named: most requests are for none.
    any: AtomicBool,
    /// By scheme, host and port.
    places: Cache<String, Slots>,
    asking: Together<Question, Heard>,
    credentials: Credentials,
}

/// What is asked, and by whom.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    url: String,
    caller: Caller,
}

/// What a token service has said to a question.
#[derive(Clone)]
enum Heard {
    Answer(StatusCode, HeaderMap, Bytes),
    Nothing(Refusal),
    /// What is not to be shared.
    TooMuch,
}

impl Realms {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self {
            named: Cache::builder().max_capacity(MAX_KNOWN).time_to_idle(KNOWN_FOR).build(),
            any: AtomicBool::new(false),
            places: Cache::builder().max_capacity(MAX_KNOWN).time_to_idle(KNOWN_FOR).build(),
            asking: Together::new(),
            credentials,
        }
    }

    /// A registry has answered so.
    pub(crate) fn learn<B>(&self, registry: &Target, answer: &Response<B>) {
        if answer.status() != StatusCode::UNAUTHORIZED || !registry.path().starts_with("/v2") {
            return;
        }
        for realm in accounts::realms(answer.headers(), registry.scheme() == Scheme::Https) {
            if let Ok(service) = Target::parse(realm.as_str()) {
                self.named.insert(service.without_query(), ());
                self.any.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether requests to `target` are for a token.
    pub(crate) fn is_named(&self, target: &Target) -> bool {
        self.any.load(Ordering::Relaxed) && self.named.contains_key(&target.without_query())
    }

    /// Waits until the host of `target` may be asked one more question.
    pub(crate) async fn place(&self, target: &Target, at_once: usize) -> Slot {
        let places = self.places.get_with(accounts::registry(target), || Slots::new(at_once));
        places.resize(at_once);
        places.take().await
    }

    /// Answers a request for a token.
    ///
    /// # Errors
    /// Those of [`direct::answer`].
    pub(crate) async fn answer<B>(
        &self,
        proxy: &Proxy,
        target: &Target,
        request: Request<B>,
    ) -> Result<Answer, Refusal>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let at_once = proxy.settings().limits.authentications();
        let shared = *request.method() == Method::GET
            && request.body().is_end_stream()
            && Switch::asked(&request).is_none();
        if !shared {
            let _place = self.place(target, at_once).await;
            return direct::answer(proxy, target, request, Outcome::Direct).await;
        }
        let question = Question { url: target.url(), caller: self.caller(request.headers()) };
        let copy = copy(&request);
        let asking = async {
            let _place = self.place(target, at_once).await;
            hear(direct::answer(proxy, target, copy, Outcome::Direct).await).await
        };
        match self.asking.ask(&question, asking).await {
            Heard::Answer(status, headers, body) => {
                let mut response = Response::new(crate::full(body));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                Ok(Answer::Body(response, Outcome::Direct, None))
            }
            Heard::Nothing(refusal) => Err(refusal),
            Heard::TooMuch => {
                let _place = self.place(target, at_once).await;
                direct::answer(proxy, target, request, Outcome::Direct).await
            }
        }
    }

    /// Whoever shows the same, and takes the answer in the same form.
    fn caller(&self, headers: &HeaderMap) -> Caller {
        let forms = [header::ACCEPT, header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE];
        let forms = headers.iter().filter(|(name, _)| forms.contains(name));
        let shown = credentials(headers).chain(forms);
        self.credentials.caller(shown.flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]))
    }
}

async fn hear(answer: Result<Answer, Refusal>) -> Heard {
    let response = match answer {
        Ok(Answer::Body(response, ..)) => response,
        Ok(_) => return Heard::TooMuch,
        Err(refusal) => return Heard::Nothing(refusal),
    };
    let (parts, body) = response.into_parts();
    match collect(body).await {
        Some(body) => Heard::Answer(parts.status, parts.headers, body),
        None => Heard::TooMuch,
    }
}

/// All of an answer that is not too long, and does not take too long. Boxed, because the compiler does not see through it from further out.
fn collect(body: crate::Body) -> BoxFuture<'static, Option<Bytes>> {
    let collected = tokio::time::timeout(TOKEN_TIMEOUT, Limited::new(body, MAX_ANSWER).collect());
    collected.map(|body| Some(body.ok()?.ok()?.to_bytes())).boxed()
}

/// The same request, which has no body.
fn copy<B>(request: &Request<B>) -> Request<crate::Body> {
    let mut copy = Request::new(darter_upstream::empty_body());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    copy.extensions_mut().clone_from(request.extensions());
    copy
}
