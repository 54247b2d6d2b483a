//! [`of_this_host_alone`]: names that mean another server on each host.
//!
//! `localhost:5000` is the registry of whoever says it, and so is an address that holds on one link alone. What came from there must
//! not be had by its name on another host, where somebody else answers to it, or says that it has the same.

use darter_rules::Host;
use std::net::IpAddr;
use std::sync::LazyLock;

/// Whose loopback it is: the network namespace of this boot of this kernel, so that daemons beside each other share. Where that is
/// not to be read, this process alone.
static HERE: LazyLock<String> = LazyLock::new(|| {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let network = std::fs::read_link("/proc/self/ns/net");
    match (boot, network) {
        (Ok(boot), Ok(network)) => format!("{} {}", boot.trim(), network.display()),
        _ => {
            let mut random = [0; 16];
            aws_lc_rs::rand::fill(&mut random).expect("the system gives random bytes");
            format!("{random:?}")
        }
    }
});

/// What tells this host's server of that name from all others'; `None`: it is the same everywhere, as far as its name says.
pub(crate) fn of_this_host_alone(host: &Host) -> Option<&'static str> {
    let is = match host {
        Host::Name(name) => is_local_name(name),
        Host::Ip(address) => is_local(address.to_canonical()),
    };
    is.then_some(HERE.as_str())
}

/// RFC 6761 section 6.3, and what `/etc/hosts` calls it on many systems.
fn is_local_name(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    let last = name.rsplit('.').next().unwrap_or(name);
    ["localhost", "localdomain"].iter().any(|it| last.eq_ignore_ascii_case(it))
        || ["localhost6", "ip6-localhost", "ip6-loopback"].iter().any(|it| name.eq_ignore_ascii_case(it))
}

fn is_local(address: IpAddr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_link_local_names_are_each_hosts_own() {
        let local = |host: &str| of_this_host_alone(&host.parse().unwrap()).is_some();
        for host in [
            "localhost",
            "LocalHost",
            "registry.localhost",
            "localhost.localdomain",
            "ip6-localhost",
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.1.1",
            "::1",
            "fe80::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(local(host), "{host}");
        }
        for host in
            ["registry.example", "localhost.example", "10.0.0.1", "192.168.1.1", "2001:db8::1", "fd00::1"]
        {
            assert!(!local(host), "{host}");
        }
    }

    #[test]
    fn it_is_known_which_host_this_is() {
        let here = of_this_host_alone(&"localhost".parse().unwrap()).unwrap();
        assert!(here.contains("net:[") && here.len() > 36, "{here}");
    }
}
