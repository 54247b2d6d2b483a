//! What messages say of the proxy they went through, if the operator wants it: Via (RFC 9110 section 7.6.3), Forwarded (RFC
//! 7239) or the X-Forwarded headers before it; and how a request that comes round is known.
//!
//! Registries and mirrors need none of it, so nothing is said by default: the origin sees a client, and no name or address of
//! a network that it is not in. A request whose content comes through the peers carries none of it either: it is fetched once
//! for many, on nobody's behalf.

use crate::refusal::Refusal;
use http::header::{HeaderMap, HeaderName, HeaderValue, VIA};
use http::{Version, header};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};

const FORWARDED: HeaderName = header::FORWARDED;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What messages say of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// Via, in both directions, under a name that is drawn at each start. Requests that come round are then refused.
    pub via: bool,
    /// For whom a request is.
    pub forwarded: Forwarded,
    /// How an answer came about, in docker-registry-proxy's headers.
    pub docker_registry_proxy: bool,
}

/// In which headers an origin is told for whom a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forwarded {
    /// In none.
    #[default]
    Not,
    /// In Forwarded.
    Standard,
    /// In X-Forwarded-For and X-Forwarded-Proto.
    X,
}

/// How a request came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Came {
    pub(crate) from: SocketAddr,
    pub(crate) version: Version,
    /// Inside TLS that we ended.
    pub(crate) secure: bool,
    /// Over HTTP/1.1 on TCP, and nothing between: what it is answered with goes into the socket as it is.
    pub(crate) plain: bool,
}

/// The name of this process in Via.
pub(crate) struct Pseudonym(String);

impl Pseudonym {
    pub(crate) fn draw() -> Self {
        Self(format!("darter-{:016x}", RandomState::new().hash_one(0)))
    }

    /// Refuses a request that went through this process before.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let values = headers.get_all(VIA).into_iter().filter_map(|value| value.to_str().ok());
        // `1.1 name`, perhaps with a comment behind it.
        let mut names =
            values.flat_map(|value| value.split(',')).filter_map(|it| it.split_whitespace().nth(1));
        if names.any(|name| name.eq_ignore_ascii_case(&self.0)) {
            Err(Refusal::comes_round())
        } else {
            Ok(())
        }
    }

    /// Says that a message of `version` went through here.
    pub(crate) fn say(&self, headers: &mut HeaderMap, version: Version) {
        let version = match version {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2.0",
            _ => "1.1",
        };
        headers.extend(HeaderValue::try_from(format!("{version} {}", self.0)).ok().map(|value| (VIA, value)));
    }
}

impl Forwarded {
    /// Says for whom a request is, behind what others have said before.
    pub(crate) fn say(self, headers: &mut HeaderMap, came: Came) {
        let proto = if came.secure { "https" } else { "http" };
        let mut append = |name, value: String| {
            headers.extend(HeaderValue::try_from(value).ok().map(|value| (name, value)));
        };
        match (self, came.from.ip()) {
            (Self::Not, _) => {}
            (Self::Standard, IpAddr::V4(ip)) => append(FORWARDED, format!("for={ip};proto={proto}")),
            // Section 6: in brackets, and so in quotes.
            (Self::Standard, IpAddr::V6(ip)) => append(FORWARDED, format!("for=\"[{ip}]\";proto={proto}")),
            (Self::X, ip) => {
                append(X_FORWARDED_FOR, ip.to_string());
                append(X_FORWARDED_PROTO, proto.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(from: &str) -> Came {
        Came { from: from.parse().unwrap(), version: Version::HTTP_11, secure: true, plain: false }
    }

    fn said(forwarded: Forwarded, from: &str) -> Vec<(String, String)> {
        let mut headers = HeaderMap::from_iter([(X_FORWARDED_FOR, HeaderValue::from_static("192.0.2.1"))]);
        forwarded.say(&mut headers, came(from));
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn a_client_is_named_behind_those_before_it() {
        let before = ("x-forwarded-for".to_owned(), "192.0.2.1".to_owned());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(said(Forwarded::Not, "10.0.0.7:5"), std::slice::from_ref(&before));
        assert_eq!(
            said(Forwarded::Standard, "10.0.0.7:5"),
            [before.clone(), pair("forwarded", "for=10.0.0.7;proto=https")]
        );
        assert_eq!(
            said(Forwarded::Standard, "[fd00::7]:5")[1],
            pair("forwarded", "for=\"[fd00::7]\";proto=https")
        );
        assert_eq!(
            said(Forwarded::X, "[fd00::7]:5"),
            [before, pair("x-forwarded-for", "fd00::7"), pair("x-forwarded-proto", "https")]
        );
    }

    #[test]
    fn a_request_that_comes_round_is_known() {
        let name = Pseudonym::draw();
        let mut headers =
            HeaderMap::from_iter([(VIA, HeaderValue::from_static("1.1 other (a, b), 1.0 third"))]);
        assert!(name.check(&headers).is_ok());
        name.say(&mut headers, Version::HTTP_2);
        assert_eq!(headers.get_all(VIA).iter().count(), 2);
        assert!(name.check(&headers).is_err());
        assert!(Pseudonym::draw().check(&headers).is_ok());
        let joined = format!("1.0 a,1.1\t{} (round)", name.0.to_uppercase());
        let headers = HeaderMap::from_iter([(VIA, HeaderValue::try_from(joined).unwrap())]);
        assert!(name.check(&headers).is_err());
    }
}
