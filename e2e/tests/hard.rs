//! What thousands of connections that do nothing cost: memory is that of the real binary, and every figure is printed
//! (`--nocapture`).
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use darter_e2e::ca::{Ca, client_trusting};
use darter_e2e::crowd::{MIB, alone};
use darter_e2e::darter::{Daemon, loopback_config};
use darter_e2e::http::{self, Stream};
use darter_e2e::http2;
use darter_e2e::origin::{Origin, Page};
use darter_e2e::poll;
use rustls::ClientConfig;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Connections that do nothing.
const IDLE: usize = 5_000;

/// What they may cost together, in bytes, where nothing but a task waits for them: 12 MiB were measured.
const SILENT_LIMIT: u64 = 20 * MIB;

/// The same with a connection to the origin for each: 25 MiB were measured.
const TUNNEL_LIMIT: u64 = 40 * MIB;

/// The same where a connection of HTTP waits for its next request: 20 MiB were measured.
const KEPT_LIMIT: u64 = 30 * MIB;

/// The same with TLS: what is promised. 50 MiB were measured.
const OPENED_UP_LIMIT: u64 = 60 * MIB;

/// As many of HTTP/2 are kept, those that are about to leave among them: those idle longest are told to go before they cost
/// more than is promised. Their clients here do not listen.
const HTTP2_KEPT: usize = 768 + 256;
/// Those that need not leave.
const HTTP2_LEFT: usize = 768;

/// What is asked for once on each connection, in bytes.
const PAGE: usize = 64 << 10;

/// How long a state may take to come about.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn five_thousand_silent_connections_cost_little() -> Result<()> {
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(folder.path())?;
    scene.idle("silent", SILENT_LIMIT, All, |scene| http::connect(scene.daemon.proxy))
}

#[test]
fn five_thousand_kept_connections_cost_little() -> Result<()> {
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(folder.path())?;
    scene.idle("kept alive", KEPT_LIMIT, Resting, |scene| {
        let mut stream = http::connect(scene.daemon.proxy)?;
        let host = scene.plain.address().to_string();
        scene.ask(&mut stream, &format!("http://{host}/page"), &host)?;
        Ok(stream)
    })
}

#[test]
fn five_thousand_opened_up_connections_cost_little() -> Result<()> {
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(folder.path())?;
    let trust = client_trusting(&scene.daemon.ca()?)?;
    scene.idle("opened up", OPENED_UP_LIMIT, Resting, |scene| {
        let mut stream = scene.open_up(&trust)?;
        scene.ask(&mut stream, "/page", &scene.secure.address().to_string())?;
        Ok(stream)
    })
}

#[test]
fn five_thousand_connections_of_http2_cost_little() -> Result<()> {
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(folder.path())?;
    let mut trust = Arc::unwrap_or_clone(client_trusting(&scene.daemon.ca()?)?);
    trust.alpn_protocols = vec![b"h2".to_vec()];
    let trust = Arc::new(trust);
    scene.idle("HTTP/2", OPENED_UP_LIMIT, Within(HTTP2_LEFT, HTTP2_KEPT), |scene| {
        let mut stream = scene.open_up(&trust)?;
        let length = http2::get(&mut stream, &scene.secure.address().to_string(), "/page")?;
        ensure!(length == PAGE, "{length} bytes came");
        Ok(stream)
    })
}

#[test]
fn five_thousand_tunnels_cost_little() -> Result<()> {
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(folder.path())?;
    scene.idle("tunnels", TUNNEL_LIMIT, All, |scene| {
        let address = scene.plain.address().to_string();
        let mut stream = scene.tunnel(&address)?;
        scene.ask(&mut stream, "/page", &address)?;
        Ok(stream)
    })
}

/// How many of the connections are there once they do nothing.
#[derive(Clone, Copy)]
enum There {
    /// All of them.
    All,
    /// All of them, and each waits for a further request.
    Resting,
    /// Between so many and so many.
    Within(usize, usize),
}

use There::{All, Resting, Within};

/// A daemon in front of a plain origin and one with TLS.
struct Scene {
    daemon: Daemon,
    plain: Origin,
    secure: Origin,
}

impl Scene {
    fn start(folder: &Path) -> Result<Self> {
        let ca = Ca::new("origin test authority")?;
        let file = folder.join("origin.crt");
        ca.write(&file)?;
        let plain = Origin::start(None)?;
        let secure = Origin::start(Some(ca.issue(&["127.0.0.1"])?.server()?))?;
        let page = Page::Fixed { status: 200, headers: Vec::new(), body: "x".repeat(PAGE) };
        plain.put("/page", page.clone());
        secure.put("/page", page);
        let proxy = format!(
            "  hijackHTTPS: {{ hosts: [{{ regx: '^127\\.0\\.0\\.1:{}$', certs: ['{}'] }}] }}\n",
            secure.address().port(),
            file.display()
        );
        let daemon = Daemon::start("daemon", folder, &loopback_config(folder, &proxy))?;
        Ok(Self { daemon, plain, secure })
    }

    /// A tunnel to `address`.
    fn tunnel(&self, address: &str) -> Result<TcpStream> {
        let stream = http::tunnel(http::connect(self.daemon.proxy)?, address)?;
        stream.map_err(|answer| anyhow::anyhow!("{} {}", answer.status, answer.reason))
    }

    /// TLS to the origin, which the daemon opens up.
    fn open_up(&self, trust: &Arc<ClientConfig>) -> Result<Box<dyn Stream>> {
        http::tls(self.tunnel(&self.secure.address().to_string())?, "127.0.0.1", trust.clone())
    }

    /// Asks for a page and reads all of the answer; the connection stays.
    fn ask(&self, stream: &mut (impl Read + Write), target: &str, host: &str) -> Result<()> {
        write!(stream, "GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
        stream.flush()?;
        let mut got = Vec::new();
        let mut block = vec![0; 16 << 10];
        loop {
            let count = stream.read(&mut block)?;
            ensure!(count > 0, "the connection ended after {}", String::from_utf8_lossy(&got));
            got.extend_from_slice(&block[..count]);
            let Some(head) = got.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            ensure!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
            if got.len() >= head + 4 + PAGE {
                return Ok(());
            }
        }
    }

    /// Opens connections and lets them be: what they cost.
    fn idle<S>(&self, what: &str, limit: u64, there: There, open: impl Fn(&Self) -> Result<S>) -> Result<()> {
        let process = &self.daemon.process;
        let until = |metric: &str, counts: &dyn Fn(usize) -> bool| {
            poll::until(&format!("{metric}of {what} to count"), LIMIT, || {
                counts(self.daemon.metric(metric).ok()? as usize).then_some(())
            })
        };
        let connections = |counts: &dyn Fn(usize) -> bool| until("darter_proxy_connections ", counts);
        // What is needed once is there before the measurement.
        let warm: Vec<S> =
            (0..50).map(|_| open(self)).collect::<Result<_>>().with_context(|| process.log())?;
        connections(&|now| now == warm.len())?;
        drop(warm);
        connections(&|now| now == 0)?;
        let before = process.resident_memory()?;
        let crowd: Vec<S> =
            (0..IDLE).map(|_| open(self)).collect::<Result<_>>().with_context(|| process.log())?;
        match there {
            All => connections(&|now| now == crowd.len())?,
            Resting => until("darter_proxy_resting_connections ", &|now| now == crowd.len())?,
            Within(least, most) => connections(&|now| (least..=most).contains(&now))?,
        }
        let cost = process.resident_memory()?.saturating_sub(before);
        println!(
            "{what}: {IDLE} connections cost {:.1} MiB over {:.1} MiB, {} bytes each",
            cost as f64 / MIB as f64,
            before as f64 / MIB as f64,
            cost / IDLE as u64
        );
        assert!(cost < limit, "{what}: {cost} bytes");
        Ok(())
    }
}
