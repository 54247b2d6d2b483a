//! [`Visitors`]: what each client has of the proxy at this moment.
//!
//! Memory is bounded whatever addresses clients have: connections are counted only while they are open, and of these there
//! are only as many as the proxy takes. Of requests one moment is kept per client ([`Pace`]), for [`MAX_PACES`] clients.
//!
//! `governor`, the usual crate for this, keeps the same moment (the generic cell rate algorithm) per key, but as many keys
//! as come: the bound, and who is forgotten when it is reached, would have to stand here all the same.

use crate::clients::{Client, Rate};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// As many clients' paces are known at once: about 5 MiB. An attacker with a /48 of IPv6 is 65,536 clients, each of which is
/// forgotten by itself when it has been quiet for as long as its burst takes.
const MAX_PACES: usize = 65_536;

/// Counts of all clients. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Visitors(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    /// Invariant: none is 0.
    connections: HashMap<Client, usize>,
    pace: Pace,
}

/// One connection of a client. It is over when this is dropped.
pub(crate) struct Visit {
    client: Client,
    visitors: Visitors,
}

impl Visitors {
    /// One more connection from `address`; `Ok(None)`: it is this host's own, and not counted.
    ///
    /// # Errors
    /// When there are `most` already.
    pub(crate) fn connect(
        &self,
        address: IpAddr,
        most: Option<NonZeroUsize>,
    ) -> Result<Option<Visit>, TooMany> {
        let Some(client) = Client::at(address) else { return Ok(None) };
        let count = &mut self.counts().connections;
        let count = count.entry(client).or_insert(0);
        // Below that an entry that was just made is not there to be refused.
        if most.is_some_and(|most| *count >= most.get()) {
            return Err(TooMany);
        }
        *count += 1;
        Ok(Some(Visit { client, visitors: self.clone() }))
    }

    /// One more request from `address`.
    ///
    /// # Errors
    /// When it comes too soon: how much later it may come.
    pub(crate) fn ask(&self, address: IpAddr, rate: Option<Rate>, now: Instant) -> Result<(), Duration> {
        match (Client::at(address), rate) {
            (Some(client), Some(rate)) => self.counts().pace.take(client, rate, now),
            _ => Ok(()),
        }
    }

    /// How many connections are open from `address`; `None`: they are not counted.
    pub(crate) fn connections(&self, address: IpAddr) -> Option<usize> {
        let client = Client::at(address)?;
        Some(self.counts().connections.get(&client).copied().unwrap_or_default())
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client has as many connections as it may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Drop for Visit {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.visitors.counts().connections.entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

// === Pace ===

/// For each client the moment up to which its requests so far have taken up the rate. A client whose moment has passed owes
/// nothing, as one that is not known.
#[derive(Default)]
struct Pace(HashMap<Client, Instant>);

impl Pace {
    fn take(&mut self, client: Client, rate: Rate, now: Instant) -> Result<(), Duration> {
        let ahead = self.0.get(&client).map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let wait = ahead.saturating_sub(rate.tolerance());
        if !wait.is_zero() {
            return Err(wait);
        }
        if self.0.len() >= MAX_PACES && !self.0.contains_key(&client) {
            self.make_room(now);
        }
        self.0.insert(client, now + ahead + rate.interval());
        Ok(())
    }

    /// Forgets those who owe nothing, and where that is not half of all, then down to half of them, those who owe least:
    /// they gain least by it. So this costs each new client little, whoever they are.
    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, until| *until > now);
        if self.0.len() > MAX_PACES / 2 {
            let mut moments: Vec<Instant> = self.0.values().copied().collect();
            let middle = moments.len() - MAX_PACES / 2;
            let (_, middle, _) = moments.select_nth_unstable(middle);
            let middle = *middle;
            self.0.retain(|_, until| *until > middle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv6Addr;
    use std::num::NonZeroU32;

    fn rate(per_second: u32, burst: u32) -> Rate {
        let positive = |number| NonZeroU32::new(number).unwrap();
        Rate { per_second: positive(per_second), burst: positive(burst) }
    }

    /// An address in the network of this number.
    fn network(number: u32) -> IpAddr {
        let prefix = 0x2001_0db8_u128 << 96 | u128::from(number) << 64;
        Ipv6Addr::from_bits(prefix | 7).into()
    }

    #[test]
    fn a_client_has_as_many_connections_as_it_may_and_others_have_theirs() {
        let (visitors, two) = (Visitors::default(), NonZeroUsize::new(2));
        let first = visitors.connect(network(1), two);
        let _second = visitors.connect(network(1), two);
        assert_eq!(visitors.connect(network(1), two).err(), Some(TooMany));
        assert!(visitors.connect(network(2), two).is_ok());
        drop(first);
        assert!(visitors.connect(network(1), two).is_ok());
    }

    #[test]
    fn who_has_gone_leaves_nothing_behind() {
        let visitors = Visitors::default();
        let all: Vec<_> = (0..100).map(|number| visitors.connect(network(number), None)).collect();
        assert_eq!(visitors.counts().connections.len(), 100);
        drop(all);
        assert!(visitors.counts().connections.is_empty());
    }

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let (visitors, rate, start) = (Visitors::default(), Some(rate(2, 3)), Instant::now());
        let ask = |milliseconds| visitors.ask(network(1), rate, start + Duration::from_millis(milliseconds));
        assert_eq!([ask(0), ask(0), ask(0)], [Ok(()); 3]);
        assert_eq!(ask(0), Err(Duration::from_millis(500)));
        assert_eq!(ask(499), Err(Duration::from_millis(1)));
        assert_eq!(ask(500), Ok(()));
        assert_eq!(ask(500), Err(Duration::from_millis(500)));
        // Saved again, and no more than the burst.
        assert_eq!([ask(60_000), ask(60_000), ask(60_000)], [Ok(()); 3]);
        assert!(ask(60_000).is_err());
        assert_eq!(visitors.ask(network(2), rate, start), Ok(()));
        assert_eq!(visitors.ask(network(1), None, start), Ok(()));
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_who_asked_most_stays_known() {
        let (visitors, rate, now) = (Visitors::default(), Some(rate(1, 5)), Instant::now());
        for _ in 0..5 {
            visitors.ask(network(u32::MAX), rate, now).unwrap();
        }
        for number in 0..3 * MAX_PACES as u32 {
            visitors.ask(network(number), rate, now).unwrap();
        }
        assert!(visitors.counts().pace.0.len() <= MAX_PACES);
        assert!(visitors.ask(network(u32::MAX), rate, now).is_err());
    }

    proptest! {
        #[test]
        fn no_more_than_burst_and_rate_get_through(
            per_second in 1..200_u32, burst in 1..50_u32,
            pauses in prop::collection::vec(0..50_u64, 1..400),
        ) {
            let (visitors, rate, start) = (Visitors::default(), rate(per_second, burst), Instant::now());
            let (mut now, mut through) = (start, 0_u32);
            for pause in pauses {
                now += Duration::from_millis(pause);
                through += u32::from(visitors.ask(network(0), Some(rate), now).is_ok());
            }
            let earned = (now - start).as_secs_f64() * f64::from(per_second);
            prop_assert!(f64::from(through) <= f64::from(burst) + earned + 1e-6);
        }
    }
}
