//! The conversation with the schedulers.
//!
//! Each configured scheduler has a [`Link`]: a life line that is kept up for as long as this daemon runs, whether the
//! scheduler is there or not. A download asks the first scheduler of its task's ring order whose link is up; when none is,
//! it goes on alone, and joins when one appears. Which schedulers there are, `members.rs` finds out.
//!
//! Here, which schedulers there are, and whom a task belongs to; `link.rs`, one of them; `life.rs`, its life line;
//! `conversation.rs`, what is said of one download.

mod conversation;
mod life;
mod link;

pub(crate) use conversation::{Arrival, BEAT, Claim, Conversation, Joined, is_lost, rejoin_pause};
pub(crate) use life::Life;
pub(crate) use link::Link;

use crate::members::{InvalidAddress, Names};
use crate::store::Record;
use darter_enrol::Membership;
use darter_protocol::hash;
use darter_protocol::scheduler::{Content, Header, HeldTask};
use darter_protocol::{PieceHash, Ring, Root, TaskId};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How often a name is asked for the schedulers that it stands for, and how soon after one was lost.
const ASK_AGAIN: Duration = Duration::from_secs(30);
const ASK_AT_MOST: Duration = Duration::from_millis(500);

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
    /// With those that are gone: without their points it would be the same for all others.
    ring: Ring,
    links: HashMap<String, Arc<Link>>,
    /// Those that were removed while they were there, at least for as long as their contents change over.
    gone: HashMap<String, Arc<Link>>,
}

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
        let way = |address: &str| {
            let link = known.links.get(address);
            let seen = link.or_else(|| known.gone.get(address))?.seen();
            settling |= seen.settles;
            Some((Arc::clone(link.filter(|_| seen.up)?), settling))
        };
        known.ring.order(task).filter_map(way).collect()
    }

    /// Whether a scheduler was there a moment ago, that is not there now: it may be back in another.
    pub(crate) fn lost_one(&self) -> bool {
        let known = self.known();
        known.links.values().map(|link| link.seen()).any(|seen| seen.settles && !seen.up)
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
                let was_away = !before.links.is_empty();
                let link = Link::new(address, &self.host_id, &self.membership, was_away)?;
                new.push(Arc::clone(&link));
                Some(link)
            });
            links.extend(link.map(|link| (address.clone(), link)));
        }
        let left = before.links.iter().filter(|(address, _)| !members.contains(*address));
        let left: Vec<(String, Arc<Link>)> =
            left.map(|(address, link)| (address.clone(), Arc::clone(link))).collect();
        left.iter().for_each(|(_, link)| link.note_removed());
        let mut gone: HashMap<_, _> =
            before.gone.iter().map(|(address, link)| (address.clone(), Arc::clone(link))).collect();
        gone.extend(left.iter().cloned());
        gone.retain(|address, link| !members.contains(address) && link.seen().settles);
        let ring = Ring::new(links.keys().chain(gone.keys()).cloned());
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Known { ring, links, gone });
        // Only now: whoever hears of its end must not find it again.
        left.iter().for_each(|(_, link)| link.removed.cancel());
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
        link.note_up();
        schedulers.leave(vec![task]).await;
        assert!(link.tell_news().await.is_err(), "the line ends");
        assert_eq!(link.news.take(), (vec![], vec![task]));
    }

    /// A content whose scheduler, of these, is the one at `home`.
    fn at_home(schedulers: &Schedulers, home: &str) -> TaskId {
        let known = schedulers.known();
        let mut tasks = (0..=255).map(|n| TaskId::from([n; 32]));
        tasks.find(|task| known.ring.order(task).next() == Some(home)).unwrap()
    }

    #[tokio::test]
    async fn the_contents_of_a_scheduler_that_is_removed_are_on_their_way_to_others() {
        let schedulers = silent();
        schedulers.known().links.values().for_each(|link| link.note_up());
        let (moved, other) = (at_home(&schedulers, "127.0.0.1:1"), at_home(&schedulers, "127.0.0.1:2"));
        schedulers.replace(&BTreeSet::from(["127.0.0.1:2".to_owned()]));
        let ways = |task| {
            let ways = schedulers.ways(&task).into_iter();
            ways.map(|(link, settling)| (link.address().to_owned(), settling)).collect::<Vec<_>>()
        };
        assert_eq!(ways(moved), [("127.0.0.1:2".to_owned(), true)]);
        assert_eq!(ways(other), [("127.0.0.1:2".to_owned(), false)]);
    }

    /// Whoever finds it there finds it settling, whichever thread is in between.
    #[tokio::test]
    async fn a_scheduler_that_comes_back_is_never_there_without_its_contents_being_on_their_way() {
        let task = TaskId::from([1; 32]);
        for _ in 0..2_000 {
            let schedulers = silent();
            let known = schedulers.known();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for link in known.links.values() {
                        link.note_down();
                        link.note_up();
                    }
                });
                let (_, settling) = loop {
                    if let Some(way) = schedulers.ways(&task).into_iter().next() {
                        break way;
                    }
                    std::hint::spin_loop();
                };
                assert!(settling);
            });
        }
    }
}
