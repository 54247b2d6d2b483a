//! Bodies that wait, stand still, or end early.

use crate::lab::{Body, Darter, Origin, Setup, full, h1, h2, read_head, settled, text};
use bytes::Bytes;
use darter_certs::Authority;
use darter_proxy::{BasicAuth, Limits};
use http::{HeaderMap, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};

type Parts = mpsc::Sender<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>;

/// A body that is fed by hand.
fn fed() -> (Parts, Body) {
    let (send, mut parts) = mpsc::channel(4);
    let frames = futures_util::stream::poll_fn(move |cx| parts.poll_recv(cx));
    (send, StreamBody::new(frames).boxed_unsync())
}

fn part(text: &'static str) -> Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn put(url: String, body: Body) -> Request<Body> {
    let authority = url.parse::<http::Uri>().unwrap().authority().unwrap().to_string();
    Request::builder().method(Method::PUT).uri(url).header("host", authority).body(body).unwrap()
}

/// An HTTPS origin that gives back what it gets, trailers included, and a proxy that opens everything up.
async fn echo_over_tls() -> (Origin, Darter) {
    let ca = Arc::new(Authority::generate().unwrap());
    let origin = Origin::https(&ca, async |request: Request<Incoming>| {
        assert_eq!(request.version(), http::Version::HTTP_2);
        let mut answer = Response::new(request.into_body().map_err(Into::into).boxed_unsync());
        answer.headers_mut().insert("trailer", "x-sum".parse().unwrap());
        answer
    })
    .await;
    let darter = Darter::start(Setup { intercept: ".*", origin_ca: ca, ..Setup::default() }).await;
    (origin, darter)
}

// === Expect: 100-continue ===

fn expecting(at: &str, more: &str) -> String {
    format!(
        "PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 4\r\nExpect: 100-continue\r\n{more}\r\n"
    )
}

#[tokio::test(start_paused = true)]
async fn the_word_to_continue_is_the_origins() {
    let (asked, may) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (asked.clone(), may.clone());
    let origin = Origin::raw(move |mut stream| {
        let (asked, may) = (tell.clone(), wait.clone());
        async move {
            let head = read_head(&mut stream).await.to_lowercase();
            assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");
            asked.notify_one();
            may.notified().await;
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            let mut body = [0; 4];
            stream.read_exact(&mut body).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await.unwrap();
            stream.write_all(&body).await.unwrap();
        }
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let mut stream = darter.connect().await;
    stream.write_all(expecting(&format!("127.0.0.1:{}", origin.port), "").as_bytes()).await.unwrap();
    asked.notified().await;
    // Well before patience ends on its own.
    let said = tokio::time::timeout(Duration::from_millis(500), stream.read_u8()).await;
    assert!(said.is_err(), "the client was told to continue before the origin said so");
    may.notify_one();
    assert_eq!(read_head(&mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"body");
}

#[tokio::test]
async fn an_origin_that_refuses_is_not_sent_the_body() {
    let origin = Origin::raw(async |mut stream| {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nn").await.unwrap();
        // The rest of the answer comes later, and the connection lives until then.
        tokio::task::yield_now().await;
        stream.write_all(b"o!").await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{rest:?}");
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let mut stream = darter.connect().await;
    stream.write_all(expecting(&format!("127.0.0.1:{}", origin.port), "").as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await;
    read.expect("the origin is sent nothing, and the client is not waited for").unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nno!"), "{answer}");
}

#[tokio::test]
async fn what_we_refuse_is_refused_without_the_body() {
    let closed = Setup { basic_auth: Some(BasicAuth::new("user", "password")), ..Setup::default() };
    let forbidden = Setup { white_list: Vec::new(), ..Setup::default() };
    for (setup, status) in [(closed, "407"), (forbidden, "403")] {
        let darter = Darter::start(setup).await;
        let mut stream = darter.connect().await;
        stream.write_all(expecting("127.0.0.1:9", "").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

// === trailers ===

fn trailed(names: &[(&'static str, &'static str)]) -> Body {
    let trailers: HeaderMap =
        names.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    StreamBody::new(futures_util::stream::iter([part("data"), Ok(Frame::trailers(trailers))])).boxed_unsync()
}

#[tokio::test]
async fn trailers_pass_between_both_versions_and_cannot_lie() {
    let (origin, darter) = echo_over_tls().await;
    let sent = [("x-sum", "42"), ("content-length", "7"), ("host", "b.example"), ("authorization", "x")];
    let request = |uri: String| {
        let mut request = put(uri, trailed(&sent));
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        request
            .headers_mut()
            .insert("trailer", "x-sum, content-length, host, authorization".parse().unwrap());
        request
    };
    let at = format!("localhost:{}", origin.port);
    let (mut client, _tasks) = h2(darter.intercepted("localhost", origin.port, &[b"h2"]).await).await;
    let answer = client.send_request(request(format!("https://{at}/"))).await.unwrap();
    let all = answer.into_body().collect().await.unwrap();
    let only = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
    assert_eq!(all.trailers(), Some(&only));
    assert_eq!(all.to_bytes(), "data");

    let (mut client, _tasks) = h1(darter.intercepted("localhost", origin.port, &[]).await).await;
    let mut request = request(format!("https://{at}/"));
    *request.uri_mut() = "/".parse().unwrap();
    let all = client.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(all.trailers(), Some(&only));
    assert_eq!(all.to_bytes(), "data");
    assert_eq!(origin.head(0).headers["te"], "trailers");
}

// === streaming ===

#[tokio::test]
async fn messages_go_both_ways_at_the_same_time() {
    let (origin, darter) = echo_over_tls().await;
    let at = format!("localhost:{}", origin.port);
    for version in [&b"h2"[..], b"http/1.1"] {
        let stream = darter.intercepted("localhost", origin.port, &[version]).await;
        let (parts, body) = fed();
        let mut request = put(format!("https://{at}/"), body);
        let answering = async move {
            if version == b"h2" {
                let (mut client, tasks) = h2(stream).await;
                (client.send_request(request).await.unwrap(), tasks)
            } else {
                let (mut client, tasks) = h1(stream).await;
                *request.uri_mut() = "/".parse().unwrap();
                (client.send_request(request).await.unwrap(), tasks)
            }
        };
        parts.send(part("one")).await.unwrap();
        // The answer is there while the request goes on.
        let (answer, _tasks) = answering.await;
        let mut answer = answer.into_body();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        parts.send(part("two")).await.unwrap();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "two");
        drop(parts);
        assert!(answer.collect().await.unwrap().to_bytes().is_empty());
    }
}

#[tokio::test]
async fn an_upload_that_the_client_cuts_is_not_completed_at_the_origin() {
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let (got, had) = mpsc::channel(1);
        let origin = Origin::raw(move |mut stream| {
            let got = got.clone();
            async move {
                let mut all = Vec::new();
                // Until the connection is closed or reset.
                let _ = stream.read_to_end(&mut all).await;
                let _ = got.send(String::from_utf8(all).unwrap()).await;
            }
        })
        .await;
        let mut had = had;
        let darter = Darter::start(Setup::default()).await;
        let at = format!("127.0.0.1:{}", origin.port);
        let mut stream = darter.connect().await;
        let head = format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\n{framing}");
        stream.write_all(head.as_bytes()).await.unwrap();
        drop(stream);
        let all = had.recv().await.unwrap();
        assert!(!all.ends_with("0\r\n\r\n"), "{all}");
    }
}

#[tokio::test]
async fn a_stream_that_either_side_cuts_is_reset_and_not_ended() {
    let ca = Arc::new(Authority::generate().unwrap());
    let (tell, mut told) = mpsc::channel(1);
    let (parts, body) = fed();
    let body = Arc::new(Mutex::new(Some(body)));
    let origin = Origin::https(&ca, move |request: Request<Incoming>| {
        let (tell, body) = (tell.clone(), body.clone());
        async move {
            if request.method() == Method::PUT {
                // `Err`: the request was reset.
                let _ = tell.send(request.into_body().collect().await.is_err()).await;
                return Response::new(full(""));
            }
            // The rest comes when the client has seen this.
            Response::new(body.lock().unwrap().take().unwrap_or_else(|| full("whole")))
        }
    })
    .await;
    let darter = Darter::start(Setup { intercept: ".*", origin_ca: ca, ..Setup::default() }).await;
    let (mut client, _tasks) = h2(darter.intercepted("localhost", origin.port, &[b"h2"]).await).await;
    let uri = format!("https://localhost:{}/", origin.port);

    let get = Request::builder().uri(&uri).body(full("")).unwrap();
    parts.send(part("some")).await.unwrap();
    let mut answer = client.send_request(get).await.unwrap().into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "some");
    parts.send(Err("no more".into())).await.unwrap();
    answer.collect().await.unwrap_err();

    let (parts, body) = fed();
    let mut cut = client.clone();
    let uploading = cut.send_request(put(uri.clone(), body));
    parts.send(part("some")).await.unwrap();
    parts.send(Err("the client gives up".into())).await.unwrap();
    assert!(uploading.await.is_err());
    assert!(told.recv().await.unwrap(), "the origin took the upload for complete");

    // The connection is good for more.
    let answer = client.send_request(Request::builder().uri(&uri).body(full("")).unwrap()).await.unwrap();
    assert_eq!(text(answer).await, "whole");
}

// === bodies that stand still ===

const IDLE: Duration = Duration::from_secs(600);

async fn patient() -> Darter {
    let limits = Limits { body_idle_timeout: IDLE, ..Limits::default() };
    Darter::start(Setup { intercept: ".*", limits, ..Setup::default() }).await
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_go_on_with_its_upload_is_told_so() {
    let origin = Origin::raw(async |mut stream| {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let darter = patient().await;
    let at = format!("127.0.0.1:{}", origin.port);
    let mut stream = darter.connect().await;
    let head = format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 10\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // Slow is not silent.
    for _ in 0..5 {
        tokio::time::sleep(IDLE - Duration::from_secs(10)).await;
        stream.write_all(b"x").await.unwrap();
        settled().await;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("the client did not go on with its request's body for too long"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_does_not_go_on_with_its_answer_is_given_up() {
    let origin = Origin::raw(async |mut stream| {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let darter = patient().await;
    let at = format!("127.0.0.1:{}", origin.port);
    let answer = darter.exchange(&format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n")).await;
    // Cut short, and not made to look complete.
    assert!(answer.ends_with("\r\n\r\n3\r\nabc\r\n"), "{answer}");
    darter.until("proxy_bodies_cut_total{by=\"idle\"}", 1.0).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_given_up() {
    let origin = Origin::raw(async |mut stream| {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
        let part = vec![7; 1 << 20];
        for _ in 0..1000 {
            if stream.write_all(&part).await.is_err() {
                break;
            }
        }
    })
    .await;
    let darter = patient().await;
    let at = format!("127.0.0.1:{}", origin.port);
    let mut stream = darter.connect().await;
    stream.write_all(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).await.unwrap();
    read_head(&mut stream).await;
    settled().await;
    tokio::time::sleep(IDLE * 2).await;
    darter.until("proxy_bodies_cut_total{by=\"idle\"}", 1.0).await;
    darter.until("proxy_connections", 0.0).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_take_the_end_of_an_answer_is_given_up() {
    const STEP: usize = 64 << 10;
    let origin = Origin::http(async |request: Request<Incoming>| {
        let steps: usize = request.uri().path()[1..].parse().unwrap();
        Response::new(full(vec![7; steps * STEP]))
    })
    .await;
    let darter = patient().await;
    let mut clients = Vec::new();
    // The kernel takes as much as it likes: of one of these, only what hyper has taken is left.
    for steps in 1..=64 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = socket.connect(darter.addr).await.unwrap();
        let at = format!("127.0.0.1:{}", origin.port);
        let request = format!("GET http://{at}/{steps} HTTP/1.1\r\nHost: {at}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        read_head(&mut client).await;
        clients.push(client);
    }
    settled().await;
    tokio::time::sleep(IDLE * 2 + Limits::default().header_timeout * 2).await;
    darter.until("proxy_connections", 0.0).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_takes_nothing_is_given_up_alone() {
    let origin = Origin::http(async |request: Request<Incoming>| {
        let large = request.uri().path() == "/large";
        Response::new(full(if large { vec![7; 32 << 20] } else { b"small".to_vec() }))
    })
    .await;
    let darter = patient().await;
    let (mut client, _tasks) = h2(darter.connect().await).await;
    let get = |path: &str| {
        let uri = format!("http://127.0.0.1:{}{path}", origin.port);
        Request::builder().uri(uri).body(full("")).unwrap()
    };
    let stuck = client.send_request(get("/large")).await.unwrap();
    settled().await;
    // Not so long that the connection is closed, on which nothing is asked then.
    tokio::time::sleep(IDLE + Duration::from_secs(5)).await;
    darter.until("proxy_bodies_cut_total{by=\"idle\"}", 1.0).await;
    stuck.into_body().collect().await.unwrap_err();
    assert_eq!(text(client.send_request(get("/small")).await.unwrap()).await, "small");
}
