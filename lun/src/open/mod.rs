//! Opens a path as a LUN: its identity, its limits, its lock.

mod error;
mod examine;

pub use error::OpenError;
pub(crate) use error::other;
pub(crate) use examine::{file_id, number_of};

use std::fs::{self, File, OpenOptions as FileOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::identity::{Identity, Kind};
use crate::kernel;
use crate::sysfs::Sysfs;
use error::open_failed;
use examine::{block_device, block_identity, examine, file_identity, kind_of};

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

impl Lun {
    /// Opens the LUN at `path` and reads its identity and its limits from the opened descriptor.
    ///
    /// # Errors See [`OpenError`](error::OpenError). With `write`, a read-only LUN is refused even
    /// where the kernel would open it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    use crate::identity::FileId;

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
}
