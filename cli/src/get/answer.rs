//! [`Answer`]: what the daemon's answer says of its bytes, and whether that is what was asked for.

use darter_protocol::daemon as proto;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use url::Url;

use super::range::Bytes;
use super::transfer::{Job, shown};
use crate::exit::{self, Failure};

/// The head of an answer, as far as it matters.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

/// The bytes of the whole that are to be written, from the first to the one behind the last, where that is known.
pub(super) type Wanted = (u64, Option<u64>);

/// Where an answer's bytes stand in the whole; `end` is `None` when nobody has said it.
pub(super) struct Extent {
    pub(super) start: u64,
    pub(super) end: Option<u64>,
    /// The length of the whole, where it is known.
    pub(super) total: Option<u64>,
}

impl Extent {
    /// That it is what lies between these two, and nothing else.
    pub(super) fn is(&self, start: u64, end: u64) -> bool {
        (self.start, self.end) == (start, Some(end))
    }

    /// That it is what `range` names, as far as can be told.
    fn is_of(&self, range: Bytes) -> bool {
        let (Some(end), total) = (self.end, self.total) else { return false };
        match (range, total) {
            (range, Some(total)) => range.of(total) == (self.start, end),
            // Of a whole of unknown length the end alone tells whether it was short.
            (Bytes::Between(first, last), None) => first == self.start && end <= last.saturating_add(1),
            (Bytes::From(first), None) => first == self.start,
            (Bytes::Last(bytes), None) => end - self.start <= bytes,
        }
    }
}

impl From<proto::Head> for Answer {
    fn from(head: proto::Head) -> Self {
        let header = |header: proto::Header| {
            let name = HeaderName::try_from(header.name).ok()?;
            Some((name, HeaderValue::from_maybe_shared(header.value).ok()?))
        };
        let status = u16::try_from(head.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        Self {
            status: status.unwrap_or(StatusCode::BAD_GATEWAY),
            headers: head.headers.into_iter().filter_map(header).collect(),
        }
    }
}

impl Answer {
    pub(super) fn text(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// That it has content.
    pub(super) fn check(&self, url: &str) -> exit::Result {
        if matches!(self.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(());
        }
        let url = Url::parse(url).ok();
        let host = url.as_ref().and_then(Url::host_str).unwrap_or("the origin");
        let sentence = format!("{host} answered {}", self.status);
        Err(match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::not_permitted(sentence),
            StatusCode::NOT_FOUND | StatusCode::GONE => Failure::missing(sentence),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Failure::not_now(format!("{sentence}: the range lies outside the content"))
            }
            _ => Failure::unavailable(sentence),
        })
    }

    /// Where its bytes stand.
    pub(super) fn extent(&self) -> exit::Result<Extent> {
        if self.status != StatusCode::PARTIAL_CONTENT {
            let length = self.text(&header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
            return Ok(Extent { start: 0, end: length, total: length });
        }
        let range = self.text(&header::CONTENT_RANGE).and_then(|range| {
            let (range, total) = range.strip_prefix("bytes ")?.split_once('/')?;
            let (first, last) = range.split_once('-')?;
            let total = if total == "*" { None } else { Some(total.parse::<u64>().ok()?) };
            Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?.checked_add(1)?, total))
        });
        let fits = |(start, end, total): &(u64, u64, Option<u64>)| {
            start < end && total.is_none_or(|total| *end <= total)
        };
        let (start, end, total) = range.filter(fits).ok_or_else(|| {
            Failure::unavailable("the origin sent a part and did not say which (Content-Range)")
        })?;
        Ok(Extent { start, end: Some(end), total })
    }

    /// What is to be written of it.
    pub(super) fn wanted(&self, job: &Job, extent: &Extent) -> exit::Result<Wanted> {
        let url = shown(&job.url);
        let is_part = self.status == StatusCode::PARTIAL_CONTENT;
        match (job.range, extent.end) {
            (None, _) if is_part => {
                Err(Failure::unavailable(format!("{url} was asked for as a whole, and a part was sent")))
            }
            (None, end) => Ok((extent.start, end)),
            (Some(_), None) => {
                Err(Failure::not_now(format!("{url} honours no range and does not say how long it is")))
            }
            (Some(range), Some(end)) if is_part => {
                if extent.is_of(range) {
                    return Ok((extent.start, Some(end)));
                }
                Err(Failure::unavailable(format!("{url}: another range was sent than was asked for")))
            }
            // Sent as a whole all the same.
            (Some(range), Some(length)) => match range.of(length) {
                (start, end) if start < end => Ok((start, Some(end))),
                _ => Err(Failure::not_now(format!("{url}: the range lies outside the content"))),
            },
        }
    }

    /// By what a later request can ask for the rest of the same content (RFC 9110 section 13.1.5): a strong ETag alone.
    pub(super) fn validator(&self) -> Option<String> {
        self.text(&header::ETAG).filter(|etag| etag.starts_with('"')).map(str::to_owned)
    }

    pub(super) fn source(&self) -> &'static str {
        match self.headers.get("cache-status").map(HeaderValue::as_bytes) {
            Some(b"darter; hit") => "disk",
            Some(b"darter; fwd=miss") => "cluster",
            _ => "origin",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::path::PathBuf;

    fn wanted(range: Option<&str>, status: u32, header: (&str, &str)) -> Option<Wanted> {
        let (name, value) = header;
        let headers = vec![proto::Header { name: name.to_owned(), value: value.as_bytes().to_vec().into() }];
        let answer = Answer::from(proto::Head { status, headers });
        let job = Job {
            url: "http://a.example/f".to_owned(),
            output: PathBuf::new(),
            range: range.map(|range| range.parse().unwrap()),
            in_place: false,
        };
        answer.extent().and_then(|extent| answer.wanted(&job, &extent)).ok()
    }

    #[test]
    fn a_part_is_what_was_asked_for_or_refused() {
        let part = |range, value| wanted(range, 206, ("content-range", value));
        assert_eq!(part(Some("2-4"), "bytes 2-4/10"), Some((2, Some(5))));
        assert_eq!(part(Some("2-40"), "bytes 2-9/10"), Some((2, Some(10))));
        assert_eq!(part(Some("-3"), "bytes 7-9/10"), Some((7, Some(10))));
        assert_eq!(part(Some("2-4"), "bytes 2-4/*"), Some((2, Some(5))));
        for (range, value) in [
            (None, "bytes 0-9/10"),
            (Some("2-4"), "bytes 3-5/10"),
            (Some("2-4"), "bytes 2-3/10"),
            (Some("2-"), "bytes 2-8/10"),
            (Some("-3"), "bytes 0-2/10"),
            (Some("2-4"), "bytes 2-4/3"),
        ] {
            assert_eq!(part(range, value), None, "{range:?} {value}");
        }
    }

    #[test]
    fn of_a_whole_the_range_is_cut_and_one_outside_it_refused() {
        let whole = |range| wanted(Some(range), 200, ("content-length", "10"));
        assert_eq!(whole("2-4"), Some((2, Some(5))));
        assert_eq!(whole("8-40"), Some((8, Some(10))));
        assert_eq!(whole("10-"), None);
        assert_eq!(whole("20-30"), None);
    }
}
