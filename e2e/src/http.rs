//! A client that speaks HTTP/1.1 by hand, so that a test sees exactly what came, and when.

use crate::content::Content;
use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::ServerName;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// How long one read or write may stall.
const STALL: Duration = Duration::from_secs(60);

/// The longest head line that is read.
const MAX_LINE: u64 = 64 << 10;

/// A connection, with or without TLS.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A request.
pub struct Request<'a> {
    /// GET, PUT ...
    pub method: &'a str,
    /// As it stands in the request line.
    pub target: &'a str,
    /// The Host header.
    pub host: &'a str,
    /// The others.
    pub headers: &'a [(&'a str, &'a str)],
    /// What is sent.
    pub body: Option<Content>,
}

/// An answer whose body is still to be read.
pub struct Answer {
    /// 200, 404 ...
    pub status: u16,
    /// The words behind the status.
    pub reason: String,
    /// In order, names in lower case.
    pub headers: Vec<(String, String)>,
    body: Box<dyn Read + Send>,
}

/// Connects, with sensible limits.
pub fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, STALL).with_context(|| format!("cannot connect to {to}"))?;
    prepare(&stream)?;
    Ok(stream)
}

/// Puts sensible limits on a connection.
pub fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    Ok(())
}

/// GET of an absolute URL (`http://host/path`) through a forward proxy, or straight from `to` in origin-form when `url`
/// is a path.
pub fn get(to: SocketAddr, url: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let host = match url.strip_prefix("http://") {
        Some(rest) => rest.split('/').next().unwrap_or(rest).to_owned(),
        None => to.to_string(),
    };
    send(Box::new(connect(to)?), &Request { method: "GET", target: url, host: &host, headers, body: None })
}

/// Asks a proxy for a tunnel to `authority` (`host:port`).
///
/// The outer error is a broken exchange, the inner one the proxy's refusal.
pub fn tunnel(mut stream: TcpStream, authority: &str) -> Result<Result<TcpStream, Answer>> {
    prepare(&stream)?;
    write!(stream, "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")?;
    // Not a byte further than the head: what follows is the tunnel's.
    let mut head = BufReader::with_capacity(1, stream.try_clone()?);
    let (status, reason, headers) = read_head(&mut head)?;
    if status == 200 {
        return Ok(Ok(stream));
    }
    let body = body_of(status, "CONNECT", &headers, BufReader::new(Box::new(stream) as Box<dyn Stream>))?;
    Ok(Err(Answer { status, reason, headers, body }))
}

/// TLS to `name` over `stream`.
pub fn tls(stream: TcpStream, name: &str, config: Arc<rustls::ClientConfig>) -> Result<Box<dyn Stream>> {
    let name = ServerName::try_from(name.to_owned())?;
    let connection = rustls::ClientConnection::new(config, name)?;
    Ok(Box::new(rustls::StreamOwned::new(connection, stream)))
}

/// Sends a request, and reads the answer's head.
pub fn send(mut stream: Box<dyn Stream>, request: &Request<'_>) -> Result<Answer> {
    write_request(&mut stream, request)?;
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let (status, reason, headers) = read_head(&mut stream)?;
    let body = body_of(status, request.method, &headers, stream)?;
    Ok(Answer { status, reason, headers, body })
}

/// Sends a request, and gives all that comes until the connection closes: head, body and trailers as they stand there.
pub fn exchange(mut stream: Box<dyn Stream>, request: &Request<'_>) -> Result<Vec<u8>> {
    write_request(&mut stream, request)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}

fn write_request(stream: &mut impl Write, request: &Request<'_>) -> Result<()> {
    let mut head = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", request.method, request.target, request.host);
    for (name, value) in request.headers {
        crate::secret::note_header(name, value);
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = request.body {
        head.push_str(&format!("Content-Length: {}\r\n", body.length));
    }
    head.push_str("Connection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    if let Some(body) = request.body {
        std::io::copy(&mut body.reader(0), stream).context("while sending the body")?;
    }
    Ok(stream.flush()?)
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// The rest of the body as text.
    pub fn text(mut self) -> Result<String> {
        let mut text = String::new();
        self.body.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Read for Answer {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.body.read(out)
    }
}

type Head = (u16, String, Vec<(String, String)>);

fn read_head(from: &mut impl BufRead) -> Result<Head> {
    let status_line = read_line(from)?;
    let mut words = status_line.splitn(3, ' ');
    ensure!(words.next() == Some("HTTP/1.1"), "no HTTP/1.1 answer: {status_line:?}");
    let status = words.next().context("no status")?.parse()?;
    let reason = words.next().unwrap_or_default().to_owned();
    let headers = read_headers(from)?;
    if status == 100 {
        return read_head(from);
    }
    Ok((status, reason, headers))
}

/// Header lines up to the empty one; names in lower case.
pub(crate) fn read_headers(from: &mut impl BufRead) -> Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = read_line(from)?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').with_context(|| format!("no header: {line:?}"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// One line without its end.
pub(crate) fn read_line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    from.take(MAX_LINE).read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => bail!("the connection ended within a head, after {line:?}"),
    }
}

/// A message's body, by RFC 9112 section 6.3.
fn body_of(
    status: u16,
    method: &str,
    headers: &[(String, String)],
    stream: BufReader<Box<dyn Stream>>,
) -> Result<Box<dyn Read + Send>> {
    let header = |name| headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str());
    if method == "HEAD" || status == 204 || status == 304 {
        return Ok(Box::new(std::io::empty()));
    }
    if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return Ok(Box::new(Chunked::new(stream)));
    }
    match header("content-length") {
        Some(length) => Ok(Box::new(Exactly { stream, left: length.parse()? })),
        None => Ok(Box::new(stream)),
    }
}

/// A body of a known length: its early end is an error.
pub(crate) struct Exactly<R> {
    pub(crate) stream: R,
    pub(crate) left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        if want == 0 {
            // Not even asked: whoever sends no more may keep the connection open.
            return Ok(0);
        }
        let count = self.stream.read(&mut out[..want])?;
        if count == 0 {
            return Err(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                format!("{} bytes are missing", self.left),
            ));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// A body in chunks.
pub(crate) struct Chunked<R> {
    stream: R,
    left: u64,
    ended: bool,
}

impl<R: BufRead> Chunked<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, left: 0, ended: false }
    }

    fn next_chunk(&mut self) -> Result<()> {
        let line = read_line(&mut self.stream)?;
        self.left = u64::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)?;
        if self.left == 0 {
            // Trailers end as headers do.
            read_headers(&mut self.stream)?;
            self.ended = true;
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let broken =
            |error: anyhow::Error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string());
        if self.left == 0 && !self.ended {
            self.next_chunk().map_err(broken)?;
        }
        if self.ended || out.is_empty() {
            return Ok(0);
        }
        let mut chunk = Exactly { stream: &mut self.stream, left: self.left };
        let count = chunk.read(out)?;
        self.left = chunk.left;
        if self.left == 0 {
            let end = read_line(&mut self.stream).map_err(broken)?;
            if !end.is_empty() {
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a chunk without an end"));
            }
        }
        Ok(count)
    }
}
