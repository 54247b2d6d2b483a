//! The end of a download: everything verified, nothing left running, and what there is in its place.

use super::{Counts, Transfer};
use crate::ReadError;
use crate::download::jobs::Event;
use crate::engine::Suspended;
use crate::schedule;
use crate::store::Held;
use darter_protocol::scheduler::{Content, HeldTask, LeaseOutcome};
use darter_protocol::{PieceHash, hash};
use futures_util::StreamExt as _;
use std::io;
use std::sync::{Arc, PoisonError};
use tokio::task::JoinError;
use tokio::time::Instant;

/// How a download ends.
pub(super) enum End {
    /// All pieces are there.
    Complete,
    /// Nobody wants what is missing.
    Suspended,
    /// The daemon stops. What is there stays for the next start.
    Stopped,
    Failed {
        error: ReadError,
        outcome: LeaseOutcome,
        keep: bool,
    },
}

impl End {
    /// What is there is right, but there will be no more.
    pub(super) fn unavailable(text: String, outcome: LeaseOutcome) -> Self {
        Self::Failed { error: ReadError::Unavailable(text), outcome, keep: true }
    }

    pub(super) fn store(error: Arc<io::Error>) -> Self {
        Self::Failed { error: ReadError::Store(error), outcome: LeaseOutcome::Failed, keep: false }
    }
}

impl Transfer {
    /// The origin's content is not what it was when this download started.
    pub(super) fn changed(&self) -> End {
        End::Failed { error: self.known.changed(), outcome: LeaseOutcome::Failed, keep: false }
    }

    /// Checks the whole content against its digest.
    pub(super) async fn verify(&mut self) -> Result<(), End> {
        let Some(verifier) = self.verifier.clone() else { return Ok(()) };
        let (file, have) = (Arc::clone(&self.known.file), self.swarm.have().clone());
        // What was hashed in passing, and what is in memory, needs no look at the disk.
        let passing =
            verifier.try_lock().ok().filter(|verifier| file.is_staged() || !verifier.is_behind(&have));
        let now = passing.map(|mut verifier| verifier.check(&file, &have));
        let checked = match now {
            Some(checked) => checked,
            None => tokio::task::spawn_blocking(move || {
                verifier.lock().unwrap_or_else(PoisonError::into_inner).check(&file, &have)
            })
            .await
            .map_err(io::Error::other)
            .and_then(|checked| checked),
        };
        match checked {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.changed()),
            Err(error) => Err(End::store(Arc::new(error))),
        }
    }

    /// Waits until no job is left that could touch the file. Pieces that arrive in the meantime count.
    pub(super) async fn quiesce(&mut self) -> Result<(), End> {
        self.bench.stop.cancel();
        let mut result = Ok(());
        loop {
            let event = tokio::select! {
                Some(event) = self.events.recv() => event,
                Some(()) = self.near.next() => continue,
                ended = self.jobs.join_next(), if self.near.is_empty() => match ended {
                    Some(_) => continue,
                    None => break,
                },
            };
            result = result.and(self.handle_last(event));
        }
        while let Ok(event) = self.events.try_recv() {
            result = result.and(self.handle_last(event));
        }
        result
    }

    fn handle_last(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Wrote { run, wrote } => self.handle_wrote(run, wrote),
            Event::Proven { blocks, list } => self.handle_proven(&blocks, &list),
            Event::Piece { partner, piece, result: Ok(hash) } => self.handle_piece(&partner, piece, Ok(hash)),
            _ => Ok(()),
        }
    }

    /// Puts everything in its place: the store, the scheduler, and those who come next.
    pub(super) async fn close(mut self, end: End) {
        let now = Instant::now();
        self.download.shared.turns.ended(self.download.task);
        self.note_blocks();
        match &end {
            // The lease ends with the report that this daemon holds everything. Given back before that, it would send the
            // next one to the origin for what is being put in its place here.
            End::Complete | End::Stopped => {}
            End::Suspended => self.return_lease(now, LeaseOutcome::Done),
            End::Failed { outcome, .. } => self.return_lease(now, *outcome),
        }
        self.report_rest(now);
        match end {
            End::Complete => match self.commit().await {
                Some(content) => return self.tell_complete(content).await,
                None => self.discard().await,
            },
            // What is in memory alone is not worth it: it is small, and would stay there.
            End::Suspended | End::Failed { .. } if self.known.file.is_staged() => self.discard().await,
            End::Suspended => {
                self.download.shared.suspend(self.download.task, self.left());
                self.tell_ended().await;
            }
            End::Stopped | End::Failed { keep: true, .. } => self.tell_ended().await,
            End::Failed { keep: false, .. } => self.discard().await,
        }
        self.download.over(None);
    }

    fn left(&self) -> Suspended {
        let have = self.swarm.have().clone();
        let pieces = have.iter().filter_map(|piece| Some((piece, self.hashes.pieces[piece.as_usize()]?)));
        let blocks = self.hashes.blocks.iter().map(|(block, hash)| (*block, *hash));
        let held = Held { pieces: pieces.collect(), blocks: blocks.collect() };
        Suspended { file: Arc::clone(&self.known.file), held, have }
    }

    async fn tell_complete(mut self, content: Content) {
        // It is found on disk from now on, so that no other download begins while the scheduler is told.
        self.download.over(None);
        let Counts { from_origin, from_peers, .. } = self.counts;
        let heard = match self.download.take_talk().await {
            Some(talk) => {
                let (task, told) = (self.download.task, talk.address());
                let held =
                    HeldTask { task_id: task.as_bytes().to_vec().into(), content: Some(content.clone()) };
                self.download.shared.schedulers.note(task, Some(held), Some(&told));
                talk.finish(Some(content), from_origin, from_peers).await
            }
            None => false,
        };
        if !heard {
            self.announce().await;
        }
    }

    async fn tell_ended(&mut self) {
        let Counts { from_origin, from_peers, .. } = self.counts;
        if let Some(talk) = self.download.take_talk().await {
            talk.finish(None, from_origin, from_peers).await;
        }
    }

    /// Makes the task complete on disk; gives what the scheduler is told of it.
    async fn commit(&mut self) -> Option<Content> {
        let hashes: Option<Vec<PieceHash>> = self.hashes.pieces.iter().copied().collect();
        let hashes = hashes.expect("a complete download knows the hash of every piece");
        let content = schedule::content(&self.partial.record, Some(hash::root(&self.layout, &hashes)));
        let task = self.download.task;
        match self.store(hashes).await {
            Ok(()) => {
                self.download.shared.metrics.completed.inc();
                Some(content)
            }
            Err(error) => {
                tracing::error!(%task, %error, "cannot keep a complete download");
                None
            }
        }
    }

    async fn store(&mut self, hashes: Vec<PieceHash>) -> io::Result<()> {
        let (store, task) = (Arc::clone(&self.download.shared.store), self.download.task);
        if !self.partial.file.is_staged() {
            let (record, file) = (self.partial.record.clone(), Arc::clone(&self.partial.file));
            let stored =
                tokio::task::spawn_blocking(move || store.commit_file(&task, record, &file, hashes)).await;
            return stored.map_err(io::Error::other)?;
        }
        let (leads, told) = store.pack(&task, &self.partial, hashes, false);
        if leads {
            tokio::task::spawn_blocking(move || store.write_groups());
        }
        told.await.map_err(io::Error::other)?
    }

    /// Throws away what is here, and says so.
    async fn discard(&mut self) {
        let (store, task) = (Arc::clone(&self.download.shared.store), self.download.task);
        let discarded = tokio::task::spawn_blocking(move || store.discard(&task)).await;
        if let Err(error) = discarded.map_err(io::Error::other).and_then(|discarded| discarded) {
            tracing::error!(%task, %error, "cannot throw a failed download away");
        }
        self.tell_ended().await;
        // Only when the download has ended does its scheduler believe that there is nothing left of it.
        self.download.shared.schedulers.leave(vec![task]).await;
    }

    /// Tells whichever scheduler is up by now that everything is here.
    async fn announce(&mut self) {
        let hashes: Option<Vec<PieceHash>> = self.hashes.pieces.iter().copied().collect();
        if let Some(hashes) = hashes {
            let schedulers = &self.download.shared.schedulers;
            schedulers.announce_one(&self.download.task, &self.partial.record, &hashes).await;
        }
    }
}

/// A job that panics leaves its pieces in flight for ever; the download must not wait for them.
pub(super) fn no_panic(ended: Result<(), JoinError>) -> Result<(), End> {
    match ended {
        Err(error) if error.is_panic() => {
            tracing::error!(%error, "a part of a download panicked");
            Err(End::unavailable("an internal error ended the download".to_owned(), LeaseOutcome::Failed))
        }
        _ => Ok(()),
    }
}
