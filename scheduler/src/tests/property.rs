//! Any sequence of events, from honest and confused daemons: the lab checks the invariants after each.

use super::lab::{LENGTH, Lab, content, hash, id, task, whole};
use crate::access::{Access, Budget, HostPattern};
use crate::message::{Registration, Report, Served};
use darter_protocol::Priority;
use darter_protocol::scheduler::{FailureReason, LeaseOutcome};
use proptest::prelude::*;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

const HOSTS: [&str; 6] = ["a", "b", "c", "d", "seed-1", "seed-2"];

/// As many as `PROPTEST_CASES` says, or enough to have found every bug so far within two seconds.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
}

#[derive(Debug, Clone)]
enum Event {
    Announce,
    Die,
    Leave,
    Register { held: u64, origin: &'static str, level: u32, moved: bool, at_origin: bool },
    Rule { connections: u32 },
    Open,
    Close,
    Deaf { deaf: bool },
    Content { length: u64 },
    Hashes { from: u32, shift: u8 },
    Held { bytes: u64 },
    OriginBytes { bytes: u64 },
    Failed { partner: usize, reason: FailureReason },
    Served { partner: usize },
    Nonsense,
    Drain { draining: bool },
    GiveBack { outcome: LeaseOutcome },
    Complete { length: u64 },
    GiveUp,
    Inventory,
    Drop,
    Pass { millis: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    let length = prop_oneof![8 => Just(LENGTH), 1 => Just(LENGTH + 1), 1 => Just(0u64)];
    let bytes = prop_oneof![Just(0), 1..LENGTH, Just(LENGTH), Just(u64::MAX)];
    let reason = prop_oneof![
        3 => Just(FailureReason::Timeout),
        3 => Just(FailureReason::NotHeld),
        1 => Just(FailureReason::Corrupt),
    ];
    let outcome = prop_oneof![
        4 => Just(LeaseOutcome::Done),
        3 => Just(LeaseOutcome::Failed),
        2 => Just(LeaseOutcome::Refused),
        1 => Just(LeaseOutcome::Unshareable),
        1 => Just(LeaseOutcome::Unspecified),
        1 => Just(LeaseOutcome::Moved),
    ];
    prop_oneof![
        3 => Just(Event::Announce),
        2 => Just(Event::Die),
        1 => Just(Event::Leave),
        8 => (bytes.clone(), prop_oneof![Just("x"), Just("y"), Just("free")], prop_oneof![5 => Just(0u32), 3 => 0..7u32], any::<(bool, bool)>())
            .prop_map(|(held, origin, level, (moved, at_origin))| {
                Event::Register { held: held % LENGTH, origin, level, moved, at_origin: moved && at_origin }
            }),
        1 => (0u32..4).prop_map(|connections| Event::Rule { connections }),
        10 => Just(Event::Open),
        3 => Just(Event::Close),
        4 => any::<bool>().prop_map(|deaf| Event::Deaf { deaf }),
        4 => length.clone().prop_map(|length| Event::Content { length }),
        4 => (0u32..12, 0u8..8).prop_map(|(from, shift)| Event::Hashes { from, shift: shift / 7 }),
        8 => bytes.clone().prop_map(|bytes| Event::Held { bytes }),
        3 => bytes.prop_map(|bytes| Event::OriginBytes { bytes }),
        5 => (0..64usize, reason).prop_map(|(partner, reason)| Event::Failed { partner, reason }),
        5 => (0..64usize).prop_map(|partner| Event::Served { partner }),
        1 => Just(Event::Nonsense),
        1 => any::<bool>().prop_map(|draining| Event::Drain { draining }),
        6 => outcome.prop_map(|outcome| Event::GiveBack { outcome }),
        3 => length.prop_map(|length| Event::Complete { length }),
        2 => Just(Event::GiveUp),
        2 => Just(Event::Inventory),
        2 => Just(Event::Drop),
        4 => (0u64..30_000).prop_map(|millis| Event::Pass { millis }),
        1 => (0u64..3_600_000).prop_map(|millis| Event::Pass { millis }),
    ]
}

fn apply(lab: &mut Lab, hosts: &[&str], (host, n): (usize, u8), event: Event) {
    let host = hosts[host % hosts.len()];
    let of = |partner: usize| hosts[partner % hosts.len()];
    let alive = lab.is_alive(host);
    let open = lab.is_open(host, n);
    match event {
        Event::Announce => lab.host(host),
        Event::Die if alive => lab.die(host),
        Event::Leave if alive => {
            lab.cluster.handle_host_left(lab.now, &id(host));
            lab.die(host);
        }
        Event::Register { held, origin, level, moved, at_origin } => {
            let priority = Priority::level(level).unwrap();
            let registration = Registration {
                held,
                origin: origin.into(),
                priority,
                moved,
                at_origin,
                ..Default::default()
            };
            assert_eq!(lab.try_register_at(host, n, registration).is_ok(), alive);
        }
        Event::Rule { connections } => lab.rule(rules(connections)),
        Event::Open if alive && lab.cluster.stat(&task(n)).downloading > 0 && lab.is_registered(host, n) => {
            lab.try_open(host, n).ok();
        }
        Event::Close if open => lab.close(host, n),
        Event::Deaf { deaf } if open => lab.set_deaf(host, n, deaf),
        Event::Content { length } if open => lab.content(host, n, length),
        Event::Hashes { from, shift } if open => {
            let from_origin = (from..from + 3).map(|piece| (piece, hash(piece as u8 + shift))).collect();
            // Pieces past the end are refused; then the driver closes the stream.
            if lab.try_report(host, n, Report { from_origin, ..Default::default() }).is_err() {
                lab.close(host, n);
            }
        }
        Event::Held { bytes } if open => lab.held(host, n, bytes),
        Event::OriginBytes { bytes } if open => lab.origin_bytes(host, n, bytes),
        Event::Failed { partner, reason } if open => lab.failed(host, n, of(partner), reason),
        Event::Served { partner } if open => {
            let served = vec![Served { host: id(of(partner)), pieces: 2, bytes: 1 }];
            lab.report(host, n, Report { served, ..Default::default() });
        }
        Event::Nonsense if alive => lab.nonsense(host),
        Event::Drain { draining } if alive => lab.renew(lab.described(host, |host| host.draining = draining)),
        Event::GiveBack { outcome } if open && lab.talk(host, n).lease.is_some() => {
            lab.give_back(host, n, outcome)
        }
        Event::Complete { length } if alive => drop(lab.try_complete(host, n, whole(length))),
        Event::GiveUp if alive => lab.give_up(host, n),
        Event::Inventory if alive => lab.inventory(host, &[n]).unwrap(),
        Event::Drop if alive => lab.drop_task(host, n),
        Event::Pass { millis } => lab.pass(Duration::from_millis(millis)),
        _ => {}
    }
}

/// So many connections to two origins, and as many to the third as one likes; none: only seeds go there.
fn rules(connections: u32) -> Access {
    let budget =
        Budget { connections: NonZeroU32::new(connections), bytes_per_second: NonZeroU64::new(1 << 20) };
    Access {
        disable_back_source: connections == 0,
        origins: ["x", "y"].map(|host| (HostPattern::parse(host).unwrap(), budget)).into(),
        ..Access::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn no_sequence_of_events_breaks_an_invariant(
        seed in any::<u64>(),
        events in prop::collection::vec((0..HOSTS.len(), 1u8..3, event()), 1..150),
    ) {
        let mut lab = Lab::seeded(seed);
        HOSTS.iter().take(4).for_each(|host| lab.host(host));
        for (host, n, event) in events {
            apply(&mut lab, &HOSTS, (host, n), event);
        }
        for host in HOSTS {
            if lab.is_alive(host) {
                lab.die(host);
            }
        }
        lab.pass(Duration::from_secs(120));
        let counts = lab.cluster.counts();
        prop_assert_eq!((counts.hosts, counts.tasks, counts.complete, counts.partial, counts.downloading), (0, 0, 0, 0, 0));
        prop_assert_eq!(lab.cluster.poll_timeout(), None);
    }

    /// The same in three zones, of which two are large enough for a border and lose it now and then.
    #[test]
    fn no_sequence_of_events_breaks_an_invariant_between_zones(
        seed in any::<u64>(),
        joined in 0..56usize,
        events in prop::collection::vec((0..64usize, 1u8..2, event()), 1..100),
    ) {
        let mut lab = Lab::seeded(seed);
        let names: Vec<String> = (0..64).map(|n| format!("h{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for (n, name) in names.iter().enumerate() {
            lab.host_at(name, ["r|a", "r|b", "r|c", ""][[28, 56, 60, 64].iter().position(|end| n < *end).unwrap()]);
        }
        for name in names.iter().take(joined).chain(&names[30..56]) {
            lab.try_register(name, 1, 0).ok();
            lab.try_open(name, 1).ok();
        }
        for (host, n, event) in events {
            apply(&mut lab, &names, (host, n), event);
        }
    }

    /// Whoever waits gets there: with hosts that die, stall, fail and are refused, everybody that stays ends complete.
    #[test]
    fn a_crowd_ends_complete_whatever_happens_on_the_way(
        seed in any::<u64>(),
        troubles in prop::collection::vec(0u8..6, 0..40),
    ) {
        let mut lab = Lab::seeded(seed);
        let names: Vec<String> = (0..12).map(|n| format!("h{n}")).collect();
        for name in &names {
            lab.host(name);
            lab.join(name, 1);
        }
        let mut left: Vec<String> = names;
        for trouble in troubles {
            let holder = lab.lease_holder(1);
            if holder.is_empty() || left.len() < 3 {
                break;
            }
            match trouble {
                0 => lab.die(&holder),
                1 => lab.close(&holder, 1),
                2 => lab.give_back(&holder, 1, LeaseOutcome::Refused),
                3 => { lab.pass(Duration::from_secs(81)); continue }
                4 => { lab.report(&holder, 1, Report { content: Some(content(LENGTH)), origin_bytes: 9, ..Default::default() }); continue }
                _ => { lab.give_back(&holder, 1, LeaseOutcome::Failed); continue }
            }
            left.retain(|name| *name != holder);
        }
        let holder = lab.lease_holder(1);
        if !holder.is_empty() {
            lab.content(&holder, 1, LENGTH);
            lab.held(&holder, 1, LENGTH);
            lab.complete(&holder, 1);
            for name in left.iter().filter(|name| **name != holder) {
                prop_assert!(lab.talk(name, 1).partners[&holder].complete, "{} was forgotten", name);
            }
        }
    }
}
