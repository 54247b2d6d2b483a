//! Requests that two parties could understand differently.

use crate::lab::{Darter, Origin, Setup, full};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

async fn recording() -> (Origin, Darter) {
    let origin = Origin::http(async |request: Request<Incoming>| {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(full(body))
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    (origin, darter)
}

#[tokio::test]
async fn an_ambiguous_request_is_refused_and_ends_its_connection() {
    let (origin, darter) = recording().await;
    let at = format!("127.0.0.1:{}", origin.port);
    let smuggled = format!("GET http://{at}/smuggled HTTP/1.1\r\nHost: {at}\r\n\r\n");
    for request in [
        format!("GET http://{at}/ HTTP/1.1\r\nHost: other.example\r\n\r\n{smuggled}"),
        format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nHost: {at}\r\n\r\n{smuggled}"),
        format!("GET http://{at}/ HTTP/1.1\r\n\r\n{smuggled}"),
        format!(
            "POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{smuggled}"
        ),
        format!("POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: +1\r\n\r\nx{smuggled}"),
        format!(
            "POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!("POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: identity\r\n\r\n{smuggled}"),
        format!(
            "POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!(
            "POST http://{at}/ HTTP/1.0\r\nHost: {at}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nX: a\r\n b\r\n\r\n{smuggled}"),
        format!(
            "CONNECT {at} HTTP/1.1\r\nHost: {at}\r\nContent-Length: {}\r\n\r\n{smuggled}",
            smuggled.len()
        ),
        format!(
            "CONNECT {at} HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!("GET http://user:pass@{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"),
        format!("GET ftp://{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"),
        format!("\u{1}\u{2}\u{3}{smuggled}"),
    ] {
        let answer = darter.exchange(&request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{request:?}: {answer}");
    }
    assert!(origin.heads.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_framed_in_two_ways_is_one_request_and_the_last_of_its_connection() {
    let (origin, darter) = recording().await;
    let at = format!("127.0.0.1:{}", origin.port);
    for framing in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        let request = format!(
            "POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\n{framing}\r\n1\r\nx\r\n0\r\n\r\n\
             GET http://{at}/smuggled HTTP/1.1\r\nHost: {at}\r\n\r\n"
        );
        let answer = darter.exchange(&request).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nx"), "{answer}");
    }
    let heads = origin.heads.lock().unwrap();
    assert_eq!(heads.len(), 2);
    assert!(heads.iter().all(|head| head.uri.path() == "/" && !head.headers.contains_key("content-length")));
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let (origin, darter) = recording().await;
    let at = format!("127.0.0.1:{}", origin.port);
    let long = "x".repeat(200 << 10);
    let many: String = (0..300).map(|number| format!("X-{number}: 1\r\n")).collect();
    for request in [
        format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nX: {long}\r\n\r\n"),
        format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n{many}\r\n"),
    ] {
        let answer = darter.exchange(&request).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    assert!(origin.heads.lock().unwrap().is_empty());
}

#[tokio::test]
async fn tls_on_the_plain_port_is_answered_in_plain_words() {
    let darter = Darter::start(Setup::default()).await;
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.resize(517, 0);
    let mut stream = darter.connect().await;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    stream.write_all(&hello).await.unwrap();
    let mut head = crate::lab::read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    let length = head.split("Content-Length: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    head = String::from_utf8(body).unwrap();
    assert!(head.contains("http://") && head.ends_with('\n'), "{head:?}");
    assert_eq!(darter.metric("proxy_misplaced_connections_total{reason=\"tls\"}"), 1.0);
}
