//! Names below `/dev`: which of them may lead to a different LUN after a boot, and which one stays.

use std::fs;
use std::path::{Path, PathBuf};

use crate::stack::block_device_at;

/// udev's links that are named after a disk's own identifiers.
const BY_ID: &str = "/dev/disk/by-id";
/// Prefixes of the links that identify a device, the best one first. Other links name a device by
/// its place or by its contents.
const PREFIXES: [&str; 12] = [
    "wwn-",
    "nvme-eui.",
    "nvme-uuid.",
    "dm-uuid-",
    "md-uuid-",
    "scsi-3",
    "scsi-",
    "nvme-",
    "virtio-",
    "ata-",
    "usb-",
    "mmc-",
];

/// Whether a path is the kernel's own name of a device (`/dev/sdb`, `/dev/dm-3`), which may lead to
/// a different LUN after a boot.
#[must_use]
pub fn is_kernel_name(path: &Path) -> bool {
    path.parent() == Some(Path::new("/dev"))
        && fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_symlink())
}

/// The name in `/dev/disk/by-id` that leads to the same device and stays with it over a boot.
#[must_use]
pub fn stable_name(path: &Path) -> Option<PathBuf> {
    stable_name_in(Path::new(BY_ID), path)
}

fn stable_name_in(folder: &Path, path: &Path) -> Option<PathBuf> {
    let device = block_device_at(path)?;
    let links = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    links
        .filter_map(|link| {
            let name = link.file_name();
            let name = name.to_str()?;
            let rank = PREFIXES
                .iter()
                .position(|prefix| name.starts_with(prefix))?;
            (block_device_at(&link.path()) == Some(device)).then(|| (rank, link.path()))
        })
        .min()
        .map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_a_node_below_dev_is_a_kernel_name() {
        assert!(is_kernel_name(Path::new("/dev/null")));
        for other in [
            "/dev",
            "/dev/stdin",
            "/dev/mapper/control",
            "/dev/none",
            "/tmp",
        ] {
            assert!(!is_kernel_name(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn the_stable_name_is_the_best_link_to_the_same_device() {
        let Some(device) = fs::read_dir("/sys/block")
            .ok()
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .map(|entry| Path::new("/dev").join(entry.file_name()))
            .find(|path| block_device_at(path).is_some())
        else {
            return crate::testing::skip("no block device");
        };
        let folder = tempfile::tempdir().unwrap();
        let found = || stable_name_in(folder.path(), &device);
        let link = |name: &str, to: &Path| symlink(to, folder.path().join(name)).unwrap();
        link("lvm-pv-uuid-1", &device);
        link("wwn-0x1", Path::new("/dev/null"));
        assert_eq!(found(), None);
        link("virtio-b", &device);
        link("virtio-a", &device);
        assert_eq!(found(), Some(folder.path().join("virtio-a")));
        link("wwn-0x2", &device);
        assert_eq!(found(), Some(folder.path().join("wwn-0x2")));
    }
}
