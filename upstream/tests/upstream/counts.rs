//! What is counted of connections.

use crate::lab::{Server, answer, config, get, read_head, text};
use darter_upstream::Upstream;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

fn value(registry: &Registry, series: &str) -> f64 {
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, registry).unwrap();
    page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap_or(0.0)
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
    assert_eq!(value(&registry, "upstream_connections"), 1.0);
    assert_eq!(value(&registry, "upstream_requests_waiting"), 0.0);

    let tunnel = upstream.dial("127.0.0.1", server.port).await.unwrap();
    assert_eq!(value(&registry, "upstream_connections"), 2.0);
    drop(tunnel);
    assert_eq!(value(&registry, "upstream_connections"), 1.0);
    assert_eq!(value(&registry, "upstream_dials_total{purpose=\"tunnel\",result=\"connected\"}"), 1.0);

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    // A new configuration goes on counting.
    upstream.replace(config());
    upstream.send(get(&format!("http://127.0.0.1:{closed}/"))).await.unwrap_err();
    assert_eq!(value(&registry, "upstream_dials_total{purpose=\"requests\",result=\"failed\"}"), 1.0);
    assert_eq!(value(&registry, "upstream_dial_seconds_count"), 2.0);
}
