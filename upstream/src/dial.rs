//! From a host and a port to a TCP connection: resolve, permit, connect.

use crate::config::{Permit, Timeouts};
use crate::error::{Attempt, Kind, Stage, io_reason};
use crate::resolve::Resolver;
use crate::route::Lookup;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

/// How long one address is waited for before the next is tried beside it (RFC 8305 section 8, "Connection Attempt Delay").
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The probes before the kernel gives a silent connection up.
const KEEP_ALIVE_PROBES: u32 = 4;

/// Connects to hosts, and speaks TLS with them (see `tls`).
pub(crate) struct Dialer {
    pub(crate) permit: Permit,
    pub(crate) resolver: Resolver,
    pub(crate) timeouts: Timeouts,
    /// SO_MARK of every connection.
    pub(crate) mark: Option<u32>,
    pub(crate) recent: Recent,
}

impl Dialer {
    /// Connects to the first of the origin's permitted addresses that answers.
    ///
    /// # Cancel safety
    /// Dropping the future closes whatever was under way.
    pub(crate) async fn origin(&self, host: &str, port: u16, lookup: &Lookup) -> Result<TcpStream, Kind> {
        self.dial(host, port, lookup, Some(&self.permit)).await
    }

    /// Connects to a parent proxy. The operator named it, so nobody is asked for permission.
    pub(crate) async fn parent(&self, host: &str, port: u16, lookup: &Lookup) -> Result<TcpStream, Kind> {
        self.dial(host, port, lookup, None).await
    }

    async fn dial(
        &self,
        host: &str,
        port: u16,
        lookup: &Lookup,
        permit: Option<&Permit>,
    ) -> Result<TcpStream, Kind> {
        let after = self.timeouts.dial;
        let deadline = Instant::now() + after;
        let expired = |stage| move |_| Kind::Timeout { stage, after };

        let found =
            timeout_at(deadline, self.addresses(host, lookup)).await.map_err(expired(Stage::Resolve))??;
        let permitted = match permit {
            Some(permit) => permitted(host, port, &found, permit)?,
            None => found,
        };
        let targets = permitted.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        let mark = self.mark;
        let stream = timeout_at(deadline, connect(interleaved(targets), move |to| connect_to(to, mark)))
            .await
            .map_err(expired(Stage::Connect))??;
        self.recent.add(&stream);
        prepare(&stream, self.timeouts.keep_alive);
        Ok(stream)
    }

    async fn addresses(&self, host: &str, lookup: &Lookup) -> Result<Vec<IpAddr>, Kind> {
        let servers = match (lookup, host.parse()) {
            (Lookup::Given(addresses), _) => return Ok(addresses.to_vec()),
            (_, Ok(address)) => return Ok(vec![address]),
            (Lookup::Servers(servers), Err(_)) => Some(servers),
            (Lookup::AsOthers, Err(_)) => None,
        };
        self.resolver.resolve(host, servers).await
    }
}

/// Those that may be dialled; the first refusal when none may.
fn permitted(host: &str, port: u16, found: &[IpAddr], permit: &Permit) -> Result<Vec<IpAddr>, Kind> {
    let mut refusal = None;
    let mut permitted = Vec::with_capacity(found.len());
    for address in found {
        match permit(host, port, Some(*address)) {
            Ok(()) => permitted.push(*address),
            Err(reason) => refusal = refusal.or(Some(reason)),
        }
    }
    match refusal {
        Some(reason) if permitted.is_empty() => Err(Kind::NotPermitted { reason }),
        _ => Ok(permitted),
    }
}

/// The resolver's order, but with the address families taking turns, so that a broken one costs one delay (RFC 8305
/// section 4).
fn interleaved(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let first_is_ipv4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (preferred, others): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == first_is_ipv4);
    let mut others = others.into_iter();
    let mut order = VecDeque::new();
    for address in preferred {
        order.push_back(address);
        order.extend(others.next());
    }
    order.extend(others);
    order
}

/// The first connection that `to` makes to one of these.
async fn connect<F>(
    mut untried: VecDeque<SocketAddr>,
    to: impl Fn(SocketAddr) -> F,
) -> Result<TcpStream, Kind>
where
    F: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    let mut under_way = JoinSet::new();
    let mut failed = Vec::new();
    // The last reason why there was no address to connect from, and for how many.
    let mut homeless = (String::new(), 0);
    loop {
        if let Some(address) = untried.pop_front() {
            let attempt = to(address);
            under_way.spawn(async move { (address, attempt.await) });
        }
        tokio::select! {
            ended = under_way.join_next() => match ended {
                Some(Ok((_, Ok(stream)))) => return Ok(stream),
                // What this host lacks, it lacks for every address.
                Some(Ok((_, Err(error)))) if is_lack_of_ours(&error) => {
                    return Err(Kind::Exhausted { reason: io_reason(&error) });
                }
                Some(Ok((address, Err(error)))) => {
                    if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) {
                        homeless = (io_reason(&error), homeless.1 + 1);
                    }
                    failed.push(Attempt { address: address.ip(), reason: io_reason(&error) });
                }
                // An attempt neither panics nor is aborted while it is waited for.
                Some(Err(_)) => {}
                None if homeless.1 > 0 && homeless.1 == failed.len() => {
                    return Err(Kind::Exhausted { reason: homeless.0 });
                }
                None => return Err(Kind::Connect { attempts: failed }),
            },
            () = sleep(ATTEMPT_DELAY), if !untried.is_empty() => {}
        }
    }
}

/// Whether a socket could not even be made (socket(2)): the process or the host has no file descriptor or no memory. That
/// there is no address or port to connect from (connect(2), EADDRNOTAVAIL) is said of one address: a host whose IPv6 is
/// switched off says it of every address of IPv6, and of no other.
fn is_lack_of_ours(error: &io::Error) -> bool {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| ours.contains(&errno))
}

async fn connect_to(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(mark) = mark {
        // Unmarked, the connection would come back to us.
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(address).await
}

/// A connection works without these options, so a failure to set one is not a failure to connect.
fn prepare(stream: &TcpStream, keep_alive: Duration) {
    // Client-Finished and the request are two small writes: with Nagle's algorithm and delayed acknowledgement every new
    // connection costs 44 ms (measured).
    let nodelay = stream.set_nodelay(true);
    let probes = socket2::TcpKeepalive::new()
        .with_time(keep_alive)
        .with_interval(keep_alive)
        .with_retries(KEEP_ALIVE_PROBES);
    let keep_alive = socket2::SockRef::from(stream).set_tcp_keepalive(&probes);
    if let Err(error) = nodelay.and(keep_alive) {
        tracing::debug!(%error, "cannot set socket options towards an origin");
    }
}

// === Recent ===

/// Both ends of the connections that were made last.
#[derive(Default)]
pub(crate) struct Recent(Mutex<VecDeque<(SocketAddr, SocketAddr)>>);

impl Recent {
    /// What comes back comes back at once, so these are plenty.
    const KEPT: usize = 1024;

    fn add(&self, stream: &TcpStream) {
        let (Ok(local), Ok(remote)) = (stream.local_addr(), stream.peer_addr()) else { return };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= Self::KEPT {
            kept.pop_front();
        }
        kept.push_back((local, remote));
    }

    /// Whether one of them went from `local` to `remote`.
    pub(crate) fn has(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&(local, remote))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 443)).collect()
    }

    #[test]
    fn the_families_take_turns_in_the_resolvers_order() {
        let order = interleaved(addresses(&["fd00::1", "fd00::2", "fd00::3", "10.0.0.1"]));
        assert_eq!(order, addresses(&["fd00::1", "10.0.0.1", "fd00::2", "fd00::3"]));
    }

    #[test]
    fn only_permitted_addresses_remain() {
        let is_loopback = |ip: Option<IpAddr>| ip.is_some_and(|ip| ip.is_loopback());
        let permit: Permit =
            Arc::new(move |_, _, ip| if is_loopback(ip) { Err("loopback".to_owned()) } else { Ok(()) });
        let both: Vec<IpAddr> = ["127.0.0.1", "10.0.0.1"].map(|text| text.parse().unwrap()).into();
        assert_eq!(permitted("a", 443, &both, &permit), Ok(both[1..].to_vec()));
        let refused = Err(Kind::NotPermitted { reason: "loopback".to_owned() });
        assert_eq!(permitted("a", 443, &both[..1], &permit), refused);
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        // Nothing listens on this address at that port: the listener above is bound to 127.0.0.1 alone.
        let bad = SocketAddr::new("127.0.0.2".parse().unwrap(), good.port());
        let stream = connect(VecDeque::from([bad, good]), |to| connect_to(to, None)).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
    }

    #[tokio::test(start_paused = true)]
    async fn a_family_that_this_host_lacks_does_not_end_attempts_of_the_other() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let off = SocketAddr::new("2001:db8::1".parse().unwrap(), good.port());
        // As connect(2) with net.ipv6.conf.all.disable_ipv6, and with an origin that takes half a second.
        let to = move |address: SocketAddr| async move {
            if address == off {
                return Err(Errno::ADDRNOTAVAIL.into());
            }
            sleep(ATTEMPT_DELAY * 2).await;
            connect_to(address, None).await
        };
        for order in [[good, off], [off, good]] {
            let stream = connect(VecDeque::from(order), to).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), good);
        }
        let nothing = connect(VecDeque::from([off, off]), to).await.unwrap_err();
        assert!(matches!(nothing, Kind::Exhausted { .. }), "{nothing:?}");
    }

    #[tokio::test]
    async fn the_last_connections_are_remembered_by_both_ends() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let recent = Recent::default();
        let first = connect_to(address, None).await.unwrap();
        recent.add(&first);
        let local = first.local_addr().unwrap();
        assert!(recent.has(local, address));
        assert!(!recent.has(address, local) && !recent.has(local, "192.0.2.1:443".parse().unwrap()));
        let second = connect_to(address, None).await.unwrap();
        for _ in 0..Recent::KEPT {
            recent.add(&second);
        }
        assert!(!recent.has(local, address));
    }
}
