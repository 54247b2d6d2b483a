//! The daemon's own socket, `darter.sock` in its workHome: what the command line asks of a daemon that runs on this host.
//!
//! HTTP/1.1 with JSON over a Unix socket, so that `curl --unix-socket` can ask, too. Only this user (and root) may: an answer
//! says what is cached, and for whom.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use darter_proxy::{Inquiry, Proxy, Step};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::Mode;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::exit::{self, Failure};
use crate::identity;

/// Where the socket stands in the daemon's folder.
const SOCKET: &str = "darter.sock";

/// People ask one after the other.
const BACKLOG: i32 = 16;

/// The longest question, in bytes: a URL and a token.
const MAX_QUESTION: usize = 256 << 10;

/// How long a client of the socket may take to say what it wants, and the daemon to answer: it asks its scheduler.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// What a request would meet: the question of `darter explain`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Explain {
    pub(crate) url: String,
    #[serde(default = "get")]
    pub(crate) method: String,
    #[serde(default)]
    pub(crate) headers: Vec<(String, String)>,
    #[serde(default)]
    pub(crate) client: Option<std::net::IpAddr>,
}

fn get() -> String {
    "GET".to_owned()
}

/// The answer: what each step says.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) step: String,
    pub(crate) says: String,
}

/// The socket of the daemon that works in `work_home`.
pub(crate) fn path(work_home: &Path) -> PathBuf {
    work_home.join(SOCKET)
}

// === the daemon's side ===

/// Takes the socket away when it is dropped. Apart from the socket itself, because nobody waits for tasks at the very end.
pub(crate) struct Sweep(PathBuf);

/// Makes `work_home` when it is not there, and works in it as the only daemon; what it leaves there is swept away at the end.
///
/// # Errors
/// When another daemon works there, or the folder cannot be made or written to.
pub(crate) fn occupy(work_home: &Path) -> exit::Result<Sweep> {
    identity::make_folder(work_home)?;
    identity::take(work_home)?;
    Ok(Sweep(path(work_home)))
}

impl Drop for Sweep {
    fn drop(&mut self) {
        // The next daemon does it otherwise.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds the socket in `work_home`, where no other daemon works ([`crate::identity::take`]).
///
/// # Errors
/// When it cannot be made.
pub(crate) fn bind(work_home: &Path) -> exit::Result<UnixListener> {
    let path = path(work_home);
    let fail = |error: io::Error| {
        Failure::own_files(format!("cannot make the daemon's socket {}: {error}", path.display()))
    };
    // One that a killed daemon left behind.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    private(&path).map_err(fail)
}

/// A socket that is this user's alone from the first moment. The folder lets nobody else in either, unless the operator has
/// opened it.
fn private(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux gives the file the mode that its socket has when it is bound.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(OwnedFd::from(socket).into())
}

/// Serves for as long as it is polled.
pub(crate) async fn run(listener: UnixListener, proxy: Arc<Proxy>) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, Arc::clone(&proxy)))),
                // Out of files, most likely: others close theirs.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
}

async fn serve(stream: UnixStream, proxy: Arc<Proxy>) {
    let service = service_fn(move |request| {
        let proxy = Arc::clone(&proxy);
        async move { Ok::<_, Infallible>(answer(request, &proxy).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASK_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the daemon's socket failed");
    }
}

async fn answer(request: Request<Incoming>, proxy: &Proxy) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if (head.method, head.uri.path()) != (Method::POST, "/explain") {
        return json(StatusCode::NOT_FOUND, &Problem { error: "there is POST /explain here".to_owned() });
    }
    let explained = async {
        let body = Limited::new(body, MAX_QUESTION).collect().await.map_err(|error| error.to_string())?;
        let question = serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())?;
        Ok::<_, String>(proxy.explain(&inquiry(question)?).await)
    };
    match tokio::time::timeout(ASK_TIMEOUT, explained).await {
        Ok(Ok(steps)) => json(StatusCode::OK, &steps.into_iter().map(Said::from).collect::<Vec<_>>()),
        Ok(Err(error)) => json(StatusCode::BAD_REQUEST, &Problem { error }),
        Err(_) => json(StatusCode::GATEWAY_TIMEOUT, &Problem { error: "that took too long".to_owned() }),
    }
}

fn inquiry(question: Explain) -> Result<Inquiry, String> {
    let Explain { url, method, headers, client } = question;
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        // The value may be a secret, so it is not repeated.
        let name = HeaderName::try_from(&name).map_err(|_| format!("{name:?} is no header's name"))?;
        let value = HeaderValue::try_from(&value).map_err(|_| format!("the value of {name} is malformed"))?;
        map.append(name, value);
    }
    Ok(Inquiry {
        method: method.parse().map_err(|_| format!("{method:?} is no method"))?,
        uri: url
            .parse()
            .map_err(|_| "that is no URL: expected http://, https://, or a path at the mirror".to_owned())?,
        headers: map,
        client,
    })
}

#[derive(Serialize, Deserialize)]
struct Problem {
    error: String,
}

impl From<Step> for Said {
    fn from(step: Step) -> Self {
        Self { step: step.subject.to_owned(), says: step.text }
    }
}

fn json(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    // Of strings and lists: that always is JSON.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

// === the command line's side ===

/// Asks the daemon at `socket`.
///
/// # Errors
/// When there is none, or it does not like the question: one sentence.
pub(crate) async fn ask(socket: &Path, question: &Explain) -> exit::Result<Vec<Said>> {
    let asked = tokio::time::timeout(2 * ASK_TIMEOUT, exchange(socket, question)).await;
    match asked {
        Ok(Ok((StatusCode::OK, body))) => serde_json::from_slice(&body).map_err(|_| {
            Failure::unavailable("the daemon's answer is not understood: is it another version?")
        }),
        Ok(Ok((status, body))) => Err(match serde_json::from_slice(&body) {
            Ok(Problem { error }) if status == StatusCode::BAD_REQUEST => Failure::usage_because(error),
            Ok(Problem { error }) => Failure::unavailable(format!("the daemon says: {error}")),
            Err(_) => Failure::unavailable("the daemon's answer is not understood: is it another version?"),
        }),
        Ok(Err(why)) => Err(Failure::unavailable(why)),
        Err(_) => Err(Failure::unavailable("the daemon does not answer")),
    }
}

async fn exchange(socket: &Path, question: &Explain) -> Result<(StatusCode, Bytes), String> {
    let stream = UnixStream::connect(socket).await.map_err(|error| no_daemon(socket, &error))?;
    let lost = |error: hyper::Error| format!("the daemon at {} hung up: {error}", socket.display());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let mut connection = JoinSet::from_iter([connection]);
    let body = serde_json::to_vec(question).map_err(|error| error.to_string())?;
    let request = Request::post("/explain")
        .header(http::header::HOST, "darter")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(lost)?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(lost)?.to_bytes();
    connection.abort_all();
    Ok((status, body))
}

fn no_daemon(socket: &Path, error: &io::Error) -> String {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!(
                "no daemon runs here: nobody listens at {socket} (--config or --work-home name another place)"
            )
        }
        io::ErrorKind::PermissionDenied => format!("only the daemon's user may ask at {socket}"),
        _ => format!("cannot ask the daemon at {socket}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// How a question ends that a daemon answers with this status.
    async fn asked(status: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let socket = path(dir.path());
        let listener = UnixListener::bind(&socket).unwrap();
        let body = r#"{"error":"no"}"#;
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let question = Explain { url: "/".to_owned(), method: get(), headers: Vec::new(), client: None };
        let (failed, ()) = tokio::join!(ask(&socket, &question), serve);
        format!("{:?}", failed.unwrap_err())
    }

    #[tokio::test]
    async fn only_a_question_that_makes_no_sense_is_the_command_lines_fault() {
        for (status, code) in [
            ("400 Bad Request", "code: 64"),
            ("404 Not Found", "code: 69"),
            ("504 Gateway Timeout", "code: 69"),
        ] {
            let failure = asked(status).await;
            assert!(failure.contains(code), "{status}: {failure}");
        }
    }
}
