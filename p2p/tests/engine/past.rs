//! A disk that fails in the middle of a download: its readers get the rest from the origin.
//!
//! No disk is needed for it. Each test runs in a process of its own, in which at some moment nothing may be written behind an
//! offset any more (RLIMIT_FSIZE); reading goes on.

use crate::node::{MIB, Node, Scheduler, blob, bytes, content};
use crate::origin::{Behaviour, CHUNK, Origin};
use darter_p2p::{ByteRange, Content, OpenRequest, Rate, Rates, ReadError, Served, Supplier, TaskId, Want};
use darter_protocol::Priority;
use darter_scheduler::Access;
use http_body_util::BodyExt as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const LENGTH: usize = 9 * MIB + 12_345;

/// What is there when the disk fails, and what it takes after that.
const BEFORE: usize = 3 * MIB;
const FULL: usize = 5 * MIB;

/// Set in the process in which the test runs.
const APART: &str = "DARTER_TEST_APART";

/// Runs `test`, which is called `name`, in a process of its own. What would be written behind the limit is an error there, and no signal.
fn apart(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(APART).is_some() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        return runtime.worker_threads(2).enable_all().build().unwrap().block_on(test);
    }
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' XFSZ; exec \"$0\" --exact \"past::$1\""])
        .arg(std::env::current_exe().unwrap());
    assert!(shell.arg(name).env(APART, "1").status().unwrap().success());
}

/// No file may grow, or be written to, behind `most`; or wherever.
fn disk_takes(most: Option<usize>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    let current = most.map(|most| most as u64).or(maximum);
    setrlimit(Resource::Fsize, Rlimit { current, maximum }).unwrap();
}

fn gated(content: &[u8]) -> Behaviour {
    Behaviour { gate: Some(Semaphore::new(BEFORE / CHUNK)), ..Behaviour::good(content.to_vec()) }
}

/// A request for the same without a digest.
fn nameless(request: &OpenRequest) -> OpenRequest {
    OpenRequest { task: TaskId::of_url(request.url.as_str(), "", ""), digest: None, ..request.clone() }
}

/// Reads on until `got` has so many bytes, or to the end.
async fn read_to(most: usize, content: &mut Content, got: &mut Vec<u8>) -> Result<(), ReadError> {
    while got.len() < most
        && let Some(frame) = content.body.frame().await
    {
        got.extend_from_slice(frame?.data_ref().unwrap());
    }
    Ok(())
}

/// Opens `request`, of which the disk takes only a part, and reads to the end.
async fn fail(
    node: &Node,
    origin: &Origin,
    request: &OpenRequest,
) -> (Content, Vec<u8>, Result<(), ReadError>) {
    let mut content = content(node.engine.open(request.clone()).await);
    let mut got = Vec::new();
    read_to(CHUNK, &mut content, &mut got).await.unwrap();
    while origin.sent() < BEFORE as u64 {
        tokio::task::yield_now().await;
    }
    disk_takes(Some(FULL));
    origin.let_through(10 * LENGTH / CHUNK);
    let ended = read_to(usize::MAX, &mut content, &mut got).await;
    disk_takes(None);
    (content, got, ended)
}

#[test]
fn a_disk_that_fails_costs_no_reader_a_byte() {
    apart("a_disk_that_fails_costs_no_reader_a_byte", async {
        let data = bytes(LENGTH);
        for (ranges, named) in [(true, true), (true, false), (false, true), (false, false)] {
            let origin = Origin::start(Behaviour { ranges, ..gated(&data) }).await;
            let node = Node::start("a", &[]).await;
            let blob = blob(origin.address, &data);
            let request = if named { blob } else { nameless(&blob) };
            let (content, got, ended) = fail(&node, &origin, &request).await;
            ended.unwrap();
            assert!(got == data, "{ranges} {named}");
            assert_eq!(content.body.supplied().bytes(Supplier::Origin), LENGTH as u64);
            assert!(node.metric("p2p_content_bytes_total{from=\"origin\"}") >= LENGTH as u64);
            assert_eq!((node.metric("p2p_failed_total"), origin.requests().len()), (1, 2));
            let asked = origin.requests().pop().unwrap().range.unwrap();
            let from: usize =
                asked.strip_prefix("bytes=").unwrap().split_once('-').unwrap().0.parse().unwrap();
            assert!((CHUNK..=FULL).contains(&from), "what is there is not asked for: {asked}");
            // The disk has room again.
            drop(content);
            settled(&node, &request, &data).await;
        }
    });
}

/// The content is fetched again, and kept.
async fn settled(node: &Node, request: &OpenRequest, data: &[u8]) {
    let mut served = Served::Fetching;
    while served != Served::Disk {
        let mut content = content(node.engine.open(request.clone()).await);
        let mut got = Vec::new();
        read_to(usize::MAX, &mut content, &mut got).await.unwrap();
        assert!(got == data);
        served = content.served;
    }
}

#[test]
fn each_reader_goes_on_where_it_stands() {
    apart("each_reader_goes_on_where_it_stands", async {
        let data = bytes(LENGTH);
        let origin = Origin::start(gated(&data)).await;
        let node = Node::start("a", &[]).await;
        let request = blob(origin.address, &data);
        let range = ByteRange::new(MIB as u64 + 5, 8 * MIB as u64 + 7).unwrap();
        let part = OpenRequest { want: Want::Range(range), ..request.clone() };
        let peers_only = OpenRequest { priority: Priority::level(2).unwrap(), ..request.clone() };
        // The second reader, and the part, are joined when the first has begun, and read nothing before the end.
        let (mut all, mut some) = (Vec::new(), Vec::new());
        let mut first = content(node.engine.open(request.clone()).await);
        let mut waits = content(node.engine.open(request.clone()).await);
        let mut few = content(node.engine.open(part).await);
        let mut kept = content(node.engine.open(peers_only).await);
        let mut got = Vec::new();
        read_to(CHUNK, &mut first, &mut got).await.unwrap();
        disk_takes(Some(FULL));
        origin.let_through(40 * LENGTH / CHUNK);
        read_to(usize::MAX, &mut first, &mut got).await.unwrap();
        read_to(usize::MAX, &mut waits, &mut all).await.unwrap();
        read_to(usize::MAX, &mut few, &mut some).await.unwrap();
        let cut = read_to(usize::MAX, &mut kept, &mut Vec::new()).await;
        assert!(matches!(cut, Err(ReadError::Store(_))), "it wants nothing from the origin: {cut:?}");
        disk_takes(None);
        assert!(got == data && all == data);
        assert!(some == data[MIB + 5..8 * MIB + 7]);
    });
}

#[test]
fn another_version_is_never_put_behind_what_was_read() {
    apart("another_version_is_never_put_behind_what_was_read", async {
        let data = bytes(LENGTH);
        let later: Vec<u8> = data.iter().map(|byte| !byte).collect();
        for ranges in [true, false] {
            let behaviour = || Behaviour { later: Some(later.clone()), ranges, ..gated(&data) };
            // Its validators say so at once.
            let origin = Origin::start(behaviour()).await;
            let node = Node::start("a", &[]).await;
            let request = nameless(&blob(origin.address, &data));
            let (_, got, ended) = fail(&node, &origin, &request).await;
            assert!(matches!(ended, Err(ReadError::Mismatch { .. })), "{ended:?}");
            assert!(data.starts_with(&got) && got.len() <= FULL);
            // With a digest servers may differ in them; the end is given to nobody.
            let origin = Origin::start(behaviour()).await;
            let (_, got, ended) = fail(&node, &origin, &blob(origin.address, &data)).await;
            assert!(matches!(ended, Err(ReadError::Mismatch { .. })), "{ended:?}");
            assert!((FULL - MIB..LENGTH).contains(&got.len()), "{}", got.len());
        }
    });
}

#[test]
fn what_is_kept_from_the_origin_is_cut() {
    apart("what_is_kept_from_the_origin_is_cut", async {
        let data = bytes(LENGTH);
        let origin = Origin::start(Behaviour::good(data.clone())).await;
        let seeds_only = Access { disable_back_source: true, ..Access::default() };
        let scheduler = Scheduler::ruled(seeds_only).await;
        let a = Node::with("a", &[scheduler.address], |config| config.host.seed = true).await;
        let rates = Rates { total: Rate::new(2 * MIB as u64), ..Rates::default() };
        let b = Node::limited("b", &[scheduler.address], rates, false).await;
        a.joined().await;
        b.joined().await;
        let request = blob(origin.address, &data);
        assert!(a.get(&request).await.unwrap() == data);
        let mut content = content(b.engine.open(request).await);
        let mut got = Vec::new();
        read_to(1, &mut content, &mut got).await.unwrap();
        disk_takes(Some(FULL));
        let ended = read_to(usize::MAX, &mut content, &mut got).await;
        assert!(matches!(ended, Err(ReadError::Store(_))), "{ended:?}");
        assert!(data.starts_with(&got));
        assert_eq!(origin.requests().len(), 1);
    });
}

/// The one large file of a store.
fn content_file(dir: &Path) -> PathBuf {
    let folders = std::fs::read_dir(dir.join("content")).unwrap();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    let mut files = files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_none());
    files.next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_cannot_be_read_costs_a_reader_nothing_as_long_as_it_can_be_read_to_there() {
    let data = bytes(LENGTH);
    for lost in [2 * MIB, 0] {
        let origin = Origin::start(gated(&data)).await;
        let node = Node::start("a", &[]).await;
        let mut content = content(node.engine.open(blob(origin.address, &data)).await);
        let mut got = Vec::new();
        read_to(CHUNK, &mut content, &mut got).await.unwrap();
        while node.metric("p2p_content_bytes_total{from=\"origin\"}") < BEFORE as u64 {
            tokio::task::yield_now().await;
        }
        // As bytes that the disk does not give.
        std::fs::File::options()
            .write(true)
            .open(content_file(&node.dir))
            .unwrap()
            .set_len(lost as u64)
            .unwrap();
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            let ended = read_to(usize::MAX, &mut content, &mut got).await;
            (got, ended)
        });
        if lost > 0 {
            while origin.requests().len() < 2 {
                tokio::task::yield_now().await;
            }
            origin.let_through(10 * LENGTH / CHUNK);
        }
        let (got, ended) = reading.join_next().await.unwrap().unwrap();
        if lost > 0 {
            ended.unwrap();
            assert!(got == data);
        } else {
            assert!(matches!(ended, Err(ReadError::Store(_))), "nobody knows what it got: {ended:?}");
        }
    }
}
