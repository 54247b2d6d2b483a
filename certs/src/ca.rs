//! [`Authority`]: the certificate authority that signs leaf certificates for intercepted hosts.
//!
//! Clients were told to believe it, so it is the most precious thing on the node: its key is readable by its owner alone
//! from the first byte, a file that cannot be used stops the start, and no new one ever takes an old one's place unasked.

use crate::constraints::{Constraints, PermittedNames};
use crate::date;
use crate::leaf::LeafName;
use crate::pem::{self, FileError, FileProblem, read_certificates, read_private_key};
use crate::secret::Secret;
use crate::sign::Signer;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate, X509Name};

/// How long a generated CA lives. Every client must be told of its successor by hand, so it is long.
const LIFETIME: Duration = Duration::days(3652);
/// A generated CA is valid from a day before it was made: the clocks of clients differ.
const BACKDATE: Duration = Duration::days(1);

/// A CA certificate and its key, checked to belong together and to be of use today.
pub struct Authority {
    /// The SHA-256 of the certificate.
    id: [u8; 32],
    certificate: CertificateDer<'static>,
    /// What a client needs beside the leaf to get to a root that it knows.
    chain: Vec<CertificateDer<'static>>,
    signer: Signer,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    /// Its own, and those of the CAs above it that are known. A leaf must be within all.
    constraints: Vec<Constraints>,
}

/// The library that signs could not do so: no randomness, or a key that it refuses.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot make a certificate: {0}")]
pub struct SigningError(pub(crate) String);

impl SigningError {
    /// What is to be said.
    pub fn because(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl From<rcgen::Error> for SigningError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

/// Why there is no CA to be had from a folder.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file is the problem.
    #[error(transparent)]
    File(#[from] FileError),
    /// A new CA could not be made.
    #[error(transparent)]
    Signing(#[from] SigningError),
}

impl Authority {
    /// The CA in these two PEM files: RSA, ECDSA or Ed25519; the key as PKCS#8, PKCS#1 or SEC1. Certificates after the first
    /// are taken for its chain and sent along, unless the first is a root itself.
    ///
    /// # Errors
    /// When a file cannot be read, the certificate is not a CA's, is expired or not valid yet, or the key is not its key.
    /// The error names the file; nothing is repaired.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, FileError> {
        Self::load_at(certificate, key, OffsetDateTime::now_utc())
    }

    fn load_at(certificate: &Path, key: &Path, now: OffsetDateTime) -> Result<Self, FileError> {
        let authority = Self::of(read_certificates(certificate)?, &read_private_key(key)?)
            .map_err(|wrong| wrong.at(certificate, key))?;
        authority.check_time(now).map_err(|problem| problem.at(certificate))?;
        warn_if_readable_by_others(key);
        Ok(authority)
    }

    /// The CA whose certificate is the first of these, and whose key is this. Its time is not looked at.
    pub(crate) fn of(
        mut certificates: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
    ) -> Result<Self, Unfit> {
        let key = KeyPair::try_from(key)
            .map_err(|error| Unfit::Key(FileProblem::UnusableKey(error.to_string())))?;
        let Some(first) = certificates.first().cloned() else {
            return Err(Unfit::Certificate(FileProblem::NoCertificate));
        };
        let checked = check(&first).map_err(Unfit::Certificate)?;
        if checked.public_key != key.public_key_raw() {
            return Err(Unfit::EachOther);
        }
        let mut constraints = vec![checked.constraints];
        if checked.is_root {
            certificates.clear();
        }
        for above in certificates.iter().skip(1) {
            // What stands in the chain beside CAs is sent along as it is, and judged by clients.
            constraints.extend(check(above).ok().map(|above| above.constraints));
        }
        let signer = Signer { key, name: checked.subject, key_id: checked.key_id };
        let Checked { not_before, not_after, .. } = checked;
        let id = sha256(&first);
        Ok(Self { id, certificate: first, chain: certificates, signer, not_before, not_after, constraints })
    }

    pub(crate) fn check_time(&self, now: OffsetDateTime) -> Result<(), FileProblem> {
        if now > self.not_after {
            return Err(FileProblem::Expired(date::text(self.not_after)));
        }
        if now < self.not_before {
            return Err(FileProblem::NotYetValid(date::text(self.not_before)));
        }
        Ok(())
    }

    /// A new CA of our own: ECDSA P-256, ten years, for leaves only (path length 0), with a name that tells it from others.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, SigningError> {
        Self::generate_for(&PermittedNames::default())
    }

    /// The same for these names alone: clients refuse whatever else it signs.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate_for(permitted: &PermittedNames) -> Result<Self, SigningError> {
        Self::generate_at(permitted, OffsetDateTime::now_utc())
    }

    pub(crate) fn generate_at(permitted: &PermittedNames, now: OffsetDateTime) -> Result<Self, SigningError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("Darter CA {}", hex(&random::<4>()?, "")));
        params.serial_number = Some(serial_number()?);
        params.not_before = now - BACKDATE;
        params.not_after = now + LIFETIME;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.name_constraints = permitted.to_extension();
        let certificate = params.self_signed(&key)?.der().clone();
        let key = PrivateKeyDer::try_from(key.serialized_der())
            .map_err(|error| SigningError(error.to_owned()))?
            .clone_key();
        Self::of(vec![certificate], &key).map_err(|wrong| SigningError(wrong.to_string()))
    }

    /// The CA's certificate, for clients to trust. Never anything else that stood in its file.
    pub fn certificate_pem(&self) -> String {
        pem::certificate(&self.certificate)
    }

    /// The name of its subject, as people know it: the common name where it has one.
    pub fn subject(&self) -> String {
        name_of(&self.certificate)
    }

    /// The names that it may sign for, so far as they are domains and ranges of addresses.
    pub fn permitted(&self) -> PermittedNames {
        self.constraints.first().map(Constraints::permitted).unwrap_or_default()
    }

    /// Whether a leaf for this name would be within its constraints.
    pub fn permits(&self, name: &LeafName) -> bool {
        self.constraints.iter().all(|constraints| constraints.permits(name.as_server_name()))
    }

    /// The CA's certificate in DER form.
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` prints it: `AB:CD:...`, 95 characters.
    pub fn fingerprint_sha256(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// What tells it from every other.
    pub(crate) fn id(&self) -> [u8; 32] {
        self.id
    }

    /// When it ends.
    pub fn not_after(&self) -> std::time::SystemTime {
        self.not_after.into()
    }

    /// Whether a leaf for `*.parent` would be.
    pub(crate) fn permits_all_below(&self, parent: &str) -> bool {
        self.constraints.iter().all(|constraints| constraints.permits_all_below(parent))
    }

    /// Whether the subject of a leaf is constrained, too.
    pub(crate) fn constrains_subjects(&self) -> bool {
        self.constraints.iter().any(Constraints::constrains_subjects)
    }

    pub(crate) fn end(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Its certificate and those above it, and its key: all that it takes to load it again.
    pub(crate) fn certificates_text(&self) -> String {
        std::iter::once(&self.certificate).chain(&self.chain).map(pem::certificate).collect()
    }

    pub(crate) fn key_text(&self) -> Secret {
        self.signer.key.serialize_pem().into()
    }

    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }

    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.fingerprint_sha256())
    }
}

/// What is to be known of a CA certificate that passed.
struct Checked {
    public_key: Vec<u8>,
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    is_root: bool,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    constraints: Constraints,
}

/// Why a certificate and a key make no CA.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("{0}")]
    Certificate(FileProblem),
    #[error("{0}")]
    Key(FileProblem),
    #[error("the private key does not belong to the certificate")]
    EachOther,
}

impl Unfit {
    pub(crate) fn at(self, certificate: &Path, key: &Path) -> FileError {
        match self {
            Self::Certificate(problem) => problem.at(certificate),
            Self::Key(problem) => problem.at(key),
            Self::EachOther => FileProblem::Mismatch { certificate: certificate.to_owned() }.at(key),
        }
    }
}

fn check(certificate: &CertificateDer<'_>) -> Result<Checked, FileProblem> {
    let not_x509 = |reason: &dyn fmt::Display| FileProblem::NotX509 { number: 1, reason: reason.to_string() };
    let (_, x509) = X509Certificate::from_der(certificate).map_err(|error| not_x509(&error))?;
    let basic = x509.basic_constraints().map_err(|error| not_x509(&error))?;
    if !basic.is_some_and(|constraints| constraints.value.ca) {
        return Err(FileProblem::NotACa("its basic constraints do not say CA:TRUE"));
    }
    let usage = x509.key_usage().map_err(|error| not_x509(&error))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(FileProblem::NotACa("its key usage does not include the signing of certificates"));
    }
    let constraints = x509.name_constraints().map_err(|error| not_x509(&error))?;
    Ok(Checked {
        public_key: x509.public_key().subject_public_key.data.to_vec(),
        subject: x509.subject().as_raw().to_vec(),
        key_id: x509.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        }),
        is_root: x509.subject().as_raw() == x509.issuer().as_raw(),
        not_before: x509.validity().not_before.to_datetime(),
        not_after: x509.validity().not_after.to_datetime(),
        constraints: constraints.map(|it| Constraints::of(it.value)).unwrap_or_default(),
    })
}

/// All certificates of a PEM file, each of a CA.
///
/// # Errors
/// When the file cannot be read, holds none, or one that is no CA's; the error names it.
pub fn read_ca_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let certificates = read_certificates(path)?;
    for (index, certificate) in certificates.iter().enumerate() {
        check(certificate).map_err(|problem| match problem {
            FileProblem::NotX509 { reason, .. } => {
                FileProblem::NotX509 { number: index + 1, reason }.at(path)
            }
            other => other.at(path),
        })?;
    }
    Ok(certificates)
}

/// When a certificate ended, for people; `None` when it has not.
pub fn ended_on(certificate: &CertificateDer<'_>) -> Option<String> {
    end_of(certificate).filter(|end| *end <= OffsetDateTime::now_utc()).map(date::text)
}

/// Some mount secrets for all to read and have their reasons; they should know.
pub(crate) fn warn_if_readable_by_others(key: &Path) {
    let mode = std::fs::metadata(key).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(file = %key.display(), mode = format!("{:04o}", mode & 0o7777),
            "the CA's private key can be read by others than its owner");
    }
}

/// The name of a certificate's subject: see [`name_text`].
pub(crate) fn name_of(certificate: &CertificateDer<'_>) -> String {
    X509Certificate::from_der(certificate).map(|(_, x509)| name_text(x509.subject())).unwrap_or_default()
}

/// The common name of somebody, or all of the name where it has none. Somebody else may have chosen it.
pub(crate) fn name_text(name: &X509Name<'_>) -> String {
    let common_name = name.iter_common_name().next().and_then(|name| name.as_str().ok());
    common_name.map_or_else(|| name.to_string(), str::to_owned)
}

/// The SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` prints it.
pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(&sha256(certificate), ":").to_uppercase()
}

/// What a CA's certificate permits; everything where it says nothing.
pub(crate) fn permitted_of(certificate: &CertificateDer<'_>) -> PermittedNames {
    check(certificate).map(|checked| checked.constraints.permitted()).unwrap_or_default()
}

/// When a certificate ends; `None` when it is no certificate.
pub(crate) fn end_of(certificate: &CertificateDer<'_>) -> Option<OffsetDateTime> {
    let (_, x509) = X509Certificate::from_der(certificate).ok()?;
    Some(x509.validity().not_after.to_datetime())
}

// === bytes ===

/// 127 random bits, never zero, positive in DER: RFC 5280 section 4.1.2.2 allows 20 bytes.
pub(crate) fn serial_number() -> Result<SerialNumber, SigningError> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    hash.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

fn random<const N: usize>() -> Result<[u8; N], SigningError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| SigningError("the system gives no random numbers".into()))?;
    Ok(bytes)
}

fn hex(bytes: &[u8], separator: &str) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::pem::PemObject;
    use std::fs;

    const CRT: &str = "ca.crt";
    const KEY: &str = "ca.key";

    fn load_in(folder: &Path) -> Result<Authority, FileError> {
        Authority::load(&folder.join(CRT), &folder.join(KEY))
    }

    /// Writes a CA as somebody else would make it.
    fn write_ca(folder: &Path, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        fs::write(folder.join(CRT), params.self_signed(key).unwrap().pem()).unwrap();
        fs::write(folder.join(KEY), key.serialize_pem()).unwrap();
    }

    fn problem(folder: &Path) -> String {
        let text = load_in(folder).unwrap_err().to_string();
        assert!(text.starts_with(folder.to_str().unwrap()), "the error names the file: {text}");
        text
    }

    /// A CA as it stands in a folder.
    fn store(folder: &Path) -> Authority {
        let authority = Authority::generate().unwrap();
        fs::write(folder.join(CRT), authority.certificates_text()).unwrap();
        fs::write(folder.join(KEY), authority.key_text().reveal()).unwrap();
        authority
    }

    #[test]
    fn a_generated_ca_is_what_it_should_be() {
        let authority = Authority::generate().unwrap();
        let (_, x509) = X509Certificate::from_der(authority.certificate_der()).unwrap();
        let name = x509.subject().iter_common_name().next().unwrap().as_str().unwrap();
        assert!(name.strip_prefix("Darter CA ").is_some_and(|random| random.len() == 8), "{name}");
        let basic = x509.basic_constraints().unwrap().unwrap();
        assert!(basic.critical && basic.value.ca && basic.value.path_len_constraint == Some(0));
        let usage = x509.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert!(!usage.value.digital_signature());
        let days = (x509.validity().not_after.timestamp() - x509.validity().not_before.timestamp()) / 86_400;
        assert_eq!(days, 3653);
        assert_eq!(authority.signer.key.algorithm(), &rcgen::PKCS_ECDSA_P256_SHA256);
        x509.verify_signature(None).unwrap();
    }

    #[test]
    fn no_two_are_alike() {
        let [a, b] = [(); 2].map(|()| Authority::generate().unwrap());
        let parse = |it: &Authority| {
            let (_, x509) = X509Certificate::from_der(it.certificate_der()).unwrap();
            (x509.subject().to_string(), x509.raw_serial().to_vec())
        };
        assert_ne!(parse(&a).0, parse(&b).0);
        assert_ne!(parse(&a).1, parse(&b).1);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path());
        fs::write(dir.path().join(KEY), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let text = problem(dir.path());
        assert!(text.contains("ca.key: its private key does not belong to the certificate in "), "{text}");
    }

    #[test]
    fn a_certificate_that_may_not_sign_is_refused() {
        let (dir, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
        for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa] {
            write_ca(dir.path(), &key, |params| params.is_ca = is_ca);
            assert!(problem(dir.path()).contains("ca.crt: its certificate is not a CA certificate"));
        }
        write_ca(dir.path(), &key, |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
        assert!(problem(dir.path()).contains("signing of certificates"));
    }

    #[test]
    fn a_certificate_out_of_its_time_is_refused() {
        let (dir, key, now) =
            (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap(), OffsetDateTime::now_utc());
        write_ca(dir.path(), &key, |params| params.not_after = now - Duration::days(1));
        assert!(problem(dir.path()).contains("ca.crt: its certificate expired on 20"));
        write_ca(dir.path(), &key, |params| params.not_before = now + Duration::days(1));
        assert!(problem(dir.path()).contains("ca.crt: its certificate is not valid before 20"));
    }

    #[test]
    fn keys_of_every_common_kind_and_form_load() {
        use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256};
        for algorithm in [&PKCS_RSA_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ECDSA_P521_SHA512, &PKCS_ED25519] {
            let (dir, key) = (tempfile::tempdir().unwrap(), KeyPair::generate_for(algorithm).unwrap());
            write_ca(dir.path(), &key, |_| {});
            load_in(dir.path()).unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
        }
        // Inside PKCS#8 stands what older tools write bare: PKCS#1, SEC1.
        for (algorithm, label) in
            [(&PKCS_RSA_SHA256, "RSA PRIVATE KEY"), (&rcgen::PKCS_ECDSA_P256_SHA256, "EC PRIVATE KEY")]
        {
            let (dir, key) = (tempfile::tempdir().unwrap(), KeyPair::generate_for(algorithm).unwrap());
            write_ca(dir.path(), &key, |_| {});
            let (_, pkcs8) = x509_parser::der_parser::parse_der(key.serialized_der()).unwrap();
            let inner = pkcs8.as_sequence().unwrap()[2].as_slice().unwrap();
            let text = pem::certificate(&CertificateDer::from(inner.to_vec())).replace("CERTIFICATE", label);
            fs::write(dir.path().join(KEY), text).unwrap();
            load_in(dir.path()).unwrap_or_else(|error| panic!("{label}: {error}"));
        }
    }

    #[test]
    fn the_fingerprint_and_the_pem_are_what_openssl_prints() {
        let authority = Authority::generate().unwrap();
        let text = authority.certificate_pem();
        assert_eq!(&CertificateDer::from_pem_slice(text.as_bytes()).unwrap(), authority.certificate_der());
        assert!(text.lines().all(|line| line.len() <= 64));
        let print = authority.fingerprint_sha256();
        assert_eq!(print.len(), 95);
        assert!(
            print
                .split(':')
                .all(|pair| pair.len() == 2 && pair.bytes().all(|b| b"0123456789ABCDEF".contains(&b)))
        );
    }

    #[test]
    fn a_key_in_the_certificates_file_is_never_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        let generated = store(dir.path());
        let both = dir.path().join("both.pem");
        let key = fs::read_to_string(dir.path().join(KEY)).unwrap();
        fs::write(&both, key + &generated.certificate_pem()).unwrap();
        let loaded = Authority::load(&both, &both).unwrap();
        assert_eq!(loaded.certificate_pem(), generated.certificate_pem());
        assert!(!format!("{loaded:?}").contains("PRIVATE"));
    }
}
