//! Limits of bandwidth: keys of `download` and `upload`.

use darter_p2p::{Rate, Rates};

use super::section::Section;
use super::value::{self, Read};

pub(super) fn rates(download: &mut Section<'_>, upload: &mut Section<'_>) -> Rates {
    let rate = |section: &mut Section<'_>, key| section.value(key, per_second).flatten();
    Rates {
        total: rate(download, "totalRateLimit"),
        // Dragonfly's peer is a task on one host.
        task: rate(download, "perPeerRateLimit"),
        partner: rate(download, "perPartnerRateLimit"),
        origin: rate(download, "originRateLimit"),
        prefetch: rate(download, "prefetchRateLimit"),
        upload: rate(upload, "rateLimit"),
        upload_partner: rate(upload, "perPartnerRateLimit"),
    }
}

/// Bytes per second; 0: no limit.
fn per_second(text: &str) -> Read<Option<Rate>> {
    value::size(text).map(Rate::new)
}
