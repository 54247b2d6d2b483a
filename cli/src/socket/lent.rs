//! The command's side of [`super::lend`]: [`Loans`], the files that the daemon hands over, [`Run`], bytes in one, and [`Bit`],
//! these or others.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use darter_protocol::daemon::download_response::Part;
use rustix::io::Errno;
use tonic::codegen::Bytes;

use super::hand;
use crate::exit::Failure;

/// How much is read at once where the kernel does not copy, in bytes.
const READ_BYTES: u64 = 256 << 10;

/// The files that come by a socket.
#[derive(Debug)]
pub(crate) struct Loans {
    socket: UnixStream,
    /// Files that were taken. The last one is still open.
    taken: u64,
    file: Option<File>,
}

/// Bytes that stand in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    file: &'a File,
    at: u64,
    length: u64,
}

/// Some of the content.
#[derive(Debug)]
pub(crate) enum Bit<'a> {
    Bytes(Bytes),
    Run(Run<'a>),
}

/// The daemon's file cannot be read.
#[derive(Debug)]
pub(crate) struct Fault(io::Error);

impl Loans {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, taken: 0, file: None }
    }

    /// The content in a message: nothing of it, if that is a newer daemon's word for what this command does not know.
    ///
    /// # Errors
    /// When it speaks of a file that has not come, or of an earlier one than the last.
    pub(crate) fn bit(&mut self, message: Option<Part>) -> Result<Bit<'_>, Fault> {
        let lent = match message {
            Some(Part::Lent(lent)) => lent,
            Some(Part::Data(data)) => return Ok(Bit::Bytes(data)),
            Some(Part::Head(_)) | None => return Ok(Bit::Bytes(Bytes::new())),
        };
        // Those in between are of answers that nobody has read to the end.
        while self.taken < lent.file {
            self.file = Some(hand::take(&self.socket).map_err(Fault)?);
            self.taken += 1;
        }
        let file = self.file.as_ref().filter(|_| self.taken == lent.file);
        let file = file.ok_or(Fault(io::ErrorKind::NotFound.into()))?;
        Ok(Bit::Run(Run { file, at: lent.at, length: lent.length }))
    }
}

impl Bit<'_> {
    /// In bytes.
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Run(run) => run.length,
        }
    }

    /// The part of it between two offsets from its start; what lies behind its end is not in it.
    pub(crate) fn part(self, from: u64, to: u64) -> Self {
        let (to, from) = (to.min(self.length()), from.min(to).min(self.length()));
        match self {
            // Both are at most its length.
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(from as usize..to as usize)),
            Self::Run(run) => Self::Run(Run { at: run.at.saturating_add(from), length: to - from, ..run }),
        }
    }

    /// Hands its bytes to `each`, in parts.
    pub(crate) fn read<E: From<Fault>>(self, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match self {
            Self::Bytes(bytes) => each(&bytes),
            Self::Run(run) => run.read(each),
        }
    }
}

impl From<Fault> for Failure {
    fn from(Fault(error): Fault) -> Self {
        Self::unavailable(format!("cannot read what the daemon holds of it: {error}"))
    }
}

impl Run<'_> {
    /// Appends them to what was written to `to`, as far as the kernel does that; gives the rest. Where the file system can,
    /// both files share the space then.
    ///
    /// # Errors
    /// Those of the file that is written.
    pub(crate) fn copy(self, to: &File) -> io::Result<Self> {
        let (mut at, mut rest) = (self.at, self.length);
        while rest > 0 {
            let want = usize::try_from(rest).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(self.file, Some(&mut at), to, None, want) {
                // Ends here, or between these two the kernel does not: reading it will say why.
                Ok(0)
                | Err(
                    Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::IO,
                ) => break,
                Ok(copied) => rest = rest.saturating_sub(copied as u64),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { at, length: rest, ..self })
    }

    /// Hands them to `each`, in parts.
    fn read<E: From<Fault>>(self, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut buffer = vec![0; READ_BYTES.min(self.length) as usize];
        let (mut at, mut rest) = (self.at, self.length);
        while rest > 0 {
            let part = &mut buffer[..READ_BYTES.min(rest) as usize];
            self.file.read_exact_at(part, at).map_err(Fault)?;
            each(part)?;
            (at, rest) = (at + part.len() as u64, rest - part.len() as u64);
        }
        Ok(())
    }
}
