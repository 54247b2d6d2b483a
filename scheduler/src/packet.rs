//! What a peer is told: everything that is new to it, as one packet.

use crate::host::{HostKey, Hosts};
use crate::message::Content;
use crate::peer::{Named, Role};
use crate::task::Task;
use crate::world::Cx;
use darter_protocol::scheduler as proto;

/// As many holders of a task are named to whoever asks: more than a person reads.
const MAX_HOLDERS: usize = 32;

impl Task {
    /// What the peer is to be told, if anything. Once taken, it counts as told.
    ///
    /// A lease that was taken back and another that was given since make two packets, the revocation first.
    pub(crate) fn take(&mut self, hosts: &Hosts, key: HostKey) -> Option<proto::PeerPacket> {
        let known = self.hashes.len();
        let download = self.download_mut(key)?;
        let meshes = download.meshes();
        let mut packet = proto::PeerPacket {
            gone: std::mem::take(&mut download.gone).iter().map(ToString::to_string).collect(),
            lease_revoked: std::mem::take(&mut download.news.revoked),
            unshareable: std::mem::take(&mut download.news.unshareable),
            share: std::mem::take(&mut download.news.share).then_some(download.share),
            refused: std::mem::take(&mut download.news.refused).then(|| download.refusal()),
            bridge: std::mem::take(&mut download.news.bridge).then(|| bridge(download.bridge)),
            ..Default::default()
        };
        if !packet.lease_revoked {
            packet.lease = download.news.lease.take().map(|id| proto::Lease { id });
        }
        let content = std::mem::take(&mut download.news.content);
        let sent = std::mem::replace(&mut download.hashes_sent, known);
        let fresh: Vec<HostKey> = download
            .partners
            .iter_mut()
            .filter_map(|(partner, named)| {
                (std::mem::replace(named, Named::Sent) != Named::Sent).then_some(*partner)
            })
            .collect();
        packet.partners =
            fresh.into_iter().filter_map(|partner| self.partner(hosts, (key, partner))).collect();
        packet.hashes = if meshes { self.hashes.since(sent, key) } else { Vec::new() };
        packet.content = self.content.as_ref().filter(|_| content).map(Content::to_proto);
        (packet != proto::PeerPacket::default()).then_some(packet)
    }

    fn partner(&self, hosts: &Hosts, (asking, key): (HostKey, HostKey)) -> Option<proto::Partner> {
        let host = hosts.host(key)?;
        Some(proto::Partner {
            host_id: host.id.to_string(),
            ip: host.ip.to_string(),
            piece_port: u32::from(host.piece_port.get()),
            complete: self.peers.get(&key).is_some_and(|peer| matches!(peer.role, Role::Complete)),
            across: self.seems_across(asking, key),
            bridge: self.are_fellows(asking, key),
        })
    }

    pub(crate) fn wake(&self, cx: &mut Cx<'_>, key: HostKey) {
        if let Some(stream) = self.download(key).and_then(|download| download.stream) {
            cx.world.streams.wake(stream);
        }
    }

    pub(crate) fn wake_all(&self, cx: &mut Cx<'_>, but: Option<HostKey>) {
        let streams =
            self.downloads().filter(|(key, _)| Some(*key) != but).filter_map(|(_, download)| download.stream);
        streams.for_each(|stream| cx.world.streams.wake(stream));
    }

    pub(crate) fn stat(&self, hosts: &Hosts) -> proto::StatTaskResponse {
        let holder = self.lease.as_ref().and_then(|lease| hosts.host(lease.holder));
        proto::StatTaskResponse {
            content: self.content.as_ref().map(Content::to_proto),
            complete: self.complete as u32,
            downloading: self.downloading as u32,
            lease_holder: holder.map(|host| host.id.to_string()).unwrap_or_default(),
            holders: self.holders(hosts),
        }
    }

    /// Some of the hosts that have any of the content, those with all of it first, oldest lives first.
    fn holders(&self, hosts: &Hosts) -> Vec<proto::Holder> {
        let mut keys: Vec<(bool, HostKey)> = self
            .peers
            .iter()
            .filter(|(_, peer)| !matches!(&peer.role, Role::Downloading(download) if download.held == 0))
            .map(|(key, peer)| (!matches!(peer.role, Role::Complete), *key))
            .collect();
        let shown = keys.len().min(MAX_HOLDERS);
        // Ten thousand peers hold a popular task: only those that are shown are put in order.
        if shown < keys.len() {
            keys.select_nth_unstable(shown);
            keys.truncate(shown);
        }
        keys.sort_unstable();
        let holder = |(incomplete, key): (bool, HostKey)| {
            let host = hosts.host(key)?;
            Some(proto::Holder {
                host_id: host.id.to_string(),
                hostname: host.hostname.clone(),
                ip: host.ip.to_string(),
                complete: !incomplete,
                seed: host.seed,
            })
        };
        keys.into_iter().filter_map(holder).collect()
    }
}

fn bridge(bridge: Option<(u32, u32)>) -> proto::Bridge {
    let (number, of) = bridge.unwrap_or_default();
    proto::Bridge { number, of }
}
