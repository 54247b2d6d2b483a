//! One daemon between an origin and a client, all on loopback: what it does with bytes, whatever happens meanwhile.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use darter_e2e::ca::Ca;
use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{Daemon, loopback_config};
use darter_e2e::http::{self, Answer, Request};
use darter_e2e::origin::{Origin, Page};
use std::io::Read;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// The smallest piece.
const PIECE: u64 = MIB;

#[test]
fn a_killed_daemon_goes_on_where_it_was() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    let content = Content::new(1, 160 * MIB);
    let path = origin.put_blob(content, Some(40_000_000));
    let url = format!("http://{}{path}", origin.address());
    let config = loopback_config(folder.path(), "");
    let got = 80 * MIB;

    let daemon = Daemon::start("daemon", folder.path(), &config)?;
    let mut answer = http::get(daemon.proxy, &url, &[])?;
    std::io::copy(&mut answer.by_ref().take(got), &mut std::io::sink())?;
    daemon.process.kill()?;
    let before = origin.asked(&path).len();

    // The client retries as dockerd does, from where it was; then one that wants all.
    let daemon = Daemon::start("daemon", folder.path(), &config)?;
    let answer = http::get(daemon.proxy, &url, &[("Range", &format!("bytes={got}-"))])?;
    assert_eq!(answer.status, 206, "{}", daemon.process.log());
    let range = format!("bytes {got}-{}/{}", content.length - 1, content.length);
    assert_eq!(answer.header("content-range"), Some(range.as_str()));
    assert_eq!(digest_of(answer)?, digest_of(content.reader(got))?);
    assert_eq!(digest_of(http::get(daemon.proxy, &url, &[])?)?, content.digest());

    // What the client had was complete on disk, but for the piece that it was in and the one being written.
    let again: Vec<_> = origin.asked(&path).drain(before..).filter(|asked| asked.sent > 0).collect();
    let sent: u64 = again.iter().map(|asked| asked.sent).sum();
    assert!(sent <= content.length - got + 4 * PIECE, "{sent} bytes were fetched again: {again:?}");
    assert!(again.iter().all(|asked| asked.from + 4 * PIECE >= got), "{again:?}");
    Ok(())
}

#[test]
fn what_was_complete_needs_no_origin_after_a_restart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    let content = Content::new(2, 30 * MIB + 17);
    let path = origin.put_blob(content, None);
    let url = format!("http://{}{path}", origin.address());
    let config = loopback_config(folder.path(), "");
    for _ in 0..2 {
        let daemon = Daemon::start("daemon", folder.path(), &config)?;
        assert_eq!(digest_of(http::get(daemon.proxy, &url, &[])?)?, content.digest());
        daemon.process.kill()?;
    }
    assert_eq!(origin.sent(&path), content.length);
    Ok(())
}

#[test]
fn many_clients_at_once_cost_one_copy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    let content = Content::new(3, 50 * MIB);
    let path = origin.put_blob(content, Some(100_000_000));
    let url = format!("http://{}{path}", origin.address());
    let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), ""))?;
    let digests = std::thread::scope(|scope| {
        let ask = || digest_of(http::get(daemon.proxy, &url, &[])?);
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().map(|client| client.join().expect("no panic")).collect::<Result<Vec<_>>>()
    })?;
    assert!(digests.iter().all(|digest| *digest == content.digest()));
    assert_eq!(origin.sent(&path), content.length);
    Ok(())
}

/// As registries do that keep their blobs elsewhere: the client never sees the signed address, and the place that it names
/// never sees the client's credentials.
#[test]
fn redirects_are_followed_without_the_credentials() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (registry, elsewhere) = (Origin::start(None)?, Origin::start(None)?);
    let content = Content::new(9, 10 * MIB);
    let path = format!("/v2/test/blobs/{}", content.digest());
    let location = format!("http://{}/signed?secret=1", elsewhere.address());
    let headers = vec![("Location".to_owned(), location)];
    registry.put(&path, Page::Fixed { status: 307, headers, body: String::new() });
    elsewhere.put("/signed", Page::content(content));
    let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), ""))?;
    let url = format!("http://{}{path}", registry.address());
    let credentials = ("Authorization", "Bearer swordfish");
    for _ in 0..2 {
        let answer = http::get(daemon.proxy, &url, &[credentials])?;
        assert_eq!((answer.status, answer.header("location")), (200, None));
        assert_eq!(digest_of(answer)?, content.digest());
    }
    assert_eq!(elsewhere.sent("/signed"), content.length);
    assert!(elsewhere.asked("/signed").iter().all(|asked| asked.header("authorization").is_none()));
    assert_eq!(registry.asked(&path)[0].header("authorization"), Some(credentials.1));
    let log = daemon.process.log();
    assert!(!log.contains("swordfish") && !log.contains("secret=1"), "{log}");
    Ok(())
}

/// A registry whose blobs stand on a host that asks who we are: its client has no certificate to go there himself. What ours opened is
/// his alone.
#[test]
fn what_a_redirect_led_to_and_our_certificate_opened_is_passed_on_and_not_kept() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let ca = Ca::new("storage")?;
    let (shown, ours) = (ca.issue(&["127.0.0.1"])?, ca.issue(&["node"])?);
    for (name, text) in [("ca.pem", ca.pem()), ("cert.pem", &ours.certificate), ("key.pem", &ours.key)] {
        std::fs::write(folder.path().join(name), text)?;
    }
    let (registry, elsewhere) = (Origin::start(None)?, Origin::start(Some(shown.server_for(&ca)?))?);
    let content = Content::new(12, 10 * MIB);
    let path = format!("/v2/test/blobs/{}", content.digest());
    let headers = vec![("Location".to_owned(), format!("https://{}/signed", elsewhere.address()))];
    registry.put(&path, Page::Fixed { status: 307, headers, body: String::new() });
    elsewhere.put("/signed", Page::content(content));
    let file = |name: &str| folder.path().join(name).display().to_string();
    let more = format!(
        "upstream:\n  hosts:\n  - regx: ^127\\.0\\.0\\.1:{}$\n    certs: [{}]\n    clientCert: {}\n    clientKey: {}\n",
        elsewhere.address().port(),
        file("ca.pem"),
        file("cert.pem"),
        file("key.pem"),
    );
    let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), &more))?;
    let url = format!("http://{}{path}", registry.address());
    for times in 1..3 {
        let answer = http::get(daemon.proxy, &url, &[])?;
        assert_eq!((answer.status, answer.header("location")), (200, None), "{}", daemon.process.log());
        assert_eq!(digest_of(answer)?, content.digest());
        assert_eq!(elsewhere.sent("/signed"), times * content.length);
    }
    Ok(())
}

/// The origin lies: the client must not take it for the content.
#[test]
fn wrong_bytes_never_come_to_a_good_end() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    let path = format!("/v2/test/blobs/{}", Content::new(4, 9 * MIB).digest());
    origin.put(&path, Page::content(Content::new(5, 9 * MIB)));
    let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), ""))?;
    let answer = http::get(daemon.proxy, &format!("http://{}{path}", origin.address()), &[])?;
    assert!(answer.status >= 500 || digest_of(answer).is_err(), "wrong bytes were passed on as the content");
    Ok(())
}

#[test]
fn a_gibibyte_is_pushed_in_every_way_with_little_memory() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(folder.path())?;
    let content = Content::new(6, 1024 * MIB);
    let digest = content.digest();
    for way in WAYS {
        for (method, headers) in [("PUT", [].as_slice()), ("POST", &[("Expect", "100-continue")])] {
            scene.plain.put("/sink", Page::Sink);
            scene.secure.put("/sink", Page::Sink);
            let length = if method == "PUT" { content.length } else { 5 };
            let body = Content { length, ..content };
            let answer = scene.ask(way, Ask { method, path: "/sink", headers, body: Some(body) })?;
            let expected = if method == "PUT" { digest.clone() } else { body.digest() };
            assert_eq!((answer.status, answer.header("x-digest")), (201, Some(expected.as_str())), "{way:?}");
        }
    }
    let peak = scene.daemon.process.peak_memory()?;
    assert!(peak < 150 * MIB, "{} MiB", peak / MIB);
    Ok(())
}

#[test]
fn what_the_origin_says_reaches_the_client_as_it_is_in_every_way() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(folder.path())?;
    let blob = format!("/v2/a/b/blobs/{}", Content::new(7, 1).digest());
    let pages = [
        (401, "WWW-Authenticate", r#"Bearer realm="https://auth.example/token",service="x""#, "who are you?"),
        (403, "X-Odd", "2", "not yours"),
        (500, "X-Odd", "3", "the origin is broken"),
        // After the others: for a blob, what it says is given again for some seconds,
        (404, "X-Odd", "1", r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#),
        // and this keeps us from asking who may have blobs.
        (429, "Retry-After", "17", "slow down"),
    ];
    for (status, name, value, body) in pages {
        let paths = [blob.as_str(), "/v2/a/b/manifests/1", "/elsewhere"];
        for path in paths.into_iter().skip(usize::from(status == 429)) {
            let headers = vec![(name.to_owned(), value.to_owned())];
            let page = Page::Fixed { status, headers, body: body.to_owned() };
            scene.plain.put(path, page.clone());
            scene.secure.put(path, page);
            for way in WAYS {
                let answer = scene.ask(way, Ask { method: "GET", path, headers: &[], body: None })?;
                assert_eq!(answer.status, status, "{way:?} {path}");
                assert_eq!(answer.header(&name.to_ascii_lowercase()), Some(value), "{way:?} {path} {status}");
                assert_eq!(answer.text()?, body, "{way:?} {path} {status}");
            }
        }
    }
    Ok(())
}

#[test]
fn head_tells_the_length_and_fetches_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(folder.path())?;
    let content = Content::new(8, 5 * MIB);
    for way in WAYS {
        let origin = scene.origin(way);
        let path = origin.put_blob(content, None);
        let answer = scene.ask(way, Ask { method: "HEAD", path: &path, headers: &[], body: None })?;
        let length = content.length.to_string();
        assert_eq!((answer.status, answer.header("content-length")), (200, Some(length.as_str())), "{way:?}");
        assert_eq!(origin.sent(&path), 0, "{way:?}");
    }
    Ok(())
}

/// The ways in.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Absolute-form, plain HTTP.
    Forward,
    /// CONNECT, TLS opened by us.
    Intercepted,
    /// Origin-form, to `registryMirror.url`.
    Mirror,
}

const WAYS: [Way; 3] = [Way::Forward, Way::Intercepted, Way::Mirror];

/// What is asked for.
struct Ask<'a> {
    method: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: Option<Content>,
}

/// A daemon in front of a plain origin and one with TLS.
struct Scene {
    daemon: Daemon,
    plain: Origin,
    secure: Origin,
}

impl Scene {
    fn start(folder: &Path) -> Result<Self> {
        let ca = Ca::new("origin test authority")?;
        ca.write(&folder.join("origin.crt"))?;
        let plain = Origin::start(None)?;
        let secure = Origin::start(Some(ca.issue(&["127.0.0.1"])?.server()?))?;
        let file = folder.join("origin.crt");
        let (address, file) = (secure.address(), file.display());
        let proxy = format!(
            "  registryMirror: {{ dynamic: true, url: 'https://{address}', certs: ['{file}'] }}\n  \
             hijackHTTPS: {{ hosts: [{{ regx: '^127\\.0\\.0\\.1:{port}$', certs: ['{file}'] }}] }}\n",
            port = address.port()
        );
        let daemon = Daemon::start("daemon", folder, &loopback_config(folder, &proxy))?;
        Ok(Self { daemon, plain, secure })
    }

    fn origin(&self, way: Way) -> &Origin {
        if matches!(way, Way::Forward) { &self.plain } else { &self.secure }
    }

    fn ask(&self, way: Way, ask: Ask<'_>) -> Result<Answer> {
        let Ask { method, path, headers, body } = ask;
        let address = self.origin(way).address();
        let host = &address.to_string();
        let absolute = format!("http://{host}{path}");
        let mirror = &self.daemon.proxy.to_string();
        let (stream, target, host): (Box<dyn http::Stream>, _, _) = match way {
            Way::Forward => (Box::new(http::connect(self.daemon.proxy)?), absolute.as_str(), host),
            Way::Intercepted => (self.daemon.intercepted("127.0.0.1", address.port())?, path, host),
            Way::Mirror => (Box::new(http::connect(self.daemon.proxy)?), path, mirror),
        };
        http::send(stream, &Request { method, target, host, headers, body })
            .with_context(|| self.daemon.process.log())
    }
}
