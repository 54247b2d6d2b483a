//! `host`: who and where this host is.

use std::net::IpAddr;

use super::section::Section;
use super::value::{self, Read};

/// Who and where this host is, as far as the operator says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Host {
    /// The address that other daemons dial; `None`: the one by which this host reaches its scheduler.
    pub(crate) advertise_ip: Option<IpAddr>,
    /// `None`: the system's.
    pub(crate) hostname: Option<String>,
    /// The data centre; empty: not known.
    pub(crate) idc: String,
    /// Widest first, separated by `|`; empty: not known.
    pub(crate) location: String,
}

/// As long as any of these names may be: a DNS name's own limit (RFC 1035).
const MAX_NAME_BYTES: usize = 253;

pub(super) fn host(section: &mut Section<'_>) -> Host {
    let not_used = "the schedulers here place hosts by idc and location";
    section.no_effect("securityDomain", not_used);
    section.no_effect("netTopology", not_used);
    Host {
        // Dragonfly's files carry 0.0.0.0 for "find out yourself".
        advertise_ip: section.filled("advertiseIP", value::ip).filter(|ip| !ip.is_unspecified()),
        hostname: section.filled("hostname", name),
        idc: section.value("idc", name).unwrap_or_default(),
        location: section.value("location", name).unwrap_or_default(),
    }
}

fn name(text: &str) -> Read<String> {
    if text.len() > MAX_NAME_BYTES {
        return Err(format!("expected at most {MAX_NAME_BYTES} bytes, found {}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("expected text on one line, without control characters".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::tests::top;
    use super::*;

    #[test]
    fn an_unspecified_address_and_empty_texts_mean_not_given() {
        let source = "advertiseIP: 0.0.0.0\nhostname: ''\nidc: ''\nlocation: ''";
        assert_eq!(top(source, host), (Host::default(), String::new()));
    }

    #[test]
    fn names_are_bounded() {
        let (_, report) = top(&format!("idc: {}\nlocation: \"a\\nb\"", "x".repeat(300)), host);
        assert_eq!(
            report,
            "f:1:6: idc: expected at most 253 bytes, found 300\n\
             f:2:11: location: expected text on one line, without control characters"
        );
    }
}
