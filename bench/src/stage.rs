//! [`Stage`]: what all measurements share.

use crate::Size;
use crate::servers::{Blob, Darter, Kind, Nginx, caching, origin};
use crate::way::Way;
use anyhow::Result;
use darter_e2e::ca::{Ca, client_trusting};
use std::cell::OnceCell;
use std::path::Path;

/// An origin, and what stands before it: a daemon, and nginx as a cache.
pub(crate) struct Stage {
    pub(crate) size: Size,
    pub(crate) ca: Ca,
    pub(crate) darter: Darter,
    pub(crate) caching: Nginx,
    pub(crate) origin: Nginx,
    /// Warm.
    large: OnceCell<Blob>,
    tiny: OnceCell<Blob>,
    // Last: the others keep their files there.
    folder: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn set(size: Size) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("darter-bench-").tempdir()?;
        let ca = Ca::new("darter-bench")?;
        ca.write(&folder.path().join("ca.crt"))?;
        let origin = origin(folder.path(), &ca)?;
        let caching = caching(folder.path(), &ca, (origin.plain, origin.tls))?;
        let darter = Darter::start("darter", folder.path(), &origin, None)?;
        Ok(Self { size, ca, darter, caching, origin, large: OnceCell::new(), tiny: OnceCell::new(), folder })
    }

    /// A folder that goes with the stage.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A daemon of its own, which has nothing yet.
    pub(crate) fn fresh(&self, name: &str) -> Result<Darter> {
        Darter::start(name, self.folder(), &self.origin, None)
    }

    /// Straight to nginx as an origin, with or without TLS.
    pub(crate) fn to_nginx(&self, tls: bool) -> Result<Way> {
        self.way((self.origin.plain, self.origin.tls), tls)
    }

    /// To nginx as a cache, with or without TLS (on both sides then).
    pub(crate) fn to_caching(&self, tls: bool) -> Result<Way> {
        self.way((self.caching.plain, self.caching.tls), tls)
    }

    fn way(&self, (plain, with): (std::net::SocketAddr, std::net::SocketAddr), tls: bool) -> Result<Way> {
        match tls {
            false => Ok(Way::to(plain)),
            true => Ok(Way::to(with).with_tls(client_trusting(self.ca.pem())?)),
        }
    }

    /// To the daemon, with or without TLS (on both sides then).
    pub(crate) fn to_darter(&self, tls: bool) -> Result<Way> {
        if tls { self.darter.tls() } else { Ok(self.darter.plain()) }
    }

    /// New content at the origin.
    pub(crate) fn blob(&self, kind: Kind, seed: u64, length: u64) -> Result<Blob> {
        Blob::write(&self.origin.root(), kind, seed, length)
    }

    /// Large content that the daemon has.
    pub(crate) fn large(&self) -> Result<&Blob> {
        self.warm(&self.large, 1, self.size.bytes)
    }

    /// 4 KiB that the daemon has.
    pub(crate) fn tiny(&self) -> Result<&Blob> {
        self.warm(&self.tiny, 2, 4096)
    }

    fn warm<'a>(&'a self, cell: &'a OnceCell<Blob>, seed: u64, length: u64) -> Result<&'a Blob> {
        if cell.get().is_none() {
            let blob = self.blob(Kind::Named, seed, length)?;
            self.darter.warm(&blob)?;
            // Nobody else sets it.
            let _ = cell.set(blob);
        }
        Ok(cell.get().expect("set above"))
    }
}
