//! `darter explain URL`: why a request is answered as it is; with `--task`: why a host has the partners that it has.

use std::io;
use std::path::PathBuf;

use darter_protocol::{Ring, TaskId};

use crate::args;
use crate::config::{self, directories};
use crate::control::{self, Explain, Said};
use crate::exit::{self, Failure};
use crate::status;

/// Asks the daemon that runs on this host, and prints every step.
pub(crate) async fn run(args: args::Explain) -> exit::Result {
    if let Some(task) = args.task {
        return partners(task, args).await;
    }
    let url = args.url.unwrap_or_default();
    let headers = args.headers.into_iter().map(|(name, value)| (name, value.reveal().to_owned())).collect();
    let question = Explain { url, method: args.request, headers, client: args.client };
    let said = control::ask(&socket(args.config, args.work_home)?, &question).await?;
    if args.json {
        let steps =
            serde_json::to_string_pretty(&said).map_err(|error| Failure::software(error.to_string()))?;
        exit::say(io::stdout(), &steps);
    } else {
        exit::say(io::stdout(), &table(&said));
    }
    Ok(())
}

/// Whom the policy takes for a task, as its scheduler says.
async fn partners(task: TaskId, args: args::Explain) -> exit::Result {
    let (config, work_home) = (args.config.as_deref(), args.work_home.as_deref());
    let asked = status::schedulers(args.scheduler, config, work_home, args.insecure).await?;
    let ring = Ring::new(asked.schedulers);
    let host = args.host.unwrap_or_default();
    let mut failures = Vec::new();
    for address in ring.order(&task) {
        match status::explain(&asked.membership, address, &task, &host).await {
            Ok(explained) => {
                exit::say(io::stdout(), explained.show(args.json)?.trim_end());
                return Ok(());
            }
            Err(why) => failures.push(format!("{address}: {why}")),
        }
    }
    Err(Failure::unavailable(format!("no scheduler answers ({})", failures.join("; "))))
}

/// Where the daemon listens: as its configuration says, or a folder, or where it works without either.
fn socket(config: Option<PathBuf>, work_home: Option<PathBuf>) -> exit::Result<PathBuf> {
    let work_home = match (config, work_home) {
        (Some(file), _) => {
            let loaded = config::load(&file).map_err(|report| Failure::configuration(report.to_string()))?;
            loaded.config.work_home
        }
        (None, Some(folder)) => folder,
        (None, None) => directories::work_home(),
    };
    Ok(control::path(&work_home))
}

/// Two columns; what a step says on further lines stands below itself.
fn table(said: &[Said]) -> String {
    let width = said.iter().map(|said| said.step.len()).max().unwrap_or_default();
    let lines = said.iter().flat_map(|Said { step, says }| {
        says.lines().enumerate().map(move |(i, line)| {
            let step = if i == 0 { step.as_str() } else { "" };
            format!("{step:width$}  {line}")
        })
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_stand_in_two_columns() {
        let said = |step: &str, says: &str| Said { step: step.to_owned(), says: says.to_owned() };
        let said = [said("rule", "none"), said("entitlement", "a\nb")];
        assert_eq!(table(&said), "rule         none\nentitlement  a\n             b");
    }
}
