//! What people are shown.

use super::lab::{LENGTH, Lab, id, whole};
use crate::message::Held;
use darter_protocol::TaskId;
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::{FailureReason, HostState, TaskFilter};

fn hosts(lab: &Lab, request: &proto::ListHostsRequest) -> (Vec<String>, u64) {
    let page = lab.cluster.list_hosts(lab.now, request);
    (page.hosts.into_iter().map(|host| host.host.unwrap().id).collect(), page.next)
}

fn tasks(lab: &Lab, limit: u32, only: TaskFilter) -> Vec<(u8, proto::TaskStatus)> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let request = proto::ListTasksRequest { limit, only: only.into(), ..Default::default() };
        let page = lab.cluster.list_tasks(lab.now, after, &request);
        assert!(limit == 0 || page.tasks.len() <= limit as usize);
        all.extend(page.tasks.into_iter().map(|task| (task.task_id[0], task)));
        if page.next.is_empty() {
            return all;
        }
        after = Some(TaskId::try_from(page.next.as_ref()).unwrap());
    }
}

#[test]
fn hosts_come_in_pages_each_once_and_the_oldest_first() {
    let names: Vec<String> = (0..7).map(|n| format!("h{n}")).collect();
    let mut lab = Lab::new();
    names.iter().for_each(|name| lab.host(name));
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let (page, next) = hosts(&lab, &proto::ListHostsRequest { after, limit: 3, suspects: false });
        assert!(page.len() <= 3);
        all.extend(page);
        if next == 0 {
            break;
        }
        after = next;
    }
    assert_eq!(all, names);
}

#[test]
fn a_page_has_at_most_a_thousand_hosts() {
    let mut lab = Lab::new();
    for n in 0..1001 {
        let host = lab.described(&format!("h{n}"), |_| {});
        lab.cluster.handle_host_announced(lab.now, host).unwrap();
    }
    for limit in [0, u32::MAX] {
        let (page, next) = hosts(&lab, &proto::ListHostsRequest { limit, ..Default::default() });
        assert_eq!((page.len(), next), (1000, 1000));
    }
}

#[test]
fn a_host_is_shown_with_what_it_does_and_how_it_stands() {
    let mut lab = Lab::with(&["bad", "a"]);
    lab.inventory("bad", &[1, 2]).unwrap();
    lab.join("a", 1);
    lab.failed("a", 1, "bad", FailureReason::Corrupt);
    let suspects = proto::ListHostsRequest { suspects: true, ..Default::default() };
    assert_eq!(hosts(&lab, &suspects), (vec!["bad".to_owned()], 0));
    let shown = lab.cluster.list_hosts(lab.now, &proto::ListHostsRequest::default()).hosts;
    assert_eq!((shown[0].state(), shown[0].reason.as_str()), (HostState::Quarantined, "corrupt"));
    assert_eq!((shown[0].seconds_left, shown[0].tasks, shown[0].quarantines), (1800, 2, 1));
    assert_eq!((shown[1].state(), shown[1].downloads), (HostState::Good, 1));
    let stat = lab.cluster.stat_cluster();
    assert_eq!((stat.hosts, stat.quarantined, stat.tasks, stat.downloading), (2, 1, 2, 1));
}

#[test]
fn tasks_come_in_pages_and_by_what_goes_on_in_them() {
    let mut lab = Lab::with(&["seed-1", "a", "b"]);
    lab.inventory("a", &[1, 2, 3]).unwrap();
    lab.join("b", 2);
    lab.join("a", 4);
    lab.content("a", 4, LENGTH);
    lab.held("a", 4, 10);
    lab.origin_bytes("a", 4, 11);
    for limit in [0, 1, 2] {
        let numbers = |only| tasks(&lab, limit, only).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(numbers(TaskFilter::Unspecified), [1, 2, 3, 4]);
        assert_eq!(numbers(TaskFilter::Swarms), [2, 4]);
        assert_eq!(numbers(TaskFilter::Leases), [4]);
    }
    let (_, task) = tasks(&lab, 0, TaskFilter::Leases).remove(0);
    assert_eq!((task.length, task.downloading, task.held_bytes), (Some(LENGTH), 1, 10));
    assert_eq!((task.lease_holder, task.lease_bytes, task.lease_seconds_left), (id("a").to_string(), 11, 10));
}

#[test]
fn a_page_ends_where_its_tasks_have_ten_thousand_peers() {
    let mut lab = Lab::new();
    for n in 0..100 {
        let name = format!("h{n}");
        let host = lab.described(&name, |_| {});
        lab.cluster.handle_host_announced(lab.now, host).unwrap();
        let held = |n| Held { task: super::lab::task(n), content: whole(LENGTH) };
        lab.cluster.handle_inventory(lab.now, &id(&name), (1..=150).map(held).collect()).unwrap();
    }
    let first = lab.cluster.list_tasks(lab.now, None, &proto::ListTasksRequest::default());
    assert_eq!((first.tasks.len(), first.tasks[99].complete), (100, 100));
    let all = tasks(&lab, 0, TaskFilter::Unspecified).into_iter().map(|(n, _)| n);
    assert!(all.eq(1..=150), "and the next one goes on there");
}

#[test]
fn each_candidate_is_explained_and_nothing_changes_by_it() {
    let mut lab = Lab::with(&["seed-1", "bad", "drains", "a", "b", "c"]);
    for host in ["seed-1", "bad", "drains"] {
        lab.inventory(host, &[1]).unwrap();
    }
    let draining = lab.described("drains", |host| host.draining = true);
    lab.renew(draining);
    lab.join("a", 1);
    lab.failed("a", 1, "bad", FailureReason::Corrupt);
    lab.join("b", 1);
    let explained = |lab: &Lab, asker: &str| {
        let said = lab.cluster.explain(&super::lab::task(1), Some(&id(asker)));
        let mut each: Vec<(String, bool, String)> =
            said.candidates.into_iter().map(|c| (c.host_id, c.taken, c.reason)).collect();
        each.sort();
        (said.standing, each)
    };
    let row = |host: &str, taken, reason: &str| (host.to_owned(), taken, reason.to_owned());
    let (standing, each) = explained(&lab, "c");
    assert_eq!(standing, "it has not asked for it: this is what it would get");
    assert_eq!(
        each,
        [
            row("a", false, "it has nothing of it yet, or goes to the origin for itself"),
            row("b", false, "it has nothing of it yet, or goes to the origin for itself"),
            row("bad", false, "it is quarantined, or sent wrong bytes of this"),
            row("drains", false, "it is about to stop"),
            row("seed-1", true, "a place kept for holders of everything and seeds"),
        ]
    );
    assert!(explained(&lab, "b").1.contains(&row("seed-1", true, "it is a partner")));
    assert!(explained(&lab, "bad").0.starts_with("it is quarantined (corrupt)"));
    assert_eq!(explained(&lab, "nobody").0, "it is not here: no life line is open");
    assert_eq!(lab.join("c", 1).partners(), ["seed-1"], "as it was explained");
}

#[test]
fn a_host_whose_slots_are_taken_is_passed_over_until_it_says_otherwise() {
    let mut lab = Lab::with(&["full", "free", "a", "b"]);
    lab.inventory("full", &[1]).unwrap();
    lab.inventory("free", &[1]).unwrap();
    let says = |lab: &mut Lab, host: &str, slots| {
        let renewed = lab.described(host, |host| host.free_uploads = Some(slots));
        lab.renew(renewed);
    };
    says(&mut lab, "full", 0);
    says(&mut lab, "free", 100);
    let request = proto::ListHostsRequest::default();
    let slots: Vec<_> = lab
        .cluster
        .list_hosts(lab.now, &request)
        .hosts
        .into_iter()
        .map(|h| h.host.unwrap().free_uploads)
        .collect();
    assert_eq!(slots, [Some(0), Some(100), None, None]);
    let taken = |lab: &Lab, host: &str| {
        let said = lab.cluster.explain(&super::lab::task(1), Some(&id("a")));
        said.candidates.into_iter().find(|c| c.host_id == host).unwrap().reason
    };
    assert_eq!(taken(&lab, "free"), "a place kept for holders of everything and seeds");
    assert_eq!(taken(&lab, "full"), "it is full or busy, and there are too few others");
    says(&mut lab, "full", 1);
    assert_eq!(taken(&lab, "full"), "a place kept for holders of everything and seeds");
}
