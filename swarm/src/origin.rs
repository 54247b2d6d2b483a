//! Runs of pieces from the origin: when one starts, how far it goes, and when it stops.

use crate::action::{Action, MayAsk, RunId};
use crate::pieces::Carrier;
use crate::state::Swarm;
use darter_protocol::PieceIndex;
use std::ops::Range;

/// Runs at the same time: one that goes through the content, and some for readers elsewhere in it.
const RUNS: usize = 4;
/// A reader that waits for a piece at most so far ahead of a run waits for the run.
const NEAR: u32 = 1;

#[derive(Debug)]
pub(crate) struct Run {
    next: u32,
    end: u32,
    stopping: bool,
}

impl Swarm {
    /// Whether an origin run is going on.
    pub fn asks_origin(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Whether some wanted piece could be fetched only from the origin now.
    pub fn needs_origin(&self) -> bool {
        self.pieces.wanted.iter().any(|piece| self.pieces.is_only_at_origin(piece))
    }

    /// The right to go to the origin came or went.
    pub fn handle_right(&mut self, may_ask: MayAsk) {
        self.may_ask = may_ask;
        if may_ask == MayAsk::No {
            for (id, run) in self.runs.iter_mut().filter(|(_, run)| !run.stopping) {
                run.stopping = true;
                self.due.push_front(Action::StopOrigin { run: *id });
            }
        }
    }

    /// The origin has already begun to send these pieces: the run of the first request, which `poll_action` did not start.
    /// It passes over what is not wanted (an origin without ranges sends everything), and goes on as long as they are
    /// wanted and missing; `None` when none is.
    pub fn adopt_run(&mut self, carried: Range<u32>) -> Option<(RunId, Range<u32>)> {
        let pieces = &self.pieces;
        let fits = |piece: &u32| {
            pieces.wanted.contains(PieceIndex::new(*piece)) && pieces.is_missing(PieceIndex::new(*piece))
        };
        let mut fitting = carried.skip_while(|piece| !fits(piece)).take_while(fits);
        let first = fitting.next()?;
        let pieces = first..fitting.last().unwrap_or(first) + 1;
        Some((self.start_run(pieces.clone()), pieces))
    }

    /// A run is about to bring `piece`, though what it brought before may not be on disk yet. Said before a reader's waiting
    /// is: who waits for what is about to come needs no run of his own.
    pub fn handle_run_reached(&mut self, id: RunId, piece: PieceIndex) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.next = run.next.max(piece.get());
        }
    }

    /// The run that was to be shortened has begun with the pieces before `end` already. Said before anything else is polled.
    pub fn handle_overrun(&mut self, id: RunId, end: u32) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.end < end) else { return };
        let begun = std::mem::replace(&mut run.end, end)..end;
        begun.for_each(|piece| self.pieces.take(PieceIndex::new(piece), Carrier::Origin(id)));
    }

    /// An origin run is over, at its end or before: what it did not bring is missing again.
    pub fn handle_run_ended(&mut self, run: RunId) {
        self.runs.remove(&run);
        self.pieces.release_run(run);
        self.idle = false;
    }

    pub(crate) fn run_brought(&mut self, run: RunId, piece: PieceIndex) {
        if let Some(run) = self.runs.get_mut(&run) {
            run.next = run.next.max(piece.get() + 1);
        }
    }

    pub(crate) fn shorten_runs(&mut self) {
        let runs: Vec<(RunId, u32, u32)> =
            self.runs.iter().map(|(id, run)| (*id, run.next, run.end)).collect();
        for (id, next, end) in runs {
            let last = (next..end).rev().find(|piece| self.pieces.wanted.contains(PieceIndex::new(*piece)));
            // The piece that is arriving is finished in any case: half of it would be worth nothing.
            let needed = last.unwrap_or(next) + 1;
            if needed < end {
                self.shorten(id, needed);
            }
        }
    }

    /// A reader waits for `piece`: if a run would reach it late, it gets one of its own.
    pub(crate) fn hurry_run(&mut self, piece: PieceIndex) {
        let Some(Carrier::Origin(id)) = self.pieces.carrier(piece) else { return };
        let near = self.runs.get(&id).is_none_or(|run| piece.get() <= run.next + NEAR);
        if !near && self.runs.len() < RUNS {
            self.shorten(id, piece.get());
        }
    }

    /// Ends a run before `end`; what it leaves is missing again.
    fn shorten(&mut self, id: RunId, end: u32) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let left = end..std::mem::replace(&mut run.end, end);
        left.for_each(|piece| self.pieces.release(PieceIndex::new(piece), Carrier::Origin(id)));
        self.due.push_front(Action::ShortenOrigin { run: id, end });
    }

    pub(crate) fn poll_origin(&mut self) -> Option<Action> {
        if self.may_ask != MayAsk::Now || self.runs.len() >= RUNS {
            return None;
        }
        let pieces = &self.pieces;
        let only_origin = |piece| pieces.wanted.contains(piece) && pieces.is_only_at_origin(piece);
        // Beside a run, another one is started only for a reader that waits.
        let first = if self.runs.is_empty() {
            pieces.in_order(self.cursor).find(|piece| only_origin(*piece))?
        } else {
            Some(self.cursor).filter(|piece| only_origin(*piece))?
        };
        let rest = first.get()..pieces.count();
        let end = rest.take_while(|piece| only_origin(PieceIndex::new(*piece))).last()? + 1;
        let pieces = first.get()..end;
        Some(Action::FetchOrigin { run: self.start_run(pieces.clone()), pieces })
    }

    fn start_run(&mut self, pieces: Range<u32>) -> RunId {
        let id = RunId(self.next_run);
        self.next_run += 1;
        for piece in pieces.clone() {
            self.pieces.take(PieceIndex::new(piece), Carrier::Origin(id));
        }
        self.runs.insert(id, Run { next: pieces.start, end: pieces.end, stopping: false });
        id
    }
}
