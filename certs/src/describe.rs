//! A failed TLS handshake in words: which check failed, in one line of printable ASCII that fits a reason phrase.

use crate::date;
use crate::trust::NoPlatformRoots;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use rustls_pki_types::UnixTime;
use std::fmt::Write;
use std::io;
use time::OffsetDateTime;

/// How many of a certificate's names are told; a shared certificate may have hundreds.
const MAX_NAMES: usize = 4;
/// How much of a text that the other side chose is told, in bytes.
const MAX_FOREIGN_TEXT: usize = 100;

/// Why a handshake with an upstream server failed, as a clause without the server's name: "its certificate expired on ...".
pub fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        // What plain HTTP, SSH or SMTP look like to somebody who expects a TLS record.
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS on this port".into()
        }
        Error::InvalidMessage(_) | Error::PeerSentOversizedRecord => {
            "it sent something that is not TLS; does it speak TLS on this port?".into()
        }
        Error::NoCertificatesPresented => "it presented no certificate".into(),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => "it speaks neither TLS 1.2 nor TLS 1.3".into(),
        Error::PeerIncompatible(reason) => {
            format!("it and Darter have no TLS settings in common ({reason:?})")
        }
        Error::PeerMisbehaved(reason) => format!("it broke the rules of the TLS handshake ({reason:?})"),
        Error::NoApplicationProtocol => "it speaks neither HTTP/2 nor HTTP/1.1 there (ALPN)".into(),
        Error::DecryptError => "what it sent could not be decrypted".into(),
        Error::AlertReceived(alert) => refusal(*alert),
        other => printable(&other.to_string()),
    }
}

/// The same for the error that a TLS stream over some transport gives: [`describe`] where TLS itself failed, otherwise
/// what happened to the connection.
pub fn describe_io(error: &io::Error) -> String {
    match tls_error(error) {
        Some(error) => describe(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection during the TLS handshake".into()
        }
        None => printable(&error.to_string()),
    }
}

/// Whether the error that a TLS stream gave is the other side's refusal in so many words.
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(tls_error(error), Some(Error::AlertReceived(_)))
}

/// How a server answered a TLS handshake that does not seem to speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTls {
    /// With something else.
    OtherBytes,
    /// By closing the connection.
    Closed,
}

impl NoTls {
    /// What the error that a TLS stream gave says about it; `None` when TLS was spoken.
    pub fn of(error: &io::Error) -> Option<Self> {
        match tls_error(error) {
            Some(Error::InvalidMessage(_) | Error::PeerSentOversizedRecord) => Some(Self::OtherBytes),
            Some(_) => None,
            None if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ) =>
            {
                Some(Self::Closed)
            }
            None => None,
        }
    }
}

/// Why a client did not finish the handshake with us on an intercepted connection, as a clause without its address.
pub fn describe_downstream(error: &io::Error) -> String {
    use AlertDescription::{BadCertificate, CertificateExpired, CertificateUnknown, UnknownCA};
    match tls_error(error) {
        Some(Error::AlertReceived(UnknownCA | BadCertificate | CertificateUnknown)) => {
            "it does not trust Darter's CA: install ca.crt on it, and restart what reads trust only at start"
                .into()
        }
        Some(Error::AlertReceived(CertificateExpired)) => {
            "it takes Darter's certificate for expired: is its clock right?".into()
        }
        Some(Error::AlertReceived(alert)) => format!("it ended the TLS handshake ({alert:?})"),
        Some(Error::NoApplicationProtocol) => "it offers neither HTTP/2 nor HTTP/1.1 (ALPN)".into(),
        Some(other) => printable(&other.to_string()),
        // A Go client that does not trust us often just closes.
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection during the TLS handshake: does it trust Darter's CA?".into()
        }
        None => printable(&error.to_string()),
    }
}

/// What our own verification found out beyond the library's verdict: it has the certificates at hand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Finding {
    #[error("its certificate is self-signed, and not one that is trusted here")]
    SelfSigned,
    #[error("its certificate is signed by an authority that is not trusted here ({})", printable(.0))]
    UnknownAuthority(String),
    #[error("the certificate of its authority ({}) expired on {}", printable(.0), date::text(*.1))]
    AuthorityExpired(String, OffsetDateTime),
    #[error("the certificate of its authority ({}) is not valid before {}: is the clock right here?", printable(.0), date::text(*.1))]
    AuthorityNotYetValid(String, OffsetDateTime),
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "its certificate is signed by an authority that is not trusted here".into()
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate expired on {}", date_text(*not_after))
        }
        CertificateError::Expired => "its certificate expired".into(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!(
                "its certificate is not valid before {}: is the clock right here?",
                date_text(*not_before)
            )
        }
        CertificateError::NotValidYet => "its certificate is not valid yet: is the clock right here?".into(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            wrong_name(&printable(&expected.to_str()), presented)
        }
        CertificateError::NotValidForName => "its certificate is for another name".into(),
        CertificateError::Revoked => "its certificate has been revoked".into(),
        CertificateError::BadEncoding => "its certificate is malformed".into(),
        CertificateError::BadSignature => {
            // The two cannot be told apart from here. The second is what a CA that was made anew looks like.
            "a signature is wrong: it lacks the certificate's key, or its authority has a trusted one's name and another key"
                .into()
        }
        CertificateError::UnhandledCriticalExtension => {
            "its certificate has a critical extension that is unknown here".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not meant for servers (extended key usage)".into()
        }
        CertificateError::Other(other) if other.0.is::<NoPlatformRoots>() || other.0.is::<Finding>() => {
            other.0.to_string()
        }
        other => chain_error(&format!("{other:?}")),
    }
}

/// The verifier's rarer verdicts arrive as an opaque error; its text is their only name.
fn chain_error(text: &str) -> String {
    let told = |name: &str| text.contains(name);
    if told("CaUsedAsEndEntity") {
        "its certificate is a CA certificate; list exactly this certificate as trusted, or give the server one of its own"
            .into()
    } else if told("EndEntityUsedAsCa") {
        "its certificate is signed by one that is no CA".into()
    } else if told("UnsupportedCertVersion") {
        "its certificate is not X.509 version 3".into()
    } else if told("PathLenConstraintViolated") {
        "its certificate's chain is longer than one of its authorities allows (path length)".into()
    } else if told("NameConstraintViolation") {
        "its certificate is outside the names that its authority may sign".into()
    } else if told("UnsupportedSignatureAlgorithm") {
        "its certificate is signed with an algorithm that is not accepted (SHA-1, or RSA under 2048 bits?)"
            .into()
    } else {
        format!("its certificate was not accepted ({})", printable(text))
    }
}

fn wrong_name(expected: &str, presented: &[String]) -> String {
    if presented.is_empty() {
        return format!(
            "its certificate names no host at all (no subject alternative name), so not {expected}"
        );
    }
    let names: Vec<String> =
        presented.iter().take(MAX_NAMES).map(|name| printable(bare_name(name))).collect();
    let mut text = format!("its certificate is for {}", names.join(", "));
    if presented.len() > MAX_NAMES {
        // Writing to a String cannot fail.
        let _ = write!(text, " and {} more", presented.len() - MAX_NAMES);
    }
    text + ", not for " + expected
}

/// The verifier writes `DnsName("a.example")` and `IpAddress(10.0.0.1)`.
fn bare_name(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"')
}

fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it asks for a client certificate, and Darter has none for it".into()
        }
        AlertDescription::UnrecognisedName => "it does not know the name that it was asked for (SNI)".into(),
        AlertDescription::ProtocolVersion => "it speaks neither TLS 1.2 nor TLS 1.3".into(),
        AlertDescription::NoApplicationProtocol => {
            "it speaks neither HTTP/2 nor HTTP/1.1 there (ALPN)".into()
        }
        other => format!("it refused the TLS handshake ({other:?})"),
    }
}

fn date_text(date: UnixTime) -> String {
    date::text_of_unix(date.as_secs())
}

/// Text that somebody else chose, as one bounded line of printable ASCII.
fn printable(text: &str) -> String {
    let mut out: String = text
        .chars()
        .map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' })
        .take(MAX_FOREIGN_TEXT)
        .collect();
    if text.chars().nth(MAX_FOREIGN_TEXT).is_some() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::ServerName;

    fn names(presented: &[&str]) -> String {
        describe(&Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("want.example").unwrap(),
            presented: presented.iter().map(|name| (*name).to_owned()).collect(),
        }))
    }

    #[test]
    fn a_wrong_name_is_told_with_the_right_ones() {
        assert_eq!(
            names(&["DnsName(\"a.example\")", "IpAddress(10.0.0.1)"]),
            "its certificate is for a.example, 10.0.0.1, not for want.example"
        );
        assert!(names(&[]).contains("names no host at all"));
        assert!(names(&["x"; 9]).contains("and 5 more, not for want.example"));
    }

    #[test]
    fn foreign_text_stays_one_bounded_printable_line() {
        let text = names(&["evil\r\nX-Injected: 1", &"y".repeat(5000)]);
        assert!(text.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{text}");
        assert!(text.len() < 300, "{}", text.len());
    }

    #[test]
    fn a_closed_connection_and_an_alert_are_told_apart() {
        let eof = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert!(describe_io(&eof).contains("closed the connection"));
        assert_eq!(NoTls::of(&eof), Some(NoTls::Closed));
        let alert = io::Error::other(Error::AlertReceived(AlertDescription::CertificateRequired));
        assert!(describe_io(&alert).contains("client certificate"));
        assert_eq!(NoTls::of(&alert), None);
    }

    #[test]
    fn a_client_that_does_not_know_the_ca_is_recognised() {
        for alert in [AlertDescription::UnknownCA, AlertDescription::BadCertificate] {
            let error = io::Error::other(Error::AlertReceived(alert));
            assert!(describe_downstream(&error).contains("does not trust Darter's CA"), "{alert:?}");
        }
    }
}
