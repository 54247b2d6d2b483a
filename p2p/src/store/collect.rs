//! What leaves the store, and when: expired content, the least recently used above the quota, and what a crash left.

use super::{Store, journal_path, lock};
use darter_protocol::TaskId;
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// Eviction goes on to this share of the limit that was passed, so that it does not run for every new task.
const LOW_WATER_PERCENT: u64 = 90;

/// A complete task as eviction sees it.
struct Candidate {
    task: TaskId,
    length: u64,
    used: SystemTime,
    expires: SystemTime,
}

impl Store {
    /// Evicts what is expired and what exceeds the limits, and writes down which tasks were used since the last time.
    pub(crate) fn collect(&self, now: SystemTime) -> io::Result<()> {
        let touched: Vec<_> = lock(&self.touched).drain().collect();
        if !touched.is_empty() {
            self.catalog.touch(&touched).map_err(io::Error::other)?;
        }
        self.evict(now, 0)
    }

    /// Sees to it that `length` more bytes fit.
    ///
    /// # Errors
    /// `StorageFull` when they do not, even after evicting all that may go.
    pub(super) fn make_room(&self, length: u64) -> io::Result<()> {
        let fits = || self.used().checked_add(length).is_some_and(|total| total <= self.config.quota);
        if !fits() && length <= self.config.quota {
            self.evict(SystemTime::now(), length)?;
        }
        if fits() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    /// The complete tasks that were evicted since this was last asked: others must no longer be sent here for them.
    pub(crate) fn take_evicted(&self) -> Vec<TaskId> {
        std::mem::take(&mut lock(&self.evicted))
    }

    fn evict(&self, now: SystemTime, more: u64) -> io::Result<()> {
        let mut candidates = self.candidates()?;
        // The longest unused first.
        candidates.sort_unstable_by_key(|candidate| candidate.used);
        let mut excess = self.excess(more)?;
        let mut gone = Vec::new();
        for candidate in candidates {
            if candidate.expires <= now || excess > 0 {
                excess = excess.saturating_sub(candidate.length);
                gone.push(candidate.task);
            }
        }
        if !gone.is_empty() {
            self.forget(&gone)?;
            tracing::info!(tasks = gone.len(), used_bytes = self.used(), "evicted content");
            lock(&self.evicted).extend(gone);
        }
        Ok(())
    }

    fn candidates(&self) -> io::Result<Vec<Candidate>> {
        let touched = lock(&self.touched).clone();
        let mut candidates = Vec::new();
        self.catalog
            .for_each(|task, entry, used| {
                let used = touched.get(&task).copied().unwrap_or(used).max(used);
                let (length, since) = match &entry {
                    Some(entry) if entry.record.digest.is_some() => (entry.record.info.length, used),
                    // What is known by its place only grows stale, used or not.
                    Some(entry) => (entry.record.info.length, entry.record.created),
                    None => (0, SystemTime::UNIX_EPOCH),
                };
                let expires = since
                    .checked_add(self.config.expire)
                    .unwrap_or(since + Duration::from_secs(u32::MAX.into()));
                candidates.push(Candidate { task, length, used, expires });
            })
            .map_err(io::Error::other)?;
        Ok(candidates)
    }

    /// How many bytes must go so that `more` fit below the low-water mark; 0 while no limit is passed.
    fn excess(&self, more: u64) -> io::Result<u64> {
        let over = |used: u64, limit: u64| {
            let total = used.saturating_add(more);
            if total > limit { total - limit / 100 * LOW_WATER_PERCENT } else { 0 }
        };
        let disk = rustix::fs::statvfs(&self.config.dir)?;
        let size = disk.f_blocks.saturating_mul(disk.f_frsize);
        let in_use = size.saturating_sub(disk.f_bavail.saturating_mul(disk.f_frsize));
        let percent = u64::from(self.config.quota_percent.min(100));
        // At 100 percent the file system itself is the judge.
        let by_disk = if percent < 100 { over(in_use, size / 100 * percent) } else { 0 };
        Ok(over(self.used(), self.config.quota).max(by_disk))
    }

    /// At start: counts what is there, and removes what neither the catalog nor a journal knows.
    pub(super) fn tidy(&self) -> io::Result<()> {
        let (mut known, mut lost) = (HashSet::new(), Vec::new());
        self.catalog
            .for_each(|task, entry, _| {
                let length = entry.map(|entry| entry.record.info.length);
                let there = std::fs::metadata(self.path(&task)).ok().map(|meta| meta.len());
                if length.is_some() && length == there {
                    known.insert(task);
                } else {
                    lost.push(task);
                }
            })
            .map_err(io::Error::other)?;
        if !lost.is_empty() {
            tracing::warn!(
                tasks = lost.len(),
                "stored tasks have lost their files; they will be fetched again"
            );
            self.forget(&lost)?;
        }
        for path in self.files()? {
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
            } else if !is_journal {
                self.used.fetch_add(std::fs::metadata(&path)?.len(), Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Every file under `content/`, journals included.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for folder in std::fs::read_dir(self.config.dir.join("content"))? {
            let folder = folder?.path();
            if folder.is_dir() {
                for file in std::fs::read_dir(folder)? {
                    files.push(file?.path());
                }
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, store_complete, task};
    use super::*;

    const MIB: u64 = 1 << 20;

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
}
