//! [`Facts`]: which repository contains what, and who may read it.

use crate::credential::Caller;
use crate::recent::Recent;
use std::time::{Duration, Instant};

/// How long a repository is believed to contain a digest. It is content's name: only a deletion makes this wrong, and a
/// reader of the repository could have had it before that.
const MEMBER_FRESH: Duration = Duration::from_secs(24 * 3600);

/// Facts of each kind that are kept. A member is about 250 bytes, a reader about 150: 40 MB when all are full.
const MAX_MEMBERS: usize = 100_000;
const MAX_READERS: usize = 100_000;
const MAX_PUBLIC: usize = 20_000;
const MAX_PAUSES: usize = 10_000;

/// For how long at most proofs count while a registry wants to be asked less. It is there: whoever was revoked could keep it busy,
/// and live on what it does not say.
const WHILE_PAUSED: Duration = Duration::from_secs(300);

/// How long proofs are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    /// That somebody may read a repository. Short, because it is also how long a revoked credential goes on to work on what
    /// is cached; long enough for a pull to begin all of its layers.
    pub reader: Duration,
    /// That anybody may read a repository. A public repository rarely turns private, and its layers were there for all to
    /// copy until it did.
    pub public: Duration,
    /// Both, while the registry does not answer.
    pub grace: Duration,
}

/// A repository of a registry, both in their canonical spelling; for content that is no registry's, the origin's host and
/// the path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// `scheme://host:port`, all of it: who answers for a host on port 80 need not be who answers on 443.
    pub registry: String,
    /// The repository's name.
    pub repository: String,
}

/// A part of a repository, by its digest, as `algorithm:hex`, and by the way on which it is had. A registry may have the same bytes
/// on one way and not on the other: where a digest was seen as a manifest proves nothing of who asks for a blob, and the other way
/// round. Whoever has the right to both is asked about once more.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Part {
    /// What `/manifests/` leads to.
    Manifest(String),
    /// What `/blobs/` leads to; other content by digest; and, without a digest, what is named by its place alone.
    Blob(String),
}

/// What the facts say about a caller and some content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// He may have it.
    Allowed,
    /// That is not known, or not any more: the registry has to be asked.
    Ask,
}

/// A registry wants to be asked nothing by somebody for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// With which HTTP status it said so.
    pub status: u16,
    /// Until when.
    pub until: Instant,
}

/// The facts. See the crate's documentation.
#[derive(Debug)]
pub struct Facts {
    members: Recent<(Place, Part), Instant>,
    readers: Recent<(Place, Caller), Proof>,
    public: Recent<Place, Instant>,
    /// By registry and caller: how much somebody asked is no reason to answer another one less.
    pauses: Recent<(String, Caller), Pause>,
    ages: Ages,
}

/// When somebody was seen to read a repository, and when his credential itself ends.
#[derive(Debug, Clone, Copy)]
struct Proof {
    at: Instant,
    ends: Option<Instant>,
}

impl Default for Ages {
    fn default() -> Self {
        Self {
            reader: Duration::from_secs(60),
            public: Duration::from_secs(300),
            grace: Duration::from_secs(3600),
        }
    }
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            members: Recent::new(MAX_MEMBERS),
            readers: Recent::new(MAX_READERS),
            public: Recent::new(MAX_PUBLIC),
            pauses: Recent::new(MAX_PAUSES),
            ages: Ages::default(),
        }
    }
}

impl Facts {
    /// Proofs are believed for so long from now on, also those that are there.
    pub fn believe_for(&mut self, ages: Ages) {
        self.ages = ages;
    }

    /// The repository contains this: it was named in a manifest of that repository, the registry served it from there,
    /// or took it in there.
    pub fn learn_member(&mut self, now: Instant, place: &Place, part: &Part) {
        self.members.insert((place.clone(), part.clone()), now);
    }

    /// The registry let this caller read the repository. `ends` is when his credential ends, where that is known. An
    /// anonymous caller proves that anybody may.
    pub fn learn_reader(&mut self, now: Instant, place: &Place, caller: Caller, ends: Option<Instant>) {
        match caller {
            Caller::Anonymous => self.public.insert(place.clone(), now),
            Caller::Known(_) => self.readers.insert((place.clone(), caller), Proof { at: now, ends }),
        }
    }

    /// The registry refused this caller the repository.
    pub fn forget_reader(&mut self, place: &Place, caller: Caller) {
        match caller {
            Caller::Anonymous => self.public.remove(place),
            Caller::Known(_) => self.readers.remove(&(place.clone(), caller)),
        }
    }

    /// The registry says to this caller that the repository does not contain the digest. It says the same to those who may
    /// not know: what a stranger is told is nothing that others have to ask about.
    pub fn forget_member(&mut self, now: Instant, place: &Place, part: &Part, caller: Caller) {
        if self.reads(now, place, caller, self.in_grace()) {
            self.members.remove(&(place.clone(), part.clone()));
        }
    }

    /// Whether this caller may have this content, as far as is known.
    pub fn verdict(&mut self, now: Instant, place: &Place, part: &Part, caller: Caller) -> Verdict {
        self.judge(now, (place, part), caller, [self.ages.reader, self.ages.public])
    }

    /// The same while the registry cannot be asked: older proofs count, but a credential that has ended does not.
    pub fn verdict_without_registry(
        &mut self,
        now: Instant,
        place: &Place,
        part: &Part,
        caller: Caller,
    ) -> Verdict {
        self.judge(now, (place, part), caller, self.in_grace())
    }

    /// The same while the registry is there, and answers nothing but that it is asked too often.
    pub fn verdict_while_paused(
        &mut self,
        now: Instant,
        place: &Place,
        part: &Part,
        caller: Caller,
    ) -> Verdict {
        let Ages { reader, public, grace } = self.ages;
        let ages = [reader, public].map(|fresh| fresh.max(grace.min(WHILE_PAUSED)));
        self.judge(now, (place, part), caller, ages)
    }

    /// The registry wants to be left alone by this caller.
    pub fn learn_pause(&mut self, registry: &str, caller: Caller, pause: Pause) {
        self.pauses.insert((registry.to_owned(), caller), pause);
    }

    /// Whether the registry wants to be left alone by this caller now.
    pub fn paused(&mut self, now: Instant, registry: &str, caller: Caller) -> Option<Pause> {
        self.pauses.get(&(registry.to_owned(), caller)).filter(|pause| now < pause.until).copied()
    }

    /// A proof that is fresh is never too old for the grace period.
    fn in_grace(&self) -> [Duration; 2] {
        [self.ages.reader, self.ages.public].map(|fresh| fresh.max(self.ages.grace))
    }

    fn judge(
        &mut self,
        now: Instant,
        (place, part): (&Place, &Part),
        caller: Caller,
        ages: [Duration; 2],
    ) -> Verdict {
        let member = self.members.get(&(place.clone(), part.clone()));
        let member = member.is_some_and(|at| within(now, *at, MEMBER_FRESH));
        if member && self.reads(now, place, caller, ages) { Verdict::Allowed } else { Verdict::Ask }
    }

    /// Whether a proof that is not older than this says that the caller may read the repository.
    fn reads(
        &mut self,
        now: Instant,
        place: &Place,
        caller: Caller,
        [reader, public]: [Duration; 2],
    ) -> bool {
        let within = |at, age| within(now, at, age);
        let anybody = self.public.get(place).is_some_and(|at| within(*at, public));
        let proof = self.readers.get(&(place.clone(), caller));
        let himself =
            proof.is_some_and(|proof| within(proof.at, reader) && proof.ends.is_none_or(|ends| now < ends));
        anybody || himself
    }
}

fn within(now: Instant, at: Instant, age: Duration) -> bool {
    now.saturating_duration_since(at) < age
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Credentials;

    fn layer() -> Part {
        Part::Blob("sha256:aa".to_owned())
    }

    fn place(repository: &str) -> Place {
        Place { registry: "registry.example:443".to_owned(), repository: repository.to_owned() }
    }

    fn caller(credential: &'static str) -> Caller {
        Credentials::new([1; 32]).caller([credential.as_bytes()])
    }

    fn known() -> (Facts, Instant) {
        let (mut facts, now) = (Facts::default(), Instant::now());
        facts.learn_member(now, &place("private"), &layer());
        facts.learn_reader(now, &place("private"), caller("right"), None);
        (facts, now)
    }

    #[test]
    fn a_reader_gets_what_his_repository_contains() {
        let (mut facts, now) = known();
        assert_eq!(facts.verdict(now, &place("private"), &layer(), caller("right")), Verdict::Allowed);
        assert_eq!(facts.verdict(now, &place("private"), &layer(), caller("wrong")), Verdict::Ask);
        assert_eq!(facts.verdict(now, &place("private"), &layer(), Caller::Anonymous), Verdict::Ask);
        assert_eq!(
            facts.verdict(now, &place("private"), &Part::Blob("sha256:bb".to_owned()), caller("right")),
            Verdict::Ask
        );
    }

    #[test]
    fn what_is_known_as_a_manifest_is_not_known_as_a_blob() {
        let (mut facts, now) = known();
        let parts = [Part::Manifest("sha256:bb".to_owned()), Part::Blob("sha256:bb".to_owned())];
        let ask = |facts: &mut Facts, part| facts.verdict(now, &place("private"), part, caller("right"));
        for (known, other) in [(&parts[0], &parts[1]), (&parts[1], &parts[0])] {
            facts.learn_member(now, &place("private"), known);
            assert_eq!((ask(&mut facts, known), ask(&mut facts, other)), (Verdict::Allowed, Verdict::Ask));
            facts.forget_member(now, &place("private"), known, caller("right"));
        }
    }

    #[test]
    fn a_public_repository_does_not_give_away_a_private_ones_layer() {
        let (mut facts, now) = known();
        facts.learn_reader(now, &place("public"), Caller::Anonymous, None);
        for asking in [Caller::Anonymous, caller("right"), caller("other")] {
            assert_eq!(facts.verdict(now, &place("public"), &layer(), asking), Verdict::Ask);
        }
        facts.learn_member(now, &place("public"), &layer());
        for asking in [Caller::Anonymous, caller("other")] {
            assert_eq!(facts.verdict(now, &place("public"), &layer(), asking), Verdict::Allowed);
        }
    }

    #[test]
    fn a_credential_that_once_worked_proves_nothing_about_anybody_else() {
        let (mut facts, now) = known();
        facts.learn_reader(now, &place("private"), caller("second"), None);
        assert_eq!(facts.verdict(now, &place("private"), &layer(), Caller::Anonymous), Verdict::Ask);
    }

    #[test]
    fn a_proof_ends_with_its_time_or_its_credential() {
        let (mut facts, now) = known();
        let ask = |facts: &mut Facts, later| {
            facts.verdict(now + later, &place("private"), &layer(), caller("right"))
        };
        let fresh = Ages::default().reader;
        assert_eq!(ask(&mut facts, fresh - Duration::from_secs(1)), Verdict::Allowed);
        assert_eq!(ask(&mut facts, fresh), Verdict::Ask);
        facts.learn_reader(now, &place("private"), caller("right"), Some(now + Duration::from_secs(5)));
        assert_eq!(ask(&mut facts, Duration::from_secs(4)), Verdict::Allowed);
        assert_eq!(ask(&mut facts, Duration::from_secs(5)), Verdict::Ask);
    }

    #[test]
    fn what_is_gone_is_gone_when_a_reader_is_told_so() {
        let (mut facts, now) = known();
        for (who, verdict) in [("stranger", Verdict::Allowed), ("right", Verdict::Ask)] {
            facts.forget_member(now, &place("private"), &layer(), caller(who));
            assert_eq!(facts.verdict(now, &place("private"), &layer(), caller("right")), verdict, "{who}");
        }
    }

    #[test]
    fn the_registrys_refusal_ends_a_proof_at_once() {
        let (mut facts, now) = known();
        facts.forget_reader(&place("private"), caller("right"));
        assert_eq!(facts.verdict(now, &place("private"), &layer(), caller("right")), Verdict::Ask);
    }

    #[test]
    fn while_the_registry_is_down_older_proofs_count_but_ended_credentials_do_not() {
        let (mut facts, now) = known();
        facts.learn_reader(now, &place("private"), caller("short"), Some(now + Duration::from_secs(300)));
        let grace = Ages::default().grace;
        let half = grace / 2;
        let ask = |facts: &mut Facts, later, who| {
            facts.verdict_without_registry(now + later, &place("private"), &layer(), caller(who))
        };
        assert_eq!(ask(&mut facts, half, "right"), Verdict::Allowed);
        assert_eq!(ask(&mut facts, half, "short"), Verdict::Ask);
        assert_eq!(ask(&mut facts, half, "never seen"), Verdict::Ask);
        assert_eq!(ask(&mut facts, grace, "right"), Verdict::Ask);
    }

    #[test]
    fn a_registry_that_is_asked_too_often_is_waited_for_for_minutes_not_an_hour() {
        let (mut facts, now) = known();
        let mut ask = |later| {
            facts.verdict_while_paused(
                now + Duration::from_secs(later),
                &place("private"),
                &layer(),
                caller("right"),
            )
        };
        assert_eq!((ask(299), ask(300)), (Verdict::Allowed, Verdict::Ask));
        facts.believe_for(Ages { reader: Duration::ZERO, grace: Duration::from_secs(2), ..Ages::default() });
        let said = |facts: &mut Facts, later| {
            facts.verdict_while_paused(
                now + Duration::from_secs(later),
                &place("private"),
                &layer(),
                caller("right"),
            )
        };
        assert_eq!((said(&mut facts, 1), said(&mut facts, 2)), (Verdict::Allowed, Verdict::Ask));
    }

    #[test]
    fn how_long_proofs_are_believed_is_the_operators_choice() {
        let (mut facts, now) = known();
        let second = Duration::from_secs(1);
        facts.believe_for(Ages { reader: Duration::ZERO, grace: 2 * second, ..Ages::default() });
        let right = caller("right");
        assert_eq!(facts.verdict(now, &place("private"), &layer(), right), Verdict::Ask);
        for (later, verdict) in [(second, Verdict::Allowed), (2 * second, Verdict::Ask)] {
            let said = facts.verdict_without_registry(now + later, &place("private"), &layer(), right);
            assert_eq!(said, verdict, "{later:?}");
        }
        // What may be had while the registry answers may be had while it does not.
        facts.believe_for(Ages { grace: Duration::ZERO, ..Ages::default() });
        let said = facts.verdict_without_registry(now + second, &place("private"), &layer(), right);
        assert_eq!(said, Verdict::Allowed);
    }

    #[test]
    fn a_registry_that_has_had_enough_of_one_caller_is_asked_by_others() {
        let (mut facts, now) = known();
        let pause = Pause { status: 429, until: now + Duration::from_secs(5) };
        facts.learn_pause("https://a:443", caller("right"), pause);
        let mut ask = |later, registry, who| facts.paused(now + Duration::from_secs(later), registry, who);
        assert_eq!(ask(4, "https://a:443", caller("right")), Some(pause));
        assert_eq!(ask(5, "https://a:443", caller("right")), None);
        assert_eq!(ask(0, "https://a:443", caller("other")), None);
        assert_eq!(ask(0, "https://b:443", caller("right")), None);
    }
}
