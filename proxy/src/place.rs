//! [`server`]: who has some content, by name.

use aws_lc_rs::digest::{SHA256, digest};
use darter_rules::Target;
use std::borrow::Cow;

/// By which parameter a registry that is a mirror of others is told which of them is meant (distribution-spec, "Registry
/// proxying").
const NAMESPACE: &str = "ns";

/// `scheme://host:port`, and behind it which registry is meant where that one is a mirror of several: what it has of one of them,
/// another one's repository of that name does not have.
pub(crate) fn server(target: &Target) -> String {
    let server = format!("{}://{}:{}", target.scheme().as_str(), target.host(), target.port());
    server + &namespace(target)
}

/// A longer name is no registry's (RFC 1035 section 2.3.4, and a port), and stands for itself by its SHA-256: a name is part of
/// every fact that is remembered of its registry, and whoever asks chooses it.
const MAX_NAMESPACE: usize = 255 + ":65535".len();

/// `?ns=...`, or nothing. Nobody knows which one a mirror goes by that is told several: all of them count.
pub(crate) fn namespace(target: &Target) -> String {
    let Some(query) = target.query().filter(|_| target.path().starts_with("/v2/")) else {
        return String::new();
    };
    let all = url::form_urlencoded::parse(query.as_bytes());
    let named: Vec<Cow<'_, str>> =
        all.filter(|(name, _)| name == NAMESPACE).map(|(_, value)| value).collect();
    if named.is_empty() {
        return String::new();
    }
    let named = named.join("&");
    if named.len() <= MAX_NAMESPACE {
        format!("?{NAMESPACE}={named}")
    } else {
        // No host has a `:` at its beginning.
        format!("?{NAMESPACE}=:{:x?}", digest(&SHA256, named.as_bytes()).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_as_many_registries_as_it_is_asked_for() {
        let of = |url: &str| server(&Target::parse(url).unwrap());
        assert_eq!(of("https://mirror.example/v2/a/blobs/x"), "https://mirror.example:443");
        let hub = of("https://mirror.example/v2/a/blobs/x?ns=docker.io");
        assert_eq!(hub, "https://mirror.example:443?ns=docker.io");
        assert_eq!(of("https://mirror.example/v2/b/manifests/1?n=2&ns=docker%2Eio"), hub);
        for other in ["ns=quay.io", "ns=docker.io&ns=quay.io", "%6es=quay.io"] {
            assert_ne!(of(&format!("https://mirror.example/v2/a/blobs/x?{other}")), hub, "{other}");
        }
        assert_eq!(of("https://files.example/a?ns=docker.io"), "https://files.example:443");
    }

    #[test]
    fn a_name_that_is_no_registrys_is_never_long() {
        let of = |name: &str| {
            server(&Target::parse(&format!("https://mirror.example/v2/a/blobs/x?ns={name}")).unwrap())
        };
        let long = "a".repeat(60_000);
        assert!(of(&long).len() < 300, "{}", of(&long));
        assert_ne!(of(&long), of(&format!("{long}b")));
        let longest = "a".repeat(MAX_NAMESPACE);
        assert_eq!(of(&longest), format!("https://mirror.example:443?ns={longest}"));
    }
}
