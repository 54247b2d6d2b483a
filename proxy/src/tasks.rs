//! Which task a request's content is.
//!
//! A digest names content wherever it is, and what a file server gave without a credential is shared by that name over all mirrors.
//! What a credential was shown for, and what a registry has, is not shared so: whoever knows a digest and runs a registry could have it
//! say *200, so many bytes*, and be given what others fetched from theirs. A registry could be made to prove that it has the
//! content, by a range that it cannot foresee; but then what is under way at this moment, in parts, on many hosts, would have
//! to be told apart by where each part came from. A name apart does it for all of that: it is
//! a task of its registry or server, and of all those that the operator says are to be believed (`proxy.trustedRegistries`).

use crate::entitle::{Asker, credentials};
use crate::refusal::Refusal;
use darter_protocol::{Digest, TaskId};
use darter_rules::oci::Resource;
use darter_rules::{Identity, Target};
use regex::Regex;

/// What trusted registries are called together, with who they are. No registry has this name.
const TRUSTED: &str = "trusted";

/// The task of what `identity` names, for this caller.
///
/// # Errors
/// For a digest of a kind that is not known.
pub(crate) fn task(
    identity: &Identity,
    target: &Target,
    asker: Asker<'_>,
    trusted: Option<&Regex>,
) -> Result<TaskId, Refusal> {
    match identity {
        Identity::Url { canonical, tag, application } => Ok(TaskId::of_url(canonical, tag, application)),
        Identity::Digest(digest) => {
            let digest = parse_digest(digest)?;
            Ok(if is_registrys(target) || !shows_nothing(target, asker) {
                TaskId::of_digest_at(&digest, &sources(target, trusted))
            } else {
                TaskId::of_digest(&digest)
            })
        }
    }
}

/// Whether it is a registry's. Nearly all of them give tokens, to anybody or to some, and clients send what they like beside: one name for
/// all callers, so that those of one registry share one copy.
fn is_registrys(target: &Target) -> bool {
    Resource::parse(target.path()).is_some()
}

/// Whether anybody would be given the same.
fn shows_nothing(target: &Target, asker: Asker<'_>) -> bool {
    credentials(asker.headers).next().is_none() && asker.account.is_none() && target.query().is_none()
}

fn sources(target: &Target, trusted: Option<&Regex>) -> String {
    let place = format!("{}:{}", target.host(), target.port());
    let server = format!("{}://{place}", target.scheme().as_str());
    if !is_registrys(target) {
        // A server of files checks no digest: whoever may put a file there says by its path what it is.
        return format!("{server}{}", target.path());
    }
    match trusted.filter(|trusted| trusted.is_match(&place)) {
        // Nodes that believe others do not share with this one.
        Some(trusted) => format!("{TRUSTED} {trusted}"),
        None => server,
    }
}

pub(crate) fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|invalid: darter_protocol::InvalidDigest| Refusal::unsupported(invalid.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{self, HeaderMap, HeaderValue};

    fn named(url: &str, password: Option<&'static str>, trusted: Option<&Regex>) -> TaskId {
        let identity = Identity::Digest(format!("sha256:{}", "ab".repeat(32)));
        let authorization = password.map(|it| (header::AUTHORIZATION, HeaderValue::from_static(it)));
        let headers = HeaderMap::from_iter(authorization);
        let asker = Asker { headers: &headers, account: None };
        task(&identity, &Target::parse(url).unwrap(), asker, trusted).unwrap()
    }

    #[test]
    fn what_anybody_may_have_has_one_name_everywhere_and_what_needs_a_credential_one_for_each_registry() {
        let (a, b) = ("https://a.example/by-hash/x", "https://b.example/by-hash/x");
        assert_eq!(named(a, None, None), named(b, None, None));
        assert_ne!(named(a, Some("one"), None), named(a, None, None));
        assert_eq!(named(a, Some("one"), None), named("https://a.example:443/by-hash/x", Some("two"), None));
        let elsewhere = "https://a.example/mine/by-hash/x";
        for other in [b, "http://a.example/by-hash/x", "https://a.example:5000/by-hash/x", elsewhere] {
            assert_ne!(named(a, Some("one"), None), named(other, Some("one"), None), "{other}");
        }
    }

    #[test]
    fn a_registrys_content_has_one_name_whoever_asks_and_another_at_another_registry() {
        let blob = |place| format!("https://{place}/blobs/sha256:{}", "ab".repeat(32));
        let (a, b) = (blob("a.example/v2/x"), blob("b.example/v2/x"));
        assert_eq!(named(&a, None, None), named(&a, Some("one"), None));
        assert_eq!(named(&a, None, None), named(&blob("a.example/v2/y"), Some("two"), None));
        assert_ne!(named(&a, None, None), named(&b, None, None));
    }

    #[test]
    fn registries_that_are_believed_share_with_one_another_and_with_nobody_else() {
        let trusted = Regex::new("^[ab][.]example:443$").unwrap();
        let name = |url, password| named(url, password, Some(&trusted));
        let blob = |place| format!("https://{place}.example/v2/x/blobs/sha256:{}", "ab".repeat(32));
        let [in_a, in_b, in_c] = ["a", "b", "c"].map(blob);
        assert_eq!(name(&in_a, Some("one")), name(&in_b, None));
        assert_ne!(name(&in_a, Some("one")), name(&in_c, Some("one")));
        let (a, b) = ("https://a.example/x", "https://b.example/x");
        assert_ne!(name(a, Some("one")), name(b, Some("one")), "a file is no registry's");
        let other = Regex::new("^[ac][.]example:443$").unwrap();
        assert_ne!(named(&in_a, None, Some(&other)), name(&in_a, None), "other nodes believe others");
    }
}
