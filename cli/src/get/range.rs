//! [`Bytes`]: a part of a whole, as `--range` names it.

use std::str::FromStr;

/// Bytes of a whole, as `--range` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    /// From the first to the last, both included.
    Between(u64, u64),
    From(u64),
    Last(u64),
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected A-B, A- or -N, found `{text}`");
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        match text.strip_prefix("bytes=").unwrap_or(text).split_once('-').ok_or_else(wrong)? {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => match (number(first)?, number(last)?) {
                (first, last) if first <= last => Ok(Self::Between(first, last)),
                _ => Err(wrong()),
            },
        }
    }
}

impl Bytes {
    /// As a Range header has it.
    pub(super) fn header(self) -> String {
        match self {
            Self::Between(first, last) => format!("bytes={first}-{last}"),
            Self::From(first) => format!("bytes={first}-"),
            Self::Last(bytes) => format!("bytes=-{bytes}"),
        }
    }

    /// The first byte and the one behind the last, of a whole of `length` bytes.
    pub(super) fn of(self, length: u64) -> (u64, u64) {
        match self {
            Self::Between(first, last) => (first, last.saturating_add(1).min(length)),
            Self::From(first) => (first, length),
            Self::Last(bytes) => (length.saturating_sub(bytes), length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_as_dfget_takes_them() {
        for (text, header, of_ten) in [
            ("2-4", "bytes=2-4", (2, 5)),
            ("2-", "bytes=2-", (2, 10)),
            ("-3", "bytes=-3", (7, 10)),
            ("bytes=0-99", "bytes=0-99", (0, 10)),
        ] {
            let range: Bytes = text.parse().unwrap();
            assert_eq!((range.header().as_str(), range.of(10)), (header, of_ten), "{text}");
        }
        for text in ["", "5", "4-2", "a-b", "-"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
