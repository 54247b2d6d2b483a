//! Ranges: what they fetch, from whom, and what stays of it.

use super::impostor::{Answer, Impostor, Lie, honest};
use super::node::{MIB, Node, Scheduler, blob, bytes, content, read};
use super::origin::{Behaviour, CHUNK, Origin};
use super::{part, settled};
use darter_p2p::{ByteRange, OpenError, OpenRequest, Rates, Want};
use darter_protocol::Priority;
use http_body_util::BodyExt;
use std::path::{Path, PathBuf};
use tokio::sync::{Notify, Semaphore};

const BLOCK: usize = 64 << 10;

async fn get(node: &Node, request: &OpenRequest, start: usize, end: usize) -> Vec<u8> {
    let range = ByteRange::new(start as u64, end as u64).unwrap();
    read(content(node.engine.open(part(request, Want::Range(range))).await)).await.unwrap()
}

/// Waits until nothing is fetched any more, and what was is noted.
async fn rests(node: &Node) {
    while node.metric("p2p_downloads") > 0 {
        tokio::task::yield_now().await;
    }
}

/// The one file of content in this store.
fn stored(dir: &Path) -> PathBuf {
    let folders = std::fs::read_dir(dir.join("content")).unwrap();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    let mut paths = files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_none());
    paths.next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_range_has_fetched_is_kept_over_a_restart_and_believed_only_when_it_is_right() {
    use std::os::unix::fs::FileExt;
    let data = bytes(40 * MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let request = blob(origin.address, &data);
    let dir = tempfile::tempdir().unwrap();
    let (at, rotten) = (21 * MIB + 5, 33 * MIB + 3 * BLOCK);
    let node = Node::start_in(dir.path(), "a", &[]).await;
    for start in [at, at, rotten] {
        assert!(get(&node, &request, start, start + 1000).await == data[start..start + 1000]);
        rests(&node).await;
    }
    assert_eq!(
        (origin.requests().len(), origin.sent()),
        (2, 2 * BLOCK as u64),
        "the same again cost nothing"
    );
    node.engine.stop().await;
    drop(node);

    let file = std::fs::OpenOptions::new().write(true).open(stored(dir.path())).unwrap();
    file.write_all_at(b"rot", rotten as u64 + 50).unwrap();
    let node = Node::start_in(dir.path(), "a", &[]).await;
    assert!(get(&node, &request, at, at + 1000).await == data[at..at + 1000]);
    assert_eq!(origin.requests().len(), 2);
    assert!(get(&node, &request, rotten, rotten + 1000).await == data[rotten..rotten + 1000]);
    assert_eq!(origin.requests().len(), 3);
    // The rest of their pieces is completed around them.
    assert!(node.get(&request).await.unwrap() == data);
    assert_eq!(origin.sent(), data.len() as u64 + BLOCK as u64);
    settled(&node, &request).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_on_and_on_in_small_ranges_costs_few_requests() {
    let data = bytes(24 * MIB + 5);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let request = blob(origin.address, &data);
    let node = Node::start("a", &[]).await;
    for start in (0..data.len()).step_by(48_000) {
        let end = data.len().min(start + 48_000);
        assert!(get(&node, &request, start, end).await == data[start..end]);
    }
    rests(&node).await;
    // Of 525 reads; on a busy machine the reader may be so long in coming back that a request has ended by then.
    assert!(origin.requests().len() <= 50, "{} requests", origin.requests().len());
    assert_eq!(origin.sent(), data.len() as u64, "{:?}", origin.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_passes_over_a_little_again_and_again_costs_few_requests_and_who_passes_over_much_few_bytes() {
    let data = bytes(24 * MIB + 5);
    let request = |origin: &Origin| blob(origin.address, &data);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let node = Node::start("a", &[]).await;
    let mut reads = 0;
    for start in (0..data.len() - 3 * BLOCK).step_by(3 * BLOCK) {
        let end = start + 2 * BLOCK;
        assert!(get(&node, &request(&origin), start, end).await == data[start..end]);
        reads += 1;
    }
    rests(&node).await;
    assert!(origin.requests().len() <= 25, "{} requests for {reads}", origin.requests().len());
    assert!(origin.sent() <= data.len() as u64, "{:?}", origin.requests());

    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let node = Node::start("b", &[]).await;
    for start in (0..data.len() - 4 * BLOCK).step_by(4 * BLOCK) {
        assert!(get(&node, &request(&origin), start, start + 100).await == data[start..start + 100]);
        rests(&node).await;
    }
    let read = (data.len() - 4 * BLOCK).div_ceil(4 * BLOCK);
    assert_eq!((origin.requests().len(), origin.sent()), (read, (read * BLOCK) as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_download_goes_on_to_its_end_when_the_reader_of_a_part_of_it_goes() {
    let data = bytes(6 * BLOCK);
    let gated = Behaviour { gate: Some(Semaphore::new(2)), ..Behaviour::good(data.clone()) };
    let origin = Origin::start(gated).await;
    let node = Node::start("a", &[]).await;
    let request = blob(origin.address, &data);
    let first = Want::Range(ByteRange::new(0, 1000).unwrap());
    let mut reader = content(node.engine.open(part(&request, first)).await);
    reader.body.frame().await.unwrap().unwrap();
    drop(reader);
    origin.let_through(100);
    rests(&node).await;
    settled(&node, &request).await;
    assert_eq!((origin.sent(), node.metric("p2p_completed_total")), (data.len() as u64, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_in_the_middle_waits_neither_for_a_slow_stream_nor_for_a_piece() {
    let data = bytes(40 * MIB);
    let origin =
        Origin::start(Behaviour { gate: Some(Semaphore::new(1)), ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    let request = blob(origin.address, &data);
    let sequential = content(node.engine.open(request.clone()).await);
    let at = 20 * MIB + 700_000;
    let middle = get(&node, &request, at, at + 1024);
    let let_through = async {
        loop {
            // The stream and the reader take turns at the gate. A slow origin, so that the stream is not there first.
            origin.let_through(1);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    let middle = tokio::select! {
        middle = middle => middle,
        () = let_through => unreachable!(),
    };
    assert!(middle == data[at..at + 1024]);
    let first = at / BLOCK * BLOCK;
    assert_eq!(origin.requests()[1].range, Some(format!("bytes={first}-{}", first + BLOCK - 1)));
    // Also for what the stream sends beyond the block before which it is cut.
    origin.let_through(60 * MIB / CHUNK);
    assert!(read(sequential).await.unwrap() == data);
    // The stream was cut at the block that was there; what it had sent beyond is lost.
    assert!(origin.requests().len() <= 4, "{:?}", origin.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_fetches_the_rest_when_that_is_wished_also_when_its_reader_has_gone() {
    let data = bytes(9 * MIB + 5);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let node = Node::limited("a", &[], Rates::default(), true).await;
    let request = blob(origin.address, &data);
    assert!(get(&node, &request, 5 * MIB, 5 * MIB + 10).await == data[5 * MIB..5 * MIB + 10]);
    rests(&node).await;
    assert_eq!(node.metric("p2p_completed_total"), 1);
    assert_eq!(origin.sent(), data.len() as u64, "{:?}", origin.requests());
}

// === From partners ===

/// What a holder does when it is asked for blocks, and whether it is found out to have sent something wrong. In each case the
/// reader gets the right bytes: from it, or from the origin.
const LIES: &[(&str, Lie, bool, bool)] = &[
    ("is honest", honest, true, false),
    (
        "sends other bytes",
        |what, honest, other| Answer::Body(if what == "data" { other } else { honest }),
        false,
        true,
    ),
    (
        "sends one wrong bit",
        |what, mut honest, _| {
            if what == "data" {
                honest[40_000] ^= 4;
            }
            Answer::Body(honest)
        },
        false,
        true,
    ),
    (
        "sends the list of other content",
        |what, honest, other| Answer::Body(if what == "blocks" { other } else { honest }),
        false,
        true,
    ),
    (
        "sends other content and the list that fits to it",
        |what, honest, other| Answer::Body(if what == "hashes" { honest } else { other }),
        false,
        true,
    ),
    (
        "sends the list in another order",
        |what, mut honest, _| {
            if what == "blocks" {
                honest.rotate_left(32);
            }
            Answer::Body(honest)
        },
        false,
        true,
    ),
    (
        "sends a list that is too short",
        |what, mut honest, _| {
            if what == "blocks" {
                honest.truncate(15 * 32);
            }
            Answer::Body(honest)
        },
        false,
        true,
    ),
    (
        "sends a list that is too long",
        |what, mut honest, _| {
            if what == "blocks" {
                honest.resize(100 << 10, 7);
            }
            Answer::Body(honest)
        },
        false,
        true,
    ),
    (
        "has no list",
        |what, honest, _| if what == "blocks" { Answer::No } else { Answer::Body(honest) },
        false,
        false,
    ),
    (
        "breaks off in the list",
        |what, honest, _| {
            if what == "blocks" { Answer::Cut(honest[..100].to_vec()) } else { Answer::Body(honest) }
        },
        false,
        true,
    ),
    (
        "breaks off in the data",
        |what, honest, _| {
            if what == "data" { Answer::Cut(honest[..40_000].to_vec()) } else { Answer::Body(honest) }
        },
        false,
        false,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_come_from_a_holder_and_what_it_lies_about_comes_from_elsewhere() {
    let data = bytes(9 * MIB + 12_345);
    for ((name, lie, serves, found_out), proves) in LIES.iter().flat_map(|row| [(row, true), (row, false)]) {
        let origin = Origin::start(Behaviour::good(data.clone())).await;
        let scheduler = Scheduler::start().await;
        let request = blob(origin.address, &data);
        let holder = Impostor::holder(scheduler.address, request.task, &data, (*lie, proves)).await;
        let node = Node::start("b", &[scheduler.address]).await;
        node.joined().await;
        let at = 5 * MIB + 2 * BLOCK + 100;
        for _ in 0..2 {
            assert!(get(&node, &request, at, at + 1000).await == data[at..at + 1000], "{name}");
            rests(&node).await;
        }
        let once = BLOCK as u64;
        assert_eq!((holder.asked(), holder.sent()), (1, once), "{name}: of the holder");
        // What the origin begins is completed, for the others.
        assert_eq!(origin.sent(), if *serves { 0 } else { MIB as u64 }, "{name}: of the origin");
        assert_eq!(node.metric("p2p_corrupt_pieces_total"), u64::from(*found_out), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_it_is_right_whatever_a_holder_does_while_a_reader_waits() {
    let data = bytes(9 * MIB + 12_345);
    for (name, lie, ..) in LIES {
        let origin = Origin::start(Behaviour::good(data.clone())).await;
        let scheduler = Scheduler::start().await;
        let request = blob(origin.address, &data);
        let _holder = Impostor::complete(scheduler.address, request.task, &data, *lie).await;
        let node = Node::start("b", &[scheduler.address]).await;
        node.joined().await;
        sequential(&node, &request, &data).await;
        settled(&node, &request).await;
        let metric = |from: &str| node.metric(&format!("p2p_content_bytes_total{{from=\"{from}\"}}"));
        assert_eq!(metric("origin"), origin.sent(), "{name}");
        assert!(metric("peer") + metric("origin") >= data.len() as u64, "{name}");
    }
}

/// A stalled sender is waited for with patience: what it sent before is read long before that has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_gets_the_blocks_of_a_piece_while_the_rest_is_still_to_come() {
    let data = bytes(9 * MIB + 12_345);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let scheduler = Scheduler::start().await;
    let request = blob(origin.address, &data);
    let stalls: Lie = |what, honest, _| match what {
        "data" => Answer::Stall(honest[..3 * BLOCK + 5].to_vec()),
        _ => Answer::Body(honest),
    };
    let _holder = Impostor::complete(scheduler.address, request.task, &data, stalls).await;
    let node = Node::start("b", &[scheduler.address]).await;
    node.joined().await;
    let at = 4 * MIB + 70;
    let want = Want::From(at as u64);
    let mut opened = content(node.engine.open(part(&request, want)).await);
    let mut got = Vec::new();
    while got.len() < 3 * BLOCK - 70 {
        got.extend_from_slice(opened.body.frame().await.unwrap().unwrap().data_ref().unwrap());
    }
    assert!(got == data[at..4 * MIB + 3 * BLOCK], "{}", got.len());
    assert_eq!(origin.sent(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_of_a_piece_and_was_proven_is_not_fetched_again() {
    let data = bytes(9 * MIB + 12_345);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let scheduler = Scheduler::start().await;
    let request = blob(origin.address, &data);
    let breaks_off: Lie = |what, honest, _| match what {
        "data" => Answer::Cut(honest[..5 * BLOCK + 5].to_vec()),
        _ => Answer::Body(honest),
    };
    let _holder = Impostor::complete(scheduler.address, request.task, &data, breaks_off).await;
    let node = Node::start("b", &[scheduler.address]).await;
    node.joined().await;
    assert!(node.get(&request).await.unwrap() == data);
    settled(&node, &request).await;
    let kept = 5 * BLOCK as u64;
    assert_eq!(origin.sent(), data.len() as u64 - kept, "{:?}", origin.requests());
    let metric = |from: &str| node.metric(&format!("p2p_content_bytes_total{{from=\"{from}\"}}"));
    assert_eq!((metric("peer"), metric("origin")), (kept, origin.sent()));
}

/// Reads all of it, and checks every byte.
async fn sequential(node: &Node, request: &OpenRequest, data: &[u8]) {
    assert!(node.get(request).await.unwrap() == data);
}

/// Reads here and there; tells when a part of that is done.
async fn random(node: &Node, request: &OpenRequest, data: &[u8], some: &Notify) {
    for turn in 0..60 {
        if turn == 20 {
            some.notify_one();
        }
        let start = turn * 15_485_863 % (data.len() - 200_000);
        let end = start + 1 + turn * 1_299_709 % 150_000;
        assert!(get(node, request, start, end).await == data[start..end], "{turn}");
    }
}

/// As a lazy pull does: the end of the archive, its table of contents, and then file by file.
async fn lazy(node: &Node, request: &OpenRequest, data: &[u8]) {
    let end = content(node.engine.open(part(request, Want::Suffix(47))).await);
    assert!(read(end).await.unwrap() == data[data.len() - 47..]);
    let contents = data.len() - 300_000;
    assert!(get(node, request, contents, data.len() - 47).await == data[contents..data.len() - 47]);
    for (start, files) in [(9 * MIB, 30), (2 * MIB + 77, 10), (13 * MIB, 20)] {
        for file in 0..files {
            let (start, end) = (start + file * 37_000, start + (file + 1) * 37_000);
            assert!(get(node, request, start, end).await == data[start..end], "{file}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_every_kind_share_what_a_partner_has_and_the_origin_brings_the_rest_once() {
    let data = bytes(16 * MIB + 12_345);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let scheduler = Scheduler::start().await;
    let request = blob(origin.address, &data);
    let held: Vec<u32> = (0..16).step_by(2).collect();
    let partner = Impostor::partner(scheduler.address, request.task, &data, &held).await;
    let node = Node::start("n", &[scheduler.address]).await;
    node.joined().await;
    // Whoever reads all of it finds holes of every size.
    let some = Notify::new();
    let later = async {
        some.notified().await;
        sequential(&node, &request, &data).await;
    };
    tokio::join!(random(&node, &request, &data, &some), lazy(&node, &request, &data), later);
    settled(&node, &request).await;
    let theirs = (held.len() * MIB) as u64;
    assert_eq!((partner.sent(), origin.sent()), (theirs, data.len() as u64 - theirs));
    let metric = |from: &str| node.metric(&format!("p2p_content_bytes_total{{from=\"{from}\"}}"));
    assert_eq!((metric("peer"), metric("origin")), (theirs, data.len() as u64 - theirs));
}

/// The journal of what is there in part cannot be read any more: the store fails before a scheduler was asked.
#[tokio::test]
async fn a_store_that_fails_lets_nobody_past_what_the_scheduler_forbids() {
    let data = bytes(5 * MIB);
    let origin = Origin::start(Behaviour::good(data.clone())).await;
    let scheduler = Scheduler::start().await;
    let node = Node::obedient("a", &[scheduler.address]).await;
    node.joined().await;
    let request = blob(origin.address, &data);
    get(&node, &request, 0, BLOCK).await;
    rests(&node).await;
    let journal = stored(&node.dir).with_extension("partial");
    std::fs::remove_file(&journal).unwrap();
    std::fs::create_dir(&journal).unwrap();
    let asked = origin.requests().len();
    let forbidden = OpenRequest { priority: Priority::level(1).unwrap(), ..request.clone() };
    // Who waits with another gets no word that was that one's.
    let open = |request: &OpenRequest| node.engine.open(request.clone());
    let (opened, refused) = tokio::join!(open(&request), open(&forbidden));
    assert!(matches!(opened, Err(OpenError::Store(_))), "nothing forbids it");
    assert!(matches!(refused, Err(OpenError::Refused { for_good: true, .. })));
    // Who comes while a download ends gets what that one got, if he asks the same.
    rests(&node).await;
    assert!(matches!(open(&forbidden).await, Err(OpenError::Refused { for_good: true, .. })));
    rests(&node).await;
    let others_only = OpenRequest { priority: Priority::level(2).unwrap(), ..request.clone() };
    let refused = node.engine.open(others_only).await;
    assert!(matches!(refused, Err(OpenError::Refused { for_good: false, .. })));
    rests(&node).await;
    scheduler.kill();
    while node.metric("p2p_schedulers_up") > 0 {
        tokio::task::yield_now().await;
    }
    match node.engine.open(request).await {
        Err(OpenError::Refused { reason, .. }) => {
            assert!(reason.contains("disableAutoBackSource"), "{reason}")
        }
        _ => panic!("it needs a scheduler's word"),
    }
    assert_eq!(origin.requests().len(), asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_ranges_are_not_honoured_one_stream_serves_readers_everywhere() {
    let data = bytes(24 * MIB);
    let behaviour =
        Behaviour { ranges: false, gate: Some(Semaphore::new(0)), ..Behaviour::good(data.clone()) };
    let origin = Origin::start(behaviour).await;
    let node = Node::start("a", &[]).await;
    let request = blob(origin.address, &data);
    let mut all = content(node.engine.open(request.clone()).await);
    origin.let_through(2);
    let mut got = all.body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    let late = get(&node, &request, 20 * MIB, 21 * MIB);
    let go_on = async {
        // Only the answer to the late one tells that this origin has no ranges.
        while origin.requests().len() < 2 {
            tokio::task::yield_now().await;
        }
        origin.let_through(data.len());
        read(all).await.unwrap()
    };
    let (late, rest) = tokio::join!(late, go_on);
    got.extend(rest);
    assert!(got == data && late == data[20 * MIB..21 * MIB]);
    assert_eq!(origin.requests().len(), 2);
    assert!(origin.sent() < data.len() as u64 * 3 / 2, "{}", origin.sent());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_ranges_are_not_honoured_what_passes_by_is_kept() {
    let data = bytes(24 * MIB);
    let origin = Origin::start(Behaviour { ranges: false, ..Behaviour::good(data.clone()) }).await;
    let node = Node::start("a", &[]).await;
    let request = blob(origin.address, &data);
    for start in [10, 9, 1] {
        let (start, end) = (start * MIB, (start + 1) * MIB);
        assert!(get(&node, &request, start, end).await == data[start..end]);
        rests(&node).await;
    }
    assert_eq!(origin.requests().len(), 1);
}
