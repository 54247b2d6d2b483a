//! `darter status`: what the schedulers know of the cluster, as tables or JSON, once or again and again.

mod ask;
mod explain;
mod table;

pub(crate) use explain::explain;

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use darter_enrol::Membership;

use crate::config;
use crate::exit::{self, Failure};
use crate::membership;
use crate::upstream::upstream;

/// Where a scheduler of this host listens when nobody says otherwise.
const LOCAL: &str = "127.0.0.1:8002";

/// Clears a terminal and puts the next character to its upper left corner (ECMA-48: ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// What `darter status` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// A scheduler, like 10.0.0.1:8002; may be given more than once [default: those of the configuration, else
    /// 127.0.0.1:8002]
    #[arg(long, value_name = "ADDR", value_delimiter = ',', conflicts_with = "config")]
    scheduler: Vec<String>,
    /// A daemon's configuration, whose schedulers are asked
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where a scheduler, `darter up` or a daemon of this host keeps its files: what is shown to the schedulers is there
    /// [default: /var/lib/darter for root, otherwise ~/.local/share/darter]
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_dir: Option<PathBuf>,
    /// The schedulers ask nobody who he is (--insecure there)
    #[arg(long)]
    insecure: bool,
    /// Print JSON: one line with an element for each scheduler
    #[arg(long)]
    json: bool,
    /// Again every so many seconds, until it is interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    watch: Option<u32>,
    /// Show at most so many hosts and tasks of each kind
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Show all tasks, not only those that somebody downloads
    #[arg(long)]
    tasks: bool,
}

/// Asks, and prints.
pub(crate) async fn run(args: Status) -> exit::Result {
    let (named, config) = (args.scheduler.clone(), args.config.as_deref());
    let asked = schedulers(named, config, args.data_dir.as_deref(), args.insecure).await?;
    let Some(seconds) = args.watch else { return once(&args, &asked).await };
    let clear = io::stdout().is_terminal() && !args.json;
    let mut ticks = tokio::time::interval(Duration::from_secs(seconds.into()));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if clear {
            exit::say(io::stdout(), CLEAR);
        }
        // Nobody there now is no reason to stop watching: that is what one watches for.
        if let Err(failure) = once(&args, &asked).await {
            exit::say(io::stderr(), &failure.to_string());
        }
    }
}

async fn once(args: &Status, asked: &Asked) -> exit::Result {
    let wanted = ask::Wanted { limit: args.limit as usize, all_tasks: args.tasks };
    let asked = asked.schedulers.iter().map(|address| ask::scheduler(&asked.membership, address, &wanted));
    let answers = futures_util::future::join_all(asked).await;
    if answers.iter().all(|answer| answer.error.is_some()) {
        return Err(nobody(&answers));
    }
    let text = if args.json {
        serde_json::to_string(&answers).map_err(|error| Failure::software(error.to_string()))?
    } else {
        answers.iter().map(table::scheduler).collect::<Vec<_>>().join("\n")
    };
    exit::say(io::stdout(), text.trim_end());
    Ok(())
}

/// Whom to ask, and who asks.
pub(crate) struct Asked {
    pub(crate) schedulers: Vec<String>,
    pub(crate) membership: Membership,
}

/// The schedulers to ask: those that are named, those of a configuration, or the one on this host.
///
/// # Errors
/// When the configuration cannot be used, or names none; or there is nothing to show them.
pub(crate) async fn schedulers(
    named: Vec<String>,
    config: Option<&Path>,
    data_dir: Option<&Path>,
    insecure: bool,
) -> exit::Result<Asked> {
    let Some(file) = config else {
        let schedulers = if named.is_empty() { vec![LOCAL.to_owned()] } else { named };
        return Ok(Asked { schedulers, membership: membership::of_command(None, data_dir, insecure)? });
    };
    let loaded = config::load(file).map_err(|report| Failure::configuration(report.to_string()))?;
    let file = file.display();
    if loaded.config.schedulers.is_empty() {
        return Err(Failure::missing(format!("{file} names no scheduler: the node is a cluster of its own")));
    }
    let found = darter_p2p::schedulers(&loaded.config.schedulers, &upstream(&loaded.config)).await;
    match found.map_err(|error| Failure::configuration(error.to_string()))? {
        none if none.is_empty() => {
            Err(Failure::unavailable(format!("nothing stands behind the names of schedulers in {file}")))
        }
        schedulers => {
            let membership = membership::of_command(Some(&loaded.config), None, insecure)?;
            Ok(Asked { schedulers, membership })
        }
    }
}

fn nobody(answers: &[ask::Answer]) -> Failure {
    let each =
        answers.iter().filter_map(|answer| Some(format!("{}: {}", answer.scheduler, answer.error.as_ref()?)));
    Failure::unavailable(format!("no scheduler answers ({})", each.collect::<Vec<_>>().join("; ")))
}
