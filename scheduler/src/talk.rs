//! The two kinds of streams, as daemons and the cluster speak on them.
//!
//! No task is spawned for a stream: its answer is a future that hears the daemon and speaks to it in turns, and that closes
//! the stream in the cluster when it is dropped, for whatever reason. Since a stream has no queue (`stream.rs`), a daemon
//! that does not read is not read either, and holds up nobody.

use crate::cluster::Taken;
use crate::message::{self, Host, Report};
use crate::service::{closing, malformed, refused, usurped};
use crate::shared::{Attached, Shared};
use crate::speakers::{Introduction, Usurper};
use darter_enrol::{Caller, Membership, Role};
use darter_protocol::scheduler as proto;
use darter_protocol::{HostId, TaskId};
use futures_util::FutureExt;
use futures_util::Stream;
use futures_util::stream::unfold;
use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Status, Streaming};

/// A stream that has not said whose it is by then is closed: no host and no task pays for it.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// What a daemon is answered on a stream.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a stream does next.
enum Event<T> {
    Said(T),
    Ready,
    /// The daemon has said all that it wanted to say.
    End,
}

/// Waits for the daemon's next message, or for something to tell it.
///
/// # Cancel safety
/// Nothing is lost: a message or a wake-up that was not returned comes at the next call.
async fn next_event<T>(inbound: &mut Streaming<T>, attached: &Attached) -> Result<Event<T>, Status> {
    tokio::select! {
        // First, so that a shutdown is heard as such and not as one of its consequences.
        biased;
        () = attached.closing().cancelled() => Err(closing()),
        event = async {
            tokio::select! {
                () = attached.ready() => Ok(Event::Ready),
                message = inbound.message() => Ok(message?.map_or(Event::End, Event::Said)),
            }
        } => event,
    }
}

/// The message by which a stream says whose it is.
async fn first_message<T>(inbound: &mut Streaming<T>, shared: &Shared) -> Result<T, Status> {
    tokio::select! {
        message = tokio::time::timeout(FIRST_MESSAGE, inbound.message()) => match message {
            Ok(message) => message?.ok_or_else(|| Status::invalid_argument("the stream ended before its first message")),
            Err(_) => Err(Status::deadline_exceeded("the stream has not said whose it is")),
        },
        () = shared.closing().cancelled() => Err(closing()),
    }
}

/// A host's life line.
pub(crate) enum LifeLine {
    New(Arc<Shared>, Caller, Streaming<proto::AnnounceHostRequest>),
    Open(Life, Streaming<proto::AnnounceHostRequest>),
}

/// A life line that is open.
pub(crate) struct Life {
    attached: Attached,
    host: HostId,
    introduction: Introduction,
    /// Whether its certificate says so; without certificates everybody may.
    may_be_seed: bool,
    /// Expelled hosts of which it was told, or that it told.
    told: HashSet<HostId>,
    expelled: watch::Receiver<u64>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.attached.silence(&self.host, self.introduction);
        tracing::info!(host = %self.host, "life line ended");
    }
}

impl LifeLine {
    /// The next answer, and the life line that goes on; `None` when it is over.
    pub(crate) async fn next(self) -> Result<Option<(proto::AnnounceHostResponse, Self)>, Status> {
        match self {
            Self::New(shared, caller, mut inbound) => {
                let host = host(first_message(&mut inbound, &shared).await?, shared.membership()).await?;
                let may_be_seed = caller.member().is_none_or(|member| member.role == Role::Seed);
                check_seed(&host, may_be_seed)?;
                let introduction = shared.introduce(&host.id, &caller).map_err(usurped)?;
                tracing::info!(
                    host = %host.id, ip = %host.ip, port = host.piece_port, version = host.version,
                    protocol = host.protocol, "host announced"
                );
                let id = host.id.clone();
                let (opened, epoch) =
                    shared.with(|cluster, now| (cluster.handle_host_announced(now, host), cluster.epoch()));
                let opened = opened.map_err(|refusal| {
                    shared.silence(&id, introduction);
                    refused(refusal)
                })?;
                let (told, expelled) = (HashSet::new(), shared.membership().expelled());
                let attached = Attached::new(shared, opened);
                let mut life = Life { attached, host: id, introduction, may_be_seed, told, expelled };
                let hello = life.says(epoch, &[], &[]);
                Ok(Some((hello, Self::Open(life, inbound))))
            }
            Self::Open(mut life, mut inbound) => loop {
                if let Taken::Ended(why) = life.attached.take() {
                    return why.map_or(Ok(None), |why| Err(refused(why)));
                }
                let (deleted, wanted, epoch) = life.attached.with(|cluster, _, stream| {
                    (cluster.take_deleted(stream), cluster.take_wanted(stream), cluster.epoch())
                });
                let said = life.says(epoch, &deleted, &wanted);
                if !(said.deleted.is_empty() && said.wanted.is_empty() && said.expulsions.is_empty()) {
                    return Ok(Some((said, Self::Open(life, inbound))));
                }
                let event = tokio::select! {
                    event = next_event(&mut inbound, &life.attached) => event?,
                    Ok(()) = life.expelled.changed() => Event::Ready,
                };
                match event {
                    Event::Said(message) => {
                        let host = host(message, life.attached.membership()).await?;
                        check_seed(&host, life.may_be_seed)?;
                        life.attached
                            .with(|cluster, now, stream| cluster.handle_host_renewed(now, stream, host))
                            .map_err(refused)?;
                    }
                    Event::Ready => {}
                    Event::End => return Ok(None),
                }
            },
        }
    }
}

impl Life {
    /// What the daemon is told, with whatever it does not know of who was expelled.
    fn says(&mut self, epoch: u64, deleted: &[TaskId], wanted: &[TaskId]) -> proto::AnnounceHostResponse {
        let [deleted, wanted] =
            [deleted, wanted].map(|tasks| tasks.iter().map(|task| task.as_bytes().to_vec().into()).collect());
        let expulsions = self.attached.membership().news(&mut self.told);
        let expulsions = expulsions.iter().map(|it| it.to_vec().into()).collect();
        proto::AnnounceHostResponse { epoch, deleted, wanted, protocol: proto::PROTOCOL, expulsions }
    }
}

/// No host calls itself a seed, in whichever message, that is none.
fn check_seed(host: &Host, may_be_seed: bool) -> Result<(), Status> {
    if host.seed && !may_be_seed { Err(usurped(Usurper::NoSeed)) } else { Ok(()) }
}

/// The host of a message. Who was expelled, by what the daemon heard elsewhere, is taken in on the way.
async fn host(message: proto::AnnounceHostRequest, membership: &Membership) -> Result<Host, Status> {
    if !message.expulsions.is_empty() {
        let (membership, statements) = (membership.clone(), message.expulsions);
        let learned = move || membership.learn(statements.iter().map(AsRef::as_ref));
        tokio::task::spawn_blocking(learned).await.map_err(|error| Status::internal(error.to_string()))?;
    }
    let host = message.host.ok_or_else(|| Status::invalid_argument("host: it is missing"))?;
    Host::try_from(host).map_err(malformed)
}

/// A download's conversation.
pub(crate) enum Conversation {
    New(Arc<Shared>, Caller, Streaming<proto::PieceResult>),
    Open(Attached, HostId, Streaming<proto::PieceResult>),
}

impl Conversation {
    /// The next packet, and the conversation that goes on; `None` when it is over.
    pub(crate) async fn next(self) -> Result<Option<(proto::PeerPacket, Self)>, Status> {
        let (attached, host, mut inbound) = match self {
            Self::Open(attached, host, inbound) => (attached, host, inbound),
            Self::New(shared, caller, mut inbound) => {
                let mut first = first_message(&mut inbound, &shared).await?;
                let host = message::host_id(std::mem::take(&mut first.host_id)).map_err(malformed)?;
                shared.may_speak(&host, &caller).map_err(usurped)?;
                let task = message::task_id(&first.task_id).map_err(malformed)?;
                let opened = shared.with(|cluster, now| cluster.handle_conversation_opened(now, &host, task));
                let attached = Attached::new(shared, opened.map_err(refused)?);
                hear(&attached, &host, first).await?;
                (attached, host, inbound)
            }
        };
        loop {
            // One message in for each packet out: a peer that is told much is heard all the same.
            match inbound.message().now_or_never().transpose()? {
                Some(Some(message)) => hear(&attached, &host, message).await?,
                Some(None) => return Ok(None),
                None => {}
            }
            match attached.take() {
                Taken::Packet(packet) => return Ok(Some((packet, Self::Open(attached, host, inbound)))),
                Taken::Ended(why) => return why.map_or(Ok(None), |why| Err(refused(why))),
                Taken::Nothing => {}
            }
            match next_event(&mut inbound, &attached).await? {
                Event::Said(message) => hear(&attached, &host, message).await?,
                Event::Ready => {}
                Event::End => return Ok(None),
            }
        }
    }
}

async fn hear(attached: &Attached, host: &HostId, message: proto::PieceResult) -> Result<(), Status> {
    let report = Report::try_from(message).map_err(|invalid| {
        attached.with(|cluster, now, _| cluster.handle_nonsense(now, host));
        malformed(invalid)
    })?;
    if report.is_small() {
        attached
            .in_turn(|cluster, now, stream| cluster.handle_report(now, stream, report))
            .await
            .map_err(refused)
    } else {
        attached.with(|cluster, now, stream| cluster.handle_report(now, stream, report)).map_err(refused)
    }
}

/// A stream of answers from something that gives one and what comes after it. It ends after an error.
pub(crate) fn answers<S, T, F>(start: S, next: impl Fn(S) -> F + Send + Sync + 'static) -> Answers<T>
where
    S: Send + 'static,
    T: Send + 'static,
    F: Future<Output = Result<Option<(T, S)>, Status>> + Send,
{
    let next = Arc::new(next);
    Box::pin(unfold(Some(start), move |state| {
        let next = Arc::clone(&next);
        async move {
            match next(state?).await {
                Ok(Some((answer, state))) => Some((Ok(answer), Some(state))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        }
    }))
}
