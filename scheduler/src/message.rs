//! What a daemon's message must look like before the cluster sees it: every id checked, every list and text bounded.
//!
//! The types here are the checked forms; holding one is the proof. What depends on the cluster's state (is the host
//! alive, does the piece exist) is checked there.

use darter_protocol::scheduler as proto;
use darter_protocol::{HostId, PieceHash, PieceLayout, Priority, Root, TaskId, UrlPrefix};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

/// Bytes of a hostname, an idc or a location: what DNS allows a name to have (RFC 1035, section 2.3.4).
const MAX_TEXT: usize = 255;
/// Bytes of an origin's host with its port.
const MAX_ORIGIN: usize = MAX_TEXT + 6;
/// Bytes of a version.
const MAX_VERSION: usize = 64;
/// Headers that belong to content, and the bytes of their names and values together.
const MAX_HEADERS: usize = 32;
const MAX_HEADER_BYTES: usize = 8 << 10;
/// Tasks in one AnnounceTask or LeaveTask message.
const MAX_TASKS: usize = 10_000;
/// Failures, and partners that served, in one message: a peer has a few dozen partners.
const MAX_FAILURES: usize = 1_000;

/// A message that no honest daemon sends: which field, and what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    field: &'static str,
    reason: &'static str,
}

const fn invalid<T>(field: &'static str, reason: &'static str) -> Result<T, Invalid> {
    Err(Invalid { field, reason })
}

fn bounded(field: &'static str, length: usize, max: usize) -> Result<(), Invalid> {
    if length > max { invalid(field, "too long") } else { Ok(()) }
}

/// The id of a host.
///
/// # Errors
/// When it is not one.
pub fn host_id(text: String) -> Result<HostId, Invalid> {
    HostId::try_from(text)
        .or(invalid("host_id", "it must have 1 to 128 characters, only letters, digits, '.', '_' and '-'"))
}

/// The id of a task.
///
/// # Errors
/// When it is not one.
pub fn task_id(bytes: &[u8]) -> Result<TaskId, Invalid> {
    TaskId::try_from(bytes).or(invalid("task_id", "it must have 32 bytes"))
}

/// A LeaveTask message's tasks.
///
/// # Errors
/// When there are too many, or one is no task id.
pub fn task_ids<B: AsRef<[u8]>>(ids: &[B]) -> Result<Vec<TaskId>, Invalid> {
    bounded("task_ids", ids.len(), MAX_TASKS)?;
    ids.iter().map(|id| task_id(id.as_ref())).collect()
}

/// A daemon as others reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name, stable over restarts.
    pub id: HostId,
    /// What people call it.
    pub hostname: String,
    /// Where other daemons dial it.
    pub ip: IpAddr,
    /// Port of its piece server.
    pub piece_port: NonZeroU16,
    /// Its data centre; may be empty.
    pub idc: String,
    /// Where it stands, widest first, separated by '|'; may be empty.
    pub location: String,
    /// A seed is asked first for a first copy.
    pub seed: bool,
    /// How many uploads it serves at once; it enforces this itself.
    pub upload_slots: u32,
    /// It is about to stop: nobody new is sent to it.
    pub draining: bool,
    /// How many more uploads it could begin now, when it says so.
    pub free_uploads: Option<u32>,
    /// Its daemon's version; may be empty.
    pub version: String,
    /// The number of the protocol that it speaks.
    pub protocol: u32,
}

impl Host {
    /// As it travels.
    pub(crate) fn to_proto(&self) -> proto::Host {
        proto::Host {
            id: self.id.to_string(),
            hostname: self.hostname.clone(),
            ip: self.ip.to_string(),
            piece_port: self.piece_port.get().into(),
            idc: self.idc.clone(),
            location: self.location.clone(),
            seed: self.seed,
            upload_slots: self.upload_slots,
            draining: self.draining,
            free_uploads: self.free_uploads,
            version: self.version.clone(),
            protocol: self.protocol,
        }
    }
}

impl TryFrom<proto::Host> for Host {
    type Error = Invalid;

    fn try_from(host: proto::Host) -> Result<Self, Invalid> {
        bounded("host.hostname", host.hostname.len(), MAX_TEXT)?;
        bounded("host.idc", host.idc.len(), MAX_TEXT)?;
        bounded("host.location", host.location.len(), MAX_TEXT)?;
        bounded("host.version", host.version.len(), MAX_VERSION)?;
        let ip: IpAddr = host.ip.parse().or(invalid("host.ip", "it must be an IPv4 or IPv6 address"))?;
        if ip.is_unspecified() || ip.is_multicast() {
            return invalid("host.ip", "nobody can dial it");
        }
        let piece_port = u16::try_from(host.piece_port).ok().and_then(NonZeroU16::new);
        let Some(piece_port) = piece_port else {
            return invalid("host.piece_port", "it must be 1 to 65535");
        };
        Ok(Self {
            id: host_id(host.id)?,
            hostname: host.hostname,
            ip,
            piece_port,
            idc: host.idc,
            location: host.location,
            seed: host.seed,
            upload_slots: host.upload_slots,
            draining: host.draining,
            free_uploads: host.free_uploads,
            version: host.version,
            protocol: host.protocol,
        })
    }
}

/// What is known of a task's content.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// Its length, and with it its pieces.
    pub layout: PieceLayout,
    /// The origin's headers that belong to it.
    pub headers: Arc<[proto::Header]>,
    /// Its hash, once somebody holds all of it.
    pub root: Option<Root>,
}

impl Content {
    /// Content that somebody holds complete: with its root.
    ///
    /// # Errors
    /// As [`Self::try_from`], and when the root is missing.
    pub fn complete(content: Option<proto::Content>) -> Result<Self, Invalid> {
        let Some(content) = content else {
            return invalid("content", "it is missing");
        };
        let content = Self::try_from(content)?;
        if content.root.is_none() {
            return invalid("content.root", "it must have 32 bytes when the content is complete");
        }
        Ok(content)
    }

    /// As it travels.
    pub(crate) fn to_proto(&self) -> proto::Content {
        proto::Content {
            length: self.layout.length(),
            headers: self.headers.to_vec(),
            root: self.root.map(|root| root.as_bytes().to_vec().into()).unwrap_or_default(),
        }
    }
}

impl TryFrom<proto::Content> for Content {
    type Error = Invalid;

    fn try_from(content: proto::Content) -> Result<Self, Invalid> {
        let Some(layout) = PieceLayout::new(content.length) else {
            return invalid("content.length", "longer than any content may be");
        };
        bounded("content.headers", content.headers.len(), MAX_HEADERS)?;
        let bytes = content.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        bounded("content.headers", bytes, MAX_HEADER_BYTES)?;
        let root = match content.root.as_ref() {
            [] => None,
            root => Some(Root::try_from(root).or(invalid("content.root", "it must have 32 bytes"))?),
        };
        Ok(Self { layout, headers: content.headers.into(), root })
    }
}

/// A task of a host's inventory.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// Which task.
    pub task: TaskId,
    /// Its content, with its root.
    pub content: Content,
}

/// An AnnounceTask message's tasks.
///
/// # Errors
/// When there are too many, or one of them is malformed.
pub fn inventory(tasks: Vec<proto::HeldTask>) -> Result<Vec<Held>, Invalid> {
    bounded("tasks", tasks.len(), MAX_TASKS)?;
    tasks
        .into_iter()
        .map(|held| Ok(Held { task: task_id(&held.task_id)?, content: Content::complete(held.content)? }))
        .collect()
}

/// What a host says when it wants a task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registration {
    /// Bytes of it that the host holds, verified.
    pub held: u64,
    /// The origin's host in lower case, with its port where that is not the scheme's own; empty: unknown.
    pub origin: Arc<str>,
    /// The beginnings of its URL.
    pub url_prefixes: Vec<UrlPrefix>,
    /// How urgent it is.
    pub priority: Priority,
    /// Others who are in the same download may be on their way here from another scheduler.
    pub moved: bool,
    /// It reads from the origin already, by another scheduler's word.
    pub at_origin: bool,
}

impl TryFrom<&proto::RegisterPeerTaskRequest> for Registration {
    type Error = Invalid;

    fn try_from(request: &proto::RegisterPeerTaskRequest) -> Result<Self, Invalid> {
        bounded("origin", request.origin.len(), MAX_ORIGIN)?;
        bounded("url_prefixes", request.url_prefixes.len(), UrlPrefix::MAX)?;
        let prefix =
            |bytes: &[u8]| UrlPrefix::try_from(bytes).or(invalid("url_prefixes", "each must have 16 bytes"));
        Ok(Self {
            held: request.held_bytes,
            origin: request.origin.to_ascii_lowercase().into(),
            url_prefixes: request.url_prefixes.iter().map(|bytes| prefix(bytes)).collect::<Result<_, _>>()?,
            priority: Priority::level(request.priority).unwrap_or_default(),
            moved: request.moved,
            at_origin: request.at_origin,
        })
    }
}

/// What a peer says of its download since its last message.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// What the origin answered.
    pub content: Option<Content>,
    /// Pieces that came from the origin: number and hash. Whether the number exists, the task knows.
    pub from_origin: Vec<(u32, PieceHash)>,
    /// Bytes of the task that it holds, verified. It counts as growing: less than was said before changes nothing.
    pub held_bytes: u64,
    /// Bytes that came from the origin under the lease so far.
    pub origin_bytes: u64,
    /// Partners that failed it.
    pub failed: Vec<(HostId, proto::FailureReason)>,
    /// The lease that it gives back, and why.
    pub lease_returned: Option<(u64, proto::LeaseOutcome)>,
    /// Partners that gave it pieces, and how many pieces and bytes, verified.
    pub served: Vec<Served>,
    /// How many more uploads its host could begin now, when it says so.
    pub free_uploads: Option<u32>,
}

impl Report {
    /// Whether it is as most are: a few KiB at most.
    pub(crate) const fn is_small(&self) -> bool {
        self.content.is_none()
            && self.from_origin.len() <= 64
            && self.failed.len() <= 16
            && self.served.len() <= 64
    }
}

/// What a partner gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The partner.
    pub host: HostId,
    /// Verified pieces.
    pub pieces: u32,
    /// Their bytes.
    pub bytes: u64,
}

impl TryFrom<proto::PieceResult> for Report {
    type Error = Invalid;

    fn try_from(result: proto::PieceResult) -> Result<Self, Invalid> {
        bounded("from_origin", result.from_origin.len(), PieceLayout::MAX_PIECES as usize)?;
        bounded("failed", result.failed.len(), MAX_FAILURES)?;
        bounded("served", result.served.len(), MAX_FAILURES)?;
        let piece = |piece: proto::PieceHash| match PieceHash::try_from(piece.hash.as_ref()) {
            Ok(hash) => Ok((piece.index, hash)),
            Err(_) => invalid("from_origin.hash", "it must have 32 bytes"),
        };
        let served = |served: proto::PartnerServed| {
            Ok(Served { host: host_id(served.host_id)?, pieces: served.pieces, bytes: served.bytes })
        };
        let failure = |failed: proto::PartnerFailed| Ok((host_id(failed.host_id.clone())?, failed.reason()));
        Ok(Self {
            content: result.content.map(Content::try_from).transpose()?,
            from_origin: result.from_origin.into_iter().map(piece).collect::<Result<_, _>>()?,
            held_bytes: result.held_bytes,
            origin_bytes: result.origin_bytes,
            failed: result.failed.into_iter().map(failure).collect::<Result<_, _>>()?,
            lease_returned: result.lease_returned.map(|returned| (returned.lease_id, returned.outcome())),
            served: result.served.into_iter().map(served).collect::<Result<_, _>>()?,
            free_uploads: result.free_uploads,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> proto::Host {
        proto::Host { id: "a".into(), ip: "192.0.2.1".into(), piece_port: 65002, ..Default::default() }
    }

    #[test]
    fn a_host_is_checked_field_by_field() {
        assert!(Host::try_from(host()).is_ok());
        for (field, bad) in [
            ("host_id", proto::Host { id: "a/b".into(), ..host() }),
            ("host.ip", proto::Host { ip: "example.org".into(), ..host() }),
            ("host.ip", proto::Host { ip: "0.0.0.0".into(), ..host() }),
            ("host.piece_port", proto::Host { piece_port: 0, ..host() }),
            ("host.piece_port", proto::Host { piece_port: 65536, ..host() }),
            ("host.hostname", proto::Host { hostname: "x".repeat(256), ..host() }),
            ("host.idc", proto::Host { idc: "x".repeat(256), ..host() }),
            ("host.location", proto::Host { location: "x".repeat(256), ..host() }),
            ("host.version", proto::Host { version: "x".repeat(65), ..host() }),
        ] {
            assert_eq!(Host::try_from(bad).unwrap_err().field, field);
        }
    }

    #[test]
    fn content_is_bounded_before_it_is_kept() {
        let header = |len| proto::Header { name: "etag".into(), value: vec![b'x'; len].into() };
        let content =
            |headers| Content::try_from(proto::Content { length: 1, headers, ..Default::default() });
        assert!(content(vec![header(100); 32]).is_ok());
        assert!(content(vec![header(1); 33]).is_err());
        assert!(content(vec![header(8 << 10)]).is_err());
        assert!(Content::try_from(proto::Content { length: u64::MAX, ..Default::default() }).is_err());
        let root = proto::Content { root: vec![0; 31].into(), ..Default::default() };
        assert!(Content::try_from(root).is_err());
    }

    #[test]
    fn complete_content_has_a_root() {
        assert!(Content::complete(None).is_err());
        assert!(Content::complete(Some(proto::Content::default())).is_err());
        let content = proto::Content { root: vec![7; 32].into(), ..Default::default() };
        assert_eq!(Content::complete(Some(content.clone())).unwrap().to_proto(), content);
    }

    #[test]
    fn an_inventory_has_at_most_ten_thousand_tasks() {
        let held = proto::HeldTask {
            task_id: vec![1; 32].into(),
            content: Some(proto::Content { root: vec![7; 32].into(), ..Default::default() }),
        };
        assert_eq!(inventory(vec![held.clone(); 10_000]).unwrap().len(), 10_000);
        assert!(inventory(vec![held; 10_001]).is_err());
        assert!(task_ids(&vec![[0; 32]; 10_001]).is_err());
    }

    #[test]
    fn a_report_with_a_short_hash_is_refused() {
        let piece = proto::PieceHash { index: 0, hash: vec![0; 31].into() };
        let result = proto::PieceResult { from_origin: vec![piece], ..Default::default() };
        assert_eq!(Report::try_from(result).unwrap_err().field, "from_origin.hash");
    }
}
