//! [`Enrolment`]: the gRPC service by which hosts join, and members renew their certificates. [`Caller`]: who calls.

use crate::issuer::{Issued, Issuer, IssuerError};
use crate::member::Member;
use crate::tokens::TokenRefused;
use darter_certs::Secret;
use darter_protocol::HostId;
use darter_protocol::enrolment as proto;
use darter_protocol::enrolment::enrolment_server::{Enrolment as Rpc, EnrolmentServer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;
use tokio::sync::Semaphore;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status};

/// Bytes of a request: a few hundred are one.
const MAX_MESSAGE_BYTES: usize = 8 << 10;

/// Calls of a connection to join by, at most: one is made, and again if it fails. Thousands would fit into it, each of which the server keeps for as long as
/// its body does not come.
const JOINING_CALLS: usize = 16;

/// Requests that are worked on at once.
const AT_ONCE: usize = 4;

/// Who calls, and from where.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The other end's address.
    pub remote: SocketAddr,
    /// What is known of him.
    pub who: Who,
}

/// What is known of somebody at the other end.
#[derive(Debug, Clone)]
pub enum Who {
    /// Nothing: nobody is asked here.
    Anybody,
    /// That he wants to join; and how often he has called.
    Joining(Arc<AtomicUsize>),
    /// That he is this member.
    Member(Member),
}

impl Caller {
    /// The member, where one was asked for.
    pub fn member(&self) -> Option<&Member> {
        match &self.who {
            Who::Member(member) => Some(member),
            Who::Anybody | Who::Joining(_) => None,
        }
    }

    /// Whether he may use what members use.
    pub fn may_ask(&self) -> bool {
        !matches!(self.who, Who::Joining(_))
    }

    /// Whether he may speak for this host: he is it, where anybody was asked.
    pub fn may_speak_for(&self, host: &HostId) -> bool {
        match &self.who {
            Who::Anybody => true,
            Who::Joining(_) => false,
            Who::Member(member) => member.role.is_daemon() && member.id == *host,
        }
    }
}

/// [`Enrolment`] behind the limit of calls.
pub type EnrolmentService =
    InterceptedService<EnrolmentServer<Enrolment>, fn(Request<()>) -> Result<Request<()>, Status>>;

/// Refuses a call by its head where the connection has made too many.
fn few_calls(request: Request<()>) -> Result<Request<()>, Status> {
    match request.extensions().get::<Caller>().map(|caller| &caller.who) {
        Some(Who::Joining(calls)) if calls.fetch_add(1, Ordering::Relaxed) >= JOINING_CALLS => {
            Err(Status::resource_exhausted("this connection has called often enough to join"))
        }
        _ => Ok(request),
    }
}

/// The service, as tonic serves it.
#[derive(Debug, Clone)]
pub struct Enrolment {
    issuer: Issuer,
    /// One wait for the disk and the CA after the other, and never for all threads that may block.
    at_once: Arc<Semaphore>,
}

impl Enrolment {
    pub(crate) fn new(issuer: Issuer) -> Self {
        Self { issuer, at_once: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Ready to be added to a server whose connections are [`Secured`](crate::Secured).
    pub fn into_server(self) -> EnrolmentService {
        let server = EnrolmentServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES);
        InterceptedService::new(server, few_calls as _)
    }

    /// Asks the issuer where it may block for the disk.
    async fn issued(
        &self,
        ask: impl FnOnce(&Issuer, SystemTime) -> Result<Issued, IssuerError> + Send + 'static,
    ) -> Result<Response<proto::Enrolled>, Status> {
        let turn = Arc::clone(&self.at_once).acquire_owned().await;
        let turn = turn.map_err(|error| Status::internal(error.to_string()))?;
        let issuer = self.issuer.clone();
        let asked = tokio::task::spawn_blocking(move || {
            // Kept for as long as the work goes on: it does when the caller has gone.
            let _turn = turn;
            let now = SystemTime::now();
            let issued = ask(&issuer, now)?;
            let expulsions = issuer.expulsions(now)?;
            let roots = issuer.roots()?;
            Ok((
                issued,
                proto::Enrolled {
                    certificate: Vec::new().into(),
                    authorities: roots.certificates().iter().map(|it| it.to_vec().into()).collect(),
                    expulsions: expulsions.statements().map(|(_, it)| it.to_vec().into()).collect(),
                },
            ))
        });
        let asked = asked.await.map_err(|error| Status::internal(error.to_string()))?;
        let (issued, enrolled) = asked.map_err(|error| refused(&error))?;
        tracing::info!(host = %issued.id, "made a certificate");
        Ok(Response::new(proto::Enrolled { certificate: issued.certificate.to_vec().into(), ..enrolled }))
    }
}

#[tonic::async_trait]
impl Rpc for Enrolment {
    async fn enrol(
        &self,
        request: Request<proto::EnrolRequest>,
    ) -> Result<Response<proto::Enrolled>, Status> {
        let caller = request.extensions().get::<Caller>();
        if !caller.is_some_and(|caller| matches!(caller.who, Who::Joining(_))) {
            return Err(Status::permission_denied("this connection is not one to join by"));
        }
        let proto::EnrolRequest { token_id, secret, public_key, name } = request.into_inner();
        let secret = Secret::from(secret);
        self.issued(move |issuer, now| issuer.enrol((&token_id, secret.reveal()), &name, &public_key, now))
            .await
    }

    async fn renew(
        &self,
        request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::Enrolled>, Status> {
        let member = request.extensions().get::<Caller>().and_then(Caller::member).cloned();
        let member = member.filter(|member| member.role.is_daemon());
        let member = member.ok_or_else(|| Status::permission_denied("only members renew a certificate"))?;
        self.issued(move |issuer, now| issuer.renew(&member, now)).await
    }
}

/// What was refused, as a gRPC code: who is not told yes by the first three need not ask again.
fn refused(error: &IssuerError) -> Status {
    let text = error.to_string();
    match error {
        IssuerError::Token(TokenRefused::Unknown) => Status::unauthenticated(text),
        IssuerError::Token(_) | IssuerError::Expelled => Status::permission_denied(text),
        IssuerError::Nobody | IssuerError::Signing(_) => Status::invalid_argument(text),
        IssuerError::File(_) | IssuerError::Authority(_) | IssuerError::TooManyExpelled(_) => {
            tracing::error!(error = text, "cannot make certificates");
            Status::internal("the scheduler cannot make certificates now: see its log")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_to_join_by_is_good_for_a_few_calls() {
        let call = |who: &Who| {
            let mut request = Request::new(());
            let remote = ([127, 0, 0, 1], 1).into();
            request.extensions_mut().insert(Caller { remote, who: who.clone() });
            few_calls(request).is_ok()
        };
        let joining = Who::Joining(Arc::default());
        assert_eq!((0..100).filter(|_| call(&joining)).count(), JOINING_CALLS);
        assert!(call(&Who::Joining(Arc::default())), "another one");
        assert!((0..100).all(|_| call(&Who::Anybody)), "an insecure cluster has no such calls");
    }
}
