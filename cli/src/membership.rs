//! What this process is in its cluster: from the configuration, a join token, or a scheduler's own CA.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use darter_certs::Secret;
use darter_enrol::{EnrolError, Home, Issuer, Member, Membership, Metrics, Role, Token};
use darter_protocol::HostId;
use darter_upstream::Upstream;

use crate::components::Components;
use crate::config::{Config, directories};
use crate::exit::{self, Failure};
use crate::identity;
use crate::token::failed;

/// The environment variable with a join token.
const TOKEN: &str = "DARTER_JOIN_TOKEN";

/// How often it is said that nothing is secured.
const REMIND: Duration = Duration::from_secs(3600);

/// A node's place in its cluster.
pub(crate) struct Place {
    pub(crate) membership: Membership,
    pub(crate) id: HostId,
}

/// What a node needs to come to its place.
pub(crate) enum Entry {
    /// What the configuration says, and perhaps a token.
    Configured { join: Option<Secret> },
    /// It stands beside a scheduler in one process, which makes its certificate.
    Beside(Issuer),
}

/// Finds or makes this node's place, and keeps it.
///
/// # Errors
/// When it has none and cannot get one; the sentence says what to do.
pub(crate) async fn of_node(
    config: &Config,
    entry: Entry,
    upstream: &Upstream,
    metrics: Metrics,
    components: &mut Components,
) -> exit::Result<Place> {
    let hostname = config.host.hostname.clone().unwrap_or_else(identity::hostname);
    if config.cluster.insecure {
        let membership = insecure(metrics, "security.insecure", components);
        return Ok(Place { membership, id: identity::host_id(&config.work_home, &hostname)? });
    }
    if config.schedulers.is_empty() {
        let membership = Membership::none(metrics).map_err(|error| Failure::software(error.to_string()))?;
        return Ok(Place { membership, id: identity::host_id(&config.work_home, &hostname)? });
    }
    let own_files = |error: darter_enrol::FileError| Failure::own_files(error.to_string());
    let home = Home::open_or_make(&directories::node(&config.work_home)).map_err(own_files)?;
    let membership = Membership::of_home(&home, metrics).map_err(own_files)?;
    let token = match entry {
        Entry::Beside(issuer) => {
            membership.issue_to(&home, &issuer, Role::Seed, &hostname).map_err(failed)?;
            None
        }
        Entry::Configured { join } => joined(config, &membership, (&home, &hostname), join, upstream).await?,
    };
    let member = membership.member();
    if config.seed && member.as_ref().is_some_and(|member| member.role != Role::Seed) {
        return Err(Failure::configuration(
            "this node is to be a seed (seed: true), and its certificate says that it is none: remove node/ in its workHome and join with a token of `darter token create --seed`",
        ));
    }
    let id = member.map(|member| member.id).or_else(|| home.id(&hostname));
    let id = id.ok_or_else(|| Failure::software("this host's name makes no id"))?;
    let (renewed, upstream, written) = (membership.clone(), upstream.clone(), config.schedulers.clone());
    let schedulers = move || {
        let (written, upstream) = (written.clone(), upstream.clone());
        async move { darter_p2p::schedulers(&written, &upstream).await.unwrap_or_default() }
    };
    let token = token.map(|token| (token, hostname));
    components.probe(darter_enrol::keep_renewed(renewed, home, token, schedulers));
    Ok(Place { membership, id })
}

/// Joins, if it must. Gives the token, should it not have got through to a scheduler.
async fn joined(
    config: &Config,
    membership: &Membership,
    (home, hostname): (&Home, &str),
    join: Option<Secret>,
    upstream: &Upstream,
) -> exit::Result<Option<Token>> {
    if membership.member().is_some_and(|member| member.until > SystemTime::now()) {
        return Ok(None);
    }
    let Some(token) = token(join, config.cluster.join_token_file.as_deref())? else {
        let ended = if membership.member().is_some() { " that holds" } else { "" };
        return Err(Failure::configuration(format!(
            "this node has no certificate{ended} of the cluster of {}: run `darter token create` on a scheduler's host, and start this node with --join TOKEN (docs/cluster.md)",
            config.schedulers.join(", ")
        )));
    };
    let schedulers = darter_p2p::schedulers(&config.schedulers, upstream).await;
    let schedulers = schedulers.map_err(|error| Failure::configuration(error.to_string()))?;
    match darter_enrol::enrol(membership, home, &token, hostname, &schedulers).await {
        Ok(()) => Ok(None),
        Err(EnrolError::Refused(why)) => Err(Failure::not_permitted(format!("this node cannot join: {why}"))),
        Err(EnrolError::Unreachable(why)) => {
            tracing::warn!(%why, "this node has not joined its cluster yet; it serves alone, and tries again");
            Ok(Some(token))
        }
    }
}

/// The token of the command line, the environment, or a file.
fn token(join: Option<Secret>, file: Option<&Path>) -> exit::Result<Option<Token>> {
    let said = || std::env::var(TOKEN).ok().map(Secret::from);
    let text: Secret = match (join.or_else(said), file) {
        (Some(text), _) => text,
        (None, Some(file)) => {
            let read = std::fs::read_to_string(file).map(Secret::from);
            read.map_err(|error| {
                Failure::configuration(format!("security.joinTokenFile {}: {error}", file.display()))
            })?
        }
        (None, None) => return Ok(None),
    };
    text.reveal()
        .parse()
        .map(Some)
        .map_err(|error: darter_enrol::InvalidToken| Failure::configuration(error.to_string()))
}

/// Nobody is asked who he is; that is said again and again.
pub(crate) fn insecure(metrics: Metrics, by: &'static str, components: &mut Components) -> Membership {
    components.probe(async move {
        loop {
            tracing::warn!(
                by,
                "INSECURE: hosts of this cluster do not prove who they are, and nothing between them is encrypted: whoever reaches their ports can read all content and pass for any of them"
            );
            tokio::time::sleep(REMIND).await;
        }
    });
    Membership::insecure(metrics)
}

/// A scheduler's, which makes its own certificate and those of others.
///
/// # Errors
/// When its files cannot be used.
pub(crate) fn of_scheduler(
    issuer: &Issuer,
    metrics: Metrics,
    components: &mut Components,
) -> exit::Result<Membership> {
    let name = scheduler_name();
    let membership = Membership::of_issuer(issuer, Role::Scheduler, &name, metrics).map_err(failed)?;
    let kept = membership.clone();
    components.probe(async move { kept.keep_issued(name).await });
    Ok(membership)
}

/// A scheduler's name is for people.
fn scheduler_name() -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = identity::hostname().chars().take(64).map(allowed).collect();
    if name.is_empty() { "scheduler".to_owned() } else { name }
}

/// Refuses to listen without security where others reach it, unless that was said, too.
///
/// # Errors
/// That it was not.
pub(crate) fn check_insecure(listen: SocketAddr, insecure: bool, on_networks: bool) -> exit::Result {
    if !insecure || on_networks || listen.ip().is_loopback() {
        return Ok(());
    }
    Err(Failure::usage_because(format!(
        "--insecure is refused on {listen}, where whoever reaches it could pass for any host: leave it out (docs/cluster.md), or say --insecure-on-networks, too"
    )))
}

/// That of a person who looks at schedulers: the configuration's, the operator's of a scheduler's host, or the node's.
///
/// # Errors
/// When there is nothing to show.
pub(crate) fn of_command(
    config: Option<&Config>,
    work_home: Option<&Path>,
    insecure: bool,
) -> exit::Result<Membership> {
    if insecure || config.is_some_and(|config| config.cluster.insecure) {
        return Ok(Membership::insecure(Metrics::default()));
    }
    let work_home = match (config, work_home) {
        (Some(config), _) => config.work_home.clone(),
        (None, Some(folder)) => folder.to_owned(),
        (None, None) => directories::work_home(),
    };
    let cluster = directories::cluster(&work_home);
    if cluster.join("ca.key").exists() {
        let issuer = Issuer::open(&cluster).map_err(failed)?;
        return Membership::of_issuer(&issuer, Role::Operator, "operator", Metrics::default())
            .map_err(failed);
    }
    let node = directories::node(&work_home);
    let home = Home::open(&node).and_then(|home| Membership::of_home(&home, Metrics::default()));
    match home {
        Ok(membership)
            if membership.member().is_some_and(|member: Member| member.until > SystemTime::now()) =>
        {
            Ok(membership)
        }
        Ok(_) => {
            Err(Failure::own_files(format!("the certificate in {} does not hold any more", node.display())))
        }
        Err(error) => Err(Failure::own_files(format!(
            "there is no certificate to show the schedulers ({error}): run this on a scheduler's host or a node, as the user that may read its files; --data-dir or --config says where they are, and --insecure that nobody asks"
        ))),
    }
}
