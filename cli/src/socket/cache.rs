//! The calls about content that users imported. Whose it is, is a part of its name: see the head of [`super`].

use std::io;

use darter_p2p::{
    ClusterStat, Engine, LocalStat, OpenError, OpenRequest, Opened, TaskId, TaskStat, Told, Want,
};
use darter_protocol::Priority;
use darter_protocol::daemon as proto;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use tonic::Status;

use super::listen::Caller;
use super::service::{Parts, parts};

/// The longest name or tag, in bytes.
const MAX_NAME: usize = 1024;

/// Stands where content has its origin; this has none.
const NOWHERE: &str = "imported:";

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
        LocalStat::Complete { length, .. } => {
            proto::StatTaskResponse { here: true, length, ..Default::default() }
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
    let task = task(caller, request.content)?;
    let file =
        caller.file.as_ref().ok_or_else(|| Status::invalid_argument("no file came with the connection"))?;
    let file = file.try_clone().map_err(|error| of_store(&error))?;
    // A pipe or a device could be read for ever.
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(Status::invalid_argument("only a regular file can be imported"));
    }
    let imported = engine.import(task, file).await.map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => {
            Status::resource_exhausted("it does not fit into the store (storage.diskGCThreshold)")
        }
        io::ErrorKind::ResourceBusy => Status::aborted("it is being fetched or imported at this moment"),
        io::ErrorKind::UnexpectedEof => Status::aborted("the file became shorter while it was read"),
        _ => of_store(&error),
    })?;
    tracing::info!(uid = caller.uid, %task, length = imported.length, "imported for a command");
    Ok(proto::ImportTaskResponse {
        length: imported.length,
        unchanged: imported.unchanged,
        shared: imported.shared,
    })
}

/// The content, from here or from other daemons.
pub(super) async fn export(
    engine: &Engine,
    caller: &Caller,
    request: proto::ExportTaskRequest,
) -> Result<Parts, Status> {
    let asked = proto::StatTaskRequest { content: request.content.clone(), local: request.local };
    let task = task(caller, request.content)?;
    let is = stat(engine, caller, asked).await?;
    if !is.here && is.others == 0 {
        let why = if is.unasked.is_empty() { "no host has it".to_owned() } else { is.unasked };
        return Err(Status::not_found(format!("it is not on this host: {why}")));
    }
    let url = NOWHERE.parse().map_err(|_| Status::internal("the place of imported content is no URL"))?;
    let open = OpenRequest {
        task,
        digest: None,
        url,
        headers: HeaderMap::new(),
        want: Want::All,
        priority: Priority::default(),
    };
    match engine.open(open).await {
        Ok(Opened::Content(content)) => {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.info.length));
            Ok(parts(StatusCode::OK, &headers, content.body))
        }
        Ok(Opened::Relay(_)) => Err(Status::internal("imported content has no origin to answer")),
        Err(OpenError::Store(error)) => Err(of_store(&error)),
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}

/// Throws the content away.
pub(super) async fn delete(
    engine: &Engine,
    caller: &Caller,
    request: proto::DeleteTaskRequest,
) -> Result<proto::DeleteTaskResponse, Status> {
    let task = task(caller, request.content)?;
    let deleted = engine.delete(task, !request.local).await;
    let (here, told) = deleted.map_err(|error| of_store(&error))?;
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
    let proto::Cached { id, tag, owner } = content.unwrap_or_default();
    if id.is_empty() || id.len() > MAX_NAME || tag.len() > MAX_NAME {
        return Err(Status::invalid_argument("a name has 1 to 1,024 bytes, and a tag at most as many"));
    }
    let owner = owner.unwrap_or(caller.uid);
    let may_all = caller.uid == 0 || caller.uid == rustix::process::geteuid().as_raw();
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

    #[test]
    fn only_root_and_the_daemons_user_may_name_what_is_anothers() {
        let caller = |uid| Caller { uid, file: None };
        let cached = |owner| Some(proto::Cached { id: "x".to_owned(), tag: String::new(), owner });
        let own = rustix::process::geteuid().as_raw();
        let (alice, bob) = (own + 1000, own + 1001);
        let of_alice = task(&caller(alice), cached(None)).unwrap();
        assert_eq!(task(&caller(alice), cached(Some(alice))).unwrap(), of_alice);
        assert_eq!(task(&caller(0), cached(Some(alice))).unwrap(), of_alice);
        assert_eq!(task(&caller(own), cached(Some(alice))).unwrap(), of_alice);
        assert_ne!(task(&caller(bob), cached(None)).unwrap(), of_alice);
        let refused = task(&caller(bob), cached(Some(alice))).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        assert!(task(&caller(alice), None).is_err());
    }
}
