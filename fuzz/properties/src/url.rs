//! URLs: what is judged is what is asked for, however it was written.

use darter_rules::{
    Decision, Destinations, Intercept, InvalidRegistry, Mirror, Naming, Proxies, Request, Rules, Target, Way,
    split_authority,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use std::sync::LazyLock;

/// A URL, as a client writes it into a request in absolute form, or an operator into the configuration.
pub fn target(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Anything may stand in a Host header, too.
    let authority = split_authority(text);
    if let Ok((host, port)) = &authority {
        let again = split_authority(&host_and_port(&host.to_string(), *port));
        assert_eq!(again, authority, "an authority reads back as itself");
    }
    if let Ok(target) = Target::parse(text) {
        judged(&target);
    }
}

/// A path and a query on the first line, and what stands in `X-Dragonfly-Registry` on a second.
pub fn mirror(bytes: &[u8]) {
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let uri = lines.next().and_then(|line| Uri::try_from(line).ok());
    let Some(uri) = uri.filter(|uri| uri.path().starts_with('/')) else { return };
    let registry = lines.next().and_then(|line| HeaderValue::from_bytes(line).ok());
    let name = HeaderName::from_static("x-dragonfly-registry");
    let headers: HeaderMap = registry.into_iter().map(|value| (name.clone(), value)).collect();
    let Ok(url) = Target::parse("https://registry.example/prefix") else { return };
    let mirror = Mirror { url: url.clone(), dynamic: true, direct: false, use_proxies: false };
    if let Ok((target, _)) = mirror.target(&uri, &headers) {
        judged(&target);
    }
    let fixed = Mirror { dynamic: false, ..mirror };
    match fixed.target(&uri, &headers) {
        Ok((target, _)) => assert_eq!(target.host(), url.host(), "a mirror of one registry asks that one"),
        Err(error) => {
            assert!(uri.path().starts_with("/ns/") && error == InvalidRegistry::Fixed, "{error}");
        }
    }
}

/// What must hold for everything that may be asked for.
fn judged(target: &Target) {
    let again = Target::parse(target.url());
    assert_eq!(again.as_ref(), Ok(target), "what is asked for is what was judged");
    let canonical = Target::parse(&target.canonical()).expect("the canonical form is a URL");
    assert_eq!(canonical.canonical(), target.canonical(), "it has one canonical form");
    assert_eq!(
        (canonical.scheme(), canonical.host(), canonical.port()),
        (target.scheme(), target.host(), target.port()),
        "of the same origin"
    );
    let (host, port) = split_authority(target.authority()).expect("an authority is one");
    assert_eq!((&host, port.unwrap_or(target.scheme().default_port())), (target.host(), target.port()));

    decided(target);
    // Whatever it says: on every spelling of one host it says the same.
    let destinations = Destinations::new(Vec::new());
    let verdict = |target: &Target| destinations.check_host(target.host(), target.port()).is_ok();
    assert_eq!(verdict(target), verdict(&canonical), "a spelling opens no door");
}

/// Without a rule that leads elsewhere, a request goes where it says.
fn decided(target: &Target) {
    static RULES: LazyLock<Rules> = LazyLock::new(|| Rules {
        mirror: Mirror {
            url: Target::parse("https://registry.example").expect("a URL"),
            dynamic: true,
            direct: false,
            use_proxies: false,
        },
        proxies: Proxies::default(),
        intercept: Intercept::default(),
        destinations: Destinations::new(Vec::new()),
        naming: Naming::default(),
    });
    let Ok(uri) = target.url().parse::<Uri>() else { return };
    let (method, headers) = (Method::GET, HeaderMap::new());
    let request = Request { method: &method, way: Way::Forward, uri: &uri, headers: &headers };
    match RULES.decide(&request) {
        Decision::Refuse(_) => {}
        Decision::Direct { target: to, .. } => assert_eq!(&to, target, "it goes where it says"),
        Decision::Peers { target: to, digest, .. } => {
            assert_eq!(&to, target, "it goes where it says");
            if let Some(digest) = digest {
                assert!(matches!(digest.len(), 71 | 135), "{digest}");
            }
        }
    }
}

fn host_and_port(host: &str, port: Option<u16>) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    port.map_or(host.clone(), |port| format!("{host}:{port}"))
}
