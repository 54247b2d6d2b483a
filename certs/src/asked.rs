//! [`ClientAuth`]: whether a server asked in a handshake who we are, and what it was shown.
//!
//! The TLS library asks a resolver for our certificate when a server asks for it, and tells nobody. It does so while the
//! handshake is polled, on the thread that polls it. So it is noted there, and one configuration, whose sessions can be
//! resumed, goes on serving all connections.

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use std::cell::Cell;
use std::sync::Arc;

thread_local! {
    static NOTED: Cell<ClientAuth> = const { Cell::new(ClientAuth::NotAsked) };
}

/// What came of a server's question who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// It did not ask.
    NotAsked,
    /// It asked, and we had nothing to show.
    Nothing,
    /// It asked, and was shown our certificate.
    Shown,
}

impl ClientAuth {
    /// Does a step of a handshake, with a configuration of [`crate::client_config`], and says what the server asked in it.
    pub fn during<T>(step: impl FnOnce() -> T) -> (T, Self) {
        NOTED.set(Self::NotAsked);
        (step(), NOTED.get())
    }
}

/// Shows what another resolver does, and notes it.
#[derive(Debug)]
pub(crate) struct Noted(pub(crate) Arc<dyn ResolvesClientCert>);

impl ResolvesClientCert for Noted {
    fn resolve(
        &self,
        root_hint_subjects: &[&[u8]],
        sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.resolve(root_hint_subjects, sigschemes);
        NOTED.set(if shown.is_some() { ClientAuth::Shown } else { ClientAuth::Nothing });
        shown
    }

    fn only_raw_public_keys(&self) -> bool {
        self.0.only_raw_public_keys()
    }

    fn has_certs(&self) -> bool {
        self.0.has_certs()
    }
}
