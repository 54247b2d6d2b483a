//! [`Conduct`]: what is known of how a host serves others, and whether it is named to them because of that.
//!
//! A host is in exactly one [`State`]; [`Conduct::condemn`], [`Conduct::due`], [`Conduct::proven`] and
//! [`Conduct::restarted`] are the places where that changes:
//!
//! ```text
//! Good --corrupt bytes, or a score of 4.5--> Quarantined --its time is over--> Probation --proof--> Good
//!                                               ^------- anything wrong -------'    or a day without a bad word
//! ```
//!
//! The score counts what others report: a failure is [`FAILURE`] points, content that it announced and does not have is
//! [`NOT_HELD`], a message that no honest daemon sends is [`NONSENSE`]. A verified piece that it served takes [`SERVED`]
//! off, and half of what there is is forgotten every [`HALF_LIFE`]. Points of one reporter are shared among all hosts
//! that it accused lately: a host that reaches nobody says more about itself than about the others. And of a host's points
//! one reporter has given at most [`MOST_OF_ONE`], however often it accuses it: it takes several to shut a host out.
//!
//! Corrupt bytes are proof, so one word is enough; but a reporter whose own memory is broken finds everybody corrupt. So
//! one reporter's word alone condemns [`Conduct::at_once`] hosts in an hour; beyond that it is [`DOUBTED`] points, and held
//! against the reporter itself.

use crate::host::HostKey;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// With this score a host is quarantined: five failures within a minute and a half, of which a little is forgotten meanwhile.
const THRESHOLD: f32 = 4.5;
/// Points for a partner that could not be reached, broke off, or did not answer in time.
const FAILURE: f32 = 1.0;
/// Points for a partner that does not hold what it said. Half a failure: content that was thrown away a moment ago is
/// nobody's fault.
const NOT_HELD: f32 = 0.5;
/// Points for a message that no honest daemon sends.
const NONSENSE: f32 = 1.0;
/// Of what a host has in points, one reporter's failures are at most this: a third reporter is needed, or a second one at
/// the same moment.
const MOST_OF_ONE: f32 = THRESHOLD / 2.0;
/// Points for corrupt bytes that only a doubtful reporter saw: two such reporters are enough, and one is not, however
/// often it says so.
const DOUBTED: f32 = 2.5;
/// Taken off for each verified piece that was served: a host that fails one transfer in six stays.
const SERVED: f32 = 0.2;
/// In this time half of a score is forgotten.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// How long a reporter's accusations count as its recent ones.
const LATELY: Duration = Duration::from_secs(3600);
/// Of so many accused hosts a reporter's memory is kept; failures of further ones count for nothing.
const MAX_ACCUSED: usize = 64;
/// The first quarantine for failures: what restarts by itself has done so by then.
pub(crate) const FIRST_FAILING: Duration = Duration::from_secs(300);
/// The first quarantine for corrupt bytes: memory or a disk that is broken does not heal; somebody has to come.
pub(crate) const FIRST_CORRUPT: Duration = Duration::from_secs(1800);
/// Each further quarantine takes twice as long as the one before, up to this.
const LONGEST: Duration = Duration::from_secs(86_400);
/// Verified pieces that a host on probation must have served to be trusted again.
pub(crate) const PROOF: u32 = 3;
/// After this time without a bad word nothing is known of a host any more.
const FORGIVEN: Duration = Duration::from_secs(86_400);

/// Why a host is quarantined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It sent bytes that do not match.
    Corrupt,
    /// Others could not get from it what it was named for.
    Failing,
    /// It sent the scheduler what no honest daemon sends.
    Nonsense,
    /// It accused more hosts of corrupt bytes than one honest host meets.
    Accuser,
}

impl Why {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Corrupt, Self::Failing, Self::Nonsense, Self::Accuser];

    /// The word for it in metrics, messages and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Corrupt => "corrupt",
            Self::Failing => "failing",
            Self::Nonsense => "nonsense",
            Self::Accuser => "accuser",
        }
    }
}

/// Whether a host is named to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum State {
    #[default]
    Good,
    /// To nobody, until then.
    Quarantined { until: Instant, why: Why },
    /// To few, and nobody relies on it alone, until it has served this many more pieces, or a day is over without a bad word: not before
    /// `until`.
    Probation { missing: u32, why: Why, until: Instant },
}

/// What a reporter says of a partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Corrupt,
    Failed,
    NotHeld,
}

/// A host's conduct. That of a host of which nothing bad is known takes eight bytes.
#[derive(Debug, Default)]
pub(crate) struct Conduct(Option<Box<Record>>);

#[derive(Debug)]
struct Record {
    state: State,
    score: f32,
    /// When `score` was that much.
    scored: Instant,
    /// Of the score, what its own words gave it (nonsense, accusations beyond measure), and when it was that much.
    own: f32,
    own_since: Instant,
    /// When the last bad word came or the last quarantine ended.
    spoken: Instant,
    /// Quarantines, each twice as long as the one before.
    times: u32,
    /// As a reporter: whom it accused lately.
    accused: Vec<Accused>,
    /// As a reporter: when its word alone condemned a host, oldest first, as far as that is lately: any hour counts, and not one that begins
    /// when it suits the reporter. At most as many as [`Conduct::at_once`] says.
    believed: VecDeque<Instant>,
}

/// A host that a reporter accused.
#[derive(Debug)]
struct Accused {
    host: HostKey,
    /// What it gave that host in points, of which as much is forgotten as of the host's own, and when last.
    given: f32,
    last: Instant,
}

/// How much a reporter's word is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Word {
    /// In points, where it is not enough at once.
    points: f32,
    /// Whether it is enough to condemn a host for corrupt bytes.
    pub(crate) at_once: bool,
}

impl Conduct {
    /// How many hosts one reporter's word alone condemns for corrupt bytes within an hour, in a cluster of `hosts`.
    pub(crate) const fn at_once(hosts: usize) -> usize {
        3 + hosts / 50
    }

    pub(crate) fn state(&self) -> State {
        self.0.as_ref().map(|record| record.state).unwrap_or_default()
    }

    /// The score now, and the number of quarantines so far.
    pub(crate) fn score(&self, now: Instant) -> (f32, u32) {
        self.0.as_ref().map_or((0.0, 0), |record| (record.score_at(now), record.times_at(now)))
    }

    /// Whether there is anything to remember of a host that is gone.
    pub(crate) fn is_worth_remembering(&self, now: Instant) -> bool {
        self.0.as_ref().is_some_and(|record| {
            record.state != State::Good && !record.is_forgotten(now)
                || record.times_at(now) > 0
                || record.own_at(now) >= NOT_HELD
                || record.believed.back().is_some_and(|at| now < *at + LATELY)
                || record.accused.iter().any(|accused| now < accused.last + LATELY)
        })
    }

    /// As a reporter, it accuses a host, in a cluster of `hosts`: what its word is worth.
    pub(crate) fn accuses(&mut self, now: Instant, accused: HostKey, fault: Fault, hosts: usize) -> Word {
        let record = self.record(now);
        while record.believed.front().is_some_and(|at| now >= *at + LATELY) {
            record.believed.pop_front();
        }
        let at_once = fault == Fault::Corrupt && record.believed.len() < Self::at_once(hosts);
        if at_once {
            record.believed.push_back(now);
        }
        Word { points: record.give(now, accused, fault), at_once }
    }

    /// Somebody whose word is worth `word` found fault with it. Returns whether it has to be quarantined for that, and why.
    pub(crate) fn blamed(&mut self, now: Instant, fault: Fault, word: Word) -> Option<Why> {
        match (fault, self.state()) {
            // Several partners found the same at the same time.
            (Fault::Corrupt, State::Quarantined { why: Why::Corrupt, .. }) => None,
            (fault, _) => self.weighed(now, fault, word),
        }
    }

    fn weighed(&mut self, now: Instant, fault: Fault, word: Word) -> Option<Why> {
        match fault {
            Fault::Corrupt if word.at_once => Some(Why::Corrupt),
            Fault::Corrupt => self.charge(now, word.points, Why::Corrupt),
            Fault::Failed | Fault::NotHeld => self.charge(now, word.points, Why::Failing),
        }
    }

    /// It accused one more of corrupt bytes than its word is good for.
    pub(crate) fn overdid(&mut self, now: Instant) -> Option<Why> {
        self.charge_own(now, FAILURE, Why::Accuser)
    }

    /// It sent what no honest daemon sends.
    pub(crate) fn talked_nonsense(&mut self, now: Instant) -> Option<Why> {
        self.charge_own(now, NONSENSE, Why::Nonsense)
    }

    fn charge_own(&mut self, now: Instant, points: f32, why: Why) -> Option<Why> {
        let record = self.record(now);
        (record.own, record.own_since) = (record.own_at(now) + points, now);
        self.charge(now, points, why)
    }

    fn charge(&mut self, now: Instant, points: f32, why: Why) -> Option<Why> {
        let record = self.record(now);
        record.set_score(now, record.score_at(now) + points);
        record.spoken = now;
        let limit = match record.state {
            State::Good => THRESHOLD,
            // Half a failure is enough: it has to prove itself.
            State::Probation { .. } => NOT_HELD,
            State::Quarantined { .. } => return None,
        };
        (record.score >= limit).then_some(why)
    }

    /// It is quarantined. Returns until when.
    pub(crate) fn condemn(&mut self, now: Instant, why: Why) -> Instant {
        let record = self.record(now);
        let first = if why == Why::Corrupt { FIRST_CORRUPT } else { FIRST_FAILING };
        let lasts = first.saturating_mul(2u32.saturating_pow(record.times)).min(LONGEST);
        let before = if let State::Quarantined { until, .. } = record.state { Some(until) } else { None };
        let until = before.map_or(now + lasts, |before| before.max(now + lasts));
        record.state = State::Quarantined { until, why };
        record.set_score(now, 0.0);
        (record.own, record.spoken) = (0.0, now);
        record.times += 1;
        until
    }

    /// Time has passed. Returns whether a quarantine is over by it, and it is on probation; or that, too, and all is forgotten.
    pub(crate) fn due(&mut self, now: Instant) -> bool {
        let Some(record) = &mut self.0 else { return false };
        let before = record.state;
        if let State::Quarantined { until, why } = record.state
            && now >= until
        {
            // For a host that was gone that may be long ago.
            record.spoken = until;
            record.state = record.probation(why);
        }
        if let State::Probation { missing, why, until } = record.state
            && now >= until
        {
            let until = record.spoken + FORGIVEN;
            record.state = if now >= until { State::Good } else { State::Probation { missing, why, until } };
        }
        std::mem::discriminant(&record.state) != std::mem::discriminant(&before)
    }

    /// It served verified pieces. Returns whether it is trusted again by that.
    pub(crate) fn proven(&mut self, now: Instant, pieces: u32) -> bool {
        let Some(record) = &mut self.0 else { return false };
        record.set_score(now, (record.score_at(now) - SERVED * pieces as f32).max(0.0));
        let State::Probation { missing, why, until } = record.state else { return false };
        let missing = missing.saturating_sub(pieces);
        record.state = if missing == 0 { State::Good } else { State::Probation { missing, why, until } };
        missing == 0
    }

    /// A new life of the host begins. What failed may have been repaired: the first quarantine for failures is forgiven,
    /// later ones become probation; and so are failures that were not enough for one. Corrupt bytes and nonsense are not forgotten
    /// by reconnecting, nor what it said of others.
    pub(crate) fn restarted(&mut self, now: Instant) {
        self.due(now);
        let Some(record) = &mut self.0 else { return };
        record.set_score(now, record.own_at(now).min(record.score_at(now)));
        if let State::Quarantined { why: why @ Why::Failing, .. } = record.state {
            record.state = if record.times <= 1 { State::Good } else { record.probation(why) };
        }
    }

    /// When [`Self::due`] is to be asked again.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        match self.state() {
            State::Quarantined { until, .. } | State::Probation { until, .. } => Some(until),
            State::Good => None,
        }
    }

    fn record(&mut self, now: Instant) -> &mut Record {
        let record = self.0.get_or_insert_with(|| {
            Box::new(Record {
                state: State::Good,
                score: 0.0,
                scored: now,
                own: 0.0,
                own_since: now,
                spoken: now,
                times: 0,
                accused: Vec::new(),
                believed: VecDeque::new(),
            })
        });
        record.times = record.times_at(now);
        record
    }
}

impl Record {
    fn score_at(&self, now: Instant) -> f32 {
        faded(self.score, self.scored, now)
    }

    fn own_at(&self, now: Instant) -> f32 {
        faded(self.own, self.own_since, now)
    }

    fn set_score(&mut self, now: Instant, score: f32) {
        (self.score, self.scored) = (score, now);
    }

    /// From the last bad word on.
    fn probation(&self, why: Why) -> State {
        State::Probation { missing: PROOF, why, until: self.spoken + FORGIVEN }
    }

    /// Whether nothing bad was heard for so long that nothing is known any more.
    fn is_forgotten(&self, now: Instant) -> bool {
        let quarantined = if let State::Quarantined { until, .. } = self.state { Some(until) } else { None };
        now >= quarantined.unwrap_or(self.spoken) + FORGIVEN
    }

    /// The quarantines that are not forgiven.
    fn times_at(&self, now: Instant) -> u32 {
        if self.is_forgotten(now) { 0 } else { self.times }
    }

    /// As a reporter, it finds a fault with `host`. Returns for how many points that counts where it is no proof.
    fn give(&mut self, now: Instant, host: HostKey, fault: Fault) -> f32 {
        self.accused.retain(|accused| now < accused.last + LATELY);
        let known = self.accused.iter().position(|accused| accused.host == host);
        if known.is_none() && self.accused.len() < MAX_ACCUSED {
            self.accused.push(Accused { host, given: 0.0, last: now });
        }
        let shared = self.accused.len() as f32;
        let at = known.unwrap_or(self.accused.len() - 1);
        let Some(accused) = self.accused.get_mut(at).filter(|accused| accused.host == host) else {
            return 0.0;
        };
        let (points, most) = match fault {
            Fault::Corrupt => (DOUBTED, DOUBTED),
            Fault::Failed => (FAILURE / shared, MOST_OF_ONE),
            Fault::NotHeld => (NOT_HELD / shared, MOST_OF_ONE),
        };
        let given = faded(accused.given, accused.last, now);
        let points = points.min(most - given).max(0.0);
        (accused.given, accused.last) = (given + points, now);
        points
    }
}

/// What is left of points after a time.
fn faded(points: f32, since: Instant, now: Instant) -> f32 {
    let passed = now.saturating_duration_since(since).as_secs_f32();
    points * (-passed / HALF_LIFE.as_secs_f32()).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure, or corrupt bytes, as somebody says who is believed.
    const ALL: Word = Word { points: FAILURE, at_once: true };

    fn start() -> (Conduct, Instant) {
        (Conduct::default(), Instant::now())
    }

    fn host(n: u64) -> HostKey {
        HostKey::for_test(n)
    }

    #[test]
    fn praise_takes_off_what_it_is_worth_and_makes_nothing_fade_sooner() {
        let (mut conduct, mut now) = start();
        for _ in 0..4 {
            conduct.blamed(now, Fault::Failed, ALL);
        }
        now += HALF_LIFE;
        conduct.proven(now, 5);
        assert!((conduct.score(now).0 - 1.0).abs() < 1e-3, "{}", conduct.score(now).0);
        // Nor does it put off that old quarantines are forgiven.
        conduct.condemn(now, Why::Failing);
        now += FIRST_FAILING;
        assert!(conduct.due(now) && conduct.proven(now, PROOF));
        for _ in 0..25 {
            now += FORGIVEN / 24;
            conduct.proven(now, 1);
        }
        assert_eq!(conduct.score(now).1, 0);
    }

    #[test]
    fn nonsense_is_remembered_when_its_host_connects_again_and_failures_are_not() {
        let (mut conduct, now) = start();
        for _ in 0..4 {
            conduct.blamed(now, Fault::Failed, ALL);
        }
        assert!(!conduct.is_worth_remembering(now));
        conduct.restarted(now);
        assert_eq!(conduct.score(now).0, 0.0);
        for _ in 0..4 {
            assert_eq!(conduct.talked_nonsense(now), None);
            assert!(conduct.is_worth_remembering(now));
            conduct.restarted(now);
        }
        assert_eq!(conduct.talked_nonsense(now), Some(Why::Nonsense));
        assert!(!conduct.0.unwrap().own_at(now + HALF_LIFE * 5).ge(&NOT_HELD), "not for ever");
    }

    #[test]
    fn five_failures_close_together_are_enough_and_four_are_not() {
        let (mut conduct, now) = start();
        for _ in 0..4 {
            assert_eq!(conduct.blamed(now, Fault::Failed, ALL), None);
        }
        assert_eq!(conduct.blamed(now, Fault::Failed, ALL), Some(Why::Failing));
    }

    #[test]
    fn failures_that_are_far_apart_are_forgotten() {
        let (mut conduct, mut now) = start();
        for _ in 0..50 {
            assert_eq!(conduct.blamed(now, Fault::Failed, ALL), None);
            now += HALF_LIFE;
        }
    }

    #[test]
    fn pieces_that_were_served_outweigh_some_failures() {
        let (mut conduct, now) = start();
        for _ in 0..50 {
            assert_eq!(conduct.blamed(now, Fault::Failed, ALL), None);
            conduct.proven(now, 5);
        }
    }

    #[test]
    fn corrupt_bytes_are_enough_at_once() {
        let (mut conduct, now) = start();
        assert_eq!(conduct.blamed(now, Fault::Corrupt, ALL), Some(Why::Corrupt));
    }

    #[test]
    fn what_one_reporter_says_of_many_is_shared_among_them() {
        let (mut reporter, now) = start();
        let mut accused: Vec<Conduct> = (0..10).map(|_| Conduct::default()).collect();
        for round in 0..3 {
            for (n, conduct) in (0..).zip(&mut accused) {
                let word = reporter.accuses(now, host(n), Fault::Failed, 100);
                assert_eq!(conduct.blamed(now, Fault::Failed, word), None, "round {round}");
            }
        }
    }

    #[test]
    fn one_reporter_alone_shuts_nobody_out_for_failures_and_three_do() {
        let (mut accused, mut now) = start();
        let mut reporters: [Conduct; 3] = Default::default();
        let [one, two, three] = &mut reporters;
        for round in 0..100 {
            let word = one.accuses(now, host(0), Fault::Failed, 100);
            assert_eq!(accused.blamed(now, Fault::Failed, word), None, "round {round}");
            one.restarted(now);
            now += Duration::from_secs(30);
        }
        let blames = [two, three].into_iter().flat_map(|reporter| {
            let words = [(); 3].map(|()| reporter.accuses(now, host(0), Fault::Failed, 100));
            words.map(|word| accused.blamed(now, Fault::Failed, word))
        });
        assert!(blames.flatten().any(|why| why == Why::Failing));
    }

    #[test]
    fn a_reporter_that_accuses_too_many_is_not_heard_of_the_rest() {
        let (mut reporter, now) = start();
        for n in 0..MAX_ACCUSED as u64 {
            assert!(reporter.accuses(now, host(n), Fault::Failed, 100).points > 0.0);
        }
        assert_eq!(reporter.accuses(now, host(1_000), Fault::Failed, 100).points, 0.0);
        assert!(reporter.accuses(now, host(0), Fault::Failed, 100).points > 0.0);
    }

    #[test]
    fn a_reporter_that_finds_everybody_corrupt_is_doubted_and_then_quarantined_itself() {
        let (mut reporter, now) = start();
        let limit = Conduct::at_once(100) as u64;
        for n in 0..limit {
            assert!(reporter.accuses(now, host(n), Fault::Corrupt, 100).at_once);
        }
        let word = reporter.accuses(now, host(limit), Fault::Corrupt, 100);
        let mut accused = Conduct::default();
        assert_eq!(accused.blamed(now, Fault::Corrupt, word), None);
        let again = reporter.accuses(now, host(limit), Fault::Corrupt, 100);
        assert_eq!(accused.blamed(now, Fault::Corrupt, again), None, "it has said so before");
        assert_eq!(accused.blamed(now, Fault::Corrupt, word), Some(Why::Corrupt), "two are enough");
        let verdicts = (0..5).filter_map(|_| reporter.overdid(now));
        assert_eq!(verdicts.collect::<Vec<_>>(), [Why::Accuser]);
        assert!(reporter.accuses(now + LATELY, host(0), Fault::Corrupt, 100).at_once, "an hour later");
    }

    #[test]
    fn in_no_hour_a_reporter_is_believed_more_often_than_it_may() {
        let (mut reporter, start) = start();
        let limit = Conduct::at_once(100) as u64;
        let mut believed: Vec<Instant> = Vec::new();
        // It says nothing that counts until the hour is nearly over, and then all of it at once, again and again.
        assert!(!reporter.accuses(start, host(0), Fault::Failed, 100).at_once);
        for n in 0..300 {
            let now = start + LATELY - Duration::from_secs(60) + Duration::from_secs(30 * n);
            if reporter.accuses(now, host(n % 10), Fault::Corrupt, 100).at_once {
                believed.push(now);
            }
        }
        let most =
            believed.iter().map(|at| believed.iter().filter(|it| *it >= at && **it < *at + LATELY).count());
        assert_eq!((most.max(), believed.len() as u64), (Some(limit as usize), limit * 3));
    }

    #[test]
    fn whoever_was_believed_is_remembered_until_it_would_be_believed_again() {
        let (mut reporter, now) = start();
        assert!(reporter.accuses(now, host(0), Fault::Corrupt, 100).at_once);
        reporter.restarted(now);
        assert!(reporter.is_worth_remembering(now));
        assert!(!reporter.is_worth_remembering(now + LATELY));
    }

    #[test]
    fn a_quarantine_ends_in_probation_and_probation_by_proof() {
        let (mut conduct, now) = start();
        let until = conduct.condemn(now, Why::Failing);
        assert_eq!((until, conduct.timeout()), (now + FIRST_FAILING, Some(until)));
        assert!(!conduct.due(until - Duration::from_millis(1)));
        assert!(conduct.due(until));
        assert!(!conduct.proven(until, PROOF - 1));
        assert!(matches!(conduct.state(), State::Probation { missing: 1, why: Why::Failing, .. }));
        assert!(conduct.proven(until, 1));
        assert_eq!(conduct.state(), State::Good);
    }

    #[test]
    fn on_probation_one_failure_is_enough_and_the_next_quarantine_takes_twice_as_long() {
        let (mut conduct, now) = start();
        let until = conduct.condemn(now, Why::Corrupt);
        assert!(conduct.due(until));
        let word = Word { points: NOT_HELD, at_once: false };
        assert_eq!(conduct.blamed(until, Fault::NotHeld, word), Some(Why::Failing));
        assert_eq!(conduct.condemn(until, Why::Corrupt), until + 2 * FIRST_CORRUPT);
        for _ in 0..40 {
            conduct.condemn(until, Why::Corrupt);
        }
        assert_eq!(conduct.timeout(), Some(until + LONGEST), "and never longer than a day");
    }

    #[test]
    fn after_a_day_of_good_conduct_a_quarantine_is_a_first_one_again() {
        for (later, times) in [(FORGIVEN - Duration::from_secs(1), 2), (FORGIVEN, 1)] {
            let (mut conduct, now) = start();
            let until = conduct.condemn(now, Why::Failing);
            assert!(conduct.due(until) && conduct.proven(until, PROOF));
            let later = until + later;
            assert_eq!(conduct.score(later).1, times - 1);
            assert_eq!(conduct.blamed(later, Fault::Failed, ALL), None);
            assert_eq!(conduct.condemn(later, Why::Failing), later + times * FIRST_FAILING);
        }
    }

    #[test]
    fn a_new_life_forgives_the_first_failures_but_never_corrupt_bytes() {
        let (mut conduct, now) = start();
        conduct.condemn(now, Why::Failing);
        conduct.restarted(now);
        assert_eq!(conduct.state(), State::Good);
        conduct.condemn(now, Why::Failing);
        conduct.restarted(now);
        assert!(matches!(conduct.state(), State::Probation { missing: PROOF, why: Why::Failing, .. }));
        conduct.condemn(now, Why::Corrupt);
        conduct.restarted(now);
        assert!(matches!(conduct.state(), State::Quarantined { why: Why::Corrupt, .. }));
    }

    #[test]
    fn a_day_without_a_bad_word_ends_probation() {
        let (mut conduct, now) = start();
        let until = conduct.condemn(now, Why::Corrupt);
        assert!(conduct.due(until));
        // A word that is not enough for another quarantine begins the day anew.
        let later = until + FORGIVEN / 2;
        let word = Word { points: NOT_HELD / 2.0, at_once: false };
        assert_eq!(conduct.blamed(later, Fault::NotHeld, word), None);
        assert_eq!(conduct.timeout(), Some(until + FORGIVEN));
        assert!(!conduct.due(until + FORGIVEN));
        assert_eq!(conduct.timeout(), Some(later + FORGIVEN));
        assert!(conduct.due(later + FORGIVEN));
        assert_eq!((conduct.state(), conduct.score(later + FORGIVEN).1), (State::Good, 0));
    }

    #[test]
    fn who_was_gone_for_longer_than_a_day_after_a_quarantine_comes_back_as_a_new_one() {
        for (gone, forgotten) in [(FORGIVEN - Duration::from_secs(1), false), (FORGIVEN, true)] {
            let (mut conduct, now) = start();
            let until = conduct.condemn(now, Why::Corrupt);
            assert_eq!(conduct.is_worth_remembering(until + gone), !forgotten);
            conduct.restarted(until + gone);
            assert_eq!(conduct.state() == State::Good, forgotten);
        }
    }

    #[test]
    fn what_is_known_of_a_host_that_is_gone_is_forgotten_after_a_day() {
        let (mut conduct, now) = start();
        assert!(!conduct.is_worth_remembering(now));
        let until = conduct.condemn(now, Why::Failing);
        assert!(conduct.due(until) && conduct.proven(until, PROOF));
        assert!(conduct.is_worth_remembering(until));
        assert!(!conduct.is_worth_remembering(until + FORGIVEN));
    }
}
