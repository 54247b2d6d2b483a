//! [`Identity`]: what a request's content is called among peers. Content whose digest stands in the URL is called by that,
//! since every byte is checked against it; all other by its place, host included ([`crate::immutable`] says why).

use crate::immutable::{Immutable, Sure};
use crate::oci::{Kind, Resource};
use crate::target::{Target, canonical_encoding, query_parts};
use http::{HeaderMap, HeaderName};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

/// Names a version of the content that is kept apart from others at the same URL.
const TAG_HEADER: HeaderName = HeaderName::from_static("x-dragonfly-tag");
/// Names the application that the content belongs to; kept apart, too.
const APPLICATION_HEADER: HeaderName = HeaderName::from_static("x-dragonfly-application");
/// The query parameters that are left out of the name: the newer header, then the older.
const FILTER_HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("x-dragonfly-filtered-query-params"),
    HeaderName::from_static("x-dragonfly-filter"),
];

/// What some content is called. Equal identities are the same task for every node.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// By what it contains: `sha256:<hex>`. Whose copies of it are one and the same is the proxy's to say.
    Digest(String),
    /// By its place.
    Url {
        /// The canonical URL without the filtered query parameters. **What is left of the query may be a secret.**
        canonical: String,
        /// The version that the caller asked for; empty for none.
        tag: String,
        /// The caller's application; empty for none.
        application: String,
    },
}

/// How content that has no digest in its URL is called (`proxy.defaultFilter`, `proxy.defaultTag`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Naming {
    /// The query parameters that do not belong to a name, unless the request says which.
    pub filter: QueryFilter,
    /// The tag of requests that bring none.
    pub tag: String,
}

/// A set of query parameters that differ from request to request for the same content: signatures, expiry dates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryFilter(BTreeSet<String>);

// === impl QueryFilter ===

impl QueryFilter {
    /// From a list of names with `&` between them, as the configuration and the older header write it, or commas, as the
    /// newer does. Every text is a list; an empty one filters nothing.
    pub fn parse(list: &str) -> Self {
        let names = list.split(['&', ',']).map(str::trim).filter(|name| !name.is_empty());
        Self(names.map(str::to_owned).collect())
    }

    fn left_of(&self, query: &str) -> String {
        let left: Vec<&str> =
            query_parts(query).filter(|(name, _)| !self.0.contains(&**name)).map(|(_, part)| part).collect();
        left.join("&")
    }

    fn left_out_of(&self, query: &str) -> Vec<String> {
        let out = query_parts(query).filter(|(name, _)| self.0.contains(&**name));
        out.map(shown).collect()
    }

    fn list(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join("&")
    }
}

/// A query parameter as people may see it: its name. What has no value may be one.
pub(crate) fn shown((name, part): (Cow<'_, str>, &str)) -> String {
    /// As long as a name is that somebody chose for people.
    const MAX_NAME: usize = 64;
    if part.contains('=') && name.len() <= MAX_NAME { name.into_owned() } else { "*".to_owned() }
}

impl Default for QueryFilter {
    /// Dragonfly's default: what signed URLs of common object stores add, and the registry's name for a mirror.
    fn default() -> Self {
        Self::parse("Expires&Signature&ns")
    }
}

// === impl Naming ===

impl Naming {
    /// What the content at `target`, of which `known` is known, is called for a request with these headers.
    ///
    /// A manifest is called by its URL although its digest is known: the registry's Content-Type for it is part of what
    /// the client needs, and the same bytes asked for as a blob have another.
    pub(crate) fn identity(
        &self,
        target: &Target,
        known: Option<&Immutable>,
        headers: &HeaderMap,
    ) -> Identity {
        match known.map(|known| &known.sure) {
            Some(Sure::Digest(digest)) => Identity::Digest(digest.clone()),
            sure => Identity::Url {
                canonical: match sure {
                    Some(Sure::Hash { signed: true }) => url(target, "", ""),
                    _ => self.canonical(target, headers),
                },
                tag: text(headers, &TAG_HEADER).unwrap_or_else(|| self.tag.clone()),
                application: text(headers, &APPLICATION_HEADER).unwrap_or_default(),
            },
        }
    }

    /// The query parameters that [`Self::identity`] leaves out of a URL's name.
    pub(crate) fn left_out(
        &self,
        target: &Target,
        known: Option<&Immutable>,
        headers: &HeaderMap,
    ) -> Vec<String> {
        let Some(query) = target.query() else { return Vec::new() };
        match known.map(|known| &known.sure) {
            Some(Sure::Digest(_) | Sure::Hash { signed: true }) => query_parts(query).map(shown).collect(),
            _ => asked_filter(headers).as_ref().unwrap_or(&self.filter).left_out_of(query),
        }
    }

    fn canonical(&self, target: &Target, headers: &HeaderMap) -> String {
        let asked = asked_filter(headers);
        // Whoever chooses what is left out chooses which of several contents gets the name. So a name with a filter of
        // the caller's own is shared only with callers that chose the same, never with those who trust the default. It
        // stands where a fragment would: no URL that is sent has one.
        let chosen = asked.as_ref().filter(|asked| **asked != self.filter);
        let mark = chosen.map(|filter| format!("#filtered={}", filter.list())).unwrap_or_default();
        let filter = asked.as_ref().unwrap_or(&self.filter);
        let query = target.query().map(|query| filter.left_of(query)).unwrap_or_default();
        url(target, &query, &mark)
    }
}

fn asked_filter(headers: &HeaderMap) -> Option<QueryFilter> {
    FILTER_HEADERS.iter().find_map(|name| text(headers, name)).map(|list| QueryFilter::parse(&list))
}

/// The canonical URL of `target` with another query, and a mark behind it.
fn url(target: &Target, query: &str, mark: &str) -> String {
    format!(
        "{}{}{}{}{mark}",
        target.origin(),
        canonical_encoding(target.path()),
        if query.is_empty() { "" } else { "?" },
        canonical_encoding(query)
    )
}

/// The digest that the content at `target`, of which `known` is known, must have, where its URL says.
pub(crate) fn expected_digest(target: &Target, known: Option<&Immutable>) -> Option<String> {
    if let Some(Immutable { sure: Sure::Digest(digest), .. }) = known {
        return Some(digest.clone());
    }
    match Resource::parse(target.path())?.kind {
        Kind::Manifest(digest) => Some(digest.to_string()),
        Kind::Blob(_) | Kind::Tag(_) => None,
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(String::from_utf8_lossy(headers.get(name)?.as_bytes()).into_owned())
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => f.write_str(digest),
            Self::Url { canonical, tag, application } => {
                let place = canonical.split(['?', '#']).next().unwrap_or_default();
                write!(f, "{place} (tag {tag:?}, application {application:?})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn identity(url: &str, list: &[(&'static str, &'static str)]) -> Identity {
        let target = Target::parse(url).unwrap();
        let known = Immutable::of(target.path());
        Naming { tag: "default".into(), ..Default::default() }.identity(
            &target,
            known.as_ref(),
            &headers(list),
        )
    }

    fn canonical(url: &str, list: &[(&'static str, &'static str)]) -> String {
        match identity(url, list) {
            Identity::Url { canonical, .. } => canonical,
            Identity::Digest(digest) => digest,
        }
    }

    #[test]
    fn a_blob_is_called_by_its_digest_wherever_it_is() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for place in ["https://quay.io/v2/a/blobs/", "http://registry.example:5000/v2/b/c/blobs/"] {
            let url = format!("{place}{digest}?ns=docker.io");
            assert_eq!(identity(&url, &[("x-dragonfly-tag", "t")]), Identity::Digest(digest.clone()));
        }
    }

    #[test]
    fn content_of_every_mirror_that_is_checked_has_one_name_and_other_content_has_its_hosts() {
        let hex = "0a".repeat(32);
        let hosts = ["http://a.example/debian", "https://b.example:8443"];
        for path in [format!("/x/by-hash/SHA256/{hex}"), format!("/repodata/{hex}-primary.xml.gz")] {
            for host in hosts {
                let found = identity(&format!("{host}{path}?token=1"), &[]);
                assert_eq!(found, Identity::Digest(format!("sha256:{hex}")));
            }
        }
        for path in ["/pool/a_1_all.deb", "/a-1-1.noarch.rpm", "/a/-/a-1.0.0.tgz"] {
            for host in hosts {
                assert_eq!(canonical(&format!("{host}{path}"), &[]), format!("{host}{path}"));
            }
        }
    }

    #[test]
    fn a_signature_is_no_part_of_a_name_that_holds_a_hash() {
        let url = format!("https://cdn.example/xet-bridge-us/0123456789abcdef01234567/{}", "0a".repeat(32));
        assert_eq!(canonical(&format!("{url}?X-Amz-Signature=1&Policy=2"), &[]), url);
    }

    #[test]
    fn a_manifest_is_called_by_its_place_and_its_digest_is_still_expected() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let url = format!("https://quay.io/v2/a/manifests/{digest}");
        assert_eq!(canonical(&url, &[]), url);
        let expected = |url: &str| {
            let target = Target::parse(url).unwrap();
            expected_digest(&target, Immutable::of(target.path()).as_ref())
        };
        assert_eq!(expected(&url), Some(digest.clone()));
        assert_eq!(expected(&format!("https://quay.io/v2/a/blobs/{digest}")), Some(digest));
        assert_eq!(expected("https://quay.io/v2/a/manifests/latest"), None);
        assert_eq!(expected("https://quay.io/pool/a_1_all.deb"), None);
    }

    #[test]
    fn signatures_are_left_out_and_the_rest_keeps_its_order() {
        for (url, expected) in [
            ("https://a.example/f?Expires=1&b=2&Signature=s%3D&a=1", "https://a.example/f?b=2&a=1"),
            ("https://a.example/f?Expires=1&%53ignature=2", "https://a.example/f"),
            ("https://a.example/f?expires=1", "https://a.example/f?expires=1"),
            ("https://A.example:443/%7Ef?x=%41", "https://a.example/~f?x=A"),
            ("https://a.example/f?", "https://a.example/f"),
        ] {
            assert_eq!(canonical(url, &[]), expected, "{url}");
        }
    }

    #[test]
    fn a_request_may_say_which_parameters_to_leave_out() {
        let url = "https://a.example/f?Expires=1&X-Amz-Signature=2&v=3";
        let own = "https://a.example/f?Expires=1&v=3#filtered=X-Amz-Signature";
        assert_eq!(canonical(url, &[("x-dragonfly-filter", "X-Amz-Signature")]), own);
        assert_eq!(canonical(url, &[("x-dragonfly-filtered-query-params", "X-Amz-Signature")]), own);
        assert_eq!(
            canonical(
                url,
                &[("x-dragonfly-filtered-query-params", "v, Expires"), ("x-dragonfly-filter", "a")]
            ),
            "https://a.example/f?X-Amz-Signature=2#filtered=Expires&v"
        );
        assert_eq!(canonical(url, &[("x-dragonfly-filter", "")]), format!("{url}#filtered="));
    }

    #[test]
    fn a_filter_of_ones_own_cannot_give_content_the_name_of_other_content() {
        let evil = canonical("https://a.example/f?version=evil", &[("x-dragonfly-filter", "version")]);
        assert_ne!(evil, canonical("https://a.example/f", &[]));
        // To repeat the default is not to choose.
        let same =
            canonical("https://a.example/f?Expires=1", &[("x-dragonfly-filter", "ns&Expires&Signature")]);
        assert_eq!(same, canonical("https://a.example/f", &[]));
    }

    #[test]
    fn tag_and_application_keep_versions_apart() {
        let of = |list: &[(&'static str, &'static str)]| match identity("https://a.example/f", list) {
            Identity::Url { tag, application, .. } => (tag, application),
            Identity::Digest(_) => unreachable!("no digest in the URL"),
        };
        assert_eq!(of(&[]), ("default".into(), String::new()));
        assert_eq!(
            of(&[("x-dragonfly-tag", "v2"), ("x-dragonfly-application", "app")]),
            ("v2".into(), "app".into())
        );
        assert_eq!(of(&[("x-dragonfly-tag", "")]), (String::new(), String::new()));
    }

    #[test]
    fn debug_output_hides_the_query() {
        let text =
            format!("{:?}", identity("https://a.example/f?token=secret", &[("x-dragonfly-filter", "x")]));
        assert_eq!(text, "https://a.example/f (tag \"default\", application \"\")");
    }
}
