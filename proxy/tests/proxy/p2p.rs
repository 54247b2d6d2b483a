//! Content that comes through the engine.

use crate::lab::{Body, Darter, Origin, Setup, full, h1, h2, read_head, settled, text};
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use darter_proxy::Limits;
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

pub(crate) const LENGTH: usize = 100_000;

pub(crate) fn content() -> Bytes {
    (0..LENGTH).map(|at| (at * 7 + at / 251) as u8).collect()
}

pub(crate) fn digest_of(content: &[u8]) -> String {
    let hex: String = digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn blob(content: &[u8]) -> String {
    format!("/v2/a/b/blobs/{}", digest_of(content))
}

/// A registry that honours single ranges of the one content that it has, and a proxy that mirrors it.
pub(crate) async fn registry(content: Bytes) -> (Origin, Darter) {
    let origin = Origin::http(move |request: Request<Incoming>| {
        let response = serve_range(&content, request.headers());
        async move { response }
    })
    .await;
    let darter = mirror_of(&origin, Limits::default()).await;
    (origin, darter)
}

pub(crate) async fn mirror_of(origin: &Origin, limits: Limits) -> Darter {
    let mirror = format!("http://127.0.0.1:{}", origin.port);
    Darter::start(Setup { mirror, limits, ..Setup::default() }).await
}

pub(crate) fn serve_range(content: &Bytes, headers: &HeaderMap) -> Response<Body> {
    let answer = Response::builder().header("etag", "\"v1\"").header("accept-ranges", "bytes");
    let Some(range) = headers.get("range").and_then(|range| range.to_str().ok()?.strip_prefix("bytes="))
    else {
        return answer.body(full(content.clone())).unwrap();
    };
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    if first >= content.len() {
        let outside = format!("bytes */{}", content.len());
        return answer.status(416).header("content-range", outside).body(full("")).unwrap();
    }
    let end = last.parse::<usize>().map_or(content.len(), |last| (last + 1).min(content.len()));
    answer
        .status(206)
        .header("content-range", format!("bytes {first}-{}/{}", end - 1, content.len()))
        .body(full(content.slice(first..end)))
        .unwrap()
}

pub(crate) async fn ask(
    darter: &Darter,
    method: Method,
    target: &str,
    headers: &[(&str, &str)],
) -> Response<Incoming> {
    try_ask(darter, method, target, headers).await.unwrap()
}

/// The same where the connection may be cut off.
pub(crate) async fn try_ask(
    darter: &Darter,
    method: Method,
    target: &str,
    headers: &[(&str, &str)],
) -> hyper::Result<Response<Incoming>> {
    let (mut client, mut tasks) = h1(darter.connect().await).await;
    // Of a target in absolute form it says the same.
    let host =
        target.parse::<Uri>().unwrap().authority().map_or("mirror.example".to_owned(), Authority::to_string);
    let builder = Request::builder().method(method).uri(target).header("host", host);
    let request = headers.iter().fold(builder, |it, (name, value)| it.header(*name, *value));
    let answer = client.send_request(request.body(full("")).unwrap()).await;
    tasks.detach_all();
    answer
}

pub(crate) async fn bytes(response: Response<Incoming>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn a_blob_comes_from_the_origin_once_and_then_from_the_disk() {
    let (origin, darter) = registry(content()).await;
    let target = blob(&content());
    let cold = ask(&darter, Method::GET, &target, &[("authorization", "Bearer t")]).await;
    assert_eq!(cold.status(), StatusCode::OK);
    let headers = cold.headers().clone();
    assert_eq!(headers["content-length"], LENGTH.to_string());
    assert_eq!(headers["docker-content-digest"], digest_of(&content()));
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert_eq!(headers["accept-ranges"], "bytes");
    assert_eq!(headers["etag"], format!("\"{}\"", digest_of(&content())));
    assert_eq!(headers["cache-status"], "darter; fwd=miss");
    assert_eq!(bytes(cold).await, content());
    let asked = origin.heads.lock().unwrap().len();
    assert_eq!(origin.head(0).headers["authorization"], "Bearer t");

    // The download commits the content a moment after its last byte has gone out.
    let warm = loop {
        let warm = ask(&darter, Method::GET, &target, &[("authorization", "Bearer t")]).await;
        if warm.headers()["cache-status"] == "darter; hit" {
            break warm;
        }
        bytes(warm).await;
    };
    assert_eq!(bytes(warm).await, content());
    assert_eq!(origin.heads.lock().unwrap().len(), asked);
    darter.until("proxy_requests_total{way=\"mirror\",outcome=\"hit\"}", 1.0).await;
}

#[tokio::test]
async fn what_one_host_says_beside_content_by_digest_is_not_said_for_others() {
    let media_type = Arc::new(std::sync::Mutex::new("text/html"));
    let said = media_type.clone();
    let origin = Origin::http(move |request: Request<Incoming>| {
        let mut response = serve_range(&content(), request.headers());
        for (name, value) in [
            ("content-type", *said.lock().unwrap()),
            ("content-disposition", "attachment; filename=run-me.exe"),
            ("cache-control", "no-store"),
            ("docker-content-digest", "sha256:another"),
            ("x-checksum-sha1", "another"),
            ("x-linked-etag", "\"another\""),
            ("last-modified", "Sat, 01 Aug 2020 00:00:00 GMT"),
        ] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        async move { response }
    })
    .await;
    for (own, expected) in [
        ("text/html", "application/octet-stream"),
        ("image/svg+xml", "application/octet-stream"),
        ("application/xhtml+xml; charset=utf-8", "application/octet-stream"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ] {
        *media_type.lock().unwrap() = own;
        let darter = mirror_of(&origin, Limits::default()).await;
        loop {
            let answer = ask(&darter, Method::GET, &blob(&content()), &[]).await;
            let headers = answer.headers().clone();
            assert_eq!(headers["content-type"], expected, "{own}");
            assert_eq!(headers["docker-content-digest"], digest_of(&content()));
            assert_eq!(headers["etag"], format!("\"{}\"", digest_of(&content())));
            assert_eq!(headers["last-modified"], "Sat, 01 Aug 2020 00:00:00 GMT");
            for dropped in ["content-disposition", "cache-control", "x-checksum-sha1", "x-linked-etag"] {
                assert!(!headers.contains_key(dropped), "{dropped}");
            }
            assert!(bytes(answer).await == content());
            if headers["cache-status"] == "darter; hit" {
                break;
            }
        }
    }
}

/// Whether content of this proxy is lent to somebody at this moment: its file is mapped.
fn lends(darter: &Darter) -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains(darter.store.path().to_str().unwrap())
}

#[tokio::test]
async fn what_is_on_disk_is_lent_to_a_socket_and_to_nobody_who_reads_it() {
    // More than a socket takes from whoever writes to it.
    let content = Bytes::from(vec![7; 48 << 20]);
    let (_origin, darter) = registry(content.clone()).await;
    let path = blob(&content);
    loop {
        let answer = ask(&darter, Method::GET, &path, &[]).await;
        let hit = answer.headers()["cache-status"] == "darter; hit";
        assert!(bytes(answer).await == content);
        if hit {
            break;
        }
    }
    assert!(!lends(&darter));
    let (mut client, mut tasks) = h2(darter.connect().await).await;
    let request = Request::get(format!("http://{}{path}", darter.addr)).body(full("")).unwrap();
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    settled().await;
    assert!(!lends(&darter), "HTTP/2 puts its own heads between");
    drop(answer);
    tasks.detach_all();
    let answer = ask(&darter, Method::GET, &path, &[]).await;
    settled().await;
    assert!(lends(&darter));
    assert!(bytes(answer).await == content);
}

#[tokio::test]
async fn ranges_are_served_cold_and_warm() {
    let all = content();
    let part = |first: usize, end: usize| {
        (206, Some(format!("bytes {first}-{}/{LENGTH}", end - 1)), all.slice(first..end))
    };
    let whole = || (200, None, all.clone());
    let outside = || (416, Some(format!("bytes */{LENGTH}")), Bytes::new());
    let last = LENGTH - 1;
    let table = [
        ("bytes=0-0", part(0, 1)),
        ("bytes=0-", part(0, LENGTH)),
        ("bytes=5-9", part(5, 10)),
        ("bytes=99990-", part(99_990, LENGTH)),
        ("bytes=-7", part(LENGTH - 7, LENGTH)),
        ("bytes=-999999999", part(0, LENGTH)),
        ("bytes=99999-99999", part(last, LENGTH)),
        ("bytes=99990-999999999", part(99_990, LENGTH)),
        ("bytes=0-99999", part(0, LENGTH)),
        ("bytes=100000-", outside()),
        ("bytes=100000-100001", outside()),
        ("bytes=-0", outside()),
        ("bytes=99999999999999999999-", outside()),
        ("bytes=0-0,0-", whole()),
        ("bytes=9-5", whole()),
        ("pages=1-2", whole()),
        ("bytes=", whole()),
    ];
    for (range, (status, content_range, expected)) in &table {
        // A proxy of its own for each: cold. Then the whole, and the same again: warm.
        let (_origin, darter) = registry(all.clone()).await;
        for _ in 0..2 {
            let answer = ask(&darter, Method::GET, &blob(&all), &[("range", *range)]).await;
            assert_eq!(answer.status(), *status, "{range}");
            let got = answer.headers().get("content-range").map(|it| it.to_str().unwrap().to_owned());
            assert_eq!(&got, content_range, "{range}");
            if *status != 416 {
                assert_eq!(answer.headers()["content-length"], expected.len().to_string(), "{range}");
                assert!(bytes(answer).await == expected, "{range}");
            }
            bytes(ask(&darter, Method::GET, &blob(&all), &[]).await).await;
        }
    }
}

#[tokio::test]
async fn a_range_for_other_content_gives_the_whole() {
    let (_origin, darter) = registry(content()).await;
    for (validator, range, status) in [
        ("\"v1\"", "bytes=0-1", 206),
        ("\"v2\"", "bytes=0-1", 200),
        ("W/\"v1\"", "bytes=0-1", 200),
        ("\"v1\"", "bytes=100000-", 416),
        ("\"v2\"", "bytes=100000-", 200),
    ] {
        let headers = [("range", range), ("if-range", validator)];
        let answer = ask(&darter, Method::GET, &blob(&content()), &headers).await;
        assert_eq!(answer.status(), status, "{validator} {range}");
        if status == 200 {
            assert!(bytes(answer).await == content());
        }
    }
}

#[tokio::test]
async fn a_refusal_of_the_registry_comes_as_it_is() {
    let origin = Origin::http(async |_| {
        let challenge = "Bearer realm=\"https://auth.example/token\"";
        let answer = Response::builder().status(401).header("www-authenticate", challenge);
        answer.body(full("{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}")).unwrap()
    })
    .await;
    let darter = mirror_of(&origin, Limits::default()).await;
    let answer = ask(&darter, Method::GET, &blob(&content()), &[]).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert!(answer.headers()["www-authenticate"].to_str().unwrap().contains("auth.example"));
    assert_eq!(text(answer).await, "{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}");
    darter.until("proxy_requests_total{way=\"mirror\",outcome=\"relayed\"}", 1.0).await;
}

#[tokio::test]
async fn other_methods_go_to_the_registry() {
    let origin =
        Origin::http(async |_| Response::builder().header("content-length", "5").body(full("")).unwrap())
            .await;
    let darter = mirror_of(&origin, Limits::default()).await;
    let answer = ask(&darter, Method::HEAD, &blob(&content()), &[]).await;
    assert_eq!(answer.headers()["content-length"], "5");
    assert_eq!(origin.head(0).method, Method::HEAD);
    darter.until("proxy_requests_total{way=\"mirror\",outcome=\"direct\"}", 1.0).await;
}

#[tokio::test]
async fn wrong_bytes_are_never_completed() {
    let wrong: Bytes = content().iter().map(|byte| byte ^ 1).collect();
    let origin = Origin::http(move |request: Request<Incoming>| {
        let response = serve_range(&wrong, request.headers());
        async move { response }
    })
    .await;
    let darter = mirror_of(&origin, Limits::default()).await;
    let answer = ask(&darter, Method::GET, &blob(&content()), &[]).await;
    if answer.status() == StatusCode::OK {
        answer.into_body().collect().await.unwrap_err();
    } else {
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_streamed_past_the_engine() {
    // Too much for memory.
    let content = Bytes::from(vec![7; 3 << 20]);
    let (origin, darter) = registry(content.clone()).await;
    // A file where a folder was: nothing can be made in it, not even by root.
    std::fs::remove_dir_all(darter.store.path()).unwrap();
    std::fs::write(darter.store.path(), b"").unwrap();
    let answer = ask(&darter, Method::GET, &blob(&content), &[("range", "bytes=5-9")]).await;
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(bytes(answer).await, content.slice(5..10));
    assert_eq!(origin.heads.lock().unwrap().last().unwrap().headers["range"], "bytes=5-9");
    darter.until("proxy_requests_total{way=\"mirror\",outcome=\"bypass\"}", 1.0).await;
    std::fs::remove_file(darter.store.path()).unwrap();
}

#[tokio::test]
async fn as_many_requests_as_there_may_be_go_through_the_engine_at_once() {
    let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (asked.clone(), go.clone());
    let origin = Origin::raw(move |mut stream| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            let head = read_head(&mut stream).await;
            if head.starts_with("HEAD ") {
                // May the caller have it? He may.
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n")
                    .await
                    .unwrap();
                return;
            }
            tell.notify_one();
            wait.notified().await;
            stream
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await
                .unwrap();
        }
    })
    .await;
    let darter = mirror_of(&origin, Limits { p2p_requests: NonZeroUsize::new(1), ..Limits::default() }).await;
    let send = async |content: &[u8]| {
        let mut stream = darter.connect().await;
        let request =
            format!("GET {} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", blob(content));
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let mut one = send(b"one").await;
    asked.notified().await;
    let mut two = send(b"two").await;
    // What goes past the engine does not wait.
    assert_eq!(ask(&darter, Method::GET, "/healthy", &[]).await.status(), StatusCode::OK);
    assert!(futures_util::FutureExt::now_or_never(asked.notified()).is_none());
    let mut answer = String::new();
    go.notify_one();
    one.read_to_string(&mut answer).await.unwrap();
    asked.notified().await;
    go.notify_one();
    two.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 404 ").count(), 2, "{answer}");
}

#[tokio::test]
async fn a_rule_sends_other_content_through_the_engine() {
    let origin = Origin::http(move |request: Request<Incoming>| {
        let response = serve_range(&content(), request.headers());
        async move { response }
    })
    .await;
    let rule = darter_rules::ProxyRule::new(r"\.deb$".parse().unwrap());
    let mut setup = Setup { proxies: vec![rule], ..Setup::default() };
    setup.limits.p2p_requests = NonZeroUsize::new(1);
    let darter = Darter::start(setup).await;
    let url = format!("http://127.0.0.1:{}/pool/a.deb", origin.port);
    let (mut client, _tasks) = h1(darter.connect().await).await;
    loop {
        let request =
            Request::get(&url).header("host", format!("127.0.0.1:{}", origin.port)).body(full("")).unwrap();
        let answer = client.send_request(request).await.unwrap();
        let status = answer.headers()["cache-status"].to_str().unwrap().to_owned();
        assert!(!answer.headers().contains_key("docker-content-digest"));
        assert!(bytes(answer).await == content());
        if status == "darter; hit" {
            break;
        }
    }
}

/// A proxy for which everything comes through the engine, and an origin that says this beside its content.
async fn saying(name: &'static str, value: &'static str) -> (Origin, Darter) {
    let origin = Origin::http(move |request: Request<Incoming>| {
        let mut response = serve_range(&content(), request.headers());
        response.headers_mut().insert(name, value.parse().unwrap());
        async move { response }
    })
    .await;
    let proxies = vec![darter_rules::ProxyRule::new("/file$".parse().unwrap())];
    let mirror = format!("http://127.0.0.1:{}", origin.port);
    let rules = Setup { mirror, proxies, ..Setup::default() };
    (origin, Darter::start(rules).await)
}

async fn forward(darter: &Darter, url: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
    let (mut client, mut tasks) = h1(darter.connect().await).await;
    let request = Request::get(url).header("host", url.split('/').nth(2).unwrap());
    let request = headers.iter().fold(request, |it, (name, value)| it.header(*name, *value));
    let answer = client.send_request(request.body(full("")).unwrap()).await.unwrap();
    tasks.detach_all();
    answer
}

#[tokio::test]
async fn what_its_origin_means_for_one_person_is_not_shared() {
    let shown = [("accept-language", "eo"), ("user-agent", "lab"), ("accept", "*/*")];
    for (name, value, shared) in [
        ("cache-control", "max-age=60, Private", false),
        ("cache-control", "no-store", false),
        ("vary", "*", false),
        ("vary", "Accept-Encoding, Accept-Language", false),
        ("cache-control", "public, max-age=60", true),
        // What the request did not have, or what makes no difference to files.
        ("vary", "Accept-Encoding, Origin, User-Agent, Accept, Authorization", true),
    ] {
        let (origin, darter) = saying(name, value).await;
        let url = format!("http://127.0.0.1:{}/file", origin.port);
        for _ in 0..3 {
            let answer = forward(&darter, &url, &shown).await;
            assert_eq!(answer.headers().contains_key("cache-status"), shared, "{name}: {value}");
            assert!(bytes(answer).await == content());
        }
    }
}

#[tokio::test]
async fn what_one_caller_says_of_the_way_to_him_is_not_asked_for_all() {
    let (origin, darter) = saying("x-lab", "x").await;
    let url = format!("http://127.0.0.1:{}/file", origin.port);
    let shown = [("x-forwarded-host", "evil.example"), ("forwarded", "host=evil.example")];
    bytes(forward(&darter, &url, &shown).await).await;
    for head in origin.heads.lock().unwrap().iter() {
        assert!(!head.headers.keys().any(|name| name.as_str().contains("forwarded")), "{head:?}");
    }
}

#[tokio::test]
async fn an_origin_that_leads_from_https_to_http_is_for_its_client_to_follow() {
    let plain = Origin::http(move |request: Request<Incoming>| {
        let response = serve_range(&content(), request.headers());
        async move { response }
    })
    .await;
    let to = format!("http://127.0.0.1:{}/file", plain.port);
    let location = to.clone();
    let ca = Arc::new(darter_certs::Authority::generate().unwrap());
    let secure = Origin::https(&ca, move |_| {
        let answer = Response::builder().status(302).header("location", &location).body(full("")).unwrap();
        async move { answer }
    })
    .await;
    let proxies = vec![darter_rules::ProxyRule::new("/file$".parse().unwrap())];
    let darter = Darter::start(Setup { proxies, origin_ca: ca, ..Setup::default() }).await;
    let answer = forward(&darter, &format!("https://localhost:{}/file", secure.port), &[]).await;
    assert_eq!(answer.status(), StatusCode::FOUND);
    assert_eq!(answer.headers()["location"], to);
}

#[tokio::test]
async fn what_another_host_says_is_not_said_in_the_registrys_name() {
    let other = Origin::http(async |_| {
        let answer = Response::builder().status(401).header("set-cookie", "a=b");
        answer.header("www-authenticate", "Bearer realm=\"https://evil.example/\"").body(full("no")).unwrap()
    })
    .await;
    let location = format!("http://127.0.0.1:{}/x", other.port);
    let to = location.clone();
    let origin = Origin::http(move |request: Request<Incoming>| {
        let answer = Response::builder();
        let answer = if request.uri().path().ends_with("/manifests/latest") {
            let layer = digest_of(&content());
            answer.body(full(format!("{{\"schemaVersion\":2,\"layers\":[{{\"digest\":\"{layer}\"}}]}}")))
        } else {
            answer.status(307).header("location", &to).body(full(""))
        };
        async move { answer.unwrap() }
    })
    .await;
    let darter = mirror_of(&origin, Limits::default()).await;
    bytes(ask(&darter, Method::GET, "/v2/a/b/manifests/latest", &[]).await).await;
    let answer = ask(&darter, Method::GET, &blob(&content()), &[]).await;
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(answer.headers()["location"], location);
    assert!(
        !answer.headers().contains_key("www-authenticate") && !answer.headers().contains_key("set-cookie")
    );
}

/// An origin whose HEAD names one version and whose GET another, when they differ.
async fn of_two_versions(head: &'static str, get: &'static str) -> Origin {
    Origin::http(move |request: Request<Incoming>| {
        let etag = if request.method() == Method::HEAD { head } else { get };
        let mut response = serve_range(&content(), request.headers());
        response.headers_mut().insert("etag", http::HeaderValue::from_static(etag));
        async move { response }
    })
    .await
}

#[tokio::test]
async fn a_package_is_served_from_the_disk_while_its_origin_says_that_it_is_the_same() {
    let origin = of_two_versions("\"1\"", "\"1\"").await;
    let mirror = format!("http://127.0.0.1:{}", origin.port);
    let darter = Darter::start(Setup { mirror, ..Setup::default() }).await;
    loop {
        let answer = ask(&darter, Method::GET, "/pool/main/a/a_1.0_amd64.deb", &[]).await;
        let hit = answer.headers()["cache-status"] == "darter; hit";
        assert!(bytes(answer).await == content());
        if hit {
            break;
        }
    }
}

#[tokio::test]
async fn a_version_that_is_not_the_one_that_the_origin_has_is_never_served_from_the_disk() {
    let origin = of_two_versions("\"2\"", "\"1\"").await;
    let mirror = format!("http://127.0.0.1:{}", origin.port);
    let darter = Darter::start(Setup { mirror, ..Setup::default() }).await;
    for _ in 0..5 {
        let answer = ask(&darter, Method::GET, "/Packages/a-1.0-1.x86_64.rpm", &[]).await;
        let hit = answer.headers().get("cache-status").is_some_and(|status| status == "darter; hit");
        assert!(!hit, "{:?}", answer.headers());
        assert!(bytes(answer).await == content());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_origin_does_not_have_is_asked_for_once_by_each_caller_until_something_changes() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let origin = Origin::http(move |request: Request<Incoming>| {
        let is_get = request.method() == Method::GET;
        let nth = if is_get { counted.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
        let answer = if is_get { Response::builder().status(404) } else { Response::builder() };
        async move { answer.header("x-nth", nth).body(full(format!("absent {nth}"))).unwrap() }
    })
    .await;
    let darter = mirror_of(&origin, Limits::default()).await;
    let path = blob(&content());
    let (mut client, _tasks) = h1(darter.connect().await).await;
    let mut ask = async |method: Method, headers: &[(&str, &str)]| {
        let mut request = Request::builder().method(method).uri(&path).header("host", "darter");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        client.ready().await.unwrap();
        let answer = client.send_request(request.body(full("")).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let again = answer.headers().contains_key("age");
        (status, again, text(answer).await)
    };
    let a = [("authorization", "Bearer a")];
    let first = ask(Method::GET, &a).await;
    assert!(first.0 == 404 && !first.1, "{first:?}");
    let before = asked.load(Ordering::SeqCst);
    assert_eq!(ask(Method::GET, &a).await, (404, true, first.2.clone()));
    assert_eq!(asked.load(Ordering::SeqCst), before, "the origin is not asked again");
    for other in [[("authorization", "Bearer b")], [("x-api-key", "a")], [("accept", "text/html")]] {
        let answer = ask(Method::GET, &other).await;
        assert!(!answer.1 && answer.2 != first.2, "{other:?}: {answer:?}");
    }
    let anonymous = ask(Method::GET, &[]).await;
    assert!(!anonymous.1, "{anonymous:?}");
    let insists = [("authorization", "Bearer a"), ("cache-control", "no-cache")];
    assert!(!ask(Method::GET, &insists).await.1);
    assert!(ask(Method::GET, &a).await.1, "that changes nothing for others");
    ask(Method::DELETE, &a).await;
    let after = ask(Method::GET, &a).await;
    assert!(!after.1 && after.2 != first.2, "{after:?}");
}
