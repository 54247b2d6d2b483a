//! [`Handed`]: an open file that a user has handed over.

use std::fs::File;
use std::sync::Arc;

use darter_p2p::Given;
use tokio::runtime::Handle;

use super::crowd::Place;

/// Counts as its user's until it is closed. That may take for ever: a FUSE program or an NFS server is asked, and whoever
/// asks waits. So a thread does it on which nobody else waits, and a user has only so many of these. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Handed(Arc<Open>);

/// `None` once it is being closed.
#[derive(Debug)]
struct Open(Option<(File, Place)>);

impl Handed {
    pub(super) fn new(file: File, place: Place) -> Self {
        Self(Arc::new(Open(Some((file, place)))))
    }
}

impl Given for Handed {
    fn file(&self) -> &File {
        &self.0.0.as_ref().expect("it is open until this is dropped").0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let open = self.0.take();
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(open)));
        }
    }
}
