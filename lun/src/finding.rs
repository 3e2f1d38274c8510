//! The findings about a LUN, with texts that an operator can act on.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::openers::Opener;

/// A reason not to use a LUN as a leg. The text follows the LUN's name: "/dev/sdb is mounted at
/// ...".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "finding", rename_all = "kebab-case")]
pub enum Finding {
    /// A file system on the LUN is mounted.
    Mounted {
        /// The mount point; for a btrfs without a visible mount, its UUID.
        at: String,
    },
    /// The LUN is an active swap area.
    Swap,
    /// Other block devices use the LUN: device-mapper, md, bcache, loop.
    Holders {
        /// The devices with their types: "logical volume /dev/mapper/vg-data".
        names: Vec<String>,
    },
    /// The kernel exports the LUN, for example as an NVMe or SCSI target. No process has it open.
    Exported {
        /// The servers, each with the folder that names the export: "nvmet
        /// (/sys/kernel/config/nvmet/...)".
        by: Vec<String>,
    },
    /// The LUN is one path of a multipath map.
    MultipathComponent {
        /// The map: `/dev/mapper/mpatha`.
        map: String,
    },
    /// One of the LUN's partitions is used.
    PartitionInUse {
        /// The partition: `/dev/sda1`.
        partition: String,
        /// How the partition is used: "mounted at /boot".
        by: String,
    },
    /// The LUN is a partition, and its disk is used directly, past the partition table.
    DiskInUse {
        /// The disk: `/dev/sda`.
        disk: String,
        /// How the disk is used.
        by: String,
    },
    /// The kernel knows partitions on the LUN. They need not be in use.
    HasPartitions {
        /// The partitions: `/dev/sda1`.
        partitions: Vec<String>,
    },
    /// Other disks of this host have the same world-wide name, and no multipath map joins them.
    OtherPaths {
        /// The other disks: `/dev/sdc`.
        names: Vec<String>,
    },
    /// The kernel refuses writes to the LUN.
    ReadOnly,
    /// The LUN is a zoned device, which cannot be written at random.
    Zoned {
        /// The kernel's name of the model: "host-managed".
        model: String,
    },
    /// The kernel refused an exclusive open, and no other finding explains the refusal.
    InUse,
    /// Other processes have the LUN, or a partition of it, open. Many only watch it: udev,
    /// multipathd, smartd.
    OpenedBy {
        /// The processes.
        openers: Vec<Opener>,
    },
    /// The LUN holds something that this host or Shunt itself needs.
    SystemDisk {
        /// What the LUN holds: "the root file system", or the path of the folder.
        reason: String,
    },
    /// The LUN is a volume that Shunt serves, or stands on one.
    IsShuntVolume {
        /// The volume: `/dev/ublkb0`.
        volume: String,
    },
}

impl Finding {
    /// Whether somebody uses the LUN now, so that it is neither a correct source to read nor a safe
    /// target to write.
    ///
    /// False for findings that only warn: partitions that nobody uses, other paths, processes that
    /// only read, a volume of Shunt, properties of the device.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        match self {
            Finding::Mounted { .. }
            | Finding::Swap
            | Finding::Holders { .. }
            | Finding::Exported { .. }
            | Finding::MultipathComponent { .. }
            | Finding::PartitionInUse { .. }
            | Finding::DiskInUse { .. }
            | Finding::InUse
            | Finding::SystemDisk { .. } => true,
            Finding::OpenedBy { openers } => openers.iter().any(|opener| opener.write),
            Finding::HasPartitions { .. }
            | Finding::OtherPaths { .. }
            | Finding::ReadOnly
            | Finding::Zoned { .. }
            | Finding::IsShuntVolume { .. } => false,
        }
    }

    /// Whether the finding explains why the kernel refused an exclusive open.
    pub(crate) fn explains_a_claim(&self) -> bool {
        match self {
            Finding::Mounted { .. }
            | Finding::Swap
            | Finding::Holders { .. }
            | Finding::Exported { .. }
            | Finding::MultipathComponent { .. }
            | Finding::PartitionInUse { .. }
            | Finding::DiskInUse { .. } => true,
            Finding::HasPartitions { .. }
            | Finding::OtherPaths { .. }
            | Finding::ReadOnly
            | Finding::Zoned { .. }
            | Finding::InUse
            | Finding::OpenedBy { .. }
            | Finding::SystemDisk { .. }
            | Finding::IsShuntVolume { .. } => false,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Mounted { at } => write!(f, "is mounted at {at}: unmount it first"),
            Finding::Swap => f.write_str("is an active swap area: run swapoff on it first"),
            Finding::Holders { names } => write!(f, "is used by {}: name that one, or deactivate it first", names.join(", ")),
            Finding::Exported { by } => {
                write!(f, "is exported by the kernel: {}: disable that export first", by.join(", "))
            }
            Finding::MultipathComponent { map } => {
                write!(f, "is only one path of the multipath map {map}: name the map instead")
            }
            Finding::PartitionInUse { partition, by } => write!(f, "has the partition {partition}, which {by}"),
            Finding::DiskInUse { disk, by } => write!(f, "is a partition of {disk}, which {by}"),
            Finding::HasPartitions { partitions } => write!(f, "has partitions: {}", partitions.join(", ")),
            Finding::OtherPaths { names } => write!(
                f,
                "is the same lun as {} (same world-wide name): join the paths with multipath and name the map",
                names.join(", ")
            ),
            Finding::ReadOnly => f.write_str("is read-only: make it writable first"),
            Finding::Zoned { model } => write!(f, "is a zoned device ({model}), which cannot be written at random: choose another"),
            Finding::InUse => f.write_str("is in use: the kernel refuses an exclusive open, and who has it cannot be seen from here"),
            Finding::OpenedBy { openers } => {
                write!(f, "is open in {}: stop what writes to it first", openers.iter().map(Opener::to_string).collect::<Vec<_>>().join(", "))
            }
            Finding::SystemDisk { reason } => write!(f, "holds {reason}: choose another"),
            Finding::IsShuntVolume { volume } => {
                write!(f, "is or stands on the volume {volume}, which shunt itself may be serving: name the lun beneath it")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opener(write: bool) -> Opener {
        Opener {
            pid: 7,
            command: "qemu".into(),
            write,
        }
    }

    #[test]
    fn texts_name_what_was_found() {
        let table = [
            (
                Finding::Mounted { at: "/data".into() },
                "is mounted at /data: unmount it first",
            ),
            (
                Finding::MultipathComponent {
                    map: "/dev/mapper/mpatha".into(),
                },
                "is only one path of the multipath map /dev/mapper/mpatha: name the map instead",
            ),
            (
                Finding::PartitionInUse {
                    partition: "/dev/sda1".into(),
                    by: Finding::Swap.to_string(),
                },
                "has the partition /dev/sda1, which is an active swap area: run swapoff on it first",
            ),
            (
                Finding::OpenedBy {
                    openers: vec![opener(true)],
                },
                "is open in qemu (pid 7, for writing): stop what writes to it first",
            ),
            (
                Finding::SystemDisk {
                    reason: "the root file system".into(),
                },
                "holds the root file system: choose another",
            ),
        ];
        for (finding, text) in table {
            assert_eq!(finding.to_string(), text);
        }
    }

    #[test]
    fn reader_does_not_count_as_use_and_writer_does() {
        assert!(
            !Finding::OpenedBy {
                openers: vec![opener(false)]
            }
            .is_in_use()
        );
        assert!(
            Finding::OpenedBy {
                openers: vec![opener(false), opener(true)]
            }
            .is_in_use()
        );
    }

    #[test]
    fn record_is_tagged_and_kebab_case() {
        let finding = Finding::PartitionInUse {
            partition: "/dev/sda1".into(),
            by: "x".into(),
        };
        let text = serde_json::to_string(&finding).unwrap();
        assert_eq!(
            text,
            r#"{"finding":"partition-in-use","partition":"/dev/sda1","by":"x"}"#
        );
        assert_eq!(serde_json::from_str::<Finding>(&text).unwrap(), finding);
    }
}
