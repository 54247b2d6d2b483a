//! [`Conversation`]: what a download and its scheduler say to each other; and how it begins ([`Schedulers::join`]).

use super::Schedulers;
use super::link::{LAST_WORDS, Link, in_time};
use crate::OpenRequest;
use darter_protocol::scheduler::{
    Content, LeaseOutcome, LeaseReturned, PeerPacket, PieceResult, RegisterPeerTaskRequest,
    ReportPeerResultRequest,
};
use darter_protocol::{TaskId, UrlPrefix};
use rand::RngExt;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// The pause before a download whose conversation ended registers anew, at most. A scheduler that answers, and ends every
/// conversation, must not be asked without end.
const REJOIN_PAUSE: Duration = Duration::from_millis(200);
/// Whoever holds a lease says at least so often that it is there, whether anything came or not: the scheduler passes the lease of
/// one of whom it hears nothing for four times as long on to the next (`HOLDER_SILENT` in `darter_scheduler`).
pub(crate) const BEAT: Duration = Duration::from_millis(500);
/// Messages that wait for the network in either direction of one conversation. Reports are merged while they cannot be
/// sent; packets that do not fit make the scheduler wait.
const QUEUE: usize = 64;

impl Schedulers {
    /// Registers with the task's scheduler, or with the next where that has just been lost.
    ///
    /// # Errors
    /// What the last one said that was asked.
    pub(crate) async fn join(
        &self,
        task: &TaskId,
        mut arrival: Arrival,
        claim: &Claim,
    ) -> Result<Joined, Status> {
        let mut lost = Ok(Joined::Nobody);
        for (link, settling) in self.ways(task) {
            arrival.moved |= settling;
            let address = link.address.clone();
            match link.join(*task, arrival, claim.clone()).await {
                Err(status) if is_lost(&status) => {
                    tracing::debug!(%task, scheduler = address, reason = status.message(), "a scheduler does not answer");
                    arrival.moved = true;
                    lost = Err(status);
                }
                joined => return joined,
            }
        }
        lost
    }
}

impl Link {
    /// Asks for a task, and opens the conversation about it. The answer comes as the conversation's first packet.
    async fn join(
        self: Arc<Self>,
        task: TaskId,
        Arrival { held_bytes, moved, at_origin }: Arrival,
        claim: Claim,
    ) -> Result<Joined, Status> {
        let request = RegisterPeerTaskRequest {
            host_id: self.host_id.clone(),
            task_id: task.as_bytes().to_vec().into(),
            held_bytes,
            origin: claim.origin,
            url_prefixes: claim.url_prefixes,
            priority: claim.priority,
            moved,
            at_origin,
        };
        let answer = in_time(self.client.clone().register_peer_task(request)).await?.into_inner();
        if let Some(refused) = answer.refused.as_ref().filter(|refused| refused.for_good) {
            return Ok(Joined::Refused(refused.reason.clone()));
        }
        let (up, outgoing) = mpsc::channel(QUEUE);
        let (packets, down) = mpsc::channel(QUEUE);
        let hello = PieceResult {
            host_id: self.host_id.clone(),
            task_id: task.as_bytes().to_vec().into(),
            held_bytes,
            ..PieceResult::default()
        };
        up.try_send(hello).map_err(|_| Status::internal("the queue is full"))?;
        let mut client = self.client.clone();
        let listening = tokio::task::JoinSet::from_iter([async move {
            let Ok(stream) = client.report_piece_result(ReceiverStream::new(outgoing)).await else { return };
            let mut stream = stream.into_inner();
            while let Ok(Some(packet)) = stream.message().await {
                if packets.send(packet).await.is_err() {
                    return;
                }
            }
        }]);
        let barred = answer.barred;
        let talk = Conversation { link: self, task, up: Some(up), down, barred, _listening: listening };
        Ok(Joined::Talking(talk, Box::new(PeerPacket::from(answer))))
    }
}

// === impl Claim ===

/// What a scheduler is told of a download besides its task: what its operator's rules go by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    origin: String,
    url_prefixes: Vec<bytes::Bytes>,
    priority: u32,
}

impl Claim {
    pub(crate) fn of(request: &OpenRequest) -> Self {
        let priority = request.priority.number();
        // Content that was put into the network has no origin.
        let Some(host) = request.url.host_str().filter(|_| request.url.scheme().starts_with("http")) else {
            return Self { priority, ..Self::default() };
        };
        let port = request.url.port().map(|port| format!(":{port}"));
        let origin = format!("{host}{}", port.unwrap_or_default());
        let prefixes = UrlPrefix::all(&origin, request.url.path());
        let url_prefixes = prefixes.iter().map(|prefix| prefix.as_bytes().to_vec().into()).collect();
        Self { origin, url_prefixes, priority }
    }
}

/// How a download comes to a scheduler.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Arrival {
    /// Verified bytes that are here.
    pub(crate) held_bytes: u64,
    /// It comes from another scheduler, or others who are in it may.
    pub(crate) moved: bool,
    /// It reads from the origin meanwhile, by the word of the scheduler before.
    pub(crate) at_origin: bool,
}

/// The answer to a registration.
pub(crate) enum Joined {
    /// The conversation, and its first packet.
    Talking(Conversation, Box<PeerPacket>),
    /// The operator's rules refuse it, for this reason.
    Refused(String),
    /// No scheduler is there.
    Nobody,
}

// === impl Conversation ===

/// The conversation about one task. Dropping it ends it.
pub(crate) struct Conversation {
    link: Arc<Link>,
    task: TaskId,
    /// `None` once there is no more to report.
    up: Option<mpsc::Sender<PieceResult>>,
    down: mpsc::Receiver<PeerPacket>,
    /// The operator's rules keep this download from the origin.
    barred: bool,
    _listening: tokio::task::JoinSet<()>,
}

impl Conversation {
    /// The next packet; `None` when the scheduler is gone.
    ///
    /// # Cancel safety
    /// No packet is lost.
    pub(crate) async fn next(&mut self) -> Option<PeerPacket> {
        self.down.recv().await
    }

    /// The scheduler's address.
    pub(crate) fn address(&self) -> String {
        self.link.address.clone()
    }

    /// Whether the download may never go to the origin, while this lasts.
    pub(crate) fn is_barred(&self) -> bool {
        self.barred
    }

    /// Gives the lease back for others to come by it elsewhere: the download moves to another scheduler.
    pub(crate) fn take_along(&self, lease_id: u64) {
        let lease_returned = Some(LeaseReturned { lease_id, outcome: LeaseOutcome::Moved.into() });
        // Where there is no room for it, the end of the conversation gives the lease back, to whoever is next.
        let _ = self.report(Box::new(PieceResult { lease_returned, ..PieceResult::default() }));
    }

    /// Whether it is held with this scheduler.
    pub(crate) fn is_with(&self, link: &Link) -> bool {
        self.link.address == link.address
    }

    /// Sends a report if there is room for it now; otherwise gives it back, to be merged with what comes.
    pub(crate) fn report(&self, report: Box<PieceResult>) -> Result<(), Box<PieceResult>> {
        match self.up.as_ref().and_then(|up| up.try_reserve().ok()) {
            Some(place) => {
                place.send(*report);
                Ok(())
            }
            None => Err(report),
        }
    }

    /// Says `word` each [`BEAT`], for as long as this is polled and the conversation lasts.
    pub(crate) fn beats(&self, word: PieceResult) -> impl Future<Output = Infallible> + Send + use<> {
        beats(self.up.as_ref().map(mpsc::Sender::downgrade), word)
    }

    /// Tells how the download ended, and ends the conversation. Returns whether the scheduler has heard it.
    ///
    /// With the whole content, the end of the download is this word, and a lease lasts until it is heard. Otherwise the
    /// end is that of the conversation, so that all that was reported is heard before.
    pub(crate) async fn finish(
        mut self,
        complete: Option<Content>,
        from_origin: u64,
        from_peers: u64,
    ) -> bool {
        match &self.up {
            Some(up) if complete.is_some() => {
                let _ = tokio::time::timeout(LAST_WORDS, up.reserve_many(QUEUE)).await;
            }
            _ => self.end().await,
        }
        let request = ReportPeerResultRequest {
            host_id: self.link.host_id.clone(),
            task_id: self.task.as_bytes().to_vec().into(),
            complete,
            bytes_from_origin: from_origin,
            bytes_from_peers: from_peers,
        };
        let heard = in_time(self.link.client.clone().report_peer_result(request)).await;
        if let Err(status) = &heard {
            tracing::debug!(task = %self.task, reason = status.message(), "cannot report the end of a download");
        }
        heard.is_ok()
    }

    /// Says that there is no more to report, and waits until the scheduler has heard all of it. Dropped without that, a
    /// conversation takes along what was reported last.
    pub(crate) async fn end(&mut self) {
        self.up = None;
        let heard = async { while self.down.recv().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_WORDS, heard).await;
    }
}

async fn beats(up: Option<mpsc::WeakSender<PieceResult>>, word: PieceResult) -> Infallible {
    loop {
        tokio::time::sleep(BEAT).await;
        let Some(up) = up.as_ref().and_then(mpsc::WeakSender::upgrade) else { break };
        // Where there is no room for it, other reports are on their way.
        let _ = up.try_send(word.clone());
    }
    std::future::pending().await
}

/// Whether a call failed because the scheduler is gone, or is no more what it was: another one may answer.
pub(crate) fn is_lost(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
    )
}

/// How long a download whose conversation has ended waits before it registers anew.
pub(crate) fn rejoin_pause() -> Duration {
    REJOIN_PAUSE.mul_f64(rand::rng().random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_beat_is_heard_each_second_and_keeps_no_conversation_open() {
        let (up, mut heard) = mpsc::channel(1);
        let mut beating =
            tokio::task::JoinSet::from_iter([beats(Some(up.downgrade()), PieceResult::default())]);
        let began = tokio::time::Instant::now();
        for beat in 1..5 {
            assert!(heard.recv().await.is_some());
            assert_eq!(began.elapsed(), BEAT * beat);
        }
        drop(up);
        assert!(heard.recv().await.is_none());
        assert!(beating.try_join_next().is_none());
    }

    #[test]
    fn what_a_scheduler_is_told_of_a_download_does_not_depend_on_who_asks() {
        let told = |url: &str, shown: &[(http::HeaderName, &'static str)]| {
            let headers =
                shown.iter().map(|(name, value)| (name.clone(), http::HeaderValue::from_static(value)));
            let (url, headers) = (url.parse().unwrap(), headers.collect());
            let request = OpenRequest { url, headers, ..OpenRequest::imported(TaskId::from([1; 32])) };
            format!("{:?}", Claim::of(&request))
        };
        let nobody = told("https://registry.example:444/v2/a/blobs/b", &[]);
        assert!(nobody.contains("registry.example:444"), "{nobody}");
        let shown = [
            (http::header::AUTHORIZATION, "Bearer planted"),
            (http::header::COOKIE, "session=planted"),
            (http::header::PROXY_AUTHORIZATION, "Basic planted"),
            (http::HeaderName::from_static("private-token"), "planted"),
        ];
        let url = "https://planted:planted@registry.example:444/v2/a/blobs/b?X-Amz-Signature=planted#planted";
        assert_eq!(told(url, &shown), nobody);
    }
}
