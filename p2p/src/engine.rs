//! [`Engine`]: opens content by task.

use crate::ahead::Trails;
use crate::config::EngineConfig;
use crate::copies::MAX_FETCHES;
use crate::download::{Active, First, Known, Phase};
use crate::import::MAX_IMPORTS;
use crate::lists::Lists;
use crate::members::InvalidAddress;
use crate::metrics::Metrics;
use crate::origins::Origins;
use crate::past::Detour;
use crate::peer::{self, Peers, Quick, Served as Given, Turns};
use crate::progress::{Demand, Wish};
use crate::reader::{Live, Reader};
use crate::schedule::{Life, Schedulers};
use crate::store::{Complete, Held, Store, StoreError, TaskFile};
use crate::throttle::{Rates, Throttles};
use crate::unshareable::Unshareable;
use crate::{Content, ContentBody, ContentInfo, OpenError, OpenRequest, Opened, Served, TRACE, Want};
use darter_protocol::scheduler::{Host, PROTOCOL};
use darter_protocol::{ByteRange, PieceSet, TaskId};
use darter_upstream::Upstream;
use prometheus_client::registry::Registry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Stopped downloads that this daemon still serves to others. Each holds a file open.
const MAX_SUSPENDED: usize = 256;

/// The engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A scheduler's address is none.
    #[error(transparent)]
    Scheduler(#[from] InvalidAddress),
    /// The piece server's socket has no address.
    #[error("the piece server's socket has no address: {0}")]
    Socket(#[from] io::Error),
}

/// The piece engine of this host. Cheap to clone.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Shared>);

/// What downloads, readers and the piece server share.
pub(crate) struct Shared {
    pub(crate) config: EngineConfig,
    pub(crate) store: Arc<Store>,
    pub(crate) upstream: Upstream,
    pub(crate) origins: Arc<Origins>,
    pub(crate) peers: Peers,
    pub(crate) turns: Turns,
    pub(crate) lists: Arc<Lists>,
    pub(crate) throttles: Arc<Throttles>,
    pub(crate) schedulers: Schedulers,
    draining: watch::Sender<bool>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tracker: TaskTracker,
    active: Mutex<HashMap<TaskId, Arc<Active>>>,
    suspended: Mutex<HashMap<TaskId, Suspended>>,
    trails: Mutex<Trails>,
    pub(crate) unshareable: Unshareable,
    /// Tasks into which a file is taken at this moment.
    importing: Mutex<HashSet<TaskId>>,
    pub(crate) imports: Arc<Semaphore>,
    /// Copies that are fetched because a scheduler wants them.
    pub(crate) copying: Semaphore,
}

/// What a download has left that stopped before its end.
pub(crate) struct Suspended {
    pub(crate) file: Arc<TaskFile>,
    pub(crate) have: PieceSet,
    /// These were checked, and need not be again when it goes on.
    pub(crate) held: Held,
}

/// How a caller came to a download.
enum Joined {
    First(oneshot::Receiver<First>),
    Later(Arc<Active>),
    /// A file is taken in as this task.
    Importing,
    /// Not at all: there would be an answer for this caller alone.
    Alone,
}

// === impl Engine ===

impl Engine {
    /// Opens the store, begins to serve other daemons on `listener`, and looks for the schedulers. A scheduler that is not
    /// there is no error: the engine serves without it and joins when it appears.
    ///
    /// # Errors
    /// When the store cannot be opened, or an address is malformed.
    pub fn start(
        config: EngineConfig,
        upstream: Upstream,
        listener: TcpListener,
        registry: &mut Registry,
    ) -> Result<Self, EngineError> {
        let piece_port = listener.local_addr()?.port();
        let store = Arc::new(Store::open(config.store.clone())?);
        let schedulers = Schedulers::new(&config.schedulers, config.host.id.as_str(), &config.membership)?;
        let metrics = Metrics::register(registry, store.alarm().gauge(), store.pin_gauges());
        let shared = Arc::new(Shared {
            store,
            upstream,
            origins: Arc::new(Origins::new(config.backoff)),
            peers: Peers::new(&config.host.id, &config.membership),
            turns: Turns::new(config.host.upload_slots),
            lists: Arc::default(),
            throttles: Arc::new(Throttles::new(config.rates, &metrics)),
            schedulers,
            draining: watch::Sender::new(false),
            metrics,
            shutdown: CancellationToken::new(),
            tracker: TaskTracker::new(),
            active: Mutex::default(),
            suspended: Mutex::default(),
            trails: Mutex::default(),
            unshareable: Unshareable::default(),
            importing: Mutex::default(),
            imports: Arc::new(Semaphore::new(MAX_IMPORTS)),
            copying: Semaphore::new(MAX_FETCHES),
            config,
        });
        let (found, turns) = (Arc::clone(&shared), shared.turns.clone());
        let find = move |task| {
            let shared = Arc::clone(&found);
            async move { shared.find(task).await }
        };
        let server = peer::Server {
            find,
            turns,
            quick: Quick::default(),
            lists: Arc::clone(&shared.lists),
            throttles: Arc::clone(&shared.throttles),
            metrics: shared.metrics.clone(),
            membership: shared.config.membership.clone(),
            shutdown: shared.shutdown.clone(),
        };
        shared.tracker.spawn(peer::run(listener, server));
        shared.tracker.spawn(shared.turns.clone().run(shared.shutdown.clone()));
        shared.tracker.spawn(Arc::clone(&shared).keep_schedulers(piece_port));
        shared.tracker.spawn(Arc::clone(&shared).collect());
        Ok(Self(shared))
    }

    /// Opens content. The answer comes as soon as the content's length is known; its bytes follow as they arrive.
    /// Concurrent openings of one task share one download.
    ///
    /// # Errors
    /// See [`OpenError`]. When the origin refuses this caller, that is not an error but [`Opened::Relay`].
    ///
    /// # Cancel safety
    /// A caller that goes away before its answer leaves a download that others may have joined.
    pub async fn open(&self, request: OpenRequest) -> Result<Opened, OpenError> {
        let (shared, began) = (&self.0, Instant::now());
        // Each turn ends, or somebody else's download has ended meanwhile: there are as many turns as callers, at most.
        loop {
            // What the store cannot tell, the download finds out, once its scheduler was asked whether it may be.
            if let Ok(Some(complete)) = shared.complete(request.task).await {
                return shared.open_stored(complete, request.want);
            }
            match shared.join(&request) {
                Joined::First(answer) => match answer.await {
                    Ok(First::Answer(answer)) => return answer,
                    Ok(First::Content { known, range, demand }) => {
                        let opened = shared.open_running(&known, range, demand, &request);
                        return Ok(opened.queued_since(began, &known));
                    }
                    Err(_) => return Err(OpenError::Unavailable("the daemon is stopping".to_owned())),
                },
                Joined::Importing => {
                    return Err(OpenError::Unavailable("it is being imported at this moment".to_owned()));
                }
                Joined::Alone => return Err(OpenError::NotShareable),
                Joined::Later(active) => {
                    let mut phase = active.phase.clone();
                    let known = phase.wait_for(|phase| !matches!(phase, Phase::Opening)).await;
                    match known.map(|phase| phase.clone()) {
                        Ok(Phase::Known(known)) => {
                            if let Some(opened) = shared.join_known(&request, &active, &known)? {
                                return Ok(opened.queued_since(began, &known));
                            }
                            // It is ending, and what it leaves is not in its place yet.
                            let _ = phase.wait_for(|phase| matches!(phase, Phase::Over(_))).await;
                        }
                        Ok(Phase::Over(Some(word))) => {
                            if let Some(error) = word.to(&request) {
                                return Err(error);
                            }
                        }
                        Ok(Phase::Opening | Phase::Over(None)) | Err(_) => {}
                    }
                }
            }
        }
    }

    /// What is known of some content without asking anybody: because it is here, or on its way.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn known(&self, task: TaskId) -> Result<Option<ContentInfo>, OpenError> {
        if let Some(complete) = self.0.complete(task).await? {
            return Ok(Some(complete.record.info));
        }
        Ok(match self.0.lock_active().get(&task).map(|active| active.phase.borrow().clone()) {
            Some(Phase::Known(known)) => Some(known.info.clone()),
            _ => None,
        })
    }

    /// Bytes move at these rates from now on, also those of what is under way.
    pub fn set_rates(&self, rates: Rates) {
        self.0.throttles.set(rates);
    }

    /// It will stop soon: the schedulers send nobody new here. Those who are here are served on.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
    }

    /// Stops: no download goes on, other daemons are not served any more, the schedulers are told. What was downloaded
    /// in part is resumed at the next start.
    pub async fn stop(&self) {
        self.0.shutdown.cancel();
        self.0.tracker.close();
        self.0.tracker.wait().await;
        let store = Arc::clone(&self.0.store);
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        if let Err(error) = closed.map_err(io::Error::other).and_then(|closed| closed) {
            tracing::warn!(%error, "the content store is looked through at the next start");
        }
    }
}

impl Opened {
    /// Its caller, who came at `began`, waited with its first request for a turn at the origin; who comes later did not.
    fn queued_since(self, began: Instant, known: &Known) -> Self {
        if let Self::Content(content) = &self {
            content.body.supplied().set_queued(known.queued.min(began.elapsed()));
        }
        self
    }
}

// === impl Shared ===

impl Shared {
    pub(crate) async fn complete(&self, task: TaskId) -> Result<Option<Complete>, OpenError> {
        if let Some(complete) = self.store.opened(&task) {
            return Ok(Some(complete));
        }
        if self.store.is_absent(&task) {
            return Ok(None);
        }
        let store = Arc::clone(&self.store);
        let complete =
            tokio::task::spawn_blocking(move || store.complete(&task)).await.map_err(io::Error::other);
        complete.and_then(|complete| complete).map_err(|error| OpenError::Store(Arc::new(error)))
    }

    pub(crate) fn open_stored(&self, complete: Complete, want: Want) -> Result<Opened, OpenError> {
        let range = want.resolve(complete.record.info.length)?;
        let (file, metrics) = (complete.file, self.metrics.clone());
        let body = ContentBody::new(Reader { file, rest: range, live: None, metrics, lends: false });
        let info = complete.record.info;
        Ok(Opened::Content(Content { info, range, served: Served::Disk, body }))
    }

    fn open_running(
        self: &Arc<Self>,
        known: &Arc<Known>,
        range: Option<ByteRange>,
        demand: Demand,
        request: &OpenRequest,
    ) -> Opened {
        let live = Live::new(known, range, demand, Detour::of(self, known, request));
        let (file, metrics) = (Arc::clone(&known.file), self.metrics.clone());
        let body = ContentBody::new(Reader { file, rest: range, live: Some(live), metrics, lends: false });
        Opened::Content(Content { info: known.info.clone(), range, served: Served::Fetching, body })
    }

    /// Joins a running download whose content is known; `None` when it takes nobody any more.
    fn join_known(
        self: &Arc<Self>,
        request: &OpenRequest,
        active: &Active,
        known: &Arc<Known>,
    ) -> Result<Option<Opened>, OpenError> {
        let range = request.want.resolve(known.info.length)?;
        let wish = self.wish(request.task, &known.file, request.want, range);
        let demand = active.demands.add(wish);
        Ok(demand.map(|demand| self.open_running(known, range, demand, request)))
    }

    /// What is fetched for somebody who wants this, which is `range` of the content in `file`. Of what is kept in memory until all
    /// of it is there, nothing would be kept otherwise.
    pub(crate) fn wish(&self, task: TaskId, file: &TaskFile, want: Want, range: Option<ByteRange>) -> Wish {
        let layout = file.layout();
        let all = want.is_all() || self.config.prefetch || file.is_staged();
        let ahead = range.filter(|_| !all).and_then(|range| {
            let mut trails = self.trails.lock().unwrap_or_else(PoisonError::into_inner);
            trails.follow(task, layout, range)
        });
        let blocks = |range: ByteRange| layout.blocks_covering(range);
        Wish { blocks: range.map_or(0..0, blocks), ahead: ahead.map(blocks), all }
    }

    /// Joins the task's download, or starts it.
    fn join(self: &Arc<Self>, request: &OpenRequest) -> Joined {
        let alone = self.unshareable.is_answer_to(request, Instant::now());
        let mut active = self.lock_active();
        // What somebody else has come by is for this one, too; but he waits for nobody's answer.
        let waits = |running: &&Arc<Active>| !alone || !matches!(*running.phase.borrow(), Phase::Opening);
        if let Some(running) = active.get(&request.task).filter(waits) {
            running.add_way(request);
            return Joined::Later(Arc::clone(running));
        }
        if alone {
            return Joined::Alone;
        }
        if self.lock_importing().contains(&request.task) {
            return Joined::Importing;
        }
        let before = self.lock_suspended().remove(&request.task);
        let checked = before.map_or_else(Held::default, |before| before.held);
        let (running, download) = Active::new(self, request, checked);
        active.insert(request.task, running);
        let (first, answer) = oneshot::channel();
        let span = tracing::info_span!(target: TRACE, "download", task = %request.task);
        self.tracker.spawn(download.run(request.want, first).instrument(span));
        Joined::First(answer)
    }

    /// How far the task's download is, if there is one.
    pub(crate) fn phase(&self, task: &TaskId) -> Option<Phase> {
        self.lock_active().get(task).map(|active| active.phase.borrow().clone())
    }

    /// The download has ended.
    pub(crate) fn remove(&self, task: &TaskId, ended: &Arc<Active>) {
        let mut active = self.lock_active();
        if active.get(task).is_some_and(|active| Arc::ptr_eq(active, ended)) {
            active.remove(task);
        }
    }

    /// The download has stopped before its end; others may still get what it has.
    pub(crate) fn suspend(&self, task: TaskId, left: Suspended) {
        let mut suspended = self.lock_suspended();
        if suspended.len() < MAX_SUSPENDED && !left.held.is_empty() {
            suspended.insert(task, left);
        }
    }

    /// What there is of a task for another daemon.
    async fn find(&self, task: TaskId) -> Option<Given> {
        let running = self.lock_active().get(&task).map(|active| active.phase.clone());
        if let Some(mut phase) = running {
            // The scheduler names a download to others as soon as it is registered, a moment before it knows what it
            // fetches: to say then that it holds nothing would end a partnership that has not begun.
            let settled = phase.wait_for(|phase| !matches!(phase, Phase::Opening)).await;
            if let Ok(Phase::Known(known)) = settled.as_deref() {
                return Some(Given::Running {
                    file: Arc::clone(&known.file),
                    progress: known.progress.clone(),
                });
            }
        }
        if let Some(Suspended { file, have, .. }) = self.lock_suspended().get(&task) {
            return Some(Given::Partial { file: Arc::clone(file), have: have.clone() });
        }
        let complete = self.complete(task).await.ok()??;
        Some(Given::Complete { file: complete.file, hashes: complete.hashes })
    }

    async fn keep_schedulers(self: Arc<Self>, piece_port: u16) {
        let host = &self.config.host;
        let host = Host {
            id: host.id.as_str().to_owned(),
            hostname: host.hostname.clone(),
            ip: host.ip.to_string(),
            piece_port: piece_port.into(),
            idc: host.idc.clone(),
            location: host.location.clone(),
            seed: host.seed,
            upload_slots: host.upload_slots,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            ..Host::default()
        };
        let (store, metrics, shutdown) =
            (Arc::clone(&self.store), self.metrics.clone(), self.shutdown.clone());
        let forgetful = Arc::clone(&self);
        let forget = Arc::new(move |task: &TaskId| {
            let mut was_here = false;
            forgetful.forget(task, |here| was_here = here).map(|()| was_here)
        });
        let fetching = Arc::clone(&self);
        let fetch = Arc::new(move |tasks| fetching.fetch_copies(tasks));
        let (turns, draining, upstream) =
            (self.turns.clone(), self.draining.subscribe(), self.upstream.clone());
        let free_uploads = Arc::new(move || turns.free());
        self.schedulers
            .run(Life { host, free_uploads, draining, upstream, store, metrics, shutdown, forget, fetch })
            .await;
    }

    /// Looks through the store now and then.
    async fn collect(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.config.gc_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.shutdown.cancelled() => return,
            }
            let store = Arc::clone(&self.store);
            let collected = tokio::task::spawn_blocking(move || {
                if let Err(error) = store.collect(SystemTime::now()) {
                    tracing::error!(%error, "cannot look through the content store");
                }
                store.take_evicted()
            });
            let evicted = collected.await.unwrap_or_default();
            for task in &evicted {
                self.lock_suspended().remove(task);
            }
            self.schedulers.leave(evicted).await;
        }
    }

    pub(crate) fn lock_active(&self) -> MutexGuard<'_, HashMap<TaskId, Arc<Active>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a file is taken in as `task`; `false` while that is fetched, or another file is taken in.
    pub(crate) fn begin_import(&self, task: TaskId) -> bool {
        let active = self.lock_active();
        !active.contains_key(&task) && self.lock_importing().insert(task)
    }

    pub(crate) fn lock_importing(&self) -> MutexGuard<'_, HashSet<TaskId>> {
        self.importing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stopped download is not served any more; gives whether there was one.
    pub(crate) fn unsuspend(&self, task: &TaskId) -> bool {
        self.lock_suspended().remove(task).is_some()
    }

    fn lock_suspended(&self) -> MutexGuard<'_, HashMap<TaskId, Suspended>> {
        self.suspended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
