//! The conversation with the schedulers.
//!
//! Each configured scheduler has a [`Link`]: a life line that is kept up for as long as this daemon runs, whether the
//! scheduler is there or not. A download asks the first scheduler of its task's ring order whose link is up; when none is,
//! it goes on alone, and joins when one appears. Which schedulers there are, `members.rs` finds out.

use crate::OpenRequest;
use crate::members::{InvalidAddress, Names};
use crate::metrics::Metrics;
use crate::news::News;
use crate::store::{Record, Store};
use darter_enrol::Membership;
use darter_protocol::hash;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use darter_protocol::scheduler::{
    AnnounceHostRequest, AnnounceTaskRequest, Content, DeleteTaskRequest, Header, HeldTask, Host,
    LeaseOutcome, LeaseReturned, LeaveHostRequest, LeaveTaskRequest, MAX_MESSAGE_BYTES, PeerPacket,
    PieceResult, RegisterPeerTaskRequest, RegisterPeerTaskResponse, ReplicateTaskRequest,
    ReplicateTaskResponse, ReportPeerResultRequest, StatTaskRequest, StatTaskResponse,
};
use darter_protocol::{PieceHash, Ring, Root, TaskId, UrlPrefix};
use darter_upstream::Upstream;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rand::{Rng, RngExt};
use rustls_pki_types::CertificateDer;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long dialling a scheduler may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a call may take. A decision takes microseconds; what takes longer is a scheduler to do without.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the life line is probed, and how long the answer may take: a scheduler that died without a word is noticed
/// within five seconds.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before a lost link is tried again: at first, and at most. Half of it is left to chance, so that a thousand
/// daemons do not come back in step.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Daemons that lose a scheduler together come back spread over this time, each with all that it holds: a scheduler that was
/// restarted would otherwise have ten thousand inventories to take in at one moment. Shorter than a download waits before it
/// goes on without one (`ALONE_AFTER`).
const SPREAD: Duration = Duration::from_millis(800);
/// The pause before a download whose conversation ended registers anew, at most. A scheduler that answers, and ends every
/// conversation, must not be asked without end.
const REJOIN_PAUSE: Duration = Duration::from_millis(200);
/// For so long after a scheduler was lost or came back, its downloads may still be on their way from one to another: as long
/// as a scheduler keeps a lease for those (`KEPT` in `darter_scheduler`).
const SETTLES: Duration = Duration::from_secs(2);
/// How often a name is asked for the schedulers that it stands for, and how soon after one was lost.
const ASK_AGAIN: Duration = Duration::from_secs(30);
const ASK_AT_MOST: Duration = Duration::from_millis(500);
/// How often a scheduler is told how many uploads are free, where that has changed.
const LOAD_INTERVAL: Duration = Duration::from_secs(1);
/// Tasks in one message of the inventory: about 200 bytes each, far below the limit of a message.
const INVENTORY_BATCH: usize = 1000;
/// Messages that wait for the network in either direction of one conversation. Reports are merged while they cannot be
/// sent; packets that do not fit make the scheduler wait.
const QUEUE: usize = 64;

/// All schedulers.
pub(crate) struct Schedulers {
    host_id: String,
    membership: Membership,
    written: Vec<String>,
    known: Mutex<Arc<Known>>,
    /// Bumped whenever a link comes up, or another scheduler is a task's own.
    came_up: watch::Sender<u64>,
    /// A link is lost: its name may stand for another one now.
    lost: Notify,
}

/// The schedulers that there are at a time.
#[derive(Default)]
struct Known {
    ring: Ring,
    links: HashMap<String, Arc<Link>>,
}

/// One scheduler.
pub(crate) struct Link {
    address: String,
    host_id: String,
    client: SchedulerClient<Channel>,
    membership: Membership,
    up: AtomicBool,
    changes: Mutex<Changes>,
    /// What it was not told of yet.
    news: News,
    /// It is no scheduler of ours any more.
    removed: CancellationToken,
}

/// When a scheduler came or went: contents change over to another then.
#[derive(Debug, Default)]
struct Changes {
    /// It was not there from the beginning, so that it takes contents over when it comes.
    was_away: bool,
    last: Option<Instant>,
}

/// What a life line needs.
pub(crate) struct Life {
    /// This host, as the schedulers are told of it.
    pub(crate) host: Host,
    /// How many more uploads it could begin now.
    pub(crate) free_uploads: Arc<dyn Fn() -> u32 + Send + Sync>,
    /// It is about to stop.
    pub(crate) draining: watch::Receiver<bool>,
    /// Whom names are asked of.
    pub(crate) upstream: Upstream,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: CancellationToken,
    /// Throws a task away. Blocks.
    pub(crate) forget: Arc<Forget>,
    /// Begins to fetch tasks of which the scheduler wants more copies.
    pub(crate) fetch: Arc<dyn Fn(Vec<TaskId>) + Send + Sync>,
}

/// Gives whether there was anything of the task.
pub(crate) type Forget = dyn Fn(&TaskId) -> io::Result<bool> + Send + Sync;

// === impl Schedulers ===

impl Schedulers {
    pub(crate) fn new(
        addresses: &[String],
        host_id: &str,
        membership: &Membership,
    ) -> Result<Self, InvalidAddress> {
        let schedulers = Self {
            host_id: host_id.to_owned(),
            membership: membership.clone(),
            written: addresses.to_vec(),
            known: Mutex::default(),
            came_up: watch::Sender::new(0),
            lost: Notify::new(),
        };
        schedulers.replace(&Names::parse(addresses)?.unresolved());
        Ok(schedulers)
    }

    /// The scheduler to ask about `task` now.
    pub(crate) fn of(&self, task: &TaskId) -> Option<Arc<Link>> {
        self.up(task).into_iter().next()
    }

    /// Those to ask about `task`, one after the other where one does not answer.
    pub(crate) fn up(&self, task: &TaskId) -> Vec<Arc<Link>> {
        self.ways(task).into_iter().map(|(link, _)| link).collect()
    }

    /// The same, and whether others who download the task may be on their way there from another scheduler: one to which the
    /// task belongs first has just been lost, or this one has just come.
    pub(crate) fn ways(&self, task: &TaskId) -> Vec<(Arc<Link>, bool)> {
        let (known, mut settling) = (self.known(), false);
        let links = known.ring.order(task).filter_map(|address| known.links.get(address));
        let ways = links.map(|link| {
            settling |= link.is_settling();
            (Arc::clone(link), settling)
        });
        ways.filter(|(link, _)| link.is_up()).collect()
    }

    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on these are the schedulers. Gives those that are new; the lines of those that are no more end.
    fn replace(&self, members: &BTreeSet<String>) -> Vec<Arc<Link>> {
        let before = self.known();
        let mut new = Vec::new();
        if before.links.len() == members.len() && members.iter().all(|it| before.links.contains_key(it)) {
            return new;
        }
        let mut links = HashMap::new();
        for address in members {
            let link = before.links.get(address).cloned().or_else(|| {
                let link = Link::new(address, &self.host_id, &self.membership)?;
                link.lock_changes().was_away = !before.links.is_empty();
                new.push(Arc::clone(&link));
                Some(link)
            });
            links.extend(link.map(|link| (address.clone(), link)));
        }
        let gone = before.links.iter().filter(|(address, _)| !members.contains(*address));
        let gone: Vec<Arc<Link>> = gone.map(|(_, link)| Arc::clone(link)).collect();
        let known = Arc::new(Known { ring: Ring::new(links.keys().cloned()), links });
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        // Only now: whoever hears of its end must not find it again.
        gone.iter().for_each(|link| link.removed.cancel());
        self.came_up.send_modify(|times| *times += 1);
        new
    }

    /// Tells the task's own scheduler at once that all of it is here, and the others soon.
    pub(crate) async fn announce_one(&self, task: &TaskId, record: &Record, hashes: &[PieceHash]) {
        let own = self.of(task);
        if let Some(held) = held(task, record, hashes) {
            self.note(*task, Some(held), own.as_deref().map(Link::address));
        }
        if let Some(own) = own {
            own.announce_one(task, record, hashes).await;
        }
    }

    /// All schedulers but the one at `told` hear soon that the task is here, or with `None` not here any more.
    pub(crate) fn note(&self, task: TaskId, held: Option<HeldTask>, told: Option<&str>) {
        for (address, link) in &self.known().links {
            if Some(address.as_str()) == told {
                // What it was to hear before would contradict what it hears now.
                link.news.forget(&task);
            } else {
                link.news.note(task, held.clone());
            }
        }
    }

    /// Tells that tasks are not here any more.
    pub(crate) async fn leave(&self, tasks: Vec<TaskId>) {
        for task in &tasks {
            // The task's own as well, until it has heard it.
            self.note(*task, None, None);
        }
        let mut by_link: HashMap<String, (Arc<Link>, Vec<TaskId>)> = HashMap::new();
        for task in tasks {
            if let Some(link) = self.of(&task) {
                by_link.entry(link.address.clone()).or_insert_with(|| (link, Vec::new())).1.push(task);
            }
        }
        for (link, tasks) in by_link.into_values() {
            link.leave(&tasks).await;
        }
    }

    /// Changes whenever a scheduler comes up.
    pub(crate) fn came_up(&self) -> watch::Receiver<u64> {
        self.came_up.subscribe()
    }

    /// Keeps all life lines up until `shutdown`, then says goodbye. Looks again and again which schedulers there are.
    pub(crate) async fn run(&self, life: Life) {
        let Ok(mut names) = Names::parse(&self.written) else { return };
        let line = |link: Arc<Link>| {
            let (life, came_up) = (&life, || self.came_up.send_modify(|times| *times += 1));
            async move { link.keep_up(life, came_up, || self.lost.notify_one()).await }
        };
        let mut lines: FuturesUnordered<_> = self.known().links.values().cloned().map(line).collect();
        let changes = names.may_change();
        let mut ask = changes;
        while !life.shutdown.is_cancelled() {
            let members = async {
                if !std::mem::replace(&mut ask, false) {
                    tokio::select! {
                        () = tokio::time::sleep(ASK_AGAIN) => {}
                        () = self.lost.notified() => tokio::time::sleep(ASK_AT_MOST).await,
                    }
                }
                names.resolve(&life.upstream).await
            };
            tokio::select! {
                members = members, if changes => lines.extend(self.replace(&members).into_iter().map(line)),
                Some(()) = lines.next() => {}
                () = life.shutdown.cancelled() => {}
            }
        }
        while lines.next().await.is_some() {}
    }
}

// === impl Link ===

impl Link {
    fn new(address: &str, host_id: &str, membership: &Membership) -> Option<Arc<Self>> {
        let shape = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(DIAL_TIMEOUT)
                .http2_keep_alive_interval(PROBE_INTERVAL)
                .keep_alive_timeout(PROBE_TIMEOUT)
                .keep_alive_while_idle(true)
        };
        let channel = darter_enrol::channel(membership, address, shape).ok()?;
        let client = SchedulerClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (address, host_id) = (address.to_owned(), host_id.to_owned());
        let (up, removed) = (AtomicBool::new(false), CancellationToken::new());
        let (membership, news) = (membership.clone(), News::default());
        let changes = Mutex::default();
        Some(Arc::new(Self { address, host_id, client, membership, up, changes, news, removed }))
    }

    fn lock_changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_settling(&self) -> bool {
        self.lock_changes().last.is_some_and(|last| last.elapsed() < SETTLES)
    }

    /// It is there. One that is there from the beginning takes nothing over.
    fn note_up(&self) {
        self.up.store(true, Ordering::Release);
        let mut changes = self.lock_changes();
        if changes.was_away {
            changes.last = Some(Instant::now());
        }
    }

    /// It is not there. Returns whether it was.
    fn note_down(&self) -> bool {
        let was_up = self.up.swap(false, Ordering::AcqRel);
        let mut changes = self.lock_changes();
        changes.was_away = true;
        if was_up {
            changes.last = Some(Instant::now());
        }
        was_up
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What the scheduler knows of a task.
    pub(crate) async fn stat(&self, task: &TaskId) -> Result<StatTaskResponse, Status> {
        let request = StatTaskRequest { task_id: task.as_bytes().to_vec().into() };
        Ok(in_time(self.client.clone().stat_task(request)).await?.into_inner())
    }

    /// Has every other host that has some of a task throw it away; gives how many are told.
    pub(crate) async fn delete(&self, task: &TaskId) -> Result<u32, Status> {
        let task_id = task.as_bytes().to_vec().into();
        let request = DeleteTaskRequest { host_id: self.host_id.clone(), task_id };
        Ok(in_time(self.client.clone().delete_task(request)).await?.into_inner().hosts)
    }

    /// Has others fetch a task until so many hosts have all of it, this one among them; gives how far that is.
    pub(crate) async fn replicate(&self, task: &TaskId, hosts: u32) -> Result<ReplicateTaskResponse, Status> {
        let task_id = task.as_bytes().to_vec().into();
        let request = ReplicateTaskRequest { host_id: self.host_id.clone(), task_id, hosts };
        Ok(in_time(self.client.clone().replicate_task(request)).await?.into_inner())
    }

    /// Keeps the life line up until shutdown, or until this is no scheduler any more, then says goodbye. Calls `came_up`
    /// whenever it came up, and `lost` whenever it could not be reached.
    async fn keep_up(&self, life: &Life, came_up: impl Fn(), lost: impl Fn()) {
        // Of being refused it is told each time that the reason is another.
        let (mut told, mut verdict) = (false, None);
        let (mut pause, mut spread) = (FIRST_RETRY, Duration::ZERO);
        while !life.shutdown.is_cancelled() && !self.removed.is_cancelled() {
            let ended = tokio::select! {
                ended = self.live(life, &came_up) => ended,
                () = life.shutdown.cancelled() => break,
                () = self.removed.cancelled() => break,
            };
            lost();
            let refused = darter_enrol::explain(&ended);
            if self.note_down() {
                life.metrics.scheduler_up.dec();
                tracing::warn!(
                    scheduler = self.address,
                    reason = darter_enrol::reason(&ended),
                    "lost the scheduler"
                );
                (pause, told) = (FIRST_RETRY, true);
                spread = SPREAD;
            } else if !std::mem::replace(&mut told, true) || refused != verdict {
                let reason = darter_enrol::reason(&ended);
                tracing::warn!(
                    scheduler = self.address,
                    reason,
                    "cannot reach the scheduler; serving without it"
                );
            }
            verdict = refused;
            let wait = retry_after(pause, std::mem::take(&mut spread), &mut rand::rng());
            tokio::select! {
                () = tokio::time::sleep(wait) => pause = (pause * 2).min(LAST_RETRY),
                () = life.shutdown.cancelled() => {}
                () = self.removed.cancelled() => {}
            }
        }
        if self.note_down() {
            life.metrics.scheduler_up.dec();
            tracing::info!(scheduler = self.address, "left the scheduler");
            let goodbye = LeaveHostRequest { host_id: self.host_id.clone() };
            let _ = in_time(self.client.clone().leave_host(goodbye)).await;
        }
    }

    /// One life of the life line; ends when it breaks.
    async fn live(&self, life: &Life, came_up: impl FnOnce()) -> Status {
        let (mut expelled, mut said_of) = (self.membership.expelled(), HashSet::new());
        let mut unsaid = self.membership.news(&mut said_of);
        let first = std::mem::take(&mut unsaid);
        let started = async {
            let (hold, outgoing) = mpsc::channel(1);
            let hello = announcement(life.host_now(), &first);
            hold.send(hello).await.map_err(|_| Status::internal("the queue is closed"))?;
            let mut client = self.client.clone();
            let mut incoming =
                in_time(client.announce_host(ReceiverStream::new(outgoing))).await?.into_inner();
            if let Some(hello) = in_time(incoming.message()).await? {
                self.learn(hello.expulsions).await;
            }
            // What came is in the inventory, which is looked through from now on. What went is not: a scheduler that was
            // there all the while would go on naming this host for it.
            let (_, went) = self.news.take();
            self.tell_gone(&went).await?;
            let told = self.announce_all(&life.store, HashSet::new()).await?;
            Ok((hold, incoming, told))
        };
        let (hold, mut incoming, told) = match started.await {
            Ok(started) => started,
            Err(status) => return status,
        };
        self.note_up();
        tracing::info!(scheduler = self.address, "joined the scheduler");
        life.metrics.scheduler_up.inc();
        came_up();
        // What was completed meanwhile found no scheduler that was up.
        if let Err(status) = self.announce_all(&life.store, told).await {
            return status;
        }
        let mut draining = life.draining.clone();
        let mut looks = tokio::time::interval(LOAD_INTERVAL);
        let mut last = life.host_now();
        loop {
            tokio::select! {
                said = incoming.message() => match said {
                    Ok(Some(said)) => {
                        self.learn(said.expulsions).await;
                        self.forget(life, ids(&said.deleted)).await;
                        (life.fetch)(ids(&said.wanted));
                    }
                    Ok(None) => return Status::unavailable("it closed the connection"),
                    Err(status) => return status,
                },
                _ = looks.tick() => {
                    if let Err(status) = self.tell_news().await {
                        return status;
                    }
                }
                Ok(()) = draining.changed() => {}
                Ok(()) = expelled.changed() => {}
            }
            let host = life.host_now();
            unsaid.extend(self.membership.news(&mut said_of));
            // What does not fit now is said at the next look.
            if (host != last || !unsaid.is_empty())
                && hold.try_send(announcement(host.clone(), &unsaid)).is_ok()
            {
                last = host;
                unsaid.clear();
            }
        }
    }

    /// Tells what came and went since the last time. What it has no room for it goes without, as with the inventory.
    async fn tell_news(&self) -> Result<(), Status> {
        let (came, went) = self.news.take();
        self.tell_gone(&went).await?;
        for batch in came.chunks(INVENTORY_BATCH) {
            match self.announce(batch.to_vec()).await {
                Err(status) if status.code() == Code::ResourceExhausted => break,
                announced => announced?,
            }
        }
        Ok(())
    }

    /// Tells what went. What is not heard is told in the next life of the line.
    async fn tell_gone(&self, went: &[TaskId]) -> Result<(), Status> {
        for (at, batch) in went.chunks(INVENTORY_BATCH).enumerate() {
            if let Err(status) = self.try_leave(batch).await {
                went[at * INVENTORY_BATCH..].iter().for_each(|task| self.news.note_gone_again(*task));
                return Err(status);
            }
        }
        Ok(())
    }

    /// Takes in what the scheduler says of who was expelled.
    async fn learn(&self, statements: Vec<bytes::Bytes>) {
        if statements.is_empty() {
            return;
        }
        let membership = self.membership.clone();
        let learned = move || membership.learn(statements.iter().map(AsRef::as_ref));
        if let Err(error) = tokio::task::spawn_blocking(learned).await {
            tracing::error!(%error, "cannot take in who was expelled");
        }
    }

    /// Throws away what the scheduler says somebody has deleted, and tells it so.
    async fn forget(&self, life: &Life, tasks: Vec<TaskId>) {
        if tasks.is_empty() {
            return;
        }
        let (forget, gone) = (Arc::clone(&life.forget), tasks.clone());
        let forgotten = tokio::task::spawn_blocking(move || {
            for task in &gone {
                match forget(task) {
                    Ok(here) => tracing::info!(%task, here, "deleted, as another host asked for"),
                    Err(error) => {
                        tracing::error!(%task, %error, "cannot delete what another host wants gone")
                    }
                }
            }
        });
        if forgotten.await.is_ok() {
            self.leave(&tasks).await;
        }
    }

    /// Tells the scheduler everything that is complete here, and that it was not told; gives what it knows then.
    async fn announce_all(
        &self,
        store: &Arc<Store>,
        mut told: HashSet<TaskId>,
    ) -> Result<HashSet<TaskId>, Status> {
        let store = Arc::clone(store);
        let inventory = tokio::task::spawn_blocking(move || {
            let mut tasks = Vec::new();
            let listed = store.inventory(|task, record, hashes| {
                if told.insert(task) {
                    tasks.extend(held(&task, record, hashes));
                }
            });
            listed.map(|()| (tasks, told))
        });
        let inventory = inventory.await.map_err(|error| Status::internal(error.to_string()))?;
        let (inventory, told) = inventory.map_err(|error| Status::internal(error.to_string()))?;
        for batch in inventory.chunks(INVENTORY_BATCH) {
            match self.announce(batch.to_vec()).await {
                // It has no room for more; what it took is worth having.
                Err(status) if status.code() == Code::ResourceExhausted => {
                    tracing::warn!(
                        scheduler = self.address,
                        reason = status.message(),
                        "not all content is announced"
                    );
                    break;
                }
                announced => announced?,
            }
        }
        Ok(told)
    }

    async fn announce(&self, tasks: Vec<HeldTask>) -> Result<(), Status> {
        let request = AnnounceTaskRequest { host_id: self.host_id.clone(), tasks };
        in_time(self.client.clone().announce_task(request)).await.map(drop)
    }

    /// Asks for a task, and opens the conversation about it. The answer comes as the conversation's first packet.
    pub(crate) async fn join(
        self: Arc<Self>,
        task: TaskId,
        Arrival { held_bytes, moved, at_origin }: Arrival,
        claim: Claim,
    ) -> Result<Joined, Status> {
        let request = RegisterPeerTaskRequest {
            host_id: self.host_id.clone(),
            task_id: task.as_bytes().to_vec().into(),
            held_bytes,
            origin: claim.origin,
            url_prefixes: claim.url_prefixes,
            priority: claim.priority,
            moved,
            at_origin,
        };
        let answer = in_time(self.client.clone().register_peer_task(request)).await?.into_inner();
        if let Some(refused) = answer.refused.as_ref().filter(|refused| refused.for_good) {
            return Ok(Joined::Refused(refused.reason.clone()));
        }
        let (up, outgoing) = mpsc::channel(QUEUE);
        let (packets, down) = mpsc::channel(QUEUE);
        let hello = PieceResult {
            host_id: self.host_id.clone(),
            task_id: task.as_bytes().to_vec().into(),
            held_bytes,
            ..PieceResult::default()
        };
        up.try_send(hello).map_err(|_| Status::internal("the queue is full"))?;
        let mut client = self.client.clone();
        let listening = tokio::task::JoinSet::from_iter([async move {
            let Ok(stream) = client.report_piece_result(ReceiverStream::new(outgoing)).await else { return };
            let mut stream = stream.into_inner();
            while let Ok(Some(packet)) = stream.message().await {
                if packets.send(packet).await.is_err() {
                    return;
                }
            }
        }]);
        let barred = answer.barred;
        let talk = Conversation { link: self, task, up: Some(up), down, barred, _listening: listening };
        Ok(Joined::Talking(talk, Box::new(first_packet(answer))))
    }

    /// Tells that tasks are complete here now, outside of a conversation.
    pub(crate) async fn announce_one(&self, task: &TaskId, record: &Record, hashes: &[PieceHash]) {
        let tasks = held(task, record, hashes).into_iter().collect();
        if let Err(status) = self.announce(tasks).await {
            tracing::debug!(%task, reason = status.message(), "cannot announce the task");
        }
    }

    /// Tells that tasks are not here any more. What was noted of them is told then; otherwise it is told again soon.
    pub(crate) async fn leave(&self, tasks: &[TaskId]) {
        match self.try_leave(tasks).await {
            Ok(()) => tasks.iter().for_each(|task| self.news.settle_gone(task)),
            Err(status) => {
                tracing::debug!(reason = status.message(), "cannot tell the scheduler which tasks are gone");
            }
        }
    }

    async fn try_leave(&self, tasks: &[TaskId]) -> Result<(), Status> {
        let task_ids = tasks.iter().map(|task| task.as_bytes().to_vec().into()).collect();
        let request = LeaveTaskRequest { host_id: self.host_id.clone(), task_ids };
        in_time(self.client.clone().leave_task(request)).await.map(drop)
    }
}

// === impl Life ===

impl Life {
    /// This host as it is now.
    fn host_now(&self) -> Host {
        let (free_uploads, draining) = (Some((self.free_uploads)()), *self.draining.borrow());
        Host { free_uploads, draining, ..self.host.clone() }
    }
}

// === impl Claim ===

/// What a scheduler is told of a download besides its task: what its operator's rules go by.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claim {
    origin: String,
    url_prefixes: Vec<bytes::Bytes>,
    priority: u32,
}

impl Claim {
    pub(crate) fn of(request: &OpenRequest) -> Self {
        let priority = request.priority.number();
        // Content that was put into the network has no origin.
        let Some(host) = request.url.host_str().filter(|_| request.url.scheme().starts_with("http")) else {
            return Self { priority, ..Self::default() };
        };
        let port = request.url.port().map(|port| format!(":{port}"));
        let origin = format!("{host}{}", port.unwrap_or_default());
        let prefixes = UrlPrefix::all(&origin, request.url.path());
        let url_prefixes = prefixes.iter().map(|prefix| prefix.as_bytes().to_vec().into()).collect();
        Self { origin, url_prefixes, priority }
    }
}

/// How a download comes to a scheduler.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Arrival {
    /// Verified bytes that are here.
    pub(crate) held_bytes: u64,
    /// It comes from another scheduler, or others who are in it may.
    pub(crate) moved: bool,
    /// It reads from the origin meanwhile, by the word of the scheduler before.
    pub(crate) at_origin: bool,
}

/// The answer to a registration.
pub(crate) enum Joined {
    /// The conversation, and its first packet.
    Talking(Conversation, Box<PeerPacket>),
    /// The operator's rules refuse it, for this reason.
    Refused(String),
}

fn first_packet(answer: RegisterPeerTaskResponse) -> PeerPacket {
    PeerPacket {
        content: answer.content,
        partners: answer.partners,
        hashes: answer.hashes,
        lease: answer.lease,
        share: answer.share,
        refused: answer.refused,
        ..PeerPacket::default()
    }
}

// === impl Conversation ===

/// The conversation about one task. Dropping it ends it.
pub(crate) struct Conversation {
    link: Arc<Link>,
    task: TaskId,
    /// `None` once there is no more to report.
    up: Option<mpsc::Sender<PieceResult>>,
    down: mpsc::Receiver<PeerPacket>,
    /// The operator's rules keep this download from the origin.
    barred: bool,
    _listening: tokio::task::JoinSet<()>,
}

impl Conversation {
    /// The next packet; `None` when the scheduler is gone.
    ///
    /// # Cancel safety
    /// No packet is lost.
    pub(crate) async fn next(&mut self) -> Option<PeerPacket> {
        self.down.recv().await
    }

    /// The scheduler's address.
    pub(crate) fn address(&self) -> String {
        self.link.address.clone()
    }

    /// Whether the download may never go to the origin, while this lasts.
    pub(crate) fn is_barred(&self) -> bool {
        self.barred
    }

    /// Gives the lease back for others to come by it elsewhere: the download moves to another scheduler.
    pub(crate) fn take_along(&self, lease_id: u64) {
        let lease_returned = Some(LeaseReturned { lease_id, outcome: LeaseOutcome::Moved.into() });
        // Where there is no room for it, the end of the conversation gives the lease back, to whoever is next.
        let _ = self.report(Box::new(PieceResult { lease_returned, ..PieceResult::default() }));
    }

    /// Whether it is held with this scheduler.
    pub(crate) fn is_with(&self, link: &Link) -> bool {
        self.link.address == link.address
    }

    /// Sends a report if there is room for it now; otherwise gives it back, to be merged with what comes.
    pub(crate) fn report(&self, report: Box<PieceResult>) -> Result<(), Box<PieceResult>> {
        match self.up.as_ref().and_then(|up| up.try_reserve().ok()) {
            Some(place) => {
                place.send(*report);
                Ok(())
            }
            None => Err(report),
        }
    }

    /// Tells how the download ended, and ends the conversation. Returns whether the scheduler has heard it.
    ///
    /// With the whole content, the end of the download is this word, and a lease lasts until it is heard. Otherwise the
    /// end is that of the conversation, so that all that was reported is heard before.
    pub(crate) async fn finish(
        mut self,
        complete: Option<Content>,
        from_origin: u64,
        from_peers: u64,
    ) -> bool {
        match &self.up {
            Some(up) if complete.is_some() => {
                let _ = tokio::time::timeout(CALL_TIMEOUT, up.reserve_many(QUEUE)).await;
            }
            _ => self.end().await,
        }
        let request = ReportPeerResultRequest {
            host_id: self.link.host_id.clone(),
            task_id: self.task.as_bytes().to_vec().into(),
            complete,
            bytes_from_origin: from_origin,
            bytes_from_peers: from_peers,
        };
        let heard = in_time(self.link.client.clone().report_peer_result(request)).await;
        if let Err(status) = &heard {
            tracing::debug!(task = %self.task, reason = status.message(), "cannot report the end of a download");
        }
        heard.is_ok()
    }

    /// Says that there is no more to report, and waits until the scheduler has heard all of it. Dropped without that, a
    /// conversation takes along what was reported last.
    pub(crate) async fn end(&mut self) {
        self.up = None;
        let heard = async { while self.down.recv().await.is_some() {} };
        let _ = tokio::time::timeout(CALL_TIMEOUT, heard).await;
    }
}

/// When a link is tried again. With `spread`, anywhere in that time behind the pause.
fn retry_after(pause: Duration, spread: Duration, rng: &mut impl Rng) -> Duration {
    pause.mul_f64(rng.random_range(0.5..1.0)) + spread.mul_f64(rng.random_range(0.0..1.0))
}

/// Whether a call failed because the scheduler is gone, or is no more what it was: another one may answer.
pub(crate) fn is_lost(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
    )
}

/// How long a download whose conversation has ended waits before it registers anew.
pub(crate) fn rejoin_pause() -> Duration {
    REJOIN_PAUSE.mul_f64(rand::rng().random_range(0.5..1.0))
}

fn announcement(host: Host, expulsions: &[CertificateDer<'static>]) -> AnnounceHostRequest {
    let expulsions = expulsions.iter().map(|it| it.to_vec().into()).collect();
    AnnounceHostRequest { host: Some(host), expulsions }
}

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| Status::deadline_exceeded("no answer"))?
}

fn ids(ids: &[bytes::Bytes]) -> Vec<TaskId> {
    ids.iter().filter_map(|id| TaskId::try_from(id.as_ref()).ok()).collect()
}

fn held(task: &TaskId, record: &Record, hashes: &[PieceHash]) -> Option<HeldTask> {
    let root = hash::root(&record.layout()?, hashes);
    let content = content(record, Some(root));
    Some(HeldTask { task_id: task.as_bytes().to_vec().into(), content: Some(content) })
}

/// What the scheduler is told of some content.
pub(crate) fn content(record: &Record, root: Option<Root>) -> Content {
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| Header {
        name: name.as_str().to_owned(),
        value: value.as_bytes().to_vec().into(),
    };
    Content {
        length: record.info.length,
        headers: record.info.headers.iter().map(header).collect(),
        root: root.map(|root| root.as_bytes().to_vec()).unwrap_or_default().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    /// Two schedulers that do not answer: nobody listens at these ports.
    fn silent() -> Schedulers {
        let membership = Membership::insecure(darter_enrol::Metrics::default());
        let addresses = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
        Schedulers::new(&addresses, "here", &membership).unwrap()
    }

    #[tokio::test]
    async fn who_was_told_at_once_hears_nothing_older_afterwards() {
        let (schedulers, task) = (silent(), TaskId::from([1; 32]));
        schedulers.note(task, None, None);
        schedulers.note(task, Some(HeldTask::default()), Some("127.0.0.1:1"));
        let known = schedulers.known();
        assert_eq!(known.links["127.0.0.1:1"].news.take(), (vec![], vec![]));
        assert_eq!(known.links["127.0.0.1:2"].news.take(), (vec![HeldTask::default()], vec![]));
    }

    #[tokio::test]
    async fn what_a_scheduler_does_not_hear_of_what_went_it_is_told_again() {
        let (schedulers, task) = (silent(), TaskId::from([1; 32]));
        let link = Arc::clone(&schedulers.known().links["127.0.0.1:1"]);
        link.up.store(true, Ordering::Release);
        schedulers.leave(vec![task]).await;
        assert!(link.tell_news().await.is_err(), "the line ends");
        assert_eq!(link.news.take(), (vec![], vec![task]));
    }

    #[test]
    fn those_who_lose_a_scheduler_together_do_not_come_back_together() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            let wait = retry_after(FIRST_RETRY, SPREAD, &mut rng);
            assert!((FIRST_RETRY / 2..FIRST_RETRY + SPREAD).contains(&wait));
            tenths[(wait.as_millis() / 100) as usize] += 1;
        }
        assert!(tenths.iter().all(|came| *came < 1_600), "{tenths:?}");
    }
}
