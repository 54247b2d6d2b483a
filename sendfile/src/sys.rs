//! Addresses that stand for a part of a file, and a mount that nothing is written through.
#![expect(
    unsafe_code,
    reason = "mapping files into memory, asking what the page cache has of them, and mount_setattr(2)"
)]

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::ptr::{self, NonNull};

/// A part of a file, mapped to be read. No page is brought into memory by that.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: the addresses are only read, and stay mapped until this is dropped, whatever thread does it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// `offset` and `length` are multiples of a page, but for the end of the file; `length` is not 0.
    pub(crate) fn new(file: impl AsFd, offset: u64, length: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses addresses that nothing else has.
        let start =
            unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file, offset) }?;
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at no address"))?;
        Ok(Self { start, length })
    }

    pub(crate) fn address(&self) -> usize {
        self.start.as_ptr().addr()
    }

    /// Whether the page cache holds all of it.
    pub(crate) fn is_cached(&self, page: usize) -> io::Result<bool> {
        let mut pages = vec![0u8; self.length.div_ceil(page)];
        // SAFETY: the addresses are mapped, and there is a byte for each of their pages.
        let result = unsafe { libc::mincore(self.start.as_ptr(), self.length, pages.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(pages.iter().all(|page| page & 1 == 1))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the addresses are mapped for as long as `self`, and nobody writes to this part of the file any more: that is
        // what `region` demands.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody has the addresses any more. It fails for arguments that are wrong alone.
        let _ = unsafe { munmap(self.start.as_ptr(), self.length) };
    }
}

/// Makes a mount that is nowhere attached read-only (mount_setattr(2), Linux 5.12).
pub(crate) fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is an empty C string, and the attributes are as long as is said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
