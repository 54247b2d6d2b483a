//! A disk of 64 MiB under the content: full, filling up, broken, replaced.

use crate::MIB;
use anyhow::{Context, Result, ensure};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{Daemon, check_store, loopback_config, strip_colours};
use darter_e2e::disk::{Disk, Kind};
use darter_e2e::http;
use darter_e2e::origin::Origin;
use darter_e2e::poll;
use std::time::Duration;

const DISK: u64 = 64 * MIB;

/// How long a store may take to be itself again: it is looked through every tenth of a second.
const RECOVERY: Duration = Duration::from_secs(30);

/// What the log says once when content cannot be stored any more, and once when it can be again.
const ALARM: &str = "cannot be written";
const ALL_CLEAR: &str = "can be written again";

/// A daemon whose content stands on a small disk.
struct Small {
    // In this order: the daemon ends before its disk goes, and that before the folder in which it is mounted.
    daemon: Option<Daemon>,
    disk: Disk,
    origin: Origin,
    next: u64,
    folder: tempfile::TempDir,
}

impl Small {
    fn new(kind: Kind) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let disk = Disk::mount(kind, DISK, &folder.path().join("content"))?;
        Ok(Self { folder, daemon: None, disk, origin: Origin::start(None)?, next: 0 })
    }

    fn start(&mut self) -> Result<()> {
        let more = "storage: { diskGCThresholdPercent: 100 }\ngcInterval: 100ms\n";
        let config = loopback_config(self.folder.path(), "") + more;
        self.daemon = Some(Daemon::start("daemon", self.folder.path(), &config)?);
        Ok(())
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it was started")
    }

    fn kill(&mut self) -> Result<()> {
        self.daemon.take().map_or(Ok(()), |daemon| daemon.process.kill())
    }

    /// Something that nobody has asked for yet, sent so many bytes a second.
    fn blob(&mut self, length: u64, rate: Option<u64>) -> Content {
        self.next += 1;
        let blob = Content::new(self.next, length);
        self.origin.put_blob(blob, rate);
        blob
    }

    /// A client gets it; whether it came from the disk.
    fn get(&self, blob: Content) -> Result<bool> {
        let url = format!("http://{}{}", self.origin.address(), path(blob));
        let answer = http::get(self.daemon().proxy, &url, &[])?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.reason);
        let from_disk = answer.header("cache-status").is_some_and(|status| status.contains("hit"));
        ensure!(digest_of(answer)? == blob.digest(), "wrong bytes");
        Ok(from_disk)
    }

    fn get_right(&self, blob: Content) -> Result<bool> {
        self.get(blob).with_context(|| format!("{blob:?}\n{}", self.daemon().process.log()))
    }

    /// Clients get something new, again and again, until it is found on the disk.
    fn wait_until_it_stores(&mut self) -> Result<()> {
        let blob = self.blob(MIB, None);
        let stored = poll::until("something to be stored", RECOVERY, || match self.get_right(blob) {
            Ok(false) => None,
            other => Some(other),
        });
        stored.with_context(|| self.daemon().process.log())?.map(drop)
    }

    fn count(&self, sentence: &str) -> usize {
        let log = self.daemon().process.log();
        log.lines().filter(|line| strip_colours(line).contains(sentence)).count()
    }

    fn wait_for_all_clear(&self) -> Result<()> {
        let said = || (self.count(ALL_CLEAR) > 0).then_some(());
        poll::until("the all-clear", RECOVERY, said).with_context(|| self.daemon().process.log())
    }

    /// It is killed, and another one finds everything as it should be.
    fn survives_a_kill(&mut self, blobs: &[Content]) -> Result<()> {
        self.kill()?;
        check_store(&self.folder.path().join("content"))?;
        self.start()?;
        blobs.iter().try_for_each(|blob| self.get_right(*blob).map(drop))?;
        self.wait_until_it_stores()
    }
}

fn path(blob: Content) -> String {
    format!("/v2/test/blobs/{}", blob.digest())
}

/// Others have filled it before the first byte came: nothing can be evicted.
pub(crate) fn a_disk_that_others_fill(kind: Kind) -> Result<()> {
    let mut small = Small::new(kind)?;
    small.start()?;
    small.disk.fill()?;
    let blobs: Vec<_> = [1, 1000, MIB, 5 * MIB + 1, 100 * MIB].map(|length| small.blob(length, None)).into();
    for blob in &blobs {
        let from_disk = small.get_right(*blob)?;
        ensure!(!from_disk, "there is no place for {blob:?}");
    }
    ensure!(small.count(ALARM) == 1, "{} alarms\n{}", small.count(ALARM), small.daemon().process.log());
    ensure!(small.daemon().metric("darter_p2p_store_failing")? == 1.0, "the metric says that all is well");
    small.disk.free()?;
    small.wait_until_it_stores()?;
    small.wait_for_all_clear()?;
    ensure!((small.count(ALARM), small.count(ALL_CLEAR)) == (1, 1), "{}", small.daemon().process.log());
    ensure!(small.daemon().metric("darter_p2p_store_failing")? == 0.0, "the metric still says that it fails");
    small.survives_a_kill(&blobs)
}

/// It is half full of content when others take the rest, in the middle of a download.
pub(crate) fn a_disk_that_fills(kind: Kind) -> Result<()> {
    let mut small = Small::new(kind)?;
    small.start()?;
    let old = small.blob(20 * MIB, None);
    small.get_right(old)?;
    poll::until("it to be stored", RECOVERY, || small.get_right(old).ok().filter(|hit| *hit))?;

    let slow = small.blob(16 * MIB, Some(16_000_000));
    std::thread::scope(|scope| {
        let slow_one = scope.spawn(|| small.get_right(slow));
        small.origin.wait_sent(&path(slow), 4 * MIB, RECOVERY)?;
        small.disk.fill()?;
        slow_one.join().expect("no panic").map(drop)
    })?;
    // Only what was stored before can make room for these.
    let mut blobs: Vec<_> = (0..6).map(|_| small.blob(9 * MIB, Some(50_000_000))).collect();
    std::thread::scope(|scope| {
        let clients: Vec<_> = blobs.iter().map(|blob| scope.spawn(|| small.get_right(*blob))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("no panic").map(drop))
    })?;
    // Room is made, and kept: no content is lost for what cannot be stored anyway.
    let kept = small.blob(10 * MIB, None);
    let made = poll::until("room to be made", RECOVERY, || small.get_right(kept).ok().filter(|hit| *hit));
    made.with_context(|| small.daemon().process.log())?;
    let huge = small.blob(100 * MIB, None);
    small.get_right(huge)?;
    ensure!(small.get_right(kept)?, "it made way for what does not fit");

    small.disk.fill()?;
    blobs.extend([old, slow, huge]);
    blobs.iter().try_for_each(|blob| small.get_right(*blob).map(drop))?;
    small.disk.free()?;
    small.wait_until_it_stores()?;
    small.survives_a_kill(&blobs)
}

/// Others take the rest of it while content comes for which it could keep no space: who is being served gets all of it.
pub(crate) fn a_disk_that_fills_under_a_download() -> Result<()> {
    let mut small = Small::new(Kind::Ext3)?;
    small.start()?;
    let slow = small.blob(40 * MIB, Some(16_000_000));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| small.get_right(slow))).collect();
        small.origin.wait_sent(&path(slow), 8 * MIB, RECOVERY)?;
        small.disk.fill()?;
        readers.into_iter().try_for_each(|reader| reader.join().expect("no panic").map(drop))
    })?;
    let log = small.daemon().process.log();
    ensure!(small.count("a download failed") == 1, "its disk did not fail it\n{log}");
    small.kill()?;
    check_store(&small.folder.path().join("content"))?;
    small.start()?;
    small.disk.free()?;
    let stored = poll::until("it to be stored", RECOVERY, || small.get_right(slow).ok().filter(|hit| *hit));
    stored.with_context(|| small.daemon().process.log())?;
    small.survives_a_kill(&[slow])
}

/// The kernel finds an error in the file system. Whoever is being served gets all of it, and whoever comes then is served past
/// the disk, until somebody has put another one in its place.
pub(crate) fn a_disk_that_breaks() -> Result<()> {
    let mut small = Small::new(Kind::Ext4)?;
    small.start()?;
    let old = small.blob(8 * MIB, None);
    poll::until("it to be stored", RECOVERY, || small.get_right(old).ok().filter(|hit| *hit))?;
    let slow = small.blob(16 * MIB, Some(16_000_000));
    std::thread::scope(|scope| {
        let slow_one = scope.spawn(|| small.get_right(slow));
        small.origin.wait_sent(&path(slow), 4 * MIB, RECOVERY)?;
        small.disk.turn_read_only()?;
        slow_one.join().expect("no panic").map(drop)
    })?;
    let blobs = [small.blob(5 * MIB, None), small.blob(1000, None), slow, old];
    for blob in &blobs {
        small.get_right(*blob)?;
        small.get_right(*blob)?;
    }
    ensure!(small.count(ALARM) == 1, "{} alarms\n{}", small.count(ALARM), small.daemon().process.log());

    small.disk.replace()?;
    // Between the disks, the folder below them was there for a moment, and was as good a disk as any.
    let content = small.folder.path().join("content/content");
    poll::until("the new disk to be a store", RECOVERY, || content.is_dir().then_some(()))?;
    small.wait_until_it_stores()?;
    small.wait_for_all_clear()?;
    ensure!((small.count(ALARM), small.count(ALL_CLEAR)) == (1, 1), "{}", small.daemon().process.log());
    small.survives_a_kill(&blobs)
}

/// The disk is full when the daemon starts, with content of an earlier life on it.
pub(crate) fn a_start_on_a_full_disk(kind: Kind) -> Result<()> {
    let mut small = Small::new(kind)?;
    small.start()?;
    let old = small.blob(8 * MIB, None);
    poll::until("it to be stored", RECOVERY, || small.get_right(old).ok().filter(|hit| *hit))?;
    small.kill()?;
    small.disk.fill()?;
    small.start()?;
    ensure!(small.get_right(old)?, "what was complete is not on disk any more");
    let new = small.blob(3 * MIB, None);
    small.get_right(new)?;
    small.survives_a_kill(&[old, new])?;

    // And with nothing: there is no place for the catalog of a new one either.
    let mut small = Small::new(kind)?;
    small.disk.fill()?;
    small.start()?;
    let new = small.blob(3 * MIB, None);
    ensure!(!small.get_right(new)?, "there is no place for it");
    small.disk.free()?;
    small.wait_until_it_stores()?;
    small.survives_a_kill(&[new])
}
