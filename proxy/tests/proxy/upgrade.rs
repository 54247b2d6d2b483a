//! Connections that become something else than HTTP.

use crate::lab::{Darter, Origin, Setup, read_head, settled, ticking};
use darter_certs::{Authority, Leaves};
use darter_proxy::Limits;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

const SWITCH: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhl\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pP\r\nKeep-Alive: timeout=5\r\n\r\n";

type Heads = Arc<Mutex<Vec<String>>>;

/// Agrees, greets, gives back what it gets until the other side has finished, and says goodbye.
async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, heads: Heads) {
    let head = read_head(&mut stream).await;
    heads.lock().unwrap().push(head);
    stream.write_all(format!("{SWITCHED}hello").as_bytes()).await.unwrap();
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer).await.unwrap();
        if length == 0 {
            break;
        }
        stream.write_all(&buffer[..length]).await.unwrap();
    }
    let _ = stream.write_all(b"bye").await;
    let _ = stream.shutdown().await;
}

async fn echo_origin() -> (Origin, Heads) {
    let heads = Heads::default();
    let recorded = heads.clone();
    (Origin::raw(move |stream| echo(stream, recorded.clone())).await, heads)
}

/// The same over TLS, at which HTTP/2 could be agreed on.
async fn echo_origin_over_tls(ca: &Arc<Authority>) -> Origin {
    let leaves = Leaves::new(ca.clone()).unwrap();
    let config = leaves.config_for(&"localhost".parse().unwrap()).await.unwrap();
    Origin::raw(move |stream| {
        let config = config.clone();
        async move {
            let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
            assert_ne!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            echo(stream, Heads::default()).await;
        }
    })
    .await
}

/// Plays the client's part on a connection on which `request` stands for what it sends.
async fn converse(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> String {
    // What the client sends behind its request is not lost.
    stream.write_all(format!("{request}early").as_bytes()).await.unwrap();
    let head = read_head(stream).await;
    let mut greeting = [0; 10];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"helloearly");
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye");
    head
}

#[tokio::test]
async fn a_websocket_goes_through_the_forward_proxy() {
    let (origin, heads) = echo_origin().await;
    let darter = Darter::start(Setup::default()).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let request =
        format!("GET http://{at}/chat?room=1 HTTP/1.1\r\nHost: {at}\r\n{SWITCH}Proxy-Connection: x\r\n\r\n");
    let head = converse(&mut darter.connect().await, &request).await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: s3pp"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
    assert!(!head.contains("keep-alive"), "{head}");
    let asked = heads.lock().unwrap()[0].to_lowercase();
    assert!(asked.starts_with("get /chat?room=1 http/1.1\r\n"), "{asked}");
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-key: dghl"] {
        assert!(asked.contains(&format!("\r\n{line}\r\n")), "{line}: {asked}");
    }
    assert!(!asked.contains("keep-alive") && !asked.contains("proxy-connection"), "{asked}");
    darter.until("proxy_requests_total{way=\"forward\",outcome=\"tunnel\"}", 1.0).await;
    darter.until("proxy_received_bytes_total{outcome=\"tunnel\"}", 9.0).await;
    darter.until("proxy_sent_bytes_total{outcome=\"tunnel\"}", 17.0).await;
    darter.until("proxy_connections", 0.0).await;
}

#[tokio::test]
async fn a_websocket_goes_through_an_intercepted_connection() {
    let ca = Arc::new(Authority::generate().unwrap());
    let origin = echo_origin_over_tls(&ca).await;
    let darter = Darter::start(Setup { intercept: ".*", origin_ca: ca, ..Setup::default() }).await;
    let mut stream = darter.intercepted("localhost", origin.port, &[b"http/1.1"]).await;
    let request = format!("GET /chat HTTP/1.1\r\nHost: localhost:{}\r\n{SWITCH}\r\n", origin.port);
    let head = converse(&mut stream, &request).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    darter.until("proxy_requests_total{way=\"intercepted\",outcome=\"tunnel\"}", 1.0).await;
}

#[tokio::test]
async fn a_switch_goes_through_the_mirror() {
    let (origin, _) = echo_origin().await;
    let mirror = format!("http://127.0.0.1:{}", origin.port);
    let darter = Darter::start(Setup { mirror, ..Setup::default() }).await;
    let request = format!("GET /v2/ HTTP/1.1\r\nHost: proxy.example\r\n{SWITCH}\r\n");
    let head = converse(&mut darter.connect().await, &request).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

#[tokio::test]
async fn an_origin_may_decline() {
    let heads = Heads::default();
    let recorded = heads.clone();
    let origin = Origin::raw(move |mut stream| {
        let heads = recorded.clone();
        async move {
            let declined = "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\nno";
            for _ in 0..2 {
                let head = read_head(&mut stream).await;
                heads.lock().unwrap().push(head);
                stream.write_all(declined.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let mut stream = darter.connect().await;
    for _ in 0..2 {
        let request = format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n{SWITCH}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await.to_lowercase();
        assert!(head.starts_with("http/1.1 426 upgrade required\r\n"), "{head}");
        assert!(head.contains("\r\nupgrade: tcp\r\n"), "{head}");
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"no");
    }
    assert!(heads.lock().unwrap()[0].to_lowercase().contains("\r\nupgrade: websocket\r\n"));
}

#[tokio::test]
async fn nobody_switches_without_being_asked_or_to_something_else() {
    let (origin, heads) = echo_origin().await;
    let darter = Darter::start(Setup::default()).await;
    let at = format!("127.0.0.1:{}", origin.port);
    for asked in [
        "",
        "Upgrade: websocket\r\n",
        "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: upgrade\r\nUpgrade: tcp\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n",
    ] {
        let request =
            format!("POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\n{asked}\r\nGET /smuggled HTTP/1.1\r\n\r\n");
        let mut stream = darter.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{asked}: {head}");
    }
    for head in heads.lock().unwrap().iter() {
        let head = head.to_lowercase();
        assert!(!head.contains("h2c") && !head.contains("http2-settings") && !head.contains("tls"), "{head}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_through_which_nothing_passes_is_closed() {
    let (origin, _) = echo_origin().await;
    let tunnel_idle_timeout = Duration::from_secs(3600);
    let limits = Limits { tunnel_idle_timeout, ..Limits::default() };
    let darter = Darter::start(Setup { limits, ..Setup::default() }).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let request = format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n{SWITCH}\r\n");
    let switched = async {
        let mut stream = darter.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_head(&mut stream).await;
        stream
    };
    let echo = Origin::raw(async |mut stream| {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let echo_at = format!("127.0.0.1:{}", echo.port);
    let blind = darter.tunnel(&echo_at);
    let (mut switched, mut blind) = ticking(async { tokio::join!(switched, blind) }).await;
    settled().await;
    // It is the last byte that counts.
    for _ in 0..3 {
        tokio::time::sleep(tunnel_idle_timeout - Duration::from_secs(60)).await;
        ticking(async {
            for stream in [&mut blind, &mut switched] {
                stream.write_all(b"x").await.unwrap();
                stream.read_u8().await.unwrap();
            }
        })
        .await;
    }
    let before = tokio::time::Instant::now();
    assert_eq!(blind.read(&mut [0; 16]).await.unwrap(), 0);
    assert!(before.elapsed() >= tunnel_idle_timeout - Duration::from_secs(1), "{:?}", before.elapsed());
    let mut rest = Vec::new();
    let _ = switched.read_to_end(&mut rest).await;
    darter.until("proxy_bodies_cut_total{by=\"idle\"}", 2.0).await;
}
