//! What a swarm does, event by event; whatever happens, in `property.rs`.

mod bucket;
mod origin;
mod partners;
mod property;
mod uploads;
mod watch;

use crate::{Action, Limits, Swarm};
use darter_protocol::{HostId, PieceIndex, PieceSet};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::time::Instant;

fn host(n: u32) -> HostId {
    format!("host-{n}").parse().unwrap()
}

fn piece(n: u32) -> PieceIndex {
    PieceIndex::new(n)
}

fn set(pieces: u32, of: impl IntoIterator<Item = u32>) -> PieceSet {
    let mut set = PieceSet::empty(pieces);
    set.extend(of.into_iter().map(PieceIndex::new));
    set
}

/// A download of everything, with nothing there.
fn wants_all(pieces: u32) -> Swarm {
    let mut swarm = Swarm::new(PieceSet::empty(pieces), Limits { fetches: 16, ..Limits::default() });
    swarm.set_wanted(PieceSet::full(pieces));
    swarm
}

/// As [`wants_all`], and every hash is known.
fn hashed(pieces: u32) -> Swarm {
    let mut swarm = wants_all(pieces);
    (0..pieces).for_each(|n| swarm.handle_hash(piece(n)));
    swarm
}

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(7)
}

fn drain(swarm: &mut Swarm, now: Instant) -> Vec<Action> {
    let mut rng = rng();
    std::iter::from_fn(|| swarm.poll_action(now, &mut rng)).collect()
}

fn fetch(n: u32, p: u32) -> Action {
    Action::Fetch { partner: host(n), piece: piece(p), spare: false }
}

/// The pieces that are asked of partners.
fn asked(actions: &[Action]) -> Vec<u32> {
    let piece = |action: &Action| match action {
        Action::Fetch { piece, .. } => piece.get(),
        other => panic!("{other:?}"),
    };
    actions.iter().map(piece).collect()
}
