//! [`Leaves`]: the certificates that intercepted hosts show to clients, signed as they are needed.
//!
//! All leaves have one key (ECDSA P-256), made when the process starts and never written down. It is not the CA's: that one
//! must sign certificates only, and stay out of every TLS configuration. A key per name would protect nothing more, for
//! whoever can read one from this process can read all; and it would cost as much again as the signature (15 us).
//!
//! A leaf is signed once per name and day, however many ask at once, lives a week, and so always has six days left when it
//! is shown. Measured: 23 us to make with an ECDSA CA, 250 us with RSA-2048; 1.4 us from the cache; 4.2 KiB kept.
//!
//! With [`LeafOptions::wildcard`], names beside each other share one leaf, for `*.parent` and for the first of them that was
//! asked for. Never right below a name of one label (`*.org`), which many clients refuse, and never where the CA's
//! constraints leave out something below the parent. Each name still has a configuration, and tickets, of its own.
//!
//! A name outside of the CA's constraints gets no leaf: every client would refuse it. Whoever asks should leave that host's
//! TLS closed, see [`Leaves::can_sign`].

use crate::ca::{Authority, SigningError, serial_number};
use crate::date;
use crate::set::CaSet;
use crate::ticket::BoundTickets;
use crate::trust::provider;
use moka::future::Cache;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use time::{Duration, OffsetDateTime};

/// How long a leaf is valid from now on. Clients accept up to 398 days; nobody needs more than the cache keeps.
const LIFETIME: Duration = Duration::days(7);
/// A leaf is valid from an hour ago: the clocks of clients differ.
const BACKDATE: Duration = Duration::hours(1);
/// A leaf is shown on the calendar day (UTC) of its signature only.
const SECONDS_PER_PERIOD: i64 = 86_400;
/// How many names are kept: 17 MiB when all are in use. A name that falls out is signed again when somebody asks.
const MAX_CACHED: u64 = 4096;
/// The longest common name (RFC 5280, ub-common-name). The subject alternative name is what counts.
const MAX_COMMON_NAME: usize = 64;

/// A name that a leaf certificate can be made for: a DNS name, in lower case without a final dot, or an address.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LeafName(ServerName<'static>);

/// A text that is neither a DNS name nor an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no certificate can be made for this host: it is neither a DNS name nor an IP address")]
pub struct InvalidLeafName;

/// Why there is no leaf.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LeafError {
    /// The CA's time is over; so is everything that it signs.
    #[error("the CA that signs for intercepted hosts expired on {0}")]
    AuthorityExpired(String),
    /// The CA may not sign for this name (its certificate's name constraints), so clients would refuse the leaf.
    #[error("the CA \"{ca}\" may not sign for {name}: it is outside of the CA's name constraints")]
    NotPermitted {
        /// For which name.
        name: String,
        /// The CA's own name.
        ca: String,
    },
    /// It could not be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// TLS does not take it.
    #[error("cannot serve TLS with a leaf certificate: {0}")]
    Tls(String),
}

/// How leaves are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeafOptions {
    /// One leaf for all names beside each other (`hijackHTTPS.wildcard`).
    pub wildcard: bool,
}

/// What a client's TLS connection is taken with.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The configuration: HTTP/2 and HTTP/1.1 by ALPN.
    pub config: Arc<ServerConfig>,
    /// Whether the certificate was signed for this call.
    pub minted: bool,
}

/// The leaves of a set of CAs. Cheap to clone.
#[derive(Clone)]
pub struct Leaves {
    authorities: CaSet,
    options: LeafOptions,
    shared: Arc<Shared>,
}

struct Shared {
    key: KeyPair,
    signing_key: Arc<dyn SigningKey>,
    /// What seals the tickets of all names.
    ticket_keys: Arc<dyn ProducesTickets>,
    signed: AtomicU64,
    configs: Cache<Key, Arc<ServerConfig>>,
    /// The certificates that several names share.
    wildcards: Cache<Key, Arc<CertifiedKey>>,
}

/// What a leaf is kept under. The day is part of it, so that the wall clock alone says when a leaf is too old, whatever a
/// suspended machine or a corrected clock does to timers; and the CA, so that a new one shows at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// The host; or the parent of several, which is then no host's own.
    name: LeafName,
    day: i64,
    signer: [u8; 32],
    wildcard: bool,
}

impl Leaves {
    /// Leaves signed by these CAs (or by a single one), with a key of their own.
    ///
    /// # Errors
    /// When the system gives no randomness for the keys.
    pub fn new(authorities: impl Into<CaSet>) -> Result<Self, LeafError> {
        let key = KeyPair::generate().map_err(SigningError::from)?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialized_der()));
        let signing_key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(tls)?;
        let shared = Shared {
            key,
            signing_key,
            ticket_keys: rustls::crypto::aws_lc_rs::Ticketer::new().map_err(tls)?,
            signed: AtomicU64::new(0),
            configs: Cache::new(MAX_CACHED),
            wildcards: Cache::new(MAX_CACHED),
        };
        let (authorities, options) = (authorities.into(), LeafOptions::default());
        Ok(Self { authorities, options, shared: Arc::new(shared) })
    }

    /// The same leaves, keys and tickets, from now on by these CAs and options: for a configuration that was read again.
    /// Clones that were made before go on as they were.
    pub fn with(&self, authorities: impl Into<CaSet>, options: LeafOptions) -> Self {
        Self { authorities: authorities.into(), options, shared: self.shared.clone() }
    }

    /// The CA that signs them now.
    pub fn authority(&self) -> &Arc<Authority> {
        self.authorities.signer()
    }

    /// The certificates that clients are to trust, as PEM: see [`CaSet::bundle_pem`].
    pub fn bundle_pem(&self) -> String {
        self.authorities.bundle_pem()
    }

    /// Whether there can be a leaf for this name: whether it is within the constraints of the CA that signs.
    pub fn can_sign(&self, name: &LeafName) -> bool {
        self.authority().permits(name)
    }

    /// How many leaves were signed so far.
    pub fn signed(&self) -> u64 {
        self.shared.signed.load(Ordering::Relaxed)
    }

    /// The configuration to take a client's TLS connection for `name` with: see [`Self::leaf_for`].
    ///
    /// # Errors
    /// As there.
    pub async fn config_for(&self, name: &LeafName) -> Result<Arc<ServerConfig>, LeafError> {
        Ok(self.leaf_for(name).await?.config)
    }

    /// The leaf for `name`, and what to take a client's TLS connection with. Signing happens within the call: short work
    /// even with a large RSA CA (a few milliseconds).
    ///
    /// # Errors
    /// When the CA may not sign for this name or has expired, or nothing can be signed. Nothing of a failure is kept: the
    /// next call tries again.
    ///
    /// # Cancel safety
    /// A caller that goes away leaves the others waiting for the same name served.
    pub async fn leaf_for(&self, name: &LeafName) -> Result<Leaf, LeafError> {
        self.leaf_at(name, OffsetDateTime::now_utc()).await
    }

    async fn leaf_at(&self, name: &LeafName, now: OffsetDateTime) -> Result<Leaf, LeafError> {
        let authority = self.authorities.signer_at(now);
        if now >= authority.end() {
            return Err(LeafError::AuthorityExpired(date::text(authority.end())));
        }
        if !authority.permits(name) {
            return Err(LeafError::NotPermitted { name: name.to_string(), ca: authority.subject() });
        }
        let parent = if self.options.wildcard { name.parent_for_wildcard(authority) } else { None };
        let key = Key {
            name: name.clone(),
            day: now.unix_timestamp().div_euclid(SECONDS_PER_PERIOD),
            signer: authority.id(),
            wildcard: parent.is_some(),
        };
        let minted = AtomicBool::new(false);
        let sign = |names: Vec<SanType>| {
            let certified = self.shared.certified(authority, names, now)?;
            minted.store(true, Ordering::Relaxed);
            Ok::<_, LeafError>(certified)
        };
        let make = async {
            let certified = match parent {
                Some(parent) => {
                    let shared = Key { name: parent.clone(), ..key.clone() };
                    let names = vec![name.to_san()?, SanType::DnsName(format!("*.{parent}").try_into()?)];
                    let made = self.shared.wildcards.try_get_with(shared, async { sign(names) });
                    made.await.map_err(unshared)?
                }
                None => sign(vec![name.to_san()?])?,
            };
            self.shared.config(authority, name, certified)
        };
        let config = self.shared.configs.try_get_with(key.clone(), make).await.map_err(unshared)?;
        Ok(Leaf { config, minted: minted.load(Ordering::Relaxed) })
    }
}

/// Everybody who waited for the same leaf gets the same error.
fn unshared(error: Arc<LeafError>) -> LeafError {
    (*error).clone()
}

fn tls(error: rustls::Error) -> LeafError {
    LeafError::Tls(error.to_string())
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves").field("authorities", &self.authorities).finish_non_exhaustive()
    }
}

impl Shared {
    /// Signs.
    fn certified(
        &self,
        authority: &Authority,
        names: Vec<SanType>,
        now: OffsetDateTime,
    ) -> Result<Arc<CertifiedKey>, LeafError> {
        let leaf = self.leaf(authority, names, now)?;
        self.signed.fetch_add(1, Ordering::Relaxed);
        let chain = std::iter::once(leaf).chain(authority.chain().iter().cloned()).collect();
        Ok(Arc::new(CertifiedKey::new(chain, self.signing_key.clone())))
    }

    fn config(
        &self,
        authority: &Authority,
        name: &LeafName,
        certified: Arc<CertifiedKey>,
    ) -> Result<Arc<ServerConfig>, LeafError> {
        let mut config = ServerConfig::builder_with_provider(provider().clone())
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tickets = BoundTickets::new(self.ticket_keys.clone(), authority, &name.to_string());
        config.ticketer = Arc::new(tickets);
        // Everything is in the ticket. The default store would reserve 256 places per name.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    fn leaf(
        &self,
        authority: &Authority,
        names: Vec<SanType>,
        now: OffsetDateTime,
    ) -> Result<CertificateDer<'static>, SigningError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(text) = common_name(&names)
            && !authority.constrains_subjects()
        {
            params.distinguished_name.push(DnType::CommonName, text);
        }
        params.subject_alt_names = names;
        params.serial_number = Some(serial_number()?);
        params.not_before = now - BACKDATE;
        params.not_after = (now + LIFETIME).min(authority.end());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        authority.signer().sign(&params, &self.key)
    }
}

/// The name that people see first: the widest, if it is short enough. None for an address: where there is no DNS name beside
/// it, OpenSSL takes a common name for one, and a CA that is constrained to other names would not be believed.
fn common_name(names: &[SanType]) -> Option<&str> {
    let SanType::DnsName(name) = names.last()? else { return None };
    (name.as_str().len() <= MAX_COMMON_NAME).then_some(name.as_str())
}

impl From<rcgen::Error> for LeafError {
    fn from(error: rcgen::Error) -> Self {
        Self::Signing(error.into())
    }
}

// === impl LeafName ===

impl LeafName {
    pub(crate) fn as_server_name(&self) -> &ServerName<'static> {
        &self.0
    }

    fn to_san(&self) -> Result<SanType, LeafError> {
        Ok(match &self.0 {
            ServerName::IpAddress(ip) => SanType::IpAddress((*ip).into()),
            name => SanType::DnsName(name.to_str().as_ref().try_into()?),
        })
    }

    /// The name above this one, if all names right below it may share a leaf of this CA.
    fn parent_for_wildcard(&self, authority: &Authority) -> Option<Self> {
        if !matches!(self.0, ServerName::DnsName(_)) {
            return None;
        }
        let text = self.to_string();
        let (_, parent) = text.split_once('.')?;
        if !parent.contains('.') || !authority.permits_all_below(parent) {
            return None;
        }
        parent.parse().ok().filter(|it: &Self| matches!(it.0, ServerName::DnsName(_)))
    }
}

impl FromStr for LeafName {
    type Err = InvalidLeafName;

    /// Takes a host as it stands in an authority, without the port: IPv6 with or without brackets.
    fn from_str(host: &str) -> Result<Self, InvalidLeafName> {
        let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        let bare = bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase();
        ServerName::try_from(bare).map(Self).map_err(|_| InvalidLeafName)
    }
}

impl fmt::Display for LeafName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_str())
    }
}

impl fmt::Debug for LeafName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

    fn leaves() -> Leaves {
        Leaves::new(Arc::new(Authority::generate().unwrap())).unwrap()
    }

    fn name(text: &str) -> LeafName {
        text.parse().unwrap()
    }

    /// The certificate itself, as it is signed for a configuration.
    fn der(leaves: &Leaves, text: &str, now: OffsetDateTime) -> Vec<u8> {
        let names = vec![name(text).to_san().unwrap()];
        leaves.shared.leaf(leaves.authority(), names, now).unwrap().to_vec()
    }

    #[test]
    fn a_leaf_names_its_host_for_servers_only() {
        let leaves = leaves();
        for (host, expected) in [
            ("Registry.Example.", GeneralName::DNSName("registry.example")),
            ("10.0.0.7", GeneralName::IPAddress(&[10, 0, 0, 7])),
            (
                "[2001:db8::1]",
                GeneralName::IPAddress(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            ),
        ] {
            let der = der(&leaves, host, OffsetDateTime::now_utc());
            let (_, x509) = X509Certificate::from_der(&der).unwrap();
            assert_eq!(
                x509.subject_alternative_name().unwrap().unwrap().value.general_names,
                [expected],
                "{host}"
            );
            let usage = x509.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.server_auth && !usage.client_auth && !usage.any);
            assert!(x509.key_usage().unwrap().unwrap().value.digital_signature());
            assert!(!x509.is_ca());
        }
    }

    /// OpenSSL takes a common name that could be a DNS name for one where there is no other, and holds it against the CA's
    /// constraints.
    #[test]
    fn a_leaf_for_an_address_has_no_common_name() {
        let leaves = leaves();
        for host in ["192.0.2.7", "2001:db8::7"] {
            let der = der(&leaves, host, OffsetDateTime::now_utc());
            let (_, x509) = X509Certificate::from_der(&der).unwrap();
            assert_eq!(x509.subject().to_string(), "", "{host}");
            // RFC 5280 section 4.1.2.6: critical where the subject is empty.
            assert!(x509.subject_alternative_name().unwrap().unwrap().critical, "{host}");
        }
    }

    #[test]
    fn a_leaf_points_at_its_ca_and_not_at_its_key() {
        let leaves = leaves();
        let der = der(&leaves, "example.org", OffsetDateTime::now_utc());
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let (_, ca) = X509Certificate::from_der(leaves.authority().certificate_der()).unwrap();
        assert_eq!(leaf.issuer().as_raw(), ca.subject().as_raw());
        leaf.verify_signature(Some(ca.public_key())).unwrap();
        assert_ne!(leaf.public_key().raw, ca.public_key().raw);
        let id = |x509: &X509Certificate<'_>| {
            x509.iter_extensions().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(it) => {
                    it.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
        };
        assert!(id(&leaf).is_some());
        assert_eq!(id(&leaf), id(&ca));
    }

    #[test]
    fn a_leaf_lives_a_week_and_never_longer_than_its_ca() {
        let leaves = leaves();
        let end = leaves.authority().end();
        for (now, expected) in [
            (OffsetDateTime::now_utc(), OffsetDateTime::now_utc() + Duration::days(7)),
            (end - Duration::days(2), end),
        ] {
            let der = der(&leaves, "example.org", now);
            let (_, x509) = X509Certificate::from_der(&der).unwrap();
            let off = |date: i64, expected: OffsetDateTime| (date - expected.unix_timestamp()).abs();
            assert!(off(x509.validity().not_before.timestamp(), now - Duration::hours(1)) <= 1);
            assert!(off(x509.validity().not_after.timestamp(), expected) <= 1);
        }
    }

    #[test]
    fn serial_numbers_do_not_repeat() {
        let leaves = leaves();
        let serials: std::collections::HashSet<Vec<u8>> = (0..100)
            .map(|_| {
                let der = der(&leaves, "example.org", OffsetDateTime::now_utc());
                X509Certificate::from_der(&der).unwrap().1.raw_serial().to_vec()
            })
            .collect();
        assert_eq!(serials.len(), 100);
    }

    #[test]
    fn a_long_name_has_no_common_name_and_still_its_alternative_name() {
        let long = format!("{0}.{0}.example", "a".repeat(60));
        let der = der(&leaves(), &long, OffsetDateTime::now_utc());
        let (_, x509) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(x509.subject().iter().count(), 0);
        let names = x509.subject_alternative_name().unwrap().unwrap();
        // RFC 5280 section 4.1.2.6: critical where the subject is empty.
        assert!(names.critical);
        assert_eq!(names.value.general_names, [GeneralName::DNSName(&long)]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_that_ask_at_once_are_served_by_one_signature() {
        let leaves = leaves();
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let leaves = leaves.clone();
            asking.spawn(async move { leaves.config_for(&name("registry.example")).await.unwrap() });
        }
        let configs = asking.join_all().await;
        assert_eq!(leaves.signed(), 1);
        assert!(configs.iter().all(|config| Arc::ptr_eq(config, &configs[0])));
        leaves.config_for(&name("REGISTRY.example.")).await.unwrap();
        assert_eq!(leaves.signed(), 1, "one name however it is written");
        leaves.config_for(&name("other.example")).await.unwrap();
        assert_eq!(leaves.signed(), 2);
    }

    #[tokio::test]
    async fn a_leaf_is_signed_anew_each_day_and_not_after_the_cas_end() {
        let (leaves, name) = (leaves(), name("example.org"));
        let midnight = OffsetDateTime::now_utc().replace_time(time::Time::MIDNIGHT);
        for (hours, signed) in [(1, 1), (23, 1), (25, 2), (47, 2), (49, 3)] {
            leaves.leaf_at(&name, midnight + Duration::hours(hours)).await.unwrap();
            assert_eq!(leaves.signed(), signed, "after {hours} hours");
        }
        let error = leaves.leaf_at(&name, leaves.authority().end()).await.unwrap_err();
        assert!(
            error.to_string().starts_with("the CA that signs for intercepted hosts expired on 20"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_host_has_no_leaf() {
        for text in ["", "*.example", "a b", "example.org:443", "é.example", "[::1", "a..b", "fe80::1%eth0"]
        {
            assert_eq!(text.parse::<LeafName>(), Err(InvalidLeafName), "{text:?}");
        }
        assert_eq!(name("[::1]"), name("::1"));
        assert_eq!(name("under_score.example").to_string(), "under_score.example");
    }

    #[tokio::test]
    async fn names_beside_each_other_share_a_leaf_where_that_is_wanted() {
        let leaves = leaves().with(leaves().authority().clone(), LeafOptions { wildcard: true });
        for (host, signed) in [
            ("a.registry.example", 1),
            ("b.registry.example", 1),
            ("a.registry.example", 1),
            // Nothing below a name of one label; no addresses.
            ("registry.example", 2),
            ("mirror.example", 3),
            ("10.0.0.1", 4),
            ("10.0.0.2", 5),
            ("x.a.registry.example", 6),
        ] {
            leaves.leaf_for(&name(host)).await.unwrap();
            assert_eq!(leaves.signed(), signed, "{host}");
        }
    }

    #[tokio::test]
    async fn what_a_ca_may_not_sign_is_not_asked_of_it() {
        let permitted = crate::PermittedNames::new(["a.example.org".parse().unwrap()]);
        let authority = Arc::new(Authority::generate_for(&permitted).unwrap());
        let leaves = Leaves::new(authority.clone()).unwrap().with(authority, LeafOptions { wildcard: true });
        for host in ["b.example.org", "10.0.0.1"] {
            assert!(!leaves.can_sign(&name(host)));
            let error = leaves.leaf_for(&name(host)).await.unwrap_err().to_string();
            assert!(error.contains(&format!("may not sign for {host}: it is outside of")), "{error}");
        }
        assert_eq!(leaves.signed(), 0);
        // Its parent is outside, so it shares no leaf.
        leaves.leaf_for(&name("a.example.org")).await.unwrap();
        leaves.leaf_for(&name("x.a.example.org")).await.unwrap();
        leaves.leaf_for(&name("y.a.example.org")).await.unwrap();
        assert_eq!(leaves.signed(), 2);
    }

    #[tokio::test]
    async fn a_new_ca_signs_anew_and_keeps_what_the_old_one_signed() {
        let (old, new) = (leaves(), Arc::new(Authority::generate().unwrap()));
        let host = name("registry.example");
        let first = old.leaf_for(&host).await.unwrap();
        let renewed = old.with(new, LeafOptions::default());
        let second = renewed.leaf_for(&host).await.unwrap();
        assert!(first.minted && second.minted && !Arc::ptr_eq(&first.config, &second.config));
        let again = old.leaf_for(&host).await.unwrap();
        assert!(!again.minted && Arc::ptr_eq(&first.config, &again.config));
    }
}
