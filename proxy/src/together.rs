//! [`Together`]: who asks the same at the same time shares one answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;

/// The questions that are under way.
pub(crate) struct Together<Q, A>(Mutex<HashMap<Q, Arc<OnceCell<A>>>>);

impl<Q: Clone + Eq + Hash, A: Clone> Together<Q, A> {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// The answer to `question`, which `ask` gets; it does nothing where another does. Whoever comes while all hold on to it has
    /// the same one; when the first lets go of it, the next one asks anew.
    ///
    /// # Cancel safety
    /// When the one goes away who asks for all, another does it in his place.
    pub(crate) async fn ask(&self, question: &Q, ask: impl Future<Output = A>) -> (A, Asked<'_, Q, A>) {
        let cell = Arc::clone(self.lock().entry(question.clone()).or_default());
        let asked = Asked { all: self, question: question.clone(), cell: Some(cell) };
        let answer = match &asked.cell {
            Some(cell) => cell.get_or_init(|| ask).await.clone(),
            None => ask.await,
        };
        (answer, asked)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Q, Arc<OnceCell<A>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of those who ask the same question. With an answer the first one who goes takes it away, without one the last.
pub(crate) struct Asked<'a, Q: Clone + Eq + Hash, A: Clone> {
    all: &'a Together<Q, A>,
    question: Q,
    /// Given up only with the map locked: otherwise two who go at once would each see the other.
    cell: Option<Arc<OnceCell<A>>>,
}

impl<Q: Clone + Eq + Hash, A: Clone> Drop for Asked<'_, Q, A> {
    fn drop(&mut self) {
        let mut asking = self.all.lock();
        let Some(own) = self.cell.take() else { return };
        // Who comes after an answer asks anew, beside those who have it.
        let Some(current) = asking.get(&self.question).filter(|cell| Arc::ptr_eq(cell, &own)) else { return };
        drop(own);
        if current.initialized() || Arc::strong_count(current) == 1 {
            asking.remove(&self.question);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_the_same_share_an_answer_and_nothing_is_left() {
        let together = Together::new();
        let slow = async |answer| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            answer
        };
        let (one, two, other) =
            tokio::join!(together.ask(&1, slow(1)), together.ask(&1, slow(2)), together.ask(&2, slow(3)),);
        assert_eq!((one.0, two.0, other.0), (1, 1, 3));
        // Who comes while the answer is held has it, too.
        assert_eq!(together.ask(&1, async { 4 }).await.0, 1);
        assert_eq!(together.ask(&1, async { 5 }).await.0, 5, "one has let go");
        drop((one, two, other));
        assert!(together.lock().is_empty());
    }

    #[test]
    fn who_has_his_answer_does_not_take_away_the_question_of_who_came_after_him() {
        let together = Together::new();
        let ask = || {
            let cell = Arc::clone(together.lock().entry(1).or_default());
            Asked { all: &together, question: 1, cell: Some(cell) }
        };
        let (first, second) = (ask(), ask());
        let cell = |asked: &Asked<'_, i32, u8>| Arc::as_ptr(asked.cell.as_ref().unwrap()).addr();
        first.cell.as_ref().unwrap().set(7).unwrap();
        drop(first);
        let later = ask();
        assert!(!later.cell.as_ref().unwrap().initialized());
        drop(second);
        assert_eq!(cell(&later), cell(&ask()));
        drop(later);
        assert!(together.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_one_who_asks_goes_another_does_it() {
        let together = Together::new();
        let gone = tokio::time::timeout(Duration::from_secs(1), together.ask(&1, pending()));
        let (gone, answer) = tokio::join!(gone, async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            together.ask(&1, async { 2 }).await
        });
        assert!(gone.is_err());
        assert_eq!(answer.0, 2);
        drop(answer);
        assert!(together.lock().is_empty());
    }
}
