//! Names of tasks and hosts.

use std::fmt;
use std::str::FromStr;

/// A string that is not an id of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what}: {reason}")]
pub struct InvalidId {
    what: &'static str,
    reason: &'static str,
}

/// The name of a task: 32 bytes that say what it contains, or where it comes from when that is not known.
///
/// Two daemons that mean the same content must derive the same id, so the derivations stand here and nowhere else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId([u8; 32]);

impl TaskId {
    /// The task of content whose digest is known. One copy serves every registry, repository and mirror.
    pub fn of_digest(digest: &crate::Digest) -> Self {
        Self::derive("darter 2026 task by digest", &[digest.to_string().as_bytes()])
    }

    /// The task of content with that digest as these sources have it (a registry, or several that believe each other). Who does not
    /// speak for them cannot ask for it by the digest alone.
    pub fn of_digest_at(digest: &crate::Digest, sources: &str) -> Self {
        Self::derive(
            "darter 2026 task by digest at a source",
            &[digest.to_string().as_bytes(), sources.as_bytes()],
        )
    }

    /// The task of content that is known by its place only: the canonical URL (without the filtered query parameters),
    /// and the tag and application under which callers keep versions of it apart.
    pub fn of_url(canonical_url: &str, tag: &str, application: &str) -> Self {
        Self::derive(
            "darter 2026 task by url",
            &[canonical_url.as_bytes(), tag.as_bytes(), application.as_bytes()],
        )
    }

    /// The task of content that a user imported under a name of his own. Each user has names to himself, so that nobody can
    /// put other content under the one that somebody else trusts.
    pub fn of_import(owner: u32, id: &str, tag: &str) -> Self {
        Self::derive("darter 2026 task by import", &[&owner.to_le_bytes(), id.as_bytes(), tag.as_bytes()])
    }

    /// Every part is preceded by its length: no two lists of parts give the same bytes.
    fn derive(context: &str, parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The id's bytes, as they travel and as they are stored.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for TaskId {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for TaskId {
    type Error = InvalidId;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidId> {
        bytes.try_into().map(Self).map_err(|_| InvalidId { what: "task id", reason: "it must have 32 bytes" })
    }
}

impl FromStr for TaskId {
    type Err = InvalidId;

    fn from_str(hex: &str) -> Result<Self, InvalidId> {
        crate::digest::from_hex(hex)
            .map(Self)
            .ok_or(InvalidId { what: "task id", reason: "it must be 64 lower-case hexadecimal digits" })
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::digest::write_hex(f, &self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a daemon, stable over its restarts: 1 to 128 characters of `[A-Za-z0-9._-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(String);

impl HostId {
    const MAX_LEN: usize = 128;

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for HostId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        let invalid = |reason| Err(InvalidId { what: "host id", reason });
        if text.is_empty() || text.len() > Self::MAX_LEN {
            return invalid("it must have 1 to 128 characters");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return invalid("only letters, digits, '.', '_' and '-' may stand in it");
        }
        Ok(Self(text))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_id_reads_back_from_its_text() {
        let id = TaskId::of_url("https://example.org/a", "", "");
        assert_eq!(id.to_string().parse::<TaskId>(), Ok(id));
        assert!("abc".parse::<TaskId>().is_err());
        assert!("Z".repeat(64).parse::<TaskId>().is_err());
    }

    #[test]
    fn parts_cannot_slide_into_each_other() {
        assert_ne!(TaskId::of_url("u", "ab", "c"), TaskId::of_url("u", "a", "bc"));
    }

    #[test]
    fn host_ids_are_checked() {
        assert!("node-1.example_2".parse::<HostId>().is_ok());
        for bad in ["", "a/b", "a b", "é", &"x".repeat(129)] {
            assert!(bad.parse::<HostId>().is_err(), "{bad:?}");
        }
    }
}
