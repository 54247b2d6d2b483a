//! Reading certificates and private keys from PEM files, with errors that name the file and say what is wrong with it.

use base64::Engine;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The longest file that is read, in bytes. A whole platform bundle is about 250 KiB.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A certificate or key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct FileError {
    /// The file, as it was named.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: FileProblem,
}

/// What is wrong with a certificate or key file.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// It cannot be opened or read.
    #[error("cannot read it: {0}")]
    Read(#[source] io::Error),
    /// It cannot be created, written or put in its place.
    #[error("cannot write it: {0}")]
    Write(#[source] io::Error),
    /// It is longer than any such file is.
    #[error("it is longer than 16 MiB, which no certificate file is")]
    TooLong,
    /// A PEM section starts and does not end, or its content is not base64.
    #[error("it is not well-formed PEM")]
    MalformedPem,
    /// There is no `BEGIN CERTIFICATE` in it.
    #[error("it holds no certificate in PEM form (BEGIN CERTIFICATE)")]
    NoCertificate,
    /// What stands between the PEM lines is not an X.509 certificate that can be used.
    #[error("certificate {number} in it is not a usable X.509 certificate: {reason}")]
    NotX509 {
        /// Which one, counted from 1.
        number: usize,
        /// What the parser says.
        reason: String,
    },
    /// There is no private key in it.
    #[error("it holds no private key in PEM form (BEGIN PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY)")]
    NoKey,
    /// The private key is protected by a passphrase.
    #[error("its private key is encrypted; a key without a passphrase is needed")]
    EncryptedKey,
    /// The private key is of a kind that cannot sign here.
    #[error(
        "its private key cannot be used ({0}); RSA from 2048 bits, ECDSA P-256, P-384, P-521 and Ed25519 can"
    )]
    UnusableKey(String),
    /// The certificate may not sign others.
    #[error("its certificate is not a CA certificate: {0}")]
    NotACa(&'static str),
    /// The certificate's time is over.
    #[error("its certificate expired on {0}")]
    Expired(String),
    /// The certificate's time has not come.
    #[error("its certificate is not valid before {0}")]
    NotYetValid(String),
    /// The key is not the certificate's.
    #[error("its private key does not belong to the certificate in {}", certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// The date from which on it is to be used cannot be read.
    #[error("`{0}` is no date such as 2031-05-09T14:00:00Z")]
    MalformedDate(String),
    /// One of two files that belong together is not there.
    #[error("it is missing, but {} is there; restore it, or remove both to have a new CA made", other.display())]
    HalfOfAPair {
        /// The file that is there.
        other: PathBuf,
    },
}

impl FileProblem {
    pub(crate) fn at(self, path: &Path) -> FileError {
        FileError { path: path.to_owned(), problem: self }
    }
}

/// All certificates of a PEM file, in their order; never none. Text around them and other PEM sections are skipped.
///
/// # Errors
/// When the file cannot be read, is not well-formed, or holds no certificate.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    certificates_in(&read_text(path)?).map_err(|problem| problem.at(path))
}

/// The same of what was read.
pub(crate) fn certificates_in(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileProblem> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|_| FileProblem::MalformedPem)?;
    if certificates.is_empty() {
        return Err(FileProblem::NoCertificate);
    }
    Ok(certificates)
}

/// The first private key of a PEM file: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
/// When the file cannot be read, is not well-formed, holds no key, or an encrypted one.
pub fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    private_key_in(&read_text(path)?).map_err(|problem| problem.at(path))
}

/// The same of what was read.
pub(crate) fn private_key_in(text: &[u8]) -> Result<PrivateKeyDer<'static>, FileProblem> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound if holds(text, b"BEGIN ENCRYPTED PRIVATE KEY") => FileProblem::EncryptedKey,
        pem::Error::NoItemsFound => FileProblem::NoKey,
        // OpenSSL's older form: headers inside the section say that it is encrypted, and are no base64.
        _ if holds(text, b"Proc-Type: 4,ENCRYPTED") => FileProblem::EncryptedKey,
        _ => FileProblem::MalformedPem,
    })
}

/// A certificate in PEM form (RFC 7468): lines of 64 characters.
pub(crate) fn certificate(certificate: &CertificateDer<'_>) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let base64 = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII: every cut is at a character's end.
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// A file's bytes, if they are not too many.
pub(crate) fn read_text(path: &Path) -> Result<Vec<u8>, FileError> {
    read_opened(path, fs::File::open(path))
}

/// The same of a file that was opened otherwise.
pub(crate) fn read_opened(path: &Path, opened: io::Result<fs::File>) -> Result<Vec<u8>, FileError> {
    let mut text = Vec::new();
    opened
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text))
        .map_err(|error| FileProblem::Read(error).at(path))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(FileProblem::TooLong.at(path));
    }
    Ok(text)
}

fn holds(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem_of<T: std::fmt::Debug>(content: &[u8], read: fn(&Path) -> Result<T, FileError>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.pem");
        fs::write(&path, content).unwrap();
        let text = read(&path).unwrap_err().to_string();
        text.strip_prefix(&format!("{}: ", path.display())).expect("the error names the file").to_owned()
    }

    #[test]
    fn a_missing_file_and_a_folder_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = read_certificates(&dir.path().join("no.crt")).unwrap_err().to_string();
        assert!(text.contains("no.crt: cannot read it: No such file"), "{text}");
        let text = read_private_key(dir.path()).unwrap_err().to_string();
        assert!(text.contains("cannot read it: Is a directory"), "{text}");
    }

    #[test]
    fn a_file_without_what_is_asked_for_says_so() {
        assert!(problem_of(b"", read_certificates).starts_with("it holds no certificate"));
        assert!(problem_of(b"hello", read_private_key).starts_with("it holds no private key"));
        let key_only = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert!(problem_of(key_only.as_bytes(), read_certificates).starts_with("it holds no certificate"));
    }

    #[test]
    fn a_cut_or_garbled_file_is_malformed() {
        for content in [
            "-----BEGIN CERTIFICATE-----\nAAAA\n",
            "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
        ] {
            assert_eq!(
                problem_of(content.as_bytes(), read_certificates),
                "it is not well-formed PEM",
                "{content}"
            );
        }
    }

    #[test]
    fn an_encrypted_key_is_called_that() {
        let modern = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let old = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        for content in [&modern[..], &old[..]] {
            assert!(problem_of(content, read_private_key).contains("is encrypted"));
        }
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        fs::File::create(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(matches!(read_certificates(&path).unwrap_err().problem, FileProblem::TooLong));
    }
}
