//! Hosts and peers: who is here, and how that begins and ends.

use super::lab::{LENGTH, Lab, content, id, task, whole};
use crate::cluster::{MAX_DOWNLOADS_PER_HOST, MAX_TASKS_PER_HOST, Sources, Taken};
use crate::message::{Content, Held, Registration};
use crate::refusal::Refusal;
use crate::task::SILENCE;
use darter_protocol::{Root, TaskId};
use std::time::Duration;

#[test]
fn a_host_without_a_life_line_is_told_to_announce_itself() {
    let mut lab = Lab::new();
    assert_eq!(lab.try_register("a", 1, 0).unwrap_err(), Refusal::UnknownHost);
    assert_eq!(lab.inventory("a", &[1]), Err(Refusal::UnknownHost));
    assert_eq!(lab.try_complete("a", 1, whole(1)), Err(Refusal::UnknownHost));
    lab.host("a");
    assert!(lab.try_register("a", 1, 0).is_ok());
}

#[test]
fn a_conversation_needs_a_registration() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.inventory("b", &[1]).unwrap();
    for host in ["a", "b"] {
        let opened = lab.cluster.handle_conversation_opened(lab.now, &id(host), task(1));
        assert_eq!(opened, Err(Refusal::NotRegistered));
    }
}

#[test]
fn a_second_life_line_replaces_the_first_and_outlives_its_end() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.inventory("a", &[1]).unwrap();
    lab.host("a");
    assert_eq!(lab.join("b", 1).partners(), ["a"]);
    lab.die("a");
    assert_eq!(lab.talk("b", 1).partners(), [""; 0]);
}

#[test]
fn a_life_line_may_not_change_its_host() {
    let mut lab = Lab::with(&["a", "b"]);
    let life = lab.cluster.world.hosts.life(lab.cluster.world.hosts.key(&id("a")).unwrap()).unwrap();
    let (stream, mut host) = (life.lifeline, life.host.clone());
    assert_eq!(lab.cluster.handle_host_renewed(lab.now, stream, host.clone()), Ok(()));
    host.id = id("b");
    assert_eq!(lab.cluster.handle_host_renewed(lab.now, stream, host), Err(Refusal::OtherHost));
}

#[test]
fn partners_learn_the_new_address_of_a_host_that_moved() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.inventory("a", &[1]).unwrap();
    lab.join("b", 1);
    let mut host =
        lab.cluster.world.hosts.host(lab.cluster.world.hosts.key(&id("a")).unwrap()).unwrap().clone();
    host.ip = "192.0.2.77".parse().unwrap();
    lab.announce(host);
    assert_eq!(lab.talk("b", 1).partners["a"].ip, "192.0.2.77");
}

#[test]
fn a_host_that_leaves_is_gone_at_once_and_its_streams_end() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.held("a", 1, 1);
    lab.cluster.handle_host_left(lab.now, &id("a"));
    lab.pass(Duration::ZERO);
    assert_eq!(lab.talk("a", 1).ended, Some(Some(Refusal::HostGone)));
    assert_eq!((lab.talk("b", 1).partners(), lab.lease_holder(1)), (vec![], "b".to_owned()));
    // The stream that it closes afterwards means nothing.
    lab.die("a");
    assert_eq!(lab.cluster.counts().hosts, 1);
}

#[test]
fn what_a_host_held_is_forgotten_with_it() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.inventory("a", &[1, 2]).unwrap();
    assert_eq!(lab.cluster.counts().complete, 2);
    lab.die("a");
    assert_eq!((lab.cluster.counts().complete, lab.cluster.counts().tasks), (0, 0));
    lab.host("a");
    assert!(lab.join("b", 1).lease.is_some());
}

#[test]
fn a_task_that_nobody_has_is_forgotten() {
    let mut lab = Lab::with(&["a"]);
    lab.join("a", 1);
    lab.content("a", 1, LENGTH);
    lab.close("a", 1);
    assert_eq!(lab.cluster.counts().tasks, 0);
    assert_eq!(lab.cluster.stat(&task(1)).content, None);
}

#[test]
fn a_second_registration_replaces_the_first_and_its_stream() {
    let mut lab = Lab::with(&["a"]);
    lab.join("a", 1);
    let first = lab.talk("a", 1).stream.unwrap();
    lab.cluster.handle_registered(lab.now, &id("a"), task(1), &Registration::default()).unwrap();
    assert_eq!(lab.cluster.take(first), Taken::Ended(Some(Refusal::Replaced)));
    // The end of the first stream, which comes after the second registration, ends nothing.
    lab.join("a", 1);
    assert_eq!(lab.cluster.stat(&task(1)).downloading, 1);
}

#[test]
fn a_stream_opened_anew_is_told_everything_again() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.content("a", 1, LENGTH);
    lab.hashes("a", 1, &[0, 1]);
    lab.held("a", 1, 1);
    lab.join("b", 1);
    for host in ["a", "b"] {
        let known = lab.talk(host, 1).clone();
        lab.open(host, 1);
        let again = lab.talk(host, 1);
        assert_eq!(
            (&again.partners, &again.hashes, again.lease),
            (&known.partners, &known.hashes, known.lease)
        );
        assert_eq!((again.length, again.packets), (Some(LENGTH), 1));
    }
}

#[test]
fn a_peer_that_never_opens_its_stream_is_forgotten() {
    let mut lab = Lab::with(&["a"]);
    lab.register("a", 1);
    lab.pass(SILENCE - Duration::from_secs(1));
    assert_eq!(lab.cluster.stat(&task(1)).downloading, 1);
    lab.pass(Duration::from_secs(1));
    assert_eq!(lab.cluster.counts().tasks, 0);
}

#[test]
fn a_peer_whose_stream_ends_still_serves_what_it_has() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.held("a", 1, 1);
    lab.close("a", 1);
    assert_eq!(lab.talk("b", 1).partners(), ["a"]);
    assert_eq!(lab.join("c", 1).partners(), ["a"]);
    assert_eq!(lab.lease_holder(1), "b");
}

#[test]
fn a_peer_that_gives_up_with_every_byte_is_not_named_any_more() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.content("a", 1, LENGTH);
    lab.held("a", 1, LENGTH);
    lab.give_up("a", 1);
    assert_eq!((lab.talk("b", 1).partners(), lab.lease_holder(1)), (vec![], "b".to_owned()));
}

#[test]
fn a_download_that_an_earlier_ones_result_ends_is_told_so() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.join("b", 1);
    lab.give_up_late("b", 1);
    assert_eq!(lab.talk("b", 1).ended, Some(None));
    assert_eq!(lab.talk("a", 1).ended, None);
}

#[test]
fn a_result_must_agree_with_what_is_known() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.content("a", 1, LENGTH);
    assert_eq!(lab.try_complete("a", 1, whole(LENGTH + 1)), Err(Refusal::OtherContent));
    lab.complete("a", 1);
    let other = Content { root: Some(Root::from([8; 32])), ..content(LENGTH) };
    assert_eq!(lab.try_complete("b", 1, other), Err(Refusal::OtherContent));
}

#[test]
fn a_root_must_be_the_one_that_the_pieces_give() {
    let mut lab = Lab::with(&["a"]);
    lab.join("a", 1);
    lab.content("a", 1, 100);
    lab.hashes("a", 1, &[0]);
    assert_eq!(lab.try_complete("a", 1, whole(100)), Err(Refusal::OtherContent));
    // Content of one piece has that piece's hash.
    let right = Content { root: Some(Root::from([0; 32])), ..content(100) };
    assert_eq!(lab.try_complete("a", 1, right), Ok(()));
}

#[test]
fn inventory_of_other_content_is_not_believed() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.join("a", 1);
    lab.content("a", 1, LENGTH - 1);
    lab.inventory("b", &[1, 2]).unwrap();
    assert_eq!((lab.cluster.stat(&task(1)).complete, lab.cluster.stat(&task(2)).complete), (0, 1));
    assert_eq!(lab.cluster.counts().ignored, 1);
}

#[test]
fn leaving_a_task_does_not_end_a_download_of_it() {
    let mut lab = Lab::with(&["a"]);
    lab.join("a", 1);
    lab.drop_task("a", 1);
    assert_eq!(lab.cluster.stat(&task(1)).downloading, 1);
}

#[test]
fn stat_counts_holders_and_downloads() {
    let mut lab = Lab::with(&["a", "b", "c"]);
    lab.join("a", 1);
    lab.content("a", 1, LENGTH);
    lab.join("b", 1);
    lab.inventory("c", &[1]).unwrap();
    let stat = lab.cluster.stat(&task(1));
    assert_eq!((stat.complete, stat.downloading, stat.lease_holder.as_str()), (1, 2, "a"));
    assert_eq!(stat.content.map(|content| content.length), Some(LENGTH));
    // "b" has nothing yet.
    let holders: Vec<_> =
        stat.holders.iter().map(|holder| (holder.host_id.as_str(), holder.complete)).collect();
    assert_eq!(holders, [("c", true)]);
}

#[test]
fn stat_names_some_of_many_holders_the_complete_ones_first() {
    let names: Vec<String> = (0..50).map(|n| format!("h{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut lab = Lab::with(&names);
    lab.join("h00", 1);
    lab.content("h00", 1, LENGTH);
    for name in names.iter().skip(10) {
        lab.inventory(name, &[1]).unwrap();
    }
    let stat = lab.cluster.stat(&task(1));
    assert_eq!((stat.complete, stat.holders.len()), (40, 32));
    assert!(stat.holders.iter().all(|holder| holder.complete));
    assert_eq!(stat.holders[0].host_id, "h10");
}

#[test]
fn one_host_has_a_bounded_number_of_downloads() {
    let mut lab = Lab::with(&["a"]);
    let task = |n: usize| TaskId::of_url(&n.to_string(), "", "");
    for n in 0..MAX_DOWNLOADS_PER_HOST {
        lab.cluster.handle_registered(lab.now, &id("a"), task(n), &Registration::default()).unwrap();
    }
    let more = lab.cluster.handle_registered(
        lab.now,
        &id("a"),
        task(MAX_DOWNLOADS_PER_HOST),
        &Registration::default(),
    );
    assert_eq!(more, Err(Refusal::TooMany("downloads of one host")));
    lab.die("a");
    assert_eq!(lab.cluster.counts().downloading, 0);
}

#[test]
fn a_stream_opened_anew_is_not_told_of_those_who_left_before() {
    let mut lab = Lab::with(&["a", "b"]);
    lab.inventory("a", &[1]).unwrap();
    lab.join("b", 1);
    lab.set_deaf("b", 1, true);
    lab.die("a");
    // The lab fails where a daemon is told to drop a partner that it was not given.
    lab.open("b", 1);
    assert_eq!(lab.talk("b", 1).partners(), [""; 0]);
}

#[test]
fn a_host_that_may_announce_no_more_still_downloads_from_others() {
    let mut lab = Lab::with(&["a", "b"]);
    let task = |n: usize| {
        let mut id = [0xcc; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        TaskId::from(id)
    };
    let held = |n: usize| Held { task: task(n), content: whole(LENGTH) };
    lab.cluster.handle_inventory(lab.now, &id("a"), (0..MAX_TASKS_PER_HOST).map(held).collect()).unwrap();
    let new = task(MAX_TASKS_PER_HOST);
    lab.cluster.handle_inventory(lab.now, &id("b"), vec![held(MAX_TASKS_PER_HOST)]).unwrap();
    let answer = lab.cluster.handle_registered(lab.now, &id("a"), new, &Registration::default()).unwrap();
    assert_eq!((answer.partners.len(), answer.lease), (1, None));
    // Nor does it have more than it may by completing what it downloads.
    let ended =
        lab.cluster.handle_peer_result(lab.now, (&id("a"), new), Some(whole(LENGTH)), Sources::default());
    assert_eq!(ended, Err(Refusal::TooMany("tasks of one host")));
    assert_eq!((lab.cluster.stat(&new).complete, lab.cluster.stat(&new).downloading), (1, 0));
    // What it has it may say again.
    lab.cluster.handle_inventory(lab.now, &id("a"), vec![held(0)]).unwrap();
}
