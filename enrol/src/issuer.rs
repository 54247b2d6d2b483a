//! [`Issuer`]: who makes certificates: the cluster's CA in its folder, with the tokens and expulsions beside it.

use crate::expulsion::{self, ExpulsionFile, Expulsions, MAX_LIFETIME};
use crate::file::{self, FileError};
use crate::member::{self, Member, Role};
use crate::tokens::{Terms, TokenRefused, Tokens};
use crate::{LIFETIME, Token};
use darter_certs::{
    AuthorityError, CaFolder, CaSet, MemberKey, MemberRoots, Order, PermittedNames, SigningError, sha256,
};
use darter_protocol::HostId;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

/// Certificates hold from an hour before they were made: the clocks of hosts differ.
const BACKDATE: Duration = Duration::from_secs(3600);

/// A statement holds for so long beyond every certificate.
const BEYOND: Duration = Duration::from_secs(24 * 3600);

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// A file beside the CA is the problem.
    #[error(transparent)]
    File(#[from] FileError),
    /// The CA is.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// What was asked for cannot be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The token is not good.
    #[error(transparent)]
    Token(#[from] TokenRefused),
    /// The host was expelled.
    #[error(
        "this node was expelled from the cluster; to take it back, remove node/ in its workHome and join with a new token"
    )]
    Expelled,
    /// More hosts are expelled than can be told to everybody.
    #[error(
        "{0} hosts are expelled already, and no more can be remembered: give the cluster a new CA instead (docs/cluster.md)"
    )]
    TooManyExpelled(usize),
    /// Its name or key can be no host's.
    #[error("no host can have this name and public key")]
    Nobody,
}

/// What somebody who may join is given.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) id: HostId,
}

/// Makes certificates of one cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Issuer {
    folder: PathBuf,
    ca: Arc<RwLock<CaSet>>,
    lifetime: Duration,
}

impl Issuer {
    /// The one whose CA is in `folder`; a CA is made if there is none. Blocks for the disk.
    ///
    /// # Errors
    /// When something in the folder cannot be used.
    pub fn open_or_make(folder: &Path) -> Result<Self, IssuerError> {
        file::make_folder(folder)?;
        let ca = CaFolder::at(folder).load_or_generate(&PermittedNames::default())?;
        Ok(Self::of(folder, ca))
    }

    /// The same; no CA is made.
    ///
    /// # Errors
    /// When there is none, or something in the folder cannot be used.
    pub fn open(folder: &Path) -> Result<Self, IssuerError> {
        let ca = CaFolder::at(folder).load().map_err(AuthorityError::from)?;
        Ok(Self::of(folder, ca))
    }

    fn of(folder: &Path, ca: CaSet) -> Self {
        Self { folder: folder.to_owned(), ca: Arc::new(RwLock::new(ca)), lifetime: LIFETIME }
    }

    /// With certificates that hold so long: at most 90 days.
    #[must_use]
    pub fn lasting(self, lifetime: Duration) -> Self {
        Self { lifetime: lifetime.min(MAX_LIFETIME), ..self }
    }

    /// Reads the CA again, which an operator may have replaced.
    ///
    /// # Errors
    /// When it cannot be used; then the one before goes on.
    pub(crate) fn reload(&self) -> Result<(), IssuerError> {
        let ca = CaFolder::at(&self.folder).load().map_err(AuthorityError::from)?;
        *self.ca.write().unwrap_or_else(PoisonError::into_inner) = ca;
        Ok(())
    }

    fn ca(&self) -> CaSet {
        self.ca.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The join tokens.
    pub fn tokens(&self) -> Tokens {
        Tokens::at(&self.folder)
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// When the file of tokens cannot be used.
    pub fn create_token(&self, terms: Terms, now: SystemTime) -> Result<Token, FileError> {
        let ca = sha256(self.ca().signer().certificate_der());
        self.tokens().create(terms, ca, now)
    }

    /// The CAs of the cluster.
    ///
    /// # Errors
    /// When one of them cannot be used to check others.
    pub fn roots(&self) -> Result<MemberRoots, SigningError> {
        let pem = self.ca().bundle_pem();
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>();
        let certificates = certificates.map_err(|error| SigningError::because(error.to_string()))?;
        MemberRoots::new(certificates).map_err(SigningError::because)
    }

    /// The certificate of the CA that signs, to be shown behind a scheduler's own: by it a host that joins knows it.
    pub(crate) fn signer(&self) -> CertificateDer<'static> {
        self.ca().signer().certificate_der().clone()
    }

    /// A certificate for this very process: a scheduler's, an operator's, or that of the daemon beside a scheduler.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn own(
        &self,
        role: Role,
        name: &str,
        key: &MemberKey,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, IssuerError> {
        let public_key = key.public_key();
        let id = match role.is_daemon() {
            true => member::id_of(name, &public_key),
            false => name.parse().ok(),
        };
        Ok(self.issue(role, &id.ok_or(IssuerError::Nobody)?, &public_key, now)?.certificate)
    }

    /// A certificate for a host that has come with a token.
    pub(crate) fn enrol(
        &self,
        token: (&str, &str),
        name: &str,
        public_key: &[u8],
        now: SystemTime,
    ) -> Result<Issued, IssuerError> {
        let id = member::id_of(name, public_key).ok_or(IssuerError::Nobody)?;
        // Before anything that costs more than to read a file: whoever has no token may ask as often as he likes.
        self.tokens().look(token.0, token.1, id.as_str(), now)??;
        if self.expulsions(now)?.contains(&id) {
            return Err(IssuerError::Expelled);
        }
        // Tried first: a key that cannot be signed for must not cost a use.
        self.issue(Role::Node, &id, public_key, now)?;
        let seed = self.tokens().take(token.0, token.1, id.as_str(), now)??;
        self.issue(if seed { Role::Seed } else { Role::Node }, &id, public_key, now)
    }

    /// Another certificate for a member.
    pub(crate) fn renew(&self, member: &Member, now: SystemTime) -> Result<Issued, IssuerError> {
        if self.expulsions(now)?.contains(&member.id) {
            return Err(IssuerError::Expelled);
        }
        self.issue(member.role, &member.id, &member.public_key, now)
    }

    fn issue(
        &self,
        role: Role,
        id: &HostId,
        public_key: &[u8],
        now: SystemTime,
    ) -> Result<Issued, IssuerError> {
        let until = now + self.lifetime;
        let order = Order { public_key, uri: &Member::uri(role, id), from: now - BACKDATE, until };
        let certificate = self.ca().signer().issue(&order)?;
        Ok(Issued { certificate, id: id.clone() })
    }

    /// Expels a host: from now on every scheduler with this folder refuses it, and tells all daemons.
    ///
    /// # Errors
    /// When it cannot be signed or written down.
    pub fn expel(&self, host: &HostId, now: SystemTime) -> Result<CertificateDer<'static>, IssuerError> {
        let expelled = self.expulsions(now)?;
        let known = expelled.hosts().count();
        if known >= expulsion::MAX && !expelled.contains(host) {
            return Err(IssuerError::TooManyExpelled(known));
        }
        // The key of a statement is of no use to anybody.
        let key = MemberKey::generate()?.public_key();
        let until = now + MAX_LIFETIME + BEYOND;
        let order = Order { public_key: &key, uri: &expulsion::uri(host), from: now - BEYOND, until };
        let statement = self.ca().signer().issue(&order)?;
        self.expelled_file().add(&statement)?;
        Ok(statement)
    }

    pub(crate) fn expelled_file(&self) -> ExpulsionFile {
        ExpulsionFile::at(self.folder.clone())
    }

    /// Who was expelled.
    ///
    /// # Errors
    /// When the file is damaged: nobody is let in by an unreadable list.
    pub fn expulsions(&self, now: SystemTime) -> Result<Expulsions, IssuerError> {
        let (mut expulsions, roots) = (Expulsions::default(), self.roots()?);
        for statement in self.expelled_file().read()? {
            expulsions.learn(&statement, &roots, now);
        }
        Ok(expulsions)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::expulsion::unix;
    use darter_certs::Named;
    use std::os::unix::fs::PermissionsExt as _;

    pub(crate) fn issuer() -> (tempfile::TempDir, Issuer) {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Issuer::open_or_make(folder.path()).unwrap();
        (folder, issuer)
    }

    fn terms(uses: u32, seed: bool) -> Terms {
        Terms { ttl: Duration::from_secs(60), uses: Some(uses), seed }
    }

    #[test]
    fn a_token_makes_a_member_of_the_role_that_it_says_for_a_few_days() {
        let (folder, issuer) = issuer();
        let now = SystemTime::now();
        for (seed, role) in [(true, Role::Seed), (false, Role::Node)] {
            let token = issuer.create_token(terms(1, seed), now).unwrap();
            let key = MemberKey::generate().unwrap().public_key();
            let issued = issuer.enrol((token.id(), token.secret()), "n", &key, now).unwrap();
            let named = Named::of(&issued.certificate).unwrap();
            let member = Member::of(&named).unwrap();
            assert_eq!((member.role, &member.id), (role, &issued.id));
            let roots = issuer.roots().unwrap();
            let holds = |at| roots.check(&issued.certificate, unix(at)).is_ok();
            let hour = Duration::from_secs(3600);
            assert!(holds(now) && holds(now - hour / 2) && holds(now + LIFETIME - hour));
            assert!(!holds(now + LIFETIME + hour) && !holds(now - 2 * hour));
            let renewed = issuer.renew(&member, now + LIFETIME / 2).unwrap();
            assert!(roots.check(&renewed.certificate, unix(now + LIFETIME + hour)).is_ok());
            assert_eq!(Member::of(&Named::of(&renewed.certificate).unwrap()).unwrap().role, role);
        }
        let mode = std::fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_cannot_be_signed_for_costs_no_use() {
        let (_folder, issuer) = issuer();
        let now = SystemTime::now();
        let token = issuer.create_token(terms(1, false), now).unwrap();
        let token = (token.id(), token.secret());
        assert!(issuer.enrol(token, "n", b"junk", now).is_err());
        let key = MemberKey::generate().unwrap().public_key();
        assert!(issuer.enrol(token, "n", &key, now).is_ok());
    }

    #[test]
    fn who_was_expelled_neither_renews_nor_joins_also_after_a_restart() {
        let (folder, issuer) = issuer();
        let now = SystemTime::now();
        let token = issuer.create_token(terms(9, false), now).unwrap();
        let key = MemberKey::generate().unwrap().public_key();
        let issued = issuer.enrol((token.id(), token.secret()), "n", &key, now).unwrap();
        issuer.expel(&issued.id, now).unwrap();
        let member = Member::of(&Named::of(&issued.certificate).unwrap()).unwrap();
        let again = Issuer::open(folder.path()).unwrap();
        assert!(matches!(again.renew(&member, now), Err(IssuerError::Expelled)));
        let joined = again.enrol((token.id(), token.secret()), "n", &key, now);
        assert!(matches!(joined, Err(IssuerError::Expelled)));
        let other = MemberKey::generate().unwrap().public_key();
        assert!(again.enrol((token.id(), token.secret()), "n", &other, now).is_ok(), "others do");
    }

    #[test]
    fn a_restart_keeps_the_ca_and_the_tokens() {
        let (folder, issuer) = issuer();
        let now = SystemTime::now();
        let token = issuer.create_token(terms(1, false), now).unwrap();
        let again = Issuer::open_or_make(folder.path()).unwrap();
        assert_eq!(sha256(&again.signer()), *token.ca());
        let key = MemberKey::generate().unwrap().public_key();
        assert!(again.enrol((token.id(), token.secret()), "n", &key, now).is_ok());
        let empty = tempfile::tempdir().unwrap();
        assert!(Issuer::open(empty.path()).is_err(), "no CA is made by looking");
    }
}
