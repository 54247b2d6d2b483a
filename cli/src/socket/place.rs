//! Where the socket stands: as `download.downloadGRPC.unixListen.socket` says, else in a folder that everybody reaches
//! when root runs the host's daemon, else in the daemon's own folder.

use std::path::{Path, PathBuf};

use crate::config::{self, Config, directories};
use crate::exit::{self, Failure};

/// The socket's name in the daemon's folder.
const SOCKET: &str = "download.sock";

/// The socket of a daemon that root runs where nothing else is configured.
const OF_HOST: &str = "/run/darter/download.sock";

/// The socket of a daemon with this configuration.
pub(crate) fn of_daemon(config: &Config) -> PathBuf {
    config.download.socket.clone().unwrap_or_else(|| in_folder(&config.work_home))
}

fn in_folder(work_home: &Path) -> PathBuf {
    let of_host = rustix::process::geteuid().is_root() && work_home == directories::work_home();
    if of_host { PathBuf::from(OF_HOST) } else { work_home.join(SOCKET) }
}

/// How a command names the daemon that it asks.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "The daemon")]
pub(crate) struct Place {
    /// The daemon's socket [default: that of the daemon of this user, else /run/darter/download.sock]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "work_home"], aliases = ["endpoint", "daemon-sock"], short_alias = 'e')]
    socket: Option<PathBuf>,
    /// The configuration of the daemon
    #[arg(long, value_name = "FILE", conflicts_with = "work_home")]
    config: Option<PathBuf>,
    /// The folder in which the daemon works, when it has no configuration (its --data-dir)
    #[arg(long, value_name = "DIR", visible_alias = "data-dir")]
    work_home: Option<PathBuf>,
}

impl Place {
    /// Where the daemon listens.
    ///
    /// # Errors
    /// When its configuration cannot be used.
    pub(crate) fn find(&self) -> exit::Result<PathBuf> {
        Ok(match (&self.socket, &self.config, &self.work_home) {
            (Some(socket), ..) => socket.clone(),
            (_, Some(file), _) => {
                let loaded =
                    config::load(file).map_err(|report| Failure::configuration(report.to_string()))?;
                of_daemon(&loaded.config)
            }
            (.., Some(folder)) => in_folder(folder),
            (None, None, None) => {
                let own = in_folder(&directories::work_home());
                if own.exists() { own } else { PathBuf::from(OF_HOST) }
            }
        })
    }
}
