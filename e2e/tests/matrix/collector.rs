//! [`Collector`]: takes traces over gRPC, and keeps their bytes.

use anyhow::Result;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinSet;

/// An answer without a field, as gRPC frames it.
const EMPTY: &[u8] = &[0; 5];

/// Serves on a thread of its own until the test's process ends. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Vec<u8>>>);

impl Collector {
    pub(crate) fn start(listener: TcpListener) -> Result<Self> {
        let collector = Self::default();
        let served = collector.clone();
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || runtime.block_on(served.serve(listener)));
        Ok(collector)
    }

    /// All that was sent so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn serve(self, listener: TcpListener) -> Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            let kept = self.clone();
            let service = service_fn(move |request| kept.clone().take(request));
            let server = http2::Builder::new(TokioExecutor::new());
            connections.spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    }

    async fn take(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible>>> {
        let sent = request.into_body().collect().await?.to_bytes();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&sent);
        let ok = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
        let trailers = HeaderMap::from_iter([ok]);
        let body = Full::new(Bytes::from_static(EMPTY)).with_trailers(async move { Some(Ok(trailers)) });
        Ok(Response::builder().header("content-type", "application/grpc").body(body)?)
    }
}
