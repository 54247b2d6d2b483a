//! [`Patterns`]: the first of many expressions that matches, in one pass over the text instead of one per expression.

use regex::{Regex, RegexSet, RegexSetBuilder};

/// How large all expressions of one list may be together once compiled, in bytes: room for ten thousand long ones.
const MAX_COMPILED_BYTES: usize = 256 << 20;
/// How much a search may remember of the automaton that it builds on its way, in bytes per thread. Too little, and every
/// search over a long list builds it anew.
const SEARCH_CACHE_BYTES: usize = 16 << 20;

/// A list of expressions.
#[derive(Debug, Clone)]
pub(crate) struct Patterns(RegexSet);

/// A list of expressions that cannot be searched for together.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the expressions are too large together: {0}")]
pub struct InvalidPatterns(#[from] regex::Error);

impl Patterns {
    pub(crate) fn new<'a>(patterns: impl IntoIterator<Item = &'a Regex>) -> Result<Self, InvalidPatterns> {
        Ok(Self(
            RegexSetBuilder::new(patterns.into_iter().map(Regex::as_str))
                .size_limit(MAX_COMPILED_BYTES)
                .dfa_size_limit(SEARCH_CACHE_BYTES)
                .build()?,
        ))
    }

    pub(crate) fn first_match(&self, text: &str) -> Option<usize> {
        self.0.matches(text).iter().next()
    }
}

impl Default for Patterns {
    fn default() -> Self {
        Self(RegexSet::empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_ten_thousand_is_found() {
        let list: Vec<Regex> = (0..10_000)
            .map(|i| Regex::new(&format!(r"^https://host{i}\.example/.*\.deb$")).unwrap())
            .collect();
        let patterns = Patterns::new(&list).unwrap();
        assert_eq!(patterns.first_match("https://host9999.example/pool/a.deb"), Some(9999));
        assert_eq!(patterns.first_match("https://host10000.example/pool/a.deb"), None);
    }

    #[test]
    fn the_order_of_the_list_decides() {
        let list = ["b", "a", "ab"].map(|p| Regex::new(p).unwrap());
        let patterns = Patterns::new(&list).unwrap();
        assert_eq!(patterns.first_match("cab"), Some(0));
        assert_eq!(patterns.first_match("ca"), Some(1));
        assert_eq!(Patterns::default().first_match("cab"), None);
    }
}
