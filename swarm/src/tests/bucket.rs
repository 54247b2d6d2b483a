//! How much passes a bucket, and when.

use crate::{Bucket, Rate};
use proptest::prelude::*;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

fn rate(bytes_per_sec: u64) -> Rate {
    Rate::new(bytes_per_sec).unwrap()
}

/// Takes `most` as soon as it can be had, and moves the clock there.
fn take(bucket: &mut Bucket, now: &mut Instant, most: u64) -> u64 {
    match bucket.take(*now, most) {
        Ok(bytes) => bytes,
        Err(wait) => {
            *now += wait;
            bucket.take(*now, most).expect("it is there when it was said to be")
        }
    }
}

/// What somebody does who has bytes to move.
#[derive(Debug, Clone)]
enum Step {
    Take(u64),
    /// Nothing, for so many microseconds.
    Rest(u64),
    /// Takes, and uses only so many of a hundred.
    Part(u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..200_000u64).prop_map(Step::Take),
        1 => (0..2_000_000u64).prop_map(Step::Rest),
        1 => (1..200_000u64, 0..100u64).prop_map(|(most, part)| Step::Part(most, part)),
    ];
    prop::collection::vec(step, 1..300)
}

/// Performs `steps`; gives what passed, and when.
fn passed(bucket: &mut Bucket, now: &mut Instant, steps: &[Step]) -> Vec<(Instant, u64)> {
    let mut passed = Vec::new();
    for step in steps {
        match *step {
            Step::Rest(micros) => *now += Duration::from_micros(micros),
            Step::Take(most) => {
                let bytes = take(bucket, now, most);
                passed.push((*now, bytes));
            }
            Step::Part(most, part) => {
                let bytes = take(bucket, now, most);
                let used = bytes * part / 100;
                bucket.give_back(*now, bytes - used);
                passed.push((*now, used));
            }
        }
    }
    passed
}

/// Whether in every window no more than burst and rate allow has passed.
fn bounded(passed: &[(Instant, u64)], rate: Rate) -> bool {
    (0..passed.len()).all(|first| {
        let mut bytes = 0u128;
        passed[first..].iter().all(|(at, more)| {
            bytes += u128::from(*more);
            let nanos = (*at - passed[first].0).as_nanos();
            let filled = nanos * u128::from(rate.bytes_per_sec()) / 1_000_000_000;
            bytes <= u128::from(rate.burst()) + filled
        })
    })
}

proptest! {
    #[test]
    fn no_window_lets_more_pass_than_burst_and_rate(
        bytes_per_sec in 1..4_000_000_000u64,
        steps in steps(),
    ) {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(now, rate(bytes_per_sec));
        let passed = passed(&mut bucket, &mut now, &steps);
        prop_assert!(bounded(&passed, rate(bytes_per_sec)));
    }

    #[test]
    fn who_always_takes_gets_the_rate_within_two_percent(
        bytes_per_sec in 1_000..1_000_000_000u64,
        chunks in prop::collection::vec(2_000..500_000u64, 1..20),
        before in steps(),
        // How late he is each time, in microseconds: as a timer is.
        late in prop::collection::vec(0..20_000u64, 1..20),
    ) {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(now, rate(bytes_per_sec));
        passed(&mut bucket, &mut now, &before);
        let (began, mut bytes) = (now, 0);
        let (mut chunks, mut late) = (chunks.iter().cycle(), late.iter().cycle());
        while bytes < 200 * rate(bytes_per_sec).burst() {
            let most = *chunks.next().unwrap();
            if let Err(wait) = bucket.take(now, most).map(|taken| bytes += taken) {
                now += wait + Duration::from_micros(*late.next().unwrap());
            }
        }
        let filled = (now - began).as_nanos() * u128::from(bytes_per_sec) / 1_000_000_000;
        prop_assert!(u128::from(bytes).abs_diff(filled) * 50 <= filled, "{bytes} of {filled}");
    }

    #[test]
    fn a_change_of_rate_counts_from_its_moment(
        before in 1_000..1_000_000_000u64,
        after in 1_000..1_000_000_000u64,
        micros in 0..1_000_000u64,
    ) {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(now, rate(before));
        while bucket.take(now, u64::MAX).is_ok() {}
        now += Duration::from_micros(micros);
        bucket.set_rate(now, rate(after));
        let there = std::iter::from_fn(|| bucket.take(now, 1).ok()).take(1 << 20).count() as u64;
        let filled = before * micros / 1_000_000 + rate(before).chunk();
        prop_assert!(there <= filled.min(rate(after).burst()));
        let wait = bucket.take(now, 1_000).err().filter(|_| there < 1 << 20);
        if let Some(wait) = wait {
            prop_assert!(wait.as_nanos() <= (1_000_000_000_000 / u128::from(after)) + 1);
        }
    }
}

#[test]
fn nothing_is_lost_to_rounding() {
    // A third of a byte per nanosecond, looked at every nanosecond.
    let began = Instant::now();
    let rate = rate(333_333_333);
    let mut bucket = Bucket::new(began, rate);
    while bucket.take(began, u64::MAX).is_ok() {}
    while bucket.take(began, 1).is_ok() {}
    let mut bytes = 0;
    for nanos in 1..=3_000_000 {
        bytes += bucket.take(began + Duration::from_nanos(nanos), 1).unwrap_or(0);
    }
    assert_eq!(bytes, 3_000_000 * 333_333_333 / 1_000_000_000);
}

#[test]
fn a_pause_is_worth_a_burst_and_no_more() {
    let mut now = Instant::now();
    let mut bucket = Bucket::new(now, rate(800_000));
    for _ in 0..2 {
        let bytes: u64 = std::iter::from_fn(|| bucket.take(now, 1_000).ok()).sum();
        assert_eq!(bytes, 100_000);
        now += 3600 * SECOND;
    }
    assert!(bucket.is_full(now));
}

#[test]
fn a_raised_rate_shortens_the_wait() {
    let now = Instant::now();
    let mut bucket = Bucket::new(now, rate(1_000));
    while bucket.take(now, 1_000).is_ok() {}
    let slow = bucket.take(now, 1_000).unwrap_err();
    bucket.set_rate(now, rate(1_000_000));
    let quick = bucket.take(now, 1_000).unwrap_err();
    assert!(quick * 900 < slow, "{quick:?}, {slow:?}");
    bucket.set_rate(now, rate(1_000));
    assert_eq!(bucket.take(now, 1_000), Err(slow));
}

#[test]
fn what_is_given_back_can_be_taken_again() {
    let now = Instant::now();
    let mut bucket = Bucket::new(now, rate(8 << 20));
    let mut taken = 0;
    while let Ok(bytes) = bucket.take(now, u64::MAX) {
        taken += bytes;
    }
    assert_eq!(taken, 1 << 20);
    bucket.give_back(now, 60_000);
    assert_eq!(bucket.take(now, 60_000), Ok(60_000));
    bucket.give_back(now, u64::MAX / 2);
    assert!(bucket.is_full(now), "never more than the burst");
}

#[test]
fn a_chunk_fits_into_every_burst() {
    for bytes_per_sec in [1, 1_000, 40_960, 1 << 20, 1 << 30, u64::MAX] {
        let rate = rate(bytes_per_sec);
        assert!(rate.chunk() <= rate.burst(), "{rate:?}");
        let now = Instant::now();
        let mut bucket = Bucket::new(now, rate);
        assert_eq!(bucket.take(now, u64::MAX), Ok(rate.chunk()));
        assert!(bucket.take(now + 100_000 * SECOND, 1).is_ok());
    }
    assert_eq!(Rate::new(0), None);
}
