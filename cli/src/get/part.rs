//! [`Part`]: a file while it is not whole yet. It stands beside its place as `NAME.part`, with what is known of it in
//! `NAME.part.json`, and takes its name when it is whole: nobody ever sees half of it under that.
//!
//! A command that was killed leaves a beginning of the content, because it writes from front to back; the next one goes on
//! with it when it asks for the same, and the content is still the same by its strong ETag, or is judged by its digest as a
//! whole. A date tells no two versions of one second apart (RFC 9110 section 8.8.2.2). After a crash of the host the
//! file system may have kept the length and not the bytes, so what is from before the last boot is not gone on with.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::Context;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::exit::{self, Failure};
use crate::socket::lent::Bit;

/// Changes with every boot of the host (proc(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The longest note that is read, in bytes.
const MAX_NOTE: u64 = 64 << 10;

/// How often a part is opened that takes another name before it is locked.
const MAX_TRIES: usize = 8;

/// What is known of the content of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// What was asked for: the hash of its words, because a URL may have secrets.
    pub(crate) asked: String,
    /// A strong ETag, as If-Range takes it; empty where the digest of the whole will tell.
    pub(crate) validator: String,
    /// Where the part begins in the whole, and where it is to end.
    pub(crate) start: u64,
    pub(crate) end: u64,
    boot: String,
}

/// A file that is not whole.
#[derive(Debug)]
pub(crate) struct Part {
    file: File,
    path: PathBuf,
    note: PathBuf,
    output: PathBuf,
}

impl Note {
    pub(crate) fn new(asked: String, validator: String, start: u64, end: u64) -> Self {
        Self { asked, validator, start, end, boot: boot() }
    }
}

impl Part {
    /// Opens the part of `output`; gives what is there of what is `asked` for, and its note.
    ///
    /// # Errors
    /// When the file cannot be made, or somebody else works on it.
    pub(crate) fn open(output: &Path, asked: &str) -> exit::Result<(Self, Option<(Note, u64)>)> {
        let path = beside(output, ".part");
        let note = beside(output, ".part.json");
        let (file, length) = open_locked(&path, output)?;
        let noted =
            read_note(&note).filter(|it| it.asked == asked && it.boot == boot() && !it.boot.is_empty());
        let noted = noted.filter(|it| it.start <= it.end && length <= it.end - it.start);
        let part = Self { file, path, note, output: output.to_owned() };
        match noted.filter(|_| length > 0) {
            Some(noted) => Ok((part, Some((noted, length)))),
            None => Ok((part, None)),
        }
    }

    /// Begins anew.
    pub(crate) fn restart(&mut self) -> exit::Result {
        // First, so that no note speaks of other bytes.
        let _ = fs::remove_file(&self.note);
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(|error| cannot_write(&self.path, &error))
    }

    /// Goes on behind the first `have` bytes, which `hash` is fed with.
    pub(crate) fn go_on(&mut self, have: u64, hash: Option<&mut Context>) -> exit::Result {
        let read = || {
            if let Some(hash) = hash {
                self.file.rewind()?;
                let mut buffer = vec![0; 1 << 20];
                let mut there = (&self.file).take(have);
                loop {
                    match there.read(&mut buffer)? {
                        0 => break,
                        length => hash.update(&buffer[..length]),
                    }
                }
            }
            self.file.seek(SeekFrom::Start(have)).map(drop)
        };
        read().map_err(|error| cannot_write(&self.path, &error))
    }

    /// Leaves word of what the part is of.
    pub(crate) fn note(&self, note: &Note) {
        let written = serde_json::to_vec(note).map_err(io::Error::other).and_then(|text| {
            let beside = self.note.with_extension("new");
            write_anew(&beside, &text).and_then(|()| fs::rename(beside, &self.note))
        });
        if written.is_err() {
            // Without one the next command begins anew, no more.
            let _ = fs::remove_file(&self.note);
        }
    }

    /// Writes the next bytes, which `hash` is fed with.
    pub(crate) fn write(&mut self, bit: Bit<'_>, mut hash: Option<&mut Context>) -> exit::Result {
        let fail = |error: io::Error| cannot_write(&self.path, &error);
        let rest = match bit {
            // Nobody but the kernel has to read them.
            Bit::Run(run) if hash.is_none() => Bit::Run(run.copy(&self.file).map_err(fail)?),
            bit => bit,
        };
        rest.read(|bytes| {
            if let Some(hash) = &mut hash {
                hash.update(bytes);
            }
            (&self.file).write_all(bytes).map_err(fail)
        })
    }

    /// It is whole: takes its name.
    pub(crate) fn finish(self) -> exit::Result {
        fs::rename(&self.path, &self.output).map_err(|error| cannot_write(&self.output, &error))?;
        let _ = fs::remove_file(&self.note);
        Ok(())
    }

    /// It is not what it should be: throws it away.
    pub(crate) fn discard(self) {
        let _ = fs::remove_file(&self.note);
        let _ = fs::remove_file(&self.path);
    }

    /// Throws it away if nothing is in it.
    pub(crate) fn discard_empty(self) {
        if self.file.metadata().is_ok_and(|meta| meta.len() == 0) {
            self.discard();
        }
    }
}

/// A file cannot be written.
pub(crate) fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::own_files(format!("cannot write {}: {error}", path.display()))
}

fn beside(output: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(output);
    name.push(suffix);
    name.into()
}

fn boot() -> String {
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Opens the file at `path` and locks it; gives its length as of then. Whoever held the lock before may have given the file
/// another name meanwhile, and what is locked then is not the part any more.
fn open_locked(path: &Path, output: &Path) -> exit::Result<(File, u64)> {
    let fail = |error: io::Error| cannot_write(path, &error);
    let busy =
        || Failure::own_files(format!("another command downloads {} at this moment", output.display()));
    let mut options = fs::OpenOptions::new();
    // Where others may write, too, one of them could have put a link there, or a pipe.
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags());
    for _ in 0..MAX_TRIES {
        let file = options.open(path).map_err(fail)?;
        if !is_own(&file.metadata().map_err(fail)?) {
            return Err(Failure::own_files(format!("{} is not a file of yours", path.display())));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy()),
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
        let (locked, named) = (file.metadata().map_err(fail)?, fs::symlink_metadata(path));
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino())) {
            return Ok((file, locked.len()));
        }
    }
    Err(busy())
}

fn flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// That it is a file of the caller's, by one name alone: a second one could be a stranger's link to it.
fn is_own(meta: &fs::Metadata) -> bool {
    meta.is_file() && meta.nlink() <= 1 && meta.uid() == rustix::process::geteuid().as_raw()
}

fn write_anew(path: &Path, text: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(flags());
    options.open(path)?.write_all(text)
}

fn read_note(path: &Path) -> Option<Note> {
    let file = fs::OpenOptions::new().read(true).custom_flags(flags()).open(path).ok()?;
    if !is_own(&file.metadata().ok()?) {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_NOTE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_gone_on_with_by_whoever_asks_for_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("file");
        let note = Note::new("this".to_owned(), "\"v\"".to_owned(), 0, 10);
        let (mut part, before) = Part::open(&output, "this").unwrap();
        assert_eq!(before, None);
        part.note(&note);
        part.write(Bit::Bytes("hello".into()), None).unwrap();
        assert!(format!("{:?}", Part::open(&output, "this").unwrap_err()).contains("at this moment"));
        drop(part);

        let (part, before) = Part::open(&output, "that").unwrap();
        assert_eq!(before, None, "something else is asked for");
        drop(part);
        let (mut part, before) = Part::open(&output, "this").unwrap();
        assert_eq!(before, Some((note, 5)));
        part.go_on(5, None).unwrap();
        part.write(Bit::Bytes("world".into()), None).unwrap();
        part.finish().unwrap();
        assert_eq!(fs::read(&output).unwrap(), b"helloworld");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_from_before_the_last_boot_is_not_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("file");
        let mut note = Note::new("this".to_owned(), "\"v\"".to_owned(), 0, 10);
        note.boot = "another".to_owned();
        let (mut part, _) = Part::open(&output, "this").unwrap();
        part.note(&note);
        part.write(Bit::Bytes("hello".into()), None).unwrap();
        drop(part);
        assert_eq!(Part::open(&output, "this").unwrap().1, None);
    }

    #[test]
    fn a_link_in_the_place_of_a_part_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "keep").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("file.part")).unwrap();
        assert!(Part::open(&dir.path().join("file"), "this").is_err());
        assert_eq!(fs::read(&target).unwrap(), b"keep");
    }

    #[test]
    fn a_link_in_the_place_of_a_note_is_neither_followed_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let (output, target) = (dir.path().join("file"), dir.path().join("target"));
        let note = Note::new("this".to_owned(), "\"v\"".to_owned(), 0, 10);
        fs::write(&target, serde_json::to_vec(&note).unwrap()).unwrap();
        let before = fs::read(&target).unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("file.part.new")).unwrap();
        let (mut part, _) = Part::open(&output, "this").unwrap();
        part.note(&Note::new("that".to_owned(), "\"w\"".to_owned(), 0, 10));
        part.write(Bit::Bytes("hello".into()), None).unwrap();
        drop(part);
        assert_eq!(fs::read(&target).unwrap(), before);
        let written = dir.path().join("file.part.json");
        assert_eq!(fs::symlink_metadata(&written).unwrap().mode() & 0o7777, 0o600);

        fs::remove_file(&written).unwrap();
        std::os::unix::fs::symlink(&target, &written).unwrap();
        assert_eq!(Part::open(&output, "this").unwrap().1, None);
    }

    #[test]
    fn a_part_of_two_names_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "keep").unwrap();
        fs::hard_link(&target, dir.path().join("file.part")).unwrap();
        assert!(Part::open(&dir.path().join("file"), "this").is_err());
    }
}
