//! What identifies a LUN beyond its path, and the comparison with a recorded identity.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The two kinds of LUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A block device: disk, partition, logical volume, multipath map.
    BlockDevice,
    /// A regular file, for tests and trials.
    RegularFile,
}

/// A file on this host, as `stat(2)` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileId {
    /// `st_dev`. It can change at a reboot, when disks are found in another order.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// What identifies a LUN beyond its path; read from the opened descriptor ([`crate::Lun::open`]).
///
/// Recorded when a LUN is accepted, and compared ([`Identity::matches`]) at every later open,
/// before the first write and before a switch. Texts are spelled as in the kernel, and trimmed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Block device or regular file.
    pub kind: Kind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Smallest unit and alignment of direct I/O, in bytes. A power of two, at least 512.
    pub logical_block_bytes: u32,
    /// World-wide name of the disk, with its type: `naa.`, `eui.`, `t10.`, `nvme.`, `uuid.`; or the
    /// driver's name for it: `md.`, `nbd.`, `rbd.`, `bcache.` A partition has its disk's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// Serial number of the disk. A partition has its disk's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// `PARTUUID` in lower case; for a DOS table, the disk's identifier with the number of the
    /// partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_uuid: Option<String>,
    /// Number of the partition on its disk; `None`: not a partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_number: Option<u32>,
    /// Offset of the partition on its disk, in bytes. `None` also for partitions made by kpartx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_start_bytes: Option<u64>,
    /// The regular file; for a loop device, the file beneath it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileId>,
    /// Offset at which the blocks of a loop device begin in its file, in bytes; `None`: not a loop
    /// device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_offset_bytes: Option<u64>,
    /// UUID of a device-mapper device, with its owner: `LVM-`, `mpath-`, `CRYPT-`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dm_uuid: Option<String>,
}

/// One field whose value differs from the recorded value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field's name.
    pub field: &'static str,
    /// The recorded value.
    pub recorded: String,
    /// The value now; "none" when the LUN no longer reports the field.
    pub found: String,
}

/// The opened LUN is not the recorded one. Lists every field that differs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mismatch {
    /// At least one difference.
    pub differences: Vec<Difference>,
}

impl Identity {
    /// Checks that `now` is the LUN that `self` recorded. Kind and logical block size must be
    /// equal, and the size must not be less: a LUN that has grown is the same LUN. Every other
    /// recorded field must be present and equal; a field that was absent when recorded is not
    /// compared. For a LUN that is not [distinct](Identity::is_distinct) a match proves nothing:
    /// [`Recorded::check`](crate::Recorded::check) requires more evidence.
    ///
    /// # Errors
    /// All fields that differ.
    pub fn matches(&self, now: &Identity) -> Result<(), Mismatch> {
        let differences: Vec<Difference> = self
            .fields()
            .into_iter()
            .zip(now.fields())
            .filter_map(|((field, recorded), (_, found))| {
                let recorded = recorded?;
                if field == SIZE && now.size_bytes >= self.size_bytes {
                    return None;
                }
                (found.as_ref() != Some(&recorded)).then(|| Difference {
                    field,
                    recorded,
                    found: found.unwrap_or_else(|| "none".to_owned()),
                })
            })
            .collect();
        if differences.is_empty() {
            Ok(())
        } else {
            Err(Mismatch { differences })
        }
    }

    /// Whether `other` seems to be the same LUN under another name, or to share blocks with it:
    /// same device-mapper UUID, same file (also beneath a loop device), or same world-wide name. A
    /// disk and its partition share blocks; two partitions of one disk do not.
    ///
    /// A hint: `false` proves nothing, since many virtual disks have no name. Serial numbers are
    /// not compared: they are unique only within one make, if at all.
    #[must_use]
    pub fn same_device_hint(&self, other: &Identity) -> bool {
        if equal_and_known(self.dm_uuid.as_ref(), other.dm_uuid.as_ref()) {
            return true;
        }
        let same_disk = equal_and_known(self.file.as_ref(), other.file.as_ref())
            || equal_and_known(self.wwn.as_ref(), other.wwn.as_ref());
        same_disk && !self.is_another_partition_than(other)
    }

    /// Whether the identity has a name of its own: world-wide name, serial, partition UUID, file or
    /// device-mapper UUID. A LUN that is not distinct also needs [`Seen`](crate::Seen) to be
    /// recognised.
    #[must_use]
    pub fn is_distinct(&self) -> bool {
        self.wwn.is_some()
            || self.serial.is_some()
            || self.partition_uuid.is_some()
            || self.file.is_some()
            || self.dm_uuid.is_some()
    }

    /// Whether the LUN can be found under any name: the kernel reports, without opening the device,
    /// a name of it that no other device has, in this boot or another. The file of a loop device is
    /// not such a name: after a boot its device number and inode can belong to another file.
    #[must_use]
    pub fn is_findable(&self) -> bool {
        self.kind == Kind::BlockDevice && (self.wwn.is_some() || self.dm_uuid.is_some())
    }

    /// Describes all known fields in one line for an operator.
    #[must_use]
    pub fn describe(&self) -> String {
        self.fields()
            .into_iter()
            .filter_map(|(field, value)| {
                value.map(|value| {
                    if field == KIND {
                        value
                    } else {
                        format!("{field} {value}")
                    }
                })
            })
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// All fields in a fixed order with their texts. [`Identity::matches`], [`Identity::describe`]
    /// and [`crate::overwrite_word`] use this one list.
    pub(crate) fn fields(&self) -> [(&'static str, Option<String>); 11] {
        let Identity {
            kind,
            size_bytes,
            logical_block_bytes,
            wwn,
            serial,
            partition_uuid,
            partition_number,
            partition_start_bytes,
            file,
            file_offset_bytes,
            dm_uuid,
        } = self;
        [
            (KIND, Some(kind.to_string())),
            (SIZE, Some(format!("{size_bytes} bytes"))),
            (
                "logical block size",
                Some(format!("{logical_block_bytes} bytes")),
            ),
            ("wwn", wwn.clone()),
            ("serial", serial.clone()),
            ("partition uuid", partition_uuid.clone()),
            (
                "partition number",
                partition_number.map(|number| number.to_string()),
            ),
            (
                "partition start",
                partition_start_bytes.map(|start| format!("{start} bytes")),
            ),
            ("file", file.map(|file| file.to_string())),
            (
                "offset in the file",
                file_offset_bytes.map(|offset| format!("{offset} bytes")),
            ),
            ("device-mapper uuid", dm_uuid.clone()),
        ]
    }

    fn is_another_partition_than(&self, other: &Identity) -> bool {
        if equal_and_known(self.partition_uuid.as_ref(), other.partition_uuid.as_ref()) {
            return false;
        }
        match (self.partition_number, other.partition_number) {
            (Some(a), Some(b)) => a != b,
            (None, _) | (_, None) => false,
        }
    }
}

const KIND: &str = "kind";
const SIZE: &str = "size";

fn equal_and_known<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
    a.is_some() && a == b
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::BlockDevice => "block device",
            Kind::RegularFile => "regular file",
        })
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} on device {}", self.inode, self.device)
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the LUN that was recorded: ")?;
        for (
            index,
            Difference {
                field,
                recorded,
                found,
            },
        ) in self.differences.iter().enumerate()
        {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{field} was {recorded}, is {found}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn disk() -> Identity {
        Identity {
            kind: Kind::BlockDevice,
            size_bytes: 1 << 30,
            logical_block_bytes: 512,
            wwn: Some("naa.600".into()),
            serial: Some("S1".into()),
            partition_uuid: None,
            partition_number: None,
            partition_start_bytes: None,
            file: None,
            file_offset_bytes: None,
            dm_uuid: None,
        }
    }

    fn partition(number: u32) -> Identity {
        Identity {
            partition_uuid: Some(format!("1234abcd-0{number}")),
            partition_number: Some(number),
            partition_start_bytes: Some(u64::from(number) << 20),
            ..disk()
        }
    }

    fn full() -> Identity {
        Identity {
            file: Some(FileId {
                device: 1,
                inode: 2,
            }),
            file_offset_bytes: Some(0),
            dm_uuid: Some("LVM-a".into()),
            ..partition(1)
        }
    }

    #[test]
    fn same_lun_matches_itself() {
        assert_eq!(full().matches(&full()), Ok(()));
    }

    #[test]
    fn every_field_that_differs_is_named() {
        type Change = fn(&mut Identity);
        let table: [(&str, Change); 11] = [
            ("kind", |i| i.kind = Kind::RegularFile),
            ("size", |i| i.size_bytes -= 512),
            ("logical block size", |i| i.logical_block_bytes = 4096),
            ("wwn", |i| i.wwn = Some("naa.601".into())),
            ("serial", |i| i.serial = None),
            ("partition uuid", |i| i.partition_uuid = Some("x".into())),
            ("partition number", |i| i.partition_number = Some(9)),
            ("partition start", |i| i.partition_start_bytes = Some(9)),
            ("file", |i| {
                i.file = Some(FileId {
                    device: 1,
                    inode: 3,
                })
            }),
            ("offset in the file", |i| i.file_offset_bytes = Some(512)),
            ("device-mapper uuid", |i| i.dm_uuid = None),
        ];
        let mut all = full();
        for (field, change) in table {
            let mut now = full();
            change(&mut now);
            change(&mut all);
            let mismatch = full().matches(&now).unwrap_err();
            let fields: Vec<&str> = mismatch.differences.iter().map(|d| d.field).collect();
            assert_eq!(fields, [field]);
        }
        assert_eq!(full().matches(&all).unwrap_err().differences.len(), 11);
    }

    #[test]
    fn a_lun_that_has_grown_is_the_same_lun_and_one_that_has_shrunk_is_not() {
        let grown = Identity {
            size_bytes: disk().size_bytes + 4096,
            ..disk()
        };
        assert_eq!(disk().matches(&grown), Ok(()));
        grown.matches(&disk()).unwrap_err();
    }

    #[test]
    fn what_was_absent_when_recorded_is_not_compared() {
        let recorded = Identity {
            wwn: None,
            serial: None,
            ..disk()
        };
        assert_eq!(recorded.matches(&full()), Ok(()));
    }

    #[test]
    fn mismatch_reads_as_a_sentence() {
        let now = Identity {
            size_bytes: 1024,
            serial: None,
            ..disk()
        };
        assert_eq!(
            disk().matches(&now).unwrap_err().to_string(),
            "not the LUN that was recorded: size was 1073741824 bytes, is 1024 bytes; serial was S1, is none"
        );
    }

    #[test]
    fn same_disk_under_another_name_is_recognised() {
        let nameless = Identity {
            wwn: None,
            ..disk()
        };
        let file = |inode| Identity {
            wwn: None,
            file: Some(FileId { device: 1, inode }),
            ..disk()
        };
        let file_partition = |number, inode| Identity {
            wwn: None,
            file: Some(FileId { device: 1, inode }),
            ..partition(number)
        };
        let volume = |uuid: &str| Identity {
            wwn: None,
            dm_uuid: Some(uuid.into()),
            ..disk()
        };
        let table = [
            ("one wwn", disk(), disk(), true),
            (
                "other wwn",
                disk(),
                Identity {
                    wwn: Some("naa.601".into()),
                    ..disk()
                },
                false,
            ),
            ("serials only", nameless.clone(), nameless, false),
            ("disk and its partition", disk(), partition(1), true),
            (
                "two partitions of a disk",
                partition(1),
                partition(2),
                false,
            ),
            ("one partition twice", partition(1), partition(1), true),
            (
                "partition without uuid",
                partition(1),
                Identity {
                    partition_uuid: None,
                    ..partition(1)
                },
                true,
            ),
            (
                "other partition without uuid",
                partition(1),
                Identity {
                    partition_uuid: None,
                    ..partition(2)
                },
                false,
            ),
            ("one file", file(7), file(7), true),
            ("other file", file(7), file(8), false),
            (
                "partitions of one loop device",
                file_partition(1, 7),
                file_partition(2, 7),
                false,
            ),
            (
                "file and a partition of its loop device",
                file(7),
                file_partition(2, 7),
                true,
            ),
            ("one volume", volume("LVM-a"), volume("LVM-a"), true),
            ("other volume", volume("LVM-a"), volume("LVM-b"), false),
        ];
        for (case, a, b, expected) in table {
            assert_eq!(a.same_device_hint(&b), expected, "{case}");
            assert_eq!(b.same_device_hint(&a), expected, "{case}, the other way");
        }
    }

    #[test]
    fn description_has_everything_that_is_known_and_nothing_else() {
        assert_eq!(
            disk().describe(),
            "block device, size 1073741824 bytes, logical block size 512 bytes, wwn naa.600, serial S1"
        );
    }

    #[test]
    fn record_is_kebab_case_without_absent_fields_and_reads_back() {
        let text = serde_json::to_string(&disk()).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"block-device","size_bytes":1073741824,"logical_block_bytes":512,"wwn":"naa.600","serial":"S1"}"#
        );
        let bare = Identity {
            wwn: None,
            serial: None,
            ..disk()
        };
        assert_eq!(
            serde_json::to_string(&bare).unwrap(),
            r#"{"kind":"block-device","size_bytes":1073741824,"logical_block_bytes":512}"#
        );
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), disk());
        assert_eq!(
            serde_json::from_str::<Identity>(&serde_json::to_string(&full()).unwrap()).unwrap(),
            full()
        );
    }

    #[test]
    fn record_with_an_unknown_field_is_refused() {
        let text =
            r#"{"kind":"block-device","size_bytes":1,"logical_block_bytes":512,"colour":"red"}"#;
        assert!(
            serde_json::from_str::<Identity>(text)
                .unwrap_err()
                .to_string()
                .contains("colour")
        );
    }

    #[test]
    fn size_alone_does_not_make_a_lun_distinct() {
        let nameless = || Identity {
            wwn: None,
            serial: None,
            ..disk()
        };
        assert!(!nameless().is_distinct());
        let distinct = [
            Identity {
                wwn: Some("naa.6".into()),
                ..nameless()
            },
            Identity {
                serial: Some("S1".into()),
                ..nameless()
            },
            Identity {
                partition_uuid: Some("a".into()),
                ..nameless()
            },
            Identity {
                file: Some(FileId {
                    device: 1,
                    inode: 2,
                }),
                ..nameless()
            },
            Identity {
                dm_uuid: Some("LVM-a".into()),
                ..nameless()
            },
        ];
        for identity in distinct {
            assert!(identity.is_distinct(), "{identity:?}");
        }
    }
}
