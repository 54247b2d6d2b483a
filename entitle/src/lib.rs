//! Who may have what is cached: the facts that let a cached blob be served, and nothing else.
//!
//! A cache that a whole cluster shares must not turn a private image into a public one. So content is served from it only
//! when two things are known: that the repository which was asked for *contains* it ([`Facts::learn_member`]), and that the
//! caller may *read* that repository ([`Facts::learn_reader`], by himself or as anybody). The second alone is
//! not enough: who may read one repository must not get another one's layer by asking for its digest there.
//!
//! The manifest request that precedes every pull proves both, so a normal pull costs the registry nothing extra. When a
//! fact is missing, [`Verdict::Ask`] says so, and the registry itself is asked with the caller's own credential.
//!
//! This crate is plain state: `now` is passed in, nothing here does IO. A credential exists in it only as an HMAC under a
//! key of this process ([`Credentials`]). All state is bounded; what is forgotten is asked again.

#![forbid(unsafe_code)]

mod credential;
mod facts;
mod manifest;
mod recent;

pub use credential::{Caller, Credentials, bearer_lifetime};
pub use facts::{Ages, Facts, Part, Pause, Place, Verdict};
pub use manifest::{MAX_MANIFEST_BYTES, members};
