//! [`Transfer`]: one file after the other, from the daemon's answer to its name.
//!
//! A byte is copied twice here: out of the socket, and into the file; or once by the kernel, from a file that the daemon has handed over
//! into this one, or not at all where a file system shares them. What the digest says is checked here over the whole
//! file, whatever the daemon has checked.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{self, Context, SHA256, SHA512};
use darter_certs::Secret;
use darter_protocol::daemon::daemon_client::DaemonClient;
use darter_protocol::daemon::{self as proto, download_response::Part as Item};
use darter_protocol::{Algorithm, Digest};
use http::{HeaderName, StatusCode, header};
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use url::Url;

use super::answer::{Answer, Wanted};
use super::part::{Note, Part, cannot_write};
use super::range::Bytes;
use super::show::{Bar, Show};
use crate::exit::{self, Failure};
use crate::socket::client::failure;
use crate::socket::lent::{Bit, Loans};

/// The longest index that is read, in bytes.
const MAX_INDEX: usize = 32 << 20;

/// The way to the daemon, and what is the same for all files.
pub(super) struct Transfer {
    client: DaemonClient<Channel>,
    loans: Loans,
    headers: Vec<(String, Secret)>,
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

type Stream = Streaming<proto::DownloadResponse>;

impl Transfer {
    pub(super) fn new(
        (client, loans): (DaemonClient<Channel>, Loans),
        headers: Vec<(String, Secret)>,
        digest: Option<Digest>,
        limit: Option<u64>,
    ) -> Self {
        Self { client, loans, headers, digest, pace: limit.map(Pace::new) }
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
        while let Some(bit) = next(&mut stream, &mut self.loans).await? {
            bit.read(|bytes| {
                page.extend_from_slice(bytes);
                Ok::<_, Failure>(())
            })?;
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
        let named: Vec<_> = named.map(|(name, value)| format!("{name}={}", value.reveal())).collect();
        let words = format!("{} {:?} {:?} {}", job.url, job.range, self.digest, named.join("&"));
        digest::digest(&SHA256, words.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    async fn ask(&mut self, url: &str, more: &[(HeaderName, String)]) -> exit::Result<(Answer, Stream)> {
        let header = |name: &str, value: &str| proto::Header {
            name: name.to_owned(),
            value: value.as_bytes().to_vec().into(),
        };
        let own = self.headers.iter().map(|(name, value)| header(name, value.reveal()));
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
        let write = |bit: Bit<'_>| part.write(bit, hash.as_mut());
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
        let write = |bit: Bit<'_>| {
            bit.read(|bytes| {
                file.write_all_at(bytes, at).map_err(fail)?;
                at += bytes.len() as u64;
                Ok(())
            })
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
        mut write: impl FnMut(Bit<'_>) -> exit::Result,
    ) -> Result<u64, Broken> {
        let mut got = 0;
        while let Some(bit) = next(&mut stream, &mut self.loans).await? {
            let (from, to) = inside(at, wanted);
            at += bit.length();
            let bit = bit.part(from, to);
            let length = bit.length();
            write(bit).map_err(|failure| Broken { failure, wrong: false })?;
            got += length;
            bar.moved(length);
            if let Some(pace) = &mut self.pace {
                pace.spend(length).await;
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

async fn next<'a>(
    stream: &mut Streaming<proto::DownloadResponse>,
    loans: &'a mut Loans,
) -> Result<Option<Bit<'a>>, Broken> {
    match stream.message().await {
        Ok(Some(message)) => match loans.bit(message.part) {
            Ok(bit) => Ok(Some(bit)),
            Err(fault) => Err(Broken { failure: fault.into(), wrong: false }),
        },
        Ok(None) => Ok(None),
        Err(status) => Err(Broken { failure: failure(&status), wrong: status.code() == Code::DataLoss }),
    }
}

/// A URL in a sentence: without its query and what stands before its host, where secrets are.
pub(super) fn shown(url: &str) -> String {
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

/// Between which offsets of a bit that stands at `at` in the whole lies what is wanted.
fn inside(at: u64, (start, end): Wanted) -> (u64, u64) {
    (start.saturating_sub(at), end.map_or(u64::MAX, |end| end.saturating_sub(at)))
}

fn hash_for(digest: Digest) -> Context {
    Context::new(match digest.algorithm() {
        Algorithm::Sha256 => &SHA256,
        Algorithm::Sha512 => &SHA512,
    })
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
    fn what_was_not_asked_for_is_cut_off() {
        let of = |at, wanted| {
            let (from, to) = inside(at, wanted);
            let Bit::Bytes(bytes) = Bit::Bytes("hello".into()).part(from, to) else { panic!("no bytes") };
            bytes
        };
        assert_eq!(of(10, (12, Some(14))), "ll");
        assert_eq!(of(10, (0, Some(12))), "he");
        assert_eq!(of(10, (20, None)), "");
        assert_eq!(of(10, (0, Some(5))), "");
        assert_eq!(of(10, (0, None)), "hello");
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
}
