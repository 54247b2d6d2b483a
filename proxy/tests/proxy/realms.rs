//! Many clients that want their tokens at the same moment.

use crate::lab::{Body, Darter, Origin, Setup, full, h1, settled, text};
use crate::p2p::ask;
use darter_proxy::{Account, Limits, Login};
use http::header::{HeaderValue, SET_COOKIE};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use regex::Regex;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const CLIENTS: usize = 40;
const AT_ONCE: usize = 4;

/// A token service, which answers who asks as often as it is let.
struct Service {
    asked: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    let_go: Semaphore,
}

struct Lab {
    service: Arc<Service>,
    darter: Arc<Darter>,
    tokens: Origin,
    _registry: Origin,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.let_go.acquire().await.unwrap().forget();
        self.now.fetch_sub(1, Ordering::SeqCst);
        let (request, form) = request.into_parts();
        let form = text(Response::new(form)).await;
        let said = |name| request.headers.get(name).map_or("nothing", |it| it.to_str().unwrap());
        let told = format!("for {} {}{form}", said("authorization"), said("x-more"));
        let mut response = Response::new(full(told));
        let set_cookie = request.uri.query() == Some("cookie");
        response.headers_mut().extend(set_cookie.then(|| (SET_COOKIE, HeaderValue::from_static("a=b"))));
        response
    }
}

impl Lab {
    async fn start() -> Self {
        Self::with_account(false).await
    }

    /// Perhaps with an account for all of the registry.
    async fn with_account(account: bool) -> Self {
        let service = Arc::new(Service {
            asked: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            let_go: Semaphore::new(0),
        });
        let serves = service.clone();
        let tokens = Origin::http(move |request| {
            let service = serves.clone();
            async move { service.answer(request).await }
        });
        let tokens = tokens.await;
        let challenge = format!("Bearer realm=\"http://127.0.0.1:{}/token\"", tokens.port);
        let registry = Origin::http(move |_| {
            let challenge = challenge.clone();
            async move {
                Response::builder()
                    .status(401)
                    .header("www-authenticate", challenge)
                    .body(full("no"))
                    .unwrap()
            }
        });
        let registry = registry.await;
        let limits = Limits { authentications: NonZeroUsize::new(AT_ONCE), ..Limits::default() };
        let mirror = format!("http://127.0.0.1:{}", registry.port);
        let lent = || Account {
            hosts: Regex::new("").unwrap(),
            repositories: Regex::new("").unwrap(),
            login: Login::new("user", "secret").unwrap(),
            insecure: true,
        };
        let accounts = account.then(lent).into_iter().collect();
        let darter = Darter::start(Setup { mirror, limits, accounts, ..Setup::default() }).await;
        Self { service, darter: Arc::new(darter), tokens, _registry: registry }
    }

    /// Clients ask, each with its own name; what they are told.
    fn all_ask(
        &self,
        path: &str,
        names: impl Iterator<Item = String>,
        more: (&'static str, &'static str),
    ) -> JoinSet<(String, String)> {
        self.all_send(Method::GET, path, names, more)
    }

    /// The same with another method, and the name as the form that is sent.
    fn all_send(
        &self,
        method: Method,
        path: &str,
        names: impl Iterator<Item = String>,
        more: (&'static str, &'static str),
    ) -> JoinSet<(String, String)> {
        let url = format!("http://127.0.0.1:{}{path}", self.tokens.port);
        names
            .map(|name| {
                let (darter, url, method) = (self.darter.clone(), url.clone(), method.clone());
                async move {
                    let (mut client, mut tasks) = h1(darter.connect().await).await;
                    let form = if method == Method::POST { name.clone() } else { String::new() };
                    let request = Request::builder().method(method).uri(&url);
                    let request = request.header("host", &url["http://".len()..url.rfind('/').unwrap()]);
                    let request = request.header("authorization", &name).header(more.0, more.1);
                    let request = request.body(full(form)).unwrap();
                    let answer = text(client.send_request(request).await.unwrap()).await;
                    tasks.detach_all();
                    (name, answer)
                }
            })
            .collect()
    }

    async fn all_wait(&self) {
        self.darter.until("proxy_requests_in_flight", CLIENTS as f64).await;
        settled().await;
    }

    /// Until so many are at the service.
    async fn are_there(&self, clients: usize) {
        for _ in 0..1_000_000 {
            if self.service.now.load(Ordering::SeqCst) == clients {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{} and not {clients}", self.service.now.load(Ordering::SeqCst));
    }
}

const NOTHING: (&str, &str) = ("x-request-id", "1");

fn one() -> impl Iterator<Item = String> {
    (0..CLIENTS).map(|_| "Basic one".to_owned())
}

#[tokio::test]
async fn what_is_meant_for_one_request_is_not_shared() {
    for (path, more) in [
        ("/token?cookie", NOTHING),
        ("/token", ("if-none-match", "*")),
        ("/token", ("range", "bytes=0-0")),
        ("/token", ("cache-control", "no-cache")),
    ] {
        let lab = Lab::start().await;
        assert_eq!(ask(&lab.darter, Method::GET, "/v2/", &[]).await.status(), 401);
        let asking = lab.all_ask(path, one(), more);
        lab.all_wait().await;
        lab.service.let_go.add_permits(2 * CLIENTS);
        assert_eq!(asking.join_all().await.len(), CLIENTS);
        assert_eq!(lab.service.asked.load(Ordering::SeqCst), CLIENTS, "{path} {more:?}");
    }
}

#[tokio::test]
async fn those_who_say_something_else_are_answered_apart() {
    let lab = Lab::start().await;
    assert_eq!(ask(&lab.darter, Method::GET, "/v2/", &[]).await.status(), 401);
    let half = || one().take(CLIENTS / 2);
    let mut asking = lab.all_ask("/token", half(), ("x-more", "a"));
    let other = lab.all_ask("/token", half(), ("x-more", "b"));
    lab.all_wait().await;
    lab.service.let_go.add_permits(2);
    for (_, answer) in other.join_all().await {
        assert_eq!(answer, "for Basic one b");
    }
    while let Some(answer) = asking.join_next().await {
        assert_eq!(answer.unwrap().1, "for Basic one a");
    }
    assert_eq!(lab.service.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn those_with_the_same_credentials_share_one_token() {
    let lab = Lab::start().await;
    assert_eq!(ask(&lab.darter, Method::GET, "/v2/", &[]).await.status(), 401);
    let asking = lab.all_ask("/token", one(), NOTHING);
    lab.all_wait().await;
    lab.service.let_go.add_permits(CLIENTS);
    for (_, answer) in asking.join_all().await {
        assert_eq!(answer, "for Basic one nothing");
    }
    assert_eq!(lab.service.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn others_get_their_own_a_few_at_a_time() {
    let lab = Lab::start().await;
    assert_eq!(ask(&lab.darter, Method::GET, "/v2/", &[]).await.status(), 401);
    let asking = lab.all_ask("/token", (0..CLIENTS).map(|number| format!("Basic {number}")), NOTHING);
    lab.all_wait().await;
    lab.are_there(AT_ONCE).await;
    lab.service.let_go.add_permits(CLIENTS);
    for (name, answer) in asking.join_all().await {
        assert_eq!(answer, format!("for {name} nothing"));
    }
    assert_eq!(lab.service.asked.load(Ordering::SeqCst), CLIENTS);
    assert_eq!(lab.service.most.load(Ordering::SeqCst), AT_ONCE);
}

#[tokio::test]
async fn forms_and_what_is_for_one_alone_wait_for_their_turn_too() {
    for (method, more) in [
        (Method::POST, NOTHING),
        (Method::GET, ("range", "bytes=0-0")),
        (Method::GET, ("cache-control", "no-cache")),
    ] {
        let lab = Lab::start().await;
        assert_eq!(ask(&lab.darter, Method::GET, "/v2/", &[]).await.status(), 401);
        let asking = lab.all_send(method.clone(), "/token", one(), more);
        lab.all_wait().await;
        lab.are_there(AT_ONCE).await;
        lab.service.let_go.add_permits(CLIENTS);
        let form = if method == Method::POST { "Basic one" } else { "" };
        for (_, answer) in asking.join_all().await {
            assert_eq!(answer, format!("for Basic one nothing{form}"));
        }
        assert_eq!(lab.service.asked.load(Ordering::SeqCst), CLIENTS, "{method} {more:?}");
        assert_eq!(lab.service.most.load(Ordering::SeqCst), AT_ONCE, "{method} {more:?}");
    }
}

#[tokio::test]
async fn tokens_for_an_account_wait_for_their_turn_too() {
    let lab = Lab::with_account(true).await;
    let mut asking = JoinSet::new();
    for number in 0..CLIENTS {
        let darter = lab.darter.clone();
        let path = format!("/v2/team/{number}/manifests/latest");
        asking.spawn(async move { ask(&darter, Method::GET, &path, &[]).await.status() });
    }
    lab.all_wait().await;
    lab.are_there(AT_ONCE).await;
    lab.service.let_go.add_permits(CLIENTS);
    // What the service says is no token, and the requests go on without.
    assert!(asking.join_all().await.iter().all(|status| *status == 401));
    assert_eq!(lab.service.asked.load(Ordering::SeqCst), CLIENTS);
    assert_eq!(lab.service.most.load(Ordering::SeqCst), AT_ONCE);
}

/// So much later, by the clock that all timers here go by.
async fn later(wait: Duration) {
    tokio::time::pause();
    tokio::time::advance(wait).await;
    tokio::time::resume();
}

#[tokio::test]
async fn whose_turn_does_not_come_is_told_when_to_come_again_and_nobody_asks_without() {
    for (method, more) in
        [(Method::GET, NOTHING), (Method::GET, ("cache-control", "no-cache")), (Method::POST, NOTHING)]
    {
        let lab = Lab::start().await;
        assert_eq!(ask(&lab.darter, Method::GET, "/v2/", &[]).await.status(), 401);
        let names = (0..CLIENTS).map(|number| format!("Basic {number}"));
        let asking = lab.all_send(method.clone(), "/token", names, more);
        lab.all_wait().await;
        lab.are_there(AT_ONCE).await;
        later(Duration::from_secs(21)).await;
        lab.darter.until("proxy_requests_in_flight", AT_ONCE as f64).await;
        lab.are_there(AT_ONCE).await;
        lab.service.let_go.add_permits(CLIENTS);
        let answers = asking.join_all().await;
        let (served, told): (Vec<_>, Vec<_>) = answers.iter().partition(|(_, told)| told.starts_with("for "));
        assert_eq!((served.len(), told.len()), (AT_ONCE, CLIENTS - AT_ONCE), "{method} {more:?}");
        for (_, told) in told {
            assert!(told.contains("could not be asked for a token within 20 s; try again in 5 s"), "{told}");
        }
        assert_eq!(lab.service.asked.load(Ordering::SeqCst), AT_ONCE, "{method} {more:?}");
        assert_eq!(lab.service.most.load(Ordering::SeqCst), AT_ONCE, "{method} {more:?}");
        // Whoever comes again has his turn.
        assert_eq!(
            lab.all_ask("/token", one().take(1), NOTHING).join_all().await[0].1,
            "for Basic one nothing"
        );
    }
}

#[tokio::test]
async fn so_is_who_would_have_been_lent_an_account() {
    let lab = Lab::with_account(true).await;
    let mut asking = JoinSet::new();
    for number in 0..CLIENTS {
        let darter = lab.darter.clone();
        let path = format!("/v2/team/{number}/manifests/latest");
        asking.spawn(async move {
            let answer = ask(&darter, Method::GET, &path, &[]).await;
            (
                answer.status().as_u16(),
                answer.headers().get("retry-after").map(|it| it.to_str().unwrap().to_owned()),
            )
        });
    }
    lab.all_wait().await;
    lab.are_there(AT_ONCE).await;
    // The time that an answer may take, 15 s, ends too: some have the turns of those who gave up.
    later(Duration::from_secs(21)).await;
    lab.service.let_go.add_permits(CLIENTS);
    let answers = asking.join_all().await;
    let told = answers.iter().filter(|answer| **answer == (503, Some("5".to_owned()))).count();
    let went_on = answers.iter().filter(|(status, _)| *status == 401).count();
    assert!(told > 0 && told + went_on == CLIENTS, "{answers:?}");
}

#[tokio::test]
async fn who_sends_a_form_slowly_holds_up_nobody() {
    let lab = Lab::start().await;
    assert_eq!(ask(&lab.darter, Method::GET, "/v2/", &[]).await.status(), 401);
    let head = format!(
        "POST http://127.0.0.1:{0}/token HTTP/1.1\r\nHost: 127.0.0.1:{0}\r\nContent-Length: 9\r\n\r\nB",
        lab.tokens.port
    );
    let mut slow = Vec::new();
    for _ in 0..2 * AT_ONCE {
        let mut client = lab.darter.connect().await;
        tokio::io::AsyncWriteExt::write_all(&mut client, head.as_bytes()).await.unwrap();
        slow.push(client);
    }
    lab.darter.until("proxy_requests_in_flight", slow.len() as f64).await;
    lab.service.let_go.add_permits(1);
    let quick = lab.all_ask("/token", one().take(1), NOTHING).join_all().await;
    assert_eq!(quick[0].1, "for Basic one nothing");
    assert_eq!(lab.service.asked.load(Ordering::SeqCst), 1);
    lab.darter.until("proxy_requests_in_flight", slow.len() as f64).await;
}

#[tokio::test]
async fn what_no_registry_has_named_is_asked_as_it_comes() {
    let lab = Lab::start().await;
    assert_eq!(ask(&lab.darter, Method::GET, "/v2/", &[]).await.status(), 401);
    let asking = lab.all_ask("/page", one(), NOTHING);
    lab.all_wait().await;
    lab.are_there(CLIENTS).await;
    lab.service.let_go.add_permits(CLIENTS);
    assert_eq!(asking.join_all().await.len(), CLIENTS);
}
