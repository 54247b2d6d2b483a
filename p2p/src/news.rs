//! [`News`]: content that came or went, which a scheduler has not been told of yet.
//!
//! A task's own scheduler is told at once. The others need to know for when they take over: they are told once a second, many
//! at a time. Whoever knew only what there was when the daemon joined would send the next one to the origin for what came
//! since, and name hosts for what they have thrown away.

use darter_protocol::TaskId;
use darter_protocol::scheduler::HeldTask;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// As many changes are kept for a scheduler that does not take them. When it is back it is told everything anyway.
const MAX_CHANGES: usize = 100_000;

/// What became of tasks since it was taken last: what is here of them, or nothing.
#[derive(Debug, Default)]
pub(crate) struct News(Mutex<HashMap<TaskId, Option<HeldTask>>>);

impl News {
    /// The task is complete here, or with `None` not here any more.
    pub(crate) fn note(&self, task: TaskId, held: Option<HeldTask>) {
        let mut changes = self.lock();
        if changes.len() >= MAX_CHANGES {
            changes.clear();
        }
        changes.insert(task, held);
    }

    /// Nothing is to be told of the task.
    pub(crate) fn forget(&self, task: &TaskId) {
        self.lock().remove(task);
    }

    /// That the task went has been heard; that it came since has not.
    pub(crate) fn settle_gone(&self, task: &TaskId) {
        let mut changes = self.lock();
        if changes.get(task).is_some_and(Option::is_none) {
            changes.remove(task);
        }
    }

    /// That the task went was not heard: it is told again, unless it came since.
    pub(crate) fn note_gone_again(&self, task: TaskId) {
        self.lock().entry(task).or_insert(None);
    }

    /// What came and what went, each task once.
    pub(crate) fn take(&self) -> (Vec<HeldTask>, Vec<TaskId>) {
        let (mut came, mut went) = (Vec::new(), Vec::new());
        for (task, held) in std::mem::take(&mut *self.lock()) {
            match held {
                Some(held) => came.push(held),
                None => went.push(task),
            }
        }
        (came, went)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Option<HeldTask>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_became_of_a_task_last_is_told() {
        let news = News::default();
        let (one, two) = (TaskId::from([1; 32]), TaskId::from([2; 32]));
        let held = HeldTask { task_id: vec![2; 32].into(), content: None };
        news.note(one, Some(HeldTask::default()));
        news.note(two, None);
        news.note(one, None);
        news.note(two, Some(held.clone()));
        assert_eq!(news.take(), (vec![held], vec![one]));
        assert_eq!(news.take(), (vec![], vec![]));
    }

    #[test]
    fn what_went_and_came_again_is_here() {
        let (news, task) = (News::default(), TaskId::from([1; 32]));
        news.note(task, Some(HeldTask::default()));
        news.settle_gone(&task);
        news.note_gone_again(task);
        assert_eq!(news.take(), (vec![HeldTask::default()], vec![]));
        news.note_gone_again(task);
        news.settle_gone(&task);
        assert_eq!(news.take(), (vec![], vec![]));
    }
}
