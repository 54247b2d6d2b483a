//! More copies than there are: who is told to fetch a task, and who instead when one cannot.

use super::lab::{Lab, id, task};
use crate::copies::{Copied, PATIENCE};
use crate::refusal::Refusal;

/// Hosts that do what they are told; "old" ones do not know how.
fn lab(hosts: &[&str]) -> Lab {
    let mut lab = Lab::new();
    for name in hosts {
        let host = lab.described(name, |host| host.protocol = if name.starts_with("old") { 1 } else { 2 });
        lab.announce(host);
    }
    lab
}

impl Lab {
    fn copies(&mut self, host: &str, hosts: usize) -> (usize, usize) {
        let Copied { complete, pending } =
            self.cluster.handle_copies_wanted(self.now, &id(host), task(1), hosts).unwrap();
        (complete, pending)
    }

    /// Who of these has just been told to fetch it.
    fn told<'a>(&mut self, hosts: &[&'a str]) -> Vec<&'a str> {
        let line = |lab: &Self, host: &str| {
            let key = lab.cluster.world.hosts.key(&id(host)).unwrap();
            lab.cluster.world.hosts.life(key).unwrap().lifeline
        };
        let told = |host: &&str| {
            let stream = line(self, host);
            self.cluster.take_wanted(stream) == [task(1)]
        };
        hosts.iter().copied().filter(told).collect()
    }
}

#[test]
fn as_many_are_told_as_are_missing_and_each_once() {
    let mut lab = lab(&["a", "b", "c", "d"]);
    assert_eq!(lab.copies("a", 3), (0, 0), "nobody could give it");
    lab.inventory("a", &[1]).unwrap();
    assert_eq!(lab.copies("a", 3), (1, 2));
    let told = lab.told(&["a", "b", "c", "d"]);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(!told.contains(&"a"));
    assert_eq!((lab.copies("a", 3), lab.told(&["b", "c", "d"]).len()), ((1, 2), 0));
    for host in told {
        lab.inventory(host, &[1]).unwrap();
    }
    assert_eq!(lab.copies("a", 3), (3, 0));
    assert!(lab.cluster.copies.is_empty());
}

#[test]
fn others_are_told_instead_of_those_that_cannot_or_are_gone() {
    let mut lab = lab(&["a", "b", "c", "d"]);
    lab.inventory("a", &[1]).unwrap();
    lab.copies("a", 2);
    let first = lab.told(&["b", "c", "d"])[0];
    lab.cluster.handle_tasks_left(lab.now, &id(first), vec![task(1)]);
    assert_eq!(lab.copies("a", 2), (1, 1));
    let second = lab.told(&["b", "c", "d"])[0];
    assert_ne!(second, first);
    lab.die(second);
    assert_eq!(lab.copies("a", 2), (1, 1));
    let third = ["b", "c", "d"].into_iter().find(|host| ![first, second].contains(host)).unwrap();
    assert_eq!(lab.told(&[third]), [third]);
    lab.cluster.handle_tasks_left(lab.now, &id(third), vec![task(1)]);
    assert_eq!(lab.copies("a", 2), (1, 0), "nobody is left");
    assert_eq!(lab.copies("a", 2), (1, 1), "the next wish begins anew");
}

#[test]
fn seeds_come_first_and_those_that_cannot_take_it_never() {
    let mut lab = lab(&["a", "b", "old", "seed"]);
    let leaving = lab.described("leaving", |host| (host.protocol, host.draining) = (2, true));
    lab.announce(leaving);
    lab.inventory("a", &[1]).unwrap();
    lab.copies("a", 2);
    assert_eq!(lab.told(&["b", "old", "seed", "leaving"]), ["seed"]);
    assert_eq!(lab.copies("a", 5), (1, 2), "old daemons do not know how, and one is about to stop");
    assert_eq!(lab.told(&["b", "old", "leaving"]), ["b"]);
    assert_eq!(
        lab.cluster.handle_copies_wanted(lab.now, &id("nobody"), task(1), 2),
        Err(Refusal::UnknownHost)
    );
}

#[test]
fn what_is_deleted_nobody_fetches_any_more() {
    let mut lab = lab(&["a", "b"]);
    lab.inventory("a", &[1]).unwrap();
    lab.copies("a", 2);
    lab.cluster.handle_task_deleted(lab.now, &id("a"), task(1)).unwrap();
    assert_eq!(lab.told(&["b"]), [""; 0]);
    assert_eq!(lab.cluster.stat(&task(1)).complete, 0, "who deletes it has it no more");
    lab.inventory("a", &[1]).unwrap();
    lab.copies("a", 2);
    lab.cluster.handle_tasks_left(lab.now, &id("a"), vec![task(1)]);
    assert_eq!((lab.told(&["b"]).len(), lab.cluster.copies.len()), (0, 0), "nobody has it");
}

#[test]
fn what_broke_off_with_a_life_line_is_told_on_the_next() {
    let mut lab = lab(&["a", "b"]);
    lab.inventory("a", &[1]).unwrap();
    lab.copies("a", 2);
    assert_eq!(lab.told(&["b"]), ["b"]);
    let again = lab.described("b", |host| host.protocol = 2);
    lab.announce(again);
    assert_eq!((lab.copies("a", 2), lab.told(&["b"])), ((1, 1), vec!["b"]));
    assert_eq!(lab.told(&["b"]), [""; 0], "once on each line");
}

#[test]
fn whoever_gets_no_further_is_not_waited_for() {
    let mut lab = lab(&["a", "b"]);
    lab.inventory("a", &[1]).unwrap();
    lab.copies("a", 2);
    assert_eq!(lab.told(&["b"]), ["b"]);
    lab.pass(PATIENCE / 2);
    lab.join("b", 1);
    lab.held("b", 1, 1);
    assert_eq!(lab.copies("a", 2), (1, 1));
    lab.pass(PATIENCE - PATIENCE / 10);
    assert_eq!(lab.copies("a", 2), (1, 1), "it has got further since it was told");
    lab.pass(PATIENCE / 10);
    assert_eq!(lab.copies("a", 2), (1, 0), "nobody else is there");
}
