//! [`Realms`]: those who say who a client is, token services and registries, and how much they are asked at once.
//!
//! A thousand clients that start together ask their token service at the same moment, and each of their layers is a question
//! to the registry whether they may have it. So each host is asked no more than so many of these at once
//! (`proxy.maxAuthentications`), and those who ask for the same token with the very same request share one answer. Who has waited
//! too long for his turn is told so, with when to come again: a service that is slow already gets no question more for it.
//!
//! A token service is what a registry has named in a challenge, by its path; what else lies on that host is as any other. Anybody
//! may run a registry, and name what is not his. So nothing is answered otherwise because it was named: a request with a body,
//! a condition or a range goes as it comes, and an answer that is not short text, or that sets a cookie, is for the one who
//! asked. All of them take turns, and so do the tokens that are fetched for `proxy.accounts`: a form is read before its turn
//! comes, so that nobody who sends slowly holds up others. What is too long for a form goes past them.

use crate::accounts::{self, TOKEN_TIMEOUT};
use crate::direct;
use crate::headers::Switch;
use crate::labels::Outcome;
use crate::pipeline::Answer;
use crate::refusal::Refusal;
use crate::slots::{Slot, Slots};
use crate::together::Together;
use crate::via::{Came, Forwarded};
use crate::{BoxError, Proxy};
use bytes::Bytes;
use darter_entitle::{Caller, Credentials};
use darter_rules::oci::Resource;
use darter_rules::{Scheme, Target};
use darter_upstream::Upstream;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use moka::sync::Cache;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Token services that are known, and hosts whose questions are counted.
const MAX_KNOWN: u64 = 10_000;
/// For how long, when nobody names or asks them.
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// The longest answer that is shared, in bytes. Tokens reach tens of KiB.
const MAX_ANSWER: usize = 256 << 10;
/// The longest form that is read before its turn, in bytes. Refresh tokens reach some KiB.
const MAX_FORM: u64 = 64 << 10;

/// Token services, and the questions that are under way.
pub(crate) struct Realms {
    /// By scheme, host, port and path.
    named: Cache<String, ()>,
    /// Whether one was ever named: most requests are for none.
    any: AtomicBool,
    /// By scheme, host and port.
    places: Cache<(Judge, String), Slots>,
    asking: Together<Question, Heard>,
    credentials: Credentials,
}

/// How long a client waits for its turn at a token service, and how long for a registry's: clients give up after 30 s, and what a
/// registry is asked comes before content that a client waits for. Then it is to come again.
const PATIENCE: Duration = Duration::from_secs(20);
const SHORT_PATIENCE: Duration = Duration::from_secs(5);
/// After this long: as long as a slow answer or two take.
const COME_AGAIN: Duration = Duration::from_secs(5);
/// What says nothing of what is asked, or by whom.
const UNSAID: [HeaderName; 8] = [
    header::CONNECTION,
    header::HOST,
    header::PROXY_AUTHORIZATION,
    header::USER_AGENT,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-request-id"),
];
/// What makes an answer one for this request alone. So does everything that begins with `if-`.
const OWN: [HeaderName; 4] = [header::CACHE_CONTROL, header::EXPECT, header::PRAGMA, header::RANGE];

/// Of whom something is asked. A host may be both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Judge {
    Registry,
    TokenService,
}

/// The way to those who judge.
#[derive(Clone, Copy)]
pub(crate) struct Judges<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) realms: &'a Realms,
    /// Questions that each of them gets at once.
    pub(crate) at_once: usize,
}

impl Judges<'_> {
    /// Waits for a turn to ask the host of `target`: see [`Realms::turn`].
    pub(crate) async fn turn(self, judge: Judge, target: &Target) -> Result<Slot, Refusal> {
        self.realms.turn(judge, target, self.at_once).await
    }
}

/// What is asked, and by whom.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    url: String,
    /// The HMAC of all that the request says.
    said: Caller,
    /// The client, where the service hears of it.
    from: Option<IpAddr>,
}

/// What a token service has said to a question.
#[derive(Clone)]
enum Heard {
    Answer(StatusCode, HeaderMap, Bytes),
    Nothing(Refusal),
    /// What is for the one who asked.
    Own,
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

    /// A registry has answered so. What one without TLS names counts only without TLS, on the same host: such an answer may be
    /// anybody's on the way.
    pub(crate) fn learn<B>(&self, registry: &Target, answer: &Response<B>) {
        let asked = registry.path() == "/v2/" || Resource::parse(registry.path()).is_some();
        if answer.status() != StatusCode::UNAUTHORIZED || !asked {
            return;
        }
        let secure = registry.scheme() == Scheme::Https;
        for realm in accounts::realms(answer.headers(), secure) {
            let Ok(service) = Target::parse(realm.as_str()) else { continue };
            let near = service.scheme() == Scheme::Http && service.host() == registry.host();
            if (secure && service.scheme() == Scheme::Https) || near {
                self.named.insert(service.without_query().to_owned(), ());
                self.any.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether requests to `target` are for a token.
    pub(crate) fn is_named(&self, target: &Target) -> bool {
        self.any.load(Ordering::Relaxed) && self.named.get(target.without_query()).is_some()
    }

    /// Waits for a turn to ask the host of `target`.
    ///
    /// # Errors
    /// When that takes too long. Nobody asks without.
    pub(crate) async fn turn(&self, judge: Judge, target: &Target, at_once: usize) -> Result<Slot, Refusal> {
        let host = (judge, accounts::registry(target));
        let places = self.places.get_with(host, || Slots::new(at_once));
        places.resize(at_once);
        let patience = match judge {
            Judge::Registry => SHORT_PATIENCE,
            Judge::TokenService => PATIENCE,
        };
        let turn = tokio::time::timeout(patience, places.take()).await;
        turn.map_err(|_| Refusal::crowded(target, judge, (patience, at_once), COME_AGAIN))
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
        let settings = proxy.settings();
        if !may_share(&request) {
            return self.answer_one(proxy, target, request, settings.limits.authentications()).await;
        }
        let from = request.extensions().get::<Came>().map(|came| came.from.ip());
        let from = from.filter(|_| settings.marks.forwarded != Forwarded::Not);
        let question = Question { url: target.url().to_owned(), said: self.said(request.headers()), from };
        let (at_once, copy) = (settings.limits.authentications(), copy(&request));
        let mut own = None;
        let asking = async {
            let _turn = match self.turn(Judge::TokenService, target, at_once).await {
                Ok(turn) => turn,
                Err(refusal) => return Heard::Nothing(refusal),
            };
            match direct::answer(proxy, target, copy, Outcome::Direct).await {
                Err(refusal) => Heard::Nothing(refusal),
                Ok(Answer::Body(response, ..)) if is_for_all(&response) => hear(response).await,
                Ok(answer) => {
                    own = Some(answer);
                    Heard::Own
                }
            }
        };
        let (heard, _) = self.asking.ask(&question, asking).await;
        match heard {
            Heard::Answer(status, headers, body) => {
                let mut response = Response::new(crate::full(body));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                Ok(Answer::Body(response, Outcome::Direct, None))
            }
            Heard::Nothing(refusal) => Err(refusal),
            Heard::Own => match own {
                Some(answer) => Ok(answer),
                None => self.answer_one(proxy, target, request, at_once).await,
            },
        }
    }

    /// Answers a request whose answer is for nobody else.
    async fn answer_one<B>(
        &self,
        proxy: &Proxy,
        target: &Target,
        request: Request<B>,
        at_once: usize,
    ) -> Result<Answer, Refusal>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let is_form = request.body().size_hint().exact().is_some_and(|length| length <= MAX_FORM);
        // Who asks first whether to send it, or for another protocol, is answered by the service.
        if !is_form || request.headers().contains_key(header::EXPECT) || Switch::asked(&request).is_some() {
            return direct::answer(proxy, target, request, Outcome::Direct).await;
        }
        let (parts, body) = request.into_parts();
        let form = collect(body.map_err(Into::into).boxed_unsync()).await.ok_or_else(Refusal::no_form)?;
        let request = Request::from_parts(parts, crate::full(form));
        let _turn = self.turn(Judge::TokenService, target, at_once).await?;
        direct::answer(proxy, target, request, Outcome::Direct).await
    }

    fn said(&self, headers: &HeaderMap) -> Caller {
        let said = headers.iter().filter(|(name, _)| !UNSAID.contains(name));
        self.credentials.caller(said.flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]))
    }
}

fn may_share<B: http_body::Body>(request: &Request<B>) -> bool {
    let own = |name: &HeaderName| OWN.contains(name) || name.as_str().starts_with("if-");
    *request.method() == Method::GET
        && request.body().is_end_stream()
        && Switch::asked(request).is_none()
        && !request.headers().keys().any(own)
}

/// Whether an answer is what token services give, and nothing that is meant for one client alone.
fn is_for_all(response: &Response<crate::Body>) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let essence = content_type.and_then(|it| it.split(';').next()).unwrap_or_default().trim();
    let text = essence.is_empty()
        || ["application/json", "text/plain"].iter().any(|it| essence.eq_ignore_ascii_case(it));
    let short = response.body().size_hint().exact().is_none_or(|length| length <= MAX_ANSWER as u64);
    text && short && !response.headers().contains_key(header::SET_COOKIE)
}

async fn hear(response: Response<crate::Body>) -> Heard {
    let (parts, body) = response.into_parts();
    match collect(body).await {
        Some(body) => Heard::Answer(parts.status, parts.headers, body),
        None => Heard::Own,
    }
}

/// All of a body that is not too long, and does not take too long. Boxed, because the compiler does not see through it from
/// further out.
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
