//! [`Turns`]: whose turn it is to be served, for the server that serves and the downloads that bring what is served. The
//! decisions are those of [`Uploads`]; here are its lock, its clock, and the bells by which those are called who wait.

use super::Asking;
use darter_protocol::{HostId, PieceIndex, TaskId};
use darter_swarm::{Invitation, UploadId, Uploads, Verdict};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Calls that wait for one peer: an invitation that is not heard is void soon.
const CALLS: usize = 4;

/// A daemon's uploads, shared.
#[derive(Debug, Clone)]
pub(crate) struct Turns(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// A place is kept for somebody, or taken: somebody must look at the clock.
    look: Notify,
}

#[derive(Debug)]
struct State {
    uploads: Uploads,
    bells: HashMap<(TaskId, HostId), Bell>,
    next_bell: u64,
}

#[derive(Debug)]
struct Bell {
    number: u64,
    call: mpsc::Sender<Option<PieceIndex>>,
}

/// A place, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Place {
    turns: Turns,
    upload: UploadId,
    sent: bool,
}

/// Hears the calls for one peer. Without it, the peer does not wait any more.
#[derive(Debug)]
pub(crate) struct Calls {
    turns: Turns,
    peer: (TaskId, HostId),
    number: u64,
    calls: mpsc::Receiver<Option<PieceIndex>>,
}

// === impl Turns ===

impl Turns {
    pub(crate) fn new(places: u32) -> Self {
        let state = State { uploads: Uploads::new(places), bells: HashMap::new(), next_bell: 0 };
        Self(Arc::new(Shared { state: Mutex::new(state), look: Notify::new() }))
    }

    /// `peer` asks for a piece of so many bytes. `None`: it must wait, and will be called when it said who it is.
    pub(crate) fn ask(
        &self,
        task: TaskId,
        (peer, asking): (Option<&HostId>, Asking),
        wish: (PieceIndex, u64),
    ) -> Option<Place> {
        let (mut state, now) = (self.lock(), Instant::now().into_std());
        let Asking { called, across } = asking;
        let verdict = match peer.filter(|_| across) {
            Some(peer) => state.uploads.handle_asked_across(now, task, (peer, called), wish),
            None if called => state.uploads.handle_asked(now, task, peer, wish),
            None => state.uploads.handle_asked_uncalled(now, task, peer, wish),
        };
        self.call(&mut state);
        match verdict {
            Verdict::Serve(upload) => {
                // It may stall.
                self.0.look.notify_one();
                Some(Place { turns: self.clone(), upload, sent: false })
            }
            Verdict::Wait => None,
        }
    }

    /// How many more uploads could begin now.
    pub(crate) fn free(&self) -> u32 {
        self.lock().uploads.free()
    }

    /// Calls `peer` from now on when a place is kept for it.
    pub(crate) fn listen(&self, task: TaskId, peer: HostId) -> Calls {
        let (call, calls) = mpsc::channel(CALLS);
        let mut state = self.lock();
        let number = state.next_bell;
        state.next_bell += 1;
        if let Some(invitation) = state.uploads.invitation(&task, &peer) {
            // There is room in a channel that is new.
            let _ = call.try_send(invitation.best);
        }
        let peer = (task, peer);
        state.bells.insert(peer.clone(), Bell { number, call });
        Calls { turns: self.clone(), peer, number, calls }
    }

    /// `peer` does not need the place that is kept for it.
    pub(crate) fn pass(&self, task: &TaskId, peer: &HostId) {
        let mut state = self.lock();
        state.uploads.handle_passed(task, peer);
        self.call(&mut state);
    }

    /// Pieces are coming from the origin, or not any more.
    pub(crate) fn coming(&self, task: TaskId, pieces: u32, coming: bool) {
        let mut state = self.lock();
        state.uploads.handle_coming(task, pieces, coming);
        self.call(&mut state);
    }

    /// This host brings pieces into its zone, or does so no more.
    pub(crate) fn bringing(&self, task: TaskId, pieces: u32, bringing: bool) {
        let mut state = self.lock();
        state.uploads.handle_bringing(task, pieces, bringing);
        self.call(&mut state);
    }

    /// A piece came from the origin, or over a border.
    pub(crate) fn fetched(&self, task: TaskId, piece: PieceIndex, pieces: u32) {
        let mut state = self.lock();
        state.uploads.handle_fetched(task, piece, pieces);
        self.call(&mut state);
    }

    /// The task's download has ended.
    pub(crate) fn ended(&self, task: TaskId) {
        let mut state = self.lock();
        state.uploads.handle_task_ended(task);
        self.call(&mut state);
    }

    /// Gives away what is kept for those who do not come, and the places of those who take nothing, until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        loop {
            let due = self.lock().uploads.poll_timeout().map(Instant::from_std);
            tokio::select! {
                () = self.0.look.notified() => continue,
                () = async { tokio::time::sleep_until(due.expect("checked")).await }, if due.is_some() => {}
                () = shutdown.cancelled() => return,
            }
            let mut state = self.lock();
            state.uploads.handle_timeout(Instant::now().into_std());
            self.call(&mut state);
        }
    }

    /// Calls everybody whose turn it is.
    fn call(&self, state: &mut State) {
        let now = Instant::now().into_std();
        while let Some(Invitation { task, peer, best }) = state.uploads.poll_invitation(now) {
            if let Some(bell) = state.bells.get(&(task, peer)) {
                // One that does not even take its calls loses its turn.
                let _ = bell.call.try_send(best);
            }
            self.0.look.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Place ===

impl Place {
    /// The connection to the peer has some of it to send.
    pub(crate) fn handed(&self) {
        self.turns.lock().uploads.handle_handed(self.upload, Some(Instant::now().into_std()));
    }

    /// The connection has room for more.
    pub(crate) fn taken(&self) {
        if self.turns.lock().uploads.handle_handed(self.upload, None) {
            self.turns.0.look.notify_one();
        }
    }

    /// The peer was sent all of it.
    pub(crate) fn sent(&mut self) {
        self.sent = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.uploads.handle_sent(Instant::now().into_std(), self.upload, self.sent);
        self.turns.call(&mut state);
    }
}

// === impl Calls ===

impl Calls {
    /// The next call; `None` when somebody else listens in this one's place.
    ///
    /// # Cancel safety
    /// No call is lost.
    pub(crate) async fn next(&mut self) -> Option<Option<PieceIndex>> {
        self.calls.recv().await
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        if state.bells.get(&self.peer).is_some_and(|bell| bell.number == self.number) {
            state.bells.remove(&self.peer);
            state.uploads.handle_left(&self.peer.0, &self.peer.1);
            self.turns.call(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const CALLED: Asking = Asking { called: true, across: false };
    const PIECE: (PieceIndex, u64) = (PieceIndex::new(0), 4 << 20);

    fn host(name: &str) -> HostId {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn whoever_finds_no_place_is_called_when_there_is_one() {
        let (turns, task) = (Turns::new(1), TaskId::from([1; 32]));
        let first = turns.ask(task, (Some(&host("a")), CALLED), PIECE).unwrap();
        assert!(turns.ask(task, (Some(&host("b")), CALLED), PIECE).is_none());
        let mut calls = turns.listen(task, host("b"));
        drop(first);
        assert_eq!(calls.next().await, Some(None));
        assert!(turns.ask(task, (Some(&host("c")), CALLED), PIECE).is_none(), "it is kept for another");
        assert!(turns.ask(task, (Some(&host("b")), CALLED), PIECE).is_some());
    }

    #[tokio::test]
    async fn one_that_listens_late_is_called_still() {
        let (turns, task) = (Turns::new(1), TaskId::from([1; 32]));
        let first = turns.ask(task, (None, CALLED), PIECE).unwrap();
        assert!(turns.ask(task, (Some(&host("b")), CALLED), PIECE).is_none());
        drop(first);
        assert_eq!(turns.listen(task, host("b")).next().await, Some(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_nobody_takes_is_given_to_the_next() {
        let (turns, task) = (Turns::new(1), TaskId::from([1; 32]));
        let stop = CancellationToken::new();
        let _clock = tokio::task::JoinSet::from_iter([turns.clone().run(stop)]);
        let first = turns.ask(task, (None, CALLED), PIECE).unwrap();
        assert!(turns.ask(task, (Some(&host("dead")), CALLED), PIECE).is_none());
        assert!(turns.ask(task, (Some(&host("alive")), CALLED), PIECE).is_none());
        let mut calls = turns.listen(task, host("alive"));
        let began = Instant::now();
        drop(first);
        assert_eq!(calls.next().await, Some(None));
        assert!(began.elapsed() >= Duration::from_millis(200));
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_of_one_that_takes_nothing_is_given_to_the_next() {
        let (turns, task) = (Turns::new(1), TaskId::from([1; 32]));
        let _clock = tokio::task::JoinSet::from_iter([turns.clone().run(CancellationToken::new())]);
        tokio::task::yield_now().await;
        let cut_off = turns.ask(task, (Some(&host("a")), CALLED), PIECE).unwrap();
        cut_off.handed();
        let mut calls = turns.listen(task, host("b"));
        assert!(turns.ask(task, (Some(&host("b")), CALLED), PIECE).is_none());
        let called = tokio::time::timeout(Duration::from_secs(10), async {
            // The first invitations are for a place that is about to be free.
            while turns.ask(task, (Some(&host("b")), CALLED), PIECE).is_none() {
                calls.next().await;
            }
        });
        called.await.unwrap();
        drop(cut_off);
    }

    #[tokio::test]
    async fn one_that_goes_away_is_not_waited_for() {
        let (turns, task) = (Turns::new(1), TaskId::from([1; 32]));
        let first = turns.ask(task, (None, CALLED), PIECE).unwrap();
        assert!(turns.ask(task, (Some(&host("b")), CALLED), PIECE).is_none());
        drop(turns.listen(task, host("b")));
        drop(first);
        assert!(turns.ask(task, (Some(&host("c")), CALLED), PIECE).is_some());
    }
}
