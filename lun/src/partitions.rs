//! Reads the partition table of a device that the kernel does not scan automatically, such as a
//! ublk device.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::kernel;
use crate::stack::block_device_at;
use crate::sysfs::Sysfs;

/// Makes the kernel read the partition table of `device`, unless it already knows partitions there.
/// Returns the number and the node of each partition.
///
/// # Errors
/// The path is not a block device, or the kernel's error. A device without a partition table is not
/// an error.
pub fn read_partitions(device: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let number = block_device_at(device)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is no block device"))?;
    let sysfs = Sysfs::new("/sys");
    let known = || -> io::Result<Vec<(u32, PathBuf)>> {
        let partitions = sysfs.device(number)?.partitions()?;
        let known = partitions.iter().filter_map(|partition| {
            Some((
                partition.partition_number()?,
                PathBuf::from(partition.path()),
            ))
        });
        Ok(known.collect())
    };
    let found = known()?;
    if !found.is_empty() {
        return Ok(found);
    }
    kernel::read_partition_table(File::open(device)?.as_fd())?;
    known()
}
