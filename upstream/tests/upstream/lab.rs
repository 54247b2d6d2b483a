//! Servers on loopback, their certificates, and the way to them.

use bytes::Bytes;
use darter_upstream::{
    Body, Dns, Pool, Route, Routes, Timeouts, Upstream, UpstreamConfig, UpstreamError, empty_body,
};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

// === a server under test ===

/// A server on loopback; dropped with the test.
pub(crate) struct Server {
    pub(crate) port: u16,
    accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn plain<F>(serve: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, counter.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { port, accepted, _tasks: tasks }
    }

    /// Speaks HTTP/2 and HTTP/1.1 and says what it saw.
    pub(crate) async fn tls(certificate: Leaf) -> Self {
        Self::https(server_config(certificate, &[b"h2", b"http/1.1"])).await
    }

    /// Says in each answer which version was spoken, the name in the ClientHello, whether the TLS session was resumed,
    /// whether the client showed a certificate, and the URI. The path `/close` ends the connection.
    pub(crate) async fn https(config: rustls::ServerConfig) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::plain(move |stream, _| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let tls = stream.get_ref().1;
                let h2 = tls.alpn_protocol() == Some(b"h2");
                let about = format!(
                    "sni={} resumed={} certificate={}",
                    tls.server_name().unwrap_or("none"),
                    tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
                    tls.peer_certificates().is_some(),
                );
                serve(stream, h2, about).await;
            }
        })
        .await
    }

    /// The same without TLS, over HTTP/2 with prior knowledge.
    pub(crate) async fn h2c() -> Self {
        Self::plain(|stream, _| serve(stream, true, "no tls".to_owned())).await
    }

    /// The same without TLS, over HTTP/1.1.
    pub(crate) async fn http1() -> Self {
        Self::plain(|stream, _| serve(stream, false, "no tls".to_owned())).await
    }

    pub(crate) fn url(&self, scheme: &str, host: &str) -> String {
        format!("{scheme}://{host}:{}/v2/?token=secret", self.port)
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, h2: bool, about: String) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let text = format!("{:?} {about} {}", request.version(), request.uri());
        async move {
            let mut response = Response::new(Full::new(Bytes::from(text)));
            if request.uri().path() == "/close" {
                response.headers_mut().insert("connection", "close".parse().unwrap());
            }
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(stream);
    let served = if h2 {
        http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
    } else {
        http1::Builder::new().serve_connection(io, service).await
    };
    // The client ends the connection in its own way.
    drop(served);
}

pub(crate) fn server_config(certificate: Leaf, alpn: &[&[u8]]) -> rustls::ServerConfig {
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der], certificate.key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

/// Reads up to the end of a request's head.
pub(crate) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

pub(crate) async fn answer(stream: &mut (impl AsyncWrite + Unpin), text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

// === certificates ===

pub(crate) struct Leaf {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

pub(crate) struct Ca(pub(crate) CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Each has a name of its own: an authority of the same name counts as this one, with a wrong signature.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test authority {}", COUNT.fetch_add(1, Ordering::SeqCst));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn leaf(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Leaf { der: certificate.der().clone(), key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
    }

    /// Trust in this authority alone.
    pub(crate) fn client(&self) -> Arc<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    }

    /// Straight to everything, with this trust.
    pub(crate) fn routes(&self) -> Routes {
        always(Route::straight(self.client()))
    }
}

// === the way there ===

/// The same route for every host.
pub(crate) fn always(route: Route) -> Routes {
    Arc::new(move |_, _| route.clone())
}

/// What comes of `event`, which is due.
pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), event).await.expect("it does not come")
}

/// What the server answered to a GET of this URL.
pub(crate) async fn fetch(upstream: &Upstream, url: &str) -> Result<String, UpstreamError> {
    Ok(text(upstream.send(get(url)).await?).await)
}

pub(crate) fn config() -> UpstreamConfig {
    UpstreamConfig {
        permit: Arc::new(|_, _, _| Ok(())),
        routes: Ca::new().routes(),
        dns: Dns::default(),
        timeouts: Timeouts::default(),
        pool: Pool::default(),
        mark: None,
    }
}

pub(crate) fn get(url: &str) -> Request<Body> {
    Request::builder().uri(url).body(empty_body()).unwrap()
}

pub(crate) async fn text(response: Response<darter_upstream::Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}
