//! Who is slow or silent, and what follows from it.
//!
//! A fetch from which nothing has come for [`SILENT`] is asked of another as well; whoever is first brings the piece, and
//! the other is cancelled. A partner that stays silent, or loses this race again and again, is replaced. What one was to bring
//! of whom the scheduler says that he is gone is waited for no longer once it is silent: the origin would not be asked for it.
//!
//! Nobody is blamed for what this host itself holds back, because a limit of its own is reached or its disk is slow: the time
//! of that does not count ([`Swarm::handle_held`]), and bytes that wait here are as good as bytes that come.
//!
//! Nor is a partner blamed for a piece that it is itself receiving: it sends no faster than its own source, on which it has an
//! eye itself. What does not come is asked of one who has it, as of any other, and a fetch that stays silent is ended soon; but
//! that counts against nobody, unless it happens again and again (`VAIN_RELAYS`): then its word is not listened to any more. A partner
//! that is dead shows so by what it has, and by what it says no more.

use crate::action::Action;
use crate::partner::{ASK_AGAIN, Pace, Partner, Standing};
use crate::state::Swarm;
use darter_protocol::{HostId, PieceIndex, PieceSet};
use std::time::{Duration, Instant};

/// Without a byte for this long, a fetch is silent: longer than a lost packet takes to be sent again (200 ms, and 400 ms
/// when it is lost twice).
pub(crate) const SILENT: Duration = Duration::from_millis(500);
/// A partner that is silent for this long, while others are not, is replaced.
const GIVEN_UP: Duration = Duration::from_secs(4);
/// One that passes on what it is itself receiving is waited for no longer than this. What it has passed on stays, and while its source is
/// silent it is of no use to anybody; through many hands, each would wait for the one before.
const RELAY_GIVEN_UP: Duration = Duration::from_secs(1);
/// When everybody is silent it is rather this host's own network.
const ALL_GIVEN_UP: Duration = Duration::from_secs(15);
/// Whoever comes so much too late to look at the clock has slept: nobody else was silent.
const SLEPT: Duration = Duration::from_secs(2);
/// Fetches in a row that others had to bring in its place, after which a partner is replaced.
const STRIKES: u8 = 3;
/// A fetch is slow when it takes so many times as long as is typical.
const SLOW: u32 = 2;

/// How long something takes: a moving average.
#[derive(Debug, Default)]
pub(crate) struct Typical(Option<Duration>);

impl Typical {
    pub(crate) fn get(&self) -> Option<Duration> {
        self.0
    }

    pub(crate) fn learn(&mut self, took: Duration) {
        self.0 = Some(self.0.map_or(took, |typical| (typical * 7 + took) / 8));
    }

    fn slow_after(&self) -> Option<Duration> {
        self.0.map(|typical| typical * SLOW)
    }
}

impl Swarm {
    /// When [`Self::handle_timeout`] is due, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let looks = self.fetches.iter().filter(|fetch| !fetch.cancelled).map(|fetch| fetch.look);
        let asks = self.partners.values().filter_map(|partner| match partner.standing {
            Standing::Waiting { until } => Some(until),
            _ => None,
        });
        looks.chain(asks).chain(self.border.poll_timeout()).min()
    }

    /// This host has held back the bytes of a fetch for so long, all in all. Said before it is judged or has ended.
    pub fn handle_held(&mut self, partner: &HostId, piece: PieceIndex, so_far: Duration) {
        let mut fetches = self.fetches.iter_mut();
        if let Some(fetch) = fetches.find(|fetch| fetch.piece == piece && fetch.partner == *partner) {
            fetch.held = so_far;
        }
    }

    /// Does what is due by `now`. `last_byte` says when the last byte of a fetch came, if any has; now, if it waits here.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        last_byte: impl Fn(&HostId, PieceIndex) -> Option<Instant>,
    ) {
        if self.border.is_due(now) {
            self.border.handle_far(now, self.pieces.far());
            self.idle = false;
        }
        for partner in self.partners.values_mut() {
            if matches!(partner.standing, Standing::Waiting { until } if until <= now) {
                partner.standing = Standing::Free;
                self.idle = false;
            }
        }
        let due = self.fetches.iter().filter(|fetch| !fetch.cancelled).map(|fetch| fetch.look).min();
        let Some(due) = due.filter(|due| *due <= now) else { return };
        let slept = now.saturating_duration_since(due) > SLEPT;
        for fetch in &mut self.fetches {
            let heard = last_byte(&fetch.partner, fetch.piece);
            fetch.alive = if slept { now } else { fetch.alive.max(heard.unwrap_or(fetch.alive)) };
        }
        let anybody = self.fetches.iter().any(|fetch| !fetch.cancelled && now < fetch.alive + SILENT);
        let given_up = if anybody { GIVEN_UP } else { ALL_GIVEN_UP };
        let slow_after = self.typical.slow_after();
        let mut lost = Vec::new();
        for fetch in self.fetches.iter_mut().filter(|fetch| !fetch.cancelled && fetch.look <= now) {
            let slow_at = slow_after.map(|after| fetch.asked + after + fetch.held);
            let given_up = if fetch.relayed { RELAY_GIVEN_UP } else { given_up };
            let (silent_at, given_up_at) = (fetch.alive + SILENT, fetch.alive + given_up);
            fetch.pace = if silent_at <= now {
                Pace::Silent
            } else if slow_at.is_some_and(|at| at <= now) {
                Pace::Slow
            } else {
                Pace::Well
            };
            fetch.look = match fetch.pace {
                Pace::Well => slow_at.map_or(silent_at, |slow_at| slow_at.min(silent_at)),
                Pace::Slow => silent_at,
                // Whether the others are silent, too, may be otherwise by then.
                Pace::Silent => now + SILENT,
            };
            self.idle &= fetch.pace == Pace::Well;
            if fetch.forsaken && fetch.pace == Pace::Silent {
                fetch.cancelled = true;
                self.due.push_back(Action::Cancel { partner: fetch.partner.clone(), piece: fetch.piece });
            } else if given_up_at <= now {
                lost.push((fetch.partner.clone(), fetch.piece, fetch.relayed));
            }
        }
        for (partner, piece, relayed) in &lost {
            if *relayed { self.give_up_relay(partner, *piece) } else { self.replace(partner) }
        }
        if self.limits.spares == 0 {
            self.move_silent(now);
        }
    }

    /// After which time a new fetch is looked at.
    pub(crate) fn look_after(&self) -> Duration {
        self.typical.slow_after().map_or(SILENT, |slow| slow.min(SILENT))
    }

    /// `partner` has brought what it was asked for.
    pub(crate) fn delivered(&mut self, now: Instant, partner: &HostId, piece: PieceIndex) {
        // How long a few blocks take says nothing of a piece.
        let whole = self.pieces.layout.blocks_of(piece);
        let fetch = self.end_fetch(partner, piece);
        let relayed = fetch.as_ref().is_some_and(|fetch| fetch.relayed);
        // A relay brings it in what is left of the time that its source takes.
        if let Some(fetch) = fetch.filter(|fetch| fetch.blocks == whole && !relayed) {
            self.typical.learn(now.saturating_duration_since(fetch.asked + fetch.held));
        }
        if let Some(partner) = self.partners.get_mut(partner) {
            partner.strikes = 0;
            if relayed {
                partner.vain_relays = 0;
            }
        }
    }

    /// The piece is here: whoever else was to bring it need not. If he was silent, that counts against him; if he was slow, others
    /// are asked for a while, unless only he has something.
    pub(crate) fn cancel_others(&mut self, now: Instant, piece: PieceIndex) {
        let (mut struck, mut slow, mut vain) = (Vec::new(), Vec::new(), Vec::new());
        for fetch in self.fetches.iter_mut().filter(|fetch| fetch.piece == piece && !fetch.cancelled) {
            fetch.cancelled = true;
            self.due.push_back(Action::Cancel { partner: fetch.partner.clone(), piece });
            match fetch.pace {
                // Who passes on what does not come is not at fault.
                Pace::Silent if fetch.relayed => vain.push(fetch.partner.clone()),
                _ if fetch.relayed => {}
                Pace::Silent => struck.push(fetch.partner.clone()),
                Pace::Slow => slow.push(fetch.partner.clone()),
                Pace::Well => {}
            }
        }
        for partner in &slow {
            let Some(known) = self.partners.get_mut(partner) else { continue };
            let is_sole = self.pieces.open.common(&self.pieces.sole).any(|piece| known.have.contains(piece));
            if known.standing == Standing::Free && !is_sole {
                known.standing = Standing::Waiting { until: now + ASK_AGAIN };
            }
        }
        vain.iter().for_each(|partner| self.count_vain(partner));
        struck.iter().for_each(|partner| self.strike(now, partner));
    }

    /// Nothing came of what the partner was itself receiving.
    fn count_vain(&mut self, partner: &HostId) {
        if let Some(known) = self.partners.get_mut(partner) {
            known.vain_relays = known.vain_relays.saturating_add(1);
        }
    }

    /// Pieces too large for a second copy in memory: what a silent partner was to bring, another brings in its place.
    fn move_silent(&mut self, now: Instant) {
        let mut struck = Vec::new();
        for fetch in self.fetches.iter_mut().filter(|fetch| !fetch.cancelled && fetch.pace == Pace::Silent) {
            let has = |partner: &Partner| partner.have.contains(fetch.piece);
            let itself = self.partners.get(&fetch.partner).is_some_and(has);
            if self.pieces.availability[fetch.piece.as_usize()] > u16::from(itself) {
                fetch.cancelled = true;
                self.due.push_back(Action::Cancel { partner: fetch.partner.clone(), piece: fetch.piece });
                if !fetch.relayed {
                    struck.push(fetch.partner.clone());
                }
            }
        }
        struck.iter().for_each(|partner| self.strike(now, partner));
    }

    /// Ends that one fetch. What else the partner is receiving is not asked of it either until it says that it receives something new.
    fn give_up_relay(&mut self, partner: &HostId, piece: PieceIndex) {
        if let Some(known) = self.partners.get_mut(partner) {
            known.coming = PieceSet::empty(known.coming.pieces());
        }
        self.count_vain(partner);
        let mut fetches = self.fetches.iter_mut().filter(|fetch| !fetch.cancelled);
        if let Some(fetch) = fetches.find(|fetch| fetch.piece == piece && fetch.partner == *partner) {
            fetch.cancelled = true;
            self.due.push_back(Action::Cancel { partner: partner.clone(), piece });
        }
    }

    fn strike(&mut self, now: Instant, partner: &HostId) {
        let Some(known) = self.partners.get_mut(partner) else { return };
        known.strikes += 1;
        known.standing = Standing::Waiting { until: now + ASK_AGAIN };
        if known.strikes >= STRIKES {
            self.replace(partner);
        }
    }

    fn replace(&mut self, partner: &HostId) {
        for fetch in self.fetches.iter_mut().filter(|fetch| fetch.partner == *partner && !fetch.cancelled) {
            fetch.cancelled = true;
            self.due.push_back(Action::Cancel { partner: partner.clone(), piece: fetch.piece });
        }
        if self.partners.contains_key(partner) {
            self.handle_partner_gone(partner);
            self.due.push_back(Action::Replace { partner: partner.clone() });
        }
    }
}
