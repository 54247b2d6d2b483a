//! [`Destinations`]: where requests may go (`proxy.whiteList`), with the refusals that stand even when the list is empty.
//!
//! Two questions are asked about every destination: [`Destinations::check_name`] before its name is resolved, and
//! [`Destinations::check_address`] for every address that it resolves to, just before that address is dialled. The second
//! is the one that counts: a name can be made to resolve to anything (DNS rebinding). Where nothing is resolved here (a
//! parent proxy does it) the first is all there is, so it refuses what it can.
//!
//! The standing refusals: loopback, link-local, unspecified and multicast addresses, and the metadata services of clouds,
//! which hand credentials to whoever reaches them from the right machine. Only an entry that *names* such a place lifts
//! its refusal: an address or network within it, or its exact host name. An expression never does, nor does `0.0.0.0/0`.

#[cfg(test)]
mod tests;

use crate::target::Host;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use regex::Regex;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where requests may go.
#[derive(Debug, Clone, Default)]
pub struct Destinations {
    white_list: Vec<WhiteListEntry>,
}

/// One entry of `proxy.whiteList`. It covers a destination whose port it covers and that it names by `host` or matches by
/// `regex`. An entry with neither covers every host.
#[derive(Debug, Clone, Default)]
pub struct WhiteListEntry {
    /// Names a host, an address or a network.
    pub host: Option<HostPattern>,
    /// Searched for in the host as the client names it: a lower-case name or an address, without the port.
    pub regex: Option<Regex>,
    /// The ports; none listed means all.
    pub ports: Vec<u16>,
}

/// The `host` of a white list entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// Exactly this name.
    Name(String),
    /// This address (a network of one) or every address in this network.
    Net(IpNet),
}

/// A `host` that is no name, address or network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a host name, an IP address, or a network like 127.0.0.0/8")]
pub struct InvalidHostPattern;

/// Why a request may not go where it wants. Displays as one line of printable ASCII that fits a reason phrase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationRefused {
    /// The destination lies where no request may go unless the white list names it.
    #[error("destination {host} {is} {place}; list it in proxy.whiteList to allow it", is = relation(*resolved))]
    Standing {
        /// The host as it was asked for.
        host: Host,
        /// The address that it resolved to, where it is not the host itself.
        resolved: Option<IpAddr>,
        /// What kind of place that is.
        place: Place,
    },
    /// The white list has entries, and none covers the destination.
    #[error("destination {} is not in proxy.whiteList", authority(host, *port))]
    NotListed {
        /// The host as it was asked for.
        host: Host,
        /// The port as it was asked for.
        port: u16,
    },
    /// The host is neither a DNS name nor an address.
    #[error("the destination is neither a DNS name nor an IP address")]
    Malformed,
}

/// A kind of place where no request may go unless the white list names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The metadata service of a cloud.
    Metadata,
    /// This machine itself.
    Loopback,
    /// What stands for no address, or for all: 0.0.0.0 reaches this machine, too.
    Unspecified,
    /// Only reachable on the same link; addresses that machines gave themselves.
    LinkLocal,
    /// Groups and everybody.
    Multicast,
}

// === impl Destinations ===

impl Destinations {
    /// The rules of this white list. Without an entry every destination is allowed but those of the standing refusals.
    pub fn new(white_list: Vec<WhiteListEntry>) -> Self {
        Self { white_list }
    }

    /// Whether a request may try to go to `host`, a name or an address. For a name, its addresses must be checked, too.
    ///
    /// # Errors
    /// When it may not, whatever the name resolves to.
    pub fn check_name(&self, host: &str, port: u16) -> Result<(), DestinationRefused> {
        self.check_host(&host.parse().map_err(|_| DestinationRefused::Malformed)?, port)
    }

    /// As [`Self::check_name`].
    ///
    /// # Errors
    /// As [`Self::check_name`].
    pub fn check_host(&self, host: &Host, port: u16) -> Result<(), DestinationRefused> {
        let name = match host {
            Host::Ip(ip) => return self.check(host, port, *ip),
            Host::Name(name) => name,
        };
        if let Some(place) = Place::of_name(name)
            && !self.covering(port).any(|entry| entry.lifts(host, place, None))
        {
            return Err(DestinationRefused::Standing { host: host.clone(), resolved: None, place });
        }
        // What a network in the list covers shows only when the name is resolved.
        let may_be_listed = |entry: &WhiteListEntry| entry.is_network() || entry.covers(host, None);
        if self.white_list.is_empty() || self.covering(port).any(may_be_listed) {
            Ok(())
        } else {
            Err(DestinationRefused::NotListed { host: host.clone(), port })
        }
    }

    /// As [`Self::check_name`] for a destination whose name is never resolved here, because a parent proxy does it: there is
    /// no second question, so an entry that lists a network covers no name.
    ///
    /// # Errors
    /// When no request may go there.
    pub fn check_unresolved(&self, host: &str, port: u16) -> Result<(), DestinationRefused> {
        let host: Host = host.parse().map_err(|_| DestinationRefused::Malformed)?;
        self.check_host(&host, port)?;
        let is_judged = matches!(host, Host::Ip(_)) || self.white_list.is_empty();
        if is_judged || self.covering(port).any(|entry| entry.covers(&host, None)) {
            Ok(())
        } else {
            Err(DestinationRefused::NotListed { host, port })
        }
    }

    /// Whether a connection for `host`, as the client named it, may be made to `address`, which it resolved to.
    ///
    /// # Errors
    /// When it may not; another address of the same name may be allowed.
    pub fn check_address(&self, host: &str, port: u16, address: IpAddr) -> Result<(), DestinationRefused> {
        self.check(&host.parse().map_err(|_| DestinationRefused::Malformed)?, port, address)
    }

    fn check(&self, host: &Host, port: u16, address: IpAddr) -> Result<(), DestinationRefused> {
        for address in every_meaning(address) {
            if let Some(place) = Place::of_address(address)
                && !self.covering(port).any(|entry| entry.lifts(host, place, Some(address)))
            {
                let resolved = (*host != Host::Ip(address)).then_some(address);
                return Err(DestinationRefused::Standing { host: host.clone(), resolved, place });
            }
        }
        if self.white_list.is_empty() || self.covering(port).any(|entry| entry.covers(host, Some(address))) {
            Ok(())
        } else {
            Err(DestinationRefused::NotListed { host: host.clone(), port })
        }
    }

    fn covering(&self, port: u16) -> impl Iterator<Item = &WhiteListEntry> {
        self.white_list.iter().filter(move |entry| entry.ports.is_empty() || entry.ports.contains(&port))
    }
}

// === impl WhiteListEntry ===

impl WhiteListEntry {
    fn is_network(&self) -> bool {
        matches!(self.host, Some(HostPattern::Net(_)))
    }

    fn covers(&self, host: &Host, address: Option<IpAddr>) -> bool {
        let named = match (&self.host, host) {
            (Some(HostPattern::Name(entry)), Host::Name(name)) => entry == name,
            (Some(HostPattern::Net(net)), _) => address.is_some_and(|ip| net.contains(&ip.to_canonical())),
            _ => false,
        };
        let anything = self.host.is_none() && self.regex.is_none();
        anything || named || self.regex.as_ref().is_some_and(|regex| regex.is_match(&host.to_string()))
    }

    /// Whether this entry names the place itself. Without an address (not resolved yet) a network within it is enough.
    fn lifts(&self, host: &Host, place: Place, address: Option<IpAddr>) -> bool {
        match (&self.host, host) {
            (Some(HostPattern::Net(net)), _) => {
                // A network that is wider than the place (0.0.0.0/0, 100.64.0.0/10) was not written to name it.
                place.networks().iter().any(|whole| whole.contains(net))
                    && address.is_none_or(|ip| net.contains(&ip))
            }
            // Listing a name is also how an outside host is allowed at all. If its zone falls into wrong hands it may
            // point anywhere, so a mere name opens what names of this machine and of its links have: not the metadata
            // service, unless it is that service's own name.
            (Some(HostPattern::Name(entry)), Host::Name(name)) if entry == name => match place {
                Place::Loopback | Place::LinkLocal => true,
                Place::Metadata => Place::of_name(name) == Some(Place::Metadata),
                Place::Unspecified | Place::Multicast => false,
            },
            _ => false,
        }
    }
}

impl std::str::FromStr for HostPattern {
    type Err = InvalidHostPattern;

    fn from_str(text: &str) -> Result<Self, InvalidHostPattern> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Net(net.trunc()));
        }
        match text.parse() {
            Ok(Host::Ip(ip)) => Ok(Self::Net(ip.into())),
            Ok(Host::Name(name)) => Ok(Self::Name(name)),
            Err(_) => Err(InvalidHostPattern),
        }
    }
}

// === impl Place ===

/// Addresses at which clouds serve metadata and credentials to their machines.
const METADATA: &[IpNet] = &[
    v4([169, 254, 169, 254], 32), // AWS, Google, Azure, OpenStack, Oracle, IBM, DigitalOcean and others
    v4([169, 254, 170, 2], 32),   // credentials of AWS ECS tasks
    v4([169, 254, 170, 23], 32),  // credentials of AWS EKS pods
    v4([169, 254, 0, 23], 32),    // Tencent
    v4([100, 100, 100, 200], 32), // Alibaba
    v4([168, 63, 129, 16], 32),   // Azure's host services
    v4([192, 0, 0, 192], 32),     // Oracle, older
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), // AWS
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128), // credentials of AWS EKS pods
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), // Google
];
const METADATA_NAMES: &[&str] = &[
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.tencentyun.com",
    "api.metadata.cloud.ibm.com",
];
const LOOPBACK: &[IpNet] = &[v4([127, 0, 0, 0], 8), v6([0, 0, 0, 0, 0, 0, 0, 1], 128)];
/// Linux takes all of 0.0.0.0/8 for "this network" and 0.0.0.0 for this machine.
const UNSPECIFIED: &[IpNet] = &[v4([0, 0, 0, 0], 8), v6([0; 8], 128)];
const LINK_LOCAL: &[IpNet] = &[v4([169, 254, 0, 0], 16), v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10)];
const MULTICAST: &[IpNet] =
    &[v4([224, 0, 0, 0], 4), v4([255, 255, 255, 255], 32), v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8)];

impl Place {
    /// The narrower before the wider: a metadata address is link-local, too, but must be lifted as what it is.
    const ALL: [Self; 5] =
        [Self::Metadata, Self::Loopback, Self::Unspecified, Self::LinkLocal, Self::Multicast];

    const fn networks(self) -> &'static [IpNet] {
        match self {
            Self::Metadata => METADATA,
            Self::Loopback => LOOPBACK,
            Self::Unspecified => UNSPECIFIED,
            Self::LinkLocal => LINK_LOCAL,
            Self::Multicast => MULTICAST,
        }
    }

    fn of_address(address: IpAddr) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.networks().iter().any(|net| net.contains(&address)))
    }

    /// RFC 6761 section 6.3 makes `localhost` and all below it names of this machine.
    fn of_name(name: &str) -> Option<Self> {
        if METADATA_NAMES.contains(&name) {
            Some(Self::Metadata)
        } else if name == "localhost" || name.ends_with(".localhost") {
            Some(Self::Loopback)
        } else {
            None
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metadata => "a cloud metadata service",
            Self::Loopback => "a loopback address",
            Self::Unspecified => "an unspecified address",
            Self::LinkLocal => "a link-local address",
            Self::Multicast => "a multicast address",
        })
    }
}

/// The address, and every IPv4 address that it stands for: a translator or tunnel on the way would take it there. The
/// prefix of somebody's own NAT64 cannot be known here.
fn every_meaning(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let embedded = match address {
        // ::1 and :: are no IPv4-compatible forms of 0.0.0.1 and 0.0.0.0, but loopback and unspecified themselves.
        IpAddr::V6(v6) if !v6.is_loopback() && !v6.is_unspecified() => embedded_v4(v6),
        _ => [None, None],
    };
    std::iter::once(address).chain(embedded.into_iter().flatten().map(IpAddr::V4))
}

fn embedded_v4(v6: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match v6.segments() {
        // IPv4-compatible and IPv4-mapped (RFC 4291 section 2.5.5), and IPv4-translated (RFC 2765 section 2.1).
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => [v4(high, low), None],
        // NAT64: the well-known prefix (RFC 6052 section 2.1), and the local one (RFC 8215) as it is used with /96.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => {
            [v4(high, low), None]
        }
        // 6to4 (RFC 3056 section 2).
        [0x2002, high, low, ..] => [v4(high, low), None],
        // Teredo (RFC 4380 section 4): its server, and its client with the bits flipped.
        [0x2001, 0, high, low, _, _, flipped_high, flipped_low] => {
            [v4(high, low), v4(!flipped_high, !flipped_low)]
        }
        // ISATAP (RFC 5214 section 6.1).
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => [v4(high, low), None],
        _ => [None, None],
    }
}

const fn v4(octets: [u8; 4], prefix: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(segments: [u16; 8], prefix: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = segments;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix))
}

fn relation(resolved: Option<IpAddr>) -> String {
    resolved.map_or_else(|| "is".to_owned(), |address| format!("leads to {address},"))
}

fn authority(host: &Host, port: u16) -> String {
    match host {
        Host::Ip(IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
        host => format!("{host}:{port}"),
    }
}
