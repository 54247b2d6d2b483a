//! Pins: tasks that eviction passes over, however long nobody has used them.
//!
//! A pin is on a task's name, and stays when the content is fetched or imported anew; who deletes the task takes its pin with it. Pins
//! are in the catalog, and so survive what content survives. What they leave of the store is for all else: when that is
//! next to nothing, new content is streamed past the store, and the alarm says why.

use super::Store;
use super::collect::LOW_WATER_PERCENT;
use darter_protocol::TaskId;
use prometheus_client::metrics::gauge::Gauge;
use std::io;
use std::time::SystemTime;

/// What pins take of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PinsUse {
    /// Pinned tasks that are here.
    pub tasks: u64,
    /// Bytes of the disk that they take.
    pub bytes: u64,
    /// Bytes of content that the store may keep at all ([`crate::StoreConfig::quota`]).
    pub quota: u64,
}

impl PinsUse {
    /// Whether so much is pinned that eviction, which goes down to the low-water mark, leaves nothing else.
    pub fn is_crowding(&self) -> bool {
        self.bytes > self.quota / 100 * LOW_WATER_PERCENT
    }
}

/// What pins take, for the metrics. Cheap to clone; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct PinGauges {
    pub(crate) tasks: Gauge,
    pub(crate) bytes: Gauge,
    /// 1 while they leave no room for anything else.
    pub(crate) crowding: Gauge,
}

impl Store {
    /// Pins a task that is complete here, durably; `None` when it is not. Blocks.
    pub(crate) fn pin(&self, task: &TaskId) -> io::Result<Option<PinsUse>> {
        let pinned = self.catalog.pin(task, SystemTime::now())?;
        if pinned { self.count_pins(0).map(Some) } else { Ok(None) }
    }

    /// Takes a task's pin away, durably; `false` when it has none. Blocks.
    pub(crate) fn unpin(&self, task: &TaskId) -> io::Result<bool> {
        let was_pinned = self.catalog.unpin(task)?;
        if was_pinned {
            self.count_pins(0)?;
        }
        Ok(was_pinned)
    }

    pub(crate) fn pin_gauges(&self) -> &PinGauges {
        &self.pins
    }

    /// Counts what is pinned. `excess`: bytes that are to go and cannot.
    pub(super) fn count_pins(&self, excess: u64) -> io::Result<PinsUse> {
        let mut is = PinsUse { quota: self.config.quota, ..PinsUse::default() };
        for (_, weight) in self.catalog.weights()?.into_iter().filter(|(_, weight)| weight.is_pinned()) {
            is.tasks += 1;
            is.bytes += weight.bytes();
        }
        let set = |gauge: &Gauge, value: u64| gauge.set(value.try_into().unwrap_or(i64::MAX));
        set(&self.pins.tasks, is.tasks);
        set(&self.pins.bytes, is.bytes);
        // The disk may be smaller than the quota, or others may fill it: then fewer pins are the only cure here.
        self.say_crowding(&is, is.is_crowding() || (excess > 0 && is.bytes >= excess));
        Ok(is)
    }

    fn say_crowding(&self, is: &PinsUse, crowding: bool) {
        let before = self.pins.crowding.set(crowding.into()) != 0;
        let (tasks, bytes, quota) = (is.tasks, is.bytes, is.quota);
        if crowding && !before {
            tracing::error!(
                tasks,
                bytes,
                quota,
                "pinned content leaves the store no room for anything else: new content is streamed past it, until something is \
                 unpinned (`darter cache unpin`) or storage.diskGCThreshold is raised"
            );
        } else if before && !crowding {
            tracing::info!(tasks, bytes, quota, "pinned content leaves room again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{MIB, config, record, store_complete, task};
    use crate::store::{Reading, Stored, lock};
    use std::time::Duration;

    fn is_here(store: &Store, number: u8) -> bool {
        matches!(store.stat(&task(number)).unwrap(), Stored::Complete { .. } | Stored::Stale)
    }

    #[test]
    fn what_is_pinned_stays_whatever_has_to_go_and_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), 20 * MIB)).unwrap();
        assert_eq!(store.pin(&task(1)).unwrap(), None, "it is not here");
        store_complete(&store, &task(1), 5 * MIB);
        store_complete(&store, &task(2), 5 * MIB);
        let is = store.pin(&task(1)).unwrap().unwrap();
        assert_eq!((is.tasks, is.bytes, is.is_crowding()), (1, 5 * MIB, false));
        let late = SystemTime::now() + Duration::from_secs(4000);
        store.collect(late).unwrap();
        assert!(is_here(&store, 1) && !is_here(&store, 2));
        drop(store);

        let store = Store::open(config(dir.path(), 20 * MIB)).unwrap();
        store.collect(late).unwrap();
        assert!(is_here(&store, 1));
        assert_eq!((store.pins.tasks.get(), store.pins.bytes.get()), (1, 5 * MIB as i64));
        assert!(store.unpin(&task(1)).unwrap() && !store.unpin(&task(1)).unwrap());
        store.collect(late).unwrap();
        assert!(!is_here(&store, 1));
        assert_eq!((store.pins.tasks.get(), store.used()), (0, 0));
    }

    #[test]
    fn pins_that_fill_the_store_raise_one_alarm_and_refuse_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), 10 * MIB)).unwrap();
        store_complete(&store, &task(1), 5 * MIB);
        store_complete(&store, &task(2), 4 * MIB + MIB / 2);
        store.pin(&task(1)).unwrap();
        assert_eq!(store.pins.crowding.get(), 0);
        assert!(store.pin(&task(2)).unwrap().unwrap().is_crowding());
        assert_eq!(store.pins.crowding.get(), 1);
        assert!(!store.may_fit(MIB).unwrap());
        let refused = store.create(&task(3), record(2 * MIB)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(is_here(&store, 1) && is_here(&store, 2));
        store.unpin(&task(1)).unwrap();
        assert_eq!(store.pins.crowding.get(), 0);
        assert!(store.create(&task(3), record(2 * MIB)).is_ok());
    }

    #[test]
    fn a_pin_is_on_the_name_until_somebody_deletes_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(config(dir.path(), 20 * MIB)).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        store.import(&task(1), &file, &Reading::default()).unwrap();
        store.pin(&task(1)).unwrap();
        io::Write::write_all(&mut file, b"other bytes").unwrap();
        assert!(!store.import(&task(1), &file, &Reading::default()).unwrap().unchanged);
        let is_pinned =
            |store: &Store| matches!(store.stat(&task(1)), Ok(Stored::Complete { pinned: true, .. }));
        assert!(is_pinned(&store), "it was imported anew");
        store.delete(&task(1), |_| ()).unwrap();
        store.import(&task(1), &file, &Reading::default()).unwrap();
        assert!(!is_pinned(&store));
        assert!(lock(&store.evicted).is_empty());
    }
}
