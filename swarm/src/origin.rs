//! Runs of blocks from the origin: when one starts, how far it goes, and when it stops.

use crate::action::{Action, MayAsk, RunId};
use crate::pieces::Change;
use crate::state::Swarm;
use darter_protocol::PieceLayout;
use std::ops::Range;

/// Runs at the same time: one that goes through the content, and some for readers elsewhere in it.
pub(crate) const RUNS: usize = 4;
/// A reader that waits for a byte at most so far ahead of a run waits for the run: at 20 MB/s, for a twentieth of a second,
/// which a request of its own would take, too.
const NEAR: u64 = 1 << 20;

impl Swarm {
    /// Whether an origin run is going on.
    pub fn asks_origin(&self) -> bool {
        !self.pieces.runs.is_empty()
    }

    /// Whether some wanted block could be fetched only from the origin now.
    pub fn needs_origin(&self) -> bool {
        self.pieces.next_at_origin(0..self.pieces.layout.blocks()).is_some()
    }

    /// The right to go to the origin came or went.
    pub fn handle_right(&mut self, may_ask: MayAsk) {
        self.may_ask = may_ask;
        if may_ask == MayAsk::No {
            for (id, run) in self.pieces.runs.iter_mut().filter(|(_, run)| !run.stopping) {
                run.stopping = true;
                self.due.push_front(Action::StopOrigin { run: *id });
            }
        }
    }

    /// So many runs at the same time are allowed from now on, at least one; `None`: as many as are of use. Those that are under way
    /// go on.
    pub fn set_most_runs(&mut self, most: Option<usize>) {
        self.most_runs = most.map_or(RUNS, |most| most.clamp(1, RUNS));
    }

    /// The origin sends everything from the start, whatever it is asked for. From now on one run at a time takes what is missing in order,
    /// and keeps what passes by: a run for each reader would cost as many copies.
    pub fn handle_no_ranges(&mut self) {
        if std::mem::replace(&mut self.in_order, true) {
            return;
        }
        self.want();
        let going: Vec<(RunId, u32)> = self
            .pieces
            .runs
            .iter()
            .filter(|(_, run)| !run.stopping)
            .map(|(id, run)| (*id, run.end))
            .collect();
        for (run, end) in going {
            // It was to make way for a run that there will not be.
            let gap = self.pieces.next_at_origin(end..self.pieces.layout.blocks());
            if let Some(gap) = gap.filter(|gap| gap.start == end) {
                self.pieces.apply(Change::Ends(run, gap.end));
                self.due.push_front(Action::ExtendOrigin { run, end: gap.end });
            }
        }
    }

    /// Whether the origin is known to send everything from the start.
    pub fn is_in_order(&self) -> bool {
        self.in_order
    }

    /// The origin has already begun to send these blocks: the run of the first request, which `poll_action` did not start.
    /// It passes over what is not wanted (an origin without ranges sends everything), and goes on as long as they are
    /// wanted and missing; `None` when none is. Where pieces are completed, the first is, as far as it is carried: its rest
    /// would be another request, and all of the content again from an origin without ranges.
    pub fn adopt_run(&mut self, carried: Range<u32>) -> Option<(RunId, Range<u32>)> {
        let first = self.pieces.next_gap(carried.clone())?.start;
        self.begin(self.pieces.layout.piece_of(first));
        let blocks = self.pieces.next_gap(carried)?;
        let id = self.start_run(blocks.clone());
        // A reader may wait since before there was a run that could be too late for it.
        let waiting: Vec<u32> = self.waiting.keys().copied().collect();
        waiting.into_iter().for_each(|block| self.hurry_run(block));
        Some((id, blocks))
    }

    /// A run is about to bring `block`, though what it brought before may not be on disk yet. Said before a reader's waiting
    /// is: who waits for what is about to come needs no run of his own.
    pub fn handle_run_reached(&mut self, id: RunId, block: u32) {
        if let Some(run) = self.pieces.runs.get_mut(&id) {
            run.reached = run.reached.max(block);
        }
    }

    /// The run that was to be shortened has begun with the blocks before `end` already. Said before anything else is polled.
    pub fn handle_overrun(&mut self, id: RunId, end: u32) {
        if self.pieces.runs.get(&id).is_some_and(|run| run.end < end) {
            self.pieces.apply(Change::Ends(id, end));
        }
    }

    /// An origin run is over, at its end or before: what it did not bring is missing again.
    pub fn handle_run_ended(&mut self, run: RunId) {
        self.pieces.apply(Change::Over(run));
        self.idle = false;
    }

    pub(crate) fn shorten_runs(&mut self) {
        let runs: Vec<(RunId, u32, u32)> =
            self.pieces.runs.iter().map(|(id, run)| (*id, run.reached, run.end)).collect();
        for (id, reached, end) in runs {
            let last = self.pieces.wanted.last_before(end).filter(|last| *last >= reached);
            // The block that is arriving is finished in any case: half of it would be worth nothing.
            let needed = last.unwrap_or(reached) + 1;
            if needed < end {
                self.shorten(id, needed);
            }
        }
    }

    /// A reader waits for `block`: if a run would reach it late, or all runs are for others, there must be one for it.
    pub(crate) fn hurry_run(&mut self, block: u32) {
        let bringing = self.pieces.run_of(block);
        let comes = match bringing {
            Some(run) => self.is_near(run, block),
            None => self.pieces.next_at_origin(block..block + 1).is_none(),
        };
        if comes || self.in_order {
            return;
        }
        if self.pieces.runs.len() >= self.most_runs {
            let idle = self.pieces.runs.keys().copied();
            let idle = { idle }.find(|run| !self.waiting.keys().any(|waited| self.is_near(*run, *waited)));
            let Some(idle) = idle else { return };
            let arriving = self.pieces.runs[&idle].reached + 1;
            self.shorten(idle, arriving);
        }
        if let Some(bringing) = self.pieces.run_of(block) {
            self.shorten(bringing, block);
        }
    }

    /// Whether a run is about to bring `block`.
    fn is_near(&self, run: RunId, block: u32) -> bool {
        let near = (NEAR / self.pieces.layout.block_size()).max(1) as u32;
        let run = &self.pieces.runs[&run];
        (run.first..run.end.min(run.reached.saturating_add(near) + 1)).contains(&block)
    }

    /// Ends a run before `end`; what it leaves is missing again.
    fn shorten(&mut self, id: RunId, end: u32) {
        if self.pieces.runs.get(&id).is_some_and(|run| end < run.end) {
            self.pieces.apply(Change::Ends(id, end));
            self.due.push_front(Action::ShortenOrigin { run: id, end });
        }
    }

    pub(crate) fn poll_origin(&mut self) -> Option<Action> {
        let most = if self.in_order { 1 } else { self.most_runs };
        if self.may_ask != MayAsk::Now || self.pieces.runs.len() >= most {
            return None;
        }
        let mut blocks = self.next_run()?;
        self.begin(self.pieces.layout.piece_of(blocks.start));
        if self.limits.whole_pieces {
            let piece = self.pieces.layout.blocks_of(self.pieces.layout.piece_of(blocks.start));
            blocks = self.pieces.next_at_origin(blocks.start..blocks.end.max(piece.end))?;
        }
        Some(Action::FetchOrigin { run: self.start_run(blocks.clone()), blocks })
    }

    fn next_run(&self) -> Option<Range<u32>> {
        let pieces = &self.pieces;
        if self.in_order {
            return pieces.next_at_origin(0..pieces.layout.blocks());
        }
        // For a reader that waits no further than it reads; what others want is fetched in its turn. Beside a run, another
        // one is started only for such a reader.
        let for_readers = self.waiting.iter().filter_map(|(block, until)| {
            pieces.next_at_origin(*block..*until).filter(|blocks| blocks.start == *block)
        });
        { for_readers }.next().or_else(|| {
            let parts = [self.cursor..pieces.layout.blocks(), 0..self.cursor];
            let parts = parts.into_iter().filter(|_| pieces.runs.is_empty());
            { parts }.find_map(|part| pieces.next_at_origin(part))
        })
    }

    fn start_run(&mut self, blocks: Range<u32>) -> RunId {
        let id = RunId(self.next_run);
        self.next_run += 1;
        self.pieces.apply(Change::Began(id, blocks));
        id
    }
}

const _: () = assert!(NEAR >= PieceLayout::MIN_BLOCK_SIZE);
