//! [`Rules`]: every rule about a request's URL, and the one place where they are put together.

#[cfg(test)]
mod tests;

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
