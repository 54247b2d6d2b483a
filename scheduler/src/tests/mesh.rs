//! Who is named to whom.

use super::lab::{LENGTH, Lab, id, task};
use crate::conduct::{FIRST_CORRUPT, PROOF};
use crate::message::{Report, Served};
use crate::policy::PARTNERS;
use darter_protocol::scheduler::FailureReason;

fn crowd(hosts: usize) -> (Lab, Vec<String>) {
    let names: Vec<String> = (0..hosts).map(|n| format!("h{n:03}")).collect();
    let mut lab = Lab::new();
    names.iter().for_each(|name| lab.host(name));
    (lab, names)
}

#[test]
fn a_peer_with_its_first_bytes_is_named_to_the_others_and_they_to_it() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    for host in ["a", "b", "c"] {
        lab.join(host, 1);
    }
    assert_eq!(lab.talk("b", 1).partners(), [""; 0]);
    lab.held("a", 1, 1);
    assert_eq!(lab.talk("b", 1).partners(), ["a"]);
    assert_eq!(lab.talk("a", 1).partners(), ["b", "c"]);
    assert!(!lab.talk("b", 1).partners["a"].complete);
}

#[test]
fn a_peer_that_resumes_with_bytes_is_named_at_once() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.try_register("b", 1, 4096).unwrap();
    assert_eq!(lab.talk("a", 1).partners(), ["b"]);
}

#[test]
fn a_new_complete_holder_is_named_to_those_who_wait() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.inventory("c", &[1]).unwrap();
    assert!(lab.talk("a", 1).partners["c"].complete && lab.talk("b", 1).partners["c"].complete);
}

#[test]
fn partners_learn_that_a_peer_is_complete_now() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.held("a", 1, 1);
    assert!(!lab.talk("b", 1).partners["a"].complete);
    lab.complete("a", 1);
    assert!(lab.talk("b", 1).partners["a"].complete);
}

#[test]
fn a_partner_that_goes_is_replaced() {
    let (mut lab, names) = crowd(PARTNERS + 5);
    for name in &names {
        lab.inventory(name, &[1]).unwrap();
    }
    lab.host("late");
    lab.join("late", 1);
    let gone = lab.talk("late", 1).partners().first().map(ToString::to_string).unwrap();
    lab.die(&gone);
    assert!(!lab.talk("late", 1).partners.contains_key(&gone));
    assert_eq!(lab.talk("late", 1).partners.len(), PARTNERS);
}

#[test]
fn a_partner_that_failed_is_replaced_and_never_named_again() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    lab.inventory("a", &[1]).unwrap();
    lab.join("b", 1);
    lab.failed("b", 1, "a", FailureReason::Unreachable);
    lab.inventory("c", &[1]).unwrap();
    lab.inventory("a", &[1]).unwrap();
    assert_eq!(lab.talk("b", 1).partners(), ["c"]);
    assert_eq!(lab.cluster.counts().failures[FailureReason::Unreachable as usize], 1);
}

#[test]
fn a_failure_is_forgotten_by_a_new_registration() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.inventory("a", &[1]).unwrap();
    lab.join("b", 1);
    lab.failed("b", 1, "a", FailureReason::NotHeld);
    assert_eq!(lab.join("b", 1).partners(), ["a"]);
}

#[test]
fn a_failure_of_a_host_that_was_never_named_counts_for_nothing() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    lab.join("a", 1);
    let failed = vec![(id("c"), FailureReason::Corrupt), (id("nobody"), FailureReason::Corrupt)];
    lab.report("a", 1, Report { failed, ..Default::default() });
    lab.inventory("c", &[1]).unwrap();
    assert_eq!(lab.join("b", 1).partners(), ["c"]);
    assert_eq!(lab.cluster.counts().ignored, 2);
}

#[test]
fn a_corrupt_host_is_taken_from_everybody_and_comes_not_back_by_reconnecting() {
    let mut lab = Lab::with(&["a", "b", "c", "d"]);
    lab.inventory("a", &[1, 2]).unwrap();
    lab.join("b", 1);
    lab.join("c", 1);
    lab.failed("b", 1, "a", FailureReason::Corrupt);
    assert_eq!(lab.talk("c", 1).partners(), [""; 0]);
    assert_eq!(lab.lease_holder(1), "b");
    lab.die("a");
    lab.host("a");
    lab.inventory("a", &[1, 2]).unwrap();
    assert_eq!(lab.join("d", 1).partners(), [""; 0]);
    // The hour is over, it has proved itself elsewhere: what it has of this task is wrong still.
    lab.pass(FIRST_CORRUPT);
    assert_eq!(lab.join("d", 2).partners(), ["a"]);
    let served = vec![Served { host: id("a"), pieces: PROOF, bytes: 1 }];
    lab.report("d", 2, Report { served, ..Default::default() });
    assert_eq!(lab.join("d", 1).partners(), [""; 0]);
}

#[test]
fn a_corrupt_holder_of_the_lease_goes_on_alone_and_the_lease_passes() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.held("a", 1, 1);
    lab.failed("b", 1, "a", FailureReason::Corrupt);
    assert!(lab.talk("a", 1).unshareable);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn a_corrupt_host_waits_like_others_but_never_gets_the_lease() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.held("a", 1, 1);
    lab.failed("b", 1, "a", FailureReason::Corrupt);
    assert_eq!(lab.join("a", 1).lease, None);
    lab.close("b", 1);
    assert!(lab.talk("a", 1).unshareable);
    assert_eq!(lab.lease_holder(1), "");
    assert!(lab.join("b", 1).lease.is_some());
}

#[test]
fn the_first_peer_with_bytes_is_named_to_twenty_and_the_next_ones_to_the_rest() {
    let (mut lab, names) = crowd(100);
    for name in &names {
        lab.join(name, 1);
    }
    lab.held("h000", 1, 1);
    assert_eq!(lab.talk("h000", 1).partners.len(), PARTNERS);
    let known: Vec<String> = lab.talk("h000", 1).partners.keys().cloned().collect();
    for name in known {
        lab.held(&name, 1, 1);
    }
    assert!(names.iter().all(|name| !lab.talk(name, 1).partners.is_empty()));
}

#[test]
fn a_late_comer_finds_partners_where_everybody_is_full() {
    let (mut lab, names) = crowd(PARTNERS + 2);
    let (late, early) = names.split_last().unwrap();
    for name in early {
        lab.join(name, 1);
        lab.held(name, 1, 1);
    }
    assert!(early.iter().all(|name| lab.talk(name, 1).partners.len() == PARTNERS));
    assert!(!lab.join(late, 1).partners.is_empty());
}

#[test]
fn the_mesh_is_one_piece_and_nobody_is_overrun() {
    let (mut lab, names) = crowd(120);
    for name in &names {
        lab.join(name, 1);
        lab.held(name, 1, 1);
    }
    let most = names.iter().map(|name| lab.talk(name, 1).partners.len()).max().unwrap();
    assert!(most <= PARTNERS + 4, "{most} partners");
    let mut reached = std::collections::BTreeSet::from([names[0].clone()]);
    let mut edge = vec![names[0].clone()];
    while let Some(name) = edge.pop() {
        let next: Vec<String> = lab.talk(&name, 1).partners.keys().cloned().collect();
        edge.extend(next.into_iter().filter(|partner| reached.insert(partner.clone())));
    }
    assert_eq!(reached.len(), names.len());
}

#[test]
fn a_crowd_larger_than_the_snapshot_still_finds_its_one_source() {
    let (mut lab, names) = crowd(160);
    let (source, others) = names.split_first().unwrap();
    for name in others {
        lab.join(name, 1);
        lab.held(name, 1, 1);
    }
    lab.complete(source, 1);
    // One of them might draw the source by luck.
    for late in (0..20).map(|n| format!("late{n}")) {
        lab.host(&late);
        assert!(lab.join(&late, 1).partners[source].complete);
    }
    assert_eq!(lab.cluster.stat(&task(1)).content.map(|content| content.length), Some(LENGTH));
}

#[test]
fn the_same_events_and_seed_give_the_same_mesh() {
    let mesh = || {
        let (mut lab, names) = crowd(140);
        for name in &names {
            lab.join(name, 1);
            lab.held(name, 1, 1);
        }
        lab.die("h007");
        let partners = |name: &String| lab.talk(name, 1).partners.keys().cloned().collect::<Vec<_>>();
        names.iter().filter(|name| *name != "h007").map(partners).collect::<Vec<_>>()
    };
    assert_eq!(mesh(), mesh());
}

#[test]
fn a_free_place_goes_to_one_that_has_nobody() {
    let (mut lab, names) = crowd(PARTNERS + 5);
    for name in &names {
        lab.join(name, 1);
    }
    lab.held("h000", 1, 1);
    let lonely = |lab: &Lab| names[1..].iter().filter(|name| lab.is_alone(name)).count();
    assert_eq!(lonely(&lab), 4);
    let gone = lab.talk("h000", 1).partners().first().map(ToString::to_string).unwrap();
    lab.close(&gone, 1);
    assert_eq!((lonely(&lab), lab.talk("h000", 1).partners.len()), (3, PARTNERS));
}

#[test]
fn a_source_that_stops_downloading_is_replaced_by_another() {
    let (mut lab, names) = crowd(PARTNERS + 5);
    lab.host("holder");
    for name in &names {
        lab.join(name, 1);
        lab.held(name, 1, 1);
    }
    lab.content("h000", 1, LENGTH);
    lab.held("h000", 1, LENGTH);
    lab.inventory("holder", &[1]).unwrap();
    let without = |lab: &Lab| {
        names[1..].iter().filter(|name| !lab.talk(name, 1).partners.contains_key("holder")).count()
    };
    assert!(without(&lab) > 0, "everybody has room for the second source");
    // It has every byte, but whether they are right nobody has said.
    lab.close("h000", 1);
    assert_eq!(without(&lab), 0);
}

#[test]
fn an_inventory_that_says_nothing_new_is_told_to_nobody() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.inventory("a", &[1]).unwrap();
    lab.join("b", 1);
    let before = lab.talk("b", 1).packets;
    lab.inventory("a", &[1]).unwrap();
    assert_eq!(lab.talk("b", 1).packets, before);
}
