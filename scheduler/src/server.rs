//! [`run`]: serves a scheduler on a listener until it is told to stop.

use crate::cluster::Cluster;
use crate::metrics::Metrics;
use crate::service::{MAX_STREAMS, Service};
use crate::shared::Shared;
use darter_protocol::scheduler::MAX_MESSAGE_BYTES;
use darter_protocol::scheduler::scheduler_server::SchedulerServer;
use futures_util::Stream;
use futures_util::stream::unfold;
use prometheus_client::registry::Registry;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A connection that says nothing is asked whether it lives after this long, and is given as long to answer: a host whose
/// cable was pulled is out within ten seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How long a shutdown waits for clients that do not read what they were sent.
const DRAIN: Duration = Duration::from_secs(5);

/// A scheduler's state, to be served by [`run`].
#[derive(Clone)]
pub struct Scheduler(Arc<Shared>);

impl Scheduler {
    /// An empty scheduler with a new epoch. Its numbers are shown in `registry`, as `darter_scheduler_*`.
    pub fn new(registry: &mut Registry) -> Self {
        let mut rng: StdRng = rand::make_rng();
        let epoch = rng.random();
        let shared = Arc::new(Shared::new(Cluster::new(epoch, StdRng::from_rng(&mut rng))));
        registry.register_collector(Box::new(Metrics(Arc::clone(&shared))));
        Self(shared)
    }
}

/// The server could not go on.
#[derive(Debug, thiserror::Error)]
#[error("the scheduler's server failed")]
pub struct RunError(#[from] tonic::transport::Error);

/// Serves `scheduler` on `listener` until `shutdown`. Then every stream ends with UNAVAILABLE, so that the daemons go to
/// the next scheduler, and the function returns once the calls under way are answered, or 5 s later.
///
/// # Errors
/// When the server fails as a whole. A connection that fails is its own matter.
pub async fn run(
    listener: TcpListener,
    scheduler: Scheduler,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let shared = scheduler.0;
    let service = SchedulerServer::new(Service(Arc::clone(&shared)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let serve = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming(listener), shutdown.cancelled());
    let drain = async {
        shutdown.cancelled().await;
        shared.close();
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serve => Ok(served?),
        () = shared.keep_time() => Ok(()),
        () = drain => Ok(()),
    }
}

/// The listener's connections, for as long as somebody asks for them.
fn incoming(listener: TcpListener) -> impl Stream<Item = Result<TcpStream, Infallible>> {
    unfold(listener, |listener| async move {
        let (connection, _) = darter_listen::accept(&listener).await;
        Some((Ok(connection), listener))
    })
}
