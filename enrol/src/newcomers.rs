//! [`Newcomers`]: connections whose other end has not shown yet who it is, by address.
//!
//! Whoever can reach a port can open connections and say nothing. One address may have so many of these and no more, so that it
//! cannot keep others waiting. They are counted only while they are open, so that memory is bounded by them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// As many of one address at once. A handshake takes milliseconds; all nodes of a site may come from one address, and who is
/// refused tries again.
pub(crate) const MOST: usize = 64;

/// The counts. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Newcomers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection. It is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Newcomer {
    from: IpAddr,
    all: Newcomers,
}

impl Newcomers {
    /// One more from there; `None`: there are as many as may be.
    pub(crate) fn come(&self, from: IpAddr) -> Option<Newcomer> {
        let from = network(from);
        let mut counts = self.counts();
        let count = counts.entry(from).or_insert(0);
        // An entry that was just made is never one too many.
        if *count >= MOST {
            return None;
        }
        *count += 1;
        Some(Newcomer { from, all: self.clone() })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.all.counts().entry(self.from) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Who is one: of IPv6 a network of 64 bits, which is what one host is given.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_so_many_and_others_have_theirs() {
        let all = Newcomers::default();
        let at = |text: &str| all.come(text.parse().unwrap());
        let mut open: Vec<_> = (0..MOST).map(|_| at("192.0.2.1").unwrap()).collect();
        assert!(at("192.0.2.1").is_none() && at("::ffff:192.0.2.1").is_none());
        let other = at("192.0.2.2").unwrap();
        open.pop();
        assert!(at("192.0.2.1").is_some(), "one has gone");
        drop((open, other));
        assert!(all.counts().is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn a_host_with_a_network_of_ipv6_is_one() {
        let all = Newcomers::default();
        let at = |text: String| all.come(text.parse().unwrap());
        let open: Vec<_> = (0..MOST).map(|n| at(format!("2001:db8::{n:x}")).unwrap()).collect();
        assert!(at("2001:db8:0:0:ffff::1".to_owned()).is_none());
        assert!(at("2001:db8:0:1::1".to_owned()).is_some());
        drop(open);
    }
}
