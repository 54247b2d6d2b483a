//! [`Line`]: a way to a scheduler on which its answers can be held up.

use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    held: watch::Sender<bool>,
    _server: JoinSet<()>,
}

impl Line {
    pub(crate) async fn to(scheduler: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let held = watch::Sender::new(false);
        let watched = held.subscribe();
        let server = JoinSet::from_iter([async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let held = watched.clone();
                connections.spawn(async move { forward(near, scheduler, held).await });
            }
        }]);
        Self { address, held, _server: server }
    }

    /// What the scheduler says does not come from now on. It hears everything on.
    pub(crate) fn hold(&self) {
        self.held.send_replace(true);
    }

    pub(crate) fn release(&self) {
        self.held.send_replace(false);
    }
}

/// Until either side closes.
async fn forward(near: TcpStream, scheduler: SocketAddr, mut held: watch::Receiver<bool>) -> Option<()> {
    let (mut from, mut to) = near.into_split();
    let (mut down, mut up) = TcpStream::connect(scheduler).await.ok()?.into_split();
    let said = tokio::io::copy(&mut from, &mut up);
    let heard = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = down.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
            held.wait_for(|held| !held).await.ok()?;
            to.write_all(&buffer[..read]).await.ok()?;
        }
    };
    tokio::select! {
        _ = said => None,
        ended = heard => ended,
    }
}
