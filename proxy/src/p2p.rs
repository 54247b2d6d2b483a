//! The p2p route: a request's content comes from the engine, in the parts that the request asks for.
//!
//! What is known of the content here answers the request's preconditions. What is not known is the origin's to judge: a
//! request that is sent in case the content has changed must not download it.

use crate::condition::{self, Judged, Validators};
use crate::entitle::{Asker, Entitled};
use crate::headers::Switch;
use crate::labels::Outcome;
use crate::multipart::Envelope;
use crate::named::Lends;
use crate::pipeline::Answer;
use crate::range::{self, Asked, Plan};
use crate::refusal::Refusal;
use crate::slots::Slot;
use crate::trail::Trail;
use crate::version::{NoVersion, Version};
use crate::via::Came;
use crate::{BoxError, Proxy, TRACE, direct, headers, tasks};
use bytes::Bytes;
use darter_p2p::{
    ByteRange, Content, ContentBody, ContentInfo, Engine, LocalStat, OpenError, OpenRequest, Opened, Served,
    Want,
};
use darter_protocol::{Digest, TaskId};
use darter_rules::{Identity, Target};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream, StreamExt as _};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::Instant;
use tracing::Instrument as _;
use url::Url;

pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a 304 says of the content: what RFC 9110 section 15.4.5 asks for, and the date of the last change, by which clients
/// without ETags go.
const OF_NOT_MODIFIED: [HeaderName; 8] = [
    header::AGE,
    header::CACHE_CONTROL,
    header::DATE,
    header::ETAG,
    header::EXPIRES,
    header::LAST_MODIFIED,
    header::VARY,
    DOCKER_CONTENT_DIGEST,
];

/// How many of a request's ranges are open at once, beside the one that is being sent. The engine fetches these while the
/// client takes that one; for a client that goes away it fetches no more than these in vain.
const OPEN_AHEAD: usize = 16;

/// How often the engine is asked for the first part of one answer. Its first answer tells the length, from which follows
/// what to ask for; more often is for content that changes meanwhile.
const MAX_OPENINGS: usize = 4;

/// Content as the rules decided that it comes from peers.
pub(crate) struct Peers {
    pub(crate) target: Target,
    pub(crate) identity: Identity,
    /// `sha256:<hex>`.
    pub(crate) digest: Option<String>,
    /// Its task, where that is another one than that of `identity`.
    pub(crate) task: Option<TaskId>,
    /// Its name says what it contains: no need to ask whether it has changed.
    pub(crate) settled: bool,
    /// Whether a rule sends it through the peers: whoever wrote it takes content for the same when its length is. A command
    /// names anything, also what says nothing of its version but a length.
    pub(crate) by_rule: bool,
}

/// What a caller wants of some content.
struct Wish<'a> {
    engine: &'a Engine,
    open: OpenRequest,
    /// The caller's own.
    headers: &'a HeaderMap,
    asked: Asked,
}

/// What the engine has for a wish.
enum Found {
    /// The content, opened for the first of `parts`; for all of it, when there are none.
    Content { content: Content, parts: Vec<ByteRange> },
    /// The origin's own answer.
    Relay(Response<darter_upstream::Incoming>),
}

/// Answers a GET.
///
/// # Errors
/// When the content cannot be had.
pub(crate) async fn answer<B>(proxy: &Proxy, peers: Peers, request: Request<B>) -> Result<Answer, Refusal>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    let url = match normal(&peers.target) {
        Some(url) if is_plain(&request) => url,
        // What the body of a GET means, only the origin knows (RFC 9110 section 9.3.1), and whether it speaks another
        // protocol there, and what it makes of a `..`.
        _ => return past(proxy, &peers.target, request, Outcome::Direct).await,
    };
    let settings = proxy.settings();
    let (target, ttl) = (peers.target.clone(), settings.limits.negative_ttl);
    let open = match proxy.missing.ask(&target, Asker::of(&request), ttl) {
        (Some(absent), _) => return Ok(absent),
        (None, open) => open,
    };
    let answer = fetched(proxy, peers, url, request).await?;
    match open {
        Some(open) => proxy.missing.learn(&target, open, answer, settings.limits.body_idle_timeout).await,
        None => Ok(answer),
    }
}

/// Answers a GET by the engine, or by the origin where that is to have the last word.
async fn fetched<B>(proxy: &Proxy, mut peers: Peers, url: Url, request: Request<B>) -> Result<Answer, Refusal>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    let (trail, settings) = (Trail::of(&request), proxy.settings());
    let slot = proxy.p2p_slot().await;
    let (length, _held) = match proxy
        .gate
        .check(proxy.judges(), &peers.target, &mut peers.identity, Asker::of(&request))
        .instrument(tracing::info_span!(target: TRACE, "entitle"))
        .await
    {
        Entitled::Yes => (None, None),
        Entitled::IfLong(length, held) => (Some(length), Some(held)),
        Entitled::No => return past(proxy, &peers.target, request, Outcome::Relayed).await,
        Entitled::Unknown(error) => return Err(Refusal::unproven(&error)),
        Entitled::Paused(pause) => return Err(Refusal::paused(&peers.target, pause)),
        Entitled::Crowded(refusal) => return Err(refusal),
    };
    let version = match peers.version(proxy, request.headers()).await {
        Ok(version) => version,
        Err(NoVersion::Unsaid) => {
            return past(proxy, &peers.target, request, Outcome::Relayed).await;
        }
        Err(NoVersion::Unreachable(error)) => return Err(error.into()),
    };
    let task = match peers.task {
        Some(task) => task,
        None => {
            let operator = proxy.operator(&settings, &peers.target);
            let task = tasks::task(&peers.identity, &peers.target, Asker::of(&request), operator)?;
            if request.headers().contains_key(header::RANGE)
                && let Some(apart) = tasks::apart(&peers.identity, &peers.target, task)?
                && !is_here(&proxy.engine, task).await
            {
                apart
            } else {
                task
            }
        }
    };
    let wish = peers.wish(&proxy.engine, task, url, request.headers())?;
    trail.of_task(wish.open.task);
    match wish.precondition(length).await {
        (Judged::Proceed, _) => {}
        (Judged::NotModified, headers) => return Ok(not_modified(headers)),
        (Judged::Failed, _) => return Err(Refusal::precondition_failed()),
        (Judged::Unknown, _) => {
            return past(proxy, &peers.target, request, Outcome::Direct).await;
        }
    }
    let asked = Instant::now();
    match wish.open().await {
        Ok(Found::Content { content, .. }) if length.is_some_and(|length| length != content.info.length) => {
            past(proxy, &peers.target, request, Outcome::Relayed).await
        }
        Ok(Found::Content { content, .. })
            if version.as_ref().is_some_and(|version| !version.is_of(&content.info)) =>
        {
            past(proxy, &peers.target, request, Outcome::Bypass).await
        }
        Ok(Found::Content { mut content, parts }) => {
            // Several parts are put together before they are sent.
            let extensions = request.extensions();
            let lends = extensions.get::<Came>().is_some_and(|came| came.plain)
                || extensions.get::<Lends>().is_some();
            if parts.len() < 2 && lends {
                content.body = content.body.lend();
            }
            if length.is_some() {
                proxy.gate.believe(&peers.target, &mut peers.identity, Asker::of(&request));
            }
            Ok(wish.respond(content, parts, slot, &trail))
        }
        Ok(Found::Relay(answer)) => {
            trail.answered(asked, &answer);
            let answer = proxy.gate.watch(&peers.target, request.method(), Asker::of(&request), answer);
            let answer = direct::relay(answer, request.method(), &peers.target)?;
            Ok(Answer::Body(answer, Outcome::Relayed, None))
        }
        // What the engine does not follow (from https to http, say), the client may.
        Err(OpenError::NotShareable | OpenError::Origin(_)) => {
            past(proxy, &peers.target, request, Outcome::Bypass).await
        }
        Err(OpenError::Store(error)) => {
            // The store has told the operator.
            tracing::debug!(%error, "content cannot be stored on this host, so it is streamed past the engine");
            past(proxy, &peers.target, request, Outcome::Bypass).await
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether all of it is here, and was compared with its digest.
async fn is_here(engine: &Engine, task: TaskId) -> bool {
    matches!(engine.stat_here(task).await, Ok(LocalStat::Complete { .. }))
}

/// Answers past the engine. Boxed: what the engine answers needs no room for it.
fn past<'a, B>(
    proxy: &'a Proxy,
    target: &'a Target,
    request: Request<B>,
    outcome: Outcome,
) -> BoxFuture<'a, Result<Answer, Refusal>>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    direct::answer(proxy, target, request, outcome).boxed()
}

/// Whether a request asks for nothing but what its URL names.
fn is_plain<B: http_body::Body>(request: &Request<B>) -> bool {
    request.body().is_end_stream() && Switch::asked(request).is_none()
}

/// The URL that the engine would fetch, if it is the very one that the rules have judged: it resolves `..` and `\\`, and encodes
/// more.
fn normal(target: &Target) -> Option<Url> {
    Url::parse(target.url()).ok().filter(|normal| normal.as_str() == target.url())
}

impl Peers {
    /// The version to serve, where more than one may go by the name.
    async fn version(&mut self, proxy: &Proxy, headers: &HeaderMap) -> Result<Option<Version>, NoVersion> {
        if self.settled {
            return Ok(None);
        }
        let said = proxy.versions.name(&proxy.upstream, &self.target, &mut self.identity, headers);
        match said.boxed().await? {
            Some(Version::Length(_)) if !self.by_rule => Err(NoVersion::Unsaid),
            version => Ok(version),
        }
    }

    fn wish<'a>(
        &self,
        engine: &'a Engine,
        task: TaskId,
        url: Url,
        request: &'a HeaderMap,
    ) -> Result<Wish<'a>, Refusal> {
        let mut headers = request.clone();
        headers::keep_for_origin(&mut headers);
        // Who is on the way to this caller is nothing that the content of all may depend on.
        headers::drop_forwarded(&mut headers);
        let asked = Asked::by(request);
        let open = OpenRequest {
            task,
            digest: self.digest.as_deref().map(tasks::parse_digest).transpose()?,
            url,
            headers,
            want: asked.first(),
            priority: headers::priority(request),
        };
        Ok(Wish { engine, open, headers: request, asked })
    }
}

impl Wish<'_> {
    /// Judges the request's preconditions by what is known here; gives what is known, too. `length` is the only length of
    /// the content with which the caller may have it.
    async fn precondition(&self, length: Option<u64>) -> (Judged, HeaderMap) {
        if !condition::is_conditional(self.headers) {
            return (Judged::Proceed, HeaderMap::new());
        }
        // A store that cannot be read knows nothing.
        let known = self.engine.known(self.open.task).await.ok().flatten();
        let judged = match length {
            Some(length) if known.as_ref().is_none_or(|known| known.length != length) => Judged::Unknown,
            _ => self.validators(known.as_ref()).judge(self.headers),
        };
        let headers = known.map_or_else(HeaderMap::new, |known| known.headers);
        (judged, stored(headers, self.open.digest.as_ref()))
    }

    /// Opens what is to be sent.
    async fn open(&self) -> Result<Found, OpenError> {
        let mut want = self.open.want;
        for _ in 0..MAX_OPENINGS {
            let open = OpenRequest { want, ..self.open.clone() };
            let (plan, length) = match self.engine.open(open).await {
                Ok(Opened::Relay(answer)) => return Ok(Found::Relay(answer)),
                Ok(Opened::Content(content)) => {
                    let (plan, length) = (self.plan(&content.info), content.info.length);
                    match plan {
                        Plan::Whole if want == Want::All => {
                            return Ok(Found::Content { content, parts: Vec::new() });
                        }
                        Plan::Parts(parts)
                            if want != Want::All && content.range.as_ref() == parts.first() =>
                        {
                            return Ok(Found::Content { content, parts });
                        }
                        plan => (plan, length),
                    }
                }
                // Whether it is the range or the validator that does not fit shows in the content: in its first byte, too.
                Err(OpenError::NotSatisfiable { length }) if self.headers.contains_key(header::IF_RANGE) => {
                    want = ByteRange::new(0, length.min(1)).map_or(Want::All, Want::Range);
                    continue;
                }
                Err(OpenError::NotSatisfiable { length }) => (self.asked.of(length), length),
                Err(error) => return Err(error),
            };
            want = match plan {
                Plan::Whole => Want::All,
                Plan::Parts(parts) => parts.first().copied().map_or(Want::All, Want::Range),
                Plan::Outside => return Err(OpenError::NotSatisfiable { length }),
            };
        }
        Err(OpenError::Unavailable("the content changes again and again".to_owned()))
    }

    /// What is sent of this content: all of it where the request's If-Range says that its ranges are for other content.
    fn plan(&self, info: &ContentInfo) -> Plan {
        if self.validators(Some(info)).fit_range(self.headers) {
            self.asked.of(info.length)
        } else {
            Plan::Whole
        }
    }

    fn validators<'a>(&self, known: Option<&'a ContentInfo>) -> Validators<'a> {
        Validators::new(known.map(|info| &info.headers), self.open.digest.as_ref())
    }

    fn respond(&self, content: Content, parts: Vec<ByteRange>, slot: Slot, trail: &Arc<Trail>) -> Answer {
        let Content { info, range, served, body } = content;
        trail.supplied(body.supplied());
        let length = info.length;
        let (own, digest) = (info.headers.clone(), self.open.digest.as_ref());
        let (mut headers, cache_status, outcome) = match served {
            Served::Disk => (stored(own, digest), "darter; hit", Outcome::Hit),
            Served::Fetching => (content_headers(own, digest), "darter; fwd=miss", Outcome::Miss),
        };
        headers.append(CACHE_STATUS, HeaderValue::from_static(cache_status));
        let sent;
        let body = match parts.as_slice() {
            [] | [_] => {
                sent = range.map_or(0, ByteRange::len);
                if let [part] = parts[..] {
                    headers.insert(header::CONTENT_RANGE, range::content_range(part, length));
                }
                body.map_err(BoxError::from).boxed_unsync()
            }
            [_, rest @ ..] => {
                let envelope = Envelope::new(headers.get(header::CONTENT_TYPE).cloned(), length);
                sent = envelope.length_of(&parts);
                headers.insert(header::CONTENT_TYPE, envelope.content_type());
                let bodies = stream::iter([Ok(body)]).chain(self.bodies(info, rest.to_vec(), trail));
                envelope.body(parts.clone(), bodies)
            }
        };
        // The slot is free again when the body is.
        let body = body.map_err(move |error| {
            let _held = &slot;
            error
        });
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(sent));
        let mut response = Response::new(body.boxed_unsync());
        if !parts.is_empty() {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        *response.headers_mut() = headers;
        Answer::Body(response, outcome, None)
    }

    /// The bytes of further parts of the content, each opened a little before it is sent.
    fn bodies(
        &self,
        info: ContentInfo,
        parts: Vec<ByteRange>,
        trail: &Arc<Trail>,
    ) -> impl Stream<Item = Result<ContentBody, BoxError>> + use<> {
        let (engine, open, trail) = (self.engine.clone(), self.open.clone(), Arc::clone(trail));
        let opened = stream::iter(parts).map(move |part| {
            let (engine, info, trail) = (engine.clone(), info.clone(), Arc::clone(&trail));
            let open = OpenRequest { want: Want::Range(part), ..open.clone() };
            async move {
                match engine.open(open).await? {
                    Opened::Content(content)
                        if content.range == Some(part) && is_same_version(&content.info, &info) =>
                    {
                        trail.supplied(content.body.supplied());
                        Ok(content.body)
                    }
                    Opened::Content(_) => Err("the content changed between two of its parts".into()),
                    Opened::Relay(answer) => {
                        Err(format!("the origin answered with status {}", answer.status()).into())
                    }
                }
            }
        });
        opened.buffered(OPEN_AHEAD)
    }
}

fn is_same_version(a: &ContentInfo, b: &ContentInfo) -> bool {
    let same = |name| a.headers.get(&name) == b.headers.get(&name);
    a.length == b.length && same(header::ETAG) && same(header::LAST_MODIFIED)
}

/// A 304 for a client that has the content.
fn not_modified(mut headers: HeaderMap) -> Answer {
    let mut response = Response::new(crate::full(""));
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    for name in OF_NOT_MODIFIED {
        if let Some(value) = headers.remove(&name) {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static("darter; hit"));
    Answer::Body(response, Outcome::Hit, None)
}

/// The content's own headers, or what follows from its digest.
fn content_headers(mut headers: HeaderMap, digest: Option<&Digest>) -> HeaderMap {
    headers::keep_end_to_end(&mut headers);
    if let Some(digest) = digest {
        headers = headers_by_digest(&headers, digest);
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers
}

/// What is shared by its digest is shared over all hosts that have it: what one of them said beside it (how to name it, its
/// own digests, how long to keep it) is not for all the others to say.
fn headers_by_digest(said: &HeaderMap, digest: &Digest) -> HeaderMap {
    let kept = [header::DATE, header::LAST_MODIFIED].into_iter();
    let mut headers: HeaderMap =
        kept.filter_map(|name| said.get(&name).cloned().map(|value| (name, value))).collect();
    let media_type = said.get(header::CONTENT_TYPE).filter(|said| is_inert(said)).cloned();
    let octets = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, media_type.unwrap_or(octets));
    // So that a client can resume or ask again, at any host; registries do the same.
    headers.insert(header::ETAG, condition::etag_of(digest));
    if let Ok(digest) = HeaderValue::try_from(digest.to_string()) {
        headers.insert(DOCKER_CONTENT_DIGEST, digest);
    }
    headers
}

/// Whether no client would do more with content of this media type than keep it or unpack it. A browser shows pages, and
/// runs the scripts in them, and in what is made of XML.
fn is_inert(media_type: &HeaderValue) -> bool {
    let Some(media_type) = media_type.to_str().ok() else { return false };
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let active = essence.ends_with("xml") || essence.ends_with("script");
    essence.starts_with("application/") && !active
}

/// The same of content that has been here for a while: its Date is its origin's, and Age says how long ago that was (RFC
/// 9111 section 5.1), so that whoever keeps it counts from then.
fn stored(headers: HeaderMap, digest: Option<&Digest>) -> HeaderMap {
    let mut headers = content_headers(headers, digest);
    if let Some(age) = condition::age(&headers, SystemTime::now()) {
        headers.insert(header::AGE, HeaderValue::from(age));
    }
    headers
}
