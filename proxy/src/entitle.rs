//! [`Gate`]: may this caller have what the cluster holds? Asked before the engine, on every request for content that could
//! come from somebody else's fetch.
//!
//! What a registry's blobs and manifests by digest need is that the repository contains them and that the caller may read
//! it (see [`darter_entitle`]). The manifest request that precedes a pull passes through here and proves both. When it did
//! not, the registry is asked once, with the caller's own credential; a refusal sends the caller's request itself to the
//! registry, so that he gets its own answer and can do its token dance.
//!
//! A 200 alone proves nothing: there are portals that answer it to strangers, with a page for signing in. An answer counts
//! when it bears out what was asked for: a manifest by its content, a blob by its length.
//!
//! Other content by digest (an index of apt or dnf, a git-lfs object) follows the same rule, with its URL as the repository: to
//! know a digest is not to be entitled to what it names, so the place that is asked for it must have it for this caller.
//!
//! Content that is named by its URL alone is shared only when it was asked for without any credential. With a signed query it
//! is another task, for which each caller is checked; with a credential in a header it is not shared at all, since the
//! answer may be meant for one person.

use crate::accounts::Login;
use crate::place::server;
use crate::probe::{Said, probe};
use crate::realms::{Judge, Judges, Realms};
use crate::refusal::Refusal;
use crate::together::{Asked, Together};
use crate::watched::{Proof, Watched};
use darter_entitle::{Ages, Caller, Credentials, Facts, Part, Pause, Place, Verdict, bearer_lifetime};
use darter_rules::oci::{self, Kind, Resource};
use darter_rules::{Identity, Target};
use darter_upstream::{Incoming, UpstreamError};
use futures_util::FutureExt as _;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Headers that say nothing about who asks. Every other one may be somebody's key: registries and file servers have their
/// own names for it (Private-Token, X-JFrog-Art-Api ...).
const HARMLESS: [&str; 39] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-length",
    "date",
    "dnt",
    "forwarded",
    "from",
    "host",
    "keep-alive",
    // npm's own. Not npm-otp, which is a secret.
    "npm-auth-type",
    "npm-command",
    "npm-in-ci",
    "npm-scope",
    "npm-session",
    "pragma",
    "priority",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "referer",
    "sec-gpc",
    "sec-purpose",
    "te",
    "traceparent",
    "tracestate",
    "upgrade-insecure-requests",
    "user-agent",
    "via",
    "want-digest",
    // One by one: by X-Forwarded-User and X-Forwarded-Access-Token portals let people in.
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-request-id",
];
/// The same, by how their names begin. What begins with ours goes to no origin.
const HARMLESS_PREFIXES: [&str; 5] = ["if-", "pacote-", "sec-ch-", "sec-fetch-", "x-dragonfly-"];
/// A query with one of these in it lets whoever has it in.
const SIGNED: [&str; 8] = ["sig", "token", "key", "credential", "auth", "policy", "verify", "expires"];
/// A longer URL is not worth a fact.
const MAX_URL: usize = 2048;
/// How long a registry that has had enough of a caller's questions is left alone, where it does not say itself; and at most,
/// whatever it says: clients wait.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Manifests that are read at once while they pass, each of up to 4 MiB. More pass by unread, and prove less.
const MAX_READ: usize = 64;

/// What is known of entitlements, and the way to learn more.
pub(crate) struct Gate {
    facts: Mutex<Facts>,
    credentials: Credentials,
    /// Questions to registries that are under way.
    asking: Together<Question, Answered>,
    reading: Arc<Semaphore>,
    pub(crate) realms: Realms,
}

/// Who asks for some content.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) headers: &'a HeaderMap,
    /// The operator's account in whose name he asks. What it may read does not change with its tokens.
    pub(crate) account: Option<&'a Login>,
}

/// Whether a caller may have some content from the engine.
pub(crate) enum Entitled<'a> {
    Yes,
    /// Yes, if the content has this length. An origin that answers everything with a page for signing in shows here. Until that
    /// is known, whoever comes with the same question has the same answer.
    IfLong(u64, Held<'a>),
    /// The origin is to answer him itself.
    No,
    /// The origin could not be asked.
    Unknown(UpstreamError),
    /// The origin wants to be asked nothing by him for now.
    Paused(Pause),
    /// So many others ask the origin that his turn did not come.
    Crowded(Refusal),
}

/// An answer that is held on to.
pub(crate) type Held<'a> = Asked<'a, Question, Answered>;

/// What a caller wants to know of an origin.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    place: Place,
    part: Part,
    caller: Caller,
}

/// What has to be known before the engine may answer.
enum Asking {
    /// Anybody may have it.
    Nothing,
    /// It is for one person alone.
    Unshared,
    About(Question),
}

/// What an origin said.
#[derive(Debug, Clone)]
pub(crate) enum Answered {
    /// He may have it, if it is so long.
    Granted(u64),
    Refused,
    /// It has other troubles: an error of its own.
    Troubled,
    /// It has had enough of this caller.
    Paused(Pause),
    /// It was not asked: the turn did not come.
    Crowded(Refusal),
    Unreachable(UpstreamError),
}

impl Gate {
    pub(crate) fn new() -> Self {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).expect("the system gives random bytes");
        Self {
            facts: Mutex::default(),
            credentials: Credentials::new(key),
            asking: Together::new(),
            reading: Arc::new(Semaphore::new(MAX_READ)),
            realms: Realms::new(Credentials::new(key)),
        }
    }

    /// Proofs are believed for so long from now on.
    pub(crate) fn believe_for(&self, ages: Ages) {
        self.lock().believe_for(ages);
    }

    /// Whether the caller may have this content from the engine. Content that is named by its URL and asked for with a
    /// credential gets a name of its own in `identity`.
    pub(crate) async fn check(
        &self,
        judges: Judges<'_>,
        target: &Target,
        identity: &mut Identity,
        asker: Asker<'_>,
    ) -> Entitled<'_> {
        let question = match self.question(target, identity, asker) {
            Asking::Nothing => return Entitled::Yes,
            Asking::Unshared => return Entitled::No,
            Asking::About(question) => question,
        };
        let Question { place, part, caller } = &question;
        if self.lock().verdict(Instant::now(), place, part, *caller) == Verdict::Allowed {
            return Entitled::Yes;
        }
        let answered = self.asking.ask(&question, async {
            let _turn = match judges.turn(Judge::Registry, target).await {
                Ok(turn) => turn,
                Err(refusal) => return Answered::Crowded(refusal),
            };
            // What was said to others who waited, or before.
            let pause = self.lock().paused(Instant::now(), &place.registry, *caller);
            match pause {
                Some(pause) => Answered::Paused(pause),
                None => self.ask_origin(judges, target, asker, &question).await,
            }
        });
        let (answered, held) = answered.boxed().await;
        match answered {
            Answered::Granted(length) => Entitled::IfLong(length, held),
            Answered::Refused => Entitled::No,
            Answered::Paused(_) | Answered::Crowded(_) if self.in_pause(&question) => Entitled::Yes,
            Answered::Troubled | Answered::Unreachable(_) if self.in_grace(&question) => Entitled::Yes,
            Answered::Troubled => Entitled::No,
            Answered::Paused(pause) => Entitled::Paused(pause),
            Answered::Crowded(refusal) => Entitled::Crowded(refusal),
            Answered::Unreachable(error) => Entitled::Unknown(error),
        }
    }

    /// What [`Self::check`] would do at this moment, in words. Asks nobody.
    pub(crate) fn explain(&self, target: &Target, identity: &mut Identity, asker: Asker<'_>) -> String {
        let question = match self.question(target, identity, asker) {
            Asking::Nothing => {
                return "it is asked for without credentials, so anybody may have it".to_owned();
            }
            Asking::Unshared => {
                return "it may be meant for this caller alone, so it is not shared".to_owned();
            }
            Asking::About(question) => question,
        };
        let Question { place, part, caller } = &question;
        let who = match caller {
            Caller::Anonymous => "anybody",
            Caller::Known(_) => "this credential",
        };
        // A signature is a key.
        let repository = place.repository.split('?').next().unwrap_or_default();
        let what = format!("{who} may read {repository} of {}", place.registry);
        match self.lock().verdict(Instant::now(), place, part, *caller) {
            Verdict::Allowed => format!("it is known that {what}, and that this is in it"),
            Verdict::Ask => format!(
                "it is not known at this moment that {what}, and that this is in it: the origin is asked first"
            ),
        }
    }

    /// What an origin's answer to a caller proves. The body of a manifest is read on its way. A blob's answer proves nothing:
    /// its bytes are looked at by nobody here. What it took in, it has; whoever may write need not be one who may read.
    pub(crate) fn watch(
        self: &Arc<Self>,
        target: &Target,
        method: &Method,
        asker: Asker<'_>,
        answer: Response<Incoming>,
    ) -> Response<Watched> {
        self.realms.learn(target, &answer);
        if let Some((name, part)) = pushed(target, method, &answer) {
            self.lock().learn_member(Instant::now(), &place(target, name), &part);
        }
        let resource = Resource::parse(target.path());
        let (Some(resource), true) = (resource, matches!(*method, Method::GET | Method::HEAD)) else {
            return answer.map(Watched::unwatched);
        };
        let (place, caller) = (place(target, resource.name), self.caller(asker, target.query()));
        if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) && asker.is_himself() {
            self.lock().forget_reader(&place, caller);
        }
        if answer.status() != StatusCode::OK {
            return answer.map(Watched::unwatched);
        }
        let digest = match resource.kind {
            Kind::Blob(_) => return answer.map(Watched::unwatched),
            Kind::Manifest(digest) => Some(digest.to_string()),
            Kind::Tag(_) => None,
        };
        let whole = *method == Method::GET && !answer.headers().contains_key(header::CONTENT_ENCODING);
        let reading = whole.then(|| Arc::clone(&self.reading).try_acquire_owned().ok()).flatten();
        if let Some(reading) = reading {
            let said = answer.headers().get(header::CONTENT_TYPE);
            let content_type = said.and_then(|said| said.to_str().ok()).map(str::to_owned);
            let proof = Proof { place, caller, ends: asker.ends(), digest, content_type };
            let gate = Arc::clone(self);
            return answer.map(|body| Watched::new(body, gate, proof, reading));
        }
        if is_manifest(answer.headers()) {
            let said = || answer.headers().get(DOCKER_CONTENT_DIGEST).and_then(known_digest);
            self.learn(&place, digest.or_else(said).map(Part::Manifest), caller, asker.ends());
        }
        answer.map(Watched::unwatched)
    }

    fn question(&self, target: &Target, identity: &mut Identity, asker: Asker<'_>) -> Asking {
        let of_registry = match Resource::parse(target.path()) {
            Some(Resource { name, kind: Kind::Blob(digest) }) => Some((name, Part::Blob(digest.to_string()))),
            Some(Resource { name, kind: Kind::Manifest(digest) }) => {
                Some((name, Part::Manifest(digest.to_string())))
            }
            _ => None,
        };
        if let Some((name, part)) = of_registry {
            let caller = self.caller(asker, target.query());
            return Asking::About(Question { place: place(target, name), part, caller });
        }
        let (canonical, application) = match identity {
            Identity::Url { canonical, application, .. } => (canonical, application),
            Identity::Digest(_) if target.path().len() > MAX_URL => return Asking::Unshared,
            Identity::Digest(digest) => {
                let place = Place { registry: server(target), repository: target.path().to_owned() };
                let caller = self.caller(asker, target.query());
                return Asking::About(Question { place, part: Part::Blob(digest.clone()), caller });
            }
        };
        if credentials(asker.headers).next().is_some() || canonical.len() > MAX_URL {
            return Asking::Unshared;
        }
        // What lets a caller in may stand in the query, in the content's name or filtered out of it.
        let signed = target.query().filter(|query| is_signed(query) || !canonical.ends_with(query));
        let Some(signed) = signed else { return Asking::Nothing };
        application.push_str("\0signed");
        let place = Place { registry: server(target), repository: canonical.clone() };
        Asking::About(Question {
            place,
            part: Part::Blob(String::new()),
            caller: self.caller(asker, Some(signed)),
        })
    }

    fn caller(&self, Asker { headers, account }: Asker<'_>, query: Option<&str>) -> Caller {
        // The account's token stands for the account.
        let shown =
            credentials(headers).filter(|(name, _)| account.is_none() || *name != header::AUTHORIZATION);
        let shown = shown.flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
        let account = account.into_iter().flat_map(|login| [b"account".as_slice(), login.as_bytes()]);
        self.credentials.caller(shown.chain(account).chain(query.map(str::as_bytes)))
    }

    /// The caller, whose credential ends when it is known to, may read the place, and these are in it.
    pub(crate) fn learn(
        &self,
        place: &Place,
        parts: impl IntoIterator<Item = Part>,
        caller: Caller,
        ends: Option<Instant>,
    ) {
        let now = Instant::now();
        let mut facts = self.lock();
        facts.learn_reader(now, place, caller, ends);
        parts.into_iter().for_each(|part| facts.learn_member(now, place, &part));
    }

    fn in_pause(&self, question: &Question) -> bool {
        let Question { place, part, caller } = question;
        self.lock().verdict_while_paused(Instant::now(), place, part, *caller) == Verdict::Allowed
    }

    fn in_grace(&self, question: &Question) -> bool {
        let Question { place, part, caller } = question;
        self.lock().verdict_without_registry(Instant::now(), place, part, *caller) == Verdict::Allowed
    }

    async fn ask_origin(
        &self,
        judges: Judges<'_>,
        target: &Target,
        asker: Asker<'_>,
        question: &Question,
    ) -> Answered {
        let Question { place, part, caller } = question;
        // A signature in a query may be for GET alone.
        let signed = target.query().is_some() && Resource::parse(target.path()).is_none();
        let by_url = *part == Part::Blob(String::new());
        let method = if by_url || signed { Method::GET } else { Method::HEAD };
        let said = probe(judges.upstream, target, asker.headers, method).await;
        let Said { status, length, headers, .. } = match said {
            Ok(said) => said,
            Err(error) => return Answered::Unreachable(error),
        };
        if status.is_success() {
            // Believed when the content has this length; whoever has content that can be shared says it.
            return length.map_or(Answered::Refused, Answered::Granted);
        }
        if let Some(pause) = pause(status, &headers) {
            self.lock().learn_pause(&place.registry, *caller, pause);
            return Answered::Paused(pause);
        }
        let ours = status == StatusCode::UNAUTHORIZED && !asker.is_himself();
        if status.is_server_error() || ours {
            return Answered::Troubled;
        }
        let mut facts = self.lock();
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                facts.forget_member(Instant::now(), place, part, *caller);
            }
            _ => facts.forget_reader(place, *caller),
        }
        Answered::Refused
    }

    /// The content has the length that the origin said: it did speak of this content.
    pub(crate) fn believe(&self, target: &Target, identity: &mut Identity, asker: Asker<'_>) {
        if let Asking::About(Question { place, part, caller }) = self.question(target, identity, asker) {
            self.learn(&place, [part], caller, asker.ends());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The headers that may say who asks, of those that an origin sees.
pub(crate) fn credentials(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    headers.iter().filter(|(name, _)| {
        let name = name.as_str();
        !HARMLESS.contains(&name) && !HARMLESS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

fn is_signed(query: &str) -> bool {
    let query = query.to_ascii_lowercase();
    SIGNED.iter().any(|word| query.contains(word))
}

impl<'a> Asker<'a> {
    pub(crate) fn of<B>(request: &'a Request<B>) -> Self {
        Self { headers: request.headers(), account: request.extensions().get() }
    }

    /// Whether the request shows whose it is. An account's may not: then a refusal says nothing of the account.
    fn is_himself(&self) -> bool {
        self.account.is_none() || self.headers.contains_key(header::AUTHORIZATION)
    }

    /// When his credential says that it ends. An account does not.
    fn ends(&self) -> Option<Instant> {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let authorization = self.headers.get(header::AUTHORIZATION).filter(|_| self.account.is_none())?;
        Instant::now().checked_add(bearer_lifetime(authorization.to_str().ok()?, unix)?)
    }
}

/// The pause that an answer asks for: too many requests, or too much to do.
fn pause(status: StatusCode, headers: &HeaderMap) -> Option<Pause> {
    let wait = darter_p2p::retry_after(headers);
    let wait = match status {
        StatusCode::TOO_MANY_REQUESTS => wait.unwrap_or(PAUSE),
        StatusCode::SERVICE_UNAVAILABLE => wait?,
        _ => return None,
    };
    let until = Instant::now() + wait.min(LONGEST_PAUSE);
    Some(Pause { status: status.as_u16(), until })
}

/// What a registry has taken in, and into which repository (distribution-spec, "Pushing"). Where it and the request do not
/// say the same, or the request says two things, nobody knows which of them it looked at.
fn pushed<'a, B>(target: &'a Target, method: &Method, answer: &Response<B>) -> Option<(&'a str, Part)> {
    if answer.status() != StatusCode::CREATED || !matches!(*method, Method::PUT | Method::POST) {
        return None;
    }
    let said = answer.headers().get(DOCKER_CONTENT_DIGEST).and_then(known_digest);
    let (name, asked, part): (_, _, fn(String) -> Part) = match Resource::parse(target.path()) {
        Some(Resource { name, kind: Kind::Manifest(digest) }) => (name, digest.to_string(), Part::Manifest),
        Some(Resource { name, kind: Kind::Tag(_) }) => (name, said.clone()?, Part::Manifest),
        Some(Resource { kind: Kind::Blob(_), .. }) => return None,
        None => {
            let (name, _) = target.path().strip_prefix("/v2/")?.split_once("/blobs/uploads/")?;
            (name, digest_asked(target.query()?)?, Part::Blob)
        }
    };
    let agreed = said.is_none_or(|said| said == asked) && oci::is_name(name);
    agreed.then(|| (name, part(asked)))
}

/// The one digest in an upload's query: what was uploaded, or is to be taken from another repository.
fn digest_asked(query: &str) -> Option<String> {
    let all = url::form_urlencoded::parse(query.as_bytes());
    let mut named = all.filter(|(name, _)| matches!(&**name, "digest" | "mount"));
    let (_, only) = named.next()?;
    let digest = oci::Digest::parse(&only)?.to_string();
    named.next().is_none().then_some(digest)
}

/// Whether an answer calls itself a manifest, by the media types of OCI's image-spec and of Docker.
fn is_manifest(headers: &HeaderMap) -> bool {
    const TYPES: [&str; 3] = [
        "application/vnd.oci.image.",
        "application/vnd.oci.artifact.",
        "application/vnd.docker.distribution.manifest.",
    ];
    let said = headers.get(header::CONTENT_TYPE).and_then(|said| said.to_str().ok());
    said.is_some_and(|said| TYPES.iter().any(|known| said.starts_with(known)))
}

/// A digest that may stand in a fact: no registry makes a longer one.
fn known_digest(value: &HeaderValue) -> Option<String> {
    value.to_str().ok().filter(|digest| digest.len() <= 160).map(str::to_owned)
}

fn place(target: &Target, name: &str) -> Place {
    Place { registry: server(target), repository: oci::repository_identity(target.host(), name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_npm_says_of_itself_is_no_credential_but_its_password_is() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("user-agent", "npm/11"),
            ("npm-auth-type", "web"),
            ("npm-command", "install"),
            ("pacote-version", "21.5.1"),
            ("pacote-req-type", "tarball"),
            ("pacote-pkg-id", "registry:lab@1.0.0"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(credentials(&headers).count(), 0);
        for secret in [
            "npm-otp",
            "authorization",
            "private-token",
            "sec-websocket-protocol",
            "x-forwarded-access-token",
            "x-forwarded-client-cert",
            "x-forwarded-user",
        ] {
            let mut headers = headers.clone();
            headers.insert(HeaderName::from_static(secret), HeaderValue::from_static("x"));
            assert_eq!(credentials(&headers).count(), 1, "{secret}");
        }
    }
}
