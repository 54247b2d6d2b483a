//! [`Partial`]: a task that is being downloaded, and how it comes to be: room is made for it, and it gets a place.
//!
//! Its space is counted at once, against the quota and against what the disk has, so that a full disk shows before a byte was
//! promised to anybody. The disk allocates it meanwhile ([`Reservation`]): of a gigabyte that takes tens of milliseconds, for
//! which no client waits.

use super::collect::SPARE_BYTES;
use super::file::{Access, TaskFile};
use super::held::{Held, Noted};
use super::journal::Journal;
use super::names::journal_path;
use super::space::{Claim, Promise};
use super::{Record, Store, is_full, is_loss, layout, lock};
use darter_protocol::{BlockHash, ByteRange, PieceHash, PieceIndex, PieceLayout, TaskId};
use std::io;
use std::sync::Arc;

/// How much is allocated at once, in bytes: a file system lets nobody write to the file meanwhile.
const RESERVE_STEP: u64 = 16 << 20;

/// Somebody works on an incomplete task.
#[derive(Debug)]
pub(super) struct InUse;

/// A task that is being downloaded.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) record: Record,
    pub(crate) file: Arc<TaskFile>,
    /// `None` for what is in memory alone: that does not survive this process.
    journal: Option<Journal>,
    pub(super) in_use: Arc<InUse>,
    reservation: Option<Reservation>,
}

/// Space that the disk is to allocate for a download that is under way.
#[derive(Debug)]
pub(crate) struct Reservation {
    file: Arc<TaskFile>,
    promise: Promise,
}

impl Partial {
    /// Notes that `piece` is on disk, for a later start. That is no promise: what is not noted is fetched again then, and
    /// nobody who waits for the content now need be told.
    pub(crate) fn note(&mut self, piece: PieceIndex, hash: &PieceHash) {
        self.write(|journal| journal.append(piece, hash));
    }

    /// The same of blocks.
    pub(crate) fn note_blocks(&mut self, blocks: &[(u32, BlockHash)]) {
        if !blocks.is_empty() {
            self.write(|journal| journal.append_blocks(blocks));
        }
    }

    /// Makes its journal survive a power cut, but for its name. Blocks.
    pub(super) fn sync_journal(&self) -> io::Result<()> {
        self.journal.as_ref().map_or(Ok(()), Journal::sync)
    }

    fn write(&mut self, write: impl FnOnce(&mut Journal) -> io::Result<()>) {
        if let Some(Err(error)) = self.journal.as_mut().map(write) {
            tracing::warn!(%error, "a download will not be resumed where it is now");
        }
    }

    /// What somebody must see to that it is allocated, once; `None` when there is nothing to allocate.
    pub(crate) fn take_reservation(&mut self) -> Option<Reservation> {
        self.reservation.take()
    }
}

impl Reservation {
    /// Allocates the space, in steps from the start on, until that is done or `stopped`. Blocks.
    ///
    /// # Errors
    /// Those of the file system; `StorageFull` when others have taken the space meanwhile, and nothing may go for it.
    pub(crate) fn allocate(mut self, store: &Store, stopped: impl Fn() -> bool) -> io::Result<()> {
        let length = self.file.layout().length();
        let mut start = 0;
        while let Some(step) = ByteRange::new(start, length.min(start + RESERVE_STEP)).filter(|_| !stopped())
        {
            match self.file.reserve(step) {
                // Others use this disk, too.
                Err(error) if is_full(&error) && store.free_up(length - start)? => self.file.reserve(step)?,
                reserved => reserved?,
            }
            self.promise.redeem(step.len());
            start = step.end();
        }
        Ok(())
    }
}

impl Store {
    /// As [`Self::create`], if that takes no look at the disk; otherwise `None`. Does not block.
    ///
    /// # Errors
    /// Those of [`Self::create`].
    pub(crate) fn create_now(&self, task: &TaskId, record: &Record) -> io::Result<Option<Partial>> {
        let layout = layout(record)?;
        if !self.may_stage(task, layout) || self.excess(self.space_of(layout))? > 0 {
            return Ok(None);
        }
        let Ok(claim) = self.space.claim(self.space_of(layout)) else { return Ok(None) };
        Ok(self.stage(task, record.clone(), layout, claim).ok())
    }

    /// Makes room for a task and takes its space.
    ///
    /// # Errors
    /// `StorageFull` when it does not fit, even after evicting all that may go.
    pub(crate) fn create(&self, task: &TaskId, record: Record) -> io::Result<Partial> {
        let layout = layout(&record)?;
        let claim = self.make_room(self.space_of(layout))?;
        let created = match self.create_in(task, record.clone(), layout, claim) {
            // Others use this disk, too.
            Err(error) if is_full(&error) && self.free_up(layout.length())? => {
                let claim = self.space.claim(self.space_of(layout))?;
                self.create_in(task, record, layout, claim)
            }
            tried => tried,
        };
        created.inspect_err(|error| self.judge(error))
    }

    /// As [`Self::create`], in space that was claimed.
    pub(super) fn create_in(
        &self,
        task: &TaskId,
        record: Record,
        layout: PieceLayout,
        claim: Claim,
    ) -> io::Result<Partial> {
        let mut claim = if self.may_stage(task, layout) {
            match self.stage(task, record.clone(), layout, claim) {
                Ok(staged) => return Ok(staged),
                Err(claim) => claim,
            }
        } else {
            claim
        };
        // A file gives back what it is long.
        claim.shrink(layout.length());
        let created = self.create_file(task, record, layout, claim);
        if created.is_err() {
            self.discard(task)?;
        }
        created
    }

    /// What content takes of the quota, in bytes.
    pub(super) fn space_of(&self, layout: PieceLayout) -> u64 {
        if self.packs_now(layout.length()) { super::extent_length(layout.length()) } else { layout.length() }
    }

    /// Whether it may be packed: of what is here of the task, it would take the place without anybody's noticing.
    fn may_stage(&self, task: &TaskId, layout: PieceLayout) -> bool {
        self.packs_now(layout.length()) && self.is_absent(task) && !lock(&self.partials).contains_key(task)
    }

    fn stage(
        &self,
        task: &TaskId,
        record: Record,
        layout: PieceLayout,
        claim: Claim,
    ) -> Result<Partial, Claim> {
        let file = Arc::new(self.packs.stage(layout, claim)?);
        Ok(Partial { record, file, journal: None, in_use: self.occupy(task), reservation: None })
    }

    /// Makes a task's files. What there is of them on failure stays.
    fn create_file(
        &self,
        task: &TaskId,
        record: Record,
        layout: PieceLayout,
        claim: Claim,
    ) -> io::Result<Partial> {
        let partial = {
            let _names = lock(&self.names);
            let made = self.make_files(task, record, layout)?;
            // It goes back with the file, which has its length.
            claim.keep();
            made
        };
        self.lacks_space(0)?.map_or(Ok(partial), |_| Err(io::ErrorKind::StorageFull.into()))
    }

    /// Bytes that the disk lacks for what was promised and `more`; `None` when it has them.
    fn lacks_space(&self, more: u64) -> io::Result<Option<u64>> {
        let wanted = self.space.promised().saturating_add(more);
        Ok(wanted.checked_sub(self.disk()?.available).filter(|lack| *lack > 0))
    }

    /// Evicts until the disk has what was promised, and `length` more bytes; `false`, and nothing is evicted, when that cannot be.
    pub(super) fn free_up(&self, length: u64) -> io::Result<bool> {
        let Some(lack) = self.lacks_space(length + SPARE_BYTES)? else { return Ok(true) };
        let candidates = self.candidates()?;
        if candidates.iter().map(|candidate| candidate.length).sum::<u64>() < lack {
            return Ok(false);
        }
        self.evict(std::time::SystemTime::now(), lack)?;
        Ok(true)
    }

    /// Puts a task's files in place of what was called so. `names` is held.
    fn make_files(&self, task: &TaskId, record: Record, layout: PieceLayout) -> io::Result<Partial> {
        let path = self.path(task);
        std::fs::create_dir_all(path.parent().expect("the path of a task has a folder"))?;
        // Never truncate: somebody may still read an earlier file of this name through an open descriptor.
        self.unlink(task)?;
        let journal = Journal::create(&journal_path(&path), &record, layout.pieces())?;
        let file = Arc::new(TaskFile::create(&path, layout)?);
        let promise = self.space.promise(layout.length());
        let reservation = Some(Reservation { file: Arc::clone(&file), promise });
        Ok(Partial { record, file, journal: Some(journal), in_use: self.occupy(task), reservation })
    }

    /// Notes that somebody works on an incomplete task, until what this gives is dropped. Where it has files, `names` is held.
    fn occupy(&self, task: &TaskId) -> Arc<InUse> {
        let in_use = Arc::new(InUse);
        lock(&self.partials).insert(*task, Arc::downgrade(&in_use));
        in_use
    }

    /// Whether there is certainly nothing to resume of a task. Does not block.
    pub(crate) fn has_no_partial(&self, task: &TaskId) -> bool {
        self.is_tidied() && !lock(&self.partials).contains_key(task)
    }

    /// An incomplete task from before, and what was noted of it. `None` when there is none, or when it does not fit together.
    pub(crate) fn resume(&self, task: &TaskId) -> io::Result<Option<(Partial, Noted)>> {
        let path = self.path(task);
        let (opened, in_use) = {
            let _names = lock(&self.names);
            match Journal::open(&journal_path(&path)) {
                Ok(opened) => (opened, self.occupy(task)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        };
        let Some((journal, record, held)) = opened else {
            self.discard(task)?;
            return Ok(None);
        };
        let layout = layout(&record)?;
        let file = match TaskFile::open(&path, layout, Access::Write) {
            Err(error) if is_loss(&error) => {
                self.discard(task)?;
                return Ok(None);
            }
            opened => opened?,
        };
        let file = Arc::new(file);
        // It may have been stopped before the disk had allocated everything.
        let promise = self.space.promise(file.unallocated()?);
        let reservation = Some(Reservation { file: Arc::clone(&file), promise });
        let noted = Noted { held, checked: Held::default() };
        Ok(Some((Partial { record, file, journal: Some(journal), in_use, reservation }, noted)))
    }
}
