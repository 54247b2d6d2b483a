//! [`Mirror`]: which registry a request in origin form means (`proxy.registryMirror`). The client took us for the registry
//! itself, so the URL does not say.

use crate::oci::registry_host;
use crate::target::{Host, InvalidTarget, Scheme, Target, query_parts, split_authority};
use http::{HeaderMap, HeaderName, Uri};
use percent_encoding::percent_decode_str;

/// Names the registry, as a host or as a URL with its scheme.
pub(crate) const REGISTRY_HEADER: HeaderName = HeaderName::from_static("x-dragonfly-registry");
/// Names the registry (distribution-spec, "Registry proxying"): containerd sends `?ns=docker.io`.
const REGISTRY_PARAMETER: &str = "ns";

/// How requests in origin form are served.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// The registry of requests that name none. A path in it comes before the request's own.
    pub url: Target,
    /// Whether a request may name its registry: by `?ns=`, else by the header `X-Dragonfly-Registry`.
    pub dynamic: bool,
    /// Everything straight to the registry, past the peers.
    pub direct: bool,
    /// The rules of `proxy.proxies` are asked first. Otherwise image layers go through the peers, and all else direct.
    pub use_proxies: bool,
}

/// A request to the mirror that names no registry that could be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRegistry {
    /// The query has it twice, or not as `host[:port]`.
    #[error("the query parameter ns does not name one registry; expected ns=host or ns=host:port")]
    Parameter,
    /// The header stands there twice, or is neither host nor URL.
    #[error(
        "the header X-Dragonfly-Registry does not name one registry; expected host, host:port or https://host"
    )]
    Header,
}

impl Mirror {
    /// Where a request for `uri` goes. A registry that is named is taken from `ns` first, which then does not go along,
    /// for it is meant for us; docker.io is asked where its content is served.
    ///
    /// # Errors
    /// When the request names a registry in a way that is not understood: it is not sent to another instead.
    pub fn target(&self, uri: &Uri, headers: &HeaderMap) -> Result<Target, InvalidRegistry> {
        let path_and_query = uri.path_and_query().map_or("/", |it| it.as_str());
        if !self.dynamic {
            return Ok(below(&self.url, path_and_query));
        }
        if let Some((registry, rest)) = by_parameter(path_and_query)? {
            return Ok(below(&registry, &rest));
        }
        match by_header(headers)? {
            Some(registry) => Ok(below(&registry, path_and_query)),
            None => Ok(below(&self.url, path_and_query)),
        }
    }
}

fn below(registry: &Target, path_and_query: &str) -> Target {
    let prefix = registry.path().trim_end_matches('/');
    // docker.io's aliases are only that where the registry itself is meant, not some port beside it.
    let default = registry.scheme() == Scheme::Https && registry.port() == 443;
    let host = if default { registry_host(registry.host().clone()) } else { registry.host().clone() };
    let slash = if path_and_query.starts_with('/') { "" } else { "/" };
    registry
        .clone()
        .at(host, registry.port())
        .with_path_and_query(&format!("{prefix}{slash}{path_and_query}"))
}

/// The registry that `ns` names, and the path and query without it.
fn by_parameter(path_and_query: &str) -> Result<Option<(Target, String)>, InvalidRegistry> {
    let Some((path, query)) = path_and_query.split_once('?') else { return Ok(None) };
    let (mine, others): (Vec<_>, Vec<_>) =
        query_parts(query).partition(|(name, _)| name == REGISTRY_PARAMETER);
    let registry = match mine.as_slice() {
        [] => return Ok(None),
        [(_, only)] => only.split_once('=').and_then(|(_, value)| host_of_parameter(value)),
        // Whoever looks at the first and whoever looks at the last would mean different registries.
        _ => None,
    };
    let rest: Vec<&str> = others.into_iter().map(|(_, part)| part).collect();
    let rest = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
    registry.map(|registry| Some((registry, rest))).ok_or(InvalidRegistry::Parameter)
}

fn host_of_parameter(value: &str) -> Option<Target> {
    let value = percent_decode_str(value).decode_utf8().ok()?;
    bare_host(&value).ok()
}

fn by_header(headers: &HeaderMap) -> Result<Option<Target>, InvalidRegistry> {
    let mut values = headers.get_all(REGISTRY_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(InvalidRegistry::Header);
    }
    let text = value.to_str().map_err(|_| InvalidRegistry::Header)?.trim();
    let target = if text.contains("://") { Target::parse(text) } else { bare_host(text) };
    match target {
        Ok(target) if target.query().is_none() => Ok(Some(target)),
        _ => Err(InvalidRegistry::Header),
    }
}

/// A host without a scheme is asked over TLS: a name from a request never selects the weaker way.
fn bare_host(text: &str) -> Result<Target, InvalidTarget> {
    let (host, port): (Host, _) = split_authority(text)?;
    Ok(Target::on(Scheme::Https, host, port.unwrap_or(443), &Uri::from_static("/")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn mirror(url: &str) -> Mirror {
        Mirror { url: Target::parse(url).unwrap(), dynamic: true, direct: false, use_proxies: false }
    }

    fn header(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(REGISTRY_HEADER, HeaderValue::from_str(value).unwrap())])
    }

    fn goes_to(mirror: &Mirror, uri: &str, headers: &HeaderMap) -> Result<String, InvalidRegistry> {
        mirror.target(&uri.parse().unwrap(), headers).map(|target| target.url())
    }

    #[test]
    fn a_request_that_names_no_registry_goes_to_the_configured_one() {
        let goes_to = |url, uri| goes_to(&mirror(url), uri, &HeaderMap::new()).unwrap();
        assert_eq!(
            goes_to("https://index.docker.io", "/v2/library/nginx/manifests/latest"),
            "https://registry-1.docker.io/v2/library/nginx/manifests/latest"
        );
        assert_eq!(
            goes_to("http://registry.example:5000", "/v2/?n=5"),
            "http://registry.example:5000/v2/?n=5"
        );
        assert_eq!(goes_to("https://registry.example/hub/", "/v2/"), "https://registry.example/hub/v2/");
        assert_eq!(goes_to("http://docker.io:5000", "/v2/"), "http://docker.io:5000/v2/");
    }

    #[test]
    fn ns_names_the_registry_and_does_not_go_along() {
        let goes_to =
            |uri| goes_to(&mirror("https://index.docker.io"), uri, &header("other.example")).unwrap();
        assert_eq!(goes_to("/v2/a/manifests/1?ns=quay.io"), "https://quay.io/v2/a/manifests/1");
        assert_eq!(
            goes_to("/v2/a/tags/list?n=2&ns=quay.io&last=b%7e"),
            "https://quay.io/v2/a/tags/list?n=2&last=b%7e"
        );
        assert_eq!(goes_to("/v2/?ns=registry.example%3A5000"), "https://registry.example:5000/v2/");
        assert_eq!(goes_to("/v2/?%6es=docker.io"), "https://registry-1.docker.io/v2/");
        assert_eq!(goes_to("/v2/?ns=[2001:db8::1]:5000"), "https://[2001:db8::1]:5000/v2/");
    }

    #[test]
    fn the_header_comes_second_and_may_carry_a_scheme() {
        let goes_to =
            |value| goes_to(&mirror("https://index.docker.io"), "/v2/?n=1", &header(value)).unwrap();
        assert_eq!(goes_to("quay.io"), "https://quay.io/v2/?n=1");
        assert_eq!(goes_to("https://docker.io"), "https://registry-1.docker.io/v2/?n=1");
        assert_eq!(goes_to("http://registry.example:5000/"), "http://registry.example:5000/v2/?n=1");
    }

    #[test]
    fn without_dynamic_a_request_cannot_name_its_registry() {
        let fixed = Mirror { dynamic: false, ..mirror("https://registry.example") };
        assert_eq!(
            goes_to(&fixed, "/v2/?ns=quay.io", &header("quay.io")).unwrap(),
            "https://registry.example/v2/?ns=quay.io"
        );
    }

    #[test]
    fn a_registry_that_is_not_understood_is_refused_rather_than_replaced() {
        let rules = mirror("https://index.docker.io");
        for uri in [
            "/v2/?ns=",
            "/v2/?ns",
            "/v2/?ns=a&ns=b",
            "/v2/?ns=https://quay.io",
            "/v2/?ns=quay.io/x",
            "/v2/?ns=u@quay.io",
            "/v2/?ns=%ff",
            "/v2/?ns=quay.io%00",
        ] {
            assert_eq!(goes_to(&rules, uri, &HeaderMap::new()), Err(InvalidRegistry::Parameter), "{uri}");
        }
        for value in ["", "ftp://a", "a b", "https://u:p@quay.io", "https://quay.io/?x=1"] {
            assert_eq!(goes_to(&rules, "/v2/", &header(value)), Err(InvalidRegistry::Header), "{value}");
        }
        let mut twice = header("a.example");
        twice.append(REGISTRY_HEADER, HeaderValue::from_static("b.example"));
        assert_eq!(goes_to(&rules, "/v2/", &twice), Err(InvalidRegistry::Header));
    }

    proptest! {
        #[test]
        fn no_request_panics(query in "[!-~]{0,30}", value in "[ -~]{0,20}") {
            if let Ok(uri) = format!("/v2/?ns={query}").parse::<Uri>() {
                let _ = mirror("https://index.docker.io").target(&uri, &header(&value));
            }
        }
    }
}
