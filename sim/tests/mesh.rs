//! Small clusters, in virtual time, with every change. The large ones: `cargo run --release -p darter-bench -- mesh`.

use darter_sim::{Outcome, Scenario, Shape};
use std::time::Duration;

/// A hundred peers and half of the pieces: a second each.
fn small() -> Scenario {
    Scenario { peers: 100, pieces: 128, ..Scenario::default() }
}

fn play(scenario: &Scenario) -> Outcome {
    let outcome = darter_sim::play(scenario);
    assert_eq!(outcome.unfinished, 0, "somebody did not come to an end");
    assert_eq!(outcome.believed, 0, "a wrong piece was kept");
    outcome
}

#[test]
fn the_last_of_a_hundred_is_done_soon_after_one_copy_and_the_origin_sends_one() {
    let outcome = play(&small());
    assert!(outcome.last_ratio() <= 1.3, "{:.3}", outcome.last_ratio());
    assert!(outcome.origin_copies == 1.0, "{}", outcome.origin_copies);
}

#[test]
fn a_tree_of_parents_takes_far_longer() {
    let (mesh, tree) = (play(&small()), play(&Scenario { shape: Shape::Tree, ..small() }));
    assert!(tree.last_ratio() > 1.5 * mesh.last_ratio(), "{:.3}", tree.last_ratio());
}

#[test]
fn the_same_seed_gives_the_same_outcome_and_another_seed_another() {
    let scenario = Scenario { peers: 20, pieces: 40, crashing: 0.1, loss: 0.001, ..Scenario::default() };
    let outcome = play(&scenario);
    assert_eq!(outcome, play(&scenario));
    assert_ne!(outcome, play(&Scenario { seed: 2, ..scenario }));
}

#[test]
fn peers_that_die_on_the_way_cost_no_second_copy() {
    let outcome = play(&Scenario { crashing: 0.1, ..small() });
    assert_eq!(outcome.took.len(), 91);
    assert!(outcome.last_ratio() <= 1.3, "{:.3}", outcome.last_ratio());
    assert!(outcome.origin_copies == 1.0, "{}", outcome.origin_copies);
}

#[test]
fn whoever_sends_wrong_bytes_is_found_out_and_named_to_nobody() {
    let outcome = play(&Scenario { corrupting: 0.05, ..small() });
    assert!(outcome.rejected >= 5, "{}", outcome.rejected);
    assert_eq!((outcome.quarantined, outcome.wronged, outcome.corrupt), (5, 0, 5));
    assert!(outcome.last_ratio() <= 1.35, "{:.3}", outcome.last_ratio());
    assert!(outcome.origin_copies == 1.0, "{}", outcome.origin_copies);
}

#[test]
fn slow_links_and_lost_packets_quarantine_nobody() {
    let trouble = Scenario { slow_every: 5, loss: 0.002, crashing: 0.1, ..small() };
    assert_eq!(play(&trouble).wronged, 0);
}

#[test]
fn peers_that_fall_silent_hold_nobody_up() {
    let calm = play(&small());
    let outcome = play(&Scenario { cut_off: 0.1, ..small() });
    // Nine in ten were always reachable. Those who were not need their ten seconds themselves.
    let reachable = outcome.took[outcome.took.len() * 85 / 100];
    let limit = calm.last + Duration::from_secs(2);
    assert!(reachable <= limit, "{reachable:?} and not {limit:?}");
}

#[test]
fn packets_that_are_lost_slow_the_mesh_and_nothing_else() {
    let outcome = play(&Scenario { loss: 0.001, ..small() });
    assert!(outcome.origin_copies == 1.0, "{}", outcome.origin_copies);
}

/// That there is no place is an answer, and to come is said over another connection, on which it may be here first.
#[test]
fn who_is_called_before_it_hears_that_there_is_no_place_loses_no_time() {
    let calm =
        Scenario { peers: 15, pieces: 64, rate: 10_000_000, origin_rate: 10_000_000, ..Scenario::default() };
    let late = Scenario { busy_later: Duration::from_millis(5), ..calm.clone() };
    let [calm, late] = [calm, late].map(|scenario| {
        let ratios = [1, 2, 3, 4].map(|seed| play(&Scenario { seed, ..scenario.clone() }).last_ratio());
        ratios.iter().sum::<f64>() / 4.0
    });
    println!("the last is done after {calm:.3} times one copy, and after {late:.3}");
    assert!(late <= 1.05 * calm, "{late:.3} and not {calm:.3}");
}

#[test]
fn over_a_long_way_it_takes_little_longer() {
    let far =
        Scenario { peers: 15, pieces: 256, latency: Duration::from_millis(150), rate: 10_000_000, ..small() };
    let outcome = play(&Scenario { origin_rate: 10_000_000, ..far });
    assert!(outcome.last_ratio() <= 1.6, "{:.3}", outcome.last_ratio());
}

#[test]
fn a_few_slow_links_hold_up_only_themselves() {
    let calm = play(&small());
    let outcome = play(&Scenario { slow_every: 10, ..small() });
    let fast = outcome.took[outcome.took.len() * 85 / 100];
    assert!(fast <= calm.last.mul_f64(1.3), "{fast:?} and not {:?}", calm.last);
}

#[test]
fn whoever_comes_later_is_as_fast() {
    // From one seed to the next, the slowest takes 1.36 to 1.6 times one copy.
    let slowest = [1, 2, 3].map(|seed| {
        let outcome = play(&Scenario { arrivals: Duration::from_secs(4), seed, ..small() });
        assert!(outcome.origin_copies == 1.0, "{}", outcome.origin_copies);
        outcome.took[outcome.took.len() - 1].as_secs_f64() / outcome.one_copy.as_secs_f64()
    });
    assert!(slowest.iter().sum::<f64>() / 3.0 <= 1.5, "{slowest:?}");
}

/// What passing blocks on before their piece is whole could gain at most: a piece in sixteen parts, each of which is passed on and checked
/// by itself. 64 pieces of 4 MiB at 80 Mbit/s; pieces are of 1 MiB here, and only the time of one counts.
/// `cargo test -p darter-sim --test mesh -- --nocapture sixteen` prints how much.
#[test]
fn what_pieces_in_sixteen_parts_would_gain() {
    let whole =
        Scenario { peers: 15, pieces: 64, rate: 2_500_000, origin_rate: 2_500_000, ..Scenario::default() };
    let parts =
        Scenario { pieces: 64 * 16, rate: 16 * whole.rate, origin_rate: 16 * whole.rate, ..whole.clone() };
    let [whole, parts] = [whole, parts].map(|scenario| {
        let ratios = [1, 2, 3].map(|seed| play(&Scenario { seed, ..scenario.clone() }).last_ratio());
        ratios.iter().sum::<f64>() / 3.0
    });
    println!("the last is done after {whole:.3} times one copy, in parts after {parts:.3}");
    assert!(parts < whole, "{parts:.3} and not less than {whole:.3}");
}
