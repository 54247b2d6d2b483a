//! Conditional requests (RFC 9110 section 13), judged by what is known of the content here.

use darter_p2p::Digest;
use http::HeaderName;
use http::header::{
    DATE, ETAG, HeaderMap, HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};
use std::time::{Duration, SystemTime};

/// Preconditions: what decides whether a request is carried out. If-Range is none; it only says what a Range means.
const PRECONDITIONS: [HeaderName; 4] = [IF_MATCH, IF_UNMODIFIED_SINCE, IF_NONE_MATCH, IF_MODIFIED_SINCE];

/// What a request's preconditions come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    /// They hold.
    Proceed,
    /// The client has the content: 304.
    NotModified,
    /// They do not hold: 412.
    Failed,
    /// Only who knows the content can tell.
    Unknown,
}

/// What is known here of one version of some content.
#[derive(Debug)]
pub struct Validators<'a> {
    /// The content's own headers; `None`: the content is not known.
    known: Option<&'a HeaderMap>,
    /// An ETag that holds for everything that has this digest, whatever its origin calls it.
    by_digest: Option<HeaderValue>,
}

/// The ETag of content with this digest. It says the same on every host, and never changes.
pub(crate) fn etag_of(digest: &Digest) -> HeaderValue {
    HeaderValue::try_from(format!("\"{digest}\"")).expect("a digest is printable ASCII without quotes")
}

/// Whether a request has preconditions.
pub(crate) fn is_conditional(request: &HeaderMap) -> bool {
    PRECONDITIONS.iter().any(|name| request.contains_key(name))
}

impl<'a> Validators<'a> {
    /// `known` are the content's own headers, where it is known.
    pub fn new(known: Option<&'a HeaderMap>, digest: Option<&Digest>) -> Self {
        Self { known, by_digest: digest.map(etag_of) }
    }

    /// Judges a GET's preconditions, in the order of section 13.2.2.
    pub(crate) fn judge(&self, request: &HeaderMap) -> Judged {
        let may_go_on = match (request.contains_key(IF_MATCH), date(request, IF_UNMODIFIED_SINCE)) {
            (true, _) => self.is_among(request, IF_MATCH, strongly),
            (false, Some(since)) => self.modified().map(|modified| modified.is_none_or(|at| at <= since)),
            (false, None) => Some(true),
        };
        match may_go_on {
            None => return Judged::Unknown,
            Some(false) => return Judged::Failed,
            Some(true) => {}
        }
        let client_has_it = match (request.contains_key(IF_NONE_MATCH), date(request, IF_MODIFIED_SINCE)) {
            (true, _) => self.is_among(request, IF_NONE_MATCH, weakly),
            (false, Some(since)) => self.modified().map(|modified| modified.is_some_and(|at| at <= since)),
            (false, None) => Some(false),
        };
        match client_has_it {
            None => Judged::Unknown,
            Some(true) => Judged::NotModified,
            Some(false) => Judged::Proceed,
        }
    }

    /// Whether a request's ranges are for this content, as its If-Range says (section 13.1.5): by an ETag that is the same
    /// and strong, or by the same date, if that is as good as a strong one. Always, when it has none.
    pub fn fit_range(&self, request: &HeaderMap) -> bool {
        let mut given = request.get_all(IF_RANGE).iter();
        match (given.next(), given.next()) {
            (None, _) => true,
            (Some(value), None) if value.as_bytes().contains(&b'"') => {
                self.tags().any(|tag| strongly(tag.as_bytes(), value.as_bytes()))
            }
            (Some(value), None) => {
                let modified = self.known.and_then(|known| date(known, LAST_MODIFIED));
                modified.is_some_and(|modified| parse(value) == Some(modified) && self.is_strong(modified))
            }
            (Some(_), Some(_)) => false,
        }
    }

    /// Whether a date names one version only: the content was dated a second or more after it had been changed last (section
    /// 8.8.2.2). What has a digest has one version anyway.
    fn is_strong(&self, modified: SystemTime) -> bool {
        let dated = self.known.and_then(|known| date(known, DATE));
        self.by_digest.is_some() || dated.is_some_and(|dated| dated >= modified + Duration::from_secs(1))
    }

    /// When it was changed last, if its origin says so; `None` when the content is not known.
    fn modified(&self) -> Option<Option<SystemTime>> {
        self.known.map(|known| date(known, LAST_MODIFIED))
    }

    /// Whether the content's ETag is in a header's list; `None` when the content is not known.
    fn is_among(
        &self,
        request: &HeaderMap,
        name: HeaderName,
        equal: impl Fn(&[u8], &[u8]) -> bool,
    ) -> Option<bool> {
        let values = || request.get_all(&name).iter().map(HeaderValue::as_bytes);
        let listed = values().flat_map(tags_in).any(|tag| self.tags().any(|own| equal(own.as_bytes(), tag)));
        let found = listed || (self.known.is_some() && values().any(|value| value.trim_ascii() == b"*"));
        (found || self.known.is_some()).then_some(found)
    }

    /// The ETags that the content goes by.
    fn tags(&self) -> impl Iterator<Item = &HeaderValue> {
        self.known.and_then(|known| known.get(ETAG)).into_iter().chain(&self.by_digest)
    }
}

/// RFC 9110 section 8.8.3.2.
fn strongly(a: &[u8], b: &[u8]) -> bool {
    a == b && a.starts_with(b"\"")
}

/// RFC 9110 section 8.8.3.2.
fn weakly(a: &[u8], b: &[u8]) -> bool {
    opaque(a) == opaque(b)
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The entity tags of a list, up to what is none. A comma may stand in a tag.
fn tags_in(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let start = list.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b','))?;
        list = list.get(start..)?;
        let weak = if list.starts_with(b"W/") { 2 } else { 0 };
        let quoted = list.get(weak..)?.strip_prefix(b"\"")?;
        let end = weak + 2 + quoted.iter().position(|byte| *byte == b'"')?;
        let (tag, rest) = list.split_at_checked(end)?;
        list = rest;
        Some(tag)
    })
}

/// The one date of a header, if it is one in any of HTTP's three forms (section 5.6.7). A precondition with another one is
/// to be ignored.
fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    let mut values = headers.get_all(name).iter();
    let date = parse(values.next()?)?;
    values.next().is_none().then_some(date)
}

fn parse(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

/// How long ago the content was dated, in whole seconds (RFC 9111 section 4.2.3).
pub(crate) fn age(content: &HeaderMap, now: SystemTime) -> Option<u64> {
    let dated = date(content, DATE)?;
    // A clock of its origin that is ahead of ours makes it no younger than new.
    Some(now.duration_since(dated).map_or(0, |age| age.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BEFORE: &str = "Sat, 22 Nov 2025 02:59:59 GMT";
    const CHANGED: &str = "Sat, 22 Nov 2025 03:00:00 GMT";
    const AFTER: &str = "Sat, 22 Nov 2025 03:00:01 GMT";

    fn headers(list: &[(HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn digest() -> Digest {
        format!("sha256:{}", "a".repeat(64)).parse().unwrap()
    }

    #[test]
    fn preconditions_are_judged_in_their_order() {
        let content = headers(&[(ETAG, "\"v1\""), (LAST_MODIFIED, CHANGED), (DATE, AFTER)]);
        let known = Validators::new(Some(&content), None);
        for (request, expected) in [
            (vec![], Judged::Proceed),
            (vec![(IF_NONE_MATCH, "\"v1\"")], Judged::NotModified),
            (vec![(IF_NONE_MATCH, "W/\"v1\"")], Judged::NotModified),
            (vec![(IF_NONE_MATCH, "\"a,b\", W/\"v1\"")], Judged::NotModified),
            (vec![(IF_NONE_MATCH, "\"v0\""), (IF_NONE_MATCH, "\"v1\"")], Judged::NotModified),
            (vec![(IF_NONE_MATCH, "*")], Judged::NotModified),
            (vec![(IF_NONE_MATCH, "\"v2\"")], Judged::Proceed),
            (vec![(IF_NONE_MATCH, "v1")], Judged::Proceed),
            (vec![(IF_NONE_MATCH, "")], Judged::Proceed),
            (vec![(IF_MODIFIED_SINCE, CHANGED)], Judged::NotModified),
            (vec![(IF_MODIFIED_SINCE, AFTER)], Judged::NotModified),
            (vec![(IF_MODIFIED_SINCE, BEFORE)], Judged::Proceed),
            (vec![(IF_MODIFIED_SINCE, "Saturday, 22-Nov-25 03:00:00 GMT")], Judged::NotModified),
            (vec![(IF_MODIFIED_SINCE, "yesterday")], Judged::Proceed),
            (vec![(IF_NONE_MATCH, "\"v2\""), (IF_MODIFIED_SINCE, AFTER)], Judged::Proceed),
            (vec![(IF_MATCH, "\"v1\"")], Judged::Proceed),
            (vec![(IF_MATCH, "\"v0\", \"v1\"")], Judged::Proceed),
            (vec![(IF_MATCH, "*")], Judged::Proceed),
            (vec![(IF_MATCH, "W/\"v1\"")], Judged::Failed),
            (vec![(IF_MATCH, "\"v2\"")], Judged::Failed),
            (vec![(IF_UNMODIFIED_SINCE, CHANGED)], Judged::Proceed),
            (vec![(IF_UNMODIFIED_SINCE, BEFORE)], Judged::Failed),
            (vec![(IF_UNMODIFIED_SINCE, "never")], Judged::Proceed),
            (vec![(IF_MATCH, "\"v1\""), (IF_UNMODIFIED_SINCE, BEFORE)], Judged::Proceed),
            (vec![(IF_MATCH, "\"v1\""), (IF_NONE_MATCH, "\"v1\"")], Judged::NotModified),
            (vec![(IF_MATCH, "\"v2\""), (IF_NONE_MATCH, "\"v1\"")], Judged::Failed),
        ] {
            assert_eq!(known.judge(&headers(&request)), expected, "{request:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_judged_only_by_the_digest() {
        let (digest, own) = (digest(), etag_of(&digest()));
        let own = own.to_str().unwrap();
        let unknown = Validators::new(None, Some(&digest));
        for (request, expected) in [
            (vec![(IF_NONE_MATCH, own)], Judged::NotModified),
            (vec![(IF_NONE_MATCH, "\"v1\"")], Judged::Unknown),
            (vec![(IF_NONE_MATCH, "*")], Judged::Unknown),
            (vec![(IF_MATCH, own)], Judged::Proceed),
            (vec![(IF_MATCH, "*")], Judged::Unknown),
            (vec![(IF_MODIFIED_SINCE, CHANGED)], Judged::Unknown),
            (vec![(IF_UNMODIFIED_SINCE, CHANGED)], Judged::Unknown),
            (vec![(IF_MODIFIED_SINCE, "yesterday")], Judged::Proceed),
        ] {
            assert_eq!(unknown.judge(&headers(&request)), expected, "{request:?}");
        }
        let content = headers(&[(ETAG, "\"v1\"")]);
        let known = Validators::new(Some(&content), Some(&digest));
        assert_eq!(known.judge(&headers(&[(IF_NONE_MATCH, own)])), Judged::NotModified);
    }

    #[test]
    fn content_without_a_date_ignores_dates() {
        let content = HeaderMap::new();
        let known = Validators::new(Some(&content), None);
        assert_eq!(known.judge(&headers(&[(IF_MODIFIED_SINCE, AFTER)])), Judged::Proceed);
        assert_eq!(known.judge(&headers(&[(IF_UNMODIFIED_SINCE, BEFORE)])), Judged::Proceed);
        assert_eq!(known.judge(&headers(&[(IF_MATCH, "\"v1\"")])), Judged::Failed);
    }

    #[test]
    fn if_range_compares_strongly() {
        let tagged = |tag| headers(&[(ETAG, tag)]);
        let dated = |changed, dated| headers(&[(LAST_MODIFIED, changed), (DATE, dated)]);
        for (given, content, expected) in [
            ("\"a\"", tagged("\"a\""), true),
            ("\"a\"", tagged("\"b\""), false),
            ("\"a\"", tagged("W/\"a\""), false),
            ("W/\"a\"", tagged("W/\"a\""), false),
            ("\"a\"", HeaderMap::new(), false),
            (CHANGED, dated(CHANGED, AFTER), true),
            (CHANGED, dated(CHANGED, CHANGED), false),
            (CHANGED, headers(&[(LAST_MODIFIED, CHANGED)]), false),
            (AFTER, dated(CHANGED, AFTER), false),
            (CHANGED, HeaderMap::new(), false),
            ("yesterday", headers(&[(LAST_MODIFIED, "yesterday"), (DATE, AFTER)]), false),
        ] {
            let fits = Validators::new(Some(&content), None).fit_range(&headers(&[(IF_RANGE, given)]));
            assert_eq!(fits, expected, "{given} {content:?}");
        }
        let (digest, content) = (digest(), dated(CHANGED, CHANGED));
        let of_digest = Validators::new(Some(&content), Some(&digest));
        assert!(of_digest.fit_range(&headers(&[(IF_RANGE, CHANGED)])));
        assert!(of_digest.fit_range(&headers(&[(IF_RANGE, etag_of(&digest).to_str().unwrap())])));
        assert!(of_digest.fit_range(&HeaderMap::new()));
        assert!(!of_digest.fit_range(&headers(&[(IF_RANGE, CHANGED), (IF_RANGE, CHANGED)])));
    }

    #[test]
    fn the_age_counts_from_the_date() {
        let at = |text| httpdate::parse_http_date(text).unwrap();
        let content = headers(&[(DATE, CHANGED)]);
        assert_eq!(age(&content, at(CHANGED) + Duration::from_millis(2500)), Some(2));
        assert_eq!(age(&content, at(BEFORE)), Some(0));
        assert_eq!(age(&HeaderMap::new(), at(CHANGED)), None);
    }

    proptest! {
        #[test]
        fn every_list_of_tags_ends(value in proptest::collection::vec(any::<u8>(), 0..60)) {
            for tag in tags_in(&value) {
                prop_assert!(tag.ends_with(b"\"") && opaque(tag).starts_with(b"\""));
            }
        }

        #[test]
        fn a_list_of_tags_reads_back(tags in proptest::collection::vec("(W/)?\"[!#-~,]{0,8}\"", 0..5)) {
            let list = tags.join(" , ");
            let read: Vec<&[u8]> = tags_in(list.as_bytes()).collect();
            prop_assert_eq!(read, tags.iter().map(String::as_bytes).collect::<Vec<_>>());
        }
    }
}
