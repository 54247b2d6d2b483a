//! What a swarm does, event by event; whatever happens, in `property.rs`.

mod blocks;
mod border;
mod bucket;
mod origin;
mod partners;
mod property;
mod uploads;
mod watch;

use crate::{Action, Limits, Swarm};
use darter_protocol::{BlockSet, HostId, PieceIndex, PieceLayout, PieceSet};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::ops::Range;
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

/// Blocks of each piece here.
const BLOCKS: u32 = 16;

/// The blocks of these pieces.
fn blocks(pieces: Range<u32>) -> Range<u32> {
    pieces.start * BLOCKS..pieces.end * BLOCKS
}

fn all_of(pieces: impl IntoIterator<Item = u32>) -> BlockSet {
    pieces.into_iter().map(|piece| blocks(piece..piece + 1)).collect()
}

fn new(pieces: u32, limits: Limits) -> Swarm {
    let layout = PieceLayout::new(u64::from(pieces) * PieceLayout::MIN_PIECE_SIZE).unwrap();
    assert_eq!(layout.blocks(), pieces * BLOCKS);
    Swarm::new(layout, PieceSet::empty(pieces), BlockSet::default(), limits)
}

/// A download of everything, with nothing there.
fn wants_all(pieces: u32) -> Swarm {
    let mut swarm = new(pieces, Limits { fetches: 16, ..Limits::default() });
    swarm.set_wanted(all_of(0..pieces));
    swarm
}

/// A reader of all from the start of `piece` on waits for that.
fn waits(swarm: &mut Swarm, piece: u32) {
    swarm.handle_waiting(piece * BLOCKS, u32::MAX);
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
    Action::Fetch {
        partner: host(n),
        piece: piece(p),
        blocks: blocks(p..p + 1),
        spare: false,
        awaited: false,
        relayed: false,
        called: false,
    }
}

/// Of a partner that is itself receiving it.
fn relayed(n: u32, p: u32) -> Action {
    match fetch(n, p) {
        Action::Fetch { partner, piece, blocks, spare, awaited, called, .. } => {
            Action::Fetch { partner, piece, blocks, spare, awaited, relayed: true, called }
        }
        other => other,
    }
}

/// The pieces that are asked of partners.
fn asked(actions: &[Action]) -> Vec<u32> {
    let piece = |action: &Action| match action {
        Action::Fetch { piece, .. } => piece.get(),
        other => panic!("{other:?}"),
    };
    actions.iter().map(piece).collect()
}
