//! Lists the devices and files beneath a path or a device: partition, device-mapper, md, loop,
//! btrfs, all the way down.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::identity::FileId;
use crate::kernel::status_unsynced;
use crate::open::{file_id, number_of};
use crate::proc_text::{DeviceNumber, Mount};
use crate::sysfs::Sysfs;

/// The devices and files on which a path or a device stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stack {
    pub(crate) devices: BTreeSet<DeviceNumber>,
    /// Files beneath loop devices.
    pub(crate) files: BTreeSet<FileId>,
}

/// Lists everything beneath the file system that holds `path`. For a path that does not exist yet,
/// its nearest existing parent counts.
///
/// Not followed: the layers of an overlay, network file systems.
pub(crate) fn beneath_path(path: &Path, sysfs: &Sysfs, mounts: &[Mount]) -> io::Result<Stack> {
    let mut stack = Stack::default();
    let devices = devices_of_path(path, sysfs, mounts)?;
    descend(devices, sysfs, mounts, &mut stack)?;
    Ok(stack)
}

/// Lists the device itself and everything beneath it.
pub(crate) fn beneath_device(
    number: DeviceNumber,
    sysfs: &Sysfs,
    mounts: &[Mount],
) -> io::Result<Stack> {
    let mut stack = Stack::default();
    descend(vec![number], sysfs, mounts, &mut stack)?;
    Ok(stack)
}

/// The number of the block device whose node `path` is.
pub(crate) fn block_device_at(path: &Path) -> Option<DeviceNumber> {
    let status = status_unsynced(path).ok()?;
    (status.kind == libc::S_IFBLK).then_some(status.device)
}

fn descend(
    mut pending: Vec<DeviceNumber>,
    sysfs: &Sysfs,
    mounts: &[Mount],
    stack: &mut Stack,
) -> io::Result<()> {
    while let Some(number) = pending.pop() {
        if !stack.devices.insert(number) {
            continue;
        }
        let device = sysfs.device(number)?;
        let disk = device.whole_disk();
        pending.extend(disk.number());
        pending.extend(device.slaves()?.iter().filter_map(|slave| slave.number()));
        let Some(backing) = disk.loop_backing_path() else {
            continue;
        };
        match fs::metadata(&backing) {
            Ok(metadata) if metadata.file_type().is_block_device() => {
                pending.push(number_of(metadata.rdev()))
            }
            Ok(metadata) => {
                stack.files.insert(file_id(&metadata));
                pending.extend(devices_of_path(&backing, sysfs, mounts)?);
            }
            // The file is deleted or in another mount namespace: what is beneath it is unknown.
            Err(_) => {}
        }
    }
    Ok(())
}

fn devices_of_path(path: &Path, sysfs: &Sysfs, mounts: &[Mount]) -> io::Result<Vec<DeviceNumber>> {
    let (path, metadata) = nearest_existing(path)?;
    let number = number_of(metadata.dev());
    if sysfs.device(number).is_ok() {
        return Ok(vec![number]);
    }
    // An anonymous number (btrfs): the mount names one of its devices, sysfs the others.
    let source = mount_of(&path, mounts).and_then(|mount| block_device_at(&mount.source));
    let Some(source) = source else {
        return Ok(Vec::new());
    };
    let mut devices = vec![source];
    let name = sysfs.device(source)?.name();
    for (_, members) in sysfs.btrfs_members()? {
        if members.contains(&name) {
            devices.extend(
                sysfs
                    .disks_and_partitions()?
                    .iter()
                    .filter(|d| members.contains(&d.name()))
                    .filter_map(|d| d.number()),
            );
        }
    }
    Ok(devices)
}

fn nearest_existing(path: &Path) -> io::Result<(PathBuf, fs::Metadata)> {
    let path = std::path::absolute(path)?;
    for ancestor in path.ancestors() {
        match fs::canonicalize(ancestor) {
            Ok(canonical) => {
                let metadata = fs::metadata(&canonical)?;
                return Ok((canonical, metadata));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The mount on which a path without symbolic links lies: the longest mount point, of equal ones
/// the last.
fn mount_of<'a>(path: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::fake::FakeSysfs;

    fn mount(mount_point: &str, source: &str) -> Mount {
        Mount {
            number: (0, 1),
            mount_point: mount_point.into(),
            file_system: "btrfs".into(),
            source: source.into(),
        }
    }

    #[test]
    fn volume_stands_on_its_partitions_and_their_disks_and_on_nothing_else() {
        let sys = FakeSysfs::new();
        sys.add("sda", "8:0", &[]);
        sys.add("sda/sda1", "8:1", &[("partition", "1")]);
        sys.add("sda/sda2", "8:2", &[("partition", "2")]);
        sys.add("sdb", "8:16", &[]);
        sys.add("sdc", "8:32", &[]);
        sys.add("dm-0", "253:0", &[]);
        sys.add("dm-1", "253:1", &[]);
        sys.add("md0", "9:0", &[]);
        sys.stack("md0", "sda/sda2");
        sys.stack("md0", "sdb");
        sys.stack("dm-0", "md0");
        sys.stack("dm-1", "sdc");
        let stack = beneath_device((253, 0), &sys.sysfs(), &[]).unwrap();
        assert_eq!(
            stack.devices,
            BTreeSet::from([(253, 0), (9, 0), (8, 2), (8, 0), (8, 16)])
        );
    }

    #[test]
    fn loop_device_stands_on_its_file_and_the_device_beneath() {
        let sys = FakeSysfs::new();
        let folder = tempfile::tempdir().unwrap();
        let backing = folder.path().join("image");
        fs::write(&backing, "x").unwrap();
        let metadata = fs::metadata(&backing).unwrap();
        let (major, minor) = number_of(metadata.dev());
        sys.add("vda", &format!("{major}:{minor}"), &[]);
        sys.add(
            "loop0",
            "7:0",
            &[("loop/backing_file", &format!("{}\n", backing.display()))],
        );
        let stack = beneath_device((7, 0), &sys.sysfs(), &[]).unwrap();
        assert_eq!(stack.devices, BTreeSet::from([(7, 0), (major, minor)]));
        assert_eq!(stack.files, BTreeSet::from([file_id(&metadata)]));
    }

    #[test]
    fn folder_that_does_not_exist_yet_stands_where_its_parent_stands() {
        let sys = FakeSysfs::new();
        let folder = tempfile::tempdir().unwrap();
        let (major, minor) = number_of(fs::metadata(folder.path()).unwrap().dev());
        sys.add("vda", &format!("{major}:{minor}"), &[]);
        let stack = beneath_path(&folder.path().join("not/yet"), &sys.sysfs(), &[]).unwrap();
        assert_eq!(stack.devices, BTreeSet::from([(major, minor)]));
    }

    #[test]
    fn device_that_sysfs_does_not_know_is_an_error_and_not_an_empty_stack() {
        assert!(beneath_device((8, 0), &FakeSysfs::new().sysfs(), &[]).is_err());
    }

    #[test]
    fn path_lies_on_the_longest_mount_point_and_of_equal_ones_on_the_last() {
        let mounts = [
            mount("/", "a"),
            mount("/srv", "b"),
            mount("/srv/data", "c"),
            mount("/srv", "d"),
        ];
        for (path, source) in [
            ("/srv/data/x", "c"),
            ("/srv/database", "d"),
            ("/srv", "d"),
            ("/etc", "a"),
        ] {
            assert_eq!(
                mount_of(Path::new(path), &mounts).unwrap().source,
                Path::new(source),
                "{path}"
            );
        }
    }
}
