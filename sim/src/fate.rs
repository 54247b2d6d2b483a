//! [`Fate`]: what befalls a daemon. Drawn before anything happens, so that it depends on nothing but the seed.

use crate::scenario::Scenario;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use std::time::Duration;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fate {
    pub(crate) corrupt: bool,
    pub(crate) crashes: Option<Duration>,
    pub(crate) cut_off: Option<Duration>,
}

/// The fates of all peers; no two things befall one.
pub(crate) fn draw(scenario: &Scenario, one_copy: Duration, rng: &mut impl Rng) -> Vec<Fate> {
    let mut fates = vec![Fate::default(); scenario.peers];
    let mut order: Vec<usize> = (0..scenario.peers).collect();
    order.shuffle(rng);
    let of = |part: f64| (part * scenario.peers as f64).round() as usize;
    let mut order = order.into_iter();
    for peer in order.by_ref().take(of(scenario.corrupting)) {
        fates[peer].corrupt = true;
    }
    for peer in order.by_ref().take(of(scenario.crashing)) {
        fates[peer].crashes = Some(one_copy.mul_f64(rng.random_range(0.1..1.0)));
    }
    for peer in order.take(of(scenario.cut_off)) {
        fates[peer].cut_off = Some(one_copy.mul_f64(rng.random_range(0.1..1.0)));
    }
    fates
}
