//! sendfile(2) behind an HTTP library that knows only bytes in memory.
//!
//! [`region`] gives a part of a file as [`Bytes`] that nobody has read: addresses, without memory behind them. They go
//! through the library as any others, and when they come to a [`Socket`], it knows them by their address and has the kernel
//! send that part of the file. Whoever reads them all the same finds what the file contains; it is only slower.
//!
//! Invariant: while a region lives, its addresses are its own, so that bytes are never taken for a part of a file that they
//! are not.
//!
//! Whoever else can do more with a part of a file than read it asks [`find`] what his bytes are, and whoever gives a file away opens it
//! through a [`View`].
//!
//! What has left the page cache between the two is waited for by the thread that sends it, as everywhere that sendfile is used.
//!
//! What it is not for: a file that somebody may cut short. A socket that is to send what is gone says so, but whoever reads
//! it in memory is killed by SIGBUS. So regions are for plain TCP alone: TLS has to read what it encrypts.

mod region;
mod socket;
mod sys;
mod view;

pub use region::{Source, find, region};
pub use socket::Socket;
pub use view::View;
