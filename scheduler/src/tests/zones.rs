//! Who brings what into a zone.

use super::lab::{LENGTH, Lab, id, task};
use crate::bridge::IDLE;
use crate::message::{Report, Served};
use crate::policy::PARTNERS;
use crate::zone::{BRIDGES, LEAST};
use std::time::Duration;

/// A zone of so many who download what "origin" brings, who stands in none.
fn zone(hosts: usize) -> (Lab, Vec<String>) {
    let names: Vec<String> = (0..hosts).map(|n| format!("h{n:02}")).collect();
    let mut lab = Lab::with(&["origin"]);
    lab.join("origin", 1);
    lab.content("origin", 1, LENGTH);
    lab.held("origin", 1, 1);
    for name in &names {
        lab.host_at(name, "r|a");
        lab.join(name, 1);
    }
    (lab, names)
}

/// The bridges, in the order of their numbers.
fn bridges(lab: &Lab, names: &[String]) -> Vec<String> {
    let numbered = |name: &String| Some((lab.talk(name, 1).bridge?.0, name.clone()));
    let mut bridges: Vec<_> = names.iter().filter_map(numbered).collect();
    bridges.sort();
    assert!(bridges.iter().map(|(number, _)| *number as usize).eq(0..bridges.len()));
    bridges.into_iter().map(|(_, name)| name).collect()
}

/// Somebody of the zone who knows the bridge says that it gave a piece.
fn brings(lab: &mut Lab, names: &[String], bridge: &str) {
    let knows = |name: &&String| lab.talk(name, 1).partners.contains_key(bridge);
    let name = names.iter().find(knows).unwrap().clone();
    let served = vec![Served { host: id(bridge), pieces: 1, bytes: 1 }];
    lab.report(&name, 1, Report { served, ..Default::default() });
}

#[test]
fn a_bridge_that_brings_nothing_while_others_do_is_replaced_and_is_none_again() {
    let (mut lab, names) = zone(LEAST + BRIDGES);
    let first = bridges(&lab, &names);
    assert_eq!(first.len(), BRIDGES);
    first.iter().for_each(|bridge| lab.held(bridge, 1, 1));
    let idle = &first[2];
    assert!(lab.talk(idle, 1).partners.contains_key("origin"));
    for _ in 0..5 {
        assert_eq!(bridges(&lab, &names), first);
        lab.pass(IDLE / 5);
        first.iter().filter(|bridge| *bridge != idle).for_each(|bridge| brings(&mut lab, &names, bridge));
    }
    let second = bridges(&lab, &names);
    assert_eq!((second.len(), second.contains(idle)), (BRIDGES, false));
    assert!(!lab.talk(idle, 1).partners.contains_key("origin"), "it imports no more");
    assert!(lab.talk(idle, 1).partners.len() > 1, "it has those of its zone");
    // The new one has its time, and so has everybody who brings something.
    let kept = first.iter().filter(|bridge| second.contains(bridge)).count();
    assert_eq!(kept, BRIDGES - 1);
    lab.pass(IDLE - Duration::from_secs(1));
    first.iter().filter(|bridge| *bridge != idle).for_each(|bridge| brings(&mut lab, &names, bridge));
    assert_eq!(bridges(&lab, &names), second);
    // Whoever leaves: it is not chosen any more.
    for bridge in second {
        lab.close(&bridge, 1);
        let rest: Vec<String> = names.iter().filter(|name| lab.is_open(name, 1)).cloned().collect();
        assert!(!bridges(&lab, &rest).contains(idle));
    }
}

#[test]
fn a_zone_whose_sources_are_just_enough_does_not_turn_with_each_who_comes_and_goes() {
    let (mut lab, names) = zone(PARTNERS + 1);
    lab.host_at("source", "r|a");
    lab.complete("source", 1);
    let imports = |lab: &Lab| lab.cluster.tasks[&task(1)].zones.values().all(|zone| zone.imports);
    for _ in 0..3 {
        assert!(imports(&lab));
        lab.close(&names[0], 1);
        assert!(imports(&lab));
        lab.join(&names[0], 1);
    }
    names[..PARTNERS / 2 + 1].iter().for_each(|name| lab.close(name, 1));
    assert!(!imports(&lab));
    for name in &names[..PARTNERS / 2] {
        lab.join(name, 1);
        assert!(!imports(&lab));
    }
    lab.join(&names[PARTNERS / 2], 1);
    assert!(imports(&lab));
}

#[test]
fn where_most_bridges_bring_nothing_there_may_be_nothing_to_bring() {
    let (mut lab, names) = zone(LEAST + BRIDGES);
    let first = bridges(&lab, &names);
    first.iter().for_each(|bridge| lab.held(bridge, 1, 1));
    for _ in 0..10 {
        lab.pass(IDLE / 5);
        first.iter().take(BRIDGES / 2 - 1).for_each(|bridge| brings(&mut lab, &names, bridge));
    }
    assert_eq!(bridges(&lab, &names), first);
}
