//! [`Connected`]: the record of what has no answer of its own, a tunnel or a connection that is opened up. However it ends,
//! also by the end of the process, it leaves its line.

use crate::access::Record;
use crate::labels::{Cut, Outcome, Way};
use crate::metrics::Traffic;
use crate::pipeline::Downstream;
use crate::request_id::RequestId;
use crate::trail::Trail;
use http::StatusCode;
use prometheus_client::metrics::gauge::Gauge;
use std::sync::Arc;

/// Writes the record when it is dropped.
pub(crate) struct Connected {
    record: Record,
    status: Option<StatusCode>,
    verdict: Option<Verdict>,
    /// Bytes of a tunnel that went to the client.
    pub(crate) sent: u64,
    /// Bytes of a tunnel that came from the client.
    pub(crate) received: u64,
}

/// How it ended.
struct Verdict {
    outcome: Outcome,
    cut: Option<Cut>,
    note: Option<String>,
}

impl Connected {
    /// That of a request which was granted what it asked for.
    pub(crate) fn granted(record: Record, status: StatusCode) -> Self {
        Self { record, status: Some(status), verdict: None, sent: 0, received: 0 }
    }

    /// That of a connection to `authority` that nobody asked for with a request: it was made there, as its client believes. It
    /// is logged as the CONNECT that another client would have sent, and got no status.
    pub(crate) fn unasked(authority: String, way: Way, downstream: &Downstream) -> Self {
        let record = Record::new(RequestId::new(), authority, way, downstream);
        Self { record, status: None, verdict: None, sent: 0, received: 0 }
    }

    pub(crate) fn trail(&self) -> &Arc<Trail> {
        self.record.trail()
    }

    /// How many tunnels are open, to be counted in.
    pub(crate) fn tunnels(&self) -> &Gauge {
        self.record.tunnels()
    }

    /// What its client's TLS asked for.
    pub(crate) fn asks_for(&mut self, sni: Option<String>) {
        self.record.asks_for(sni);
    }

    /// It has ended, and this is how.
    pub(crate) fn end(mut self, outcome: Outcome, cut: Option<Cut>, note: Option<String>) {
        self.verdict = Some(Verdict { outcome, cut, note });
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let unended = || Verdict { outcome: Outcome::Tunnel, cut: Some(self.record.cut_by()), note: None };
        let Verdict { outcome, cut, note } = self.verdict.take().unwrap_or_else(unended);
        let traffic = Traffic { sent: self.sent, received: self.received, cut, ..Traffic::default() };
        self.record.write(self.status, outcome, traffic, note.as_deref());
    }
}
