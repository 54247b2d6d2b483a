//! [`Duty`]: whether a bridge brings anything into its zone.
//!
//! That is known by those of its zone who say who gave them pieces. A bridge that gave nothing to anybody of its zone for
//! [`IDLE`], while at least half of the zone's bridges did, is none any more, if somebody can take its place; it loses its partners across the
//! border, and is not chosen again in this download. Where fewer bring anything, there may be nothing to bring: then all stay.
//!
//! It need not be ill-disposed: its way over the border may be slow, or closed. Nobody accuses it, so it is not held against its host.

use crate::host::HostKey;
use crate::task::Task;
use crate::world::Cx;
use crate::zone::{LOOKED_AT, ZoneId};
use std::time::{Duration, Instant};

/// Long enough for a piece over a slow border; until then each piece that is its duty comes a second or two later, by the other bridges.
pub(crate) const IDLE: Duration = Duration::from_secs(30);

/// Since when a host is a bridge, and when it gave its zone something last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Duty {
    since: Instant,
    brought: Option<Instant>,
}

impl Duty {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { since: now, brought: None }
    }

    fn idle_since(self) -> Instant {
        self.brought.unwrap_or(self.since)
    }
}

impl Task {
    /// `key` got pieces from `partner`: if that is a bridge of its zone, it does its duty, and others may be measured by it.
    pub(crate) fn hear_brought(&mut self, cx: &mut Cx<'_>, key: HostKey, partner: HostKey) {
        let now = cx.now;
        if self.is_across(key, partner) {
            return;
        }
        let Some(duty) = self.download_mut(partner).and_then(|download| download.duty.as_mut()) else {
            return;
        };
        duty.brought = Some(now);
        let zone = self.zone_of(key);
        if let Some(idle) = self.idle_bridge(cx, zone) {
            self.relieve(cx, zone, idle);
        }
    }

    /// The bridge that is to be replaced, if there is one.
    fn idle_bridge(&self, cx: &mut Cx<'_>, id: ZoneId) -> Option<HostKey> {
        let zone = self.zones.get(&id).filter(|zone| zone.imports)?;
        let duty = |key: &HostKey| Some((*key, **self.download(*key)?.duty.as_ref()?));
        let duties = || zone.bridges.iter().filter_map(duty);
        // Who has the lease gives to bridges what it brings.
        let those = duties().filter(|(key, _)| !self.has_lease(*key));
        let (idle, since) =
            those.map(|(key, duty)| (key, duty.idle_since())).min_by_key(|(_, since)| *since)?;
        if cx.now < since + IDLE {
            return None;
        }
        let brought = duties().filter(|(_, duty)| duty.brought.is_some_and(|at| at > since)).count();
        if brought * 2 < zone.bridges.len() {
            return None;
        }
        // Few are looked at: where nearly all had their turn, each report would otherwise go through the whole zone.
        let others = zone.downloads.some(LOOKED_AT, &mut cx.world.rng);
        others.into_iter().any(|key| self.may_bridge(key)).then_some(idle)
    }

    fn relieve(&mut self, cx: &mut Cx<'_>, id: ZoneId, key: HostKey) {
        let Some(zone) = self.zones.get_mut(&id) else { return };
        zone.remove_bridge(key);
        if let Some(download) = self.download_mut(key) {
            download.end_duty();
            (download.relieved, download.gate) = (true, download.leased);
        }
        tracing::debug!(task = %cx.task, "a bridge brought nothing into its zone while others did");
        self.changed(cx, key);
        self.keep_apart(cx, key);
        self.wake(cx, key);
        self.moved.insert(id);
    }
}
