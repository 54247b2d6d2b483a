//! [`Login`]: what a registry or a token service is told, and nobody else.

use darter_certs::Secret;
use http::HeaderValue;

/// What is said in an Authorization header: a name and a password, or the token that they were good for. Never shown.
#[derive(Debug, Clone)]
pub struct Login(Secret);

impl Login {
    /// # Errors
    /// When the name holds a colon (RFC 7617 section 2).
    pub fn new(name: &str, password: &str) -> Result<Self, &'static str> {
        use base64::Engine as _;
        if name.contains(':') {
            return Err("a user name cannot hold a colon");
        }
        let both = Secret::from(format!("{name}:{password}"));
        let encoded = Secret::from(base64::engine::general_purpose::STANDARD.encode(both.reveal()));
        Self::of(format!("Basic {}", encoded.reveal())).ok_or("too long")
    }

    /// A token (RFC 6750), if it can stand in a header.
    pub(super) fn bearer(token: &str) -> Option<Self> {
        Self::of(format!("Bearer {token}"))
    }

    fn of(value: String) -> Option<Self> {
        let login = Self(value.into());
        login.try_header().map(|_| login)
    }

    fn try_header(&self) -> Option<HeaderValue> {
        let mut header = HeaderValue::try_from(self.0.reveal()).ok()?;
        header.set_sensitive(true);
        Some(header)
    }

    /// The header's value, which prints as `Sensitive`.
    pub(super) fn header(&self) -> HeaderValue {
        self.try_header().expect("it was tried when the login was made")
    }

    /// What tells one login from another, as secret as the password.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.reveal().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_not_shown() {
        let login = Login::new("user", "hunter2").unwrap();
        assert_eq!(format!("{login:?} {:?}", login.header()), "Login([redacted]) Sensitive");
        assert!(Login::new("a:b", "c").is_err());
    }
}
