//! The socket's connections, and whose they are.

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
use darter_sendfile::View;
use futures_util::StreamExt as _;
use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::calls::{Calls, Clock};
use super::crowd::{Crowd, Place};
use super::hand::{self, What};
use super::handed::Handed;
use super::lend::Borrower;
use super::service::Service;
use crate::exit::{self, Failure};

/// Commands that wait to be accepted. A script may start hundreds at once.
const BACKLOG: i32 = 256;

/// Calls of one connection at once: a command makes one or a few.
const MAX_STREAMS: u32 = 64;

/// Connections at once, and those of one user. Each is a command that runs.
const MAX_CONNECTIONS: usize = 1024;
const MAX_CONNECTIONS_EACH: usize = 256;

/// Files that were handed over and are not closed again, and those of one user. Each may hold some threads.
const MAX_FILES: usize = 64;
const MAX_FILES_EACH: usize = 16;

/// How long a connection may say nothing at its beginning: a command speaks at once.
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

/// Serves until `shutdown`, and then until the calls that are under way have their answers. What is lent lies in `store`.
///
/// # Errors
/// When the server fails as a whole.
pub(crate) async fn run(
    bound: Bound,
    (proxy, engine): (Arc<Proxy>, Engine),
    store: &Path,
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
    let connections = Crowd::new(MAX_CONNECTIONS, MAX_CONNECTIONS_EACH);
    let files = Crowd::new(MAX_FILES, MAX_FILES_EACH);
    let most = connections.most();
    let view = View::of(store).map(Arc::new);
    let view =
        view.inspect_err(|error| tracing::info!(%error, "commands get content over the socket alone")).ok();
    let begin = move |stream| Connection::begin(stream, connections.clone(), files.clone(), view.clone());
    let begun = accepted.map(begin).buffer_unordered(most);
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
    pub(super) file: Option<Handed>,
    /// Where he takes what is lent.
    pub(super) borrower: Option<Borrower>,
    pub(super) calls: Arc<Calls>,
}

struct Connection {
    stream: UnixStream,
    caller: Caller,
    clock: Clock,
    _place: Place,
}

impl Connection {
    /// A connection whose caller is known, and whose file, if there is one, is here.
    async fn begin(
        stream: UnixStream,
        connections: Crowd,
        files: Crowd,
        view: Option<Arc<View>>,
    ) -> io::Result<Self> {
        // Whose it is, is what everything depends on.
        let uid = stream.peer_cred()?.uid();
        let too_many = || io::Error::from(io::ErrorKind::QuotaExceeded);
        let place = connections.join(uid).ok_or_else(too_many)?;
        let comes = stream.async_io(Interest::READABLE, || hand::comes(&stream));
        let (mut file, mut borrower) = (None, None);
        match tokio::time::timeout(BEGIN_TIMEOUT, comes).await?? {
            None => {}
            Some(What::File) => {
                let place = files.join(uid).ok_or_else(too_many)?;
                file = Some(Handed::new(hand::take(&stream)?, place));
            }
            // To close it takes no time, if it is one; whoever may have files is trusted with that.
            Some(What::Socket) if super::may_all(uid) => {
                let socket = hand::take(&stream)?;
                borrower = view.map(|view| Borrower::new(socket, view));
            }
            Some(What::Socket) => return Err(io::ErrorKind::PermissionDenied.into()),
        }
        let calls = Arc::<Calls>::default();
        let clock = Clock::of(Arc::clone(&calls));
        Ok(Self { stream, caller: Caller { uid, file, borrower, calls }, clock, _place: place })
    }
}

impl Connection {
    /// The clock goes on in whatever is waited for: a caller that sends frames which want an answer and takes none (PING) is not
    /// read from any more.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.clock.poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
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
        self.poll_clock(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_clock(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_clock(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_clock(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test(start_paused = true)]
    async fn who_makes_us_write_and_takes_nothing_is_cut_off() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let calls = Arc::<Calls>::default();
        let clock = Clock::of(Arc::clone(&calls));
        let place = Crowd::new(1, 1).join(0).unwrap();
        let caller = Caller { uid: 0, file: None, borrower: None, calls };
        let mut connection = Connection { stream, caller, clock, _place: place };
        // More than the kernel holds for it.
        let much = vec![0; 64 << 20];
        let written = tokio::time::timeout(Duration::from_secs(3600), connection.write_all(&much)).await;
        assert_eq!(written.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
