//! `darter cache import|stat|pin|unpin|export|delete`, also by the name `dfcache`: content that has no origin, by names that each user
//! has to himself.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use darter_protocol::daemon as proto;
use darter_protocol::daemon::daemon_client::DaemonClient;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::OFlags;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::config::value;
use crate::exit::{self, Failure};
use crate::get::foreign::Foreign;
use crate::get::part::Part;
use crate::socket::Place;
use crate::socket::client::{self, failure};
use crate::socket::lent::Loans;

/// What `darter cache` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Cache {
    #[command(subcommand)]
    command: Command,
    /// How long all of it may take, like 10m
    #[arg(long, global = true, value_name = "TIME", value_parser = value::duration)]
    timeout: Option<Duration>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    foreign: Foreign,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take a file of this host in, so that every host of the cluster can have it
    Import {
        /// The file
        #[arg(value_name = "FILE", required_unless_present = "input", conflicts_with = "input")]
        file: Option<PathBuf>,
        /// The same, as dfcache takes it
        #[arg(long, short = 'I', value_name = "FILE")]
        input: Option<PathBuf>,
        /// What it is called from then on [default: the file's name]
        #[arg(long, short = 'i', value_name = "ID", visible_alias = "cid")]
        id: Option<String>,
        /// How many hosts of the cluster hold it before the command ends, this one among them; the scheduler chooses
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), alias = "persistent-replica-count")]
        replicas: u32,
        /// Keep it on this host, however long nobody uses it, until it is unpinned or deleted
        #[arg(long)]
        pin: bool,
        #[command(flatten)]
        more: More,
    },
    /// Keep on this host what is here, however long nobody uses it
    Pin {
        #[command(flatten)]
        named: Named,
    },
    /// Let it go again when its time has come
    Unpin {
        #[command(flatten)]
        named: Named,
    },
    /// Say where it is
    Stat {
        #[command(flatten)]
        named: Named,
        /// Only on this host
        #[arg(long, short = 'l')]
        local: bool,
    },
    /// Write it into a file, from this host or from others
    Export {
        #[command(flatten)]
        named: Named,
        /// The file to make
        #[arg(long, short = 'O', value_name = "FILE")]
        output: PathBuf,
        /// Only from this host
        #[arg(long, short = 'l')]
        local: bool,
    },
    /// Throw it away, on every host of the cluster
    Delete {
        #[command(flatten)]
        named: Named,
        /// Only on this host
        #[arg(long, short = 'l')]
        local: bool,
    },
}

/// What is meant.
#[derive(Debug, clap::Args)]
struct Named {
    /// What it is called
    #[arg(value_name = "ID", required_unless_present_any = ["cid", "task"], conflicts_with = "cid")]
    id: Option<String>,
    /// The same, as dfcache takes it
    #[arg(long = "id", short = 'i', value_name = "ID", visible_alias = "cid", id = "cid")]
    cid: Option<String>,
    /// Any content instead, also what was fetched: by its task, as the access log and `darter explain` name it. For root
    #[arg(long, value_name = "TASK", conflicts_with_all = ["id", "cid", "tag", "owner"])]
    task: Option<String>,
    #[command(flatten)]
    more: More,
}

#[derive(Debug, clap::Args)]
struct More {
    /// Keeps versions by the same name apart
    #[arg(long, short = 't', value_name = "TAG", default_value = "")]
    tag: String,
    /// Whose it is, by the user's number [default: yours]. Only root may name another's
    #[arg(long, value_name = "UID")]
    owner: Option<u32>,
    #[command(flatten)]
    place: Place,
}

impl Named {
    fn content(&self) -> proto::Cached {
        let id = self.id.as_ref().or(self.cid.as_ref()).cloned().unwrap_or_default();
        let task = self.task.clone().unwrap_or_default();
        proto::Cached { id, tag: self.more.tag.clone(), owner: self.more.owner, task }
    }

    /// What the user calls it.
    fn shown(&self) -> String {
        self.id.as_ref().or(self.cid.as_ref()).or(self.task.as_ref()).cloned().unwrap_or_default()
    }
}

/// Does what was asked for.
pub(crate) async fn run(cache: Cache) -> exit::Result {
    let (json, limit) = (cache.json, cache.timeout);
    cache.foreign.judge()?.iter().for_each(|warning| exit::say(io::stderr(), warning));
    let done = perform(cache.command, json);
    match limit {
        None => done.await,
        Some(limit) => tokio::time::timeout(limit, done)
            .await
            .unwrap_or_else(|_| Err(Failure::unavailable(format!("it took longer than {limit:?}")))),
    }
}

async fn perform(command: Command, json: bool) -> exit::Result {
    match command {
        Command::Import { file, input, id, replicas, pin, more } => {
            let file = file.or(input).unwrap_or_default();
            import(&file, (id, pin), more, (replicas, json)).await
        }
        Command::Pin { named } => pin(&named, json).await,
        Command::Unpin { named } => unpin(&named, json).await,
        Command::Stat { named, local } => stat(&named, local, json).await,
        Command::Export { named, output, local } => export(&named, &output, local, json).await,
        Command::Delete { named, local } => delete(&named, local, json).await,
    }
}

async fn import(
    path: &Path,
    (id, pin): (Option<String>, bool),
    more: More,
    (replicas, json): (u32, bool),
) -> exit::Result {
    let name = || path.file_name().map(|name| name.to_string_lossy().into_owned());
    let id = id.or_else(name).ok_or_else(|| Failure::usage_because("say by --id what it is to be called"))?;
    let file = open(path.to_owned()).await?;
    let mut client = client::connect_with(&more.place.find()?, Some(file.as_fd())).await?;
    // The daemon has it now. To close it may take for ever, and must not keep anybody from hearing of that.
    drop(tokio::task::spawn_blocking(move || drop(file)));
    let content = proto::Cached { id: id.clone(), tag: more.tag, owner: more.owner, task: String::new() };
    let request = proto::ImportTaskRequest { content: Some(content.clone()), pin };
    let is = client.import_task(request).await.map_err(|status| refused(path, &status))?.into_inner();
    let copies = match replicas {
        1 => Copies { held: 1, short: String::new() },
        _ => replicate(&mut client, content, (replicas, json)).await?,
    };
    let how = match (is.unchanged, is.shared) {
        (true, _) => "it was here before",
        (_, true) => "it shares the file's space",
        _ => "copied",
    };
    let on =
        if replicas > 1 { format!("; {} of {replicas} hosts hold it", copies.held) } else { String::new() };
    say(
        json,
        || {
            serde_json::json!({
                "id": id, "bytes": is.length, "unchanged": is.unchanged, "shared": is.shared, "replicas": copies.held, "pinned": pin,
            })
        },
        || format!("imported {} bytes as {id}{}: {how}{on}", is.length, if pin { ", pinned" } else { "" }),
    );
    if !is.outdated.is_empty() {
        let why = is.outdated;
        return Err(Failure::partial(format!("other hosts may still give other bytes as {id}: {why}")));
    }
    if copies.held < replicas {
        let Copies { held, short } = copies;
        return Err(Failure::partial(format!("{held} of {replicas} hosts hold {id}: {short}")));
    }
    Ok(())
}

/// Opens a file that is to be imported. Nothing else is opened: a pipe would wait for somebody who writes, and a device may
/// do something. What a file system takes long for does not keep `--timeout` from ending the command.
async fn open(path: PathBuf) -> exit::Result<File> {
    let opened = tokio::task::spawn_blocking(move || {
        let fail = |error: io::Error| cannot_read(&path, &error);
        let no_file = || {
            let path = path.display();
            Failure::usage_because(format!("{path}: only a regular file can be imported"))
        };
        if !fs::metadata(&path).map_err(fail)?.is_file() {
            return Err(no_file());
        }
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(fail)?;
        // Another may stand there by now.
        if file.metadata().map_err(fail)?.is_file() { Ok(file) } else { Err(no_file()) }
    });
    opened.await.unwrap_or_else(|error| Err(Failure::software(error.to_string())))
}

/// What the daemon says of the file that it was handed.
fn refused(path: &Path, status: &Status) -> Failure {
    match status.code() {
        Code::DeadlineExceeded => {
            Failure::own_files(format!("cannot read {}: {}", path.display(), status.message()))
        }
        _ => failure(status),
    }
}

/// How many hosts hold something, and why not more.
struct Copies {
    held: u32,
    short: String,
}

/// Waits until so many hosts hold it, or no more can.
async fn replicate(
    client: &mut DaemonClient<Channel>,
    content: proto::Cached,
    (hosts, json): (u32, bool),
) -> exit::Result<Copies> {
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(hosts.into()) };
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos} of {len} hosts hold it");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_message(content.id.clone());
    let request = proto::ReplicateTaskRequest { content: Some(content), hosts };
    let answer = client.replicate_task(request).await;
    let mut stream = answer.map_err(|status| failure(&status))?.into_inner();
    let mut copies = Copies { held: 1, short: String::new() };
    while let Some(said) = stream.message().await.map_err(|status| failure(&status))? {
        bar.set_position(said.complete.into());
        copies = Copies { held: said.complete, short: said.short };
    }
    bar.finish_and_clear();
    Ok(copies)
}

async fn pin(named: &Named, json: bool) -> exit::Result {
    let mut client = client::connect(&named.more.place.find()?).await?;
    let request = proto::PinTaskRequest { content: Some(named.content()), unpin: false };
    let is = client.pin_task(request).await.map_err(|status| failure(&status))?.into_inner();
    let id = named.shown();
    let warning = if is.crowding { ": no room is left for anything else" } else { "" };
    say(
        json,
        || {
            serde_json::json!({
                "id": id, "pinned": true, "pinnedTasks": is.pinned_tasks, "pinnedBytes": is.pinned_bytes,
                "quota": is.quota, "crowding": is.crowding,
            })
        },
        || {
            format!(
                "{id}: pinned; all that is pinned takes {} of {} bytes{warning}",
                is.pinned_bytes, is.quota
            )
        },
    );
    Ok(())
}

async fn unpin(named: &Named, json: bool) -> exit::Result {
    let mut client = client::connect(&named.more.place.find()?).await?;
    let request = proto::PinTaskRequest { content: Some(named.content()), unpin: true };
    client.pin_task(request).await.map_err(|status| failure(&status))?;
    let id = named.shown();
    say(json, || serde_json::json!({ "id": id, "pinned": false }), || format!("{id}: unpinned"));
    Ok(())
}

async fn stat(named: &Named, local: bool, json: bool) -> exit::Result {
    let mut client = client::connect(&named.more.place.find()?).await?;
    let content = named.content();
    let id = named.shown();
    let answer = client.stat_task(proto::StatTaskRequest { content: Some(content), local }).await;
    let is = answer.map_err(|status| failure(&status))?.into_inner();
    let nowhere = !is.here && is.others == 0;
    say(
        json,
        || serde_json::json!({ "id": id, "here": is.here, "others": is.others, "bytes": is.length, "pinned": is.pinned }),
        || match (is.here, is.others) {
            (true, others) => {
                let pinned = if is.pinned { ", pinned" } else { "" };
                format!("{id}: {} bytes on this host{pinned}, and on {others} others", is.length)
            }
            (false, 0) => String::new(),
            (false, others) => format!("{id}: {} bytes on {others} other hosts", is.length),
        },
    );
    if !nowhere {
        return Ok(());
    }
    let why = if is.unasked.is_empty() { "nobody in the cluster has it".to_owned() } else { is.unasked };
    Err(Failure::missing(format!("{id} is not on this host: {why}")))
}

async fn export(named: &Named, output: &Path, local: bool, json: bool) -> exit::Result {
    let (mut client, loans) = client::connect_to_borrow(&named.more.place.find()?).await?;
    let content = named.content();
    let id = named.shown();
    let answer = client.export_task(proto::ExportTaskRequest { content: Some(content), local }).await;
    let stream = answer.map_err(|status| failure(&status))?.into_inner();
    let (mut part, _) = Part::open(output, "")?;
    part.restart()?;
    match receive(stream, loans, &mut part).await {
        Ok(bytes) => {
            part.finish()?;
            say(
                json,
                || serde_json::json!({ "id": id, "output": output.display().to_string(), "bytes": bytes }),
                || format!("{}: {bytes} bytes of {id}", output.display()),
            );
            Ok(())
        }
        Err(failure) => {
            part.discard();
            Err(failure)
        }
    }
}

/// The daemon gives every byte, or the stream ends with an error.
async fn receive(
    mut stream: Streaming<proto::DownloadResponse>,
    mut loans: Loans,
    part: &mut Part,
) -> exit::Result<u64> {
    let mut bytes = 0;
    while let Some(message) = stream.message().await.map_err(|status| failure(&status))? {
        let bit = loans.bit(message.part)?;
        bytes += bit.length();
        part.write(bit, None)?;
    }
    Ok(bytes)
}

async fn delete(named: &Named, local: bool, json: bool) -> exit::Result {
    let mut client = client::connect(&named.more.place.find()?).await?;
    let content = named.content();
    let id = named.shown();
    let answer = client.delete_task(proto::DeleteTaskRequest { content: Some(content), local }).await;
    let is = answer.map_err(|status| failure(&status))?.into_inner();
    let here = if is.here { "deleted here" } else { "was not here" };
    say(
        json,
        || serde_json::json!({ "id": id, "here": is.here, "others": is.others }),
        || format!("{id}: {here}; {} other hosts were told to delete it", is.others),
    );
    if is.unasked.is_empty() {
        return Ok(());
    }
    Err(Failure::unavailable(format!("{id} may still be on other hosts: {}", is.unasked)))
}

fn say(json: bool, value: impl FnOnce() -> serde_json::Value, text: impl FnOnce() -> String) {
    let line = if json { value().to_string() } else { text() };
    if !line.is_empty() {
        exit::say(io::stdout(), &line);
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    let sentence = format!("cannot read {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Failure::missing(sentence),
        io::ErrorKind::PermissionDenied => Failure::not_permitted(sentence),
        _ => Failure::own_files(sentence),
    }
}
