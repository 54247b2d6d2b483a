//! The daemon's socket for the command line: `darter get`, `darter cache` and whoever else speaks its gRPC
//! (`protocol/proto/daemon.proto`).
//!
//! Every user of the host may connect. Who he is, the kernel says (SO_PEERCRED), and what he may have is judged for each
//! call; so the socket's file is open to all, and its folder decides who reaches it.
//!
//! No path crosses the socket. The daemon may run as root, and whoever could name a path to it could have root read or
//! write there. So the command opens its files itself, with its own user's rights, quota and limits, and writes what comes:
//! a daemon that writes into strangers' files can be held up by them (a FUSE mount, a FIFO) and writes past their quota.
//! Content goes to it as bytes over the socket; to root and the daemon's own user as an open file (`lend`), which the kernel
//! copies from, or shares where the file system can. To others it does not: what a user holds open takes space that eviction
//! does not free, and he may hold much. A file that comes in is opened by the command and handed over open (SCM_RIGHTS), so that the daemon reads what
//! the caller may read, and the bytes do not cross the socket. A link into the store is not given away either: its owner could change what others are served.
//!
//! Imported content belongs to the user who brought it in, by the number that the kernel says, on every host of the cluster:
//! the names that he gives are his own, and another user's import by the same name is other content.
//!
//! - `place`: where the socket stands. `listen`: connections, and whose they are; `crowd`: how many there may be, `calls`: for how
//!   long. `hand`: files that are handed over, `handed`: until they are closed; `lend`: content that is
//!   handed over, and `lent`, how the command takes it.
//! - `service`: the calls; `cache`: those about imported content.
//! - `client`: the command line's side.

mod cache;
mod calls;
pub(crate) mod client;
mod crowd;
mod hand;
mod handed;
mod lend;
pub(crate) mod lent;
mod listen;
mod place;
mod service;

pub(crate) use listen::{bind, run};
pub(crate) use place::{Place, of_daemon};

/// Whether a user may have what is another's: root, and whoever runs the daemon.
fn may_all(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}
