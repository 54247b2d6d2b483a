//! [`Trails`]: who reads on and on in small requests, and how much is fetched ahead of it.
//!
//! A client that reads a file by ranges, one after the other, would cost a request to the origin or to a partner for each of
//! them, where the next one could be known. So one that begins where another ended is taken to go on: at first one block is
//! fetched ahead of it, and twice as much each time that half of it has been asked for, up to some pieces. Requests are
//! matched by where they are, not by whose they are: a client may open a connection for each.
//!
//! One that passes over a little each time goes on, too, when it passes over no more than it reads: what it does not read is then at most
//! half of what is fetched ahead of it, and costs less than a request for each of its parts. Lazy pulls of images read so.
//!
//! Plain state; what is on disk already it does not know.

use darter_protocol::{ByteRange, PieceLayout, TaskId};
use std::collections::VecDeque;

/// Trails that are remembered, of all content together.
const MAX_TRAILS: usize = 256;
/// The most that is fetched ahead, in bytes; at least a piece. Half of it is one request in the long run, so reading by
/// ranges costs fewer requests than there are pieces.
const MOST: u64 = 4 << 20;

/// The largest hole that is read through, in bytes: at 80 Mbit/s it takes 26 ms, the round trip to a registry that is not near.
const LARGEST_HOLE: u64 = 256 << 10;

/// Reading that may go on.
#[derive(Debug)]
struct Trail {
    task: TaskId,
    /// Where the last request ended.
    next: u64,
    /// Up to where it is fetched ahead.
    to: u64,
    /// How much is fetched ahead of it, in bytes; 0 before it has gone on once.
    window: u64,
}

/// Where is read, the newest last.
#[derive(Debug, Default)]
pub(crate) struct Trails(VecDeque<Trail>);

impl Trails {
    /// Somebody asks for `range`. Gives what to fetch ahead of it, beyond what was before.
    pub(crate) fn follow(
        &mut self,
        task: TaskId,
        layout: &PieceLayout,
        range: ByteRange,
    ) -> Option<ByteRange> {
        let block = layout.block_size();
        let mut of_task = self.0.iter().filter(|trail| trail.task == task);
        if of_task.any(|trail| trail.next == range.end()) {
            // The same again.
            return None;
        }
        let passed_over = range.len().min(LARGEST_HOLE).max(block - 1);
        let goes_on = |trail: &Trail| {
            let forward = (trail.next..=trail.next.saturating_add(passed_over)).contains(&range.start());
            trail.task == task
                && (forward || trail.next.abs_diff(range.start()) < block)
                && trail.next < range.end()
        };
        let Some(found) = self.0.iter().rposition(goes_on) else {
            self.push(Trail { task, next: range.end(), to: range.end(), window: 0 });
            return None;
        };
        let mut trail = self.0.remove(found)?;
        trail.next = range.end();
        let most = MOST.max(layout.piece_size());
        let due = trail.to <= range.end() + trail.window / 2;
        let from = trail.to.max(range.end());
        if due {
            trail.window = (2 * trail.window).clamp(block, most);
            trail.to = range.end().saturating_add(trail.window);
        }
        let ahead = ByteRange::new(from, trail.to.min(layout.length())).filter(|_| due);
        self.push(trail);
        ahead
    }

    fn push(&mut self, trail: Trail) {
        if self.0.len() == MAX_TRAILS {
            self.0.pop_front();
        }
        self.0.push_back(trail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = PieceLayout::MIN_BLOCK_SIZE;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    fn task(n: u8) -> TaskId {
        TaskId::from([n; 32])
    }

    #[test]
    fn who_jumps_about_gets_nothing_ahead() {
        let (mut trails, layout) = (Trails::default(), PieceLayout::new(1 << 30).unwrap());
        for start in [0, 50 * BLOCK, 7 * BLOCK, 300 * BLOCK, 7 * BLOCK] {
            assert_eq!(trails.follow(task(1), &layout, range(start, start + 1000)), None);
        }
        assert_eq!(trails.follow(task(2), &layout, range(1000, 2000)), None, "another content");
    }

    #[test]
    fn who_goes_on_gets_more_and_more_ahead_without_gaps_or_repeats() {
        let (mut trails, layout) = (Trails::default(), PieceLayout::new(64 << 20).unwrap());
        for step in [1000, BLOCK, 3 * BLOCK + 5] {
            let task = TaskId::of_url("http://example.org/", &step.to_string(), "");
            let (mut reached, mut requests, mut largest) = (step, 0, 0);
            for start in (0..layout.length() - step).step_by(step as usize) {
                let asked = range(start, start + step);
                if let Some(ahead) = trails.follow(task, &layout, asked) {
                    assert_eq!(ahead.start(), reached.max(asked.end()), "beyond what was before");
                    requests += 1;
                    (reached, largest) = (ahead.end(), largest.max(ahead.len()));
                } else {
                    requests += u64::from(asked.end() > reached);
                }
            }
            assert!(reached == layout.length() && largest <= MOST, "{reached} {largest}");
            let pieces = u64::from(layout.pieces());
            assert!(requests <= pieces, "{requests} requests in steps of {step}, {pieces} pieces");
        }
    }

    #[test]
    fn who_passes_over_no_more_than_it_reads_goes_on() {
        let layout = PieceLayout::new(64 << 20).unwrap();
        for (read, hole, goes_on) in [
            (2 * BLOCK, BLOCK, true),
            (2 * BLOCK, 2 * BLOCK, true),
            (4 * BLOCK, 4 * BLOCK, true),
            (2 * BLOCK, 2 * BLOCK + 1, false),
            (8 * BLOCK, LARGEST_HOLE + 1, false),
            (1000, BLOCK - 1, true),
            (1000, BLOCK, false),
        ] {
            let mut trails = Trails::default();
            trails.follow(task(1), &layout, range(0, read));
            let next = range(read + hole, read + hole + read);
            let ahead = trails.follow(task(1), &layout, next);
            assert_eq!(ahead.map(|ahead| ahead.start()), goes_on.then_some(next.end()), "{read} {hole}");
        }
        let mut trails = Trails::default();
        trails.follow(task(1), &layout, range(10 * BLOCK, 12 * BLOCK));
        assert_eq!(trails.follow(task(1), &layout, range(6 * BLOCK, 8 * BLOCK)), None, "back");
    }

    #[test]
    fn only_so_many_are_remembered() {
        let (mut trails, layout) = (Trails::default(), PieceLayout::new(1 << 40).unwrap());
        let far = |n: u64| range(n * 100 * BLOCK, n * 100 * BLOCK + 10);
        for n in 0..=MAX_TRAILS as u64 {
            assert_eq!(trails.follow(task(1), &layout, far(n)), None);
        }
        assert_eq!(trails.0.len(), MAX_TRAILS);
        let next = |n: u64| range(far(n).end(), far(n).end() + 10);
        assert_eq!(trails.follow(task(1), &layout, next(0)), None);
        assert!(trails.follow(task(1), &layout, next(5)).is_some());
    }
}
