//! [`server`]: who has some content, by name.

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

/// `?ns=...`, or nothing. Nobody knows which one a mirror goes by that is told several: all of them count.
pub(crate) fn namespace(target: &Target) -> String {
    let Some(query) = target.query().filter(|_| target.path().starts_with("/v2/")) else {
        return String::new();
    };
    let all = url::form_urlencoded::parse(query.as_bytes());
    let named: Vec<Cow<'_, str>> =
        all.filter(|(name, _)| name == NAMESPACE).map(|(_, value)| value).collect();
    if named.is_empty() { String::new() } else { format!("?{NAMESPACE}={}", named.join("&")) }
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
}
