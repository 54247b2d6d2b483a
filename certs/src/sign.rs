//! Signing a certificate with the issuer's name exactly as it stands in the issuer's own certificate.
//!
//! Clients find an issuer by the bytes of its name. The library that writes certificates takes names apart and writes them
//! anew, which loses what a CA of the world outside may have: two organisational units, `DC=example, DC=org`, two
//! attributes in one relative name. So it writes a draft, the name in it is replaced, and the result is signed here.

use crate::ca::SigningError;
use rcgen::{CertificateParams, Issuer, KeyIdMethod, KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{Any, FromDer};

/// DER tags (X.690 section 8).
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// Who signs.
pub(crate) struct Signer {
    pub(crate) key: KeyPair,
    /// The DER of its name: the subject of its certificate.
    pub(crate) name: Vec<u8>,
    /// Its subject key identifier, if its certificate has one.
    pub(crate) key_id: Option<Vec<u8>>,
}

impl Signer {
    /// A certificate as `params` says, for `public_key`.
    pub(crate) fn sign(
        &self,
        params: &CertificateParams,
        public_key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, SigningError> {
        let mut issuer = CertificateParams::default();
        if let Some(id) = &self.key_id {
            issuer.key_identifier_method = KeyIdMethod::PreSpecified(id.clone());
        }
        let draft = params.signed_by(public_key, &Issuer::new(issuer, Unsigned(&self.key)))?;
        let (tbs, algorithm) =
            self.with_our_name(draft.der()).ok_or_else(|| SigningError("the draft is malformed".into()))?;
        // The first byte counts the unused bits of the last.
        let signature = [&[0], &*self.key.sign(&tbs)?].concat();
        Ok(tagged(SEQUENCE, &[&tbs, &algorithm, &tagged(BIT_STRING, &[&signature])]).into())
    }

    /// The part of a draft that is signed, with our name in it, and the signature's algorithm (RFC 5280 section 4.1).
    fn with_our_name(&self, draft: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let (tbs, rest) = split_first(content(draft)?)?;
        let (algorithm, _) = split_first(rest)?;
        let (version, rest) = split_first(content(tbs)?)?;
        let (serial, rest) = split_first(rest)?;
        let (tbs_algorithm, rest) = split_first(rest)?;
        let (_placeholder, rest) = split_first(rest)?;
        let tbs = tagged(SEQUENCE, &[version, serial, tbs_algorithm, &self.name, rest]);
        Some((tbs, algorithm.to_vec()))
    }
}

/// A key that leaves the signature empty.
struct Unsigned<'a>(&'a KeyPair);

impl PublicKeyData for Unsigned<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(self.0)
    }
}

impl SigningKey for Unsigned<'_> {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Vec::new())
    }
}

/// What stands inside a DER value.
fn content(der: &[u8]) -> Option<&[u8]> {
    Some(Any::from_der(der).ok()?.1.data)
}

/// The first of several DER values, and the others.
fn split_first(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, _) = Any::from_der(der).ok()?;
    der.split_at_checked(der.len().checked_sub(rest.len())?)
}

fn tagged(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut der = vec![tag];
    match u8::try_from(length) {
        Ok(short @ 0..0x80) => der.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let significant = bytes.iter().skip_while(|byte| **byte == 0);
            // At most eight bytes: the count fits the seven bits that it has.
            der.push(0x80 | significant.clone().count() as u8);
            der.extend(significant);
        }
    }
    parts.iter().for_each(|part| der.extend_from_slice(part));
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_der_asks() {
        for (length, header) in [
            (0, &[0x30, 0][..]),
            (127, &[0x30, 127]),
            (128, &[0x30, 0x81, 128]),
            (255, &[0x30, 0x81, 255]),
            (256, &[0x30, 0x82, 1, 0]),
            (65_536, &[0x30, 0x83, 1, 0, 0]),
        ] {
            let content = vec![5; length];
            let der = tagged(SEQUENCE, &[&content]);
            assert_eq!(der[..header.len()], *header);
            assert_eq!(der.len(), header.len() + length);
        }
    }

    #[test]
    fn a_certificate_that_is_signed_again_in_its_own_name_stays_the_same() {
        // Ed25519 signatures are deterministic, so the library's own result can be compared byte for byte.
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let params = CertificateParams::new(["example.org".to_owned()]).unwrap();
        let expected = params.self_signed(&key).unwrap();
        let name = {
            let (_, x509) = x509_parser::parse_x509_certificate(expected.der()).unwrap();
            x509.subject().as_raw().to_vec()
        };
        let signer = Signer { key, name, key_id: None };
        assert_eq!(&signer.sign(&params, &signer.key).unwrap(), expected.der());
    }
}
