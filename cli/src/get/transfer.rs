//! [`Transfer`]: one file after the other, from the daemon's answer to its name.
//!
//! A byte is copied twice here: out of the socket, and into the file. What the digest says is checked here over the whole
//! file, whatever the daemon has checked.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{self, Context, SHA256, SHA512};
use darter_protocol::daemon::daemon_client::DaemonClient;
use darter_protocol::daemon::{self as proto, download_response::Part as Item};
use darter_protocol::{Algorithm, Digest};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use url::Url;

use super::part::{Note, Part, cannot_write};
use super::show::{Bar, Show};
use crate::exit::{self, Failure};
use crate::socket::client::failure;

/// The longest index that is read, in bytes.
const MAX_INDEX: usize = 32 << 20;

/// The way to the daemon, and what is the same for all files.
pub(super) struct Transfer {
    client: DaemonClient<Channel>,
    headers: Vec<(String, String)>,
    digest: Option<Digest>,
    pace: Option<Pace>,
}

/// One file.
pub(super) struct Job {
    pub(super) url: String,
    pub(super) output: PathBuf,
    pub(super) range: Option<Bytes>,
    /// Into the file as it is, where the bytes stand in the whole.
    pub(super) in_place: bool,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Done {
    /// Bytes of the file that were asked for.
    pub(super) length: u64,
    /// Of these were there from an earlier command.
    pub(super) resumed: u64,
    pub(super) took: Duration,
    /// What the daemon said of where it came from.
    pub(super) from: &'static str,
}

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
    fn header(self) -> String {
        match self {
            Self::Between(first, last) => format!("bytes={first}-{last}"),
            Self::From(first) => format!("bytes={first}-"),
            Self::Last(bytes) => format!("bytes=-{bytes}"),
        }
    }

    /// The first byte and the one behind the last, of a whole of `length` bytes.
    fn of(self, length: u64) -> (u64, u64) {
        match self {
            Self::Between(first, last) => (first, last.saturating_add(1).min(length)),
            Self::From(first) => (first, length),
            Self::Last(bytes) => (length.saturating_sub(bytes), length),
        }
    }
}

/// The head of an answer, as far as it matters.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
}

type Stream = Streaming<proto::DownloadResponse>;

/// The bytes of the whole that are to be written, from the first to the one behind the last, where that is known.
type Wanted = (u64, Option<u64>);

/// Where an answer's bytes stand in the whole; `end` is `None` when nobody has said it.
struct Extent {
    start: u64,
    end: Option<u64>,
    /// The length of the whole, where it is known.
    total: Option<u64>,
}

impl Extent {
    /// That it is what lies between these two, and nothing else.
    fn is(&self, start: u64, end: u64) -> bool {
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

impl Transfer {
    pub(super) fn new(
        client: DaemonClient<Channel>,
        headers: Vec<(String, String)>,
        digest: Option<Digest>,
        limit: Option<u64>,
    ) -> Self {
        Self { client, headers, digest, pace: limit.map(Pace::new) }
    }

    /// Downloads one file.
    ///
    /// # Errors
    /// One sentence. What there is of the file is kept, unless it is wrong.
    pub(super) async fn run(&mut self, job: &Job, show: &Show) -> exit::Result<Done> {
        let begun = Instant::now();
        if job.in_place {
            return self.in_place(job, show, begun).await;
        }
        let asked = self.words(job);
        let (mut part, before) = Part::open(&job.output, &asked)?;
        let outcome = self.fill(&mut part, before, job, (&asked, show)).await;
        match outcome {
            Ok(Filled { wrong: Some(failure), .. }) => {
                part.discard();
                Err(failure)
            }
            Ok(Filled { length, resumed, from, .. }) => {
                part.finish()?;
                Ok(Done { length, resumed, from, took: begun.elapsed() })
            }
            Err(failure) => {
                part.discard_empty();
                Err(failure)
            }
        }
    }

    /// The page at `url`, which is an index.
    pub(super) async fn page(&mut self, url: &Url) -> exit::Result<Vec<u8>> {
        let (answer, mut stream) = self.ask(url.as_str(), &[]).await?;
        answer.check(url.as_str())?;
        let mut page = Vec::new();
        while let Some(data) = next(&mut stream).await? {
            page.extend_from_slice(&data);
            if page.len() > MAX_INDEX {
                return Err(Failure::not_now(format!("{url} is longer than an index of files may be")));
            }
        }
        Ok(page)
    }

    /// What is asked for, for whoever goes on with it: a hash, because a signed URL is a secret. So are headers, and their
    /// owner asks again with them.
    fn words(&self, job: &Job) -> String {
        let named = self.headers.iter().filter(|(name, _)| name.starts_with("x-dragonfly-"));
        let named: Vec<_> = named.map(|(name, value)| format!("{name}={value}")).collect();
        let words = format!("{} {:?} {:?} {}", job.url, job.range, self.digest, named.join("&"));
        digest::digest(&SHA256, words.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    async fn ask(&mut self, url: &str, more: &[(HeaderName, String)]) -> exit::Result<(Answer, Stream)> {
        let header = |name: &str, value: &str| proto::Header {
            name: name.to_owned(),
            value: value.as_bytes().to_vec().into(),
        };
        let own = self.headers.iter().map(|(name, value)| header(name, value));
        let headers = own.chain(more.iter().map(|(name, value)| header(name.as_str(), value))).collect();
        let digest = self.digest.map(|digest| digest.to_string()).unwrap_or_default();
        let request = proto::DownloadRequest { url: url.to_owned(), headers, digest };
        let mut stream = self.client.download(request).await.map_err(|status| failure(&status))?.into_inner();
        match stream.message().await.map_err(|status| failure(&status))?.and_then(|message| message.part) {
            Some(Item::Head(head)) => Ok((Answer::from(head), stream)),
            _ => Err(Failure::unavailable("the daemon's answer is not understood: is it another version?")),
        }
    }

    async fn fill(
        &mut self,
        part: &mut Part,
        before: Option<(Note, u64)>,
        job: &Job,
        (asked, show): (&str, &Show),
    ) -> exit::Result<Filled> {
        let mut hash = self.digest.map(hash_for);
        if let Some((note, have)) = &before
            && note.start + have == note.end
        {
            part.go_on(*have, hash.as_mut())?;
            return Ok(self.judge(hash, *have, *have, "disk"));
        }
        let (answer, stream, before) = self.ask_for_rest(job, before).await?;
        let extent = answer.extent()?;
        let (wanted, resumed) = match &before {
            Some((note, have)) => ((note.start, Some(note.end)), *have),
            None => (answer.wanted(job, &extent)?, 0),
        };
        if resumed > 0 {
            part.go_on(resumed, hash.as_mut())?;
        } else {
            part.restart()?;
            // What has no strong validator is gone on with where the digest tells whether it fits together.
            let validator = answer.validator().or(self.digest.map(|_| String::new()));
            if let (Some(validator), (start, Some(end))) = (validator, wanted) {
                part.note(&Note::new(asked.to_owned(), validator, start, end));
            }
        }
        let bar = show.bar(&job.output, length(wanted), resumed);
        let write = |bytes: &[u8]| {
            if let Some(hash) = &mut hash {
                hash.update(bytes);
            }
            part.write(bytes)
        };
        let got = match self.receive(stream, (extent.start, wanted), &bar, write).await {
            Ok(got) => resumed + got,
            // The daemon has found that it is not what it must be; all that is here is of no use.
            Err(Broken { wrong: true, failure }) => {
                return Ok(Filled { length: 0, resumed, from: "", wrong: Some(failure) });
            }
            Err(broken) => return Err(broken.failure),
        };
        check_whole(job, wanted, got)?;
        Ok(self.judge(hash, got, resumed, answer.source()))
    }

    /// Asks for what is missing behind `before`; for all that is wanted, when there is nothing, or the content has changed
    /// since. Gives what it goes on with.
    async fn ask_for_rest(
        &mut self,
        job: &Job,
        before: Option<(Note, u64)>,
    ) -> exit::Result<(Answer, Stream, Option<(Note, u64)>)> {
        if let Some((note, have)) = before {
            let (at, validator) = (note.start + have, &note.validator);
            let mut more = vec![(header::RANGE, format!("bytes={at}-{}", note.end - 1))];
            if !validator.is_empty() {
                more.push((header::IF_RANGE, validator.clone()));
            }
            let (answer, stream) = self.ask(&job.url, &more).await?;
            // Not every origin knows If-Range.
            let same = validator.is_empty() || answer.validator().as_ref() == Some(validator);
            if answer.status == StatusCode::PARTIAL_CONTENT && same && answer.extent()?.is(at, note.end) {
                return Ok((answer, stream, Some((note, have))));
            }
        }
        let more: Vec<_> = job.range.map(|range| (header::RANGE, range.header())).into_iter().collect();
        let (answer, stream) = self.ask(&job.url, &more).await?;
        answer.check(&job.url)?;
        Ok((answer, stream, None))
    }

    async fn in_place(&mut self, job: &Job, show: &Show, begun: Instant) -> exit::Result<Done> {
        let fail = |error| cannot_write(&job.output, &error);
        let (answer, stream, _) = self.ask_for_rest(job, None).await?;
        let extent = answer.extent()?;
        let wanted = answer.wanted(job, &extent)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&job.output).map_err(fail)?;
        let bar = show.bar(&job.output, length(wanted), 0);
        let mut at = wanted.0;
        let write = |bytes: &[u8]| {
            file.write_all_at(bytes, at).map_err(fail)?;
            at += bytes.len() as u64;
            Ok(())
        };
        let got = self.receive(stream, (extent.start, wanted), &bar, write).await?;
        check_whole(job, wanted, got)?;
        Ok(Done { length: got, resumed: 0, took: begun.elapsed(), from: answer.source() })
    }

    /// Hands what is wanted of a stream that begins at `at` to `write`; gives how much that was.
    async fn receive(
        &mut self,
        mut stream: Stream,
        (mut at, wanted): (u64, Wanted),
        bar: &Bar,
        mut write: impl FnMut(&[u8]) -> exit::Result,
    ) -> Result<u64, Broken> {
        let mut got = 0;
        while let Some(data) = next(&mut stream).await? {
            let inside = inside(&data, at, wanted);
            at += data.len() as u64;
            write(inside).map_err(|failure| Broken { failure, wrong: false })?;
            got += inside.len() as u64;
            bar.moved(inside.len() as u64);
            if let Some(pace) = &mut self.pace {
                pace.spend(inside.len() as u64).await;
            }
        }
        Ok(got)
    }

    fn judge(&self, hash: Option<Context>, length: u64, resumed: u64, from: &'static str) -> Filled {
        let wrong = self.digest.zip(hash).and_then(|(digest, hash)| {
            let is = hash.finish();
            (is.as_ref() != digest.as_bytes())
                .then(|| Failure::not_now(format!("the content does not match {digest}; it was thrown away")))
        });
        Filled { length, resumed, from, wrong }
    }
}

/// A part with all of its bytes.
struct Filled {
    length: u64,
    resumed: u64,
    from: &'static str,
    /// Why it is not what was asked for.
    wrong: Option<Failure>,
}

/// A stream that broke off.
struct Broken {
    failure: Failure,
    /// What came is not what it must be.
    wrong: bool,
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        broken.failure
    }
}

async fn next(
    stream: &mut Streaming<proto::DownloadResponse>,
) -> Result<Option<tonic::codegen::Bytes>, Broken> {
    match stream.message().await {
        Ok(Some(proto::DownloadResponse { part: Some(Item::Data(data)) })) => Ok(Some(data)),
        // A newer daemon's word for what this one does not know.
        Ok(Some(_)) => Ok(Some(tonic::codegen::Bytes::new())),
        Ok(None) => Ok(None),
        Err(status) => Err(Broken { failure: failure(&status), wrong: status.code() == Code::DataLoss }),
    }
}

/// A URL in a sentence: without its query and what stands before its host, where secrets are.
fn shown(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return "it".to_owned() };
    url.set_query(None);
    url.set_fragment(None);
    // What has no host has none of these.
    let _ = url.set_username("").and(url.set_password(None));
    url.to_string()
}

fn length((start, end): Wanted) -> Option<u64> {
    end.map(|end| end.saturating_sub(start))
}

fn check_whole(job: &Job, wanted: Wanted, got: u64) -> exit::Result {
    match length(wanted) {
        Some(length) if length != got => {
            Err(Failure::unavailable(format!("{} ended early", shown(&job.url))))
        }
        _ => Ok(()),
    }
}

/// The part of `data`, which stands at `at` in the whole, that is wanted.
fn inside(data: &[u8], at: u64, (start, end): Wanted) -> &[u8] {
    let length = data.len() as u64;
    let from = start.saturating_sub(at).min(length);
    let to = end.map_or(length, |end| end.saturating_sub(at).min(length)).max(from);
    // Both are at most its length.
    &data[from as usize..to as usize]
}

fn hash_for(digest: Digest) -> Context {
    Context::new(match digest.algorithm() {
        Algorithm::Sha256 => &SHA256,
        Algorithm::Sha512 => &SHA512,
    })
}

// === impl Answer ===

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
    fn text(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// That it has content.
    fn check(&self, url: &str) -> exit::Result {
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
    fn extent(&self) -> exit::Result<Extent> {
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
    fn wanted(&self, job: &Job, extent: &Extent) -> exit::Result<Wanted> {
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
    fn validator(&self) -> Option<String> {
        self.text(&header::ETAG).filter(|etag| etag.starts_with('"')).map(str::to_owned)
    }

    fn source(&self) -> &'static str {
        match self.headers.get("cache-status").map(HeaderValue::as_bytes) {
            Some(b"darter; hit") => "disk",
            Some(b"darter; fwd=miss") => "cluster",
            _ => "origin",
        }
    }
}

/// Keeps to a rate.
struct Pace {
    bytes_per_sec: u64,
    begun: tokio::time::Instant,
    spent: u64,
}

impl Pace {
    fn new(bytes_per_sec: u64) -> Self {
        Self { bytes_per_sec, begun: tokio::time::Instant::now(), spent: 0 }
    }

    /// Waits until so many more bytes were due.
    async fn spend(&mut self, bytes: u64) {
        self.spent += bytes;
        let due = Duration::from_secs_f64(self.spent as f64 / self.bytes_per_sec as f64);
        tokio::time::sleep_until(self.begun + due).await;
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

    #[test]
    fn what_was_not_asked_for_is_cut_off() {
        assert_eq!(inside(b"hello", 10, (12, Some(14))), b"ll");
        assert_eq!(inside(b"hello", 10, (0, Some(12))), b"he");
        assert_eq!(inside(b"hello", 10, (20, None)), b"");
        assert_eq!(inside(b"hello", 10, (0, Some(5))), b"");
        assert_eq!(inside(b"hello", 10, (0, None)), b"hello");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept() {
        let begun = tokio::time::Instant::now();
        let mut pace = Pace::new(100);
        for _ in 0..10 {
            pace.spend(50).await;
        }
        assert_eq!(begun.elapsed().as_secs(), 5);
    }

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
