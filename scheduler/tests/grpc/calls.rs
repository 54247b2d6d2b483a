//! What daemons say, and what they are answered.

use crate::lab::{Daemon, LENGTH, server};
use darter_protocol::scheduler as proto;
use tonic::Code;

#[tokio::test]
async fn the_end_of_a_life_line_hands_the_lease_over() {
    let server = server().await;
    let (a, b) = (Daemon::connect(&server, "a").await, Daemon::connect(&server, "b").await);
    let ((line, epoch), (_line, same_epoch)) = (a.announce().await, b.announce().await);
    assert_eq!(epoch, same_epoch);

    assert!(a.register().await.unwrap().lease.is_some());
    let _talk = a.talk().await;
    assert_eq!(b.register().await.unwrap().lease, None);
    let mut waiting = b.talk().await;

    drop(line);
    let packet = waiting.down.message().await.unwrap().unwrap();
    assert!(packet.lease.is_some());
}

#[tokio::test]
async fn a_connection_that_breaks_hands_the_lease_over() {
    let server = server().await;
    let (a, b) = (Daemon::connect(&server, "a").await, Daemon::connect(&server, "b").await);
    let (line, _b_line) = (a.announce().await, b.announce().await);
    a.register().await.unwrap();
    let talk = a.talk().await;
    b.register().await.unwrap();
    let mut waiting = b.talk().await;

    drop((line, talk, a));
    assert!(waiting.down.message().await.unwrap().unwrap().lease.is_some());
}

#[tokio::test]
async fn a_waiter_is_told_of_content_hashes_and_the_complete_holder() {
    let server = server().await;
    let (a, b) = (Daemon::connect(&server, "a").await, Daemon::connect(&server, "b").await);
    let (_a_line, _b_line) = (a.announce().await, b.announce().await);
    a.register().await.unwrap();
    b.register().await.unwrap();
    let (fetching, mut waiting) = (a.talk().await, b.talk().await);
    let first = proto::PieceResult {
        content: Some(proto::Content { length: LENGTH, ..Default::default() }),
        from_origin: vec![proto::PieceHash { index: 1, hash: vec![5; 32].into() }],
        held_bytes: 1 << 20,
        ..Default::default()
    };
    fetching.up.send(first).await.unwrap();
    // One report, handled at once: one packet.
    let packet = waiting.down.message().await.unwrap().unwrap();
    assert_eq!(packet.content.unwrap().length, LENGTH);
    assert_eq!(packet.hashes.iter().map(|piece| piece.index).collect::<Vec<_>>(), [1]);
    assert_eq!(packet.partners.iter().map(|partner| partner.complete).collect::<Vec<_>>(), [false]);

    a.complete().await.unwrap();
    let packet = waiting.down.message().await.unwrap().unwrap();
    assert!(packet.partners[0].complete && packet.content.is_some_and(|content| content.root.len() == 32));
}

#[tokio::test]
async fn the_first_message_of_a_conversation_may_report_already() {
    let server = server().await;
    let (a, b) = (Daemon::connect(&server, "a").await, Daemon::connect(&server, "b").await);
    let (_a_line, _b_line) = (a.announce().await, b.announce().await);
    a.register().await.unwrap();
    b.register().await.unwrap();
    let mut waiting = b.talk().await;
    let _talk = a.talk_from(proto::PieceResult { held_bytes: 1, ..Default::default() }).await;
    let packet = waiting.down.message().await.unwrap().unwrap();
    assert_eq!(packet.partners.iter().map(|partner| partner.host_id.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn what_is_wrong_with_a_message_is_said() {
    let server = server().await;
    let a = Daemon::connect(&server, "a").await;
    assert_eq!(a.register().await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(a.complete().await.unwrap_err().code(), Code::FailedPrecondition);

    let mut line = a.life_line().await;
    let host = proto::Host { ip: "example.org".into(), ..a.host() };
    line.up.send(proto::AnnounceHostRequest { host: Some(host), ..Default::default() }).await.unwrap();
    let refused = line.down.message().await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "host.ip: it must be an IPv4 or IPv6 address")
    );

    let (_line, _) = a.announce().await;
    assert_eq!(a.talk().await.down.message().await.unwrap_err().code(), Code::FailedPrecondition);
    a.register().await.unwrap();
    let mut talk = a.talk().await;
    let short = proto::PieceHash { index: 0, hash: vec![0; 31].into() };
    talk.up.send(proto::PieceResult { from_origin: vec![short], ..Default::default() }).await.unwrap();
    assert_eq!(talk.down.message().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let server = server().await;
    let a = Daemon::connect(&server, "a").await;
    let _line = a.announce().await;
    let header = proto::Header { name: "x".into(), value: vec![0; 5 << 20].into() };
    let content = proto::Content { headers: vec![header], root: vec![0; 32].into(), ..Default::default() };
    let held = proto::HeldTask { task_id: vec![1; 32].into(), content: Some(content) };
    let request = proto::AnnounceTaskRequest { host_id: "a".into(), tasks: vec![held] };
    let refused = a.client.clone().announce_task(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_second_life_line_ends_the_first_and_only_that() {
    let server = server().await;
    let a = Daemon::connect(&server, "a").await;
    let (mut first, _) = a.announce().await;
    let (_second, _) = a.announce().await;
    assert_eq!(first.down.message().await.unwrap_err().code(), Code::Aborted);
    drop(first);
    assert!(a.register().await.is_ok());
}

#[tokio::test]
async fn a_host_that_says_goodbye_is_forgotten_and_its_life_line_ends_well() {
    let server = server().await;
    let a = Daemon::connect(&server, "a").await;
    let (mut line, _) = a.announce().await;
    a.complete().await.unwrap();
    let stat = || proto::StatTaskRequest { task_id: vec![1; 32].into() };
    assert_eq!(a.client.clone().stat_task(stat()).await.unwrap().into_inner().complete, 1);
    a.client.clone().leave_host(proto::LeaveHostRequest { host_id: "a".into() }).await.unwrap();
    assert_eq!(line.down.message().await.unwrap(), None);
    assert_eq!(a.client.clone().stat_task(stat()).await.unwrap().into_inner().complete, 0);
}

#[tokio::test]
async fn a_shutdown_ends_every_stream_and_returns() {
    let server = server().await;
    let a = Daemon::connect(&server, "a").await;
    let (mut line, _) = a.announce().await;
    a.register().await.unwrap();
    let mut talk = a.talk().await;
    drop(server.stop);
    assert_eq!(line.down.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(talk.down.message().await.unwrap_err().code(), Code::Unavailable);
    server.running.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_numbers_are_there_to_be_read() {
    let server = server().await;
    let a = Daemon::connect(&server, "a").await;
    let _line = a.announce().await;
    a.register().await.unwrap();
    let text = server.metrics();
    for line in [
        "darter_scheduler_hosts 1",
        "darter_scheduler_tasks 1",
        "darter_scheduler_peers{role=\"downloading\"} 1",
        "darter_scheduler_registrations_total 1",
        "darter_scheduler_leases_granted_total 1",
        "darter_scheduler_partner_failures_total{reason=\"corrupt\"} 0",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_long_inventory_is_taken_whole_and_left_again() {
    let server = server().await;
    let a = Daemon::connect(&server, "a").await;
    let _line = a.announce().await;
    let ids: Vec<_> = (0..1_234u32).map(|n| [&n.to_le_bytes()[..], &[0; 28]].concat()).collect();
    let content = proto::Content { length: 1, root: vec![9; 32].into(), ..Default::default() };
    let held = |id: &Vec<u8>| proto::HeldTask { task_id: id.clone().into(), content: Some(content.clone()) };
    let request = proto::AnnounceTaskRequest { host_id: "a".into(), tasks: ids.iter().map(held).collect() };
    a.client.clone().announce_task(request).await.unwrap();
    assert!(server.metrics().contains("darter_scheduler_tasks 1234\n"));

    let task_ids = ids.into_iter().map(Into::into).collect();
    let request = proto::LeaveTaskRequest { host_id: "a".into(), task_ids };
    a.client.clone().leave_task(request).await.unwrap();
    assert!(server.metrics().contains("darter_scheduler_tasks 0\n"));
}
