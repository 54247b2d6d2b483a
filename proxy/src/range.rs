//! HTTP's ranges (RFC 9110 section 14): the one place where the last byte of a range belongs to it.
//!
//! What a request asks for is known at once ([`Asked`]); what it gets, only when the content's length is known ([`Plan`]).

use darter_p2p::{ByteRange, Want};
use http::header::{HeaderMap, HeaderValue, RANGE};

/// A Range header with more ranges than this is not honoured: the whole content is sent. podman (zstd:chunked) asks for up
/// to 1024 at once, librepo (zchunk) for up to 256.
pub const MAX_RANGES: usize = 1024;

/// The part of the content that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// All of it.
    All,
    /// One or more, in the order in which they were asked for.
    Ranges(Vec<Want>),
}

/// The part of the content that a request gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// All of it: 200.
    Whole,
    /// One or more parts, in the order in which they were asked for: 206.
    Parts(Vec<ByteRange>),
    /// Nothing that was asked for is in the content: 416.
    Outside,
}

impl Asked {
    /// What a request's headers ask for. A Range that is malformed, of another unit, or of too many ranges is as good as
    /// none (RFC 9110 section 14.2).
    pub fn by(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(RANGE).iter();
        match (values.next(), values.next()) {
            (Some(only), None) => only.to_str().ok().and_then(parse).map_or(Self::All, Self::Ranges),
            _ => Self::All,
        }
    }

    /// What to ask the engine for while the content's length is not known.
    pub fn first(&self) -> Want {
        match self {
            Self::All => Want::All,
            Self::Ranges(wants) => wants.first().copied().unwrap_or(Want::All),
        }
    }

    /// What is sent of content of `length` bytes.
    ///
    /// Ranges that overlap or touch are sent as they were asked for, never put together: podman counts the parts. Asking for
    /// more bytes than there are gets all of them, once (section 14.2 lets a server do so); so no answer is much longer than
    /// the content.
    pub fn of(&self, length: u64) -> Plan {
        let Self::Ranges(wants) = self else { return Plan::Whole };
        let mut parts = Vec::with_capacity(wants.len());
        let mut total: u64 = 0;
        for want in wants {
            match want.resolve(length) {
                Ok(Some(part)) => {
                    total = total.saturating_add(part.len());
                    parts.push(part);
                }
                // Inside nothing: no Content-Range can say so.
                Ok(None) => return Plan::Whole,
                Err(_) => {}
            }
        }
        match parts.len() {
            0 => Plan::Outside,
            _ if total > length => Plan::Whole,
            _ => Plan::Parts(parts),
        }
    }
}

/// `bytes=0-499`, `bytes=500-`, `bytes=-500`, and lists of these.
fn parse(value: &str) -> Option<Vec<Want>> {
    let (unit, set) = value.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    // Empty elements of a list are passed over (RFC 9110 section 5.6.1.2).
    let specs = set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty());
    // One more than there may be shows that there are too many.
    let wants = specs.take(MAX_RANGES + 1).map(parse_one).collect::<Option<Vec<_>>>()?;
    (1..=MAX_RANGES).contains(&wants.len()).then_some(wants)
}

fn parse_one(spec: &str) -> Option<Want> {
    match spec.split_once('-')? {
        ("", length) => Some(match position(length)? {
            // The last no bytes: inside no content, as this.
            0 => Want::From(u64::MAX),
            length => Want::Suffix(length),
        }),
        (first, "") => Some(Want::From(position(first)?)),
        (first, last) => {
            let (first, last) = (position(first)?, position(last)?);
            if last < first {
                return None;
            }
            // Empty only where both stand at the end of all numbers.
            Some(ByteRange::new(first, last.saturating_add(1)).map_or(Want::From(first), Want::Range))
        }
    }
}

/// A number of any length: what does not fit lies outside every content.
fn position(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// The Content-Range of a part.
pub(crate) fn content_range(part: ByteRange, length: u64) -> HeaderValue {
    header(format!("bytes {}-{}/{length}", part.start(), part.end() - 1))
}

/// The Content-Range of a 416.
pub(crate) fn unsatisfied_range(length: u64) -> HeaderValue {
    header(format!("bytes */{length}"))
}

fn header(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("digits and ASCII punctuation")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(list: &[&str]) -> Asked {
        Asked::by(&list.iter().map(|value| (RANGE, HeaderValue::from_str(value).unwrap())).collect())
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    #[test]
    fn the_grammar_of_ranges() {
        let one = |start, end| Want::Range(range(start, end));
        for (value, expected) in [
            ("bytes=0-0", vec![one(0, 1)]),
            ("bytes=0-499", vec![one(0, 500)]),
            ("bytes=500-999", vec![one(500, 1000)]),
            ("Bytes=1-2", vec![one(1, 3)]),
            ("bytes= 1-2 ", vec![one(1, 3)]),
            ("bytes=,1-2,,", vec![one(1, 3)]),
            ("bytes=007-8", vec![one(7, 9)]),
            ("bytes=0-", vec![Want::From(0)]),
            ("bytes=9500-", vec![Want::From(9500)]),
            ("bytes=-500", vec![Want::Suffix(500)]),
            ("bytes=-0", vec![Want::From(u64::MAX)]),
            ("bytes=5-99999999999999999999", vec![one(5, u64::MAX)]),
            ("bytes=99999999999999999999-", vec![Want::From(u64::MAX)]),
            ("bytes=18446744073709551615-18446744073709551615", vec![Want::From(u64::MAX)]),
            ("bytes=-99999999999999999999", vec![Want::Suffix(u64::MAX)]),
            ("bytes=0-1,5-6", vec![one(0, 2), one(5, 7)]),
            ("bytes=5-6 ,\t0-1, -7,9-", vec![one(5, 7), one(0, 2), Want::Suffix(7), Want::From(9)]),
        ] {
            assert_eq!(asked(&[value]), Asked::Ranges(expected), "{value}");
        }
    }

    #[test]
    fn what_is_no_range_asks_for_all() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=--1",
            "bytes=1",
            "bytes=2-1",
            "bytes=a-b",
            "bytes=1-2x",
            "bytes=+1-2",
            "bytes=0x1-2",
            "bytes=1 - 2",
            "bytes=1-2-3",
            "bytes =1-2",
            "items=0-1",
            "bytes:0-1",
            "bytes=0-1,5-4",
            "bytes=0-1;5-6",
            "bytes=0-1,x",
        ] {
            assert_eq!(asked(&[value]), Asked::All, "{value:?}");
        }
        assert_eq!(asked(&["bytes=0-1", "bytes=2-3"]), Asked::All);
        assert_eq!(asked(&[]), Asked::All);
    }

    #[test]
    fn so_many_ranges_and_no_more() {
        let list = |number: usize| format!("bytes={}", vec!["0-0"; number].join(","));
        assert!(matches!(asked(&[&list(MAX_RANGES)]), Asked::Ranges(all) if all.len() == MAX_RANGES));
        assert_eq!(asked(&[&list(MAX_RANGES + 1)]), Asked::All);
    }

    #[test]
    fn what_lies_in_the_content_is_sent_as_it_was_asked_for() {
        let parts = |list: &[(u64, u64)]| Plan::Parts(list.iter().map(|(a, b)| range(*a, *b)).collect());
        for (value, length, expected) in [
            ("bytes=0-4", 10, parts(&[(0, 5)])),
            ("bytes=0-", 10, parts(&[(0, 10)])),
            ("bytes=5-6,0-1", 10, parts(&[(5, 7), (0, 2)])),
            ("bytes=0-1,2-3", 10, parts(&[(0, 2), (2, 4)])),
            ("bytes=0-3,2-5", 10, parts(&[(0, 4), (2, 6)])),
            ("bytes=0-3,10-", 10, parts(&[(0, 4)])),
            ("bytes=10-,-0", 10, Plan::Outside),
            ("bytes=-1", 10, parts(&[(9, 10)])),
            ("bytes=0-,-1", 10, Plan::Whole),
            ("bytes=0-9,0-0", 10, Plan::Whole),
            ("bytes=0-", 0, Plan::Whole),
            ("bytes=-1", 0, Plan::Whole),
            ("bytes=0-0", 0, Plan::Outside),
            ("items=0-0", 10, Plan::Whole),
        ] {
            assert_eq!(asked(&[value]).of(length), expected, "{value} of {length}");
        }
    }

    /// One range as RFC 9110 section 14.1.2 has it, in inclusive positions; `None`: invalid.
    #[derive(Debug, Clone)]
    enum Spec {
        Int(u64, Option<u64>),
        Suffix(u64),
    }

    impl Spec {
        fn text(&self) -> String {
            match self {
                Self::Int(first, Some(last)) => format!("{first}-{last}"),
                Self::Int(first, None) => format!("{first}-"),
                Self::Suffix(length) => format!("-{length}"),
            }
        }

        fn is_valid(&self) -> bool {
            !matches!(self, Self::Int(first, Some(last)) if last < first)
        }

        /// Every byte that it names, one by one.
        fn bytes(&self, length: u64) -> Vec<u64> {
            let inside = |at: &u64| match self {
                Self::Int(first, last) => at >= first && last.is_none_or(|last| *at <= last),
                Self::Suffix(suffix) => length - at <= *suffix,
            };
            (0..length).filter(inside).collect()
        }
    }

    fn spec() -> impl Strategy<Value = Spec> {
        prop_oneof![
            (0..24u64, proptest::option::of(0..24u64)).prop_map(|(first, last)| Spec::Int(first, last)),
            (0..24u64).prop_map(Spec::Suffix),
        ]
    }

    proptest! {
        #[test]
        fn every_text_is_planned(value in "(bytes *= *)?[0-9 ,x-]{0,60}", length in 0..200u64) {
            if let Plan::Parts(parts) = asked(&[&value]).of(length) {
                prop_assert!(!parts.is_empty() && parts.iter().all(|part| part.end() <= length));
                prop_assert!(parts.iter().map(|part| part.len()).sum::<u64>() <= length);
            }
        }

        #[test]
        fn every_header_is_read(value in proptest::collection::vec(any::<u8>(), 0..80), length: u64) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let plan = Asked::by(&HeaderMap::from_iter([(RANGE, value)])).of(length);
                prop_assert_ne!(plan, Plan::Parts(Vec::new()));
            }
        }

        #[test]
        fn the_plan_is_what_byte_by_byte_comes_out(
            specs in proptest::collection::vec(spec(), 1..6),
            length in 1..24u64,
        ) {
            let texts: Vec<String> = specs.iter().map(Spec::text).collect();
            let plan = asked(&[&format!("bytes={}", texts.join(", "))]).of(length);
            let named: Vec<Vec<u64>> = specs.iter().map(|spec| spec.bytes(length)).filter(|it| !it.is_empty()).collect();
            if !specs.iter().all(Spec::is_valid) || named.iter().map(Vec::len).sum::<usize>() as u64 > length {
                prop_assert_eq!(plan, Plan::Whole);
            } else if named.is_empty() {
                prop_assert_eq!(plan, Plan::Outside);
            } else {
                let Plan::Parts(parts) = plan else { panic!("{plan:?}") };
                let sent: Vec<Vec<u64>> = parts.iter().map(|part| (part.start()..part.end()).collect()).collect();
                prop_assert_eq!(sent, named);
            }
        }

        #[test]
        fn a_written_range_reads_back(first in 0..u64::MAX - 1, length in 1..=u64::MAX) {
            let part = range(first, first.saturating_add(length));
            let value = format!("bytes={first}-{}", part.end() - 1);
            prop_assert_eq!(asked(&[&value]), Asked::Ranges(vec![Want::Range(part)]));
        }
    }

    #[test]
    fn the_last_byte_belongs_to_a_content_range() {
        assert_eq!(content_range(range(0, 1), 10), "bytes 0-0/10");
        assert_eq!(content_range(range(5, 10), 10), "bytes 5-9/10");
        assert_eq!(unsatisfied_range(0), "bytes */0");
    }
}
