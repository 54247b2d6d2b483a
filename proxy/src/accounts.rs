//! [`Accounts`]: the operator's own credentials for registries, lent to clients that bring none.
//!
//! Lent only for reading (GET and HEAD), only to requests without Authorization, only for the repositories that the account
//! is for, and only over TLS unless the account says otherwise: which scheme a request has is its client's choice. Whoever
//! may use the proxy can then read these repositories: that is what the operator asks for by configuring it.
//!
//! A registry says by a challenge how it wants to be asked. With Basic, the account goes along. With Bearer there are two
//! ways: a request to the registry itself gets a token that is fetched here, for pulling from that one repository; and a
//! client that asks the token service itself, as dockerd does, gets the account added there, if all that it asks for is
//! pulling from repositories of the account now: no token that gets other tokens. Credentials go to a token service only when
//! the registry has named it, whose certificate was verified, and never in the clear on behalf of a registry that speaks TLS.

use crate::realms::{Judge, Judges};
use darter_certs::Secret;
use darter_rules::oci::{self, Resource};
use darter_rules::{Scheme, Target};
use darter_upstream::{Body, Incoming, Upstream, empty_body};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use moka::Expiry;
use moka::future::Cache;
use regex::Regex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use url::Url;

/// How long a registry's way of asking is remembered, and how long that it could not be learned.
const CHALLENGE_FRESH: Duration = Duration::from_secs(3600);
const FAILURE_FRESH: Duration = Duration::from_secs(10);
/// A token without a word on its life lives this long (distribution, "Token Authentication Specification": expires_in).
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);
/// A token is renewed so long before its end, or at half of its life: a download that begins with it must not outlive it.
const RENEW_BEFORE: Duration = Duration::from_secs(30);
/// However long a token says that it lives.
const MAX_TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// The answer of a token service, in bytes. Tokens reach tens of KiB.
const MAX_ANSWER: usize = 256 << 10;
/// How long a token service may take for all of its answer. All who want that token wait for it, and containerd gives up
/// after 30 s.
pub(crate) const TOKEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Registries that are kept of those which name the same token service.
const MAX_REGISTRIES: usize = 16;
/// Tokens and challenges that are kept.
const MAX_KEPT: u64 = 10_000;

/// An account of the operator's, and what it is lent for.
#[derive(Debug, Clone)]
pub struct Account {
    /// Searched for in `host:port` of the registry.
    pub hosts: Regex,
    /// Searched for in the repository's name.
    pub repositories: Regex,
    /// Name and password.
    pub login: Login,
    /// Also to a registry without TLS: whoever is on the way there reads the password.
    pub insecure: bool,
}

/// What is said in an Authorization header: a name and a password, or the token that they were good for. Never shown.
#[derive(Debug, Clone)]
pub struct Login(Secret);

/// The accounts, and what was learned with them.
pub struct Accounts {
    accounts: Vec<Account>,
    /// By `scheme://host:port` of the registry.
    challenges: Cache<String, Known<Challenge>>,
    tokens: Cache<TokenKey, Known<Login>>,
    /// Which registries have named a token service: by the service's `scheme://host:port` and path.
    realms: Cache<String, Arc<Realm>>,
}

/// Who has named a token service, the last one first.
struct Realm {
    registries: Vec<Place>,
}

/// A registry, as `hosts` of an account sees it.
#[derive(Clone, PartialEq, Eq)]
struct Place {
    /// `host:port`.
    host_port: String,
    /// It is asked over TLS.
    secure: bool,
}

/// What an account did for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lent {
    /// Nothing: none is meant for it.
    Nothing,
    Credentials,
    /// Nothing, because the registry is known to answer everybody.
    Needless,
    /// Nothing, because what it takes could not be had.
    Failed,
}

/// What is meant for a request.
enum Meant {
    Nothing,
    /// Its registry answers everybody.
    Needless,
    Credentials(HeaderValue),
}

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    /// It answers everybody.
    Open,
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    account: usize,
    realm: String,
    service: Option<String>,
    repository: String,
}

/// Something learned, or why it could not be, and for how long that holds.
#[derive(Clone)]
struct Known<T> {
    value: Result<T, Arc<str>>,
    lives: Duration,
}

// === impl Login ===

impl Login {
    /// # Errors
    /// When the name holds a colon (RFC 7617 section 2).
    pub fn new(name: &str, password: &str) -> Result<Self, &'static str> {
        use base64::Engine as _;
        if name.contains(':') {
            return Err("a user name cannot hold a colon");
        }
        let both = Secret::from(format!("{name}:{password}"));
        let encoded = Secret::from(base64::engine::general_purpose::STANDARD.encode(both.reveal()));
        Self::of(format!("Basic {}", encoded.reveal())).ok_or("too long")
    }

    /// A token (RFC 6750), if it can stand in a header.
    fn bearer(token: &str) -> Option<Self> {
        Self::of(format!("Bearer {token}"))
    }

    fn of(value: String) -> Option<Self> {
        let login = Self(value.into());
        login.try_header().map(|_| login)
    }

    fn try_header(&self) -> Option<HeaderValue> {
        let mut header = HeaderValue::try_from(self.0.reveal()).ok()?;
        header.set_sensitive(true);
        Some(header)
    }

    /// The header's value, which prints as `Sensitive`.
    fn header(&self) -> HeaderValue {
        self.try_header().expect("it was tried when the login was made")
    }

    /// What tells one login from another, as secret as the password.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.reveal().as_bytes()
    }
}

// === impl Accounts ===

impl Accounts {
    /// These accounts; for a repository of a registry the first that matches counts.
    pub fn new(accounts: Vec<Account>) -> Self {
        Self {
            accounts,
            challenges: Cache::builder().max_capacity(MAX_KEPT).expire_after(ByItself).build(),
            tokens: Cache::builder()
                .max_capacity(MAX_KEPT)
                .expire_after(ByItself)
                .support_invalidation_closures()
                .build(),
            realms: Cache::builder().max_capacity(MAX_KEPT).time_to_live(CHALLENGE_FRESH).build(),
        }
    }

    /// Adds an account's credentials to a request that brings none, where one is meant for it. Whatever goes wrong, the
    /// request goes on without, and the registry says what it thinks of that.
    pub(crate) async fn lend(
        &self,
        judges: Judges<'_>,
        target: &Target,
        method: &Method,
        headers: &mut HeaderMap,
    ) -> Lent {
        if self.accounts.is_empty() || !takes(method, headers) {
            return Lent::Nothing;
        }
        match self.credentials(judges, target).await {
            Ok(Meant::Credentials(credentials)) => {
                headers.insert(header::AUTHORIZATION, credentials);
                Lent::Credentials
            }
            Ok(Meant::Needless) => Lent::Needless,
            Ok(Meant::Nothing) => Lent::Nothing,
            Err(why) => {
                tracing::warn!(host = target.authority(), "no account is lent: {why}");
                Lent::Failed
            }
        }
    }

    /// The account that is meant for a request, with its number.
    pub(crate) fn of(
        &self,
        target: &Target,
        method: &Method,
        headers: &HeaderMap,
    ) -> Option<(usize, &Login)> {
        let meant = takes(method, headers).then(|| repository(target)).flatten();
        let (index, account) = self.account(&Place::of(target), meant?)?;
        Some((index, &account.login))
    }

    /// For whom a request is made, after that was done for it: for the account, also when its token could not be had.
    /// Nobody, where the registry answers everybody.
    pub(crate) fn lender(&self, target: &Target, lent: Lent) -> Option<Login> {
        if !matches!(lent, Lent::Credentials | Lent::Failed) {
            return None;
        }
        let (_, account) = self.account(&Place::of(target), repository(target)?)?;
        Some(account.login.clone())
    }

    /// The registry has refused a request, in spite of what was lent or without it: the next one gets something new.
    pub(crate) async fn refused(&self, target: &Target, lent: Lent) {
        if lent == Lent::Needless {
            self.challenges.invalidate(&registry(target)).await;
        }
        let Some(repository) = repository(target).filter(|_| lent == Lent::Credentials) else { return };
        let repository = oci::repository_identity(target.host(), repository);
        let _ = self.tokens.invalidate_entries_if(move |key, _| key.repository == repository);
    }

    async fn credentials(&self, judges: Judges<'_>, target: &Target) -> Result<Meant, Arc<str>> {
        let Some(repository) = repository(target) else {
            let credentials = self.for_others(judges.upstream, target).await?;
            return Ok(credentials.map_or(Meant::Nothing, Meant::Credentials));
        };
        let Some((index, account)) = self.account(&Place::of(target), repository) else {
            return Ok(Meant::Nothing);
        };
        match self.challenge(judges.upstream, target).await? {
            Challenge::Open => Ok(Meant::Needless),
            Challenge::Basic => Ok(Meant::Credentials(account.login.header())),
            Challenge::Bearer { realm, service } => {
                let key = TokenKey {
                    account: index,
                    realm: realm.to_string(),
                    service: service.clone(),
                    repository: oci::repository_identity(target.host(), repository),
                };
                let fetched = fetch_token(judges, account, (realm, service), repository);
                self.tokens.get_with(key, fetched).await.value.map(|token| Meant::Credentials(token.header()))
            }
        }
    }

    /// For a request that names no repository: the ping of a registry that wants Basic, or a token service.
    async fn for_others(
        &self,
        upstream: &Upstream,
        target: &Target,
    ) -> Result<Option<HeaderValue>, Arc<str>> {
        if matches!(target.path(), "/v2" | "/v2/") {
            let place = Place::of(target);
            let Some(account) = self.accounts.iter().find(|account| account.is_for(&place)) else {
                return Ok(None);
            };
            // A client that is let in without asking for a password then asks for repositories without one.
            let basic = self.challenge(upstream, target).await? == Challenge::Basic;
            return Ok(basic.then(|| account.login.header()));
        }
        let Some(realm) = self.realms.get(&target.without_query()).await else { return Ok(None) };
        let Some(names) = scopes(target.query().unwrap_or_default()) else { return Ok(None) };
        let account = realm.registries.iter().find_map(|registry| self.account_for_all(registry, &names));
        Ok(account.map(|account| account.login.header()))
    }

    /// A registry has named a token service.
    async fn named(&self, service: String, registry: Place) {
        let known = self.realms.get(&service).await;
        let mut registries = known.map_or_else(Vec::new, |realm| realm.registries.clone());
        registries.retain(|known| *known != registry);
        registries.insert(0, registry);
        registries.truncate(MAX_REGISTRIES);
        self.realms.insert(service, Arc::new(Realm { registries })).await;
    }

    /// The one account that is for all of these repositories.
    fn account_for_all(&self, registry: &Place, names: &[String]) -> Option<&Account> {
        let mut accounts = names.iter().map(|name| self.account(registry, name));
        let (index, account) = accounts.next()??;
        accounts.all(|other| other.is_some_and(|(other, _)| other == index)).then_some(account)
    }

    fn account(&self, place: &Place, repository: &str) -> Option<(usize, &Account)> {
        self.accounts
            .iter()
            .enumerate()
            .find(|(_, account)| account.is_for(place) && account.repositories.is_match(repository))
    }

    async fn challenge(&self, upstream: &Upstream, target: &Target) -> Result<Challenge, Arc<str>> {
        let ping = target.clone().with_path_and_query("/v2/");
        let learned = self.challenges.get_with(registry(target), learn_challenge(upstream, ping)).await;
        if let Ok(Challenge::Bearer { realm, .. }) = &learned.value
            && let Ok(service) = Target::parse(realm.as_str())
        {
            self.named(service.without_query(), Place::of(target)).await;
        }
        learned.value
    }
}

impl Account {
    fn is_for(&self, place: &Place) -> bool {
        (place.secure || self.insecure) && self.hosts.is_match(&place.host_port)
    }
}

impl Place {
    fn of(registry: &Target) -> Self {
        Self {
            host_port: format!("{}:{}", registry.host(), registry.port()),
            secure: registry.scheme() == Scheme::Https,
        }
    }
}

/// Whether a request is of a kind for which something may be lent.
fn takes(method: &Method, headers: &HeaderMap) -> bool {
    matches!(*method, Method::GET | Method::HEAD) && !headers.contains_key(header::AUTHORIZATION)
}

/// `scheme://host:port`.
pub(crate) fn registry(target: &Target) -> String {
    format!("{}://{}:{}", target.scheme().as_str(), target.host(), target.port())
}

/// The repository that a request to a registry is about. What comes close to such a request is none: its server may
/// understand another repository.
fn repository(target: &Target) -> Option<&str> {
    if let Some(resource) = Resource::parse(target.path()) {
        return Some(resource.name);
    }
    // The other things that can be read of a repository.
    let path = target.path().strip_prefix("/v2/")?;
    let referrers = || {
        let (name, digest) = path.rsplit_once("/referrers/")?;
        oci::Digest::parse(digest).map(|_| name)
    };
    path.strip_suffix("/tags/list").or_else(referrers).filter(|name| oci::is_name(name))
}

/// The repositories of a token request that asks for nothing but pulling, now. What other parameters would bring, each
/// token service decides: `offline_token` a token that gets tokens of every scope, without end.
fn scopes(query: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            // One parameter may hold several, separated by spaces.
            "scope" => {
                for scope in value.split_ascii_whitespace() {
                    let name = scope.strip_prefix("repository:")?.strip_suffix(":pull")?;
                    names.push(oci::is_name(name).then(|| name.to_owned())?);
                }
            }
            "service" | "client_id" | "account" if !value.contains(char::is_control) => {}
            _ => return None,
        }
    }
    (!names.is_empty()).then_some(names)
}

// === asking ===

async fn learn_challenge(upstream: &Upstream, ping: Target) -> Known<Challenge> {
    match ask_challenge(upstream, &ping).await {
        Ok(challenge) => Known { value: Ok(challenge), lives: CHALLENGE_FRESH },
        Err(why) => Known { value: Err(why.into()), lives: FAILURE_FRESH },
    }
}

async fn ask_challenge(upstream: &Upstream, ping: &Target) -> Result<Challenge, String> {
    let answer = get(upstream, &ping.url(), None).await?;
    challenge(answer.status(), answer.headers(), ping.scheme() == Scheme::Https)
}

/// What a registry's answer to a ping says. One that has other troubles at the moment says nothing.
fn challenge(status: StatusCode, headers: &HeaderMap, secure: bool) -> Result<Challenge, String> {
    match status {
        StatusCode::UNAUTHORIZED => {}
        status if status.is_success() => return Ok(Challenge::Open),
        status => return Err(format!("the registry answers {status} to /v2/")),
    }
    let challenges: Vec<Challenge> = challenges(headers, secure).collect();
    let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    let chosen = bearer.or_else(|| challenges.iter().find(|challenge| **challenge == Challenge::Basic));
    chosen.cloned().ok_or_else(|| "the registry asks for credentials in no way that is known here".to_owned())
}

/// The token services that an answer names. One without TLS that a registry with TLS names is none.
pub(crate) fn realms(headers: &HeaderMap, secure: bool) -> impl Iterator<Item = Url> {
    let realm = |challenge| match challenge {
        Challenge::Bearer { realm, .. } => Some(realm),
        Challenge::Open | Challenge::Basic => None,
    };
    challenges(headers, secure).filter_map(realm)
}

fn challenges(headers: &HeaderMap, secure: bool) -> impl Iterator<Item = Challenge> {
    let texts = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(move |text| parse_challenges(text, secure))
}

/// Those that we can answer. A token service without TLS gets no password on behalf of a registry with it.
fn parse_challenges(text: &str, secure: bool) -> Vec<Challenge> {
    let Ok(challenges) = http_auth::parse_challenges(text) else { return Vec::new() };
    let known = challenges.into_iter().filter_map(|challenge| {
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        let param = |name: &str| {
            let (_, value) = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(value.to_unescaped())
        };
        let realm = Url::parse(&param("realm")?).ok()?;
        let plain = realm.scheme() == "http" && !secure;
        (challenge.scheme.eq_ignore_ascii_case("bearer") && (realm.scheme() == "https" || plain))
            .then(|| Challenge::Bearer { realm, service: param("service") })
    });
    known.collect()
}

async fn fetch_token(
    judges: Judges<'_>,
    account: &Account,
    (realm, service): (Url, Option<String>),
    repository: &str,
) -> Known<Login> {
    let of = realm.host_str().unwrap_or_default().to_owned();
    let _turn = match Target::parse(realm.as_str()) {
        Ok(service) => judges.turn(Judge::TokenService, &service).await,
        Err(_) => None,
    };
    let asked = ask_token(judges.upstream, account, (realm, service), repository);
    let asked = tokio::time::timeout(TOKEN_TIMEOUT, asked);
    let late = |_| Err(format!("the token service {of} does not answer within {TOKEN_TIMEOUT:?}"));
    match asked.await.unwrap_or_else(late) {
        Ok((token, lives)) => Known { value: Ok(token), lives },
        Err(why) => Known { value: Err(why.into()), lives: FAILURE_FRESH },
    }
}

async fn ask_token(
    upstream: &Upstream,
    account: &Account,
    (mut realm, service): (Url, Option<String>),
    repository: &str,
) -> Result<(Login, Duration), String> {
    {
        let mut query = realm.query_pairs_mut();
        if let Some(service) = &service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &format!("repository:{repository}:pull"));
    }
    let of = realm.host_str().unwrap_or_default().to_owned();
    let answer = get(upstream, realm.as_str(), Some(&account.login)).await?;
    if !answer.status().is_success() {
        return Err(format!("the token service {of} answers {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|_| format!("the answer of the token service {of} cannot be read"))?.to_bytes();
    token(&body).ok_or_else(|| format!("the token service {of} gives no token"))
}

/// The token in an answer, as a header, and how long it may be used.
fn token(body: &[u8]) -> Option<(Login, Duration)> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let token = ["token", "access_token"].iter().find_map(|name| body.get(name)?.as_str())?;
    let token = Login::bearer(token)?;
    let life = body.get("expires_in").and_then(serde_json::Value::as_u64);
    let life = life.map_or(DEFAULT_TOKEN_LIFE, Duration::from_secs).min(MAX_TOKEN_LIFE);
    Some((token, life.saturating_sub(RENEW_BEFORE).max(life / 2)))
}

async fn get(upstream: &Upstream, url: &str, login: Option<&Login>) -> Result<Response<Incoming>, String> {
    let request: Request<Body> = {
        let mut request = Request::get(url).body(empty_body()).map_err(|error| error.to_string())?;
        if let Some(login) = login {
            request.headers_mut().insert(header::AUTHORIZATION, login.header());
        }
        request
    };
    upstream.send(request).await.map_err(|error| error.to_string())
}

// === expiry ===

/// What is known holds for as long as it says itself.
struct ByItself;

impl<K, T> Expiry<K, Known<T>> for ByItself {
    fn expire_after_create(&self, _: &K, known: &Known<T>, _: Instant) -> Option<Duration> {
        Some(known.lives)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pulling_is_lent_for() {
        let names = |query: &str| scopes(query).map(|names| names.join(" "));
        assert_eq!(names("service=s&scope=repository:a/b:pull").as_deref(), Some("a/b"));
        assert_eq!(names("scope=repository%3Aa%3Apull+repository%3Ab%3Apull").as_deref(), Some("a b"));
        assert_eq!(names("scope=repository:a:pull&scope=repository:b:pull").as_deref(), Some("a b"));
        assert_eq!(names("account=u&client_id=docker&scope=repository:a:pull").as_deref(), Some("a"));
        for other in [
            "",
            "service=s",
            "scope=",
            "scope=repository:a:pull,push",
            "scope=repository:a:push",
            "scope=repository:a:*",
            "scope=registry:catalog:*",
            "scope=repository:a:pull&scope=repository:b:delete",
            "scope=repository:a:pull&offline_token=true",
            "scope=repository:a:pull&grant_type=password",
            "scope=repository:a:pull&service=a%0ab",
            "scope=repository:a/../b:pull",
            "scope=repository::pull",
        ] {
            assert_eq!(names(other), None, "{other}");
        }
    }

    #[test]
    fn challenges_are_read_and_a_password_never_leaves_tls() {
        let https = r#"Bearer realm="https://auth.example/token",service="registry, the",scope="x""#;
        let bearer = |realm: &str| Challenge::Bearer {
            realm: realm.parse().unwrap(),
            service: Some("registry, the".to_owned()),
        };
        assert_eq!(parse_challenges(https, true), [bearer("https://auth.example/token")]);
        let http = https.replace("https:", "http:");
        assert_eq!(parse_challenges(&http, true), []);
        assert_eq!(parse_challenges(&http, false), [bearer("http://auth.example/token")]);
        assert_eq!(parse_challenges(r#"basic realm="x""#, true), [Challenge::Basic]);
        for malformed in ["", "Bearer", r#"Bearer realm="/token""#, "Bearer realm=\"file:///x\"", "\u{1}"] {
            assert_eq!(parse_challenges(malformed, false), [], "{malformed}");
        }
    }

    #[test]
    fn a_registry_in_trouble_is_not_open_to_all() {
        let said = |status: u16| challenge(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), true);
        assert_eq!(said(200), Ok(Challenge::Open));
        for status in [302, 401, 404, 429, 503] {
            assert!(said(status).is_err(), "{status}");
        }
    }

    #[test]
    fn a_token_is_used_until_shortly_before_its_end() {
        let life = |body: &str| token(body.as_bytes()).map(|(_, life)| life.as_secs());
        assert_eq!(life(r#"{"token":"t","expires_in":300}"#), Some(270));
        assert_eq!(life(r#"{"access_token":"t"}"#), Some(30));
        assert_eq!(life(r#"{"token":"t","expires_in":10}"#), Some(5));
        assert_eq!(life(r#"{"token":"t","expires_in":99999999}"#), Some(3570));
        for none in ["", "{}", r#"{"token":7}"#, "{\"token\":\"a\\nb\"}"] {
            assert_eq!(life(none), None, "{none}");
        }
    }

    #[test]
    fn what_names_a_repository() {
        let name = |path: &str| {
            let target = Target::parse(&format!("https://registry.example{path}")).unwrap();
            repository(&target).map(str::to_owned)
        };
        let referrers = format!("referrers/sha256:{}?artifactType=a", "0a".repeat(32));
        for path in ["manifests/latest", "tags/list?n=1", &referrers] {
            assert_eq!(name(&format!("/v2/team/app/{path}")).as_deref(), Some("team/app"), "{path}");
        }
        let long = format!("/v2/{}/tags/list", "a".repeat(60_000));
        for path in [
            "/",
            "/v2/",
            "/v2/_catalog",
            "/token?scope=repository:a:pull",
            "/v2/team/app/tags/list/../../../../b/manifests/latest",
            "/v2/team/x/../../b/tags/list",
            "/v2/team/app/referrers/sha256:00",
            &long,
        ] {
            assert_eq!(name(path), None, "{path}");
        }
    }

    #[test]
    fn logins_are_not_shown() {
        let login = Login::new("user", "hunter2").unwrap();
        assert_eq!(format!("{login:?} {:?}", login.header()), "Login([redacted]) Sensitive");
        assert!(Login::new("a:b", "c").is_err());
    }
}
