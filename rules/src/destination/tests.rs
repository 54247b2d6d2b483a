//! Where requests may go: what stands against the white list, in all the clothes that an address can wear.

use super::*;
use proptest::prelude::*;

fn host(pattern: &str) -> WhiteListEntry {
    WhiteListEntry { host: Some(pattern.parse().unwrap()), ..Default::default() }
}

fn regex(pattern: &str) -> WhiteListEntry {
    WhiteListEntry { regex: Some(Regex::new(pattern).unwrap()), ..Default::default() }
}

fn list(entries: impl IntoIterator<Item = WhiteListEntry>) -> Destinations {
    Destinations::new(entries.into_iter().collect())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What happens to a request for `host` that resolves to `address`: both checks, as they are made.
fn goes(rules: &Destinations, host: &str, address: &str) -> bool {
    rules.check_name(host, 443).is_ok() && rules.check_address(host, 443, ip(address)).is_ok()
}

#[test]
fn an_empty_list_allows_every_ordinary_destination() {
    let rules = Destinations::default();
    for address in
        ["192.0.2.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "2001:db8::1", "fd12::1"]
    {
        assert!(goes(&rules, "example.org", address), "{address}");
        assert_eq!(rules.check_name(address, 443), Ok(()), "{address}");
    }
}

#[test]
fn the_standing_refusals_hold_for_literals_and_for_what_names_resolve_to() {
    for (address, place) in [
        ("127.0.0.1", Place::Loopback),
        ("127.255.255.254", Place::Loopback),
        ("::1", Place::Loopback),
        ("0.0.0.0", Place::Unspecified),
        ("0.1.2.3", Place::Unspecified),
        ("::", Place::Unspecified),
        ("169.254.1.1", Place::LinkLocal),
        ("fe80::1", Place::LinkLocal),
        ("febf::1", Place::LinkLocal),
        ("224.0.0.1", Place::Multicast),
        ("255.255.255.255", Place::Multicast),
        ("ff02::1", Place::Multicast),
        ("169.254.169.254", Place::Metadata),
        ("100.100.100.200", Place::Metadata),
        ("168.63.129.16", Place::Metadata),
        ("fd00:ec2::254", Place::Metadata),
        ("fd20:ce::254", Place::Metadata),
    ] {
        // An expression for everything does not change it, nor the widest networks, nor an entry without conditions.
        for rules in [
            Destinations::default(),
            list([regex(".*")]),
            list([host("0.0.0.0/0"), host("::/0")]),
            list([WhiteListEntry::default()]),
        ] {
            let refused = |result: Result<(), DestinationRefused>| match result {
                Err(DestinationRefused::Standing { place, .. }) => Some(place),
                _ => None,
            };
            assert_eq!(refused(rules.check_name(address, 443)), Some(place), "{address}");
            assert_eq!(
                refused(rules.check_address("example.org", 443, ip(address))),
                Some(place),
                "{address}"
            );
        }
    }
}

#[test]
fn refused_ipv4_addresses_are_refused_in_ipv6_clothes() {
    for address in [
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b:1::127.0.0.1",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::",
        "2001:0:7f00:1::1",
        "2001:0:c000:201:0:0:5601:5601",
        "::ffff:169.254.169.254",
        "::ffff:100.100.100.200",
        "::ffff:0.0.0.0",
        "2001:db8::5efe:127.0.0.1",
        "::200:5efe:127.0.0.1",
        "fe80::5efe:10.0.0.1",
    ] {
        assert!(!goes(&Destinations::default(), "example.org", address), "{address}");
    }
    for address in
        ["::ffff:192.0.2.1", "64:ff9b::192.0.2.1", "2002:c000:201::1", "2001:db8::200:5efe:10.0.0.1"]
    {
        assert!(goes(&Destinations::default(), "example.org", address), "{address}");
    }
}

#[test]
fn a_name_that_is_never_resolved_is_judged_by_itself() {
    let allowed = |rules: &Destinations, host: &str| rules.check_unresolved(host, 443).is_ok();
    let open = Destinations::default();
    assert!(allowed(&open, "example.org") && allowed(&open, "10.0.0.1"));
    for refused in ["localhost", "metadata.google.internal", "127.0.0.1", "169.254.169.254", "a b"] {
        assert!(!allowed(&open, refused), "{refused}");
    }
    // A network may cover what a name resolves to, but here nobody will know.
    let rules = list([host("10.0.0.0/8"), host("registry.example"), regex(r"\.example\.org$")]);
    assert!(rules.check_name("elsewhere.example", 443).is_ok());
    assert!(!allowed(&rules, "elsewhere.example"));
    for covered in ["registry.example", "a.example.org", "10.0.0.1"] {
        assert!(allowed(&rules, covered), "{covered}");
    }
    assert!(!allowed(&rules, "11.0.0.1"));
}

#[test]
fn an_entry_that_names_the_place_lifts_its_refusal() {
    let rules = list([host("127.0.0.0/8"), host("169.254.7.7"), host("fd00:ec2::254"), regex(".*")]);
    for address in ["127.0.0.1", "127.9.9.9", "::ffff:127.0.0.1", "169.254.7.7", "fd00:ec2::254"] {
        assert!(goes(&rules, address, address), "{address}");
        assert!(goes(&rules, "example.org", address), "{address}");
    }
    for address in ["::1", "169.254.7.8", "169.254.169.254", "0.0.0.0"] {
        assert!(!goes(&rules, "example.org", address), "{address}");
    }
    assert!(goes(&rules, "localhost", "127.0.0.1"));
    assert!(!goes(&rules, "localhost", "::1"));
}

#[test]
fn an_exact_name_lifts_the_refusal_of_this_machine_and_its_links_for_that_name() {
    let rules = list([host("registry.example"), host("localhost"), regex(".*")]);
    assert!(goes(&rules, "registry.example", "127.0.0.1"));
    assert!(goes(&rules, "Registry.Example.", "169.254.7.7"));
    assert!(goes(&rules, "localhost", "::1"));
    assert!(!goes(&rules, "other.example", "127.0.0.1"));
    assert!(!goes(&rules, "sub.registry.example", "127.0.0.1"));
    assert!(!goes(&rules, "127.0.0.1", "127.0.0.1"));
    for address in ["169.254.169.254", "0.0.0.0", "224.0.0.1"] {
        assert!(!goes(&rules, "registry.example", address), "{address}");
    }
}

#[test]
fn metadata_services_are_refused_by_name_until_named() {
    let address = "169.254.169.254";
    for name in ["metadata.google.internal", "METADATA.google.internal.", "instance-data"] {
        for rules in
            [Destinations::default(), list([regex(".*")]), list([host("169.254.0.0/16"), regex(".*")])]
        {
            assert!(rules.check_name(name, 80).is_err(), "{name}");
        }
    }
    assert!(goes(&list([host("metadata.google.internal")]), "metadata.google.internal", address));
    assert!(goes(&list([host(address)]), "metadata.google.internal", address));
}

#[test]
fn localhost_is_refused_by_name() {
    for name in ["localhost", "LOCALHOST.", "db.localhost"] {
        assert!(Destinations::default().check_name(name, 80).is_err(), "{name}");
    }
    assert_eq!(Destinations::default().check_name("localhost.example", 80), Ok(()));
}

#[test]
fn a_list_allows_only_what_it_covers() {
    let rules = list([host("example.org"), host("192.0.2.0/24"), host("2001:db8::7"), regex(r"\.example$")]);
    for (name, address, expected) in [
        ("example.org", "198.51.100.1", true),
        ("EXAMPLE.org.", "198.51.100.1", true),
        ("www.example.org", "198.51.100.1", false),
        ("a.example", "198.51.100.1", true),
        ("a.example.net", "198.51.100.1", false),
        // A network covers whatever resolves into it.
        ("a.example.net", "192.0.2.9", true),
        ("a.example.net", "::ffff:192.0.2.9", true),
        ("192.0.2.9", "192.0.2.9", true),
        ("192.0.3.9", "192.0.3.9", false),
        ("2001:db8::7", "2001:db8::7", true),
        ("[2001:db8::7]", "2001:db8::7", true),
        ("2001:db8::8", "2001:db8::8", false),
    ] {
        assert_eq!(goes(&rules, name, address), expected, "{name} at {address}");
    }
}

#[test]
fn a_name_is_refused_before_it_is_resolved_when_no_network_could_cover_it() {
    let rules = list([host("example.org")]);
    assert!(matches!(rules.check_name("example.net", 443), Err(DestinationRefused::NotListed { .. })));
}

#[test]
fn ports_narrow_an_entry() {
    let entry = |pattern, ports| WhiteListEntry { ports, ..host(pattern) };
    let rules = list([entry("example.org", vec![443, 5000]), entry("127.0.0.0/8", vec![5000])]);
    assert_eq!(rules.check_name("example.org", 443), Ok(()));
    assert!(rules.check_name("example.org", 80).is_err());
    assert_eq!(rules.check_name("127.0.0.1", 5000), Ok(()));
    assert!(rules.check_name("127.0.0.1", 443).is_err());
    let any = list([WhiteListEntry { ports: vec![443], ..Default::default() }]);
    assert_eq!(any.check_name("example.org", 443), Ok(()));
    assert!(any.check_name("example.org", 80).is_err());
}

#[test]
fn refusals_say_what_to_do() {
    let rules = Destinations::default();
    assert_eq!(
        rules.check_name("127.0.0.1", 443).unwrap_err().to_string(),
        "destination 127.0.0.1 is a loopback address; list it in proxy.whiteList to allow it"
    );
    assert_eq!(
        rules.check_address("evil.example", 443, ip("::1")).unwrap_err().to_string(),
        "destination evil.example leads to ::1, a loopback address; list it in proxy.whiteList to allow it"
    );
    let rules = list([host("example.org")]);
    assert_eq!(
        rules.check_name("2001:db8::1", 443).unwrap_err().to_string(),
        "destination [2001:db8::1]:443 is not in proxy.whiteList"
    );
    assert_eq!(rules.check_name("a\r\nb", 443), Err(DestinationRefused::Malformed));
}

#[test]
fn patterns_are_names_addresses_or_networks() {
    assert_eq!("Example.ORG".parse(), Ok(HostPattern::Name("example.org".into())));
    assert_eq!("127.9.9.9/8".parse(), Ok(HostPattern::Net(v4([127, 0, 0, 0], 8))));
    assert_eq!("::1".parse(), Ok(HostPattern::Net(v6([0, 0, 0, 0, 0, 0, 0, 1], 128))));
    for bad in ["", "*.example.org", "127.0.0.0/33", "a/8", "example.org:443"] {
        assert_eq!(bad.parse::<HostPattern>(), Err(InvalidHostPattern), "{bad}");
    }
}

proptest! {
    #[test]
    fn refusals_are_one_printable_line_and_nothing_panics(host in "\\PC{0,30}", port: u16, bits: u128) {
        let rules = list([host_or_any(&host)]);
        for result in [
            rules.check_name(&host, port),
            rules.check_address(&host, port, Ipv6Addr::from_bits(bits).into()),
            rules.check_address(&host, port, Ipv4Addr::from_bits(bits as u32).into()),
            Destinations::default().check_name(&host, port),
        ] {
            if let Err(refused) = result {
                prop_assert!(refused.to_string().bytes().all(|b| b == b' ' || b.is_ascii_graphic()));
            }
        }
    }

    #[test]
    fn no_expression_reaches_loopback(low in 0u32..1 << 24) {
        let address = IpAddr::from(Ipv4Addr::from_bits(0x7f00_0000 | low));
        for name in ["example.org".to_owned(), address.to_string()] {
            prop_assert!(list([regex(".*"), regex("127")]).check_address(&name, 443, address).is_err());
        }
    }
}

fn host_or_any(text: &str) -> WhiteListEntry {
    WhiteListEntry { host: text.parse().ok(), ..Default::default() }
}
