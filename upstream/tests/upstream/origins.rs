//! Requests to real servers on loopback, well-behaved and otherwise.

use crate::lab::{Ca, Server, answer, config, get, read_head, text};
use bytes::Bytes;
use darter_upstream::{BoxError, Fault, Kind, Permit, Stage, Timeouts, Upstream, UpstreamConfig};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

#[tokio::test]
async fn an_answer_comes_as_it_is_and_no_redirect_is_followed() {
    let seen = Arc::new(Mutex::new(String::new()));
    let head = seen.clone();
    let server = Server::plain(move |mut stream, _| {
        let head = head.clone();
        async move {
            *head.lock().unwrap() = read_head(&mut stream).await;
            answer(&mut stream, "HTTP/1.1 307 Off You Go\r\nLocation: http://elsewhere.example/\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 2\r\n\r\nhi").await;
        }
    })
    .await;
    let mut request = get(&server.url("http", "127.0.0.1"));
    request.headers_mut().insert("host", "stranger.example".parse().unwrap());
    let response = Upstream::new(config()).send(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(response.headers()["location"], "http://elsewhere.example/");
    assert_eq!(response.headers().get_all("x-a").iter().count(), 2);
    assert_eq!(text(response).await, "hi");
    let seen = seen.lock().unwrap().to_lowercase();
    assert!(seen.starts_with("get /v2/?token=secret http/1.1\r\n"), "{seen}");
    assert!(seen.contains(&format!("\r\nhost: 127.0.0.1:{}\r\n", server.port)), "{seen}");
    assert!(!seen.contains("stranger"), "{seen}");
}

#[tokio::test]
async fn connections_are_kept_and_used_again() {
    let server = Server::plain(|mut stream, _| async move {
        for _ in 0..3 {
            read_head(&mut stream).await;
            answer(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
        }
    })
    .await;
    let upstream = Upstream::new(config());
    for _ in 0..3 {
        assert_eq!(text(upstream.send(get(&server.url("http", "127.0.0.1"))).await.unwrap()).await, "hi");
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn every_failed_check_of_a_certificate_is_named() {
    let ca = Ca::new();
    let cases = [
        (ca.leaf("localhost", |_| {}), Ca::new().routes(), "signed by an authority that is not trusted"),
        (ca.leaf("other.example", |_| {}), ca.routes(), "other.example"),
        (
            ca.leaf("localhost", |params| {
                params.not_before = rcgen::date_time_ymd(2020, 1, 1);
                params.not_after = rcgen::date_time_ymd(2020, 2, 1);
            }),
            ca.routes(),
            "expired",
        ),
    ];
    for (leaf, routes, words) in cases {
        let server = Server::tls(leaf).await;
        let upstream = Upstream::new(UpstreamConfig { routes, ..config() });
        let error = upstream.send(get(&server.url("https", "localhost"))).await.unwrap_err();
        assert!(matches!(error.kind, Kind::Tls { .. }), "{error:?}");
        assert_eq!((error.status(), error.is_retryable()), (StatusCode::BAD_GATEWAY, false));
        let sentence = error.to_string();
        assert!(
            sentence.starts_with(&format!("cannot speak TLS with localhost:{}: ", server.port)),
            "{sentence}"
        );
        assert!(sentence.contains(words), "{sentence}");
        assert!(!sentence.contains("secret"), "{sentence}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_named_as_such() {
    let server = Server::plain(|mut stream, _| async move {
        answer(&mut stream, "220 mail.example ready\r\n").await;
        let _ = stream.read_u8().await;
    })
    .await;
    let error = Upstream::new(config()).send(get(&server.url("https", "localhost"))).await.unwrap_err();
    assert!(matches!(error.kind, Kind::NoTls { silent: false, .. }), "{error:?}");
}

#[tokio::test]
async fn a_closed_port_is_one_clear_sentence() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("http://127.0.0.1:{port}/a?signature=secret");
    let error = Upstream::new(config()).send(get(&url)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot connect to 127.0.0.1:{port} (127.0.0.1): connection refused")
    );
    assert_eq!((error.status(), error.is_retryable()), (StatusCode::BAD_GATEWAY, true));
}

#[tokio::test]
async fn a_name_without_an_address_is_one_clear_sentence() {
    let error = Upstream::new(config()).send(get("http://nobody.invalid/")).await.unwrap_err();
    assert!(matches!(error.kind, Kind::Resolve { .. }), "{error:?}");
    assert!(error.to_string().starts_with("cannot resolve the name nobody.invalid: "), "{error}");
}

#[tokio::test]
async fn what_is_not_permitted_is_never_dialled() {
    let server = Server::plain(|_, _| async {}).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = asked.clone();
    let permit: Permit = Arc::new(move |host: &str, port, address: Option<IpAddr>| {
        let address = address.unwrap();
        record.lock().unwrap().push((host.to_owned(), port, address));
        Err(format!("destination {address} is a loopback address"))
    });
    let upstream = Upstream::new(UpstreamConfig { permit, ..config() });
    for host in ["127.0.0.1", "LOCALHOST"] {
        let error = upstream.send(get(&server.url("http", host))).await.unwrap_err();
        assert_eq!((error.verdict().fault, error.status()), (Fault::Policy, StatusCode::FORBIDDEN));
        assert!(error.to_string().contains("is a loopback address"), "{error}");
    }
    let error = upstream.dial("[::1]", server.port).await.unwrap_err();
    assert_eq!((error.host.as_str(), error.status()), ("::1", StatusCode::FORBIDDEN));
    assert_eq!(server.accepted(), 0);
    let asked = asked.lock().unwrap();
    assert!(
        asked.iter().all(|(_, port, address)| *port == server.port && address.is_loopback()),
        "{asked:?}"
    );
    assert!(asked.iter().any(|(host, ..)| host == "localhost"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_but_an_upload_takes_its_time() {
    let server = Server::plain(|mut stream, _| async move {
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink).await;
    })
    .await;
    let upstream = Upstream::new(config());
    let stage = Stage::ResponseHeader;
    let after = Timeouts::default().response_header;
    let error = upstream.send(get(&server.url("http", "127.0.0.1"))).await.unwrap_err();
    assert_eq!(error.kind, Kind::Timeout { stage, after });
    assert_eq!(error.status(), StatusCode::GATEWAY_TIMEOUT);

    // Ten parts, each as far from the one before as the whole answer may take.
    let parts = futures_util::stream::unfold(0, move |sent| async move {
        tokio::time::sleep(after).await;
        let frame = Ok::<_, BoxError>(http_body::Frame::data(Bytes::from_static(b"part")));
        (sent < 10).then_some((frame, sent + 1))
    });
    let body = BodyExt::boxed_unsync(StreamBody::new(parts));
    let request = Request::post(server.url("http", "127.0.0.1")).body(body).unwrap();
    let begun = tokio::time::Instant::now();
    let error = upstream.send(request).await.unwrap_err();
    let work = Duration::from_secs(900);
    assert_eq!(error.kind, Kind::Timeout { stage, after: work });
    assert!(begun.elapsed() >= after * 10 + work, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_registry_may_take_its_time_with_what_was_pushed() {
    let server = Server::plain(|mut stream, _| async move {
        read_head(&mut stream).await;
        tokio::time::sleep(Duration::from_secs(800)).await;
        answer(&mut stream, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    })
    .await;
    let upstream = Upstream::new(config());
    for method in [Method::PUT, Method::POST, Method::PATCH, Method::DELETE] {
        let mut request = get(&server.url("http", "127.0.0.1"));
        *request.method_mut() = method.clone();
        let answer = upstream.send(request).await;
        assert_eq!(answer.map(|answer| answer.status()), Ok(StatusCode::CREATED), "{method}");
    }
}

#[tokio::test]
async fn a_server_that_never_finishes_the_handshake_is_given_up() {
    let server = Server::plain(|mut stream, _| async move {
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink).await;
    })
    .await;
    let timeouts = Timeouts { tls_handshake: Duration::from_millis(1), ..Timeouts::default() };
    let upstream = Upstream::new(UpstreamConfig { timeouts, ..config() });
    let error = upstream.send(get(&server.url("https", "localhost"))).await.unwrap_err();
    assert!(matches!(error.kind, Kind::Timeout { stage: Stage::TlsHandshake, .. }), "{error:?}");
}

#[tokio::test]
async fn a_reset_before_the_head_is_a_closed_connection() {
    let server = Server::plain(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let error = Upstream::new(config()).send(get(&server.url("http", "127.0.0.1"))).await.unwrap_err();
    assert!(matches!(error.kind, Kind::Closed { .. }), "{error:?}");
    assert_eq!((error.status(), error.is_retryable()), (StatusCode::BAD_GATEWAY, true));
}

#[tokio::test]
async fn what_is_not_http_is_named_as_such() {
    let server = Server::plain(|mut stream, _| async move {
        read_head(&mut stream).await;
        answer(&mut stream, "SSH-2.0-OpenSSH_9.2\r\n\r\n").await;
    })
    .await;
    let error = Upstream::new(config()).send(get(&server.url("http", "127.0.0.1"))).await.unwrap_err();
    assert!(matches!(error.kind, Kind::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn only_what_changes_nothing_is_asked_again_on_a_connection_that_closed() {
    // The first connection of each test closes without an answer, the next one answers.
    let server = || {
        Server::plain(|mut stream, number| async move {
            read_head(&mut stream).await;
            if number > 0 {
                answer(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        })
    };
    let asked = server().await;
    let response = Upstream::new(config()).send(get(&asked.url("http", "127.0.0.1"))).await.unwrap();
    assert_eq!((response.status(), asked.accepted()), (StatusCode::OK, 2));

    let changed = server().await;
    let mut request = get(&changed.url("http", "127.0.0.1"));
    *request.method_mut() = Method::DELETE;
    let error = Upstream::new(config()).send(request).await.unwrap_err();
    assert!(matches!(error.kind, Kind::Closed { .. }), "{error:?}");
    assert_eq!(changed.accepted(), 1);
}

#[tokio::test]
async fn a_body_that_fails_is_the_callers_fault() {
    let server = Server::plain(|mut stream, _| async move {
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink).await;
    })
    .await;
    let parts = futures_util::stream::iter([
        Ok(http_body::Frame::data(Bytes::from_static(b"part"))),
        Err(BoxError::from("the client is gone")),
    ]);
    let request = Request::post(server.url("http", "127.0.0.1"))
        .body(BodyExt::boxed_unsync(StreamBody::new(parts)))
        .unwrap();
    let error = Upstream::new(config()).send(request).await.unwrap_err();
    assert_eq!(error.kind, Kind::RequestBody { reason: "the client is gone".to_owned() });
    assert_eq!(error.verdict().fault, Fault::Caller);
}

#[tokio::test]
async fn only_http_urls_with_a_host_are_asked_for() {
    for url in ["ftp://example.org/", "/v2/"] {
        let error = Upstream::new(config()).send(get(url)).await.unwrap_err();
        assert!(matches!(error.kind, Kind::InvalidUrl { .. }), "{error:?}");
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
    }
}
