//! How soon a cold download's first byte is passed on. On its own, so that no other test takes the processors.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use darter_e2e::content::Content;
use darter_e2e::darter::{Daemon, loopback_config};
use darter_e2e::http;
use darter_e2e::origin::Origin;
use std::io::Read;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;

/// What the origin sends: a piece of 1 MiB takes it 210 ms.
const RATE: u64 = 5_000_000;

/// What is promised.
const LIMIT: Duration = Duration::from_millis(100);

/// A busy machine can delay any one of them; a daemon that waits for a whole piece is late every time.
const ATTEMPTS: u64 = 5;

#[test]
fn the_first_byte_of_a_cold_gibibyte_is_passed_on_within_100_ms() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), ""))?;
    let mut delays = Vec::new();
    for seed in 0..ATTEMPTS {
        delays.push(first_byte_delay(&origin, &daemon, Content::new(seed, GIB))?);
        if delays.iter().any(|delay| *delay < LIMIT) {
            return Ok(());
        }
    }
    panic!("too late every time: {delays:?}");
}

/// From when the origin was about to send its first byte, to when the client had it: both clocks are this process's.
fn first_byte_delay(origin: &Origin, daemon: &Daemon, content: Content) -> Result<Duration> {
    let path = origin.put_blob(content, Some(RATE));
    let mut answer = http::get(daemon.proxy, &format!("http://{}{path}", origin.address()), &[])?;
    let mut first = [0];
    answer.read_exact(&mut first)?;
    let arrived = Instant::now();

    assert_eq!((answer.status, answer.header("content-length")), (200, Some(GIB.to_string().as_str())));
    let mut expected = [0];
    content.reader(0).read_exact(&mut expected)?;
    assert_eq!(first, expected);
    let sent = origin.asked(&path).iter().find_map(|asked| asked.first_byte);
    Ok(arrived - sent.context("the origin sent nothing")?)
}
