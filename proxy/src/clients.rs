//! [`Clients`]: who may use the proxy, and how much one of them may ask for.
//!
//! Loopback is an address like any other where it is about *who*: behind a forwarder on this host (ssh, a service mesh, a
//! load balancer without the PROXY protocol) everybody comes from there, so that it is let in only where it is listed. It
//! is no client where it is about *how much*: all of this host's programs, or all clients of such a forwarder, share it, and
//! a limit meant for one of them would be one for all.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv6Addr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

/// What an operator says about clients by their addresses. Nothing said: everybody may, without a limit.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    /// Whom the proxy serves; empty: everybody.
    pub allowed: Vec<IpNet>,
    /// How much each of them may ask for.
    pub per_client: PerClient,
}

/// What bounds one client; `None`: nothing does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerClient {
    /// Connections at once; more are closed.
    pub connections: Option<NonZeroUsize>,
    /// How fast requests may come.
    pub requests: Option<Rate>,
}

/// A rate, and how much of it may have been saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many in each second for as long as it lasts.
    pub per_second: NonZeroU32,
    /// So many at once by whoever has asked for nothing for a while.
    pub burst: NonZeroU32,
}

/// Whose requests and connections count together: an IPv4 address, or the /64 of an IPv6 address, because that is the least
/// that one host gets (RFC 6177), and it may have all of its 2^64 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Client(IpAddr);

impl Clients {
    /// Whether whoever comes from there may use the proxy.
    pub(crate) fn allow(&self, from: IpAddr) -> bool {
        self.allowed.is_empty() || self.entry_for(from).is_some()
    }

    /// The first entry of the list that has this address.
    pub(crate) fn entry_for(&self, from: IpAddr) -> Option<usize> {
        let from = from.to_canonical();
        self.allowed.iter().position(|net| net.contains(&from))
    }
}

impl Rate {
    /// How long one request takes up.
    pub(crate) fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second.get()
    }

    /// How far a client may be ahead of the rate when it asks for one more.
    pub(crate) fn tolerance(self) -> Duration {
        self.interval() * (self.burst.get() - 1)
    }
}

impl Client {
    /// `None`: this host itself, whose programs are not one client.
    pub(crate) fn at(address: IpAddr) -> Option<Self> {
        let address = match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
            v4 => v4,
        };
        // ::1 has become ::, which no client has.
        (!address.is_loopback() && !address.is_unspecified()).then_some(Self(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nobody_but_who_is_listed_may_come_and_everybody_where_nobody_is() {
        let allowed = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()).to_vec();
        let clients = Clients { allowed, ..Clients::default() };
        for (from, may) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("fd00::1", true),
            ("11.0.0.1", false),
            ("::ffff:11.0.0.1", false),
            ("127.0.0.1", false),
            ("::1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(clients.allow(ip(from)), may, "{from}");
            assert!(Clients::default().allow(ip(from)));
        }
    }

    #[test]
    fn a_host_of_ipv6_is_one_client_at_all_its_addresses_and_this_host_is_none() {
        let client = |text| Client::at(ip(text));
        assert_eq!(client("2001:db8:0:1::1"), client("2001:db8:0:1:ffff::2"));
        assert_ne!(client("2001:db8:0:1::1"), client("2001:db8:0:2::1"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        for own in ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(client(own), None, "{own}");
        }
    }
}
