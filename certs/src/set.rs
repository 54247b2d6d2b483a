//! [`CaSet`]: the CAs of a node while one takes another's place. One of them signs; clients are told to trust all.
//!
//! Which one signs is a question of the time when it is asked, not of when the set was read: a successor that was given a
//! date signs from then on, in a process that has been running for weeks, too.

use crate::ca::{Authority, end_of, fingerprint, name_of, permitted_of};
use crate::constraints::PermittedNames;
use crate::pem;
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use std::time::SystemTime;
use time::OffsetDateTime;

/// Who signs for intercepted hosts, and whom clients are to trust. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CaSet {
    current: Arc<Authority>,
    successor: Option<Successor>,
    /// Told to clients, and signs nothing: what signed before, or what the operator adds.
    others: Arc<[CertificateDer<'static>]>,
}

/// Who will sign.
#[derive(Debug, Clone)]
pub(crate) struct Successor {
    pub(crate) authority: Arc<Authority>,
    /// From when on; `None`: when it is told to.
    pub(crate) from: Option<OffsetDateTime>,
}

/// What a CA of a set is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaRole {
    /// It signs.
    Signs,
    /// It will sign: from this date, or when it is told to.
    Next(Option<SystemTime>),
    /// It signed before, or was added by the operator: clients are told of it, and it signs nothing.
    Published,
}

/// One CA of a set, as people see it.
#[derive(Debug, Clone)]
pub struct CaView {
    /// What it is for.
    pub role: CaRole,
    /// Its common name.
    pub subject: String,
    /// As `openssl x509 -fingerprint -sha256` prints it.
    pub fingerprint_sha256: String,
    /// When it ends.
    pub not_after: SystemTime,
    /// What it may sign for, so far as that is domains and ranges of addresses.
    pub permitted: PermittedNames,
}

impl From<Arc<Authority>> for CaSet {
    /// One CA alone.
    fn from(authority: Arc<Authority>) -> Self {
        Self { current: authority, successor: None, others: Arc::default() }
    }
}

impl CaSet {
    pub(crate) fn new(
        current: Arc<Authority>,
        successor: Option<Successor>,
        others: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self { current, successor, others: others.into() }
    }

    /// The same with these certificates told to clients, too.
    pub fn publishing(self, also: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        Self { others: self.others.iter().cloned().chain(also).collect(), ..self }
    }

    /// The one that signs now.
    pub fn signer(&self) -> &Arc<Authority> {
        self.signer_at(OffsetDateTime::now_utc())
    }

    /// The certificates that clients are to trust, as PEM: first that of the CA that signs. One that has ended is left out;
    /// nobody can use it.
    pub fn bundle_pem(&self) -> String {
        self.bundle_at(OffsetDateTime::now_utc()).into_iter().map(pem::certificate).collect()
    }

    /// What is in it, the CA that signs first.
    pub fn view(&self) -> Vec<CaView> {
        let now = OffsetDateTime::now_utc();
        let role = |certificate: &CertificateDer<'_>| {
            if certificate == self.signer_at(now).certificate_der() {
                return CaRole::Signs;
            }
            match &self.successor {
                Some(next) if next.authority.certificate_der() == certificate => {
                    CaRole::Next(next.from.map(SystemTime::from))
                }
                _ => CaRole::Published,
            }
        };
        let view = |certificate: &CertificateDer<'static>| CaView {
            role: role(certificate),
            subject: name_of(certificate),
            fingerprint_sha256: fingerprint(certificate),
            not_after: end_of(certificate).unwrap_or(OffsetDateTime::UNIX_EPOCH).into(),
            permitted: permitted_of(certificate),
        };
        self.bundle_at(now).into_iter().map(view).collect()
    }

    pub(crate) fn current(&self) -> &Arc<Authority> {
        &self.current
    }

    pub(crate) fn signer_at(&self, now: OffsetDateTime) -> &Arc<Authority> {
        match &self.successor {
            // Nobody can use the one before it any more once that has ended.
            Some(Successor { authority, from: Some(from) }) if *from <= now || self.current.end() < now => {
                authority
            }
            _ => &self.current,
        }
    }

    fn bundle_at(&self, now: OffsetDateTime) -> Vec<&CertificateDer<'static>> {
        let successor = self.successor.iter().map(|next| next.authority.certificate_der());
        let mut bundle = vec![self.signer_at(now).certificate_der()];
        for certificate in
            std::iter::once(self.current.certificate_der()).chain(successor).chain(self.others.iter())
        {
            if !bundle.contains(&certificate) && end_of(certificate).is_some_and(|end| end > now) {
                bundle.push(certificate);
            }
        }
        bundle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::Duration;

    fn authority() -> Arc<Authority> {
        Arc::new(Authority::generate().unwrap())
    }

    fn names(set: &CaSet, now: OffsetDateTime) -> Vec<&CertificateDer<'static>> {
        set.bundle_at(now)
    }

    #[test]
    fn a_successor_signs_from_its_date_on_and_both_are_published() {
        let (old, new, now) = (authority(), authority(), OffsetDateTime::now_utc());
        let from = Some(now + Duration::days(14));
        let next = Successor { authority: new.clone(), from };
        let set = CaSet::new(old.clone(), Some(next), Vec::new());
        let (before, after) = (now + Duration::days(13), now + Duration::days(14));
        assert!(Arc::ptr_eq(set.signer_at(before), &old));
        assert_eq!(names(&set, before), [old.certificate_der(), new.certificate_der()]);
        assert!(Arc::ptr_eq(set.signer_at(after), &new));
        assert_eq!(names(&set, after), [new.certificate_der(), old.certificate_der()]);
        assert_eq!(set.view()[1].role, CaRole::Next(from.map(SystemTime::from)));
    }

    #[test]
    fn a_successor_with_a_date_does_not_wait_for_it_beyond_the_end_of_the_ca() {
        let (old, new, now) = (authority(), authority(), OffsetDateTime::now_utc());
        let end = old.end();
        let next = Successor { authority: new.clone(), from: Some(end + Duration::days(9)) };
        let set = CaSet::new(old.clone(), Some(next), Vec::new());
        assert!(Arc::ptr_eq(set.signer_at(now), &old));
        assert!(Arc::ptr_eq(set.signer_at(end + Duration::seconds(1)), &new));
    }

    #[test]
    fn a_successor_without_a_date_waits() {
        let (old, new) = (authority(), authority());
        let next = Successor { authority: new, from: None };
        let set = CaSet::new(old.clone(), Some(next), Vec::new());
        let much_later = OffsetDateTime::now_utc() + Duration::days(1000);
        assert!(Arc::ptr_eq(set.signer_at(much_later), &old));
    }

    #[test]
    fn what_has_ended_or_stands_twice_is_published_no_more() {
        let (old, new) = (authority(), authority());
        let also = [old.certificate_der(), new.certificate_der(), old.certificate_der()].map(Clone::clone);
        let set = CaSet::from(new.clone()).publishing(also);
        let now = OffsetDateTime::now_utc();
        assert_eq!(names(&set, now), [new.certificate_der(), old.certificate_der()]);
        // The one that signs is told of whatever happens: without it nobody understands what is wrong.
        assert_eq!(names(&set, now + Duration::days(3653)), [new.certificate_der()]);
        assert_eq!(set.bundle_pem().matches("BEGIN CERTIFICATE").count(), 2);
    }
}
