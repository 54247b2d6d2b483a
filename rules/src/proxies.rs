//! [`Proxies`]: the operator's own rules about URLs (`proxy.proxies` and the files of `proxy.rulesDir`), then the built-in
//! ones; the first that matches decides.

use crate::expression::Expression;
use crate::immutable::{Immutable, OCI_BLOB};
use crate::pattern::{InvalidPatterns, Pattern, Patterns};
use crate::target::{Host, InvalidTarget, Target, split_authority};
use crate::trace::Witness;
use regex::Regex;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// The rules, in order. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Proxies {
    patterns: Patterns,
    rules: Arc<[ProxyRule]>,
    built_in: bool,
}

/// One entry of `proxy.proxies`. A match without `direct` sends a GET through the peers, whatever its URL looks like.
#[derive(Debug, Clone)]
pub struct ProxyRule {
    /// Searched for in the whole URL, in its canonical form ([`Target::canonical`]).
    pub regex: Expression,
    /// The rule does not count for a URL in which this is found, too: the syntax has no look-around.
    pub unless: Option<Expression>,
    /// Straight to the origin, past the peers.
    pub direct: bool,
    /// Over TLS, also when the client asked for plain HTTP.
    pub use_https: bool,
    /// To another place than the client asked for.
    pub redirect: Option<Redirect>,
    /// Where it stands, for people.
    pub source: Source,
}

/// Where a rule stands. Displays as `file:line`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub file: Arc<str>,
    /// The line in it, counted from 1.
    pub line: usize,
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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the redirect of the rule in {source} does not lead anywhere from this URL: {problem}", source = printable(rule))]
pub struct RedirectFailed {
    /// Which rule.
    pub rule: Source,
    /// What is wrong with what it makes.
    pub problem: InvalidTarget,
}

/// What the operator's rules say about a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruled {
    /// Which rule, counted from 0 over all sources.
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
    pub fn parse(text: &str, regex: &Expression) -> Result<Self, InvalidRedirect> {
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
    fn apply(&self, target: Target, url: &str, regex: &Expression) -> Result<Target, InvalidTarget> {
        match self {
            Self::Host { host, port } => {
                let port = port.unwrap_or(target.scheme().default_port());
                Ok(target.at(host.clone(), port))
            }
            Self::Url(template) => {
                let redirected = regex.replace_up_to_match(url, template).ok_or(InvalidTarget::Malformed)?;
                Target::parse(&redirected)
            }
        }
    }
}

/// The expansion puts nothing in the place of a group that is not there, which would silently send requests elsewhere.
fn check_groups(template: &str, regex: &Expression) -> Result<(), InvalidRedirect> {
    static REFERENCE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\$(?:\$|\{([^}]*)\}|([0-9A-Za-z_]+))").expect("a constant"));
    for reference in REFERENCE.captures_iter(template) {
        let Some(group) = reference.get(1).or(reference.get(2)).map(|group| group.as_str()) else {
            continue; // "$$"
        };
        if !regex.has_group(group) {
            return Err(InvalidRedirect::NoSuchGroup(format!("${group}")));
        }
    }
    Ok(())
}

// === impl Source ===

impl Default for Source {
    /// A rule that no file holds.
    fn default() -> Self {
        Self { file: "(no file)".into(), line: 1 }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A file may be called anything; a refusal is one line of printable ASCII.
fn printable(source: &Source) -> String {
    source.to_string().chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

// === impl ProxyRule ===

impl ProxyRule {
    /// A rule that sends what it matches through the peers.
    pub fn new(regex: Expression) -> Self {
        Self {
            regex,
            unless: None,
            direct: false,
            use_https: false,
            redirect: None,
            source: Source::default(),
        }
    }
}

// === impl Proxies ===

impl Default for Proxies {
    /// The built-in rules alone.
    fn default() -> Self {
        Self { patterns: Patterns::default(), rules: Arc::default(), built_in: true }
    }
}

impl Proxies {
    /// These rules, in this order, and then the built-in ones.
    ///
    /// # Errors
    /// When the expressions together are too large.
    pub fn new(rules: Vec<ProxyRule>) -> Result<Self, InvalidPatterns> {
        let pattern = |rule: &ProxyRule| Pattern { regex: rule.regex.clone(), unless: rule.unless.clone() };
        let patterns = Patterns::new(rules.iter().map(pattern).collect())?;
        Ok(Self { patterns, rules: rules.into(), built_in: true })
    }

    /// The same with the built-in rules (`proxy.builtinRules`), or without.
    #[must_use]
    pub fn with_built_in(self, built_in: bool) -> Self {
        Self { built_in, ..self }
    }

    /// What the first matching rule of the operator's makes of a request for `target`; `None` when none matches.
    pub(crate) fn apply(
        &self,
        target: &Target,
        witness: &mut impl Witness,
    ) -> Result<Option<Ruled>, RedirectFailed> {
        let url = target.canonical();
        let mut passed_over = |index| {
            witness.tell("rule", || format!("{} matches, but so does its unless", self.name(index)));
        };
        let found = self.patterns.first_match(&url, &mut passed_over);
        let Some((index, rule)) = found.and_then(|index| Some((index, self.rules.get(index)?))) else {
            witness.tell("rule", || format!("none of the {} configured rules matches", self.patterns.len()));
            return Ok(None);
        };
        witness.tell("rule", || format!("{} matches", self.name(index)));
        let target = redirected(rule, target.clone(), &url)?;
        Ok(Some(Ruled { rule: index, direct: rule.direct, target }))
    }

    /// What the built-in rules know of a path, in canonical form. A mirror knows blobs without them, too.
    pub(crate) fn built_in(
        &self,
        path: &str,
        mirrored: bool,
        witness: &mut impl Witness,
    ) -> Option<Immutable> {
        let found = Immutable::of(path).filter(|found| self.built_in || (mirrored && found.name == OCI_BLOB));
        witness.tell("rule", || match &found {
            Some(found) => format!("built-in: {}", found.name),
            None if self.built_in => {
                "built-in: none knows this path as something that never changes".to_owned()
            }
            None => "the built-in rules are off (proxy.builtinRules)".to_owned(),
        });
        found
    }

    fn name(&self, index: usize) -> String {
        let rule = self.rules.get(index);
        rule.map_or_else(String::new, |rule| format!("{} (regx {})", rule.source, rule.regex.as_str()))
    }
}

/// Where a rule sends a request for `target`, whose canonical form is `url`.
fn redirected(rule: &ProxyRule, target: Target, url: &str) -> Result<Target, RedirectFailed> {
    let target = match &rule.redirect {
        Some(redirect) => redirect
            .apply(target, url, &rule.regex)
            .map_err(|problem| RedirectFailed { rule: rule.source.clone(), problem })?,
        None => target,
    };
    Ok(if rule.use_https { target.over_tls() } else { target })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Nobody;

    fn rule(pattern: &str) -> ProxyRule {
        ProxyRule::new(pattern.parse().unwrap())
    }

    fn redirect(pattern: &str, to: &str) -> ProxyRule {
        let rule = rule(pattern);
        ProxyRule { redirect: Some(Redirect::parse(to, &rule.regex).unwrap()), ..rule }
    }

    fn apply(rules: &[ProxyRule], url: &str) -> Option<(usize, bool, String)> {
        let ruled =
            Proxies::new(rules.to_vec()).unwrap().apply(&Target::parse(url).unwrap(), &mut Nobody).unwrap();
        ruled.map(|ruled| (ruled.rule, ruled.direct, ruled.target.url().to_owned()))
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
        assert!(rules.apply(&Target::parse("http://a.example/user:pass@b").unwrap(), &mut Nobody).is_err());
        assert!(rules.apply(&Target::parse("http://a.example/").unwrap(), &mut Nobody).is_err());
    }

    #[test]
    fn a_redirect_that_cannot_work_is_refused_when_it_is_read() {
        let regex: Expression = "^http://(a)(?<b>b)/".parse().unwrap();
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
