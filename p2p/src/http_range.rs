//! The range headers that this crate itself writes and reads: towards origins and between daemons (RFC 9110, section 14).
//! What a client may write is richer, and is the proxy's to understand.

use darter_protocol::ByteRange;
use http::HeaderValue;

/// What an answer with status 206 or 416 says about the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentRange {
    /// `bytes a-b/total`
    Part { range: ByteRange, total: u64 },
    /// `bytes */total`
    Outside { total: u64 },
}

/// `bytes=a-b`, or `bytes=a-` without an end.
pub(crate) fn range_header(start: u64, end: Option<u64>) -> HeaderValue {
    let text = match end {
        Some(end) => format!("bytes={start}-{}", end.saturating_sub(1)),
        None => format!("bytes={start}-"),
    };
    HeaderValue::try_from(text).expect("digits are a header's characters")
}

/// `bytes a-b/total`.
pub(crate) fn content_range_header(range: ByteRange, total: u64) -> HeaderValue {
    let text = format!("bytes {}-{}/{total}", range.start(), range.end() - 1);
    HeaderValue::try_from(text).expect("digits are a header's characters")
}

/// Reads a Content-Range with a known total; `None` for anything else, and for a range that lies outside its total.
pub(crate) fn parse_content_range(value: &HeaderValue) -> Option<ContentRange> {
    let (range, total) = value.to_str().ok()?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let total = number(total)?;
    if range == "*" {
        return Some(ContentRange::Outside { total });
    }
    let (first, last) = range.split_once('-')?;
    let range = ByteRange::new(number(first)?, number(last)?.checked_add(1)?)?;
    (range.end() <= total).then_some(ContentRange::Part { range, total })
}

/// Reads a `Range: bytes=a-b` with both ends: the only form that daemons send each other.
pub(crate) fn parse_range(value: &HeaderValue) -> Option<ByteRange> {
    let (first, last) = value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    ByteRange::new(number(first)?, number(last)?.checked_add(1)?)
}

/// Digits only: `u64::from_str` would take a sign.
pub(crate) fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<ContentRange> {
        parse_content_range(&HeaderValue::from_str(text).unwrap())
    }

    #[test]
    fn the_inclusive_form_is_read_and_written() {
        let range = ByteRange::new(10, 20).unwrap();
        assert_eq!(range_header(10, Some(20)), "bytes=10-19");
        assert_eq!(range_header(10, None), "bytes=10-");
        assert_eq!(content_range_header(range, 100), "bytes 10-19/100");
        assert_eq!(parse("bytes 10-19/100"), Some(ContentRange::Part { range, total: 100 }));
        assert_eq!(parse("bytes */100"), Some(ContentRange::Outside { total: 100 }));
        assert_eq!(parse_range(&range_header(10, Some(20))), Some(range));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "bytes 10-19/*",
            "bytes 19-10/100",
            "bytes 10-100/100",
            "items 1-2/3",
            "bytes -1-2/3",
            "bytes +1-2/3",
            "bytes 0-18446744073709551615/1",
            "bytes",
            "bytes 1/2",
            "bytes 0-/5",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        for text in ["bytes=5-4", "bytes=5-", "bytes=-5", "bytes=0-1,3-4", "bytes=0-18446744073709551615"] {
            assert_eq!(parse_range(&HeaderValue::from_static(text)), None, "{text}");
        }
    }
}
