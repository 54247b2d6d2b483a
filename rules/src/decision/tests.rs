//! Where a request goes, and what it is called on the way: each rule alone, then those that meet.

use super::*;
use crate::destination::{HostPattern, WhiteListEntry};
use crate::proxies::{ProxyRule, Redirect, Source};
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

const HEX: &str = "000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f";

fn rules() -> Rules {
    Rules {
        mirror: Mirror {
            url: Target::parse("https://index.docker.io").unwrap(),
            dynamic: true,
            direct: false,
            use_proxies: false,
        },
        proxies: Proxies::default(),
        intercept: Intercept::default(),
        destinations: Destinations::default(),
        naming: Naming::default(),
    }
}

fn with_rules(list: Vec<ProxyRule>) -> Rules {
    Rules { proxies: Proxies::new(list).unwrap(), ..rules() }
}

fn rule(pattern: &str) -> ProxyRule {
    ProxyRule::new(pattern.parse().unwrap())
}

fn decide(rules: &Rules, method: Method, way: Way<'_>, uri: &str) -> Decision {
    let (uri, headers) = (uri.parse().unwrap(), HeaderMap::new());
    rules.decide(&Request { method: &method, way, uri: &uri, headers: &headers })
}

#[test]
fn what_a_command_asks_for_goes_through_the_peers_unless_a_rule_sends_it_straight_on() {
    let named = |rules: &Rules, uri: &str| decide(rules, Method::GET, Way::Named, uri);
    let Decision::Peers { settled, because, .. } = named(&rules(), "https://a.example/model.bin") else {
        panic!("not through the peers")
    };
    assert!(!settled && because == Because::Default, "nobody said that it never changes");
    assert!(matches!(get(&rules(), "http://a.example/model.bin"), Decision::Direct { .. }));
    let manifest = named(&rules(), "https://a.example/v2/x/manifests/latest");
    assert!(matches!(manifest, Decision::Direct { .. }), "{manifest:?}");
    let straight = with_rules(vec![ProxyRule { direct: true, ..rule("model") }]);
    assert!(matches!(named(&straight, "https://a.example/model.bin"), Decision::Direct { .. }));
    let operators = named(&with_rules(vec![rule("model")]), "https://a.example/model.bin");
    assert!(matches!(operators, Decision::Peers { settled: true, .. }), "{operators:?}");
}

fn get(rules: &Rules, uri: &str) -> Decision {
    decide(rules, Method::GET, Way::Forward, uri)
}

fn mirrored(rules: &Rules, path: &str) -> Decision {
    decide(rules, Method::GET, Way::Mirror, path)
}

fn blob() -> String {
    format!("/v2/library/nginx/blobs/sha256:{HEX}")
}

/// (goes through the peers, URL, why)
fn routed(decision: Decision) -> (bool, String, Because) {
    match decision {
        Decision::Peers { target, because, .. } => (true, target.url().to_owned(), because),
        Decision::Direct { target, because } => (false, target.url().to_owned(), because),
        Decision::Refuse(refusal) => panic!("refused: {refusal}"),
    }
}

#[test]
fn a_blob_goes_through_the_peers_under_its_digest() {
    let url = format!("http://registry.example{}", blob());
    let digest = format!("sha256:{HEX}");
    assert_eq!(
        get(&rules(), &url),
        Decision::Peers {
            target: Target::parse(&url).unwrap(),
            identity: Identity::Digest(digest.clone()),
            digest: Some(digest),
            settled: true,
            because: Because::BuiltIn("OCI blob"),
        }
    );
}

#[test]
fn everything_else_streams_direct() {
    for path in [
        "/v2/".to_owned(),
        "/v2/library/nginx/manifests/latest".to_owned(),
        format!("/v2/library/nginx/manifests/sha256:{HEX}"),
        "/token?service=registry.example".to_owned(),
        "/debian/dists/bookworm/InRelease".to_owned(),
        "/simple/numpy/".to_owned(),
    ] {
        let url = format!("http://registry.example{path}");
        assert_eq!(routed(get(&rules(), &url)), (false, url, Because::Default));
    }
}

#[test]
fn only_get_goes_through_the_peers() {
    let url = format!("http://registry.example{}", blob());
    for method in [Method::HEAD, Method::POST, Method::PATCH, Method::PUT, Method::DELETE, Method::OPTIONS] {
        for rules in [rules(), with_rules(vec![rule(".*")])] {
            let found = routed(decide(&rules, method.clone(), Way::Forward, &url));
            assert_eq!(found, (false, url.clone(), Because::Method), "{method}");
        }
    }
}

#[test]
fn a_rule_without_direct_sends_anything_through_the_peers() {
    let url = "http://deb.example/pool/a.deb?Expires=9";
    let Decision::Peers { identity, digest, because, .. } = get(&with_rules(vec![rule(r"\.deb")]), url)
    else {
        panic!("not through the peers");
    };
    assert_eq!((digest, because), (None, Because::Rule(0)));
    assert!(
        matches!(identity, Identity::Url { canonical, .. } if canonical == "http://deb.example/pool/a.deb")
    );
}

/// A tag means something else tomorrow, and the request for a manifest is what shows that the caller may have the layers.
#[test]
fn no_rule_sends_a_manifest_through_the_peers() {
    let base = rule("^https://old.example(.*)");
    let redirect = Redirect::parse("https://registry.example$1", &base.regex).unwrap();
    let rules = with_rules(vec![ProxyRule { redirect: Some(redirect), ..base }, rule(".*")]);
    for reference in ["latest", &format!("sha256:{HEX}"), &format!("sha256%3A{HEX}")] {
        for host in ["registry.example", "old.example"] {
            let url = format!("https://{host}/v2/team/app/manifests/{reference}");
            let (peers, url, because) = routed(get(&rules, &url));
            assert!(!peers && url.starts_with("https://registry.example/"), "{url}");
            assert!(matches!(because, Because::Rule(_)), "{because:?}");
        }
    }
    assert!(routed(get(&rules, "https://registry.example/v2/team/app/tags/list")).0);
}

#[test]
fn a_direct_rule_keeps_even_a_blob_from_the_peers() {
    let rules = with_rules(vec![ProxyRule { direct: true, ..rule("registry.example") }]);
    let url = format!("http://registry.example{}", blob());
    assert_eq!(routed(get(&rules, &url)), (false, url, Because::Rule(0)));
}

#[test]
fn a_redirect_holds_for_every_method_and_names_the_content() {
    let base = rule("^http://old.example/(.*)");
    let redirect = Redirect::parse("https://new.example/$1", &base.regex).unwrap();
    let rules = with_rules(vec![ProxyRule { redirect: Some(redirect), ..base }]);
    for method in [Method::GET, Method::PUT] {
        let (_, url, _) = routed(decide(&rules, method, Way::Forward, "http://old.example/a"));
        assert_eq!(url, "https://new.example/a");
    }
    let Decision::Peers { identity: Identity::Url { canonical, .. }, .. } =
        get(&rules, "http://old.example/a")
    else {
        panic!("not through the peers");
    };
    assert_eq!(canonical, "https://new.example/a");
}

#[test]
fn an_intercepted_request_goes_where_its_connection_went() {
    let host: Host = "registry.example".parse().unwrap();
    for uri in [blob(), format!("https://elsewhere.example{}", blob())] {
        let way = Way::Intercepted { host: &host, port: 5000 };
        let found = routed(decide(&rules(), Method::GET, way, &uri));
        assert_eq!(
            found,
            (true, format!("https://registry.example:5000{}", blob()), Because::BuiltIn("OCI blob"))
        );
    }
}

#[test]
fn the_mirror_sends_layers_through_the_peers_and_the_rest_direct() {
    assert_eq!(
        routed(mirrored(&rules(), &format!("{}?ns=docker.io", blob()))),
        (true, format!("https://registry-1.docker.io{}", blob()), Because::BuiltIn("OCI blob"))
    );
    assert_eq!(
        routed(mirrored(&rules(), "/v2/library/nginx/manifests/latest?ns=quay.io")),
        (false, "https://quay.io/v2/library/nginx/manifests/latest".into(), Because::Default)
    );
}

#[test]
fn the_mirror_asks_the_rules_only_when_told_to() {
    let never = with_rules(vec![ProxyRule { direct: true, ..rule("blobs") }, rule("manifests")]);
    let asks = Rules { mirror: Mirror { use_proxies: true, ..never.mirror.clone() }, ..never.clone() };
    assert!(routed(mirrored(&never, &blob())).0);
    assert!(!routed(mirrored(&asks, &blob())).0);
    assert!(!routed(mirrored(&never, "/v2/a/manifests/1")).0);
    let anything = Rules { proxies: Proxies::new(vec![rule("list")]).unwrap(), ..asks.clone() };
    assert!(!routed(mirrored(&never, "/v2/a/tags/list")).0);
    assert!(routed(mirrored(&anything, "/v2/a/tags/list")).0);
    // A blob that no rule matches is still a blob.
    let other = Rules { proxies: Proxies::new(vec![rule("nothing")]).unwrap(), ..asks };
    assert!(routed(mirrored(&other, &blob())).0);
}

#[test]
fn a_direct_mirror_sends_all_straight_on() {
    let base = with_rules(vec![rule(".*")]);
    let direct = Rules { mirror: Mirror { direct: true, use_proxies: true, ..base.mirror.clone() }, ..base };
    let (peers, _, because) = routed(mirrored(&direct, &blob()));
    assert_eq!((peers, because), (false, Because::MirrorDirect));
}

#[test]
fn a_refused_destination_goes_nowhere_in_any_way() {
    let host: Host = "127.0.0.1".parse().unwrap();
    for decision in [
        get(&rules(), "http://127.0.0.1/a"),
        decide(&rules(), Method::PUT, Way::Forward, "http://127.0.0.1/a"),
        decide(&rules(), Method::GET, Way::Intercepted { host: &host, port: 443 }, "/a"),
        mirrored(&rules(), "/v2/?ns=127.0.0.1"),
    ] {
        let Decision::Refuse(refusal) = decision else { panic!("{decision:?}") };
        assert!(
            refusal.to_string().contains("is a loopback address; list it in proxy.whiteList"),
            "{refusal}"
        );
    }
}

#[test]
fn where_a_redirect_leads_is_what_is_judged() {
    let base = rule("^http://a.example/");
    let redirect = Redirect::parse("127.0.0.1:5000", &base.regex).unwrap();
    let closed = with_rules(vec![ProxyRule { redirect: Some(redirect), ..base }]);
    assert!(matches!(get(&closed, "http://a.example/x"), Decision::Refuse(Refusal::Destination(_))));
    let host: HostPattern = "127.0.0.1".parse().unwrap();
    let entry = WhiteListEntry { host: Some(host), ..Default::default() };
    let open = Rules { destinations: Destinations::new(vec![entry]), ..closed };
    assert_eq!(routed(get(&open, "http://a.example/x")).1, "http://127.0.0.1:5000/x");
}

#[test]
fn what_cannot_be_understood_is_refused() {
    assert!(matches!(get(&rules(), "/no/host"), Decision::Refuse(Refusal::Target(InvalidTarget::Relative))));
    assert!(matches!(mirrored(&rules(), "/v2/?ns="), Decision::Refuse(Refusal::Registry(_))));
    let base = rule("^http://a.example/(.*)");
    let redirect = Redirect::parse("http://$1", &base.regex).unwrap();
    let source = Source { file: "/etc/darter.yaml".into(), line: 7 };
    let broken = with_rules(vec![rule("b"), ProxyRule { redirect: Some(redirect), source, ..base }]);
    let Decision::Refuse(refusal) = get(&broken, "http://a.example/..") else { panic!("not refused") };
    assert!(refusal.to_string().contains("/etc/darter.yaml:7"), "{refusal}");
}

#[test]
fn an_explanation_tells_each_step_and_no_secret() {
    let source = Source { file: "/etc/darter.yaml".into(), line: 7 };
    let redirected = rule("^http://old.example/(.*)");
    let redirect = Redirect::parse("https://new.example/$1", &redirected.regex).unwrap();
    let rules = with_rules(vec![
        ProxyRule { unless: Some("nothing|deb".parse().unwrap()), ..rule("old") },
        ProxyRule { redirect: Some(redirect), source, ..redirected },
    ]);
    let (method, headers) = (Method::GET, HeaderMap::new());
    let uri = "http://OLD.example:80/pool/a_1_all.deb?Signature=hunter2&v=1&hunter2".parse().unwrap();
    let request = Request { method: &method, way: Way::Forward, uri: &uri, headers: &headers };
    let explained = rules.explain(&request);
    assert_eq!(explained.decision, rules.decide(&request));
    let told: Vec<String> = explained.steps.iter().map(ToString::to_string).collect();
    let text = told.join("\n");
    for (at, expected) in [
        "request: GET to a forward proxy",
        "url: http://old.example/pool/a_1_all.deb with the query parameters Signature, v, *",
        "rule: (no file):1 (regx old) matches, but so does its unless",
        "rule: /etc/darter.yaml:7 (regx ^http://old.example/(.*)) matches",
        "redirect: https://new.example/pool/a_1_all.deb with the query parameters Signature, v, *",
        "destination: new.example at port 443 is allowed",
        "decision: through the peers",
        "name: https://new.example/pool/a_1_all.deb (tag \"\", application \"\"), without the query parameters Signature",
        "check: nothing says what it must contain",
        "freshness: the origin is asked",
        "entitlement: shared when the request brings no credential",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(told.get(at).is_some_and(|step| step.starts_with(expected)), "{expected} in\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_refusal_is_explained_too() {
    let (method, headers) = (Method::GET, HeaderMap::new());
    for (way, uri, expected) in [
        (Way::Forward, "http://127.0.0.1/", "decision: refused: destination 127.0.0.1 is a loopback address"),
        (Way::Mirror, "/ns/a@b/v2/", "decision: refused: the path does not name a registry"),
    ] {
        let uri = uri.parse().unwrap();
        let request = Request { method: &method, way, uri: &uri, headers: &headers };
        let last = rules().explain(&request).steps.pop().unwrap().to_string();
        assert!(last.starts_with(expected), "{last}");
    }
}

proptest! {
    #[test]
    fn no_request_panics_and_every_refusal_is_one_printable_line(
        uri in "(http://|https://)?[!-~]{0,40}",
        header in "[ -~]{0,20}",
        way in 0..3_usize,
        method in prop::sample::select(vec![Method::GET, Method::PUT]),
    ) {
        let Ok(uri) = uri.parse::<Uri>() else { return Ok(()) };
        let names = ["x-dragonfly-registry", "x-dragonfly-filter", "x-dragonfly-tag"];
        let headers: HeaderMap = names
            .map(|name| (HeaderName::from_static(name), HeaderValue::from_str(&header).unwrap()))
            .into_iter()
            .collect();
        let host: Host = "registry.example".parse().unwrap();
        let way = [Way::Forward, Way::Mirror, Way::Intercepted { host: &host, port: 443 }][way];
        let rules = with_rules(vec![rule("a"), ProxyRule { use_https: true, ..rule("b") }]);
        let request = Request { method: &method, way, uri: &uri, headers: &headers };
        let decision = rules.decide(&request);
        prop_assert_eq!(&rules.explain(&request).decision, &decision);
        match decision {
            Decision::Refuse(refusal) => {
                prop_assert!(refusal.to_string().bytes().all(|b| b == b' ' || b.is_ascii_graphic()));
            }
            Decision::Peers { target, .. } => {
                prop_assert_eq!(method, Method::GET);
                prop_assert!(target.url().parse::<Uri>().is_ok());
            }
            Decision::Direct { target, .. } => prop_assert!(target.url().parse::<Uri>().is_ok()),
        }
    }
}
