//! gRPC is HTTP/2 with trailers (its protocol's text, "PROTOCOL-HTTP2"): through a tunnel, and through a connection that is
//! opened up.

use crate::lab::{Body, Darter, Origin, Setup, full, h2, tls_connect};
use bytes::Bytes;
use darter_certs::Authority;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use std::sync::Arc;

/// A message: not compressed, its length, itself.
fn message(text: &str) -> Bytes {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[0][..], &length, text.as_bytes()].concat().into()
}

fn with_status(frames: Vec<Bytes>, status: &'static str) -> Body {
    let trailers = HeaderMap::from_iter([
        ("grpc-status".parse().unwrap(), status.parse().unwrap()),
        ("grpc-message".parse().unwrap(), "%20done".parse().unwrap()),
    ]);
    let frames = frames.into_iter().map(Frame::data).chain([Frame::trailers(trailers)]).map(Ok);
    StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>())).boxed_unsync()
}

/// Answers a call with its message twice, and one without a message with headers alone.
async fn server(ca: &Arc<Authority>) -> Origin {
    Origin::https(ca, async |request: Request<Incoming>| {
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        let message = request.into_body().collect().await.unwrap().to_bytes();
        let answer = Response::builder().header("content-type", "application/grpc");
        if message.is_empty() {
            return answer.header("grpc-status", "12").body(full("")).unwrap();
        }
        answer.body(with_status(vec![message.clone(), message], "0")).unwrap()
    })
    .await
}

async fn calls(client: &mut hyper::client::conn::http2::SendRequest<Body>, port: u16) {
    let call = |body| {
        Request::builder()
            .method(Method::POST)
            .uri(format!("https://localhost:{port}/echo.Echo/Say"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "10S")
            .body(body)
            .unwrap()
    };
    let answer = client.send_request(call(full(message("hello")))).await.unwrap();
    assert!(!answer.headers().contains_key("grpc-status"));
    let all = answer.into_body().collect().await.unwrap();
    let trailers = all.trailers().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"0".parse().unwrap(), &"%20done".parse().unwrap())
    );
    assert_eq!(all.to_bytes(), [message("hello"), message("hello")].concat());

    // Headers that are trailers: an answer that ends at once.
    let answer = client.send_request(call(full(""))).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
    assert!(http_body::Body::is_end_stream(answer.body()));
}

#[tokio::test]
async fn a_call_goes_through_a_blind_tunnel() {
    let ca = Arc::new(Authority::generate().unwrap());
    let origin = server(&ca).await;
    let darter = Darter::start(Setup::default()).await;
    let stream = darter.tunnel(&format!("localhost:{}", origin.port)).await;
    let tls = tls_connect(stream, "localhost", &ca, &[b"h2"]).await.unwrap();
    let (mut client, _tasks) = h2(tls).await;
    calls(&mut client, origin.port).await;
}

#[tokio::test]
async fn a_call_goes_through_a_connection_that_is_opened_up() {
    let ca = Arc::new(Authority::generate().unwrap());
    let origin = server(&ca).await;
    let darter = Darter::start(Setup { intercept: ".*", origin_ca: ca, ..Setup::default() }).await;
    let (mut client, _tasks) = h2(darter.intercepted("localhost", origin.port, &[b"h2"]).await).await;
    calls(&mut client, origin.port).await;
    darter.until("proxy_requests_total{way=\"intercepted\",outcome=\"direct\"}", 2.0).await;
}
