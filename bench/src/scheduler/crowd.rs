//! A flash crowd: all hosts begin at once with an image of many layers, and nobody has any of it.

use super::hosts::Host;
use anyhow::{Context, Result};
use darter_protocol::scheduler as proto;
use futures_util::StreamExt as _;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Of each layer.
const LENGTH: u64 = 64 << 20;
const PIECE: u64 = 1 << 20;
/// Layers that one host asks for at a time: what dockerd and containerd do unless they are told otherwise.
const LAYERS_AT_ONCE: usize = 3;
/// No other measurement has contents of these numbers.
const FIRST: usize = 1_000_000;

/// How long each host waited, from its asking, until it had a partner in each layer: one value for each of both.
/// Whoever fetches a first piece from the origin has none until somebody else has something, and is counted like the others.
pub(super) async fn flash(hosts: &[Host], layers: usize) -> Result<Vec<Duration>> {
    let all = hosts.iter().map(|host| async move {
        let layers = (0..layers).map(|layer| joins(host, FIRST + layer));
        futures_util::stream::iter(layers).buffer_unordered(LAYERS_AT_ONCE).collect::<Vec<_>>().await
    });
    let joined: Vec<Vec<Result<Joined>>> = futures_util::future::join_all(all).await;
    // All streams stay open until everybody has come.
    joined.into_iter().flatten().map(|joined| Ok(joined?.after)).collect()
}

struct Joined {
    after: Duration,
    _open: (mpsc::Sender<proto::PieceResult>, tonic::Streaming<proto::PeerPacket>),
}

async fn joins(host: &Host, layer: usize) -> Result<Joined> {
    let began = Instant::now();
    let told = host.register(layer).await?;
    let (mut partners, mut lease) = (told.partners.len(), told.lease);
    let (up, reports) = mpsc::channel(4);
    up.send(host.hello(layer)).await?;
    let mut down = host.client.clone().report_piece_result(ReceiverStream::new(reports)).await?.into_inner();
    loop {
        if lease.take().is_some() {
            let content = Some(proto::Content { length: LENGTH, ..Default::default() });
            let hash = proto::PieceHash { index: 0, hash: vec![1; 32].into() };
            let first = proto::PieceResult {
                content,
                from_origin: vec![hash],
                held_bytes: PIECE,
                origin_bytes: PIECE,
                ..Default::default()
            };
            up.send(first).await?;
        }
        if partners > 0 {
            let after = began.elapsed();
            // It has its first piece a moment later, and is a partner for others.
            up.send(proto::PieceResult { held_bytes: PIECE, ..Default::default() }).await?;
            return Ok(Joined { after, _open: (up, down) });
        }
        let packet = down.message().await?.context("the conversation ended")?;
        (partners, lease) = (partners + packet.partners.len(), packet.lease);
    }
}
