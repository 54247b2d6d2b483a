//! [`Fetch`]: content that a command of this host asks for by its URL. It goes the way of a request to the proxy from the
//! decision on, so that ranges, preconditions, redirects, versions and entitlement are the same.
//!
//! Who may have it: what is fetched without a credential is for everybody. With one it is streamed from the origin for this
//! caller alone; or, when the caller says its digest, it is shared with those to whom the origin gives the same URL. They
//! are asked about one by one, with their own credentials ([`crate::entitle`]). The task is named by the URL and the digest
//! together: nobody gets what came from one URL by naming its digest at another, which may be a server of his own.
//!
//! Nothing is lent here ([`crate::accounts`]): who may use the operator's credentials is said for the proxy's clients.

use crate::access::{Pending, Record};
use crate::labels::{Outcome, Way};
use crate::p2p::{self, Peers};
use crate::pipeline::Answer;
use crate::refusal::Refusal;
use crate::{Body, Proxy, direct, tasks};
use bytes::Bytes;
use darter_protocol::Digest;
use darter_rules::{Because, Decision, Identity, Request as Seen, oci::Resource};
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use std::fmt;
use std::sync::Arc;

/// Headers that are about a connection, which there is none of.
const OF_CONNECTIONS: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a command asks for. Prints neither its headers' values, whatever their names are, nor its query.
pub struct Fetch {
    /// Whose command it is: the user's number on this host.
    pub uid: u32,
    /// An `http://` or `https://` URL.
    pub url: Uri,
    /// The headers of a GET: Range, If-Range, credentials. `X-Dragonfly-Tag` and its like say what the content is called.
    pub headers: HeaderMap,
    /// What the whole must hash to.
    pub digest: Option<Digest>,
    /// Whoever gets the answer's bytes does not read them: they may be lent (`darter_p2p::ContentBody::lend`).
    pub lends: bool,
}

/// Set where [`Fetch::lends`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lends;

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&HeaderName> = self.headers.keys().collect();
        let place = (self.url.host(), self.url.path());
        let mut shown = f.debug_struct("Fetch");
        shown.field("uid", &self.uid).field("place", &place).field("headers", &names);
        shown.field("digest", &self.digest).finish()
    }
}

/// Why there is no origin's answer. Displays as one sentence, without a secret.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct Refused {
    /// What a client of the proxy would get.
    pub status: StatusCode,
    sentence: String,
}

impl Proxy {
    /// The answer to a GET of `fetch`, from disk, peers or its origin: 200, 206, 304, 416, or the origin's own refusal.
    ///
    /// # Errors
    /// When the rules forbid it, or the content cannot be had.
    pub async fn fetch(&self, fetch: Fetch) -> Result<Response<Body>, Refused> {
        let mut record = Pending::new(Record::of_command(fetch.uid, &fetch.url, &fetch.headers, self));
        let refusal = match self.answer_named(fetch, &mut record).await {
            Ok(Answer::Body(response, outcome, note)) => {
                return Ok(record.finish(|record| record.answered(response, outcome, note)));
            }
            // Nobody asked for one.
            Ok(Answer::Tunnel(..) | Answer::Intercept { .. }) => {
                Refusal::unsupported("the origin answered with another protocol")
            }
            Err(refusal) => refusal,
        };
        record.refused(&refusal);
        Err(refusal.into())
    }

    async fn answer_named(&self, fetch: Fetch, record: &mut Pending) -> Result<Answer, Refusal> {
        let Fetch { uid: _, url, mut headers, digest, lends } = fetch;
        crate::headers::hide_credentials(&mut headers);
        OF_CONNECTIONS.iter().for_each(|name| drop(headers.remove(name)));
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = url;
        *request.headers_mut() = headers;
        if lends {
            request.extensions_mut().insert(Lends);
        }
        let settings = self.settings();
        let seen = Seen {
            method: &Method::GET,
            way: darter_rules::Way::Named,
            uri: request.uri(),
            headers: request.headers(),
        };
        let decision = settings.rules.decide(&seen);
        record.note(|record| {
            record.goes_to(Way::Command, &decision);
            request.extensions_mut().insert(Arc::clone(record.trail()));
        });
        match decision {
            Decision::Refuse(refusal) => Err(refusal.into()),
            Decision::Direct { target, .. } => direct::answer(self, &target, request, Outcome::Direct).await,
            Decision::Peers { target, identity, digest: known, settled, because } => {
                let by_rule = !matches!(because, Because::Default);
                let peers = Peers { target, identity, digest: known, task: None, settled, by_rule };
                p2p::answer(self, expecting(peers, digest), request).await
            }
        }
    }
}

/// The same content, of which the caller knows the digest. What a registry has is told apart by its own names.
fn expecting(peers: Peers, digest: Option<Digest>) -> Peers {
    let (Some(digest), Identity::Url { canonical, tag, application }) = (digest, &peers.identity) else {
        return peers;
    };
    if Resource::parse(peers.target.path()).is_some() {
        return peers;
    }
    let task = tasks::of_url(&peers.target, canonical, tag, &format!("{application}\0{digest}"));
    let digest = digest.to_string();
    let identity = Identity::Digest(digest.clone());
    Peers { identity, digest: Some(digest), task: Some(task), settled: true, ..peers }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { status: refusal.status(), sentence: refusal.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn what_a_command_shows_is_not_printed() {
        let shown = (HeaderName::from_static("x-own"), HeaderValue::from_static("hunter2"));
        let fetch = Fetch {
            uid: 7,
            url: "http://me:hunter2@a.example/file?sig=hunter2".parse().unwrap(),
            headers: HeaderMap::from_iter([shown]),
            digest: None,
            lends: false,
        };
        let printed = format!("{fetch:?}");
        assert!(printed.contains("a.example") && printed.contains("x-own"), "{printed}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}
