//! Certificates of a cluster's members: who they are stands in a URI (RFC 5280 section 4.2.1.6) and nowhere else.
//!
//! A cluster has a CA of its own, in a [`CaFolder`](crate::CaFolder) of its own. What the URIs say is for others to decide;
//! here certificates are ordered, signed and checked.

use crate::ca::{Authority, SigningError, serial_number};
use crate::pem::{self, FileError, FileProblem, private_key_in, read_private_key};
use crate::secret::Secret;
use crate::trust::provider;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The longest public key that is looked at, in bytes: one of ECDSA P-256 has 91.
const MAX_PUBLIC_KEY: usize = 256;

/// A member's key: ECDSA P-256. It never leaves its host.
pub struct MemberKey(KeyPair);

impl MemberKey {
    /// A new one.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, SigningError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// The one in this PEM file.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no such key; the error names it.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let key = read_private_key(path)?;
        let unusable = |error: rcgen::Error| FileProblem::UnusableKey(error.to_string()).at(path);
        KeyPair::try_from(&key).map(Self).map_err(unusable)
    }

    /// As it is kept.
    pub fn pem(&self) -> Secret {
        self.0.serialize_pem().into()
    }

    /// The public half: a SubjectPublicKeyInfo in DER form.
    pub fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// It with its certificate, to be shown in handshakes.
    ///
    /// # Errors
    /// When the certificate is not this key's.
    pub fn certified(&self, chain: Vec<CertificateDer<'static>>) -> Result<Arc<CertifiedKey>, rustls::Error> {
        let key = private_key_in(self.pem().reveal().as_bytes())
            .map_err(|problem| rustls::Error::General(problem.to_string()))?;
        Ok(Arc::new(CertifiedKey::from_der(chain, PrivateKeyDer::clone_key(&key), provider())?))
    }
}

impl fmt::Debug for MemberKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemberKey([redacted])")
    }
}

/// What a member's certificate is to say.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// For whom: a SubjectPublicKeyInfo in DER form.
    pub public_key: &'a [u8],
    /// What it is called, as a URI of ASCII characters.
    pub uri: &'a str,
    /// From when on it holds.
    pub from: SystemTime,
    /// Until when. Never longer than the CA that signs.
    pub until: SystemTime,
}

impl Authority {
    /// A certificate for a member, to be shown by it as a client and as a server.
    ///
    /// # Errors
    /// When the public key is none that we sign for, or the URI is not ASCII.
    pub fn issue(&self, order: &Order<'_>) -> Result<CertificateDer<'static>, SigningError> {
        if order.public_key.len() > MAX_PUBLIC_KEY {
            return Err(SigningError("the public key is too long".into()));
        }
        let public_key = SubjectPublicKeyInfo::from_der(order.public_key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Darter member");
        params.serial_number = Some(serial_number()?);
        params.not_before = order.from.into();
        params.not_after = self.end().min(order.until.into());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(order.uri.try_into()?)];
        self.signer().sign(&params, &public_key)
    }
}

/// What a member's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// What it is called.
    pub uri: String,
    /// Its public key: a SubjectPublicKeyInfo in DER form.
    pub public_key: Vec<u8>,
    /// From when on it holds.
    pub from: SystemTime,
    /// Until when.
    pub until: SystemTime,
}

impl Named {
    /// Reads a certificate. Who signed it is not looked at: see [`MemberRoots::check`].
    ///
    /// # Errors
    /// When it is no certificate, or has not exactly one name, a URI.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (rest, x509) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let names = x509.subject_alternative_name().map_err(|error| error.to_string())?;
        match names.map(|names| names.value.general_names.as_slice()) {
            Some([GeneralName::URI(uri)]) if rest.is_empty() => Ok(Self {
                uri: (*uri).to_owned(),
                public_key: x509.public_key().raw.to_vec(),
                from: x509.validity().not_before.to_datetime().into(),
                until: x509.validity().not_after.to_datetime().into(),
            }),
            _ => Err("it is not called by one URI".to_owned()),
        }
    }
}

/// The CAs whose members are ours.
#[derive(Debug, Clone)]
pub struct MemberRoots {
    store: Arc<RootCertStore>,
    certificates: Arc<[CertificateDer<'static>]>,
}

impl MemberRoots {
    /// These CAs alone: nothing of the platform's.
    ///
    /// # Errors
    /// When one of them cannot be used: what the parser says.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store.add(certificate.clone()).map_err(|error| error.to_string())?;
        }
        Ok(Self { store: Arc::new(store), certificates: certificates.into() })
    }

    /// Their certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The same as PEM.
    pub fn pem(&self) -> String {
        self.certificates.iter().map(pem::certificate).collect()
    }

    /// Whether one of these CAs signed this certificate, and it holds at `now`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.store, &[], now, algorithms)
    }
}

/// A certificate in PEM form (RFC 7468).
pub fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    pem::certificate(certificate)
}

/// The SHA-256 of these bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    crate::ca::sha256(bytes)
}

/// The provider of all cryptography here.
pub fn crypto_provider() -> &'static Arc<rustls::crypto::CryptoProvider> {
    provider()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(hours: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000 + hours * 3600)
    }

    fn unix(time: SystemTime) -> UnixTime {
        UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
    }

    fn issued(ca: &Authority, key: &MemberKey) -> CertificateDer<'static> {
        let public_key = key.public_key();
        let order = Order { public_key: &public_key, uri: "darter://node/a", from: at(1), until: at(3) };
        ca.issue(&order).unwrap()
    }

    #[test]
    fn a_members_certificate_says_what_was_ordered_and_holds_that_long() {
        let (ca, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
        let key = MemberKey::generate().unwrap();
        let certificate = issued(&ca, &key);
        let named = Named::of(&certificate).unwrap();
        assert_eq!((named.uri.as_str(), named.from, named.until), ("darter://node/a", at(1), at(3)));
        assert_eq!(named.public_key, key.public_key());
        let roots = |ca: &Authority| MemberRoots::new(vec![ca.certificate_der().clone()]).unwrap();
        assert!(roots(&ca).check(&certificate, unix(at(2))).is_ok());
        assert!(roots(&ca).check(&certificate, unix(at(0))).is_err());
        assert!(roots(&ca).check(&certificate, unix(at(4))).is_err());
        assert!(roots(&other).check(&certificate, unix(at(2))).is_err(), "another cluster's");
        assert!(key.certified(vec![certificate.clone()]).is_ok());
        assert!(MemberKey::generate().unwrap().certified(vec![certificate]).is_err());
    }

    #[test]
    fn what_is_no_public_key_is_not_signed_for() {
        let ca = Authority::generate().unwrap();
        let key = MemberKey::generate().unwrap().public_key();
        for public_key in [&b""[..], b"key", &key[1..], &[key.clone(), vec![0; 300]].concat()] {
            let order = Order { public_key, uri: "darter://node/a", from: at(1), until: at(2) };
            assert!(ca.issue(&order).is_err(), "{public_key:?}");
        }
        let order = Order { public_key: &key, uri: "darter://node/\u{e4}", from: at(1), until: at(2) };
        assert!(ca.issue(&order).is_err());
    }

    #[test]
    fn a_certificate_without_exactly_one_uri_names_nobody() {
        let ca = Authority::generate().unwrap();
        assert!(Named::of(ca.certificate_der()).is_err());
        assert!(Named::of(&CertificateDer::from(b"junk".to_vec())).is_err());
    }
}
