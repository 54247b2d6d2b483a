//! The scheduler's numbers, as Prometheus reads them: taken from the state when somebody asks, at no cost otherwise.

use crate::conduct::Why;
use crate::shared::Shared;
use crate::world::{Counts, FAILURE_REASONS};
use darter_protocol::scheduler::FailureReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::sync::Arc;

/// Shows the counts of one scheduler.
pub(crate) struct Metrics(pub(crate) Arc<Shared>);

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = self.0.counts();
        gauges(&counts, &mut encoder)?;
        counters(&counts, &mut encoder)?;
        failures(&counts, &mut encoder)?;
        quarantines(&counts, &mut encoder)
    }
}

fn gauges(counts: &Counts, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    for (name, help, value) in [
        ("hosts", "Hosts whose life line is open", counts.hosts),
        ("tasks", "Tasks that some host holds or wants", counts.tasks),
        (
            "hosts_quarantined",
            "Hosts that are named to nobody because of how they served",
            counts.quarantined,
        ),
        (
            "leases_waiting",
            "Tasks for which somebody would go to the origin, and its budget is used up",
            counts.waiting_for_room,
        ),
        ("hosts_on_probation", "Hosts that have to prove themselves after a quarantine", counts.on_probation),
    ] {
        let name = format!("darter_scheduler_{name}");
        let metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value as u64).encode(metric)?;
    }
    let help = "Peers: a host's part in one task, by what it does there";
    let mut peers = encoder.encode_descriptor("darter_scheduler_peers", help, None, MetricType::Gauge)?;
    for (role, value) in
        [("complete", counts.complete), ("partial", counts.partial), ("downloading", counts.downloading)]
    {
        ConstGauge::new(value as u64).encode(peers.encode_family(&[("role", role)])?)?;
    }
    Ok(())
}

fn counters(counts: &Counts, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    for (name, help, value) in [
        ("registrations", "Registrations answered", counts.registrations),
        ("leases_granted", "Rights to go to the origin given", counts.leases_granted),
        ("leases_expired", "Leases taken from a holder without progress", counts.leases_expired),
        ("leases_handed_over", "Leases given after a holder that did not finish", counts.leases_handed_over),
        ("packets", "Packets sent to peers", counts.packets),
        ("reports_ignored", "Hashes, failures and inventory that could not be used", counts.ignored),
        ("quarantine_releases", "Hosts that proved themselves on probation", counts.releases),
        ("refused", "Registrations that the operator's rules refuse", counts.refused),
        ("barred", "Downloads that nobody could bring what they may not fetch", counts.hopeless),
        ("nonsense", "Messages that no honest daemon sends", counts.nonsense),
        ("origin_bytes", "Bytes of ended downloads that came from origins", counts.bytes_from_origin),
        ("peer_bytes", "Bytes of ended downloads that came from peers", counts.bytes_from_peers),
    ] {
        let name = format!("darter_scheduler_{name}");
        let metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)?;
    }
    Ok(())
}

fn failures(counts: &Counts, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Failures of partners that peers reported, by reason";
    let name = "darter_scheduler_partner_failures";
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for reason in FAILURE_REASONS {
        let value = counts.failures.get(reason as usize).copied().unwrap_or_default();
        ConstCounter::new(value).encode(metric.encode_family(&[("reason", label(reason))])?)?;
    }
    Ok(())
}

fn quarantines(counts: &Counts, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Quarantines, by what they were for";
    let name = "darter_scheduler_quarantines";
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for why in Why::ALL {
        let value = counts.quarantines.get(why as usize).copied().unwrap_or_default();
        ConstCounter::new(value).encode(metric.encode_family(&[("reason", why.word())])?)?;
    }
    Ok(())
}

const fn label(reason: FailureReason) -> &'static str {
    match reason {
        FailureReason::Unspecified => "unspecified",
        FailureReason::Unreachable => "unreachable",
        FailureReason::Timeout => "timeout",
        FailureReason::Corrupt => "corrupt",
        FailureReason::NotHeld => "not_held",
    }
}
