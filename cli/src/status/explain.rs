//! Whom a host gets as partners for a task, and why not the others, for people.

use darter_enrol::Membership;
use darter_protocol::TaskId;
use darter_protocol::scheduler as proto;
use serde::Serialize;

use super::{ask, table};
use crate::exit::{self, Failure};

/// What the scheduler said: also the fields of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Explained {
    scheduler: String,
    standing: String,
    /// Hosts that have some of the task; not all may be among the candidates.
    of: u64,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Serialize)]
struct Candidate {
    host: String,
    taken: bool,
    reason: String,
    source: bool,
    seed: bool,
    same_idc: bool,
    common_location: u32,
    partners: u32,
    free_uploads: Option<u32>,
}

/// Asks the scheduler at `address`.
///
/// # Errors
/// Why there is no answer, for people.
pub(crate) async fn explain(
    membership: &Membership,
    address: &str,
    task: &TaskId,
    host: &str,
) -> Result<Explained, String> {
    let request =
        proto::ExplainTaskRequest { task_id: task.as_bytes().to_vec().into(), host_id: host.to_owned() };
    let said = ask::connect(membership, address)?.explain_task(request).await;
    let said = said.map_err(|status| ask::refusal(&status))?.into_inner();
    let candidates = said.candidates.into_iter().map(Candidate::from).collect();
    Ok(Explained { scheduler: address.to_owned(), standing: said.standing, of: said.of, candidates })
}

impl Explained {
    /// As a table, or a line of JSON.
    ///
    /// # Errors
    /// Never, in earnest.
    pub(crate) fn show(&self, json: bool) -> exit::Result<String> {
        if json {
            return serde_json::to_string(self).map_err(|error| Failure::software(error.to_string()));
        }
        let head = ["host", "taken", "has", "near", "partners", "free uploads", "because"];
        let rows = self.candidates.iter().map(|it| {
            let place = if it.same_idc { "same idc" } else { "" };
            vec![
                format!("{}{}", it.host, if it.seed { " (seed)" } else { "" }),
                if it.taken { "yes" } else { "no" }.to_owned(),
                if it.source { "all" } else { "part" }.to_owned(),
                format!("{place}+{}", it.common_location),
                it.partners.to_string(),
                it.free_uploads.map_or("?".to_owned(), |free| free.to_string()),
                it.reason.clone(),
            ]
        });
        let standing = table::clean(&self.standing);
        let title = format!("{standing} (scheduler {}, {} hosts have or want it)\n", self.scheduler, self.of);
        Ok(if self.candidates.is_empty() { title } else { title + &table::table(&head, rows) })
    }
}

impl From<proto::CandidateStatus> for Candidate {
    fn from(said: proto::CandidateStatus) -> Self {
        Self {
            host: said.host_id,
            taken: said.taken,
            reason: said.reason,
            source: said.source,
            seed: said.seed,
            same_idc: said.same_idc,
            common_location: said.common_location,
            partners: said.partners,
            free_uploads: said.free_uploads,
        }
    }
}
