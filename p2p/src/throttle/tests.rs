//! Limits with those who wait at them, in virtual time.

use super::*;
use darter_swarm::Rate;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const RATE: u64 = 1_000_000;

fn limited(rates: Rates) -> (Arc<Throttles>, Metrics) {
    let metrics = Metrics::default();
    (Arc::new(Throttles::new(rates, &metrics)), metrics)
}

fn rate(bytes_per_sec: u64) -> Option<Rate> {
    Rate::new(bytes_per_sec)
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

/// Moves bytes for `time`; gives how many.
async fn stream(way: Way, time: Duration) -> u64 {
    let (until, mut bytes) = (Instant::now() + time, 0);
    while Instant::now() < until {
        let taken = way.take(1 << 20).await;
        bytes += taken.bytes();
        let all = taken.bytes();
        taken.used(all);
    }
    bytes
}

/// Takes and uses all that may pass at once, by the thousand.
fn drain(way: &Way) -> u64 {
    let mut bytes = 0;
    while let Some(taken) = futures_util::FutureExt::now_or_never(way.take(1_000)) {
        let all = taken.bytes();
        bytes += all;
        taken.used(all);
    }
    bytes
}

#[tokio::test(start_paused = true)]
async fn streams_share_a_rate_evenly_and_use_all_of_it() {
    let (throttles, metrics) = limited(Rates { total: rate(RATE), ..Rates::default() });
    let mut streams = JoinSet::new();
    let time = Duration::from_secs(60);
    for n in 0..7 {
        let task = throttles.of_task(TaskId::from([1; 32]), None);
        let way = if n == 0 { task.of_origin() } else { task.of_partner(&host(&format!("h{n}"))) };
        streams.spawn(stream(way, time));
    }
    let bytes = streams.join_all().await;
    let all: u64 = bytes.iter().sum();
    let (least, most) = (bytes.iter().min().unwrap(), bytes.iter().max().unwrap());
    // The first finds a burst, and has it before anybody else is there.
    let (burst, chunk) = (rate(RATE).unwrap().burst(), rate(RATE).unwrap().chunk());
    assert!(most - least <= burst + 2 * chunk, "{bytes:?}");
    assert!(all.abs_diff(60 * RATE) <= 60 * RATE / 50, "{all}");
    assert!(metrics.waited(Limit::Total) > 6.0 * 60.0 * 0.98);
    assert_eq!(metrics.waited(Limit::Origin), 0.0);
}

/// The longest time within `time` in which no byte moves. Goes on for a while after it: whoever leaves makes room for others.
async fn longest_silence(way: Way, time: Duration) -> Duration {
    let (until, mut last, mut longest) = (Instant::now() + time, Instant::now(), Duration::ZERO);
    while last < until + Duration::from_secs(2) {
        let taken = way.take(1 << 20).await;
        let all = taken.bytes();
        taken.used(all);
        if Instant::now() < until {
            longest = longest.max(last.elapsed());
        }
        last = Instant::now();
    }
    longest
}

#[tokio::test(start_paused = true)]
async fn of_many_who_share_a_rate_nobody_looks_silent() {
    let (throttles, _) = limited(Rates { upload: rate(RATE), ..Rates::default() });
    let mut streams = JoinSet::new();
    for n in 0..60 {
        let way = throttles.to(Some(&host(&format!("h{n}"))));
        streams.spawn(longest_silence(way, Duration::from_secs(20)));
    }
    let longest = streams.join_all().await.into_iter().max().unwrap();
    // Whoever receives asks another as well after half a second without a byte.
    assert!(longest < Duration::from_millis(500), "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn every_limit_on_the_way_holds_and_nobody_waits_for_anothers() {
    let rates =
        Rates { total: rate(RATE), task: rate(RATE / 4), origin: rate(RATE / 20), ..Rates::default() };
    let (throttles, _) = limited(rates);
    let time = Duration::from_secs(60);
    let mut streams = JoinSet::new();
    let ours = throttles.of_task(TaskId::from([1; 32]), None);
    // Three of one task, one of which comes from the origin, and one of another task.
    for (n, way) in
        [ours.of_origin(), ours.of_partner(&host("a")), ours.of_partner(&host("b"))].into_iter().enumerate()
    {
        streams.spawn(async move { (n, stream(way, time).await) });
    }
    let other = throttles.of_task(TaskId::from([2; 32]), None).of_partner(&host("a"));
    streams.spawn(async move { (3, stream(other, time).await) });
    let mut bytes = streams.join_all().await;
    bytes.sort_unstable();
    let bytes: Vec<u64> = bytes.into_iter().map(|(_, bytes)| bytes).collect();
    let near = |bytes: u64, rate: u64| bytes.abs_diff(60 * rate) <= 60 * rate / 50;
    assert!(near(bytes[..3].iter().sum(), RATE / 4), "{bytes:?}");
    assert!(bytes[0] > 0 && bytes[0] <= 60 * RATE / 20 * 51 / 50, "{bytes:?}");
    assert!(bytes[1].abs_diff(bytes[2]) <= RATE / 20, "the other two share what it leaves: {bytes:?}");
    assert!(near(bytes[3], RATE / 4), "it is alone in its task: {bytes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_change_counts_for_those_who_wait() {
    let (throttles, _) = limited(Rates { upload: rate(1), ..Rates::default() });
    let way = throttles.to(None);
    drain(&way);
    let began = Instant::now();
    let waiting = |way: Way| JoinSet::from_iter([async move { drop(way.take(1024).await) }]);
    let (mut first, mut second) = (waiting(throttles.to(None)), waiting(throttles.to(Some(&host("a")))));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(first.try_join_next().is_none() && second.try_join_next().is_none());
    throttles.set(Rates { upload: rate(RATE), ..Rates::default() });
    first.join_next().await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2));
    // And one that goes away altogether.
    throttles.set(Rates { upload: rate(1), ..Rates::default() });
    second.join_next().await.unwrap().unwrap();
    drain(&way);
    let mut third = waiting(throttles.to(None));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(third.try_join_next().is_none());
    throttles.set(Rates::default());
    third.join_next().await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_has_taken_nothing() {
    let rates = Rates { task: rate(RATE), total: rate(1_000), ..Rates::default() };
    let (throttles, _) = limited(rates);
    let way = throttles.of_task(TaskId::from([1; 32]), None).of_origin();
    // The host's limit is what it waits at; its task's is full but for what it has taken there already.
    let waits = async {
        loop {
            let taken = way.take(1 << 20).await;
            let all = taken.bytes();
            taken.used(all);
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), waits).await.is_err());
    throttles.set(Rates { task: rate(RATE), ..Rates::default() });
    assert_eq!(drain(&way), rate(RATE).unwrap().burst());
    // Nor has one who did not use it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    way.take(1 << 20).await.used(1_000);
    drop(way.take(1 << 20).await);
    assert_eq!(drain(&way), rate(RATE).unwrap().burst() - 1_000);
}

#[tokio::test(start_paused = true)]
async fn coming_back_is_not_worth_a_burst() {
    let (throttles, _) = limited(Rates { upload_partner: rate(RATE), ..Rates::default() });
    let burst = rate(RATE).unwrap().burst();
    assert_eq!(drain(&throttles.to(Some(&host("a")))), burst);
    assert_eq!(drain(&throttles.to(Some(&host("b")))), burst, "another has its own");
    assert_eq!(drain(&throttles.to(Some(&host("a")))), 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(drain(&throttles.to(Some(&host("c")))), burst);
    let kept = throttles.upload_partners.throttles.lock().unwrap().len();
    assert_eq!(kept, 1, "those that are full are not kept");
}

#[tokio::test(start_paused = true)]
async fn what_is_fetched_ahead_waits_until_a_reader_lacks_something() {
    let (throttles, _) = limited(Rates { prefetch: rate(1), ..Rates::default() });
    let (lacking, watched) = watch::channel(false);
    let way = throttles.of_task(TaskId::from([1; 32]), Some(watched)).of_partner(&host("a"));
    drain(&way);
    let began = Instant::now();
    let mut ahead = JoinSet::from_iter([async move {
        let bytes = way.take(1 << 20).await.bytes();
        (bytes, way)
    }]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(ahead.try_join_next().is_none());
    lacking.send(true).unwrap();
    let (_, way) = ahead.join_next().await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    assert_eq!(way.take(1 << 20).await.bytes(), 1 << 20);
    lacking.send(false).unwrap();
    assert!(futures_util::FutureExt::now_or_never(way.take(1 << 20)).is_none());
    // Where nothing is fetched ahead nobody asks.
    let way = throttles.of_task(TaskId::from([1; 32]), None).of_partner(&host("a"));
    assert_eq!(way.take(1 << 20).await.bytes(), 1 << 20);
}
