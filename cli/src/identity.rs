//! This host's identity among others: made at the first start and kept, so that it is the same after a restart.

use std::fs::{self, TryLockError};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use darter_protocol::HostId;

use crate::exit::{self, Failure};

/// The file that whoever works in a folder keeps locked.
const LOCK: &str = "darter.lock";

/// How much of a host's name goes into its id, which may have 128 characters.
const MAX_NAME: usize = 64;

/// Makes `folder`, for this user alone, with those above it.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make_folder(folder: &Path) -> exit::Result {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Failure::own_files(format!("cannot make the folder {}: {error}", folder.display())))
}

/// Keeps other daemons out of `folder` until this process has ended: two would answer for one another there, and call
/// themselves by one name among others.
///
/// # Errors
/// When another one is there, or the folder cannot be written to.
pub(crate) fn take(folder: &Path) -> exit::Result {
    let path = folder.join(LOCK);
    let fail =
        |error: io::Error| Failure::own_files(format!("{}: cannot be locked: {error}", path.display()));
    let options = &mut fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(fail)?;
    match file.try_lock() {
        // Whatever is cleared up at the end is cleared up before somebody else comes.
        Ok(()) => std::mem::forget(file),
        Err(TryLockError::WouldBlock) => {
            return Err(Failure::own_files(format!("another daemon works in {}", folder.display())));
        }
        Err(TryLockError::Error(error)) => return Err(fail(error)),
    }
    Ok(())
}

/// Whether a daemon works in `folder`, or has.
pub(crate) fn is_work_home(folder: &Path) -> bool {
    folder.join(LOCK).exists()
}

/// The id in `folder`; a new one when there is none. It begins with `hostname`, so that people recognise it, and ends with
/// chance, so that two daemons on one host differ.
///
/// # Errors
/// When it can neither be read nor written, or is damaged.
pub(crate) fn host_id(folder: &Path, hostname: &str) -> exit::Result<HostId> {
    let file = folder.join("host-id");
    let fail = |what: &str| Failure::own_files(format!("{}: {what}", file.display()));
    match fs::read_to_string(&file) {
        Ok(text) => {
            text.trim_end().parse().map_err(|_| fail("holds no host id; remove it to have a new one made"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = new_id(hostname);
            write_new(&file, &id).map_err(|error| fail(&format!("cannot be written: {error}")))?;
            id.parse().map_err(|_| fail("cannot be made of this host's name"))
        }
        Err(error) => Err(fail(&format!("cannot be read: {error}"))),
    }
}

/// This host's name as the system knows it.
pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// An address of the documentation range: it stands for "the rest of the world" where only the route matters.
pub(crate) const FAR_AWAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// The address from which this host reaches `target`. Sends nothing. `None` when there is no way there.
pub(crate) fn own_address_towards(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // Connecting a datagram socket asks the routing table and sends nothing.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified()).then_some(own)
}

fn new_id(hostname: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = hostname.chars().take(MAX_NAME).map(allowed).collect();
    format!("{name}-{:016x}", rand::random::<u64>())
}

/// Whole or not at all: a crash must not leave half an id behind.
fn write_new(file: &Path, id: &str) -> io::Result<()> {
    let beside = file.with_extension("new");
    let mut new = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    writeln!(new, "{id}")?;
    new.sync_all()?;
    fs::rename(beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn an_id_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = host_id(dir.path(), "node 1").unwrap();
        assert!(first.to_string().starts_with("node-1-"), "{first}");
        assert_eq!(host_id(dir.path(), "renamed").unwrap(), first);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(host_id(other.path(), "node 1").unwrap(), first);
    }

    #[test]
    fn a_long_or_odd_name_still_makes_an_id() {
        for name in ["", "ä".repeat(300).as_str(), &"x".repeat(300)] {
            let dir = tempfile::tempdir().unwrap();
            assert!(host_id(dir.path(), name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_damaged_id_is_not_replaced_silently() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("host-id"), "two words\n").unwrap();
        let failure = format!("{:?}", host_id(dir.path(), "node").unwrap_err());
        assert!(failure.contains("host-id: holds no host id") && failure.contains("74"), "{failure}");
    }

    #[test]
    fn folders_are_this_users_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        make_folder(&folder).unwrap();
        make_folder(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_address_towards_this_host_is_its_own() {
        let target = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(own_address_towards(target), Some(Ipv4Addr::LOCALHOST.into()));
    }
}
