//! [`Load`]: clients that read as fast as they can, over kept-alive connections.

use crate::cpu::{Serves, Spending};
use crate::way::Way;
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// How much a client reads at once, in bytes.
const BUFFER: usize = 256 << 10;

/// So many clients send so many requests between them, for one path after the other.
pub(crate) struct Load<'a> {
    pub(crate) clients: usize,
    pub(crate) requests: usize,
    pub(crate) paths: &'a [&'a str],
    pub(crate) way: &'a Way,
}

/// What that gave, and what it cost those who served.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) bytes: u64,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// Of every request, sorted: until the first byte of its body, and until the last.
    pub(crate) first: Vec<Duration>,
    pub(crate) whole: Vec<Duration>,
}

/// One request, from when it was sent.
pub(crate) struct Got {
    pub(crate) bytes: u64,
    pub(crate) first: Duration,
    pub(crate) whole: Duration,
}

impl Measured {
    pub(crate) fn requests_per_second(&self) -> f64 {
        self.whole.len() as f64 / self.wall.as_secs_f64()
    }

    /// Microseconds of CPU for each request.
    pub(crate) fn micros_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.whole.len() as f64
    }

    /// 10^6 bytes per second.
    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.wall.as_secs_f64()
    }

    /// Seconds of CPU for 10^9 bytes.
    pub(crate) fn seconds_per_gigabyte(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e9 / self.bytes as f64
    }
}

/// What stands at `share` (0 to 1) of a sorted list.
pub(crate) fn at(sorted: &[Duration], share: f64) -> Duration {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

impl Load<'_> {
    /// Sends the load, and looks at what `serving` spend meanwhile.
    pub(crate) fn run(&self, serving: &[&dyn Serves]) -> Result<Measured> {
        let spending = Spending::of(serving)?;
        let start = Instant::now();
        let all: Result<Vec<Vec<Got>>> = std::thread::scope(|scope| {
            let clients: Vec<_> =
                (0..self.clients).map(|number| scope.spawn(move || self.client(number))).collect();
            clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
        });
        let (all, wall) = (all?, start.elapsed());
        let cpu = spending.so_far()?;
        let sorted = |time: fn(&Got) -> Duration| {
            let mut times: Vec<_> = all.iter().flatten().map(time).collect();
            times.sort_unstable();
            times
        };
        Ok(Measured {
            bytes: all.iter().flatten().map(|got| got.bytes).sum(),
            wall,
            cpu,
            first: sorted(|got| got.first),
            whole: sorted(|got| got.whole),
        })
    }

    /// One client's requests, one after the other.
    fn client(&self, number: usize) -> Result<Vec<Got>> {
        let mut stream = self.way.connect()?;
        let mut buffer = vec![0; BUFFER];
        let each = self.requests / self.clients;
        let mine = (number * each..).take(each);
        mine.map(|index| {
            get(&mut stream, self.way, self.paths[index % self.paths.len()], "", &mut buffer)
                .with_context(|| self.paths[index % self.paths.len()].to_owned())
        })
        .collect()
    }
}

/// One request on a connection, with further header lines, and all of its answer.
pub(crate) fn get(
    stream: &mut (impl Read + Write),
    way: &Way,
    path: &str,
    headers: &str,
    buffer: &mut [u8],
) -> Result<Got> {
    let (target, host) = (way.target(path), way.host());
    let start = Instant::now();
    stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n").as_bytes())?;
    stream.flush()?;
    let (length, mut got) = head(stream, buffer)?;
    let mut first = (got > 0).then(|| start.elapsed());
    while got < length {
        let count = stream.read(buffer)?;
        ensure!(count > 0, "the body ended after {got} of {length} bytes");
        first.get_or_insert_with(|| start.elapsed());
        got += count as u64;
    }
    let whole = start.elapsed();
    Ok(Got { bytes: got, first: first.unwrap_or(whole), whole })
}

/// Reads an answer's head; gives its Content-Length, and how much of the body came with it.
fn head(stream: &mut impl Read, buffer: &mut [u8]) -> Result<(u64, u64)> {
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        ensure!(count > 0, "no answer");
        filled += count;
        let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = std::str::from_utf8(&buffer[..end])?.to_ascii_lowercase();
        ensure!(head.starts_with("http/1.1 20"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        return Ok((length.context("no Content-Length")?.trim().parse()?, (filled - end - 4) as u64));
    }
}
