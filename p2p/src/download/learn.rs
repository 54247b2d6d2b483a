//! Finding out what the content is.

use super::ended::Ended;
use super::scheduled::{next_packet, sleep_until};
use super::{Download, Known, Start, in_turn};
use crate::origin::{self, Answer, Ask, OriginError, Part};
use crate::origins::Patience;
use crate::progress::Progress;
use crate::schedule::{Arrival, BEAT};
use crate::store::{Held, Noted, Partial, Record, Right};
use crate::verify::Verifier;
use crate::{ContentInfo, OpenError, Opened, Supplier, Want};
use darter_protocol::scheduler::{LeaseOutcome, LeaseReturned, PeerPacket, PieceResult};
use darter_protocol::{BlockSet, ByteRange, PieceLayout, PieceSet};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a client may wait for an origin that wants to be left alone: less than the ten seconds after which the impatient
/// ones give up. Then it gets the origin's own word.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// Why a daemon that has no scheduler fetches nothing, where it is told so.
pub(super) const NOT_ALONE: &str = "no scheduler answers, and scheduler.disableAutoBackSource lets this host go to the origin only with its word";

impl Download {
    /// Learns length and headers of the content: from an earlier try on this disk, from the scheduler, or from the origin
    /// as soon as this daemon may ask it. Then makes room for it.
    pub(super) async fn learn(&mut self, want: Want) -> Result<Start, Ended> {
        // The last download of this task may have completed after the caller had looked.
        let resumed = match self.shared.complete(self.task).await {
            Ok(Some(complete)) => return Err(Ended::answered(self.shared.open_stored(complete, want))),
            Ok(None) => self.resume().await,
            Err(error) => Err(error),
        };
        let held_bytes = resumed
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .map_or(0, |(partial, noted)| noted.bytes(partial.file.layout()));
        // Also where the store fails: what the caller streams past it, the operator's rules may forbid.
        self.join(held_bytes).await?;
        let resumed = resumed.map_err(|error| {
            self.return_lease(LeaseOutcome::Failed);
            self.not_past_the_engine(error)
        })?;
        if let Some((partial, noted)) = resumed {
            return Ok(self.start(partial, noted, None));
        }
        let (info, body) = match self.wait_for_content().await? {
            Some(info) => (info, None),
            None => self.ask_origin(want).await?,
        };
        let partial = match self.create(&info).await {
            Ok(partial) => partial,
            Err(error) => {
                self.return_lease(LeaseOutcome::Failed);
                return Err(self.not_past_the_engine(store_failed(error)));
            }
        };
        Ok(self.start(partial, Noted::default(), body))
    }

    /// What an earlier try has left. Without a digest the origin's content may have changed since; then only what is asked
    /// anew is believed, and what was left makes way for it.
    async fn resume(&mut self) -> Result<Option<(Partial, Noted)>, OpenError> {
        if self.digest.is_none() || self.shared.store.has_no_partial(&self.task) {
            return Ok(None);
        }
        let (store, task) = (Arc::clone(&self.shared.store), self.task);
        let resumed = tokio::task::spawn_blocking(move || store.resume(&task)).await;
        let resumed = resumed.map_err(io::Error::other).and_then(|resumed| resumed).map_err(store_failed)?;
        let checked = std::mem::take(&mut self.checked);
        let same = resumed.filter(|(partial, _)| partial.record.digest == self.digest);
        Ok(same.map(|(partial, noted)| (partial, noted.with_checked(checked))))
    }

    /// Looks which of what was noted is right. Readers have that as it is found, and a client its answer before: of ten gigabytes it takes
    /// seconds. What is not there is fetched after that.
    pub(super) async fn verify(&mut self, start: &mut Start) -> Held {
        let noted = std::mem::take(&mut start.noted);
        if noted.is_empty() {
            return Held::default();
        }
        let (file, progress) = (Arc::clone(&start.known.file), start.progress.clone());
        let stop = self.shared.shutdown.clone();
        let verified = tokio::task::spawn_blocking(move || {
            noted.verify(&file, |right| {
                progress.send_modify(|progress| match right {
                    Right::Piece(piece) => progress.hold(piece),
                    Right::Block(block) => progress.arrive(block..block + 1, Supplier::Disk),
                });
                !stop.is_cancelled()
            })
        });
        let held = tokio::select! {
            verified = verified => verified.unwrap_or_default(),
            never = self.beats(PieceResult::default()) => match never {},
        };
        // Among them those whose blocks were found one by one.
        start
            .progress
            .send_modify(|progress| held.pieces.iter().for_each(|(piece, _)| progress.hold(*piece)));
        held
    }

    async fn create(&mut self, info: &ContentInfo) -> io::Result<Partial> {
        let (store, task) = (Arc::clone(&self.shared.store), self.task);
        let record = Record::new(info.clone(), self.digest);
        if let Some(partial) = store.create_now(&task, &record)? {
            return Ok(partial);
        }
        let created = tokio::task::spawn_blocking(move || store.create(&task, record));
        tokio::select! {
            created = created => created.map_err(io::Error::other)?,
            never = self.beats(PieceResult::default()) => match never {},
        }
    }

    /// Registers with the task's scheduler, if one is up.
    async fn join(&mut self, held_bytes: u64) -> Result<(), Ended> {
        let arrival = Arrival { held_bytes, ..Arrival::default() };
        if self.shared.schedulers.lost_one() {
            self.wait_for_scheduler();
        }
        let joined = self.shared.schedulers.join(&self.task, arrival, &self.claim).await;
        let first = self.hear_joined(joined, arrival).map_err(|reason| self.refused(true, reason))?;
        first.into_iter().for_each(|first| self.take_packet(first));
        Ok(())
    }

    /// Waits until somebody else has learned what the content is; `None` when this daemon may ask the origin itself.
    async fn wait_for_content(&mut self) -> Result<Option<ContentInfo>, Ended> {
        loop {
            let content = self.scheduled.early.iter().rev().find_map(|packet| packet.content.as_ref());
            if let Some(content) = content.filter(|content| PieceLayout::new(content.length).is_some()) {
                let headers =
                    content.headers.iter().map(|header| (header.name.clone(), header.value.to_vec()));
                return Ok(Some(ContentInfo {
                    length: content.length,
                    headers: origin::content_headers_from(headers),
                }));
            }
            if let Some(refusal) = self.scheduled.early.iter().find_map(|packet| packet.refused.clone()) {
                return Err(self.refused(false, refusal.reason));
            }
            let lost = self.scheduled.talk.is_none() && !self.joining.is_under_way();
            if lost && !self.is_changing_over() {
                return if self.shared.config.only_with_scheduler { Err(not_alone()) } else { Ok(None) };
            }
            if self.scheduled.lease.is_some() || self.scheduled.unshareable {
                return Ok(None);
            }
            let (shutdown, alone) = (self.shared.shutdown.clone(), self.alone_from.filter(|_| lost));
            tokio::select! {
                heard = self.hear(false) => heard?,
                () = sleep_until(alone) => {}
                () = shutdown.cancelled() => return Err(stopping()),
            }
        }
    }

    /// Takes the scheduler's next packet, or registers anew where it is lost or the task belongs to another; `at_origin`: the
    /// origin is being asked meanwhile. While there is no scheduler it waits for one.
    ///
    /// # Cancel safety
    /// No packet and no registration is lost.
    async fn hear(&mut self, at_origin: bool) -> Result<(), Ended> {
        let at_origin = at_origin && !self.scheduled.unshareable;
        let arrival = Arrival { at_origin, ..Arrival::default() };
        tokio::select! {
            packet = next_packet(&mut self.scheduled.talk) => match packet {
                Some(packet) => self.take_packet(packet),
                None => self.lose_scheduler(arrival),
            },
            joined = self.joining.ended() => {
                let first = self.hear_joined(joined, arrival).map_err(|reason| self.refused(true, reason))?;
                first.into_iter().for_each(|first| self.take_packet(first));
            }
            Ok(()) = self.came_up.changed(), if !self.joining.is_under_way() => drop(self.follow_ring(arrival)),
        }
        Ok(())
    }

    fn take_packet(&mut self, packet: PeerPacket) {
        self.scheduled.unshareable |= packet.unshareable;
        self.scheduled.lease = match &packet.lease {
            Some(lease) => Some(lease.id),
            None => self.scheduled.lease.filter(|_| !packet.lease_revoked),
        };
        self.scheduled.early.push(packet);
    }

    /// Asks the origin, with the first caller's request.
    async fn ask_origin(&mut self, want: Want) -> Result<(ContentInfo, Option<Part>), Ended> {
        let ask = first_ask(want);
        let shared = Arc::clone(&self.shared);
        let patience = Patience { pause: FIRST_WAIT, turn: in_turn(&self.task, true) };
        let first = self.first.clone();
        let mut asked = pin!(shared.origins.fetch(&shared.upstream, &first, (ask, None), patience));
        // A scheduler that takes over is told at once who asks the origin: it would send another one there.
        let mut beats = tokio::time::interval(BEAT);
        let asked = loop {
            tokio::select! {
                asked = &mut asked => break asked,
                heard = self.hear(true) => heard?,
                _ = beats.tick() => self.beat(),
                () = shared.shutdown.cancelled() => return Err(stopping()),
            }
        };
        match asked {
            Ok(Answer::Content { info, part }) => Ok((info, Some(part))),
            Ok(Answer::Outside { length }) => {
                self.return_lease(LeaseOutcome::Refused);
                Err(Ended::answered(Err(OpenError::NotSatisfiable { length })))
            }
            Ok(Answer::Other { response, refused, elsewhere, lent, .. }) => {
                self.return_lease(if refused { LeaseOutcome::Refused } else { LeaseOutcome::Unshareable });
                // A part that was asked for in our words is no answer to the caller's. Nor is what another host says, who
                // may set cookies and ask for logins in its own name alone.
                let relay = (ask == Ask::All || refused) && !elsewhere;
                let answer = if relay { Ok(Opened::Relay(response)) } else { Err(OpenError::NotShareable) };
                // What was refused or lent to this caller is no word about what others would get for themselves.
                Err(if refused || lent { Ended::answered(answer) } else { self.unshareable(answer) })
            }
            Err(OriginError::Part { .. }) => {
                self.return_lease(LeaseOutcome::Unshareable);
                Err(self.unshareable(Err(OpenError::NotShareable)))
            }
            Err(OriginError::Upstream(error)) => {
                self.return_lease(LeaseOutcome::Failed);
                Err(Ended::unreachable(error, &self.first.url, self.question))
            }
            Err(invalid @ OriginError::Invalid { .. }) => {
                self.return_lease(LeaseOutcome::Failed);
                Err(Ended::useless(OpenError::Origin(invalid.to_string()), self.question))
            }
        }
    }

    /// The answer is the first caller's alone: for a while nobody who would get such a one waits for another.
    fn unshareable(&self, answer: Result<Opened, OpenError>) -> Ended {
        self.shared.unshareable.note(self.question, Instant::now());
        Ended::unshareable(answer, self.question)
    }

    /// Says that this daemon is there, while an origin takes its time.
    fn beat(&self) {
        if let Some(talk) = self.scheduled.talk.as_ref().filter(|_| self.scheduled.lease.is_some()) {
            // Where there is no room for it, other reports are on their way.
            let _ = talk.report(Box::default());
        }
    }

    /// What cannot be stored the caller streams from the origin; but not where the operator's rules keep it from there.
    fn not_past_the_engine(&self, error: OpenError) -> Ended {
        match &self.scheduled.talk {
            // The rules were asked about this caller.
            _ if self.may_go_past() => Ended::of_claim(error, &self.claim),
            Some(_) => self.refused(
                false,
                format!("this host cannot store the content, and may not go to its origin: {error}"),
            ),
            None => not_alone(),
        }
    }

    /// Whether the operator's rules let this host fetch past the engine what it cannot store.
    pub(super) fn may_go_past(&self) -> bool {
        match &self.scheduled.talk {
            Some(talk) => !talk.is_barred(),
            None => !self.shared.config.only_with_scheduler,
        }
    }

    fn refused(&self, for_good: bool, reason: String) -> Ended {
        Ended::of_claim(OpenError::Refused { for_good, reason }, &self.claim)
    }

    fn return_lease(&mut self, outcome: LeaseOutcome) {
        if let (Some(talk), Some(lease_id)) = (&self.scheduled.talk, self.scheduled.lease.take()) {
            let lease_returned = Some(LeaseReturned { lease_id, outcome: outcome.into() });
            // Lost with the conversation, whose end returns the lease, too.
            let _ = talk.report(Box::new(PieceResult { lease_returned, ..PieceResult::default() }));
        }
    }

    fn start(&self, partial: Partial, noted: Noted, body: Option<Part>) -> Start {
        let layout = *partial.file.layout();
        let nothing = PieceSet::empty(layout.pieces());
        let (progress, watched) = watch::channel(Progress::new(layout, nothing, BlockSet::default()));
        let queued = body.as_ref().map(|part| part.queued).unwrap_or_default();
        let verifier = self.digest.map(|digest| Arc::new(Mutex::new(Verifier::new(digest, layout))));
        let known = Arc::new(Known {
            info: partial.record.info.clone(),
            digest: self.digest,
            file: Arc::clone(&partial.file),
            progress: watched,
            queued,
            verifier,
        });
        Start { known, partial, noted, progress, body }
    }
}

/// The first request to the origin: what the caller wants, widened to blocks of the smallest size. The content's length
/// is not known yet, so a suffix cannot be widened; one byte tells the length.
pub(crate) fn first_ask(want: Want) -> Ask {
    const SIZE: u64 = PieceLayout::MIN_BLOCK_SIZE;
    match want {
        Want::All | Want::From(0..SIZE) => Ask::All,
        Want::From(start) => Ask::From(start - start % SIZE),
        Want::Range(range) => {
            let start = range.start() - range.start() % SIZE;
            let end = range.end().checked_next_multiple_of(SIZE).unwrap_or(u64::MAX);
            ByteRange::new(start, end).map_or(Ask::From(start), Ask::Range)
        }
        Want::Suffix(_) => ByteRange::new(0, 1).map_or(Ask::All, Ask::Range),
    }
}

fn stopping() -> Ended {
    Ended::failed(OpenError::Unavailable("the daemon is stopping".to_owned()))
}

fn not_alone() -> Ended {
    Ended::failed(OpenError::Refused { for_good: false, reason: NOT_ALONE.to_owned() })
}

fn store_failed(error: io::Error) -> OpenError {
    OpenError::Store(Arc::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = PieceLayout::MIN_BLOCK_SIZE;

    #[test]
    fn the_first_request_is_widened_to_blocks() {
        let range = |a, b| ByteRange::new(a, b).unwrap();
        assert_eq!(first_ask(Want::All), Ask::All);
        assert_eq!(first_ask(Want::From(0)), Ask::All);
        assert_eq!(first_ask(Want::From(5)), Ask::All);
        assert_eq!(first_ask(Want::From(SIZE + 1)), Ask::From(SIZE));
        assert_eq!(first_ask(Want::Range(range(5, 6))), Ask::Range(range(0, SIZE)));
        assert_eq!(first_ask(Want::Range(range(SIZE, 2 * SIZE))), Ask::Range(range(SIZE, 2 * SIZE)));
        assert_eq!(first_ask(Want::Range(range(5, u64::MAX))), Ask::Range(range(0, u64::MAX)));
        assert_eq!(first_ask(Want::Suffix(100)), Ask::Range(range(0, 1)));
    }
}
