//! The system calls that neither std nor nix offers safely. The only unsafe code of the crate.
//!
//! Numbers and structures are those of Linux's `include/uapi/linux/fs.h` (`BLK*`) and `loop.h`.
#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_uint};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::identity::FileId;

/// Claims a block device, as a flag of `open(2)`. std always sets close-on-exec too.
pub(crate) const O_EXCL: c_int = libc::O_EXCL;
/// Unbuffered I/O.
pub(crate) const O_DIRECT: c_int = libc::O_DIRECT;

const BLKROGET: libc::Ioctl = nix::request_code_none!(0x12, 94) as libc::Ioctl;
const BLKRRPART: libc::Ioctl = nix::request_code_none!(0x12, 95) as libc::Ioctl;
const BLKSSZGET: libc::Ioctl = nix::request_code_none!(0x12, 104) as libc::Ioctl;
// The header says size_t; the kernel writes 64 bits whatever the size of size_t is.
const BLKGETSIZE64: libc::Ioctl =
    nix::request_code_read!(0x12, 114, size_of::<usize>()) as libc::Ioctl;
const BLKPBSZGET: libc::Ioctl = nix::request_code_none!(0x12, 123) as libc::Ioctl;
const BLKGETDISKSEQ: libc::Ioctl =
    nix::request_code_read!(0x12, 128, size_of::<u64>()) as libc::Ioctl;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232);

/// Size of the block device in bytes.
pub(crate) fn device_size_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: BLKGETSIZE64 writes one u64.
    unsafe { read_ioctl::<u64>(fd, BLKGETSIZE64) }
}

/// Logical block size of the block device in bytes: the smallest unit and the alignment of direct
/// I/O.
pub(crate) fn logical_block_bytes(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: BLKSSZGET writes one int.
    let bytes = unsafe { read_ioctl::<c_int>(fd, BLKSSZGET) }?;
    u32::try_from(bytes).map_err(|_| io::Error::other(format!("the kernel reports {bytes}")))
}

/// Physical block size of the block device in bytes.
pub(crate) fn physical_block_bytes(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: BLKPBSZGET writes one unsigned int.
    unsafe { read_ioctl::<c_uint>(fd, BLKPBSZGET) }
}

/// Makes the kernel read the partition table of the block device.
pub(crate) fn read_partition_table(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument, and the descriptor is borrowed, therefore open.
    if unsafe { libc::ioctl(fd.as_raw_fd(), BLKRRPART) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the kernel refuses writes to the block device.
pub(crate) fn is_read_only(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: BLKROGET writes one int.
    Ok(unsafe { read_ioctl::<c_int>(fd, BLKROGET) }? != 0)
}

/// The number that the kernel gives to no other disk until it reboots. Linux 5.15 and later.
pub(crate) fn disk_sequence(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: BLKGETDISKSEQ writes one u64.
    unsafe { read_ioctl::<u64>(fd, BLKGETDISKSEQ) }
}

/// The file or device beneath a loop device, and the offset in bytes at which the loop device
/// begins in it.
pub(crate) fn loop_backing_file(fd: BorrowedFd<'_>) -> io::Result<(FileId, u64)> {
    // SAFETY: LOOP_GET_STATUS64 writes one struct loop_info64; every bit pattern of it is valid.
    let info = unsafe { read_ioctl::<LoopInfo64>(fd, LOOP_GET_STATUS64) }?;
    let file = FileId {
        device: info.device,
        inode: info.inode,
    };
    Ok((file, info.offset))
}

/// Alignment in bytes that the file system requires for direct I/O on this file.
///
/// `Ok(None)`: the kernel or the file system does not report it. `Ok(Some(0))`: no direct I/O on
/// this file.
pub(crate) fn direct_io_alignment_bytes(fd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, which AT_EMPTY_PATH allows; the kernel fills one
    // struct statx.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            status.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before and filled by the kernel; every bit pattern is valid.
    let status = unsafe { status.assume_init() };
    Ok((status.stx_mask & libc::STATX_DIOALIGN != 0).then_some(status.stx_dio_offset_align))
}

/// The logical block size of the storage below a regular file, in bytes: 512 if it is not known.
#[must_use]
pub fn file_block_bytes(file: &File) -> u32 {
    // Old kernels reject the query.
    let alignment_bytes = direct_io_alignment_bytes(file.as_fd()).ok().flatten();
    alignment_bytes.unwrap_or(0).max(512)
}

/// The kind and the numbers of the file to which a path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// `S_IFMT` bits.
    pub(crate) kind: u32,
    pub(crate) file: FileId,
    /// Major and minor number of a device node.
    pub(crate) device: (u32, u32),
}

/// Reads the status of the file to which `path` leads, following symbolic links and `/proc/PID/fd`
/// links. Returns what the kernel knows: the server of a network file system is not asked, and
/// nothing is mounted.
pub(crate) fn status_unsynced(path: &Path) -> io::Result<Status> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string that outlives the call; the kernel fills one struct statx.
    let result = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT,
            libc::STATX_TYPE | libc::STATX_INO,
            status.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before and filled by the kernel; every bit pattern is valid.
    let status = unsafe { status.assume_init() };
    Ok(Status {
        kind: u32::from(status.stx_mode) & libc::S_IFMT,
        file: FileId {
            device: libc::makedev(status.stx_dev_major, status.stx_dev_minor),
            inode: status.stx_ino,
        },
        device: (status.stx_rdev_major, status.stx_rdev_minor),
    })
}

/// Whether the file system of this file is mounted read-only.
pub(crate) fn file_system_is_read_only(file: &File) -> io::Result<bool> {
    Ok(nix::sys::statvfs::fstatvfs(file)?
        .flags()
        .contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// Takes an exclusive `flock` without waiting; `Ok(false)` if another open holds one.
pub(crate) fn try_lock_exclusive(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: flock takes no pointer, and the descriptor is borrowed, therefore open.
    if unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EWOULDBLOCK) {
        Ok(false)
    } else {
        Err(error)
    }
}

/// Releases a `flock`.
pub(crate) fn unlock(fd: BorrowedFd<'_>) {
    // SAFETY: as above. LOCK_UN on an open descriptor has no error to report.
    let _ = unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_UN) };
}

/// # Safety
/// The request must write at most one `T`, and all-zero bytes and whatever it writes must be a
/// valid `T`.
unsafe fn read_ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the caller says that the request writes at most one T; the descriptor is borrowed,
    // therefore open.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, value.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before; the caller says that what the kernel wrote is a valid T.
    Ok(unsafe { value.assume_init() })
}
