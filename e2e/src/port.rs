//! [`Silent`]: a port of loopback that nobody listens on.

use anyhow::Result;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// A port that refuses connections for as long as this is kept: it is taken, so that neither another server gets it by
/// chance nor a connection as its own end.
pub struct Silent {
    _socket: OwnedFd,
    /// Where.
    pub address: SocketAddr,
}

impl Silent {
    /// Takes one.
    pub fn take() -> Result<Self> {
        // A process that is started meanwhile would keep it.
        let taken = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&taken, &SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = SocketAddr::try_from(getsockname(&taken)?)?;
        Ok(Self { _socket: taken, address })
    }
}
