//! [`Given`]: a file that a user has handed over to be read, and [`Reading`]: whether it answers.
//!
//! It may stand on a file system that never answers again, and no thread can be called back from there. So whoever waits for
//! the thread looks whether it moves, and gives the file up; the thread finds that out when it comes back.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// A file that somebody has handed over, open for reading. Where it is dropped may matter to whom it belongs: closing it may
/// wait for its file system, too.
pub trait Given: Send + 'static {
    /// The file.
    fn file(&self) -> &File;
}

impl Given for File {
    fn file(&self) -> &File {
        self
    }
}

/// How the reading of a given file goes on.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// What was done so far, read or written.
    steps: AtomicU64,
    /// Threads that wait for the file.
    waiting: AtomicUsize,
    given_up: AtomicBool,
}

impl Reading {
    /// Asks the file for something.
    ///
    /// # Errors
    /// Those of `ask`; `TimedOut` when it was given up meanwhile.
    pub(crate) fn ask<T>(&self, ask: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let answer = ask();
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.step()?;
        answer
    }

    /// Something was done with what the file gave.
    ///
    /// # Errors
    /// `TimedOut` when it was given up meanwhile.
    pub(crate) fn step(&self) -> io::Result<()> {
        self.steps.fetch_add(1, Ordering::AcqRel);
        if self.given_up.load(Ordering::Acquire) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// Whether something was done since there were `seen` steps, which is brought up to date, or nobody waits for the file.
    pub(crate) fn moves(&self, seen: &mut u64) -> bool {
        let steps = self.steps.load(Ordering::Acquire);
        let moved = std::mem::replace(seen, steps) != steps;
        moved || self.waiting.load(Ordering::Acquire) == 0
    }

    /// Whoever reads it is to stop.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_is_waited_for_stands_still() {
        let (reading, mut seen) = (Reading::default(), 0);
        assert!(reading.moves(&mut seen), "nobody waits");
        reading.ask(|| Ok(())).unwrap();
        let asked = reading.ask(|| {
            assert!(reading.moves(&mut seen), "something was done");
            assert!(!reading.moves(&mut seen));
            reading.give_up();
            Ok(())
        });
        assert_eq!(asked.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(reading.step().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
