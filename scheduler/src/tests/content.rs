//! What peers learn of a task's content.

use super::lab::{LENGTH, Lab, content, hash, id, task, whole};
use crate::message::{Content, Report};
use crate::refusal::Refusal;
use darter_protocol::Root;

#[test]
fn what_the_origin_answered_is_told_to_those_who_wait_and_to_those_who_come() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    assert_eq!(lab.talk("b", 1).length, Some(LENGTH));
    assert_eq!(lab.join("c", 1).length, Some(LENGTH));
}

#[test]
fn hashes_go_to_everybody_but_the_one_who_reported_them() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    let before = lab.talk("a", 1).packets;
    lab.hashes("a", 1, &[3, 1]);
    assert_eq!(lab.talk("b", 1).hashes.keys().collect::<Vec<_>>(), [&1, &3]);
    assert_eq!(lab.talk("a", 1).packets, before);
    // Nor do they come along with the next packet.
    lab.held("b", 1, 1);
    assert_eq!((lab.talk("a", 1).packets, lab.talk("a", 1).hashes.len()), (before + 1, 0));
    assert_eq!(lab.join("c", 1).hashes.len(), 2);
}

#[test]
fn hashes_that_wait_for_a_slow_reader_make_one_packet() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.content("a", 1, LENGTH);
    // Until its stream is open, "b" reads nothing.
    lab.register("b", 1);
    for piece in 0..10 {
        lab.hashes("a", 1, &[piece]);
    }
    lab.open("b", 1);
    // The registration's answer, and one packet.
    assert_eq!((lab.talk("b", 1).hashes.len(), lab.talk("b", 1).packets), (10, 2));
}

#[test]
fn hashes_count_only_from_the_holder_of_the_lease() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    lab.hashes("b", 1, &[0, 1]);
    assert!(lab.talk("a", 1).hashes.is_empty());
    assert_eq!(lab.cluster.counts().ignored, 2);
}

#[test]
fn a_piece_that_does_not_exist_is_an_error() {
    let mut lab = Lab::with(&["a"]);
    lab.join("a", 1);
    let report = |index| Report { from_origin: vec![(index, hash(0))], ..Default::default() };
    assert_eq!(lab.try_report("a", 1, report(0)), Err(Refusal::NoSuchPiece));
    lab.content("a", 1, LENGTH);
    assert_eq!(lab.try_report("a", 1, report(10)), Err(Refusal::NoSuchPiece));
    assert_eq!(lab.try_report("a", 1, report(9)), Ok(()));
}

#[test]
fn content_and_hashes_of_one_report_count_before_the_lease_that_it_gives_back() {
    let mut lab = Lab::with(&["a", "b"]);
    let lease = lab.join("a", 1).lease.unwrap();
    lab.join("b", 1);
    let report = Report {
        content: Some(content(100)),
        from_origin: vec![(0, hash(4))],
        held_bytes: 100,
        lease_returned: Some((lease, darter_protocol::scheduler::LeaseOutcome::Done)),
        ..Default::default()
    };
    // The daemon has given it back.
    lab.try_report_returning("a", 1, report);
    assert_eq!((lab.talk("b", 1).hashes[&0], lab.talk("b", 1).partners()), (4, vec!["a"]));
    assert_eq!(lab.lease_holder(1), "");
}

#[test]
fn other_content_replaces_the_first_where_nobody_has_a_byte_of_it() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    lab.hashes("a", 1, &[0]);
    lab.close("a", 1);
    lab.content("b", 1, LENGTH * 2);
    assert_eq!(lab.cluster.stat(&task(1)).content.map(|content| content.length), Some(LENGTH * 2));
    assert_eq!(lab.lease_holder(1), "b");
    lab.host("c");
    assert!(lab.join("c", 1).hashes.is_empty());
}

#[test]
fn a_holder_that_sees_other_content_than_others_have_goes_on_alone() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    for host in ["a", "b", "c"] {
        lab.join(host, 1);
    }
    lab.content("a", 1, LENGTH);
    lab.held("a", 1, 1);
    lab.close("a", 1);
    lab.content("b", 1, LENGTH * 2);
    assert!(lab.talk("b", 1).unshareable);
    assert_eq!(lab.cluster.stat(&task(1)).content.map(|content| content.length), Some(LENGTH));
    assert_eq!(lab.lease_holder(1), "c");
    // What it has is of the other content: nobody is sent to it.
    lab.held("b", 1, 1);
    assert_eq!(lab.talk("c", 1).partners(), ["a"]);
    // Nor is it told of pieces that are not its own.
    let packets = lab.talk("b", 1).packets;
    lab.hashes("c", 1, &[0]);
    assert_eq!(lab.talk("b", 1).packets, packets);
}

#[test]
fn a_holder_that_sees_another_hash_goes_on_alone() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    lab.hashes("a", 1, &[0]);
    lab.close("a", 1);
    lab.report("b", 1, Report { from_origin: vec![(0, hash(77))], ..Default::default() });
    assert!(lab.talk("b", 1).unshareable);
    assert_eq!(lab.lease_holder(1), "");
}

/// "a" may go to the origin and has not heard from it, "b" waits, and these say that they hold content of that length.
fn announced(by: &[&str], length: u64) -> Lab {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    for host in by {
        lab.host(host);
        lab.try_complete(host, 1, whole(length)).unwrap();
    }
    assert_eq!(lab.talk("b", 1).partners(), by);
    lab
}

#[test]
fn what_one_announces_who_never_spoke_with_the_origin_gives_way_to_what_the_origin_says() {
    let mut lab = announced(&["liar", "other"], LENGTH * 2);
    lab.content("a", 1, LENGTH);
    let stat = lab.cluster.stat(&task(1));
    assert_eq!((stat.complete, stat.content.map(|content| content.length)), (0, Some(LENGTH)));
    assert_eq!((lab.lease_holder(1).as_str(), lab.talk("a", 1).unshareable), ("a", false));
    assert_eq!((lab.talk("b", 1).partners(), lab.talk("b", 1).length), (vec![], Some(LENGTH)));
    // Nor is it believed when it says so again; and it may serve what it has else.
    assert_eq!(lab.try_complete("liar", 1, whole(LENGTH * 2)), Err(Refusal::OtherContent));
    assert!(!lab.cluster.is_quarantined(&id("liar")));
    lab.held("a", 1, 1);
    assert_eq!(lab.talk("b", 1).partners(), ["a"]);
}

#[test]
fn what_three_hosts_announce_one_word_does_not_replace() {
    let mut lab = announced(&["c", "d", "e"], LENGTH * 2);
    lab.content("a", 1, LENGTH);
    let stat = lab.cluster.stat(&task(1));
    assert_eq!((stat.complete, stat.content.map(|content| content.length)), (3, Some(LENGTH * 2)));
    assert!(lab.talk("a", 1).unshareable);
    // Nor does its word count at the end, outside the task.
    assert_eq!(lab.try_complete("a", 1, whole(LENGTH)), Err(Refusal::OtherContent));
}

#[test]
fn who_brought_it_from_the_origin_is_believed_what_it_hashes_to_and_an_announcer_is_not() {
    let mut lab = announced(&[], LENGTH);
    lab.content("a", 1, LENGTH);
    lab.hashes("a", 1, &[0]);
    lab.host("liar");
    let other = Content { root: Some(Root::from([8; 32])), ..content(LENGTH) };
    lab.try_complete("liar", 1, other.clone()).unwrap();
    lab.complete("a", 1);
    let holders = lab.cluster.stat(&task(1)).holders;
    assert_eq!(holders.iter().map(|holder| holder.host_id.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(lab.talk("b", 1).partners(), ["a"]);
    assert_eq!(lab.talk("b", 1).hashes.len(), 1);
    assert_eq!(lab.try_complete("liar", 1, other), Err(Refusal::OtherContent));
    // From then on it stands: another one who went there does not replace it.
    lab.die("a");
    assert_eq!(lab.lease_holder(1), "b");
    let third = Content { root: Some(Root::from([7; 32])), ..content(LENGTH) };
    assert_eq!(lab.try_complete("b", 1, third), Err(Refusal::OtherContent));
}

#[test]
fn other_content_from_one_without_the_lease_is_ignored() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    lab.content("b", 1, LENGTH + 1);
    assert_eq!(lab.cluster.stat(&task(1)).content.map(|content| content.length), Some(LENGTH));
    assert!(!lab.talk("b", 1).unshareable);
}

#[test]
fn a_root_is_told_as_soon_as_somebody_holds_everything() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    assert!(!lab.talk("b", 1).root);
    lab.complete("a", 1);
    assert!(lab.talk("b", 1).root);
}

#[test]
fn hashes_are_dropped_when_a_holder_can_give_them_and_nobody_downloads() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    lab.hashes("a", 1, &[0, 1]);
    lab.complete("a", 1);
    assert_eq!(lab.cluster.tasks[&task(1)].hashes.len(), 2);
    lab.close("b", 1);
    assert_eq!(lab.cluster.tasks[&task(1)].hashes.len(), 0);
    let talk = lab.join("b", 1);
    assert!(talk.hashes.is_empty() && talk.root);
}

#[test]
fn empty_content_makes_nobody_a_source_before_it_says_so() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, 0);
    lab.close("a", 1);
    assert_eq!(lab.lease_holder(1), "b");
}
