//! Crowds of connections: what they cost is seen when nothing else is going on.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many bytes are one MiB.
pub const MIB: u64 = 1 << 20;

/// One crowd at a time, until this is dropped: each takes most of the file descriptors that a process may have. This process
/// may have as many as it may allow itself from then on.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the soft limit may be raised");
    guard
}
