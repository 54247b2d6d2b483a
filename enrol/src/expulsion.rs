//! [`Expulsions`]: who was expelled.
//!
//! A statement is a certificate of the cluster's CA whose name is `darter://expelled/ID`: whoever has it can show it, and
//! nobody but who has the CA can make one. So it does not matter from whom a host has it: schedulers tell daemons, and
//! daemons tell the other schedulers. It holds for as long as a certificate of the expelled one could, and a day longer;
//! after that he has none, and gets none without a token.

use crate::file::{self, FileError};
use darter_certs::{MemberRoots, Named, certificate_pem};
use darter_protocol::HostId;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How its name begins.
const NAME: &str = "darter://expelled/";

/// Statements at once: all of them fit into one message, of 4 MiB at most.
pub(crate) const MAX: usize = 4000;

/// The longest statement, in bytes: one is about 500.
const MAX_BYTES: usize = 1000;

/// The longest time that a statement may have: nobody's certificate holds longer.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// The URI of the statement that this host was expelled.
pub(crate) fn uri(host: &HostId) -> String {
    format!("{NAME}{host}")
}

/// Who was expelled, as far as this host knows.
#[derive(Debug, Clone, Default)]
pub struct Expulsions {
    /// By the key's part of the id: with another name, the same key gets another id, and is the same node.
    by_key: BTreeMap<String, Statement>,
}

/// That somebody was expelled.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    host: HostId,
    der: CertificateDer<'static>,
    until: SystemTime,
}

impl Statement {
    /// What these bytes say, whoever signed that.
    pub(crate) fn read(der: &[u8]) -> Option<Self> {
        if der.len() > MAX_BYTES {
            return None;
        }
        let der = CertificateDer::from(der.to_vec());
        let named = Named::of(&der).ok()?;
        let host = named.uri.strip_prefix(NAME)?.parse().ok()?;
        Some(Self { host, der, until: named.until })
    }

    /// This one, if one of these CAs signed it and it holds.
    pub(crate) fn checked(self, roots: &MemberRoots, now: SystemTime) -> Option<Self> {
        roots.check(&self.der, unix(now)).is_ok().then_some(self)
    }
}

impl Expulsions {
    /// Whether this host was.
    pub fn contains(&self, host: &HostId) -> bool {
        self.by_key.contains_key(key(host))
    }

    /// Their ids.
    pub fn hosts(&self) -> impl Iterator<Item = &HostId> {
        self.by_key.values().map(|statement| &statement.host)
    }

    /// All statements, as they are passed on.
    pub fn statements(&self) -> impl Iterator<Item = (&HostId, &CertificateDer<'static>)> {
        self.by_key.values().map(|statement| (&statement.host, &statement.der))
    }

    /// Whether one that holds as long is known.
    pub(crate) fn knows(&self, statement: &Statement) -> bool {
        self.by_key.get(key(&statement.host)).is_some_and(|known| known.until >= statement.until)
    }

    /// Takes a statement in, if one of these CAs signed it and it holds. Gives whom it expels, if that is new.
    pub(crate) fn learn(&mut self, der: &[u8], roots: &MemberRoots, now: SystemTime) -> Option<HostId> {
        let statement = Statement::read(der).filter(|statement| !self.knows(statement))?;
        self.add(statement.checked(roots, now)?, now)
    }

    /// Takes in a statement that was checked. Gives whom it expels, if that is new.
    pub(crate) fn add(&mut self, statement: Statement, now: SystemTime) -> Option<HostId> {
        let host = statement.host.clone();
        self.by_key.retain(|_, statement| statement.until > now);
        let new = !self.contains(&host);
        if new && self.by_key.len() >= MAX {
            tracing::error!(%host, "too many hosts are expelled to remember another: end the cluster's CA instead");
            return None;
        }
        self.by_key.insert(key(&host).to_owned(), statement);
        new.then_some(host)
    }
}

/// What of an id is a hash of the host's public key.
pub(crate) fn key(host: &HostId) -> &str {
    host.as_str().rsplit('-').next().unwrap_or_default()
}

/// A file of statements.
#[derive(Debug, Clone)]
pub(crate) struct ExpulsionFile {
    folder: PathBuf,
}

impl ExpulsionFile {
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("expelled.pem")
    }

    /// The statements in it, whoever signed them.
    pub(crate) fn read(&self) -> Result<Vec<CertificateDer<'static>>, FileError> {
        let path = self.path();
        let Some(text) = file::read(&path)? else { return Ok(Vec::new()) };
        let statements = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>();
        // A list that is read in part would let somebody in again.
        statements.map_err(|error| FileError::new(&path, format!("is damaged: {error}")))
    }

    /// Adds a statement, unless it is there.
    pub(crate) fn add(&self, statement: &CertificateDer<'_>) -> Result<(), FileError> {
        let _lock = file::lock(&self.folder, "expelled.lock")?;
        let mut all = self.read()?;
        if all.contains(statement) {
            return Ok(());
        }
        // Those that have ended say nothing any more.
        let now = SystemTime::now();
        all.retain(|it| Named::of(it).is_ok_and(|named| named.until > now));
        let text: String = all.iter().chain([statement]).map(certificate_pem).collect();
        file::write(&self.path(), &text)
    }
}

pub(crate) fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::tests::issuer;

    fn host(text: &str) -> HostId {
        text.parse().unwrap()
    }

    #[test]
    fn a_statement_counts_whoever_brings_it_and_nobody_else_can_make_one() {
        let (_folder, issuer) = issuer();
        let (_other_folder, other) = crate::issuer::tests::issuer();
        let roots = issuer.roots().unwrap();
        let now = SystemTime::now();
        let mut expulsions = Expulsions::default();
        let forged = other.expel(&host("a"), now).unwrap();
        assert_eq!(expulsions.learn(&forged, &roots, now), None, "another CA's");
        assert_eq!(expulsions.learn(b"junk", &roots, now), None);
        assert!(!expulsions.contains(&host("a")));
        let real = issuer.expel(&host("a"), now).unwrap();
        assert_eq!(expulsions.learn(&real, &roots, now), Some(host("a")));
        assert_eq!(expulsions.learn(&real, &roots, now), None, "it is known");
        assert!(expulsions.contains(&host("a")) && !expulsions.contains(&host("b")));
    }

    #[test]
    fn another_name_for_the_same_key_is_the_same_node() {
        let (_folder, issuer) = issuer();
        let now = SystemTime::now();
        let mut expulsions = Expulsions::default();
        let statement = issuer.expel(&host("node-0f"), now).unwrap();
        expulsions.learn(&statement, &issuer.roots().unwrap(), now);
        assert!(expulsions.contains(&host("other-0f")) && !expulsions.contains(&host("node-1f")));
    }

    #[test]
    fn a_members_certificate_expels_nobody() {
        let (_folder, issuer) = issuer();
        let key = darter_certs::MemberKey::generate().unwrap();
        let now = SystemTime::now();
        let own = issuer.own(crate::Role::Scheduler, "expelled", &key, now).unwrap();
        let mut expulsions = Expulsions::default();
        assert_eq!(expulsions.learn(&own, &issuer.roots().unwrap(), now), None);
    }

    #[test]
    fn statements_are_kept_until_no_certificate_of_the_host_can_hold() {
        let (folder, issuer) = issuer();
        let now = SystemTime::now();
        issuer.expel(&host("a"), now).unwrap();
        issuer.expel(&host("b"), now).unwrap();
        let file = ExpulsionFile::at(folder.path().to_owned());
        let (read, roots) = (file.read().unwrap(), issuer.roots().unwrap());
        assert_eq!(read.len(), 2);
        let mut at_start = Expulsions::default();
        assert!(read.iter().all(|it| at_start.learn(it, &roots, now).is_some()));
        let later = now + MAX_LIFETIME + Duration::from_secs(2 * 24 * 3600);
        assert_eq!(Expulsions::default().learn(&read[0], &roots, later), None);
        std::fs::write(folder.path().join("expelled.pem"), "-----BEGIN CERTIFICATE-----\nAA").unwrap();
        assert!(file.read().is_err(), "a damaged list is not an empty one");
    }
}
