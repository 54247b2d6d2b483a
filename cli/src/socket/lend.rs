//! [`Lender`]: content that goes as an open file to a caller who may read any, and where its bytes stand in it; and [`Borrower`],
//! who takes the files. They are counted, because answers that nobody reads to their end leave files on the way.
//!
//! A caller may be root in a container that has nothing of this host but the socket. He may read what he is lent, and must not be able to
//! change what others are given: files are opened through a view that nothing is written through. Where there can be none (the
//! daemon is not root, or the kernel is older than 5.12), nothing is lent, and bytes go over the socket.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};

use darter_protocol::daemon::{Lent, download_response::Part};
use darter_sendfile::{Source, View, find};
use hyper::body::Bytes;

use super::hand::{self, What};
use super::listen::Caller;

/// A connection's caller, who takes files over a socket of his. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Borrower(Arc<Taking>);

#[derive(Debug)]
struct Taking {
    socket: File,
    view: Arc<View>,
    /// Files that were handed over. Locked while one is: they come in the order of their numbers.
    given: Mutex<u64>,
}

impl Borrower {
    /// One who is lent what is in `view`.
    pub(super) fn new(socket: File, view: Arc<View>) -> Self {
        Self(Arc::new(Taking { socket, view, given: Mutex::default() }))
    }

    /// Hands a file over; gives its number.
    fn give(&self, source: &Source) -> io::Result<u64> {
        let file = self.0.view.open(source.as_fd())?;
        let mut given = self.0.given.lock().unwrap_or_else(PoisonError::into_inner);
        hand::give(&self.0.socket, What::File, &file)?;
        *given += 1;
        Ok(*given)
    }
}

/// Hands files over for one answer.
pub(super) struct Lender {
    borrower: Borrower,
    /// What was handed over last, and its number.
    given: Option<(Source, u64)>,
}

impl Lender {
    /// `None` when the caller has no use for files, or may not have them.
    pub(super) fn of(caller: &Caller) -> Option<Self> {
        let borrower = caller.borrower.clone().filter(|_| super::may_all(caller.uid))?;
        Some(Self { borrower, given: None })
    }

    /// What the caller is told of `data`: where it stands, if it is of a file, and the bytes otherwise.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn part(&mut self, data: Bytes) -> io::Result<Part> {
        let Some((source, at)) = find(&data) else { return Ok(Part::Data(data)) };
        let length = data.len();
        let given =
            self.given.as_ref().filter(|(given, _)| Arc::ptr_eq(given, &source)).map(|(_, file)| *file);
        if let Some(file) = given.or_else(|| self.borrower.give(&source).ok()) {
            self.given = Some((source, file));
            return Ok(Part::Lent(Lent { at, length: length as u64, file }));
        }
        // Read, and not by its addresses: whoever finds nothing behind these is killed.
        let mut bytes = vec![0; length];
        rustix::io::pread(source.as_fd(), &mut bytes, at).map_err(io::Error::from).and_then(|read| {
            if read < length {
                Err(io::ErrorKind::UnexpectedEof.into())
            } else {
                Ok(Part::Data(bytes.into()))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Failure;
    use crate::socket::lent::{Bit, Loans};
    use std::fs;
    use std::io::Write as _;
    use std::os::fd::{AsRawFd as _, OwnedFd};
    use std::os::unix::fs::FileExt as _;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    /// A caller who takes files over `socket`.
    fn caller(uid: u32, socket: UnixStream) -> Caller {
        // Temporary folders are below it.
        let view = Arc::new(View::of(&std::env::temp_dir()).unwrap());
        let borrower = Some(Borrower::new(File::from(OwnedFd::from(socket)), view));
        Caller { uid, file: None, borrower, calls: Arc::default() }
    }

    fn own() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    /// Content of which a part is lent, and that part.
    fn content(dir: &Path) -> (Arc<File>, Vec<u8>, Bytes) {
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i / 3) as u8).collect();
        let mut file = File::create_new(dir.join("content")).unwrap();
        file.write_all(&bytes).unwrap();
        // As the store has it open.
        let file = Arc::new(File::options().read(true).write(true).open(dir.join("content")).unwrap());
        let lent = darter_sendfile::region(&file, 5000, 200_000).unwrap().unwrap();
        (file, bytes, lent)
    }

    fn bytes_of(bit: Bit<'_>) -> Vec<u8> {
        let mut all = Vec::new();
        bit.read(|bytes| {
            all.extend_from_slice(bytes);
            Ok::<_, Failure>(())
        })
        .unwrap();
        all
    }

    #[test]
    fn the_kernel_copies_what_is_lent() {
        let dir = tempfile::tempdir().unwrap();
        let (_file, bytes, lent) = content(dir.path());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut lender = Lender::of(&caller(own(), theirs)).unwrap();
        let mut loans = Loans::new(ours);
        let (first, second) =
            (lender.part(lent.slice(..120_000)).unwrap(), lender.part(lent.slice(120_000..)).unwrap());
        assert_eq!(first, Part::Lent(Lent { at: 5000, length: 120_000, file: 1 }));
        assert_eq!(
            second,
            Part::Lent(Lent { at: 125_000, length: 80_000, file: 1 }),
            "the file is handed over once"
        );

        let output = File::create_new(dir.path().join("output")).unwrap();
        let Ok(Bit::Run(run)) = loans.bit(Some(first)) else { panic!("it is not lent") };
        assert_eq!(Bit::Run(run.copy(&output).unwrap()).length(), 0, "the kernel has copied all of it");
        let rest = loans.bit(Some(second)).unwrap().part(0, 70_000);
        assert!(bytes_of(rest) == bytes[125_000..195_000]);
        assert!(fs::read(dir.path().join("output")).unwrap() == bytes[5000..125_000]);
    }

    #[test]
    fn what_is_handed_over_can_only_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let (_file, _, lent) = content(dir.path());
        let (ours, theirs) = UnixStream::pair().unwrap();
        Lender::of(&caller(own(), theirs)).unwrap().part(lent).unwrap();
        let mut file = hand::take(&ours).unwrap();
        assert!(file.write_all(b"wrong").is_err());
        let again = File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }

    #[test]
    fn strangers_and_callers_without_a_socket_get_bytes() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        assert!(Lender::of(&caller(own() + 1000, theirs)).is_none());
        assert!(
            Lender::of(&Caller { uid: own(), file: None, borrower: None, calls: Arc::default() }).is_none()
        );
    }

    #[test]
    fn what_an_answer_left_on_the_way_is_not_taken_for_the_next_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (_file, _, unread) = content(dir.path());
        fs::rename(dir.path().join("content"), dir.path().join("other")).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (caller, mut loans) = (caller(own(), theirs), Loans::new(ours));
        Lender::of(&caller).unwrap().part(unread).unwrap();

        let (file, bytes, lent) = content(dir.path());
        file.write_all_at(b"another", 5000).unwrap();
        let said = Lender::of(&caller).unwrap().part(lent.clone()).unwrap();
        let got = bytes_of(loans.bit(Some(said)).unwrap());
        assert!(got.starts_with(b"another") && got[7..] == bytes[5007..205_000]);
        let gone = Part::Lent(Lent { at: 0, length: 1, file: 1 });
        assert!(loans.bit(Some(gone)).is_err(), "it was let go of");
    }

    #[test]
    fn who_has_hung_up_his_socket_gets_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (_file, bytes, lent) = content(dir.path());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut lender = Lender::of(&caller(own(), theirs)).unwrap();
        drop(ours);
        let Part::Data(data) = lender.part(lent).unwrap() else { panic!("nobody takes a file") };
        assert!(data == bytes[5000..205_000]);
    }

    #[test]
    fn what_was_cut_off_the_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _, lent) = content(dir.path());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let said = Lender::of(&caller(own(), theirs)).unwrap().part(lent).unwrap();
        file.set_len(50_000).unwrap();
        let mut loans = Loans::new(ours);
        let Ok(Bit::Run(run)) = loans.bit(Some(said)) else { panic!("it is not lent") };
        let rest = run.copy(&File::create_new(dir.path().join("output")).unwrap()).unwrap();
        assert!(Bit::Run(rest).read(|_| Ok::<_, Failure>(())).is_err());
    }
}
