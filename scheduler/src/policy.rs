//! Whom a peer gets as partners: two pure functions over a snapshot.
//!
//! What they decide, in this order:
//! 1. *Somebody to get it from.* Holders of the whole content and seeds come first, up to [`SOURCES`] of them.
//! 2. *Nearest first.* The same idc, then the longest common beginning of `location`; equals in random order.
//! 3. *Some strangers.* One in [`STRANGERS`] of the other partners is drawn regardless of distance. A mesh of nearest
//!    neighbours alone falls into islands, and an island without a source starves.
//! 4. *Nobody overrun.* A downloader that has [`PARTNERS`] partners is named to no more peers, unless the asker would
//!    otherwise have fewer than [`ENOUGH`].
//!
//! Who may be named at all (alive, not reported failed, not struck for corruption) is the caller's to say: these
//! functions choose among those that may. They read no clock and draw only on the generator that they are given, so the
//! same snapshot and seed give the same answer.

use crate::host::HostKey;
use rand::Rng;
use rand::seq::SliceRandom;
use std::cmp::Reverse;

/// Partners that a downloader is given. In a slot simulation with equal rates, a mesh of 20 random partners brings one
/// seed's content to 1,000 peers in 1.16 times the time of one copy; more partners gain next to nothing.
pub(crate) const PARTNERS: usize = 20;

/// Of these, how many places are kept for holders of the whole content and seeds: enough that one of them may die or be
/// busy, few enough that a crowd exchanges among itself instead of queueing at the source.
const SOURCES: usize = 4;

/// One partner in this many is drawn at random, near or far. A fifth of 16 leaves three links out of a rack.
const STRANGERS: usize = 5;

/// With fewer partners than this a peer may be named to downloaders that are full already: two links may break, and the
/// peer is still in the mesh.
const ENOUGH: usize = 4;

/// How near two hosts are: greater is nearer. Compared by idc first, then by how many parts of `location`, widest first,
/// are the same. What is not configured is near to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Nearness {
    same_idc: bool,
    common_location: usize,
}

impl Nearness {
    /// Between two hosts, each given as its idc and its location (`a|b|c`).
    pub(crate) fn between(a: (&str, &str), b: (&str, &str)) -> Self {
        Self { same_idc: !a.0.is_empty() && a.0 == b.0, common_location: common_parts(a.1, b.1) }
    }
}

/// How many parts, from the first on, are the same and not empty.
fn common_parts(a: &str, b: &str) -> usize {
    let parts = |location| str::split(location, '|').take_while(|part: &&str| !part.is_empty());
    parts(a).zip(parts(b)).take_while(|(a, b)| a == b).count()
}

/// A host that may be linked with the asker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) host: HostKey,
    /// It holds every byte.
    pub(crate) source: bool,
    pub(crate) seed: bool,
    pub(crate) nearness: Nearness,
    /// How many partners it has itself; 0 for one that downloads nothing.
    pub(crate) partners: usize,
}

/// What the peer that asks has already.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asker {
    pub(crate) partners: usize,
    /// Of these, how many hold every byte.
    pub(crate) sources: usize,
}

/// The partners that the asker gets in addition to those it has: as many as bring it to [`PARTNERS`], and one source
/// beyond that when it has none.
pub(crate) fn choose(asker: Asker, mut candidates: Vec<Candidate>, rng: &mut impl Rng) -> Vec<HostKey> {
    candidates.shuffle(rng);
    candidates.sort_by_key(|candidate| Reverse(candidate.nearness));
    let (mut first, mut others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.source || c.seed);
    first.sort_by_key(|candidate| !candidate.source);

    let mut room = PARTNERS.saturating_sub(asker.partners);
    let from_first = if asker.sources == 0 && first.first().is_some_and(|c| c.source) {
        room = room.max(1);
        SOURCES.min(room)
    } else {
        SOURCES.saturating_sub(asker.sources).min(room)
    };
    let spare = first.split_off(from_first.min(first.len()));
    let mut chosen = first;
    room -= chosen.len();

    let full: Vec<_> = others.extract_if(.., |candidate| candidate.partners >= PARTNERS).collect();
    chosen.extend(nearest_and_strangers(others, room, rng));
    let room = PARTNERS.saturating_sub(asker.partners + chosen.len());
    chosen.extend(spare.into_iter().take(room));

    let missing = ENOUGH.saturating_sub(asker.partners + chosen.len());
    chosen.extend(least_burdened(full).take(missing));
    chosen.into_iter().map(|candidate| candidate.host).collect()
}

/// To whom a host that has something to give is named: to the peers that have no partner at all, then to the nearest and
/// to some strangers, up to `room` of them.
pub(crate) fn invite(mut candidates: Vec<Candidate>, room: usize, rng: &mut impl Rng) -> Vec<HostKey> {
    candidates.shuffle(rng);
    candidates.sort_by_key(|candidate| Reverse(candidate.nearness));
    let (mut chosen, others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.partners == 0);
    chosen.truncate(room);
    chosen.extend(nearest_and_strangers(others, room - chosen.len(), rng));
    chosen.into_iter().map(|candidate| candidate.host).collect()
}

/// `room` of the candidates, which come nearest first: the nearest, but for every [`STRANGERS`]th, which is anybody.
fn nearest_and_strangers(
    mut candidates: Vec<Candidate>,
    room: usize,
    rng: &mut impl Rng,
) -> impl Iterator<Item = Candidate> {
    let room = room.min(candidates.len());
    let mut far = candidates.split_off(room - room / STRANGERS);
    let (strangers, _) = far.partial_shuffle(rng, room / STRANGERS);
    candidates.extend_from_slice(strangers);
    candidates.into_iter()
}

fn least_burdened(mut candidates: Vec<Candidate>) -> impl Iterator<Item = Candidate> {
    candidates.sort_by_key(|candidate| candidate.partners);
    candidates.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::BTreeSet;

    fn rng() -> StdRng {
        StdRng::seed_from_u64(7)
    }

    fn peer(host: u64) -> Candidate {
        Candidate {
            host: HostKey::for_test(host),
            source: false,
            seed: false,
            nearness: Nearness::default(),
            partners: 0,
        }
    }

    fn near(host: u64) -> Candidate {
        Candidate { nearness: Nearness { same_idc: true, common_location: 2 }, ..peer(host) }
    }

    fn source(host: u64) -> Candidate {
        Candidate { source: true, ..peer(host) }
    }

    fn among(chosen: &[HostKey], hosts: std::ops::Range<u64>) -> usize {
        let hosts: BTreeSet<_> = hosts.map(HostKey::for_test).collect();
        chosen.iter().filter(|host| hosts.contains(host)).count()
    }

    #[test]
    fn nearness_compares_idc_before_location_and_stops_at_the_first_difference() {
        let at = |idc, location| Nearness::between(("east", "eu|de|fra"), (idc, location));
        assert!(at("east", "us") > at("west", "eu|de|fra"));
        assert!(at("west", "eu|de|fra") > at("west", "eu|de|muc"));
        assert!(at("west", "eu|de|muc") > at("west", "eu|fr|fra"));
        assert_eq!(at("west", "us|de|fra"), Nearness::default());
    }

    #[test]
    fn hosts_that_say_nothing_of_their_place_are_near_to_nobody() {
        assert_eq!(Nearness::between(("", ""), ("", "")), Nearness::default());
        assert_eq!(Nearness::between(("", "a||"), ("", "||")), Nearness::default());
    }

    #[test]
    fn a_peer_gets_at_most_twenty_partners_and_each_once() {
        let candidates: Vec<_> = (0..100).map(peer).chain((100..110).map(source)).collect();
        let chosen = choose(Asker::default(), candidates, &mut rng());
        assert_eq!(chosen.len(), PARTNERS);
        assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), PARTNERS);
    }

    #[test]
    fn some_partners_are_sources_however_many_peers_are_nearer() {
        let candidates = (0..100).map(near).chain((100..110).map(source)).collect();
        let chosen = choose(Asker::default(), candidates, &mut rng());
        assert_eq!(among(&chosen, 100..110), SOURCES);
    }

    #[test]
    fn a_seed_is_taken_before_an_ordinary_peer() {
        let seed = Candidate { seed: true, ..peer(100) };
        let chosen = choose(Asker::default(), (0..100).map(near).chain([seed]).collect(), &mut rng());
        assert_eq!(among(&chosen, 100..101), 1);
    }

    #[test]
    fn sources_fill_the_places_that_peers_leave_free() {
        let candidates = (0..3).map(peer).chain((100..150).map(source)).collect();
        let chosen = choose(Asker::default(), candidates, &mut rng());
        assert_eq!((among(&chosen, 0..3), chosen.len()), (3, PARTNERS));
    }

    #[test]
    fn near_peers_come_first_and_some_strangers_are_among_them() {
        let candidates = (0..100).map(near).chain((100..1000).map(peer)).collect();
        let chosen = choose(Asker::default(), candidates, &mut rng());
        assert!(among(&chosen, 0..100) >= PARTNERS - PARTNERS / STRANGERS);
        assert!(among(&chosen, 100..1000) > 0);
    }

    #[test]
    fn a_full_peer_is_named_only_to_one_that_has_too_few() {
        let full = |host| Candidate { partners: PARTNERS, ..peer(host) };
        let chosen =
            choose(Asker::default(), (0..50).map(full).chain((50..60).map(peer)).collect(), &mut rng());
        assert_eq!((among(&chosen, 0..50), chosen.len()), (0, 10));
        let chosen = choose(Asker::default(), (0..50).map(full).collect(), &mut rng());
        assert_eq!(chosen.len(), ENOUGH);
    }

    #[test]
    fn a_peer_with_all_its_partners_still_gets_its_first_source() {
        let asker = Asker { partners: PARTNERS, sources: 0 };
        let candidates = || (0..10).map(peer).chain((10..20).map(source)).collect::<Vec<_>>();
        assert_eq!(choose(asker, candidates(), &mut rng()).len(), 1);
        assert_eq!(choose(Asker { sources: 1, ..asker }, candidates(), &mut rng()), []);
    }

    #[test]
    fn those_without_any_partner_are_invited_first() {
        let busy = |host| Candidate { partners: 3, ..near(host) };
        let candidates = (0..50).map(busy).chain((50..60).map(peer)).collect();
        let chosen = invite(candidates, 15, &mut rng());
        assert_eq!((among(&chosen, 50..60), chosen.len()), (10, 15));
    }

    #[test]
    fn the_same_snapshot_and_seed_give_the_same_partners() {
        let candidates: Vec<_> = (0..200).map(peer).collect();
        let a = choose(Asker::default(), candidates.clone(), &mut rng());
        let b = choose(Asker::default(), candidates.clone(), &mut rng());
        let c = choose(Asker::default(), candidates, &mut StdRng::seed_from_u64(8));
        assert_eq!(a, b);
        assert_ne!(a, c);
    }
}
