//! `darter token` and `darter expel`: who may come into the cluster, and who may not stay. They work on the files of a
//! scheduler's host, and whatever runs there sees it within a second.

use std::io;
use std::time::{Duration, SystemTime};

use darter_certs::date_text;
use darter_enrol::{Issuer, IssuerError, Kept, Terms, Token};
use darter_protocol::HostId;

use crate::args::{ClusterPlace, CreateToken, Expel};
use crate::ca;
use crate::exit::{self, Failure};

/// Makes a token, and prints it with what to do with it.
pub(crate) fn create(args: &CreateToken) -> exit::Result {
    // Also before the first start of the scheduler, which then uses the same CA.
    let issuer = Issuer::open_or_make(&args.place.folder()).map_err(failed)?;
    let (uses, now) = ((!args.unlimited).then_some(args.uses), SystemTime::now());
    let terms = Terms { ttl: args.ttl, uses, seed: args.seed };
    let token = issuer.create_token(terms, now).map_err(|error| Failure::own_files(error.to_string()))?;
    exit::say(io::stdout(), token.text().reveal());
    let how_many = uses.map_or_else(|| "any number of nodes".to_owned(), nodes);
    let what = if args.seed { " as seeds" } else { "" };
    let until = date_text(now + args.ttl);
    exit::say(
        io::stderr(),
        &format!(
            "It lets {how_many} join{what} until {until}. On the node: darter daemon --config FILE --join TOKEN. It is not shown again."
        ),
    );
    Ok(())
}

/// Prints all tokens, without their secrets.
pub(crate) fn list(place: &ClusterPlace) -> exit::Result {
    let tokens = open(place)?.tokens().list();
    let tokens = tokens.map_err(|error| Failure::own_files(error.to_string()))?;
    if tokens.is_empty() {
        exit::say(io::stdout(), "there are no tokens");
    }
    for token in &tokens {
        exit::say(io::stdout(), &line(token, SystemTime::now()));
    }
    Ok(())
}

/// Ends a token.
pub(crate) fn revoke(id: &str, place: &ClusterPlace) -> exit::Result {
    let id = id.parse::<Token>().map_or_else(|_| id.to_owned(), |token| token.id().to_owned());
    let revoked = open(place)?.tokens().revoke(&id);
    match revoked.map_err(|error| Failure::own_files(error.to_string()))? {
        true => {
            exit::say(io::stdout(), &format!("{id} lets nobody join any more; who has joined by it stays"))
        }
        false => return Err(Failure::missing(format!("there is no token {id}: see darter token list"))),
    }
    Ok(())
}

/// Expels a node.
pub(crate) fn expel(args: &Expel) -> exit::Result {
    let issuer = open(&args.place)?;
    let tokens = issuer.tokens().list().map_err(|error| Failure::own_files(error.to_string()))?;
    let host = named(&args.node, &tokens)?;
    let now = SystemTime::now();
    issuer.expel(&host, now).map_err(failed)?;
    exit::say(io::stdout(), &format!("{host} is expelled: its connections end within seconds"));
    let good =
        tokens.iter().filter(|token| token.is_good(now) && token.hosts.iter().any(|it| *it == host.as_str()));
    for token in good {
        let hint = format!("it knows a token that is still good: darter token revoke {}", token.id);
        exit::say(io::stderr(), &hint);
    }
    Ok(())
}

/// How long certificates hold: long enough to be renewed in time, and no longer than an expulsion is remembered.
pub(crate) fn lifetime(text: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_secs(5), Duration::from_secs(90 * 24 * 3600));
    let time = ca::overlap(text)?;
    if (least..=most).contains(&time) { Ok(time) } else { Err("expected 5s to 90d".to_owned()) }
}

/// Whom an operator means.
fn named(node: &str, tokens: &[Kept]) -> exit::Result<HostId> {
    let joined = tokens.iter().flat_map(|token| &token.hosts);
    let mut meant: Vec<&String> = joined
        .filter(|host| *host == node || host.rsplit_once('-').is_some_and(|(name, _)| name == node))
        .collect();
    meant.sort_unstable();
    meant.dedup();
    match meant.as_slice() {
        [one] => parsed(one),
        // It may have joined by another scheduler.
        [] if is_id(node) => {
            exit::say(
                io::stderr(),
                "it came by no token of this host: darter status shows whether it is gone",
            );
            parsed(&node.to_ascii_lowercase())
        }
        [] => Err(Failure::missing(format!(
            "no node called {node} came by a token of this host: give its id, as darter status shows it"
        ))),
        several => {
            let ids = several.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(", ");
            Err(Failure::missing(format!("several nodes are called {node}, give the id of one: {ids}")))
        }
    }
}

/// Whether it ends as the id of a host with a certificate does.
fn is_id(node: &str) -> bool {
    node.rsplit_once('-')
        .is_some_and(|(_, key)| key.len() == 32 && key.bytes().all(|it| it.is_ascii_hexdigit()))
}

fn parsed(id: &str) -> exit::Result<HostId> {
    id.parse().map_err(|_| Failure::missing(format!("{id} is no node's id")))
}

fn line(token: &Kept, now: SystemTime) -> String {
    let ends = date_text(SystemTime::UNIX_EPOCH + Duration::from_secs(token.ends));
    let state = match token.uses_left {
        _ if token.is_good(now) && token.uses_left.is_none() => "for any number of nodes".to_owned(),
        Some(left) if token.is_good(now) => format!("for {}", nodes(left)),
        Some(0) => "used up".to_owned(),
        _ => "expired".to_owned(),
    };
    let seed = if token.seed { ", seeds" } else { "" };
    let hosts = token.hosts.join(" ");
    format!(
        "{}  until {ends}  {state}{seed}  joined: {}",
        token.id,
        if hosts.is_empty() { "-" } else { &hosts }
    )
}

fn nodes(count: u32) -> String {
    if count == 1 { "one node".to_owned() } else { format!("{count} nodes") }
}

fn open(place: &ClusterPlace) -> exit::Result<Issuer> {
    Issuer::open(&place.folder()).map_err(|error| {
        Failure::own_files(format!(
            "{error}; this command runs on a scheduler's host, and --data-dir says where that keeps its files"
        ))
    })
}

/// What an issuer cannot do, it cannot do because of its files.
pub(crate) fn failed(error: IssuerError) -> Failure {
    Failure::own_files(error.to_string())
}
