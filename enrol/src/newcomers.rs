//! [`Newcomers`]: connections whose other end has not shown yet who it is.
//!
//! Whoever can reach a port can open connections and say nothing. There is room for so many of these. When it is taken, the next
//! one is let in all the same, and the oldest of the network that has the most is cut off for it: who says nothing makes way for who
//! has just come, and a handshake takes milliseconds. So nobody is turned away at the door, and who is honest has as long as it takes
//! a flood to fill all the room anew, or, where it comes from many addresses at once, the share of his own.
//! They are known only while they are open, so that memory is bounded by them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// As many at once: all nodes of a site may start together, and come from one address.
pub(crate) const MOST: usize = 512;

/// All of them. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Newcomers(Arc<Mutex<Waiting>>);

/// One connection. It is known until this is dropped.
#[derive(Debug)]
pub(crate) struct Newcomer {
    from: IpAddr,
    number: u64,
    cut: CancellationToken,
    all: Newcomers,
}

/// Those of each network, never none, by when they came.
#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    count: usize,
    of: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
}

impl Newcomers {
    /// One more from there. Another one may be cut off for it.
    pub(crate) fn come(&self, from: IpAddr) -> Newcomer {
        let (from, cut) = (network(from), CancellationToken::new());
        let mut waiting = self.waiting();
        if waiting.count >= MOST {
            waiting.make_way();
        }
        waiting.last += 1;
        waiting.count += 1;
        let number = waiting.last;
        waiting.of.entry(from).or_default().insert(number, cut.clone());
        Newcomer { from, number, cut, all: self.clone() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Cuts off the oldest of the network that has the most; of several such, the oldest of all.
    fn make_way(&mut self) {
        let oldest = |them: &BTreeMap<u64, _>| them.keys().next().copied();
        let most = self.of.iter().max_by_key(|(_, them)| (them.len(), std::cmp::Reverse(oldest(them))));
        let Some((from, number)) = most.and_then(|(from, them)| Some((*from, oldest(them)?))) else { return };
        if let Some(cut) = self.remove(from, number) {
            cut.cancel();
        }
    }

    fn remove(&mut self, from: IpAddr, number: u64) -> Option<CancellationToken> {
        let them = self.of.get_mut(&from)?;
        let removed = them.remove(&number);
        if them.is_empty() {
            self.of.remove(&from);
        }
        self.count -= usize::from(removed.is_some());
        removed
    }
}

impl Newcomer {
    /// When this one has to go, so that others can come.
    pub(crate) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        self.all.waiting().remove(self.from, self.number);
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

    fn is_cut(newcomer: &Newcomer) -> bool {
        newcomer.cut().is_cancelled()
    }

    #[test]
    fn who_has_just_come_is_let_in_and_the_oldest_of_those_who_are_most_goes() {
        let all = Newcomers::default();
        let at = |text: &str| all.come(text.parse().unwrap());
        let honest = at("192.0.2.1");
        let flood: Vec<_> = (1..MOST).map(|_| at("198.51.100.1")).collect();
        assert!(!flood.iter().any(is_cut), "there is room for {MOST}");
        let later = [at("192.0.2.2"), at("198.51.100.1"), at("::ffff:198.51.100.1")];
        assert!(flood[..3].iter().all(is_cut) && !flood[3..].iter().any(is_cut));
        assert!(!is_cut(&honest) && !later.iter().any(is_cut), "nor who came first, from elsewhere");
        drop((honest, flood, later));
        let waiting = all.waiting();
        assert!(waiting.count == 0 && waiting.of.is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn as_many_addresses_as_there_is_room_for_keep_out_nobody() {
        let all = Newcomers::default();
        let at = |n: usize| all.come([198, 51, (n / 256) as u8, (n % 256) as u8].into());
        let flood: Vec<_> = (0..MOST).map(at).collect();
        let honest = all.come([192, 0, 2, 1].into());
        assert!(is_cut(&flood[0]) && !is_cut(&honest), "each has one, so the oldest goes");
        let more: Vec<_> = (MOST..2 * MOST - 1).map(at).collect();
        assert!(flood.iter().all(is_cut) && !is_cut(&honest), "it has until all of them have gone");
        let last = at(2 * MOST);
        assert!(is_cut(&honest));
        drop((more, last));
    }

    #[test]
    fn who_shares_an_address_with_a_flood_has_until_it_has_come_all_around() {
        let all = Newcomers::default();
        let at = || all.come([198, 51, 0, 1].into());
        let before: Vec<_> = (0..MOST).map(|_| at()).collect();
        let honest = at();
        let flood: Vec<_> = (1..MOST).map(|_| at()).collect();
        assert!(before.iter().all(is_cut) && !is_cut(&honest));
        let last = at();
        assert!(is_cut(&honest));
        drop((flood, last));
    }

    #[test]
    fn a_host_with_a_network_of_ipv6_is_one() {
        let all = Newcomers::default();
        let at = |text: String| all.come(text.parse().unwrap());
        let other = at("2001:db8:0:1::1".to_owned());
        let many: Vec<_> = (1..MOST).map(|n| at(format!("2001:db8::{n:x}"))).collect();
        let next = at("2001:db8:0:0:ffff::1".to_owned());
        assert!(is_cut(&many[0]) && !is_cut(&other) && !is_cut(&next));
    }
}
