//! Bodies that are larger than any buffer, and bodies that end early.

use crate::lab::{Body, Darter, Origin, Setup, full, h1, read_head, text, ticking};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PART: usize = 256 << 10;
const PARTS: usize = 1024;
/// Sockets' buffers grow to some MiB each, and there are four of them on the way.
const IN_FLIGHT: usize = 64 << 20;

/// 256 MiB in parts, counted as they are taken.
fn counted(taken: &Arc<AtomicUsize>) -> Body {
    let part = Bytes::from(vec![7; PART]);
    let taken = taken.clone();
    let parts = futures_util::stream::iter(0..PARTS).map_parts(move |_| {
        taken.fetch_add(PART, Ordering::SeqCst);
        part.clone()
    });
    http_body_util::StreamBody::new(parts).boxed_unsync()
}

trait MapParts: futures_util::Stream + Sized {
    fn map_parts(
        self,
        part: impl FnMut(Self::Item) -> Bytes,
    ) -> impl futures_util::Stream<Item = Result<http_body::Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>
    {
        let mut part = part;
        futures_util::StreamExt::map(self, move |it| Ok(http_body::Frame::data(part(it))))
    }
}

impl<S: futures_util::Stream> MapParts for S {}

/// Waits until no more is taken, and says how much was. On a paused clock time passes only when nobody can go on; for an
/// instant that may be while bytes are in the kernel's hands, hence several times.
async fn when_all_stand_still(taken: &AtomicUsize) -> usize {
    let mut still = 0;
    let mut before = 0;
    while still < 5 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = taken.load(Ordering::SeqCst);
        still = if now > 0 && now == before { still + 1 } else { 0 };
        before = now;
    }
    before
}

#[tokio::test(start_paused = true)]
async fn an_upload_waits_for_its_origin() {
    let taken = Arc::new(AtomicUsize::new(0));
    let sent = taken.clone();
    let origin = Origin::http(move |request: Request<Incoming>| {
        let sent = sent.clone();
        async move {
            let in_flight = when_all_stand_still(&sent).await;
            let mut body = request.into_body();
            let mut received = 0;
            while let Some(frame) = body.frame().await {
                received += frame.unwrap().data_ref().map_or(0, Bytes::len);
            }
            Response::new(full(format!("{in_flight} {received}")))
        }
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let (mut client, _tasks) = h1(darter.connect().await).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let mut request = Request::new(counted(&taken));
    *request.method_mut() = Method::PATCH;
    *request.uri_mut() = format!("http://{at}/").parse().unwrap();
    request.headers_mut().insert("host", at.parse().unwrap());
    // Without ticks, each wait for the kernel would be a jump to somebody's next timer.
    let answer = ticking(async { text(client.send_request(request).await.unwrap()).await }).await;
    let (in_flight, received) = answer.split_once(' ').unwrap();
    assert_eq!(received, (PART * PARTS).to_string());
    let in_flight: usize = in_flight.parse().unwrap();
    assert!((PART..IN_FLIGHT).contains(&in_flight), "{in_flight}");
    assert_eq!(origin.head(0).headers["transfer-encoding"], "chunked");
}

#[tokio::test(start_paused = true)]
async fn a_download_waits_for_its_client() {
    let taken = Arc::new(AtomicUsize::new(0));
    let sent = taken.clone();
    let origin = Origin::http(move |_| {
        let body = counted(&sent);
        async move { Response::new(body) }
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let mut stream = darter.connect().await;
    stream
        .write_all(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    read_head(&mut stream).await;
    let in_flight = when_all_stand_still(&taken).await;
    assert!((PART..IN_FLIGHT).contains(&in_flight), "{in_flight}");
    let received = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.unwrap();
    assert!(received >= (PART * PARTS) as u64, "{received}");
    darter.until("proxy_sent_bytes_total{outcome=\"direct\"}", (PART * PARTS) as f64).await;
}

#[tokio::test]
async fn the_head_comes_before_the_body() {
    let origin = Origin::raw(async |mut stream| {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na").await.unwrap();
        // The rest only when the client has seen the first.
        let mut more = [0];
        let _ = stream.read(&mut more).await;
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let mut stream = darter.connect().await;
    stream.write_all(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(stream.read_u8().await.unwrap(), b'a');
    drop(stream);
    darter.until("proxy_bodies_cut_total{by=\"client\"}", 1.0).await;
}

#[tokio::test]
async fn a_body_that_the_origin_cuts_is_not_completed() {
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"] {
        let origin = Origin::raw(move |mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}").as_bytes()).await.unwrap();
        })
        .await;
        let darter = Darter::start(Setup::default()).await;
        let (mut client, _tasks) = h1(darter.connect().await).await;
        let at = format!("127.0.0.1:{}", origin.port);
        let request =
            Request::builder().uri(format!("http://{at}/")).header("host", &at).body(full("")).unwrap();
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap_err();
        darter.until("proxy_bodies_cut_total{by=\"upstream\"}", 1.0).await;
    }
}

#[tokio::test]
async fn an_origin_may_answer_before_it_has_read_the_body() {
    let origin = Origin::raw(async |mut stream| {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 413 Too Much\r\nContent-Length: 3\r\n\r\nno!").await.unwrap();
        // Reads on, so that the answer is not lost in a reset.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let mut stream = darter.connect().await;
    let head = format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 1000000000\r\n\r\nbegin");
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 413 Too Much\r\n"), "{head}");
}

#[tokio::test]
async fn a_client_that_wants_to_be_told_to_continue_is() {
    let origin = Origin::http(async |request: Request<Incoming>| {
        Response::new(full(request.into_body().collect().await.unwrap().to_bytes()))
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let mut stream = darter.connect().await;
    let head = format!(
        "PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nbody"), "{answer}");
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_along() {
    let (asked, gone) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (tell_asked, tell_gone) = (asked.clone(), gone.clone());
    let origin = Origin::raw(move |mut stream| {
        let (asked, gone) = (tell_asked.clone(), tell_gone.clone());
        async move {
            read_head(&mut stream).await;
            asked.notify_one();
            // Never answers; sees the end.
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            gone.notify_one();
        }
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let mut stream = darter.connect().await;
    stream.write_all(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes()).await.unwrap();
    asked.notified().await;
    drop(stream);
    gone.notified().await;
    darter.until("proxy_requests_total{way=\"forward\",outcome=\"abandoned\"}", 1.0).await;
}
