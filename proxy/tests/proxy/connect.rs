//! CONNECT as a blind tunnel.

use crate::lab::{Darter, Origin, Setup, closed_port, h2, read_head};
use darter_proxy::BasicAuth;
use http::{Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_a_half_close() {
    // Answers only when the client has finished sending.
    let origin = Origin::raw(async |mut stream| {
        stream.write_all(b"hello").await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        all.reverse();
        stream.write_all(&all).await.unwrap();
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let mut stream = darter.tunnel(&format!("127.0.0.1:{}", origin.port)).await;
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "cba");
}

#[tokio::test]
async fn what_the_client_sends_right_behind_its_connect_is_not_lost() {
    let origin = Origin::raw(async |mut stream| {
        let mut first = [0; 5];
        stream.read_exact(&mut first).await.unwrap();
        stream.write_all(&first).await.unwrap();
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let authority = format!("127.0.0.1:{}", origin.port);
    let mut stream = darter.connect().await;
    stream
        .write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\nearly").as_bytes())
        .await
        .unwrap();
    read_head(&mut stream).await;
    let mut echo = String::new();
    stream.read_to_string(&mut echo).await.unwrap();
    assert_eq!(echo, "early");
}

#[tokio::test]
async fn a_tunnel_goes_through_a_stream_of_http2() {
    let origin = Origin::raw(async |mut stream| {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let (mut client, _tasks) = h2(darter.connect().await).await;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("127.0.0.1:{}", origin.port))
        .body(crate::lab::full(""))
        .unwrap();
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut stream = hyper_util::rt::TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
}

#[tokio::test]
async fn a_refused_connect_says_why_in_its_reason_phrase() {
    let darter = Darter::start(Setup { white_list: Vec::new(), ..Setup::default() }).await;
    let answer = darter
        .exchange("CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: 127.0.0.1:443\r\nConnection: close\r\n\r\n")
        .await;
    let first = answer.lines().next().unwrap();
    assert!(first.starts_with("HTTP/1.1 403 destination 127.0.0.1 is "), "{first}");
    assert!(first.ends_with("list it in proxy.whiteList to allow it"), "{first}");

    let port = closed_port().await;
    let darter = Darter::start(Setup::default()).await;
    let authority = format!("127.0.0.1:{port}");
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    let answer = darter.exchange(&request).await;
    let expected = format!("HTTP/1.1 502 cannot connect to {authority} (127.0.0.1): connection refused\r\n");
    assert!(answer.starts_with(&expected), "{answer}");
}

#[tokio::test]
async fn a_connect_without_the_password_is_407() {
    let basic_auth = Some(BasicAuth::new("user", "pass"));
    let darter = Darter::start(Setup { basic_auth, intercept: ".*", ..Setup::default() }).await;
    let answer = darter
        .exchange("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 407 this proxy asks for a user name"), "{answer}");
    assert!(answer.to_lowercase().contains("\r\nproxy-authenticate: basic "), "{answer}");
}
