//! Every way in which an origin lies, breaks off or changes its mind: whoever asked gets the right bytes, or an end that is none,
//! or the origin's own word; and what was a lie is not kept.
//!
//! Each row is played with content that is named by its digest, and with the same content named by its URL. Without a digest
//! nobody can tell another file of the same length from the right one, so that such a row has two expectations.

use super::node::{MIB, Node, blob, bytes};
use darter_p2p::{OpenError, OpenRequest, Opened, TaskId};
use http::{HeaderValue, header};
use http_body_util::BodyExt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const LENGTH: usize = 9 * MIB + 12_345;

/// How long an origin may be silent here.
const IDLE: Duration = Duration::from_millis(300);

/// A request, as the liar sees it.
struct Asked {
    /// How many came before it for the same path.
    nth: usize,
    path: String,
    /// The first byte and the one after the last that are asked for.
    range: Option<(usize, usize)>,
    /// Where the liar can be reached under another name.
    elsewhere: SocketAddr,
}

/// What the liar sends.
struct Reply {
    head: String,
    body: Vec<u8>,
    then: Then,
}

enum Then {
    /// The connection is kept.
    Keep,
    Close,
    /// Nothing more comes.
    Silence,
}

type Lie = fn(&Asked, &[u8]) -> Reply;

/// What comes of it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum End {
    Right,
    /// An error, before or after the first byte.
    Error,
    /// The origin's own answer is passed on, and nothing is kept.
    Relayed,
    /// The bytes are others, and nobody could know.
    Other,
}
use End::{Error, Other, Relayed, Right};

/// What it does; what comes of it by digest, and by URL.
const LIES: &[(&str, Lie, End, End)] = &[
    ("is honest", honest, Right, Right),
    ("ignores ranges", |asked, data| honest(&whole(asked), data), Right, Right),
    ("breaks off once", |asked, data| cut(honest(asked, data), asked.nth < 1), Right, Right),
    (
        "breaks off twice, and ignores ranges",
        |asked, data| cut(honest(&whole(asked), data), asked.nth < 2),
        Right,
        Right,
    ),
    (
        "breaks off always, and ignores ranges",
        |asked, data| cut(honest(&whole(asked), data), true),
        Error,
        Error,
    ),
    (
        "falls silent in the middle once",
        |asked, data| silent(honest(asked, data), asked.nth < 1),
        Right,
        Right,
    ),
    ("answers nothing at first", |asked, data| mute(honest(asked, data), asked.nth < 1), Error, Error),
    ("sends wrong bytes of the right length", |asked, data| honest(asked, &flipped(data)), Error, Other),
    (
        "sends wrong bytes after a cut",
        |asked, data| {
            if asked.nth == 0 { cut(honest(asked, data), true) } else { honest(asked, &flipped(data)) }
        },
        Error,
        Other,
    ),
    (
        "sends a page for everything",
        |_, _| ok("etag: \"p\"\r\n", b"<html>please log in</html>"),
        Error,
        Other,
    ),
    ("says that it is shorter than it is", |_, data| says_length(data, LENGTH - 5), Error, Other),
    ("says that it is longer than it is", |_, data| says_length(data, LENGTH + 5), Error, Error),
    (
        "says two lengths",
        |_, data| {
            raw(
                &format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\ncontent-length: {LENGTH}\r\n\r\n",
                    LENGTH - 1
                ),
                data,
                Then::Close,
            )
        },
        Error,
        Error,
    ),
    (
        "says a length that no number is",
        |_, data| raw("HTTP/1.1 200 OK\r\ncontent-length: -7\r\n\r\n", data, Then::Close),
        Error,
        Error,
    ),
    (
        "says no length",
        |_, data| raw("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", data, Then::Close),
        Relayed,
        Relayed,
    ),
    (
        "sends in chunks",
        |_, data| raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", &chunked(data), Then::Keep),
        Relayed,
        Relayed,
    ),
    ("codes what it sends", |_, data| ok("content-encoding: gzip\r\n", data), Relayed, Relayed),
    (
        "sends a part that nobody asked for",
        |_, data| raw(&partial(0, 100, LENGTH, 100), &data[..100], Then::Keep),
        Relayed,
        Relayed,
    ),
    (
        "resumes somewhere else",
        |asked, data| {
            after_cut(asked, data, |start, data| {
                raw(&partial(start + 1, LENGTH, LENGTH, LENGTH - start - 1), &data[start + 1..], Then::Keep)
            })
        },
        Error,
        Error,
    ),
    (
        "resumes with a part that it does not name",
        |asked, data| {
            after_cut(asked, data, |start, data| {
                raw(
                    &format!("HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\n\r\n", LENGTH - start),
                    &data[start..],
                    Then::Keep,
                )
            })
        },
        Error,
        Error,
    ),
    (
        "resumes with another total",
        |asked, data| {
            after_cut(asked, data, |start, data| {
                raw(&partial(start, LENGTH, LENGTH + 1, LENGTH - start), &data[start..], Then::Keep)
            })
        },
        Error,
        Error,
    ),
    (
        "resumes with fewer bytes than it names",
        |asked, data| {
            after_cut(asked, data, |start, data| {
                raw(&partial(start, LENGTH, LENGTH, LENGTH - start - 9), &data[start..LENGTH - 9], Then::Keep)
            })
        },
        Error,
        Error,
    ),
    (
        "resumes with a part of several",
        |asked, data| {
            after_cut(asked, data, |start, data| {
                raw(
                    &format!(
                        "HTTP/1.1 206 Partial Content\r\ncontent-type: multipart/byteranges; boundary=x\r\ncontent-length: {}\r\n\r\n",
                        LENGTH - start
                    ),
                    &data[start..],
                    Then::Keep,
                )
            })
        },
        Error,
        Error,
    ),
    (
        "has another version when it resumes",
        |asked, data| {
            after_cut(asked, data, |start, data| {
                let other = flipped(data);
                let head = partial(start, LENGTH, LENGTH, LENGTH - start).replace("\"1\"", "\"2\"");
                raw(&head, &other[start..], Then::Keep)
            })
        },
        Error,
        Error,
    ),
    (
        "has another version, whole, when it resumes",
        |asked, data| after_cut(asked, data, |_, data| ok("etag: \"2\"\r\n", &flipped(data))),
        Error,
        Error,
    ),
    (
        "has a longer version when it resumes",
        |asked, data| after_cut(asked, data, |_, data| ok("etag: \"2\"\r\n", &[data, b"and more"].concat())),
        Error,
        Error,
    ),
    (
        "says when it resumes that there is nothing",
        |asked, data| {
            after_cut(asked, data, |_, _| {
                raw(
                    "HTTP/1.1 416 No\r\ncontent-range: bytes */5\r\ncontent-length: 0\r\n\r\n",
                    b"",
                    Then::Keep,
                )
            })
        },
        Error,
        Error,
    ),
    (
        "is overloaded when it resumes, twice",
        |asked, data| {
            if (1..3).contains(&asked.nth) {
                status(503, "")
            } else {
                cut(honest(asked, data), asked.nth == 0)
            }
        },
        Right,
        Right,
    ),
    (
        "has had enough when it resumes, once",
        |asked, data| {
            if asked.nth == 1 {
                status(429, "retry-after: 0\r\n")
            } else {
                cut(honest(asked, data), asked.nth == 0)
            }
        },
        Right,
        Right,
    ),
    (
        "is overloaded when it resumes, for ever",
        |asked, data| after_cut(asked, data, |_, _| status(500, "")),
        Error,
        Error,
    ),
    (
        "knows it no more when it resumes",
        |asked, data| after_cut(asked, data, |_, _| status(404, "")),
        Error,
        Error,
    ),
    ("is overloaded", |_, _| status(503, "retry-after: 7\r\n"), Relayed, Relayed),
    ("has had enough", |_, _| status(429, ""), Relayed, Relayed),
    ("knows nobody", |_, _| status(401, "www-authenticate: Bearer realm=\"x\"\r\n"), Relayed, Relayed),
    (
        "sends everybody elsewhere, each time to another place",
        |asked, data| match asked.path.strip_prefix("/signed/") {
            Some(_) => cut(honest(asked, data), asked.path.ends_with("/0")),
            None => redirect(asked, &format!("/signed/{}", asked.nth)),
        },
        Right,
        Right,
    ),
    (
        "signs for one request only",
        |asked, data| match asked.path.as_str() {
            "/signed/once" if asked.nth == 1 => status(403, ""),
            "/signed/once" => cut(honest(asked, data), asked.nth == 0),
            _ => redirect(asked, "/signed/once"),
        },
        Right,
        Right,
    ),
    (
        "signs for one request only, on the host that was asked",
        |asked, data| match asked.path.as_str() {
            "/signed/here" if asked.nth == 1 => status(403, ""),
            "/signed/here" => cut(honest(asked, data), asked.nth == 0),
            _ => status(307, "location: /signed/here\r\n"),
        },
        Right,
        Right,
    ),
    (
        "signs what is refused",
        |asked, _| match asked.path.as_str() {
            "/signed" => status(403, ""),
            _ => redirect(asked, "/signed"),
        },
        Relayed,
        Relayed,
    ),
    ("sends everybody round in circles", |asked, _| redirect(asked, "/round"), Error, Error),
    ("sends everybody to a file", |_, _| status(307, "location: file:///etc/passwd\r\n"), Error, Error),
    ("sends everybody nowhere", |_, _| status(307, "location: http://\r\n"), Error, Error),
    ("speaks another language", |_, _| raw("SSH-2.0-OpenSSH_9.9\r\n", b"", Then::Close), Error, Error),
    ("hangs up", |_, _| raw("", b"", Then::Close), Error, Error),
    (
        "sends more than it says",
        |asked, data| {
            let honest = honest(asked, data);
            Reply {
                body: [&honest.body[..], b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"].concat(),
                ..honest
            }
        },
        Right,
        Right,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_an_origin_does_nobody_takes_wrong_bytes_for_the_content() {
    let data = Arc::new(bytes(LENGTH));
    let mut wrong = Vec::new();
    for (what, lie, by_digest, by_url) in LIES {
        for (named, expected) in [("digest", by_digest), ("URL", by_url)] {
            let liar = Liar::start(*lie, Arc::clone(&data)).await;
            let node = Node::impatient("a", IDLE).await;
            let mut request = blob(liar.address, &data);
            if named == "URL" {
                request.task = TaskId::of_url(request.url.as_str(), "", "");
                request.digest = None;
            }
            let end = ask(&node, &request, &data).await;
            if end != *expected {
                wrong.push(format!("an origin that {what}, by {named}: {end:?}, not {expected:?}"));
            }
            // It has become honest: nobody gets what it lied about. What is left of the lie may cost one more try.
            liar.lies.store(false, Ordering::SeqCst);
            // In the same words it would go past the engine for some seconds, where the lie could not be shared.
            request.headers.insert(header::USER_AGENT, HeaderValue::from_static("another"));
            let mut after = ask(&node, &request, &data).await;
            if after == Error {
                after = ask(&node, &request, &data).await;
            }
            let kept = if end == Other { Other } else { Right };
            if after != kept {
                wrong.push(format!("an origin that {what}, by {named}, and then is honest: {after:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn ask(node: &Node, request: &OpenRequest, data: &[u8]) -> End {
    match node.engine.open(request.clone()).await {
        Ok(Opened::Content(content)) => match content.body.collect().await {
            Ok(body) => {
                if body.to_bytes() == data {
                    Right
                } else {
                    Other
                }
            }
            Err(_) => Error,
        },
        Ok(Opened::Relay(_)) | Err(OpenError::NotShareable) => Relayed,
        Err(_) => Error,
    }
}

// === What it sends ===

fn whole(asked: &Asked) -> Asked {
    Asked { nth: asked.nth, path: asked.path.clone(), range: None, elsewhere: asked.elsewhere }
}

fn honest(asked: &Asked, data: &[u8]) -> Reply {
    match asked.range {
        Some((start, end)) => {
            raw(&partial(start, end, data.len(), end - start), &data[start..end], Then::Keep)
        }
        None => ok("etag: \"1\"\r\n", data),
    }
}

fn raw(head: &str, body: &[u8], then: Then) -> Reply {
    Reply { head: head.to_owned(), body: body.to_vec(), then }
}

fn ok(headers: &str, body: &[u8]) -> Reply {
    raw(&format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.len()), body, Then::Keep)
}

fn status(status: u16, headers: &str) -> Reply {
    raw(&format!("HTTP/1.1 {status} Status\r\n{headers}content-length: 4\r\n\r\n"), b"no!\n", Then::Keep)
}

fn redirect(asked: &Asked, path: &str) -> Reply {
    status(307, &format!("location: http://{}{path}\r\n", asked.elsewhere))
}

fn partial(start: usize, end: usize, total: usize, length: usize) -> String {
    format!(
        "HTTP/1.1 206 Partial Content\r\netag: \"1\"\r\ncontent-range: bytes {start}-{}/{total}\r\n\
         content-length: {length}\r\n\r\n",
        end - 1
    )
}

fn says_length(data: &[u8], length: usize) -> Reply {
    raw(&format!("HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: {length}\r\n\r\n"), data, Then::Close)
}

/// Half of it, and the end.
fn cut(reply: Reply, cuts: bool) -> Reply {
    if !cuts {
        return reply;
    }
    let half = reply.body.len() / 2;
    Reply { body: reply.body[..half].to_vec(), then: Then::Close, ..reply }
}

fn silent(reply: Reply, silent: bool) -> Reply {
    if silent { Reply { then: Then::Silence, ..cut(reply, true) } } else { reply }
}

fn mute(reply: Reply, mute: bool) -> Reply {
    if mute { raw("", b"", Then::Silence) } else { reply }
}

/// The first answer breaks off in the middle, and the others are these, from where that was.
fn after_cut(asked: &Asked, data: &[u8], then: impl Fn(usize, &[u8]) -> Reply) -> Reply {
    match asked.range.filter(|_| asked.nth > 0) {
        Some((start, _)) => then(start, data),
        None => cut(honest(asked, data), asked.nth == 0),
    }
}

fn flipped(data: &[u8]) -> Vec<u8> {
    data.iter().map(|byte| !byte).collect()
}

fn chunked(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n0\r\n\r\n"].concat()
}

// === The server ===

struct Liar {
    address: SocketAddr,
    lies: Arc<AtomicBool>,
    _server: JoinSet<()>,
}

struct Shared {
    lie: Lie,
    data: Arc<Vec<u8>>,
    lies: Arc<AtomicBool>,
    port: u16,
    asked: Mutex<std::collections::HashMap<String, usize>>,
    requests: AtomicUsize,
}

impl Liar {
    async fn start(lie: Lie, data: Arc<Vec<u8>>) -> Self {
        // On every address of loopback, so that it can send clients to another host.
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let lies = Arc::new(AtomicBool::new(true));
        let shared = Arc::new(Shared {
            lie,
            data,
            lies: Arc::clone(&lies),
            port,
            asked: Mutex::default(),
            requests: AtomicUsize::new(0),
        });
        let server = JoinSet::from_iter([async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                connections.spawn(async move { shared.serve(stream).await });
            }
        }]);
        Self { address: ([127, 0, 0, 1], port).into(), lies, _server: server }
    }
}

impl Shared {
    async fn serve(&self, stream: TcpStream) -> Option<()> {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        loop {
            let asked = self.read(&mut read).await?;
            assert!(self.requests.fetch_add(1, Ordering::SeqCst) < 100, "it is asked without end");
            let lie = if self.lies.load(Ordering::SeqCst) { self.lie } else { honest };
            let reply = lie(&asked, &self.data);
            write.write_all(reply.head.as_bytes()).await.ok()?;
            write.write_all(&reply.body).await.ok()?;
            match reply.then {
                Then::Keep => {}
                Then::Close => return None,
                Then::Silence => return std::future::pending().await,
            }
        }
    }

    async fn read(&self, read: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Asked> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if read.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            lines.push(line);
        }
        let path = lines.first()?.split(' ').nth(1)?.to_owned();
        let range = lines.iter().find_map(|line| {
            let (start, end) = line
                .to_ascii_lowercase()
                .strip_prefix("range: bytes=")?
                .trim()
                .split_once('-')
                .map(|(start, end)| (start.to_owned(), end.to_owned()))?;
            let end = end.parse().map_or(LENGTH, |last: usize| LENGTH.min(last.saturating_add(1)));
            Some((start.parse().ok()?, end))
        });
        let nth = {
            let mut asked = self.asked.lock().unwrap();
            let count = asked.entry(path.clone()).or_default();
            *count += 1;
            *count - 1
        };
        Some(Asked { nth, path, range, elsewhere: ([127, 0, 0, 2], self.port).into() })
    }
}
