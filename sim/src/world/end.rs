//! What came of it all.

use super::*;

impl World {
    pub(super) fn outcome(&self) -> Outcome {
        let honest = |node: &&Node| !node.corrupt && !self.is_lost(node.no);
        let nodes = || self.nodes.iter().flatten().filter(honest);
        let mut took: Vec<Duration> =
            nodes().filter_map(|node| Some(node.done?.saturating_sub(node.begun?))).collect();
        took.sort_unstable();
        let wrong = |node: &Node| {
            let pieces = self.layout.iter().zip(&node.content);
            pieces.filter(|(piece, held)| held.is_some_and(|held| held != right(*piece))).count() as u64
        };
        let out = |no: &HostNo| self.cluster.is_quarantined(&host_id(*no));
        let corrupt: Vec<HostNo> = (0..self.fates.len()).filter(|no| self.fates[*no].corrupt).collect();
        let honest_out = (SEED..self.nodes.len())
            .filter(|no| !self.fates[*no].corrupt && self.fates[*no].cut_off.is_none() && !self.is_lost(*no))
            .filter(out)
            .count();
        let useful: u64 =
            nodes().map(|node| u64::from(node.swarm.have().len()) * PieceLayout::MIN_PIECE_SIZE).sum();
        let all = self.layout.length() as f64;
        Outcome {
            one_copy: self.one_copy,
            last: nodes().filter_map(|node| node.done).max().unwrap_or_default(),
            unfinished: nodes().filter(|node| node.done.is_none()).count(),
            origin_copies: self.origin_bytes as f64 / all,
            rejected: self.nodes.iter().flatten().map(|node| node.rejected).sum(),
            believed: nodes().map(wrong).sum(),
            corrupt: corrupt.len(),
            quarantined: corrupt.iter().filter(|no| out(no)).count(),
            wronged: honest_out,
            waste: (self.peer_bytes + self.origin_bytes).saturating_sub(useful) as f64
                / all
                / took.len().max(1) as f64,
            took,
            border_copies: self.border_bytes.iter().map(|bytes| *bytes as f64 / all).collect(),
            events: self.events,
        }
    }
}
