//! [`Origin`]: an HTTP/1.1 server of the tests that can be slow or odd, and remembers what it was asked and what it sent.

use crate::content::{Content, Hash};
use crate::http::{Chunked, Exactly, read_headers, read_line};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much is written at once; the rate is kept from one such block to the next.
const BLOCK: usize = 16 << 10;

/// What the origin answers for one path.
#[derive(Clone)]
pub enum Page {
    /// Content, in whole or in part.
    Content {
        /// The bytes.
        content: Content,
        /// Bytes per second and connection; `None` is as fast as it goes.
        rate: Option<u64>,
        /// Whether Range is honoured.
        ranges: bool,
    },
    /// The same with ranges, known by the date of its last change alone.
    Dated {
        /// The bytes.
        content: Content,
        /// Bytes per second and connection.
        rate: Option<u64>,
    },
    /// The same with ranges, for whoever sends this Authorization; 401 for all others.
    Private {
        /// The bytes.
        content: Content,
        /// The whole header.
        authorization: String,
    },
    /// Always the same.
    Fixed {
        /// 404, 307 ...
        status: u16,
        /// Headers other than Content-Length.
        headers: Vec<(String, String)>,
        /// The body.
        body: String,
    },
    /// Says to a HEAD that it is there, and not to a GET.
    Claim {
        /// So many bytes, it says.
        length: u64,
        /// What a GET is answered; `None`: the same, and it hangs up before the first of them.
        then: Option<u16>,
    },
    /// Takes a body of any size, and answers 201 with its digest.
    Sink,
}

impl Page {
    /// Content that is sent as fast as it goes, ranges honoured.
    pub fn content(content: Content) -> Self {
        Self::Content { content, rate: None, ranges: true }
    }
}

/// One request, as far as it got.
#[derive(Debug, Clone)]
pub struct Asked {
    /// GET, PUT ...
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bytes of content that were sent: from here ...
    pub from: u64,
    /// ... so many so far.
    pub sent: u64,
    /// When the first of them was about to be sent.
    pub first_byte: Option<Instant>,
}

impl Asked {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }
}

/// A running origin; it stops taking connections when it is dropped.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pages: HashMap<String, Page>,
    asked: Vec<Asked>,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes one request's entry.
    fn note(&self, entry: usize, change: impl FnOnce(&mut Asked)) {
        change(&mut self.lock().asked[entry]);
        self.changed.notify_all();
    }
}

impl Origin {
    /// Serves on loopback.
    pub fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Result<Self> {
        Self::start_on(TcpListener::bind("127.0.0.1:0")?, tls)
    }

    /// Serves on a listener, which may be another host's.
    pub fn start_on(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>) -> Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let for_thread = shared.clone();
        std::thread::spawn(move || accept(&listener, &for_thread, tls.as_ref()));
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What to answer for a path (without its query).
    pub fn put(&self, path: &str, page: Page) {
        self.shared.lock().pages.insert(path.to_owned(), page);
    }

    /// Offers content as a registry's blob; the path.
    pub fn put_blob(&self, content: Content, rate: Option<u64>) -> String {
        let path = format!("/v2/test/blobs/{}", content.digest());
        self.put(&path, Page::Content { content, rate, ranges: true });
        path
    }

    /// All requests for a path so far.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        self.shared
            .lock()
            .asked
            .iter()
            .filter(|asked| asked.path.split('?').next() == Some(path))
            .cloned()
            .collect()
    }

    /// Bytes of content that were sent for a path so far.
    pub fn sent(&self, path: &str) -> u64 {
        self.asked(path).iter().map(|asked| asked.sent).sum()
    }

    /// Waits until so many bytes were sent for a path.
    pub fn wait_sent(&self, path: &str, bytes: u64, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            let sent: u64 =
                state.asked.iter().filter(|asked| asked.path == path).map(|asked| asked.sent).sum();
            if sent >= bytes {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            anyhow::ensure!(!left.is_zero(), "the origin sent {sent} of {bytes} bytes of {path}");
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        // Wakes the thread that accepts. On another host's address nobody is reached: that thread ends with the process.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(100));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, tls: Option<&Arc<rustls::ServerConfig>>) {
    for stream in listener.incoming() {
        if shared.lock().stopped {
            return;
        }
        let Ok(stream) = stream else { continue };
        let (shared, tls) = (shared.clone(), tls.cloned());
        // A client that goes away ends its connection's thread: what was sent is in the log.
        std::thread::spawn(move || drop(connection(stream, &shared, tls)));
    }
}

fn connection(stream: TcpStream, shared: &Shared, tls: Option<Arc<rustls::ServerConfig>>) -> Result<()> {
    stream.set_nodelay(true)?;
    match tls {
        None => serve(BufReader::new(Duplex { read: stream.try_clone()?, write: stream }), shared),
        Some(config) => {
            let session = rustls::ServerConnection::new(config)?;
            serve(BufReader::new(rustls::StreamOwned::new(session, stream)), shared)
        }
    }
}

/// A socket as one thing that is read and written.
struct Duplex {
    read: TcpStream,
    write: TcpStream,
}

impl Read for Duplex {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.read.read(out)
    }
}

impl Write for Duplex {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.write.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.write.flush()
    }
}

fn serve<S: Read + Write>(mut stream: BufReader<S>, shared: &Shared) -> Result<()> {
    while !stream.fill_buf()?.is_empty() {
        let line = read_line(&mut stream)?;
        let mut words = line.split(' ');
        let method = words.next().context("no method")?.to_owned();
        let path = words.next().context("no target")?.to_owned();
        let headers = read_headers(&mut stream)?;
        headers.iter().for_each(|(name, value)| crate::secret::note_header(name, value));
        let asked =
            Asked { method: method.clone(), path: path.clone(), headers, from: 0, sent: 0, first_byte: None };

        let (entry, page) = {
            let mut state = shared.lock();
            state.asked.push(asked.clone());
            let page = state.pages.get(path.split('?').next().unwrap_or_default()).cloned();
            (state.asked.len() - 1, page)
        };
        shared.changed.notify_all();

        let digest = take_body(&mut stream, &asked)?;
        let out = stream.get_mut();
        match page {
            Some(Page::Content { content, rate, ranges }) => {
                let part = Part {
                    content,
                    rate,
                    dated: false,
                    range: asked.header("range").filter(|_| ranges).and_then(parse_range),
                };
                send_content(out, &method, &part, |change| shared.note(entry, change))?;
            }
            Some(Page::Dated { content, rate }) => {
                let range = asked.header("range").and_then(parse_range);
                let part = Part { content, rate, dated: true, range };
                send_content(out, &method, &part, |change| shared.note(entry, change))?;
            }
            Some(Page::Private { content, authorization }) => {
                if asked.header("authorization") == Some(&authorization) {
                    let range = asked.header("range").and_then(parse_range);
                    let part = Part { content, rate: None, dated: false, range };
                    send_content(out, &method, &part, |change| shared.note(entry, change))?;
                } else {
                    send_fixed(out, &method, 401, &[], "whose are you?\n")?;
                }
            }
            Some(Page::Fixed { status, headers, body }) => send_fixed(out, &method, status, &headers, &body)?,
            Some(Page::Claim { then: Some(status), .. }) if method != "HEAD" => {
                send_fixed(out, &method, status, &[], "all of a sudden\n")?
            }
            Some(Page::Claim { length, .. }) => {
                write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
                out.flush()?;
                anyhow::ensure!(method == "HEAD", "what was claimed is not there");
            }
            Some(Page::Sink) => send_fixed(out, &method, 201, &[("X-Digest".into(), digest)], "")?,
            None => send_fixed(out, &method, 404, &[], "no such page at the origin\n")?,
        }
        out.flush()?;
    }
    Ok(())
}

/// Reads a request's body; its digest.
fn take_body(stream: &mut impl BufRead, asked: &Asked) -> Result<String> {
    let mut hash = Hash::new();
    if asked.header("transfer-encoding").is_some() {
        std::io::copy(&mut Chunked::new(stream), &mut hash)?;
    } else if let Some(length) = asked.header("content-length") {
        std::io::copy(&mut Exactly { stream, left: length.parse()? }, &mut hash)?;
    }
    Ok(hash.digest())
}

/// `bytes=A-` or `bytes=A-B`; anything else is not honoured.
fn parse_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (start, end) = value.strip_prefix("bytes=")?.split_once('-')?;
    let end = if end.is_empty() { None } else { Some(end.parse().ok()?) };
    Some((start.parse().ok()?, end))
}

struct Part {
    content: Content,
    rate: Option<u64>,
    dated: bool,
    range: Option<(u64, Option<u64>)>,
}

fn send_content(
    out: &mut impl Write,
    method: &str,
    part: &Part,
    note: impl Fn(Box<dyn FnOnce(&mut Asked)>),
) -> Result<()> {
    let whole = part.content.length;
    let validator = match part.dated {
        true => "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT".to_owned(),
        false => format!("ETag: \"{}\"", part.content.validator()),
    };
    let common = format!("{validator}\r\nContent-Type: application/octet-stream\r\n");
    let (start, end) = match part.range {
        Some((start, end)) => (start, end.map_or(whole, |end| (end + 1).min(whole))),
        None => (0, whole),
    };
    if start >= end && part.range.is_some() {
        return send_fixed(out, method, 416, &[("Content-Range".into(), format!("bytes */{whole}"))], "");
    }
    let status = match part.range {
        Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{whole}", end - 1),
        None => "200 OK\r\nAccept-Ranges: bytes".to_owned(),
    };
    write!(out, "HTTP/1.1 {status}\r\n{common}Content-Length: {}\r\n\r\n", end - start)?;
    out.flush()?;
    if method == "HEAD" {
        return Ok(());
    }

    let mut reader = part.content.reader(start).take(end - start);
    let mut block = vec![0; BLOCK];
    let (began, mut sent) = (Instant::now(), 0);
    loop {
        let count = reader.read(&mut block)?;
        if count == 0 {
            return Ok(());
        }
        if sent == 0 {
            note(Box::new(move |asked| (asked.from, asked.first_byte) = (start, Some(Instant::now()))));
        }
        out.write_all(&block[..count])?;
        out.flush()?;
        sent += count as u64;
        note(Box::new(move |asked| asked.sent = sent));
        if let Some(rate) = part.rate {
            let due = began + Duration::from_secs_f64(sent as f64 / rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

fn send_fixed(
    out: &mut impl Write,
    method: &str,
    status: u16,
    headers: &[(String, String)],
    body: &str,
) -> Result<()> {
    let mut head = format!("HTTP/1.1 {status} Because\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    out.write_all(head.as_bytes())?;
    if method != "HEAD" {
        out.write_all(body.as_bytes())?;
    }
    Ok(())
}
