//! Handing an open file over a Unix socket (SCM_RIGHTS), ahead of gRPC or beside it: see the end of
//! `protocol/proto/daemon.proto`.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// What is handed over. Each comes with a byte of its own; gRPC begins with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum What {
    /// To be read.
    File = 0,
    /// A Unix socket, over which files are to be handed back.
    Socket = 1,
}

/// Sends `file`. Nobody waits for room.
///
/// # Errors
/// Those of the socket; `WouldBlock` when there is no room for a byte.
pub(super) fn give(socket: impl AsFd, what: What, file: impl AsFd) -> io::Result<()> {
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    with.push(SendAncillaryMessage::ScmRights(&files));
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&[what as u8])],
        &mut with,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    Ok(())
}

/// What a connection begins with, if something is handed over. `WouldBlock` while it has not begun.
///
/// # Errors
/// Those of the socket.
pub(super) fn comes(socket: impl AsFd) -> io::Result<Option<What>> {
    let mut first = [0];
    let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let (_, begun) = rustix::net::recv(&socket, &mut first, peek)?;
    let comes = [What::File, What::Socket].into_iter().find(|what| *what as u8 == first[0]);
    Ok(comes.filter(|_| begun > 0))
}

/// Takes a file that has come. One that is not taken goes with its socket, and nobody waits for it to be closed.
///
/// # Errors
/// Those of the socket; `InvalidData` when what should come with a file does not.
pub(super) fn take(socket: impl AsFd) -> io::Result<File> {
    let mut first = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut first)], &mut with, flags)?;
    let mut files = with.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let file: Option<OwnedFd> = files.next();
    file.map(File::from).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_open_file_is_handed_over() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(comes(&theirs).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        file.rewind().unwrap();
        give(&ours, What::File, &file).unwrap();
        ours.write_all(b"PRI").unwrap();
        let mut text = String::new();
        assert_eq!(comes(&theirs).unwrap(), Some(What::File));
        take(&theirs).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert_eq!(comes(&theirs).unwrap(), None, "what follows is not a file's");
        let mut rest = [0; 3];
        (&theirs).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"PRI");
    }

    #[test]
    fn the_byte_without_a_file_is_refused() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[What::File as u8]).unwrap();
        assert_eq!(take(&theirs).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
