//! [`Gate`]: may this caller have what the cluster holds? Asked before the engine, on every request for content that could
//! come from somebody else's fetch.
//!
//! What a registry's blobs and manifests by digest need is that the repository contains them and that the caller may read
//! it (see [`darter_entitle`]). The manifest request that precedes a pull passes through here and proves both. When it did
//! not, the registry is asked once, with the caller's own credential; a refusal sends the caller's request itself to the
//! registry, so that he gets its own answer and can do its token dance.
//!
//! Content that is named by its URL alone is kept apart: what was fetched without a credential is for everybody, and what
//! was fetched with one (or by a signed query) is another task, which each caller is checked for.

use crate::headers;
use bytes::{Bytes, BytesMut};
use darter_entitle::{
    Caller, Credentials, Facts, MAX_MANIFEST_BYTES, Place, Verdict, bearer_lifetime, members,
};
use darter_rules::oci::{self, Kind, Resource};
use darter_rules::{Identity, Target};
use darter_upstream::{Upstream, UpstreamError, empty_body};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::OnceCell;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What is known of entitlements, and the way to learn more.
pub(crate) struct Gate {
    facts: Mutex<Facts>,
    credentials: Credentials,
    /// Questions to registries that are under way: those who ask the same share the answer.
    asking: Mutex<HashMap<Question, Arc<OnceCell<Answered>>>>,
}

/// Whether a caller may have some content from the engine.
#[derive(Debug)]
pub(crate) enum Entitled {
    Yes,
    /// The origin is to answer him itself.
    No,
    /// The origin could not be asked.
    Unknown(UpstreamError),
}

/// What a caller wants to know of an origin.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    place: Place,
    /// Empty for content that is named by its URL.
    digest: String,
    caller: Caller,
}

/// What an origin said.
#[derive(Debug, Clone)]
enum Answered {
    Granted,
    Refused,
    /// It has other troubles: too many requests, an error of its own.
    Troubled,
    Unreachable(UpstreamError),
}

impl Gate {
    pub(crate) fn new() -> Self {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).expect("the system gives random bytes");
        Self { facts: Mutex::default(), credentials: Credentials::new(key), asking: Mutex::default() }
    }

    /// Whether the caller may have this content from the engine. Content that is named by its URL and asked for with a
    /// credential gets a name of its own in `identity`.
    pub(crate) async fn check(
        &self,
        upstream: &Upstream,
        target: &Target,
        identity: &mut Identity,
        headers: &HeaderMap,
    ) -> Entitled {
        let Some(question) = self.question(target, identity, headers) else { return Entitled::Yes };
        let Question { place, digest, caller } = &question;
        if self.lock().verdict(Instant::now(), place, digest, *caller) == Verdict::Allowed {
            return Entitled::Yes;
        }
        match self.ask(upstream, target, headers, &question).await {
            Answered::Granted => Entitled::Yes,
            Answered::Refused => Entitled::No,
            Answered::Troubled if self.in_grace(&question) => Entitled::Yes,
            Answered::Troubled => Entitled::No,
            Answered::Unreachable(_) if self.in_grace(&question) => Entitled::Yes,
            Answered::Unreachable(error) => Entitled::Unknown(error),
        }
    }

    /// What an origin's answer to a caller proves. The body of a manifest is read on its way.
    pub(crate) fn watch(
        self: &Arc<Self>,
        target: &Target,
        method: &Method,
        request: &HeaderMap,
        answer: Response<Incoming>,
    ) -> Response<Watched> {
        let resource = Resource::parse(target.path());
        let (Some(resource), true) = (resource, matches!(*method, Method::GET | Method::HEAD)) else {
            return answer.map(Watched::unwatched);
        };
        let (place, caller) = (place(target, resource.name), self.caller(request, None));
        if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            self.lock().forget_reader(&place, caller);
        }
        if answer.status() != StatusCode::OK {
            return answer.map(Watched::unwatched);
        }
        let named = match resource.kind {
            Kind::Blob(digest) | Kind::Manifest(digest) => Some(digest.to_string()),
            Kind::Tag(_) => answer
                .headers()
                .get(DOCKER_CONTENT_DIGEST)
                .and_then(|digest| Some(digest.to_str().ok()?.to_owned())),
        };
        self.learn(&place, named.as_deref(), caller, request);
        let whole = *method == Method::GET && !answer.headers().contains_key(header::CONTENT_ENCODING);
        match resource.kind {
            Kind::Manifest(_) | Kind::Tag(_) if whole => {
                let gate = Arc::clone(self);
                answer.map(|body| Watched {
                    body,
                    watching: Some(Watching { gate, place, seen: BytesMut::new() }),
                })
            }
            _ => answer.map(Watched::unwatched),
        }
    }

    /// What has to be known before the engine may answer; `None` when anybody may have it.
    fn question(&self, target: &Target, identity: &mut Identity, headers: &HeaderMap) -> Option<Question> {
        if let Some(Resource { name, kind: Kind::Blob(digest) | Kind::Manifest(digest) }) =
            Resource::parse(target.path())
        {
            let caller = self.caller(headers, None);
            return Some(Question { place: place(target, name), digest: digest.to_string(), caller });
        }
        let Identity::Url { canonical, application, .. } = identity else {
            let caller = self.caller(headers, None);
            return Some(Question { place: place(target, target.path()), digest: String::new(), caller });
        };
        // A part of the query that is not in the name may be what lets the caller in.
        let signed = target.query().filter(|query| !canonical.ends_with(query));
        let caller = self.caller(headers, signed);
        if caller == Caller::Anonymous {
            return None;
        }
        application.push_str("\0private");
        let place = Place { registry: target.authority(), repository: canonical.clone() };
        Some(Question { place, digest: String::new(), caller })
    }

    fn caller(&self, headers: &HeaderMap, signed: Option<&str>) -> Caller {
        let shown = [header::AUTHORIZATION, header::COOKIE];
        let shown = shown.iter().flat_map(|name| headers.get_all(name)).map(HeaderValue::as_bytes);
        self.credentials.caller(shown.chain(signed.map(str::as_bytes)))
    }

    fn learn(&self, place: &Place, digest: Option<&str>, caller: Caller, request: &HeaderMap) {
        let now = Instant::now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let authorization = request.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let lifetime = authorization.and_then(|authorization| bearer_lifetime(authorization, unix));
        let ends = lifetime.and_then(|lifetime| now.checked_add(lifetime));
        let mut facts = self.lock();
        facts.learn_reader(now, place, caller, ends);
        if let Some(digest) = digest {
            facts.learn_member(now, place, digest);
        }
    }

    fn in_grace(&self, question: &Question) -> bool {
        let Question { place, digest, caller } = question;
        self.lock().verdict_without_registry(Instant::now(), place, digest, *caller) == Verdict::Allowed
    }

    /// Asks the origin, once for all who ask the same at the same time.
    async fn ask(
        &self,
        upstream: &Upstream,
        target: &Target,
        headers: &HeaderMap,
        question: &Question,
    ) -> Answered {
        let cell = Arc::clone(self.lock_asking().entry(question.clone()).or_default());
        let answered =
            cell.get_or_init(|| self.ask_origin(upstream, target, headers, question)).await.clone();
        let mut asking = self.lock_asking();
        if asking.get(question).is_some_and(|current| Arc::ptr_eq(current, &cell)) {
            asking.remove(question);
        }
        answered
    }

    async fn ask_origin(
        &self,
        upstream: &Upstream,
        target: &Target,
        headers: &HeaderMap,
        question: &Question,
    ) -> Answered {
        let mut answered = send(upstream, target, headers, Method::HEAD).await;
        if let Ok(StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED | StatusCode::BAD_REQUEST) =
            answered
        {
            answered = send(upstream, target, headers, Method::GET).await;
        } else if let (Ok(StatusCode::FORBIDDEN), true) = (&answered, question.digest.is_empty()) {
            // A signature is for one method.
            answered = send(upstream, target, headers, Method::GET).await;
        }
        let Question { place, digest, caller } = question;
        match answered {
            Err(error) => Answered::Unreachable(error),
            // A registry redirects to where the blob lies; elsewhere a redirect may lead to a page for signing in.
            Ok(status) if status.is_success() || (status.is_redirection() && !digest.is_empty()) => {
                self.learn(place, Some(digest), *caller, headers);
                Answered::Granted
            }
            Ok(status) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Answered::Troubled
            }
            Ok(status) => {
                let mut facts = self.lock();
                match status {
                    StatusCode::NOT_FOUND | StatusCode::GONE => facts.forget_member(place, digest),
                    _ => facts.forget_reader(place, *caller),
                }
                Answered::Refused
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_asking(&self) -> MutexGuard<'_, HashMap<Question, Arc<OnceCell<Answered>>>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The status of an origin's answer to the caller's own question, without its content.
async fn send(
    upstream: &Upstream,
    target: &Target,
    headers: &HeaderMap,
    method: Method,
) -> Result<StatusCode, UpstreamError> {
    let mut request = Request::new(empty_body());
    *request.uri_mut() = target.url().parse().unwrap_or_default();
    *request.headers_mut() = headers.clone();
    headers::keep_for_origin(request.headers_mut());
    for name in
        [header::RANGE, header::IF_RANGE, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_MATCH]
    {
        request.headers_mut().remove(name);
    }
    if method == Method::GET {
        request.headers_mut().insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
    }
    *request.method_mut() = method;
    upstream.send(request).await.map(|answer| answer.status())
}

fn place(target: &Target, name: &str) -> Place {
    Place { registry: target.authority(), repository: oci::repository_identity(target.host(), name) }
}

/// An origin's body on its way to a client, and what is read of it in passing.
pub(crate) struct Watched {
    body: Incoming,
    watching: Option<Watching>,
}

/// A manifest that passes by.
struct Watching {
    gate: Arc<Gate>,
    place: Place,
    seen: BytesMut,
}

impl Watched {
    fn unwatched(body: Incoming) -> Self {
        Self { body, watching: None }
    }

    /// Takes what passes; at the end, before the client has all of it, learns what the repository contains.
    fn see(&mut self, data: &Bytes) {
        let Some(watching) = &mut self.watching else { return };
        if watching.seen.len() + data.len() > MAX_MANIFEST_BYTES {
            self.watching = None;
            return;
        }
        watching.seen.extend_from_slice(data);
        if self.body.is_end_stream() {
            self.learn();
        }
    }

    fn learn(&mut self) {
        if let Some(Watching { gate, place, seen }) = self.watching.take() {
            let now = Instant::now();
            let mut facts = gate.lock();
            members(&seen).iter().for_each(|digest| facts.learn_member(now, &place, digest));
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.see(data);
                }
            }
            Poll::Ready(None) => this.learn(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
