//! A process of its own, because it uses all its file descriptors up.

use rustix::process::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::net::TcpStream;
use tokio::net::TcpListener;

#[tokio::test]
async fn accepting_goes_on_when_there_are_descriptors_again() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(64);
    setrlimit(Resource::Nofile, limit).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // It stands in the backlog before the descriptors are gone.
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let error = listener.accept().await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()));

    let mut accepting = Box::pin(darter_listen::accept(&listener));
    assert!(futures_util::FutureExt::now_or_never(&mut accepting).is_none());
    hoard.pop();
    let (_, peer) = accepting.await;
    assert_eq!(peer, client.local_addr().unwrap());
}
