//! Ranges and conditions: every request goes to nginx itself, and for the same file through a daemon, cold and warm. The
//! answers are the same, or the table says why not.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use darter_e2e::ca::Ca;
use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{Daemon, sum_of};
use darter_e2e::http::{self, Request};
use darter_e2e::net::{Host, Lab};
use darter_e2e::nginx::Nginx;
use darter_e2e::poll::until;
use darter_e2e::suite::{self, Scene};
use std::io::Read;
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

const MIB: u64 = 1 << 20;

/// One file of more than one piece, one of a few bytes, and one of none.
const FILES: [(&str, u64); 3] = [("large", 5 * MIB + 12_345), ("small", 1000), ("empty", 0)];

/// When the files were changed last, and a moment before and after.
const CHANGED: &str = "Sat, 22 Nov 2025 03:00:00 GMT";
const BEFORE: &str = "Sat, 22 Nov 2025 02:59:59 GMT";
const AFTER: &str = "Sat, 22 Nov 2025 03:00:01 GMT";
const CHANGED_UNIX: u64 = 1_763_780_400;

/// How long a download may take to be put in its place.
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    daemon: Daemon,
    nginx: Nginx,
    host: Host,
    _lab: Lab,
}

/// Where an answer is another one than nginx's, which one it is, and why.
#[derive(Clone, Copy)]
enum Differs {
    Never,
    Always(u16, &'static str),
    /// What is not here yet, nginx itself judges.
    Warm(u16, &'static str),
}
use Differs::{Always, Never, Warm};

struct Case {
    file: &'static str,
    headers: Vec<(&'static str, String)>,
    method: &'static str,
    differs: Differs,
}

fn main() -> ExitCode {
    suite::run(
        Bench::start,
        &[
            ("answers_are_those_of_nginx_or_better", answers_are_those_of_nginx_or_better),
            ("head_starts_no_download", head_starts_no_download),
            ("open_ended_ranges_in_parallel_cost_one_copy", open_ended_ranges_in_parallel_cost_one_copy),
        ],
    )
}

impl Bench {
    fn start() -> Result<Self> {
        let mut lab = Lab::new()?;
        let host = lab.host(&["files.example"])?;
        let folder = host.new_folder("nginx")?;
        for (name, length) in FILES {
            let file = std::fs::File::create(folder.join(name))?;
            std::io::copy(&mut content(name).reader(0), &mut &file)?;
            file.set_modified(UNIX_EPOCH + Duration::from_secs(CHANGED_UNIX))?;
            ensure!(file.metadata()?.len() == length, "{name} has another length");
        }
        // One file under as many names as there are requests: each is new to the daemon.
        let servers = format!(
            "server {{ listen 80; root {}; default_type application/x-test;
               large_client_header_buffers 4 64k;
               location ~ ^/pool/[^/]*/ {{ rewrite /([^/]*)$ /$1 break; }}
               location ~ ^/slow/ {{ rewrite /([^/]*)$ /$1 break; limit_rate 4m; }} }}",
            folder.display()
        );
        let identity = Ca::new("ranges test authority")?.issue(&["files.example"])?;
        let nginx = Nginx::start(&host, &folder, &identity, &servers)?;
        let config = format!(
            "host: {{ hostname: files, advertiseIP: {ip} }}
workHome: {folder}/work
dataDir: {folder}/content
proxy:
  proxies: [{{ regx: '^http://files.example/(pool|slow)/' }}]
",
            ip = host.address(),
            folder = host.folder().display(),
        );
        let daemon = Daemon::start_on(&host, host.folder(), &config)?;
        Ok(Self { daemon, nginx, host, _lab: lab })
    }

    fn connect(&self, port: u16) -> Result<Box<TcpStream>> {
        Ok(Box::new(self.host.connect(self.host.port(port))?))
    }

    fn direct(&self, path: &str, case: &Case) -> Result<Answer> {
        Answer::read(case.send(self.connect(80)?, path)?)
    }

    fn through(&self, path: &str, case: &Case) -> Result<Answer> {
        Answer::read(case.send(self.connect(65001)?, &format!("http://files.example{path}"))?)
    }

    /// Fetches all of a file until it is on disk.
    fn warm(&self, path: &str, file: &'static str) -> Result<()> {
        let whole = Case::of(file);
        until("the file to be on disk", LIMIT, || {
            let answer = self.through(path, &whole).ok()?;
            (answer.header("cache-status") == Some("darter; hit")).then_some(())
        })
    }

    /// The sum of the daemon's samples whose lines begin with `name`.
    fn metric(&self, name: &str) -> Result<f64> {
        let request = Request { method: "GET", target: "/metrics", host: "health", headers: &[], body: None };
        sum_of(&http::send(self.connect(self.daemon.health.port())?, &request)?.text()?, name)
    }
}

impl Scene for Bench {
    fn logs(&self) -> String {
        self.daemon.process.log()
    }
}

fn content(name: &str) -> Content {
    let (seed, (_, length)) =
        (0..).zip(FILES).find(|(_, (file, _))| *file == name).expect("one of the files");
    Content::new(seed, length)
}

impl Case {
    fn of(file: &'static str) -> Self {
        Self { file, headers: Vec::new(), method: "GET", differs: Never }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn by(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    fn but(self, differs: Differs) -> Self {
        Self { differs, ..self }
    }

    fn send(&self, stream: Box<TcpStream>, target: &str) -> Result<http::Answer> {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let request =
            Request { method: self.method, target, host: "files.example", headers: &headers, body: None };
        http::send(stream, &request)
    }

    fn shown(&self) -> String {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value:.60}"));
        format!("{} {} {:?}", self.method, self.file, headers.collect::<Vec<_>>())
    }
}

/// An answer with all of its body.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn read(mut answer: http::Answer) -> Result<Self> {
        let mut body = Vec::new();
        answer.read_to_end(&mut body)?;
        Ok(Self { status: answer.status, headers: std::mem::take(&mut answer.headers), body })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// What a client gets: each part's Content-Type, its place, and its bytes. An error's page is not compared.
    fn parts(&self) -> Result<Vec<Part>> {
        let header = |name| self.header(name).map(str::to_owned);
        match header("content-type")
            .as_deref()
            .and_then(|it| it.strip_prefix("multipart/byteranges; boundary="))
        {
            Some(boundary) => multipart(boundary, &self.body),
            None if self.status >= 400 => Ok(Vec::new()),
            None => Ok(vec![Part {
                kind: header("content-type"),
                at: header("content-range"),
                bytes: self.body.clone(),
            }]),
        }
    }

    /// Fails unless every byte is where it says that it is.
    fn check(&self, file: Content) -> Result<()> {
        let mut all = Vec::new();
        file.reader(0).read_to_end(&mut all)?;
        for Part { at, bytes, .. } in self.parts()? {
            let expected = match (self.status, &at) {
                (200, None) => &all[..],
                (206, Some(at)) => {
                    let place = at
                        .strip_prefix("bytes ")
                        .and_then(|at| at.strip_suffix(&format!("/{}", file.length)));
                    let (first, last) =
                        place.and_then(|place| place.split_once('-')).context("an odd Content-Range")?;
                    &all[first.parse()?..=last.parse()?]
                }
                (304, None) => &[],
                _ => bail!("a {} with Content-Range {at:?}", self.status),
            };
            ensure!(bytes == expected, "other bytes at {at:?}");
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Part {
    kind: Option<String>,
    at: Option<String>,
    bytes: Vec<u8>,
}

fn multipart(boundary: &str, body: &[u8]) -> Result<Vec<Part>> {
    let delimiter = format!("\r\n--{boundary}");
    let mut rest = body.strip_prefix(delimiter.as_bytes()).context("no first delimiter")?;
    let mut parts = Vec::new();
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let head = part.windows(4).position(|four| four == b"\r\n\r\n").context("no end of a part's head")?;
        let lines = std::str::from_utf8(&part[..head])?.split("\r\n");
        let headers: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
        let find =
            |name| headers.iter().find(|(have, _)| *have == name).map(|(_, value)| (*value).to_owned());
        let (kind, at) = (find("Content-Type"), find("Content-Range"));
        // By its length: searching for the delimiter would take minutes for large parts.
        let place =
            at.as_deref().and_then(|at| at.strip_prefix("bytes ")?.split_once('/')?.0.split_once('-'));
        let (first, last) = place.context("an odd Content-Range of a part")?;
        let length = last.parse::<usize>()? + 1 - first.parse::<usize>()?;
        let bytes = part.get(head + 4..head + 4 + length).context("a part ends early")?;
        rest = part[head + 4 + length..]
            .strip_prefix(delimiter.as_bytes())
            .context("no delimiter after a part")?;
        parts.push(Part { kind, at, bytes: bytes.to_vec() });
    }
    ensure!(rest == b"--\r\n", "no end of the last part: {rest:?}");
    Ok(parts)
}

const MALFORMED: &str = "what is no range is ignored, as RFC 9110 section 14.2 has it; nginx refuses it";
const LIST: &str = "empty elements of a list are passed over (RFC 9110 section 5.6.1.2); nginx knows none";

/// `etag` is that of the small file, `large` that of the large one.
fn table(etag: &str, large: &str) -> Vec<Case> {
    let range = |file, range: &str| Case::of(file).with("Range", format!("bytes={range}"));
    let small = |value: &str| range("small", value);
    let given = |name, value: &str| Case::of("small").with(name, value);
    let many = |number: u64| {
        let list: Vec<_> = (0..number).map(|i| format!("{}-{}", i * 5000, i * 5000 + 9)).collect();
        range("large", &list.join(","))
    };
    let piece = MIB;
    let mut cases = vec![
        // One range.
        Case::of("small"),
        Case::of("large"),
        small("0-0"),
        small("0-499"),
        small("999-999"),
        small("0-999"),
        small("500-2000"),
        small("999-"),
        small("0-"),
        small("500-"),
        small("-1"),
        small("-1000"),
        small("-5000"),
        small("007-008"),
        small("-0"),
        small("1000-"),
        small("1000-1001"),
        small("99999999999999999999-"),
        range("large", "0-0"),
        range("large", "0-"),
        range("large", &format!("{}-{}", piece - 1, piece)),
        range("large", &format!("{piece}-")),
        range("large", "-1"),
        range("large", "-2000000"),
        range("large", "5255225-"),
        Case::of("small").with("Range", "BYTES=0-1"),
        Case::of("small").with("Range", "bytes= 0-1"),
        small("1-99999999999999999999")
            .but(Always(206, "a last position of any size is past the end, and allowed there")),
        // Several.
        small("0-0,2-3"),
        small("0-0, 2-3 , -1"),
        small("500-599,0-99"),
        small("0-99,100-199"),
        small("0-199,100-299"),
        small("0-9,0-9,0-9"),
        small("0-0,1000-"),
        small("1000-,0-0,2000-3000"),
        small("1000-,-0"),
        small("0-,0-0"),
        small("0-999,0-999"),
        range("large", &format!("0-0,{}-{},-1", piece - 5, piece + 5)),
        range("large", &format!("{piece}-,0-1000000")),
        many(256),
        many(1024),
        many(1025).but(Always(
            200,
            "no client asks for more than 1024 ranges at once; nginx has no limit of its own",
        )),
        small("0-0,").but(Always(206, LIST)),
        small(",0-0").but(Always(206, LIST)),
        small("0-0,,2-3").but(Always(206, LIST)),
        // No range.
        Case::of("small").with("Range", "bytes"),
        Case::of("small").with("Range", "bytes="),
        Case::of("small").with("Range", "bytes =0-1"),
        Case::of("small").with("Range", "items=0-1"),
        Case::of("small").with("Range", "none"),
        small("a-b").but(Always(200, MALFORMED)),
        small("5-4").but(Always(200, MALFORMED)),
        small("0-0,5-4").but(Always(200, "a list with an invalid range is invalid; nginx sends the others")),
        small("-").but(Always(200, MALFORMED)),
        small("--1").but(Always(200, MALFORMED)),
        small("1").but(Always(200, MALFORMED)),
        small("1-2x").but(Always(200, MALFORMED)),
        small("0x1-2").but(Always(200, MALFORMED)),
        small("1-2-3").but(Always(200, MALFORMED)),
        small("0-0;2-3").but(Always(200, MALFORMED)),
        small("1 - 2").but(Always(200, "there is no space in a range; nginx takes it")),
        small("0-1")
            .with("Range", "bytes=2-3")
            .but(Always(200, "which of two is meant, nobody knows; nginx takes the first")),
        // Of nothing.
        Case::of("empty"),
        range("empty", "0-"),
        range("empty", "-5"),
        range("empty", "1-"),
        range("empty", "1-2"),
        range("empty", "0-0").but(Always(416, "there is no first byte of nothing")),
        range("empty", "-0")
            .but(Always(416, "a suffix of no bytes is in no content (RFC 9110 section 14.1.2)")),
        // If-Range.
        small("0-9").with("If-Range", etag),
        small("0-9").with("If-Range", "\"other\""),
        small("0-9").with("If-Range", format!("W/{etag}")),
        small("0-9").with("If-Range", CHANGED),
        small("0-9").with("If-Range", BEFORE),
        small("0-9").with("If-Range", AFTER),
        small("0-9").with("If-Range", "yesterday"),
        small("0-9,20-29").with("If-Range", etag),
        small("0-9,20-29").with("If-Range", "\"other\""),
        small("1000-").with("If-Range", etag),
        small("1000-").with("If-Range", "\"other\""),
        range("large", "-10").with("If-Range", large),
        range("large", "9999999-").with("If-Range", "\"other\""),
        given("If-Range", etag),
        // Conditions.
        given("If-None-Match", etag),
        given("If-None-Match", &format!("W/{etag}")),
        given("If-None-Match", &format!("\"a,b\", {etag}")),
        given("If-None-Match", "*"),
        given("If-None-Match", "\"other\""),
        given("If-None-Match", etag.trim_matches('"')),
        given("If-Modified-Since", CHANGED),
        given("If-Modified-Since", "Saturday, 22-Nov-25 03:00:00 GMT"),
        given("If-Modified-Since", "Sat Nov 22 03:00:00 2025"),
        given("If-Modified-Since", BEFORE),
        given("If-Modified-Since", "yesterday"),
        given("If-Modified-Since", AFTER).but(Warm(
            304,
            "not modified since then, either; nginx wants the very date (if_modified_since exact)",
        )),
        given("If-None-Match", "\"other\"").with("If-Modified-Since", CHANGED),
        given("If-None-Match", etag)
            .with("If-Modified-Since", BEFORE)
            .but(Warm(304, "If-None-Match counts alone (RFC 9110 section 13.2.2); nginx wants both")),
        given("If-Match", etag),
        given("If-Match", "*"),
        given("If-Match", "\"other\""),
        given("If-Match", &format!("W/{etag}")),
        given("If-Unmodified-Since", CHANGED),
        given("If-Unmodified-Since", AFTER),
        given("If-Unmodified-Since", BEFORE),
        given("If-Unmodified-Since", "yesterday").but(Always(
            200,
            "what is no date is ignored (RFC 9110 section 13.1.4); nginx takes it for one long ago",
        )),
        given("If-Match", etag)
            .with("If-Unmodified-Since", BEFORE)
            .but(Warm(200, "If-Match counts alone (RFC 9110 section 13.2.2); nginx wants both")),
        small("0-9").with("If-Match", etag),
        small("0-9").with("If-None-Match", etag),
        small("1000-").with("If-None-Match", etag),
        small("1000-").with("If-Match", "\"other\""),
    ];
    // What is not GET goes to nginx as it is: that it honours a Range there is its own affair.
    for method in ["HEAD", "POST"] {
        cases.push(Case::of("small").by(method));
        cases.push(small("0-9").by(method));
        cases.push(given("If-None-Match", etag).by(method));
    }
    cases
}

fn answers_are_those_of_nginx_or_better(bench: &Bench) -> Result<()> {
    let etag = |file| {
        let answer = bench.direct(&format!("/pool/0/{file}"), &Case::of(file))?;
        answer.header("etag").map(str::to_owned).context("no ETag")
    };
    let cases = table(&etag("small")?, &etag("large")?);
    ensure!(cases.len() >= 60, "only {} cases", cases.len());
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let path = format!("/pool/{number}/{}", case.file);
        let reference = bench.direct(&path, case)?;
        let mut compare = |when: &str, differs: Option<(u16, &str)>| {
            let compared =
                bench.through(&path, case).and_then(|answer| compare(&reference, &answer, case, differs));
            wrong.extend(compared.err().map(|error| format!("{when} {}: {error:#}", case.shown())));
        };
        let (cold, warm) = match case.differs {
            Never => (None, None),
            Always(status, why) => (Some((status, why)), Some((status, why))),
            Warm(status, why) => (None, Some((status, why))),
        };
        compare("cold", cold);
        bench.warm(&path, case.file)?;
        compare("warm", warm);
    }
    println!("{} requests, cold and warm", cases.len());
    ensure!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

fn compare(nginx: &Answer, ours: &Answer, case: &Case, differs: Option<(u16, &str)>) -> Result<()> {
    if case.method == "GET" {
        ours.check(content(case.file))?;
    }
    let announced = ours.header("content-length").map(str::parse::<usize>).transpose()?;
    ensure!(
        case.method == "HEAD" || announced.is_none_or(|length| length == ours.body.len()),
        "another length"
    );
    if let Some((status, why)) = differs {
        // An explanation of what is not so any more is wrong, too.
        ensure!(nginx.status != status || nginx.parts()? != ours.parts()?, "the same, although {why}");
        ensure!(ours.status == status, "{} instead of {status}, although {why}", ours.status);
        return Ok(());
    }
    ensure!(ours.status == nginx.status, "{} instead of {}", ours.status, nginx.status);
    let same = |name| {
        let (have, want) = (ours.header(name), nginx.header(name));
        ensure!(have == want, "{name}: {have:?} instead of {want:?}");
        Ok(())
    };
    same("content-range")?;
    if ours.status < 400 {
        same("etag")?;
        same("last-modified")?;
        ensure!(ours.parts()? == nginx.parts()?, "other parts");
        let multipart = ours.header("content-type").is_some_and(|it| it.starts_with("multipart/"));
        // The boundary is the only thing in which two such answers differ, and its length counts.
        if !multipart {
            same("content-length")?;
            same("content-type")?;
        }
        if ours.status == 200 {
            same("accept-ranges")?;
        }
    }
    Ok(())
}

fn head_starts_no_download(bench: &Bench) -> Result<()> {
    let before = bench.metric("darter_p2p_completed_total ")?;
    for (number, header) in
        [None, Some(("Range", "bytes=0-1")), Some(("If-None-Match", "\"x\""))].iter().enumerate()
    {
        let mut case = Case::of("large").by("HEAD");
        case.headers.extend(header.map(|(name, value)| (name, value.to_owned())));
        let path = format!("/pool/head-{number}/large");
        let answer = bench.through(&path, &case)?;
        ensure!(matches!(answer.status, 200 | 206) && answer.body.is_empty(), "{answer:?}");
        let hits = bench.nginx.log()?.into_iter().filter(|hit| hit.path == path);
        let asked: Vec<_> = hits.map(|hit| (hit.method, hit.bytes)).collect();
        ensure!(asked == [("HEAD".to_owned(), 0)], "nginx was asked {asked:?}");
    }
    ensure!(bench.metric("darter_p2p_downloads ")? == 0.0, "a download is running");
    ensure!(bench.metric("darter_p2p_completed_total ")? == before, "a download has completed");
    Ok(())
}

/// As containerd does with several connections to a layer: each asks from its offset to the end, and closes where the next
/// one began.
fn open_ended_ranges_in_parallel_cost_one_copy(bench: &Bench) -> Result<()> {
    const CONNECTIONS: u64 = 4;
    let (path, file) = ("/slow/parallel/large", content("large"));
    let chunk = file.length.div_ceil(CONNECTIONS);
    let fetch = |index: u64| -> Result<bool> {
        let from = index * chunk;
        let length = chunk.min(file.length - from);
        let case = Case::of("large").with("Range", format!("bytes={from}-"));
        let mut answer = case.send(bench.connect(65001)?, &format!("http://files.example{path}"))?;
        ensure!(answer.status == 206, "{}", answer.status);
        let got = digest_of(answer.by_ref().take(length))?;
        Ok(got == digest_of(file.reader(from).take(length))?)
    };
    let right = std::thread::scope(|scope| {
        let fetch = &fetch;
        let threads: Vec<_> = (0..CONNECTIONS).map(|index| scope.spawn(move || fetch(index))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<Vec<_>>>()
    })?;
    ensure!(right.iter().all(|right| *right), "other bytes came");
    let sent: u64 = bench.nginx.log()?.iter().filter(|hit| hit.path == path).map(|hit| hit.bytes).sum();
    // What a stream that is shortened has on its way is sent twice, at most: that is what nginx puts into two sockets.
    ensure!(sent <= 2 * file.length, "{sent} bytes left nginx for {} of content", file.length);
    println!("{sent} bytes left nginx for {} of content", file.length);
    Ok(())
}
