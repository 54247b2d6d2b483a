//! Kill -9 at random points: of downloads, of what follows their last byte, of imports, of evictions, of the start.

use crate::MIB;
use anyhow::{Context, Result, anyhow, ensure};
use darter_e2e::content::{Content, Hash, digest_of};
use darter_e2e::darter::{Daemon, binary, check_store, loopback_config};
use darter_e2e::http;
use darter_e2e::origin::Origin;
use darter_e2e::process::Process;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
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
/// Files that are imported in every life, one after the other, and how long the command waits before each at most.
const IMPORTS: u64 = 6;
const IMPORT_PAUSE: Duration = Duration::from_millis(200);
/// The longest of all.
const LONGEST: u64 = 9 * MIB;
/// A life lasts for at most so many bytes that clients get.
const LIFE_BYTES: u64 = 96 * MIB;
/// The seed of the first file to import: blobs have those from zero on.
const FIRST_FILE: u64 = 1 << 32;
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
    /// Those of which a command said that they are imported.
    imported: Vec<Content>,
    /// Files to import that were made.
    files: u64,
}

/// What a client has to say.
enum Told {
    Bytes(u64),
    /// All of it came from the disk.
    Hit(Content),
    Imported(Content),
    Wrong(anyhow::Error),
}

impl Play {
    fn new(more: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let listens = format!(
            "download: {{ downloadGRPC: {{ unixListen: {{ socket: {} }} }},",
            socket(folder.path()).display()
        );
        let config = loopback_config(folder.path(), "").replace("download: {", &listens);
        let config = config + more + "gcInterval: 50ms\n";
        let seed = rand::random();
        let rng = SmallRng::seed_from_u64(seed);
        let (blobs, kept, imported) = (Vec::new(), HashSet::new(), Vec::new());
        Ok(Self { folder, origin: Origin::start(None)?, config, rng, seed, blobs, kept, imported, files: 0 })
    }

    fn run(mut self, keeps: bool) -> Result<()> {
        let nightly = std::env::var_os("DARTER_NIGHTLY").is_some();
        let kills = if nightly { KILLS_NIGHTLY } else { KILLS };
        for life in 0..kills {
            let lived = self.live(keeps);
            lived.with_context(|| format!("in life {life} of the play with seed {}", self.seed))?;
        }
        ensure!(!keeps || self.kept.len() > kills / 2, "only {} blobs became complete", self.kept.len());
        let (blobs, kept, files, imported) =
            (self.blobs.len(), self.kept.len(), self.files, self.imported.len());
        ensure!(imported > 0 && imported < self.files as usize, "{imported} of {files} files were imported");
        println!("{kills} kills, {blobs} blobs, {kept} seen on disk, {imported} of {files} files imported");
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
            self.look_at_imported()?;
        }
        let imports = self.new_files()?;
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
            let (importer, socket, stop_import) = (tell.clone(), socket(self.folder.path()), &stop);
            scope.spawn(move || import(&socket, imports, stop_import, &importer));
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

    /// The newest files of which a command said that they are imported, and some of the others, come out as they were.
    fn look_at_imported(&mut self) -> Result<()> {
        let newest = self.imported.len().saturating_sub(IMPORTS as usize);
        for at in 0..self.imported.len() {
            if at < newest && !self.rng.random_ratio(1, 8) {
                continue;
            }
            let (content, out) = (self.imported[at], self.folder.path().join("exported"));
            let mut export = cache(&socket(self.folder.path()), "export");
            let exported = export.args(["--id", &id(content), "--output"]).arg(&out).output()?;
            ensure!(exported.status.success(), "{} was imported: {exported:?}", id(content));
            let digest = digest_of(std::fs::File::open(&out)?)?;
            ensure!(digest == content.digest(), "{} is not what was imported", id(content));
            std::fs::remove_file(out)?;
        }
        Ok(())
    }

    /// Files to import, and how long to wait before each.
    fn new_files(&mut self) -> Result<Vec<(Duration, PathBuf, Content)>> {
        let mut files = Vec::new();
        for number in 0..IMPORTS {
            let longest = if self.rng.random() { LONGEST } else { MIB };
            let content = Content::new(FIRST_FILE + self.files, self.rng.random_range(1..longest));
            let file = self.folder.path().join(format!("file-{number}"));
            std::io::copy(&mut content.reader(0), &mut std::fs::File::create(&file)?)?;
            files.push((self.rng.random_range(Duration::ZERO..IMPORT_PAUSE), file, content));
            self.files += 1;
        }
        Ok(files)
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
            Told::Imported(content) => {
                self.imported.push(content);
                Ok(())
            }
            Told::Wrong(error) => Err(error),
        }
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("download.sock")
}

fn id(content: Content) -> String {
    format!("file-{}", content.seed)
}

fn cache(socket: &Path, what: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(["cache", what, "--socket"]).arg(socket);
    command
}

/// Imports one file after the other. What a command says is imported is to stay, also when the daemon dies the moment after.
fn import(socket: &Path, files: Vec<(Duration, PathBuf, Content)>, stop: &AtomicBool, tell: &Sender<Told>) {
    for (pause, file, content) in files {
        // A random moment.
        std::thread::sleep(pause);
        let told = match cache(socket, "import").args(["--id", &id(content)]).arg(file).output() {
            Ok(import) if import.status.success() => Told::Imported(content),
            // The daemon is dead.
            _ if stop.load(Ordering::SeqCst) => return,
            // All that there is room for is being read or fetched.
            Ok(import) if String::from_utf8_lossy(&import.stderr).contains("does not fit into the store") => {
                continue;
            }
            import => Told::Wrong(anyhow!("cannot import {}: {import:?}", id(content))),
        };
        let _ = tell.send(told);
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
