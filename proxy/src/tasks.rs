//! Which task a request's content is.
//!
//! A digest names content wherever it is, and what a file server gave without a credential is shared by that name over all mirrors.
//! What a credential was shown for, and what a registry has, is not shared so: whoever knows a digest and runs a registry could have it
//! say *200, so many bytes*, and be given what others fetched from theirs. A registry could be made to prove that it has the
//! content, by a range that it cannot foresee; but then what is under way at this moment, in parts, on many hosts, would have
//! to be told apart by where each part came from. A name apart does it for all of that: it is
//! a task of its registry or server, and of all those that the operator says are to be believed (`proxy.trustedRegistries`).
//!
//! Whoever reads a part never sees the digest of the whole: what is shared over all mirrors gives parts only when all of it was
//! compared with its digest, and until then a part is a task of the server that gives it ([`apart`]).
//!
//! What this host alone is shown has a name of its own, too: what a loopback address gave ([`crate::here`]), and what is called by
//! its URL and was given to the operator's client certificate, which other hosts may not have.

use crate::entitle::{Asker, credentials};
use crate::here::of_this_host_alone;
use crate::place::{namespace, server};
use crate::refusal::Refusal;
use darter_protocol::{Digest, TaskId};
use darter_rules::oci::Resource;
use darter_rules::{Identity, Target};
use regex::Regex;

/// What trusted registries are called together, with who they are. No registry has this name.
const TRUSTED: &str = "trusted";

/// What the operator says, and names depend on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Operator<'a> {
    /// `proxy.trustedRegistries`.
    pub(crate) trusted: Option<&'a Regex>,
    /// The SHA-256 of the client certificate that the server is shown when it asks for one.
    pub(crate) certificate: Option<[u8; 32]>,
}

/// The task of what `identity` names, for this caller.
///
/// # Errors
/// For a digest of a kind that is not known.
pub(crate) fn task(
    identity: &Identity,
    target: &Target,
    asker: Asker<'_>,
    operator: Operator<'_>,
) -> Result<TaskId, Refusal> {
    match identity {
        Identity::Url { canonical, tag, application } => {
            let shown = operator.certificate.map(|it| format!("\0shown {it:x?}")).unwrap_or_default();
            Ok(of_url(target, canonical, tag, &format!("{application}{shown}")))
        }
        Identity::Digest(digest) => {
            let digest = parse_digest(digest)?;
            Ok(if is_registrys(target) || !shows_nothing(target, asker, operator) {
                TaskId::of_digest_at(&digest, &sources(target, operator.trusted))
            } else if let Some(here) = of_this_host_alone(target.host()) {
                TaskId::of_digest_at(&digest, here)
            } else {
                TaskId::of_digest(&digest)
            })
        }
    }
}

/// What a part of `task` is read from for as long as `task` is not complete here, if servers of files that know nothing of each
/// other share it.
///
/// # Errors
/// For a digest of a kind that is not known.
pub(crate) fn apart(identity: &Identity, target: &Target, task: TaskId) -> Result<Option<TaskId>, Refusal> {
    let Identity::Digest(digest) = identity else { return Ok(None) };
    if is_registrys(target) {
        return Ok(None);
    }
    let apart = TaskId::of_digest_at(&parse_digest(digest)?, &sources(target, None));
    Ok((apart != task).then_some(apart))
}

/// The task of what is called by its URL.
pub(crate) fn of_url(target: &Target, canonical: &str, tag: &str, application: &str) -> TaskId {
    match of_this_host_alone(target.host()) {
        Some(here) => TaskId::of_url(canonical, tag, &format!("{application}\0at {here}")),
        None => TaskId::of_url(canonical, tag, application),
    }
}

/// Whether it is a registry's. Nearly all of them give tokens, to anybody or to some, and clients send what they like beside: one name for
/// all callers, so that those of one registry share one copy.
fn is_registrys(target: &Target) -> bool {
    Resource::parse(target.path()).is_some()
}

/// Whether anybody would be given the same.
fn shows_nothing(target: &Target, asker: Asker<'_>, operator: Operator<'_>) -> bool {
    let client = credentials(asker.headers).next().is_none() && target.query().is_none();
    let nothing_lent = asker.account.is_none() && operator.certificate.is_none();
    client && nothing_lent
}

fn sources(target: &Target, trusted: Option<&Regex>) -> String {
    let here = of_this_host_alone(target.host()).map(|here| format!(" at {here}")).unwrap_or_default();
    if !is_registrys(target) {
        // A server of files checks no digest: whoever may put a file there says by its path what it is.
        return format!("{}{}{here}", server(target), target.path());
    }
    let place = format!("{}:{}", target.host(), target.port());
    match trusted.filter(|trusted| trusted.is_match(&place)) {
        // Nodes that believe others do not share with this one; and whom a mirror asks in turn, nobody has said to believe.
        Some(trusted) => format!("{TRUSTED} {trusted}{}{here}", namespace(target)),
        None => format!("{}{here}", server(target)),
    }
}

pub(crate) fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|invalid: darter_protocol::InvalidDigest| Refusal::unsupported(invalid.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{self, HeaderMap, HeaderValue};
    use std::str::FromStr as _;

    fn named(url: &str, password: Option<&'static str>, trusted: Option<&Regex>) -> TaskId {
        let identity = Identity::Digest(format!("sha256:{}", "ab".repeat(32)));
        let authorization = password.map(|it| (header::AUTHORIZATION, HeaderValue::from_static(it)));
        let headers = HeaderMap::from_iter(authorization);
        let asker = Asker { headers: &headers, account: None };
        let operator = Operator { trusted, certificate: None };
        task(&identity, &Target::parse(url).unwrap(), asker, operator).unwrap()
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

    #[test]
    fn a_mirror_of_several_registries_has_as_many_names_for_a_blob_also_where_it_is_believed() {
        let blob = format!("https://a.example/v2/x/blobs/sha256:{}", "ab".repeat(32));
        let [plain, hub, quay] = ["", "?ns=docker.io", "?ns=quay.io"].map(|ns| format!("{blob}{ns}"));
        let trusted = Regex::new("^a[.]example:443$").unwrap();
        for trusted in [None, Some(&trusted)] {
            assert_eq!(named(&hub, None, trusted), named(&hub, Some("one"), trusted));
            assert_ne!(named(&hub, None, trusted), named(&quay, None, trusted));
            assert_ne!(named(&hub, None, trusted), named(&plain, None, trusted));
        }
    }

    #[test]
    fn what_a_client_certificate_opens_is_not_what_everybody_gets() {
        let url = |place: &str| Target::parse(&format!("https://{place}")).unwrap();
        let headers = HeaderMap::new();
        let asker = Asker { headers: &headers, account: None };
        let name = |identity: &Identity, target: &Target, certificate: Option<u8>| {
            let operator = Operator { trusted: None, certificate: certificate.map(|byte| [byte; 32]) };
            task(identity, target, asker, operator).unwrap()
        };
        let file = Identity::Url {
            canonical: "https://a.example/file".to_owned(),
            tag: String::new(),
            application: String::new(),
        };
        let at = url("a.example/file");
        assert_eq!(name(&file, &at, Some(1)), name(&file, &at, Some(1)));
        assert_ne!(name(&file, &at, Some(1)), name(&file, &at, None));
        assert_ne!(name(&file, &at, Some(1)), name(&file, &at, Some(2)));
        // Of its digest everybody knows the name: each place is asked for it with its own.
        let digest = Identity::Digest(format!("sha256:{}", "ab".repeat(32)));
        let (a, b) = (url("a.example/by-hash/x"), url("b.example/by-hash/x"));
        assert_eq!(name(&digest, &a, None), name(&digest, &b, None));
        assert_ne!(name(&digest, &a, Some(1)), name(&digest, &a, None));
        assert_ne!(name(&digest, &a, Some(1)), name(&digest, &b, Some(1)));
    }

    #[test]
    fn what_this_hosts_own_servers_gave_is_found_by_no_name_of_others() {
        let digest = Digest::from_str(&format!("sha256:{}", "ab".repeat(32))).unwrap();
        for host in ["localhost:5000", "127.0.0.1:5000", "[::1]:5000", "169.254.7.7:5000", "[fe80::1]:5000"] {
            let (file, blob) =
                (format!("http://{host}/by-hash/x"), format!("http://{host}/v2/x/blobs/{digest}"));
            for url in [&file, &blob] {
                let named = named(url, None, None);
                // By a name that another host would give it, too.
                let everywhere = [
                    TaskId::of_digest(&digest),
                    TaskId::of_digest_at(&digest, &format!("http://{host}")),
                    TaskId::of_digest_at(&digest, url),
                ];
                assert!(!everywhere.contains(&named), "{url}");
            }
            let target = Target::parse(&file).unwrap();
            assert_ne!(of_url(&target, &file, "", ""), TaskId::of_url(&file, "", ""));
        }
        let elsewhere = Target::parse("http://files.example/x").unwrap();
        let url = "http://files.example/x";
        assert_eq!(of_url(&elsewhere, url, "", ""), TaskId::of_url(url, "", ""));
    }
}
