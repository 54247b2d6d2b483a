//! [`Uploads`]: whom a daemon serves, over all its tasks.
//!
//! There are few places, since a mesh lives from pieces that arrive soon and are passed on: twenty uploads at a twentieth of
//! the speed would bring each piece twenty times as late, and nobody could do anything with it in the meantime. Who finds
//! no place free is put into a line. When a place is free, it is kept for the first in the line, who is invited; one that
//! does not come in time loses it. Since whoever was served goes to the end of the line, nobody starves, and nobody gets
//! two places while another has none.
//!
//! A place is worth one piece of [`PLACE_BYTES`]; what is smaller takes less of it, so that many small things are not
//! served one after the other.
//!
//! A peer that takes nothing any more, because it was cut off or stands still, would keep its place and what it was to be given
//! for as long as its connection lasts, which nobody ends for minutes. After [`STALLED`] both are for others. One that goes on after
//! that is only slow, and is waited for twice as long the next time; after [`MOST_PATIENCE`] it goes on without a place. Who has [`MAX_STALLED_EACH`] such is given nothing more, so that the
//! [`MAX_STALLED`] of all are not one peer's.
//!
//! Invariant: an upload is in `sending` from the moment when it is admitted until [`Uploads::handle_sent`]; what is sent and
//! kept together takes no more than the places and those who are called ahead or come late (`has_room`). What stalls takes no
//! place, and with [`MAX_STALLED`] such nobody has room, and nobody is invited.

use crate::fresh::Fresh;
use crate::watch::Typical;
use darter_protocol::{HostId, PieceIndex, TaskId};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// What one place is worth in bytes.
const PLACE_BYTES: u64 = 1 << 20;
/// What even the smallest upload takes of a place: its connection, its system calls.
const LEAST_BYTES: u64 = 64 << 10;
/// For how long a place is kept for whoever was invited: what it takes to come over a line that is full both ways.
const KEEP: Duration = Duration::from_millis(500);
/// For how long an invitation is good. Who comes after [`KEEP`] finds the place taken and is served all the same: sent away,
/// it would come too late again the next time, and so would everybody on a line that is as slow.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// Uploads beyond the places, of those who came late.
const MAX_LATE: u64 = 4;
/// Invitations beyond the places, at least: the next one is on its way when a place becomes free.
const AHEAD: u64 = 1;
/// And at most, however far away the peers are.
const MAX_AHEAD: u64 = 8;
/// Peers in the line. Who finds it full asks again after a while.
const MAX_LINE: usize = 16_384;
/// With fewer fresh pieces than this, they are given away as fast as they come.
const BACKLOG: usize = 3;
/// Then this many uploads of them are enough: the sooner each arrives, the sooner it is passed on.
const FEW: u64 = 2;
/// An upload of which nothing was taken for so long is no upload any more: as long as a receiver waits for a silent sender.
const STALLED: Duration = Duration::from_secs(4);
/// What takes nothing for so long, having been waited for half of that before, keeps no place any more, however it goes on.
const MOST_PATIENCE: Duration = Duration::from_secs(16);
/// With so many that stall, no more are begun: each holds a connection.
const MAX_STALLED: usize = 64;
/// And of one peer; of those that do not say who they are, together.
const MAX_STALLED_EACH: usize = 2;
/// Ended tasks of which it is remembered what nobody has: a KiB each.
const MAX_ENDED: usize = 1024;

/// An upload that was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UploadId(u64);

/// The answer to whoever asks for a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Send it, and tell [`Uploads::handle_sent`] how that ended.
    Serve(UploadId),
    /// No place is free; there will be an invitation.
    Wait,
}

/// A place is kept for a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Of which task.
    pub task: TaskId,
    /// For whom.
    pub peer: HostId,
    /// What he should ask for, since nobody else has it.
    pub best: Option<PieceIndex>,
}

/// The uploads of one daemon.
#[derive(Debug)]
pub struct Uploads {
    places: u64,
    sending: HashMap<UploadId, Sending>,
    kept: Vec<Kept>,
    line: VecDeque<Waiting>,
    fresh: HashMap<TaskId, Fresh>,
    /// Tasks that have ended with fresh pieces, each once, the oldest first.
    ended: VecDeque<TaskId>,
    next: u64,
    /// How long whoever is invited takes to come.
    coming: Typical,
    /// How long an upload takes.
    taking: Typical,
}

#[derive(Debug)]
struct Sending {
    task: TaskId,
    piece: PieceIndex,
    peer: Option<HostId>,
    bytes: u64,
    since: Instant,
    across: bool,
    /// Since when the peer has not taken what it was handed, or asked for the first of it. `None`: it is this host's turn to hand
    /// something out.
    handed: Option<Instant>,
    /// How long that may last.
    patience: Duration,
    /// When to look at that again.
    look: Instant,
    stalled: bool,
}

/// Who stands in the line.
#[derive(Debug, PartialEq, Eq)]
struct Waiting {
    task: TaskId,
    peer: HostId,
    /// It brings what it asks for into another zone.
    across: bool,
}

impl Waiting {
    fn is(&self, task: &TaskId, peer: &HostId) -> bool {
        (&self.task, &self.peer) == (task, peer)
    }
}

#[derive(Debug)]
struct Kept {
    task: TaskId,
    peer: HostId,
    best: Option<PieceIndex>,
    since: Instant,
    /// Not come in time: the place is another's by now.
    late: bool,
}

impl Uploads {
    /// Places of a daemon. Fewer leave links idle while receivers are busy or far away; with more, every piece comes later
    /// and is passed on later. In the simulation (15 peers, 256 pieces of 1 MiB, equal rates), as many fetches under way as
    /// places, the last one is done after so many times the time of one copy:
    ///
    /// | places | 1 Gbit/s, 1 ms | 1 Gbit/s, 10 ms | 80 Mbit/s, 50 ms | 80 Mbit/s, 150 ms |
    /// |---|---|---|---|---|
    /// | 4 | 1.11 | 1.54 | 1.18 | 1.68 |
    /// | 6 | 1.11 | 1.26 | 1.10 | 1.33 |
    /// | 8 | 1.13 | 1.19 | 1.15 | 1.22 |
    pub const PLACES: u32 = 6;

    /// Uploads with so many places, at least one.
    pub fn new(places: u32) -> Self {
        Self {
            places: u64::from(places.max(1)),
            sending: HashMap::new(),
            kept: Vec::new(),
            line: VecDeque::new(),
            fresh: HashMap::new(),
            ended: VecDeque::new(),
            next: 0,
            coming: Typical::default(),
            taking: Typical::default(),
        }
    }

    /// `peer` asks for `piece` of `bytes` bytes, which is here. One that does not say who it is gets no place in the line.
    /// Whoever was called has the place that is kept for it.
    pub fn handle_asked(
        &mut self,
        now: Instant,
        task: TaskId,
        peer: Option<&HostId>,
        wish: (PieceIndex, u64),
    ) -> Verdict {
        let kept = peer.and_then(|peer| self.take_kept(&task, peer));
        self.admit(now, task, (peer, kept, false), wish)
    }

    /// The same from one who brings the piece into another zone, where many wait for it, and who asks for nothing else: with a place
    /// that is kept for him where he was `called`. He stands in the line behind as many as come from there, and what he gets
    /// counts as given to nobody here.
    pub fn handle_asked_across(
        &mut self,
        now: Instant,
        task: TaskId,
        (peer, called): (&HostId, bool),
        wish: (PieceIndex, u64),
    ) -> Verdict {
        let kept = if called { self.take_kept(&task, peer) } else { None };
        // What comes from the origin is new to every zone: whoever takes it takes it for all.
        let across = self.fresh.get(&task).is_none_or(|fresh| !fresh.coming);
        self.admit(now, task, (Some(peer), kept, across), wish)
    }

    /// The same, but the peer was not called when it asked. A place that is kept for it is not for this: what it is kept for
    /// may be asked over another connection, and come later. It went to repeats that way while what only this host had
    /// waited: sixteen daemons, 80 Mbit/s each, 19 of the first 45 pieces.
    pub fn handle_asked_uncalled(
        &mut self,
        now: Instant,
        task: TaskId,
        peer: Option<&HostId>,
        wish: (PieceIndex, u64),
    ) -> Verdict {
        self.admit(now, task, (peer, None, false), wish)
    }

    fn admit(
        &mut self,
        now: Instant,
        task: TaskId,
        (peer, kept, across): (Option<&HostId>, Option<(Instant, Late)>, bool),
        (piece, bytes): (PieceIndex, u64),
    ) -> Verdict {
        if let Some((since, _)) = kept {
            self.coming.learn(now.saturating_duration_since(since));
        }
        let first = peer.is_some_and(|peer| self.line.front().is_some_and(|waiting| waiting.is(&task, peer)));
        let invited = kept.is_some_and(|(_, late)| !late.0 || self.has_late_room());
        let backlog = self.backlog(&task).filter(|_| !across && self.is_fresh(&task, piece));
        let may = invited
            || self.has_room(&task, bytes, backlog)
                && (self.line.is_empty() || first)
                && (across || self.is_due(&task, piece, peer));
        let stands = self.stands(peer);
        if !may || stands {
            // Who takes nothing waits for nothing either.
            if let Some(peer) = peer.filter(|_| !stands) {
                self.queue(task, peer, across);
            }
            return Verdict::Wait;
        }
        if first {
            self.line.pop_front();
        }
        if let Some(fresh) = self.fresh.get_mut(&task).filter(|_| !across) {
            fresh.offer(piece);
        }
        let id = UploadId(self.next);
        self.next += 1;
        let peer = peer.cloned();
        let sending = Sending {
            task,
            piece,
            peer,
            bytes,
            since: now,
            across,
            // Whoever asks for one thing after the other without reading does not get to the second.
            handed: Some(now),
            patience: STALLED,
            look: now + STALLED,
            stalled: false,
        };
        self.sending.insert(id, sending);
        Verdict::Serve(id)
    }

    /// An upload has ended; with `all`, the peer has all of it.
    pub fn handle_sent(&mut self, now: Instant, id: UploadId, all: bool) {
        let Some(sent) = self.sending.remove(&id) else { return };
        if all {
            self.taking.learn(now.saturating_duration_since(sent.since));
        }
        if !sent.across && (all || !sent.stalled && !self.is_sent_to_another(&sent)) {
            self.settle(&sent.task, sent.piece, all);
        }
    }

    /// The peer is handed some of it, or, without a time, has taken what it was handed. Gives whether [`Self::poll_timeout`] has
    /// changed by that.
    pub fn handle_handed(&mut self, id: UploadId, at: Option<Instant>) -> bool {
        let Some(sending) = self.sending.get_mut(&id) else { return false };
        sending.handed = at;
        let goes_on = sending.stalled && at.is_none() && sending.patience < MOST_PATIENCE;
        if goes_on {
            // Somebody else may be sent the same by now: then it is offered twice, as any other.
            sending.stalled = false;
            sending.patience = sending.patience.saturating_mul(2);
        }
        goes_on
    }

    /// Whether somebody else is sent the same at the same time, and takes it.
    fn is_sent_to_another(&self, sent: &Sending) -> bool {
        let same = |other: &Sending| {
            !other.across && !other.stalled && (other.task, other.piece) == (sent.task, sent.piece)
        };
        self.sending.values().any(same)
    }

    fn settle(&mut self, task: &TaskId, piece: PieceIndex, given: bool) {
        if let Some(fresh) = self.fresh.get_mut(task) {
            fresh.settle(piece, given);
        }
    }

    /// Pieces of `task`, which has `pieces` pieces, are coming from the origin, or not any more. While they are, repeats take
    /// few places: what comes next is to leave at once. With one piece, all who wait would be sent that one, and be served for
    /// as long as fourteen others take to come (fifteen peers, equal rates: the last was done a twentieth later).
    pub fn handle_coming(&mut self, task: TaskId, pieces: u32, coming: bool) {
        if coming {
            // It goes on: what is remembered of it is not the past of an ended one.
            self.ended.retain(|ended| *ended != task);
            self.fresh.entry(task).or_insert_with(|| Fresh::new(pieces)).coming = true;
        } else if let Some(fresh) = self.fresh.get_mut(&task) {
            fresh.coming = false;
        }
    }

    /// This host is a bridge of its zone, or one no more: what it brings is to leave at once, too.
    pub fn handle_bringing(&mut self, task: TaskId, pieces: u32, bringing: bool) {
        if bringing {
            self.ended.retain(|ended| *ended != task);
            self.fresh.entry(task).or_insert_with(|| Fresh::new(pieces)).bringing = true;
        } else if let Some(fresh) = self.fresh.get_mut(&task) {
            fresh.bringing = false;
        }
    }

    /// A piece of `task`, which has `pieces` pieces, came from the origin, or over a border: nobody here has it.
    pub fn handle_fetched(&mut self, task: TaskId, piece: PieceIndex, pieces: u32) {
        self.fresh.entry(task).or_insert_with(|| Fresh::new(pieces)).add(piece);
    }

    /// The task's download has ended. What it brought and nobody has yet is still given first, for as long as there is
    /// room to remember it.
    pub fn handle_task_ended(&mut self, task: TaskId) {
        self.handle_coming(task, 0, false);
        self.handle_bringing(task, 0, false);
        self.ended.retain(|ended| *ended != task);
        if self.fresh.get(&task).is_some_and(|fresh| !fresh.is_empty()) {
            self.ended.push_back(task);
        } else {
            self.fresh.remove(&task);
        }
        while self.ended.len() > MAX_ENDED {
            self.ended.pop_front().map(|oldest| self.fresh.remove(&oldest));
        }
    }

    /// The peer does not need the place that is kept for it.
    pub fn handle_passed(&mut self, task: &TaskId, peer: &HostId) {
        self.take_kept(task, peer);
    }

    /// The peer is not there any more, or wants no more of the task.
    pub fn handle_left(&mut self, task: &TaskId, peer: &HostId) {
        // Two, where it asked uncalled while one was kept for it.
        while self.take_kept(task, peer).is_some() {}
        self.line.retain(|waiting| !waiting.is(task, peer));
    }

    /// Whom to invite now.
    pub fn poll_invitation(&mut self, now: Instant) -> Option<Invitation> {
        // The first who can be given something now. Only those of tasks with fresh pieces on their way must wait.
        let at = (0..self.line.len()).find(|at| {
            let Waiting { task, peer, across } = &self.line[*at];
            let fresh = self.fresh.get(task);
            self.may_invite(task, self.backlog(task).filter(|_| !across))
                && !self.stands(Some(peer))
                && (*across || fresh.is_none_or(|fresh| self.may_give(fresh, peer)))
        })?;
        let Waiting { task, peer, across } = self.line.remove(at)?;
        let fresh = self.fresh.get_mut(&task).filter(|_| !across);
        let best = fresh.and_then(|fresh| fresh.next().inspect(|piece| fresh.offer(*piece)));
        self.kept.push(Kept { task, peer: peer.clone(), best, since: now, late: false });
        Some(Invitation { task, peer, best })
    }

    /// The invitation that stands for `peer`, if one does.
    pub fn invitation(&self, task: &TaskId, peer: &HostId) -> Option<Invitation> {
        let kept = self.kept.iter().find(|kept| (&kept.task, &kept.peer) == (task, peer))?;
        Some(Invitation { task: kept.task, peer: kept.peer.clone(), best: kept.best })
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let kept = self.kept.iter().map(|kept| kept.since + if kept.late { GOOD_FOR } else { KEEP });
        kept.chain(self.under_way().map(|sending| sending.look)).min()
    }

    /// Places that were kept for too long are free, and so are those of peers that take nothing; invitations that are too old are
    /// void.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.look_after_uploads(now);
        while let Some(at) = self.kept.iter().position(|kept| kept.since + GOOD_FOR <= now) {
            self.give_up(at);
        }
        for at in 0..self.kept.len() {
            if !self.kept[at].late && self.kept[at].since + KEEP <= now {
                self.kept[at].late = true;
                self.release_best(at);
            }
        }
    }

    fn look_after_uploads(&mut self, now: Instant) {
        let due = self.sending.iter_mut().filter(|(_, sending)| !sending.stalled && sending.look <= now);
        let mut stalled = Vec::new();
        for (id, sending) in due {
            sending.look = sending.handed.unwrap_or(now) + sending.patience;
            sending.stalled = sending.look <= now;
            stalled.extend(sending.stalled.then_some(*id));
        }
        for id in stalled {
            let sending = &self.sending[&id];
            let (task, piece) = (sending.task, sending.piece);
            if !sending.across && !self.is_sent_to_another(sending) {
                self.settle(&task, piece, false);
            }
        }
    }

    /// Whether the peer takes nothing of what it was given before. Those that do not say who they are, are one.
    fn stands(&self, peer: Option<&HostId>) -> bool {
        let stalled = self.sending.values().filter(|sending| sending.stalled);
        stalled.filter(|sending| sending.peer.as_ref() == peer).count() >= MAX_STALLED_EACH
    }

    /// Whether so many take nothing that nobody is served any more.
    fn is_beset(&self) -> bool {
        self.sending.len() - self.under_way().count() >= MAX_STALLED
    }

    /// The uploads that count.
    fn under_way(&self) -> impl Iterator<Item = &Sending> {
        self.sending.values().filter(|sending| !sending.stalled)
    }

    /// How many more uploads could begin now: places that nobody has, waits for, or has kept for him.
    pub fn free(&self) -> u32 {
        if self.is_beset() {
            return 0;
        }
        let taken = (self.under_way().count() + self.kept.len() + self.line.len()) as u64;
        u32::try_from(self.places.saturating_sub(taken)).unwrap_or(u32::MAX)
    }

    /// How many uploads there are.
    pub fn sending(&self) -> usize {
        self.sending.len()
    }

    fn queue(&mut self, task: TaskId, peer: &HostId, across: bool) {
        let queued = self.line.iter().any(|waiting| waiting.is(&task, peer));
        if queued || self.line.len() >= MAX_LINE {
            return;
        }
        let before = self.line.iter().filter(|waiting| waiting.across).count();
        let at = if across { (2 * before + 1).min(self.line.len()) } else { self.line.len() };
        self.line.insert(at, Waiting { task, peer: peer.clone(), across });
    }

    /// Takes back what is kept for the peer, if anything is: since when it was, and whether the peer came late.
    fn take_kept(&mut self, task: &TaskId, peer: &HostId) -> Option<(Instant, Late)> {
        let at = self.kept.iter().position(|kept| (&kept.task, &kept.peer) == (task, peer))?;
        let kept = (self.kept[at].since, Late(self.kept[at].late));
        self.give_up(at);
        Some(kept)
    }

    fn give_up(&mut self, at: usize) {
        self.release_best(at);
        self.kept.swap_remove(at);
    }

    /// What was offered is for others to have.
    fn release_best(&mut self, at: usize) {
        let Kept { task, best, .. } = &mut self.kept[at];
        if let (Some(fresh), Some(best)) = (self.fresh.get_mut(task), best.take()) {
            fresh.settle(best, false);
        }
    }

    fn has_late_room(&self) -> bool {
        !self.is_beset() && self.used() < (self.places + MAX_LATE) * PLACE_BYTES
    }

    fn used(&self) -> u64 {
        self.under_way().map(|sending| weight(sending.bytes)).sum()
    }

    /// Whether somebody is to be invited: a place is free, or will be by the time when he comes.
    fn may_invite(&self, task: &TaskId, backlog: Option<usize>) -> bool {
        let on_their_way = self.kept.iter().filter(|kept| !kept.late).count() as u64;
        self.has_room(task, PLACE_BYTES, backlog)
            || !self.is_beset()
                && backlog.is_none()
                && !self.is_coming(task)
                && on_their_way < self.ahead()
                && self.used() <= self.places * PLACE_BYTES
    }

    /// How many are to be on their way when all places are taken: as many as places become free while one of them comes
    /// (Little's law), so that a long way costs no place.
    fn ahead(&self) -> u64 {
        let (Some(coming), Some(taking)) = (self.coming.get(), self.taking.get()) else { return AHEAD };
        let free = u128::from(self.places) * coming.as_nanos() / taking.as_nanos().max(1);
        u64::try_from(free).unwrap_or(MAX_AHEAD).clamp(AHEAD, MAX_AHEAD)
    }

    /// Whether there is a place for so many bytes. For what nobody else has, `backlog` says how much of it waits: a little is
    /// given away by few uploads, which are quick; when it becomes more, the receivers are what is slow, and one more helps.
    fn has_room(&self, task: &TaskId, bytes: u64, backlog: Option<usize>) -> bool {
        let (all, of_task) = self.taken(task);
        let (places, few) = match backlog {
            None => (self.places, self.is_coming(task)),
            Some(backlog) if backlog < BACKLOG => (self.places, true),
            Some(_) => (self.places + 1, false),
        };
        let fits = |taken: u64, places: u64| taken == 0 || taken + weight(bytes) <= places * PLACE_BYTES;
        !self.is_beset() && fits(all, places) && (!few || fits(of_task, places.min(FEW)))
    }

    /// What is sent and kept: of all, and of one task.
    fn taken(&self, task: &TaskId) -> (u64, u64) {
        let sending = self.under_way().map(|sending| (&sending.task, weight(sending.bytes)));
        let kept = self.kept.iter().filter(|kept| !kept.late).map(|kept| (&kept.task, PLACE_BYTES));
        let add = |(all, of_task): (u64, u64), (other, bytes): (&TaskId, u64)| {
            (all + bytes, of_task + if other == task { bytes } else { 0 })
        };
        sending.chain(kept).fold((0, 0), add)
    }

    fn is_coming(&self, task: &TaskId) -> bool {
        self.fresh.get(task).is_some_and(|fresh| fresh.coming || fresh.bringing)
    }

    fn is_fresh(&self, task: &TaskId, piece: PieceIndex) -> bool {
        self.fresh.get(task).is_some_and(|fresh| fresh.is_unclaimed(piece))
    }

    /// How many of the task's fresh pieces nobody has claimed, if any.
    fn backlog(&self, task: &TaskId) -> Option<usize> {
        self.fresh.get(task).map(Fresh::unclaimed).filter(|unclaimed| *unclaimed > 0)
    }

    /// Whether `piece` may be given now: a repeat is not, while there is something that nobody else has, unless there would
    /// be nothing to do for others.
    fn is_due(&self, task: &TaskId, piece: PieceIndex, peer: Option<&HostId>) -> bool {
        match self.fresh.get(task) {
            Some(fresh) if !fresh.is_empty() => fresh.is_unclaimed(piece) || self.is_alone(fresh, peer),
            _ => true,
        }
    }

    fn may_give(&self, fresh: &Fresh, peer: &HostId) -> bool {
        fresh.is_empty() || fresh.next().is_some() || self.is_alone(fresh, Some(peer))
    }

    /// Whether nothing is sent or kept; or for this peer alone, nobody else waits, and no more is coming. Then it is for the peer to
    /// say what it needs first: its reader may wait for what somebody got who has left.
    fn is_alone(&self, fresh: &Fresh, peer: Option<&HostId>) -> bool {
        if self.under_way().next().is_none() && self.kept.iter().all(|kept| kept.late) {
            return true;
        }
        let of_peer = |other: Option<&HostId>| !fresh.coming && peer.is_some() && other == peer;
        self.under_way().all(|sending| of_peer(sending.peer.as_ref()))
            && self.kept.iter().all(|kept| kept.late || of_peer(Some(&kept.peer)))
            && self.line.iter().all(|waiting| of_peer(Some(&waiting.peer)))
    }
}

/// Whether whoever was invited came too late for his place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Late(bool);

fn weight(bytes: u64) -> u64 {
    bytes.clamp(LEAST_BYTES, PLACE_BYTES)
}
