//! [`Pieces`]: the state of every piece of one download, and of every block of those that are not there.
//!
//! Invariant: a block is in exactly one of MISSING, IN_FLIGHT and THERE. It is IN_FLIGHT in exactly one origin run (from
//! the first block that the run has not brought to its end), or with a partner that was asked for it; a piece is asked of
//! partners, or blocks of it are in runs, never both. Nothing leads back from THERE. A piece is HAVE when all its blocks
//! are THERE and what they hash to is known to others by that: only pieces are told to others.
//!
//! [`Pieces::apply`] is the only way from one state to another. `open` is always what may be asked of a partner: pieces of
//! known hash of which some wanted block is MISSING and none in a run, so that what a lying partner sends never gets
//! further than this host's disk.

use crate::action::RunId;
use darter_protocol::{BlockSet, PieceIndex, PieceLayout, PieceSet};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Blocks that come from the origin in one stream.
#[derive(Debug)]
pub(crate) struct Run {
    /// It has brought the blocks before this one. From here to its end they are its own.
    pub(crate) first: u32,
    /// It is about to bring this one, though what it brought before may not be on disk yet.
    pub(crate) reached: u32,
    pub(crate) end: u32,
    pub(crate) stopping: bool,
}

/// What changes the state of blocks.
#[derive(Debug)]
pub(crate) enum Change {
    /// A partner is asked for blocks of this piece, which is open.
    Asked(PieceIndex),
    /// No partner is asked for it any more.
    Released(PieceIndex),
    /// A run begins with these MISSING blocks of pieces that are asked of nobody.
    Began(RunId, Range<u32>),
    /// A run ends before this block: the blocks after it are MISSING again, or those before it, which were, its own.
    Ends(RunId, u32),
    /// A run is over. What it did not bring is MISSING again.
    Over(RunId),
    /// These blocks of one piece are there, and right as far as that can be known.
    Came(Range<u32>),
    /// All of the piece is there, and right.
    Complete(PieceIndex),
}

#[derive(Debug)]
pub(crate) struct Pieces {
    pub(crate) layout: PieceLayout,
    pub(crate) have: PieceSet,
    /// Also all blocks of the pieces that this host has.
    pub(crate) there: BlockSet,
    pub(crate) wanted: BlockSet,
    /// Pieces whose hash is known.
    pub(crate) hashed: PieceSet,
    /// Those of them that somebody has fetched, as their hash says, and who that is may show any moment.
    pub(crate) promised: PieceSet,
    pub(crate) open: PieceSet,
    /// Pieces of which blocks are asked of partners.
    asked: BTreeSet<PieceIndex>,
    pub(crate) runs: BTreeMap<RunId, Run>,
    /// How many partners have each piece.
    pub(crate) availability: Vec<u16>,
    /// How many of those who stand on this side of a border.
    near: Vec<u16>,
    /// Those that exactly one partner has.
    pub(crate) sole: PieceSet,
}

impl Pieces {
    pub(crate) fn new(layout: PieceLayout, have: PieceSet, mut there: BlockSet) -> Self {
        let pieces = layout.pieces();
        debug_assert_eq!(have.pieces(), pieces);
        there.extend(have.iter().map(|piece| layout.blocks_of(piece)));
        Self {
            layout,
            there,
            wanted: BlockSet::default(),
            hashed: have.clone(),
            promised: PieceSet::empty(pieces),
            open: PieceSet::empty(pieces),
            asked: BTreeSet::new(),
            runs: BTreeMap::new(),
            availability: vec![0; pieces as usize],
            near: vec![0; pieces as usize],
            sole: PieceSet::empty(pieces),
            have,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.have.pieces()
    }

    /// Brings blocks from one state to another.
    pub(crate) fn apply(&mut self, change: Change) {
        let touched = match change {
            Change::Asked(piece) => {
                debug_assert!(self.open.contains(piece), "{piece} is not open");
                self.asked.insert(piece);
                self.layout.blocks_of(piece)
            }
            Change::Released(piece) => {
                self.asked.remove(&piece);
                self.layout.blocks_of(piece)
            }
            Change::Began(id, blocks) => {
                debug_assert_eq!(self.next_gap(blocks.clone()), Some(blocks.clone()), "some are not missing");
                let (first, end) = (blocks.start, blocks.end);
                self.runs.insert(id, Run { first, reached: first, end, stopping: false });
                blocks
            }
            Change::Ends(id, end) => {
                let Some(run) = self.runs.get_mut(&id) else { return };
                let before = std::mem::replace(&mut run.end, end);
                before.min(end)..before.max(end)
            }
            Change::Over(id) => {
                let Some(run) = self.runs.remove(&id) else { return };
                run.first..run.end
            }
            Change::Came(blocks) => {
                self.run_brought(&blocks);
                self.there.insert(blocks.clone());
                blocks
            }
            Change::Complete(piece) => {
                let blocks = self.layout.blocks_of(piece);
                self.run_brought(&blocks);
                self.there.insert(blocks.clone());
                self.asked.remove(&piece);
                self.hashed.insert(piece);
                self.have.insert(piece);
                blocks
            }
        };
        self.refresh(touched);
    }

    /// A run brings its blocks in order.
    fn run_brought(&mut self, blocks: &Range<u32>) {
        for run in self.runs.values_mut().filter(|run| (blocks.start..blocks.end).contains(&run.first)) {
            run.first = blocks.end.min(run.end);
            run.reached = run.reached.max(run.first);
        }
    }

    /// The run that is to bring `block`.
    pub(crate) fn run_of(&self, block: u32) -> Option<RunId> {
        self.runs.iter().find(|(_, run)| (run.first..run.end).contains(&block)).map(|(id, _)| *id)
    }

    /// One more partner has it, on this side of a border or across.
    pub(crate) fn shown(&mut self, piece: PieceIndex, across: bool) {
        self.count_holders(piece, across, |holders| holders + 1);
    }

    /// One partner fewer has it.
    pub(crate) fn hidden(&mut self, piece: PieceIndex, across: bool) {
        self.count_holders(piece, across, |holders| holders - 1);
    }

    fn count_holders(&mut self, piece: PieceIndex, across: bool, count: impl Fn(u16) -> u16) {
        let holders = &mut self.availability[piece.as_usize()];
        *holders = count(*holders);
        if *holders == 1 {
            self.sole.insert(piece);
        } else {
            self.sole.remove(piece);
        }
        let near = &mut self.near[piece.as_usize()];
        *near = if across { *near } else { count(*near) };
    }

    /// Whether nobody on this side of the border has it.
    pub(crate) fn is_far(&self, piece: PieceIndex) -> bool {
        self.near[piece.as_usize()] == 0
    }

    /// What only those across the border have.
    pub(crate) fn far(&self) -> PieceSet {
        let mut far = PieceSet::empty(self.count());
        let pieces = self.open.iter();
        pieces.filter(|piece| self.is_far(*piece) && self.is_available(*piece)).for_each(|piece| {
            far.insert(piece);
        });
        far
    }

    /// Whether a partner has it and it could be checked.
    pub(crate) fn is_available(&self, piece: PieceIndex) -> bool {
        self.hashed.contains(piece) && self.availability[piece.as_usize()] > 0
    }

    /// Whether some of it is missing, and nobody else is known to have that.
    fn is_only_at_origin(&self, piece: PieceIndex) -> bool {
        !(self.have.contains(piece)
            || self.is_available(piece)
            || self.promised.contains(piece)
            || self.asked.contains(&piece))
    }

    /// The first of the blocks `within` that are wanted and MISSING or asked of a partner, and those that follow it.
    pub(crate) fn next_gap(&self, within: Range<u32>) -> Option<Range<u32>> {
        let mut start = within.start;
        loop {
            start = self.wanted.next_from(start).filter(|start| *start < within.end)?;
            let passed = self.run_of(start).map_or(start, |run| self.runs[&run].end);
            let passed = passed.max(self.there.end_from(start));
            if passed == start {
                break;
            }
            start = passed;
        }
        let runs = self.runs.values().filter(|run| run.first < run.end).map(|run| run.first);
        let ends = runs.chain(self.there.next_from(start)).filter(|end| *end > start);
        Some(start..ends.chain([self.wanted.end_from(start), within.end]).min().unwrap_or(within.end))
    }

    /// The first gap `within`, of what only the origin has.
    pub(crate) fn next_at_origin(&self, within: Range<u32>) -> Option<Range<u32>> {
        let start = pieces(&self.layout, &within)
            .filter(|piece| self.is_only_at_origin(*piece))
            .find_map(|piece| self.next_gap(overlap(&within, self.layout.blocks_of(piece))))?
            .start;
        let gap = self.next_gap(start..within.end)?;
        let mut far = pieces(&self.layout, &gap).skip_while(|piece| self.is_only_at_origin(*piece));
        Some(start..far.next().map_or(gap.end, |piece| self.layout.blocks_of(piece).start))
    }

    /// What to ask of a partner that has this open piece: all of it, or the blocks from `cursor` on, or the first, as they
    /// are missing.
    pub(crate) fn to_ask(&self, piece: PieceIndex, cursor: u32) -> Range<u32> {
        let all = self.layout.blocks_of(piece);
        let first = self.next_gap(all.clone()).unwrap_or(all.clone());
        if first == all || !all.contains(&cursor) {
            return first;
        }
        self.next_gap(cursor..all.end).unwrap_or(first)
    }

    /// Every piece of which something is wanted, from that of `cursor` on and then from the start.
    pub(crate) fn in_order(&self, cursor: u32) -> impl Iterator<Item = PieceIndex> + '_ {
        let first = self.layout.piece_of(cursor).get();
        (first..self.count()).chain(0..first).map(PieceIndex::new).filter(|piece| self.is_wanted(*piece))
    }

    fn is_wanted(&self, piece: PieceIndex) -> bool {
        let blocks = self.layout.blocks_of(piece);
        self.wanted.next_from(blocks.start).is_some_and(|next| next < blocks.end)
    }

    /// Whether all that is wanted of it is there.
    pub(crate) fn is_satisfied(&self, piece: PieceIndex) -> bool {
        self.wanted.within(self.layout.blocks_of(piece)).all(|run| self.there.contains_all(&run))
    }

    /// Returns whether the hash was not known.
    pub(crate) fn insert_hash(&mut self, piece: PieceIndex) -> bool {
        let new = self.hashed.insert(piece);
        if new {
            self.promised.insert(piece);
            self.refresh(self.layout.blocks_of(piece));
        }
        new
    }

    pub(crate) fn set_wanted(&mut self, wanted: BlockSet) {
        let before = std::mem::replace(&mut self.wanted, wanted);
        let touched: Vec<Range<u32>> = before.runs().chain(self.wanted.runs()).collect();
        touched.into_iter().for_each(|blocks| self.refresh(blocks));
    }

    fn refresh(&mut self, touched: Range<u32>) {
        for piece in pieces(&self.layout, &touched) {
            let blocks = self.layout.blocks_of(piece);
            let free = !self.asked.contains(&piece)
                && self.runs.values().all(|run| overlap(&blocks, run.first..run.end).is_empty());
            if free && self.hashed.contains(piece) && self.next_gap(blocks).is_some() {
                self.open.insert(piece);
            } else {
                self.open.remove(piece);
            }
        }
    }
}

/// The pieces in which blocks lie.
fn pieces(layout: &PieceLayout, blocks: &Range<u32>) -> impl Iterator<Item = PieceIndex> + use<> {
    let pieces = match blocks.end.checked_sub(1) {
        Some(last) if blocks.start <= last => {
            layout.piece_of(blocks.start).get()..layout.piece_of(last).get() + 1
        }
        _ => 0..0,
    };
    pieces.map(PieceIndex::new)
}

fn overlap(a: &Range<u32>, b: Range<u32>) -> Range<u32> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
