//! What a crowd that wants something costs: thousands of requests that wait for an origin, clients that are slow on purpose,
//! and no file descriptor left. Memory is that of the real binary; every figure is printed (`--nocapture`).
#![forbid(unsafe_code)]

use anyhow::{Context, Result, anyhow, ensure};
use darter_e2e::crowd::{MIB, alone};
use darter_e2e::darter::{Daemon, loopback_config};
use darter_e2e::http as client;
use darter_e2e::origin::{Origin, Page};
use darter_e2e::poll;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How many come: as many as are promised where `DARTER_E2E_FULL` is set, or a fifth, which is quick and needs few
/// descriptors.
fn of(promised: usize) -> usize {
    if std::env::var_os("DARTER_E2E_FULL").is_some() { promised } else { promised / 5 }
}

/// What one of them may cost, in bytes, its connection to the origin included: 61 KB were measured.
const REQUEST_LIMIT: u64 = 72 << 10;

/// How long a state may take to come about.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn thousands_of_requests_at_a_slow_origin_cost_little_each() -> Result<()> {
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), ""))?;
    let origin = Patient::start()?;
    let urls: Vec<_> = (0..of(10_000)).map(|number| format!("http://{}/{number}", origin.address)).collect();
    let number = urls.len();
    in_flight("direct", &daemon, &origin, urls, number)
}

#[test]
fn thousands_of_requests_for_a_hundred_files_cost_little_each() -> Result<()> {
    const FILES: usize = 100;
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let config = loopback_config(folder.path(), "  proxies: [{ regx: '/shared/' }]\n");
    let daemon = Daemon::start("daemon", folder.path(), &config)?;
    let origin = Patient::start()?;
    let file = |number: usize| format!("http://{}/shared/{}", origin.address, number % FILES);
    in_flight("through the engine", &daemon, &origin, (0..of(10_000)).map(file).collect(), FILES)
}

#[test]
fn a_daemon_without_a_descriptor_left_says_so_and_goes_on() -> Result<()> {
    /// What the daemon needs for itself is less than half of it.
    const FILES: u32 = 256;
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    origin.put("/page", Page::Fixed { status: 200, headers: Vec::new(), body: "here".to_owned() });
    let config = loopback_config(folder.path(), "");
    let daemon = Daemon::start_with_files("daemon", folder.path(), &config, FILES)?;
    let host = origin.address().to_string();
    let url = format!("http://{host}/page");

    // This one is in; all others take what there is.
    let mut inside = client::connect(daemon.proxy)?;
    inside.write_all(b"GET")?;
    let crowd: Vec<_> = (0..FILES).map(|_| client::connect(daemon.proxy)).collect::<Result<_>>()?;
    daemon.process.wait_line("that it cannot accept", LIMIT, |line| {
        line.contains("cannot accept connections").then_some(())
    })?;
    write!(inside, " {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    inside.read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("open files"), "{answer}");
    assert!(origin.asked("/page").is_empty());

    drop(crowd);
    let answer = client::get(daemon.proxy, &url, &[])?;
    assert_eq!((answer.status, answer.text()?.as_str()), (200, "here"), "{}", daemon.process.log());
    Ok(())
}

/// Clients that never finish their heads, a byte now and then, beside one that asks for something.
#[test]
fn slow_clients_do_not_stop_others() -> Result<()> {
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let daemon = Daemon::start("daemon", folder.path(), &loopback_config(folder.path(), ""))?;
    let origin = Origin::start(None)?;
    origin.put("/page", Page::Fixed { status: 200, headers: Vec::new(), body: "here".to_owned() });
    let host = origin.address().to_string();
    let mut slow: Vec<_> = (0..of(5_000)).map(|_| client::connect(daemon.proxy)).collect::<Result<_>>()?;
    for sent in ["GET http://", host.as_str(), "/page HTTP/1.1\r\n", "Host: "] {
        for stream in &mut slow {
            stream.write_all(sent.as_bytes())?;
        }
        let answer = client::get(daemon.proxy, &format!("http://{host}/page"), &[])?;
        assert_eq!(answer.status, 200, "{}", daemon.process.log());
    }
    assert_eq!(origin.asked("/page").len(), 4, "nobody's half a head is a request");
    Ok(())
}

/// Sends all requests, sees what they cost while the origin is silent and while its answers trickle, and lets them end.
fn in_flight(
    what: &str,
    daemon: &Daemon,
    origin: &Patient,
    urls: Vec<String>,
    at_origin: usize,
) -> Result<()> {
    let (number, process) = (urls.len(), &daemon.process);
    let before = process.resident_memory()?;
    let runtime = runtime()?;
    let begun = Arc::new(AtomicUsize::new(0));
    let mut clients = runtime.block_on(ask_all(daemon.proxy, urls, begun.clone()))?;
    let each = |state: &str| -> Result<u64> {
        let cost = process.resident_memory()?.saturating_sub(before);
        println!(
            "{what}: {number} requests {state} cost {:.1} MiB over {:.1} MiB, {} bytes each",
            cost as f64 / MIB as f64,
            before as f64 / MIB as f64,
            cost / number as u64
        );
        Ok(cost / number as u64)
    };
    let mut until = |what: &str, reached: &dyn Fn() -> bool| {
        let state = || ended_early(&mut clients).map(Err).or_else(|| reached().then_some(Ok(())));
        poll::until(what, LIMIT, state).and_then(|state| state).with_context(|| process.log())
    };
    let arrived = || daemon.metric("darter_proxy_requests_in_flight ").is_ok_and(|it| it == number as f64);
    until("the requests to reach the daemon", &arrived)?;
    until("the requests to reach the origin", &|| origin.asked() >= at_origin)?;
    let waiting = each("that wait for a head")?;
    origin.begin_answers();
    until("the answers to begin", &|| begun.load(Ordering::Relaxed) == number)?;
    let trickling = each("whose bodies trickle")?;
    origin.end_answers();
    let lengths = runtime.block_on(clients.join_all());
    let lengths = lengths.into_iter().collect::<Result<Vec<_>>>().with_context(|| process.log())?;
    assert!(lengths.len() == number && lengths.iter().all(|length| *length == Patient::LENGTH));
    assert!(waiting.max(trickling) < REQUEST_LIMIT, "{what}: {waiting} and {trickling} bytes");
    Ok(())
}

/// What has become of a client whose answer should still be under way.
fn ended_early(clients: &mut JoinSet<Result<usize>>) -> Option<anyhow::Error> {
    Some(match clients.try_join_next()? {
        Ok(Ok(length)) => anyhow!("an answer ended after {length} bytes"),
        Ok(Err(error)) => error,
        Err(panic) => panic.into(),
    })
}

/// Clients and origin have one each.
fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Sends GETs on a few connections of HTTP/2, which leaves the descriptors to the origin's side. Each counts in `begun` when
/// the first bytes of its body have come, and gives the length of all of it.
async fn ask_all(
    proxy: SocketAddr,
    urls: Vec<String>,
    begun: Arc<AtomicUsize>,
) -> Result<JoinSet<Result<usize>>> {
    /// A connection has 256.
    const STREAMS: usize = 250;
    let mut clients = JoinSet::new();
    let mut urls = urls.into_iter();
    loop {
        let some: Vec<String> = urls.by_ref().take(STREAMS).collect();
        if some.is_empty() {
            return Ok(clients);
        }
        let stream = TokioIo::new(TcpStream::connect(proxy).await?);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        let mut answers = Vec::new();
        for url in some {
            let mut sender: SendRequest<Empty<Bytes>> = sender.clone();
            let begun = begun.clone();
            answers.push(async move {
                let mut answer = sender.send_request(http::Request::get(url).body(Empty::new())?).await?;
                ensure!(answer.status() == 200, "{}", answer.status());
                let mut length = 0;
                while let Some(frame) = answer.frame().await {
                    let data = frame?.into_data().unwrap_or_default();
                    if length == 0 && !data.is_empty() {
                        begun.fetch_add(1, Ordering::Relaxed);
                    }
                    length += data.len();
                }
                Ok(length)
            });
        }
        // Whoever has the first request drives the connection, also after that has its answer.
        let mut connection = Some(connection);
        for answer in answers {
            let connection = connection.take();
            clients.spawn(async move {
                match connection {
                    Some(connection) => tokio::join!(answer, connection).0,
                    None => answer.await,
                }
            });
        }
    }
}

/// An origin that answers nobody until it is told to, and then all at once.
struct Patient {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    state: watch::Sender<State>,
    /// Everybody's connection ends with it.
    _runtime: Runtime,
}

/// How far the answers may go.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum State {
    Silent,
    Begun,
    Ended,
}

impl Patient {
    /// Of each answer, in bytes.
    const LENGTH: usize = 64 << 10;

    /// How much of it comes at first.
    const FIRST: usize = 1 << 10;

    /// Who connects while the machine is busy is not to be sent away: trying again takes a second, then two, then four.
    const BACKLOG: u32 = 4096;

    fn start() -> Result<Self> {
        let runtime = runtime()?;
        let listener = {
            let _inside = runtime.enter();
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
            socket.listen(Self::BACKLOG)?
        };
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State::Silent);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        runtime.spawn(async move {
            // The proxy may hang up; the test sees at the other end whether it should have.
            let mut answers = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                answers.spawn(Self::answer(stream, count.clone(), watched.clone()));
            }
        });
        Ok(Self { address, asked, state, _runtime: runtime })
    }

    /// How many have asked.
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn begin_answers(&self) {
        self.state.send_replace(State::Begun);
    }

    fn end_answers(&self) {
        self.state.send_replace(State::Ended);
    }

    /// Serves a connection until the proxy ends it.
    async fn answer(
        mut stream: TcpStream,
        asked: Arc<AtomicUsize>,
        mut state: watch::Receiver<State>,
    ) -> Result<()> {
        let (from, mut to) = stream.split();
        let mut lines = BufReader::with_capacity(1 << 10, from).lines();
        while let Some(line) = lines.next_line().await? {
            // The head of a request ends with an empty line, and GETs have nothing else.
            if !line.is_empty() {
                continue;
            }
            asked.fetch_add(1, Ordering::Relaxed);
            state.wait_for(|state| *state >= State::Begun).await?;
            let head = format!("HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: {}\r\n\r\n", Self::LENGTH);
            to.write_all(&[head.as_bytes(), &[b'x'; Self::FIRST]].concat()).await?;
            state.wait_for(|state| *state >= State::Ended).await?;
            to.write_all(&[b'x'; Self::LENGTH - Self::FIRST]).await?;
        }
        Ok(())
    }
}
