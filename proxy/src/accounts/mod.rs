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

mod ask;
mod login;
mod names;

pub(crate) use ask::{TOKEN_TIMEOUT, realms};
pub use login::Login;
pub(crate) use names::registry;

use self::ask::{ByItself, CHALLENGE_FRESH, Challenge, Known, Why, fetch_token, learn_challenge};
use self::names::{repository, scopes};
use crate::realms::Judges;
use crate::refusal::Refusal;
use darter_rules::{Scheme, Target, oci};
use darter_upstream::Upstream;
use futures_util::FutureExt as _;
use http::Method;
use http::header::{self, HeaderMap, HeaderValue};
use moka::future::Cache;
use regex::Regex;
use std::sync::Arc;

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

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    account: usize,
    realm: String,
    service: Option<String>,
    repository: String,
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

    /// Adds an account's credentials to a request that brings none, where one is meant for it. Whatever goes wrong at
    /// the registry or its token service, the request goes on without, and the registry says what it thinks of that.
    ///
    /// # Errors
    /// When so many others ask the token service that it could not be asked.
    pub(crate) async fn lend(
        &self,
        judges: Judges<'_>,
        target: &Target,
        method: &Method,
        headers: &mut HeaderMap,
    ) -> Result<Lent, Refusal> {
        if self.accounts.is_empty() || !takes(method, headers) {
            return Ok(Lent::Nothing);
        }
        Ok(match self.credentials(judges, target).boxed().await {
            Ok(Meant::Credentials(credentials)) => {
                headers.insert(header::AUTHORIZATION, credentials);
                Lent::Credentials
            }
            Ok(Meant::Needless) => Lent::Needless,
            Ok(Meant::Nothing) => Lent::Nothing,
            Err(Why::Crowded(refusal)) => return Err(refusal),
            Err(Why::Said(why)) => {
                tracing::warn!(host = target.authority(), "no account is lent: {why}");
                Lent::Failed
            }
        })
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

    async fn credentials(&self, judges: Judges<'_>, target: &Target) -> Result<Meant, Why> {
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
    async fn for_others(&self, upstream: &Upstream, target: &Target) -> Result<Option<HeaderValue>, Why> {
        if matches!(target.path(), "/v2" | "/v2/") {
            let place = Place::of(target);
            let Some(account) = self.accounts.iter().find(|account| account.is_for(&place)) else {
                return Ok(None);
            };
            // A client that is let in without asking for a password then asks for repositories without one.
            let basic = self.challenge(upstream, target).await? == Challenge::Basic;
            return Ok(basic.then(|| account.login.header()));
        }
        let Some(realm) = self.realms.get(target.without_query()).await else { return Ok(None) };
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

    async fn challenge(&self, upstream: &Upstream, target: &Target) -> Result<Challenge, Why> {
        let ping = target.clone().with_path_and_query("/v2/");
        let learned = self.challenges.get_with(registry(target), learn_challenge(upstream, ping)).await;
        if let Ok(Challenge::Bearer { realm, .. }) = &learned.value
            && let Ok(service) = Target::parse(realm.as_str())
        {
            self.named(service.without_query().to_owned(), Place::of(target)).await;
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
