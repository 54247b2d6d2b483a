//! The closed sets of words by which requests are told apart, each with its one name in logs and metrics.

use crate::request::Side;
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use std::fmt::{self, Write as _};

/// An enum whose variants have names in snake_case.
macro_rules! labels {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            pub(crate) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                encoder.write_str(self.as_str())
            }
        }
    };
}

labels! {
    /// What became of a request.
    Outcome {
        /// Served from this host's disk.
        Hit = "hit",
        /// Served from peers or the origin by way of the engine.
        Miss = "miss",
        /// The engine asked the origin, whose answer was passed on as it came.
        Relayed = "relayed",
        /// What the origin had said a moment ago: that it does not have it.
        Absent = "absent",
        /// Streamed from and to the origin.
        Direct = "direct",
        /// Streamed from the origin because the engine could not keep or share the content.
        Bypass = "bypass",
        /// A tunnel whose bytes nobody looked at.
        Tunnel = "tunnel",
        /// A tunnel that was opened up; what came inside counts by itself.
        Intercepted = "intercepted",
        /// A name of the proxy's own.
        Own = "own",
        /// Not allowed, or not understood.
        Refused = "refused",
        /// The origin, or this host, failed.
        Failed = "failed",
        /// The client went away before there was an answer.
        Abandoned = "abandoned",
    }
}

impl Outcome {
    /// Whether the answer's head is the proxy's own, and not an origin's.
    pub(crate) const fn is_answered_here(self) -> bool {
        match self {
            Self::Relayed | Self::Direct | Self::Bypass => false,
            Self::Hit
            | Self::Miss
            | Self::Absent
            | Self::Tunnel
            | Self::Intercepted
            | Self::Own
            | Self::Refused
            | Self::Failed
            | Self::Abandoned => true,
        }
    }

    /// Where the bytes come from that are none of the engine's content.
    pub(crate) const fn source(self) -> Source {
        match self {
            Self::Relayed | Self::Direct | Self::Bypass => Source::Direct,
            Self::Tunnel => Source::Tunnel,
            Self::Hit
            | Self::Miss
            | Self::Absent
            | Self::Intercepted
            | Self::Own
            | Self::Refused
            | Self::Failed
            | Self::Abandoned => Source::Own,
        }
    }
}

labels! {
    /// How a request came in.
    Way {
        /// To the forward proxy, or before it is known.
        Forward = "forward",
        /// Inside an intercepted connection.
        Intercepted = "intercepted",
        /// To the mirror.
        Mirror = "mirror",
        /// By a listener that finds the host in the TLS greeting.
        Sni = "sni",
        /// Turned to us by the packet filter.
        Transparent = "transparent",
        /// By a command of this host.
        Command = "command",
    }
}

impl Way {
    /// How what comes on `side` came in, as far as that is known before it is read.
    pub(crate) fn at(side: &Side) -> Self {
        match side {
            Side::Port => Self::Forward,
            Side::Inside { .. } => Self::Intercepted,
            Side::Redirected { .. } => Self::Transparent,
        }
    }

    pub(crate) fn of(way: darter_rules::Way<'_>) -> Self {
        match way {
            darter_rules::Way::Forward => Self::Forward,
            darter_rules::Way::Named => Self::Command,
            darter_rules::Way::Intercepted { .. } => Self::Intercepted,
            darter_rules::Way::Mirror => Self::Mirror,
        }
    }
}

labels! {
    /// How a body ended.
    Cut {
        /// The client went away.
        Client = "client",
        /// The origin, the peers or the disk failed.
        Upstream = "upstream",
        /// Nothing moved for too long. The line in the log says who was waited for.
        Idle = "idle",
        /// The process ended, and did not wait any longer.
        Shutdown = "shutdown",
    }
}

labels! {
    /// Who gave what a request got.
    UpstreamClass {
        /// Nobody was reached, or nobody was needed.
        None = "none",
        /// The origin.
        Origin = "origin",
        /// A parent proxy, or the origin behind it.
        Parent = "parent",
        /// The engine: this host's disk, peers, or the origin on their behalf.
        Engine = "engine",
    }
}

labels! {
    /// Where a byte that a client got came from.
    Source {
        /// The engine's store on this host.
        Disk = "disk",
        /// Another daemon, by way of the engine.
        Peer = "peer",
        /// The origin, by way of the engine.
        Origin = "origin",
        /// The origin, past the engine.
        Direct = "direct",
        /// The far end of a tunnel.
        Tunnel = "tunnel",
        /// The proxy itself: its own names, its errors, and what stands between the parts of an answer.
        Own = "own",
    }
}

impl From<darter_p2p::Supplier> for Source {
    fn from(supplier: darter_p2p::Supplier) -> Self {
        match supplier {
            darter_p2p::Supplier::Disk => Self::Disk,
            darter_p2p::Supplier::Peer => Self::Peer,
            darter_p2p::Supplier::Origin => Self::Origin,
        }
    }
}

labels! {
    /// Why a connection does not belong where it came.
    Misplaced {
        /// A load balancer did not say who the client is.
        NoProxyHeader = "no_proxy_header",
        /// TLS to a port for plain HTTP.
        Tls = "tls",
        /// Plain HTTP to a port for TLS.
        Plain = "plain",
        /// The TLS handshake with the proxy port itself failed.
        Handshake = "handshake",
        /// It was made to a port for redirected connections, and nobody redirected it.
        NotRedirected = "not_redirected",
        /// It does not say for which host it is.
        Nameless = "nameless",
        /// It is our own: the packet filter turned it to us, or a name led here.
        Loop = "loop",
    }
}

labels! {
    /// How an intercepted TLS handshake went.
    Handshake {
        /// A certificate was shown.
        Full = "full",
        /// A session went on.
        Resumed = "resumed",
    }
}

labels! {
    /// Why a client was turned away.
    TurnedAway {
        /// It is not served at all.
        Client = "client",
        /// It has as many connections as it may.
        Connections = "connections",
        /// Its requests come too fast.
        Requests = "requests",
    }
}
