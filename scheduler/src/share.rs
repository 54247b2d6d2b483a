//! A task's part in what origins may give: each of its peers that goes to an origin uses some of that origin's budget from then
//! until it goes there no more, and while there is none left the task waits in the origin's line.
//!
//! And those that the operator's rules keep from the origin: they are told when nobody is left who could bring what they lack.

use crate::budgets::Place;
use crate::host::HostKey;
use crate::peer::Standing;
use crate::task::Task;
use crate::world::Cx;
use std::sync::Arc;

impl Task {
    /// Whether there is room for the peer at its origin; then it has it. Otherwise the task waits there.
    pub(crate) fn enter_origin(&mut self, cx: &mut Cx<'_>, key: HostKey) -> bool {
        let Some(download) = self.download_mut(key) else { return false };
        if download.uses {
            return true;
        }
        let (name, rank, can_be_told) =
            (Arc::clone(&download.origin), download.rank, download.stream.is_some());
        let Some(limited) = cx.world.budgets.enter(&name, cx.task, key) else {
            // One whose stream is not open waits from when it is: it could not be told that its turn has come.
            if can_be_told {
                self.wait_for_room(cx, &name, rank);
            }
            return false;
        };
        let share = cx.world.budgets.share(&name);
        if let Some(download) = self.download_mut(key) {
            // Where nothing is limited any more, whoever had a share before is told so, or it would keep to that.
            let changed = std::mem::replace(&mut download.share, share) != share;
            (download.uses, download.news.share) = (limited, limited || changed);
        }
        self.wait_no_more(cx, &name);
        true
    }

    fn wait_for_room(&mut self, cx: &mut Cx<'_>, name: &Arc<str>, rank: u8) {
        let missed = self.missed.remove(name);
        let before = self.places.get(name).copied().or(missed);
        if missed.is_some() || before.is_none_or(|before| rank < before.rank) {
            let place = cx.world.budgets.wait(name, cx.task, rank, before);
            self.places.insert(Arc::clone(name), place);
        }
    }

    fn wait_no_more(&mut self, cx: &mut Cx<'_>, name: &Arc<str>) {
        self.missed.remove(name);
        if let Some(place) = self.places.remove(name) {
            cx.world.budgets.give_up(name, place);
        }
    }

    /// There is room for one of its peers at an origin, in whose line it stands no more: the first of all that wait has it,
    /// unless others are served by now. Where the lease is kept for another, the next task has its turn, and this one loses
    /// nothing.
    pub(crate) fn its_turn(&mut self, cx: &mut Cx<'_>, name: &Arc<str>) {
        let place = self.places.remove(name).filter(|_| self.kept_until.is_some());
        self.missed.extend(place.map(|place| (Arc::clone(name), place)));
        self.pass_on(cx);
    }

    /// The peer uses its origin no more.
    pub(crate) fn leave_origin(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let Some(download) = self.download_mut(key).filter(|download| download.uses) else { return };
        (download.uses, download.news.share) = (false, false);
        let name = Arc::clone(&download.origin);
        cx.world.budgets.leave(&name, cx.task, key);
    }

    /// Another share of the origin is the peer's.
    pub(crate) fn reshared(&mut self, cx: &mut Cx<'_>, key: HostKey) {
        let Some(download) = self.download_mut(key).filter(|download| download.uses) else { return };
        let share = cx.world.budgets.share(&download.origin);
        if std::mem::replace(&mut download.share, share) != share {
            download.news.share = true;
            self.wake(cx, key);
        }
    }

    /// The lease stands still, and other tasks wait for its origin.
    pub(crate) fn overdue(&mut self, cx: &mut Cx<'_>) {
        if self.is_free(cx.now) {
            self.revoke(cx);
        }
    }

    /// After an event: gives up the places in line of which nobody makes use any more. What comes later begins at the end; and
    /// for nobody's sake a lease is taken away.
    pub(crate) fn tidy_places(&mut self, cx: &mut Cx<'_>) {
        let waits = |name: &Arc<str>| {
            let mut there = self.downloads().filter(|(_, it)| it.origin == *name && it.stream.is_some());
            there.any(|(key, _)| self.ticket_of(key).is_some())
        };
        let names = self.places.keys().chain(self.missed.keys());
        let left: Vec<Arc<str>> = names.filter(|name| !waits(name)).cloned().collect();
        left.iter().for_each(|name| self.wait_no_more(cx, name));
    }

    /// What the task waits for, when it ends.
    pub(crate) fn take_places(&mut self) -> impl Iterator<Item = (Arc<str>, Place)> + use<> {
        std::mem::take(&mut self.places).into_iter()
    }

    /// Nobody goes to the origin now, or waits to: those who may not go themselves get nothing more than what others have.
    pub(crate) fn tell_barred(&mut self, cx: &mut Cx<'_>) {
        if self.barred == 0 || self.lease.is_some() || self.kept_until.is_some() {
            return;
        }
        let hope = |standing| matches!(standing, Standing::Waiting { .. });
        if self.downloads().any(|(_, download)| hope(download.standing)) {
            return;
        }
        let barred = self.downloads().filter(|(_, download)| is_untold(download.standing));
        let barred: Vec<HostKey> = barred.map(|(key, _)| key).filter(|key| !self.has_source(*key)).collect();
        for key in barred {
            let Some(download) = self.download_mut(key) else { continue };
            if let Standing::Barred { told, .. } = &mut download.standing {
                (*told, download.news.refused) = (true, true);
                cx.world.counts.hopeless += 1;
                self.wake(cx, key);
            }
        }
    }
}

const fn is_untold(standing: Standing) -> bool {
    matches!(standing, Standing::Barred { told: false, .. })
}
