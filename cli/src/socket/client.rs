//! The command line's side of the socket.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;

use darter_protocol::daemon::daemon_client::DaemonClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::hand::{self, What};
use super::lent::Loans;
use crate::exit::{self, Failure};

/// How much of an answer may be on its way, in bytes: some of the daemon's reads of 128 KiB.
const WINDOW: u32 = 4 << 20;

/// The connection broke: the daemon gives no word on why.
const HUNG_UP: &str = "the daemon hung up: it stops, has as many commands as it takes at a time, or waited too long for this one";

/// Connects to the daemon at `socket`.
///
/// # Errors
/// When there is none, or one of a stranger: one sentence.
pub(crate) async fn connect(socket: &Path) -> exit::Result<DaemonClient<Channel>> {
    connect_with(socket, None).await
}

/// The same, and takes open files from it (`lent`).
///
/// # Errors
/// As [`connect`].
pub(crate) async fn connect_to_borrow(socket: &Path) -> exit::Result<(DaemonClient<Channel>, Loans)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|error| no_daemon(socket, &error))?;
    Ok((connect_over(socket, Some((What::Socket, theirs.as_fd()))).await?, Loans::new(ours)))
}

/// The same as [`connect`], and hands `file` over.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn connect_with(
    socket: &Path,
    file: Option<BorrowedFd<'_>>,
) -> exit::Result<DaemonClient<Channel>> {
    connect_over(socket, file.map(|file| (What::File, file))).await
}

async fn connect_over(
    socket: &Path,
    handed: Option<(What, BorrowedFd<'_>)>,
) -> exit::Result<DaemonClient<Channel>> {
    let stream = UnixStream::connect(socket).await.map_err(|error| no_daemon(socket, &error))?;
    let daemon = check(socket, &stream)?;
    let own = rustix::process::geteuid().as_raw();
    // To others nothing is lent.
    let handed = handed.filter(|(what, _)| *what == What::File || own == 0 || own == daemon);
    if let Some((what, file)) = handed {
        hand::give(&stream, what, file).map_err(|error| no_daemon(socket, &error))?;
    }
    let once = Mutex::new(Some(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().ok().and_then(|mut stream| stream.take());
        std::future::ready(stream.map(TokioIo::new).ok_or(io::Error::from(io::ErrorKind::NotConnected)))
    });
    // The name is not looked up by anybody.
    let channel = Endpoint::from_static("http://darter")
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            tracing::debug!(%error, "cannot speak with the daemon");
            Failure::unavailable(HUNG_UP)
        })?;
    Ok(DaemonClient::new(channel))
}

/// Whoever listens gets to see the caller's credentials. So it must be root, the caller himself, or whoever owns the folder
/// in which the socket stands; in /tmp anybody could make one. Gives which user it is.
fn check(socket: &Path, stream: &UnixStream) -> exit::Result<u32> {
    let fail = |error: io::Error| no_daemon(socket, &error);
    let daemon = stream.peer_cred().map_err(fail)?.uid();
    let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let owner = folder.metadata().map_err(fail)?.uid();
    let own = rustix::process::geteuid().as_raw();
    if daemon == 0 || daemon == own || daemon == owner {
        return Ok(daemon);
    }
    let socket = socket.display();
    Err(Failure::not_permitted(format!("user {daemon} listens at {socket}, who is neither root nor you")))
}

fn no_daemon(socket: &Path, error: &io::Error) -> Failure {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::unavailable(format!(
            "no daemon runs here: nobody listens at {socket} (start one, or name its place by --config, --work-home or --socket)"
        )),
        io::ErrorKind::PermissionDenied => Failure::not_permitted(format!(
            "you may not ask the daemon at {socket}: its folder is closed to other users (download.downloadGRPC.unixListen.socket)"
        )),
        _ => Failure::unavailable(format!("cannot ask the daemon at {socket}: {error}")),
    }
}

/// What a call's failure means for the command.
pub(crate) fn failure(status: &Status) -> Failure {
    if std::error::Error::source(status).is_some() {
        return Failure::unavailable(HUNG_UP);
    }
    let message = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument => Failure::usage_because(message),
        Code::DeadlineExceeded => Failure::own_files(message),
        Code::OutOfRange | Code::DataLoss => Failure::not_now(message),
        Code::NotFound => Failure::missing(message),
        Code::PermissionDenied => Failure::not_permitted(message),
        _ => Failure::unavailable(message),
    }
}
