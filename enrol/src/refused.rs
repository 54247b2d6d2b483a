//! [`Refused`]: why somebody is no member of the cluster.

use rustls::{AlertDescription, CertificateError, Error};
use std::io::ErrorKind;

/// What the other side says of us.
const THEY_EXPELLED: &str = "this node was expelled from the cluster";
const THEIR_CLOCK: &str =
    "the other side says that this node's certificate does not hold now: compare the clocks of both";
const THEY_ASK: &str = "the other side asks for a certificate of its cluster, and there is none here";
const THEIR_CA: &str = "the other side belongs to another cluster: its CA is not ours";
const THEIR_REFUSAL: &str = "the other side refused the TLS handshake";

/// How it shows that nobody is there any more.
const GONE: [ErrorKind; 4] = [
    ErrorKind::UnexpectedEof,
    ErrorKind::ConnectionReset,
    ErrorKind::ConnectionAborted,
    ErrorKind::BrokenPipe,
];

/// Why a connection was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There was no TLS, or no handshake within its time.
    #[error("it does not speak TLS 1.3 as members of a cluster do")]
    NoTls,
    /// It hung up before the handshake was done, or was cut off.
    #[error(
        "it hung up before the TLS handshake was done, as a member does with the oldest of those who have not shown who they are when too many come at once: try again"
    )]
    HungUp,
    /// It has to make way for others who have not shown yet either whose they are.
    #[error("it has not shown a certificate yet, and too many others have come since: try again")]
    TooMany,
    /// It showed no certificate.
    #[error("it shows no certificate of the cluster")]
    NoCertificate,
    /// Its certificate is of another CA, or none.
    #[error("its certificate is not of this cluster's CA")]
    Stranger,
    /// Its certificate has ended, or does not hold yet.
    #[error("its certificate does not hold at this time (by this host's clock)")]
    Time,
    /// It was expelled.
    #[error("it was expelled from the cluster")]
    Expelled,
    /// It is a member, and not the one that was called, or not one who may come here.
    #[error("it is a member of the cluster, and not one that belongs at this end")]
    Other,
    /// It says so of us.
    #[error("{0}")]
    ByThem(&'static str),
}

impl Refused {
    /// All kinds, as they are counted.
    pub(crate) const REASONS: [&'static str; 9] = [
        "no_tls",
        "hung_up",
        "too_many",
        "no_certificate",
        "stranger",
        "time",
        "expelled",
        "other",
        "by_them",
    ];

    /// What it is counted as.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::NoTls => "no_tls",
            Self::HungUp => "hung_up",
            Self::TooMany => "too_many",
            Self::NoCertificate => "no_certificate",
            Self::Stranger => "stranger",
            Self::Time => "time",
            Self::Expelled => "expelled",
            Self::Other => "other",
            Self::ByThem(_) => "by_them",
        }
    }

    /// What came of a handshake.
    pub(crate) fn of(error: &std::io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match inner {
            Some(Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(Error::InvalidCertificate(error)) => Self::of_certificate(error),
            Some(Error::AlertReceived(alert)) => Self::of_alert(*alert),
            None if GONE.contains(&error.kind()) => Self::HungUp,
            _ => Self::NoTls,
        }
    }

    const fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Time,
            CertificateError::Revoked => Self::Expelled,
            CertificateError::ApplicationVerificationFailure => Self::Other,
            _ => Self::Stranger,
        }
    }

    const fn of_alert(alert: AlertDescription) -> Self {
        Self::ByThem(match alert {
            AlertDescription::CertificateRevoked => THEY_EXPELLED,
            AlertDescription::CertificateExpired => THEIR_CLOCK,
            AlertDescription::CertificateRequired => THEY_ASK,
            AlertDescription::UnknownCA | AlertDescription::BadCertificate => THEIR_CA,
            _ => THEIR_REFUSAL,
        })
    }

    /// As the verdict of a handshake, so that the other side is told.
    pub(crate) fn into_tls(self) -> Error {
        Error::InvalidCertificate(match self {
            Self::Expelled => CertificateError::Revoked,
            Self::Time => CertificateError::Expired,
            Self::Other => CertificateError::ApplicationVerificationFailure,
            _ => CertificateError::UnknownIssuer,
        })
    }
}

/// What an error of a connection that was made means, where it is the other side's late verdict on our certificate: in TLS
/// 1.3 it comes after the handshake is done for us (RFC 8446 section 4.4.2.4).
pub fn explain(error: &(dyn std::error::Error + 'static)) -> Option<Refused> {
    causes(error).find_map(|cause| {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let refused = cause.downcast_ref().or_else(|| inner?.downcast_ref());
        refused.cloned().or_else(|| {
            // HTTP/2 keeps the words alone.
            let said = cause.to_string();
            let words = [THEY_EXPELLED, THEIR_CLOCK, THEY_ASK, THEIR_CA, THEIR_REFUSAL];
            words.into_iter().find(|words| said.contains(words)).map(Refused::ByThem)
        })
    })
}

/// Why a call failed, for people: what [`explain`] says, or the last of its causes ("connection refused" and not
/// "transport error").
pub fn reason(status: &tonic::Status) -> String {
    if let Some(refused) = explain(status) {
        return refused.to_string();
    }
    let last = causes(status).skip(1).last();
    last.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}
