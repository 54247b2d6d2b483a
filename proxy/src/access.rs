//! [`Record`]: the one line and the one set of counts that every request leaves, written when its body has ended. What never
//! became a request leaves a line, too: [`no_request`].

use crate::labels::{Cut, Misplaced, Outcome, Way};
use crate::metrics::{Metrics, Traffic};
use crate::pipeline::Downstream;
use crate::recorded::Recorded;
use crate::refusal::Refusal;
use crate::request::Side;
use crate::request_id::RequestId;
use crate::scope::Scope;
use crate::shown;
use crate::trail::{Trail, Upstream};
use crate::{Body, Proxy, TRACE};
use darter_p2p::Supplier;
use darter_rules::{Because, Decision};
use darter_upstream::Counted;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Span;
use tracing::field::Empty;

/// A request that is under way. Holds nothing that may not be logged.
pub(crate) struct Record {
    id: RequestId,
    client: Client,
    way: Way,
    /// `None` where there was no HTTP.
    version: Option<&'static str>,
    method: Method,
    /// Where it goes: `host:port`, or as the request names it.
    authority: String,
    /// With the query; empty for a tunnel.
    path: String,
    user_agent: Option<String>,
    /// The name in a tunnel's TLS greeting.
    sni: Option<String>,
    decided: Option<Decided>,
    begun: Instant,
    trail: Arc<Trail>,
    span: Span,
    metrics: Metrics,
    /// `None` where it is not the listener's to cut it.
    scope: Option<Scope>,
    _in_flight: Counted,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
enum Client {
    Address(SocketAddr),
    /// A user of this host, by his number.
    User(u32),
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::User(uid) => write!(f, "uid:{uid}"),
        }
    }
}

/// What the rules said.
#[derive(Debug, Clone, Copy)]
struct Decided {
    /// To go by the engine.
    peers: bool,
    because: Because,
}

impl Record {
    /// The record of a request whose head has just arrived.
    pub(crate) fn begin(request: &Request<Incoming>, downstream: &Downstream) -> Self {
        let (uri, headers) = (request.uri(), request.headers());
        let authority = match (&downstream.side, uri.authority()) {
            (Side::Inside { host, port }, _) => format!("{host}:{port}"),
            // What stands before an @ is a password.
            (_, Some(authority)) => authority.as_str().rsplit('@').next().unwrap_or_default().to_owned(),
            (Side::Redirected { address }, None) => address.to_string(),
            (Side::Port, None) => String::new(),
        };
        let record = Self::new(RequestId::of(headers), authority, Way::at(&downstream.side), downstream);
        let span = tracing::info_span!(
            target: TRACE, "request", otel.kind = "server", otel.status_code = Empty, request.id = %record.id,
            http.request.method = %request.method(), server.address = Empty, url.path = Empty,
            http.response.status_code = Empty, way = Empty, outcome = Empty, task = Empty,
        );
        if let Some(adopt) = &downstream.proxy.adopt
            && !span.is_disabled()
        {
            adopt(&span, headers);
        }
        Self {
            span,
            version: Some(shown::version(request.version())),
            method: request.method().clone(),
            path: shown::path(uri.path(), uri.query()),
            user_agent: shown::user_agent(headers),
            ..record
        }
    }

    /// One of which nothing else is known. It looks like a CONNECT.
    pub(crate) fn new(id: RequestId, authority: String, way: Way, downstream: &Downstream) -> Self {
        let scope = Some(downstream.scope.clone());
        Self { scope, ..Self::of(id, (Client::Address(downstream.peer), way), authority, &downstream.proxy) }
    }

    /// The record of what a command of this host's user `uid` has just asked for.
    pub(crate) fn of_command(uid: u32, uri: &Uri, headers: &HeaderMap, proxy: &Proxy) -> Self {
        let authority = uri.authority().map(http::uri::Authority::as_str);
        // What stands before an @ is a password.
        let authority = authority.and_then(|it| it.rsplit('@').next()).unwrap_or_default().to_owned();
        Self {
            method: Method::GET,
            path: shown::path(uri.path(), uri.query()),
            ..Self::of(RequestId::of(headers), (Client::User(uid), Way::Command), authority, proxy)
        }
    }

    fn of(id: RequestId, (client, way): (Client, Way), authority: String, proxy: &Proxy) -> Self {
        let metrics = proxy.metrics.clone();
        Self {
            id,
            client,
            way,
            version: None,
            method: Method::CONNECT,
            authority,
            path: String::new(),
            user_agent: None,
            sni: None,
            decided: None,
            begun: Instant::now(),
            trail: Arc::default(),
            span: Span::none(),
            _in_flight: Counted::one_of(&metrics.in_flight),
            metrics,
            scope: None,
        }
    }

    /// The trace's part from its head to the end of its answer.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    pub(crate) fn id(&self) -> &RequestId {
        &self.id
    }

    /// Where the request's handlers leave what they learn.
    pub(crate) fn trail(&self) -> &Arc<Trail> {
        &self.trail
    }

    /// How many tunnels are open, to be counted in.
    pub(crate) fn tunnels(&self) -> &Gauge {
        &self.metrics.tunnels
    }

    /// How long ago it began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The rules have decided where it goes.
    pub(crate) fn goes_to(&mut self, way: Way, decision: &Decision) {
        self.way = way;
        if let Decision::Peers { target, because, .. } | Decision::Direct { target, because } = decision {
            target.authority().clone_into(&mut self.authority);
            self.path = shown::path(target.path(), target.query());
            let peers = matches!(decision, Decision::Peers { .. });
            self.decided = Some(Decided { peers, because: *because });
        }
    }

    /// What its client's TLS asked for.
    pub(crate) fn asks_for(&mut self, sni: Option<String>) {
        self.sni = sni;
    }

    /// How the cache comes into an answer that is an error (RFC 9211): `None` of `hit` and `fwd` where the request has not
    /// come so far.
    pub(crate) fn cache_status(&self, is_failure: bool) -> &'static str {
        match (self.decided, is_failure) {
            (Some(Decided { peers: true, .. }), true) => "darter; fwd=miss",
            (Some(Decided { peers: false, .. }), true) => "darter; fwd=bypass",
            (Some(Decided { peers: true, .. }), false) => "darter",
            _ => "darter; detail=refused",
        }
    }

    /// Sends the answer on its way; the line is written when its body has ended. `note` says why it is as it is, if that
    /// is worth a word.
    pub(crate) fn answered(
        self,
        mut response: Response<Body>,
        outcome: Outcome,
        note: Option<String>,
    ) -> Response<Body> {
        if outcome.is_answered_here() {
            self.id.say(response.headers_mut());
        }
        let status = response.status();
        // These carry a body's headers, but no body (RFC 9110 section 6.4.1).
        let bodiless = self.method == Method::HEAD
            || status == StatusCode::NOT_MODIFIED
            || status == StatusCode::NO_CONTENT
            || (self.method == Method::CONNECT && status.is_success());
        response.map(|body| {
            let ending = Ending { record: self, status: Some(status), outcome, note };
            Recorded::body(body, bodiless, ending)
        })
    }

    /// Who ended what is dropped before its end.
    pub(crate) fn cut_by(&self) -> Cut {
        if self.scope.as_ref().is_some_and(Scope::is_cut) { Cut::Shutdown } else { Cut::Client }
    }
}

// === Pending ===

/// A record whose request has no answer yet. hyper drops the request of a client that goes away: then this writes the line.
pub(crate) struct Pending(Option<Record>);

impl Pending {
    pub(crate) fn new(record: Record) -> Self {
        Self(Some(record))
    }

    /// Notes what is known by now.
    pub(crate) fn note(&mut self, note: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.0 {
            note(record);
        }
    }

    /// There is no answer but a word on why.
    pub(crate) fn refused(mut self, refusal: &Refusal) {
        if let Some(record) = self.0.take() {
            let outcome = if refusal.is_failure() { Outcome::Failed } else { Outcome::Refused };
            let note = refusal.to_string();
            record.write(Some(refusal.status()), outcome, Traffic::default(), Some(&note));
        }
    }

    /// There is an answer, or a tunnel, with which the record goes on.
    pub(crate) fn finish(mut self, finish: impl FnOnce(Record) -> Response<Body>) -> Response<Body> {
        self.0.take().map_or_else(|| Response::new(crate::full("")), finish)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(record) = self.0.take() {
            let cut = record.cut_by();
            let traffic = Traffic { cut: Some(cut), ..Traffic::default() };
            record.write(None, Outcome::Abandoned, traffic, None);
        }
    }
}

// === Ending ===

/// A request with its answer, of which nothing is left to do but to be written down.
pub(crate) struct Ending {
    pub(crate) record: Record,
    /// `None`: the client never got one.
    status: Option<StatusCode>,
    outcome: Outcome,
    pub(crate) note: Option<String>,
}

impl Ending {
    pub(crate) fn write(self, traffic: Traffic) {
        self.record.write(self.status, self.outcome, traffic, self.note.as_deref());
    }
}

impl Record {
    /// The line and the counts. `status`: none where the client never got one.
    pub(crate) fn write(
        &self,
        status: Option<StatusCode>,
        outcome: Outcome,
        traffic: Traffic,
        note: Option<&str>,
    ) {
        let (record, trail) = (self, &self.trail);
        record.metrics.record(record.way, outcome, traffic, trail);
        record.trace(status, outcome);
        let upstream = trail.upstream();
        let address = upstream.and_then(|it| it.reached.address);
        let parent = upstream.and_then(|it| it.reached.parent.as_deref());
        let from = |supplier| Some(trail.bytes_from(supplier)).filter(|bytes| *bytes > 0);
        tracing::info!(
            target: "access",
            id = %record.id,
            client = %record.client,
            way = %record.way,
            http = record.version.map(tracing::field::display),
            method = %record.method,
            authority = filled(&record.authority),
            path = filled(&record.path),
            status = status.map(|status| status.as_u16()),
            %outcome,
            sent = traffic.sent,
            received = traffic.received + trail.received(),
            from_disk = from(Supplier::Disk),
            from_peer = from(Supplier::Peer),
            from_origin = from(Supplier::Origin),
            upstream = address.map(tracing::field::display),
            parent,
            upstream_first_byte_ms = upstream.and_then(Upstream::first_byte_ms),
            queued_ms = trail.queued().map(milliseconds),
            first_byte_ms = traffic.first_byte.map(milliseconds),
            duration_ms = milliseconds(record.begun.elapsed()),
            task = trail.task().map(tracing::field::display),
            rule = record.decided.map(|decided| Rule(decided.because).to_string()),
            sni = record.sni.as_deref(),
            cut_by = traffic.cut.map(tracing::field::display),
            user_agent = record.user_agent.as_deref(),
            note,
        );
    }

    /// Says in the trace what came of it.
    fn trace(&self, status: Option<StatusCode>, outcome: Outcome) {
        let span = &self.span;
        if span.is_disabled() {
            return;
        }
        span.record("server.address", &self.authority);
        span.record("url.path", &self.path);
        span.record("way", self.way.as_str());
        span.record("outcome", outcome.as_str());
        span.record("http.response.status_code", status.map(|status| status.as_u16()));
        span.record("task", self.trail.task().map(tracing::field::display));
        if outcome == Outcome::Failed {
            span.record("otel.status_code", "ERROR");
        }
    }
}

impl Upstream {
    fn first_byte_ms(&self) -> Option<u64> {
        self.first_byte.map(milliseconds)
    }
}

/// What decided, by the name that the configuration has for it.
struct Rule(Because);

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Because::Rule(index) => write!(f, "proxies[{index}]"),
            Because::BuiltIn(name) => write!(f, "builtin:{name}"),
            Because::Method => f.write_str("method"),
            Because::MirrorDirect => f.write_str("registryMirror.direct"),
            Because::Default => f.write_str("default"),
        }
    }
}

fn filled(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// === what never became a request ===

/// The line and the counts of a request that ended its connection before it was one: its head was not understood, and the
/// parser has answered it by itself. Nothing else is known of it.
pub(crate) fn malformed(
    id: &RequestId,
    client: SocketAddr,
    way: Way,
    metrics: &Metrics,
    error: &hyper::Error,
) {
    // As hyper answers; it tells the two lengths apart in its words alone.
    let status = match error.is_parse_too_large() {
        true if error.to_string() == "URI too long" => StatusCode::URI_TOO_LONG,
        true => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        false => StatusCode::BAD_REQUEST,
    };
    metrics.malformed(way);
    let (status, outcome) = (status.as_u16(), Outcome::Refused);
    tracing::info!(target: "access", %id, %client, %way, status, %outcome, note = %error);
}

/// The line and the count of a request whose client fell silent within its head.
pub(crate) fn unfinished(id: &RequestId, client: SocketAddr, way: Way, metrics: &Metrics) {
    let (outcome, cut_by) = (Outcome::Abandoned, Cut::Idle);
    metrics.unread(way, outcome);
    let note = "the head of its request was not complete in time";
    tracing::info!(target: "access", %id, %client, %way, %outcome, %cut_by, note);
}

/// The line and the count of a connection that a listener cannot take, and on which there was no request.
pub(crate) fn no_request(id: &RequestId, downstream: &Downstream, reason: Misplaced, note: &str) {
    downstream.proxy.metrics.misplaced(reason);
    let (client, outcome) = (downstream.peer, Outcome::Refused);
    tracing::info!(target: "access", %id, %client, %outcome, %reason, note);
}
