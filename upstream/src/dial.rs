//! From a host and a port to a TCP connection: resolve, permit, connect.

use crate::config::{Permit, Timeouts};
use crate::error::{Attempt, Kind, Stage, io_reason};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

/// How long one address is waited for before the next is tried beside it (RFC 8305 section 8, "Connection Attempt Delay").
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The probes before the kernel gives a silent connection up.
const KEEP_ALIVE_PROBES: u32 = 4;

/// Connects to the first of the host's permitted addresses that answers.
///
/// # Cancel safety
/// Dropping the future closes whatever was under way.
pub(crate) async fn dial(
    host: &str,
    port: u16,
    permit: &Permit,
    timeouts: &Timeouts,
) -> Result<TcpStream, Kind> {
    let deadline = Instant::now() + timeouts.dial;
    let expired = |stage| move |_| Kind::Timeout { stage, after: timeouts.dial };

    let resolved = timeout_at(deadline, resolve(host, port)).await.map_err(expired(Stage::Resolve))??;
    let permitted = permitted(host, port, &resolved, permit)?;
    let stream = timeout_at(deadline, connect(interleaved(permitted)))
        .await
        .map_err(expired(Stage::Connect))?
        .map_err(|attempts| Kind::Connect { attempts })?;
    prepare(&stream, timeouts.keep_alive);
    Ok(stream)
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Kind> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| Kind::Resolve { reason: resolver_reason(&error) })?
        .collect();
    if found.is_empty() {
        return Err(Kind::Resolve { reason: "it has no address".to_owned() });
    }
    Ok(found)
}

/// The resolver's words without the standard library's preface.
fn resolver_reason(error: &std::io::Error) -> String {
    let text = io_reason(error);
    text.strip_prefix("failed to lookup address information: ").map(str::to_owned).unwrap_or(text)
}

/// Those that may be dialled; the first refusal when none may.
fn permitted(
    host: &str,
    port: u16,
    resolved: &[SocketAddr],
    permit: &Permit,
) -> Result<Vec<SocketAddr>, Kind> {
    let mut refusal = None;
    let mut permitted = Vec::with_capacity(resolved.len());
    for address in resolved {
        match permit(host, port, address.ip()) {
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

async fn connect(mut untried: VecDeque<SocketAddr>) -> Result<TcpStream, Vec<Attempt>> {
    let mut under_way = JoinSet::new();
    let mut failed = Vec::new();
    loop {
        if let Some(address) = untried.pop_front() {
            under_way.spawn(async move { (address, TcpStream::connect(address).await) });
        }
        tokio::select! {
            ended = under_way.join_next() => match ended {
                Some(Ok((_, Ok(stream)))) => return Ok(stream),
                Some(Ok((address, Err(error)))) => {
                    failed.push(Attempt { address: address.ip(), reason: io_reason(&error) });
                }
                // An attempt neither panics nor is aborted while it is waited for.
                Some(Err(_)) => {}
                None => return Err(failed),
            },
            () = sleep(ATTEMPT_DELAY), if !untried.is_empty() => {}
        }
    }
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
        let permit: Permit =
            Arc::new(|_, _, ip| if ip.is_loopback() { Err("loopback".to_owned()) } else { Ok(()) });
        let both = addresses(&["127.0.0.1", "10.0.0.1"]);
        assert_eq!(permitted("a", 443, &both, &permit), Ok(addresses(&["10.0.0.1"])));
        let refused = Err(Kind::NotPermitted { reason: "loopback".to_owned() });
        assert_eq!(permitted("a", 443, &both[..1], &permit), refused);
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        // Nothing listens on this address at that port: the listener above is bound to 127.0.0.1 alone.
        let bad = SocketAddr::new("127.0.0.2".parse().unwrap(), good.port());
        let stream = connect(VecDeque::from([bad, good])).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
    }
}
