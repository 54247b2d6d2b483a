//! Several ranges in one request, conditional requests, and what a request for a part must not cost.

use crate::lab::{Darter, Origin, Setup, full, read_head};
use crate::p2p::{LENGTH, ask, blob, bytes, content, digest_of, mirror_of, registry, serve_range};
use bytes::Bytes;
use darter_proxy::Limits;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

const CHANGED: &str = "Sat, 22 Nov 2025 03:00:00 GMT";
const LATER: &str = "Sun, 23 Nov 2025 03:00:00 GMT";
const EARLIER: &str = "Fri, 21 Nov 2025 03:00:00 GMT";

/// One part of a multipart body: its headers, and its bytes.
fn parts_of(content_type: &str, body: &[u8]) -> Vec<(HeaderMap, Vec<u8>)> {
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let delimiter = format!("\r\n--{boundary}");
    let mut rest = body.strip_prefix(delimiter.as_bytes()).unwrap();
    let mut parts = Vec::new();
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let head = part.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let lines = std::str::from_utf8(&part[..head]).unwrap().split("\r\n");
        let headers: HeaderMap = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_lowercase().parse().unwrap(), value.parse().unwrap()))
            .collect();
        let part = &part[head + 4..];
        let end = part.windows(delimiter.len()).position(|it| it == delimiter.as_bytes()).unwrap();
        parts.push((headers, part[..end].to_vec()));
        rest = &part[end + delimiter.len()..];
    }
    assert_eq!(rest, b"--\r\n");
    parts
}

#[tokio::test]
async fn several_ranges_come_in_the_order_in_which_they_were_asked_for() {
    let all = content();
    let many: Vec<(usize, usize)> = (0..1024).map(|i| (i * 90, i * 90 + 3)).collect();
    let table: [Vec<(usize, usize)>; 5] = [
        vec![(0, 1), (5, 10)],
        vec![(50_000, 60_000), (7, 8), (LENGTH - 5, LENGTH)],
        // Neither touching nor overlapping ones are put together: podman counts the parts.
        vec![(0, 10), (10, 20), (15, 25), (15, 25)],
        vec![(0, 60_000), (60_000, LENGTH)],
        many,
    ];
    for ranges in &table {
        let (_origin, darter) = registry(all.clone()).await;
        let asked: Vec<String> = ranges.iter().map(|(first, end)| format!("{first}-{}", end - 1)).collect();
        let range = format!("bytes={}", asked.join(","));
        for _ in ["cold", "warm"] {
            let answer = ask(&darter, Method::GET, &blob(&all), &[("range", &range)]).await;
            assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
            assert!(!answer.headers().contains_key("content-range"));
            assert_eq!(answer.headers()["etag"], format!("\"{}\"", digest_of(&all)));
            let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
            let length: usize = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
            let body = bytes(answer).await;
            assert_eq!(body.len(), length);
            let parts = parts_of(&content_type, &body);
            assert_eq!(parts.len(), ranges.len(), "{range}");
            for ((headers, body), (first, end)) in parts.iter().zip(ranges) {
                assert_eq!(headers["content-type"], "application/octet-stream");
                assert_eq!(headers["content-range"], format!("bytes {first}-{}/{LENGTH}", end - 1));
                assert!(*body == all[*first..*end]);
            }
            bytes(ask(&darter, Method::GET, &blob(&all), &[]).await).await;
        }
    }
}

#[tokio::test]
async fn of_several_ranges_those_are_sent_that_are_in_the_content() {
    let all = content();
    for (range, status, content_range, length) in [
        ("bytes=100000-,5-9", 206, Some("bytes 5-9/100000"), 5),
        ("bytes=5-9,200000-200001", 206, Some("bytes 5-9/100000"), 5),
        ("bytes=200000-200001,-0,100000-", 416, Some("bytes */100000"), 0),
        ("bytes=0-,0-0", 200, None, LENGTH),
        ("bytes=-0,0-,0-0", 200, None, LENGTH),
        ("bytes=0-1,x", 200, None, LENGTH),
    ] {
        for _ in ["cold", "warm"] {
            let (_origin, darter) = registry(all.clone()).await;
            let answer = ask(&darter, Method::GET, &blob(&all), &[("range", range)]).await;
            assert_eq!(answer.status(), status, "{range}");
            let got = answer.headers().get("content-range").map(|it| it.to_str().unwrap().to_owned());
            assert_eq!(got.as_deref(), content_range, "{range}");
            if status != 416 {
                assert_eq!(bytes(answer).await.len(), length, "{range}");
            }
            bytes(ask(&darter, Method::GET, &blob(&all), &[]).await).await;
        }
    }
}

/// An origin that dates its content, counts the bytes of it that it was asked for, and answers conditions itself with words of its own.
async fn dated() -> (Origin, Darter) {
    let origin = Origin::http(move |request: Request<Incoming>| {
        let asks = |name: &str| request.headers().contains_key(name);
        let response = if ["if-none-match", "if-modified-since"].into_iter().any(asks) {
            Response::builder().status(304).header("x-origin", "says so").body(full("")).unwrap()
        } else if ["if-match", "if-unmodified-since"].into_iter().any(asks) {
            Response::builder().status(412).header("x-origin", "says so").body(full("no")).unwrap()
        } else if request.uri().path().ends_with("/manifests/latest") {
            let layer = digest_of(&content());
            let manifest = format!("{{\"schemaVersion\":2,\"layers\":[{{\"digest\":\"{layer}\"}}]}}");
            Response::new(full(manifest))
        } else {
            let mut response = serve_range(&content(), request.headers());
            for (name, value) in [
                ("last-modified", CHANGED),
                ("cache-control", "max-age=60"),
                ("vary", "accept-encoding"),
                ("expires", LATER),
                ("date", LATER),
            ] {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        };
        async move { response }
    })
    .await;
    let darter = mirror_of(&origin, Limits::default()).await;
    (origin, darter)
}

/// Asks until the content is on disk.
async fn until_warm(darter: &Darter) {
    loop {
        let answer = ask(darter, Method::GET, &blob(&content()), &[]).await;
        let warm = answer.headers()["cache-status"] == "darter; hit";
        bytes(answer).await;
        if warm {
            return;
        }
    }
}

#[tokio::test]
async fn conditions_are_answered_from_what_is_here() {
    let (origin, darter) = dated().await;
    until_warm(&darter).await;
    let asked = origin.heads.lock().unwrap().len();
    let digest_tag = format!("\"{}\"", digest_of(&content()));
    for (headers, status) in [
        (vec![("if-none-match", "\"v1\"")], 304),
        (vec![("if-none-match", digest_tag.as_str())], 304),
        (vec![("if-none-match", "\"v2\"")], 200),
        (vec![("if-modified-since", LATER)], 304),
        (vec![("if-modified-since", EARLIER)], 200),
        (vec![("if-match", "\"v2\"")], 412),
        (vec![("if-match", "\"v1\"")], 200),
        (vec![("if-unmodified-since", EARLIER)], 412),
        (vec![("if-none-match", "\"v1\""), ("range", "bytes=0-1")], 304),
        (vec![("if-match", "\"v1\""), ("range", "bytes=0-1")], 206),
        (vec![("if-match", "\"v2\""), ("range", "bytes=200000-")], 412),
        (vec![("if-range", CHANGED), ("range", "bytes=0-1")], 206),
        (vec![("if-range", LATER), ("range", "bytes=0-1")], 200),
    ] {
        let answer = ask(&darter, Method::GET, &blob(&content()), &headers).await;
        assert_eq!(answer.status(), status, "{headers:?}");
        assert!(!answer.headers().contains_key("x-origin"));
        if status == 304 {
            let got = answer.headers().clone();
            for (name, value) in [("etag", digest_tag.as_str()), ("last-modified", CHANGED), ("date", LATER)]
            {
                assert_eq!(got[name], value, "{name}");
            }
            // How long to keep it is not for one of the hosts that have it to say.
            assert!(
                !["cache-control", "vary", "expires"].iter().any(|name| got.contains_key(*name)),
                "{got:?}"
            );
            assert!(got["age"].to_str().unwrap().parse::<u64>().unwrap() > 0);
            assert!(!got.contains_key("content-length") && !got.contains_key("content-type"), "{got:?}");
        }
        bytes(answer).await;
    }
    assert_eq!(origin.heads.lock().unwrap().len(), asked, "the origin was asked");
}

#[tokio::test]
async fn a_condition_on_what_is_not_here_goes_to_the_origin_and_downloads_nothing() {
    let (origin, darter) = dated().await;
    for (name, value, status) in [
        ("if-none-match", "\"v1\"", 304),
        ("if-modified-since", CHANGED, 304),
        ("if-match", "\"v1\"", 412),
        ("if-unmodified-since", CHANGED, 412),
    ] {
        let answer = ask(&darter, Method::GET, &blob(&content()), &[(name, value)]).await;
        assert_eq!(answer.status(), status, "{name}");
        assert_eq!(answer.headers()["x-origin"], "says so");
        assert_eq!(origin.heads.lock().unwrap().last().unwrap().headers[name], value);
    }
    // By its digest it is known without being here, and by the manifest before a pull that the caller may have it.
    let tag = format!("\"{}\"", digest_of(&content()));
    bytes(ask(&darter, Method::GET, "/v2/a/b/manifests/latest", &[]).await).await;
    let answer = ask(&darter, Method::GET, &blob(&content()), &[("if-none-match", &tag)]).await;
    assert_eq!(
        (answer.status(), &answer.headers()["etag"]),
        (StatusCode::NOT_MODIFIED, &tag.parse().unwrap())
    );
    assert!(!answer.headers().contains_key("x-origin"));
    nothing_is_stored(&darter);
    let heads = origin.heads.lock().unwrap();
    let downloads = heads.iter().filter(|head| head.method == Method::GET && !is_conditional(&head.headers));
    assert!(downloads.into_iter().all(|head| head.uri.path().ends_with("/manifests/latest")));
}

fn is_conditional(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("if-"))
}

fn nothing_is_stored(darter: &Darter) {
    let stored: Vec<_> = std::fs::read_dir(darter.store.path().join("content")).unwrap().collect();
    assert!(stored.is_empty(), "{stored:?}");
}

#[tokio::test]
async fn content_without_an_etag_goes_by_its_digest() {
    let origin = Origin::http(async |request: Request<Incoming>| {
        let mut response = serve_range(&content(), request.headers());
        response.headers_mut().remove("etag");
        response
    })
    .await;
    let darter = mirror_of(&origin, Limits::default()).await;
    until_warm(&darter).await;
    let tag = format!("\"{}\"", digest_of(&content()));
    let answer =
        ask(&darter, Method::GET, &blob(&content()), &[("range", "bytes=0-1"), ("if-range", &tag)]).await;
    assert_eq!(
        (answer.status(), &answer.headers()["etag"]),
        (StatusCode::PARTIAL_CONTENT, &tag.parse().unwrap())
    );
}

#[tokio::test]
async fn head_downloads_nothing() {
    let (origin, darter) = registry(content()).await;
    for range in ["", "bytes=0-1"] {
        let headers = if range.is_empty() { vec![] } else { vec![("range", range)] };
        let answer = ask(&darter, Method::HEAD, &blob(&content()), &headers).await;
        assert!(answer.status().is_success());
        assert!(bytes(answer).await.is_empty());
    }
    nothing_is_stored(&darter);
    assert!(origin.heads.lock().unwrap().iter().all(|head| head.method == Method::HEAD));
    // And what is here says so of what comes from the origin.
    let answer = ask(&darter, Method::GET, &blob(&content()), &[("range", "bytes=0-1")]).await;
    assert_eq!(answer.headers()["cache-status"], "darter; fwd=miss");
}

/// A proxy that takes everything under /pool/ from peers.
async fn pool() -> Darter {
    let rule = darter_rules::ProxyRule::new("/pool/".parse().unwrap());
    Darter::start(Setup { proxies: vec![rule], ..Setup::default() }).await
}

/// containerd reads `bytes=N-` up to where another of its connections began, and closes. We read the piece that is arriving
/// to its end, since half of it would be worth nothing, and close, too: what the origin can send after its client has gone
/// is less than a piece and what the buffers of two sockets hold.
#[tokio::test]
async fn an_open_ended_range_that_is_cut_short_stops_the_origin() {
    const MIB: usize = 1 << 20;
    const TOTAL: usize = 256 * MIB;
    const PIECE: usize = darter_protocol::PieceLayout::MIN_PIECE_SIZE as usize;
    // What Linux lets the two grow to: 4 MiB to send (tcp_wmem), 6 MiB received (tcp_rmem), and as much again for what they
    // are rounded by.
    const BUFFERS: usize = 20 * MIB;
    for first in [0, 8 * MIB] {
        let (cut, wait) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let sent = Arc::new(Mutex::new(None));
        let (told, tell, count) = (cut.clone(), wait.clone(), sent.clone());
        let origin = Origin::raw(move |mut stream| {
            let (told, tell, count) = (told.clone(), tell.clone(), count.clone());
            async move {
                read_head(&mut stream).await;
                let status = if first > 0 { "206 Partial Content" } else { "200 OK" };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{}/{TOTAL}\r\n\r\n",
                    TOTAL - first,
                    TOTAL - 1,
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.write_all(&vec![7; MIB]).await.unwrap();
                told.notified().await;
                let mut sent = MIB;
                while sent < TOTAL - first && stream.write_all(&[7; 4096]).await.is_ok() {
                    sent += 4096;
                }
                *count.lock().unwrap() = Some(sent);
                tell.notify_one();
            }
        })
        .await;
        let darter = pool().await;
        let authority = format!("127.0.0.1:{}", origin.port);
        let request = format!(
            "GET http://{authority}/pool/large HTTP/1.1\r\nHost: {authority}\r\nRange: bytes={first}-\r\n\r\n"
        );
        let mut client = darter.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 206 "));
        client.read_exact(&mut vec![0; MIB / 4]).await.unwrap();
        drop(client);
        darter.until("proxy_bodies_cut_total{by=\"client\"}", 1.0).await;
        cut.notify_one();
        wait.notified().await;
        let sent = sent.lock().unwrap().unwrap();
        assert!(sent < PIECE + BUFFERS, "{sent} bytes left the origin");
    }
}

#[tokio::test]
async fn what_the_origin_codes_is_passed_on_and_never_kept() {
    let origin = Origin::http(async |request: Request<Incoming>| {
        let mut response = serve_range(&content(), request.headers());
        response.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        response
    })
    .await;
    let darter = mirror_of(&origin, Limits::default()).await;
    for (range, status, length) in [("", 200, LENGTH), ("bytes=5-9", 206, 5)] {
        let accept = ("accept-encoding", "gzip");
        let headers = if range.is_empty() { vec![accept] } else { vec![accept, ("range", range)] };
        let answer = ask(&darter, Method::GET, &blob(&content()), &headers).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-encoding"]),
            (status, &"gzip".parse().unwrap())
        );
        assert_eq!(bytes(answer).await.len(), length);
    }
    nothing_is_stored(&darter);
    // What could be kept was asked for as it is; what goes past the engine is between the client and the origin.
    let heads = origin.heads.lock().unwrap();
    let accepted = heads.iter().map(|head| (&head.method, head.headers["accept-encoding"].to_str().unwrap()));
    let accepted: Vec<_> = accepted.map(|(method, accepted)| format!("{method} {accepted}")).collect();
    let expected = ["HEAD identity", "GET identity", "HEAD identity", "GET identity", "GET gzip"];
    assert_eq!(accepted, expected);
}

#[tokio::test]
async fn a_part_of_unknown_content_goes_past_the_engine() {
    for content_range in ["bytes 5-9/*", "bytes 5-9/100", "nonsense"] {
        let origin = Origin::http(move |_| {
            let answer = Response::builder().status(206).header("content-range", content_range);
            std::future::ready(answer.body(full("abcde")).unwrap())
        })
        .await;
        let darter = pool().await;
        let url = format!("http://127.0.0.1:{}/pool/a.deb", origin.port);
        let answer = ask_by(&darter, &url, &[("range", "bytes=5-9")]).await;
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.headers()["content-range"], content_range);
        assert_eq!(bytes(answer).await, "abcde");
        assert_eq!(origin.heads.lock().unwrap().last().unwrap().headers["range"], "bytes=5-9");
    }
}

#[tokio::test]
async fn ranges_of_what_goes_direct_are_the_origins() {
    let origin = Origin::http(async |_| {
        let answer =
            Response::builder().status(206).header("content-type", "multipart/byteranges; boundary=x");
        answer.body(full("--x\r\nContent-Range: bytes 0-0/*\r\n\r\na\r\n--x--\r\n")).unwrap()
    })
    .await;
    let darter = pool().await;
    let url = format!("http://127.0.0.1:{}/elsewhere", origin.port);
    let headers = [("range", "bytes=9-5, 0-0,-1;"), ("if-range", "W/\"x\""), ("if-none-match", "odd")];
    let answer = ask_by(&darter, &url, &headers).await;
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(answer.headers()["content-type"], "multipart/byteranges; boundary=x");
    assert!(bytes(answer).await.starts_with(b"--x\r\nContent-Range: bytes 0-0/*\r\n"));
    let head = origin.head(0);
    assert!(headers.iter().all(|(name, value)| head.headers[*name] == *value), "{:?}", head.headers);
}

async fn ask_by(darter: &Darter, url: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
    let uri: http::Uri = url.parse().unwrap();
    let (mut client, mut tasks) = crate::lab::h1(darter.connect().await).await;
    let builder = Request::get(url).header("host", uri.authority().unwrap().as_str());
    let request = headers.iter().fold(builder, |it, (name, value)| it.header(*name, *value));
    let answer = client.send_request(request.body(full("")).unwrap()).await.unwrap();
    tasks.detach_all();
    answer
}

/// A later part whose origin has gone is an error in the middle: the body ends short of its length.
#[tokio::test]
async fn a_part_that_cannot_be_had_ends_the_body_short() {
    let all: Bytes = vec![7; 9 << 20].into();
    let whole = all.clone();
    let origin = Origin::http(move |request: Request<Incoming>| {
        // What stands at the start, and nothing else.
        let response = match request.headers().get("range") {
            Some(range) if range.as_bytes().starts_with(b"bytes=0-") => {
                serve_range(&whole, request.headers())
            }
            _ => Response::builder().status(404).body(full("gone")).unwrap(),
        };
        async move { response }
    })
    .await;
    let darter = pool().await;
    let url = format!("http://127.0.0.1:{}/pool/large", origin.port);
    let answer = ask_by(&darter, &url, &[("range", "bytes=0-9,8000000-8000009")]).await;
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    answer.into_body().collect().await.unwrap_err();
}
