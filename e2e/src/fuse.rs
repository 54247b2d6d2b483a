//! [`Dead`]: a file system that says what is in it and then never answers again, as one of a dead NFS server does.
//!
//! It speaks as much of FUSE (linux/fuse.h, version 7.31) as it takes to open the one file in it. Takes root, and a mount
//! namespace that nobody else looks at: see [`alone`](crate::disk::alone).

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The name of the one file in it.
const NAME: &str = "file";

/// What the kernel asks.
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const BATCH_FORGET: u32 = 42;
}

/// The root's number, and the file's.
const ROOT: u64 = 1;
const FILE: u64 = 2;
const MAX_WRITE: u32 = 64 << 10;
/// How long the kernel may believe what it was told, in seconds: it need not ask again.
const VALID: u64 = 1 << 30;
/// The next one to open it need not wait for those who read it (FOPEN_KEEP_CACHE).
const KEEP_CACHE: u64 = 2;
/// That something is not known here (ENOSYS).
const NO_SUCH_CALL: i32 = -38;

/// A mounted file system. When it is dropped, all who wait for it get an error.
pub struct Dead(PathBuf);

impl Dead {
    /// Mounts it at `folder`, which is made, with a file of `length` bytes in it.
    pub fn mount(folder: &Path, length: u64) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let device = File::options().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("dead", folder, "fuse", flags, CString::new(options)?.as_c_str()).context("mount")?;
        std::thread::spawn(move || serve(device, length));
        Ok(Self(folder.to_owned()))
    }

    /// Its file, which everybody may read.
    pub fn file(&self) -> PathBuf {
        self.0.join(NAME)
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        // Otherwise it goes with the program.
        let _ = unmount(&self.0, UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
}

/// Answers until it is unmounted.
fn serve(mut device: File, length: u64) {
    let mut buffer = vec![0; MAX_WRITE as usize + (64 << 10)];
    while let Ok(read) = device.read(&mut buffer) {
        let number = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().expect("four bytes"));
        let (opcode, node) = (number(4), u64::from(number(16)));
        let unique = &buffer[8..16];
        if let Some(answer) = answer(opcode, node, &buffer[40.min(read)..read], length) {
            let (error, body) = answer.map_or_else(|error| (error, Vec::new()), |body| (0, body));
            let size = 16 + u32::try_from(body.len()).expect("a short answer");
            let said = [&size.to_ne_bytes()[..], &error.to_ne_bytes(), unique, &body].concat();
            // Who asked may be gone.
            let _ = device.write(&said);
        }
    }
}

/// `None` where it never answers.
fn answer(opcode: u32, node: u64, asked: &[u8], length: u64) -> Option<Result<Vec<u8>, i32>> {
    Some(Ok(match opcode {
        opcode::INIT => {
            let queue = 12 | (9 << 16);
            let words = [7, 31, MAX_WRITE, 0, queue, MAX_WRITE, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
        }
        opcode::LOOKUP if asked.strip_suffix(&[0]) == Some(NAME.as_bytes()) => {
            [long(&[FILE, 0, VALID, VALID, 0]), attributes(FILE, length)].concat()
        }
        opcode::GETATTR => [long(&[VALID, 0]), attributes(node, length)].concat(),
        opcode::OPEN => long(&[0, KEEP_CACHE]),
        opcode::READ | opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => {
            return None;
        }
        _ => return Some(Err(NO_SUCH_CALL)),
    }))
}

fn attributes(node: u64, length: u64) -> Vec<u8> {
    let mode: u64 = if node == ROOT { 0o040_755 } else { 0o100_644 };
    // Number, size, blocks; three times with their nanoseconds, and the mode; links and owner, group and device, block size.
    long(&[node, length, length.div_ceil(512), 0, 0, 0, 0, mode << 32, 1, 0, 4096])
}

fn long(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
