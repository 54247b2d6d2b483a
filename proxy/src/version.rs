//! [`Versions`]: which version of some content its origin has at the moment.
//!
//! What is called by its URL may change there, and nobody would notice: the engine keeps it for hours, and a node that gets
//! it from another begins to count anew. So the origin is asked before such content is served, and what it says (a strong
//! ETag, or Last-Modified with the length, or the length alone) becomes a part of the content's name: what has changed is
//! other content. An answer holds for [`FRESH`], and longer while the origin cannot be reached.
//!
//! Content whose name holds its hash is never asked about.

use crate::probe::probe;
use darter_p2p::ContentInfo;
use darter_protocol::TaskId;
use darter_rules::{Identity, Target};
use darter_upstream::{Upstream, UpstreamError};
use http::Method;
use http::header::{ETAG, HeaderMap, HeaderName, LAST_MODIFIED};
use std::sync::Arc;
use std::time::Duration;

/// How long an origin's word holds. A package that is replaced in place differs from its index for as long as a mirror takes
/// to copy both; and one node that installs asks for each package once or twice.
const FRESH: Duration = Duration::from_secs(30);
/// How long the last word counts while the origin cannot be reached: as long as what is cached of a registry.
const GRACE: Duration = Duration::from_secs(3600);
/// Contents that are remembered, at a few hundred bytes each.
const MAX_REMEMBERED: u64 = 20_000;
/// A longer validator is none.
const MAX_VALIDATOR: usize = 256;

/// What tells one version of some content from another, the best that its origin gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Version {
    Etag(String),
    Modified { date: String, length: u64 },
    Length(u64),
}

/// Why there is no version to serve.
#[derive(Debug, Clone)]
pub(crate) enum NoVersion {
    /// The origin is to answer the caller itself: it refuses, or does not say enough.
    Unsaid,
    /// The origin could not be asked.
    Unreachable(UpstreamError),
}

/// What origins said not long ago, by the content's name: hashed, since its parts may be as long as a head.
pub(crate) struct Versions {
    fresh: moka::future::Cache<TaskId, Version>,
    last: moka::sync::Cache<TaskId, Version>,
}

impl Versions {
    pub(crate) fn new() -> Self {
        Self {
            fresh: moka::future::Cache::builder().max_capacity(MAX_REMEMBERED).time_to_live(FRESH).build(),
            last: moka::sync::Cache::builder().max_capacity(MAX_REMEMBERED).time_to_live(GRACE).build(),
        }
    }

    /// The version that the origin has, which becomes a part of `identity`. Those who ask at the same time share one
    /// question.
    ///
    /// # Errors
    /// When the origin does not say, or cannot be asked and has not been for long.
    pub(crate) async fn name(
        &self,
        upstream: &Upstream,
        target: &Target,
        identity: &mut Identity,
        headers: &HeaderMap,
    ) -> Result<Option<Version>, NoVersion> {
        let Identity::Url { canonical, tag, application } = identity else { return Ok(None) };
        let key = TaskId::of_url(canonical, tag, application);
        let asked = self.fresh.try_get_with_by_ref(&key, ask(upstream, target, headers)).await;
        let version = match asked.map_err(Arc::unwrap_or_clone) {
            Ok(version) => {
                self.last.insert(key, version.clone());
                version
            }
            Err(NoVersion::Unreachable(error)) => self.last.get(&key).ok_or(NoVersion::Unreachable(error))?,
            Err(NoVersion::Unsaid) => {
                self.last.invalidate(&key);
                return Err(NoVersion::Unsaid);
            }
        };
        application.push_str(&format!("\0{version:?}"));
        Ok(Some(version))
    }
}

async fn ask(upstream: &Upstream, target: &Target, headers: &HeaderMap) -> Result<Version, NoVersion> {
    // A signature in a query may be for GET alone.
    let method = if target.query().is_some() { Method::GET } else { Method::HEAD };
    let said = probe(upstream, target, headers, method).await.map_err(NoVersion::Unreachable)?;
    if !said.status.is_success() {
        return Err(NoVersion::Unsaid);
    }
    version(said.length, &said.headers).ok_or(NoVersion::Unsaid)
}

/// The best that an origin says of content that is `length` long, if it says so.
fn version(length: Option<u64>, headers: &HeaderMap) -> Option<Version> {
    if let Some(etag) = strong_etag(headers) {
        return Some(Version::Etag(etag));
    }
    let length = length?;
    Some(match text(headers, &LAST_MODIFIED) {
        Some(date) => Version::Modified { date, length },
        None => Version::Length(length),
    })
}

impl Version {
    /// Whether some content is of this version. Where the servers behind one name differ, it may not be.
    pub(crate) fn is_of(&self, info: &ContentInfo) -> bool {
        match self {
            Self::Etag(etag) => strong_etag(&info.headers).as_ref() == Some(etag),
            Self::Modified { date, length } => {
                text(&info.headers, &LAST_MODIFIED).as_ref() == Some(date) && info.length == *length
            }
            Self::Length(length) => info.length == *length,
        }
    }
}

/// RFC 9110 section 8.8.3: a weak one may be the same for other bytes.
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    text(headers, &ETAG).filter(|etag| etag.starts_with('"'))
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    (value.len() <= MAX_VALIDATOR).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(list: &[(HeaderName, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn what_an_origin_says_becomes_the_best_version_that_it_gives() {
        let said = |length, list: &[(HeaderName, &'static str)]| version(length, &headers(list));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let modified = Version::Modified { date: date.to_owned(), length: 7 };
        assert_eq!(said(None, &[(ETAG, "\"a\"")]), Some(Version::Etag("\"a\"".to_owned())));
        assert_eq!(said(Some(7), &[(ETAG, "W/\"a\""), (LAST_MODIFIED, date)]), Some(modified));
        assert_eq!(said(Some(7), &[]), Some(Version::Length(7)));
        assert_eq!(said(None, &[(LAST_MODIFIED, date)]), None);
    }

    fn is_of(version: &Version, length: u64, list: &[(HeaderName, &'static str)]) -> bool {
        version.is_of(&ContentInfo { length, headers: headers(list) })
    }

    #[test]
    fn content_of_another_version_is_told_by_the_best_that_was_said() {
        let etag = Version::Etag("\"a\"".to_owned());
        assert!(is_of(&etag, 1, &[(ETAG, "\"a\"")]));
        assert!(!is_of(&etag, 1, &[(ETAG, "\"b\"")]) && !is_of(&etag, 1, &[]));
        let modified = Version::Modified { date: "then".to_owned(), length: 1 };
        assert!(is_of(&modified, 1, &[(LAST_MODIFIED, "then"), (ETAG, "W/\"x\"")]));
        assert!(
            !is_of(&modified, 2, &[(LAST_MODIFIED, "then")])
                && !is_of(&modified, 1, &[(LAST_MODIFIED, "now")])
        );
        assert!(
            is_of(&Version::Length(1), 1, &[(LAST_MODIFIED, "now")]) && !is_of(&Version::Length(1), 2, &[])
        );
    }
}
