//! A daemon that means no good, beside honest ones: the others get what they want, it is shut out, and the scheduler's memory is
//! bounded. All but the hostile one are real processes.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use darter_e2e::content::{Content, digest_of};
use darter_e2e::darter::{Daemon, START_LIMIT, Scheduler, loopback_config};
use darter_e2e::http;
use darter_e2e::origin::Origin;
use darter_e2e::poll::until;
use darter_e2e::port::Silent;
use darter_protocol::scheduler as proto;
use darter_protocol::scheduler::scheduler_client::SchedulerClient;
use darter_protocol::{Digest, TaskId};
use std::net::SocketAddr;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

const MIB: u64 = 1 << 20;
const DAEMONS: usize = 5;

/// What 200,000 tasks that are made up cost at most, and a thousand streams: `docs/scheduler.md` says 0.9 KiB for a task and
/// 34 KiB for a connection.
const MEMORY: u64 = 260 * MIB;

#[test]
fn a_hostile_daemon_stops_nobody_and_is_shut_out() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let origin = Origin::start(None)?;
    let scheduler = Scheduler::start(folder.path(), 0)?;
    let start = |number: usize| {
        let name = format!("node{number}");
        let folder = folder.path().join(&name);
        std::fs::create_dir(&folder)?;
        let scheduled =
            format!("scheduler: {{ netAddrs: [{{ type: tcp, addr: '{}' }}] }}\n", scheduler.address)
                + "security: { insecure: true }\n";
        Daemon::start(&name, &folder, &(loopback_config(&folder, "") + &scheduled))
    };
    let daemons = (0..DAEMONS).map(start).collect::<Result<Vec<_>>>()?;
    until("the daemons to join", START_LIMIT, || {
        (scheduler.metric("darter_scheduler_hosts ").ok()? == DAEMONS as f64).then_some(())
    })?;
    let before = scheduler.process.resident_memory()?;
    let contents: Vec<Content> = (0..6).map(|n| Content::new(500 + n, 3 * MIB)).collect();
    let at = format!("http://{}", origin.address());
    let wanted: Vec<TaskId> = contents.iter().map(|content| task_of(*content, &at)).collect::<Result<_>>()?;
    let silent = Silent::take()?;

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let evil = runtime.block_on(Evil::announce(scheduler.address, silent.address.port()))?;
    runtime.block_on(async {
        evil.say_that_it_has(&wanted).await?;
        evil.make_tasks_up().await?;
        evil.send_too_much().await?;
        anyhow::Ok(())
    })?;
    let _streams = runtime.block_on(evil.open_streams(1_000))?;

    // It is named as the one that has everything, and nobody reaches it.
    std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for (content, path) in contents.iter().map(|content| (content, origin.put_blob(*content, None))) {
            let url = format!("http://{}{path}", origin.address());
            for daemon in &daemons {
                let url = url.clone();
                clients.push(scope.spawn(move || {
                    let digest = digest_of(http::get(daemon.proxy, &url, &[])?)?;
                    ensure!(digest == content.digest(), "something else came");
                    Ok(())
                }));
            }
        }
        clients.into_iter().try_for_each(|client| client.join().expect("no panic"))
    })
    .with_context(|| daemons.iter().map(|daemon| daemon.process.log()).collect::<String>())?;
    runtime.block_on(evil.talk_nonsense())?;
    until("it to be quarantined", START_LIMIT, || {
        (scheduler.metric("darter_scheduler_hosts_quarantined ").ok()? == 1.0).then_some(())
    })?;
    let cost = scheduler.process.peak_memory()?.saturating_sub(before);
    println!("the scheduler took {} MiB over {} MiB", cost / MIB, before / MIB);
    ensure!(cost < MEMORY, "{cost} bytes");
    // All of it goes with its connection.
    drop(evil);
    runtime.shutdown_background();
    until("what it made up to be gone", START_LIMIT, || {
        (scheduler.metric("darter_scheduler_tasks ").ok()? < 100.0).then_some(())
    })
}

/// What a registry has is named by its digest and the registry; one on loopback, by whose loopback that is besides.
fn task_of(content: Content, registry: &str) -> Result<TaskId> {
    let digest: Digest = content.digest().parse().context("a digest")?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let network = std::fs::read_link("/proc/self/ns/net")?;
    let at = format!("{registry} at {} {}", boot.trim(), network.display());
    Ok(TaskId::of_digest_at(&digest, &at))
}

/// A daemon that says what it likes.
struct Evil {
    client: SchedulerClient<Channel>,
    _line: (mpsc::Sender<proto::AnnounceHostRequest>, Streaming<proto::AnnounceHostResponse>),
}

type Talk = (mpsc::Sender<proto::PieceResult>, Streaming<proto::PeerPacket>);

impl Evil {
    async fn announce(scheduler: SocketAddr, port: u16) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{scheduler}"))?.connect().await?;
        let mut client = SchedulerClient::new(channel).max_encoding_message_size(64 << 20);
        let host = proto::Host {
            id: "evil".to_owned(),
            ip: "127.0.0.1".to_owned(),
            piece_port: port.into(),
            seed: true,
            ..Default::default()
        };
        let (up, sent) = mpsc::channel(4);
        up.send(proto::AnnounceHostRequest { host: Some(host), ..Default::default() }).await?;
        let mut down = client.announce_host(ReceiverStream::new(sent)).await?.into_inner();
        down.message().await?;
        Ok(Self { client, _line: (up, down) })
    }

    async fn say_that_it_has(&self, tasks: &[TaskId]) -> Result<(), tonic::Status> {
        let held = |task: &TaskId| held(task.as_bytes().to_vec(), 3 * MIB);
        self.inventory(tasks.iter().map(held).collect()).await
    }

    async fn inventory(&self, tasks: Vec<proto::HeldTask>) -> Result<(), tonic::Status> {
        let request = proto::AnnounceTaskRequest { host_id: "evil".to_owned(), tasks };
        self.client.clone().announce_task(request).await.map(drop)
    }

    /// As many as it may, and then more.
    async fn make_tasks_up(&self) -> Result<()> {
        for batch in 0..20u32 {
            let id = |n: u32| [&n.to_le_bytes()[..], &[0xee; 28]].concat();
            let tasks = (batch * 10_000..(batch + 1) * 10_000).map(|n| held(id(n), 1)).collect();
            if let Err(status) = self.inventory(tasks).await {
                ensure!(status.code() == tonic::Code::ResourceExhausted, "{status}");
                return Ok(());
            }
        }
        anyhow::bail!("nobody stopped it")
    }

    async fn send_too_much(&self) -> Result<()> {
        for _ in 0..10 {
            let tasks = vec![held(vec![0; 32], 1); 200_000];
            let refused = self.inventory(tasks).await;
            ensure!(refused.is_err_and(|status| status.code() == tonic::Code::OutOfRange));
        }
        Ok(())
    }

    async fn talk(&self) -> Result<Talk> {
        let (up, sent) = mpsc::channel(4);
        let down = self.client.clone().report_piece_result(ReceiverStream::new(sent)).await?;
        Ok((up, down.into_inner()))
    }

    /// Streams on which nothing is said.
    async fn open_streams(&self, number: usize) -> Result<Vec<Talk>> {
        let mut talks = Vec::new();
        for _ in 0..number {
            talks.push(self.talk().await?);
        }
        Ok(talks)
    }

    async fn talk_nonsense(&self) -> Result<()> {
        for n in 0..6u8 {
            let task_id = vec![n; 32];
            let register = proto::RegisterPeerTaskRequest {
                host_id: "evil".to_owned(),
                task_id: task_id.clone().into(),
                ..Default::default()
            };
            // Once it is shut out for what the others said of it, it may be refused.
            self.client.clone().register_peer_task(register).await?;
            let (up, mut down) = self.talk().await?;
            let hash = proto::PieceHash { index: u32::MAX, hash: vec![1; 3].into() };
            let hello = proto::PieceResult {
                host_id: "evil".to_owned(),
                task_id: task_id.into(),
                ..Default::default()
            };
            up.send(hello).await?;
            up.send(proto::PieceResult { from_origin: vec![hash], ..Default::default() }).await?;
            while let Ok(Some(_)) = down.message().await {}
        }
        Ok(())
    }
}

fn held(task_id: Vec<u8>, length: u64) -> proto::HeldTask {
    let content = proto::Content { length, root: vec![9; 32].into(), ..Default::default() };
    proto::HeldTask { task_id: task_id.into(), content: Some(content) }
}
