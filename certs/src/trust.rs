//! Upstream trust: which servers are believed.
//!
//! A server is verified against the platform's roots plus what the operator lists, or, only where the operator says so by
//! name, not at all. Nothing falls from the first to the second by itself.

use crate::asked::Noted;
use crate::ca::name_text;
use crate::client::ClientIdentity;
use crate::describe::Finding;
use crate::judged::{Judged, signatures};
use crate::pem::{FileError, FileProblem, read_certificates};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use time::OffsetDateTime;
use x509_parser::certificate::Validity;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// How a server's certificate is checked.
#[derive(Debug, Clone)]
pub enum Verification {
    /// Against the platform's roots and these.
    Verified {
        /// What is trusted beside the platform's roots.
        extra_roots: ExtraRoots,
    },
    /// **Not at all**: anybody between here and the server can read and change everything, credentials included. Only
    /// what an operator wrote (`insecure: true`) may lead here, never a failure to load something else.
    Insecure,
}

impl Default for Verification {
    fn default() -> Self {
        Self::Verified { extra_roots: ExtraRoots::default() }
    }
}

/// Certificates that an operator trusts beside the platform's roots: CAs, or a server's very own certificate.
#[derive(Debug, Clone, Default)]
pub struct ExtraRoots(Vec<CertificateDer<'static>>);

/// A machine without a single trusted root.
#[derive(Debug, thiserror::Error)]
#[error("no root certificates are installed here: install ca-certificates, or set SSL_CERT_FILE")]
pub(crate) struct NoPlatformRoots;

impl ExtraRoots {
    /// All certificates of these PEM files.
    ///
    /// # Errors
    /// When a file cannot be read, holds no certificate, or one that cannot be used; the error names it.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Self, FileError> {
        let mut all = Self::default();
        paths.iter().try_for_each(|path| all.add(path.as_ref()))?;
        Ok(all)
    }

    /// Adds all certificates of this PEM file.
    ///
    /// # Errors
    /// As [`Self::read`]. Then nothing is added.
    pub fn add(&mut self, path: &Path) -> Result<(), FileError> {
        let certificates = read_certificates(path)?;
        for (index, certificate) in certificates.iter().enumerate() {
            check_root(certificate)
                .map_err(|reason| FileProblem::NotX509 { number: index + 1, reason }.at(path))?;
        }
        self.0.extend(certificates);
        Ok(())
    }

    /// These certificates, in DER form.
    ///
    /// # Errors
    /// When one of them cannot be used: what the parser says.
    pub fn from_der(certificates: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        certificates.iter().try_for_each(check_root)?;
        Ok(Self(certificates))
    }
}

fn check_root(certificate: &CertificateDer<'static>) -> Result<(), String> {
    RootCertStore::empty().add(certificate.clone()).map_err(|error| error.to_string())
}

/// The TLS configuration for connections to servers that are checked as `verification` says. Share it between connections:
/// it keeps the sessions that can be resumed. `alpn` lists protocols, the preferred one first; none leaves ALPN out.
///
/// The platform's roots are read once per process, at the first call (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured).
pub fn client_config(verification: &Verification, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    client_config_as(verification, None, alpn)
}

/// As [`client_config`]; `identity` is shown to servers that ask who we are.
pub fn client_config_as(
    verification: &Verification,
    identity: Option<&ClientIdentity>,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let verifier: Arc<dyn ServerCertVerifier> = match verification {
        Verification::Verified { extra_roots } => Arc::new(Verifier::new(platform_roots(), extra_roots)),
        // **Whoever answers is taken for the server.** It still holds the key of the certificate that it shows, so the
        // connection is at least one to a single, unchanged party.
        Verification::Insecure => Judged::by(|_, _, _| Ok(())),
    };
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(ClientIdentity(shown)) => builder.with_client_cert_resolver(shown.clone()),
        None => builder.with_no_client_auth(),
    };
    config.client_auth_cert_resolver = Arc::new(Noted(config.client_auth_cert_resolver.clone()));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// The one cryptography provider. Named, not the process's default: another crate may have installed another.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

fn platform_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "cannot read some of the platform's root certificates");
        }
        let mut roots = RootCertStore::empty();
        // Bundles hold a few old roots that no parser of today takes; the others are no worse for it.
        let (added, ignored) = roots.add_parsable_certificates(found.certs);
        tracing::debug!(added, ignored, "read the platform's root certificates");
        if roots.is_empty() {
            tracing::warn!("{NoPlatformRoots}; no server that is verified against them will be believed");
        }
        roots
    })
}

// === impl Verifier ===

/// Verifies chains up to a root, and takes a certificate that the operator listed itself as proof of its own.
#[derive(Debug)]
struct Verifier {
    /// `None` when there is no root at all.
    chains: Option<Arc<WebPkiServerVerifier>>,
    listed: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(platform: &RootCertStore, extra: &ExtraRoots) -> Self {
        let mut roots = platform.clone();
        roots.add_parsable_certificates(extra.0.iter().cloned());
        // The builder's only complaint without revocation lists is a store without roots.
        let chains =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider().clone()).build().ok();
        Self { chains, listed: extra.0.clone() }
    }

    /// The common recipe for a registry of one's own (`openssl req -x509`) makes a certificate that is the server's and a
    /// CA's at once; every Go client takes it once it is listed, but chain building by RFC 5280 does not. A byte for byte
    /// listed certificate needs no chain: its name and its time are checked, and the handshake proves its key.
    fn verify_listed(
        end_entity: &CertificateDer<'_>,
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (_, parsed) = X509Certificate::from_der(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let time =
            |seconds: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds.max(0) as u64));
        let not_before = time(parsed.validity().not_before.timestamp());
        let not_after = time(parsed.validity().not_after.timestamp());
        if now < not_before {
            return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
        }
        if now > not_after {
            return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.listed.iter().any(|listed| listed == end_entity) {
            return Self::verify_listed(end_entity, server_name, now);
        }
        match &self.chains {
            Some(chains) => {
                let verified =
                    chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
                verified.map_err(|error| explained(error, end_entity, intermediates))
            }
            None => Err(CertificateError::Other(OtherError(Arc::new(NoPlatformRoots))).into()),
        }
    }

    signatures!();
}

/// The same verdict, with what can be told about it: which authority is not known, whose certificate has expired. What
/// cannot be parsed leaves the library's own words.
fn explained(error: Error, end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Error {
    let Error::InvalidCertificate(verdict) = &error else { return error };
    // The library says "expired" of any certificate of a chain.
    let authority_with = |date, at| authority_with(end_entity, intermediates, date, at);
    let finding = match verdict {
        CertificateError::UnknownIssuer => unknown_authority(end_entity, intermediates),
        CertificateError::ExpiredContext { not_after, .. } => authority_with(|it| it.not_after, *not_after)
            .map(|(name, date)| Finding::AuthorityExpired(name, date)),
        CertificateError::NotValidYetContext { not_before, .. } => {
            authority_with(|it| it.not_before, *not_before)
                .map(|(name, date)| Finding::AuthorityNotYetValid(name, date))
        }
        _ => None,
    };
    match finding {
        Some(finding) => CertificateError::Other(OtherError(Arc::new(finding))).into(),
        None => error,
    }
}

/// The authority at which the chain that a server sent ends.
fn unknown_authority(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Option<Finding> {
    let (_, mut top) = X509Certificate::from_der(end_entity).ok()?;
    if top.subject().as_raw() == top.issuer().as_raw() {
        return Some(Finding::SelfSigned);
    }
    let above: Vec<_> =
        intermediates.iter().filter_map(|it| Some(X509Certificate::from_der(it).ok()?.1)).collect();
    // No more steps than there are certificates: two may name each other.
    for _ in 0..above.len() {
        let Some(next) = above.iter().find(|it| it.subject().as_raw() == top.issuer().as_raw()) else {
            break;
        };
        top = next.clone();
    }
    Some(Finding::UnknownAuthority(name_text(top.issuer()))).filter(|_| top.issuer().iter().next().is_some())
}

/// The authority in a server's chain whose certificate has this date; `None` when the server's own has.
fn authority_with(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    date: fn(&Validity) -> ASN1Time,
    at: UnixTime,
) -> Option<(String, OffsetDateTime)> {
    let has = |x509: &X509Certificate<'_>| seconds(date(x509.validity())) == at.as_secs();
    if has(&X509Certificate::from_der(end_entity).ok()?.1) {
        return None;
    }
    let mut parsed = intermediates.iter().filter_map(|it| Some(X509Certificate::from_der(it).ok()?.1));
    let authority = parsed.find(has)?;
    Some((name_text(authority.subject()), date(authority.validity()).to_datetime()))
}

fn seconds(date: ASN1Time) -> u64 {
    date.timestamp().max(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe;

    #[test]
    fn without_any_root_every_server_is_refused_with_the_reason() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let verify = |extra: &ExtraRoots| {
            let verifier = Verifier::new(&RootCertStore::empty(), extra);
            let name = ServerName::try_from("a.example").unwrap();
            verifier.verify_server_cert(&certificate, &[], &name, &[], UnixTime::now())
        };
        let text = describe(&verify(&ExtraRoots::default()).unwrap_err());
        assert_eq!(
            text,
            "no root certificates are installed here: install ca-certificates, or set SSL_CERT_FILE"
        );
        assert!(verify(&ExtraRoots::from_der(vec![certificate.clone()]).unwrap()).is_ok());
    }

    #[test]
    fn verification_is_the_default() {
        assert!(
            matches!(Verification::default(), Verification::Verified { extra_roots } if extra_roots.0.is_empty())
        );
    }
}
