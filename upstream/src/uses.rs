//! [`Connection`]: what a connection is used for at this moment. The pool does not tell which of its connections are idle.
//!
//! A connection counts in exactly one gauge as long as it is open: by what it protocol, and by whether something is under way
//! on it. A request is under way from the moment when it has a connection until the end of its answer's body.

use crate::metrics::{ConnectionLabels, Counted, Metrics, Protocol, State};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A connection that was made, as the requests on it see it. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Connection(Arc<Shared>);

/// A connection, open until this is dropped.
#[derive(Debug)]
pub(crate) struct Open(Connection);

/// A request that is under way on its connection, until this is dropped.
#[derive(Debug)]
pub(crate) struct Exchange {
    connection: Connection,
    _in_flight: Counted,
}

#[derive(Debug)]
struct Shared {
    metrics: Metrics,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    protocol: Protocol,
    exchanges: usize,
    open: bool,
}

impl Open {
    /// A connection that has just been made.
    pub(crate) fn new(protocol: Protocol, metrics: &Metrics) -> Self {
        let held = Mutex::new(Held { protocol, exchanges: 0, open: false });
        let connection = Connection(Arc::new(Shared { metrics: metrics.clone(), held }));
        connection.change(|held| held.open = true);
        Self(connection)
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(|held| held.open = false);
    }
}

impl Connection {
    /// A request has this connection.
    pub(crate) fn begin(&self) -> Exchange {
        self.change(|held| held.exchanges += 1);
        let gauge = self.0.metrics.requests_in_flight(self.held().protocol);
        Exchange { connection: self.clone(), _in_flight: Counted::one_of(&gauge) }
    }

    /// HTTP has ended on it, and it has become a tunnel.
    pub(crate) fn switched(&self) {
        self.change(|held| held.protocol = Protocol::Tunnel);
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        let mut held = self.held();
        let before = held.labels();
        change(&mut held);
        let now = held.labels();
        if before != now {
            let connections = &self.0.metrics.connections;
            if let Some(labels) = before {
                connections.get_or_create(&labels).dec();
            }
            if let Some(labels) = now {
                connections.get_or_create(&labels).inc();
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing panics while it is held.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn labels(&self) -> Option<ConnectionLabels> {
        let busy = self.exchanges > 0 || self.protocol == Protocol::Tunnel;
        let state = if busy { State::InUse } else { State::Idle };
        self.open.then_some(ConnectionLabels { protocol: self.protocol, state })
    }
}

impl Exchange {
    /// Whether it is under way on this connection.
    pub(crate) fn is_on(&self, connection: &Connection) -> bool {
        Arc::ptr_eq(&self.connection.0, &connection.0)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection.change(|held| held.exchanges -= 1);
    }
}
