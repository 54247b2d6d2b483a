//! An origin that counts what it is asked for, and behaves as badly as it is told to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Bytes that are sent at once, and that one permit of the gate is worth.
pub(crate) const CHUNK: usize = 64 << 10;

/// How an origin behaves.
pub(crate) struct Behaviour {
    pub(crate) content: Vec<u8>,
    pub(crate) ranges: bool,
    pub(crate) length: bool,
    /// The Authorization that it asks for.
    pub(crate) authorization: Option<&'static str>,
    /// So many answers break off in the middle of what they promised.
    pub(crate) cuts: AtomicUsize,
    /// So many chunks are let through; without a gate, all.
    pub(crate) gate: Option<Semaphore>,
    /// Where it sends everybody.
    pub(crate) redirect: Option<String>,
    /// Sends an error's status to everybody.
    pub(crate) status: Option<u16>,
    /// Whose answers it calls `private`: who shows this Authorization.
    pub(crate) private_to: Option<&'static str>,
    /// Says of no part where it belongs.
    pub(crate) misplaced: bool,
    /// Takes requests and answers none.
    pub(crate) silent: bool,
    /// What the content becomes after the first answer, as long as it was before.
    pub(crate) later: Option<Vec<u8>>,
}

impl Behaviour {
    pub(crate) fn good(content: Vec<u8>) -> Self {
        Self {
            content,
            ranges: true,
            length: true,
            authorization: None,
            cuts: AtomicUsize::new(0),
            gate: None,
            redirect: None,
            status: None,
            private_to: None,
            misplaced: false,
            silent: false,
            later: None,
        }
    }
}

/// A running origin.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

struct Shared {
    behaviour: Behaviour,
    sent: AtomicU64,
    answered: AtomicUsize,
    /// Answers that are being sent, and the most at once so far.
    sending: AtomicUsize,
    most: AtomicUsize,
    requests: Mutex<Vec<Request>>,
    /// Whoever shows this is refused.
    revoked: Mutex<Option<&'static str>>,
}

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

impl Origin {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behaviour,
            sent: AtomicU64::new(0),
            answered: AtomicUsize::new(0),
            sending: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            requests: Mutex::default(),
            revoked: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let server = JoinSet::from_iter([async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let shared = Arc::clone(&serving);
                connections.spawn(async move { shared.serve(stream).await });
            }
        }]);
        Self { address, shared, _server: server }
    }

    /// Bytes of bodies that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Answers that are being sent.
    pub(crate) fn sending(&self) -> usize {
        self.shared.sending.load(Ordering::SeqCst)
    }

    /// Answers that were sent at the same time, at most.
    pub(crate) fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Refuses this Authorization from now on.
    pub(crate) fn revoke(&self, authorization: &'static str) {
        *self.shared.revoked.lock().unwrap() = Some(authorization);
    }

    /// Lets so many chunks through the gate.
    pub(crate) fn let_through(&self, chunks: usize) {
        self.shared.behaviour.gate.as_ref().unwrap().add_permits(chunks);
    }
}

impl Shared {
    async fn serve(&self, stream: TcpStream) -> Option<()> {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        loop {
            let mut request = Request::default();
            let mut line = String::new();
            loop {
                line.clear();
                if read.read_line(&mut line).await.ok()? == 0 {
                    return None;
                }
                if line == "\r\n" {
                    break;
                }
                let (name, value) = line.trim_end().split_once(": ").unwrap_or_default();
                match name.to_ascii_lowercase().as_str() {
                    "range" => request.range = Some(value.to_owned()),
                    "authorization" => request.authorization = Some(value.to_owned()),
                    _ => {}
                }
            }
            self.requests.lock().unwrap().push(request.clone());
            let sending = self.sending.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(sending, Ordering::SeqCst);
            let answered = self.answer(&request, &mut write).await;
            self.sending.fetch_sub(1, Ordering::SeqCst);
            answered?;
        }
    }

    async fn answer(&self, request: &Request, write: &mut (impl AsyncWriteExt + Unpin)) -> Option<()> {
        let behaviour = &self.behaviour;
        if behaviour.silent {
            return std::future::pending().await;
        }
        let shown = request.authorization.as_deref();
        let revoked = shown.is_some() && shown == *self.revoked.lock().unwrap();
        let refused = revoked || behaviour.authorization.is_some() && shown != behaviour.authorization;
        let short =
            |status: &str, more: &str| format!("HTTP/1.1 {status}\r\n{more}content-length: 4\r\n\r\nno!\n");
        if let Some(location) = &behaviour.redirect {
            let head = short("307 Temporary Redirect", &format!("location: {location}\r\n"));
            return write.write_all(head.as_bytes()).await.ok();
        }
        if let Some(status) = behaviour.status {
            return write.write_all(short(&format!("{status} Status"), "").as_bytes()).await.ok();
        }
        if refused {
            let head = short("401 Unauthorized", "www-authenticate: Bearer realm=\"x\"\r\n");
            return write.write_all(head.as_bytes()).await.ok();
        }
        let answered = self.answered.fetch_add(1, Ordering::SeqCst);
        let (version, content) = match &behaviour.later {
            Some(later) if answered > 0 => ("v2", later),
            _ => ("v1", &behaviour.content),
        };
        let total = content.len();
        let range = request.range.as_deref().filter(|_| behaviour.ranges).map(|range| parse(range, total));
        let (start, end) = range.unwrap_or((0, total));
        let is_private =
            behaviour.private_to.is_some() && request.authorization.as_deref() == behaviour.private_to;
        let kept = if is_private { "cache-control: private\r\n" } else { "" };
        let common =
            format!("content-type: application/octet-stream\r\netag: \"{version}\"\r\ndate: now\r\n{kept}");
        let head = match (range, behaviour.length) {
            (Some(_), _) if behaviour.misplaced => {
                format!("HTTP/1.1 206 Partial Content\r\n{common}content-length: {}\r\n\r\n", end - start)
            }
            (Some(_), _) => format!(
                "HTTP/1.1 206 Partial Content\r\n{common}content-range: bytes {start}-{}/{total}\r\ncontent-length: {}\r\n\r\n",
                end - 1,
                end - start
            ),
            (None, true) => format!("HTTP/1.1 200 OK\r\n{common}content-length: {total}\r\n\r\n"),
            (None, false) => format!("HTTP/1.1 200 OK\r\n{common}connection: close\r\n\r\n"),
        };
        write.write_all(head.as_bytes()).await.ok()?;
        let cut = behaviour
            .cuts
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |cuts| cuts.checked_sub(1))
            .is_ok();
        let stop = if cut { start + (end - start) / 2 } else { end };
        for chunk in content[start..stop].chunks(CHUNK) {
            if let Some(gate) = &behaviour.gate {
                gate.acquire().await.unwrap().forget();
            }
            write.write_all(chunk).await.ok()?;
            self.sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
        (!cut && behaviour.length).then_some(())
    }
}

fn parse(range: &str, total: usize) -> (usize, usize) {
    let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let end = end.parse().map_or(total, |last: u64| total.min(last.saturating_add(1) as usize));
    (start.parse().unwrap(), end)
}
