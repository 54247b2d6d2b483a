//! CONNECT to hosts whose TLS is opened up.

use crate::lab::{Body, Darter, Origin, Setup, full, h1, h2, text, tls_connect};
use darter_certs::Authority;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
    darter.until("proxy_requests_total{way=\"Intercepted\",outcome=\"Direct\"}", 3.0).await;
    darter.until("proxy_requests_total{way=\"Forward\",outcome=\"Intercepted\"}", 1.0).await;
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
    let (origin, darter) = pair().await;
    let stream = darter.intercepted("127.0.0.1", origin.port, &[]).await;
    let (mut client, _tasks) = h1(stream).await;
    let host = Some(format!("127.0.0.1:{}", origin.port));
    let answer = client.send_request(request(Method::GET, "/".into(), host, full(""))).await.unwrap();
    // The client trusted the leaf; the origin's own certificate is for localhost, and that is told.
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    let sentence = text(answer).await;
    assert!(sentence.contains("127.0.0.1") && sentence.contains("localhost"), "{sentence}");
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
    darter.until("proxy_received_bytes_total{outcome=\"Tunnel\"}", 6.0).await;
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
