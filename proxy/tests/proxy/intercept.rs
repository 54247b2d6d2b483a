//! CONNECT to hosts whose TLS is opened up.

use crate::lab::{Body, Darter, Origin, Setup, full, h1, h2, read_head, text, tls_connect};
use darter_certs::{Authority, LeafOptions, Leaves, PermittedNames};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

const INTERCEPT_ALL: &str = ".*";

/// An HTTPS origin that tells what it was asked, and a proxy that trusts it and opens everything up.
async fn pair() -> (Origin, Darter) {
    let ca = Arc::new(Authority::generate().unwrap());
    let origin = Origin::https(&ca, async |request: Request<Incoming>| {
        let asked = format!("{:?} {} {}", request.version(), request.method(), request.uri().path());
        let length = request.into_body().collect().await.unwrap().to_bytes().len();
        Response::new(full(format!("{asked} {length}")))
    })
    .await;
    let darter = Darter::start(Setup { intercept: INTERCEPT_ALL, origin_ca: ca, ..Setup::default() }).await;
    (origin, darter)
}

fn request(method: Method, uri: String, host: Option<String>, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().unwrap();
    if let Some(host) = host {
        request.headers_mut().insert("host", host.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn http1_inside_is_served_and_the_connection_kept() {
    let (origin, darter) = pair().await;
    let stream = darter.intercepted("localhost", origin.port, &[b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (mut client, _tasks) = h1(stream).await;
    let host = || Some(format!("localhost:{}", origin.port));
    for _ in 0..2 {
        let answer =
            client.send_request(request(Method::GET, "/a?b".into(), host(), full(""))).await.unwrap();
        // The origin's version is its own choice.
        assert_eq!(answer.version(), Version::HTTP_11);
        assert_eq!(text(answer).await, "HTTP/2.0 GET /a 0");
    }
    let body = full(vec![7; 3 << 20]);
    let answer = client.send_request(request(Method::PUT, "/up".into(), host(), body)).await.unwrap();
    assert_eq!(text(answer).await, format!("HTTP/2.0 PUT /up {}", 3 << 20));
    darter.until("proxy_requests_total{way=\"intercepted\",outcome=\"direct\"}", 3.0).await;
    darter.until("proxy_requests_total{way=\"forward\",outcome=\"intercepted\"}", 1.0).await;
}

#[tokio::test]
async fn http2_inside_is_served() {
    let (origin, darter) = pair().await;
    let stream = darter.intercepted("localhost", origin.port, &[b"h2", b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (client, _tasks) = h2(stream).await;
    let uri = |path: &str| format!("https://localhost:{}{path}", origin.port);
    let ask = |path: &str, body| {
        let request = request(Method::POST, uri(path), None, body);
        let mut client = client.clone();
        async move { text(client.send_request(request).await.unwrap()).await }
    };
    let (one, two) = tokio::join!(ask("/1", full("abc")), ask("/2", full(vec![1; 2 << 20])));
    assert_eq!(one, "HTTP/2.0 POST /1 3");
    assert_eq!(two, format!("HTTP/2.0 POST /2 {}", 2 << 20));
}

#[tokio::test]
async fn an_address_gets_a_leaf_of_its_own() {
    let ca = Arc::new(Authority::generate().unwrap());
    let origin = origin_for("127.0.0.1", &ca).await;
    let darter = Darter::start(Setup { intercept: INTERCEPT_ALL, origin_ca: ca, ..Setup::default() }).await;
    darter.intercepted("127.0.0.1", origin.port, &[]).await;
    darter.until("proxy_leaf_mints_total", 1.0).await;
}

/// A TLS server that shows a certificate for this name, and counts its connections.
async fn origin_for(name: &str, ca: &Arc<Authority>) -> Origin {
    let config = Leaves::new(ca.clone()).unwrap().config_for(&name.parse().unwrap()).await.unwrap();
    Origin::raw(move |stream| {
        let config = config.clone();
        async move {
            if let Ok(mut stream) = TlsAcceptor::from(config).accept(stream).await {
                let _ = stream.read_u8().await;
            }
        }
    })
    .await
}

/// The answer to a CONNECT that is refused.
async fn refused(darter: &Darter, authority: &str) -> String {
    let mut stream = darter.connect().await;
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_head(&mut stream).await
}

#[tokio::test]
async fn a_server_that_does_not_prove_itself_is_refused_before_any_leaf_is_made() {
    let (_, darter) = pair().await;
    let stranger = Arc::new(Authority::generate().unwrap());
    let wrong_name = origin_for("other.example", &stranger).await;
    let closed = crate::lab::closed_port().await;
    for (authority, words) in [
        (format!("localhost:{}", wrong_name.port), "signed by an authority that is not trusted here"),
        (format!("127.0.0.1:{closed}"), "connection refused"),
    ] {
        for _ in 0..2 {
            let answer = refused(&darter, &authority).await;
            let status = answer.lines().next().unwrap();
            assert!(status.starts_with("HTTP/1.1 502 ") && status.contains(words), "{authority}: {answer}");
        }
    }
    let forbidden = refused(&darter, "169.254.169.254:443").await;
    assert!(forbidden.starts_with("HTTP/1.1 403 "), "{forbidden}");
    assert_eq!(darter.leaves.signed(), 0);
}

#[tokio::test]
async fn a_proof_is_used_for_the_first_request_and_asked_for_once() {
    let ca = Arc::new(Authority::generate().unwrap());
    let accepted = Arc::new(AtomicUsize::new(0));
    let config = Leaves::new(ca.clone()).unwrap().config_for(&"localhost".parse().unwrap()).await.unwrap();
    let counted = accepted.clone();
    let origin = Origin::raw(move |stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        let config = config.clone();
        async move {
            let Ok(mut stream) = TlsAcceptor::from(config).accept(stream).await else { return };
            let service = hyper::service::service_fn(async |_| {
                Ok::<_, std::convert::Infallible>(Response::new(full("hello")))
            });
            let io = hyper_util::rt::TokioIo::new(&mut stream);
            let _ = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                .serve_connection(io, service)
                .await;
        }
    })
    .await;
    let darter = Darter::start(Setup { intercept: INTERCEPT_ALL, origin_ca: ca, ..Setup::default() }).await;
    let host = format!("localhost:{}", origin.port);
    for _ in 0..2 {
        let stream = darter.intercepted("localhost", origin.port, &[b"http/1.1"]).await;
        let (mut client, _tasks) = h1(stream).await;
        let asked = request(Method::GET, "/".into(), Some(host.clone()), full(""));
        assert_eq!(text(client.send_request(asked).await.unwrap()).await, "hello");
    }
    assert_eq!(accepted.load(Ordering::Relaxed), 1);
    assert_eq!(darter.metric("proxy_leaf_mints_total"), 1.0);
    darter.until("proxy_handshakes_total{kind=\"full\"}", 2.0).await;
}

#[tokio::test]
async fn a_server_that_fails_inside_has_to_prove_itself_again() {
    let (ours, other) = (Arc::new(Authority::generate().unwrap()), Arc::new(Authority::generate().unwrap()));
    let config = async |ca: &Arc<Authority>| {
        Leaves::new(ca.clone()).unwrap().config_for(&"localhost".parse().unwrap()).await.unwrap()
    };
    let (proven, unknown) = (config(&ours).await, config(&other).await);
    let (accepted, gone) = (AtomicUsize::new(0), Arc::new(tokio::sync::Notify::new()));
    let ended = gone.clone();
    // The first connection is for one request; every other one shows another authority's certificate.
    let origin = Origin::raw(move |stream| {
        let first = accepted.fetch_add(1, Ordering::Relaxed) == 0;
        let (config, ended) = (if first { &proven } else { &unknown }.clone(), ended.clone());
        async move {
            let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
            let answered = Arc::new(tokio::sync::Notify::new());
            let answer = answered.clone();
            let service = hyper::service::service_fn(move |_| {
                answer.notify_one();
                async { Ok::<_, std::convert::Infallible>(Response::new(full("hello"))) }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let served = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                .serve_connection(io, service);
            let mut served = std::pin::pin!(served);
            tokio::select! {
                _ = served.as_mut() => {}
                () = answered.notified() => {
                    served.as_mut().graceful_shutdown();
                    let _ = served.await;
                }
            }
            ended.notify_one();
        }
    })
    .await;
    let darter = Darter::start(Setup { intercept: INTERCEPT_ALL, origin_ca: ours, ..Setup::default() }).await;
    let host = format!("localhost:{}", origin.port);
    let (mut client, _tasks) = h1(darter.intercepted("localhost", origin.port, &[b"http/1.1"]).await).await;
    let ask = || request(Method::GET, "/".into(), Some(host.clone()), full(""));
    assert_eq!(text(client.send_request(ask()).await.unwrap()).await, "hello");
    gone.notified().await;
    let inside = client.send_request(ask()).await.unwrap();
    assert_eq!(inside.status(), StatusCode::BAD_GATEWAY);
    let answer = refused(&darter, &host).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("not trusted here"), "{answer}");
}

#[tokio::test]
async fn a_client_resumes_its_session_with_a_host_and_with_no_other() {
    let ca = Arc::new(Authority::generate().unwrap());
    let (origin, other) = (origin_for("localhost", &ca).await, origin_for("127.0.0.1", &ca).await);
    let darter = Darter::start(Setup { intercept: INTERCEPT_ALL, origin_ca: ca, ..Setup::default() }).await;
    // One configuration, so that the client keeps its tickets.
    let client = crate::lab::client_config(darter.leaves.authority(), &[b"http/1.1"]);
    for (host, port) in [("localhost", origin.port), ("localhost", origin.port), ("127.0.0.1", other.port)] {
        let stream = darter.tunnel(&format!("{host}:{port}")).await;
        let name = rustls::pki_types::ServerName::try_from(host).unwrap();
        let mut stream =
            tokio_rustls::TlsConnector::from(client.clone()).connect(name, stream).await.unwrap();
        // The tickets come with the first answer.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
    }
    darter.until("proxy_handshakes_total{kind=\"full\"}", 2.0).await;
    darter.until("proxy_handshakes_total{kind=\"resumed\"}", 1.0).await;
}

#[tokio::test]
async fn there_is_no_leaf_for_another_name_whose_server_does_not_prove_itself() {
    let (origin, darter) = pair().await;
    let stream = darter.tunnel(&format!("localhost:{}", origin.port)).await;
    // The server there is the one of localhost.
    let error = tls_connect(stream, "nowhere.invalid", darter.leaves.authority(), &[]).await.unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    darter.until("proxy_handshake_failures_total", 1.0).await;
    assert_eq!(darter.leaves.signed(), 0);
}

#[tokio::test]
async fn what_the_ca_may_not_sign_stays_a_tunnel() {
    let ca = Arc::new(Authority::generate().unwrap());
    let origin = Origin::https(&ca, async |_| Response::new(full("end to end"))).await;
    let setup = || Setup { intercept: INTERCEPT_ALL, origin_ca: ca.clone(), ..Setup::default() };
    let darter = Darter::start(setup()).await;
    let permitted = PermittedNames::new(["registry.example".parse().unwrap()]);
    let narrow = Arc::new(Authority::generate_for(&permitted).unwrap());
    darter.proxy.replace(setup().settings(&darter.leaves.with(narrow, LeafOptions::default())));
    let stream = darter.tunnel(&format!("localhost:{}", origin.port)).await;
    tls_connect(stream, "localhost", &ca, &[b"http/1.1"]).await.unwrap();
    assert_eq!(darter.leaves.signed(), 0);
}

#[tokio::test]
async fn a_request_for_another_host_is_misdirected() {
    let (origin, darter) = pair().await;
    let (mut client, _tasks) = h1(darter.intercepted("localhost", origin.port, &[]).await).await;
    let host = Some("other.example".to_owned());
    let answer = client.send_request(request(Method::GET, "/".into(), host, full(""))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
    assert!(origin.heads.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_ca_is_told_in_the_metrics() {
    let (origin, darter) = pair().await;
    let stream = darter.tunnel(&format!("localhost:{}", origin.port)).await;
    let stranger = Authority::generate().unwrap();
    tls_connect(stream, "localhost", &stranger, &[]).await.unwrap_err();
    darter.until("proxy_handshake_failures_total", 1.0).await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_tunnelled() {
    let origin = Origin::raw(async |mut stream| {
        stream.write_all(b"SSH-2.0-test\r\n").await.unwrap();
        let mut line = [0; 4];
        stream.read_exact(&mut line).await.unwrap();
        stream.write_all(&line).await.unwrap();
    })
    .await;
    let darter = Darter::start(Setup { intercept: INTERCEPT_ALL, ..Setup::default() }).await;
    let mut stream = darter.tunnel(&format!("127.0.0.1:{}", origin.port)).await;
    let mut greeting = [0; 14];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"SSH-2.0-test\r\n");
    stream.write_all(b"ping").await.unwrap();
    let mut echo = String::new();
    stream.read_to_string(&mut echo).await.unwrap();
    assert_eq!(echo, "ping");
}

#[tokio::test]
async fn a_client_that_speaks_something_else_is_tunnelled() {
    let origin = Origin::raw(async |mut stream| {
        let mut line = [0; 6];
        stream.read_exact(&mut line).await.unwrap();
        stream.write_all(&line).await.unwrap();
    })
    .await;
    let darter = Darter::start(Setup { intercept: INTERCEPT_ALL, ..Setup::default() }).await;
    let mut stream = darter.tunnel(&format!("127.0.0.1:{}", origin.port)).await;
    stream.write_all(b"HELO x").await.unwrap();
    let mut echo = String::new();
    stream.read_to_string(&mut echo).await.unwrap();
    assert_eq!(echo, "HELO x");
    drop(stream);
    darter.until("proxy_received_bytes_total{outcome=\"tunnel\"}", 6.0).await;
}

#[tokio::test]
async fn only_hosts_that_the_rules_name_are_opened_up() {
    let ca = Arc::new(Authority::generate().unwrap());
    let origin = Origin::https(&ca, async |_| Response::new(full("end to end"))).await;
    let setup = Setup { intercept: "^registry\\.example:", origin_ca: ca.clone(), ..Setup::default() };
    let darter = Darter::start(setup).await;
    let stream = darter.tunnel(&format!("localhost:{}", origin.port)).await;
    // The origin's own certificate comes through.
    let (mut client, _tasks) = h1(tls_connect(stream, "localhost", &ca, &[b"http/1.1"]).await.unwrap()).await;
    let host = Some(format!("localhost:{}", origin.port));
    let answer = client.send_request(request(Method::GET, "/".into(), host, full(""))).await.unwrap();
    assert_eq!(text(answer).await, "end to end");
    assert_eq!(darter.leaves.signed(), 0);
}
