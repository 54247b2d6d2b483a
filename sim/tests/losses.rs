//! Whoever holds the lease is lost, at any moment of the download: what it costs all others.

use darter_sim::{Loss, Outcome, Scenario};
use std::time::Duration;

/// Sixteen daemons of which one goes to the origin, 80 Mbit/s each, and 64 pieces of 1 MiB.
fn herd(seed: u64, how: Loss) -> Scenario {
    let calm = Scenario {
        peers: 15,
        pieces: 64,
        rate: 10_000_000,
        origin_rate: 10_000_000,
        block: 64 << 10,
        seed,
        ..Scenario::default()
    };
    let one_copy = f64::from(calm.pieces) * f64::from(1 << 20) / 10_000_000.0;
    // A part of the time of one copy that no two seeds share (the golden ratio's multiples are spread evenly).
    let at = (seed as f64 * 0.618_033_988_749_895).fract();
    Scenario { holder_lost: Some((Duration::from_secs_f64(one_copy * at), how)), ..calm }
}

/// The slowest of forty, each night of two hundred.
fn slowest(how: Loss) -> (u64, Outcome) {
    let seeds = if std::env::var_os("DARTER_NIGHTLY").is_some() { 200 } else { 40 };
    let played = (1..=seeds).map(|seed| {
        let outcome = darter_sim::play(&herd(seed, how));
        assert_eq!((outcome.unfinished, outcome.believed), (0, 0), "seed {seed}");
        (seed, outcome)
    });
    let played: Vec<_> = played.collect();
    let mut lasts: Vec<f64> = played.iter().map(|(_, outcome)| outcome.last.as_secs_f64()).collect();
    lasts.sort_by(f64::total_cmp);
    let copies = played.iter().map(|(_, outcome)| outcome.origin_copies).fold(0.0, f64::max);
    println!(
        "{how:?}: half by {:.2} s, nine in ten by {:.2} s, all by {:.2} s; {copies:.3} copies at most",
        lasts[lasts.len() / 2],
        lasts[lasts.len() * 9 / 10],
        lasts[lasts.len() - 1]
    );
    played.into_iter().max_by_key(|(_, outcome)| outcome.last).expect("there are some")
}

#[test]
fn a_holder_that_is_killed_costs_others_little() {
    let (seed, outcome) = slowest(Loss::Killed);
    let late = outcome.last.saturating_sub(outcome.one_copy);
    assert!(late <= Duration::from_secs(4), "{late:?} with seed {seed}");
}

#[test]
fn a_holder_that_falls_silent_costs_others_a_few_seconds() {
    let (seed, outcome) = slowest(Loss::CutOff);
    let late = outcome.last.saturating_sub(outcome.one_copy);
    assert!(late <= Duration::from_secs(8), "{late:?} with seed {seed}");
}
