//! What is measured: daemons of ours, and nginx in the same part.

mod blob;
mod darter;
mod nginx;

pub(crate) use blob::{Blob, Kind};
pub(crate) use darter::Darter;
pub(crate) use nginx::{BELOW, Nginx, Setting, caching, origin};
