//! [`Patterns`]: the first of many expressions that matches, at a cost that does not grow with their number.
//!
//! Most expressions hold a text that must stand in whatever they match (`literal`). One pass over the URL looks for all of
//! these texts at once; only expressions whose text was found are asked, in order. Where many expressions share a text, and
//! for those that have none (`.*`), all of a group are searched for in one pass, the latter always.
//!
//! With 10,000 expressions, each with a text of its own, a URL takes 1 to 4 us (`darter-bench rules`). Expressions that may be
//! asked alone are compiled with the list, as many as are kept; of more, those that were asked last stay compiled, and another
//! takes 10 us more.
//!
//! Invariant: the answer is that of asking one expression after the other.

use crate::expression::{Compiled, Expression, InvalidExpression};
use crate::literal::{Literal, required};
use aho_corasick::{AhoCorasick, AhoCorasickKind};
use regex_automata::{Input, MatchKind, PatternSet, meta};
use regex_syntax::hir::Hir;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// A text that more expressions share than this is followed by one search for all of them.
const MAX_SHARED: usize = 32;
/// How many expressions are searched for in one pass. All in one would take milliseconds for ten thousand: the automaton
/// that the search builds as it goes no longer fits its cache and is built anew each time.
const PER_PASS: usize = 1000;
/// How large the expressions of one pass may be together once compiled, in bytes: room for a thousand long ones.
const MAX_PASS_BYTES: usize = 64 << 20;
/// How much a search may keep of the automaton that it builds as it goes, in bytes per pass and thread.
const SEARCH_CACHE_BYTES: usize = 4 << 20;
/// Expressions that stay compiled, with what they may be kept from: enough for ten thousand rules that are all in use, which
/// then take a few KiB each. Asking one that is not kept costs its compilation, ten times the decision.
const MAX_KEPT: usize = 1 << 15;

/// What may be compiled before it is asked for, in bytes: forty thousand expressions of the usual size.
const MAX_AHEAD_BYTES: usize = 64 << 20;

/// A list of expressions. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Patterns(Option<Arc<Inner>>);

/// Expressions that cannot be searched for together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the expressions are too large together: {0}")]
pub struct InvalidPatterns(#[from] InvalidExpression);

/// One of a list: an expression, and where it does not count.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    pub(crate) regex: Expression,
    /// A text in which this is found, too, is passed over.
    pub(crate) unless: Option<Expression>,
}

struct Inner {
    patterns: Vec<Pattern>,
    /// Finds the texts; the group of each stands under its number.
    literals: Option<AhoCorasick>,
    groups: Vec<Group>,
    /// Those without a text.
    always: Vec<Pass>,
    kept: Vec<RwLock<Option<Kept>>>,
}

/// The expressions that share a text.
#[derive(Default)]
struct Group {
    /// In order; with each, whether its text counts at the start alone.
    members: Box<[(u32, bool)]>,
    /// How they are searched for where they are many.
    passes: Vec<Pass>,
}

/// Expressions that are searched for together.
struct Pass {
    search: meta::Regex,
    /// Their numbers, in order.
    members: Box<[u32]>,
}

/// An expression that was asked not long ago.
struct Kept {
    which: Which,
    compiled: Compiled,
}

/// One of the expressions of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Regex(u32),
    Unless(u32),
}

// === impl Patterns ===

impl Patterns {
    pub(crate) fn new(patterns: Vec<Pattern>) -> Result<Self, InvalidPatterns> {
        Self::keeping(MAX_KEPT, patterns)
    }

    fn keeping(most: usize, patterns: Vec<Pattern>) -> Result<Self, InvalidPatterns> {
        if patterns.is_empty() {
            return Ok(Self::default());
        }
        let mut by_literal: HashMap<Vec<u8>, Vec<(u32, bool)>> = HashMap::new();
        let mut without = Vec::new();
        for (index, literals) in (0..).zip(chosen(&patterns)) {
            if literals.is_empty() {
                without.push(index);
            }
            for Literal { text, at_start } in literals {
                by_literal.entry(text).or_default().push((index, at_start));
            }
        }
        let (texts, members): (Vec<_>, Vec<_>) = by_literal.into_iter().unzip();
        let groups = members.into_iter().map(|members| Group::new(members, &patterns));
        let kept = (2 * patterns.len()).min(most);
        let inner = Inner {
            groups: groups.collect::<Result<_, _>>()?,
            literals: (!texts.is_empty()).then(|| finder(&texts)).transpose()?,
            always: passes(&without, &patterns)?,
            kept: (0..kept).map(|_| RwLock::default()).collect(),
            patterns,
        };
        inner.compile_ahead();
        Ok(Self(Some(Arc::new(inner))))
    }

    /// The number, counted from 0, of the first that matches `text`, which is ASCII. Tells `passed_over` of those before it
    /// that only their `unless` keeps from it, in no particular order.
    pub(crate) fn first_match(&self, text: &str, passed_over: &mut dyn FnMut(usize)) -> Option<usize> {
        let inner = self.0.as_ref()?;
        Some(inner.first_match(text, passed_over)? as usize)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |inner| inner.patterns.len())
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().flat_map(|inner| &inner.patterns)).finish()
    }
}

impl Inner {
    fn first_match(&self, text: &str, passed_over: &mut dyn FnMut(usize)) -> Option<u32> {
        let mut counts = |index: u32| {
            let excepted = self.finds(Which::Unless(index), text);
            if excepted {
                passed_over(index as usize);
            }
            !excepted
        };
        let mut first = earliest(&self.always, text, None, &mut counts);
        let mut candidates = Vec::new();
        for found in self.literals.iter().flat_map(|literals| literals.find_overlapping_iter(text)) {
            let Some(group) = self.groups.get(found.pattern().as_usize()) else { continue };
            if group.passes.is_empty() {
                let may_match = group.members.iter().filter(|(_, at_start)| !at_start || found.start() == 0);
                candidates.extend(may_match.map(|(index, _)| *index));
            } else {
                first = earliest(&group.passes, text, first, &mut counts);
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        let before = |index: &u32| first.is_none_or(|first| *index < first);
        let mut asked = candidates.into_iter().take_while(before);
        asked.find(|index| self.finds(Which::Regex(*index), text) && counts(*index)).or(first)
    }

    /// Compiles what may be asked for, as far as there is room: no request is to wait for it. Where two share a place, the
    /// earlier one has it.
    fn compile_ahead(&self) {
        let alone =
            self.groups.iter().flat_map(|group| &group.members).map(|(index, _)| Which::Regex(*index));
        let excepted = (0..).zip(&self.patterns).filter(|(_, pattern)| pattern.unless.is_some());
        let mut asked: Vec<Which> = alone.chain(excepted.map(|(index, _)| Which::Unless(index))).collect();
        asked.sort_unstable_by_key(|which| which.number());
        let mut bytes = 0;
        for which in asked {
            let (Some(expression), Some(slot)) = (self.expression(which), self.slot(which)) else { continue };
            let mut kept = slot.write().unwrap_or_else(PoisonError::into_inner);
            let kept = kept.get_or_insert_with(|| Kept { which, compiled: expression.compile() });
            bytes += kept.compiled.memory_usage();
            if bytes > MAX_AHEAD_BYTES {
                return;
            }
        }
    }

    fn finds(&self, which: Which, text: &str) -> bool {
        let (Some(expression), Some(slot)) = (self.expression(which), self.slot(which)) else { return false };
        let kept = slot.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.which == which) {
            return kept.compiled.finds(expression, text);
        }
        drop(kept);
        let compiled = expression.compile();
        let finds = compiled.finds(expression, text);
        *slot.write().unwrap_or_else(PoisonError::into_inner) = Some(Kept { which, compiled });
        finds
    }

    /// Where it is kept compiled.
    fn slot(&self, which: Which) -> Option<&RwLock<Option<Kept>>> {
        self.kept.get(which.number() % self.kept.len())
    }

    fn expression(&self, which: Which) -> Option<&Expression> {
        match which {
            Which::Regex(index) => self.patterns.get(index as usize).map(|pattern| &pattern.regex),
            Which::Unless(index) => self.patterns.get(index as usize)?.unless.as_ref(),
        }
    }
}

impl Which {
    /// The two of one pattern must not take each other's place.
    fn number(self) -> usize {
        match self {
            Self::Regex(index) => 2 * index as usize,
            Self::Unless(index) => 2 * index as usize + 1,
        }
    }
}

impl Group {
    fn new(members: Vec<(u32, bool)>, patterns: &[Pattern]) -> Result<Self, InvalidPatterns> {
        if members.len() <= MAX_SHARED {
            return Ok(Self { members: members.into(), passes: Vec::new() });
        }
        let mut indices: Vec<u32> = members.into_iter().map(|(index, _)| index).collect();
        indices.dedup();
        Ok(Self { members: Box::default(), passes: passes(&indices, patterns)? })
    }
}

/// The literals by which each expression is found: of its choices the one that fewest others share, and of those the
/// longest. None for an expression that has none.
fn chosen(patterns: &[Pattern]) -> Vec<Vec<Literal>> {
    let choices: Vec<Vec<Vec<Literal>>> =
        patterns.iter().map(|pattern| required(&pattern.regex.hir())).collect();
    let mut sharing: HashMap<&[u8], usize> = HashMap::new();
    for literal in choices.iter().flatten().flatten() {
        *sharing.entry(&literal.text).or_default() += 1;
    }
    let cost = |choice: &Vec<Literal>| {
        let shared = choice.iter().filter_map(|literal| sharing.get(&*literal.text)).max().copied();
        let shortest = choice.iter().map(|literal| literal.text.len()).min();
        (shared, std::cmp::Reverse(shortest))
    };
    let best = |choices: &Vec<Vec<Literal>>| choices.iter().min_by_key(|choice| cost(choice)).cloned();
    choices.iter().map(|choices| best(choices).unwrap_or_default()).collect()
}

fn finder(texts: &[Vec<u8>]) -> Result<AhoCorasick, InvalidPatterns> {
    AhoCorasick::builder()
        .ascii_case_insensitive(true)
        // The fastest kind takes a kilobyte for each character.
        .kind(Some(AhoCorasickKind::ContiguousNFA))
        .build(texts)
        .map_err(|_| InvalidPatterns(InvalidExpression::TooLarge(MAX_PASS_BYTES)))
}

fn passes(indices: &[u32], patterns: &[Pattern]) -> Result<Vec<Pass>, InvalidPatterns> {
    indices.chunks(PER_PASS).map(|members| Pass::new(members, patterns)).collect()
}

/// The first that is found and counts before `first`, which is `first` itself otherwise.
fn earliest(
    passes: &[Pass],
    text: &str,
    mut first: Option<u32>,
    counts: &mut impl FnMut(u32) -> bool,
) -> Option<u32> {
    for pass in passes {
        let before = |index: u32| first.is_none_or(|first| index < first);
        // They are in order: what stands behind would be later still.
        if !pass.members.first().is_some_and(|lowest| before(*lowest)) {
            break;
        }
        first = pass
            .found_in(text)
            .into_iter()
            .filter(|index| before(*index))
            .find(|index| counts(*index))
            .or(first);
    }
    first
}

impl Pass {
    fn new(members: &[u32], patterns: &[Pattern]) -> Result<Self, InvalidPatterns> {
        let hirs: Vec<Hir> =
            members.iter().filter_map(|index| Some(patterns.get(*index as usize)?.regex.hir())).collect();
        let config = meta::Config::new()
            .match_kind(MatchKind::All)
            .nfa_size_limit(Some(MAX_PASS_BYTES))
            .hybrid_cache_capacity(SEARCH_CACHE_BYTES);
        let search = meta::Regex::builder()
            .configure(config)
            .build_many_from_hir(&hirs)
            .map_err(|_| InvalidExpression::TooLarge(MAX_PASS_BYTES))?;
        Ok(Self { search, members: members.into() })
    }

    fn found_in(&self, text: &str) -> Vec<u32> {
        let mut found = PatternSet::new(self.search.pattern_len());
        self.search.which_overlapping_matches(&Input::new(text), &mut found);
        found.iter().filter_map(|member| self.members.get(member.as_usize()).copied()).collect()
    }
}

impl From<Expression> for Pattern {
    fn from(regex: Expression) -> Self {
        Self { regex, unless: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::Regex;

    fn patterns<T: AsRef<str>>(texts: &[T]) -> Patterns {
        Patterns::new(list_of(texts)).unwrap()
    }

    fn list_of<T: AsRef<str>>(texts: &[T]) -> Vec<Pattern> {
        let expression = |text: &T| text.as_ref().parse::<Expression>().unwrap();
        texts.iter().map(|text| expression(text).into()).collect()
    }

    fn first(patterns: &Patterns, text: &str) -> Option<usize> {
        patterns.first_match(text, &mut |_| {})
    }

    #[test]
    fn the_first_of_ten_thousand_is_found() {
        let list: Vec<String> = (0..10_000).map(|i| format!(r"^https://host{i}\.example/.*\.deb$")).collect();
        let patterns = patterns(&list);
        for i in [0, 999, 1000, 1001, 9999] {
            assert_eq!(first(&patterns, &format!("https://host{i}.example/pool/a.deb")), Some(i));
            assert_eq!(first(&patterns, &format!("https://host{i}.example/pool/a.rpm")), None);
        }
        assert_eq!(first(&patterns, "https://host10000.example/pool/a.deb"), None);
    }

    #[test]
    fn the_first_counts_over_texts_and_passes_too() {
        // A third without a text, a third that share one, a third with texts of their own.
        let list: Vec<String> = (0..4 * PER_PASS)
            .map(|i| match i % 3 {
                0 => format!("^{}$", i % PER_PASS),
                1 => format!("shared.*-{}$", i % PER_PASS),
                _ => format!("text-{i}-"),
            })
            .collect();
        let patterns = patterns(&list);
        let naive: Vec<Regex> = list.iter().map(|text| Regex::new(text).unwrap()).collect();
        for text in
            ["999", "998", "shared-997", "shared-4 text-5-", "text-5- shared-4", "text-2- 999", "none"]
        {
            assert_eq!(first(&patterns, text), naive.iter().position(|regex| regex.is_match(text)), "{text}");
        }
    }

    #[test]
    fn the_order_of_the_list_decides() {
        let patterns = patterns(&["b", "a", "ab"]);
        assert_eq!(first(&patterns, "cab"), Some(0));
        assert_eq!(first(&patterns, "ca"), Some(1));
        assert_eq!(first(&Patterns::default(), "cab"), None);
    }

    #[test]
    fn what_is_kept_compiled_is_never_taken_for_another() {
        const KEPT: usize = 1024;
        let list: Vec<String> = (0..3 * KEPT).map(|i| format!("^<{i}>[a-z]+$")).collect();
        let patterns = Patterns::keeping(KEPT, list_of(&list)).unwrap();
        for round in 0..2 {
            for i in (0..list.len()).step_by(97) {
                for same_slot in [i, (i + KEPT) % list.len()] {
                    let found = first(&patterns, &format!("<{same_slot}>abc"));
                    assert_eq!(found, Some(same_slot), "round {round}");
                }
            }
        }
    }

    /// Which are compiled.
    fn kept(patterns: &Patterns) -> Vec<Which> {
        let kept = patterns.0.iter().flat_map(|inner| &inner.kept);
        kept.filter_map(|slot| slot.read().unwrap().as_ref().map(|kept| kept.which)).collect()
    }

    #[test]
    fn what_a_request_may_ask_for_is_compiled_before_it_comes() {
        let pattern = |regex: &str, unless: Option<&str>| Pattern {
            regex: regex.parse().unwrap(),
            unless: unless.map(|unless| unless.parse().unwrap()),
        };
        let alone = || pattern("^https://host/", None);
        let searched_with_others = || pattern(".*[0-9]$", Some("/latest/"));
        let excepted = || pattern(r"\.deb$", Some("-dbg_"));
        let all = [Which::Regex(0), Which::Unless(1), Which::Regex(2), Which::Unless(2)];
        let patterns = Patterns::new(vec![alone(), searched_with_others(), excepted()]).unwrap();
        assert_eq!(kept(&patterns), all);
        first(&patterns, "https://host/latest/a-dbg_1.deb");
        assert_eq!(kept(&patterns), all);
        // The earlier ones have what room there is.
        let patterns = Patterns::keeping(2, vec![excepted(), alone()]).unwrap();
        assert_eq!(kept(&patterns), [Which::Regex(0), Which::Unless(0)]);
    }

    /// Parts of expressions that real rules are made of, and some that they are not.
    fn expression() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "abc",
            "ab",
            "/",
            ".",
            ".*",
            r"\.deb",
            "[a-c]+",
            "(abc|bcd)",
            "(?i:ABC)",
            "(ab)?",
            "(?:bc){2}",
            r"\b",
            r"\w",
            r"\d+",
            "[^/]*",
            "^",
            "$",
            "(?:^|/)",
            "x{0}",
            "(?i)cab",
            r"\.",
            "https?://",
            "",
            "(?:abc|.*)",
            "[Aa]bc",
            "(?-u:b)",
            r"\pL",
            "(?m:^)bca",
            "(?:)",
            "(ab|c)*?abc",
            r"\z",
            r"\B",
        ]);
        let alternation = prop::collection::vec(prop::collection::vec(part, 0..5), 1..3);
        let text = alternation.prop_map(|branches| {
            branches.into_iter().map(|parts| parts.concat()).collect::<Vec<_>>().join("|")
        });
        (prop::sample::select(vec!["", "^", "(?i)"]), text)
            .prop_map(|(before, text)| format!("{before}{text}"))
    }

    /// Whether a text is passed over by each of a list's expressions.
    fn naive(list: &[(String, Option<String>)]) -> Vec<(Regex, Option<Regex>)> {
        let regex = |text: &String| Regex::new(text).unwrap();
        list.iter().map(|(text, unless)| (regex(text), unless.as_ref().map(regex))).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn the_answer_is_that_of_asking_one_after_the_other(
            list in prop::collection::vec((expression(), prop::option::weighted(0.2, expression())), 0..80),
            texts in prop::collection::vec("(https://)?([abcABC/.x1-]|\\.deb|abc){0,12}", 20),
        ) {
            let valid = |text: &String| Regex::new(text).is_ok();
            let list: Vec<_> =
                list.into_iter().filter(|(text, unless)| valid(text) && unless.iter().all(valid)).collect();
            let pattern = |(text, unless): &(String, Option<String>)| Pattern {
                regex: text.parse().unwrap(),
                unless: unless.as_ref().map(|unless| unless.parse().unwrap()),
            };
            let patterns = Patterns::new(list.iter().map(pattern).collect()).unwrap();
            let naive = naive(&list);
            for text in texts {
                let matches = |(regex, unless): &(Regex, Option<Regex>)| {
                    regex.is_match(&text) && !unless.as_ref().is_some_and(|unless| unless.is_match(&text))
                };
                prop_assert_eq!(first(&patterns, &text), naive.iter().position(matches), "{} in {:?}", text, list);
            }
        }
    }
}
