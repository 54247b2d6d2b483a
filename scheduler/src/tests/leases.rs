//! Who may go to the origin.

use super::lab::{LENGTH, Lab, content, task};
use crate::access::Access;
use crate::lease::{HOLDER_SILENT, KEPT, LEASE_STALL, UNSHAREABLE};
use crate::message::{Registration, Report};
use crate::progress::piece_time;
use crate::refusal::Refusal;
use darter_protocol::Priority;
use darter_protocol::scheduler::{FailureReason, LeaseOutcome};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_first_to_register_gets_the_lease_and_the_second_waits() {
    let mut lab = Lab::with(&["a", "b"]);
    assert!(lab.join("a", 1).lease.is_some());
    assert_eq!(lab.join("b", 1).lease, None);
    assert_eq!(lab.lease_holder(1), "a");
}

#[test]
fn tasks_have_their_own_leases() {
    let mut lab = Lab::with(&["a", "b"]);
    let (one, two) = (lab.join("a", 1).lease, lab.join("b", 2).lease);
    assert!(one.is_some() && two.is_some() && one != two);
}

#[test]
fn nobody_gets_a_lease_while_a_complete_holder_is_usable() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.inventory("a", &[1]).unwrap();
    let talk = lab.join("b", 1);
    assert_eq!((talk.lease, talk.partners()), (None, vec!["a"]));
}

#[test]
fn the_end_of_a_life_line_hands_the_lease_over() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.die("a");
    assert!(lab.talk("b", 1).lease.is_some());
    assert_eq!(lab.cluster.counts().leases_handed_over, 1);
}

#[test]
fn the_end_of_a_conversation_hands_the_lease_over() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.close("a", 1);
    assert!(lab.talk("b", 1).lease.is_some());
}

#[test]
fn a_lease_that_comes_free_before_the_stream_is_open_is_told_when_it_opens() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.register("b", 1);
    lab.close("a", 1);
    assert_eq!(lab.lease_holder(1), "");
    lab.open("b", 1);
    assert!(lab.talk("b", 1).lease.is_some());
}

#[test]
fn waiters_are_served_in_the_order_in_which_they_came() {
    let mut lab = Lab::with(&["a", "b", "c", "d"]);
    for host in ["a", "d", "b", "c"] {
        lab.join(host, 1);
    }
    for next in ["d", "b", "c"] {
        lab.close(&lab.lease_holder(1), 1);
        assert_eq!(lab.lease_holder(1), next);
    }
}

#[test]
fn a_seed_goes_before_those_who_came_earlier() {
    let mut lab = Lab::with(&["a", "b", "seed"]);
    for host in ["a", "b", "seed"] {
        lab.join(host, 1);
    }
    lab.close("a", 1);
    assert_eq!(lab.lease_holder(1), "seed");
}

#[test]
fn a_lease_without_progress_passes_to_the_next_and_its_holder_goes_last() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    for host in ["a", "b", "c"] {
        lab.join(host, 1);
    }
    lab.pass(LEASE_STALL - SECOND);
    assert_eq!(lab.lease_holder(1), "a");
    lab.pass(SECOND);
    assert_eq!((lab.lease_holder(1), lab.talk("a", 1).revoked), ("b".to_owned(), 1));
    assert_eq!(lab.cluster.counts().leases_expired, 1);
    lab.close("b", 1);
    assert_eq!(lab.lease_holder(1), "c");
    lab.close("c", 1);
    assert_eq!(lab.lease_holder(1), "a");
}

#[test]
fn content_bytes_and_hashes_are_progress() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    let almost = LEASE_STALL - SECOND;
    lab.pass(almost);
    lab.content("a", 1, LENGTH);
    lab.pass(almost);
    lab.origin_bytes("a", 1, 1000);
    lab.pass(almost);
    lab.hashes("a", 1, &[0]);
    lab.pass(almost);
    assert_eq!(lab.lease_holder(1), "a");
    // The same number of bytes again is none.
    lab.origin_bytes("a", 1, 1000);
    lab.pass(SECOND);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn what_is_known_already_is_no_progress() {
    let again: [fn(&mut Lab); 4] = [
        |lab| lab.content("a", 1, LENGTH),
        |lab| lab.hashes("a", 1, &[0]),
        |lab| lab.held("a", 1, LENGTH / 10),
        |lab| lab.origin_bytes("a", 1, LENGTH * 2 + 1),
    ];
    for again in again {
        let mut lab = Lab::with(&["a", "b"]);
        lab.join("a", 1);
        lab.join("b", 1);
        lab.content("a", 1, LENGTH);
        lab.hashes("a", 1, &[0]);
        lab.held("a", 1, LENGTH / 10);
        lab.pass(LEASE_STALL / 2);
        again(&mut lab);
        lab.pass(LEASE_STALL / 2);
        assert_eq!(lab.lease_holder(1), "b");
    }
}

#[test]
fn bytes_of_which_no_piece_comes_keep_a_lease_for_a_time_and_a_piece_gives_it_anew() {
    let time = piece_time(Some(&content(LENGTH)));
    let says: [fn(&mut Lab, u32); 3] = [
        |_, _| {},
        |lab, piece| lab.hashes("a", 1, &[piece]),
        // The list of all is known.
        |lab, piece| lab.held("a", 1, LENGTH / 10 * u64::from(piece)),
    ];
    for (n, says) in says.into_iter().enumerate() {
        let mut lab = Lab::with(&["a", "b"]);
        lab.join("a", 1);
        lab.join("b", 1);
        lab.content("a", 1, LENGTH);
        lab.hashes("a", 1, &[0]);
        let mut bytes = 0;
        for piece in 1..=3 {
            let until = lab.now + time - SECOND;
            while lab.now < until {
                assert_eq!(lab.lease_holder(1), "a");
                bytes += 1;
                lab.origin_bytes("a", 1, bytes);
                lab.pass(LEASE_STALL / 2);
            }
            says(&mut lab, piece);
            if n == 0 {
                lab.pass(SECOND);
                lab.origin_bytes("a", 1, bytes + 1);
                lab.pass(LEASE_STALL / 2);
                assert_eq!(lab.lease_holder(1), "b");
                break;
            }
        }
    }
}

#[test]
fn who_says_with_each_word_that_the_content_is_another_goes_alone() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    lab.content("a", 1, LENGTH * 2);
    assert_eq!(lab.lease_holder(1), "a");
    lab.content("a", 1, LENGTH);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn a_stalled_lease_stays_while_nobody_else_wants_it_and_goes_to_the_first_who_does() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.pass(LEASE_STALL * 3);
    assert_eq!((lab.lease_holder(1), lab.talk("a", 1).revoked), ("a".to_owned(), 0));
    assert!(lab.join("b", 1).lease.is_some());
    assert_eq!(lab.talk("a", 1).revoked, 1);
}

#[test]
fn a_stalled_lease_that_moves_again_is_alive_again() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.pass(LEASE_STALL * 3);
    lab.origin_bytes("a", 1, 1);
    assert_eq!(lab.join("b", 1).lease, None);
    lab.pass(LEASE_STALL);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn after_a_lease_without_any_progress_the_next_has_twice_the_time() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.pass(LEASE_STALL);
    assert_eq!(lab.lease_holder(1), "b");
    lab.pass(LEASE_STALL * 2 - SECOND);
    assert_eq!(lab.lease_holder(1), "b");
    lab.pass(SECOND);
    assert_eq!(lab.lease_holder(1), "a");
    // Progress puts an end to that: the next one after it has twice the time again, not more.
    lab.origin_bytes("a", 1, 1);
    lab.pass(LEASE_STALL);
    assert_eq!(lab.lease_holder(1), "b");
    lab.pass(LEASE_STALL * 2);
    assert_eq!(lab.lease_holder(1), "a");
}

#[test]
fn a_holder_that_is_done_is_not_asked_again() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.give_back("a", 1, LeaseOutcome::Done);
    assert_eq!(lab.lease_holder(1), "b");
    assert_eq!(lab.cluster.counts().leases_handed_over, 0);
    lab.close("b", 1);
    assert_eq!(lab.lease_holder(1), "");
}

#[test]
fn a_holder_that_is_done_waits_again_when_a_partner_fails_it() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.held("b", 1, 5);
    lab.give_back("a", 1, LeaseOutcome::Done);
    lab.give_back("b", 1, LeaseOutcome::Done);
    lab.failed("a", 1, "b", FailureReason::Timeout);
    assert_eq!(lab.lease_holder(1), "a");
}

#[test]
fn nobody_goes_to_the_origin_between_the_last_byte_and_the_report_of_it() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    lab.held("a", 1, LENGTH);
    lab.give_back("a", 1, LeaseOutcome::Done);
    assert_eq!(lab.lease_holder(1), "");
    lab.complete("a", 1);
    assert_eq!(lab.lease_holder(1), "");
    assert!(lab.talk("b", 1).partners["a"].complete);
}

#[test]
fn a_refused_holder_is_out_of_the_line() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.give_back("a", 1, LeaseOutcome::Refused);
    assert_eq!(lab.lease_holder(1), "b");
    lab.give_back("b", 1, LeaseOutcome::Refused);
    assert_eq!(lab.lease_holder(1), "");
}

#[test]
fn a_failed_holder_goes_to_the_end_of_the_line_and_gets_three_tries() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    for holder in ["a", "b", "a", "b", "a", "b"] {
        assert_eq!(lab.lease_holder(1), holder);
        lab.give_back(holder, 1, LeaseOutcome::Failed);
    }
    assert_eq!(lab.lease_holder(1), "");
}

#[test]
fn a_lease_that_was_taken_back_cannot_be_returned() {
    let mut lab = Lab::with(&["a", "b"]);
    let lease = lab.join("a", 1).lease.unwrap();
    lab.join("b", 1);
    lab.pass(LEASE_STALL);
    lab.report(
        "a",
        1,
        Report { lease_returned: Some((lease, LeaseOutcome::Unshareable)), ..Default::default() },
    );
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn what_cannot_be_shared_everybody_fetches_alone_for_a_minute() {
    let mut lab = Lab::with(&["a", "b", "c", "d"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.register("c", 1);
    lab.give_back("a", 1, LeaseOutcome::Unshareable);
    assert!(lab.talk("b", 1).unshareable && !lab.talk("a", 1).unshareable);
    lab.open("c", 1);
    assert!(lab.talk("c", 1).unshareable);
    let (first, second) = (lab.register("d", 1).lease, lab.register("d", 1).lease);
    assert!(first.is_some() && second.is_some() && first != second);
    assert_eq!(lab.lease_holder(1), "");

    lab.pass(UNSHAREABLE);
    lab.host("e");
    assert!(lab.join("e", 1).lease.is_some());
    lab.host("f");
    assert_eq!(lab.join("f", 1).lease, None);
}

#[test]
fn a_crowd_that_comes_to_what_cannot_be_shared_does_not_look_at_one_another() {
    let names: Vec<String> = (0..60).map(|n| format!("h{n:02}")).collect();
    let mut lab = Lab::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
    lab.join("h00", 1);
    names[1..].iter().for_each(|name| drop(lab.register(name, 1)));
    lab.give_back("h00", 1, LeaseOutcome::Unshareable);
    names[1..].iter().for_each(|name| lab.open(name, 1));
    assert!(names[1..].iter().all(|name| lab.talk(name, 1).unshareable));
    let looked_at = lab.cluster.tasks[&task(1)].looked_at.get();
    assert!(looked_at <= 3 * names.len(), "{looked_at}");
}

#[test]
fn the_mark_that_a_task_cannot_be_shared_outlives_its_peers() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    lab.join("a", 1);
    lab.give_back("a", 1, LeaseOutcome::Unshareable);
    lab.close("a", 1);
    assert!(lab.register("b", 1).lease.is_some() && lab.register("c", 1).lease.is_some());
    lab.die("b");
    lab.die("c");
    assert_eq!(lab.cluster.counts().tasks, 1);
    lab.pass(UNSHAREABLE);
    assert_eq!(lab.cluster.counts().tasks, 0);
}

#[test]
fn a_waiter_gets_the_lease_when_the_last_usable_source_fails_it() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    lab.inventory("a", &[1]).unwrap();
    lab.inventory("b", &[1]).unwrap();
    lab.join("c", 1);
    lab.failed("c", 1, "a", FailureReason::Timeout);
    assert_eq!(lab.lease_holder(1), "");
    lab.failed("c", 1, "b", FailureReason::Unreachable);
    assert_eq!(lab.lease_holder(1), "c");
}

#[test]
fn a_waiter_gets_the_lease_when_the_last_source_goes() {
    for goes in [|lab: &mut Lab| lab.die("a"), |lab: &mut Lab| lab.drop_task("a", 1)] {
        let mut lab = Lab::with(&["a", "b"]);
        lab.inventory("a", &[1]).unwrap();
        lab.join("b", 1);
        goes(&mut lab);
        assert_eq!(lab.lease_holder(1), "b");
        assert_eq!(lab.talk("b", 1).partners(), [""; 0]);
    }
}

#[test]
fn a_holder_that_registers_again_goes_to_the_end_of_the_line() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    assert_eq!(lab.join("a", 1).lease, None);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn a_holder_that_never_opens_its_stream_loses_the_lease() {
    let mut lab = Lab::with(&["a", "b"]);
    assert!(lab.register("a", 1).lease.is_some());
    lab.join("b", 1);
    lab.pass(LEASE_STALL);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn a_failure_between_two_that_download_takes_the_source_from_both() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.content("a", 1, LENGTH);
    lab.join("b", 1);
    lab.held("a", 1, LENGTH);
    lab.give_back("a", 1, LeaseOutcome::Refused);
    assert_eq!(lab.lease_holder(1), "");
    lab.failed("a", 1, "b", FailureReason::Timeout);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn a_holder_that_is_done_waits_again_when_a_partner_goes() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.held("b", 1, 5);
    lab.give_back("a", 1, LeaseOutcome::Done);
    lab.give_back("b", 1, LeaseOutcome::Done);
    assert_eq!(lab.lease_holder(1), "");
    lab.die("b");
    assert_eq!(lab.lease_holder(1), "a");
}

#[test]
fn a_peer_with_every_byte_is_sent_to_no_origin() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    lab.held("a", 1, LENGTH);
    lab.give_back("a", 1, LeaseOutcome::Done);
    lab.die("b");
    assert_eq!(lab.lease_holder(1), "");
}

#[test]
fn a_lease_that_comes_back_before_its_loss_was_read_is_told_after_it() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.set_deaf("a", 1, true);
    lab.pass(LEASE_STALL);
    lab.close("b", 1);
    assert_eq!(lab.lease_holder(1), "a");
    lab.set_deaf("a", 1, false);
    assert_eq!((lab.talk("a", 1).revoked, lab.talk("a", 1).lease.is_some()), (1, true));
}

#[test]
fn the_loss_of_a_lease_is_told_though_another_came_and_went_before_it_was_read() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.set_deaf("a", 1, true);
    // Nobody gets anything, so that it goes to and fro.
    let mut holders = vec!["a".to_owned()];
    for _ in 0..100 {
        lab.pass(LEASE_STALL / 2);
        let holder = lab.lease_holder(1);
        if holders.last() != Some(&holder) {
            holders.push(holder);
        }
        if holders == ["a", "b", "a", "b"] {
            break;
        }
    }
    assert_eq!(holders, ["a", "b", "a", "b"]);
    lab.set_deaf("a", 1, false);
    assert_eq!((lab.talk("a", 1).revoked, lab.talk("a", 1).lease), (1, None));
}

#[test]
fn a_lease_that_was_never_read_is_not_taken_back_aloud() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    for host in ["a", "b", "c"] {
        lab.join(host, 1);
    }
    lab.set_deaf("b", 1, true);
    lab.close("a", 1);
    assert_eq!(lab.lease_holder(1), "b");
    lab.pass(LEASE_STALL);
    assert_eq!(lab.lease_holder(1), "c");
    lab.set_deaf("b", 1, false);
    assert_eq!((lab.talk("b", 1).revoked, lab.talk("b", 1).lease), (0, None));
}

/// A scheduler took over from one that is lost: its daemons come one after the other.
fn moved(lab: &mut Lab, host: &str, at_origin: bool) -> bool {
    let registration = Registration { moved: true, at_origin, ..Registration::default() };
    lab.try_register_at(host, 1, registration).unwrap();
    lab.open(host, 1);
    lab.lease_holder(1) == host
}

#[test]
fn whoever_reads_from_the_origin_already_has_the_lease_of_a_scheduler_that_takes_over() {
    let mut lab = Lab::with(&["a", "b", "c", "seed"]);
    assert!(!moved(&mut lab, "a", false));
    assert!(!moved(&mut lab, "seed", false));
    // One who knows of no other scheduler.
    assert_eq!(lab.join("b", 1).lease, None);
    lab.pass(KEPT - Duration::from_millis(1));
    assert!(moved(&mut lab, "c", true));
    lab.close("c", 1);
    assert_eq!(lab.lease_holder(1), "seed", "it is kept once");
}

#[test]
fn a_lease_for_which_nobody_comes_is_given_in_the_usual_order() {
    let mut lab = Lab::with(&["a", "seed"]);
    assert!(!moved(&mut lab, "a", false) && !moved(&mut lab, "seed", false));
    lab.pass(KEPT);
    assert_eq!(lab.lease_holder(1), "seed");
}

#[test]
fn a_holder_who_goes_to_another_scheduler_leaves_the_lease_to_nobody_at_once() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.give_back("a", 1, LeaseOutcome::Moved);
    lab.close("a", 1);
    assert_eq!(lab.lease_holder(1), "");
    lab.pass(KEPT);
    assert_eq!(lab.lease_holder(1), "b", "it is still here");
}

#[test]
fn while_a_lease_is_kept_nobody_is_told_that_there_is_no_hope() {
    let mut lab = Lab::with(&["a"]);
    lab.rule(Access { disable_back_source: true, ..Access::default() });
    moved(&mut lab, "a", false);
    assert_eq!(lab.talk("a", 1).refused, None);
    lab.pass(KEPT);
    assert!(lab.talk("a", 1).refused.is_some());
}

#[test]
fn one_who_comes_from_the_origin_and_may_not_go_there_leaves_the_lease_to_others() {
    let mut lab = Lab::with(&["a", "b"]);
    assert!(!moved(&mut lab, "a", false));
    let barred = Registration {
        moved: true,
        at_origin: true,
        priority: Priority::level(2).unwrap(),
        ..Registration::default()
    };
    lab.try_register_at("b", 1, barred).unwrap();
    assert_eq!(lab.lease_holder(1), "a");
}

#[test]
fn who_goes_to_and_fro_and_brings_nothing_has_the_lease_kept_once() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.give_back("a", 1, LeaseOutcome::Moved);
    assert!(moved(&mut lab, "a", true));
    lab.origin_bytes("a", 1, 1);
    lab.give_back("a", 1, LeaseOutcome::Moved);
    assert_eq!(lab.lease_holder(1), "", "it has brought something");
    assert!(moved(&mut lab, "a", true));
    lab.give_back("a", 1, LeaseOutcome::Moved);
    assert_eq!(lab.lease_holder(1), "b");
}

/// A cluster of these hosts, of which the first reports twice each second when it holds a lease.
fn reporting(hosts: &[&str]) -> Lab {
    reporting_by(4, hosts)
}

/// The same, but the first speaks the protocol of this number.
fn reporting_by(protocol: u32, hosts: &[&str]) -> Lab {
    let mut lab = Lab::with(&hosts[1..]);
    lab.announce(lab.described(hosts[0], |host| host.protocol = protocol));
    hosts.iter().for_each(|host| drop(lab.join(host, 1)));
    assert_eq!(lab.lease_holder(1), hosts[0]);
    lab
}

#[test]
fn a_holder_of_whom_nothing_is_heard_is_cut_off_and_out_of_the_task() {
    let mut lab = reporting(&["a", "b", "c"]);
    lab.origin_bytes("a", 1, 1000);
    lab.held("a", 1, 1000);
    lab.pass(HOLDER_SILENT - Duration::from_millis(1));
    assert_eq!((lab.lease_holder(1), lab.talk("b", 1).partners()), ("a".to_owned(), vec!["a"]));
    lab.pass(Duration::from_millis(1));
    assert_eq!((lab.lease_holder(1), lab.talk("b", 1).partners()), ("b".to_owned(), vec![]));
    assert_eq!(lab.talk("a", 1).ended, Some(Some(Refusal::NotRegistered)));
    lab.pass(LEASE_STALL);
    assert_eq!(lab.lease_holder(1), "c", "it says nothing about the origin: the next has no more time");
}

#[test]
fn a_holder_of_an_earlier_version_that_reports_each_second_is_waited_for_twice_as_long() {
    let mut lab = reporting_by(3, &["a", "b"]);
    lab.report("a", 1, Report::default());
    lab.pass(HOLDER_SILENT * 2 - Duration::from_millis(1));
    assert_eq!(lab.lease_holder(1), "a");
    lab.pass(Duration::from_millis(1));
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn a_holder_that_has_every_byte_and_falls_silent_leaves_those_who_wait_for_it_to_the_origin() {
    let mut lab = reporting(&["a", "b"]);
    lab.content("a", 1, LENGTH);
    lab.held("a", 1, LENGTH);
    lab.pass(HOLDER_SILENT);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn a_holder_that_reports_has_its_time_though_nothing_comes_and_no_more() {
    let mut lab = reporting(&["a", "b"]);
    for _ in 0..9 {
        lab.pass(SECOND);
        lab.report("a", 1, Report::default());
        assert_eq!(lab.lease_holder(1), "a");
    }
    lab.pass(SECOND);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn while_a_report_waits_for_its_turn_its_sender_keeps_the_lease_and_what_it_says_decides() {
    for (bytes, holder) in [(1, "a"), (0, "b")] {
        let mut lab = reporting(&["a", "b"]);
        lab.arrives("a", 1);
        lab.pass(LEASE_STALL * 2);
        assert_eq!(lab.lease_holder(1), "a");
        lab.origin_bytes("a", 1, bytes);
        assert_eq!(lab.lease_holder(1), holder);
        lab.pass(HOLDER_SILENT);
        assert_eq!(lab.lease_holder(1), "b");
    }
}

#[test]
fn what_waits_on_a_conversation_that_another_replaced_keeps_no_lease() {
    let mut lab = reporting(&["a", "b"]);
    lab.arrives("a", 1);
    lab.pass(LEASE_STALL);
    lab.open("a", 1);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn a_holder_that_was_cut_off_and_is_back_before_another_came_goes_on() {
    let mut lab = reporting(&["a"]);
    lab.pass(HOLDER_SILENT + SECOND);
    lab.report("a", 1, Report::default());
    lab.host("b");
    assert_eq!(lab.join("b", 1).lease, None);
    lab.pass(HOLDER_SILENT - Duration::from_millis(1));
    assert_eq!(lab.lease_holder(1), "a");
    lab.pass(Duration::from_millis(1));
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn a_seed_whose_lease_brings_nothing_waits_behind_those_who_had_none() {
    let ends: [fn(&mut Lab); 2] =
        [|lab| lab.pass(LEASE_STALL), |lab| lab.give_back("seed", 1, LeaseOutcome::Failed)];
    for end in ends {
        let mut lab = Lab::with(&["seed", "a", "b"]);
        for host in ["seed", "a", "b"] {
            lab.join(host, 1);
        }
        end(&mut lab);
        assert_eq!(lab.lease_holder(1), "a");
        lab.close("a", 1);
        assert_eq!(lab.lease_holder(1), "b");
        lab.close("b", 1);
        assert_eq!(lab.lease_holder(1), "seed");
        // What it brings counts for it: it is before one that has failed as often since.
        lab.origin_bytes("seed", 1, 1);
        lab.host("c");
        lab.join("c", 1);
        for next in ["c", "seed"] {
            let holder = lab.lease_holder(1);
            lab.give_back(&holder, 1, LeaseOutcome::Failed);
            assert_eq!(lab.lease_holder(1), next);
        }
    }
}
