//! A daemon that takes part, promises every piece, and sends none.

use darter_p2p::TaskId;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use darter_protocol::scheduler::{AnnounceHostRequest, AnnounceTaskRequest, Content, HeldTask, Host};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

pub(crate) struct Silent {
    asked: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Silent {
    /// Tells the scheduler that it holds the task complete.
    pub(crate) async fn start(scheduler: SocketAddr, task: TaskId, content: Content) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = Host {
            id: "silent".to_owned(),
            ip: "127.0.0.1".to_owned(),
            piece_port: listener.local_addr().unwrap().port().into(),
            // Asked first.
            seed: true,
            ..Host::default()
        };
        let mut client = SchedulerClient::connect(format!("http://{scheduler}")).await.unwrap();
        let hello = AnnounceHostRequest { host: Some(host) };
        let life = tokio_stream::iter([hello]).chain(tokio_stream::pending());
        let mut life = client.announce_host(life).await.unwrap().into_inner();
        life.message().await.unwrap();
        let held = HeldTask { task_id: task.as_bytes().to_vec().into(), content: Some(content.clone()) };
        let inventory = AnnounceTaskRequest { host_id: "silent".to_owned(), tasks: vec![held] };
        client.announce_task(inventory).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, length) = (Arc::clone(&asked), content.length);
        let serving = async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(promise(stream, length, Arc::clone(&count)));
            }
        };
        let living = async move { while let Ok(Some(_)) = life.message().await {} };
        let mut tasks = JoinSet::new();
        tasks.spawn(serving);
        tasks.spawn(living);
        Self { asked, _serving: tasks }
    }

    /// How many pieces it was asked for.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Answers a request for a range with a head, and then says nothing more. Of hashes it knows nothing.
async fn promise(stream: TcpStream, length: u64, asked: Arc<AtomicUsize>) {
    let mut stream = BufReader::new(stream);
    let mut range = None;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        if let Some(bytes) = line.trim().strip_prefix("range: bytes=") {
            range = Some(bytes.to_owned());
        }
        if !line.trim().is_empty() {
            continue;
        }
        let head = match &range {
            Some(range) => {
                asked.fetch_add(1, Ordering::Relaxed);
                let (first, last) = range.split_once('-').unwrap();
                let bytes = last.parse::<u64>().unwrap() + 1 - first.parse::<u64>().unwrap();
                format!(
                    "HTTP/1.1 206 \r\nContent-Range: bytes {range}/{length}\r\nContent-Length: {bytes}\r\n\r\n"
                )
            }
            None => "HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n".to_owned(),
        };
        stream.write_all(head.as_bytes()).await.unwrap();
    }
}
