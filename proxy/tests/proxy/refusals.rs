//! Every answer that the proxy makes itself instead of an origin's: what people, scripts and caches read in it.

use crate::lab::{Darter, Origin, Setup, closed_port, full, listed, read_head};
use crate::p2p::{blob, content, registry};
use darter_proxy::{BasicAuth, Limits, Marks};
use http::Response;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// An answer, taken apart.
struct Answer {
    status: u16,
    reason: String,
    head: String,
    body: String,
}

impl Answer {
    fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let mut words = head.lines().next().unwrap().splitn(3, ' ').skip(1);
        let status = words.next().unwrap().parse().unwrap();
        let reason = words.next().unwrap_or_default().to_owned();
        Self { status, reason, head: head.to_owned(), body: body.to_owned() }
    }

    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .unwrap_or_else(|| panic!("{name}: {}", self.head))
            .1
    }
}

/// What one way to be refused looks like.
struct Case {
    request: String,
    status: u16,
    /// The error type of Proxy-Status.
    error: &'static str,
    cache: &'static str,
}

fn case(request: impl Into<String>, status: u16, error: &'static str, cache: &'static str) -> Case {
    Case { request: request.into(), status, error, cache }
}

const REFUSED: &str = "darter; detail=refused";

async fn check(darter: &Darter, cases: Vec<Case>) {
    for Case { request, status, error, cache } in cases {
        let request = request.replacen("\r\n", "\r\nX-Request-Id: asked-by-test\r\nConnection: close\r\n", 1);
        let answer = Answer::of(&darter.exchange(&request).await);
        let context = format!("{request}\n{}\n{}", answer.head, answer.body);
        assert_eq!(answer.status, status, "{context}");
        assert_eq!(answer.header("x-request-id"), "asked-by-test", "{context}");
        assert_eq!(answer.header("cache-status"), cache, "{context}");
        let proxy_status = answer.header("proxy-status");
        assert!(proxy_status.starts_with(&format!("darter; error={error}; details=\"")), "{context}");
        let sentence = if request.contains(" /v2/") {
            assert_eq!(answer.header("content-type"), "application/json", "{context}");
            let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
            assert!(body["errors"][0]["code"].is_string(), "{context}");
            body["errors"][0]["message"].as_str().unwrap().to_owned()
        } else {
            assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8", "{context}");
            assert_eq!(answer.body, format!("{}\n", answer.reason), "{context}");
            answer.reason.clone()
        };
        assert!(sentence.len() > 20 && proxy_status.contains(&sentence.replace('"', "\\\"")), "{context}");
    }
}

#[tokio::test]
async fn every_refusal_says_why_in_every_place_where_somebody_looks() {
    let darter = Darter::start(Setup { white_list: vec![listed("127.0.0.0/8")], ..Setup::default() }).await;
    let closed = closed_port().await;
    let at = format!("127.0.0.1:{closed}");
    let get = |host: &str, rest: &str| format!("GET http://{host}{rest} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let bad = "http_request_error";
    check(
        &darter,
        vec![
            case("GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, bad, REFUSED),
            case("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 400, bad, REFUSED),
            case("GET http://a/ HTTP/1.1\r\n\r\n", 400, bad, REFUSED),
            case("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400, bad, REFUSED),
            case(
                "POST /healthy HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
                405,
                "http_request_denied",
                REFUSED,
            ),
            case(get("203.0.113.1", "/"), 403, "destination_ip_prohibited", REFUSED),
            case(
                "CONNECT 203.0.113.1:443 HTTP/1.1\r\nHost: 203.0.113.1:443\r\n\r\n",
                403,
                "destination_ip_prohibited",
                REFUSED,
            ),
            case(get(&at, "/"), 502, "connection_refused", "darter; fwd=bypass"),
            case(format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n"), 502, "connection_refused", REFUSED),
            case(
                format!("GET {}?ns={at} HTTP/1.1\r\nHost: m\r\n\r\n", blob(b"x")),
                503,
                "connection_refused",
                "darter; fwd=miss",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_refusal_of_the_engine_says_why_too() {
    let (_origin, darter) = registry(content()).await;
    let blob = blob(&content());
    let outside = format!("GET {blob} HTTP/1.1\r\nHost: m\r\nRange: bytes=900000-\r\n\r\n");
    let other = format!("GET {blob} HTTP/1.1\r\nHost: m\r\nIf-Match: \"other\"\r\n\r\n");
    let whole = format!("GET {blob} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n");
    check(&darter, vec![case(outside, 416, "http_request_error", "darter")]).await;
    // Judged here only when the content is.
    assert!(darter.exchange(&whole).await.starts_with("HTTP/1.1 200 "));
    check(&darter, vec![case(other, 412, "http_request_denied", "darter")]).await;
}

#[tokio::test]
async fn a_stranger_a_loop_and_a_host_in_an_intercepted_connection_are_told_why() {
    let basic_auth = Some(BasicAuth::new("user", "password"));
    let closed = Darter::start(Setup { basic_auth, ..Setup::default() }).await;
    let denied = "http_request_denied";
    let get = "GET http://a.invalid/ HTTP/1.1\r\nHost: a.invalid\r\n\r\n";
    let connect = "CONNECT a.invalid:443 HTTP/1.1\r\nHost: a.invalid:443\r\n\r\n";
    let mirrored = "GET /v2/ HTTP/1.1\r\nHost: m\r\n\r\n";
    check(&closed, [get, connect, mirrored].map(|it| case(it, 407, denied, REFUSED)).into()).await;

    let marks = Marks { via: true, ..Marks::default() };
    let origin = Origin::http(async |_| Response::new(full("ok"))).await;
    let darter = Darter::start(Setup { marks, ..Setup::default() }).await;
    let at = format!("127.0.0.1:{}", origin.port);
    darter.exchange(&format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")).await;
    let via = origin.head(0).headers["via"].to_str().unwrap().to_owned();
    let round = format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nVia: {via}\r\n\r\n");
    check(&darter, vec![case(round, 508, "proxy_loop_detected", REFUSED)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_time_that_is_over_is_told_too() {
    let silent = Origin::raw(async |mut stream| {
        read_head(&mut stream).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let limits = Limits { body_idle_timeout: Duration::from_secs(5), ..Limits::default() };
    let darter = Darter::start(Setup { limits, ..Setup::default() }).await;
    let at = format!("127.0.0.1:{}", silent.port);
    check(
        &darter,
        vec![
            case(
                format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n"),
                504,
                "http_response_timeout",
                "darter; fwd=bypass",
            ),
            case(
                format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 10\r\n\r\nshort"),
                408,
                "http_request_error",
                "darter; detail=refused",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_connection_that_does_not_belong_here_gets_the_same_words_as_a_request() {
    let darter = Darter::start(Setup::default()).await;
    let mut stream = darter.connect().await;
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.resize(517, 0);
    stream.write_all(&hello).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let answer = Answer::of(&text);
    assert_eq!(answer.status, 400);
    assert!(answer.header("x-request-id").len() > 12);
    assert!(answer.header("proxy-status").contains("error=http_request_error"), "{text}");
    assert!(answer.body.contains("plain HTTP"), "{text}");
}

#[tokio::test]
async fn a_head_that_is_no_requests_gets_words_first_and_behind_others() {
    let darter = Darter::start(Setup::default()).await;
    let healthy = "GET /healthy HTTP/1.1\r\nHost: a\r\n\r\n";
    // More than twice the limit: hyper compares with it what is there before it reads once more.
    let long = format!("GET /healthy HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n", "x".repeat(300 << 10));
    let far = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(70_000));
    for (sent, status, words) in [
        ("GET / HTTP/9.9\r\n\r\n", 400, "not the head of a request"),
        (&long, 431, "request header fields too large"),
        (&far, 414, "request URI too long"),
    ] {
        for before in [0, 2] {
            let mut stream = darter.connect().await;
            for _ in 0..before {
                stream.write_all(healthy.as_bytes()).await.unwrap();
                assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
                stream.read_exact(&mut [0; 3]).await.unwrap();
            }
            // It may be refused before all of it is sent.
            let _ = stream.write_all(sent.as_bytes()).await;
            let mut text = Vec::new();
            let _ = stream.read_to_end(&mut text).await;
            let answer = Answer::of(std::str::from_utf8(&text).unwrap());
            assert_eq!(answer.status, status, "{before}: {}", answer.head);
            assert!(answer.body.contains(words), "{before}: {}", answer.body);
            assert_eq!(answer.header("content-length"), answer.body.len().to_string());
            assert!(answer.header("proxy-status").contains("http_request_error"));
            assert!(answer.header("x-request-id").len() > 12);
        }
    }
    // Both requests at once: the second's refusal comes behind the first's answer, in whichever words.
    let both = darter.exchange(&format!("{healthy}GET / HTTP/9.9\r\n\r\n")).await;
    assert!(both.starts_with("HTTP/1.1 200 ") && both.contains("ok\nHTTP/1.1 400 "), "{both}");
}

#[tokio::test]
async fn the_name_of_a_request_is_the_clients_own_on_both_ends() {
    let origin = Origin::http(async |_| {
        Response::builder().header("x-request-id", "the-origins").body(full("ok")).unwrap()
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let at = format!("127.0.0.1:{}", origin.port);
    let ask = async |id: &str| {
        let request = format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n{id}Connection: close\r\n\r\n");
        Answer::of(&darter.exchange(&request).await)
    };
    // An origin's answer is its own; what the client did not say, the origin is not told.
    assert_eq!(ask("X-Request-Id: mine\r\n").await.header("x-request-id"), "the-origins");
    assert_eq!(ask("").await.header("x-request-id"), "the-origins");
    assert_eq!(origin.head(0).headers["x-request-id"], "mine");
    assert!(!origin.head(1).headers.contains_key("x-request-id"));

    let own = darter.exchange("GET /healthy HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(Answer::of(&own).header("x-request-id").len() > 12);
    let blind = format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\nX-Request-Id: tunnel-1\r\n\r\n");
    let mut stream = darter.connect().await;
    stream.write_all(blind.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.to_lowercase().contains("x-request-id: tunnel-1\r\n"));
}
