//! [`Refusal`]: why a daemon's well-formed message was not acted on.

/// Why the cluster refused an event, or ended a stream. Each names what the daemon should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The host has no open life line: announce it, then try again.
    #[error("no AnnounceHost stream is open for this host: announce the host first")]
    UnknownHost,
    /// The host is not downloading this task: register it, then try again.
    #[error("the host has not registered this task: register it first")]
    NotRegistered,
    /// The host's life line ended while this conversation ran: announce, then register again.
    #[error("the host's AnnounceHost stream has ended: announce the host and register again")]
    HostGone,
    /// A later stream or registration of the same host took this one's place: nothing to do.
    #[error("replaced by a later stream of the same host")]
    Replaced,
    /// A life line renews one host only.
    #[error("a life line may not change the id of its host")]
    OtherHost,
    /// The content contradicts what the cluster knows of the task.
    #[error("the content differs from what is known of this task")]
    OtherContent,
    /// A piece that the task's content does not have, or a piece before any content.
    #[error("the task's content has no piece of this number")]
    NoSuchPiece,
    /// A bound of this scheduler is reached.
    #[error("too many {0} for this scheduler")]
    TooMany(&'static str),
}
