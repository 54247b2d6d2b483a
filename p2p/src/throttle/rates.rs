//! [`Rates`]: which rates are limited; [`Limit`]: each of them, by name.

use darter_swarm::Rate;
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use std::fmt::{self, Write as _};

/// How fast bytes of content may move between this host, other daemons and origins. `None`: as fast as they come. What is
/// read from this host's own disk for a client is never limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// All that comes in, from other daemons and from origins (`download.totalRateLimit`).
    pub total: Option<Rate>,
    /// What comes in for one task (`download.perPeerRateLimit`: a peer is there what a task is on one host).
    pub task: Option<Rate>,
    /// What comes in from one other daemon (`download.perPartnerRateLimit`).
    pub partner: Option<Rate>,
    /// What comes in from origins (`download.originRateLimit`).
    pub origin: Option<Rate>,
    /// What comes in while no reader of its task lacks anything (`download.prefetchRateLimit`).
    pub prefetch: Option<Rate>,
    /// What is sent to other daemons (`upload.rateLimit`).
    pub upload: Option<Rate>,
    /// What is sent to one other daemon (`upload.perPartnerRateLimit`).
    pub upload_partner: Option<Rate>,
}

/// One of the [`Rates`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Limit {
    Total,
    Task,
    Partner,
    Origin,
    Prefetch,
    Upload,
    UploadPartner,
}

impl Rates {
    pub(crate) fn of(&self, limit: Limit) -> Option<Rate> {
        match limit {
            Limit::Total => self.total,
            Limit::Task => self.task,
            Limit::Partner => self.partner,
            Limit::Origin => self.origin,
            Limit::Prefetch => self.prefetch,
            Limit::Upload => self.upload,
            Limit::UploadPartner => self.upload_partner,
        }
    }
}

impl EncodeLabelValue for Limit {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Total => "total",
            Self::Task => "task",
            Self::Partner => "partner",
            Self::Origin => "origin",
            Self::Prefetch => "prefetch",
            Self::Upload => "upload",
            Self::UploadPartner => "upload_partner",
        })
    }
}
