//! [`Access`]: what the operator lets the cluster fetch from origins, and how much at once. The one place where a download is
//! refused.
//!
//! Pure: rules, and questions about one registration. Who uses how much of what an origin may give is kept in `budgets.rs`.

use crate::message::Registration;
use darter_protocol::{TaskId, UrlPrefix};
use std::num::{NonZeroU32, NonZeroU64};

/// The operator's rules. The default forbids nothing and limits nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Only seeds go to origins.
    pub disable_back_source: bool,
    /// What the whole cluster may use of the hosts that are named. The first that fits counts, for each host by itself.
    pub origins: Vec<(HostPattern, Budget)>,
    /// The same for each host of which no other rule speaks.
    pub others: Budget,
    /// What is refused to everybody.
    pub blocked: Vec<Block>,
}

/// What all daemons together may use of one origin at a time. `None`: as much as they like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Connections: each lease is one.
    pub connections: Option<NonZeroU32>,
    /// Bytes per second, shared equally by those who have a lease.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// A host of origins, or all below a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// This host, `HOST` or `HOST:PORT`, in lower case. Without a port: on whichever.
    Exact(String),
    /// Every host below this name, which is written as `*.NAME`.
    Below(String),
}

/// Something that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What.
    pub what: Blocked,
    /// What people are told; may be empty.
    pub reason: String,
}

/// What can be refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocked {
    /// Everything of these hosts.
    Host(HostPattern),
    /// Everything below a URL.
    Below(UrlPrefix),
    /// One task.
    Task(TaskId),
}

/// What a download may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All that it wants.
    Free,
    /// It may have what other hosts have, and not go to the origin: why.
    FromPeers(&'static str),
    /// Nothing: why.
    Refused(String),
}

impl Access {
    /// What a registration may do.
    pub(crate) fn judge(&self, task: &TaskId, registration: &Registration, seed: bool) -> Verdict {
        if registration.priority.is_forbidden() {
            return Verdict::Refused("a download of priority LEVEL1 is refused".to_owned());
        }
        if let Some(block) = self.blocked.iter().find(|block| block.what.is(task, registration)) {
            let of = if registration.origin.is_empty() { "this content" } else { &*registration.origin };
            let sentence = format!("the scheduler's block list refuses what is asked of {of}");
            return Verdict::Refused(match block.reason.as_str() {
                "" => sentence,
                reason => format!("{sentence}: {reason}"),
            });
        }
        if registration.priority.is_from_peers_only() {
            return Verdict::FromPeers("a download of priority LEVEL2 does not go to the origin");
        }
        if self.disable_back_source && !seed {
            return Verdict::FromPeers("the scheduler's disableBackSource lets only seeds go to the origin");
        }
        Verdict::Free
    }

    /// What the cluster may use of an origin.
    pub(crate) fn budget(&self, origin: &str) -> Budget {
        let rule = self.origins.iter().find(|(host, _)| host.matches(origin));
        rule.map_or(self.others, |(_, budget)| *budget)
    }
}

impl Budget {
    pub(crate) const fn is_unlimited(&self) -> bool {
        self.connections.is_none() && self.bytes_per_second.is_none()
    }
}

impl HostPattern {
    /// Reads `HOST`, `HOST:PORT` or `*.NAME`. `None` where it is none of these.
    pub fn parse(text: &str) -> Option<Self> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        let wrong = name.is_empty() || !name.bytes().all(fits) || below && name.contains(':');
        let name = name.to_ascii_lowercase();
        (!wrong).then_some(if below { Self::Below(name) } else { Self::Exact(name) })
    }

    /// Whether it speaks of this origin.
    fn matches(&self, origin: &str) -> bool {
        let host = without_port(origin);
        match self {
            Self::Exact(exact) => exact == origin || exact == host,
            Self::Below(name) => {
                host.strip_suffix(name.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }
}

/// `[::1]:80` without its `:80`.
fn without_port(origin: &str) -> &str {
    match origin.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => origin,
    }
}

impl Blocked {
    fn is(&self, task: &TaskId, registration: &Registration) -> bool {
        match self {
            Self::Host(host) => host.matches(&registration.origin),
            Self::Below(prefix) => registration.url_prefixes.contains(prefix),
            Self::Task(blocked) => blocked == task,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use darter_protocol::Priority;

    fn of(origin: &str, path: &str) -> Registration {
        Registration {
            origin: origin.into(),
            url_prefixes: UrlPrefix::all(origin, path),
            ..Registration::default()
        }
    }

    fn level(number: u32) -> Registration {
        Registration { priority: Priority::level(number).unwrap(), ..Registration::default() }
    }

    #[test]
    fn a_pattern_is_a_host_on_any_port_a_host_on_one_or_all_below_a_name() {
        let fits = |pattern: &str, origin: &str| HostPattern::parse(pattern).unwrap().matches(origin);
        assert!(fits("A.example", "a.example") && fits("a.example", "a.example:8443"));
        assert!(fits("a.example:8443", "a.example:8443") && !fits("a.example:8443", "a.example"));
        assert!(fits("*.example", "a.example") && fits("*.example", "b.a.example:80"));
        assert!(
            !fits("*.example", "example")
                && !fits("*.example", ".example")
                && !fits("*.example", "badexample")
        );
        assert!(fits("[::1]", "[::1]:80") && fits("[::1]", "[::1]") && !fits("[::1]", "[::2]"));
        for wrong in ["", "*", "*.", "http://a", "a/b", "*.a:80", "a b"] {
            assert_eq!(HostPattern::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_blocked_is_refused_with_its_reason_and_nothing_else_is() {
        let task = TaskId::from([1; 32]);
        let block = |what| Block { what, reason: "ask the security team".to_owned() };
        let access = Access {
            blocked: vec![
                block(Blocked::Host(HostPattern::parse("bad.example").unwrap())),
                block(Blocked::Below(UrlPrefix::longest("good.example", "/private"))),
                block(Blocked::Task(task)),
            ],
            ..Access::default()
        };
        let other = TaskId::from([2; 32]);
        let refused = |task, registration: &Registration| match access.judge(task, registration, true) {
            Verdict::Refused(text) => Some(text),
            _ => None,
        };
        assert_eq!(
            refused(&other, &of("bad.example", "/")).unwrap(),
            "the scheduler's block list refuses what is asked of bad.example: ask the security team"
        );
        assert!(refused(&other, &of("good.example", "/private/x")).is_some());
        assert!(refused(&task, &of("good.example", "/")).is_some());
        assert_eq!(refused(&other, &of("good.example", "/public/x")), None);
    }

    #[test]
    fn levels_and_the_switch_keep_a_download_from_the_origin() {
        let task = TaskId::from([1; 32]);
        let (free, seeds) = (Access::default(), Access { disable_back_source: true, ..Access::default() });
        assert!(matches!(free.judge(&task, &level(1), true), Verdict::Refused(_)));
        assert!(matches!(free.judge(&task, &level(2), true), Verdict::FromPeers(_)));
        assert_eq!(free.judge(&task, &level(3), false), Verdict::Free);
        assert!(matches!(seeds.judge(&task, &level(6), false), Verdict::FromPeers(_)));
        assert_eq!(seeds.judge(&task, &level(0), true), Verdict::Free);
    }
}
