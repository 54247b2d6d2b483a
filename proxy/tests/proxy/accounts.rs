//! Credentials of the operator's, lent to clients that bring none.

use crate::lab::{Body, Darter, Origin, Setup, full, text, ticking};
use crate::p2p::{ask, bytes, digest_of};
use darter_proxy::{Account, Login};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use regex::Regex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

const LAYER: &[u8] = b"a private layer";

/// `user:secret`.
const ACCOUNT: &str = "Basic dXNlcjpzZWNyZXQ=";

/// A registry, and the token service that it names.
struct Registry {
    /// It wants Basic instead of tokens.
    basic: bool,
    realm: OnceLock<String>,
    /// Every request to either, as `METHOD path?query AUTHORIZATION`.
    log: Mutex<Vec<String>>,
    /// The token that is good at the moment is `t<this>`.
    token: AtomicUsize,
    /// It lets everybody in.
    open: AtomicBool,
    /// The token service begins its answers and does not end them.
    stuck: AtomicBool,
}

struct Lab {
    registry: Arc<Registry>,
    darter: Darter,
    tokens: Origin,
    origin: Origin,
}

impl Lab {
    /// A registry without TLS, as the account allows.
    async fn start(basic: bool) -> Self {
        Self::with(basic, true).await
    }

    async fn with(basic: bool, insecure: bool) -> Self {
        let registry = Arc::new(Registry {
            basic,
            realm: OnceLock::new(),
            log: Mutex::default(),
            token: AtomicUsize::new(1),
            open: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
        });
        let serve = |answer: fn(&Registry, &Request<Incoming>) -> Response<Body>| {
            let registry = registry.clone();
            Origin::http(move |request: Request<Incoming>| {
                let response = answer(&registry, &request);
                async move { response }
            })
        };
        let (origin, tokens) = (serve(Registry::answer).await, serve(Registry::token).await);
        registry.realm.set(format!("http://127.0.0.1:{}/token", tokens.port)).unwrap();
        let darter = Darter::start(setup(origin.port, vec![account(origin.port, "^team/", insecure)])).await;
        Self { registry, darter, tokens, origin }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> StatusCode {
        ask(&self.darter, Method::GET, path, headers).await.status()
    }
}

fn account(port: u16, repositories: &str, insecure: bool) -> Account {
    Account {
        hosts: Regex::new(&format!("^127\\.0\\.0\\.1:{port}$")).unwrap(),
        repositories: Regex::new(repositories).unwrap(),
        login: Login::new("user", "secret").unwrap(),
        insecure,
    }
}

fn setup(registry: u16, accounts: Vec<Account>) -> Setup {
    Setup { mirror: format!("http://127.0.0.1:{registry}"), accounts, ..Setup::default() }
}

impl Registry {
    fn note(&self, request: &Request<Incoming>) -> Option<String> {
        let shown = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let line = format!("{} {} {}", request.method(), request.uri(), shown.as_deref().unwrap_or("-"));
        self.log.lock().unwrap().push(line);
        shown
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let shown = self.note(request);
        let good = format!("Bearer t{}", self.token.load(Ordering::SeqCst));
        let wanted = if self.basic { ACCOUNT } else { &good };
        if shown.as_deref() == Some(wanted) || self.open.load(Ordering::SeqCst) {
            let manifest =
                format!("{{\"schemaVersion\":2,\"layers\":[{{\"digest\":\"{}\"}}]}}", digest_of(LAYER));
            let blob = request.uri().path().contains("/blobs/");
            return Response::new(if blob { full(LAYER) } else { full(manifest) });
        }
        let realm = self.realm.get().unwrap();
        let challenge = match self.basic {
            true => "Basic realm=\"here\"".to_owned(),
            false => format!("Bearer realm=\"{realm}\",service=\"the registry\""),
        };
        Response::builder().status(401).header("www-authenticate", challenge).body(full("no")).unwrap()
    }

    fn token(&self, request: &Request<Incoming>) -> Response<Body> {
        if self.note(request).as_deref() != Some(ACCOUNT) {
            return Response::builder().status(200).body(full("{\"token\":\"anonymous\"}")).unwrap();
        }
        if self.stuck.load(Ordering::SeqCst) {
            return Response::new(StreamBody::new(futures_util::stream::pending()).boxed_unsync());
        }
        let token = self.token.load(Ordering::SeqCst);
        Response::new(full(format!("{{\"token\":\"t{token}\",\"expires_in\":300}}")))
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

#[tokio::test]
async fn a_client_without_credentials_reads_what_the_account_is_for() {
    let lab = Lab::start(false).await;
    assert_eq!(lab.get("/v2/team/app/manifests/latest", &[]).await, 200);
    assert_eq!(
        lab.registry.asked(),
        [
            "GET /v2/ -",
            &format!("GET /token?service=the+registry&scope=repository%3Ateam%2Fapp%3Apull {ACCOUNT}"),
            "GET /v2/team/app/manifests/latest Bearer t1",
        ]
    );
    // What was learned is used again.
    assert_eq!(lab.get("/v2/team/app/tags/list", &[]).await, 200);
    assert_eq!(lab.registry.asked(), ["GET /v2/team/app/tags/list Bearer t1"]);
}

#[tokio::test]
async fn many_who_come_at_once_share_one_token() {
    let lab = Lab::start(false).await;
    let path = "/v2/team/app/manifests/latest";
    let all = futures_util::future::join_all((0..50).map(|_| lab.get(path, &[]))).await;
    assert!(all.into_iter().all(|status| status == 200));
    let asked = lab.registry.asked();
    let number = |of: &str| asked.iter().filter(|line| line.contains(of)).count();
    assert_eq!((number("GET /v2/ "), number("/token?"), number("/manifests/")), (1, 1, 50));
}

#[tokio::test]
async fn nothing_is_lent_for_other_repositories_to_other_credentials_or_for_writing() {
    let lab = Lab::start(false).await;
    assert_eq!(lab.get("/v2/others/app/manifests/latest", &[]).await, 401);
    assert_eq!(lab.registry.asked(), ["GET /v2/others/app/manifests/latest -"]);
    let own = [("authorization", "Bearer own")];
    assert_eq!(lab.get("/v2/team/app/manifests/latest", &own).await, 401);
    assert_eq!(lab.registry.asked(), ["GET /v2/team/app/manifests/latest Bearer own"]);
    let written = ask(&lab.darter, Method::PUT, "/v2/team/app/manifests/latest", &[]).await;
    assert_eq!(written.status(), 401);
    assert_eq!(lab.registry.asked(), ["PUT /v2/team/app/manifests/latest -"]);
}

#[tokio::test]
async fn a_client_that_asks_for_a_token_itself_gets_one_for_pulling_alone() {
    let lab = Lab::start(false).await;
    let service = format!("http://127.0.0.1:{}/token?service=s&scope=repository:", lab.tokens.port);
    let token = async |of: &str| text(ask_forward(&lab, &format!("{service}{of}")).await).await;
    // Nobody has named this service yet.
    assert_eq!(token("team/app:pull").await, "{\"token\":\"anonymous\"}");
    assert_eq!(lab.get("/v2/", &[]).await, 401);
    assert_eq!(token("team/app:pull").await, "{\"token\":\"t1\",\"expires_in\":300}");
    assert_eq!(
        token("team/app:pull&account=me&client_id=docker").await,
        "{\"token\":\"t1\",\"expires_in\":300}"
    );
    for other in [
        "team/app:pull,push",
        "others/app:pull",
        "team/app:pull&scope=repository:others/app:pull",
        // A token for other tokens, of any scope and without end.
        "team/app:pull&offline_token=true",
        "team/app:pull&access_type=offline",
        "team/../others/app:pull",
    ] {
        assert_eq!(token(other).await, "{\"token\":\"anonymous\"}", "{other}");
    }
}

#[tokio::test]
async fn a_password_goes_to_no_registry_without_tls_unless_the_account_says_so() {
    let lab = Lab::with(true, false).await;
    for path in ["/v2/", "/v2/team/app/manifests/latest"] {
        assert_eq!(lab.get(path, &[]).await, 401);
        assert_eq!(lab.registry.asked(), [format!("GET {path} -")]);
    }
}

#[tokio::test]
async fn nothing_is_lent_for_what_only_begins_or_ends_like_a_request_for_the_repository() {
    let lab = Lab::start(true).await;
    for path in [
        "/v2/team/app/tags/list/../../../../others/app/manifests/latest",
        "/v2/team/app/tags/list/%2e%2e/%2e%2e/%2e%2e/%2e%2e/others/app/manifests/latest",
        "/v2/team/x/../../others/app/tags/list",
        "/v2/team/app/referrers/../../../others/app/manifests/latest",
        "/v2/team/app/referrers/sha256:00",
        "/v2/team/App/tags/list",
    ] {
        assert_eq!(lab.get(path, &[]).await, 401, "{path}");
        assert!(lab.registry.asked().iter().all(|line| line.ends_with(" -")), "{path}");
    }
    let referrers = format!("/v2/team/app/referrers/sha256:{}", "0a".repeat(32));
    assert_eq!(lab.get(&referrers, &[]).await, 200);
}

#[tokio::test]
async fn a_registry_that_was_open_to_all_is_asked_again_when_it_refuses() {
    let lab = Lab::start(false).await;
    let path = "/v2/team/app/manifests/latest";
    lab.registry.open.store(true, Ordering::SeqCst);
    assert_eq!(lab.get(path, &[]).await, 200);
    lab.registry.open.store(false, Ordering::SeqCst);
    assert_eq!(lab.get(path, &[]).await, 401);
    assert_eq!(lab.get(path, &[]).await, 200);
}

#[tokio::test]
async fn what_the_account_reads_is_served_while_registry_and_token_service_are_down() {
    let Lab { darter, tokens, origin, .. } = Lab::start(false).await;
    let (manifest, blob) =
        ("/v2/team/app/manifests/latest", format!("/v2/team/app/blobs/{}", digest_of(LAYER)));
    bytes(ask(&darter, Method::GET, manifest, &[]).await).await;
    loop {
        let answer = ask(&darter, Method::GET, &blob, &[]).await;
        let hit = answer.headers()["cache-status"] == "darter; hit";
        assert!(bytes(answer).await == LAYER);
        if hit {
            break;
        }
    }
    // The token is forgotten, and there is no other.
    let port = origin.port;
    drop((origin, tokens));
    darter.proxy.replace(setup(port, vec![account(port, "^team/", true)]).settings(&darter.leaves));
    let answer = ask(&darter, Method::GET, &blob, &[]).await;
    assert_eq!(answer.status(), 200);
    assert!(bytes(answer).await == LAYER);
    // That is the account's business alone.
    darter.proxy.replace(setup(port, Vec::new()).settings(&darter.leaves));
    assert_eq!(ask(&darter, Method::GET, &blob, &[]).await.status(), 503);
}

#[tokio::test]
async fn several_registries_may_name_the_same_token_service() {
    let lab = Lab::start(false).await;
    let registry = lab.registry.clone();
    let second = Origin::http(move |request: Request<Incoming>| {
        let response = registry.answer(&request);
        async move { response }
    })
    .await;
    let accounts = vec![account(lab.origin.port, "^team/", true), account(second.port, "^second/", true)];
    lab.darter.proxy.replace(setup(lab.origin.port, accounts).settings(&lab.darter.leaves));
    assert_eq!(lab.get("/v2/team/app/manifests/latest", &[]).await, 200);
    let other = format!("http://127.0.0.1:{}/v2/second/app/manifests/latest", second.port);
    assert_eq!(ask_forward(&lab, &other).await.status(), 200);
    let service = format!("http://127.0.0.1:{}/token?service=s&scope=repository:", lab.tokens.port);
    for (of, good) in [("team/app", true), ("second/app", true), ("third/app", false)] {
        let token = text(ask_forward(&lab, &format!("{service}{of}:pull")).await).await;
        assert_eq!(token.contains("t1"), good, "{of}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_service_that_stops_in_the_middle_holds_nobody_up() {
    let lab = Lab::start(false).await;
    lab.registry.stuck.store(true, Ordering::SeqCst);
    let answer = lab.get("/v2/team/app/manifests/latest", &[]);
    let answer = ticking(tokio::time::timeout(Duration::from_secs(60), answer)).await;
    assert_eq!(answer.expect("an answer within a minute"), 401);
}

async fn ask_forward(lab: &Lab, url: &str) -> Response<Incoming> {
    let authority = url.split('/').nth(2).unwrap().to_owned();
    let (mut client, mut tasks) = crate::lab::h1(lab.darter.connect().await).await;
    let request = Request::get(url).header("host", authority).body(full("")).unwrap();
    let answer = client.send_request(request).await.unwrap();
    tasks.detach_all();
    answer
}

#[tokio::test]
async fn a_token_that_is_refused_is_not_used_again() {
    let lab = Lab::start(false).await;
    let path = "/v2/team/app/manifests/latest";
    assert_eq!(lab.get(path, &[]).await, 200);
    lab.registry.token.store(2, Ordering::SeqCst);
    assert_eq!(lab.get(path, &[]).await, 401);
    assert_eq!(lab.get(path, &[]).await, 200);
}

#[tokio::test]
async fn a_registry_that_wants_basic_gets_it_at_its_ping_too() {
    let lab = Lab::start(true).await;
    assert_eq!(lab.get("/v2/", &[]).await, 200);
    assert_eq!(lab.get("/v2/team/app/manifests/latest", &[]).await, 200);
    assert_eq!(lab.get("/v2/others/app/manifests/latest", &[]).await, 401);
    let registry = format!("http://127.0.0.1:{}/v2/_catalog", lab.origin.port);
    assert_eq!(ask_forward(&lab, &registry).await.status(), 401);
}

#[tokio::test]
async fn a_token_service_that_fails_is_not_stormed_and_the_request_goes_on() {
    let lab = Lab::start(false).await;
    let path = "/v2/team/app/manifests/latest";
    // Nobody listens there any more.
    let Lab { registry, darter, tokens, .. } = lab;
    drop(tokens);
    for _ in 0..3 {
        assert_eq!(ask(&darter, Method::GET, path, &[]).await.status(), 401);
    }
    let line = format!("GET {path} -");
    assert_eq!(registry.asked(), ["GET /v2/ -", &line, &line, &line]);
}
