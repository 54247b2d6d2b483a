//! The health server: `GET /healthy` and `GET /metrics`.
//!
//! Healthy means that all parts were started and every one serves: each announces itself before it starts, says when its
//! accept loop runs, and takes that back when it ends, however it ends. The server itself runs before the parts do, so that
//! probes get an answer while a large store is opened.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::components::Components;
use crate::process_metrics;

/// How many connections are served at once: probes and scrapers are few, and nobody else has business here.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to send a request's head, or to send the next request. Longer than the usual scrape
/// interval of 15 s would need, so that a scraper keeps its connection.
const IDLE_LIMIT: Duration = Duration::from_secs(75);

/// What `/metrics` must call OpenMetrics text (OpenMetrics 1.0, section "Content Type").
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Which parts of the process serve.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    parts: Vec<(&'static str, Status)>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// Not all parts have announced themselves.
    #[default]
    Starting,
    Running,
    Draining,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Starting,
    Serving,
    Stopped,
}

/// One part of the process. It does not serve any more when this is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    health: Health,
    name: &'static str,
}

/// What `/metrics` shows, once everything is registered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics(Arc<OnceLock<Registry>>);

impl Metrics {
    /// Shows these from now on. The first call counts.
    pub(crate) fn publish(&self, registry: Registry) {
        let _ = self.0.set(registry);
    }
}

// === impl Health ===

impl Health {
    /// Announces a part that is to serve before the process is healthy.
    pub(crate) fn part(&self, name: &'static str) -> Part {
        self.state(|state| state.parts.push((name, Status::Starting)));
        Part { health: self.clone(), name }
    }

    /// All parts are announced.
    pub(crate) fn running(&self) {
        self.state(|state| state.phase = Phase::Running);
    }

    /// From now on the process only finishes what is under way.
    pub(crate) fn draining(&self) {
        self.state(|state| state.phase = Phase::Draining);
    }

    /// Why the process is not healthy; `None` when it is.
    fn problem(&self) -> Option<String> {
        self.state(|state| {
            match state.phase {
                Phase::Starting => return Some("starting".to_owned()),
                Phase::Running => {}
                Phase::Draining => return Some("draining".to_owned()),
            }
            let waiting: Vec<String> = state
                .parts
                .iter()
                .filter_map(|(name, status)| match status {
                    Status::Serving => None,
                    Status::Starting => Some(format!("{name} does not serve yet")),
                    Status::Stopped => Some(format!("{name} has stopped")),
                })
                .collect();
            (!waiting.is_empty()).then(|| waiting.join(", "))
        })
    }

    fn state<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        // Valid between any two statements, so a panic elsewhere does not spoil it.
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Part ===

impl Part {
    /// It serves from now on.
    pub(crate) fn serves(&self) {
        self.set(Status::Serving);
    }

    fn set(&self, status: Status) {
        self.health.state(|state| {
            for part in state.parts.iter_mut().filter(|(name, _)| *name == self.name) {
                part.1 = status;
            }
        });
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(Status::Stopped);
    }
}

/// Serves from now on, and shows the process's own metrics with those that are put into the registry, once that is published.
pub(crate) fn start(
    listener: TcpListener,
    health: Health,
    components: &mut Components,
) -> (Metrics, Registry) {
    let metrics = Metrics::default();
    components.probe(run(listener, health, metrics.clone()));
    let mut registry = Registry::default();
    process_metrics::register(&mut registry);
    (metrics, registry)
}

/// Serves for as long as it is polled. Its own failures are not the process's: a connection that fails is dropped.
pub(crate) async fn run(listener: TcpListener, health: Health, metrics: Metrics) -> Infallible {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            Some(_) = connections.join_next() => continue,
            accepted = darter_listen::accept(&listener) => accepted,
        };
        // Above the limit a connection is closed at once: a probe that fails says more than one that hangs.
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let (health, metrics) = (health.clone(), metrics.clone());
        connections.spawn(async move {
            serve(stream, health, metrics).await;
            drop(slot);
        });
    }
}

async fn serve(stream: TcpStream, health: Health, metrics: Metrics) {
    let service = service_fn(|request| {
        let answer = answer(&request, &health, &metrics);
        async { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the health port failed");
    }
}

fn answer(request: &Request<Incoming>, health: &Health, metrics: &Metrics) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused =
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n".to_owned());
        refused.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/healthy" => match health.problem() {
            None => text(StatusCode::OK, "ok\n".to_owned()),
            Some(problem) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
        },
        "/metrics" => page(metrics),
        _ => text(StatusCode::NOT_FOUND, "there is /healthy and /metrics here\n".to_owned()),
    }
}

fn page(metrics: &Metrics) -> Response<Full<Bytes>> {
    let Some(registry) = metrics.0.get() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned());
    };
    let mut page = String::new();
    match prometheus_client::encoding::text::encode(&mut page, registry) {
        Ok(()) => typed(StatusCode::OK, OPEN_METRICS, page),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn healthy_is_when_every_part_serves() {
        let health = Health::default();
        assert_eq!(health.problem().unwrap(), "starting");
        let (proxy, pieces) = (health.part("proxy"), health.part("pieces"));
        health.running();
        assert_eq!(health.problem().unwrap(), "proxy does not serve yet, pieces does not serve yet");
        proxy.serves();
        assert_eq!(health.problem().unwrap(), "pieces does not serve yet");
        pieces.serves();
        assert_eq!(health.problem(), None);
        drop(pieces);
        assert_eq!(health.problem().unwrap(), "pieces has stopped");
        health.draining();
        assert_eq!(health.problem().unwrap(), "draining");
    }

    async fn ask(addr: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream
            .write_all(format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_server_answers_probes_and_scrapers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (health, metrics) = (Health::default(), Metrics::default());
        let part = health.part("proxy");
        let mut registry = Registry::default();
        let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
        registry.register("things", "Things counted", counter.clone());
        counter.inc_by(3);
        let mut server = JoinSet::new();
        server.spawn(run(listener, health.clone(), metrics.clone()));

        for path in ["/healthy", "/metrics"] {
            let answer = ask(addr, &format!("GET {path} HTTP/1.1")).await;
            assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("\r\n\r\nstarting\n"), "{answer}");
        }
        metrics.publish(registry);
        health.running();

        let answer = ask(addr, "GET /healthy HTTP/1.1").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.ends_with("proxy does not serve yet\n"),
            "{answer}"
        );
        part.serves();
        let answer = ask(addr, "GET /healthy HTTP/1.1").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
        let answer = ask(addr, "GET /metrics HTTP/1.1").await;
        assert!(answer.contains(OPEN_METRICS) && answer.contains("things_total 3\n"), "{answer}");
        assert!(ask(addr, "GET /other HTTP/1.1").await.starts_with("HTTP/1.1 404"));
        assert!(ask(addr, "POST /healthy HTTP/1.1").await.starts_with("HTTP/1.1 405"));
    }
}
