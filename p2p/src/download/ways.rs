//! [`Ways`]: where a download's content can be had and as whom, by what came of it so far. Plain state.
//!
//! Each caller brings a way of his own: his URL, which may be another mirror's, and his headers. The way that gave bytes last is gone
//! on with: a caller who joins a download half done must not be able to lead it to a server that has something else, or nothing.
//! Before anything came, the newest is best, because a newer token outlives an older one; but those to another origin than the first
//! caller's come after all others, for it was his that the scheduler was asked about, whose rules and budgets may say something else
//! about theirs. A way that failed is tried again when all have; one that the origin refuses is not.

use crate::OpenRequest;
use crate::origin::Source;
use url::Origin;

/// Ways that are remembered. More would only be older tokens.
const MOST: usize = 8;

/// One of the callers' ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WayId(u64);

impl WayId {
    /// The first caller's.
    pub(super) const FIRST: Self = Self(0);
}

/// The callers' ways to the content.
#[derive(Default)]
pub(super) struct Ways {
    /// The best last.
    ways: Vec<Way>,
    /// The way that gave bytes last.
    gave: Option<WayId>,
    /// Where the first caller's leads.
    first: Option<Origin>,
    next: u64,
}

struct Way {
    id: WayId,
    source: Source,
    /// Nothing came of it, the last time.
    failed: bool,
}

impl Ways {
    /// Another caller's way.
    pub(super) fn add(&mut self, source: Source) {
        // The same one again is one to try, not two.
        if self.ways.iter().any(|way| way.source.url == source.url && way.source.headers == source.headers) {
            return;
        }
        if self.ways.len() == MOST {
            self.ways.remove(0);
        }
        let id = WayId(self.next);
        self.next += 1;
        let first = &self.first.get_or_insert_with(|| source.url.origin());
        let at = if source.url.origin() == **first {
            let proven = self.ways.last().is_some_and(|best| self.gave == Some(best.id));
            self.ways.len() - usize::from(proven)
        } else {
            self.ways.iter().take_while(|way| way.failed).count()
        };
        self.ways.insert(at, Way { id, source, failed: false });
    }

    /// The one to try next; `None` when the origin has refused all of them.
    pub(super) fn best(&self) -> Option<(WayId, Source)> {
        self.ways.last().map(|way| (way.id, way.source.clone()))
    }

    /// This one, if it is remembered still.
    pub(super) fn get(&self, id: WayId) -> Option<(WayId, Source)> {
        self.ways.iter().find(|way| way.id == id).map(|way| (way.id, way.source.clone()))
    }

    /// Whether the origin has refused all of them.
    pub(super) fn is_empty(&self) -> bool {
        self.ways.is_empty()
    }

    /// Whether there is one that has not failed.
    pub(super) fn has_untried(&self) -> bool {
        self.ways.iter().any(|way| !way.failed)
    }

    /// Bytes of the content came by it.
    pub(super) fn handle_bytes(&mut self, id: WayId) {
        if let Some(way) = self.take(id) {
            self.ways.push(Way { failed: false, ..way });
            self.gave = Some(id);
        }
    }

    /// Nothing came by it, or something else. Gives whether there is another to try before any is tried again.
    pub(super) fn handle_failure(&mut self, id: WayId) -> bool {
        if let Some(way) = self.take(id) {
            self.ways.insert(0, Way { failed: true, ..way });
        }
        self.has_untried()
    }

    /// The origin refuses it.
    pub(super) fn handle_refusal(&mut self, id: WayId) {
        self.take(id);
    }

    fn take(&mut self, id: WayId) -> Option<Way> {
        let at = self.ways.iter().position(|way| way.id == id)?;
        self.gave = self.gave.filter(|gave| *gave != id);
        Some(self.ways.remove(at))
    }
}

impl From<&OpenRequest> for Source {
    fn from(request: &OpenRequest) -> Self {
        Self {
            url: request.url.clone(),
            headers: request.headers.clone(),
            verified: request.digest.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, header};

    fn add(ways: &mut Ways, token: &'static str) {
        add_at(ways, "http://example.org/", token);
    }

    fn add_at(ways: &mut Ways, url: &str, token: &'static str) {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(token))]);
        ways.add(Source { url: url.parse().unwrap(), headers, verified: false });
    }

    fn best(ways: &Ways) -> (WayId, String) {
        let (id, source) = ways.best().unwrap();
        (id, source.headers[header::AUTHORIZATION].to_str().unwrap().to_owned())
    }

    fn with(tokens: &[&'static str]) -> Ways {
        let mut ways = Ways::default();
        tokens.iter().for_each(|token| add(&mut ways, token));
        ways
    }

    #[test]
    fn a_refusal_takes_away_the_way_that_was_refused() {
        let mut ways = with(&["old", "new", "new"]);
        let (newest, token) = best(&ways);
        assert_eq!(token, "new");
        ways.handle_refusal(newest);
        let (last, token) = best(&ways);
        assert_eq!(token, "old");
        ways.handle_refusal(last);
        assert!(ways.is_empty() && ways.best().is_none());
        add(&mut ways, "newer");
        assert_eq!(best(&ways).1, "newer");
    }

    #[test]
    fn the_way_that_gave_is_gone_on_with_whoever_comes() {
        let mut ways = with(&["good"]);
        let (good, _) = best(&ways);
        ways.handle_bytes(good);
        add(&mut ways, "new");
        add(&mut ways, "newer");
        assert_eq!(best(&ways).1, "good");
        assert!(ways.handle_failure(good));
        assert_eq!(best(&ways).1, "newer");
    }

    #[test]
    fn another_origin_comes_after_all_ways_to_the_first_ones() {
        let mut ways = with(&["a"]);
        add_at(&mut ways, "http://elsewhere.example/", "b");
        add(&mut ways, "c");
        for expected in ["c", "a", "b"] {
            let (id, token) = best(&ways);
            assert_eq!(token, expected);
            ways.handle_failure(id);
        }
    }

    #[test]
    fn all_are_tried_before_one_is_tried_again() {
        let mut ways = with(&["a", "b", "c"]);
        let mut tried = Vec::new();
        for _ in 0..4 {
            let (id, token) = best(&ways);
            tried.push((token, ways.handle_failure(id)));
        }
        let tried: Vec<(&str, bool)> =
            tried.iter().map(|(token, others)| (token.as_str(), *others)).collect();
        assert_eq!(tried, [("c", true), ("b", true), ("a", false), ("c", false)]);
        let (id, _) = best(&ways);
        ways.handle_bytes(id);
        assert!(!ways.handle_failure(id), "the others have failed still");
    }

    #[test]
    fn so_many_are_remembered() {
        const TOKENS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
        let mut ways = with(&TOKENS[..1]);
        let (first, _) = best(&ways);
        ways.handle_bytes(first);
        TOKENS[1..].iter().for_each(|token| add(&mut ways, token));
        assert_eq!((ways.ways.len(), best(&ways).1.as_str()), (MOST, "0"));
    }
}
