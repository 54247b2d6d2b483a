//! [`UrlPrefix`]: the beginning of a URL, as a hash.
//!
//! A scheduler may refuse what lies below a URL, and is told no URL: a daemon sends the hashes of all beginnings of its
//! URL's path, and the scheduler compares them with those of its list. Whoever has the list of what is refused, or guesses a
//! path, finds out whether a URL lies below it, and nothing else.

use percent_encoding::percent_decode_str;

/// The beginning of a URL: its host and some of the first parts of its path. Not its scheme, query or credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UrlPrefix([u8; 16]);

/// Bytes that are no [`UrlPrefix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a prefix of a URL has 16 bytes")]
pub struct InvalidPrefix;

/// What the hashes are made for, so that they are no hashes of anything else (BLAKE3's key derivation).
const CONTEXT: &str = "darter 2026 prefix of a URL";

impl UrlPrefix {
    /// So many beginnings of a URL are looked at; the parts of a path behind that say nothing.
    pub const MAX: usize = 32;

    /// The beginnings of a URL, the shortest (the host alone) first. `host` with its port where that is not the scheme's
    /// own. What stands in the path in percent-encoding counts as what it stands for, and empty parts for nothing.
    pub fn all(host: &str, path: &str) -> Vec<Self> {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(host.to_ascii_lowercase().as_bytes());
        let mut prefixes = vec![Self::of(&hasher)];
        for part in path.split('/').filter(|part| !part.is_empty()).take(Self::MAX - 1) {
            hasher.update(b"/");
            for byte in percent_decode_str(part) {
                hasher.update(&[byte]);
            }
            prefixes.push(Self::of(&hasher));
        }
        prefixes
    }

    /// The URL with all of its path, or as much of it as counts.
    pub fn longest(host: &str, path: &str) -> Self {
        Self::all(host, path).pop().expect("the host alone is always among them")
    }

    /// As it travels.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn of(hasher: &blake3::Hasher) -> Self {
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for UrlPrefix {
    type Error = InvalidPrefix;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidPrefix> {
        bytes.try_into().map(Self).map_err(|_| InvalidPrefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_begins_with_its_host_and_with_every_part_of_its_path() {
        let all = UrlPrefix::all("a.example", "/x/y/z.tar");
        assert_eq!(all.len(), 4);
        assert_eq!(all[0], UrlPrefix::longest("A.example", "/"));
        assert_eq!(all[2], UrlPrefix::longest("a.example", "/x/y/"));
        for other in
            [("a.example:8443", "/x/y"), ("a.example", "/x/yy"), ("a.example", "/xy"), ("b.example", "/x/y")]
        {
            assert!(!all.contains(&UrlPrefix::longest(other.0, other.1)), "{other:?}");
        }
    }

    #[test]
    fn the_same_path_written_otherwise_is_the_same() {
        let plain = UrlPrefix::all("a.example", "/secret/file");
        assert_eq!(UrlPrefix::all("a.example", "//%73ecret/fil%65"), plain);
        // A slash that is encoded parts nothing, and yet hashes as the one that does: who hides behind it is found, too.
        assert_eq!(UrlPrefix::longest("a.example", "/secret%2Ffile"), plain[2]);
    }

    #[test]
    fn a_path_without_end_is_cut() {
        assert_eq!(UrlPrefix::all("a.example", &"/x".repeat(1000)).len(), UrlPrefix::MAX);
    }
}
