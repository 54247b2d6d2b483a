//! [`check_not_own`]: whether an address is one of this process's own ports. At a proxy port a request would come round; at
//! another ([`reserve`]) it would reach what asks nobody who he is, because it is meant for inside the network, where the
//! proxy's clients need not be. Which sockets a process listens on is a fact of the process, so they stand in one place for
//! all proxies in it.

use http::Uri;
use http::uri::Scheme;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Proxy ports.
static LISTENING: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());
/// The others.
static RESERVED: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());

/// Lets no request through the proxy to what this process serves at `address`, as long as the process lives: its pieces, its
/// metrics, its scheduler.
pub fn reserve(address: SocketAddr) {
    lock(&RESERVED).push(canonical(address));
}

/// For whoever may decide what is dialled.
///
/// # Errors
/// When whoever connects there gets to this process itself: a sentence for people.
pub fn check_not_own(ip: IpAddr, port: u16) -> Result<(), String> {
    let address = SocketAddr::new(ip.to_canonical(), port);
    if is_own(ip, port) {
        return Err(format!(
            "destination {address} is this proxy itself, where the request would come round"
        ));
    }
    if is_one_of(&lock(&RESERVED), ip, port) {
        return Err(format!(
            "destination {address} is this daemon's own port, which is for other daemons and its operator"
        ));
    }
    Ok(())
}

fn is_own(ip: IpAddr, port: u16) -> bool {
    is_one_of(&lock(&LISTENING), ip, port)
}

/// A listener on all addresses is reached at each that this host has.
fn is_one_of(sockets: &[SocketAddr], ip: IpAddr, port: u16) -> bool {
    let ip = ip.to_canonical();
    // Two system calls, for a port that is almost never the one.
    let reaches = |it: &SocketAddr| match it.ip() {
        all if all.is_unspecified() => (it.is_ipv6() || ip.is_ipv4()) && is_local(ip),
        one => one == ip,
    };
    sockets.iter().any(|it| it.port() == port && reaches(it))
}

/// Whether a URL's host and port are, as the system's resolver has it. Asks it only where the port is one of ours.
pub(crate) async fn names_own(uri: &Uri) -> bool {
    let usual = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let (Some(host), port) = (uri.host(), uri.port_u16().unwrap_or(usual)) else { return false };
    if !lock(&LISTENING).iter().any(|it| it.port() == port) {
        return false;
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    tokio::net::lookup_host((host, port)).await.is_ok_and(|mut all| all.any(|it| is_own(it.ip(), port)))
}

/// Only an address of this host can be bound.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

/// A socket that is listened on until this is dropped.
pub(crate) struct Listening(SocketAddr);

impl Listening {
    pub(crate) fn on(address: SocketAddr) -> Self {
        let address = canonical(address);
        lock(&LISTENING).push(address);
        Self(address)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut listening = lock(&LISTENING);
        if let Some(index) = listening.iter().position(|it| *it == self.0) {
            listening.swap_remove(index);
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn lock(sockets: &'static Mutex<Vec<SocketAddr>>) -> MutexGuard<'static, Vec<SocketAddr>> {
    // Nothing panics while it is held.
    sockets.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_reached_at_its_address_and_on_all_of_this_hosts() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        // Ports that nothing else in this process listens on.
        let one = Listening::on("127.0.0.1:1".parse().unwrap());
        let all = Listening::on("0.0.0.0:2".parse().unwrap());
        assert!(is_own(ip("127.0.0.1"), 1) && is_own(ip("::ffff:127.0.0.1"), 1));
        assert!(!is_own(ip("127.0.0.2"), 1) && !is_own(ip("127.0.0.1"), 3));
        assert!(is_own(ip("127.0.0.1"), 2) && is_own(ip("127.0.0.2"), 2) && is_own(ip("0.0.0.0"), 2));
        // Of no host.
        assert!(!is_own(ip("192.0.2.1"), 2));
        drop((one, all));
        assert!(!is_own(ip("127.0.0.1"), 1) && !is_own(ip("127.0.0.1"), 2));
    }

    #[tokio::test]
    async fn a_url_without_a_port_names_the_one_of_its_scheme() {
        let _tls = Listening::on("127.0.0.1:443".parse().unwrap());
        for (uri, own) in [("https://127.0.0.1/ca.crt", true), ("http://127.0.0.1/ca.crt", false)] {
            assert_eq!(names_own(&uri.parse().unwrap()).await, own, "{uri}");
        }
    }
}
