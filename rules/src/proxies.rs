//! [`Proxies`]: the operator's own rules about URLs (`proxy.proxies`); the first that matches decides.

use crate::pattern::{InvalidPatterns, Patterns};
use crate::target::{Host, InvalidTarget, Target, split_authority};
use regex::Regex;
use std::sync::LazyLock;

/// The rules, in order.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    patterns: Patterns,
    rules: Vec<ProxyRule>,
}

/// One entry of `proxy.proxies`. A match without `direct` sends a GET through the peers, whatever its URL looks like.
#[derive(Debug, Clone)]
pub struct ProxyRule {
    /// Searched for in the whole URL, in its canonical form ([`Target::canonical`]). Its text is what counts: flags belong
    /// into it (`(?i)`), not into a builder.
    pub regex: Regex,
    /// Straight to the origin, past the peers.
    pub direct: bool,
    /// Over TLS, also when the client asked for plain HTTP.
    pub use_https: bool,
    /// To another place than the client asked for.
    pub redirect: Option<Redirect>,
}

/// The `redirect` of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// The same URL at another host. Without a port: the port of the URL's scheme.
    Host {
        /// The other host.
        host: Host,
        /// Its port.
        port: Option<u16>,
    },
    /// A whole URL that takes the place of the matched part, and of all before it; `$1` stands for what the first group
    /// of the rule's expression matched, and `$$` for a dollar sign.
    Url(String),
}

/// A `redirect` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRedirect {
    /// Neither of the two forms.
    #[error("expected a host like mirror.example:5000, or a URL that begins with http:// or https://")]
    Form,
    /// It repeats a group that the expression does not have.
    #[error("it refers to {0}, a group that regx does not have")]
    NoSuchGroup(String),
}

/// A rule's redirect that makes nothing of a URL that a request could be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the redirect of proxy.proxies[{rule}] does not lead anywhere from this URL: {problem}")]
pub struct RedirectFailed {
    /// Which rule, counted from 0.
    pub rule: usize,
    /// What is wrong with what it makes.
    pub problem: InvalidTarget,
}

/// What the rules say about a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruled {
    /// Which rule, counted from 0.
    pub rule: usize,
    /// Past the peers.
    pub direct: bool,
    /// Where to.
    pub target: Target,
}

// === impl Redirect ===

impl Redirect {
    /// The redirect that `text` means in a rule with this expression.
    ///
    /// # Errors
    /// When it is neither a host nor a URL, or repeats a group that `regex` does not have.
    pub fn parse(text: &str, regex: &Regex) -> Result<Self, InvalidRedirect> {
        if text.contains("://") || text.contains('$') {
            if !text.starts_with("http://") && !text.starts_with("https://") {
                return Err(InvalidRedirect::Form);
            }
            check_groups(text, regex)?;
            return Ok(Self::Url(text.to_owned()));
        }
        let (host, port) = split_authority(text).map_err(|_| InvalidRedirect::Form)?;
        Ok(Self::Host { host, port })
    }

    /// `url` is the text that `regex` matches.
    fn apply(&self, target: Target, url: &str, regex: &Regex) -> Result<Target, InvalidTarget> {
        match self {
            Self::Host { host, port } => {
                let port = port.unwrap_or(target.scheme().default_port());
                Ok(target.at(host.clone(), port))
            }
            Self::Url(template) => {
                let captures = regex.captures(url).ok_or(InvalidTarget::Malformed)?;
                let mut redirected = String::new();
                captures.expand(template, &mut redirected);
                let matched = captures.get(0).map_or(url.len(), |whole| whole.end());
                redirected.push_str(url.get(matched..).unwrap_or_default());
                Target::parse(&redirected)
            }
        }
    }
}

/// The expansion puts nothing in the place of a group that is not there, which would silently send requests elsewhere.
fn check_groups(template: &str, regex: &Regex) -> Result<(), InvalidRedirect> {
    static REFERENCE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\$(?:\$|\{([^}]*)\}|([0-9A-Za-z_]+))").expect("a constant"));
    for reference in REFERENCE.captures_iter(template) {
        let Some(group) = reference.get(1).or(reference.get(2)).map(|group| group.as_str()) else {
            continue; // "$$"
        };
        let known = match group.parse::<usize>() {
            Ok(number) => number < regex.captures_len(),
            Err(_) => regex.capture_names().flatten().any(|name| name == group),
        };
        if !known {
            return Err(InvalidRedirect::NoSuchGroup(format!("${group}")));
        }
    }
    Ok(())
}

// === impl Proxies ===

impl Proxies {
    /// These rules, in this order.
    ///
    /// # Errors
    /// When the expressions together are too large.
    pub fn new(rules: Vec<ProxyRule>) -> Result<Self, InvalidPatterns> {
        Ok(Self { patterns: Patterns::new(rules.iter().map(|rule| &rule.regex))?, rules })
    }

    /// What the first matching rule makes of a request for `target`; `None` when no rule matches.
    ///
    /// # Errors
    /// When the rule's redirect makes no URL of it that a request can be sent to.
    pub fn apply(&self, target: &Target) -> Result<Option<Ruled>, RedirectFailed> {
        if self.rules.is_empty() {
            return Ok(None);
        }
        let url = target.canonical();
        let Some((index, rule)) =
            self.patterns.first_match(&url).and_then(|index| Some((index, self.rules.get(index)?)))
        else {
            return Ok(None);
        };
        let redirected = match &rule.redirect {
            Some(redirect) => redirect
                .apply(target.clone(), &url, &rule.regex)
                .map_err(|problem| RedirectFailed { rule: index, problem })?,
            None => target.clone(),
        };
        let target = if rule.use_https { redirected.over_tls() } else { redirected };
        Ok(Some(Ruled { rule: index, direct: rule.direct, target }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pattern: &str) -> ProxyRule {
        ProxyRule { regex: Regex::new(pattern).unwrap(), direct: false, use_https: false, redirect: None }
    }

    fn redirect(pattern: &str, to: &str) -> ProxyRule {
        let rule = rule(pattern);
        ProxyRule { redirect: Some(Redirect::parse(to, &rule.regex).unwrap()), ..rule }
    }

    fn apply(rules: &[ProxyRule], url: &str) -> Option<(usize, bool, String)> {
        let ruled = Proxies::new(rules.to_vec()).unwrap().apply(&Target::parse(url).unwrap()).unwrap();
        ruled.map(|ruled| (ruled.rule, ruled.direct, ruled.target.url()))
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let rules =
            [ProxyRule { direct: true, ..rule("no-proxy") }, rule("blobs/sha256.*"), rule(r"\.deb(\?|$)")];
        let layer = "https://no-proxy.example/v2/a/blobs/sha256:00";
        assert_eq!(apply(&rules, layer), Some((0, true, layer.into())));
        let package = "http://deb.example/pool/a.deb?x=1";
        assert_eq!(apply(&rules, package), Some((2, false, package.into())));
        assert_eq!(apply(&rules, "http://deb.example/pool/a.debug"), None);
        assert_eq!(apply(&[], layer), None);
    }

    #[test]
    fn rules_see_the_whole_canonical_url() {
        let rules = [rule(r"^https://registry\.example/a~b\?q=1$")];
        assert!(apply(&rules, "HTTPS://Registry.Example:443/a%7eb?q=1").is_some());
        assert!(apply(&rules, "https://registry.example:5000/a~b?q=1").is_none());
    }

    #[test]
    fn use_https_changes_the_scheme_and_the_default_port() {
        let rules = [ProxyRule { use_https: true, ..rule("some-registry/.*") }];
        assert_eq!(apply(&rules, "http://some-registry/v2/").unwrap().2, "https://some-registry/v2/");
    }

    #[test]
    fn a_host_takes_the_place_of_host_and_port() {
        let to =
            |to| apply(&[redirect("some-registry", to)], "http://some-registry:5000/v2/a%7e?x=1").unwrap().2;
        assert_eq!(to("other.example"), "http://other.example/v2/a%7e?x=1");
        assert_eq!(to("other.example:81"), "http://other.example:81/v2/a%7e?x=1");
        assert_eq!(to("10.0.0.9:5000"), "http://10.0.0.9:5000/v2/a%7e?x=1");
        assert_eq!(to("[2001:db8::1]:5000"), "http://[2001:db8::1]:5000/v2/a%7e?x=1");
    }

    #[test]
    fn a_url_takes_the_place_of_what_matched_with_its_groups() {
        let from = "http://some-registry/v2/a/blobs/x?y=1";
        for (pattern, to, expected) in [
            (
                "^http://some-registry/(.*)",
                "http://another-registry/$1",
                "http://another-registry/v2/a/blobs/x?y=1",
            ),
            (
                r"http://([^/]+)/v2/",
                "https://proxy.example/v2/${1}/",
                "https://proxy.example/v2/some-registry/a/blobs/x?y=1",
            ),
            (
                "^http://some-registry/",
                "https://b.example:8443/c/",
                "https://b.example:8443/c/v2/a/blobs/x?y=1",
            ),
            (
                "some-registry/v2/(?<repo>.*)/blobs/",
                "https://b.example/$repo/$$/",
                "https://b.example/a/$/x?y=1",
            ),
        ] {
            assert_eq!(apply(&[redirect(pattern, to)], from).unwrap().2, expected, "{pattern}");
        }
    }

    #[test]
    fn a_redirect_to_what_a_group_makes_no_host_is_refused() {
        let rules = Proxies::new(vec![redirect("^http://a.example/(.*)", "http://$1")]).unwrap();
        assert!(rules.apply(&Target::parse("http://a.example/user:pass@b").unwrap()).is_err());
        assert!(rules.apply(&Target::parse("http://a.example/").unwrap()).is_err());
    }

    #[test]
    fn a_redirect_that_cannot_work_is_refused_when_it_is_read() {
        let regex = Regex::new("^http://(a)(?<b>b)/").unwrap();
        assert_eq!(Redirect::parse("https://x/$3", &regex), Err(InvalidRedirect::NoSuchGroup("$3".into())));
        // As in every replacement: the longest name counts, so this is the group "1x".
        assert_eq!(Redirect::parse("https://x/$1x", &regex), Err(InvalidRedirect::NoSuchGroup("$1x".into())));
        assert!(Redirect::parse("https://x/$1${b}$b$$", &regex).is_ok());
        for bad in ["", "ftp://x/", "a/b", "$1.example", "a b", "user@host"] {
            assert_eq!(Redirect::parse(bad, &regex), Err(InvalidRedirect::Form), "{bad}");
        }
    }

    #[test]
    fn a_redirect_by_template_can_be_lifted_to_tls() {
        let rules =
            [ProxyRule { use_https: true, ..redirect("^http://a.example/(.*)", "http://b.example/$1") }];
        assert_eq!(apply(&rules, "http://a.example/x").unwrap().2, "https://b.example/x");
    }
}
