//! What origins may give, and whom the operator's rules keep away.

use super::lab::{LENGTH, Lab, task};
use crate::access::{Access, Block, Blocked, Budget, HostPattern};
use crate::lease::{HOLDER_SILENT, KEPT, LEASE_STALL};
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::{FailureReason, LeaseOutcome};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;

fn budget(connections: u32, bytes_per_second: u64) -> Access {
    let budget = Budget {
        connections: connections.try_into().ok(),
        bytes_per_second: bytes_per_second.try_into().ok(),
    };
    Access { origins: vec![(HostPattern::parse("o").unwrap(), budget)], ..Access::default() }
}

/// A cluster of these hosts with so many connections to the origin `o`.
fn lab(connections: u32, hosts: &[&str]) -> Lab {
    let mut lab = Lab::with(hosts);
    lab.rule(budget(connections, 0));
    lab
}

#[test]
fn an_origin_is_asked_by_so_many_as_it_may_and_the_others_follow_as_room_comes() {
    let mut lab = lab(2, &["a", "b", "c", "d"]);
    assert!(lab.join_at("a", 1, "o", 0).lease.is_some());
    let talk = lab.join_at("b", 2, "o", 0);
    assert_eq!((talk.lease.is_some(), talk.share.unwrap().connections), (true, 1));
    assert_eq!(lab.join_at("c", 3, "o", 0).lease, None);
    assert_eq!(lab.join_at("d", 4, "o", 0).lease, None);
    assert_eq!(lab.cluster.counts().waiting_for_room, 2);
    // Other origins have budgets of their own.
    assert!(lab.join_at("d", 5, "elsewhere", 0).lease.is_some());
    lab.complete("a", 1);
    assert!(lab.talk("c", 3).lease.is_some() && lab.talk("d", 4).lease.is_none());
    lab.die("b");
    assert!(lab.talk("d", 4).lease.is_some());
    assert_eq!(lab.cluster.counts().waiting_for_room, 0);
}

#[test]
fn every_way_in_which_a_lease_ends_gives_its_room_to_the_next() {
    type End = fn(&mut Lab);
    let ends: [End; 7] = [
        |lab| lab.close("a", 1),
        |lab| lab.give_up("a", 1),
        |lab| lab.die("a"),
        |lab| lab.complete("a", 1),
        |lab| lab.give_back("a", 1, LeaseOutcome::Done),
        |lab| lab.give_back("a", 1, LeaseOutcome::Refused),
        |lab| lab.pass(LEASE_STALL),
    ];
    for (n, end) in ends.into_iter().enumerate() {
        let mut lab = lab(1, &["a", "b"]);
        lab.join_at("a", 1, "o", 0);
        assert_eq!(lab.join_at("b", 2, "o", 0).lease, None);
        end(&mut lab);
        assert!(lab.talk("b", 2).lease.is_some(), "end {n}");
    }
}

#[test]
fn the_most_urgent_go_first_and_equals_in_their_order() {
    let hosts = ["a", "b", "c", "d", "e", "f"];
    let mut lab = lab(1, &hosts);
    for (n, (host, level)) in hosts.iter().zip([0, 3, 0, 6, 5, 4]).enumerate() {
        lab.join_at(host, n as u8 + 1, "o", level);
    }
    let mut order = Vec::new();
    for _ in hosts {
        let holder = (1..7).find(|n| !lab.lease_holder(*n).is_empty()).unwrap();
        let host = lab.lease_holder(holder);
        lab.close(&host, holder);
        order.push(host);
    }
    assert_eq!(order, ["a", "d", "e", "c", "f", "b"]);
}

#[test]
fn an_urgent_waiter_moves_his_whole_task_ahead() {
    let mut lab = lab(1, &["a", "b", "c", "d"]);
    lab.join_at("a", 1, "o", 0);
    lab.join_at("b", 2, "o", 0);
    lab.join_at("c", 3, "o", 0);
    lab.join_at("d", 3, "o", 6);
    lab.close("a", 1);
    assert_eq!(lab.lease_holder(3), "d");
    assert_eq!(lab.lease_holder(2), "");
}

#[test]
fn a_lease_that_stands_still_makes_room_and_waits_behind_who_took_it() {
    let mut lab = lab(1, &["a", "b"]);
    lab.join_at("a", 1, "o", 6);
    lab.pass(LEASE_STALL * 2);
    assert_eq!(lab.lease_holder(1), "a", "nobody else wants it");
    lab.join_at("b", 2, "o", 3);
    assert_eq!((lab.lease_holder(1), lab.lease_holder(2)), (String::new(), "b".to_owned()));
    assert_eq!(lab.talk("a", 1).revoked, 1);
    lab.close("b", 2);
    assert_eq!(lab.lease_holder(1), "a");
}

#[test]
fn a_lease_that_moves_again_keeps_its_room() {
    let mut lab = lab(1, &["a", "b"]);
    lab.join_at("a", 1, "o", 0);
    lab.pass(LEASE_STALL * 2);
    lab.origin_bytes("a", 1, 1);
    assert_eq!(lab.join_at("b", 2, "o", 0).lease, None);
    lab.pass(LEASE_STALL - SECOND);
    assert_eq!(lab.lease_holder(1), "a");
    lab.pass(SECOND);
    assert_eq!(lab.lease_holder(2), "b");
}

#[test]
fn bytes_per_second_are_shared_out_and_never_more_than_all() {
    let hosts: Vec<String> = (0..40).map(|n| format!("h{n}")).collect();
    let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let mut lab = Lab::with(&names);
    lab.rule(budget(0, 100 * MIB));
    let share = |lab: &Lab, n: usize| lab.talk(&format!("h{n}"), n as u8 + 1).share.unwrap().bytes_per_second;
    for (n, host) in names.iter().enumerate() {
        assert!(lab.join_at(host, n as u8 + 1, "o", 0).lease.is_some());
        let all: u64 = (0..=n).map(|n| share(&lab, n)).sum();
        assert!((88 * MIB..=100 * MIB).contains(&all), "{n}: {all}");
    }
    for (n, host) in names.iter().enumerate().take(39) {
        lab.close(host, n as u8 + 1);
    }
    assert_eq!(share(&lab, 39), 100 * MIB);
}

#[test]
fn so_many_share_few_bytes_that_each_has_some_worth_having() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    lab.rule(budget(0, 128 << 10));
    lab.join_at("a", 1, "o", 0);
    lab.join_at("b", 2, "o", 0);
    assert_eq!(lab.join_at("c", 3, "o", 0).lease, None);
}

#[test]
fn who_goes_alone_uses_room_too() {
    let mut lab = lab(1, &["a", "b", "c"]);
    lab.join_at("a", 1, "o", 0);
    lab.give_back("a", 1, LeaseOutcome::Unshareable);
    let late = lab.join_at("b", 1, "o", 0);
    assert_eq!((late.lease, late.unshareable), (None, false), "it waits for its turn, alone as it will go");
    assert_eq!(lab.join_at("c", 2, "o", 0).lease, None);
    lab.close("a", 1);
    assert!(lab.talk("b", 1).unshareable && lab.talk("c", 2).lease.is_none());
    lab.close("b", 1);
    assert!(lab.talk("c", 2).lease.is_some());
}

#[test]
fn a_limit_that_is_lifted_lets_everybody_go() {
    let mut lab = lab(1, &["a", "b", "c"]);
    for (n, host) in ["a", "b", "c"].into_iter().enumerate() {
        lab.join_at(host, n as u8 + 1, "o", 0);
    }
    lab.rule(Access::default());
    assert!(lab.talk("b", 2).lease.is_some() && lab.talk("c", 3).lease.is_some());
}

#[test]
fn a_lifted_limit_is_told_to_whoever_knew_it_with_his_next_lease() {
    let mut lab = lab(1, &["a", "b"]);
    lab.join_at("a", 1, "o", 0);
    lab.give_back("a", 1, LeaseOutcome::Failed);
    assert_eq!(lab.talk("a", 1).share.unwrap().connections, 1, "and it has the lease again");
    lab.join_at("b", 1, "o", 0);
    lab.give_back("a", 1, LeaseOutcome::Failed);
    assert_eq!(lab.lease_holder(1), "b");
    lab.rule(Access::default());
    assert_eq!(lab.talk("a", 1).share.unwrap().connections, 1, "it has nothing to share now");
    // Until it has failed as often.
    (0..2).for_each(|_| lab.give_back("b", 1, LeaseOutcome::Failed));
    assert_eq!(lab.lease_holder(1), "a");
    assert_eq!(lab.talk("a", 1).share, Some(proto::Share::default()));
}

#[test]
fn a_lease_that_stands_still_is_known_though_another_peer_of_its_task_left() {
    let mut lab = lab(2, &["a", "b", "c", "d"]);
    // Quarantined, it goes to the origin for itself; the lease is another's.
    (0..5).for_each(|_| lab.nonsense("a"));
    lab.join_at("a", 1, "o", 0);
    lab.join_at("b", 1, "o", 0);
    assert_eq!(lab.lease_holder(1), "b", "what `a` was given is no lease");
    lab.pass(LEASE_STALL * 2);
    lab.close("a", 1);
    lab.join_at("c", 2, "o", 0);
    assert_eq!(lab.lease_holder(2), "c", "there is room");
    lab.join_at("d", 3, "o", 0);
    assert_eq!((lab.lease_holder(1), lab.lease_holder(3)), (String::new(), "d".to_owned()));
}

#[test]
fn who_registers_again_goes_behind_those_who_wait_for_the_origin() {
    let mut lab = lab(1, &["a", "b"]);
    lab.join_at("a", 1, "o", 0);
    lab.join_at("b", 2, "o", 0);
    assert_eq!(lab.join_at("a", 1, "o", 0).lease, None);
    assert_eq!((lab.lease_holder(1), lab.lease_holder(2)), (String::new(), "b".to_owned()));
    lab.close("b", 2);
    assert_eq!(lab.lease_holder(1), "a");
}

#[test]
fn a_place_in_line_goes_with_the_last_who_waits_there() {
    let mut lab = lab(1, &["a", "b", "c", "d"]);
    lab.join_at("a", 1, "o", 0);
    lab.join_at("b", 2, "o", 0);
    lab.inventory("d", &[4]).unwrap();
    lab.close("b", 2);
    assert_eq!(lab.cluster.counts().waiting_for_room, 0);
    // For nobody the lease that stands still is not taken away.
    lab.pass(LEASE_STALL * 2);
    assert_eq!(lab.lease_holder(1), "a");
    lab.origin_bytes("a", 1, 1);
    lab.join_at("b", 2, "o", 0);
    lab.join_at("c", 3, "o", 0);
    assert_eq!(lab.cluster.counts().waiting_for_room, 2);
    // Its content is with another by now.
    lab.inventory("d", &[2]).unwrap();
    assert_eq!(lab.cluster.counts().waiting_for_room, 1);
}

#[test]
fn what_is_blocked_is_refused_though_others_have_it() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.inventory("a", &[1]).unwrap();
    let block = Block { what: Blocked::Task(task(1)), reason: "no".to_owned() };
    lab.rule(Access { blocked: vec![block], ..Access::default() });
    let talk = lab.join_at("b", 1, "o", 0);
    assert!(talk.refused.is_some_and(|refused| refused.for_good && refused.reason.ends_with(": no")));
    assert_eq!((lab.cluster.stat(&task(1)).downloading, lab.cluster.counts().refused), (0, 1));
    assert!(lab.join_at("b", 2, "o", 1).refused.is_some_and(|refused| refused.for_good), "LEVEL1");
}

/// Only seeds go to origins.
fn closed(hosts: &[&str]) -> Lab {
    let mut lab = Lab::with(hosts);
    lab.rule(Access { disable_back_source: true, ..Access::default() });
    lab
}

#[test]
fn who_may_not_go_to_the_origin_is_told_at_once_that_nobody_has_it() {
    let mut lab = closed(&["a", "b"]);
    for (host, level) in [("a", 0), ("b", 2)] {
        let talk = lab.join_at(host, 1, "o", level);
        assert_eq!(talk.lease, None);
        assert!(talk.refused.is_some_and(|refused| !refused.for_good), "{host}");
    }
    assert_eq!(lab.cluster.counts().leases_granted, 0);
}

#[test]
fn who_may_not_go_waits_for_one_who_may_and_is_told_when_that_one_leaves() {
    let mut lab = closed(&["a", "seed"]);
    assert!(lab.join_at("seed", 1, "o", 0).lease.is_some());
    assert_eq!(lab.join_at("a", 1, "o", 0).refused, None);
    lab.content("seed", 1, LENGTH);
    assert_eq!(lab.talk("a", 1).length, Some(LENGTH));
    lab.close("seed", 1);
    assert!(lab.talk("a", 1).refused.is_some());
}

#[test]
fn who_may_not_go_is_told_when_its_last_source_fails_it() {
    let mut lab = closed(&["a", "b"]);
    lab.inventory("b", &[1]).unwrap();
    let talk = lab.join_at("a", 1, "o", 0);
    assert_eq!((talk.refused, talk.partners.len()), (None, 1));
    lab.failed("a", 1, "b", FailureReason::Unreachable);
    assert!(lab.talk("a", 1).refused.is_some());
    assert_eq!(lab.cluster.counts().leases_granted, 0);
}

#[test]
fn whose_turn_comes_while_the_lease_is_kept_for_another_loses_no_place() {
    let mut lab = lab(1, &["user", "a", "b", "c", "moving"]);
    lab.join_at("user", 9, "o", 0);
    for (n, host) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(lab.join_at(host, n as u8 + 1, "o", 0).lease, None);
    }
    assert!(lab.join_at("moving", 1, "elsewhere", 0).lease.is_some());
    lab.give_back("moving", 1, LeaseOutcome::Moved);
    lab.close("user", 9);
    assert_eq!((lab.lease_holder(1), lab.lease_holder(2)), (String::new(), "b".to_owned()), "nobody waits");
    lab.close("moving", 1);
    lab.pass(KEPT);
    assert_eq!(lab.cluster.counts().waiting_for_room, 2);
    lab.close("b", 2);
    assert_eq!((lab.lease_holder(1), lab.lease_holder(3)), ("a".to_owned(), String::new()));
}

#[test]
fn who_was_silent_and_is_back_does_not_stand_for_one_that_stands_still() {
    let mut lab = lab(2, &["still", "waits"]);
    lab.announce(lab.described("back", |host| host.protocol = 4));
    lab.join_at("back", 1, "o", 0);
    lab.join_at("still", 2, "o", 0);
    lab.pass(HOLDER_SILENT + SECOND);
    for bytes in 1..=8 {
        lab.origin_bytes("back", 1, bytes);
        lab.pass(SECOND);
    }
    lab.join_at("waits", 3, "o", 0);
    assert_eq!([1, 2, 3].map(|n| lab.lease_holder(n)), ["back", "", "waits"]);
}
