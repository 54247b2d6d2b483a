//! The socket's connections, and whose they are.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use darter_p2p::Engine;
use darter_protocol::daemon::daemon_server::DaemonServer;
use darter_proxy::Proxy;
use futures_util::StreamExt as _;
use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::hand;
use super::service::Service;
use crate::exit::{self, Failure};

/// Commands that wait to be accepted. A script may start hundreds at once.
const BACKLOG: i32 = 256;

/// Calls of one connection at once: a command makes one or a few.
const MAX_STREAMS: u32 = 64;

/// Connections that have not said anything yet, and how long they may take: a command speaks at once.
const MAX_BEGINNING: usize = 256;
const BEGIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait before the next connection is accepted when there are no more files: others close theirs.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that is bound; its file goes when this is dropped.
pub(crate) struct Bound {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // The next daemon does it otherwise.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds the socket at `path`. What a killed daemon left there is replaced; nothing else is.
///
/// # Errors
/// When it cannot be made, or another daemon serves there.
pub(crate) fn bind(path: PathBuf) -> exit::Result<Bound> {
    let fail = |why: String| {
        let place = path.display();
        Failure::own_files(format!(
            "cannot make the socket for commands {place}: {why} (download.downloadGRPC)"
        ))
    };
    clear(&path).map_err(fail)?;
    let listener = open_to_all(&path).map_err(|error| fail(error.to_string()))?;
    Ok(Bound { listener, path })
}

fn clear(path: &Path) -> Result<(), String> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
        Ok(meta) if !meta.file_type().is_socket() => return Err("another file stands there".to_owned()),
        Ok(_) => {}
    }
    if StdUnixStream::connect(path).is_ok() {
        return Err("another program listens there already".to_owned());
    }
    std::fs::remove_file(path).map_err(|error| error.to_string())
}

fn open_to_all(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux gives the file the mode that its socket has when it is bound, less the umask.
    socket.bind(&SockAddr::unix(path)?)?;
    rustix::fs::chmod(path, Mode::from_raw_mode(0o666))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(OwnedFd::from(socket).into())
}

/// Serves until `shutdown`, and then until the calls that are under way have their answers.
///
/// # Errors
/// When the server fails as a whole.
pub(crate) async fn run(
    bound: Bound,
    (proxy, engine): (Arc<Proxy>, Engine),
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let accepted = futures_util::stream::unfold(bound, |bound| async move {
        loop {
            match bound.listener.accept().await {
                Ok((stream, _)) => return Some((stream, bound)),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    });
    let begun = accepted.map(Connection::begin).buffer_unordered(MAX_BEGINNING);
    let connections = begun.filter_map(|begun| {
        if let Err(error) = &begun {
            tracing::debug!(%error, "a command's connection did not begin");
        }
        std::future::ready(begun.ok().map(Ok::<_, io::Error>))
    });
    tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(DaemonServer::new(Service { proxy, engine }))
        .serve_with_incoming_shutdown(connections, shutdown.cancelled())
        .await
}

/// Who calls.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) uid: u32,
    /// What he has handed over.
    pub(super) file: Option<Arc<File>>,
}

struct Connection {
    stream: UnixStream,
    caller: Caller,
}

impl Connection {
    /// A connection whose caller is known, and whose file, if there is one, is here.
    async fn begin(stream: UnixStream) -> io::Result<Self> {
        // Whose it is, is what everything depends on.
        let uid = stream.peer_cred()?.uid();
        let first = stream.async_io(Interest::READABLE, || hand::take(&stream));
        let file = tokio::time::timeout(BEGIN_TIMEOUT, first).await??.map(Arc::new);
        Ok(Self { stream, caller: Caller { uid, file } })
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
