//! `darter cache import|stat|export|delete`, also by the name `dfcache`: content that has no origin, by names that each user
//! has to himself.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use darter_protocol::daemon as proto;
use darter_protocol::daemon::download_response::Part as Item;
use tonic::Streaming;

use crate::config::value;
use crate::exit::{self, Failure};
use crate::get::part::Part;
use crate::socket::Place;
use crate::socket::client::{self, failure};

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
        #[command(flatten)]
        more: More,
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
    #[arg(value_name = "ID", required_unless_present = "cid", conflicts_with = "cid")]
    id: Option<String>,
    /// The same, as dfcache takes it
    #[arg(long = "id", short = 'i', value_name = "ID", visible_alias = "cid", id = "cid")]
    cid: Option<String>,
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
        proto::Cached { id, tag: self.more.tag.clone(), owner: self.more.owner }
    }
}

/// Does what was asked for.
pub(crate) async fn run(cache: Cache) -> exit::Result {
    let (json, limit) = (cache.json, cache.timeout);
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
        Command::Import { file, input, id, more } => {
            let file = file.or(input).unwrap_or_default();
            import(&file, id, more, json).await
        }
        Command::Stat { named, local } => stat(&named, local, json).await,
        Command::Export { named, output, local } => export(&named, &output, local, json).await,
        Command::Delete { named, local } => delete(&named, local, json).await,
    }
}

async fn import(path: &Path, id: Option<String>, more: More, json: bool) -> exit::Result {
    let name = || path.file_name().map(|name| name.to_string_lossy().into_owned());
    let id = id.or_else(name).ok_or_else(|| Failure::usage_because("say by --id what it is to be called"))?;
    let file = File::open(path).map_err(|error| cannot_read(path, &error))?;
    let mut client = client::connect_with(&more.place.find()?, Some(&file)).await?;
    let content = Some(proto::Cached { id: id.clone(), tag: more.tag, owner: more.owner });
    let answer = client.import_task(proto::ImportTaskRequest { content }).await;
    let is = answer.map_err(|status| failure(&status))?.into_inner();
    let how = match (is.unchanged, is.shared) {
        (true, _) => "it was here before",
        (_, true) => "it shares the file's space",
        _ => "copied",
    };
    say(
        json,
        || serde_json::json!({ "id": id, "bytes": is.length, "unchanged": is.unchanged, "shared": is.shared }),
        || format!("imported {} bytes as {id}: {how}", is.length),
    );
    Ok(())
}

async fn stat(named: &Named, local: bool, json: bool) -> exit::Result {
    let mut client = client::connect(&named.more.place.find()?).await?;
    let content = named.content();
    let id = content.id.clone();
    let answer = client.stat_task(proto::StatTaskRequest { content: Some(content), local }).await;
    let is = answer.map_err(|status| failure(&status))?.into_inner();
    let nowhere = !is.here && is.others == 0;
    say(
        json,
        || serde_json::json!({ "id": id, "here": is.here, "others": is.others, "bytes": is.length }),
        || match (is.here, is.others) {
            (true, others) => format!("{id}: {} bytes on this host, and on {others} others", is.length),
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
    let mut client = client::connect(&named.more.place.find()?).await?;
    let content = named.content();
    let id = content.id.clone();
    let answer = client.export_task(proto::ExportTaskRequest { content: Some(content), local }).await;
    let stream = answer.map_err(|status| failure(&status))?.into_inner();
    let (mut part, _) = Part::open(output, "")?;
    part.restart()?;
    match receive(stream, &mut part).await {
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
async fn receive(mut stream: Streaming<proto::DownloadResponse>, part: &mut Part) -> exit::Result<u64> {
    let mut bytes = 0;
    while let Some(message) = stream.message().await.map_err(|status| failure(&status))? {
        if let Some(Item::Data(data)) = message.part {
            part.write(&data)?;
            bytes += data.len() as u64;
        }
    }
    Ok(bytes)
}

async fn delete(named: &Named, local: bool, json: bool) -> exit::Result {
    let mut client = client::connect(&named.more.place.find()?).await?;
    let content = named.content();
    let id = content.id.clone();
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
