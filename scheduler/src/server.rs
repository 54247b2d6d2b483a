//! [`run`]: serves a scheduler on a listener until it is told to stop.

use crate::access::Access;
use crate::cluster::Cluster;
use crate::metrics::Metrics;
use crate::service::{MAX_STREAMS, Service};
use crate::shared::Shared;
use darter_enrol::{Caller, Enrolment, Expected, Membership, Secured};
use darter_protocol::scheduler::scheduler_server::SchedulerServer;
use darter_protocol::scheduler::{DESCRIPTORS, MAX_MESSAGE_BYTES};
use futures_util::stream::{FuturesUnordered, unfold};
use futures_util::{Stream, StreamExt as _};
use prometheus_client::registry::Registry;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

/// A connection that says nothing is asked whether it lives after this long, and is given as long to answer: a host whose
/// cable was pulled is out within ten seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How long a call may take until its answer begins; a stream's begins at once. A caller's own deadline counts where it is
/// shorter, as our daemons' is. What takes so long is a client that does not send what it began to send, or a crowd far larger
/// than ten thousand hosts, in which those who gave up must not be worked for.
const ANSWER: Duration = Duration::from_secs(15);

/// Bytes of a call's headers: a daemon sends a few hundred.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// Handshakes at once: a connection that is none must not keep the others waiting.
const HANDSHAKES: usize = 1024;

/// How long a shutdown waits for clients that do not read what they were sent.
const DRAIN: Duration = Duration::from_secs(5);

/// A scheduler's state, to be served by [`run`].
#[derive(Clone)]
pub struct Scheduler(Arc<Shared>);

impl Scheduler {
    /// An empty scheduler with a new epoch, which believes whom `membership` does. Its numbers are shown in `registry`, as
    /// `darter_scheduler_*`.
    pub fn new(membership: Membership, registry: &mut Registry) -> Self {
        let mut rng: StdRng = rand::make_rng();
        let epoch = rng.random();
        let shared = Arc::new(Shared::new(Cluster::new(epoch, StdRng::from_rng(&mut rng)), membership));
        registry.register_collector(Box::new(Metrics(Arc::clone(&shared))));
        Self(shared)
    }

    /// The operator's rules about origins, from now on.
    pub fn set_access(&self, access: Access) {
        self.0.with(|cluster, now| cluster.set_access(now, access));
    }
}

/// The server could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The connections cannot be served.
    #[error("the scheduler's server failed")]
    Transport(#[from] tonic::transport::Error),
    /// The description of the service cannot be read: it was built wrong.
    #[error("the scheduler's service cannot be described")]
    Reflection(#[from] tonic_reflection::server::Error),
}

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
    let (health, checks) = tonic_health::server::health_reporter();
    health.set_serving::<SchedulerServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let serve = tonic::transport::Server::builder()
        .timeout(ANSWER)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(InterceptedService::new(service, only_members))
        .add_service(InterceptedService::new(checks, only_members))
        .add_service(InterceptedService::new(reflection, only_members))
        .add_optional_service(shared.membership().enrolment().map(Enrolment::into_server))
        .serve_with_incoming_shutdown(incoming(listener, shared.membership().clone()), shutdown.cancelled());
    let drain = async {
        shutdown.cancelled().await;
        // Before anything ends, so that whoever watches sends nobody new here.
        health.set_not_serving::<SchedulerServer<Service>>().await;
        shared.close();
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serve => Ok(served?),
        () = shared.keep_time() => Ok(()),
        () = drain => Ok(()),
    }
}

/// Who has only come to join may ask nothing else.
fn only_members(request: Request<()>) -> Result<Request<()>, Status> {
    match request.extensions().get::<Caller>() {
        Some(caller) if caller.may_ask() => Ok(request),
        _ => Err(Status::permission_denied("this connection is one to join by, and for nothing else")),
    }
}

/// The listener's connections, with who is at their other ends, for as long as somebody asks for them.
fn incoming(
    listener: TcpListener,
    membership: Membership,
) -> impl Stream<Item = Result<Secured, Infallible>> {
    let handshakes = FuturesUnordered::new();
    unfold((listener, membership, handshakes), |(listener, membership, mut handshakes)| async move {
        loop {
            tokio::select! {
                (connection, remote) = darter_listen::accept(&listener), if handshakes.len() < HANDSHAKES => {
                    let membership = membership.clone();
                    let expected = &Expected::Asker;
                    handshakes.push(async move { membership.accept(connection, remote, expected).await });
                }
                // Who is refused was told so by TLS, and counted.
                Some(done) = handshakes.next() => if let Ok(connection) = done {
                    return Some((Ok(connection), (listener, membership, handshakes)));
                },
            }
        }
    })
}
