//! [`Names`]: from what the operator wrote to the schedulers that there are now.
//!
//! Every daemon has to come to the same set by the same names, or they would ask different schedulers about one task. So a
//! member is always an address with its port, whatever led to it. A name that cannot be resolved stands for what it stood
//! for before; one that never could stands for itself, so that a log has something to name.

use darter_upstream::Upstream;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Schedulers at once: each costs a connection and a life line.
const MAX_MEMBERS: usize = 64;

/// A scheduler's address that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error(
    "{address:?} is no scheduler address: expected HOST:PORT, or the name of a service like _darter._tcp.example.org"
)]
pub struct InvalidAddress {
    address: String,
}

/// The schedulers that stand behind what is written, as every daemon calls them now.
///
/// # Errors
/// When something of it is no address.
pub async fn schedulers(written: &[String], upstream: &Upstream) -> Result<Vec<String>, InvalidAddress> {
    Ok(Names::parse(written)?.resolve(upstream).await.into_iter().collect())
}

/// Whoever knows names.
pub(crate) trait Lookup {
    /// The addresses of a name; `None` when nobody knows now.
    async fn addresses(&self, name: &str) -> Option<Vec<IpAddr>>;
    /// The targets of a service.
    async fn services(&self, name: &str) -> Option<Vec<(String, u16)>>;
}

impl Lookup for Upstream {
    async fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let found = Self::addresses(self, name).await;
        found.inspect_err(|error| tracing::warn!(name, %error, "cannot find a scheduler")).ok()
    }

    async fn services(&self, name: &str) -> Option<Vec<(String, u16)>> {
        let found = Self::services(self, name).await;
        found.inspect_err(|error| tracing::warn!(name, %error, "cannot find the schedulers")).ok()
    }
}

/// What the operator wrote, and what it stood for last.
#[derive(Debug)]
pub(crate) struct Names {
    written: Vec<Name>,
    last: HashMap<Name, BTreeSet<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    Address(SocketAddr),
    Host { name: String, port: u16 },
    Service { name: String },
}

impl Names {
    pub(crate) fn parse(written: &[String]) -> Result<Self, InvalidAddress> {
        let written = written
            .iter()
            .map(|address| Name::parse(address).ok_or_else(|| InvalidAddress { address: address.clone() }));
        Ok(Self { written: written.collect::<Result<_, _>>()?, last: HashMap::new() })
    }

    /// Whether what they stand for may change.
    pub(crate) fn may_change(&self) -> bool {
        self.written.iter().any(|name| !matches!(name, Name::Address(_)))
    }

    /// What they are before anybody was asked.
    pub(crate) fn unresolved(&self) -> BTreeSet<String> {
        self.written.iter().filter(|name| !matches!(name, Name::Service { .. })).map(Name::text).collect()
    }

    /// The members now.
    pub(crate) async fn resolve(&mut self, lookup: &impl Lookup) -> BTreeSet<String> {
        let mut members = BTreeSet::new();
        for name in &self.written {
            if let Some(found) = name.resolve(lookup).await {
                self.last.insert(name.clone(), found);
            }
            match self.last.get(name) {
                Some(found) => members.extend(found.iter().cloned()),
                None if matches!(name, Name::Service { .. }) => {}
                None => drop(members.insert(name.text())),
            }
        }
        members.into_iter().take(MAX_MEMBERS).collect()
    }
}

impl Name {
    /// A name without a port that begins like that of a service (RFC 2782) is one.
    fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        let is_name = |name: &str| {
            !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        };
        match text.rsplit_once(':') {
            Some((name, port)) if is_name(name) => {
                Some(Self::Host { name: name.to_owned(), port: port.parse().ok()? })
            }
            None if text.starts_with('_') && is_name(text) => Some(Self::Service { name: text.to_owned() }),
            _ => None,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Address(address) => address.to_string(),
            Self::Host { name, port } => format!("{name}:{port}"),
            Self::Service { name } => name.clone(),
        }
    }

    async fn resolve(&self, lookup: &impl Lookup) -> Option<BTreeSet<String>> {
        let at =
            |found: Vec<IpAddr>, port| found.into_iter().map(move |ip| SocketAddr::new(ip, port).to_string());
        match self {
            Self::Address(address) => Some(BTreeSet::from([address.to_string()])),
            Self::Host { name, port } => Some(at(lookup.addresses(name).await?, *port).collect()),
            Self::Service { name } => {
                let mut members = BTreeSet::new();
                for (target, port) in lookup.services(name).await?.into_iter().take(MAX_MEMBERS) {
                    // One that is missing would take its tasks to others: then all stay as they were.
                    members.extend(at(lookup.addresses(&target).await?, port));
                }
                Some(members)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows this much.
    #[derive(Default)]
    struct Zone {
        addresses: HashMap<&'static str, Vec<IpAddr>>,
        services: HashMap<&'static str, Vec<(String, u16)>>,
    }

    impl Lookup for Zone {
        async fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
            self.addresses.get(name).cloned()
        }

        async fn services(&self, name: &str) -> Option<Vec<(String, u16)>> {
            self.services.get(name).cloned()
        }
    }

    fn names(written: &[&str]) -> Names {
        Names::parse(&written.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    async fn resolved(names: &mut Names, zone: &Zone) -> Vec<String> {
        names.resolve(zone).await.into_iter().collect()
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in ["", "host", ":8002", "host:", "host:99999", "a b:1", "http://host:1", "10.0.0.1", "_a b"]
        {
            assert!(Names::parse(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert!(!names(&["10.0.0.1:8002", "[fd00::1]:8002"]).may_change());
        assert!(names(&["10.0.0.1:8002", "host:8002"]).may_change());
    }

    #[tokio::test]
    async fn a_name_with_several_addresses_is_several_schedulers() {
        let mut names = names(&["all:8002", "10.0.0.9:1"]);
        let mut zone = Zone::default();
        assert_eq!(resolved(&mut names, &zone).await, ["10.0.0.9:1", "all:8002"], "nobody knows it yet");
        zone.addresses.insert("all", vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()]);
        assert_eq!(resolved(&mut names, &zone).await, ["10.0.0.1:8002", "10.0.0.2:8002", "10.0.0.9:1"]);
        zone.addresses.insert("all", vec![[10, 0, 0, 2].into()]);
        assert_eq!(resolved(&mut names, &zone).await, ["10.0.0.2:8002", "10.0.0.9:1"]);
        zone.addresses.clear();
        assert_eq!(
            resolved(&mut names, &zone).await,
            ["10.0.0.2:8002", "10.0.0.9:1"],
            "the last answer counts on"
        );
    }

    #[tokio::test]
    async fn a_service_has_targets_with_ports_of_their_own() {
        let mut names = names(&["_darter._tcp.example.org"]);
        let mut zone = Zone::default();
        assert_eq!(resolved(&mut names, &zone).await, [""; 0]);
        zone.services.insert("_darter._tcp.example.org", vec![("a.".to_owned(), 1), ("b.".to_owned(), 2)]);
        assert_eq!(resolved(&mut names, &zone).await, [""; 0], "half of the answer is none");
        zone.addresses.insert("a.", vec![[10, 0, 0, 1].into()]);
        zone.addresses.insert("b.", vec![[10, 0, 0, 2].into()]);
        assert_eq!(resolved(&mut names, &zone).await, ["10.0.0.1:1", "10.0.0.2:2"]);
    }
}
