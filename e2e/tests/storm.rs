//! A thousand clients that start one private image at the same moment: what that costs the registry, and the service that gives
//! its tokens. The real binary, and a registry and a service in this process that count.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::crowd::alone;
use darter_e2e::darter::{Daemon, loopback_config};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const CLIENTS: usize = 1000;
/// `proxy.maxAuthentications` says so by default.
const AT_ONCE: usize = 16;
const IMAGE: &str = "team/app";

/// What a registry with two layers, and its token service, saw.
struct Cloud {
    layers: [Bytes; 2],
    /// `METHOD path`, without the digest, and how often.
    asked: Mutex<HashMap<String, usize>>,
    tokens_now: AtomicUsize,
    tokens_most: AtomicUsize,
    /// Opened when as many as may ask at once are there.
    full: Semaphore,
    registry: SocketAddr,
    service: SocketAddr,
}

impl Cloud {
    fn start(runtime: &Runtime) -> Result<Arc<Self>> {
        let _inside = runtime.enter();
        let listen = || -> Result<TcpListener> {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            Ok(socket.listen(4096)?)
        };
        let (registry, service) = (listen()?, listen()?);
        let layer = |seed| -> Result<Bytes> {
            let mut bytes = Vec::new();
            Content::new(seed, 40_000).reader(0).read_to_end(&mut bytes)?;
            Ok(bytes.into())
        };
        let cloud = Arc::new(Self {
            layers: [layer(1)?, layer(2)?],
            asked: Mutex::default(),
            tokens_now: AtomicUsize::new(0),
            tokens_most: AtomicUsize::new(0),
            full: Semaphore::new(0),
            registry: registry.local_addr()?,
            service: service.local_addr()?,
        });
        for (listener, is_service) in [(registry, false), (service, true)] {
            runtime.spawn(serve(listener, cloud.clone(), is_service));
        }
        Ok(cloud)
    }

    fn digest(&self, layer: usize) -> Result<String> {
        digest_of(&*self.layers[layer])
    }

    fn note(&self, line: String) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner).entry(line).or_default() += 1;
    }

    fn asked(&self, line: &str) -> usize {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(line).copied().unwrap_or_default()
    }

    /// A token for whoever asks. The first ones wait until so many are there as may be at once, so that more would show.
    async fn token(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let now = self.tokens_now.fetch_add(1, Ordering::SeqCst) + 1;
        self.tokens_most.fetch_max(now, Ordering::SeqCst);
        self.note("token".to_owned());
        if now == AT_ONCE {
            self.full.close();
        }
        // Closed from then on: nobody waits any more.
        let _ = self.full.acquire().await;
        let name = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        let token = format!("{{\"token\":\"for {}\"}}", String::from_utf8_lossy(name));
        self.tokens_now.fetch_sub(1, Ordering::SeqCst);
        Response::new(Full::from(token))
    }

    fn content(&self, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let path = request.uri().path();
        let kind = path.trim_start_matches("/v2/").trim_start_matches(IMAGE);
        self.note(format!("{} {}", request.method(), kind.split("sha256:").next().unwrap_or_default()));
        let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if !shown.is_some_and(|shown| shown.starts_with("Bearer for Basic ")) {
            let challenge = format!("Bearer realm=\"http://{}/token\"", self.service);
            let answer = Response::builder().status(StatusCode::UNAUTHORIZED);
            return Ok(answer.header(header::WWW_AUTHENTICATE, challenge).body(Full::default())?);
        }
        if path.contains("/manifests/") {
            let (a, b) = (self.digest(0)?, self.digest(1)?);
            let manifest =
                format!("{{\"schemaVersion\":2,\"layers\":[{{\"digest\":\"{a}\"}},{{\"digest\":\"{b}\"}}]}}");
            return Ok(Response::new(Full::from(manifest)));
        }
        let layer = (0..2).find(|layer| self.digest(*layer).is_ok_and(|digest| path.ends_with(&digest)));
        Ok(Response::new(Full::from(self.layers[layer.context("no such layer")?].clone())))
    }
}

async fn serve(listener: TcpListener, cloud: Arc<Cloud>, is_service: bool) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let cloud = cloud.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let cloud = cloud.clone();
            async move {
                let answer = match is_service {
                    true => cloud.token(&request).await,
                    false => cloud.content(&request).unwrap_or_default(),
                };
                Ok::<_, Infallible>(answer)
            }
        });
        connections
            .spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}

/// A client with a connection to the proxy.
struct Client {
    proxy: SocketAddr,
    to: http1::SendRequest<Full<Bytes>>,
    _connection: JoinSet<hyper::Result<()>>,
}

impl Client {
    async fn connect(proxy: SocketAddr) -> Result<Self> {
        let (to, connection) = http1::handshake(TokioIo::new(TcpStream::connect(proxy).await?)).await?;
        let mut all = JoinSet::new();
        all.spawn(connection);
        Ok(Self { proxy, to, _connection: all })
    }

    async fn get(&mut self, url: &str, host: &str, shown: Option<&str>) -> Result<(StatusCode, Bytes)> {
        let request = || {
            let request = Request::builder().method(Method::GET).uri(url).header(header::HOST, host);
            let shown = shown.into_iter().map(|shown| (header::AUTHORIZATION, shown));
            shown.fold(request, |request, (name, value)| request.header(name, value)).body(Full::default())
        };
        let answer = match self.to.send_request(request()?).await {
            // The connection has ended before anything was sent on it: all clients make another one.
            Err(error) if error.is_canceled() => {
                *self = Self::connect(self.proxy).await?;
                self.to.send_request(request()?).await
            }
            answer => answer,
        };
        let answer = answer.with_context(|| url.to_owned())?;
        let (status, body) = (answer.status(), answer.into_body().collect().await);
        Ok((status, body.with_context(|| format!("{status} for {url}"))?.to_bytes()))
    }

    /// What a container engine does for an image, as the user `name`.
    async fn pull(&mut self, cloud: &Cloud, name: &str) -> Result<()> {
        let manifest = format!("/v2/{IMAGE}/manifests/latest");
        ensure!(self.get(&manifest, "mirror", None).await?.0 == StatusCode::UNAUTHORIZED);
        let service = cloud.service.to_string();
        let url = format!("http://{service}/token?scope=repository:{IMAGE}:pull");
        let (_, token) = self.get(&url, &service, Some(&format!("Basic {name}"))).await?;
        let token: serde_json::Value = serde_json::from_slice(&token)?;
        let token = token["token"].as_str().context("no token")?;
        ensure!(token == format!("for Basic {name}"), "{name} got a token {token}");
        let shown = format!("Bearer {token}");
        ensure!(self.get(&manifest, "mirror", Some(&shown)).await?.0 == StatusCode::OK);
        for layer in 0..2 {
            self.layer(cloud, layer, &shown).await?;
        }
        Ok(())
    }

    async fn layer(&mut self, cloud: &Cloud, layer: usize, shown: &str) -> Result<()> {
        let url = format!("/v2/{IMAGE}/blobs/{}", cloud.digest(layer)?);
        let (status, body) = self.get(&url, "mirror", Some(shown)).await?;
        ensure!(status == StatusCode::OK && body == cloud.layers[layer], "{status}, {} bytes", body.len());
        Ok(())
    }
}

#[test]
fn a_thousand_clients_that_start_together_cost_no_more_than_their_own_questions() -> Result<()> {
    let cloud =
        storm(|cloud, mut client, number| async move { client.pull(&cloud, &number.to_string()).await })?;
    check(&cloud)?;
    assert_eq!(cloud.tokens_most.load(Ordering::SeqCst), AT_ONCE, "tokens at once");
    assert_eq!(cloud.asked("token"), CLIENTS, "each has another name");
    // Each client's own: once to be told where tokens are, once with its token.
    assert_eq!(cloud.asked("GET /manifests/latest"), 2 * CLIENTS);
    assert_eq!(cloud.asked("HEAD /blobs/"), 0, "the manifest says it");
    Ok(())
}

#[test]
fn those_who_show_the_same_and_ask_for_layers_alone_cost_one_question_a_layer() -> Result<()> {
    let shown = "Bearer for Basic same";
    let cloud =
        storm(move |cloud, mut client, number| async move { client.layer(&cloud, number % 2, shown).await })?;
    check(&cloud)
}

/// All clients come to a new daemon at once, and do what `each` does with its number.
fn storm<F>(
    each: impl Fn(Arc<Cloud>, Client, usize) -> F + Copy + Send + Sync + 'static,
) -> Result<Arc<Cloud>>
where
    F: Future<Output = Result<()>> + Send,
{
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let cloud = Cloud::start(&runtime)?;
    let mirror = format!("  registryMirror: {{ url: 'http://{}' }}\n", cloud.registry);
    let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), &mirror))?;
    let proxy = daemon.proxy;
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let cloud = cloud.clone();
            clients.spawn(async move { each(cloud, Client::connect(proxy).await?, number).await });
        }
        clients.join_all().await.into_iter().collect::<Result<()>>()
    })?;
    Ok(cloud)
}

/// No more than one question for each layer. What of it is fetched is the engine's business.
fn check(cloud: &Cloud) -> Result<()> {
    let (questions, copies) = (cloud.asked("HEAD /blobs/"), cloud.asked("GET /blobs/"));
    ensure!(questions <= 2 && copies >= 2, "{questions} questions, {copies} copies");
    Ok(())
}
