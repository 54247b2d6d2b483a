//! Joining a cluster, and staying in it: the other side of `service.rs`.

use crate::home::{Home, Papers};
use crate::membership::{Expected, JOINING, Membership};
use crate::refused::{Refused, explain, reason};
use crate::stream::{Secured, Tls};
use crate::tls;
use crate::token::Token;
use darter_certs::{MemberRoots, date_text};
use darter_protocol::enrolment as proto;
use darter_protocol::enrolment::enrolment_client::EnrolmentClient;
use hyper_util::rt::TokioIo;
use rand::RngExt as _;
use rustls_pki_types::{CertificateDer, ServerName};
use std::convert::Infallible;
use std::io;
use std::time::{Duration, SystemTime};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long one scheduler may take to be reached and to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// The pause before the schedulers are asked again: at first, and at most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// What is read at once while joining.
const READ: usize = 4 << 10;
/// Bytes of an answer: mostly who was expelled.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Why a host did not get a certificate.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EnrolError {
    /// A scheduler said no: it will again.
    #[error("{0}")]
    Refused(String),
    /// No scheduler could be asked.
    #[error("{0}")]
    Unreachable(String),
}

/// A channel to the scheduler at `HOST:PORT`, dialled as this member when it is used.
///
/// # Errors
/// When that is no address.
pub fn channel(
    membership: &Membership,
    address: &str,
    shape: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = shape(Endpoint::from_shared(format!("http://{address}"))?);
    let (membership, address) = (membership.clone(), address.to_owned());
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (membership, address) = (membership.clone(), address.clone());
        async move { membership.connect(address, &Expected::Scheduler).await.map(TokioIo::new) }
    })))
}

/// Joins by `token`, at the first of `schedulers` (`HOST:PORT`) that lets it; `name` is what people call this host. The
/// certificate is kept at `home`, and in force.
///
/// # Errors
/// When none lets it in. The sentence says what to do.
pub async fn enrol(
    membership: &Membership,
    home: &Home,
    token: &Token,
    name: &str,
    schedulers: &[String],
) -> Result<(), EnrolError> {
    let request = proto::EnrolRequest {
        token_id: token.id().to_owned(),
        secret: token.secret().to_owned(),
        public_key: home.key().public_key().into(),
        name: name.to_owned(),
    };
    let ask = |address: String| {
        let (request, channel) = (request.clone(), joining(&address, token));
        let channel = channel.map_err(|error| Status::invalid_argument(error.to_string()));
        async move { client(channel?).enrol(request).await }
    };
    let enrolled = first(schedulers, ask).await?;
    take(membership, home, enrolled).await?;
    tracing::info!(member = ?membership, "joined the cluster");
    Ok(())
}

async fn renew(membership: &Membership, home: &Home, schedulers: &[String]) -> Result<(), EnrolError> {
    let ask = |address: String| async move {
        let channel = channel(membership, &address, |endpoint| endpoint);
        let channel = channel.map_err(|error| Status::invalid_argument(error.to_string()))?;
        client(channel).renew(proto::RenewRequest {}).await
    };
    let enrolled = first(schedulers, ask).await?;
    take(membership, home, enrolled).await?;
    tracing::info!(
        until = membership.member().map(|it| date_text(it.until)),
        "renewed this node's certificate"
    );
    Ok(())
}

/// Keeps this host's certificate from ending: renews it when a third of its time is left, and joins with `token` where there
/// is none that holds. `schedulers` says where to ask. Never returns.
pub async fn keep_renewed<F>(
    membership: Membership,
    home: Home,
    token: Option<(Token, String)>,
    schedulers: impl Fn() -> F,
) -> Infallible
where
    F: Future<Output = Vec<String>>,
{
    let mut pause = FIRST_RETRY;
    loop {
        let now = SystemTime::now();
        if let Some(at) = membership.renew_at()
            && let Ok(wait) = at.duration_since(now)
        {
            // Clocks are set: a long sleep is cut into short ones.
            tokio::time::sleep(wait.min(LAST_RETRY)).await;
            continue;
        }
        let holds = membership.member().is_some_and(|member| member.until > now);
        let schedulers = schedulers().await;
        let done = match &token {
            _ if holds => renew(&membership, &home, &schedulers).await,
            Some((token, name)) => enrol(&membership, &home, token, name, &schedulers).await,
            None => Err(EnrolError::Refused(
                "this node's certificate has ended while it could not renew it: give it a join token (`darter token create` on a scheduler's host)"
                    .to_owned(),
            )),
        };
        match done {
            Ok(()) => pause = FIRST_RETRY,
            Err(error) => {
                tracing::warn!(%error, "this node has no new certificate yet");
                let jitter = rand::rng().random_range(0.5..1.0);
                tokio::time::sleep(pause.mul_f64(jitter)).await;
                pause = (pause * 2).min(LAST_RETRY);
            }
        }
    }
}

fn client(channel: Channel) -> EnrolmentClient<Channel> {
    EnrolmentClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// The answer of the first that gives one. What a scheduler refuses another may grant: each has its own tokens.
async fn first<F>(schedulers: &[String], ask: impl Fn(String) -> F) -> Result<proto::Enrolled, EnrolError>
where
    F: Future<Output = Result<tonic::Response<proto::Enrolled>, Status>>,
{
    let mut failed = EnrolError::Unreachable("there is no scheduler to ask (scheduler.netAddrs)".to_owned());
    let mut all_refuse = true;
    for address in schedulers {
        let asked = tokio::time::timeout(LIMIT, ask(address.clone())).await;
        let status = match asked.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        let why = explained(address, &status);
        let is_final =
            matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument);
        // Who does not answer may be the one that made the token.
        all_refuse &= is_final;
        failed = match failed {
            // The most that any of them said.
            EnrolError::Refused(_) if !is_final => failed,
            _ if is_final => EnrolError::Refused(why),
            _ => EnrolError::Unreachable(why),
        };
    }
    Err(match failed {
        EnrolError::Refused(why) if !all_refuse => EnrolError::Unreachable(why),
        failed => failed,
    })
}

fn explained(address: &str, status: &Status) -> String {
    match explain(status) {
        Some(Refused::Stranger) => format!(
            "scheduler {address}: it is not of the cluster that this node or its join token is for: its CA is another"
        ),
        Some(Refused::Time) => format!(
            "scheduler {address}: its certificate does not hold at this time by this host's clock: set the clocks of both hosts"
        ),
        Some(Refused::HungUp) => format!(
            "scheduler {address}: it hung up before the TLS handshake was done: either too many come to it at once, then it is tried again; or it is one with --insecure"
        ),
        Some(Refused::NoTls) => {
            format!("scheduler {address}: it does not speak TLS there: is it one with --insecure?")
        }
        _ => format!("scheduler {address}: {}", reason(status)),
    }
}

async fn take(membership: &Membership, home: &Home, said: proto::Enrolled) -> Result<(), EnrolError> {
    let odd = |why: String| EnrolError::Refused(format!("the scheduler's answer cannot be used: {why}"));
    let roots = said.authorities.iter().map(|it| CertificateDer::from(it.to_vec())).collect();
    let roots = MemberRoots::new(roots).map_err(odd)?;
    let certificate = CertificateDer::from(said.certificate.to_vec());
    let (membership, home) = (membership.clone(), home.clone());
    let taken = tokio::task::spawn_blocking(move || {
        let papers = Papers { certificate, roots };
        home.keep(&papers).map_err(|error| error.to_string())?;
        membership.take(home.key(), papers)?;
        membership.learn(said.expulsions.iter().map(AsRef::as_ref));
        Ok(())
    });
    taken.await.map_err(|error| error.to_string()).and_then(|taken| taken).map_err(odd)
}

/// A channel to the scheduler at `HOST:PORT`, dialled when it is used by somebody who shows nothing, and knows the scheduler by
/// the CA of `token`.
///
/// # Errors
/// When that is no address.
pub fn joining(address: &str, token: &Token) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let (address, ca) = (address.to_owned(), *token.ca());
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let address = address.clone();
        async move {
            let config = tls::client_of_joining(ca).map_err(io::Error::other)?;
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let remote = stream.peer_addr()?;
            let name = ServerName::IpAddress(remote.ip().into());
            let stream = BufReader::with_capacity(READ, stream);
            let connected = TlsConnector::from(config).connect(name, stream).await;
            let stream: Tls = connected.map_err(|error| io::Error::other(Refused::of(&error)))?.into();
            Ok::<_, io::Error>(TokioIo::new(Secured::joining(stream, remote, JOINING, None)))
        }
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::tests::issuer;
    use crate::{Issuer, Metrics, Role, Terms};
    use tokio::net::TcpListener;

    const MINUTE: Duration = Duration::from_secs(60);

    /// What a host hears whose clock is so far behind that of its scheduler, which has no enrolment service here.
    async fn heard(issuer: &Issuer, behind: Duration) -> String {
        let scheduler = Membership::of_issuer(issuer, Role::Scheduler, "s", Metrics::default()).unwrap();
        scheduler.issue(issuer, Role::Scheduler, "s", SystemTime::now() + behind).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open_or_make(folder.path()).unwrap();
        let membership = Membership::of_home(&home, Metrics::default()).unwrap();
        let terms = Terms { ttl: MINUTE, uses: None, seed: false };
        let token = issuer.create_token(terms, SystemTime::now()).unwrap();
        let serve = async {
            loop {
                let (stream, remote) = listener.accept().await.unwrap();
                let _ = scheduler.accept(stream, remote, &Expected::Asker).await;
            }
        };
        let schedulers = [address];
        tokio::select! {
            joined = enrol(&membership, &home, &token, "n", &schedulers) => joined.unwrap_err().to_string(),
            () = serve => unreachable!("it ends never"),
        }
    }

    #[tokio::test]
    async fn a_clock_that_is_wrong_by_less_than_an_hour_does_not_matter_and_more_is_said() {
        let (_folder, issuer) = issuer();
        let says = "set the clocks of both hosts";
        let near = heard(&issuer, 59 * MINUTE).await;
        assert!(!near.contains(says), "the handshake succeeds: {near}");
        let far = heard(&issuer, 61 * MINUTE).await;
        assert!(far.contains(says) && !far.contains('\n'), "{far}");
    }

    #[test]
    fn a_host_whose_clock_is_an_hour_behind_or_ahead_believes_what_it_was_given() {
        let (_folder, issuer) = issuer();
        let now = SystemTime::now();
        let key = darter_certs::MemberKey::generate().unwrap();
        let given = issuer.own(Role::Node, "n", &key, now).unwrap();
        let roots = issuer.roots().unwrap();
        let holds = |at| roots.check(&given, crate::expulsion::unix(at)).is_ok();
        assert!(holds(now - 60 * MINUTE) && holds(now + 60 * MINUTE));
        assert!(!holds(now - 62 * MINUTE));
    }
}
