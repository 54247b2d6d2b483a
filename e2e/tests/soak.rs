//! Two daemons, a scheduler and an origin under mixed load, for seconds with every change and for minutes in the long run
//! (`DARTER_SOAK_MINUTES`): pulls, ranges, clients that go away, imports and exports, evictions all the time, and one of the
//! daemons stopped or killed again and again. No client ever gets a wrong byte; the daemon that stays keeps its memory and its
//! open files; both keep their disks; and both stores are in order at the end.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{Daemon, Scheduler, binary, check_store, loopback_config};
use darter_e2e::http;
use darter_e2e::origin::{Origin, Page};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// What each daemon may keep, and about a third of what is asked for.
const QUOTA: u64 = 96 * MIB;
/// Beside content: the catalog, and blocks that are not full.
const SLACK: u64 = 16 * MIB;
const CONTENTS: u64 = 60;
const LONGEST: u64 = 12 * MIB;
const CLIENTS: u64 = 4;
const SHORT: Duration = Duration::from_secs(20);
/// How often memory, files and disks are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a daemon may take to drain: what is under way is short.
const DRAIN: Duration = Duration::from_secs(60);

/// A daemon's place, whoever is in it at the moment.
struct Node {
    folder: PathBuf,
    config: String,
    proxy: Mutex<SocketAddr>,
    /// It is stopped and started again: what is under way then may end short.
    restless: bool,
}

/// What all share.
struct Soak {
    origin: Origin,
    nodes: [Node; 2],
    contents: Vec<Content>,
    stop: AtomicBool,
    done: [AtomicU64; 4],
    broken: AtomicU64,
}

/// What the daemon that stays has, and both disks hold.
struct Sample {
    resident: u64,
    files: u64,
    disks: [u64; 2],
}

#[test]
fn nothing_grows_and_nothing_is_wrong_under_mixed_load() -> Result<()> {
    let minutes = std::env::var("DARTER_SOAK_MINUTES").ok().and_then(|minutes| minutes.parse::<u64>().ok());
    let length = minutes.map_or(SHORT, |minutes| Duration::from_secs(60 * minutes));
    let seed = rand::random();
    soak(length, seed).with_context(|| format!("with seed {seed}"))
}

fn soak(length: Duration, seed: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let scheduler = Scheduler::start(folder.path(), 0)?;
    let mut rng = SmallRng::seed_from_u64(seed);
    let soak = Soak::at(folder.path(), &scheduler, seed)?;
    let (steady, node) = (soak.nodes[0].start()?, soak.nodes[1].start()?);
    let end = Instant::now() + length;
    let (samples, node) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (soak, rng) = (&soak, SmallRng::seed_from_u64(seed ^ (number << 32)));
                scope.spawn(move || soak.until_stopped(|| soak.client(number, rng)))
            })
            .collect();
        let watch = scope.spawn(|| soak.watch(&steady));
        let restarts = soak.until_stopped(|| soak.restart(node, end, &mut rng));
        soak.stop.store(true, Ordering::SeqCst);
        for client in clients {
            client.join().expect("it does not panic")?;
        }
        Ok::<_, anyhow::Error>((watch.join().expect("it does not panic")?, restarts?))
    })
    .with_context(|| steady.process.log())?;
    let [pulled, ranges, cut, cached] = soak.done.each_ref().map(|count| count.load(Ordering::SeqCst));
    let broken = soak.broken.load(Ordering::SeqCst);
    println!("{pulled} pulls, {ranges} ranges, {cut} cut, {cached} by cache; {broken} broken by restarts");
    ensure!(pulled > 0 && ranges > 0 && cut > 0 && cached > 0, "nothing happened");
    judge(&samples)?;
    soak.look_at_all()?;
    for mut daemon in [steady, node] {
        stop(&mut daemon)?;
    }
    soak.nodes.iter().try_for_each(|node| check_store(&node.folder.join("content")))
}

/// By its digest, or, every third, by its URL alone.
fn path(content: Content) -> String {
    if content.length.is_multiple_of(3) {
        format!("/plain/{}", content.validator())
    } else {
        format!("/v2/test/blobs/{}", content.digest())
    }
}

fn stop(daemon: &mut Daemon) -> Result<()> {
    daemon.process.signal(Signal::TERM)?;
    let ended = daemon.process.wait_exit(DRAIN)?;
    ensure!(ended.success(), "{ended}: {}", daemon.process.log());
    Ok(())
}

// === impl Node ===

impl Node {
    fn at(folder: &Path, scheduler: &Scheduler, restless: bool) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let listens = format!("unixListen: {{ socket: {}/download.sock }}", folder.display());
        let config = loopback_config(folder, "  proxies: [{ regx: /plain/ }]\n")
            .replace("download: {", &format!("download: {{ downloadGRPC: {{ {listens} }},"))
            + &format!(
                "storage: {{ diskGCThreshold: {QUOTA}, diskGCThresholdPercent: 100 }}\ngcInterval: 200ms\n"
            )
            + &format!("scheduler: {{ netAddrs: [{{ addr: '{}' }}] }}\n", scheduler.address)
            + "security: { insecure: true }\n";
        let proxy = Mutex::new(([127, 0, 0, 1], 0).into());
        Ok(Self { folder: folder.to_owned(), config, proxy, restless })
    }

    fn start(&self) -> Result<Daemon> {
        let daemon = Daemon::start("daemon", &self.folder, &self.config)?;
        *self.proxy.lock().unwrap_or_else(PoisonError::into_inner) = daemon.proxy;
        Ok(daemon)
    }

    fn proxy(&self) -> SocketAddr {
        *self.proxy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self, args: &[&str]) -> Result<std::process::Output> {
        let socket = self.folder.join("download.sock");
        Ok(Command::new(binary()).arg("cache").args(args).arg("--socket").arg(socket).output()?)
    }

    /// Bytes that its content takes on disk.
    fn disk(&self) -> u64 {
        let mut bytes = 0;
        let mut folders = vec![self.folder.join("content")];
        while let Some(folder) = folders.pop() {
            // What is evicted meanwhile counts as gone.
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                    Ok(meta) => bytes += 512 * meta.blocks(),
                    Err(_) => {}
                }
            }
        }
        bytes
    }
}

// === impl Soak ===

impl Soak {
    fn at(folder: &Path, scheduler: &Scheduler, seed: u64) -> Result<Self> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let contents = (0..CONTENTS).map(|number| {
            // Every second one is packed.
            let longest = if number.is_multiple_of(2) { MIB } else { LONGEST };
            Content::new(seed ^ number, rng.random_range(1..longest))
        });
        let (contents, origin): (Vec<_>, _) = (contents.collect(), Origin::start(None)?);
        for content in &contents {
            origin.put(&path(*content), Page::content(*content));
        }
        let place = |name: &str| Node::at(&folder.join(name), scheduler, name == "restless");
        Ok(Self {
            origin,
            nodes: [place("steady")?, place("restless")?],
            contents,
            stop: AtomicBool::new(false),
            done: Default::default(),
            broken: AtomicU64::new(0),
        })
    }

    /// Whoever fails stops all.
    fn until_stopped<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        work().inspect_err(|_| self.stop.store(true, Ordering::SeqCst))
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// One after the other, until all is over.
    fn client(&self, number: u64, mut rng: SmallRng) -> Result<()> {
        while !self.is_stopped() {
            let node = &self.nodes[rng.random_range(0..2)];
            let content = self.contents[rng.random_range(0..self.contents.len())];
            let (kind, done) = match rng.random_range(0..20) {
                0..10 => (0, self.pull(node, content, 0..content.length)),
                10..14 => {
                    let start = rng.random_range(0..content.length);
                    let end = rng.random_range(start..content.length) + 1;
                    (1, self.pull(node, content, start..end))
                }
                14..18 => {
                    let most = rng.random_range(1..=content.length);
                    (2, self.read(node, content, 0..content.length, most).map(drop))
                }
                _ => (3, self.cached(node, number, content)),
            };
            match done {
                Ok(()) => drop(self.done[kind].fetch_add(1, Ordering::SeqCst)),
                Err(error) if node.restless && error.downcast_ref::<Wrong>().is_none() => {
                    self.broken.fetch_add(1, Ordering::SeqCst);
                    // As a person would: a client that came back at once would take the processor from the daemon that starts.
                    // Nothing that is asserted hangs on it.
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// All of a range.
    fn pull(&self, node: &Node, content: Content, range: std::ops::Range<u64>) -> Result<()> {
        let length = range.end - range.start;
        let read = self.read(node, content, range.clone(), u64::MAX)?;
        ensure!(read == length, "{read} of {length} bytes of {range:?} of {}", path(content));
        Ok(())
    }

    /// Reads `most` bytes of a range, and goes away; every byte must be right.
    fn read(&self, node: &Node, content: Content, range: std::ops::Range<u64>, most: u64) -> Result<u64> {
        let url = format!("http://{}{}", self.origin.address(), path(content));
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let whole = range == (0..content.length);
        let headers: &[_] = if whole { &[] } else { &[("Range", header.as_str())] };
        let mut answer = http::get(node.proxy(), &url, headers)?;
        ensure!(answer.status == if whole { 200 } else { 206 }, "{}: {}", path(content), answer.status);
        let mut expected = content.reader(range.start);
        let (mut got, mut right, mut read) = (vec![0; 64 << 10], vec![0; 64 << 10], 0);
        while read < most {
            let count = answer.read(&mut got)?;
            if count == 0 {
                break;
            }
            expected.read_exact(&mut right[..count])?;
            if got[..count] != right[..count] {
                return Err(Wrong(format!("at {} of {}", range.start + read, path(content))).into());
            }
            read += count as u64;
        }
        Ok(read)
    }

    /// A file goes in and comes out again, here or on the other host, and is deleted.
    fn cached(&self, node: &Node, number: u64, content: Content) -> Result<()> {
        let (id, file) = (format!("client{number}"), node.folder.join(format!("in{number}")));
        std::io::copy(&mut content.reader(0), &mut std::fs::File::create(&file)?)?;
        let imported = node.cache(&["import", text(&file)?, "--id", &id])?;
        // It may not fit at the moment, or others have the name yet.
        expect(&imported, &[0, 69, 75])?;
        if imported.status.code() != Some(0) {
            return Ok(());
        }
        let output = node.folder.join(format!("out{number}"));
        let exported = node.cache(&["export", &id, "-O", text(&output)?])?;
        // It may have been evicted again.
        expect(&exported, &[0, 66, 69])?;
        if exported.status.success() && digest_of(std::fs::File::open(&output)?)? != content.digest() {
            return Err(Wrong(format!("what was imported as {id}")).into());
        }
        expect(&node.cache(&["delete", &id])?, &[0, 69])
    }

    /// Stops or kills the daemon that is restless, and starts it again, until the time is over.
    fn restart(&self, mut daemon: Daemon, end: Instant, rng: &mut SmallRng) -> Result<Daemon> {
        let node = &self.nodes[1];
        while !self.is_stopped() {
            let pause = Duration::from_millis(rng.random_range(1000..8000));
            let until = end.min(Instant::now() + pause);
            while Instant::now() < until && !self.is_stopped() {
                std::thread::sleep(Duration::from_millis(100));
            }
            if Instant::now() >= end {
                break;
            }
            if rng.random() {
                stop(&mut daemon)?;
            } else {
                daemon.process.kill()?;
            }
            daemon = node.start()?;
        }
        Ok(daemon)
    }

    fn watch(&self, steady: &Daemon) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        while !self.is_stopped() {
            let files = std::fs::read_dir(format!("/proc/{}/fd", steady.process.id()))?.count() as u64;
            let disks = self.nodes.each_ref().map(Node::disk);
            samples.push(Sample { resident: steady.process.resident_memory()?, files, disks });
            std::thread::sleep(LOOK);
        }
        Ok(samples)
    }

    /// Everything can be had everywhere.
    fn look_at_all(&self) -> Result<()> {
        for node in &self.nodes {
            self.contents.iter().try_for_each(|content| self.pull(node, *content, 0..content.length))?;
        }
        Ok(())
    }
}

/// A byte that is not what it must be.
#[derive(Debug)]
struct Wrong(String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "wrong bytes: {}", self.0)
    }
}

impl std::error::Error for Wrong {}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("an odd folder")
}

fn expect(ended: &std::process::Output, codes: &[i32]) -> Result<()> {
    match ended.status.code() {
        Some(code) if codes.contains(&code) => Ok(()),
        _ => bail!("{ended:?}"),
    }
}

/// What the last third has is what the middle one had, and the disks never held more than they may.
fn judge(samples: &[Sample]) -> Result<()> {
    let third = samples.len() / 3;
    let (middle, last) = (&samples[third..2 * third], &samples[2 * third..]);
    let resident = [middle, last].map(|part| median(part.iter().map(|sample| sample.resident)));
    let files = [middle, last].map(|part| median(part.iter().map(|sample| sample.files)));
    let disk = samples.iter().flat_map(|sample| sample.disks).max().unwrap_or_default();
    println!("resident {resident:?}, open files {files:?}, on disk at most {disk}, of {QUOTA}");
    ensure!(resident[1] <= resident[0] + resident[0] / 5 + 8 * MIB, "memory grows: {resident:?}");
    ensure!(files[1] <= files[0] + files[0] / 5 + 32, "open files grow: {files:?}");
    ensure!(disk <= QUOTA + SLACK, "{disk} bytes on disk, and {QUOTA} are allowed");
    Ok(())
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
