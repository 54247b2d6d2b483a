//! Why a host gets the partners that it gets: the policy's own decision, asked without effect.

use crate::cluster::Cluster;
use crate::conduct::State;
use crate::host::{HostKey, Hosts};
use crate::peer::{Role, Standing};
use crate::policy::{self, Asker, Candidate, Nearness};
use crate::task::Task;
use darter_protocol::scheduler as proto;
use darter_protocol::{HostId, TaskId};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// More candidates than a person reads.
const MAX_SHOWN: usize = 200;

impl Cluster {
    /// Whom `asker` has and would get as partners for a task, and why others not. Chance may decide otherwise in earnest.
    pub fn explain(&self, id: &TaskId, asker: Option<&HostId>) -> proto::ExplainTaskResponse {
        let hosts = &self.world.hosts;
        let asking = asker.and_then(|asker| hosts.key(asker));
        let Some(task) = self.tasks.get(id) else {
            let standing = "nobody has it or asks for it: whoever asks first goes to the origin".to_owned();
            return proto::ExplainTaskResponse { standing, ..Default::default() };
        };
        let standing = match (asker, asking) {
            (Some(_), None) => "it is not here: no life line is open".to_owned(),
            (_, asking) => standing(hosts, task, asking),
        };
        let mut shown = task.explain(hosts, asking);
        shown.sort_by_key(|candidate| !candidate.taken);
        shown.truncate(MAX_SHOWN);
        proto::ExplainTaskResponse { standing, candidates: shown, of: task.peers.len() as u64 }
    }
}

fn standing(hosts: &Hosts, task: &Task, asking: Option<HostKey>) -> String {
    let holder = task.lease.as_ref().and_then(|lease| hosts.host(lease.holder));
    if let Some(State::Quarantined { why, .. }) =
        asking.and_then(|key| hosts.life(key)).map(|life| life.conduct.state())
    {
        return format!(
            "it is quarantined ({}): it gets partners that only serve, and is named to nobody",
            why.word()
        );
    }
    match asking.and_then(|key| task.peers.get(&key)).map(|peer| &peer.role) {
        Some(Role::Complete) => "it holds everything".to_owned(),
        Some(Role::Partial) => "it has some of it and downloads nothing".to_owned(),
        Some(Role::Downloading(download)) => match download.standing {
            Standing::Leased => "it may go to the origin".to_owned(),
            Standing::Satisfied => "it downloads from partners, and wants nothing from the origin".to_owned(),
            Standing::Out => {
                "the origin refused it or failed it too often: it downloads from partners alone".to_owned()
            }
            Standing::Alone => "it goes to the origin for itself: what it gets cannot be shared".to_owned(),
            Standing::Barred { why, .. } => format!("it downloads from partners alone: {why}"),
            Standing::Waiting { .. } if task.places.contains_key(&download.origin) => {
                "it waits: the budget of its origin is used up".to_owned()
            }
            Standing::Waiting { .. } if task.kept_until.is_some() => {
                "it waits: for a moment only one who reads from the origin already may go there".to_owned()
            }
            Standing::Waiting { .. } => match holder {
                Some(holder) => format!("it downloads from partners; {} may go to the origin", holder.id),
                None => "it downloads from partners, one of which holds everything".to_owned(),
            },
        },
        None if task.unshareable => {
            "whoever asks goes to the origin for himself: it cannot be shared".to_owned()
        }
        None => "it has not asked for it: this is what it would get".to_owned(),
    }
}

impl Task {
    fn explain(&self, hosts: &Hosts, asking: Option<HostKey>) -> Vec<proto::CandidateStatus> {
        let download = asking.and_then(|key| self.download(key));
        let has = |key: &HostKey| download.is_some_and(|download| download.partners.contains_key(key));
        let mut shown = Vec::new();
        let mut candidates = Vec::new();
        for key in self.peers.keys().copied().filter(|key| Some(*key) != asking) {
            let candidate = self.seen_by(hosts, asking, key);
            if has(&key) {
                shown.push(status(hosts, &candidate, true, "it is a partner"));
            } else if let Some(why) = self.unusable(asking, key).or_else(|| self.beyond(asking, key)) {
                shown.push(status(hosts, &candidate, false, why));
            } else {
                candidates.push(candidate);
            }
        }
        let partners = download.map(|download| download.partners.keys());
        let sources = partners.map_or(0, |partners| partners.filter(|key| self.is_source(**key)).count());
        let filled = asking.zip(download).map_or(0, |(key, download)| self.filled(key, download));
        let asker = Asker { partners: filled, sources };
        let decided = policy::decide(asker, candidates, &mut StdRng::seed_from_u64(0));
        shown.extend(decided.iter().map(|(c, verdict)| status(hosts, c, verdict.takes(), verdict.words())));
        shown
    }

    /// Whether a border keeps it away.
    fn beyond(&self, asking: Option<HostKey>, key: HostKey) -> Option<&'static str> {
        let meets = asking.is_none_or(|asking| self.may_meet(asking, key));
        (!meets).then_some("it stands behind a border that others bridge, or gives to bridges alone")
    }

    /// What keeps the policy from looking at it.
    fn unusable(&self, asking: Option<HostKey>, key: HostKey) -> Option<&'static str> {
        let peer = self.peers.get(&key)?;
        let failed =
            |a: HostKey, b: HostKey| self.download(a).is_some_and(|download| download.failed.contains(&b));
        Some(match () {
            () if peer.regard.struck => "it is quarantined, or sent wrong bytes of this",
            () if peer.regard.draining => "it is about to stop",
            () if peer.regard.on_probation && !peer.listed.supplier => {
                "it is on probation and downloads this itself"
            }
            () if peer.regard.on_probation && self.room(key) == 0 => {
                "it is on probation and has as many as it may"
            }
            () if !peer.listed.supplier => "it has nothing of it yet, or goes to the origin for itself",
            () if asking.is_some_and(|asking| failed(asking, key)) => "it failed this host before",
            () if asking.is_some_and(|asking| failed(key, asking)) => "this host failed it before",
            () => return None,
        })
    }

    /// A peer as the policy sees it for another.
    pub(crate) fn seen_by(&self, hosts: &Hosts, asking: Option<HostKey>, host: HostKey) -> Candidate {
        Candidate {
            host,
            source: self.is_source(host),
            seed: hosts.is_seed(host),
            nearness: asking.map_or(Nearness::default(), |asking| hosts.nearness(asking, host)),
            partners: self.download(host).map_or(0, |download| self.filled(host, download)),
            busy: hosts.life(host).is_some_and(|life| life.uploads.is_busy()),
        }
    }
}

fn status(hosts: &Hosts, candidate: &Candidate, taken: bool, reason: &str) -> proto::CandidateStatus {
    let life = hosts.life(candidate.host);
    let (same_idc, common_location) = candidate.nearness.parts();
    proto::CandidateStatus {
        host_id: life.map(|life| life.host.id.to_string()).unwrap_or_default(),
        taken,
        reason: reason.to_owned(),
        source: candidate.source,
        seed: candidate.seed,
        same_idc,
        common_location: common_location as u32,
        partners: candidate.partners as u32,
        free_uploads: life.and_then(|life| life.uploads.free),
    }
}
