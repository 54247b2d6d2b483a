//! [`Peer`]: a host's part in one task.
//!
//! A peer is in exactly one [`Role`]; `Task::set_role` is the one place where it changes.

use crate::bag::Bag;
use crate::bridge::Duty;
use crate::host::{HostKey, Regard};
use crate::message::Registration;
use crate::stream::StreamId;
use crate::zone::ZoneId;
use darter_protocol::HostId;
use darter_protocol::scheduler::{Refused, Share};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) zone: ZoneId,
    /// How its host may be named. Struck is also one that sent corrupt bytes of this very task, in whichever life.
    pub(crate) regard: Regard,
    pub(crate) role: Role,
    /// The peers that have it as a partner.
    pub(crate) named_to: Bag,
    pub(crate) listed: Listed,
}

/// In which of its task's indexes a peer stands; `Task::index` keeps both the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Listed {
    pub(crate) supplier: bool,
    pub(crate) source: bool,
    pub(crate) lonely: bool,
    pub(crate) hungry: bool,
    pub(crate) sourceless: bool,
}

#[derive(Debug)]
pub(crate) enum Role {
    /// Holds the whole content.
    Complete,
    /// Holds some of it and downloads nothing: it serves what it has.
    Partial,
    /// Wants it.
    Downloading(Box<Download>),
}

/// A download: what the peer has, whom it knows, where it stands in the line for the lease, and what it is to be told.
#[derive(Debug)]
pub(crate) struct Download {
    pub(crate) standing: Standing,
    /// It has the lease, or had it.
    pub(crate) leased: bool,
    /// The stream, once it is open; before that `silent_until` is armed.
    pub(crate) stream: Option<StreamId>,
    pub(crate) silent_until: Option<Instant>,
    pub(crate) held: u64,
    /// The origin to which it would go, and its rank in that origin's line.
    pub(crate) origin: Arc<str>,
    pub(crate) rank: u8,
    /// It uses some of what its origin may give, and so much.
    pub(crate) uses: bool,
    pub(crate) share: Share,
    /// Its partners. When two peers download, either both name each other or neither does.
    pub(crate) partners: BTreeMap<HostKey, Named>,
    /// Those of them who stand in other zones.
    pub(crate) across: BTreeSet<HostKey>,
    /// It deals with those of other zones though its own has a border: as a bridge, or because it brought from the origin.
    pub(crate) gate: bool,
    /// Which bridge it is, of how many.
    pub(crate) bridge: Option<(u32, u32)>,
    /// As a bridge: whether it brings anything.
    pub(crate) duty: Option<Box<Duty>>,
    /// It was a bridge that brought nothing, and is none again.
    pub(crate) relieved: bool,
    /// Partners that it was told of and must be told to drop: never one of `partners`.
    pub(crate) gone: BTreeSet<HostId>,
    /// Partners that failed it, never to be named again while it downloads.
    pub(crate) failed: BTreeSet<HostKey>,
    /// Leases that it gave back as failed.
    pub(crate) failures: u8,
    /// Leases that brought nothing, since one of its last did: failed, stalled, or it was cut off.
    pub(crate) vain: u8,
    /// How many of the task's hashes it was sent, in the order in which they came.
    pub(crate) hashes_sent: usize,
    pub(crate) news: News,
}

impl Download {
    pub(crate) fn new(registration: &Registration, ticket: u64) -> Self {
        Self {
            standing: Standing::Waiting { ticket },
            leased: false,
            stream: None,
            silent_until: None,
            held: registration.held,
            origin: Arc::clone(&registration.origin),
            rank: registration.priority.rank(),
            uses: false,
            share: Share::default(),
            partners: BTreeMap::new(),
            across: BTreeSet::new(),
            gate: false,
            bridge: None,
            duty: None,
            relieved: false,
            gone: BTreeSet::new(),
            failed: BTreeSet::new(),
            failures: 0,
            vain: 0,
            hashes_sent: 0,
            news: News { content: true, ..News::default() },
        }
    }

    /// Whether it is given partners: one that goes to the origin for itself is not.
    pub(crate) fn meshes(&self) -> bool {
        self.standing != Standing::Alone
    }

    /// It is no bridge any more, and is told so.
    pub(crate) fn end_duty(&mut self) {
        (self.bridge, self.duty, self.news.bridge) = (None, None, true);
    }

    /// Why it gets no further.
    pub(crate) fn refusal(&self) -> Refused {
        let why = match self.standing {
            Standing::Barred { why, .. } => why,
            _ => "this download may not go to the origin",
        };
        Refused { for_good: false, reason: format!("no other host has what is missing, and {why}") }
    }

    /// Everything is to be said again: the stream that heard it is gone, and with it what the daemon knew.
    pub(crate) fn repeat_all(&mut self, lease: Option<u64>) {
        self.partners.values_mut().for_each(|named| *named = Named::Unsent);
        self.gone.clear();
        self.hashes_sent = 0;
        let unshareable = self.standing == Standing::Alone;
        let refused = matches!(self.standing, Standing::Barred { told: true, .. });
        let (share, bridge) = (self.uses, self.bridge.is_some());
        self.news = News { content: true, lease, revoked: false, unshareable, share, refused, bridge };
    }
}

/// Where a download stands in the line for the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// In line; lower tickets first.
    Waiting { ticket: u64 },
    /// It holds the task's lease.
    Leased,
    /// It got all that it wanted from the origin. A partner that fails it puts it back in line.
    Satisfied,
    /// Out of the line: the origin refused it, or failed it too often. It ends by itself.
    Out,
    /// It goes to the origin for itself and takes no part in the mesh.
    Alone,
    /// The operator's rules keep it from the origin: why, and whether it was told that nobody else could bring the rest.
    Barred { why: &'static str, told: bool },
}

/// What a peer knows of a partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// Nothing yet.
    Unsent,
    /// It knows the partner, but not what changed.
    Changed,
    Sent,
}

impl Named {
    /// Something about the partner is different now.
    pub(crate) const fn change(&mut self) {
        if matches!(self, Self::Sent) {
            *self = Self::Changed;
        }
    }
}

/// What else a peer is to be told in its next packet.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) content: bool,
    pub(crate) lease: Option<u64>,
    pub(crate) revoked: bool,
    pub(crate) unshareable: bool,
    /// Its share of the origin.
    pub(crate) share: bool,
    /// That nobody can bring what it lacks.
    pub(crate) refused: bool,
    /// Which bridge of its zone it is.
    pub(crate) bridge: bool,
}
