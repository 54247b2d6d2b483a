//! `darter-bench mesh`: how soon the last of many peers has what one has begun to fetch, in virtual time, beside a tree of
//! parents that takes pieces in order. What is played is the production code: see the crate `darter-sim`.

use anyhow::{Result, ensure};
use darter_sim::{Outcome, Scenario, Shape};
use std::time::Instant;

/// What to play
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many peers; several separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000, 5000])]
    peers: Vec<usize>,
    /// Pieces of 1 MiB
    #[arg(long, default_value_t = 256)]
    pieces: u32,
    /// All chance comes from this
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave the tree out: it takes as long, and says nothing about us
    #[arg(long)]
    without_tree: bool,
    /// Fail when the last peer of a mesh takes longer than so many times one copy
    #[arg(long)]
    at_most: Option<f64>,
}

/// What befalls the peers: a name, the part of them that dies on the way, and the part that sends wrong bytes.
const FATES: [(&str, f64, f64); 3] =
    [("mesh", 0.0, 0.0), ("mesh, 10 % die", 0.1, 0.0), ("mesh, 1 % send wrong bytes", 0.0, 0.01)];

pub(crate) fn run(options: &Options) -> Result<()> {
    println!("one seed, equal rates, {} pieces; times in times of one copy\n", options.pieces);
    println!(
        "| peers | | median | last | origin copies | wrong pieces: rejected, believed | quarantined | played in |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut late = Vec::new();
    for peers in &options.peers {
        for (name, crashing, corrupting) in FATES {
            let scenario = Scenario { crashing, corrupting, ..scenario(options, *peers) };
            let outcome = play(*peers, name, &scenario);
            check(&scenario, &outcome)?;
            if options.at_most.is_some_and(|most| outcome.last_ratio() > most) {
                late.push(format!("{peers} peers, {name}: {:.3}", outcome.last_ratio()));
            }
        }
        if !options.without_tree {
            play(*peers, "tree", &Scenario { shape: Shape::Tree, ..scenario(options, *peers) });
        }
    }
    ensure!(late.is_empty(), "too late: {}", late.join("; "));
    Ok(())
}

fn scenario(options: &Options, peers: usize) -> Scenario {
    Scenario { peers, pieces: options.pieces, seed: options.seed, ..Scenario::default() }
}

fn play(peers: usize, name: &str, scenario: &Scenario) -> Outcome {
    let began = Instant::now();
    let outcome = darter_sim::play(scenario);
    println!(
        "| {peers} | {name} | {:.3} | {:.3} | {:.3} | {}, {} | {} of {} | {:.1?} |",
        outcome.median_ratio(),
        outcome.last_ratio(),
        outcome.origin_copies,
        outcome.rejected,
        outcome.believed,
        outcome.quarantined,
        outcome.corrupt,
        began.elapsed()
    );
    outcome
}

/// What must hold however long it takes.
fn check(scenario: &Scenario, outcome: &Outcome) -> Result<()> {
    ensure!(outcome.unfinished == 0, "{} peers did not come to an end", outcome.unfinished);
    ensure!(outcome.believed == 0, "{} wrong pieces were kept", outcome.believed);
    ensure!(outcome.quarantined == outcome.corrupt, "somebody who sent wrong bytes is still named");
    ensure!(outcome.origin_copies <= 1.0, "the origin sent {} copies ({scenario:?})", outcome.origin_copies);
    Ok(())
}
