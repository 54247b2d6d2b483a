//! [`Rules`]: every rule about a request's URL, and the one place where they are put together.

use crate::destination::{DestinationRefused, Destinations};
use crate::identity::{Identity, Naming, expected_digest, shown};
use crate::immutable::{Immutable, Sure};
use crate::intercept::Intercept;
use crate::mirror::{InvalidRegistry, Mirror};
use crate::oci::{Kind, Resource};
use crate::proxies::{Proxies, RedirectFailed, Ruled};
use crate::target::{Host, InvalidTarget, Scheme, Target, canonical_encoding, query_parts};
use crate::trace::{Explanation, Nobody, Witness};
use http::{HeaderMap, Method, Uri};

/// Every rule about where requests go. Immutable: a reload makes a new one.
#[derive(Debug, Clone)]
pub struct Rules {
    /// `proxy.registryMirror`: requests in origin form.
    pub mirror: Mirror,
    /// `proxy.proxies`, `proxy.rulesDir` and `proxy.builtinRules`: the rules about URLs.
    pub proxies: Proxies,
    /// `proxy.hijackHTTPS.hosts`: whose TLS is opened up.
    pub intercept: Intercept,
    /// `proxy.whiteList`: where requests may go.
    pub destinations: Destinations,
    /// `proxy.defaultFilter`, `proxy.defaultTag`: what content is called.
    pub naming: Naming,
}

/// A request, as far as the rules look at it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// How it came to us.
    pub way: Way<'a>,
    /// Its target, as it stands in the request.
    pub uri: &'a Uri,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// How a request came to us, which says what its target means.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// To a forward proxy: the target is a whole URL.
    Forward,
    /// Inside a TLS connection that we opened up: the target is a path at the host that the connection was made to,
    /// whatever the request itself says.
    Intercepted {
        /// Whom the client connected to.
        host: &'a Host,
        /// At which port.
        port: u16,
    },
    /// To us as if we were the registry: the target is a path at a registry that the request or the configuration names.
    Mirror,
    /// By a command that asks for this URL: it goes through the peers, unless a rule of the operator's sends it straight on.
    Named,
}

/// What happens with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Its content comes through the peer network. Only ever a GET.
    Peers {
        /// Where the content comes from at first.
        target: Target,
        /// What it is called among peers.
        identity: Identity,
        /// What it must hash to, `sha256:<hex>`, where the URL says.
        digest: Option<String>,
        /// It is taken not to change: its name says what it contains, or the operator's rule does. Otherwise its origin
        /// must be asked, each time, whether it has changed.
        settled: bool,
        /// Which rule said so.
        because: Because,
    },
    /// It is streamed to the origin and back.
    Direct {
        /// Where it goes.
        target: Target,
        /// Which rule said so.
        because: Because,
    },
    /// It goes nowhere.
    Refuse(Refusal),
}

/// Which rule a decision came from: for logs, and to explain it to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The operator's rule so-and-so, counted from 0 over all their sources.
    Rule(usize),
    /// No rule of the operator's matched, and a built-in one of this name knows it as something that never changes.
    BuiltIn(&'static str),
    /// The method is not GET.
    Method,
    /// `proxy.registryMirror.direct`.
    MirrorDirect,
    /// No rule matched.
    Default,
}

/// Why a request goes nowhere. Displays as one line of printable ASCII that fits a reason phrase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client's mistake: its URL makes no target.
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    /// The client's mistake: it names no registry to mirror.
    #[error(transparent)]
    Registry(#[from] InvalidRegistry),
    /// Not allowed.
    #[error(transparent)]
    Destination(#[from] DestinationRefused),
    /// The operator's mistake: a rule's redirect makes no target of this URL.
    #[error(transparent)]
    Redirect(#[from] RedirectFailed),
}

impl Rules {
    /// What happens with a request. The destination's name is judged here; the addresses that it resolves to must be
    /// judged where it is dialled ([`Destinations::check_address`]).
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        self.route(request, &mut Nobody).unwrap_or_else(Decision::Refuse)
    }

    /// As [`Self::decide`], with every step.
    pub fn explain(&self, request: &Request<'_>) -> Explanation {
        let mut steps = Vec::new();
        let decision = self.route(request, &mut steps).unwrap_or_else(|refusal| {
            steps.tell("decision", || format!("refused: {refusal}"));
            Decision::Refuse(refusal)
        });
        Explanation { decision, steps }
    }

    fn route(&self, request: &Request<'_>, witness: &mut impl Witness) -> Result<Decision, Refusal> {
        let asked = self.target(request, witness)?;
        let routed = self.rule(request.way, asked, witness)?;
        let (host, port) = (routed.target.host(), routed.target.port());
        self.destinations.check_host(host, port)?;
        witness.tell("destination", || {
            format!("{host} at port {port} is allowed; the addresses that it resolves to are judged when one is dialled")
        });
        Ok(match routed {
            routed @ Routed { direct: false, .. } if request.method == Method::GET => {
                self.through_peers(routed, request.headers, witness)
            }
            Routed { target, direct: false, .. } => {
                witness.tell("decision", || format!("straight to the origin: {} is not GET", request.method));
                Decision::Direct { target, because: Because::Method }
            }
            Routed { target, direct: true, because, .. } => {
                witness.tell("decision", || "straight to the origin".to_owned());
                Decision::Direct { target, because }
            }
        })
    }

    fn through_peers(&self, routed: Routed, headers: &HeaderMap, witness: &mut impl Witness) -> Decision {
        let Routed { target, because, known, .. } = routed;
        // Nobody has said of it that it never changes.
        let unknown = because == Because::Default;
        let known = known.as_ref();
        let identity = self.naming.identity(&target, known, headers);
        let digest = expected_digest(&target, known);
        witness.tell("decision", || "through the peers".to_owned());
        let out = |names: Vec<String>| {
            let names = names.join(", ");
            if names.is_empty() { names } else { format!(", without the query parameters {names}") }
        };
        let left_out = || out(self.naming.left_out(&target, known, headers));
        witness.tell("name", || match &identity {
            Identity::Digest(_) => format!("{identity:?}, the same on every host{}", left_out()),
            Identity::Url { .. } => format!("{identity:?}{}", left_out()),
        });
        witness.tell("check", || match (&digest, known.map(|known| &known.sure)) {
            (Some(digest), _) => format!("every byte, against {digest}"),
            (None, Some(Sure::Hash { .. })) => {
                "its name holds a hash that is not checked here; the client knows what it asked for"
                    .to_owned()
            }
            (None, _) => "nothing says what it must contain; the client knows what it asked for".to_owned(),
        });
        let settled = !unknown && !matches!(known, Some(Immutable { sure: Sure::Publisher, .. }));
        witness.tell("freshness", || match settled {
            true => "it is taken not to change, and kept for storage.taskExpireTime where it has no digest"
                .to_owned(),
            false => {
                "the origin is asked whether it has changed: another version is other content".to_owned()
            }
        });
        witness.tell("entitlement", || entitlement(&target, &identity));
        Decision::Peers { target, identity, digest, settled, because }
    }

    /// Where the client wants to go.
    fn target(&self, request: &Request<'_>, witness: &mut impl Witness) -> Result<Target, Refusal> {
        let (target, way) = match request.way {
            Way::Forward => (Target::from_uri(request.uri)?, "to a forward proxy"),
            Way::Named => (Target::from_uri(request.uri)?, "asked for by a command"),
            Way::Intercepted { host, port } => (
                Target::on(Scheme::Https, host.clone(), port, request.uri),
                "inside a connection that we opened up",
            ),
            Way::Mirror => {
                let (target, named) = self.mirror.target(request.uri, request.headers)?;
                witness.tell("registry", || format!("{}, {named}", target.authority()));
                (target, "to us as a registry")
            }
        };
        witness.tell("request", || format!("{} {way}", request.method));
        witness.tell("url", || described(&target));
        Ok(target)
    }

    /// Where it goes, and whether past the peers. A redirect holds for every method: what is pushed must arrive where it
    /// is pulled from.
    fn rule(&self, way: Way<'_>, asked: Target, witness: &mut impl Witness) -> Result<Routed, Refusal> {
        let mirrored = matches!(way, Way::Mirror);
        if mirrored && self.mirror.direct {
            witness
                .tell("rule", || "proxy.registryMirror.direct sends everything to the registry".to_owned());
            return Ok(Routed { target: asked, direct: true, because: Because::MirrorDirect, known: None });
        }
        if mirrored && !self.mirror.use_proxies {
            witness.tell("rule", || {
                "proxy.registryMirror.useProxies is off: no configured rule counts".to_owned()
            });
        } else if let Some(Ruled { rule, direct, target }) = self.proxies.apply(&asked, witness)? {
            if target != asked {
                witness.tell("redirect", || described(&target));
            }
            let path = canonical_encoding(target.path());
            let known = Immutable::of(&path);
            let is_manifest = is_manifest(&path);
            if is_manifest && !direct {
                witness.tell("manifest", || "goes to its registry all the same".to_owned());
            }
            let direct = direct || is_manifest;
            return Ok(Routed { target, direct, because: Because::Rule(rule), known });
        }
        let known = self.proxies.built_in(&canonical_encoding(asked.path()), mirrored, witness);
        let because = known.as_ref().map_or(Because::Default, |known| Because::BuiltIn(known.name));
        let asked_for = matches!(way, Way::Named) && !is_manifest(&canonical_encoding(asked.path()));
        Ok(Routed { target: asked, direct: known.is_none() && !asked_for, because, known })
    }
}

/// What no rule sends through the peers: a tag means something else tomorrow, and the request for a manifest, by tag or by
/// digest, is what shows that its caller may have the layers.
fn is_manifest(path: &str) -> bool {
    let kind = Resource::parse(path).map(|resource| resource.kind);
    matches!(kind, Some(Kind::Tag(_) | Kind::Manifest(_)))
}

/// What the proxy's gate will want to know before it gives cached content to the caller.
fn entitlement(target: &Target, identity: &Identity) -> String {
    match (Resource::parse(target.path()), identity) {
        (Some(Resource { name, .. }), _) => format!(
            "the registry must have said that {name} contains it, and let this caller read {name}; the manifest before it \
             proves both, otherwise the registry is asked"
        ),
        (None, Identity::Digest(_)) => {
            "the origin must let this caller have this URL; it is asked without fetching the content"
                .to_owned()
        }
        (None, Identity::Url { .. }) => {
            "shared when the request brings no credential; with one in a header it is \
             streamed from the origin, with one in the query the origin is asked for each caller"
                .to_owned()
        }
    }
}

struct Routed {
    target: Target,
    direct: bool,
    because: Because,
    /// What is known of what lies there.
    known: Option<Immutable>,
}

/// The URL in the form that rules see, with the names of its query parameters alone.
fn described(target: &Target) -> String {
    let parts = target.query().into_iter().flat_map(query_parts);
    let names: Vec<String> = parts.map(shown).collect();
    let canonical = target.canonical();
    let place = canonical.split('?').next().unwrap_or_default();
    if names.is_empty() {
        place.to_owned()
    } else {
        format!("{place} with the query parameters {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
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
            Decision::Peers { target, because, .. } => (true, target.url(), because),
            Decision::Direct { target, because } => (false, target.url(), because),
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
        for method in
            [Method::HEAD, Method::POST, Method::PATCH, Method::PUT, Method::DELETE, Method::OPTIONS]
        {
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
        let direct =
            Rules { mirror: Mirror { direct: true, use_proxies: true, ..base.mirror.clone() }, ..base };
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
        assert!(matches!(
            get(&rules(), "/no/host"),
            Decision::Refuse(Refusal::Target(InvalidTarget::Relative))
        ));
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
            (
                Way::Forward,
                "http://127.0.0.1/",
                "decision: refused: destination 127.0.0.1 is a loopback address",
            ),
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
}
