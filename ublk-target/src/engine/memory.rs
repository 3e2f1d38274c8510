//! The memory for the requests' data: allocated, touched and locked once, before the device exists.

use std::{io, num::NonZeroUsize, ptr::NonNull};

use nix::sys::mman::{self, MapFlags, ProtFlags};

/// A set of page-aligned buffers of equal size.
#[derive(Debug)]
pub(super) struct Buffers {
    base: NonNull<u8>,
    mapped_bytes: NonZeroUsize,
    buffer_bytes: usize,
}

// SAFETY: the mapping belongs to the process; only its owner hands out addresses in it.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Allocates `count` buffers of `buffer_bytes` each, which must be a multiple of the page size.
    pub(super) fn new(count: usize, buffer_bytes: usize) -> io::Result<Self> {
        let mapped_bytes = count
            .checked_mul(buffer_bytes)
            .and_then(NonZeroUsize::new)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS | MapFlags::MAP_POPULATE;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { mman::mmap_anonymous(None, mapped_bytes, protection, flags) }?;
        let buffers = Self {
            base: base.cast(),
            mapped_bytes,
            buffer_bytes,
        };
        // A buffer that is not resident makes an old driver shorten or repeat requests.
        // SAFETY: the mapping was just made and lives as long as `buffers`.
        unsafe { mman::mlock(base, mapped_bytes.get()) }?;
        Ok(buffers)
    }

    /// All buffers as one region, for registration with io_uring.
    pub(super) fn whole(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.base.as_ptr().cast(),
            iov_len: self.mapped_bytes.get(),
        }
    }

    /// The address of the buffer with this number.
    pub(super) fn address(&self, tag: usize) -> *mut u8 {
        assert!((tag + 1) * self.buffer_bytes <= self.mapped_bytes.get());
        // SAFETY: the assertion keeps the address in the mapping.
        unsafe { self.base.as_ptr().add(tag * self.buffer_bytes) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made; `Engine` drops the ring that used it first.
        let _ = unsafe { mman::munmap(self.base.cast(), self.mapped_bytes.get()) };
    }
}
