//! What leaves the store, and when: expired content, what was longest unused and is large above the limits, and what a crash
//! left.

use super::catalog::Entry;
use super::file::{Access, TaskFile};
use super::names::{files, journal_path, remove_file};
use super::pack::Place;
use super::space::Claim;
use super::weights::{Short, short};
use super::{Store, extent_length, is_full, layout, lock, matches};
use darter_protocol::TaskId;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

/// Eviction goes on to this share of the limit that was passed, so that it does not run for every new task.
pub(super) const LOW_WATER_PERCENT: u64 = 90;

/// What a disk that others fill is to have left beside the content that room is made for: for the catalog, and folders.
pub(super) const SPARE_BYTES: u64 = 1 << 20;

/// So many tasks leave the store in one transaction, at most: nobody opens or begins another one meanwhile.
const EVICT_TASKS: usize = if cfg!(test) { 16 } else { 1000 };

/// What whoever waits for them gets in between.
const BETWEEN_EVICTIONS: Duration = Duration::from_millis(1);

/// What is written to find out whether the disk takes anything, in bytes.
const PROBE_BYTES: usize = 64 << 10;

/// What may go.
enum Goes {
    /// A complete task.
    Complete(Short),
    /// One on which nobody works.
    Idle(TaskId),
}

/// A task that may go, as eviction sees it.
pub(super) struct Candidate {
    task: Goes,
    /// Bytes that come back when it goes.
    pub(super) length: u64,
    used: SystemTime,
    /// `None`: never.
    expires: Option<SystemTime>,
}

impl Candidate {
    /// What it costs to keep it: its bytes, times the time for which nobody has used it to the power of 1.4, by which what
    /// will be asked for again was found to be kept best (A. J. Smith, Long term file migration, CACM 24(8), 1981).
    fn cost(&self, now: SystemTime) -> f64 {
        let unused = now.duration_since(self.used).unwrap_or_default().as_secs_f64();
        // What was used this second is told apart by its size alone.
        (1.0 + unused).powf(1.4) * self.length as f64
    }
}

impl Store {
    /// Evicts what is expired and what exceeds the limits, and writes down which tasks were used since the last time. Finds out
    /// whether a disk that took nothing does so again.
    pub(crate) fn collect(&self, now: SystemTime) -> io::Result<()> {
        // What was evicted or not opened for a while is closed now, so that its space is free.
        self.opened.run_pending_tasks();
        let writable = self.reopened().and_then(|()| self.probe());
        self.alarm.hear(&self.config.dir, writable.as_ref().copied());
        // A catalog on a read-only disk can be read until somebody tries to write it.
        let evicts = writable.as_ref().err().is_none_or(is_full);
        if writable.is_ok() {
            let touched: Vec<_> = lock(&self.touched).drain().collect();
            if !touched.is_empty() {
                self.catalog.touch(&touched)?;
            }
        }
        if !evicts {
            return Ok(());
        }
        self.evict(now, self.excess(0)?)?;
        self.packs.sweep();
        self.count_pins(self.excess(0)?)?;
        if writable.is_ok() { self.compact() } else { Ok(()) }
    }

    /// Judges the disk by something that it did not take.
    pub(super) fn judge(&self, error: &io::Error) {
        if !is_full(error) {
            self.alarm.hear(&self.config.dir, Err(error));
        } else if !self.alarm.is_raised() {
            // Too much for this disk may still be little.
            self.alarm.hear(&self.config.dir, self.probe().as_ref().copied());
        }
    }

    /// Sees to it that the store is open and tidied. The folder may be another one by now, an empty one: then that is the
    /// store.
    fn reopened(&self) -> io::Result<()> {
        let is_tidied = self.catalog.is_current() && self.catalog.open_inode() == *lock(&self.tidied);
        if is_tidied { Ok(()) } else { self.try_open() }
    }

    /// Whether the disk takes anything.
    fn probe(&self) -> io::Result<()> {
        let path = self.config.dir.join("probe");
        let written = std::fs::File::create(&path).and_then(|mut file| {
            file.write_all(&[0; PROBE_BYTES])?;
            file.sync_all()
        });
        remove_file(&path)?;
        written
    }

    /// Sees to it that `length` more bytes fit below the limits, and takes them.
    ///
    /// # Errors
    /// `StorageFull` when they do not, even after evicting all that may go.
    pub(super) fn make_room(&self, length: u64) -> io::Result<Claim> {
        if length > self.config.quota || length > self.disk()?.size {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let excess = self.excess(length)?;
        if excess > 0 {
            self.evict(SystemTime::now(), excess)?;
        }
        self.space.claim(length)
    }

    /// Whether `length` more bytes could fit below the quota, after evicting all that may go.
    pub(super) fn may_fit(&self, length: u64) -> io::Result<bool> {
        let may_go = self.candidates()?.iter().map(|candidate| candidate.length).sum();
        let stays = self.used().saturating_sub(may_go);
        Ok(stays.saturating_add(length) <= self.config.quota && length <= self.disk()?.size)
    }

    /// The tasks that were evicted since this was last asked, and have not come back: others must no longer be sent here
    /// for them. Blocks.
    pub(crate) fn take_evicted(&self) -> Vec<TaskId> {
        let mut evicted = std::mem::take(&mut *lock(&self.evicted));
        evicted.retain(|task| {
            !lock(&self.partials).contains_key(task) && !self.catalog.contains(task).unwrap_or_default()
        });
        evicted
    }

    /// Evicts what is expired, and as much more as `excess` bytes take: first what has been unused for long and is large.
    pub(super) fn evict(&self, now: SystemTime, mut excess: u64) -> io::Result<()> {
        let mut candidates = self.candidates()?;
        candidates.sort_by(|a, b| b.cost(now).total_cmp(&a.cost(now)));
        let (mut complete, mut idle) = (Vec::new(), Vec::new());
        for candidate in candidates {
            if candidate.expires.is_some_and(|at| at <= now) || excess > 0 {
                excess = excess.saturating_sub(candidate.length);
                match candidate.task {
                    Goes::Complete(task) => complete.push(task),
                    Goes::Idle(task) => idle.push(task),
                }
            }
        }
        if complete.is_empty() && idle.is_empty() {
            return Ok(());
        }
        let forget = |tasks: &[Short]| self.forget(&self.catalog.named(tasks)?);
        let complete = complete.chunks(EVICT_TASKS).map(forget);
        let mut tasks = 0;
        for gone in complete.chain(idle.chunks(EVICT_TASKS).map(|tasks| self.forget_idle(tasks))) {
            let gone = gone?;
            tasks += gone.len();
            lock(&self.evicted).extend(gone);
            // A lock is not fair: whoever waits for `names` gets it only if nobody takes it at once.
            std::thread::sleep(BETWEEN_EVICTIONS);
        }
        tracing::info!(tasks, used_bytes = self.used(), "evicted content");
        Ok(())
    }

    /// Throws incomplete tasks away on which nobody works; gives those that were such still.
    fn forget_idle(&self, tasks: &[TaskId]) -> io::Result<Vec<TaskId>> {
        let _names = lock(&self.names);
        let is_idle =
            |task: &&TaskId| lock(&self.partials).get(*task).is_some_and(|in_use| in_use.strong_count() == 0);
        let gone: Vec<TaskId> = tasks.iter().filter(is_idle).copied().collect();
        gone.iter().try_for_each(|task| self.unlink(task))?;
        Ok(gone)
    }

    /// Incomplete tasks on which nobody works. They were used when their journal was last written.
    fn idle(&self) -> Vec<Candidate> {
        let partials = lock(&self.partials).clone();
        let idle = partials.into_iter().filter(|(_, in_use)| in_use.strong_count() == 0);
        idle.map(|(task, _)| {
            let path = self.path(&task);
            let noted = std::fs::metadata(journal_path(&path)).and_then(|meta| meta.modified());
            let used = noted.unwrap_or(SystemTime::UNIX_EPOCH);
            let length = std::fs::metadata(&path).map_or(0, |meta| meta.len());
            Candidate { task: Goes::Idle(task), length, used, expires: self.expires(used) }
        })
        .collect()
    }

    /// What may go: what is not pinned.
    pub(super) fn candidates(&self) -> io::Result<Vec<Candidate>> {
        let touched = lock(&self.touched).clone();
        let touched: HashMap<Short, SystemTime> =
            touched.into_iter().map(|(task, used)| (short(task.as_bytes()), used)).collect();
        let mut candidates = self.idle();
        let weights = self.catalog.weights()?;
        candidates.extend(weights.into_iter().filter(|(_, weight)| !weight.is_pinned()).map(
            |(task, weight)| {
                let used = touched.get(&task).map_or(weight.used(), |used| weight.used().max(*used));
                let expires = self.expires(weight.fetched().unwrap_or(used));
                Candidate { task: Goes::Complete(task), length: weight.bytes(), used, expires }
            },
        ));
        Ok(candidates)
    }

    /// How many bytes must go so that `more` fit below the low-water mark; 0 while no limit is passed.
    pub(super) fn excess(&self, more: u64) -> io::Result<u64> {
        let over = |used: u64, limit: u64| {
            let total = used.saturating_add(more);
            if total > limit { total - limit / 100 * LOW_WATER_PERCENT } else { 0 }
        };
        let Disk { in_use, size, .. } = self.disk()?;
        let percent = u64::from(self.config.quota_percent.min(100));
        // At 100 percent the file system itself is the judge.
        let by_disk = if percent < 100 { over(in_use, size / 100 * percent) } else { 0 };
        Ok(over(self.used(), self.config.quota).max(by_disk))
    }

    pub(super) fn disk(&self) -> io::Result<Disk> {
        let disk = rustix::fs::statvfs(&self.config.dir)?;
        let counts = [disk.f_blocks, disk.f_bfree, disk.f_bavail];
        let [blocks, free, available] = counts.map(|count| count.saturating_mul(disk.f_frsize));
        Ok(Disk::of(blocks, free, available))
    }

    /// At start, and when the disk is back: counts what is there, and removes what neither the catalog nor a journal knows.
    pub(super) fn tidy(&self) -> io::Result<()> {
        // Whatever is entered from here on was not seen.
        let mut writer = self.packs.lock_writer();
        let _names = lock(&self.names);
        self.untidy();
        let catalog = self.catalog.open_inode();
        let (packed, own, mut lost) = self.entries()?;
        let extents: Vec<_> = packed.iter().map(|(_, place, length)| (*place, *length)).collect();
        let lost_places: HashSet<Place> = self.packs.load(&mut writer, &extents)?.into_iter().collect();
        let is_lost = |place: &Place| lost_places.contains(place);
        lost.extend(packed.iter().filter(|(_, place, _)| is_lost(place)).map(|(task, ..)| *task));
        let (known, spoiled) = self.judge_own(own, &mut lost)?;
        if !spoiled.is_empty() {
            // The files of that name are those of a download that began later.
            self.catalog.remove(&spoiled)?;
        }
        if !lost.is_empty() {
            tracing::warn!(
                tasks = lost.len(),
                "stored tasks have lost their files; they will be fetched again"
            );
            self.forget_named(&lost)?;
        }
        let there = packed.iter().filter(|(_, place, _)| !lost_places.contains(place));
        let kept: u64 = there.map(|(_, _, length)| extent_length(*length)).sum();
        self.space.recount(kept + self.tidy_files(&known)?);
        *lock(&self.tidied) = catalog;
        Ok(())
    }

    /// What is there is not known any more: it is counted anew before something small is packed again.
    pub(super) fn untidy(&self) {
        *lock(&self.tidied) = None;
    }

    /// What the catalog has: packed tasks, those with a file of their own, and what cannot be read.
    #[expect(clippy::type_complexity, reason = "three lists, for the one who asks")]
    fn entries(&self) -> io::Result<(Vec<(TaskId, Place, u64)>, Vec<(TaskId, u64)>, Vec<TaskId>)> {
        let (mut packed, mut own, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        self.catalog.for_each(|task, entry, _| match entry {
            Some(Entry { record, place: Some(place), .. }) => packed.push((task, place, record.info.length)),
            Some(Entry { record, .. }) => own.push((task, record.info.length)),
            None => lost.push(task),
        })?;
        Ok((packed, own, lost))
    }

    /// Which tasks have their files; and those whose files are those of a download that is not complete: a damaged catalog is
    /// thrown back to an older state, in which it names what was evicted since and is being fetched again. `names` is held.
    fn judge_own(
        &self,
        own: Vec<(TaskId, u64)>,
        lost: &mut Vec<TaskId>,
    ) -> io::Result<(HashSet<TaskId>, Vec<TaskId>)> {
        let (mut known, mut spoiled) = (HashSet::new(), Vec::new());
        for (task, length) in own {
            let path = self.path(&task);
            let there = std::fs::metadata(&path).ok().map(|meta| meta.len());
            if there != Some(length) {
                lost.push(task);
            } else if journal_path(&path).try_exists()? && !self.is_whole(&task)? {
                spoiled.push(task);
            } else {
                known.insert(task);
            }
        }
        Ok((known, spoiled))
    }

    /// Whether a task is what the catalog says, byte for byte, and on the disk. Its journal goes after its entry has come, so one
    /// may be left.
    fn is_whole(&self, task: &TaskId) -> io::Result<bool> {
        let Some(Entry { record, hashes, .. }) = self.catalog.get(task)? else { return Ok(false) };
        let file = TaskFile::open(&self.path(task), layout(&record)?, Access::Read)?;
        let whole = matches(&file, &hashes)?;
        if whole {
            file.sync()?;
        }
        Ok(whole)
    }

    /// Removes files that nobody knows; gives the bytes of the others. `names` is held.
    fn tidy_files(&self, known: &HashSet<TaskId>) -> io::Result<u64> {
        let mut used = 0;
        for path in files(&self.config.dir)? {
            let content = path.with_extension("");
            let task = content.file_name().and_then(|name| name.to_str()?.parse::<TaskId>().ok());
            let complete = task.is_some_and(|task| known.contains(&task));
            let is_journal = path != content;
            let belongs = match (complete, is_journal) {
                (true, is_journal) => !is_journal,
                (false, true) => task.is_some() && content.exists(),
                (false, false) => task.is_some() && journal_path(&content).exists(),
            };
            if !belongs {
                std::fs::remove_file(&path)?;
            } else if is_journal {
                if let Some(task) = task {
                    lock(&self.partials).entry(task).or_default();
                }
            } else {
                used += std::fs::metadata(&path)?.len();
            }
        }
        Ok(used)
    }
}

/// Bytes of the disk that content takes.
pub(super) fn takes(entry: &Entry) -> u64 {
    let length = entry.record.info.length;
    entry.place.map_or(length, |_| extent_length(length))
}

/// A file system, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Disk {
    in_use: u64,
    /// What there is for this user.
    size: u64,
    pub(super) available: u64,
}

impl Disk {
    /// As df counts: what is kept back for root is neither in use nor there. Otherwise a disk with much of that would never be
    /// empty enough.
    fn of(blocks: u64, free: u64, available: u64) -> Self {
        let in_use = blocks.saturating_sub(free);
        Self { in_use, size: in_use.saturating_add(available), available }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Held;
    use super::super::Stored;
    use super::super::tests::{config, record, resumed, store_complete, task, write_piece};
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_disk_is_as_full_as_df_says() {
        assert_eq!(Disk::of(100, 40, 40), Disk { in_use: 60, size: 100, available: 40 });
        assert_eq!(Disk::of(250, 230, 70), Disk { in_use: 20, size: 90, available: 70 });
        assert_eq!(Disk::of(0, 0, 0), Disk { in_use: 0, size: 0, available: 0 });
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), 11 * MIB)).unwrap();
        for n in 1..=3 {
            store_complete(&store, &task(n), 3 * MIB);
        }
        let long_ago = SystemTime::now() - Duration::from_secs(1000);
        lock(&store.touched).clear();
        store.catalog.touch(&[(task(1), long_ago), (task(2), long_ago), (task(3), long_ago)]).unwrap();
        store.complete(&task(1)).unwrap();
        // 12 MiB would be in use; a little less than 10 are the low-water mark.
        store_complete(&store, &task(4), 3 * MIB);
        assert!(store.complete(&task(1)).unwrap().is_some(), "it was used a moment ago");
        assert!(store.complete(&task(4)).unwrap().is_some());
        assert_eq!(store.take_evicted().len(), 1);
        assert!(store.used() <= 11 * MIB);
    }

    #[test]
    fn what_nobody_opened_for_the_expire_time_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        store_complete(&store, &task(1), MIB);
        store.collect(SystemTime::now()).unwrap();
        assert!(store.complete(&task(1)).unwrap().is_some());
        store.collect(SystemTime::now() + Duration::from_secs(3700)).unwrap();
        assert!(store.complete(&task(1)).unwrap().is_none());
        assert_eq!((store.take_evicted(), store.used()), (vec![task(1)], 0));
    }

    #[test]
    fn what_was_imported_goes_when_nobody_uses_it_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        store.import(&task(1), &tempfile::tempfile().unwrap(), &super::super::Reading::default()).unwrap();
        let used = SystemTime::now() + Duration::from_secs(3000);
        lock(&store.touched).insert(task(1), used);
        store.collect(used + Duration::from_secs(3000)).unwrap();
        assert!(matches!(store.stat(&task(1)).unwrap(), Stored::Complete { .. }));
        store.collect(used + Duration::from_secs(3700)).unwrap();
        assert!(matches!(store.stat(&task(1)).unwrap(), Stored::Absent));
    }

    #[test]
    fn what_nobody_goes_on_with_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), 11 * MIB)).unwrap();
        let mut left = store.create(&task(1), record(5 * MIB)).unwrap();
        write_piece(&mut left, 0, 1);
        drop(left);
        let mut at_work = store.create(&task(2), record(5 * MIB)).unwrap();
        write_piece(&mut at_work, 0, 2);
        store_complete(&store, &task(3), 5 * MIB);
        assert!(store.resume(&task(1)).unwrap().is_none(), "nobody worked on it");
        assert!(store.create(&task(4), record(7 * MIB)).is_err(), "what is worked on stays");
        assert_eq!(store.take_evicted(), [task(1), task(3)]);
        assert_eq!(store.used(), 5 * MIB);
        drop(at_work);

        // Nor does it stay for ever after a restart.
        drop(store);
        let store = Store::open(config(dir.path(), 11 * MIB)).unwrap();
        assert_eq!(resumed(&store, &task(2), Held::default()).pieces.len(), 1);
        store.collect(SystemTime::now() + Duration::from_secs(3700)).unwrap();
        assert_eq!(store.used(), 0);
    }

    #[test]
    fn another_disk_is_counted_also_when_a_request_opened_it() {
        let dir = tempfile::tempdir().unwrap();
        let [here, other, away] = ["here", "other", "away"].map(|name| dir.path().join(name));
        store_complete(&Store::open(config(&other, u64::MAX)).unwrap(), &task(2), 2 * MIB);
        let store = Store::open(config(&here, u64::MAX)).unwrap();
        std::fs::rename(&here, away).unwrap();
        std::fs::rename(other, here).unwrap();
        assert!(!store.catalog.is_current(), "closes it, as a failed read does");
        assert!(store.complete(&task(2)).unwrap().is_some());
        store.collect(SystemTime::now()).unwrap();
        assert_eq!(store.used(), 2 * MIB);
    }

    #[test]
    fn what_is_weighed_in_memory_is_what_the_catalog_says() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), u64::MAX)).unwrap();
        for number in 1..6 {
            store_complete(&store, &task(number), u64::from(number) * MIB + 2 * MIB);
        }
        let sorted = |store: &Store| {
            let mut weights = store.catalog.weights().unwrap();
            weights.sort_by_key(|(task, _)| *task);
            weights
        };
        sorted(&store);
        let later = SystemTime::now() + Duration::from_secs(77);
        store.catalog.touch(&[(task(2), later)]).unwrap();
        store.pin(&task(3)).unwrap();
        store.pin(&task(4)).unwrap();
        store.unpin(&task(4)).unwrap();
        store.delete(&task(5), |_| ()).unwrap();
        store_complete(&store, &task(6), 3 * MIB);
        let kept = sorted(&store);
        assert_eq!(kept.len(), 5);
        store.catalog.close();
        assert_eq!(sorted(&store), kept, "as the catalog says anew");
        let named = store.catalog.named(&kept.iter().map(|(task, _)| *task).collect::<Vec<_>>()).unwrap();
        assert_eq!(named.len(), 5);
        assert!([1, 2, 3, 4, 6].iter().all(|number| named.contains(&task(*number))));
    }

    #[test]
    fn what_has_come_back_is_not_told_as_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), 11 * MIB)).unwrap();
        store_complete(&store, &task(1), 5 * MIB);
        store_complete(&store, &task(2), 10 * MIB);
        store_complete(&store, &task(1), 5 * MIB);
        assert_eq!(store.take_evicted(), [task(2)]);
    }
}
