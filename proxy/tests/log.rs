//! What a request leaves in the log. A process of its own: whether a line is written is decided for all threads at once.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "proxy/lab.rs"]
#[expect(dead_code, reason = "the laboratory of all tests")]
mod lab;

use crate::lab::{Darter, Origin, Setup, closed_port, full, h1, text};
use darter_proxy::{Account, Login, Shutdown};
use http::{Request, Response};
use regex::Regex;
use std::io;
use std::sync::{Arc, Mutex};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Captured {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Logs into what is given, on this thread.
fn logging(log: &Captured) -> tracing::subscriber::DefaultGuard {
    let lines =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false).without_time();
    tracing::subscriber::set_default(lines.with_writer(log.clone()).finish())
}

/// The access lines, with what differs from run to run replaced.
fn lines(log: &Captured) -> Vec<String> {
    let changing = [
        (r"id=[0-9a-f]{12}-\d+", "id=ID"),
        (r"client=127\.0\.0\.1:\d+", "client=CLIENT"),
        (r"127\.0\.0\.1:\d+", "ORIGIN"),
        (r"_ms=\d+", "_ms=N"),
        (r"task=[0-9a-f]+", "task=TASK"),
        (r"sha256:[0-9a-f]{64}", "DIGEST"),
    ];
    let masked = |line: &str| {
        changing.iter().fold(line.to_owned(), |line, (pattern, word)| {
            Regex::new(pattern).unwrap().replace_all(&line, *word).into_owned()
        })
    };
    let text = log.text();
    text.lines().filter_map(|line| line.strip_prefix(" INFO access: ")).map(masked).collect()
}

#[tokio::test]
async fn every_request_leaves_one_line_and_no_secret() {
    let log = Captured::default();
    let _logging = logging(&log);
    let origin = Origin::http(async |_| Response::new(full("twelve bytes"))).await;
    let closed = closed_port().await;
    let darter = Darter::start(Setup::default()).await;
    let (mut client, _tasks) = h1(darter.connect().await).await;
    let mut ask = async |url: String| {
        let at = url.parse::<http::Uri>().unwrap().authority().unwrap().to_string();
        let request = Request::get(url)
            .header("host", at.rsplit('@').next().unwrap())
            .header("authorization", "Bearer hunter2")
            .header("proxy-authorization", "Basic hunter2")
            .header("x-request-id", "from-the-client")
            .header("user-agent", "test/1 \"quoted\"")
            .header("cookie", "a=hunter2");
        text(client.send_request(request.body(full("")).unwrap()).await.unwrap()).await
    };
    ask(format!("http://127.0.0.1:{}/a/b?ns=docker.io&X-Amz-Signature=hunter2", origin.port)).await;
    ask(format!("http://127.0.0.1:{closed}/down?token=hunter2")).await;
    let refused = ask(format!("http://user:hunter2@127.0.0.1:{}/user", origin.port)).await;
    for outcome in ["direct", "failed", "refused"] {
        darter.until(&format!("proxy_requests_total{{way=\"forward\",outcome=\"{outcome}\"}}"), 1.0).await;
    }
    assert!(!log.text().contains("hunter2") && !refused.contains("hunter2"), "{}", log.text());
    let agent = r#"user_agent="test/1 \"quoted\"""#;
    assert_eq!(
        lines(&log),
        [
            format!(
                r#"id=from-the-client client=CLIENT way=forward http=1.1 method=GET authority="ORIGIN" path="/a/b?ns=docker.io&X-Amz-Signature=*" status=200 outcome=direct sent=12 received=0 upstream=ORIGIN upstream_first_byte_ms=N first_byte_ms=N duration_ms=N rule="default" {agent}"#
            ),
            format!(
                r#"id=from-the-client client=CLIENT way=forward http=1.1 method=GET authority="ORIGIN" path="/down?token=*" status=502 outcome=failed sent=66 received=0 first_byte_ms=N duration_ms=N rule="default" {agent} note="cannot connect to ORIGIN (127.0.0.1): connection refused""#
            ),
            format!(
                r#"id=from-the-client client=CLIENT way=forward http=1.1 method=GET authority="ORIGIN" path="/user" status=400 outcome=refused sent=95 received=0 first_byte_ms=N duration_ms=N {agent} note="the request's URL holds user information before the host; send an Authorization header instead""#
            ),
        ]
    );
}

#[tokio::test]
async fn a_line_says_where_content_came_from_and_which_task_it_is() {
    let log = Captured::default();
    let _logging = logging(&log);
    let origin = Origin::http(async |_| Response::new(full("content"))).await;
    let mirror = format!("http://127.0.0.1:{}", origin.port);
    let darter = Darter::start(Setup { mirror, ..Setup::default() }).await;
    let digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    let get = format!("GET /v2/a/b/blobs/sha256:{digest} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n");
    while !darter.exchange(&get).await.contains("cache-status: darter; hit") {}
    darter.until("proxy_requests_total{outcome=\"hit\"}", 1.0).await;
    let line = |outcome: &str, from: &str| {
        format!(
            r#"id=ID client=CLIENT way=mirror http=1.1 method=GET authority="ORIGIN" path="/v2/a/b/blobs/DIGEST" status=200 outcome={outcome} sent=7 received=0 {from}=7 first_byte_ms=N duration_ms=N task=TASK rule="builtin:OCI blob""#
        )
    };
    let lines = lines(&log);
    assert_eq!(lines.first(), Some(&line("miss", "from_origin")));
    assert_eq!(lines.last(), Some(&line("hit", "from_disk")));
}

#[tokio::test]
async fn a_tunnels_line_has_the_bytes_of_both_sides_and_the_name_in_its_tls() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let log = Captured::default();
    let _logging = logging(&log);
    let origin = Origin::raw(async |mut stream| {
        stream.write_all(b"welcome").await.unwrap();
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let mut tunnel = darter.tunnel(&format!("127.0.0.1:{}", origin.port)).await;
    tunnel.read_exact(&mut [0; 7]).await.unwrap();
    let config = lab::client_config(darter.leaves.authority(), &[]);
    let mut hello = Vec::new();
    let name = "inside.example".try_into().unwrap();
    rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut hello).unwrap();
    // In two parts, as networks do.
    for part in hello.chunks(100) {
        tunnel.write_all(part).await.unwrap();
        tunnel.flush().await.unwrap();
    }
    drop(tunnel);
    darter.until("proxy_requests_total{outcome=\"tunnel\"}", 1.0).await;
    assert_eq!(
        lines(&log),
        [format!(
            r#"id=ID client=CLIENT way=forward http=1.1 method=CONNECT authority="ORIGIN" status=200 outcome=tunnel sent=7 received={} upstream=ORIGIN duration_ms=N sni="inside.example""#,
            hello.len()
        )]
    );
}

#[tokio::test]
async fn what_is_cut_off_at_the_end_leaves_its_line_before_the_listener_is_gone() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let log = Captured::default();
    let _logging = logging(&log);
    let origin = Origin::raw(async |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let silent = Origin::raw(async |mut stream| {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let darter = Darter::start(Setup::default()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown =
        Shutdown { drain: darter.shutdown.clone(), cut: tokio_util::sync::CancellationToken::new() };
    let mut running = tokio::task::JoinSet::new();
    running.spawn(darter_proxy::run(listener, darter.proxy.clone(), shutdown.clone()));

    let mut tunnel = tokio::net::TcpStream::connect(addr).await.unwrap();
    let to = format!("127.0.0.1:{}", origin.port);
    tunnel.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await.unwrap();
    lab::read_head(&mut tunnel).await;
    tunnel.write_all(b"hello").await.unwrap();
    lab::read_head(&mut tunnel).await;
    tunnel.read_exact(&mut [0; 4]).await.unwrap();
    let get = |port| format!("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    let mut body = tokio::net::TcpStream::connect(addr).await.unwrap();
    body.write_all(get(origin.port).as_bytes()).await.unwrap();
    lab::read_head(&mut body).await;
    body.read_exact(&mut [0; 4]).await.unwrap();
    let mut waiting = tokio::net::TcpStream::connect(addr).await.unwrap();
    waiting.write_all(get(silent.port).as_bytes()).await.unwrap();
    darter.until("proxy_requests_in_flight", 3.0).await;

    shutdown.drain.cancel();
    shutdown.cut.cancel();
    running.join_next().await.unwrap().unwrap();
    let mut cut: Vec<String> = lines(&log);
    cut.sort();
    for (line, says) in cut.iter().zip([
        ["method=CONNECT", "status=200 outcome=tunnel sent=42 received=5", "cut_by=shutdown"],
        ["method=GET", "outcome=abandoned sent=0 received=0", "cut_by=shutdown"],
        ["method=GET", "status=200 outcome=direct sent=4 received=0", "cut_by=shutdown"],
    ]) {
        assert!(says.iter().all(|it| line.contains(it)), "{says:?}: {line}");
    }
    assert_eq!(cut.len(), 3, "{cut:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent_within_a_head_leaves_a_line() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let log = Captured::default();
    let _logging = logging(&log);
    let darter = Darter::start(Setup::default()).await;
    for begun in ["", "GET /healthy HTTP/1.1\r\nAuthorization: hunter2"] {
        let mut stream = darter.connect().await;
        stream.write_all(begun.as_bytes()).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    darter.until("proxy_connections", 0.0).await;
    let expected = r#"id=ID client=CLIENT way=forward outcome=abandoned cut_by=idle note="the head of its request was not complete in time""#;
    assert_eq!(lines(&log), [expected]);
    assert_eq!(darter.metric("proxy_requests_total{way=\"forward\",outcome=\"abandoned\""), 1.0);
    // Who said nothing at all is nobody's request.
    let text = log.text();
    let silent =
        text.lines().filter(|line| line.contains("DEBUG") && line.contains("it began no request in time"));
    assert_eq!(silent.filter(|line| line.contains("peer=127.0.0.1:")).count(), 1);
    assert!(!text.contains("hunter2"));
}

#[tokio::test]
async fn what_never_became_a_request_leaves_a_line_too() {
    let log = Captured::default();
    let _logging = logging(&log);
    let darter = Darter::start(Setup::default()).await;
    darter.exchange("\x16\x03\x01\x02\x00\x01").await;
    assert_eq!(
        lines(&log),
        [
            r#"id=ID client=CLIENT outcome=refused reason=tls note="this proxy port speaks plain HTTP: the proxy's URL must begin with http://...""#
        ]
    );
}

#[tokio::test]
async fn a_request_that_is_not_understood_leaves_a_line_and_a_count() {
    use tokio::io::AsyncWriteExt as _;
    let log = Captured::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
    let _logging = tracing::subscriber::set_default(subscriber.finish());
    let darter = Darter::start(Setup::default()).await;
    let long = format!("GET /healthy HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n", "hunter2".repeat(30_000));
    let far = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "hunter2".repeat(10_000));
    for (count, (sent, status)) in
        [("GET /hunter2 HTTP/9.9\r\n\r\n", "400"), (&long, "431"), (&far, "414")].into_iter().enumerate()
    {
        let mut client = darter.connect().await;
        // It may be refused, and the connection reset, before all of it is sent.
        let _ = client.write_all(sent.as_bytes()).await;
        darter.until("proxy_malformed_requests_total", (count + 1) as f64).await;
        let text = log.text();
        let line = text.lines().rfind(|line| line.contains(" access: ")).unwrap();
        assert!(line.contains(&format!("status={status}")) && line.contains("outcome=refused"), "{line}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn an_account_and_a_password_may_be_traced_and_say_nothing() {
    let log = Captured::default();
    let _logging = logging(&log);
    let encoded = "dXNlcjpodW50ZXIy";
    let login = Login::new("user", "hunter2").unwrap();
    let account = Account {
        hosts: Regex::new("").unwrap(),
        repositories: Regex::new("").unwrap(),
        login: login.clone(),
        insecure: false,
    };
    let secret = darter_certs::Secret::from("hunter2");
    let span = tracing::info_span!("pull", ?login, %secret);
    span.in_scope(|| tracing::trace!(?account, secret = ?Some(&secret), "with {login:?} and {secret}"));
    let text = log.text();
    assert!(text.contains("with Login([redacted]) and [redacted]"), "{text}");
    assert!(!text.contains("hunter2") && !text.contains(encoded), "{text}");
}
