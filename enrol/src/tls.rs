//! TLS 1.3 between members: both sides show a certificate, and both judge what they are shown by the same words.

use crate::member::{Member, Role};
use crate::membership::State;
use crate::refused::Refused;
use darter_certs::{Judged, MemberRoots, Named, crypto_provider, sha256};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;

/// What somebody without a certificate says (ALPN) to be heard all the same, by the enrolment service alone.
pub(crate) const JOINING: &[u8] = b"darter-join/1";

/// Shows what the process is now.
#[derive(Debug, Clone)]
struct Now(Arc<State>);

/// For members that call.
pub(crate) fn server(state: &Arc<State>) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(crypto_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(members(state))
        .with_cert_resolver(Arc::new(Now(Arc::clone(state))));
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// For hosts that join.
pub(crate) fn server_of_joining(state: &Arc<State>) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(crypto_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Now(Arc::clone(state))));
    config.alpn_protocols = vec![JOINING.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For calling members. With `resume`, sessions are resumed: then what was checked in a session's first handshake must hold
/// for as long as it may be resumed.
pub(crate) fn client(state: &Arc<State>, resume: bool) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(crypto_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(members(state))
        .with_client_cert_resolver(Arc::new(Now(Arc::clone(state))));
    // Names here are ids of ours, to find sessions by.
    config.enable_sni = false;
    if !resume {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// For a host that joins, and knows no more than the SHA-256 of the cluster's CA.
pub(crate) fn client_of_joining(ca: [u8; 32]) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(crypto_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Judged::by(move |shown, chain, now| pinned(&ca, shown, chain, now)))
        .with_no_client_auth();
    config.alpn_protocols = vec![JOINING.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

impl ResolvesServerCert for Now {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.shown()
    }
}

impl ResolvesClientCert for Now {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.shown()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes whom the process believes now. Whether it is the one that was called is looked at before anything is said to it.
fn members(state: &Arc<State>) -> Arc<Judged> {
    let state = Arc::clone(state);
    Judged::by(move |shown, _, now| state.judge(shown, now).map(drop).map_err(Refused::into_tls))
}

/// Takes a scheduler whose chain leads to the CA with this SHA-256.
fn pinned(
    pin: &[u8; 32],
    shown: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    let stranger = || Refused::Stranger.into_tls();
    let ca = chain.iter().find(|it| sha256(it) == *pin).ok_or_else(stranger)?;
    let roots = MemberRoots::new(vec![ca.clone().into_owned()]).map_err(|_| stranger())?;
    roots.check(shown, now)?;
    let named = Named::of(shown).map_err(|_| stranger())?;
    match Member::of(&named) {
        Some(Member { role: Role::Scheduler, .. }) => Ok(()),
        _ => Err(Refused::Other.into_tls()),
    }
}
