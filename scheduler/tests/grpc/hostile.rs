//! A daemon that means no good: what it costs is bounded, it is refused or quarantined with a reason, and the others finish.

use crate::lab::{Daemon, LENGTH, Server, server};
use darter_protocol::scheduler as proto;
use tonic::Code;

fn whole(length: u64) -> proto::Content {
    proto::Content { length, root: vec![9; 32].into(), ..Default::default() }
}

fn task(n: u32) -> Vec<u8> {
    [&n.to_le_bytes()[..], &[0xee; 28]].concat()
}

async fn announce(daemon: &Daemon, tasks: Vec<proto::HeldTask>) -> Result<(), tonic::Status> {
    let request = proto::AnnounceTaskRequest { host_id: daemon.name.into(), tasks };
    daemon.client.clone().announce_task(request).await.map(drop)
}

async fn state(daemon: &Daemon, id: &str) -> (proto::HostState, String) {
    let list =
        daemon.client.clone().list_hosts(proto::ListHostsRequest::default()).await.unwrap().into_inner();
    let host =
        list.hosts.into_iter().find(|host| host.host.as_ref().is_some_and(|host| host.id == id)).unwrap();
    (host.state(), host.reason)
}

/// Two honest daemons download: one has the lease, the other gets everything from it.
async fn honest_download(server: &Server) {
    let (a, b) = (Daemon::connect(server, "a").await, Daemon::connect(server, "b").await);
    let (_a_line, _b_line) = (a.announce().await, b.announce().await);
    assert!(a.register().await.unwrap().lease.is_some());
    let (talk, _) = (a.talk().await, b.register().await.unwrap());
    let mut waiting = b.talk().await;
    let content = Some(proto::Content { length: LENGTH, ..Default::default() });
    talk.up.send(proto::PieceResult { content, held_bytes: 1, ..Default::default() }).await.unwrap();
    a.complete().await.unwrap();
    loop {
        let packet = waiting.down.message().await.unwrap().unwrap();
        if packet.partners.iter().any(|partner| partner.host_id == "a" && partner.complete) {
            break;
        }
    }
    b.complete().await.unwrap();
}

#[tokio::test]
async fn it_announces_no_more_than_a_host_may() {
    let server = server().await;
    let evil = Daemon::connect(&server, "evil").await;
    let _line = evil.announce().await;
    let mut refused = None;
    for batch in 0..30 {
        let held = |n| proto::HeldTask { task_id: task(n).into(), content: Some(whole(1)) };
        let tasks = (batch * 10_000..(batch + 1) * 10_000).map(held).collect();
        if let Err(status) = announce(&evil, tasks).await {
            refused = Some((batch, status));
            break;
        }
    }
    let (batch, status) = refused.expect("it is refused at some time");
    assert_eq!(
        (batch, status.code(), status.message()),
        (20, Code::ResourceExhausted, "too many tasks of one host for this scheduler")
    );
    // What it has said is no more by being said again.
    let again = (0..10_000).map(|n| proto::HeldTask { task_id: task(n).into(), content: Some(whole(1)) });
    announce(&evil, again.collect()).await.unwrap();
    honest_download(&server).await;
}

#[tokio::test]
async fn a_thousand_streams_of_nobody_cost_nothing_and_hold_up_nobody() {
    let server = server().await;
    let evil = Daemon::connect(&server, "evil").await;
    let mut lines = Vec::new();
    for _ in 0..1_000 {
        lines.push(evil.life_line().await);
    }
    assert!(server.metrics().contains("darter_scheduler_hosts 0\n"));
    honest_download(&server).await;
}

#[tokio::test]
async fn it_is_quarantined_for_nonsense_and_told_what_is_wrong() {
    let server = server().await;
    let evil = Daemon::connect(&server, "evil").await;
    let _line = evil.announce().await;
    for round in 0..5 {
        assert_eq!(state(&evil, "evil").await.0, proto::HostState::Good, "{round}");
        evil.register().await.unwrap();
        let mut talk = evil.talk().await;
        let short = proto::PieceHash { index: 0, hash: vec![1; 3].into() };
        talk.up.send(proto::PieceResult { from_origin: vec![short], ..Default::default() }).await.unwrap();
        let refused = loop {
            if let Err(status) = talk.down.message().await {
                break status;
            }
        };
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "from_origin.hash: it must have 32 bytes")
        );
    }
    assert_eq!(state(&evil, "evil").await, (proto::HostState::Quarantined, "nonsense".to_owned()));
    honest_download(&server).await;
}

#[tokio::test]
async fn it_says_that_it_has_what_it_has_not_and_is_out_once_enough_were_deceived() {
    let server = server().await;
    let evil = Daemon::connect(&server, "evil").await;
    let _line = evil.announce().await;
    let held = |n| proto::HeldTask { task_id: task(n).into(), content: Some(whole(LENGTH)) };
    announce(&evil, (0..20).map(held).collect()).await.unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| Daemon::connect(&server, name));
    let (a, b, c) = (a.await, b.await, c.await);
    let _lines = (a.announce().await, b.announce().await, c.announce().await);
    let mut deceived = 0;
    for victim in [&a, &b, &c].into_iter().cycle() {
        if state(&a, "evil").await.0 != proto::HostState::Good {
            break;
        }
        let (host_id, task_id) = (victim.name.to_owned(), bytes(task(deceived)));
        let request = proto::RegisterPeerTaskRequest {
            host_id,
            task_id: task_id.clone(),
            held_bytes: 0,
            ..Default::default()
        };
        let told = victim.client.clone().register_peer_task(request).await.unwrap().into_inner();
        assert_eq!((told.partners.len(), told.lease), (1, None), "{deceived}");
        let failed = vec![proto::PartnerFailed {
            host_id: "evil".into(),
            reason: proto::FailureReason::NotHeld.into(),
        }];
        let mut talk = victim.talk_about(task_id, proto::PieceResult { failed, ..Default::default() }).await;
        assert!(
            talk.down.message().await.unwrap().unwrap().lease.is_some(),
            "{deceived}: to the origin at once"
        );
        deceived += 1;
        assert!(deceived <= 10, "it is shut out");
    }
    assert_eq!(deceived, 10);
    assert_eq!(state(&a, "evil").await, (proto::HostState::Quarantined, "failing".to_owned()));
    let request = proto::RegisterPeerTaskRequest {
        host_id: "a".into(),
        task_id: task(15).into(),
        held_bytes: 0,
        ..Default::default()
    };
    let told = a.client.clone().register_peer_task(request).await.unwrap().into_inner();
    assert!(told.partners.is_empty() && told.lease.is_some());
}

fn bytes(id: Vec<u8>) -> prost::bytes::Bytes {
    id.into()
}
