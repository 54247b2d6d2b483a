//! [`UpstreamError`]: why an origin could not be asked, in a sentence for people and in terms for code.

use crate::parent::ParentAddress;
use http::StatusCode;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Why an origin could not be asked, or did not answer. Never holds a path, a query, or a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamError {
    /// The host as it was asked for: a name, or an IP literal without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What happened.
    pub kind: Kind,
}

/// What happened on the way to an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The URL cannot be asked for: not http or https, or without a host.
    InvalidUrl {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// None of the host's addresses may be dialled.
    NotPermitted {
        /// Why the first of them may not: a whole sentence, which names the destination.
        reason: String,
    },
    /// The name has no address, or the resolver failed.
    Resolve {
        /// The resolver's words.
        reason: String,
    },
    /// This host has no file descriptor, no memory or no port left for another connection.
    Exhausted {
        /// What it lacks, in the system's words.
        reason: String,
    },
    /// No address could be connected to.
    Connect {
        /// What was tried, in order.
        attempts: Vec<Attempt>,
    },
    /// The TLS handshake failed.
    Tls {
        /// Which check failed, in words.
        reason: String,
    },
    /// What answered the TLS handshake is not TLS.
    NoTls {
        /// What it did, in words.
        reason: String,
        /// Whether it closed the connection without a word.
        silent: bool,
    },
    /// A stage took longer than it may.
    Timeout {
        /// Which.
        stage: Stage,
        /// How long it was given.
        after: Duration,
    },
    /// The connection ended before the head of an answer had come.
    Closed {
        /// How it ended.
        reason: String,
    },
    /// The answer is not HTTP.
    Protocol {
        /// What is wrong with it.
        reason: String,
    },
    /// The request's own body failed before it was sent.
    RequestBody {
        /// How.
        reason: String,
    },
    /// The parent proxy on the way could not be reached, or did not behave.
    Parent {
        /// The parent.
        parent: ParentAddress,
        /// What happened on the way to it.
        kind: Box<Self>,
    },
    /// The parent proxy on the way refused.
    ParentRefused {
        /// The parent, as a URL without credentials.
        parent: String,
        /// Its status, or what a SOCKS reply amounts to.
        status: StatusCode,
        /// Its own words: a status and a reason phrase, or what a SOCKS reply means.
        reason: String,
    },
}

/// One address that could not be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The address.
    pub address: IpAddr,
    /// Why not.
    pub reason: String,
}

/// A stage of a request that has a time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Resolving the name.
    Resolve,
    /// Connecting to an address.
    Connect,
    /// The TLS handshake.
    TlsHandshake,
    /// Waiting for a parent proxy to open a tunnel.
    Tunnel,
    /// Waiting while this host's other requests have all that the origin may have of it at once.
    Turn,
    /// Waiting for the head of the answer.
    ResponseHeader,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller's: the request itself cannot be sent.
    Caller,
    /// Nobody's: a rule of this host refuses it.
    Policy,
    /// The origin's, or the network's on the way to it.
    Origin,
}

/// What a failure means for those who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whose fault it is.
    pub fault: Fault,
    /// Whether a safe request may succeed when it is sent again.
    pub retryable: bool,
    /// What an HTTP client gets.
    pub status: StatusCode,
    /// The error type of the Proxy-Status header (RFC 9209, section 2.3).
    pub proxy_status: &'static str,
}

// === impl UpstreamError ===

impl UpstreamError {
    /// What the failure means: the one list.
    pub fn verdict(&self) -> Verdict {
        verdict(&self.kind)
    }

    /// Whether a safe request may succeed when it is sent again.
    pub fn is_retryable(&self) -> bool {
        self.verdict().retryable
    }

    /// The status that an HTTP client gets for it.
    pub fn status(&self) -> StatusCode {
        self.verdict().status
    }
}

fn verdict(kind: &Kind) -> Verdict {
    use Fault::{Caller, Origin, Policy};
    let verdict_of = verdict;
    let verdict = |fault, retryable, status, proxy_status| Verdict { fault, retryable, status, proxy_status };
    match kind {
        // The client has to write another URL.
        Kind::InvalidUrl { .. } => verdict(Caller, false, StatusCode::BAD_REQUEST, "http_request_error"),
        // The operator has to list the destination.
        Kind::NotPermitted { .. } => {
            verdict(Policy, false, StatusCode::FORBIDDEN, "destination_ip_prohibited")
        }
        // Resolvers have bad moments.
        Kind::Resolve { .. } => verdict(Origin, true, StatusCode::BAD_GATEWAY, "dns_error"),
        // Ours to mend, and it passes as connections end (RFC 9209 section 2.3.12).
        Kind::Exhausted { .. } => {
            verdict(Policy, true, StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached")
        }
        Kind::Connect { .. } => verdict(Origin, true, StatusCode::BAD_GATEWAY, "connection_refused"),
        // A certificate does not get better by asking again.
        Kind::Tls { .. } => verdict(Origin, false, StatusCode::BAD_GATEWAY, "tls_certificate_error"),
        // One that only hangs up may be starting.
        Kind::NoTls { silent, .. } => verdict(Origin, *silent, StatusCode::BAD_GATEWAY, "tls_protocol_error"),
        // Ours to mend, and it passes as downloads end.
        Kind::Timeout { stage: Stage::Turn, .. } => {
            verdict(Policy, true, StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached")
        }
        Kind::Timeout { stage, .. } => {
            let word = match stage {
                Stage::Resolve => "dns_timeout",
                Stage::Connect | Stage::TlsHandshake | Stage::Tunnel => "connection_timeout",
                Stage::Turn | Stage::ResponseHeader => "http_response_timeout",
            };
            verdict(Origin, true, StatusCode::GATEWAY_TIMEOUT, word)
        }
        Kind::Closed { .. } => verdict(Origin, true, StatusCode::BAD_GATEWAY, "connection_terminated"),
        // What speaks something else will do so again.
        Kind::Protocol { .. } => verdict(Origin, false, StatusCode::BAD_GATEWAY, "http_protocol_error"),
        // Usually the client is gone and nobody reads this.
        Kind::RequestBody { .. } => verdict(Caller, false, StatusCode::BAD_REQUEST, "http_request_error"),
        Kind::Parent { kind, .. } => verdict_of(kind),
        Kind::ParentRefused { status, .. } => match *status {
            // Its operator does not allow the destination, as ours would.
            StatusCode::FORBIDDEN => verdict(Policy, false, StatusCode::FORBIDDEN, "http_request_denied"),
            // The operator has to change the credentials.
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                verdict(Origin, false, StatusCode::BAD_GATEWAY, "proxy_configuration_error")
            }
            StatusCode::GATEWAY_TIMEOUT => {
                verdict(Origin, true, StatusCode::GATEWAY_TIMEOUT, "connection_timeout")
            }
            status => {
                let retryable = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
                verdict(Origin, retryable, StatusCode::BAD_GATEWAY, "destination_unavailable")
            }
        },
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(&self.kind, Authority(&self.host, self.port), f)
    }
}

/// What happened on the way to `at`.
fn describe(kind: &Kind, at: Authority<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let host = at.0;
    match kind {
        Kind::InvalidUrl { reason } => write!(f, "the URL cannot be asked for: {reason}"),
        Kind::NotPermitted { reason } => f.write_str(reason),
        Kind::Resolve { reason } => write!(f, "cannot resolve the name {host}: {reason}"),
        Kind::Exhausted { reason } => {
            write!(f, "this host cannot make another connection, to {at}: {reason}")
        }
        Kind::Connect { attempts } => {
            write!(f, "cannot connect to {at}")?;
            match attempts.as_slice() {
                [] => Ok(()),
                [only] => write!(f, " ({}): {}", only.address, only.reason),
                several => several.iter().enumerate().try_for_each(|(index, attempt)| {
                    let separator = if index == 0 { ':' } else { ';' };
                    write!(f, "{separator} {}: {}", attempt.address, attempt.reason)
                }),
            }
        }
        Kind::Tls { reason } | Kind::NoTls { reason, .. } => {
            write!(f, "cannot speak TLS with {at}: {reason}")
        }
        Kind::Timeout { stage, after } => match stage {
            Stage::Resolve => write!(f, "resolving the name {host} took longer than {after:?}"),
            Stage::Connect => write!(f, "connecting to {at} took longer than {after:?}"),
            Stage::TlsHandshake => write!(f, "the TLS handshake with {at} took longer than {after:?}"),
            Stage::Tunnel => write!(f, "{at} opened no tunnel within {after:?}"),
            Stage::Turn => write!(
                f,
                "{at} has as many requests of this host as it may have at once, and none ended within {after:?}"
            ),
            Stage::ResponseHeader => write!(f, "{at} sent no answer within {after:?}"),
        },
        Kind::Closed { reason } => write!(f, "{at} closed the connection without an answer: {reason}"),
        Kind::Protocol { reason } => write!(f, "{at} sent an answer that is not valid HTTP: {reason}"),
        Kind::Parent { parent, kind } => {
            write!(f, "cannot reach {at} through the parent proxy {parent}: ")?;
            describe(kind, Authority(parent.host(), parent.port()), f)
        }
        Kind::ParentRefused { parent, status, reason } => {
            write!(f, "the parent proxy {parent} refuses to connect to {at}: {reason}")?;
            match *status {
                StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                    f.write_str(" (the user name and password configured for it are missing or wrong)")
                }
                _ => Ok(()),
            }
        }
        Kind::RequestBody { reason } => {
            write!(f, "the body of the request to {at} ended before it was complete: {reason}")
        }
    }
}

impl std::error::Error for UpstreamError {}

/// `host:port`, an IPv6 address in brackets.
#[derive(Clone, Copy)]
pub(crate) struct Authority<'a>(pub(crate) &'a str, pub(crate) u16);

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host, port) = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The operating system's error without its number, in the words that people know.
pub(crate) fn io_reason(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::ConnectionReset => "connection reset".to_owned(),
        ErrorKind::TimedOut => "connection timed out".to_owned(),
        ErrorKind::HostUnreachable => "no route to the host".to_owned(),
        ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        ErrorKind::UnexpectedEof => "connection closed".to_owned(),
        _ => {
            let text = error.to_string();
            let end = text.find(" (os error").unwrap_or(text.len());
            text[..end].to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: Kind) -> UpstreamError {
        UpstreamError { host: "registry.example".to_owned(), port: 443, kind }
    }

    #[test]
    fn a_person_can_read_what_happened() {
        let attempt = |address: &str, reason: &str| Attempt {
            address: address.parse().unwrap(),
            reason: reason.to_owned(),
        };
        let one = vec![attempt("10.0.0.7", "connection refused")];
        assert_eq!(
            error(Kind::Connect { attempts: one }).to_string(),
            "cannot connect to registry.example:443 (10.0.0.7): connection refused"
        );
        let two = vec![attempt("10.0.0.7", "connection refused"), attempt("fd00::7", "network unreachable")];
        assert_eq!(
            error(Kind::Connect { attempts: two }).to_string(),
            "cannot connect to registry.example:443: 10.0.0.7: connection refused; fd00::7: network unreachable"
        );
        let stage = Stage::ResponseHeader;
        assert_eq!(
            error(Kind::Timeout { stage, after: Duration::from_secs(25) }).to_string(),
            "registry.example:443 sent no answer within 25s"
        );
    }

    #[test]
    fn a_parent_is_named_without_its_credentials() {
        let (parent, _) = ParentAddress::parse("http://user:secret@proxy.corp:3128").unwrap();
        let attempts =
            vec![Attempt { address: "10.0.0.7".parse().unwrap(), reason: "connection refused".to_owned() }];
        let unreachable =
            error(Kind::Parent { parent: parent.clone(), kind: Box::new(Kind::Connect { attempts }) });
        assert_eq!(
            unreachable.to_string(),
            "cannot reach registry.example:443 through the parent proxy http://proxy.corp:3128: \
             cannot connect to proxy.corp:3128 (10.0.0.7): connection refused"
        );
        assert!(unreachable.is_retryable());
        let refused = |status: StatusCode| {
            error(Kind::ParentRefused { parent: parent.to_string(), status, reason: status.to_string() })
        };
        assert_eq!(
            refused(StatusCode::PROXY_AUTHENTICATION_REQUIRED).to_string(),
            "the parent proxy http://proxy.corp:3128 refuses to connect to registry.example:443: \
             407 Proxy Authentication Required (the user name and password configured for it are missing or wrong)"
        );
        for (theirs, ours, retryable) in
            [(407, 502, false), (403, 403, false), (400, 502, false), (503, 502, true), (504, 504, true)]
        {
            let error = refused(StatusCode::from_u16(theirs).unwrap());
            assert_eq!((error.status().as_u16(), error.is_retryable()), (ours, retryable), "{theirs}");
        }
    }

    #[test]
    fn an_address_of_version_6_stands_in_brackets() {
        let kind = Kind::Tls { reason: "no".to_owned() };
        let error = UpstreamError { host: "fd00::1".to_owned(), port: 443, kind };
        assert_eq!(error.to_string(), "cannot speak TLS with [fd00::1]:443: no");
    }

    #[test]
    fn what_this_host_lacks_is_not_the_origins_fault() {
        let error = error(Kind::Exhausted { reason: "Too many open files".to_owned() });
        assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_ne!(error.verdict().fault, Fault::Origin);
        let expected =
            "this host cannot make another connection, to registry.example:443: Too many open files";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn the_number_of_a_system_error_is_not_for_people() {
        assert_eq!(io_reason(&std::io::Error::from_raw_os_error(24)), "Too many open files");
    }
}
