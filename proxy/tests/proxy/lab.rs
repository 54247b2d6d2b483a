//! A proxy, origins and clients on loopback.

use bytes::Bytes;
use darter_certs::{Authority, Leaves};
use darter_p2p::{Backoff, Engine, EngineConfig, HostConfig, Rates, StoreConfig};
use darter_proxy::{
    Account, Accounts, BasicAuth, Clients, Limits, Marks, PortTls, Proxy, ProxyConfig, Settings,
};
use darter_rules::{
    Destinations, HostPattern, Intercept, Mirror, Naming, Proxies, Rules, Target, WhiteListEntry,
};
use darter_upstream::{Dns, Pool, Route, Timeouts, Upstream, UpstreamConfig};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::registry::Registry;
use regex::Regex;
use rustls::pki_types::ServerName;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

pub(crate) type Body =
    http_body_util::combinators::UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

// === the proxy ===

/// What a test changes about the proxy.
pub(crate) struct Setup {
    pub(crate) intercept: &'static str,
    pub(crate) mirror: String,
    pub(crate) proxies: Vec<darter_rules::ProxyRule>,
    pub(crate) white_list: Vec<WhiteListEntry>,
    pub(crate) basic_auth: Option<BasicAuth>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) clients: Clients,
    pub(crate) allow_push: bool,
    pub(crate) trusted: Option<Regex>,
    pub(crate) limits: Limits,
    pub(crate) marks: Marks,
    pub(crate) port_tls: Vec<PortTls>,
    /// Whom the proxy trusts as origin.
    pub(crate) origin_ca: Arc<Authority>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            intercept: "$^",
            mirror: "https://registry.invalid".to_owned(),
            proxies: Vec::new(),
            white_list: vec![
                listed("127.0.0.0/8"),
                listed("localhost"),
                WhiteListEntry { regex: Some(Regex::new("").unwrap()), ..WhiteListEntry::default() },
            ],
            basic_auth: None,
            accounts: Vec::new(),
            clients: Clients::default(),
            allow_push: true,
            trusted: None,
            limits: Limits::default(),
            marks: Marks::default(),
            port_tls: Vec::new(),
            origin_ca: Arc::new(Authority::generate().unwrap()),
        }
    }
}

impl Setup {
    /// The settings that this means, with these leaves.
    pub(crate) fn settings(self, leaves: &Leaves) -> Settings {
        let mirror = Mirror {
            url: Target::parse(&self.mirror).unwrap(),
            dynamic: true,
            direct: false,
            use_proxies: false,
        };
        let rules = Rules {
            mirror,
            proxies: Proxies::new(self.proxies).unwrap(),
            intercept: Intercept::new([&Regex::new(self.intercept).unwrap()]).unwrap(),
            destinations: Destinations::new(self.white_list),
            naming: Naming::default(),
        };
        Settings {
            rules,
            leaves: Some(leaves.clone()),
            clients: self.clients,
            allow_push: self.allow_push,
            trusted: self.trusted,
            basic_auth: self.basic_auth,
            accounts: Accounts::new(self.accounts),
            limits: self.limits,
            marks: self.marks,
            port_tls: self.port_tls,
        }
    }
}

pub(crate) fn listed(host: &str) -> WhiteListEntry {
    WhiteListEntry { host: Some(host.parse::<HostPattern>().unwrap()), ..WhiteListEntry::default() }
}

/// A proxy that serves.
pub(crate) struct Darter {
    pub(crate) addr: SocketAddr,
    pub(crate) leaves: Leaves,
    pub(crate) shutdown: CancellationToken,
    pub(crate) registry: Registry,
    pub(crate) proxy: Arc<Proxy>,
    /// The one task is the proxy.
    pub(crate) running: JoinSet<()>,
    /// Where the engine keeps content.
    pub(crate) store: tempfile::TempDir,
}

impl Darter {
    pub(crate) async fn start(setup: Setup) -> Self {
        let authority = Arc::new(Authority::generate().unwrap());
        let leaves = Leaves::new(authority).unwrap();
        let origin_ca = setup.origin_ca.clone();
        let settings = setup.settings(&leaves);
        let upstream = upstream(settings.rules.destinations.clone(), &origin_ca);
        let store = tempfile::tempdir().unwrap();
        let engine = engine(&upstream, store.path()).await;
        let mut registry = Registry::default();
        let proxy =
            Arc::new(Proxy::new(ProxyConfig { settings, engine, upstream, adopt: None }, &mut registry));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(darter_proxy::run(listener, proxy.clone(), shutdown.clone()));
        Self { addr, leaves, shutdown, registry, proxy, running, store }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Sends `request` as it is, and reads until the connection closes.
    pub(crate) async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is as good as a close.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A CONNECT that is granted.
    pub(crate) async fn tunnel(&self, authority: &str) -> TcpStream {
        let mut stream = self.connect().await;
        let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream
    }

    /// A client of an intercepted host, which trusts the proxy's CA.
    pub(crate) async fn intercepted(
        &self,
        host: &str,
        port: u16,
        alpn: &[&[u8]],
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        let stream = self.tunnel(&format!("{host}:{port}")).await;
        tls_connect(stream, host, self.leaves.authority(), alpn).await.unwrap()
    }

    /// Waits until a counter or gauge has this value: what is counted when something ends may be counted a moment later.
    pub(crate) async fn until(&self, line: &str, value: f64) {
        for _ in 0..1_000_000 {
            if self.metric(line) == value {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{line} stays at {}", self.metric(line));
    }

    /// A counter or gauge in the metrics' text: the sum of those that have all the labels of `name{label="value",...}`.
    pub(crate) fn metric(&self, wanted: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let parts = |line: &'_ str| {
            let (name, labels) = line.split_once('{').unwrap_or((line, ""));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            (name.to_owned(), labels.map(str::to_owned).collect::<Vec<_>>())
        };
        let (name, labels) = parts(wanted);
        let samples = text.lines().filter_map(|line| line.rsplit_once(' '));
        let matching = samples.filter(|(series, _)| {
            let (its_name, its_labels) = parts(series);
            its_name == name && labels.iter().all(|label| its_labels.contains(label))
        });
        matching.map(|(_, value)| value.parse::<f64>().unwrap_or(0.0)).sum()
    }
}

/// Waits for `io` while the paused clock passes by milliseconds: otherwise each wait for the kernel is a jump to the next
/// timer, which may be the one that a test is about.
pub(crate) async fn ticking<T>(io: impl Future<Output = T>) -> T {
    tokio::pin!(io);
    loop {
        tokio::select! {
            done = &mut io => return done,
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
}

/// Lets bytes arrive on a paused clock, which passes over whoever waits for the kernel: by milliseconds, not to the next
/// long timer.
pub(crate) async fn settled() {
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn upstream(destinations: Destinations, trusted: &Authority) -> Upstream {
    let tls = client_config(trusted, &[b"h2", b"http/1.1"]);
    Upstream::new(UpstreamConfig {
        permit: Arc::new(move |host, port, address| {
            let verdict = match address {
                Some(address) => destinations.check_address(host, port, address),
                None => destinations.check_unresolved(host, port),
            };
            verdict.map_err(|refused| refused.to_string())?;
            address.map_or(Ok(()), |address| darter_proxy::check_not_own(address, port))
        }),
        routes: Arc::new(move |_, _| Route::straight(tls.clone())),
        dns: Dns::default(),
        timeouts: Timeouts::default(),
        pool: Pool::default(),
        mark: None,
    })
}

/// An engine without a scheduler: its own cluster.
async fn engine(upstream: &Upstream, folder: &Path) -> Engine {
    let config = EngineConfig {
        store: StoreConfig {
            dir: folder.to_owned(),
            quota: 1 << 30,
            quota_percent: 100,
            expire: Duration::from_secs(3600),
        },
        host: HostConfig {
            id: "test".parse().unwrap(),
            hostname: "test".to_owned(),
            ip: Ipv4Addr::LOCALHOST.into(),
            idc: String::new(),
            location: String::new(),
            seed: false,
            upload_slots: 1,
        },
        schedulers: Vec::new(),
        only_with_scheduler: false,
        backoff: Backoff { first: Duration::ZERO, most: Duration::ZERO, attempts: 3 },
        idle_timeout: Duration::from_secs(30),
        prefetch: false,
        rates: Rates::default(),
        gc_interval: Duration::from_secs(3600),
        membership: darter_enrol::Membership::insecure(darter_enrol::Metrics::default()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Engine::start(config, upstream.clone(), listener, &mut Registry::default()).unwrap()
}

// === clients ===

pub(crate) fn client_config(trusted: &Authority, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.certificate_der().clone()).unwrap();
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|it| it.to_vec()).collect();
    Arc::new(config)
}

pub(crate) async fn tls_connect(
    stream: TcpStream,
    name: &str,
    trusted: &Authority,
    alpn: &[&[u8]],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(client_config(trusted, alpn)).connect(name, stream).await
}

/// A client of HTTP/1.1 on a connection, and the task that drives it.
pub(crate) async fn h1(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> (hyper::client::conn::http1::SendRequest<Body>, JoinSet<()>) {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    (sender, tasks)
}

/// The same for HTTP/2.
pub(crate) async fn h2(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> (hyper::client::conn::http2::SendRequest<Body>, JoinSet<()>) {
    let io = TokioIo::new(io);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    (sender, tasks)
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Reads up to the end of a head.
pub(crate) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

// === origins ===

/// A server on loopback; it ends when it is dropped.
pub(crate) struct Origin {
    pub(crate) port: u16,
    /// The heads of all requests, where the origin records them.
    pub(crate) heads: Arc<Mutex<Vec<http::request::Parts>>>,
    _tasks: JoinSet<()>,
}

impl Origin {
    /// Whatever `serve` does with each connection.
    pub(crate) async fn raw<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                connections.spawn(serve(listener.accept().await.unwrap().0));
            }
        });
        Self { port, heads: Arc::default(), _tasks: tasks }
    }

    /// Plain HTTP/1.1.
    pub(crate) async fn http<F>(
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let heads = Arc::<Mutex<Vec<_>>>::default();
        let recorded = heads.clone();
        let origin = Self::raw(move |stream| serve_http(stream, recorded.clone(), answer.clone())).await;
        Self { heads, ..origin }
    }

    /// HTTPS with HTTP/2 and HTTP/1.1, under the name `localhost`.
    pub(crate) async fn https<F>(
        ca: &Arc<Authority>,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let leaves = Leaves::new(ca.clone()).unwrap();
        let config = leaves.config_for(&"localhost".parse().unwrap()).await.unwrap();
        let heads = Arc::<Mutex<Vec<_>>>::default();
        let recorded = heads.clone();
        let origin = Self::raw(move |stream| {
            let (config, recorded, answer) = (config.clone(), recorded.clone(), answer.clone());
            async move {
                if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                    serve_http(stream, recorded, answer).await;
                }
            }
        })
        .await;
        Self { heads, ..origin }
    }

    pub(crate) fn head(&self, index: usize) -> http::request::Parts {
        self.heads.lock().unwrap()[index].clone()
    }
}

async fn serve_http<F>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    heads: Arc<Mutex<Vec<http::request::Parts>>>,
    answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
) where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (parts, body) = request.into_parts();
        heads.lock().unwrap().push(parts.clone());
        let answer = answer(Request::from_parts(parts, body));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service)
        .await;
}

/// A port on loopback at which nobody listens.
pub(crate) async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}
