//! Whether a client gets any further: by its address, by how much it has of the proxy already, by its password.
//!
//! It is judged by the settings of the moment, a connection when it comes and then each request on it, also inside a
//! connection that is opened up. What has become a tunnel stays one.

use crate::clients::PerClient;
use crate::labels::TurnedAway;
use crate::metrics::Metrics;
use crate::pipeline::Downstream;
use crate::refusal::{Refusal, Shape};
use crate::request::Side;
use crate::visitors::{TooMany, Visit};
use crate::{Proxy, Settings};
use http::{HeaderMap, Method, Request};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Of all that is turned away for one reason, the log has one line in this time, with the number of those before it.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// How a connection that has come goes on.
pub(crate) enum Verdict {
    /// As any other. What is counted is counted until this is dropped.
    Welcome(Option<Visit>),
    /// For as long as it takes to tell its client that it is not served.
    Stranger,
    /// Not at all.
    TooMany,
}

/// Judges a connection whose client is known.
pub(crate) fn connection(downstream: &Downstream) -> Verdict {
    let (proxy, from) = (&downstream.proxy, downstream.peer.ip());
    let clients = &proxy.settings().clients;
    if !clients.allow(from) {
        // Counted where it is told.
        return Verdict::Stranger;
    }
    match proxy.visitors.connect(from, clients.per_client.connections) {
        Ok(visit) => Verdict::Welcome(visit),
        Err(TooMany) => {
            proxy.turned_away.note(TurnedAway::Connections, from, &proxy.metrics);
            Verdict::TooMany
        }
    }
}

/// Judges a request, or what stands for one where clients send none: a connection that is to go on blindly.
///
/// # Errors
/// When the client is not served, or asks too fast.
pub(crate) fn asking(downstream: &Downstream, settings: &Settings) -> Result<(), Refusal> {
    let (proxy, from) = (&downstream.proxy, downstream.peer.ip());
    let turned_away = |reason| proxy.turned_away.note(reason, from, &proxy.metrics);
    if !settings.clients.allow(from) {
        turned_away(TurnedAway::Client);
        return Err(Refusal::stranger(from));
    }
    let PerClient { requests, .. } = settings.clients.per_client;
    proxy.visitors.ask(from, requests, Instant::now()).map_err(|wait| {
        turned_away(TurnedAway::Requests);
        Refusal::too_fast(wait)
    })
}

/// Who connects inside an intercepted connection has shown the password when that was made.
///
/// # Errors
/// When it is missing or wrong.
pub(crate) fn password(headers: &HeaderMap, side: &Side, settings: &Settings) -> Result<(), Refusal> {
    match &settings.basic_auth {
        Some(auth) if *side == Side::Port && !auth.admits(headers) => Err(Refusal::unauthenticated()),
        _ => Ok(()),
    }
}

/// Whether a request may be what it is: with a registry's contents, others than reading are pushes. What is asked of a token
/// service is none, whatever its method.
///
/// # Errors
/// When it is a push, and nobody may.
pub(crate) fn push<B>(request: &Request<B>, settings: &Settings) -> Result<(), Refusal> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::CONNECT);
    if settings.allow_push || reads || Shape::for_request(request) != Shape::Oci {
        Ok(())
    } else {
        Err(Refusal::no_push())
    }
}

impl Proxy {
    /// What is said of a client by its address, for `darter explain`.
    pub(crate) fn explain_client(&self, from: IpAddr, settings: &Settings) -> String {
        let clients = &settings.clients;
        let mut text = match clients.entry_for(from) {
            Some(entry) => format!("{from} may use the proxy: proxy.clients[{entry}] has it"),
            None if clients.allowed.is_empty() => {
                format!("{from} may use the proxy: proxy.clients is empty, so everybody may")
            }
            None => {
                return format!(
                    "{from} may not use the proxy: no entry of proxy.clients has it, so that it is refused with 403 and the rest is \
                     what would be if it were there"
                );
            }
        };
        let Some(open) = self.visitors.connections(from) else {
            text.push_str("; limits per client do not hold for this host itself");
            return text;
        };
        let PerClient { connections, requests } = clients.per_client;
        text.push_str(&format!("; {open} connections are open"));
        if let Some(most) = connections {
            text.push_str(&format!(" of at most {most}"));
        }
        if let Some(rate) = requests {
            let (rate, burst) = (rate.per_second, rate.burst);
            text.push_str(&format!("; at most {rate} requests per second, {burst} at once"));
        }
        text
    }
}

// === Log ===

/// Counts who is turned away, and says so now and then.
#[derive(Default)]
pub(crate) struct Log(Mutex<[Told; 3]>);

/// When it was said last, and of how many nothing has been said since.
#[derive(Default)]
struct Told {
    at: Option<Instant>,
    untold: u64,
}

impl Log {
    fn note(&self, reason: TurnedAway, client: IpAddr, metrics: &Metrics) {
        metrics.turned_away(reason);
        let Some(before) = self.due(reason, Instant::now()) else { return };
        let why = match reason {
            TurnedAway::Client => "is not in proxy.clients",
            TurnedAway::Connections => "has as many connections as proxy.perClient lets it have",
            TurnedAway::Requests => "sends requests faster than proxy.perClient lets it",
        };
        tracing::warn!(%client, before, "a client was turned away: it {why}");
    }

    /// Whether it is time for a line; then how many have had none.
    fn due(&self, reason: TurnedAway, now: Instant) -> Option<u64> {
        // Nothing panics while it is held.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = &mut all[reason as usize];
        if told.at.is_some_and(|at| now.duration_since(at) < TOLD_EVERY) {
            told.untold += 1;
            return None;
        }
        told.at = Some(now);
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_has_a_line_now_and_then_with_its_number() {
        let (log, start) = (Log::default(), Instant::now());
        assert_eq!(log.due(TurnedAway::Client, start), Some(0));
        for _ in 0..500 {
            assert_eq!(log.due(TurnedAway::Client, start + TOLD_EVERY / 2), None);
        }
        assert_eq!(log.due(TurnedAway::Requests, start), Some(0));
        assert_eq!(log.due(TurnedAway::Client, start + TOLD_EVERY), Some(500));
        assert_eq!(log.due(TurnedAway::Client, start + 2 * TOLD_EVERY), Some(0));
    }
}
