//! Ranges: what a client asks for, and what an origin says that it sends.
//!
//! The models here count bytes with numbers that cannot overflow, and know nothing of how the parsers work.

use darter_p2p::ByteRange;
use darter_p2p::partial::{Ask, place};
use darter_proxy::ranges::{Asked, MAX_RANGES, Plan, Validators};
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// On a line each: the content's length, and the values of Range, If-Range, and the content's ETag, Last-Modified and Date.
pub fn range(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Some(length) = lines.next().and_then(number) else { return };
    let request = headers([RANGE, IF_RANGE], &mut lines);
    let content = headers([ETAG, LAST_MODIFIED, DATE], &mut lines);

    let fits = Validators::new(Some(&content), None).fit_range(&request);
    let same = |name: HeaderName| request.get(IF_RANGE) == content.get(name);
    let strong_tag =
        || same(ETAG) && request.get(IF_RANGE).is_some_and(|tag| tag.as_bytes().starts_with(b"\""));
    let dated = || content.contains_key(LAST_MODIFIED) && content.contains_key(DATE);
    assert!(
        !fits || !request.contains_key(IF_RANGE) || strong_tag() || dated(),
        "nothing says that it is the same"
    );
    assert!(fits || request.contains_key(IF_RANGE), "nobody asked");

    let asked = Asked::by(&request);
    let plan = asked.of(length);
    if let Plan::Parts(parts) = &plan {
        assert!(!parts.is_empty() && parts.len() <= MAX_RANGES, "{} parts", parts.len());
        assert!(parts.iter().all(|part| part.end() <= length), "{parts:?} of {length}");
        assert!(parts.iter().map(|part| u128::from(part.len())).sum::<u128>() <= u128::from(length));
        if let Ok(Some(first)) = asked.first().resolve(length) {
            assert_eq!(parts.first(), Some(&first), "what is opened first is what is sent first");
        }
    }
    // What lies inside nothing is 200 or 416, as one likes.
    if length > 0 {
        assert_eq!(plan, model(request.get(RANGE), u128::from(length)), "{request:?} of {length}");
    }
}

/// RFC 9110 section 14.1.2, by the letter.
fn model(value: Option<&HeaderValue>, length: u128) -> Plan {
    let Some(specs) = value.and_then(|value| value.to_str().ok()).and_then(specs) else { return Plan::Whole };
    let inside = |&(start, end): &(u128, u128)| (start < length).then_some((start, end.min(length)));
    let inside = specs.iter().map(|spec| match *spec {
        Spec::Positions(first, last) => inside(&(first, last + 1)),
        Spec::Last(0) => None,
        Spec::Last(count) => inside(&(length.saturating_sub(count), length)),
    });
    let inside: Vec<(u128, u128)> = inside.flatten().collect();
    if inside.iter().map(|(start, end)| end - start).sum::<u128>() > length {
        return Plan::Whole;
    }
    let narrow = |at: u128| u64::try_from(at).expect("it lies within the content");
    let parts =
        inside.iter().filter_map(|(start, end)| ByteRange::new(narrow(*start), narrow(*end))).collect();
    if inside.is_empty() { Plan::Outside } else { Plan::Parts(parts) }
}

enum Spec {
    /// The first and the last.
    Positions(u128, u128),
    /// So many at the end.
    Last(u128),
}

fn specs(value: &str) -> Option<Vec<Spec>> {
    let (unit, list) = value.split_once('=')?;
    let listed: Vec<&str> =
        list.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty()).collect();
    if !unit.eq_ignore_ascii_case("bytes") || !(1..=MAX_RANGES).contains(&listed.len()) {
        return None;
    }
    let one = |spec: &&str| {
        let (first, last) = spec.split_once('-')?;
        Some(match (first.is_empty(), last.is_empty()) {
            (true, _) => Spec::Last(digits(last)?),
            (false, true) => Spec::Positions(digits(first)?, LARGEST),
            (false, false) => {
                let (first, last) = (digits(first)?, digits(last)?);
                (first <= last).then_some(Spec::Positions(first, last))?
            }
        })
    };
    listed.iter().map(one).collect()
}

/// No content has more bytes. Whoever writes a larger number means this.
const LARGEST: u128 = u64::MAX as u128;

fn digits(text: &str) -> Option<u128> {
    let digit = |value: Option<u128>, byte: u8| {
        byte.is_ascii_digit()
            .then(|| value.unwrap_or(0) * 10 + u128::from(byte - b'0'))
            .map(|it| it.min(LARGEST))
    };
    let mut value = None;
    for byte in text.bytes() {
        value = Some(digit(value, byte)?);
    }
    value
}

/// On a line each: the first offset that was asked for, the one after the last (nothing: to the end), and the values of the
/// answer's Content-Range, Content-Length and Content-Encoding.
pub fn content_range(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Some(start) = lines.next().and_then(number) else { return };
    let ask = match lines.next() {
        Some([]) | None => Ask::From(start),
        Some(end) => match number(end).and_then(|end| ByteRange::new(start, end)) {
            Some(range) => Ask::Range(range),
            None => return,
        },
    };
    let answer = headers([CONTENT_RANGE, CONTENT_LENGTH, CONTENT_ENCODING], &mut lines);
    let Ok((range, total)) = place(ask, &answer) else { return };
    assert_eq!(range.start(), start, "another part than was asked for");
    let end = match ask {
        Ask::Range(asked) => asked.end().min(total),
        Ask::From(_) | Ask::All => total,
    };
    assert_eq!(range.end(), end, "another part than was asked for");
    let said = answer.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).expect("nothing else says it");
    let numbers: Vec<u128> = said.split(|it: char| !it.is_ascii_digit()).filter_map(digits).collect();
    assert_eq!(numbers, [start, range.end() - 1, total].map(u128::from), "{said:?}");
    if let Some(length) = answer.get(CONTENT_LENGTH).and_then(|value| number(value.as_bytes())) {
        assert!(length == range.len() || length > total, "{length} bytes for {range}");
    }
    assert!(
        answer.get(CONTENT_ENCODING).is_none_or(|coding| coding == "identity"),
        "coded bytes have no place"
    );
}

/// The values on the next lines, by these names; an empty line is none.
fn headers<'a, const N: usize>(
    names: [HeaderName; N],
    lines: &mut impl Iterator<Item = &'a [u8]>,
) -> HeaderMap {
    let values = names.into_iter().zip(lines).filter(|(_, line)| !line.is_empty());
    values.filter_map(|(name, line)| Some((name, HeaderValue::from_bytes(line).ok()?))).collect()
}

fn number(line: &[u8]) -> Option<u64> {
    let plain = !line.is_empty() && line.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(line).ok().filter(|_| plain)?.parse().ok()
}
