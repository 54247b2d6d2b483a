//! [`Expression`]: one regular expression of a configuration, with the syntax of the crate `regex`, kept as its text.
//!
//! Compiled, an expression takes 8 to 60 KiB; ten thousand of them would take more memory than everything else. So one is
//! compiled when it is read, to find its mistakes, thrown away, and compiled again in a smaller form, of 1.5 KiB as a rule and 16
//! at most, that [`Patterns`](crate::pattern::Patterns) keeps.
//!
//! What it is compared with is printable ASCII: URLs and hosts in their canonical form. So its classes are cut down to
//! ASCII (`\w` from 700 ranges to 4), which changes no answer about such a text.

use regex_automata::meta;
use regex_automata::nfa::thompson::backtrack::{self, BoundedBacktracker};
use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_syntax::hir::{
    Capture, Class, ClassBytes, ClassBytesRange, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look,
    Repetition,
};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The size limit of the crate `regex`: an expression that is larger when compiled, in bytes, is refused.
const MAX_COMPILED_BYTES: usize = 10 << 20;
/// An expression that is larger than this when compiled stays compiled: a decision cannot wait for it. In bytes.
const SMALL_BYTES: usize = 16 << 10;
/// A longer text is searched by an automaton whose time does not grow with the expression, in bytes: whoever sends long
/// URLs must not make us work more than they cost him.
const LONG_TEXT: usize = 2048;

/// A regular expression.
#[derive(Clone)]
pub struct Expression {
    text: Arc<str>,
    large: Option<Arc<meta::Regex>>,
}

/// A text that is no regular expression, or none that can be used. Displays as one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidExpression {
    /// It cannot be parsed.
    #[error("not a regular expression: {0}")]
    Syntax(String),
    /// It can, and is too much.
    #[error("the regular expression is larger than {0} bytes when compiled")]
    TooLarge(usize),
}

/// An expression that is ready to search.
pub(crate) enum Compiled {
    Small(BoundedBacktracker),
    Large(Arc<meta::Regex>),
}

// === impl Expression ===

impl Expression {
    /// The expression that `text` means.
    ///
    /// # Errors
    /// When it is none, or too large: the operator must change it.
    pub fn new(text: &str) -> Result<Self, InvalidExpression> {
        let hir = parse(text)?;
        let nfa = nfa(&hir)?;
        let large = (nfa.memory_usage() > SMALL_BYTES).then(|| linear(&[&hir]).map(Arc::new)).transpose()?;
        Ok(Self { text: text.into(), large })
    }

    /// The text that it was made of.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is found in `text`, which is ASCII. Compiles it: [`Compiled::finds`] is for whoever asks often.
    pub fn is_match(&self, text: &str) -> bool {
        self.compile().finds(self, text)
    }

    /// Whether it has a group of this number or name.
    pub(crate) fn has_group(&self, group: &str) -> bool {
        let hir = self.hir();
        match group.parse::<usize>() {
            Ok(number) => number <= hir.properties().explicit_captures_len(),
            Err(_) => names(&hir, group),
        }
    }

    /// `template` with what its groups matched in `text`, followed by the rest of `text` behind the match; `None` when it
    /// does not match. The template's syntax is that of `regex::Captures::expand`.
    pub(crate) fn replace_up_to_match(&self, text: &str, template: &str) -> Option<String> {
        let hir = self.hir();
        let whole = linear(&[&hir]).ok()?;
        let mut captures = whole.create_captures();
        whole.captures(text, &mut captures);
        let end = captures.get_match()?.end();
        let mut replaced = String::new();
        captures.interpolate_string_into(text, template, &mut replaced);
        replaced.push_str(text.get(end..)?);
        Some(replaced)
    }

    /// What it means, for ASCII.
    pub(crate) fn hir(&self) -> Hir {
        parse(&self.text).unwrap_or_else(|_| Hir::fail())
    }

    pub(crate) fn compile(&self) -> Compiled {
        if let Some(large) = &self.large {
            return Compiled::Large(Arc::clone(large));
        }
        let small = nfa(&self.hir()).expect("it was compiled when it was read");
        Compiled::Small(BoundedBacktracker::new_from_nfa(small).expect("an engine takes every automaton"))
    }
}

impl Compiled {
    /// What it takes of its own, in bytes.
    pub(crate) fn memory_usage(&self) -> usize {
        match self {
            Self::Small(small) => small.get_nfa().memory_usage(),
            // It is the expression's.
            Self::Large(_) => 0,
        }
    }
}

impl FromStr for Expression {
    type Err = InvalidExpression;

    fn from_str(text: &str) -> Result<Self, InvalidExpression> {
        Self::new(text)
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({:?})", self.text)
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

impl Compiled {
    /// Whether `expression`, of which this was made, is found in `text`.
    pub(crate) fn finds(&self, expression: &Expression, text: &str) -> bool {
        match self {
            Self::Small(engine) if text.len() <= LONG_TEXT => {
                let mut cache = backtrack::Cache::new(engine);
                engine.try_is_match(&mut cache, text).unwrap_or_else(|_| long(expression, text))
            }
            Self::Small(_) => long(expression, text),
            Self::Large(whole) => whole.is_match(text),
        }
    }
}

fn long(expression: &Expression, text: &str) -> bool {
    linear(&[&expression.hir()]).is_ok_and(|whole| whole.is_match(text))
}

/// All of `hirs` in one automaton that reads a text once.
pub(crate) fn linear(hirs: &[&Hir]) -> Result<meta::Regex, InvalidExpression> {
    meta::Regex::builder()
        .configure(meta::Config::new().nfa_size_limit(Some(MAX_COMPILED_BYTES)))
        .build_many_from_hir(hirs)
        .map_err(|_| InvalidExpression::TooLarge(MAX_COMPILED_BYTES))
}

fn nfa(hir: &Hir) -> Result<NFA, InvalidExpression> {
    let config = thompson::Config::new()
        .nfa_size_limit(Some(MAX_COMPILED_BYTES))
        .which_captures(WhichCaptures::None)
        .utf8(false);
    let built = NFA::compiler().configure(config).build_from_hir(hir);
    built.map_err(|_| InvalidExpression::TooLarge(MAX_COMPILED_BYTES))
}

fn parse(text: &str) -> Result<Hir, InvalidExpression> {
    let hir = regex_syntax::Parser::new().parse(text).map_err(|error| {
        // Its own text is a picture of several lines.
        InvalidExpression::Syntax(match error {
            regex_syntax::Error::Parse(error) => error.kind().to_string(),
            regex_syntax::Error::Translate(error) => error.kind().to_string(),
            _ => "it cannot be parsed".to_owned(),
        })
    })?;
    Ok(in_ascii(hir))
}

/// The same for a text of ASCII. The parser bounds how deep it nests.
fn in_ascii(hir: Hir) -> Hir {
    match hir.into_kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Class(Class::Unicode(mut class)) => {
            class.intersect(&ClassUnicode::new([ClassUnicodeRange::new('\0', '\x7f')]));
            Hir::class(Class::Unicode(class))
        }
        HirKind::Class(Class::Bytes(mut class)) => {
            class.intersect(&ClassBytes::new([ClassBytesRange::new(0, 0x7f)]));
            Hir::class(Class::Bytes(class))
        }
        HirKind::Look(look) => Hir::look(match look {
            Look::WordUnicode => Look::WordAscii,
            Look::WordUnicodeNegate => Look::WordAsciiNegate,
            Look::WordStartUnicode => Look::WordStartAscii,
            Look::WordEndUnicode => Look::WordEndAscii,
            Look::WordStartHalfUnicode => Look::WordStartHalfAscii,
            Look::WordEndHalfUnicode => Look::WordEndHalfAscii,
            other => other,
        }),
        HirKind::Repetition(Repetition { min, max, greedy, sub }) => {
            Hir::repetition(Repetition { min, max, greedy, sub: Box::new(in_ascii(*sub)) })
        }
        HirKind::Capture(Capture { index, name, sub }) => {
            Hir::capture(Capture { index, name, sub: Box::new(in_ascii(*sub)) })
        }
        HirKind::Concat(parts) => Hir::concat(parts.into_iter().map(in_ascii).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.into_iter().map(in_ascii).collect()),
    }
}

fn names(hir: &Hir, group: &str) -> bool {
    match hir.kind() {
        HirKind::Capture(capture) => capture.name.as_deref() == Some(group) || names(&capture.sub, group),
        HirKind::Repetition(repetition) => names(&repetition.sub, group),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().any(|part| names(part, group)),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_expression_says_why_on_one_line() {
        let why = |text| Expression::new(text).unwrap_err().to_string();
        assert_eq!(why("blobs/(sha256"), "not a regular expression: unclosed group");
        assert!(why("(?=x)").contains("look-around"), "{}", why("(?=x)"));
        assert_eq!(
            why("(?:a{1000}){1000}"),
            "the regular expression is larger than 10485760 bytes when compiled"
        );
        for bad in ["(", "[", "a{2,1}", r"\p{Nothing}", "(?<a>x)(?<a>y)", "x**(", "(?P<n"] {
            assert!(!why(bad).contains('\n') && why(bad).len() > 30, "{bad}: {}", why(bad));
        }
    }

    #[test]
    fn a_large_expression_and_a_long_text_are_judged_like_others() {
        let hosts: Vec<String> = (0..3000).map(|i| format!("host{i}x")).collect();
        let large = Expression::new(&format!("^https://(?:{})/", hosts.join("|"))).unwrap();
        assert!(large.large.is_some());
        assert!(large.is_match("https://host2999x/a") && !large.is_match("https://host3000x/a"));
        let small = Expression::new(r"^a.*b\w*c$").unwrap();
        assert!(small.large.is_none());
        let padding = "x".repeat(60_000);
        assert!(small.is_match(&format!("a{padding}b{padding}c")));
        assert!(!small.is_match(&format!("a{padding}b{padding}-{padding}c")));
    }

    #[test]
    fn groups_are_found_by_number_and_by_name() {
        let expression = Expression::new("^http://(a)(?<b>b(?:c(?P<d>d))*)/").unwrap();
        for there in ["0", "1", "2", "3", "b", "d"] {
            assert!(expression.has_group(there), "{there}");
        }
        for not in ["4", "c", "", "a"] {
            assert!(!expression.has_group(not), "{not}");
        }
    }
}
