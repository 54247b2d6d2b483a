//! Groups: whatever came while the last group was being written is written together, flushed once, and entered in one
//! transaction.
//!
//! Nobody who reads waits for this: an object is read from memory until it is here. It is told to others as complete when it
//! is entered, and not before. There is no thread of its own: whoever finds nobody at it writes for all until nothing waits.

use super::{Packs, Step};
use crate::store::catalog::Entry;
use crate::store::file::TaskFile;
use crate::store::{Complete, InUse, Store, is_full, lock};
use darter_protocol::TaskId;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;

/// How long the first of a group waits for others, when nobody waits for it. Ten milliseconds are a hundred flushes a second
/// at most, of which a disk manages more, and are little beside what it takes until a scheduler has told somebody.
const LINGER: Duration = Duration::from_millis(10);

/// A group is no larger than this, in bytes and objects: it is the memory that one write takes, and how long one lasts.
const GROUP_BYTES: u64 = 8 << 20;
const GROUP_OBJECTS: usize = 1024;

/// Objects that wait to be packed.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Vec<Waiting>,
    bytes: u64,
    since: Option<Instant>,
    hurry: bool,
    /// Somebody writes for all.
    led: bool,
}

/// An object that was verified, and waits to be packed.
#[derive(Debug)]
pub(in super::super) struct Waiting {
    pub(in super::super) task: TaskId,
    pub(in super::super) entry: Entry,
    pub(in super::super) file: Arc<TaskFile>,
    pub(in super::super) done: oneshot::Sender<io::Result<()>>,
    /// It is an incomplete task until it is done, and nobody throws it away.
    pub(in super::super) _in_use: Arc<InUse>,
}

/// Whoever leads; the next one can when this is dropped, also by a panic.
struct Lead<'a>(&'a Packs);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        // Whoever waits hears that nobody writes any more.
        *queue = Queue::default();
    }
}

impl Packs {
    /// Adds an object. `true`: the caller must see to it that [`Store::write_groups`] is called, on a thread that may block.
    pub(in super::super) fn add(&self, waiting: Waiting, hurry: bool) -> bool {
        let mut queue = lock(&self.queue);
        queue.bytes += waiting.file.layout().length();
        queue.waiting.push(waiting);
        queue.since.get_or_insert_with(Instant::now);
        queue.hurry |= hurry;
        if queue.is_due() {
            self.hurry.notify_one();
        }
        !std::mem::replace(&mut queue.led, true)
    }

    /// The next group, when it is due; `None`, and nobody leads any more, when nothing waits.
    fn next_group(&self) -> Option<Vec<Waiting>> {
        let mut queue = lock(&self.queue);
        while let Some(since) = queue.since {
            let left = LINGER.saturating_sub(since.elapsed());
            if left.is_zero() || queue.is_due() {
                return Some(queue.take());
            }
            queue = self.hurry.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.led = false;
        None
    }
}

impl Queue {
    fn is_due(&self) -> bool {
        self.hurry || self.bytes >= GROUP_BYTES || self.waiting.len() >= GROUP_OBJECTS
    }

    /// The first that wait, as many as a group may have.
    fn take(&mut self) -> Vec<Waiting> {
        let mut bytes = 0;
        let fits = |waiting: &&Waiting| {
            bytes += waiting.file.layout().length();
            bytes <= GROUP_BYTES
        };
        let count = self.waiting.iter().take(GROUP_OBJECTS).take_while(fits).count().max(1);
        let rest = self.waiting.split_off(count.min(self.waiting.len()));
        let group = std::mem::replace(&mut self.waiting, rest);
        self.bytes = self.waiting.iter().map(|waiting| waiting.file.layout().length()).sum();
        if self.waiting.is_empty() {
            (self.since, self.hurry) = (None, false);
        }
        group
    }
}

impl Store {
    /// Packs what waits, until nothing does. Blocks.
    pub(crate) fn write_groups(&self) {
        let lead = Lead(&self.packs);
        while let Some(group) = self.packs.next_group() {
            let written = match self.write_group(&group) {
                // Others use this disk, too.
                Err(error) if is_full(&error) && self.free_up(bytes_of(&group)).unwrap_or(false) => {
                    self.write_group(&group)
                }
                written => written,
            };
            if let Err(error) = &written {
                self.judge(error);
            }
            for waiting in group {
                let said = written.as_ref().map_or_else(|error| Err(again(error)), |()| Ok(()));
                // Whoever is gone need not know.
                let _ = waiting.done.send(said);
            }
        }
        // Somebody else may lead by now.
        std::mem::forget(lead);
    }

    fn write_group(&self, group: &[Waiting]) -> io::Result<()> {
        let mut writer = lock(&self.packs.writer);
        let locked: Vec<_> = group.iter().filter_map(|waiting| waiting.file.lock_staged()).collect();
        if locked.len() != group.len() {
            return Err(io::Error::other("only what is in memory can be packed"));
        }
        let contents: Vec<&[u8]> = locked.iter().map(|bytes| &***bytes).collect();
        let places = writer.append(&self.packs, &contents)?;
        drop(locked);
        let (mut entries, mut extents) = (Vec::new(), Vec::new());
        for (waiting, place) in group.iter().zip(&places) {
            entries.push((waiting.task, Entry { place: Some(*place), ..waiting.entry.clone() }));
            extents.push((*place, waiting.entry.record.info.length));
        }
        // From here on an eviction may come across it.
        for (waiting, (place, length)) in group.iter().zip(&extents) {
            lock(&self.packs.segments).take(*place, *length);
            if let Some(claim) = waiting.file.take_claim() {
                claim.keep();
            }
        }
        let inserted = self.catalog.insert_all(&entries, SystemTime::now()).map_err(io::Error::from);
        // The catalog may have it all the same: then it must not be cut.
        inserted.and_then(|()| self.packs.step(Step::Entered)).inspect_err(|_| self.untidy())?;
        // Still the writer: nobody moves it before this is done.
        entries.into_iter().for_each(|(task, entry)| self.entered(&task, entry));
        Ok(())
    }

    /// A task is complete. Whoever has just asked for it will not be the last. The writer is held.
    fn entered(&self, task: &TaskId, entry: Entry) {
        let _names = lock(&self.names);
        lock(&self.partials).remove(task);
        let Entry { record, hashes, place } = entry;
        let file = super::super::layout(&record).and_then(|layout| {
            let place = place.ok_or(io::ErrorKind::NotFound)?;
            self.packs.open(place, layout)
        });
        // It may have been evicted meanwhile.
        let is_there = || self.catalog.lacks(task) == Some(false);
        if let Some(file) = file.ok().filter(|_| is_there()) {
            self.opened
                .insert(*task, Complete { record, hashes: hashes.into(), file: Arc::new(file), place });
        }
    }
}

fn bytes_of(group: &[Waiting]) -> u64 {
    group.iter().map(|waiting| super::extent_length(waiting.file.layout().length())).sum()
}

/// The same error, for another one.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
