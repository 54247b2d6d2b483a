//! What the scheduler has to do with a download: the conversation with it, what it said, and the way to the next one. The same
//! while the content is not known yet (`learn`) and after that (`transfer`).
//!
//! Invariant: there is a conversation, or a registration is under way, or no scheduler was up when it was looked for last. A
//! registration that has begun is heard to its end: given up half-way, it could leave a lease with one who does not know of it.

use super::Download;
use crate::schedule::{self, Arrival, Conversation, Joined};
use darter_protocol::scheduler::{PeerPacket, PieceResult};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, OptionFuture};
use rand::RngExt;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// How long a daemon that has just lost its scheduler looks for another one, or for partners, before it goes to the origin;
/// half of it is left to chance.
const ALONE_AFTER: Duration = Duration::from_secs(2);

/// As often in a row a download tries to register again with schedulers that seem to be there; once, where none answered in time:
/// that takes nine seconds. Then it goes on without.
const MAX_VAIN_JOINS: u32 = 5;

/// What the scheduler says.
#[derive(Default)]
pub(super) struct Scheduled {
    pub(super) talk: Option<Conversation>,
    /// Packets that came while the content was not known yet.
    pub(super) early: Vec<PeerPacket>,
    pub(super) lease: Option<u64>,
    pub(super) unshareable: bool,
    /// The lease was given back because nobody wanted more.
    pub(super) done: bool,
    /// Nobody can bring what others do not have, and this daemon may not fetch it: the scheduler's sentence.
    pub(super) refused: Option<String>,
}

impl Scheduled {
    /// What holds with any scheduler: what the content is and who has it. What this one allowed or refused was its own word.
    fn without_word(self) -> Self {
        let facts = |packet: PeerPacket| PeerPacket {
            lease: None,
            lease_revoked: false,
            share: None,
            refused: None,
            unshareable: false,
            bridge: None,
            ..packet
        };
        Self { early: self.early.into_iter().map(facts).collect(), ..Self::default() }
    }
}

/// The way to a scheduler.
#[derive(Default)]
pub(super) struct Joining {
    under_way: Option<BoxFuture<'static, Result<Joined, Status>>>,
    /// Registrations in a row that did not reach a scheduler.
    vain: u32,
}

impl Joining {
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// How the registration ended; never, when there is none.
    ///
    /// # Cancel safety
    /// It goes on when this is called again.
    pub(super) async fn ended(&mut self) -> Result<Joined, Status> {
        let Some(under_way) = &mut self.under_way else { return std::future::pending().await };
        let joined = under_way.await;
        self.under_way = None;
        joined
    }
}

impl Download {
    /// Registers once `first` is over, with whichever scheduler is up then.
    pub(super) fn join_after(&mut self, first: impl Future<Output = ()> + Send + 'static, arrival: Arrival) {
        let (shared, task, claim) = (Arc::clone(&self.shared), self.task, self.claim.clone());
        self.joining.under_way = Some(Box::pin(async move {
            first.await;
            shared.schedulers.join(&task, arrival, &claim).await
        }));
    }

    /// The conversation has ended, and not by us.
    pub(super) fn lose_scheduler(&mut self, arrival: Arrival) {
        self.scheduled = std::mem::take(&mut self.scheduled).without_word();
        self.wait_for_scheduler();
        self.join_after(tokio::time::sleep(schedule::rejoin_pause()), Arrival { moved: true, ..arrival });
    }

    /// A scheduler was lost a moment ago. For a while it is waited for it, or for another.
    pub(super) fn wait_for_scheduler(&mut self) {
        self.alone_from = Some(Instant::now() + ALONE_AFTER.mul_f64(rand::rng().random_range(0.5..1.0)));
    }

    /// Whether it is still waited for a scheduler after one was lost.
    pub(super) fn is_changing_over(&self) -> bool {
        self.joining.is_under_way() || self.alone_from.is_some_and(|then| Instant::now() < then)
    }

    /// Registers with the scheduler that the task belongs to now, where that is another one than it was, or the first: one that
    /// was added has to hear of what is under way, or it would send the next one to the origin. Returns whether it does.
    pub(super) fn follow_ring(&mut self, arrival: Arrival) -> bool {
        let Some(home) = self.shared.schedulers.of(&self.task).filter(|_| !self.joining.is_under_way())
        else {
            return false;
        };
        if self.scheduled.talk.as_ref().is_some_and(|talk| talk.is_with(&home)) {
            return false;
        }
        let mut before = std::mem::take(&mut self.scheduled);
        if let Some(mut talk) = before.talk.take() {
            if let Some(lease) = before.lease.filter(|_| arrival.at_origin) {
                talk.take_along(lease);
            }
            // The next one must not wait for it: one that has fallen silent takes its time.
            self.leaving.spawn(async move { talk.end().await });
        }
        self.scheduled = before.without_word();
        self.join_after(std::future::ready(()), Arrival { moved: true, ..arrival });
        true
    }

    /// A registration has ended: gives the first packet of the conversation that it led to; or else nobody was reached, and
    /// where it is of use it is tried again.
    ///
    /// # Errors
    /// The reason why the operator's rules refuse the download.
    pub(super) fn hear_joined(
        &mut self,
        joined: Result<Joined, Status>,
        arrival: Arrival,
    ) -> Result<Option<PeerPacket>, String> {
        match joined {
            Ok(Joined::Refused(reason)) => return Err(reason),
            Ok(Joined::Talking(talk, first)) => {
                (self.joining.vain, self.alone_from) = (0, None);
                self.scheduled.talk = Some(talk);
                return Ok(Some(*first));
            }
            Ok(Joined::Nobody) => {}
            Err(status) => {
                tracing::debug!(task = %self.task, reason = status.message(), "cannot register");
                // A scheduler that was lost a moment ago seems to be there still.
                if schedule::is_lost(&status) && self.joining.vain < MAX_VAIN_JOINS {
                    let slow = status.code() == Code::DeadlineExceeded;
                    self.joining.vain += if slow { MAX_VAIN_JOINS } else { 1 };
                    let arrival = Arrival { moved: true, ..arrival };
                    self.join_after(tokio::time::sleep(schedule::rejoin_pause()), arrival);
                }
            }
        }
        Ok(None)
    }

    /// Says each second, for as long as it is polled, that this daemon is there, if it holds the lease: what it does meanwhile takes
    /// as long as the disk does, and the scheduler would take one that is silent for lost, and what it has with it.
    pub(super) fn beats(&self, word: PieceResult) -> impl Future<Output = Infallible> + Send + use<> {
        let talk = self.scheduled.talk.as_ref().filter(|_| self.scheduled.lease.is_some());
        OptionFuture::from(talk.map(|talk| talk.beats(word))).then(|none| match none {
            Some(never) => match never {},
            None => std::future::pending(),
        })
    }

    /// The conversation in which the end of the download is told; that of a registration that is under way, too.
    pub(super) async fn take_talk(&mut self) -> Option<Conversation> {
        if self.scheduled.talk.is_none() && self.joining.is_under_way() {
            let joined = tokio::select! {
                joined = self.joining.ended() => joined,
                // What it has is gone with its life line.
                () = self.shared.shutdown.cancelled() => return None,
            };
            if let Ok(Joined::Talking(talk, _)) = joined {
                return Some(talk);
            }
        }
        self.scheduled.talk.take()
    }
}

/// The next packet; `None` when the scheduler is gone. Without a conversation it waits for ever.
///
/// # Cancel safety
/// No packet is lost.
pub(super) async fn next_packet(talk: &mut Option<Conversation>) -> Option<PeerPacket> {
    match talk {
        Some(talk) => talk.next().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use darter_protocol::scheduler::{Bridge, Content, Lease, Refused, Share};

    #[test]
    fn what_a_lost_scheduler_knew_holds_on_and_what_it_allowed_or_refused_does_not() {
        let facts = PeerPacket { content: Some(Content::default()), ..PeerPacket::default() };
        let word = PeerPacket {
            lease: Some(Lease { id: 1 }),
            lease_revoked: true,
            share: Some(Share::default()),
            refused: Some(Refused::default()),
            unshareable: true,
            bridge: Some(Bridge::default()),
            ..facts.clone()
        };
        let said = Scheduled {
            early: vec![word],
            lease: Some(1),
            unshareable: true,
            done: true,
            refused: Some("no".to_owned()),
            ..Scheduled::default()
        };
        let Scheduled { early, lease, unshareable, done, refused, talk } = said.without_word();
        assert_eq!((early, lease, unshareable, done, refused), (vec![facts], None, false, false, None));
        assert!(talk.is_none());
    }
}
