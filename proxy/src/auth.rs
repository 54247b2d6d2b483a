//! [`BasicAuth`]: the user name and password that the proxy asks for (`proxy.basicAuth`).

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use darter_certs::Secret;
use http::HeaderMap;
use http::header::PROXY_AUTHORIZATION;
use std::fmt;

/// Whom the proxy serves. Only the hash of the credentials is kept.
#[derive(Clone)]
pub struct BasicAuth {
    expected: Digest,
}

impl BasicAuth {
    /// Serves whoever brings these.
    pub fn new(username: &str, password: &str) -> Self {
        Self { expected: hash(Secret::from(format!("{username}:{password}")).reveal().as_bytes()) }
    }

    /// Whether a request brings them in its Proxy-Authorization, the only header that is looked at: `Authorization`
    /// belongs to the origin (RFC 9110 section 11.7.2). What is malformed or there twice does not.
    pub(crate) fn admits(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(PROXY_AUTHORIZATION).iter();
        let (Some(only), None) = (values.next(), values.next()) else { return false };
        let Some(given) = only.to_str().ok().and_then(credentials) else { return false };
        // Of hashes, so that not even the length shows in the time that it takes.
        verify_slices_are_equal(hash(&given).as_ref(), self.expected.as_ref()).is_ok()
    }
}

impl fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

fn hash(text: &[u8]) -> Digest {
    digest(&SHA256, text)
}

/// `Basic <base64>` (RFC 7617).
fn credentials(value: &str) -> Option<Vec<u8>> {
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    STANDARD.decode(encoded.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn admits(values: &[&str]) -> bool {
        let headers =
            values.iter().map(|v| (PROXY_AUTHORIZATION, HeaderValue::from_str(v).unwrap())).collect();
        BasicAuth::new("user", "pass:word").admits(&headers)
    }

    #[test]
    fn only_the_right_credentials_are_admitted() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert!(admits(&[&basic("user:pass:word")]));
        assert!(admits(&[&basic("user:pass:word").replace("Basic", "bASIC")]));
        for wrong in ["", "user", "user:pass:wor", "user:pass:words", "USER:pass:word", ":"] {
            assert!(!admits(&[&basic(wrong)]), "{wrong}");
        }
        let right = basic("user:pass:word");
        for malformed in ["", "Basic", "Basic ", "Basic %%%", &right.replace("Basic", "Bearer")] {
            assert!(!admits(&[malformed]), "{malformed}");
        }
        assert!(!admits(&[]));
        assert!(!admits(&[&right, &right]));
    }

    #[test]
    fn not_even_their_hash_is_printed() {
        assert_eq!(format!("{:?}", BasicAuth::new("user", "hunter2")), "[redacted]");
    }

    #[test]
    fn the_origins_header_is_not_looked_at() {
        let value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode("user:pass"))).unwrap();
        let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
        assert!(!BasicAuth::new("user", "pass").admits(&headers));
    }
}
