//! The lines of `/tasks/ID/have`, and what they mean.
//!
//! ```text
//! have 0-41,57     the first line: which pieces are here, ranges and single ones; it may name none
//! have 42          later ones: which are here, too
//! coming 43        these are coming here, and can be asked for: they are given as they come. Only to who says that it understands
//!                  it (`Darter-Relays`); others would take it for nonsense
//! come             a place is kept for you, for a moment
//! come 57          and it would be best spent on this piece, which nobody else has
//! ```

use darter_protocol::{PieceIndex, PieceSet};
use std::fmt::Write;

/// The longest line in bytes: every other one of 4,096 pieces, and some room.
pub(super) const MAX_LINE_BYTES: usize = 32 << 10;

/// What another daemon says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// These pieces are there.
    Have(PieceSet),
    /// These are coming there, and it passes them on.
    Coming(PieceSet),
    /// A place is kept, best for this piece.
    Come(Option<PieceIndex>),
}

impl Said {
    /// As a line, with its end.
    pub(super) fn to_line(&self) -> String {
        match self {
            Self::Have(have) => format!("have {}\n", ranges(have)),
            Self::Coming(coming) => format!("coming {}\n", ranges(coming)),
            Self::Come(None) => "come\n".to_owned(),
            Self::Come(Some(piece)) => format!("come {piece}\n"),
        }
    }

    /// Reads a line, without its end, about a task of `pieces` pieces. `None`: no daemon says such a thing.
    pub(super) fn parse(line: &[u8], pieces: u32) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "have" => parse_ranges(rest, pieces).map(Self::Have),
            "coming" => parse_ranges(rest, pieces).map(Self::Coming),
            "come" if rest.is_empty() => Some(Self::Come(None)),
            "come" => piece(rest, pieces).map(|piece| Self::Come(Some(piece))),
            _ => None,
        }
    }
}

fn ranges(set: &PieceSet) -> String {
    let mut text = String::new();
    let mut open: Option<(u32, u32)> = None;
    let mut close = |open: Option<(u32, u32)>| {
        if let Some((first, last)) = open {
            let comma = if text.is_empty() { "" } else { "," };
            let end = if first == last { String::new() } else { format!("-{last}") };
            write!(text, "{comma}{first}{end}").expect("a string takes everything");
        }
    };
    for piece in set.iter().map(PieceIndex::get) {
        match &mut open {
            Some((_, last)) if *last + 1 == piece => *last = piece,
            _ => close(open.replace((piece, piece))),
        }
    }
    close(open);
    text
}

fn parse_ranges(text: &str, pieces: u32) -> Option<PieceSet> {
    let mut set = PieceSet::empty(pieces);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (piece(first, pieces)?, piece(last, pieces)?);
        set.extend((first.get()..=last.get()).map(PieceIndex::new));
    }
    Some(set)
}

fn piece(text: &str, pieces: u32) -> Option<PieceIndex> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|piece| digits && *piece < pieces).map(PieceIndex::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(pieces: u32, of: impl IntoIterator<Item = u32>) -> PieceSet {
        let mut set = PieceSet::empty(pieces);
        set.extend(of.into_iter().map(PieceIndex::new));
        set
    }

    #[test]
    fn lines_are_for_people_too() {
        assert_eq!(Said::Have(set(60, (0..42).chain([57, 59]))).to_line(), "have 0-41,57,59\n");
        assert_eq!(Said::Have(set(60, [])).to_line(), "have \n");
        assert_eq!(Said::parse(b"have", 60), Some(Said::Have(set(60, []))));
        assert_eq!(Said::parse(b"come 7", 60), Some(Said::Come(Some(PieceIndex::new(7)))));
    }

    #[test]
    fn what_no_daemon_says_is_refused() {
        for line in [
            "",
            "have 60",
            "have 1-60",
            "have x",
            "have +1",
            "have -1",
            "coming 60",
            "coming x",
            "come 60",
            "come  1",
            "go",
            "have 4294967296",
        ] {
            assert_eq!(Said::parse(line.as_bytes(), 60), None, "{line}");
        }
        assert_eq!(Said::parse(b"have \xff", 60), None);
    }

    #[test]
    fn the_longest_line_fits() {
        let longest = Said::Have(set(4096, (0..4096).step_by(2))).to_line();
        assert!(longest.len() < MAX_LINE_BYTES);
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(of in prop::collection::btree_set(0..300u32, 0..300), best in prop::option::of(0..300u32)) {
            for said in [Said::Have(set(300, of.clone())), Said::Coming(set(300, of)), Said::Come(best.map(PieceIndex::new))] {
                let line = said.to_line();
                prop_assert_eq!(Said::parse(line.strip_suffix('\n').unwrap().as_bytes(), 300), Some(said));
            }
        }
    }
}
