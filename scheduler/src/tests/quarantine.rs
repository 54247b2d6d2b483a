//! Quarantine: whoever serves badly is named to nobody, in any task; his own downloads go on; he comes back by proof.

use super::lab::{Lab, id};
use crate::conduct::{FIRST_CORRUPT, FIRST_FAILING, PROOF};
use crate::message::{Report, Served};
use darter_protocol::scheduler::FailureReason;
use std::time::Duration;

/// Hosts `bad` and `good`, which hold tasks 1 to 3, and ten others.
fn lab() -> Lab {
    let mut lab = Lab::with(&["bad", "good", "h0", "h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8", "h9"]);
    lab.inventory("bad", &[1, 2, 3]).unwrap();
    lab.inventory("good", &[1, 2, 3]).unwrap();
    lab
}

fn served(lab: &mut Lab, name: &str, n: u8, by: &str, pieces: u32) {
    let served = vec![Served { host: id(by), pieces, bytes: 1 }];
    lab.report(name, n, Report { served, ..Default::default() });
}

/// `bad` is quarantined for corrupt bytes.
fn corrupt() -> Lab {
    let mut lab = lab();
    lab.join("h0", 1);
    lab.failed("h0", 1, "bad", FailureReason::Corrupt);
    assert!(lab.cluster.is_quarantined(&id("bad")));
    lab
}

#[test]
fn corrupt_bytes_in_one_task_take_a_host_out_of_all() {
    let mut lab = lab();
    lab.join("h0", 1);
    assert_eq!(lab.join("h1", 2).partners(), ["bad", "good"]);
    lab.failed("h0", 1, "bad", FailureReason::Corrupt);
    assert_eq!(lab.talk("h1", 2).partners(), ["good"], "who has it as a partner drops it");
    assert_eq!(lab.join("h2", 3).partners(), ["good"], "who comes does not get it");
    let counts = lab.cluster.counts();
    assert_eq!((counts.quarantined, counts.on_probation, counts.quarantines), (1, 0, [1, 0, 0, 0]));
}

#[test]
fn failures_that_several_hosts_report_of_several_tasks_add_up() {
    let mut lab = lab();
    for (host, n) in [("h0", 1), ("h1", 2), ("h2", 3), ("h3", 1)] {
        lab.join(host, n);
        lab.failed(host, n, "bad", FailureReason::Timeout);
        assert!(!lab.cluster.is_quarantined(&id("bad")), "{host}");
    }
    lab.join("h4", 2);
    lab.failed("h4", 2, "bad", FailureReason::Unreachable);
    assert!(lab.cluster.is_quarantined(&id("bad")));
    assert_eq!(lab.join("h5", 3).partners(), ["good"]);
}

#[test]
fn failures_that_one_host_alone_reports_do_not_add_up() {
    let mut lab = lab();
    for n in [1, 2, 3].repeat(4) {
        lab.join("h0", n);
        lab.failed("h0", n, "bad", FailureReason::Unreachable);
        lab.die("h0");
        lab.host("h0");
    }
    assert!(!lab.cluster.is_quarantined(&id("bad")));
    for (host, n) in [("h1", 1), ("h2", 2), ("h3", 3)] {
        lab.join(host, n);
        lab.failed(host, n, "bad", FailureReason::Unreachable);
    }
    assert!(lab.cluster.is_quarantined(&id("bad")));
}

#[test]
fn its_own_downloads_go_on() {
    let mut lab = corrupt();
    lab.inventory("good", &[4]).unwrap();
    assert_eq!(lab.join("bad", 4).partners(), ["good"], "who serves only, serves it too");
    lab.join("bad", 5);
    assert!(lab.talk("bad", 5).lease.is_some(), "where nobody has anything it goes to the origin");
    assert!(lab.join("h5", 5).lease.is_some(), "and nobody waits for what it fetches");
    lab.held("bad", 5, 1);
    assert_eq!(lab.talk("h5", 5).partners(), [""; 0]);
}

#[test]
fn what_it_says_of_others_counts_for_nothing() {
    let mut lab = corrupt();
    lab.join("bad", 4);
    lab.inventory("good", &[4]).unwrap();
    assert_eq!(lab.join("bad", 4).partners(), ["good"]);
    lab.failed("bad", 4, "good", FailureReason::Corrupt);
    assert!(!lab.cluster.is_quarantined(&id("good")));
    assert_eq!(lab.join("h1", 4).partners(), ["good"], "nor is it out of that task");
}

#[test]
fn reconnecting_does_not_wash_it_clean() {
    let mut lab = corrupt();
    lab.die("bad");
    lab.host("bad");
    lab.inventory("bad", &[3]).unwrap();
    assert_eq!(lab.join("h1", 3).partners(), ["good"]);
    assert!(lab.cluster.is_quarantined(&id("bad")));
}

#[test]
fn after_its_time_few_are_sent_to_it_and_proof_makes_it_one_of_all_again() {
    let mut lab = corrupt();
    lab.pass(FIRST_CORRUPT);
    assert!(!lab.cluster.is_quarantined(&id("bad")));
    assert_eq!(lab.cluster.counts().on_probation, 1);
    let has_it = |lab: &Lab, host: &str| lab.talk(host, 2).partners().contains(&"bad");
    let hosts = ["h1", "h2", "h3", "h4", "h5"];
    hosts.iter().for_each(|host| drop(lab.join(host, 2)));
    let probing: Vec<_> = hosts.into_iter().filter(|host| has_it(&lab, host)).collect();
    assert_eq!(probing.len(), 2, "{probing:?}");
    served(&mut lab, probing[0], 2, "bad", PROOF - 1);
    served(&mut lab, probing[1], 2, "bad", 1);
    assert_eq!((lab.cluster.counts().on_probation, lab.cluster.counts().releases), (0, 1));
    assert!(hosts.iter().all(|host| has_it(&lab, host)), "and those who wait are told");
    assert_eq!(lab.join("h6", 1).partners(), ["good"], "where its bytes were wrong it stays out");
}

#[test]
fn nobody_relies_on_a_host_on_probation() {
    let mut lab = corrupt();
    lab.pass(FIRST_CORRUPT);
    lab.die("good");
    let talk = lab.join("h1", 2);
    assert_eq!(talk.partners(), ["bad"]);
    assert!(talk.lease.is_some(), "it may ask the one on probation, and the origin");
}

#[test]
fn after_a_day_in_which_nobody_asked_it_for_anything_it_is_one_of_all_again() {
    let mut lab = corrupt();
    let day = Duration::from_secs(86_400);
    lab.pass(FIRST_CORRUPT + day - Duration::from_secs(1));
    assert_eq!(lab.cluster.counts().on_probation, 1);
    lab.pass(Duration::from_secs(1));
    assert_eq!(lab.cluster.counts().on_probation, 0);
    for host in ["h1", "h2", "h3"] {
        assert_eq!(lab.join(host, 2).partners(), ["bad", "good"]);
    }
    assert_eq!(lab.join("h4", 1).partners(), ["good"], "where its bytes were wrong it stays out");
}

#[test]
fn on_probation_one_more_fault_is_enough() {
    let mut lab = corrupt();
    lab.pass(FIRST_CORRUPT);
    lab.join("h1", 2);
    lab.failed("h1", 2, "bad", FailureReason::Timeout);
    assert!(lab.cluster.is_quarantined(&id("bad")));
    lab.pass(FIRST_FAILING + Duration::from_secs(1));
    assert!(lab.cluster.is_quarantined(&id("bad")), "the second one is longer than a first one");
}

#[test]
fn nobody_vouches_for_a_host_that_he_was_not_given() {
    let mut lab = corrupt();
    lab.pass(FIRST_CORRUPT);
    lab.join("h1", 4);
    served(&mut lab, "h1", 4, "bad", PROOF);
    assert_eq!((lab.cluster.counts().on_probation, lab.cluster.counts().ignored), (1, 1));
}

#[test]
fn a_host_that_accuses_everybody_is_quarantined_and_most_of_the_accused_are_not() {
    let names: Vec<String> = (0..20).map(|n| format!("h{n}")).collect();
    let mut lab = Lab::with(&["liar"]);
    for name in &names {
        lab.host(name);
        lab.inventory(name, &[1]).unwrap();
    }
    for _ in 0..20 {
        let partners: Vec<String> = lab.join("liar", 1).partners().iter().map(|p| (*p).to_owned()).collect();
        for partner in partners {
            lab.failed("liar", 1, &partner, FailureReason::Corrupt);
        }
    }
    assert!(lab.cluster.is_quarantined(&id("liar")));
    let out = names.iter().filter(|name| lab.cluster.is_quarantined(&id(name))).count();
    assert!(out <= 6, "{out} of 20 because of one word");
    lab.host("late");
    let named = lab.join("late", 1).partners().len();
    assert_eq!(named, names.len() - out, "and those who are not are named in that task, too");
}

#[test]
fn a_host_that_reconnects_between_its_accusations_is_not_believed_more_often() {
    let accused: Vec<String> = (0..8).map(|n| format!("h{n}")).collect();
    let mut lab = Lab::new();
    for (n, name) in (1..).zip(&accused) {
        lab.host(name);
        lab.inventory(name, &[n]).unwrap();
    }
    for (n, name) in (1..).zip(&accused) {
        lab.host("liar");
        assert_eq!(lab.join("liar", n).partners(), [name.as_str()]);
        lab.failed("liar", n, name, FailureReason::Corrupt);
        lab.die("liar");
    }
    let out = accused.iter().filter(|name| lab.cluster.is_quarantined(&id(name))).count();
    assert_eq!(out, 3);
}

#[test]
fn a_host_that_talks_nonsense_is_quarantined() {
    let mut lab = lab();
    for _ in 0..5 {
        assert!(!lab.cluster.is_quarantined(&id("bad")));
        lab.nonsense("bad");
    }
    assert!(lab.cluster.is_quarantined(&id("bad")));
    assert_eq!(lab.join("h0", 1).partners(), ["good"]);
}

#[test]
fn a_host_that_drains_is_named_to_nobody_new_and_stays_with_those_who_have_it() {
    let mut lab = lab();
    assert_eq!(lab.join("h0", 1).partners(), ["bad", "good"]);
    let draining = lab.described("bad", |host| host.draining = true);
    lab.renew(draining);
    assert_eq!(lab.talk("h0", 1).partners(), ["bad", "good"]);
    assert_eq!(lab.join("h1", 1).partners(), ["good"]);
    lab.die("good");
    assert_eq!(lab.lease_holder(1), "h0", "nobody waits for it either");
    lab.join("h2", 1);
    let back = lab.described("bad", |host| host.draining = false);
    lab.renew(back);
    assert_eq!(lab.talk("h2", 1).partners(), ["bad"]);
}
