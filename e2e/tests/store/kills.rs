//! Kill -9 at random points: of downloads, of what follows their last byte, of evictions, of the start.

use crate::MIB;
use anyhow::{Context, Result, anyhow, ensure};
use darter_e2e::content::{Content, Hash};
use darter_e2e::darter::{Daemon, binary, check_store, loopback_config};
use darter_e2e::http;
use darter_e2e::origin::Origin;
use darter_e2e::process::Process;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Kills of one daemon after the other, with every change and when `DARTER_NIGHTLY` is set.
const KILLS: usize = 12;
const KILLS_NIGHTLY: usize = 100;

/// Clients at a time.
const CLIENTS: usize = 3;
/// Blobs that are new in every life of the daemon.
const NEW_BLOBS: usize = 6;
/// The longest of them.
const LONGEST: u64 = 9 * MIB;
/// A life lasts for at most so many bytes that clients get.
const LIFE_BYTES: u64 = 96 * MIB;
/// A daemon that is not waited for is killed within this time: it needs longer to start.
const START: Duration = Duration::from_millis(300);
/// How long a client may hear nothing.
const SILENCE: Duration = Duration::from_secs(60);

pub(crate) fn what_was_complete_is_kept() -> Result<()> {
    Play::new("storage: { diskGCThresholdPercent: 100 }\n")?.run(true)
}

pub(crate) fn evictions_and_kills() -> Result<()> {
    Play::new("storage: { diskGCThreshold: 20Mi, diskGCThresholdPercent: 100 }\n")?.run(false)
}

struct Play {
    folder: tempfile::TempDir,
    origin: Origin,
    config: String,
    rng: SmallRng,
    seed: u64,
    /// In the order in which they were made.
    blobs: Vec<Content>,
    /// Those that were served from the disk: complete, and flushed.
    kept: HashSet<Content>,
}

/// What a client has to say.
enum Told {
    Bytes(u64),
    /// All of it came from the disk.
    Hit(Content),
    Wrong(anyhow::Error),
}

impl Play {
    fn new(more: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = loopback_config(folder.path(), "") + more + "gcInterval: 50ms\n";
        let seed = rand::random();
        let rng = SmallRng::seed_from_u64(seed);
        let (blobs, kept) = (Vec::new(), HashSet::new());
        Ok(Self { folder, origin: Origin::start(None)?, config, rng, seed, blobs, kept })
    }

    fn run(mut self, keeps: bool) -> Result<()> {
        let nightly = std::env::var_os("DARTER_NIGHTLY").is_some();
        let kills = if nightly { KILLS_NIGHTLY } else { KILLS };
        for life in 0..kills {
            let lived = self.live(keeps);
            lived.with_context(|| format!("in life {life} of the play with seed {}", self.seed))?;
        }
        ensure!(!keeps || self.kept.len() > kills / 2, "only {} blobs became complete", self.kept.len());
        println!("{kills} kills, {} blobs, {} seen on disk", self.blobs.len(), self.kept.len());
        Ok(())
    }

    /// One life of the daemon: it shows what it has kept, serves for a while, and is killed.
    fn live(&mut self, keeps: bool) -> Result<()> {
        if self.rng.random_ratio(1, 4) {
            self.kill_while_it_starts()?;
        }
        let daemon = Daemon::start("daemon", self.folder.path(), &self.config)?;
        if keeps {
            self.look_at_kept(&daemon)?;
        }
        for _ in 0..NEW_BLOBS {
            // One half of them is packed.
            let longest = if self.rng.random() { LONGEST } else { MIB };
            let length = self.rng.random_range(1..longest);
            let blob = Content::new(self.blobs.len() as u64, length);
            self.origin.put_blob(blob, Some(self.rng.random_range(20..200) * 1_000_000));
            self.blobs.push(blob);
        }
        let (bytes, after) = (self.rng.random_range(0..LIFE_BYTES), self.rng.random_range(0..20_000));
        let stop = AtomicBool::new(false);
        let (tell, told) = channel();
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                let wishes = self.wishes();
                let (tell, stop, proxy) = (tell.clone(), &stop, daemon.proxy);
                let origin = self.origin.address();
                scope.spawn(move || client(proxy, origin, &wishes, stop, &tell));
            }
            drop(tell);
            let heard = self.hear(&told, bytes);
            // A random moment: what comes after a download's last byte takes no more than this.
            std::thread::sleep(Duration::from_micros(after));
            stop.store(true, Ordering::SeqCst);
            let log = daemon.process.log();
            daemon.process.kill()?;
            check_store(&self.folder.path().join("content"))?;
            heard.with_context(|| log)?;
            // What was on its way when the daemon died.
            while let Ok(told) = told.recv_timeout(SILENCE) {
                self.take(told)?;
            }
            Ok(())
        })
    }

    /// Starts a daemon that does not live to serve.
    fn kill_while_it_starts(&mut self) -> Result<()> {
        let file = self.folder.path().join("daemon.yaml");
        std::fs::write(&file, &self.config)?;
        let mut command = Command::new(binary());
        command.arg("daemon").arg("--config").arg(file);
        let process = Process::start("daemon", &mut command, &self.folder.path().join("daemon.log"))?;
        std::thread::sleep(self.rng.random_range(Duration::ZERO..START));
        process.kill()
    }

    /// What was complete is there still, and the origin sends none of it.
    fn look_at_kept(&mut self, daemon: &Daemon) -> Result<()> {
        let mut kept: Vec<Content> = self.kept.iter().copied().collect();
        kept.sort_by_key(|blob| std::cmp::Reverse(blob.seed));
        let old = kept.split_off(kept.len().min(2 * NEW_BLOBS));
        // The newest, and some of those that have lived through many kills.
        let old = old.iter().copied().filter(|_| self.rng.random_ratio(1, 8));
        for blob in kept.into_iter().chain(old) {
            let path = path(blob);
            let sent = self.origin.sent(&path);
            let url = format!("http://{}{path}", self.origin.address());
            let got = get(daemon.proxy, &url, Part::All(blob), &mut |_| {});
            let got = got.with_context(|| format!("{path}\n{}", daemon.process.log()))?;
            ensure!(got.right, "{path} is not what it was");
            ensure!(
                got.from_disk,
                "{path} was complete, and is not on disk any more\n{}",
                daemon.process.log()
            );
            ensure!(self.origin.sent(&path) == sent, "the origin has sent {path} again");
        }
        Ok(())
    }

    /// What one client will want, one after the other.
    fn wishes(&mut self) -> Vec<Part> {
        let mut wish = || {
            let newest = self.blobs.len().saturating_sub(2 * NEW_BLOBS);
            let blob = self.blobs[self.rng.random_range(newest..self.blobs.len())];
            let start = self.rng.random_range(0..blob.length);
            match self.rng.random_range(0..4) {
                0 => [Part::Range(blob, start, self.rng.random_range(start..blob.length)); 2],
                // The second time it may come from the disk.
                _ => [Part::All(blob); 2],
            }
        };
        (0..64).flat_map(|_| wish()).collect()
    }

    /// Listens to the clients until they have got so many bytes.
    fn hear(&mut self, told: &Receiver<Told>, bytes: u64) -> Result<()> {
        let mut got = 0;
        while got < bytes {
            match told.recv_timeout(SILENCE).context("the clients get nothing")? {
                Told::Bytes(count) => got += count,
                other => self.take(other)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, told: Told) -> Result<()> {
        match told {
            Told::Bytes(_) => Ok(()),
            Told::Hit(blob) => {
                self.kept.insert(blob);
                Ok(())
            }
            Told::Wrong(error) => Err(error),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Part {
    All(Content),
    /// From here to there, both included.
    Range(Content, u64, u64),
}

fn path(blob: Content) -> String {
    format!("/v2/test/blobs/{}", blob.digest())
}

fn client(proxy: SocketAddr, origin: SocketAddr, wishes: &[Part], stop: &AtomicBool, tell: &Sender<Told>) {
    for part in wishes {
        let (Part::All(blob) | Part::Range(blob, ..)) = *part;
        let url = format!("http://{origin}{}", path(blob));
        let told = match get(proxy, &url, *part, &mut |bytes| drop(tell.send(Told::Bytes(bytes)))) {
            Ok(got) if !got.right => Told::Wrong(anyhow!("{part:?}: wrong bytes came to a good end")),
            Ok(got) if got.from_disk && matches!(part, Part::All(_)) => Told::Hit(blob),
            Ok(_) => continue,
            // The daemon is dead.
            Err(_) if stop.load(Ordering::SeqCst) => return,
            Err(error) => Told::Wrong(error.context(format!("{part:?}"))),
        };
        let _ = tell.send(told);
    }
}

/// An answer that came to its end.
struct Got {
    right: bool,
    from_disk: bool,
}

/// Gets a part and compares it.
fn get(proxy: SocketAddr, url: &str, part: Part, each: &mut dyn FnMut(u64)) -> Result<Got> {
    let (range, (blob, start, end)) = match part {
        Part::All(blob) => (None, (blob, 0, blob.length)),
        Part::Range(blob, first, last) => (Some(format!("bytes={first}-{last}")), (blob, first, last + 1)),
    };
    let headers: Vec<_> = range.iter().map(|range| ("Range", range.as_str())).collect();
    let mut answer = http::get(proxy, url, &headers)?;
    let status = if range.is_some() { 206 } else { 200 };
    ensure!(answer.status == status, "{} {}", answer.status, answer.reason);
    let from_disk = answer.header("cache-status").is_some_and(|status| status.contains("hit"));
    let (mut hash, mut block) = (Hash::new(), vec![0; 64 << 10]);
    loop {
        let count = answer.read(&mut block)?;
        if count == 0 {
            break;
        }
        hash.write_all(&block[..count])?;
        each(count as u64);
    }
    let mut expected = Hash::new();
    std::io::copy(&mut blob.reader(start).take(end - start), &mut expected)?;
    Ok(Got { right: hash.digest() == expected.digest(), from_disk })
}
