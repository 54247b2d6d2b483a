//! [`Member`]: what a certificate says of whom it is for.
//!
//! The name is a URI, `darter://ROLE/ID`. The id of a host ends with a hash of its public key: so nobody else can be given
//! that id, whichever scheduler he asks, and none of them has to remember who has which.

use darter_certs::{Named, sha256};
use darter_protocol::HostId;
use std::sync::Arc;
use std::time::SystemTime;

/// How much of a host's name for people goes into its id, which may have 128 characters.
const MAX_NAME: usize = 64;

/// How much of the hash of its key: nobody finds another key for the same 128 bits.
const KEY_BYTES: usize = 16;

/// What a member may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Has and wants content, and speaks for itself.
    Node,
    /// The same, and is asked first for a first copy.
    Seed,
    /// Says who has what.
    Scheduler,
    /// A person with the cluster's CA at hand, who looks.
    Operator,
}

impl Role {
    const ALL: [Self; 4] = [Self::Node, Self::Seed, Self::Scheduler, Self::Operator];

    const fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Seed => "seed",
            Self::Scheduler => "scheduler",
            Self::Operator => "operator",
        }
    }

    /// Whether it is a daemon, seed or not.
    pub const fn is_daemon(self) -> bool {
        matches!(self, Self::Node | Self::Seed)
    }
}

/// Who has a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id: a daemon's host id, or a scheduler's name.
    pub id: HostId,
    /// What it may do.
    pub role: Role,
    /// Until when the certificate holds.
    pub until: SystemTime,
    /// Its public key: a SubjectPublicKeyInfo in DER form.
    pub(crate) public_key: Arc<[u8]>,
}

impl Member {
    /// Whom the certificate names; `None` when it names nobody who could be a member.
    pub(crate) fn of(named: &Named) -> Option<Self> {
        let (word, id) = named.uri.strip_prefix("darter://")?.split_once('/')?;
        let role = *Role::ALL.iter().find(|role| role.word() == word)?;
        let id: HostId = id.parse().ok()?;
        let is_own = !role.is_daemon() || id.as_str().ends_with(&key_part(&named.public_key));
        is_own.then(|| Self { id, role, until: named.until, public_key: named.public_key.as_slice().into() })
    }

    /// The URI of somebody with this role and id.
    pub(crate) fn uri(role: Role, id: &HostId) -> String {
        format!("darter://{}/{id}", role.word())
    }
}

/// The id of the host that has this public key, and is called `name` by people. What cannot stand in an id becomes `-`.
pub(crate) fn id_of(name: &str, public_key: &[u8]) -> Option<HostId> {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = name.chars().take(MAX_NAME).map(allowed).collect();
    format!("{name}-{}", key_part(public_key)).parse().ok()
}

fn key_part(public_key: &[u8]) -> String {
    sha256(public_key).iter().take(KEY_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(uri: String, public_key: &[u8]) -> Named {
        let (from, until) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH);
        Named { uri, public_key: public_key.to_vec(), from, until }
    }

    #[test]
    fn an_id_belongs_to_its_key_alone() {
        let id = id_of("node 1", b"key").unwrap();
        assert!(id.as_str().starts_with("node-1-") && id.as_str().len() == 7 + 32, "{id}");
        for role in [Role::Node, Role::Seed] {
            let uri = Member::uri(role, &id);
            assert_eq!(Member::of(&named(uri.clone(), b"key")).unwrap().role, role);
            assert_eq!(Member::of(&named(uri, b"other")), None, "another's id");
        }
    }

    #[test]
    fn what_is_no_name_of_ours_names_nobody() {
        for uri in [
            "",
            "darter://node",
            "darter://other/a",
            "darter://scheduler/",
            "http://scheduler/a",
            "scheduler/a",
        ] {
            assert_eq!(Member::of(&named(uri.to_owned(), b"key")), None, "{uri}");
        }
        let scheduler = Member::of(&named("darter://scheduler/s1".to_owned(), b"key")).unwrap();
        assert_eq!((scheduler.role, scheduler.id.as_str()), (Role::Scheduler, "s1"));
    }

    #[test]
    fn a_long_or_odd_name_still_makes_an_id() {
        for name in ["", "ä".repeat(300).as_str(), &"x".repeat(300)] {
            assert!(id_of(name, b"key").is_some(), "{name}");
        }
    }
}
