//! Who gets what is cached.

use crate::lab::{Body, Darter, Origin, Setup, full};
use crate::p2p::{ask, bytes, digest_of, try_ask};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use darter_proxy::{Ages, Fetch, Limits};
use futures_util::StreamExt as _;
use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use regex::Regex;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

const RIGHT: (&str, &str) = ("authorization", "Bearer right");
const WRONG: (&str, &str) = ("authorization", "Bearer wrong");

/// A registry with a private repository that one token may read, and a public one that does not contain its layer.
struct Registry {
    layer: Bytes,
    /// The token does not work any more.
    revoked: AtomicBool,
    /// Another token that works, until it has ended.
    second: Mutex<Option<(String, SystemTime)>>,
    /// It answers everything with this status, and asks to be left alone for seven seconds; 0: it does not.
    trouble: AtomicU16,
    /// Every request, as `METHOD path`.
    log: Mutex<Vec<String>>,
    /// Until then, the second half of a layer in `halting` does not come.
    go_on: Arc<Notify>,
}

impl Registry {
    async fn start() -> (Arc<Self>, Origin, Darter) {
        Self::believed(Ages::default()).await
    }

    /// What it said is believed for so long.
    async fn believed(proofs: Ages) -> (Arc<Self>, Origin, Darter) {
        let limits = Limits { proofs, ..Limits::default() };
        Self::with(Setup { limits, ..Setup::default() }).await
    }

    async fn trusting(trusted: Option<Regex>) -> (Arc<Self>, Origin, Darter) {
        Self::with(Setup { trusted, ..Setup::default() }).await
    }

    async fn with(setup: Setup) -> (Arc<Self>, Origin, Darter) {
        let layer: Bytes = (0..50_000u32).map(|at| (at * 13 + at / 251) as u8).collect();
        let (revoked, trouble) = (AtomicBool::new(false), AtomicU16::new(0));
        let registry = Arc::new(Self {
            layer,
            revoked,
            second: Mutex::default(),
            trouble,
            log: Mutex::default(),
            go_on: Arc::default(),
        });
        let answering = registry.clone();
        let origin = Origin::http(move |request: Request<Incoming>| {
            let response = answering.answer(&request);
            async move { response }
        })
        .await;
        let mirror = format!("http://127.0.0.1:{}", origin.port);
        let darter = Darter::start(Setup { mirror, ..setup }).await;
        (registry, origin, darter)
    }

    /// The layer, of which the first bytes are these, and the rest comes when it may go on.
    fn halting(&self, first: Bytes) -> Response<Body> {
        let (rest, go_on) = (self.layer.slice(first.len()..), self.go_on.clone());
        let rest = async move {
            go_on.notified().await;
            rest
        };
        let first = futures_util::stream::iter([first]).chain(futures_util::stream::once(rest));
        let frames = first.map(|data| Ok(http_body::Frame::data(data)));
        let answer = Response::builder().header("content-length", self.layer.len());
        answer.body(StreamBody::new(frames).boxed_unsync()).unwrap()
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        self.log.lock().unwrap().push(format!("{} {path}", request.method()));
        let token = request.headers().get("authorization").map(|value| value.to_str().unwrap());
        let second = self.second.lock().unwrap();
        let is_second =
            |(known, ends): &(String, SystemTime)| token == Some(known) && SystemTime::now() < *ends;
        let allowed = second.as_ref().is_some_and(is_second)
            || token == Some("Bearer right") && !self.revoked.load(Ordering::SeqCst);
        let answer = Response::builder();
        let trouble = self.trouble.load(Ordering::SeqCst);
        if trouble != 0 {
            return answer.status(trouble).header("retry-after", "7").body(full("enough")).unwrap();
        }
        if matches!(*request.method(), Method::PUT | Method::POST) {
            let answer = answer.status(if path.contains("/begun") { 202 } else { 201 });
            let said = request.headers().get("x-said");
            let answer =
                said.into_iter().fold(answer, |answer, said| answer.header("docker-content-digest", said));
            return answer.body(full("")).unwrap();
        }
        if ["/v2/private/", "/v2/halting/"].iter().any(|it| path.starts_with(it)) && !allowed {
            return answer
                .status(401)
                .header("www-authenticate", "Bearer realm=\"https://auth.example/token\"")
                .body(full("{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}"))
                .unwrap();
        }
        let layer = digest_of(&self.layer);
        if path == "/login" {
            return answer.body(full("<html>who are you?</html>")).unwrap();
        }
        if path.starts_with("/v2/portal/") && !allowed {
            let answer = answer.header("content-type", "text/html");
            return answer.body(full("<html>who are you?</html>")).unwrap();
        }
        if path.starts_with("/v2/hidden/") && !allowed {
            return answer.status(404).body(full("what do you mean?")).unwrap();
        }
        if path.starts_with("/v2/slow/") {
            return answer.body(StreamBody::new(futures_util::stream::pending()).boxed_unsync()).unwrap();
        }
        if path.starts_with("/v2/guarded/") && !allowed {
            return answer.status(302).header("location", "/login").body(full("")).unwrap();
        }
        let of_team = ["private", "guarded", "portal", "hidden", "halting"]
            .iter()
            .find_map(|name| path.strip_prefix("/v2/")?.strip_prefix(name)?.strip_prefix('/'));
        if path == format!("/v2/halting/blobs/{layer}") && allowed && request.method() == Method::GET {
            return self.halting(self.layer.slice(..20_000));
        }
        if of_team == Some(&*format!("blobs/{layer}")) {
            return answer.body(full(self.layer.clone())).unwrap();
        }
        if path.ends_with("/manifests/latest") {
            // And one that is never there.
            let other = digest_of(b"other");
            let layers = of_team.map(|_| format!("{{\"digest\":\"{layer}\"}},{{\"digest\":\"{other}\"}}"));
            let layers = layers.unwrap_or_default();
            return answer
                .header("content-type", "application/vnd.oci.image.manifest.v1+json")
                .body(full(format!("{{\"schemaVersion\":2,\"layers\":[{layers}]}}")))
                .unwrap();
        }
        if let Some(place) = path.strip_suffix(&*by_hash(&layer)) {
            return match place {
                "/locked" if !allowed => answer.status(401).body(full("locked")).unwrap(),
                "/empty" => answer.status(404).body(full("empty")).unwrap(),
                "/evil" => self.halting(vec![b'!'; 20_000].into()),
                _ => answer.body(full(self.layer.clone())).unwrap(),
            };
        }
        // What is listed as a manifest is one, and lies among the blobs too; whose repository has it only so is not asked for a blob.
        let listed = digest_of(&self.layer);
        if path.ends_with("/manifests/index") {
            return answer
                .header("content-type", "application/vnd.oci.image.index.v1+json")
                .body(full(format!("{{\"schemaVersion\":2,\"manifests\":[{{\"digest\":\"{listed}\"}}]}}")))
                .unwrap();
        }
        if path == format!("/v2/lists/manifests/{listed}") || path == format!("/v2/keeps/blobs/{listed}") {
            return answer.body(full(self.layer.clone())).unwrap();
        }
        if path == "/file" {
            return answer.body(full(token.unwrap_or("for everybody").to_owned())).unwrap();
        }
        answer.status(404).body(full("{\"errors\":[{\"code\":\"BLOB_UNKNOWN\"}]}")).unwrap()
    }

    fn blob(&self, repository: &str) -> String {
        format!("/v2/{repository}/blobs/{}", digest_of(&self.layer))
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// Pulls with the right token until the layer is on the proxy's disk.
    async fn warm(&self, darter: &Darter) {
        loop {
            let answer = ask(darter, Method::GET, &self.blob("private"), &[RIGHT]).await;
            let hit = answer.headers()["cache-status"] == "darter; hit";
            assert_eq!(bytes(answer).await, self.layer);
            if hit {
                break;
            }
        }
        self.asked();
    }
}

/// Asks until it comes from the disk: a download is complete a moment after its last byte has left.
async fn until_hit(ask: impl AsyncFn() -> bool) -> bool {
    for _ in 0..200 {
        if ask().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// A server of somebody's own: it says that it has whatever it is asked for, and sends as many zeros. What it was asked counts.
async fn braggart(length: usize) -> (Origin, Arc<AtomicUsize>) {
    let asked: Arc<AtomicUsize> = Arc::default();
    let counted = asked.clone();
    let origin = Origin::http(move |request: Request<Incoming>| {
        counted.fetch_add(1, Ordering::SeqCst);
        let digest = request.uri().path().rsplit('/').next().unwrap().to_owned();
        async move {
            let answer = Response::builder().header("docker-content-digest", digest);
            answer.body(full(vec![0; length])).unwrap()
        }
    })
    .await;
    (origin, asked)
}

/// Asks somebody's own server, by every name that content with this digest has there: for all of it and for parts, with nothing and
/// with credentials, through the proxy and as `darter get` does. Not one byte is to come that the server did not send.
async fn claims(darter: &Darter, layer: &Bytes) {
    let (own, asked) = braggart(layer.len()).await;
    let digest = digest_of(layer);
    for path in [format!("/v2/mine/blobs/{digest}"), format!("/mine{}", by_hash(&digest)), "/file".to_owned()]
    {
        let url = format!("http://127.0.0.1:{}{path}", own.port);
        for shown in [&[][..], &[RIGHT], &[WRONG]] {
            for range in [None, Some(("range", "bytes=100-199")), Some(("range", "bytes=-100"))] {
                let headers: Vec<_> = shown.iter().copied().chain(range).collect();
                let before = asked.load(Ordering::SeqCst);
                // Wrong bytes are cut off when that shows, with or without the answer's head.
                if let Ok(answer) = try_ask(darter, Method::GET, &url, &headers).await {
                    let body = answer.into_body().collect().await;
                    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                    assert!(body.iter().all(|byte| *byte == 0), "{url} with {headers:?}");
                }
                assert!(asked.load(Ordering::SeqCst) > before, "{url} with {headers:?}: nobody asked it");
                let before = asked.load(Ordering::SeqCst);
                let fetch = Fetch {
                    uid: 1000,
                    url: url.parse().unwrap(),
                    headers: headers.iter().map(|(name, value)| header(name, value)).collect(),
                    digest: Some(digest.parse().unwrap()),
                    lends: false,
                };
                if let Ok(answer) = darter.proxy.fetch(fetch).await {
                    let body = answer.into_body().collect().await;
                    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                    assert!(body.iter().all(|byte| *byte == 0), "get {url} with {headers:?}");
                }
                assert!(asked.load(Ordering::SeqCst) > before, "get {url} with {headers:?}: nobody asked it");
            }
        }
    }
}

fn header(name: &str, value: &str) -> (HeaderName, HeaderValue) {
    (name.parse().unwrap(), value.parse().unwrap())
}

#[tokio::test]
async fn who_runs_a_registry_of_his_own_gets_nothing_by_naming_a_digest_there() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    claims(&darter, &registry.layer).await;
    let reader = ask(&darter, Method::GET, &registry.blob("private"), &[RIGHT]).await;
    assert_eq!(reader.headers()["cache-status"], "darter; hit");
    assert!(bytes(reader).await == registry.layer);
}

#[tokio::test]
async fn nor_while_it_is_under_way() {
    let (registry, _origin, darter) = Registry::start().await;
    let reader = ask(&darter, Method::GET, &registry.blob("halting"), &[RIGHT]).await;
    assert_eq!(reader.status(), StatusCode::OK);
    let mut body = reader.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(!first.is_empty() && registry.layer.starts_with(&first));
    claims(&darter, &registry.layer).await;
    registry.go_on.notify_one();
    let rest = body.collect().await.unwrap().to_bytes();
    assert!([first, rest].concat() == registry.layer, "he who may have it has all of it");
}

#[tokio::test]
async fn nor_of_what_a_server_of_files_gave_to_a_credential() {
    let (registry, origin, darter) = Registry::start().await;
    let path = format!("/locked{}", by_hash(&digest_of(&registry.layer)));
    let read = async || {
        let answer = ask(&darter, Method::GET, &path, &[RIGHT]).await;
        let hit = answer.headers()["cache-status"] == "darter; hit";
        assert!(bytes(answer).await == registry.layer);
        hit
    };
    assert!(until_hit(&read).await, "it is here");
    let fetch = Fetch {
        uid: 1000,
        url: format!("http://127.0.0.1:{}{path}", origin.port).parse().unwrap(),
        headers: [header(RIGHT.0, RIGHT.1)].into_iter().collect(),
        digest: Some(digest_of(&registry.layer).parse().unwrap()),
        lends: false,
    };
    let got = darter.proxy.fetch(fetch).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert!(got == registry.layer);
    claims(&darter, &registry.layer).await;
    assert!(read().await, "and stays there");
}

#[tokio::test]
async fn registries_that_are_believed_share_what_credentials_were_shown_for() {
    for (trusted, hit) in [(None, false), (Some(Regex::new("^127[.]0[.]0[.]1:").unwrap()), true)] {
        let (registry, _origin, darter) = Registry::trusting(trusted).await;
        registry.warm(&darter).await;
        let other = registry.clone();
        let mirror = Origin::http(move |request: Request<Incoming>| {
            let response = other.answer(&request);
            async move { response }
        })
        .await;
        let url = format!("http://127.0.0.1:{}{}", mirror.port, registry.blob("private"));
        let answer = ask(&darter, Method::GET, &url, &[RIGHT]).await;
        assert_eq!(answer.headers()["cache-status"] == "darter; hit", hit);
        assert!(bytes(answer).await == registry.layer);
        // Being believed lets nobody in.
        assert_eq!(ask(&darter, Method::GET, &url, &[WRONG]).await.status(), StatusCode::UNAUTHORIZED);
    }
}

/// Where a repository keeps its index of this digest.
fn by_hash(digest: &str) -> String {
    format!("/by-hash/SHA256/{}", digest.trim_start_matches("sha256:"))
}

#[tokio::test]
async fn other_content_by_digest_is_shared_with_those_whom_the_place_that_they_ask_lets_have_it() {
    let (registry, _origin, darter) = Registry::start().await;
    // It is the same content as a private layer: to know its digest must not be enough.
    registry.warm(&darter).await;
    let get = async |place: &str, shown: &[(&str, &str)]| {
        let path = format!("/{place}{}", by_hash(&digest_of(&registry.layer)));
        let answer = ask(&darter, Method::GET, &path, shown).await;
        let hit = answer.headers().get("cache-status").is_some_and(|status| status == "darter; hit");
        let asked: Vec<String> = registry.asked().iter().map(|asked| asked[..4].to_owned()).collect();
        (answer.status().as_u16(), hit, asked.join(" "), bytes(answer).await == registry.layer)
    };
    // What a credential was needed for is not what anybody gets.
    assert_eq!(get("open", &[]).await, (200, false, "HEAD GET ".into(), true));
    assert!(until_hit(async || get("open", &[]).await.1).await, "it is known now");
    assert_eq!(get("mirror", &[]).await, (200, true, "HEAD".into(), true));
    assert_eq!(get("locked", &[]).await, (401, false, "HEAD GET ".into(), false));
    assert_eq!(get("locked", &[WRONG]).await, (401, false, "HEAD GET ".into(), false));
    // A server of files checks no digest, so that each place has its own.
    assert_eq!(get("locked", &[RIGHT]).await, (200, false, "HEAD GET ".into(), true));
    assert_eq!(get("locked", &[]).await, (401, false, "HEAD GET ".into(), false));
    assert_eq!(get("empty", &[]).await, (404, false, "HEAD GET ".into(), false));
    // What is known of places is bounded in bytes, too.
    for _ in 0..2 {
        assert_eq!(get(&"x".repeat(3000), &[]).await, (200, false, "GET ".into(), true));
    }
}

/// Whoever reads a part cannot compare it with the digest. The other server's is under way still: nobody has compared it.
#[tokio::test]
async fn a_part_that_one_server_gave_is_not_given_as_anothers() {
    let (registry, _origin, darter) = Registry::start().await;
    let part = async |place: &str| {
        let path = format!("/{place}{}", by_hash(&digest_of(&registry.layer)));
        let answer = ask(&darter, Method::GET, &path, &[("range", "bytes=0-9")]).await;
        (answer.status().as_u16(), bytes(answer).await)
    };
    assert_eq!(part("evil").await, (206, vec![b'!'; 10].into()), "as it would be given without us");
    assert_eq!(part("open").await, (206, registry.layer.slice(..10)));
    registry.go_on.notify_one();
}

#[tokio::test]
async fn a_cached_private_layer_is_refused_in_the_registrys_own_words() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    for shown in [&[WRONG][..], &[]] {
        let answer = ask(&darter, Method::GET, &registry.blob("private"), shown).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"https://auth.example/token\"");
        assert_eq!(bytes(answer).await, "{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}");
    }
}

#[tokio::test]
async fn a_pull_that_begins_with_its_manifest_costs_no_question() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    let other = ("authorization", "Bearer right");
    bytes(ask(&darter, Method::GET, "/v2/private/manifests/latest", &[other]).await).await;
    for _ in 0..3 {
        assert_eq!(
            bytes(ask(&darter, Method::GET, &registry.blob("private"), &[other]).await).await,
            registry.layer
        );
    }
    assert_eq!(registry.asked(), ["GET /v2/private/manifests/latest"]);
}

#[tokio::test]
async fn a_cold_pull_after_its_manifest_asks_for_the_layer_once() {
    let (registry, _origin, darter) = Registry::start().await;
    bytes(ask(&darter, Method::GET, "/v2/private/manifests/latest", &[RIGHT]).await).await;
    assert_eq!(
        bytes(ask(&darter, Method::GET, &registry.blob("private"), &[RIGHT]).await).await,
        registry.layer
    );
    assert_eq!(
        registry.asked(),
        ["GET /v2/private/manifests/latest".to_owned(), format!("GET {}", registry.blob("private"))]
    );
}

#[tokio::test]
async fn a_manifest_is_understood_when_all_of_it_has_come_although_its_stream_has_not_ended() {
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let (asked, setup) = (log.clone(), Setup::default());
    let origin = Origin::https(&setup.origin_ca, move |request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        asked.lock().unwrap().push(format!("{} {path}", request.method()));
        let manifest =
            format!("{{\"schemaVersion\":2,\"layers\":[{{\"digest\":\"{}\"}}]}}", digest_of(b"layer"));
        async move {
            if path.contains("/blobs/") {
                return Response::new(full("layer"));
            }
            let answer = Response::builder().header("content-length", manifest.len());
            let all = http_body::Frame::data(Bytes::from(manifest));
            let body = futures_util::stream::once(async { Ok(all) });
            answer.body(StreamBody::new(body.chain(futures_util::stream::pending())).boxed_unsync()).unwrap()
        }
    })
    .await;
    let mirror = format!("https://localhost:{}", origin.port);
    let darter = Darter::start(Setup { mirror, ..setup }).await;
    let blob = format!("/v2/private/blobs/{}", digest_of(b"layer"));
    for path in ["/v2/private/manifests/latest", &blob] {
        bytes(ask(&darter, Method::GET, path, &[RIGHT]).await).await;
    }
    let expected = ["GET /v2/private/manifests/latest".to_owned(), format!("GET {blob}")];
    assert_eq!(*log.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_private_layer_is_not_to_be_had_through_a_public_repository() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    for shown in [&[][..], &[RIGHT]] {
        bytes(ask(&darter, Method::GET, "/v2/public/manifests/latest", shown).await).await;
        let answer = ask(&darter, Method::GET, &registry.blob("public"), shown).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        assert_eq!(bytes(answer).await, "{\"errors\":[{\"code\":\"BLOB_UNKNOWN\"}]}");
    }
}

#[tokio::test]
async fn what_an_index_lists_is_proven_as_a_manifest_and_not_as_a_blob() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    for (repository, status) in [("lists", 404), ("keeps", 200)] {
        let index = format!("/v2/{repository}/manifests/index");
        bytes(ask(&darter, Method::GET, &index, &[]).await).await;
        registry.asked();
        let blob = registry.blob(repository);
        let answer = ask(&darter, Method::GET, &blob, &[]).await;
        assert_eq!(answer.status(), status, "{repository}");
        bytes(answer).await;
        assert_eq!(registry.asked()[0], format!("HEAD {blob}"), "its registry is asked");
    }
    // Manifests come from their registry itself.
    let manifest = registry.blob("lists").replace("/blobs/", "/manifests/");
    assert_eq!(bytes(ask(&darter, Method::GET, &manifest, &[]).await).await, registry.layer);
    assert_eq!(registry.asked(), [format!("GET {manifest}")]);
}

#[tokio::test]
async fn a_page_for_signing_in_lets_nobody_in() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    let answer = ask(&darter, Method::GET, &registry.blob("guarded"), &[]).await;
    assert_eq!(
        (answer.status(), &answer.headers()["location"]),
        (StatusCode::FOUND, &"/login".parse().unwrap())
    );
    assert!(bytes(answer).await.is_empty());
    let again = ask(&darter, Method::GET, &registry.blob("guarded"), &[]).await;
    assert_eq!(again.status(), StatusCode::FOUND);
    // Nor does the page prove that anybody may read the repository.
    bytes(ask(&darter, Method::GET, "/v2/guarded/manifests/latest", &[RIGHT]).await).await;
    let stranger = ask(&darter, Method::GET, &registry.blob("guarded"), &[]).await;
    assert_eq!(stranger.status(), StatusCode::FOUND);
    let reader = ask(&darter, Method::GET, &registry.blob("guarded"), &[RIGHT]).await;
    assert_eq!(bytes(reader).await, registry.layer);
}

#[tokio::test]
async fn a_page_that_is_no_refusal_lets_nobody_in() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    let page = "<html>who are you?</html>";
    let shown = async || bytes(ask(&darter, Method::GET, &registry.blob("portal"), &[]).await).await == page;
    for _ in 0..3 {
        assert!(shown().await);
    }
    ask(&darter, Method::HEAD, &registry.blob("portal"), &[]).await;
    assert!(shown().await);
    // What says that the repository contains the layer says nothing of strangers.
    bytes(ask(&darter, Method::GET, "/v2/portal/manifests/latest", &[RIGHT]).await).await;
    for method in [Method::GET, Method::HEAD] {
        bytes(ask(&darter, method, "/v2/portal/manifests/latest", &[]).await).await;
        assert!(shown().await);
    }
    let reader = ask(&darter, Method::GET, &registry.blob("portal"), &[RIGHT]).await;
    assert_eq!(bytes(reader).await, registry.layer);
}

#[tokio::test]
async fn what_a_stranger_is_not_shown_stays_known_to_the_reader() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    bytes(ask(&darter, Method::GET, "/v2/hidden/manifests/latest", &[RIGHT]).await).await;
    let stranger = ask(&darter, Method::GET, &registry.blob("hidden"), &[WRONG]).await;
    assert_eq!(stranger.status(), StatusCode::NOT_FOUND);
    registry.asked();
    let reader = ask(&darter, Method::GET, &registry.blob("hidden"), &[RIGHT]).await;
    assert_eq!(bytes(reader).await, registry.layer);
    assert_eq!(registry.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn only_so_many_manifests_are_read_at_once() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    let slow = (0..64).map(|_| ask(&darter, Method::GET, "/v2/slow/manifests/latest", &[]));
    let slow = futures_util::future::join_all(slow).await;
    let questions = async || {
        bytes(ask(&darter, Method::GET, "/v2/portal/manifests/latest", &[RIGHT]).await).await;
        registry.asked();
        let reader = ask(&darter, Method::GET, &registry.blob("portal"), &[RIGHT]).await;
        assert_eq!(bytes(reader).await, registry.layer);
        registry.asked().len()
    };
    assert_eq!(questions().await, 1, "the manifest passed by unread");
    drop(slow);
    assert_eq!(questions().await, 0);
}

#[tokio::test]
async fn a_revoked_credential_ends_with_the_first_refusal() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    registry.revoked.store(true, Ordering::SeqCst);
    let manifest = ask(&darter, Method::GET, "/v2/private/manifests/latest", &[RIGHT]).await;
    assert_eq!(manifest.status(), StatusCode::UNAUTHORIZED);
    let answer = ask(&darter, Method::GET, &registry.blob("private"), &[RIGHT]).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_token_opens_nothing_past_its_own_end() {
    let proofs = Ages { reader: Duration::from_secs(3600), ..Ages::default() };
    let (registry, _origin, darter) = Registry::believed(proofs).await;
    registry.warm(&darter).await;
    let target = registry.blob("private");
    // Long enough for two requests; were it not, the registry would be asked, and still let it in.
    let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(2);
    let claims = BASE64_URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{}}}", ends.as_secs()));
    let token = format!("Bearer e30.{claims}.c2ln");
    let shown = ("authorization", token.as_str());
    let ends = UNIX_EPOCH + Duration::from_secs(ends.as_secs());
    *registry.second.lock().unwrap() = Some((token.clone(), ends));
    bytes(ask(&darter, Method::GET, "/v2/private/manifests/latest", &[shown]).await).await;
    let answer = ask(&darter, Method::GET, &target, &[shown]).await;
    assert_eq!(answer.headers()["cache-status"], "darter; hit");
    assert_eq!(bytes(answer).await, registry.layer);
    registry.asked();
    tokio::time::sleep(ends.duration_since(SystemTime::now()).unwrap_or_default()).await;
    let answer = ask(&darter, Method::GET, &target, &[shown]).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert!(!bytes(answer).await.windows(16).any(|part| registry.layer.windows(16).any(|of| of == part)));
    // A proof of the same age that names no end is believed.
    registry.asked();
    assert_eq!(ask(&darter, Method::GET, &target, &[RIGHT]).await.status(), StatusCode::OK);
    assert_eq!(registry.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_refusal_that_comes_through_the_engine_ends_a_credential_too() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    bytes(ask(&darter, Method::GET, "/v2/private/manifests/latest", &[RIGHT]).await).await;
    registry.revoked.store(true, Ordering::SeqCst);
    let other = format!("/v2/private/blobs/{}", digest_of(b"other"));
    assert_eq!(ask(&darter, Method::GET, &other, &[RIGHT]).await.status(), StatusCode::UNAUTHORIZED);
    let answer = ask(&darter, Method::GET, &registry.blob("private"), &[RIGHT]).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn while_the_registry_is_down_only_those_it_knew_are_served() {
    let (registry, origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    drop(origin);
    assert_eq!(
        bytes(ask(&darter, Method::GET, &registry.blob("private"), &[RIGHT]).await).await,
        registry.layer
    );
    let stranger = ask(&darter, Method::GET, &registry.blob("private"), &[WRONG]).await;
    assert_eq!(stranger.status(), StatusCode::SERVICE_UNAVAILABLE);
    let said = String::from_utf8(bytes(stranger).await.to_vec()).unwrap();
    assert!(
        said.contains("connection refused, so it cannot say whether this caller may have this"),
        "{said}"
    );
}

#[tokio::test]
async fn a_registry_that_has_had_enough_of_a_caller_is_left_alone_by_him() {
    let (registry, _origin, darter) =
        Registry::believed(Ages { reader: Duration::ZERO, ..Ages::default() }).await;
    registry.warm(&darter).await;
    for status in [429, 503] {
        registry.trouble.store(status, Ordering::SeqCst);
        let other = ("authorization", if status == 429 { "Bearer a" } else { "Bearer b" });
        for _ in 0..3 {
            let reader = ask(&darter, Method::GET, &registry.blob("private"), &[RIGHT]).await;
            assert_eq!(bytes(reader).await, registry.layer, "he was let in lately");
            let stranger = ask(&darter, Method::GET, &registry.blob("private"), &[other]).await;
            let wait: u64 = stranger.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert_eq!((stranger.status().as_u16(), (1..=7).contains(&wait)), (status, true));
            let said = String::from_utf8(bytes(stranger).await.to_vec()).unwrap();
            assert!(said.contains(&format!("answered {status} when it was asked whether")), "{said}");
        }
        // The reader's first question was heard by the registry in the first round.
        let questions = if status == 429 { 2 } else { 1 };
        assert_eq!(registry.asked(), vec![format!("HEAD {}", registry.blob("private")); questions]);
    }
}

#[tokio::test]
async fn what_was_pushed_into_a_repository_is_known_to_be_in_it() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    let (layer, other) = (digest_of(&registry.layer), digest_of(b"other"));
    let questions = async |repository: &str| {
        // Whoever may write need not be one who may read.
        bytes(ask(&darter, Method::GET, &format!("/v2/{repository}/manifests/latest"), &[RIGHT]).await).await;
        registry.asked();
        let answer = ask(&darter, Method::GET, &registry.blob(repository), &[RIGHT]).await;
        (registry.asked().len(), bytes(answer).await == registry.layer)
    };
    let push = async |method, path: &str, said: &str| {
        let said = [RIGHT, ("x-said", said)];
        let said = if said[1].1.is_empty() { &said[..1] } else { &said[..] };
        ask(&darter, method, path, said).await;
    };
    for (number, (method, path, said)) in [
        (Method::PUT, format!("blobs/uploads/1?state=x&digest={}", layer.replace(':', "%3A")), ""),
        (Method::POST, format!("blobs/uploads/?digest={layer}"), &*layer),
        (Method::POST, format!("blobs/uploads/?mount={layer}&from=private"), ""),
    ]
    .into_iter()
    .enumerate()
    {
        let repository = format!("open{number}");
        push(method, &format!("/v2/{repository}/{path}"), said).await;
        assert_eq!(questions(&repository).await, (0, true), "{path}");
    }
    for (method, path, said) in [
        (Method::PUT, format!("blobs/uploads/1?digest={layer}&digest={other}"), &*layer),
        (Method::POST, format!("blobs/uploads/?mount={layer}&digest={other}"), ""),
        (Method::PUT, format!("blobs/uploads/1?digest={layer}"), &other),
        // A manifest is none of the blobs, as far as is known.
        (Method::PUT, format!("manifests/{layer}"), ""),
        (Method::PUT, "manifests/1".to_owned(), &layer),
        (Method::PUT, format!("manifests/{layer}"), &other),
        (Method::PUT, "manifests/1".to_owned(), ""),
        (Method::POST, format!("blobs/uploads/begun?mount={layer}&from=private"), ""),
        (Method::PUT, format!("blobs/{layer}"), &layer),
        (Method::PUT, "blobs/uploads/1".to_owned(), &layer),
    ] {
        push(method, &format!("/v2/closed/{path}"), said).await;
        assert_eq!(questions("closed").await, (2, false), "{path}");
    }
}

/// The registry is a mirror of others here: what it has of one of them is not in another one's repository of the same name.
#[tokio::test]
async fn what_a_mirror_has_of_one_registry_is_not_in_anothers_repository_of_that_name() {
    let answering = |request: Request<Incoming>| async move {
        let uri = request.uri();
        let [of_theirs, of_mine] = ["theirs.example", "mine.example"]
            .map(|named| uri.query().is_some_and(|query| query.ends_with(named)));
        let right = request.headers().get("authorization").is_some_and(|value| value == RIGHT.1);
        let layer = digest_of(b"their layer");
        let answer = Response::builder();
        if of_theirs && !right {
            return answer.status(401).body(full("who are you?")).unwrap();
        }
        if uri.path().ends_with("/manifests/latest") {
            let layers = if of_theirs { format!("{{\"digest\":\"{layer}\"}}") } else { String::new() };
            return answer.body(full(format!("{{\"schemaVersion\":2,\"layers\":[{layers}]}}"))).unwrap();
        }
        match of_theirs && !of_mine {
            true => answer.body(full("their layer")).unwrap(),
            false => answer.status(404).body(full("not in mine")).unwrap(),
        }
    };
    let origin = Origin::http(answering).await;
    let darter = Darter::start(Setup::default()).await;
    let base = format!("http://127.0.0.1:{}/v2/team/app", origin.port);
    let blob = format!("{base}/blobs/{}", digest_of(b"their layer"));
    let get = async |url: String, shown: &[(&str, &str)]| {
        let answer = ask(&darter, Method::GET, &url, shown).await;
        (answer.status().as_u16(), bytes(answer).await)
    };
    let theirs = "?ns=theirs.example";
    assert_eq!(get(format!("{base}/manifests/latest{theirs}"), &[RIGHT]).await.0, 200);
    assert_eq!(get(format!("{blob}{theirs}"), &[RIGHT]).await, (200, "their layer".into()));
    for mine in ["?ns=mine.example", ""] {
        for shown in [&[][..], &[RIGHT]] {
            assert_eq!(get(format!("{base}/manifests/latest{mine}"), shown).await.0, 200, "he may read it");
            assert_eq!(get(format!("{blob}{mine}"), shown).await, (404, "not in mine".into()), "{mine}");
        }
    }
    assert_eq!(get(format!("{blob}{theirs}"), &[]).await.0, 401);
}

#[tokio::test]
async fn those_who_ask_at_once_share_one_question() {
    let (registry, _origin, darter) = Registry::start().await;
    registry.warm(&darter).await;
    bytes(ask(&darter, Method::GET, "/v2/private/manifests/latest", &[WRONG]).await).await;
    registry.asked();
    let target = registry.blob("private");
    let many = (0..8).map(|_| ask(&darter, Method::HEAD, "/v2/private/manifests/latest", &[RIGHT]));
    futures_util::future::join_all(many).await;
    registry.asked();
    let all =
        futures_util::future::join_all((0..8).map(|_| ask(&darter, Method::GET, &target, &[RIGHT]))).await;
    assert!(all.iter().all(|answer| answer.status() == StatusCode::OK));
    assert_eq!(registry.asked(), Vec::<String>::new(), "a HEAD of the manifest has proven it");
}

#[tokio::test]
async fn what_was_fetched_with_a_credential_is_not_what_everybody_gets() {
    let (registry, origin, _) = Registry::start().await;
    let rule = darter_rules::ProxyRule::new("/file$".parse().unwrap());
    let darter = Darter::start(Setup { proxies: vec![rule], ..Setup::default() }).await;
    let url = format!("http://127.0.0.1:{}/file", origin.port);
    let get = async |shown: &[(&str, &str)]| {
        let mut headers = vec![("host", "127.0.0.1")];
        headers.extend_from_slice(shown);
        let head: String = shown.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!(
            "GET {url} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n{head}Connection: close\r\n\r\n",
            origin.port
        );
        darter.exchange(&request).await
    };
    assert!(get(&[RIGHT]).await.ends_with("\r\n\r\nBearer right"));
    assert!(get(&[]).await.ends_with("\r\n\r\nfor everybody"));
    assert!(get(&[WRONG]).await.ends_with("\r\n\r\nBearer wrong"));
    assert!(get(&[("private-token", "x")]).await.ends_with("\r\n\r\nfor everybody"));
    // What everybody may have is kept, a moment after its last byte has gone out.
    while !get(&[]).await.contains("cache-status: darter; hit") {}
    registry.asked();
    get(&[("private-token", "x")]).await;
    assert_eq!(registry.asked(), ["GET /file"], "what may be for one person is not");
    // A portal in front of a server lets people in by such a name.
    get(&[("x-forwarded-user", "x")]).await;
    assert_eq!(registry.asked(), ["GET /file"], "nor what a portal says of its caller");
    get(&[("x-forwarded-for", "192.0.2.1"), ("sec-fetch-mode", "navigate")]).await;
    assert_eq!(registry.asked(), Vec::<String>::new());
}
