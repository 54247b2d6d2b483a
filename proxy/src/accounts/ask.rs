//! What registries and token services are asked on behalf of an account, and how their answers read.

use super::{Account, Login};
use crate::realms::{Judge, Judges};
use crate::refusal::Refusal;
use darter_rules::{Scheme, Target};
use darter_upstream::{Body, Incoming, Upstream, empty_body};
use http::header::{self, HeaderMap};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use moka::Expiry;
use std::sync::Arc;
use std::time::{Duration, Instant};
use url::Url;

/// How long a registry's way of asking is remembered, and how long that it could not be learned.
pub(super) const CHALLENGE_FRESH: Duration = Duration::from_secs(3600);
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
/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// It answers everybody.
    Open,
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
    },
}

/// Why something could not be learned.
#[derive(Debug, Clone)]
pub(super) enum Why {
    Said(Arc<str>),
    /// Nobody was asked: the turn did not come.
    Crowded(Refusal),
}

/// Something learned, or why it could not be, and for how long that holds.
#[derive(Clone)]
pub(super) struct Known<T> {
    pub(super) value: Result<T, Why>,
    pub(super) lives: Duration,
}

/// What is known holds for as long as it says itself.
pub(super) struct ByItself;

impl<K, T> Expiry<K, Known<T>> for ByItself {
    fn expire_after_create(&self, _: &K, known: &Known<T>, _: Instant) -> Option<Duration> {
        Some(known.lives)
    }
}

/// How a registry wants to be asked, from its own mouth.
pub(super) async fn learn_challenge(upstream: &Upstream, ping: Target) -> Known<Challenge> {
    match ask_challenge(upstream, &ping).await {
        Ok(challenge) => Known { value: Ok(challenge), lives: CHALLENGE_FRESH },
        Err(why) => Known { value: Err(Why::Said(why.into())), lives: FAILURE_FRESH },
    }
}

async fn ask_challenge(upstream: &Upstream, ping: &Target) -> Result<Challenge, String> {
    let answer = get(upstream, ping.url(), None).await?;
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

/// A token for pulling from one repository.
pub(super) async fn fetch_token(
    judges: Judges<'_>,
    account: &Account,
    (realm, service): (Url, Option<String>),
    repository: &str,
) -> Known<Login> {
    let of = realm.host_str().unwrap_or_default().to_owned();
    let _turn = match Target::parse(realm.as_str()) {
        Ok(service) => match judges.turn(Judge::TokenService, &service).await {
            Ok(turn) => Some(turn),
            // Whoever has waited for it has this answer; the next one waits for himself.
            Err(refusal) => return Known { value: Err(Why::Crowded(refusal)), lives: Duration::ZERO },
        },
        Err(_) => None,
    };
    let asked = ask_token(judges.upstream, account, (realm, service), repository);
    let asked = tokio::time::timeout(TOKEN_TIMEOUT, asked);
    let late = |_| Err(format!("the token service {of} does not answer within {TOKEN_TIMEOUT:?}"));
    match asked.await.unwrap_or_else(late) {
        Ok((token, lives)) => Known { value: Ok(token), lives },
        Err(why) => Known { value: Err(Why::Said(why.into())), lives: FAILURE_FRESH },
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
