//! The command line.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use darter_certs::Secret;
use ipnet::IpNet;

use crate::exit::{self, Failure};
use crate::logging::{self, Format, Level};
use crate::{
    ca, cache, check, config, daemon, explain, get, limits, scheduler, status, store, token, transparent, up,
};

/// A transparent proxy for registries: what is large and immutable is fetched once and then moves between nodes.
#[derive(Debug, Parser)]
#[command(name = "darter", version, after_help = exit::HELP, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(flatten)]
    logging: Logging,
    #[command(subcommand)]
    command: Command,
}

/// How much is logged, and in which form.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Log")]
pub(crate) struct Logging {
    /// How much is logged to standard error. RUST_LOG says more finely what is logged, and is used when this is not given
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<Level>,
    /// How a line of the log looks [default: as `log.format` in the configuration says, otherwise text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log_format: Option<Format>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything on this machine: scheduler, daemon and proxy, with a CA of its own and no configuration
    Up(Up),
    /// A node: the proxy, and a peer that gives what it has to other nodes
    Daemon(Daemon),
    /// Who has what, who asks whom, who may go to the origin
    Scheduler(Scheduler),
    /// Download a file through the daemon that runs on this host; also by the name dfget
    Get(Box<get::Get>),
    /// Put files of this host into the cluster and take them out; also by the name dfcache
    Cache(Box<cache::Cache>),
    /// Join tokens, by which nodes come into the cluster: on a scheduler's host
    #[command(subcommand)]
    Token(TokenCommand),
    /// Put a node out of the cluster, everywhere and for good: on a scheduler's host
    Expel(Expel),
    /// The CA that signs for intercepted hosts
    #[command(subcommand)]
    Ca(CaCommand),
    /// Look after the content that is kept on this host, while no daemon works with it
    #[command(subcommand)]
    Store(StoreCommand),
    /// Make this host's clients use the appliance
    #[command(subcommand)]
    Setup(Setup),
    /// Say step by step what happens with a request, and why: asks the daemon that runs on this host
    Explain(Explain),
    /// Say who is in the cluster, who downloads what, and who is quarantined: asks the schedulers
    Status(status::Status),
    /// Work with configuration files
    #[command(subcommand)]
    Config(Config),
}

/// What `darter up` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// Where the content, the CA and this host's identity are kept [default: /var/lib/darter for root, otherwise
    /// ~/.local/share/darter]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The address of every listener that has none of its own. Whoever reaches it can use the proxy
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) listen: IpAddr,
    /// Where clients reach the proxy [default: LISTEN:65001]
    #[arg(long, value_name = "ADDR")]
    pub(crate) proxy_addr: Option<SocketAddr>,
    /// Where other daemons reach the scheduler [default: LISTEN:8002]
    #[arg(long, value_name = "ADDR")]
    pub(crate) scheduler_addr: Option<SocketAddr>,
    /// Where other daemons fetch content [default: LISTEN:65002]
    #[arg(long, value_name = "ADDR")]
    pub(crate) piece_addr: Option<SocketAddr>,
    /// GET /healthy and /metrics [default: LISTEN:40901]
    #[arg(long, value_name = "ADDR")]
    pub(crate) health_addr: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) drain: Drain,
}

/// What `darter daemon` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Daemon {
    /// The configuration, with the key names of Dragonfly's dfget.yaml
    #[arg(long, short, value_name = "FILE", required_unless_present = "from_environment")]
    pub(crate) config: Option<PathBuf>,
    /// Join the cluster by this token of `darter token create`, if this node has no certificate yet. DARTER_JOIN_TOKEN says
    /// it, too, and a file (security.joinTokenFile)
    #[arg(long, value_name = "TOKEN")]
    pub(crate) join: Option<Secret>,
    #[command(flatten)]
    pub(crate) environment: Environment,
}

/// The daemon in docker-registry-proxy's place.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "In docker-registry-proxy's place")]
pub(crate) struct Environment {
    /// Read docker-registry-proxy's environment variables (REGISTRIES, AUTH_REGISTRIES, CACHE_MAX_SIZE, ...) instead of a file
    #[arg(long, conflicts_with = "config")]
    pub(crate) from_environment: bool,
    /// Where clients reach the proxy
    #[arg(long, value_name = "ADDR", conflicts_with = "config", default_value = "0.0.0.0:3128")]
    pub(crate) proxy_addr: SocketAddr,
    /// GET /healthy and /metrics
    #[arg(long, value_name = "ADDR", conflicts_with = "config", default_value = "0.0.0.0:40901")]
    pub(crate) health_addr: SocketAddr,
    /// Where the CA (ca/) and this host's identity are kept [default: /var/lib/darter for root, otherwise
    /// ~/.local/share/darter]
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub(crate) work_home: Option<PathBuf>,
    /// Where content is kept [default: data/ in WORK_HOME]
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// What `darter scheduler` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Scheduler {
    /// What the cluster may fetch from origins, and how much at once: see scheduler.example.yaml. Read again on SIGHUP
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where daemons reach it
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8002")]
    pub(crate) listen: SocketAddr,
    /// GET /healthy and /metrics
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8000")]
    pub(crate) health_listen: SocketAddr,
    #[command(flatten)]
    pub(crate) cluster: ClusterPlace,
    /// How long nodes' certificates hold; they renew them when a third of it is left. At most 90d
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = token::lifetime)]
    pub(crate) certificate_lifetime: Duration,
    /// Ask nobody who he is, and encrypt nothing
    #[arg(long)]
    pub(crate) insecure: bool,
    /// With --insecure: also where other hosts reach it
    #[arg(long, requires = "insecure")]
    pub(crate) insecure_on_networks: bool,
    #[command(flatten)]
    pub(crate) drain: Drain,
}

/// Where the cluster's CA stands.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ClusterPlace {
    /// The folder of the scheduler, or of `darter up`: in it, cluster/ holds the cluster's CA, the join tokens, and who was
    /// expelled [default: /var/lib/darter for root, otherwise ~/.local/share/darter]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

impl ClusterPlace {
    /// The folder of the CA.
    pub(crate) fn folder(&self) -> PathBuf {
        let work_home = self.data_dir.clone().unwrap_or_else(config::directories::work_home);
        config::directories::cluster(&work_home)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it, once
    Create(CreateToken),
    /// Say which tokens there are, and who came by them
    List(ClusterPlace),
    /// End a token
    Revoke {
        /// The token's ID, or all of it
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        place: ClusterPlace,
    },
}

/// What `darter token create` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateToken {
    /// How long it may be used
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = ca::overlap)]
    pub(crate) ttl: Duration,
    /// By how many nodes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "unlimited")]
    pub(crate) uses: u32,
    /// By any number of nodes
    #[arg(long)]
    pub(crate) unlimited: bool,
    /// The nodes that come by it are seeds
    #[arg(long)]
    pub(crate) seed: bool,
    #[command(flatten)]
    pub(crate) place: ClusterPlace,
}

/// What `darter expel` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Expel {
    /// The node's id, as `darter status` shows it; or its host name, if one node of that name came by a token of this host
    #[arg(value_name = "NODE")]
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) place: ClusterPlace,
}

/// What `darter explain` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// What is asked for: an http:// or https:// URL, or a path that comes to the mirror, like /v2/library/alpine/manifests/latest
    #[arg(value_name = "URL", required_unless_present = "task", conflicts_with = "task")]
    pub(crate) url: Option<String>,
    /// Instead of a request: whom a host gets as partners for a task (an id of `darter status --json`), and why not the
    /// others; asks the task's scheduler
    #[arg(long, value_name = "ID")]
    pub(crate) task: Option<darter_protocol::TaskId>,
    /// With --task: the host that asks (an id of `darter status`) [default: one that is nowhere and has nothing]
    #[arg(long, value_name = "ID", requires = "task", conflicts_with_all = ["headers", "request", "client"])]
    pub(crate) host: Option<String>,
    /// With --task: the schedulers, as `darter status` takes them
    #[arg(long, value_name = "ADDR", value_delimiter = ',', requires = "task", conflicts_with = "config")]
    pub(crate) scheduler: Vec<String>,
    /// With --task: the schedulers ask nobody who he is (--insecure there)
    #[arg(long, requires = "task")]
    pub(crate) insecure: bool,
    /// A header of the request, like 'Authorization: Bearer ..'; may be given more than once
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header)]
    pub(crate) headers: Vec<(String, Secret)>,
    /// The request's method
    #[arg(long, short = 'X', value_name = "METHOD", default_value = "GET")]
    pub(crate) request: String,
    /// The address that the request comes from
    #[arg(long, value_name = "IP")]
    pub(crate) client: Option<IpAddr>,
    /// The configuration of the daemon to ask
    #[arg(long, short, value_name = "FILE", conflicts_with = "work_home")]
    pub(crate) config: Option<PathBuf>,
    /// The folder in which the daemon works, when it has no configuration (its --data-dir)
    #[arg(long, value_name = "DIR", visible_alias = "data-dir")]
    pub(crate) work_home: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `Name: value`. The value may be a credential, whatever the name is.
pub(crate) fn header(text: &str) -> Result<(String, Secret), String> {
    let (name, value) = text.split_once(':').ok_or("expected Name: value")?;
    Ok((name.trim().to_owned(), value.trim().into()))
}

/// How the process ends.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Drain {
    /// How long what is under way may take to finish after SIGTERM, like 30s
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = config::value::duration)]
    pub(crate) drain_timeout: Duration,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Say which CA signs, which others clients are told of, and until when
    Show(CaPlace),
    /// Let another CA take its place, step by step: announce it (without an option), activate it, finish
    Rotate(Rotate),
}

/// Where the CA stands.
#[derive(Debug, clap::Args)]
pub(crate) struct CaPlace {
    /// The daemon's configuration, which says where
    #[arg(long, short, value_name = "FILE", conflicts_with = "data_dir")]
    pub(crate) config: Option<PathBuf>,
    /// The folder of `darter up`, or a daemon's workHome [default: /var/lib/darter for root, otherwise
    /// ~/.local/share/darter]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// What `darter ca rotate` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Rotate {
    #[command(flatten)]
    pub(crate) place: CaPlace,
    /// Announce a successor that signs by itself after this time, like 14d
    #[arg(long, value_name = "TIME", value_parser = ca::overlap, conflicts_with_all = ["activate", "finish", "back"])]
    pub(crate) after: Option<Duration>,
    /// Let the successor sign; its predecessor stays published
    #[arg(long, conflicts_with_all = ["finish", "back"])]
    pub(crate) activate: bool,
    /// Forget the predecessor
    #[arg(long, conflicts_with = "back")]
    pub(crate) finish: bool,
    /// Take the last step back
    #[arg(long)]
    pub(crate) back: bool,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Read everything, compare it with its hashes and digests, and say what is wrong
    Check(StorePlace),
    /// The same, and take away what is wrong: it will be fetched again
    Repair(StorePlace),
}

/// Where the content stands.
#[derive(Debug, clap::Args)]
pub(crate) struct StorePlace {
    /// A daemon's workHome or dataDir, or the folder of `darter up`
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
enum Config {
    /// Say everything that is wrong with a file, or that it is ok
    Check {
        /// The daemon's configuration
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Setup {
    /// Turn connections to other hosts to a transparent listener, by rules of the packet filter (nftables)
    Transparent(Transparent),
}

/// What `darter setup transparent` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Transparent {
    /// Print the rules and change nothing: what happens anyway without --apply and --undo
    #[arg(long, conflicts_with_all = ["apply", "undo"])]
    pub(crate) print: bool,
    /// Put the rules in force, in place of those that this command put in force before
    #[arg(long)]
    pub(crate) apply: bool,
    /// Remove the rules
    #[arg(long, conflicts_with = "apply")]
    pub(crate) undo: bool,
    /// The ports of other hosts
    #[arg(long, value_name = "PORTS", value_delimiter = ',', default_values_t = [80, 443], value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Vec<u16>,
    /// The port of the transparent listener on this host
    #[arg(long, value_name = "PORT", default_value_t = 65010, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) to: u16,
    /// A user whose connections are left alone, by name or number. The daemon's own are known by their mark; name its user
    /// when it runs without CAP_NET_ADMIN
    #[arg(long, value_name = "USER")]
    pub(crate) uid: Vec<String>,
    /// A network that is left alone, like 10.0.0.0/8
    #[arg(long, value_name = "CIDR")]
    pub(crate) except: Vec<IpNet>,
    /// IPv6, too; the listener must then listen on ::
    #[arg(long)]
    pub(crate) ipv6: bool,
}

impl Args {
    /// Reads the process's command line. Help and version are printed and end it well.
    pub(crate) fn read() -> exit::Result<Self> {
        Self::try_parse_from(by_name(std::env::args_os())).map_err(|error| {
            // Printing fails when nobody reads: then there is nobody to tell.
            let _ = error.print();
            if error.use_stderr() { Failure::usage() } else { std::process::exit(0) }
        })
    }

    /// Runs the command to its end.
    pub(crate) fn run(self) -> exit::Result {
        match self.command {
            Command::Token(TokenCommand::Create(args)) => token::create(&args),
            Command::Token(TokenCommand::List(place)) => token::list(&place),
            Command::Token(TokenCommand::Revoke { id, place }) => token::revoke(&id, &place),
            Command::Expel(args) => token::expel(&args),
            Command::Ca(CaCommand::Show(place)) => ca::show(&place),
            Command::Ca(CaCommand::Rotate(args)) => ca::rotate(&args),
            Command::Config(Config::Check { file }) => check::run(&file),
            Command::Store(StoreCommand::Check(place)) => store::run(&place, store::What::Check),
            Command::Store(StoreCommand::Repair(place)) => store::run(&place, store::What::Repair),
            Command::Setup(Setup::Transparent(args)) => transparent::run(&args),
            Command::Explain(args) => run_soon(explain::run(args)),
            Command::Status(args) => run_soon(status::run(args)),
            Command::Get(args) => run_soon(get::run(*args)),
            Command::Cache(args) => run_soon(cache::run(*args)),
            Command::Daemon(args) => run_async(daemon::run(args, self.logging)),
            Command::Scheduler(args) => {
                logging::start(self.logging, config::Log::default(), None);
                limits::raise_open_files();
                run_async(scheduler::run(args))
            }
            Command::Up(args) => {
                logging::start(self.logging, config::Log::default(), None);
                limits::raise_open_files();
                run_async(up::run(args))
            }
        }
    }
}

/// The same by the names of Dragonfly's tools: a link to the binary that is called dfget stands for `darter get`,
/// and dfcache for `darter cache`.
fn by_name(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut args = args.peekable();
    let name = args.peek().and_then(|name| Path::new(name).file_name()?.to_str()).unwrap_or_default();
    let command = match name {
        "dfget" => Some("get"),
        "dfcache" => Some("cache"),
        _ => None,
    };
    let first = args.next();
    first.into_iter().chain(command.map(OsString::from)).chain(args)
}

/// Runs a command that serves.
fn run_async(command: impl Future<Output = exit::Result>) -> exit::Result {
    run_on(tokio::runtime::Builder::new_multi_thread(), command)
}

/// Runs a command that asks: on its own thread, because others take as long to start as a short answer takes to come.
fn run_soon(command: impl Future<Output = exit::Result>) -> exit::Result {
    run_on(tokio::runtime::Builder::new_current_thread(), command)
}

/// When it has ended nothing is waited for any more: what had to finish has finished.
fn run_on(mut threads: tokio::runtime::Builder, command: impl Future<Output = exit::Result>) -> exit::Result {
    let runtime = threads.enable_all().build();
    let runtime = runtime.map_err(|error| Failure::unavailable(format!("cannot start threads: {error}")))?;
    let ended = runtime.block_on(command);
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn a_join_token_is_not_shown_with_the_arguments() {
        let args =
            Args::try_parse_from(["darter", "daemon", "--config", "f", "--join", "darter1.hunter2"]).unwrap();
        assert!(!format!("{args:?}").contains("hunter2"));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
