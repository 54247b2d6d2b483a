//! Engines and schedulers, as a test needs them.

use aws_lc_rs::digest;
use darter_enrol::{Membership, Metrics};
use darter_p2p::{
    Backoff, Content, Digest, Engine, EngineConfig, HostConfig, HostId, OpenError, OpenRequest, Opened,
    Rates, ReadError, StoreConfig, TaskId, Want,
};
use darter_protocol::Priority;
use darter_scheduler::Access;
use darter_upstream::{Dns, Pool, Route, Timeouts, Upstream, UpstreamConfig};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

pub(crate) const MIB: usize = 1 << 20;

/// A daemon's engine with a store of its own.
pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) dir: PathBuf,
    /// Where it gives pieces away.
    pub(crate) pieces: SocketAddr,
    registry: Registry,
    _temp: Option<tempfile::TempDir>,
}

impl Node {
    pub(crate) async fn start(name: &str, schedulers: &[SocketAddr]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let node = Self::start_in(temp.path(), name, schedulers).await;
        Self { _temp: Some(temp), ..node }
    }

    /// One that moves bytes at these rates at most, and fetches ahead or not.
    pub(crate) async fn limited(name: &str, schedulers: &[SocketAddr], rates: Rates, prefetch: bool) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let change = |config: &mut EngineConfig| (config.rates, config.prefetch) = (rates, prefetch);
        let node = Self::start_with(temp.path(), name, schedulers, change).await;
        Self { _temp: Some(temp), ..node }
    }

    /// One with a configuration of its own.
    pub(crate) async fn with(
        name: &str,
        schedulers: &[SocketAddr],
        change: impl FnOnce(&mut EngineConfig),
    ) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let node = Self::start_with(temp.path(), name, schedulers, change).await;
        Self { _temp: Some(temp), ..node }
    }

    /// One that goes to origins only with a scheduler's word.
    pub(crate) async fn obedient(name: &str, schedulers: &[SocketAddr]) -> Self {
        Self::with(name, schedulers, |config| config.only_with_scheduler = true).await
    }

    /// A member of a cluster.
    pub(crate) async fn member(id: &HostId, scheduler: SocketAddr, membership: Membership) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let change = |config: &mut EngineConfig| config.membership = membership;
        let node = Self::start_with(temp.path(), id.as_str(), &[scheduler], change).await;
        Self { _temp: Some(temp), ..node }
    }

    /// Alone, and with an origin that may be silent for no longer than this.
    pub(crate) async fn impatient(name: &str, idle_timeout: Duration) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let change = |config: &mut EngineConfig| config.idle_timeout = idle_timeout;
        let node = Self::start_with(temp.path(), name, &[], change).await;
        Self { _temp: Some(temp), ..node }
    }

    pub(crate) async fn start_in(dir: &Path, name: &str, schedulers: &[SocketAddr]) -> Self {
        Self::start_with(dir, name, schedulers, |_| {}).await
    }

    async fn start_with(
        dir: &Path,
        name: &str,
        schedulers: &[SocketAddr],
        change: impl FnOnce(&mut EngineConfig),
    ) -> Self {
        Self::start_asking(dir, name, schedulers, (Dns::default(), Pool::default()), change).await
    }

    /// Alone, and with so many requests at once for an origin.
    pub(crate) async fn in_turn(name: &str, most: usize) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let pool = Pool { max_per_host: NonZeroUsize::new(most), ..Pool::default() };
        let node = Self::start_asking(temp.path(), name, &[], (Dns::default(), pool), |_| {}).await;
        Self { _temp: Some(temp), ..node }
    }

    /// One that finds its schedulers by these names, which it asks of that name server.
    pub(crate) async fn naming(name: &str, schedulers: &[&str], server: SocketAddr) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let written = schedulers.iter().map(ToString::to_string).collect();
        let dns = Dns { servers: vec![server], ..Dns::default() };
        let node = Self::start_asking(temp.path(), name, &[], (dns, Pool::default()), |config| {
            config.schedulers = written
        })
        .await;
        Self { _temp: Some(temp), ..node }
    }

    async fn start_asking(
        dir: &Path,
        name: &str,
        schedulers: &[SocketAddr],
        (dns, pool): (Dns, Pool),
        change: impl FnOnce(&mut EngineConfig),
    ) -> Self {
        let store = StoreConfig {
            dir: dir.to_owned(),
            quota: 1 << 40,
            quota_percent: 100,
            expire: Duration::from_secs(3600),
        };
        let mut config = EngineConfig {
            store,
            host: HostConfig {
                id: name.parse().unwrap(),
                hostname: name.to_owned(),
                ip: [127, 0, 0, 1].into(),
                idc: String::new(),
                location: String::new(),
                seed: false,
                upload_slots: 16,
            },
            schedulers: schedulers.iter().map(ToString::to_string).collect(),
            only_with_scheduler: false,
            backoff: Backoff { first: Duration::from_millis(1), most: Duration::from_millis(5), attempts: 3 },
            idle_timeout: Duration::from_secs(30),
            prefetch: false,
            rates: Rates::default(),
            gc_interval: Duration::from_secs(60),
            membership: Membership::insecure(Metrics::default()),
        };
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pieces = listener.local_addr().unwrap();
        let mut registry = Registry::default();
        let upstream = upstream(config.idle_timeout, dns, pool);
        upstream.register(&mut registry);
        let engine = Engine::start(config, upstream, listener, &mut registry).unwrap();
        Self { engine, dir: dir.to_owned(), pieces, registry, _temp: None }
    }

    /// Waits until this daemon is connected to a scheduler: for a minute at most, so that one that never is fails the test
    /// instead of hanging it. Only the metric shows it, so it is looked at again and again.
    pub(crate) async fn joined(&self) {
        let up = async {
            while self.metric("p2p_schedulers_up") == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), up).await.expect("the scheduler is reached");
    }

    /// The value of one line of the metrics.
    pub(crate) fn metric(&self, line: &str) -> u64 {
        self.metric_text(line).and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    /// The same as it is written; `None` when there is no such line.
    pub(crate) fn metric_text(&self, line: &str) -> Option<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines().find_map(|found| Some(found.strip_prefix(line)?.strip_prefix(' ')?.to_owned()))
    }

    /// Opens all of it and reads it to the end.
    pub(crate) async fn get(&self, request: &OpenRequest) -> Result<Vec<u8>, ReadError> {
        read(content(self.engine.open(request.clone()).await)).await
    }
}

fn upstream(response_header: Duration, dns: Dns, pool: Pool) -> Upstream {
    let roots = rustls::RootCertStore::empty();
    let tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let tls = Arc::new(tls);
    Upstream::new(UpstreamConfig {
        permit: Arc::new(|_, _, _| Ok(())),
        routes: Arc::new(move |_, _| Route::straight(Arc::clone(&tls))),
        dns,
        timeouts: Timeouts { response_header, ..Timeouts::default() },
        pool,
        mark: None,
    })
}

/// A scheduler that dies when this is dropped, and its connections with it: all that it does happens in a runtime of its
/// own.
pub(crate) struct Scheduler {
    pub(crate) address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Scheduler {
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    /// One whose operator has these rules.
    pub(crate) async fn ruled(access: Access) -> Self {
        Self::start_with("127.0.0.1:0".parse().unwrap(), access).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        Self::start_with(address, Access::default()).await
    }

    async fn start_with(address: SocketAddr, access: Access) -> Self {
        let listener = bind(address).await;
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let scheduler = darter_scheduler::Scheduler::new(
            Membership::insecure(Metrics::default()),
            &mut Registry::default(),
        );
        scheduler.set_access(access);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            darter_scheduler::run(listener, scheduler, CancellationToken::new()).await.unwrap();
        });
        Self { address, runtime: Some(runtime) }
    }

    /// It and its connections are gone at once, as with a process that is killed.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// A scheduler that was killed at this address lets go of it in a moment.
async fn bind(address: SocketAddr) -> std::net::TcpListener {
    for _ in 0..1000 {
        match std::net::TcpListener::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            bound => return bound.unwrap(),
        }
    }
    panic!("{address} is never free");
}

/// Content that no piece of which is like another.
pub(crate) fn bytes(length: usize) -> Vec<u8> {
    let mut output = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut output);
    output
}

pub(crate) fn digest_of(content: &[u8]) -> Digest {
    let hash = digest::digest(&digest::SHA256, content);
    Digest::Sha256(hash.as_ref().try_into().unwrap())
}

/// A request for all of a blob that is named by its digest.
pub(crate) fn blob(origin: SocketAddr, content: &[u8]) -> OpenRequest {
    let digest = digest_of(content);
    OpenRequest {
        task: TaskId::of_digest(&digest),
        digest: Some(digest),
        url: format!("http://{origin}/v2/a/blobs/{digest}").parse().unwrap(),
        headers: HeaderMap::new(),
        want: Want::All,
        priority: Priority::default(),
    }
}

pub(crate) fn authorized(mut request: OpenRequest, credential: &'static str) -> OpenRequest {
    request.headers.insert(header::AUTHORIZATION, HeaderValue::from_static(credential));
    request
}

pub(crate) fn content(opened: Result<Opened, OpenError>) -> Content {
    match opened {
        Ok(Opened::Content(content)) => content,
        Ok(Opened::Relay(response)) => panic!("the origin answered {}", response.status()),
        Err(error) => panic!("{error}"),
    }
}

pub(crate) async fn read(content: Content) -> Result<Vec<u8>, ReadError> {
    content.body.collect().await.map(|body| body.to_bytes().to_vec())
}
