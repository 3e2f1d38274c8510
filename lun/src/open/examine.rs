//! Reads the identity and the limits of an open file.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::{OpenError, other};
use super::{Lun, OpenOptions};
use crate::identity::{FileId, Identity, Kind};
use crate::kernel;
use crate::proc_text::DeviceNumber;
use crate::signature::partition_uuid_by_blkid;
use crate::sysfs::{BlockDevice, Sysfs, partition_number_in_dm_uuid, partition_uuid_in_uevent};

/// Smallest logical block size that Linux supports, in bytes; also the unit of sysfs's `start`.
const SECTOR_BYTES: u32 = 512;
/// Most bytes of one request to a regular file. Files have no limit of their own; this value is an
/// arbitrary one.
const FILE_IO_BYTES_MAX: u32 = 1 << 20;

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

/// Reads the identity and the limits of an open file.
pub(super) fn examine(
    file: File,
    path: PathBuf,
    opts: &OpenOptions,
    sysfs: &Sysfs,
) -> Result<Lun, OpenError> {
    let metadata = file
        .metadata()
        .map_err(|source| other(&path, "stat", source))?;
    match kind_of(&metadata, &path)? {
        Kind::BlockDevice => open_block_device(file, path, &metadata, opts, sysfs),
        Kind::RegularFile => open_regular_file(file, path, &metadata, opts),
    }
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

pub(super) fn block_device(
    sysfs: &Sysfs,
    number: DeviceNumber,
    path: &Path,
) -> Result<BlockDevice, OpenError> {
    sysfs
        .device(number)
        .map_err(|source| other(path, "find the sysfs entry of", source))
}

pub(super) fn block_identity(
    file: &File,
    device: &BlockDevice,
    path: &Path,
) -> Result<Identity, OpenError> {
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

pub(super) fn file_identity(file: &File, direct: bool, path: &Path) -> Result<Identity, OpenError> {
    let metadata = file
        .metadata()
        .map_err(|source| other(path, "stat", source))?;
    if direct && matches!(kernel::direct_io_alignment_bytes(file.as_fd()), Ok(Some(0))) {
        return Err(OpenError::DirectUnsupported {
            path: path.to_owned(),
        });
    }
    // Queried also without O_DIRECT: the identity must not depend on how the file was opened.
    let logical_block_bytes = kernel::file_block_bytes(file);
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

pub(super) fn kind_of(metadata: &Metadata, path: &Path) -> Result<Kind, OpenError> {
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
