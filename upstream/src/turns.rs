//! [`Turns`]: how many requests for content one origin gets from this host at once, and whose is next.
//!
//! Invariant: of an origin, as many places are held as there are [`Turn`]s, and nobody waits while one is free. A place that
//! becomes free goes to whoever holds the fewest there, of several to the one who has waited longest: a download that asks
//! for many parts at once does not keep out one that wants its first. Whoever waits is told, and never asks again.

use crate::connector::Target;
use crate::metrics::{Counted, Metrics};
use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Whose requests count together.
pub(crate) type Whose = u64;

/// The places at all origins. Clones are the same.
#[derive(Clone)]
pub(crate) struct Turns(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    metrics: Metrics,
}

struct State {
    /// Places at each origin; `None`: any number.
    most: Option<NonZeroUsize>,
    /// Origins at which a place is held.
    origins: HashMap<Target, Origin>,
}

/// Invariant: `all` is the sum of what is held.
#[derive(Default)]
struct Origin {
    all: usize,
    held: HashMap<Whose, usize>,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
}

struct Waiting {
    whose: Whose,
    called: oneshot::Sender<Turn>,
}

/// A place at an origin, until this is dropped.
pub(crate) struct Turn {
    turns: Turns,
    target: Target,
    whose: Whose,
    /// How long it was waited for.
    pub(crate) waited: Duration,
}

// === impl Turns ===

impl Turns {
    pub(crate) fn new(most: Option<NonZeroUsize>, metrics: Metrics) -> Self {
        Self(Arc::new(Shared { state: Mutex::new(State { most, origins: HashMap::new() }), metrics }))
    }

    /// So many places at each origin from now on. Those that are held stay held.
    pub(crate) fn resize(&self, most: Option<NonZeroUsize>) {
        let mut state = self.lock();
        state.most = most;
        let targets: Vec<Target> = state.origins.keys().cloned().collect();
        let called: Vec<_> = targets.iter().flat_map(|target| self.call(&mut state, target)).collect();
        drop(state);
        deliver(called);
    }

    /// Waits for a place at an origin.
    ///
    /// # Cancel safety
    /// Whoever waits no longer is passed over.
    pub(crate) async fn take(&self, target: &Target, whose: Whose) -> Turn {
        let (called, mut turn) = oneshot::channel();
        let next = {
            let mut state = self.lock();
            let origin = state.origins.entry(target.clone()).or_default();
            origin.waiting.retain(|waiting| !waiting.called.is_closed());
            origin.waiting.push(Waiting { whose, called });
            self.call(&mut state, target)
        };
        deliver(next);
        if let Ok(turn) = turn.try_recv() {
            return turn;
        }
        let (began, _queued) = (Instant::now(), Counted::one_of(&self.0.metrics.queued));
        let mut turn = turn.await.expect("whoever waits stays in the list until he is called");
        turn.waited = began.elapsed();
        self.0.metrics.turn_wait.observe(turn.waited.as_secs_f64());
        turn
    }

    fn turn(&self, target: &Target, whose: Whose) -> Turn {
        Turn { turns: self.clone(), target: target.clone(), whose, waited: Duration::ZERO }
    }

    /// Gives the places of an origin that are free to those who are next. They are told when the lock is not held any more:
    /// one who has gone gives his place back at once.
    fn call(&self, state: &mut State, target: &Target) -> Vec<(oneshot::Sender<Turn>, Turn)> {
        let most = state.most.map_or(usize::MAX, NonZeroUsize::get);
        let Some(origin) = state.origins.get_mut(target) else { return Vec::new() };
        let mut called = Vec::new();
        while origin.all < most
            && let Some(next) = origin.next()
        {
            origin.hold(next.whose);
            called.push((next.called, self.turn(target, next.whose)));
        }
        if origin.all == 0 {
            state.origins.remove(target);
        }
        called
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn deliver(called: Vec<(oneshot::Sender<Turn>, Turn)>) {
    for (waiting, turn) in called {
        let _ = waiting.send(turn);
    }
}

// === impl Origin ===

impl Origin {
    /// Who is next, of those who are still there.
    fn next(&mut self) -> Option<Waiting> {
        self.waiting.retain(|waiting| !waiting.called.is_closed());
        let holds = |waiting: &Waiting| self.held.get(&waiting.whose).copied().unwrap_or_default();
        let (index, _) = self.waiting.iter().enumerate().min_by_key(|(_, waiting)| holds(waiting))?;
        Some(self.waiting.remove(index))
    }

    fn hold(&mut self, whose: Whose) {
        self.all += 1;
        *self.held.entry(whose).or_default() += 1;
    }

    fn release(&mut self, whose: Whose) {
        self.all -= 1;
        if let Some(held) = self.held.get_mut(&whose) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&whose);
            }
        }
    }
}

// === impl Turn ===

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        if let Some(origin) = state.origins.get_mut(&self.target) {
            origin.release(self.whose);
        }
        let called = self.turns.call(&mut state, &self.target);
        drop(state);
        deliver(called);
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").field("target", &self.target).field("waited", &self.waited).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    fn turns(most: usize) -> Turns {
        Turns::new(NonZeroUsize::new(most), Metrics::default())
    }

    fn origin(name: &str) -> Target {
        Target::new(name, 443, true)
    }

    #[tokio::test]
    async fn whoever_holds_the_fewest_is_next_and_then_whoever_waited_longest() {
        let (turns, a) = (turns(3), origin("a"));
        let mut held = [turns.take(&a, 1).await, turns.take(&a, 1).await, turns.take(&a, 1).await].map(Some);
        let mut waiting = Vec::from([1, 2, 3, 2].map(|whose| Box::pin(turns.take(&a, whose))));
        assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        let mut come = Vec::new();
        for first in &mut held {
            *first = None;
            waiting.retain_mut(|waiting| waiting.now_or_never().map(|turn| come.push(turn)).is_none());
        }
        assert_eq!(come.iter().map(|turn| turn.whose).collect::<Vec<_>>(), [2, 3, 1]);
    }

    #[tokio::test]
    async fn one_origin_does_not_hold_up_another() {
        let turns = turns(1);
        let _first = turns.take(&origin("a"), 1).await;
        assert!(turns.take(&origin("a"), 2).now_or_never().is_none());
        assert!(turns.take(&origin("b"), 2).now_or_never().is_some());
        assert!(turns.lock().origins.len() == 1, "nothing is kept of one at which nobody is");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_is_passed_over_and_the_wait_is_known() {
        let (turns, a) = (turns(1), origin("a"));
        let first = turns.take(&a, 1).await;
        let mut gone = Box::pin(turns.take(&a, 2));
        let mut stays = Box::pin(turns.take(&a, 3));
        assert!((&mut gone).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
        assert_eq!(turns.0.metrics.queued.get(), 2);
        drop(gone);
        tokio::time::advance(Duration::from_secs(3)).await;
        drop(first);
        let turn = stays.now_or_never().expect("the place is free");
        assert_eq!((turn.waited, turns.0.metrics.queued.get()), (Duration::from_secs(3), 0));
    }

    #[tokio::test]
    async fn more_places_are_taken_at_once_and_fewer_when_they_are_free() {
        let (turns, a) = (turns(1), origin("a"));
        let first = turns.take(&a, 1).await;
        let mut second = Box::pin(turns.take(&a, 1));
        assert!((&mut second).now_or_never().is_none());
        turns.resize(None);
        let second = second.now_or_never().expect("any number has a place");
        turns.resize(NonZeroUsize::new(1));
        drop(first);
        assert!(turns.take(&a, 2).now_or_never().is_none());
        drop(second);
        assert!(turns.take(&a, 2).now_or_never().is_some());
    }

    proptest! {
        #[test]
        fn never_more_are_held_than_may_be_and_nobody_waits_beside_a_free_place(
            steps in prop::collection::vec((0..4_usize, 0..4_u64), 1..60),
        ) {
            let (turns, a) = (turns(2), origin("a"));
            let (mut held, mut waiting) = (Vec::new(), Vec::new());
            for (step, whose) in steps {
                match step {
                    0 if !held.is_empty() => drop(held.swap_remove(whose as usize % held.len())),
                    1 if !waiting.is_empty() => drop(waiting.swap_remove(whose as usize % waiting.len())),
                    _ => waiting.push(Box::pin(turns.take(&a, whose))),
                }
                waiting.retain_mut(|waiting| match waiting.now_or_never() {
                    Some(turn) => { held.push(turn); false }
                    None => true,
                });
                prop_assert!(held.len() <= 2);
                prop_assert!(waiting.is_empty() || held.len() == 2);
            }
            waiting.clear();
            held.clear();
            prop_assert!(turns.lock().origins.is_empty());
        }
    }
}
