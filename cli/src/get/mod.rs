//! `darter get URL -O FILE`, also by the name `dfget`: a download through the daemon that runs on this host.
//!
//! - `transfer`: one file, from the daemon's answer to its name. `answer`: what that says of its bytes. `part`: the file
//!   while it is not whole, and how it goes on. `range`: a part of a file, as people name it.
//! - `index`: the files that an HTTP index names. `show`: what people and scripts see. `foreign`: flags of dfget without a
//!   meaning here.
//!
//! Without a daemon nothing is downloaded: a fleet whose daemons are down would otherwise meet at the origin.

mod answer;
pub(crate) mod foreign;
mod index;
pub(crate) mod part;
mod range;
mod show;
mod transfer;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use darter_certs::Secret;
use darter_protocol::Digest;
use regex::Regex;
use url::Url;

use crate::args;
use crate::config::value;
use crate::exit::{self, Failure};
use crate::socket::{Place, client};

use foreign::Foreign;
use range::Bytes;
use show::Show;
use transfer::{Job, Transfer};

/// What `darter get` takes: the flags of Dragonfly's dfget that have a meaning here, and a few more.
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// What to download: an http:// or https:// URL
    #[arg(value_name = "URL", required_unless_present = "url_flag", conflicts_with = "url_flag")]
    url: Option<String>,
    /// The same, as dfget takes it
    #[arg(long = "url", short = 'u', value_name = "URL", id = "url_flag")]
    url_flag: Option<String>,
    /// The file to make; a folder, for the URL's last part in it, or with --recursive [default: the URL's last part]
    #[arg(long, short = 'O', short_alias = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// A header of the request, like 'Authorization: Bearer ..'; may be given more than once
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = args::header)]
    headers: Vec<(String, Secret)>,
    /// What the whole must hash to, sha256:HEX or sha512:HEX. Anything else is thrown away
    #[arg(long, short = 'd', value_name = "DIGEST", conflicts_with = "recursive")]
    digest: Option<Digest>,
    /// These bytes alone: A-B (both included), A- or -N (the last N)
    #[arg(long, value_name = "RANGE", value_parser = bytes, conflicts_with_all = ["recursive", "digest"])]
    range: Option<Bytes>,
    /// Write the bytes of --range where they stand in the whole, into FILE as it is
    #[arg(long, requires = "range")]
    original_offset: bool,
    /// Bytes per second that are taken at most, like 20M
    #[arg(long, value_name = "RATE", value_parser = rate, aliases = ["ratelimit", "locallimit"], short_alias = 's')]
    limit: Option<u64>,
    /// How long all of it may take, like 10m [default: as long as it moves]
    #[arg(long, value_name = "TIME", value_parser = value::duration)]
    timeout: Option<Duration>,
    /// A name that keeps versions of the same URL apart
    #[arg(long, short = 't', value_name = "TAG", alias = "identifier", short_alias = 'i')]
    tag: Option<String>,
    /// The application that it is for: kept apart, too
    #[arg(long, short = 'a', value_name = "NAME")]
    application: Option<String>,
    /// How urgent it is at the origin, 0 to 6, as `X-Dragonfly-Priority` says it
    #[arg(long, short = 'P', value_name = "N", value_parser = clap::value_parser!(u8).range(0..=6))]
    priority: Option<u8>,
    /// Query parameters that do not belong to the content's name, with & between them, like Expires&Signature
    #[arg(
        long,
        short = 'f',
        value_name = "PARAMS",
        visible_alias = "filtered-query-params",
        alias = "filtered-query-param"
    )]
    filter: Vec<String>,
    /// The files and folders that the HTTP index at URL names, into a folder
    #[arg(long, short = 'r')]
    recursive: bool,
    /// Say nothing but errors
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Print one line of JSON for each file
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Show a progress bar: what happens anyway on a terminal
    #[arg(long, short = 'b', conflicts_with_all = ["quiet", "json"], alias = "showbar")]
    show_progress: bool,
    #[command(flatten)]
    below: Below,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    foreign: Foreign,
}

/// Which of the files below an index are meant.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With --recursive")]
pub(crate) struct Below {
    /// Only files whose URL matches
    #[arg(long, short = 'A', value_name = "REGEX", requires = "recursive")]
    accept_regex: Option<Regex>,
    /// No files whose URL matches
    #[arg(long, short = 'R', value_name = "REGEX", requires = "recursive")]
    reject_regex: Option<Regex>,
    /// How many folders deep
    #[arg(long, short = 'L', value_name = "N", default_value_t = 5)]
    level: u32,
    /// Print the URLs and download nothing
    #[arg(long, short = 'l', requires = "recursive")]
    list: bool,
}

fn bytes(text: &str) -> Result<Bytes, String> {
    text.parse()
}

fn rate(text: &str) -> Result<u64, String> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    value::size(text).and_then(|rate| if rate > 0 { Ok(rate) } else { Err("expected at least 1".to_owned()) })
}

/// Downloads, and says what became of it.
pub(crate) async fn run(get: Get) -> exit::Result {
    let show = Show::new(get.quiet, get.json);
    let warnings = get.foreign.judge()?;
    if !get.quiet {
        warnings.iter().for_each(|warning| exit::say(io::stderr(), warning));
    }
    match get.timeout {
        None => download(&get, &show).await,
        Some(limit) => tokio::time::timeout(limit, download(&get, &show)).await.unwrap_or_else(|_| {
            Err(Failure::unavailable(format!(
                "it took longer than {limit:?}; what is there is kept for the next try"
            )))
        }),
    }
}

async fn download(get: &Get, show: &Show) -> exit::Result {
    let text = get.url.as_ref().or(get.url_flag.as_ref()).map_or("", String::as_str);
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or_else(|| Failure::usage_because("that is no URL: expected http:// or https://"))?;
    let client = client::connect_to_borrow(&get.place.find()?).await?;
    let mut transfer = Transfer::new(client, headers(get), get.digest, get.limit);
    if get.recursive {
        let folder = get.output.clone().unwrap_or_else(|| PathBuf::from("."));
        return index::download(&mut transfer, &url, &folder, &get.below, show).await;
    }
    let output = output(get.output.as_deref(), &url)?;
    let job = Job { url: url.to_string(), output, range: get.range, in_place: get.original_offset };
    show.file(&job, transfer.run(&job, show).await)
}

/// The request's headers, those that say what the content is called among them.
fn headers(get: &Get) -> Vec<(String, Secret)> {
    // One with & in it, or several.
    let filter = (!get.filter.is_empty()).then(|| get.filter.join("&"));
    let named = [
        ("x-dragonfly-tag", get.tag.clone()),
        ("x-dragonfly-application", get.application.clone()),
        ("x-dragonfly-filtered-query-params", filter),
        ("x-dragonfly-priority", get.priority.map(|level| level.to_string())),
    ];
    let named = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
    get.headers.iter().cloned().chain(named).collect()
}

/// Where the content goes.
fn output(asked: Option<&Path>, url: &Url) -> exit::Result<PathBuf> {
    let name = || {
        let last = url.path_segments().and_then(|mut parts| parts.next_back()).and_then(index::file_name);
        last.ok_or_else(|| Failure::usage_because("the URL ends with no file's name: say one by -O FILE"))
    };
    Ok(match asked {
        None => PathBuf::from(name()?),
        Some(folder) if folder.is_dir() => folder.join(name()?),
        Some(file) => file.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_name_gets_the_urls_last_part() {
        let dir = tempfile::tempdir().unwrap();
        let named = |asked: Option<&Path>, url: &str| output(asked, &url.parse().unwrap()).ok();
        assert_eq!(named(None, "http://a/b/c%20d.tar?x=1"), Some("c d.tar".into()));
        assert_eq!(named(Some(dir.path()), "http://a/b/c"), Some(dir.path().join("c")));
        assert_eq!(named(Some(Path::new("x")), "http://a/b/c"), Some("x".into()));
        for nameless in ["http://a/", "http://a/b/", "http://a/%2e%2e", "http://a/..%2fetc", "http://a/%00"] {
            assert_eq!(named(None, nameless), None, "{nameless}");
        }
    }

    #[test]
    fn what_a_header_says_is_not_printed_with_the_command() {
        #[derive(Debug, clap::Parser)]
        struct Command {
            #[command(flatten)]
            get: Get,
        }
        let given = ["get", "http://a/b", "-H", "X-Own-Name: hunter2", "-O", "out"];
        let command = <Command as clap::Parser>::try_parse_from(given).unwrap();
        let printed = format!("{command:?}");
        assert!(printed.contains("X-Own-Name") && !printed.contains("hunter2"), "{printed}");
        assert_eq!(headers(&command.get)[0].1.reveal(), "hunter2");
    }

    #[test]
    fn a_rate_is_a_size_a_second() {
        assert_eq!((rate("20M"), rate("1Ki/s")), (Ok(20 << 20), Ok(1 << 10)));
        assert!(rate("0").is_err() && rate("fast").is_err());
    }
}
