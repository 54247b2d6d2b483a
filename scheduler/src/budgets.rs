//! [`Budgets`]: who uses how much of what an origin may give the whole cluster, and who waits for it.
//!
//! Invariants, which the tests check after every event:
//! - As many peers use an origin as it has room for, at most, but for those who came before a limit was lowered.
//! - A task waits in the line of an origin only while that has no room. The line goes by priority, then by time.
//! - All who use an origin have the same share of its bytes, and together never more than all of them.
//!
//! It decides nothing about a task: where there is room, it says which task is next, and that one chooses its peer (`lease.rs`).

use crate::access::{Access, Budget};
use crate::host::HostKey;
use darter_protocol::TaskId;
use darter_protocol::scheduler as proto;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A smaller share of an origin's bytes than this is of no use: others wait meanwhile. In bytes per second.
const LEAST_SHARE: u64 = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Budgets {
    access: Arc<Access>,
    origins: HashMap<Arc<str>, Origin>,
    /// Origins that may have room, and somebody waits.
    free: Vec<Arc<str>>,
    /// Origins whose users have another share than before.
    reshared: Vec<Arc<str>>,
    /// Tasks whose lease stands still while others wait for its origin.
    overdue: Vec<TaskId>,
    /// The task whose turn it is, and where: it has left that line, and goes in before those who stand in it.
    turn: Option<(Arc<str>, TaskId)>,
    /// Tasks that wait, in all lines.
    waiting: usize,
    places: u64,
}

/// An origin that somebody uses, or waits for.
#[derive(Debug, Default)]
struct Origin {
    users: BTreeSet<(TaskId, HostKey)>,
    line: BTreeSet<Place>,
    /// Tasks whose lease for it stands still, and who holds that. Nobody has wanted it yet.
    stalled: BTreeSet<(TaskId, HostKey)>,
    /// Into how many equal parts its bytes are divided.
    parts: u64,
}

/// A task's place in an origin's line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Of the one who waits that goes first.
    pub(crate) rank: u8,
    since: u64,
    task: TaskId,
}

impl Budgets {
    /// The operator's rules.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// Other rules count from now on. Who uses an origin goes on.
    pub(crate) fn set_access(&mut self, access: Access) {
        self.access = Arc::new(access);
        let mut names: Vec<Arc<str>> = self.origins.keys().cloned().collect();
        names.sort_unstable();
        self.free.clone_from(&names);
        self.reshared = names;
    }

    /// Tasks that wait for room.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Lets a peer use an origin, if there is room and nobody before it in the line; `None` otherwise. With `false` nothing is
    /// limited there, and nothing is kept.
    pub(crate) fn enter(&mut self, name: &Arc<str>, task: TaskId, key: HostKey) -> Option<bool> {
        let budget = self.access.budget(name);
        if budget.is_unlimited() {
            return Some(false);
        }
        if !self.has_room(name) || !self.is_first(name, task) {
            return None;
        }
        let origin = self.origins.entry(Arc::clone(name)).or_default();
        origin.users.insert((task, key));
        self.share_out(name);
        Some(true)
    }

    /// The peer uses the origin no more.
    pub(crate) fn leave(&mut self, name: &Arc<str>, task: TaskId, key: HostKey) {
        let Some(origin) = self.origins.get_mut(name) else { return };
        origin.users.remove(&(task, key));
        origin.stalled.remove(&(task, key));
        if !origin.line.is_empty() {
            self.free.push(Arc::clone(name));
        }
        self.share_out(name);
        self.forget_unused(name);
    }

    /// Whether no other task has waited longer: what is free for a moment is theirs.
    fn is_first(&self, name: &Arc<str>, task: TaskId) -> bool {
        let first = self.origins.get(name).and_then(|origin| origin.line.first());
        first.is_none_or(|first| first.task == task)
            || self.turn.as_ref().is_some_and(|(at, whose)| at == name && *whose == task)
    }

    /// Whether one more may use it.
    pub(crate) fn has_room(&self, name: &str) -> bool {
        let users = self.origins.get(name).map_or(0, |origin| origin.users.len());
        room(&self.access.budget(name)).is_none_or(|room| (users as u64) < room)
    }

    /// What each who uses the origin may use of it.
    pub(crate) fn share(&self, name: &str) -> proto::Share {
        let budget = self.access.budget(name);
        let parts = self.origins.get(name).map_or(1, |origin| origin.parts.max(1));
        proto::Share {
            connections: u32::from(budget.connections.is_some()),
            bytes_per_second: budget.bytes_per_second.map_or(0, |rate| (rate.get() / parts).max(1)),
        }
    }

    fn share_out(&mut self, name: &Arc<str>) {
        let Some(origin) = self.origins.get_mut(name) else { return };
        let parts = parts(origin.users.len() as u64);
        if std::mem::replace(&mut origin.parts, parts) != parts {
            self.reshared.push(Arc::clone(name));
        }
    }

    /// A task waits for room, from now on or in its place of before, in which it may stand no more; `rank` being that of its first.
    pub(crate) fn wait(&mut self, name: &Arc<str>, task: TaskId, rank: u8, before: Option<Place>) -> Place {
        let origin = self.origins.entry(Arc::clone(name)).or_default();
        let place = match before {
            Some(before) => {
                self.waiting -= usize::from(origin.line.remove(&before));
                Place { rank: rank.min(before.rank), ..before }
            }
            None => {
                self.places += 1;
                Place { rank, since: self.places, task }
            }
        };
        origin.line.insert(place);
        self.waiting += 1;
        self.overdue.extend(origin.stalled.pop_first().map(|(task, _)| task));
        place
    }

    /// The task does not wait there any more.
    pub(crate) fn give_up(&mut self, name: &Arc<str>, place: Place) {
        if self.origins.get_mut(name).is_some_and(|origin| origin.line.remove(&place)) {
            self.waiting -= 1;
            self.forget_unused(name);
        }
    }

    /// The task's lease for the origin, which that host holds, stands still. Returns whether somebody waits for it.
    pub(crate) fn stalled(&mut self, name: &str, task: TaskId, holder: HostKey) -> bool {
        let Some(origin) = self.origins.get_mut(name) else { return false };
        if origin.line.is_empty() {
            origin.stalled.insert((task, holder));
        }
        !origin.line.is_empty()
    }

    /// Its lease is to be taken away for those who wait.
    pub(crate) fn note_overdue(&mut self, task: TaskId) {
        self.overdue.push(task);
    }

    /// It moves again.
    pub(crate) fn moves(&mut self, name: &str, task: TaskId, holder: HostKey) {
        if let Some(origin) = self.origins.get_mut(name) {
            origin.stalled.remove(&(task, holder));
        }
    }

    /// A task whose lease is to be taken away for others.
    pub(crate) fn poll_overdue(&mut self) -> Option<TaskId> {
        self.overdue.pop()
    }

    /// The task that is next at an origin that has room. It is not in that line any more.
    pub(crate) fn poll_next(&mut self) -> Option<(Arc<str>, TaskId)> {
        self.turn = None;
        loop {
            let name = self.free.last().cloned()?;
            let room = self.has_room(&name);
            let first =
                self.origins.get_mut(&name).filter(|_| room).and_then(|origin| origin.line.pop_first());
            if let Some(first) = first {
                self.waiting -= 1;
                self.turn = Some((Arc::clone(&name), first.task));
                return self.turn.clone();
            }
            self.free.pop();
            self.forget_unused(&name);
        }
    }

    /// Whether there is more for [`Self::poll_reshared`].
    pub(crate) fn has_reshared(&self) -> bool {
        !self.reshared.is_empty()
    }

    /// Those who are to be told another share.
    pub(crate) fn poll_reshared(&mut self) -> Vec<(TaskId, HostKey)> {
        let Some(name) = self.reshared.pop() else { return Vec::new() };
        self.origins.get(&name).map(|origin| origin.users.iter().copied().collect()).unwrap_or_default()
    }

    fn forget_unused(&mut self, name: &str) {
        if self.origins.get(name).is_some_and(|origin| origin.users.is_empty() && origin.line.is_empty()) {
            self.origins.remove(name);
        }
    }
}

/// How many may use an origin at once.
fn room(budget: &Budget) -> Option<u64> {
    let by_bytes = budget.bytes_per_second.map(|rate| (rate.get() / LEAST_SHARE).max(1));
    let connections = budget.connections.map(|most| u64::from(most.get()));
    by_bytes.into_iter().chain(connections).min()
}

/// Into how many parts the bytes are divided for `users`: for each one up to sixteen, then for up to an eighth more, so that
/// not everybody is told another share whenever one comes or goes.
fn parts(users: u64) -> u64 {
    match users.checked_ilog2() {
        None | Some(0..=3) => users,
        Some(log) => users.next_multiple_of(1 << (log - 3)),
    }
}

#[cfg(test)]
impl Budgets {
    /// Panics when an invariant is broken. `users` and `places` are those of all tasks.
    pub(crate) fn check(
        &self,
        users: &BTreeSet<(Arc<str>, TaskId, HostKey)>,
        places: &BTreeSet<(Arc<str>, Place)>,
    ) {
        let all = |origin: &(&Arc<str>, &Origin)| -> Vec<(Arc<str>, TaskId, HostKey)> {
            origin.1.users.iter().map(|(task, key)| (Arc::clone(origin.0), *task, *key)).collect()
        };
        assert_eq!(
            &self.origins.iter().flat_map(|origin| all(&origin)).collect::<BTreeSet<_>>(),
            users,
            "who uses what"
        );
        let lines = self
            .origins
            .iter()
            .flat_map(|(name, origin)| origin.line.iter().map(|it| (Arc::clone(name), *it)));
        assert_eq!(&lines.collect::<BTreeSet<_>>(), places, "who waits for what");
        assert_eq!(self.waiting, places.len());
        for (name, origin) in &self.origins {
            assert!(!origin.users.is_empty() || !origin.line.is_empty(), "an origin of nobody");
            assert!(!self.has_room(name) || origin.line.is_empty(), "somebody waits, and there is room");
            assert!(origin.stalled.is_subset(&origin.users), "who uses it no more does not stand still");
            let all = self.access.budget(name).bytes_per_second.map_or(u64::MAX, |rate| rate.get());
            let share = self.share(name).bytes_per_second;
            assert!(share * origin.users.len() as u64 <= all, "more is shared out than there is");
        }
        assert!(self.overdue.is_empty() && self.reshared.is_empty(), "something was not carried out");
        assert!(self.turn.is_none(), "a turn that was not taken");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_enough_and_at_most_an_eighth_too_many() {
        let mut told = 0;
        for users in 1..2000u64 {
            assert!(parts(users) >= users && parts(users) * 8 <= users * 9, "{users}");
            told += u64::from(parts(users) != parts(users - 1)) * users;
        }
        // Whoever comes has a few others told, however many there are.
        assert!(told < 2000 * 16, "{told} were told");
    }
}
