//! Parents in a tree: what the mesh is compared with.

use crate::net::HostNo;
use rand::Rng;
use rand::seq::SliceRandom;

/// Parents of each, as schedulers of trees name them.
const PARENTS: usize = 4;
/// Children of each, at most, while there are others.
const CHILDREN: usize = 4;

/// For each of `hosts`, in the order in which they come: up to [`PARENTS`] among those before it that have the fewest
/// children, at random. The first has none.
pub(crate) fn parents(hosts: &[HostNo], rng: &mut impl Rng) -> Vec<Vec<HostNo>> {
    let mut children = vec![0; hosts.len()];
    let mut all = vec![Vec::new()];
    let mut open = vec![0];
    for child in 1..hosts.len() {
        open.shuffle(rng);
        open.sort_by_key(|parent| children[*parent] / CHILDREN);
        let chosen: Vec<usize> = open.iter().copied().take(PARENTS).collect();
        chosen.iter().for_each(|parent| children[*parent] += 1);
        open.retain(|parent| children[*parent] < CHILDREN * PARENTS);
        open.push(child);
        all.push(chosen.into_iter().map(|parent| hosts[parent]).collect());
    }
    all
}
