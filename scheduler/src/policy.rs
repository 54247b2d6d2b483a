//! Whom a peer gets as partners: two pure functions over a snapshot.
//!
//! What they decide, in this order:
//! 1. *Somebody to get it from.* Holders of the whole content and seeds come first, up to [`SOURCES`] of them.
//! 2. *Nearest first.* The same idc, then the longest common beginning of `location`; equals in random order.
//! 3. *Some strangers.* One in [`STRANGERS`] of the other partners is drawn regardless of distance. A mesh of nearest
//!    neighbours alone falls into islands, and an island without a source starves.
//! 4. *Nobody overrun.* A downloader that has [`PARTNERS`] partners, and a host whose upload slots are all taken, is named
//!    to no more peers, unless the asker would otherwise have fewer than [`ENOUGH`], or no source.
//!
//! Who may be named at all (alive, not draining, not reported failed, not quarantined) is the caller's to say: these
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

    /// Whether the idc is the same, and how many parts of the location are.
    pub(crate) const fn parts(self) -> (bool, usize) {
        (self.same_idc, self.common_location)
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
    /// It said that all its upload slots are taken, or will be by those to whom it was named since.
    pub(crate) busy: bool,
}

/// What the peer that asks has already.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asker {
    pub(crate) partners: usize,
    /// Of these, how many hold every byte.
    pub(crate) sources: usize,
}

/// Why a candidate was taken, or was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// In one of the places that are kept for holders of everything and seeds.
    Source,
    /// Nobody who could be taken is nearer.
    Near,
    /// By chance, near or far.
    Stranger,
    /// It holds everything, and peers left places free.
    Spare,
    /// It is full or busy, and the asker would have too few without it.
    Needed,
    /// The asker has all its partners, and what it needs among them.
    Enough,
    /// Others are nearer, or chance took others.
    Farther,
    /// It has all the partners that a downloader gets.
    Full,
    /// Its upload slots are taken.
    Busy,
}

impl Verdict {
    pub(crate) const fn takes(self) -> bool {
        matches!(self, Self::Source | Self::Near | Self::Stranger | Self::Spare | Self::Needed)
    }

    /// For people.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Source => "a place kept for holders of everything and seeds",
            Self::Near => "nobody is nearer",
            Self::Stranger => "by chance: some partners are from anywhere",
            Self::Spare => "it holds everything, and there was a free place",
            Self::Needed => "it is full or busy, and there are too few others",
            Self::Enough => "there are enough partners",
            Self::Farther => "others are nearer, or chance took others",
            Self::Full => "it has all the partners that it gets",
            Self::Busy => "its upload slots are taken",
        }
    }
}

/// The partners that the asker gets in addition to those it has: as many as bring it to [`PARTNERS`], and one source
/// beyond that when it has none.
pub(crate) fn choose(asker: Asker, candidates: Vec<Candidate>, rng: &mut impl Rng) -> Vec<HostKey> {
    let decided = decide(asker, candidates, rng).into_iter();
    decided.filter(|(_, verdict)| verdict.takes()).map(|(candidate, _)| candidate.host).collect()
}

/// The same with its reasons: every candidate once, those that are taken in the order in which they were.
pub(crate) fn decide(
    asker: Asker,
    mut candidates: Vec<Candidate>,
    rng: &mut impl Rng,
) -> Vec<(Candidate, Verdict)> {
    candidates.shuffle(rng);
    candidates.sort_by_key(|candidate| Reverse(candidate.nearness));
    let mut decided = Vec::with_capacity(candidates.len());
    let (mut first, mut others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.source || c.seed);
    first.sort_by_key(|candidate| (!candidate.source, candidate.busy));

    let mut room = PARTNERS.saturating_sub(asker.partners);
    let from_first = if asker.sources == 0 && first.first().is_some_and(|c| c.source) {
        room = room.max(1);
        SOURCES.min(room)
    } else {
        SOURCES.saturating_sub(asker.sources).min(room)
    };
    // One source is taken though it is busy: whoever knows none would go to the origin.
    let free =
        first.iter().enumerate().take_while(|(n, c)| !c.busy || *n == 0 && c.source && asker.sources == 0);
    let spare = first.split_off(free.count().min(from_first));
    decided.extend(first.into_iter().map(|candidate| (candidate, Verdict::Source)));

    let (busy, mut spare): (Vec<_>, Vec<_>) = spare.into_iter().partition(|candidate| candidate.busy);
    let unusable = |candidate: &mut Candidate| candidate.busy || candidate.partners >= PARTNERS;
    let full: Vec<_> = busy.into_iter().chain(others.extract_if(.., unusable)).collect();
    let chosen =
        nearest_and_strangers(&mut others, PARTNERS.saturating_sub(asker.partners + decided.len()), rng);
    decided.extend(chosen);
    let rest = spare.split_off(PARTNERS.saturating_sub(asker.partners + decided.len()).min(spare.len()));
    decided.extend(spare.into_iter().map(|candidate| (candidate, Verdict::Spare)));

    let missing = ENOUGH.saturating_sub(asker.partners + decided.len());
    let mut full = least_burdened(full);
    decided.extend(full.by_ref().take(missing).map(|candidate| (candidate, Verdict::Needed)));
    let enough = asker.partners + decided.len() >= PARTNERS;
    let farther = if enough && decided.is_empty() { Verdict::Enough } else { Verdict::Farther };
    decided.extend(others.into_iter().chain(rest).map(|candidate| (candidate, farther)));
    decided.extend(full.map(|c| (c, if c.busy { Verdict::Busy } else { Verdict::Full })));
    decided
}

/// To whom a host that has something to give is named: to the peers that have no partner at all, then to the nearest and
/// to some strangers, up to `room` of them.
pub(crate) fn invite(mut candidates: Vec<Candidate>, room: usize, rng: &mut impl Rng) -> Vec<HostKey> {
    candidates.shuffle(rng);
    candidates.sort_by_key(|candidate| Reverse(candidate.nearness));
    let (mut chosen, mut others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.partners == 0);
    chosen.truncate(room);
    let more = nearest_and_strangers(&mut others, room - chosen.len(), rng);
    chosen.extend(more.into_iter().map(|(candidate, _)| candidate));
    chosen.into_iter().map(|candidate| candidate.host).collect()
}

/// Takes `room` of the candidates out, which come nearest first: the nearest, but for every [`STRANGERS`]th, which is
/// anybody.
fn nearest_and_strangers(
    candidates: &mut Vec<Candidate>,
    room: usize,
    rng: &mut impl Rng,
) -> Vec<(Candidate, Verdict)> {
    let room = room.min(candidates.len());
    let strangers = room / STRANGERS;
    let mut far = candidates.split_off(room - strangers);
    let (drawn, left) = far.partial_shuffle(rng, strangers);
    let (drawn, left) = (drawn.to_vec(), left.to_vec());
    let near = std::mem::replace(candidates, left);
    let near = near.into_iter().map(|candidate| (candidate, Verdict::Near));
    near.chain(drawn.into_iter().map(|candidate| (candidate, Verdict::Stranger))).collect()
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
            busy: false,
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
    fn a_busy_host_is_named_only_where_others_do_not_suffice() {
        let busy = |candidate: Candidate| Candidate { busy: true, ..candidate };
        let candidates = (0..30).map(|n| busy(near(n))).chain((30..60).map(peer)).collect();
        assert_eq!(among(&choose(Asker::default(), candidates, &mut rng()), 0..30), 0);
        let candidates = (0..30).map(|n| busy(near(n))).chain((30..32).map(peer)).collect();
        assert_eq!(choose(Asker::default(), candidates, &mut rng()).len(), ENOUGH);
        let sources = (0..3).map(|n| busy(source(n))).chain([source(3)]);
        let chosen = choose(Asker::default(), sources.chain((10..40).map(peer)).collect(), &mut rng());
        assert_eq!((among(&chosen, 0..3), among(&chosen, 3..4)), (0, 1), "the source with a free slot alone");
    }

    #[test]
    fn one_source_is_named_though_all_are_busy() {
        let sources = (0..3).map(|n| Candidate { busy: true, ..source(n) });
        let chosen = choose(Asker::default(), sources.chain((10..40).map(peer)).collect(), &mut rng());
        assert_eq!((among(&chosen, 0..3), chosen.len()), (1, PARTNERS));
    }

    #[test]
    fn every_candidate_has_one_verdict_and_choosing_is_taking() {
        let full = |host| Candidate { partners: PARTNERS, ..peer(host) };
        let busy = |host| Candidate { busy: true, ..peer(host) };
        for asker in
            [Asker::default(), Asker { partners: 18, sources: 1 }, Asker { partners: PARTNERS, sources: 1 }]
        {
            let candidates: Vec<_> = (0..60)
                .map(near)
                .chain((100..130).map(peer))
                .chain((200..210).map(source))
                .chain((300..305).map(full))
                .chain((400..405).map(busy))
                .collect();
            let decided = decide(asker, candidates.clone(), &mut rng());
            let hosts: BTreeSet<_> = decided.iter().map(|(candidate, _)| candidate.host).collect();
            assert_eq!((decided.len(), hosts.len()), (candidates.len(), candidates.len()));
            let taken: Vec<_> = decided.iter().filter(|(_, v)| v.takes()).map(|(c, _)| c.host).collect();
            assert_eq!(taken, choose(asker, candidates, &mut rng()));
            let of = |host: u64| decided.iter().find(|(c, _)| c.host == HostKey::for_test(host)).unwrap().1;
            assert_eq!((of(300), of(400)), (Verdict::Full, Verdict::Busy));
        }
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
