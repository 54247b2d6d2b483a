//! What is counted of connections.

use crate::lab::{Ca, Server, answer, config, get, read_head, soon, text};
use darter_upstream::{Upstream, UpstreamConfig};
use http_body_util::BodyExt as _;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};

fn value(registry: &Registry, series: &str) -> f64 {
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, registry).unwrap();
    page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap_or(0.0)
}

/// Connections that carry `protocol`: in use, and idle.
fn connections(registry: &Registry, protocol: &str) -> (f64, f64) {
    let [busy, idle] = ["in_use", "idle"].map(|state| {
        value(registry, &format!("upstream_connections{{protocol=\"{protocol}\",state=\"{state}\"}}"))
    });
    (busy, idle)
}

fn in_flight(registry: &Registry, protocol: &str) -> f64 {
    value(registry, &format!("upstream_requests_in_flight{{protocol=\"{protocol}\"}}"))
}

/// Waits until `holds`, which something in another task is about to bring about.
async fn until(holds: impl Fn() -> bool) {
    soon(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn counted() -> (Upstream, Registry) {
    let (upstream, mut registry) = (Upstream::new(config()), Registry::default());
    upstream.register(&mut registry);
    (upstream, registry)
}

#[tokio::test]
async fn a_connection_is_in_use_until_the_end_of_its_answer_and_idle_until_it_is_closed() {
    let (go, due) = mpsc::channel::<()>(1);
    let due = Arc::new(Mutex::new(due));
    let server = Server::plain(move |mut stream, _| {
        let due = due.clone();
        async move {
            let mut due = due.lock().await;
            read_head(&mut stream).await;
            due.recv().await;
            answer(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh").await;
            due.recv().await;
            answer(&mut stream, "i").await;
            due.recv().await;
        }
    })
    .await;
    let (upstream, registry) = counted();
    let url = server.url("http", "127.0.0.1");
    let mut asking = Box::pin(upstream.send(get(&url)));
    tokio::select! {
        biased;
        answer = &mut asking => panic!("{answer:?}"),
        () = until(|| in_flight(&registry, "http1") == 1.0) => {}
    }
    assert_eq!(connections(&registry, "http1"), (1.0, 0.0));
    go.send(()).await.unwrap();
    let mut response = asking.await.unwrap();
    assert_eq!(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "h");
    assert_eq!((connections(&registry, "http1"), in_flight(&registry, "http1")), ((1.0, 0.0), 1.0));
    go.send(()).await.unwrap();
    // Nobody asks for an end that the length tells.
    assert_eq!(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "i");
    assert_eq!((connections(&registry, "http1"), in_flight(&registry, "http1")), ((0.0, 1.0), 0.0));
    go.send(()).await.unwrap();
    until(|| connections(&registry, "http1") == (0.0, 0.0)).await;
}

#[tokio::test]
async fn a_body_that_is_given_up_is_no_use_of_a_connection() {
    let server = Server::plain(|mut stream, _| async move {
        read_head(&mut stream).await;
        answer(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh").await;
        std::future::pending().await
    })
    .await;
    let (upstream, registry) = counted();
    let response = upstream.send(get(&server.url("http", "127.0.0.1"))).await.unwrap();
    assert_eq!((connections(&registry, "http1"), in_flight(&registry, "http1")), ((1.0, 0.0), 1.0));
    drop(response);
    until(|| connections(&registry, "http1") == (0.0, 0.0)).await;
    assert_eq!(in_flight(&registry, "http1"), 0.0);
}

#[tokio::test]
async fn streams_of_http2_share_a_connection_that_is_in_use_until_the_last_ends() {
    let ca = Ca::new();
    let server = Server::tls(ca.leaf("localhost", |_| {})).await;
    let mut registry = Registry::default();
    let upstream = Upstream::new(UpstreamConfig { routes: ca.routes(), ..config() });
    upstream.register(&mut registry);
    let url = server.url("https", "localhost");
    let first = upstream.send(get(&url)).await.unwrap();
    let second = upstream.send(get(&url)).await.unwrap();
    assert_eq!((connections(&registry, "http2"), in_flight(&registry, "http2")), ((1.0, 0.0), 2.0));
    text(first).await;
    assert_eq!((connections(&registry, "http2"), in_flight(&registry, "http2")), ((1.0, 0.0), 1.0));
    text(second).await;
    assert_eq!((connections(&registry, "http2"), in_flight(&registry, "http2")), ((0.0, 1.0), 0.0));
    drop(server);
    until(|| connections(&registry, "http2") == (0.0, 0.0)).await;
}

#[tokio::test]
async fn a_connection_that_switches_protocols_is_a_tunnel_from_then_on() {
    let server = Server::plain(|mut stream, _| async move {
        read_head(&mut stream).await;
        answer(&mut stream, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
            .await;
        std::future::pending().await
    })
    .await;
    let (upstream, registry) = counted();
    let mut request = get(&server.url("http", "127.0.0.1"));
    request.headers_mut().insert("upgrade", "x".parse().unwrap());
    request.headers_mut().insert("connection", "upgrade".parse().unwrap());
    let response = upstream.send(request).await.unwrap();
    let switched = hyper::upgrade::on(response).await.unwrap();
    assert_eq!((connections(&registry, "http1"), connections(&registry, "tunnel")), ((0.0, 0.0), (1.0, 0.0)));
    assert_eq!(in_flight(&registry, "http1"), 0.0);
    drop(switched);
    until(|| connections(&registry, "tunnel") == (0.0, 0.0)).await;
}

#[tokio::test]
async fn connections_dials_and_requests_are_counted() {
    let server = Server::plain(|mut stream, _| async move {
        for _ in 0..3 {
            read_head(&mut stream).await;
            answer(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
        }
    })
    .await;
    let mut registry = Registry::default();
    let upstream = Upstream::new(config());
    upstream.register(&mut registry);
    for _ in 0..2 {
        assert_eq!(text(upstream.send(get(&server.url("http", "127.0.0.1"))).await.unwrap()).await, "hi");
    }
    assert_eq!(value(&registry, "upstream_requests_total"), 2.0);
    assert_eq!(value(&registry, "upstream_dials_total{purpose=\"requests\",result=\"connected\"}"), 1.0);
    assert_eq!(connections(&registry, "http1"), (0.0, 1.0));
    assert_eq!(value(&registry, "upstream_requests_waiting"), 0.0);

    let tunnel = upstream.dial("127.0.0.1", server.port).await.unwrap();
    assert_eq!(connections(&registry, "tunnel"), (1.0, 0.0));
    drop(tunnel);
    assert_eq!(connections(&registry, "tunnel"), (0.0, 0.0));
    assert_eq!(connections(&registry, "http1"), (0.0, 1.0));
    assert_eq!(value(&registry, "upstream_dials_total{purpose=\"tunnel\",result=\"connected\"}"), 1.0);

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    // A new configuration goes on counting.
    upstream.replace(config());
    upstream.send(get(&format!("http://127.0.0.1:{closed}/"))).await.unwrap_err();
    assert_eq!(value(&registry, "upstream_dials_total{purpose=\"requests\",result=\"failed\"}"), 1.0);
    assert_eq!(value(&registry, "upstream_dial_seconds_count"), 2.0);
}
