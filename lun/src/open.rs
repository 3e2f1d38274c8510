//! Opens a path as a LUN: its identity, its limits, its lock.

use std::fs::{self, File, Metadata, OpenOptions as FileOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::identity::{FileId, Identity, Kind};
use crate::kernel;
use crate::proc_text::DeviceNumber;
use crate::signature::{SignatureError, partition_uuid_by_blkid};
use crate::sysfs::{BlockDevice, Sysfs, partition_number_in_dm_uuid, partition_uuid_in_uevent};

/// Smallest logical block size that Linux supports, in bytes; also the unit of sysfs's `start`.
const SECTOR_BYTES: u32 = 512;
/// Most bytes of one request to a regular file. Files have no limit of their own; this value is an
/// arbitrary one.
const FILE_IO_BYTES_MAX: u32 = 1 << 20;

/// How to open a LUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Open for writing too.
    pub write: bool,
    /// Claim a block device (`O_EXCL`). The open is refused while anybody else has claimed the
    /// device, its disk or a partition of it (mount, swap, holder), and nobody else can claim it
    /// until it is closed. Without effect on regular files: use the lock there.
    pub exclusive: bool,
    /// Unbuffered I/O (`O_DIRECT`), aligned to the logical block size.
    pub direct: bool,
}

/// An open LUN. Closed when dropped.
#[derive(Debug)]
pub struct Lun {
    /// The descriptor; close-on-exec.
    pub fd: OwnedFd,
    /// The path without symbolic links: `/dev/vdb`, `/dev/dm-3`.
    pub path: PathBuf,
    /// What identifies the LUN, as read when it was opened.
    pub identity: Identity,
    /// Major and minor number of a block device.
    pub device_number: Option<(u32, u32)>,
    /// A number that the kernel gives to no other disk until it reboots (`BLKGETDISKSEQ`, Linux
    /// 5.15). A partition has its disk's.
    pub disk_sequence: Option<u64>,
    /// Physical block size in bytes: a smaller write costs the device a read. For a file: the
    /// preferred block size of its file system.
    pub physical_block_bytes: u32,
    /// `queue/minimum_io_size` in bytes.
    pub minimum_io_bytes: u32,
    /// `queue/optimal_io_size` in bytes (a stripe); 0: the device does not report it.
    pub optimal_io_bytes: u32,
    /// Most bytes of one request (`queue/max_sectors_kb`).
    pub max_io_bytes: u32,
    /// Most bytes of one discard; 0: no discard. Always 0 for a regular file.
    pub discard_max_bytes: u64,
    /// Granularity of discard in bytes; 0: no discard.
    pub discard_granularity_bytes: u32,
    /// Most bytes of one write-zeroes; 0: the device has no such command.
    pub write_zeroes_max_bytes: u64,
    /// Whether another process opened it ([`Lun::adopt`]), so that its claim never lapsed.
    pub adopted: bool,
    /// The kernel refuses writes (`BLKROGET`, or the file system of the file is mounted read-only).
    pub read_only: bool,
    /// Whether the disk is rotational, as far as the device reports. False for a regular file.
    pub rotational: bool,
    /// Written data is durable only after a flush. Always true for a regular file.
    pub volatile_cache: bool,
    /// A single write can be made durable (forced unit access).
    pub fua: bool,
}

/// Why a path could not be opened or examined as a LUN. Every text names the path.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing at the path.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },
    /// Neither a block device nor a regular file.
    #[error("{} is a {found}, not a block device or a regular file", path.display())]
    WrongKind {
        /// The path as it was given.
        path: PathBuf,
        /// The kind of the file: "directory", "character device".
        found: &'static str,
    },
    /// The kernel refused an exclusive open: mounted, swap, a holder, or another program's claim.
    #[error("{} is in use: somebody else has claimed the device", path.display())]
    Busy {
        /// The path without symbolic links.
        path: PathBuf,
    },
    /// The process has no permission to open the path.
    #[error("no permission to open {}: {source}", path.display())]
    Permission {
        /// The path as it was given.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The LUN was to be opened for writing, and the kernel refuses writes.
    #[error("{} is read-only", path.display())]
    ReadOnly {
        /// The path without symbolic links.
        path: PathBuf,
    },
    /// The file system of a regular file does not support direct I/O.
    #[error("the file system of {} does not support direct i/o (O_DIRECT)", path.display())]
    DirectUnsupported {
        /// The path without symbolic links.
        path: PathBuf,
    },
    /// Size 0: an empty file, or a device without a medium.
    #[error("{} has a size of 0 bytes", path.display())]
    Empty {
        /// The path without symbolic links.
        path: PathBuf,
    },
    /// The size is not a multiple of the logical block size.
    #[error("the size of {} is {size_bytes} bytes, not a multiple of its logical block size of {logical_block_bytes} bytes", path.display())]
    UnalignedSize {
        /// The path without symbolic links.
        path: PathBuf,
        /// Size in bytes.
        size_bytes: u64,
        /// Logical block size in bytes.
        logical_block_bytes: u32,
    },
    /// The logical block size is below 512 or not a power of two.
    #[error("{} reports a logical block size of {logical_block_bytes} bytes", path.display())]
    OddBlockSize {
        /// The path without symbolic links.
        path: PathBuf,
        /// As reported, in bytes.
        logical_block_bytes: u32,
    },
    /// The path led to a different device before the examination was complete.
    #[error("{} was replaced by another device while it was examined: try again", path.display())]
    Replaced {
        /// The path without symbolic links.
        path: PathBuf,
    },
    /// The signatures on the LUN could not be read.
    #[error("cannot read the signatures on {}: {source}", path.display())]
    Signatures {
        /// The path without symbolic links.
        path: PathBuf,
        /// The cause.
        source: SignatureError,
    },
    /// Any other failure.
    #[error("cannot {action} {}: {source}", path.display())]
    Other {
        /// The path, as given or without symbolic links.
        path: PathBuf,
        /// The action that failed: "open", "read the size of".
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether no LUN is at the path.
    pub(crate) fn is_absence(&self) -> bool {
        match self {
            OpenError::NotFound { .. } | OpenError::WrongKind { .. } | OpenError::Empty { .. } => {
                true
            }
            OpenError::Other { source, .. } => matches!(
                source.raw_os_error(),
                Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM)
            ),
            OpenError::Busy { .. }
            | OpenError::Permission { .. }
            | OpenError::ReadOnly { .. }
            | OpenError::DirectUnsupported { .. }
            | OpenError::UnalignedSize { .. }
            | OpenError::OddBlockSize { .. }
            | OpenError::Replaced { .. }
            | OpenError::Signatures { .. } => false,
        }
    }
}

/// The limits of a device; the fields of [`Lun`] have the details.
struct Limits {
    physical_block_bytes: u32,
    minimum_io_bytes: u32,
    optimal_io_bytes: u32,
    max_io_bytes: u32,
    discard_max_bytes: u64,
    discard_granularity_bytes: u32,
    write_zeroes_max_bytes: u64,
    rotational: bool,
    volatile_cache: bool,
    fua: bool,
}

impl Lun {
    /// Opens the LUN at `path` and reads its identity and its limits from the opened descriptor.
    ///
    /// # Errors
    /// See [`OpenError`]. With `write`, a read-only LUN is refused even where the kernel would open
    /// it.
    pub fn open(path: &Path, opts: &OpenOptions) -> Result<Lun, OpenError> {
        Lun::open_with(path, opts, &Sysfs::new("/sys"))
    }

    /// Reads the identity again from the open descriptor: the size may have changed since the open.
    ///
    /// # Errors
    /// As for [`Lun::open`].
    pub fn read_identity(&self) -> Result<Identity, OpenError> {
        let file = File::from(self.duplicate()?);
        match self.device_number {
            Some(number) => {
                let device = block_device(&Sysfs::new("/sys"), number, &self.path)?;
                block_identity(&file, &device, &self.path)
            }
            None => file_identity(&file, false, &self.path),
        }
    }

    /// Whether both descriptors are the same device or file, or seem to lead to the same blocks
    /// ([`Identity::same_device_hint`]).
    #[must_use]
    pub fn is_same_lun(&self, other: &Lun) -> bool {
        (self.device_number.is_some() && self.device_number == other.device_number)
            || self.identity.same_device_hint(&other.identity)
    }

    /// Takes an exclusive `flock` on the LUN without waiting; `Ok(false)` if another open of the
    /// LUN holds one. The kernel keeps the lock until [`Lun::unlock`], or until the last duplicate
    /// of the descriptor and the last request in flight on it are gone. udev does not probe a
    /// locked disk.
    ///
    /// The lock belongs to the device *node*: two nodes of one device do not exclude each other,
    /// two names that lead to one node do.
    ///
    /// # Errors
    /// The error of `flock(2)`, except `EWOULDBLOCK`.
    pub fn try_lock_exclusive(&self) -> Result<bool, io::Error> {
        kernel::try_lock_exclusive(self.fd.as_fd())
    }

    /// As [`Lun::try_lock_exclusive`], but retries for up to `limit`: udev holds its own lock while
    /// it probes a disk, which it does after each change of the disk's state.
    ///
    /// # Errors
    /// As for [`Lun::try_lock_exclusive`].
    pub fn lock_exclusive_within(&self, limit: Duration) -> Result<bool, io::Error> {
        const RETRY: Duration = Duration::from_millis(20);
        let started = Instant::now();
        loop {
            if self.try_lock_exclusive()? {
                return Ok(true);
            }
            if started.elapsed() >= limit {
                return Ok(false);
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Releases the lock, if this open holds one.
    pub fn unlock(&self) {
        kernel::unlock(self.fd.as_fd());
    }

    /// Reads exactly `buffer` at `offset_bytes`.
    pub(crate) fn read_exact_at(
        &self,
        buffer: &mut [u8],
        offset_bytes: u64,
    ) -> Result<(), OpenError> {
        let file = File::from(self.duplicate()?);
        file.read_exact_at(buffer, offset_bytes)
            .map_err(|source| other(&self.path, "read", source))
    }

    /// Duplicates the descriptor.
    pub(crate) fn duplicate(&self) -> Result<OwnedFd, OpenError> {
        self.fd
            .try_clone()
            .map_err(|source| other(&self.path, "duplicate the descriptor of", source))
    }

    pub(crate) fn open_with(
        path: &Path,
        opts: &OpenOptions,
        sysfs: &Sysfs,
    ) -> Result<Lun, OpenError> {
        let canonical = fs::canonicalize(path).map_err(|source| open_failed(path, source))?;
        // The kind is checked before the open too: opening a tape, a pipe or a watchdog can have
        // side effects.
        let before = fs::metadata(&canonical).map_err(|source| open_failed(path, source))?;
        let kind = kind_of(&before, path)?;
        let file = open_file(&canonical, kind, opts)?;
        let lun = examine(file, canonical, opts, sysfs)?;
        if lun.identity.kind != kind {
            return Err(OpenError::Replaced { path: lun.path });
        }
        Ok(lun)
    }

    /// Makes a LUN of `file`, which was opened with `opts` at `path`.
    pub(crate) fn from_open_file(
        file: File,
        path: &Path,
        opts: &OpenOptions,
    ) -> Result<Self, OpenError> {
        let canonical = fs::canonicalize(path).map_err(|source| open_failed(path, source))?;
        examine(file, canonical, opts, &Sysfs::new("/sys"))
    }
}

/// Reads the identity and the limits of an open file.
fn examine(file: File, path: PathBuf, opts: &OpenOptions, sysfs: &Sysfs) -> Result<Lun, OpenError> {
    let metadata = file
        .metadata()
        .map_err(|source| other(&path, "stat", source))?;
    match kind_of(&metadata, &path)? {
        Kind::BlockDevice => open_block_device(file, path, &metadata, opts, sysfs),
        Kind::RegularFile => open_regular_file(file, path, &metadata, opts),
    }
}

fn open_file(path: &Path, kind: Kind, opts: &OpenOptions) -> Result<File, OpenError> {
    let mut flags = 0;
    if opts.direct {
        flags |= kernel::O_DIRECT;
    }
    // O_EXCL without O_CREAT has a meaning for block devices only (open(2)).
    if opts.exclusive && kind == Kind::BlockDevice {
        flags |= kernel::O_EXCL;
    }
    FileOptions::new()
        .read(true)
        .write(opts.write)
        .custom_flags(flags)
        .open(path)
        .map_err(|source| {
            let path = path.to_owned();
            match source.raw_os_error() {
                Some(libc::EBUSY) => OpenError::Busy { path },
                Some(libc::EROFS) => OpenError::ReadOnly { path },
                Some(libc::EINVAL) if opts.direct => OpenError::DirectUnsupported { path },
                _ => open_failed(&path, source),
            }
        })
}

fn open_block_device(
    file: File,
    path: PathBuf,
    metadata: &Metadata,
    opts: &OpenOptions,
    sysfs: &Sysfs,
) -> Result<Lun, OpenError> {
    let number = number_of(metadata.rdev());
    let device = block_device(sysfs, number, &path)?;
    let identity = block_identity(&file, &device, &path)?;
    let read_only = kernel::is_read_only(file.as_fd())
        .map_err(|source| other(&path, "ask for the read-only flag of", source))?;
    if read_only && opts.write {
        return Err(OpenError::ReadOnly { path });
    }
    let physical_block_bytes = kernel::physical_block_bytes(file.as_fd())
        .map_err(|source| other(&path, "read the physical block size of", source))?;
    let limits = block_limits(&device, physical_block_bytes);
    let disk_sequence = kernel::disk_sequence(file.as_fd()).ok();
    Ok(lun(
        file,
        path,
        identity,
        Some(number),
        disk_sequence,
        read_only,
        limits,
    ))
}

fn open_regular_file(
    file: File,
    path: PathBuf,
    metadata: &Metadata,
    opts: &OpenOptions,
) -> Result<Lun, OpenError> {
    let identity = file_identity(&file, opts.direct, &path)?;
    let read_only = kernel::file_system_is_read_only(&file)
        .map_err(|source| other(&path, "ask for the file system of", source))?;
    let limits = Limits {
        physical_block_bytes: u32::try_from(metadata.blksize())
            .ok()
            .filter(|bytes| bytes.is_power_of_two())
            .unwrap_or(0)
            .max(identity.logical_block_bytes),
        minimum_io_bytes: identity.logical_block_bytes,
        optimal_io_bytes: 0,
        max_io_bytes: FILE_IO_BYTES_MAX,
        discard_max_bytes: 0,
        discard_granularity_bytes: 0,
        write_zeroes_max_bytes: 0,
        rotational: false,
        volatile_cache: true,
        fua: false,
    };
    Ok(lun(file, path, identity, None, None, read_only, limits))
}

fn lun(
    file: File,
    path: PathBuf,
    identity: Identity,
    device_number: Option<DeviceNumber>,
    disk_sequence: Option<u64>,
    read_only: bool,
    limits: Limits,
) -> Lun {
    Lun {
        fd: file.into(),
        path,
        identity,
        device_number,
        disk_sequence,
        physical_block_bytes: limits.physical_block_bytes,
        minimum_io_bytes: limits.minimum_io_bytes,
        optimal_io_bytes: limits.optimal_io_bytes,
        max_io_bytes: limits.max_io_bytes,
        discard_max_bytes: limits.discard_max_bytes,
        discard_granularity_bytes: limits.discard_granularity_bytes,
        write_zeroes_max_bytes: limits.write_zeroes_max_bytes,
        adopted: false,
        read_only,
        rotational: limits.rotational,
        volatile_cache: limits.volatile_cache,
        fua: limits.fua,
    }
}

fn block_device(
    sysfs: &Sysfs,
    number: DeviceNumber,
    path: &Path,
) -> Result<BlockDevice, OpenError> {
    sysfs
        .device(number)
        .map_err(|source| other(path, "find the sysfs entry of", source))
}

fn block_identity(file: &File, device: &BlockDevice, path: &Path) -> Result<Identity, OpenError> {
    let fd = file.as_fd();
    let size_bytes =
        kernel::device_size_bytes(fd).map_err(|source| other(path, "read the size of", source))?;
    let logical_block_bytes = kernel::logical_block_bytes(fd)
        .map_err(|source| other(path, "read the logical block size of", source))?;
    check_geometry(path, size_bytes, logical_block_bytes)?;
    let dm_uuid = device.dm_uuid();
    let loop_file = device
        .whole_disk()
        .loop_backing_path()
        .and_then(|_| kernel::loop_backing_file(fd).ok());
    let partition_number = device
        .partition_number()
        .or_else(|| partition_number_in_dm_uuid(dm_uuid.as_deref().unwrap_or_default()));
    let identity = Identity {
        kind: Kind::BlockDevice,
        size_bytes,
        logical_block_bytes,
        wwn: device.wwn(),
        serial: device.serial(),
        partition_uuid: device
            .partition_number()
            .and_then(|_| partition_uuid(file, device)),
        partition_number,
        partition_start_bytes: device.partition_number().and_then(|_| {
            device
                .attribute_u64("start")?
                .checked_mul(u64::from(SECTOR_BYTES))
        }),
        file: loop_file.map(|(file, _)| file),
        file_offset_bytes: loop_file.map(|(_, offset_bytes)| offset_bytes),
        dm_uuid,
    };
    // sysfs was read by number. The kernel can give the number to another disk as soon as the disk
    // is gone, even while the descriptor is open; the sequence number is never reused. So it is
    // compared last, after everything was read.
    let in_sysfs = device.whole_disk().attribute_u64("diskseq");
    match (kernel::disk_sequence(fd).ok(), in_sysfs) {
        (Some(opened), Some(named)) if opened != named => Err(OpenError::Replaced {
            path: path.to_owned(),
        }),
        (Some(_), Some(_)) | (None, _) | (_, None) => Ok(identity),
    }
}

fn file_identity(file: &File, direct: bool, path: &Path) -> Result<Identity, OpenError> {
    let metadata = file
        .metadata()
        .map_err(|source| other(path, "stat", source))?;
    // Queried also without O_DIRECT: the identity must not depend on how the file was opened. Old
    // kernels reject the query.
    let alignment_bytes = kernel::direct_io_alignment_bytes(file.as_fd())
        .ok()
        .flatten();
    if direct && alignment_bytes == Some(0) {
        return Err(OpenError::DirectUnsupported {
            path: path.to_owned(),
        });
    }
    let logical_block_bytes = alignment_bytes.unwrap_or(0).max(SECTOR_BYTES);
    check_geometry(path, metadata.len(), logical_block_bytes)?;
    Ok(Identity {
        kind: Kind::RegularFile,
        size_bytes: metadata.len(),
        logical_block_bytes,
        wwn: None,
        serial: None,
        partition_uuid: None,
        partition_number: None,
        partition_start_bytes: None,
        file: Some(file_id(&metadata)),
        file_offset_bytes: None,
        dm_uuid: None,
    })
}

fn partition_uuid(file: &File, device: &BlockDevice) -> Option<String> {
    device
        .attribute("uevent")
        .and_then(|text| partition_uuid_in_uevent(&text))
        .or_else(|| partition_uuid_by_blkid(file.try_clone().ok()?.into()).ok()?)
}

fn block_limits(device: &BlockDevice, physical_block_bytes: u32) -> Limits {
    let disk = device.whole_disk();
    let number = |name: &str| disk.attribute_u64(name).unwrap_or(0);
    let small = |name: &str| u32::try_from(number(name)).unwrap_or(u32::MAX);
    Limits {
        physical_block_bytes,
        minimum_io_bytes: small("queue/minimum_io_size"),
        optimal_io_bytes: small("queue/optimal_io_size"),
        max_io_bytes: small("queue/max_sectors_kb").saturating_mul(1024),
        discard_max_bytes: number("queue/discard_max_bytes"),
        discard_granularity_bytes: small("queue/discard_granularity"),
        write_zeroes_max_bytes: number("queue/write_zeroes_max_bytes"),
        rotational: number("queue/rotational") != 0,
        // An unknown cache counts as volatile: an unneeded flush costs time, a missing one costs
        // data.
        volatile_cache: disk.attribute("queue/write_cache").as_deref() != Some("write through"),
        fua: number("queue/fua") != 0,
    }
}

fn check_geometry(path: &Path, size_bytes: u64, logical_block_bytes: u32) -> Result<(), OpenError> {
    let path = path.to_owned();
    if logical_block_bytes < SECTOR_BYTES || !logical_block_bytes.is_power_of_two() {
        return Err(OpenError::OddBlockSize {
            path,
            logical_block_bytes,
        });
    }
    if size_bytes == 0 {
        return Err(OpenError::Empty { path });
    }
    if !size_bytes.is_multiple_of(u64::from(logical_block_bytes)) {
        return Err(OpenError::UnalignedSize {
            path,
            size_bytes,
            logical_block_bytes,
        });
    }
    Ok(())
}

fn kind_of(metadata: &Metadata, path: &Path) -> Result<Kind, OpenError> {
    let file_type = metadata.file_type();
    let found = if file_type.is_block_device() {
        return Ok(Kind::BlockDevice);
    } else if file_type.is_file() {
        return Ok(Kind::RegularFile);
    } else if file_type.is_dir() {
        "directory"
    } else if file_type.is_char_device() {
        "character device"
    } else if file_type.is_fifo() {
        "pipe"
    } else if file_type.is_socket() {
        "socket"
    } else {
        "special file"
    };
    Err(OpenError::WrongKind {
        path: path.to_owned(),
        found,
    })
}

fn open_failed(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound { path },
        io::ErrorKind::PermissionDenied => OpenError::Permission { path, source },
        _ => OpenError::Other {
            path,
            action: "open",
            source,
        },
    }
}

/// Makes an [`OpenError::Other`].
pub(crate) fn other(path: &Path, action: &'static str, source: impl Into<io::Error>) -> OpenError {
    OpenError::Other {
        path: path.to_owned(),
        action,
        source: source.into(),
    }
}

/// The file's identifier, from its metadata.
pub(crate) fn file_id(metadata: &Metadata) -> FileId {
    FileId {
        device: metadata.dev(),
        inode: metadata.ino(),
    }
}

/// Major and minor number of a `dev_t`.
pub(crate) fn number_of(device: u64) -> DeviceNumber {
    (libc::major(device), libc::minor(device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const READ: OpenOptions = OpenOptions {
        write: false,
        exclusive: false,
        direct: false,
    };
    const WRITE: OpenOptions = OpenOptions {
        write: true,
        exclusive: true,
        direct: false,
    };

    fn image(size_bytes: u64) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun.img");
        File::create(&path).unwrap().set_len(size_bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn regular_file_opens_with_its_size_and_identifier() {
        let (_folder, path) = image(1 << 20);
        let lun = Lun::open(&path, &WRITE).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(lun.identity.kind, Kind::RegularFile);
        assert_eq!(lun.identity.size_bytes, 1 << 20);
        assert_eq!(
            lun.identity.file,
            Some(FileId {
                device: metadata.dev(),
                inode: metadata.ino()
            })
        );
        assert!(lun.identity.logical_block_bytes >= 512);
        assert!(lun.physical_block_bytes >= lun.identity.logical_block_bytes);
        assert_eq!(
            (lun.device_number, lun.read_only, lun.volatile_cache),
            (None, false, true)
        );
        assert_eq!(lun.read_identity().unwrap(), lun.identity);
    }

    #[test]
    fn identity_follows_the_descriptor_and_sees_that_it_has_shrunk() {
        let (_folder, path) = image(1 << 20);
        let lun = Lun::open(&path, &WRITE).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 19)
            .unwrap();
        let now = lun.read_identity().unwrap();
        assert_eq!(
            lun.identity.matches(&now).unwrap_err().differences[0].field,
            "size"
        );
        fs::rename(&path, path.with_extension("old")).unwrap();
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let replaced = Lun::open(&path, &READ).unwrap();
        assert_eq!(
            lun.identity
                .matches(&replaced.identity)
                .unwrap_err()
                .differences[0]
                .field,
            "file"
        );
    }

    #[test]
    fn symbolic_link_is_resolved() {
        let (folder, path) = image(4096);
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        let lun = Lun::open(&link, &READ).unwrap();
        assert_eq!(lun.path, fs::canonicalize(&path).unwrap());
        assert!(lun.is_same_lun(&Lun::open(&path, &READ).unwrap()));
    }

    #[test]
    fn two_files_are_two_luns() {
        let ((_one, first), (_two, second)) = (image(4096), image(4096));
        let open = |path: &Path| Lun::open(path, &READ).unwrap();
        assert!(!open(&first).is_same_lun(&open(&second)));
    }

    #[test]
    fn direct_and_buffered_open_give_one_identity() {
        let (_folder, path) = image(1 << 20);
        let buffered = Lun::open(&path, &READ).unwrap();
        match Lun::open(
            &path,
            &OpenOptions {
                direct: true,
                ..READ
            },
        ) {
            Ok(direct) => assert_eq!(direct.identity, buffered.identity),
            Err(OpenError::DirectUnsupported { .. }) => {
                crate::testing::skip(&format!("no direct i/o on {}", path.display()));
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn file_of_an_odd_size_is_refused_with_the_numbers() {
        let (_folder, path) = image((1 << 20) + 7);
        let error = Lun::open(&path, &READ).unwrap_err();
        assert!(matches!(
            error,
            OpenError::UnalignedSize {
                size_bytes: 1_048_583,
                ..
            }
        ));
        assert!(error.to_string().contains("1048583 bytes"), "{error}");
    }

    #[test]
    fn empty_file_is_refused() {
        let (_folder, path) = image(0);
        assert!(matches!(
            Lun::open(&path, &READ).unwrap_err(),
            OpenError::Empty { .. }
        ));
    }

    #[test]
    fn what_is_no_lun_is_refused_by_name() {
        let (folder, path) = image(4096);
        let missing = path.with_extension("missing");
        let dangling = folder.path().join("dangling");
        symlink(&missing, &dangling).unwrap();
        let table = [
            (missing, "does not exist"),
            (dangling, "does not exist"),
            (folder.path().to_owned(), "is a directory"),
            (PathBuf::from("/dev/null"), "is a character device"),
        ];
        for (path, expected) in table {
            let text = Lun::open(&path, &WRITE).unwrap_err().to_string();
            assert!(
                text.contains(expected) && text.contains(&*path.to_string_lossy()),
                "{text}"
            );
        }
    }

    #[test]
    fn odd_geometry_is_refused() {
        let path = Path::new("/dev/x");
        for (size_bytes, logical_block_bytes, fits) in [
            (4096, 512, true),
            (4096, 4096, true),
            (4608, 4096, false),
            (0, 512, false),
            (4096, 256, false),
            (4096, 0, false),
            (3072, 1536, false),
        ] {
            assert_eq!(
                check_geometry(path, size_bytes, logical_block_bytes).is_ok(),
                fits,
                "{size_bytes} {logical_block_bytes}"
            );
        }
    }

    #[test]
    fn lock_excludes_other_opens_until_it_is_let_go() {
        let _alone = crate::testing::alone();
        let (_folder, path) = image(4096);
        let first = Lun::open(&path, &WRITE).unwrap();
        let second = Lun::open(&path, &WRITE).unwrap();
        assert!(first.try_lock_exclusive().unwrap());
        assert!(first.try_lock_exclusive().unwrap(), "repeating it is safe");
        assert!(!second.try_lock_exclusive().unwrap());
        assert!(!second.lock_exclusive_within(Duration::ZERO).unwrap());
        first.unlock();
        assert!(second.lock_exclusive_within(Duration::ZERO).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                second.unlock();
            });
            let patient = first.lock_exclusive_within(Duration::from_secs(60));
            assert!(patient.unwrap(), "it was let go meanwhile");
        });
        first.unlock();
        assert!(second.try_lock_exclusive().unwrap());
        drop(second);
        assert!(first.try_lock_exclusive().unwrap());
    }

    #[test]
    fn limits_of_a_partition_are_its_disks() {
        let sys = crate::sysfs::fake::FakeSysfs::new();
        let queue = [
            ("queue/minimum_io_size", "4096"),
            ("queue/optimal_io_size", "65536"),
            ("queue/max_sectors_kb", "1280"),
            ("queue/discard_max_bytes", "2147483648"),
            ("queue/discard_granularity", "4096"),
            ("queue/write_zeroes_max_bytes", "33554432"),
            ("queue/rotational", "1"),
            ("queue/write_cache", "write through\n"),
            ("queue/fua", "1"),
        ];
        sys.add("sda", "8:0", &queue);
        sys.add("sda/sda1", "8:1", &[("partition", "1")]);
        let limits = block_limits(&sys.sysfs().device((8, 1)).unwrap(), 4096);
        assert_eq!(
            (
                limits.minimum_io_bytes,
                limits.optimal_io_bytes,
                limits.max_io_bytes
            ),
            (4096, 65536, 1_310_720)
        );
        assert_eq!(
            (limits.discard_max_bytes, limits.discard_granularity_bytes),
            (2_147_483_648, 4096)
        );
        assert_eq!(
            (limits.write_zeroes_max_bytes, limits.rotational),
            (33_554_432, true)
        );
        assert_eq!((limits.volatile_cache, limits.fua), (false, true));
        sys.add("sdb", "8:16", &[]);
        assert!(
            block_limits(&sys.sysfs().device((8, 16)).unwrap(), 512).volatile_cache,
            "unknown counts as volatile"
        );
    }
}
