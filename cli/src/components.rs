//! What runs, and how it ends.
//!
//! Every part of the process is a task here. The first signal, or the first part that fails, cancels one token; every part
//! then stops accepting, finishes what is under way and ends. What has not ended after the limit is cut off. A second
//! signal ends the process at once.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::exit::{self, Failure};
use crate::health::Health;

/// How long parts that are cut off may take to say what they were at. It is written, and nothing is waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The parts of this process.
#[derive(Debug)]
pub(crate) struct Components {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    /// Aborted when this is dropped.
    probes: JoinSet<Infallible>,
    shutdown: CancellationToken,
    cut: CancellationToken,
    health: Health,
    signals: Signals,
}

/// SIGTERM and SIGINT, caught since this was made.
#[derive(Debug)]
struct Signals {
    term: Signal,
    int: Signal,
}

impl Components {
    /// No parts yet. From here on a signal is an orderly end, also before [`Self::run`] looks at it.
    pub(crate) fn new(health: Health) -> exit::Result<Self> {
        let signals =
            Signals { term: caught(SignalKind::terminate())?, int: caught(SignalKind::interrupt())? };
        Ok(Self {
            tasks: JoinSet::new(),
            probes: JoinSet::new(),
            shutdown: CancellationToken::new(),
            cut: CancellationToken::new(),
            health,
            signals,
        })
    }

    /// Is cancelled when the process is to end.
    pub(crate) fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Is cancelled when nothing more is waited for: what is under way then is to be cut off and written down.
    pub(crate) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Starts a part that serves: the process is not healthy before it runs. It ends after the shutdown token is
    /// cancelled; if it ends before, it has failed.
    pub(crate) fn serve<E: Into<anyhow::Error>>(
        &mut self,
        name: &'static str,
        server: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let part = self.health.part(name);
        self.tasks.spawn(async move {
            part.serves();
            (name, server.await.map_err(Into::into))
        });
    }

    /// Starts the server that says how the others are. It runs to the very end: probes are to see that the process drains.
    pub(crate) fn probe(&mut self, server: impl Future<Output = Infallible> + Send + 'static) {
        self.probes.spawn(server);
    }

    /// All parts are started: waits for a signal or a failure, then drains for at most `limit`.
    ///
    /// # Errors
    /// When a part failed, or a second signal came.
    pub(crate) async fn run(mut self, limit: Duration) -> exit::Result {
        self.health.running();
        let failure = tokio::select! {
            name = self.signals.next() => {
                tracing::info!(signal = name.0, ?limit, "stopping: finishing what is under way");
                None
            }
            Some(ended) = self.tasks.join_next() => Some(premature(ended)),
        };
        if let Some(why) = &failure {
            tracing::error!("stopping: {why}");
        }
        self.health.draining();
        self.shutdown.cancel();
        let drained = tokio::select! {
            drained = tokio::time::timeout(limit, drain(&mut self.tasks)) => drained,
            name = self.signals.next() => return Err(Failure::signal(name.1)),
        };
        match drained {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => {
                let running = self.tasks.len();
                self.cut.cancel();
                // What does not end now is dropped with this.
                let _ = tokio::time::timeout(LAST_WORDS, drain(&mut self.tasks)).await;
                tracing::warn!(
                    running,
                    "stopped: not everything finished within the limit, the rest was cut off"
                );
            }
        }
        failure.map_or(Ok(()), |why| Err(Failure::software(why)))
    }
}

/// SIGHUP, caught from now on.
pub(crate) fn hangups() -> exit::Result<Signal> {
    caught(SignalKind::hangup())
}

fn caught(kind: SignalKind) -> exit::Result<Signal> {
    signal(kind).map_err(|error| Failure::software(format!("cannot catch signals: {error}")))
}

impl Signals {
    /// The next signal's name and number.
    async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            Some(()) = self.term.recv() => ("SIGTERM", 15),
            Some(()) = self.int.recv() => ("SIGINT", 2),
            else => std::future::pending().await,
        }
    }
}

type Ended = Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>;

/// Why a part that was not asked to has ended.
fn premature(ended: Ended) -> String {
    match ended {
        Ok((name, Ok(()))) => format!("the {name} ended by itself"),
        Ok((name, Err(error))) => format!("the {name} failed: {error:#}"),
        Err(error) => format!("a part of the process failed: {error}"),
    }
}

async fn drain(tasks: &mut JoinSet<(&'static str, anyhow::Result<()>)>) {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok((name, Ok(()))) => tracing::debug!(component = name, "ended"),
            Ok((name, Err(error))) => tracing::warn!(component = name, "ended with an error: {error:#}"),
            Err(error) => tracing::warn!(%error, "a part of the process did not end well"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn components() -> Components {
        Components::new(Health::default()).unwrap()
    }

    #[tokio::test]
    async fn a_part_that_fails_ends_the_others_and_the_process() {
        let mut components = components();
        let shutdown = components.shutdown();
        components.serve("proxy", async move {
            shutdown.cancelled().await;
            Ok::<_, Infallible>(())
        });
        components.serve("scheduler", async { Err(anyhow::anyhow!("no more memory")) });
        let failure = format!("{:?}", components.run(Duration::from_secs(60)).await.unwrap_err());
        assert!(
            failure.contains("the scheduler failed: no more memory") && failure.contains("70"),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn a_part_that_ends_by_itself_or_panics_has_failed() {
        let mut ended = components();
        ended.serve("proxy", async { Ok::<_, Infallible>(()) });
        let failure = format!("{:?}", ended.run(Duration::from_secs(60)).await.unwrap_err());
        assert!(failure.contains("the proxy ended by itself"), "{failure}");

        let mut panicked = components();
        panicked.serve(
            "proxy",
            std::future::poll_fn(|_| -> std::task::Poll<Result<(), Infallible>> { panic!("on purpose") }),
        );
        assert!(panicked.run(Duration::from_secs(60)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_is_cut_off_after_the_limit() {
        let mut components = components();
        components.serve("tunnel", std::future::pending::<Result<(), Infallible>>());
        components.serve("proxy", async { Ok::<_, Infallible>(()) });
        assert!(components.run(Duration::from_secs(30)).await.is_err());
    }
}
