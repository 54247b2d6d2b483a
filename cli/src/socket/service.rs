//! The calls of the socket.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;

use darter_p2p::{Engine, ReadError};
use darter_protocol::daemon::daemon_server::Daemon as Rpc;
use darter_protocol::daemon::{self as proto, download_response::Part};
use darter_proxy::{Fetch, Proxy, Refused};
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyStream;
use hyper::body::Bytes;
use tonic::{Request, Response, Status};

use super::cache;
use super::calls::{Answer, Call};
use super::lend::Lender;
use super::listen::Caller;

type BoxError = Box<dyn Error + Send + Sync>;

/// The service, as tonic serves it.
pub(super) struct Service {
    pub(super) proxy: Arc<Proxy>,
    pub(super) engine: Engine,
}

pub(super) type Parts = Pin<Box<dyn Stream<Item = Result<proto::DownloadResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Rpc for Service {
    type DownloadStream = Parts;
    type ExportTaskStream = Parts;
    type ReplicateTaskStream =
        Pin<Box<dyn Stream<Item = Result<proto::ReplicateTaskResponse, Status>> + Send>>;

    async fn download(&self, request: Request<proto::DownloadRequest>) -> Result<Response<Parts>, Status> {
        let (caller, call) = caller(&request)?;
        let lender = Lender::of(&caller);
        let fetch = Fetch { lends: lender.is_some(), ..fetch(caller.uid, request.into_inner())? };
        let answer = self.proxy.fetch(fetch).await.map_err(refused)?;
        let (head, body) = answer.into_parts();
        let parts = parts((head.status, &head.headers), body, lender);
        Ok(Response::new(Box::pin(Answer::new(parts, call))))
    }

    async fn get_piece_tasks(
        &self,
        request: Request<proto::GetPieceTasksRequest>,
    ) -> Result<Response<proto::GetPieceTasksResponse>, Status> {
        let (caller, _call) = caller(&request)?;
        cache::pieces(&self.engine, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn stat_task(
        &self,
        request: Request<proto::StatTaskRequest>,
    ) -> Result<Response<proto::StatTaskResponse>, Status> {
        let (caller, _call) = caller(&request)?;
        cache::stat(&self.engine, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn import_task(
        &self,
        request: Request<proto::ImportTaskRequest>,
    ) -> Result<Response<proto::ImportTaskResponse>, Status> {
        let (caller, _call) = caller(&request)?;
        cache::import(&self.engine, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn export_task(
        &self,
        request: Request<proto::ExportTaskRequest>,
    ) -> Result<Response<Parts>, Status> {
        let (caller, call) = caller(&request)?;
        let parts = cache::export(&self.engine, &caller, request.into_inner()).await?;
        Ok(Response::new(Box::pin(Answer::new(parts, call))))
    }

    async fn replicate_task(
        &self,
        request: Request<proto::ReplicateTaskRequest>,
    ) -> Result<Response<Self::ReplicateTaskStream>, Status> {
        let (caller, call) = caller(&request)?;
        let copies = cache::replicate(self.engine.clone(), &caller, request.into_inner())?;
        Ok(Response::new(Box::pin(Answer::new(Box::pin(copies), call))))
    }

    async fn delete_task(
        &self,
        request: Request<proto::DeleteTaskRequest>,
    ) -> Result<Response<proto::DeleteTaskResponse>, Status> {
        let (caller, _call) = caller(&request)?;
        cache::delete(&self.engine, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn pin_task(
        &self,
        request: Request<proto::PinTaskRequest>,
    ) -> Result<Response<proto::PinTaskResponse>, Status> {
        let (caller, _call) = caller(&request)?;
        cache::pin(&self.engine, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn check_health(
        &self,
        _: Request<proto::CheckHealthRequest>,
    ) -> Result<Response<proto::CheckHealthResponse>, Status> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(proto::CheckHealthResponse { version }))
    }
}

/// Who calls, and that he does. A connection whose caller the system does not know is never accepted.
fn caller<T>(request: &Request<T>) -> Result<(Caller, Call), Status> {
    let caller: Option<Caller> = request.extensions().get().cloned();
    let caller = caller.ok_or_else(|| Status::internal("a call without a caller"))?;
    let call = caller.calls.begin();
    Ok((caller, call))
}

/// An answer: its head, then its bytes, or where they stand.
pub(super) fn parts<B>((status, said): (StatusCode, &HeaderMap), body: B, mut lender: Option<Lender>) -> Parts
where
    B: hyper::body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let (status, headers) = (status.as_u16().into(), headers(said));
    let head = part(Part::Head(proto::Head { status, headers }));
    let data = BodyStream::new(body).filter_map(move |frame| {
        std::future::ready(match frame {
            Ok(frame) => frame.into_data().ok().map(|data| match &mut lender {
                Some(lender) => lender.part(data).map(part).map_err(|error| broken(&error)),
                None => Ok(part(Part::Data(data))),
            }),
            Err(error) => Some(Err(broken(&*error.into()))),
        })
    });
    Box::pin(stream::iter([Ok(head)]).chain(data))
}

fn part(part: Part) -> proto::DownloadResponse {
    proto::DownloadResponse { part: Some(part) }
}

fn headers(map: &HeaderMap) -> Vec<proto::Header> {
    let header = |(name, value): (&HeaderName, &HeaderValue)| proto::Header {
        name: name.as_str().to_owned(),
        value: value.as_bytes().to_vec().into(),
    };
    map.iter().map(header).collect()
}

/// The most headers of one request; a map of them cannot hold more than 24,576 names.
const MAX_HEADERS: usize = 128;

fn fetch(uid: u32, request: proto::DownloadRequest) -> Result<Fetch, Status> {
    let proto::DownloadRequest { url, headers, digest } = request;
    let malformed = |what: String| Status::invalid_argument(what);
    let url =
        url.parse().map_err(|_| malformed("that is no URL: expected http:// or https://".to_owned()))?;
    let digest = (!digest.is_empty()).then(|| digest.parse()).transpose();
    let digest = digest.map_err(|error: darter_protocol::InvalidDigest| malformed(error.to_string()))?;
    if headers.len() > MAX_HEADERS {
        return Err(malformed(format!("a request has at most {MAX_HEADERS} headers")));
    }
    let mut map = HeaderMap::new();
    for proto::Header { name, value } in headers {
        // The value may be a secret, so it is not repeated.
        let name =
            HeaderName::try_from(&name).map_err(|_| malformed(format!("{name:?} is no header's name")))?;
        let value = HeaderValue::from_maybe_shared(value)
            .map_err(|_| malformed(format!("the value of {name} is malformed")))?;
        map.try_append(name, value).map_err(|error| malformed(error.to_string()))?;
    }
    Ok(Fetch { uid, url, headers: map, digest, lends: false })
}

// === errors ===

fn refused(refused: Refused) -> Status {
    let sentence = refused.to_string();
    match refused.status {
        StatusCode::BAD_REQUEST => Status::invalid_argument(sentence),
        StatusCode::FORBIDDEN => Status::permission_denied(sentence),
        StatusCode::RANGE_NOT_SATISFIABLE => Status::out_of_range(sentence),
        _ => Status::unavailable(sentence),
    }
}

/// A body that ends short.
fn broken(error: &(dyn Error + Send + Sync + 'static)) -> Status {
    match error.downcast_ref::<ReadError>() {
        Some(ReadError::Mismatch { .. }) => Status::data_loss(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_too_many_headers_is_refused() {
        let of = |count: usize| {
            let header = |n| proto::Header { name: format!("x-{n}"), value: b"v".to_vec().into() };
            let headers = (0..count).map(header).collect();
            let request = proto::DownloadRequest {
                url: "http://a.example/f".to_owned(),
                headers,
                digest: String::new(),
            };
            fetch(0, request)
        };
        assert_eq!(of(MAX_HEADERS).unwrap().headers.len(), MAX_HEADERS);
        assert_eq!(of(30_000).err().unwrap().code(), tonic::Code::InvalidArgument);
    }
}
