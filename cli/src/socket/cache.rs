//! The calls about content that users imported. Whose it is, is a part of its name: see the head of [`super`].

use std::io;
use std::time::Duration;

use darter_p2p::{
    ClusterStat, Copies, Engine, LocalStat, OpenError, OpenRequest, Opened, TaskId, TaskStat, Told,
};
use darter_protocol::daemon as proto;
use futures_util::{Stream, stream};
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use tonic::{Code, Status};

use super::lend::Lender;
use super::listen::Caller;
use super::service::{Parts, parts};

/// The longest name or tag, in bytes.
const MAX_NAME: usize = 1024;

/// How often a scheduler is asked how many hosts hold something, for a person who waits until they are enough.
const LOOK: Duration = Duration::from_millis(200);

/// Where some content is.
pub(super) async fn stat(
    engine: &Engine,
    caller: &Caller,
    request: proto::StatTaskRequest,
) -> Result<proto::StatTaskResponse, Status> {
    let task = task(caller, request.content)?;
    let (local, cluster) = if request.local {
        (engine.stat_here(task).await.map_err(|error| of_store(&error))?, None)
    } else {
        let TaskStat { local, cluster } = engine.stat(task).await.map_err(|error| of_store(&error))?;
        (local, Some(cluster))
    };
    let mut answer = match local {
        LocalStat::Complete { length, pinned, .. } => {
            proto::StatTaskResponse { here: true, length, pinned, ..Default::default() }
        }
        LocalStat::Fetching { length: Some(length), .. } => {
            proto::StatTaskResponse { length, ..Default::default() }
        }
        _ => proto::StatTaskResponse::default(),
    };
    match cluster {
        None => "only this host was asked".clone_into(&mut answer.unasked),
        Some(ClusterStat::Alone) => "no scheduler is configured".clone_into(&mut answer.unasked),
        Some(ClusterStat::Unreachable) => "no scheduler can be reached".clone_into(&mut answer.unasked),
        Some(ClusterStat::Failed(why)) => answer.unasked = why,
        Some(ClusterStat::Known { stat, .. }) => {
            answer.others = stat.complete.saturating_sub(answer.here.into());
            answer.length = answer.length.max(stat.content.map_or(0, |content| content.length));
        }
    }
    Ok(answer)
}

/// Takes in the file that the caller has handed over.
pub(super) async fn import(
    engine: &Engine,
    caller: &Caller,
    request: proto::ImportTaskRequest,
) -> Result<proto::ImportTaskResponse, Status> {
    if request.content.as_ref().is_some_and(|content| !content.task.is_empty()) {
        return Err(Status::invalid_argument("what is imported is called by a name"));
    }
    let task = task(caller, request.content)?;
    let file =
        caller.file.as_ref().ok_or_else(|| Status::invalid_argument("no file came with the connection"))?;
    let imported = engine.import(task, file.clone()).await.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => Status::invalid_argument("only a regular file can be imported"),
        // Which file that is, the command knows.
        io::ErrorKind::TimedOut => Status::new(Code::DeadlineExceeded, "its file system does not answer"),
        io::ErrorKind::StorageFull => {
            Status::resource_exhausted("it does not fit into the store (storage.diskGCThreshold)")
        }
        io::ErrorKind::ResourceBusy => Status::aborted("it is being fetched or imported at this moment"),
        io::ErrorKind::UnexpectedEof => Status::aborted("the file became shorter while it was read"),
        _ => of_store(&error),
    })?;
    if request.pin {
        keep(engine, task).await?;
    }
    tracing::info!(uid = caller.uid, %task, length = imported.length, pinned = request.pin, "imported for a command");
    Ok(proto::ImportTaskResponse {
        length: imported.length,
        unchanged: imported.unchanged,
        shared: imported.shared,
        outdated: imported.outdated,
    })
}

/// How many hosts hold the content, again and again, until they are enough or there is nobody else.
pub(super) fn replicate(
    engine: Engine,
    caller: &Caller,
    request: proto::ReplicateTaskRequest,
) -> Result<impl Stream<Item = Result<proto::ReplicateTaskResponse, Status>> + use<>, Status> {
    let task = task(caller, request.content)?;
    let hosts = request.hosts;
    tracing::info!(uid = caller.uid, %task, hosts, "copies wanted for a command");
    Ok(stream::unfold(Some(Duration::ZERO), move |pause| {
        let engine = engine.clone();
        async move {
            tokio::time::sleep(pause?).await;
            let said = copied(engine.replicate(task, hosts).await, hosts);
            let goes_on = said.complete < hosts && said.short.is_empty();
            Some((Ok(said), goes_on.then_some(LOOK)))
        }
    }))
}

fn copied(copies: Copies, hosts: u32) -> proto::ReplicateTaskResponse {
    let (complete, pending, short) = match copies {
        Copies::Hosts { complete, pending: 0 } if complete < hosts => {
            (complete, 0, "no other host can take it")
        }
        Copies::Hosts { complete, pending } => (complete, pending, ""),
        Copies::Alone => (1, 0, if hosts > 1 { "no scheduler is configured" } else { "" }),
        Copies::Failed(short) => return proto::ReplicateTaskResponse { complete: 1, pending: 0, short },
    };
    proto::ReplicateTaskResponse { complete, pending, short: short.to_owned() }
}

/// The content, from here or from other daemons.
pub(super) async fn export(
    engine: &Engine,
    caller: &Caller,
    request: proto::ExportTaskRequest,
) -> Result<Parts, Status> {
    let asked = |local| proto::StatTaskRequest { content: request.content.clone(), local };
    let mut is = stat(engine, caller, asked(true)).await?;
    if !is.here && !request.local {
        is = stat(engine, caller, asked(false)).await?;
    }
    let task = task(caller, request.content)?;
    if !is.here && is.others == 0 {
        let why = if is.unasked.is_empty() { "no host has it".to_owned() } else { is.unasked };
        return Err(Status::not_found(format!("it is not on this host: {why}")));
    }
    match engine.open(OpenRequest::imported(task)).await {
        Ok(Opened::Content(content)) => {
            tracing::info!(uid = caller.uid, %task, length = content.info.length, "exported for a command");
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.info.length));
            let lender = Lender::of(caller);
            let body = if lender.is_some() { content.body.lend() } else { content.body };
            Ok(parts((StatusCode::OK, &headers), body, lender))
        }
        Ok(Opened::Relay(_)) => Err(Status::internal("imported content has no origin to answer")),
        Err(OpenError::Store(error)) => Err(of_store(&error)),
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}

/// Keeps the content on this host, or no longer.
pub(super) async fn pin(
    engine: &Engine,
    caller: &Caller,
    request: proto::PinTaskRequest,
) -> Result<proto::PinTaskResponse, Status> {
    let task = task(caller, request.content)?;
    tracing::info!(uid = caller.uid, %task, unpin = request.unpin, "asked by a command to pin or unpin");
    if !request.unpin {
        return keep(engine, task).await;
    }
    if engine.unpin(task).await.map_err(|error| of_store(&error))? {
        Ok(proto::PinTaskResponse::default())
    } else {
        Err(Status::not_found("it is not pinned on this host"))
    }
}

async fn keep(engine: &Engine, task: TaskId) -> Result<proto::PinTaskResponse, Status> {
    let pinned = engine.pin(task).await.map_err(|error| of_store(&error))?;
    let is = pinned.ok_or_else(|| Status::not_found("not all of it is on this host"))?;
    Ok(proto::PinTaskResponse {
        pinned_tasks: is.tasks,
        pinned_bytes: is.bytes,
        quota: is.quota,
        crowding: is.is_crowding(),
    })
}

/// Throws the content away.
pub(super) async fn delete(
    engine: &Engine,
    caller: &Caller,
    request: proto::DeleteTaskRequest,
) -> Result<proto::DeleteTaskResponse, Status> {
    let task = task(caller, request.content)?;
    let deleted = engine.delete(task, !request.local).await;
    let (here, told) = deleted.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => Status::aborted("it is being imported at this moment"),
        _ => of_store(&error),
    })?;
    tracing::info!(uid = caller.uid, %task, here, ?told, "deleted for a command");
    let (others, unasked) = match told {
        None | Some(Told::Alone) => (0, String::new()),
        Some(Told::Hosts(hosts)) => (hosts, String::new()),
        Some(Told::Failed(why)) => (0, why),
    };
    Ok(proto::DeleteTaskResponse { here, others, unasked })
}

/// The pieces of content that is here.
pub(super) async fn pieces(
    engine: &Engine,
    caller: &Caller,
    request: proto::GetPieceTasksRequest,
) -> Result<proto::GetPieceTasksResponse, Status> {
    let task = task(caller, request.content)?;
    let (layout, hashes) = engine
        .pieces(task)
        .await
        .map_err(|error| of_store(&error))?
        .ok_or_else(|| Status::not_found("it is not on this host"))?;
    let hashes = hashes.iter().map(|hash| hash.as_bytes().to_vec().into()).collect();
    Ok(proto::GetPieceTasksResponse { length: layout.length(), piece_size: layout.piece_size(), hashes })
}

/// The task that a caller means.
fn task(caller: &Caller, content: Option<proto::Cached>) -> Result<TaskId, Status> {
    let proto::Cached { id, tag, owner, task } = content.unwrap_or_default();
    let may_all = super::may_all(caller.uid);
    if !task.is_empty() {
        // What a task is called by is no secret, and what it holds may be.
        return if may_all {
            task.parse().map_err(|_| Status::invalid_argument("a task has 64 hexadecimal digits"))
        } else {
            Err(Status::permission_denied("only root may name a task"))
        };
    }
    if id.is_empty() || id.len() > MAX_NAME || tag.len() > MAX_NAME {
        return Err(Status::invalid_argument("a name has 1 to 1,024 bytes, and a tag at most as many"));
    }
    let owner = owner.unwrap_or(caller.uid);
    if owner != caller.uid && !may_all {
        return Err(Status::permission_denied(format!(
            "what user {owner} imported is for that user and root"
        )));
    }
    Ok(TaskId::of_import(owner, &id, &tag))
}

fn of_store(error: &io::Error) -> Status {
    Status::internal(format!("the content store: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn only_root_and_the_daemons_user_may_name_what_is_anothers() {
        let caller = |uid| Caller { uid, file: None, borrower: None, calls: Arc::default() };
        let cached = |owner| Some(proto::Cached { id: "x".to_owned(), owner, ..proto::Cached::default() });
        let own = rustix::process::geteuid().as_raw();
        let (alice, bob) = (own + 1000, own + 1001);
        let of_alice = task(&caller(alice), cached(None)).unwrap();
        assert_eq!(task(&caller(alice), cached(Some(alice))).unwrap(), of_alice);
        assert_eq!(task(&caller(0), cached(Some(alice))).unwrap(), of_alice);
        assert_eq!(task(&caller(own), cached(Some(alice))).unwrap(), of_alice);
        assert_ne!(task(&caller(bob), cached(None)).unwrap(), of_alice);
        let refused = task(&caller(bob), cached(Some(alice))).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(task(&caller(alice), None).is_err());
        let by_task = |task: String| Some(proto::Cached { task, ..proto::Cached::default() });
        assert_eq!(task(&caller(0), by_task(of_alice.to_string())).unwrap(), of_alice);
        let refused = task(&caller(alice), by_task(of_alice.to_string())).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(task(&caller(0), by_task("zz".to_owned())).is_err());
    }
}
