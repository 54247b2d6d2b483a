//! The lease: the right to go to the origin, which one peer of a task has at a time.
//!
//! The rule: whoever downloads, lacks bytes, and has no usable source (`Task::has_source`) waits in line, seeds first, then in the
//! order of their tickets; but behind all who had fewer leases that brought nothing, or a seed that stands still would have each. While the lease is free, the first in line whose stream is open has it; a peer that registers
//! may have it with the answer. Its origin must have room for it (`share.rs`). A lease is free when there is none, or when its holder made no progress for too long and
//! somebody else waits, in this task or for the origin: taken from the only one who wants it, it would only break off an origin that is slow.
//! So it is when nothing at all was heard of its holder for a while ([`HOLDER_SILENT`]): then not the origin is slow, but the host is cut off,
//! and is no peer of the task any more until it registers anew, or others would wait for what only it has.
//!
//! A scheduler that takes a task over from another does not know at first who reads from the origin. While those who were in the
//! download come one after the other, the lease is kept for that one ([`KEPT`]): it says so when it registers. So is the lease
//! of a holder who goes to another scheduler, since those who still wait here are about to go there, too.
//!
//! Events that make a peer eligible call [`Task::consider`] for that peer; events that end a lease or lose a source call
//! [`Task::pass_on`] for everybody. So at any moment outside an event, the lease is not free or nobody waits.

use crate::host::HostKey;
use crate::peer::Standing;
use crate::progress::piece_time;
use crate::refusal::Refusal;
use crate::task::Task;
use crate::world::{Cx, Timer};
use darter_protocol::scheduler::LeaseOutcome;
use std::time::{Duration, Instant};

/// A lease without progress for this long passes on. Long enough for an origin that has to wake up or to fetch from an
/// origin of its own, and for a lost packet or two; short enough that a client behind a waiting peer, which gives up
/// after 30 s without a byte (containerd), is still there when the next holder begins.
pub(crate) const LEASE_STALL: Duration = Duration::from_secs(10);

/// A holder of whom nothing was heard for this long is cut off. It reports twice each second, whether anything comes from the origin
/// or not (`BEAT` in `p2p`): four in a row that are lost or late are no chance, and those who wait would otherwise stand still for the
/// ten seconds after which its connection is given up.
pub(crate) const HOLDER_SILENT: Duration = Duration::from_secs(2);

/// The number of the protocol from which on a holder reports that often. One of the number before reports half as often, and is waited for
/// twice as long; earlier ones report what comes alone.
const REPORTS: u32 = 4;
const REPORTS_SELDOM: u32 = 3;

/// How long a holder may say nothing who speaks the protocol of this number.
fn patience(protocol: u32) -> Option<Duration> {
    match protocol {
        REPORTS.. => Some(HOLDER_SILENT),
        REPORTS_SELDOM => Some(HOLDER_SILENT * 2),
        _ => None,
    }
}

/// After each lease in a row that saw no progress at all, the next may take twice as long, up to this many doublings: an
/// origin that needs 15 s for its first byte would otherwise be asked by one waiter after the other and answer nobody.
const MAX_DOUBLINGS: u32 = 3;

/// For so long the lease is kept for one who is on his way. Daemons come back to a scheduler spread over a second (`SPREAD` and
/// `FIRST_RETRY` in `p2p`), and register anew 200 ms after a conversation ended. What it costs: a download that was left without a
/// source at that very moment goes on so much later, and so does one that begins within two seconds of a scheduler's loss.
pub(crate) const KEPT: Duration = Duration::from_secs(2);

/// A peer that gave this many leases back as failed gets no more; it gives up by itself.
const MAX_FAILURES: u8 = 3;

/// How long everybody goes to the origin alone after one has found that its answer cannot be shared.
pub(crate) const UNSHAREABLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: u64,
    pub(crate) holder: HostKey,
    /// Without progress until then, it is free for others.
    pub(crate) deadline: Instant,
    /// So it is without a word from its holder until then. `None`: it is one that says nothing while nothing comes.
    pub(crate) silent_at: Option<Instant>,
    /// A report of its holder has arrived, and waits for its turn: nobody knows what it says, so the lease is free at no time. In a
    /// crowd that takes longer than a holder may be silent, and a holder that is heard too late is not one that says nothing.
    pub(crate) unheard: bool,
    /// When the timer is armed; never after the lease is free. Unarmed once that was so and nobody wanted it.
    pub(crate) timer: Option<Instant>,
    /// The most origin bytes that were reported.
    pub(crate) origin_bytes: u64,
    /// Without another piece until then, bytes are no progress any more.
    pub(crate) piece_by: Instant,
    /// What the holder held when its last piece was counted.
    pub(crate) held: u64,
    /// The holder has said already that the content is another than was known.
    pub(crate) replaced: bool,
}

impl Lease {
    fn is_silent(&self, now: Instant) -> bool {
        !self.unheard && self.silent_at.is_some_and(|silent_at| silent_at <= now)
    }

    /// When it is free for others, if nothing happens.
    fn free_at(&self) -> Instant {
        self.silent_at.map_or(self.deadline, |silent_at| silent_at.min(self.deadline))
    }
}

impl Task {
    pub(crate) fn has_lease(&self, key: HostKey) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.holder == key)
    }

    /// The peer may have become eligible: if the lease is free, it gets it.
    pub(crate) fn consider(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if !self.is_free(cx.now) || self.ticket_of(key).is_none() {
            return;
        }
        if self.unshareable {
            // Who waits here waits for room, of which this one leaves no more: nobody else is looked at, or in a crowd each who comes would
            // look at all others.
            if self.enter_origin(cx, key) && self.go_alone(cx, key) {
                self.pass_on(cx);
            }
            return self.tell_barred(cx);
        }
        let revoked = self.revoke(cx);
        if self.lease.is_some() {
            return;
        }
        let has_it = self.enter_origin(cx, key).then(|| self.next_turn(cx, key));
        if has_it == Some(false) || has_it.is_none() && revoked {
            self.pass_on(cx);
        }
    }

    /// The lease has ended or a source is lost: if the lease is free, the first in line gets it.
    pub(crate) fn pass_on(&mut self, cx: &mut Cx<'_>) {
        if !self.is_free(cx.now) {
            return;
        }
        let mut line = self.line(cx);
        if !line.is_empty() && self.revoke(cx) {
            if self.lease.is_some() {
                return;
            }
            line = self.line(cx);
        }
        loop {
            let mut went_alone = false;
            for key in line {
                if self.enter_origin(cx, key) {
                    if self.next_turn(cx, key) {
                        return;
                    }
                    went_alone = true;
                }
            }
            if !went_alone {
                break;
            }
            // It may have been another's source: then the line is longer than it was.
            line = self.line(cx);
        }
        self.tell_barred(cx);
    }

    /// Those who wait and can be told: who had fewer leases for nothing, then seeds, then the most urgent, then the first to come.
    fn line(&self, cx: &Cx<'_>) -> Vec<HostKey> {
        #[cfg(test)]
        self.looked_at.set(self.looked_at.get() + self.downloading);
        let mut line: Vec<((u8, bool, u8, u64), HostKey)> = self
            .downloads()
            .filter(|(_, download)| download.stream.is_some())
            .filter_map(|(key, download)| {
                let place =
                    (download.vain, !cx.world.hosts.is_seed(key), download.rank, self.ticket_of(key)?);
                Some((place, key))
            })
            .collect();
        line.sort_unstable();
        line.into_iter().map(|(_, key)| key).collect()
    }

    /// It is this peer's turn. Returns whether it has the lease now: where it could share nothing, it goes alone.
    fn next_turn(&mut self, cx: &mut Cx<'_>, key: HostKey) -> bool {
        if self.unshareable || self.peers.get(&key).is_some_and(|peer| peer.regard.struck) {
            self.go_alone(cx, key);
            return false;
        }
        self.grant(cx, key);
        true
    }

    pub(crate) fn is_free(&self, now: Instant) -> bool {
        match &self.lease {
            Some(lease) => !lease.unheard && now >= lease.free_at(),
            None => self.kept_until.is_none(),
        }
    }

    /// Nobody has the lease for a moment, but for one who comes with what he reads from the origin. Once, until something comes
    /// from there: who goes to and fro and brings nothing would have it for ever.
    pub(crate) fn keep_lease(&mut self, cx: &mut Cx<'_>) {
        if self.lease.is_none() && !self.unshareable && !self.kept_in_vain {
            self.keep_no_longer(cx);
            self.kept_in_vain = true;
            let until = cx.now + KEPT;
            self.kept_until = Some(until);
            cx.world.timers.insert((until, Timer::Kept(cx.task)));
        }
    }

    pub(crate) fn keep_no_longer(&mut self, cx: &mut Cx<'_>) {
        if let Some(at) = self.kept_until.take() {
            cx.world.timers.remove(&(at, Timer::Kept(cx.task)));
        }
    }

    /// Nobody came for whom it was kept.
    pub(crate) fn kept_due(&mut self, cx: &mut Cx<'_>) {
        self.kept_until = None;
        self.pass_on(cx);
    }

    /// The ticket of a peer that waits for the lease.
    pub(crate) fn ticket_of(&self, key: HostKey) -> Option<u64> {
        match self.standing(key)? {
            Standing::Waiting { ticket } if !self.is_source(key) && !self.has_source(key) => Some(ticket),
            _ => None,
        }
    }

    fn grant(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let id = cx.world.lease_id();
        let Some(download) = self.download_mut(key) else { return };
        (download.standing, download.leased) = (Standing::Leased, true);
        download.news.lease = Some(id);
        let held = download.held;
        cx.world.counts.leases_granted += 1;
        cx.world.counts.leases_handed_over += u64::from(std::mem::take(&mut self.abandoned));
        let deadline = cx.now + LEASE_STALL * 2u32.pow(self.stalls.min(MAX_DOUBLINGS));
        let patience = cx.world.hosts.host(key).and_then(|host| patience(host.protocol));
        let silent_at = patience.map(|patience| cx.now + patience);
        self.lease = Some(Lease {
            id,
            holder: key,
            deadline,
            silent_at,
            unheard: false,
            timer: None,
            origin_bytes: 0,
            piece_by: cx.now + piece_time(self.content.as_ref()),
            held,
            replaced: false,
        });
        self.arm(cx);
        self.open_gate(cx, key);
        self.wake(cx, key);
    }

    /// A report of the peer has arrived, and will be heard when it is its turn.
    pub(crate) fn arrived(&mut self, key: HostKey) {
        if let Some(lease) = self.lease.as_mut().filter(|lease| lease.holder == key) {
            lease.unheard = true;
        }
    }

    /// No report of the peer waits any more: if it is the holder, its lease is free now if it had been without that.
    pub(crate) fn heard_out(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let lease = self.lease.as_mut().filter(|lease| lease.holder == key);
        if lease.is_some_and(|lease| std::mem::take(&mut lease.unheard) && lease.timer.is_none()) {
            self.lease_due(cx);
        }
    }

    /// The peer is there, if it is the holder.
    pub(crate) fn heard(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let lease = self.lease.as_mut().filter(|lease| lease.holder == key);
        let patience = cx.world.hosts.host(key).and_then(|host| patience(host.protocol));
        let (Some(lease), Some(patience)) = (lease, patience) else { return };
        lease.silent_at = lease.silent_at.max(Some(cx.now + patience));
        let is_back = lease.timer.is_none() && cx.now < lease.deadline;
        if is_back {
            self.arm(cx);
            self.moves(cx, key);
        }
    }

    fn moves(&self, cx: &mut Cx<'_>, key: HostKey) {
        if let Some(download) = self.download(key) {
            cx.world.budgets.moves(&download.origin, cx.task, key);
        }
    }

    /// The peer has moved the task forward, if it is the holder.
    pub(crate) fn progress(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        if let Some(lease) = self.lease.as_mut().filter(|lease| lease.holder == key) {
            lease.deadline = cx.now + LEASE_STALL;
            (self.stalls, self.kept_in_vain) = (0, false);
            let stood_still = lease.timer.is_none();
            // A timer that is armed comes too early and is armed again then: no need to move it at every message.
            if lease.timer.is_none_or(|at| at > lease.free_at()) {
                self.arm(cx);
            }
            if stood_still {
                self.moves(cx, key);
            }
            self.download_mut(key).into_iter().for_each(|download| download.vain = 0);
        }
    }

    fn arm(&mut self, cx: &mut Cx<'_>) {
        if let Some(lease) = &mut self.lease {
            let timer = Timer::Lease(cx.task);
            let free_at = lease.free_at();
            if let Some(at) = lease.timer.replace(free_at) {
                cx.world.timers.remove(&(at, timer));
            }
            cx.world.timers.insert((free_at, timer));
        }
    }

    /// The lease's timer has fired.
    pub(crate) fn lease_due(&mut self, cx: &mut Cx<'_>) {
        let Some(lease) = &mut self.lease else { return };
        lease.timer = None;
        if lease.unheard {
            // It is looked at again once that was heard.
            return;
        }
        if cx.now < lease.free_at() {
            self.arm(cx);
        } else {
            let (holder, silent) = (lease.holder, lease.is_silent(cx.now));
            if silent && self.others_wait(holder) {
                self.revoke(cx);
            }
            self.pass_on(cx);
            let stalled = self.download(holder).filter(|download| download.uses && self.is_free(cx.now));
            if stalled.is_some_and(|download| cx.world.budgets.stalled(&download.origin, cx.task, holder)) {
                cx.world.budgets.note_overdue(cx.task);
            }
        }
    }

    /// Whether others wait for what only the holder of the lease may have.
    fn others_wait(&self, holder: HostKey) -> bool {
        self.downloads().any(|(key, download)| {
            key != holder
                && download.stream.is_some()
                && matches!(download.standing, Standing::Waiting { .. })
        })
    }

    /// Takes the lease from a holder that stalled, which waits on, last in line; or from one that is cut off, which is out of the
    /// task. Returns whether there was one. Then another may have it already.
    pub(crate) fn revoke(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(lease) = &self.lease else { return false };
        let (id, holder, silent) = (lease.id, lease.holder, lease.is_silent(cx.now));
        if silent {
            cx.world.counts.leases_expired += 1;
            tracing::debug!(task = %cx.task, "nothing is heard of the holder of the lease");
            // It registers anew if it hears of this.
            self.leave(cx, holder, Some(Refusal::NotRegistered));
            return true;
        }
        let unsent = self.download(holder).is_some_and(|download| download.news.lease == Some(id));
        let ticket = self.ticket();
        self.release(cx, Standing::Waiting { ticket });
        self.stalls += 1;
        cx.world.counts.leases_expired += 1;
        if let Some(download) = self.download_mut(holder) {
            // The one before may not have been said yet.
            download.news.revoked |= !unsent;
            download.vain = download.vain.saturating_add(1);
        }
        self.wake(cx, holder);
        true
    }

    /// Ends the lease; its holder stands as `standing` from now on.
    fn release(&mut self, cx: &mut Cx<'_>, standing: Standing) {
        let Some(lease) = self.lease.take() else { return };
        if let Some(at) = lease.timer {
            cx.world.timers.remove(&(at, Timer::Lease(cx.task)));
        }
        self.abandoned = standing != Standing::Satisfied;
        // Who goes on alone uses the origin on.
        if standing != Standing::Alone {
            self.leave_origin(cx, lease.holder);
        }
        if let Some(download) = self.download_mut(lease.holder) {
            download.standing = standing;
            download.news.lease = None;
        }
        self.released.insert(lease.holder);
        self.changed(cx, lease.holder);
    }

    /// The peer stops downloading: its lease, if it has it, is free. Returns whether it had it.
    pub(crate) fn surrender(&mut self, cx: &mut Cx<'_>, key: HostKey, standing: Standing) -> bool {
        let had = self.has_lease(key);
        if had {
            self.release(cx, standing);
        }
        had
    }

    /// The peer goes to the origin for itself: what it gets there belongs to nobody else. Returns whether somebody waits again
    /// because of it.
    pub(crate) fn go_alone(&mut self, cx: &mut Cx<'_>, key: HostKey) -> bool {
        self.surrender(cx, key, Standing::Alone);
        let Some(download) = self.download_mut(key) else { return false };
        download.standing = Standing::Alone;
        download.news.unshareable = true;
        let wanted_again = self.unmesh(cx, key);
        self.wake(cx, key);
        wanted_again
    }

    /// A peer that had all it wanted from the origin has lost a partner: it may want more after all, and waits again. Returns
    /// whether it does.
    pub(crate) fn wants_again(&mut self, key: HostKey) -> bool {
        let wants = self.standing(key) == Some(Standing::Satisfied);
        let ticket = self.ticket();
        if let Some(download) = self.download_mut(key).filter(|_| wants) {
            download.standing = Standing::Waiting { ticket };
        }
        wants
    }

    /// The holder gives its lease back. One that it does not hold (any more) means nothing: the messages crossed.
    pub(crate) fn hear_lease_returned(
        &mut self,
        cx: &mut Cx<'_>,
        key: HostKey,
        id: u64,
        outcome: LeaseOutcome,
    ) {
        if self.lease.as_ref().is_none_or(|lease| lease.id != id || lease.holder != key) {
            return;
        }
        match outcome {
            LeaseOutcome::Done => self.release(cx, Standing::Satisfied),
            LeaseOutcome::Refused => self.release(cx, Standing::Out),
            LeaseOutcome::Moved => {
                self.release(cx, Standing::Out);
                self.keep_lease(cx);
            }
            LeaseOutcome::Failed | LeaseOutcome::Unspecified => self.failed(cx, key),
            LeaseOutcome::Unshareable => {
                self.unshareable = true;
                cx.world.timers.insert((cx.now + UNSHAREABLE, Timer::Shareable(cx.task)));
                self.go_alone(cx, key);
                // It says so itself.
                if let Some(download) = self.download_mut(key) {
                    download.news.unshareable = false;
                }
            }
        }
        self.pass_on(cx);
    }

    fn failed(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let ticket = self.ticket();
        let Some(download) = self.download_mut(key) else { return };
        (download.failures, download.vain) = (download.failures + 1, download.vain.saturating_add(1));
        let gave_up = download.failures >= MAX_FAILURES;
        self.release(cx, if gave_up { Standing::Out } else { Standing::Waiting { ticket } });
    }
}
