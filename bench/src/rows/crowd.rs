//! Many clients of one object that comes slowly, and one that wants something out of its middle.

use super::Round;
use crate::client::{Load, get};
use crate::goals;
use crate::report::{Report, Who};
use crate::servers::caching;
use crate::stage::Stage;
use crate::way::Way;
use anyhow::Result;
use darter_e2e::content::Content;
use darter_e2e::origin::Origin;
use std::time::Duration;

const CLIENTS: usize = 8;
/// Of the object, which takes five seconds.
const BYTES: u64 = 100_000_000;
const BYTES_PER_SECOND: u64 = 20_000_000;
/// What is wanted out of its middle, and when.
const WANTED: u64 = 1024;
const AFTER: Duration = Duration::from_millis(500);

pub(crate) fn rounds(stage: &Stage) -> Result<Round<'_>> {
    let origin = Origin::start(None)?;
    let folder = stage.folder().join("crowd");
    std::fs::create_dir_all(&folder)?;
    let nginx = caching(&folder, &stage.ca, (origin.address(), origin.address()))?;
    Ok(Box::new(move |report, run| {
        // Not kept: five seconds of a slow object are enough.
        let path = |seed| origin.put_blob(Content::new(5000 + 2 * run + seed, BYTES), Some(BYTES_PER_SECOND));
        play(report, Who::Nginx, (&origin, &path(0)), &nginx.way())?;
        play(report, Who::Darter, (&origin, &path(1)), &stage.darter.to(origin.address()))
    }))
}

fn play(report: &mut Report, who: Who, (origin, path): (&Origin, &str), way: &Way) -> Result<()> {
    let (range, fetched, crowd) = std::thread::scope(|scope| {
        let crowd =
            scope.spawn(|| Load { clients: CLIENTS, requests: CLIENTS, paths: &[path], way }.run(&[]));
        std::thread::sleep(AFTER);
        let middle = BYTES / 2;
        let header = format!("Range: bytes={middle}-{}\r\n", middle + WANTED - 1);
        let range = get(&mut way.connect()?, way, path, &header, &mut vec![0; 64 << 10]);
        let range = range.map(|got| (got.whole, others(origin, path)));
        let crowd = crowd.join().expect("a client does not panic");
        range.and_then(|(range, fetched)| Ok((range, fetched, crowd?)))
    })?;
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    report.add(goals::CROWD_FIRST, who, millis(crowd.first.last().copied().unwrap_or_default()));
    report.add(goals::CROWD_COPIES, who, origin.sent(path) as f64 / BYTES as f64);
    report.add(goals::RANGE, who, millis(range));
    if who == Who::Darter {
        // nginx asks for nothing more: whoever wants the middle waits until it has come.
        report.add(goals::RANGE_FETCHED, who, fetched as f64 / 1024.0);
    }
    Ok(())
}

/// Bytes that the origin has sent for requests that did not begin at the start, as the one that brings the whole does.
fn others(origin: &Origin, path: &str) -> u64 {
    origin.asked(path).iter().filter(|asked| asked.from > 0).map(|asked| asked.sent).sum()
}
