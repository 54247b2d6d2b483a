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

/// The same with HTTP/2 in it, which cannot be put away: 220 MiB were measured, of which 140 are buffers of a fixed size in
/// the library that speaks it.
const HTTP2_LIMIT: u64 = 250 * MIB;

/// What is asked for once on each connection, in bytes.
const PAGE: usize = 64 << 10;

/// How long a state may take to come about.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn five_thousand_silent_connections_cost_little() -> Result<()> {
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(folder.path())?;
    scene.idle("silent", SILENT_LIMIT, 0, |scene| http::connect(scene.daemon.proxy))
}

#[test]
fn five_thousand_kept_connections_cost_little() -> Result<()> {
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    let scene = Scene::start(folder.path())?;
    scene.idle("kept alive", KEPT_LIMIT, IDLE, |scene| {
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
    scene.idle("opened up", OPENED_UP_LIMIT, IDLE, |scene| {
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
    scene.idle("HTTP/2", HTTP2_LIMIT, 0, |scene| {
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
    scene.idle("tunnels", TUNNEL_LIMIT, 0, |scene| {
        let address = scene.plain.address().to_string();
        let mut stream = scene.tunnel(&address)?;
        scene.ask(&mut stream, "/page", &address)?;
        Ok(stream)
    })
}

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

    /// Opens connections and lets them be: what they cost. So many of them are to wait for a further request.
    fn idle<S>(
        &self,
        what: &str,
        limit: u64,
        resting: usize,
        open: impl Fn(&Self) -> Result<S>,
    ) -> Result<()> {
        let process = &self.daemon.process;
        let until = |metric: &str, number: usize| {
            poll::until(&format!("{metric} to be {number}"), LIMIT, || {
                (self.daemon.metric(metric).ok()? == number as f64).then_some(())
            })
        };
        let count = |number: usize| until("darter_proxy_connections ", number);
        // What is needed once is there before the measurement.
        let warm: Vec<S> =
            (0..50).map(|_| open(self)).collect::<Result<_>>().with_context(|| process.log())?;
        count(warm.len())?;
        drop(warm);
        count(0)?;
        let before = process.resident_memory()?;
        let crowd: Vec<S> =
            (0..IDLE).map(|_| open(self)).collect::<Result<_>>().with_context(|| process.log())?;
        count(crowd.len())?;
        until("darter_proxy_resting_connections ", resting)?;
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
