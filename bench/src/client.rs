//! [`Load`]: clients that read as fast as they can, over kept-alive connections.

use crate::cpu::{Serves, spent};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// So many clients send so many requests between them.
pub(crate) struct Load<'a> {
    pub(crate) clients: u64,
    pub(crate) requests: u64,
    pub(crate) url: &'a str,
}

/// What that gave, and what it cost those who served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) bytes: u64,
    pub(crate) requests: u64,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// From the first request to the first byte of its body.
    pub(crate) first_byte: Duration,
}

impl Measured {
    /// In units of 10^9 bytes.
    pub(crate) fn gigabytes(&self) -> f64 {
        self.bytes as f64 / 1e9
    }
}

impl Load<'_> {
    /// Sends the load to `server`, and looks at what `serving` spend meanwhile.
    pub(crate) fn run(&self, server: SocketAddr, serving: &[&dyn Serves]) -> Result<Measured> {
        let total =
            |servers: &[&dyn Serves]| servers.iter().map(|server| spent(*server)).sum::<Result<Duration>>();
        let before = total(serving)?;
        let start = Instant::now();
        let each = self.requests / self.clients;
        let all: Result<Vec<(u64, Duration)>> = std::thread::scope(|scope| {
            let clients: Vec<_> =
                (0..self.clients).map(|_| scope.spawn(|| client(server, self.url, each))).collect();
            clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
        });
        let (all, wall) = (all?, start.elapsed());
        let cpu = total(serving)? - before;
        Ok(Measured {
            bytes: all.iter().map(|(bytes, _)| bytes).sum(),
            requests: each * self.clients,
            wall,
            cpu,
            first_byte: all[0].1,
        })
    }
}

/// Sends `requests` one after the other; gives the bytes of their bodies, and when the first one began.
fn client(server: SocketAddr, url: &str, requests: u64) -> Result<(u64, Duration)> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    let request = format!("GET {url} HTTP/1.1\r\nHost: bench.example\r\n\r\n");
    let mut buffer = vec![0; 256 << 10];
    let (start, mut first, mut total) = (Instant::now(), Duration::ZERO, 0);
    for number in 0..requests {
        stream.write_all(request.as_bytes())?;
        let (length, mut got) = head(&mut stream, &mut buffer)?;
        while got < length {
            let count = stream.read(&mut buffer)?;
            ensure!(count > 0, "the body ended after {got} of {length} bytes");
            if number == 0 && first.is_zero() {
                first = start.elapsed();
            }
            got += count as u64;
        }
        if number == 0 && first.is_zero() {
            first = start.elapsed();
        }
        total += got;
    }
    Ok((total, first))
}

/// Reads an answer's head; gives its Content-Length, and how much of the body came with it.
fn head(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<(u64, u64)> {
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        ensure!(count > 0, "no answer");
        filled += count;
        let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = std::str::from_utf8(&buffer[..end])?.to_ascii_lowercase();
        ensure!(head.starts_with("http/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        return Ok((length.context("no Content-Length")?.trim().parse()?, (filled - end - 4) as u64));
    }
}
