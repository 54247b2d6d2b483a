//! [`Genuine`]: which servers have proven who they are.
//!
//! A client of an intercepted host sees our certificate, so it cannot judge the server's any more; we judge it, and a
//! client never sees a leaf for a server that failed. So before a CONNECT to such a host is answered, the TLS handshake with
//! the server is done. Its connection is kept for the first request, which would have had to make it anyway: the order
//! changes, the time until the first byte does not. What fails is then the answer to the CONNECT, in words; inside, it would
//! come too late, after a certificate that looks good.
//!
//! The verdict is remembered per host and port, so this costs once in ten minutes: a proof for ten minutes, a refusal for a
//! few seconds (a client that tries again at once need not wait again, and one that comes when it is repaired is not held
//! up). A request that fails on the server's certificate makes the proof void. A server that cannot be reached, but has
//! proven itself within a day, is believed on: what the cluster holds of it can be served while it is down.
//!
//! What speaks another protocol is no matter of certificates; it stays a tunnel, and its client meets it as it is.

use darter_rules::Host;
use darter_upstream::{Kind, Stage, UpstreamError};
use moka::future::Cache;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long a server need not prove itself again.
const PROVEN: Duration = Duration::from_secs(600);
/// How long a refusal is repeated without asking.
const REFUSED: Duration = Duration::from_secs(5);
/// How long a server that has proven itself is believed while it cannot be reached.
const GRACE: Duration = Duration::from_secs(24 * 3600);
/// How many servers are remembered; one that falls out proves itself again. A few MiB.
const MAX_SERVERS: u64 = 16_384;
/// Where nothing but TLS is expected: who says nothing there is refused, not tunnelled to.
const HTTPS: u16 = 443;

/// What is known of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is who it says.
    Genuine,
    /// It speaks something else than TLS.
    OtherProtocol,
    /// It is not, or cannot be asked.
    Refused(UpstreamError),
}

/// The servers that were asked lately.
pub(crate) struct Genuine {
    known: Cache<(u64, Host, u16), Known>,
    /// Counts the configurations: a verdict under another one says nothing.
    generation: AtomicU64,
}

#[derive(Clone)]
struct Known {
    standing: Standing,
    /// When to ask again.
    until: Instant,
    /// When it last proved itself.
    proven: Option<Instant>,
}

impl Genuine {
    pub(crate) fn new() -> Self {
        Self { known: Cache::new(MAX_SERVERS), generation: AtomicU64::new(0) }
    }

    /// What is known of this server; `probe` asks it, once however many wait.
    ///
    /// # Cancel safety
    /// When the caller who asks goes away, another asks.
    pub(crate) async fn standing(
        &self,
        host: &Host,
        port: u16,
        probe: impl Future<Output = Result<(), UpstreamError>>,
    ) -> Standing {
        let key = (self.generation.load(Ordering::Relaxed), host.clone(), port);
        let before = self.known.get(&key).await;
        let proven = match before {
            Some(known) if known.is_fresh() => return known.standing,
            Some(known) => known.proven,
            None => None,
        };
        let ask = async { Known::from_answer(probe.await, port, proven) };
        let entry = self.known.entry(key).or_insert_with_if(ask, |known| !known.is_fresh()).await;
        entry.into_value().standing
    }

    /// This server did not prove itself when it was needed.
    pub(crate) async fn forget(&self, host: &Host, port: u16) {
        self.known.invalidate(&(self.generation.load(Ordering::Relaxed), host.clone(), port)).await;
    }

    /// Whom to trust may have changed.
    pub(crate) fn forget_all(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.known.invalidate_all();
    }
}

impl Known {
    fn from_answer(answer: Result<(), UpstreamError>, port: u16, proven: Option<Instant>) -> Self {
        let now = Instant::now();
        match answer {
            Ok(()) => Self { standing: Standing::Genuine, until: now + PROVEN, proven: Some(now) },
            // Down is not dishonest, and who says nothing for a moment speaks no other protocol than before.
            Err(error)
                if (error.is_retryable() || is_silence(&error))
                    && proven.is_some_and(|it| now - it < GRACE) =>
            {
                Self { standing: Standing::Genuine, until: now + REFUSED, proven }
            }
            Err(error) if speaks_otherwise(&error, port) => {
                // What was said holds; what was not may be said the next time.
                let holds = if is_silence(&error) { REFUSED } else { PROVEN };
                Self { standing: Standing::OtherProtocol, until: now + holds, proven: None }
            }
            Err(error) => {
                // Whoever failed a check has to pass it again; whoever is down keeps what it proved.
                let proven = proven.filter(|_| error.is_retryable());
                Self { standing: Standing::Refused(error), until: now + REFUSED, proven }
            }
        }
    }

    fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}

/// Whether a server that did not answer a TLS handshake as TLS does is to be left to its clients. At the port of HTTPS
/// silence is a failure, which is better told in our words than waited for in a tunnel.
fn speaks_otherwise(error: &UpstreamError, port: u16) -> bool {
    matches!(&error.kind, Kind::NoTls { silent: false, .. }) || (is_silence(error) && port != HTTPS)
}

/// Whether the server let a TLS handshake begin and said nothing: it waits for its client to speak another protocol, or has
/// too much to do, or is about to start behind something that accepts for it.
fn is_silence(error: &UpstreamError) -> bool {
    matches!(&error.kind, Kind::NoTls { silent: true, .. } | Kind::Timeout { stage: Stage::TlsHandshake, .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Server {
        genuine: Genuine,
        asked: AtomicUsize,
    }

    impl Server {
        fn new() -> Self {
            Self { genuine: Genuine::new(), asked: AtomicUsize::new(0) }
        }

        /// Its standing, when it answers like this.
        async fn at(&self, port: u16, answer: Result<(), Kind>) -> Standing {
            let host: Host = "registry.example".parse().unwrap();
            let probe = async {
                self.asked.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                answer.map_err(error)
            };
            self.genuine.standing(&host, port, probe).await
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    fn error(kind: Kind) -> UpstreamError {
        UpstreamError { host: "registry.example".to_owned(), port: 443, kind }
    }

    fn expired() -> Kind {
        Kind::Tls { reason: "its certificate expired".to_owned() }
    }

    fn down() -> Kind {
        Kind::Closed { reason: "gone".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_is_good_for_ten_minutes_and_a_refusal_for_seconds() {
        let server = Server::new();
        assert_eq!(server.at(443, Ok(())).await, Standing::Genuine);
        tokio::time::advance(PROVEN - Duration::from_secs(1)).await;
        assert_eq!(server.at(443, Err(expired())).await, Standing::Genuine);
        assert_eq!(server.asked(), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        let refused = Standing::Refused(error(expired()));
        assert_eq!(server.at(443, Err(expired())).await, refused);
        assert_eq!(server.at(443, Ok(())).await, refused);
        assert_eq!(server.asked(), 2);
        tokio::time::advance(REFUSED).await;
        assert_eq!(server.at(443, Ok(())).await, Standing::Genuine);
        assert_eq!(server.asked(), 3);
        assert_eq!(server.at(8443, Err(expired())).await, refused, "another port is another server");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_down_is_believed_for_a_day_if_it_has_proven_itself() {
        let server = Server::new();
        assert_eq!(server.at(443, Err(down())).await, Standing::Refused(error(down())));
        tokio::time::advance(REFUSED).await;
        server.at(443, Ok(())).await;
        tokio::time::advance(GRACE - Duration::from_secs(1)).await;
        assert_eq!(server.at(443, Err(down())).await, Standing::Genuine);
        tokio::time::advance(REFUSED).await;
        assert_eq!(server.at(443, Err(down())).await, Standing::Refused(error(down())));
        // A failed check ends it at once.
        tokio::time::advance(REFUSED).await;
        server.at(443, Ok(())).await;
        tokio::time::advance(PROVEN).await;
        server.at(443, Err(expired())).await;
        tokio::time::advance(REFUSED).await;
        assert_eq!(server.at(443, Err(down())).await, Standing::Refused(error(down())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_for_a_moment_is_asked_again_soon() {
        let closed = || Kind::NoTls { reason: "closed".to_owned(), silent: true };
        let late = || Kind::Timeout { stage: Stage::TlsHandshake, after: Duration::from_secs(5) };
        for silence in [closed, late] as [fn() -> Kind; 2] {
            let server = Server::new();
            assert_eq!(server.at(5000, Err(silence())).await, Standing::OtherProtocol);
            tokio::time::advance(REFUSED).await;
            assert_eq!(server.at(5000, Ok(())).await, Standing::Genuine);
            // What it has proven holds while it restarts.
            tokio::time::advance(PROVEN).await;
            assert_eq!(server.at(5000, Err(silence())).await, Standing::Genuine);
            tokio::time::advance(REFUSED).await;
            assert_eq!(server.at(5000, Err(expired())).await, Standing::Refused(error(expired())));
        }
        // Who answers in another protocol is believed at once.
        let server = Server::new();
        server.at(5000, Ok(())).await;
        tokio::time::advance(PROVEN).await;
        let plain = || Err(Kind::NoTls { reason: "plain".to_owned(), silent: false });
        assert_eq!(server.at(5000, plain()).await, Standing::OtherProtocol);
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_wait_are_served_by_one_question() {
        let server = Server::new();
        let all = (0..32).map(|_| server.at(443, Ok(())));
        let all = futures_util::future::join_all(all).await;
        assert!(all.iter().all(|standing| *standing == Standing::Genuine));
        assert_eq!(server.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_is_asked_again() {
        let server = Server::new();
        server.at(443, Ok(())).await;
        server.genuine.forget(&"registry.example".parse().unwrap(), 443).await;
        assert_eq!(server.at(443, Err(expired())).await, Standing::Refused(error(expired())));
        server.genuine.forget_all();
        assert_eq!(server.at(443, Ok(())).await, Standing::Genuine);
        assert_eq!(server.asked(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn another_protocol_is_no_failure_but_silence_at_the_port_of_https_is() {
        let no_tls = |silent| Kind::NoTls { reason: "no".to_owned(), silent };
        let timeout = || Kind::Timeout { stage: Stage::TlsHandshake, after: Duration::from_secs(5) };
        for (port, kind, tunnelled) in [
            (443, no_tls(false), true),
            (22, no_tls(false), true),
            (443, no_tls(true), false),
            (5432, no_tls(true), true),
            (443, timeout(), false),
            (5432, timeout(), true),
            (22, expired(), false),
            (22, down(), false),
        ] {
            let standing = Server::new().at(port, Err(kind.clone())).await;
            assert_eq!(standing == Standing::OtherProtocol, tunnelled, "{port} {kind:?}");
        }
    }
}
