//! The counts: what clients got is what was counted, byte for byte, under where it came from.

use crate::lab::{Origin, full};
use crate::p2p::{LENGTH, ask, blob, bytes, content, registry};
use http::{Method, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn the_bytes_by_source_are_the_bytes_that_clients_got() {
    let (_registry, darter) = registry(content()).await;
    let origin = Origin::http(async |_| Response::new(full("twelve bytes"))).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let mut got = 0;

    // From the origin by way of the engine, and until it is complete from there or from what has arrived.
    let target = blob(&content());
    got += bytes(ask(&darter, Method::GET, &target, &[]).await).await.len();
    assert_eq!(darter.metric("proxy_sent_bytes_total{source=\"origin\"}"), LENGTH as f64);
    loop {
        let warm = ask(&darter, Method::GET, &target, &[]).await;
        let is_hit = warm.headers()["cache-status"] == "darter; hit";
        got += bytes(warm).await.len();
        if is_hit {
            break;
        }
    }
    // Two parts: what stands between them is ours.
    let parts = ask(&darter, Method::GET, &target, &[("range", "bytes=0-9,100-109")]).await;
    assert_eq!(parts.status(), 206);
    let envelope = bytes(parts).await.len() - 20;
    got += envelope + 20;
    darter.until("proxy_sent_bytes_total{source=\"disk\"}", (LENGTH + 20) as f64).await;
    assert_eq!(darter.metric("proxy_sent_bytes_total{source=\"own\"}"), envelope as f64);

    // Past it, with a body there; our own; a refusal; a HEAD, which has no body.
    let post = format!(
        "POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    );
    for request in [
        post,
        format!("HEAD http://{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"),
        "GET /healthy HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(),
        "GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n"
            .to_owned(),
    ] {
        got += darter.exchange(&request).await.split_once("\r\n\r\n").unwrap().1.len();
    }
    darter.until("proxy_sent_bytes_total{source=\"direct\"}", 12.0).await;
    darter.until("proxy_received_bytes_total{outcome=\"direct\"}", 5.0).await;

    // A tunnel.
    let mut tunnel = darter.tunnel(&at).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    tunnel.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tunnel.read_to_end(&mut answer).await.unwrap();
    drop(tunnel);
    got += answer.len();
    darter.until("proxy_sent_bytes_total{source=\"tunnel\"}", answer.len() as f64).await;
    darter.until("proxy_received_bytes_total{outcome=\"tunnel\"}", request.len() as f64).await;

    darter.until("proxy_requests_in_flight", 0.0).await;
    darter.until("proxy_tunnels", 0.0).await;
    assert_eq!(darter.metric("proxy_sent_bytes_total"), got as f64);
}

#[tokio::test]
async fn who_gave_what_a_request_got_is_counted() {
    let (_registry, darter) = registry(content()).await;
    let origin = Origin::http(async |_| Response::new(full("x"))).await;
    let at = format!("127.0.0.1:{}", origin.port);
    bytes(ask(&darter, Method::GET, &blob(&content()), &[]).await).await;
    darter.exchange(&format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")).await;
    darter.exchange("GET /healthy HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    for (upstream, outcome) in [("engine", "miss"), ("origin", "direct"), ("none", "own")] {
        let series = format!("proxy_requests_total{{outcome=\"{outcome}\",upstream=\"{upstream}\"}}");
        darter.until(&series, 1.0).await;
    }
}
