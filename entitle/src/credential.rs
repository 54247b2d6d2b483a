//! [`Caller`]: who asks, without what he asked with.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use std::fmt;
use std::time::Duration;

/// Turns credentials into names for them, with a key that never leaves this process and dies with it.
pub struct Credentials(hmac::Key);

/// Who asks: somebody with a certain credential, or anybody.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Without any credential.
    Anonymous,
    /// With a credential; the HMAC-SHA256 of it.
    Known([u8; 32]),
}

impl Credentials {
    /// Names under `key`, which must be random: whoever knows it can try out credentials against a memory dump.
    pub fn new(key: [u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// The caller who showed these (the values of Authorization, Cookie, a signed query ..., in a fixed order). Nothing
    /// shown is [`Caller::Anonymous`].
    pub fn caller<'a>(&self, shown: impl IntoIterator<Item = &'a [u8]>) -> Caller {
        let mut context = hmac::Context::with_key(&self.0);
        let mut any = false;
        for part in shown {
            any = true;
            // The length before each part keeps two lists of parts apart.
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let tag = context.sign();
        let mut name = [0; 32];
        name.copy_from_slice(&tag.as_ref()[..32]);
        if any { Caller::Known(name) } else { Caller::Anonymous }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Known(_) => "[redacted]",
        })
    }
}

/// How long a bearer token that is a JWT (RFC 7519) says that it lives, at `now` since 1970; `None` for every other
/// credential. Its `exp` may have a fraction (RFC 7519 section 2, NumericDate), which is not waited for. The signature is the registry's to check, so what stands here may only ever shorten a proof.
pub fn bearer_lifetime(authorization: &str, now: Duration) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let (scheme, token) = authorization.split_once(' ')?;
    let payload = token.trim().split('.').nth(1).filter(|_| scheme.eq_ignore_ascii_case("bearer"))?;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    // What is below zero ended long ago, and what is too large for the type never ends.
    Some(Duration::from_secs(claims.exp as u64).saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_says_when_it_ends() {
        let token = |payload: &str| format!("Bearer h.{}.s", BASE64_URL_SAFE_NO_PAD.encode(payload));
        let now = Duration::from_secs(1000);
        for (payload, left) in [
            (r#"{"exp":1300,"iss":"x"}"#, 300),
            (r#"{"exp":1300.9}"#, 300),
            (r#"{"exp":1.3e3}"#, 300),
            (r#"{"exp":900}"#, 0),
            (r#"{"exp":-1}"#, 0),
        ] {
            let left = Duration::from_secs(left);
            assert_eq!(bearer_lifetime(&token(payload), now), Some(left), "{payload}");
        }
        let late = now + Duration::from_millis(900);
        assert_eq!(bearer_lifetime(&token(r#"{"exp":1001}"#), late), Some(Duration::from_millis(100)));
        for other in
            [token("{}"), token("["), "Bearer opaque".to_owned(), "Basic dTpw".to_owned(), String::new()]
        {
            assert_eq!(bearer_lifetime(&other, now), None, "{other}");
        }
    }

    #[test]
    fn callers_are_told_apart_by_everything_that_they_show() {
        let names = Credentials::new([7; 32]);
        let caller = |shown: &[&'static str]| names.caller(shown.iter().map(|part| part.as_bytes()));
        assert_eq!(caller(&[]), Caller::Anonymous);
        assert_eq!(caller(&["Bearer a"]), caller(&["Bearer a"]));
        assert_ne!(caller(&["Bearer a"]), caller(&["Bearer b"]));
        assert_ne!(caller(&["ab", "c"]), caller(&["a", "bc"]));
        assert_ne!(caller(&[""]), Caller::Anonymous);
    }

    #[test]
    fn another_process_gives_other_names() {
        let caller = |key| Credentials::new([key; 32]).caller([b"Bearer a".as_slice()]);
        assert_ne!(caller(1), caller(2));
    }

    #[test]
    fn nothing_of_a_credential_is_printed() {
        let names = Credentials::new([7; 32]);
        assert_eq!(format!("{names:?} {:?}", names.caller([b"x".as_slice()])), "[redacted] [redacted]");
    }
}
