//! [`Token`]: what an operator carries from a scheduler's host to a node.
//!
//! `darter1.ID.SECRET.CA`: by ID a scheduler finds it, SECRET proves it, and CA is the SHA-256 of the cluster's CA, by which
//! the node knows that scheduler before it tells it anything.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use darter_certs::{Secret, sha256};
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// What a token of this form begins with.
const FORM: &str = "darter1";

/// A join token. Printing it for a log says nothing of its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    /// 16 bytes, as they are written.
    secret: Secret,
    ca: [u8; 32],
}

/// A text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no join token: expected darter1.ID.SECRET.CA in one piece, as `darter token create` printed it on a scheduler's host"
)]
pub struct InvalidToken;

impl Token {
    /// A new one of the cluster whose CA has this SHA-256; `random` is made up by the caller, all of it by chance.
    pub(crate) fn new(random: &[u8; 20], ca: [u8; 32]) -> Self {
        let (id, secret) = random.split_at(4);
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id, secret: BASE64.encode(secret).into(), ca }
    }

    /// Its public part.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its secret part, as it is sent to a scheduler that was recognised.
    pub(crate) fn secret(&self) -> &str {
        self.secret.reveal()
    }

    /// The SHA-256 of the cluster's CA.
    pub(crate) fn ca(&self) -> &[u8; 32] {
        &self.ca
    }

    /// All of it, to be handed over.
    pub fn text(&self) -> Secret {
        format!("{FORM}.{}.{}.{}", self.id, self.secret(), BASE64.encode(self.ca)).into()
    }
}

/// What is kept of a secret. It is 128 bits of chance, so that one hash is as good as many.
pub(crate) fn hash(secret: &str) -> String {
    sha256(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [FORM, id, secret, ca] = parts.as_slice() else { return Err(InvalidToken) };
        let bytes = |text: &str| BASE64.decode(text).map(Zeroizing::new).map_err(|_| InvalidToken);
        if id.len() != 8 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidToken);
        }
        let length = bytes(secret)?.len();
        Ok(Self {
            id: (*id).to_owned(),
            secret: Some(*secret).filter(|_| length == 16).ok_or(InvalidToken)?.into(),
            ca: bytes(ca)?.as_slice().try_into().map_err(|_| InvalidToken)?,
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, {})", self.id, self.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_and_never_shown_by_chance() {
        let token = Token::new(&[7; 20], [9; 32]);
        let text = token.text();
        let text = text.reveal();
        assert!(text.starts_with("darter1.07070707.") && text.len() < 100, "{text}");
        assert_eq!(format!(" {text}\n").parse::<Token>(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(token.secret()));
    }

    #[test]
    fn a_text_that_is_no_token_is_refused() {
        let text = Token::new(&[7; 20], [9; 32]).text();
        let text = text.reveal();
        for wrong in [
            "",
            "darter1",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text}.x"),
            &text.replace("0707", "zzzz"),
        ] {
            assert_eq!(wrong.parse::<Token>(), Err(InvalidToken), "{wrong}");
        }
    }
}
