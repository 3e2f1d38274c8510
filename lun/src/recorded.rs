//! Opens a recorded LUN: under its recorded path, or under the one other name that leads to it now.
//! Holds the evidence that identifies a LUN without a name of its own.
//!
//! [`Identity::is_distinct`] says whether a LUN has such a name. The evidence for a LUN without one
//! is the number of its disk ([`Lun::disk_sequence`]) within a boot, and its contents across boots.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounded::{Step, within};
use crate::identity::{Identity, Mismatch};
use crate::names::stable_name;
use crate::open::{Lun, OpenError, OpenOptions, other};
use crate::proc_text::DeviceNumber;
use crate::signature::{Signature, signatures};
use crate::stack::beneath_device;
use crate::sysfs::{BlockDevice, Sysfs};
use crate::usage::Host;

/// Time limit for reading the other devices of this host.
const OTHERS_MAX: Duration = Duration::from_secs(15);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The record of a LUN that is to be found or opened.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    /// The recorded path.
    pub path: &'a Path,
    /// The recorded identity.
    pub identity: &'a Identity,
    /// The number of the LUN's disk in this boot. Required, and compared, if the identity is not
    /// distinct.
    pub disk_sequence: Option<u64>,
}

/// Why a recorded LUN is not opened.
#[derive(Debug, thiserror::Error)]
pub enum RecordedError {
    /// The LUN at the path cannot be opened, and the recorded LUN is not found elsewhere.
    #[error("{source}{}", Elsewhere(.found))]
    Open {
        /// The cause.
        source: OpenError,
        /// Names that lead to the recorded identity now: none, or several.
        found: Vec<PathBuf>,
    },
    /// A different LUN is at the path, and the recorded LUN is not found elsewhere.
    #[error("{} is {mismatch}{}", .path.display(), Elsewhere(.found))]
    Mismatch {
        /// The recorded path.
        path: PathBuf,
        /// What differs.
        mismatch: Mismatch,
        /// As in [`RecordedError::Open`].
        found: Vec<PathBuf>,
    },
    /// The LUN has no name of its own, and no other evidence shows that it is the accepted LUN.
    #[error("{} has no name of its own (no world-wide name, serial or UUID), and {cause}", .path.display())]
    Weak {
        /// The recorded path.
        path: PathBuf,
        /// Why the evidence is missing or does not match.
        cause: String,
    },
}

impl From<OpenError> for RecordedError {
    fn from(source: OpenError) -> Self {
        Self::Open {
            source,
            found: Vec::new(),
        }
    }
}

struct Elsewhere<'a>(&'a [PathBuf]);

impl fmt::Display for Elsewhere<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.0.iter().enumerate() {
            let separator = match index {
                0 => "; several devices look like what was recorded: ",
                _ => ", ",
            };
            write!(f, "{separator}{}", path.display())?;
        }
        Ok(())
    }
}

impl Recorded<'_> {
    /// Finds the name that leads to the LUN now: its recorded path; or, if that leads to a
    /// different LUN or to none, the name of the one device of this host that has the recorded
    /// identity.
    ///
    /// Opens the LUN for reading, without a claim: the LUN at the path may be a different one,
    /// which somebody else has claimed.
    ///
    /// # Errors
    /// [`RecordedError`].
    pub fn locate(&self) -> Result<PathBuf, RecordedError> {
        let here = Lun::open(self.path, &OpenOptions::default())
            .map_err(RecordedError::from)
            .and_then(|lun| self.check(&lun));
        match here {
            Ok(()) => Ok(self.path.to_owned()),
            Err(RecordedError::Open { source, .. }) if source.is_absence() => self
                .find()
                .map_err(|found| RecordedError::Open { source, found }),
            Err(RecordedError::Mismatch { path, mismatch, .. }) => {
                self.find().map_err(|found| RecordedError::Mismatch {
                    path,
                    mismatch,
                    found,
                })
            }
            Err(error @ (RecordedError::Open { .. } | RecordedError::Weak { .. })) => Err(error),
        }
    }

    /// Opens the LUN with `open`, at [the name that leads to it now](Recorded::locate), and checks
    /// that it is the recorded one.
    ///
    /// # Errors
    /// [`RecordedError`].
    pub fn open_with(
        &self,
        open: impl FnOnce(&Path) -> Result<Lun, OpenError>,
    ) -> Result<Lun, RecordedError> {
        let lun = open(&self.locate()?)?;
        self.check(&lun)?;
        Ok(lun)
    }

    /// Checks that an open LUN is the recorded one.
    ///
    /// # Errors
    /// [`RecordedError::Mismatch`] and [`RecordedError::Weak`].
    pub fn check(&self, lun: &Lun) -> Result<(), RecordedError> {
        self.identity
            .matches(&lun.identity)
            .map_err(|mismatch| RecordedError::Mismatch {
                path: self.path.to_owned(),
                mismatch,
                found: Vec::new(),
            })?;
        if self.identity.is_distinct() {
            return Ok(());
        }
        let cause = match (self.disk_sequence, lun.disk_sequence) {
            (Some(accepted), Some(now)) if accepted == now => return Ok(()),
            (Some(accepted), Some(now)) => another_disk(accepted, now),
            (Some(_), None) => "the kernel does not number its disks".to_owned(),
            (None, _) => {
                "nothing in this boot shows that it is the LUN that was accepted".to_owned()
            }
        };
        Err(RecordedError::Weak {
            path: self.path.to_owned(),
            cause,
        })
    }

    /// Finds the one device that has the recorded name. The error lists what was found: none, or
    /// several.
    fn find(&self) -> Result<PathBuf, Vec<PathBuf>> {
        let mut found = find(self.identity, &Sysfs::new("/sys"));
        match found.len() {
            1 => Ok(found.remove(0)),
            _ => Err(found),
        }
    }
}

fn another_disk(accepted: u64, now: u64) -> String {
    format!(
        "it is not the disk that was accepted (another disk: number {accepted} of this boot, now {now})"
    )
}

impl Lun {
    /// Opens a recorded LUN at [the name that leads to it now](Recorded::locate).
    ///
    /// # Errors
    /// [`RecordedError`].
    pub fn open_recorded(
        recorded: Recorded<'_>,
        options: &OpenOptions,
    ) -> Result<Lun, RecordedError> {
        recorded.open_with(|path| Lun::open(path, options))
    }

    /// Collects the evidence that identifies this LUN if its identity does not. Reads the LUN.
    ///
    /// # Errors
    /// The kernel does not number its disks, the LUN is an nbd device without an identifier, or the
    /// LUN cannot be read.
    pub fn seen(&self) -> Result<Seen, OpenError> {
        let failed = |action, source| other(&self.path, action, source);
        // An nbd device keeps its number when it is connected to another server.
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("nbd") && self.identity.wwn.is_none() {
            let cause = io::Error::other(
                "its connection has no identifier, and nothing else distinguishes its servers: connect it with one \
                 (NBD_ATTR_BACKEND_IDENTIFIER)",
            );
            return Err(failed("find out what identifies", cause));
        }
        let disk_sequence = self.disk_sequence.ok_or_else(|| {
            failed(
                "find the number of the disk of",
                io::Error::other("the kernel gives none (Linux 5.15 and later do)"),
            )
        })?;
        Ok(Seen {
            boot_id: boot_id().map_err(|source| failed("find out in which boot", source))?,
            disk_sequence,
            size_bytes: self.identity.size_bytes,
            contents: contents(&signatures(self)?),
        })
    }

    /// Lists the other devices of this host with the same size and the same contents, except
    /// devices that stand on this LUN or beneath it.
    ///
    /// # Errors
    /// The kernel's files about the host cannot be read, a device of this size cannot be read, or
    /// the devices do not answer within [`OTHERS_MAX`].
    pub fn others_like(&self, seen: &Seen) -> Result<Vec<PathBuf>, OpenError> {
        let Some(number) = self.device_number else {
            return Ok(Vec::new());
        };
        let (path, seen) = (self.path.clone(), seen.clone());
        within(OTHERS_MAX, move |step| {
            others_like(number, &path, &seen, step)
        })
        .map_err(|source| other(&self.path, "look for devices like", source))?
    }
}

fn others_like(
    own: DeviceNumber,
    path: &Path,
    seen: &Seen,
    step: &Step,
) -> Result<Vec<PathBuf>, OpenError> {
    let host = Host::read(path, step)?;
    let failed = |source| other(path, "look for devices like", source);
    let beneath = |number| beneath_device(number, &host.sysfs, &host.mounts).map_err(failed);
    let beneath_own = beneath(own)?;
    let mut others = Vec::new();
    for device in host.sysfs.disks_and_partitions().map_err(failed)? {
        let Some(number) = device.number() else {
            continue;
        };
        let sectors = device.attribute_u64("size").unwrap_or(0);
        if sectors.saturating_mul(512) != seen.size_bytes
            || beneath_own.devices.contains(&number)
            || beneath(number)?.devices.contains(&own)
        {
            continue;
        }
        let path = PathBuf::from(device.path());
        step.asks(&path);
        let lun = Lun::open(&path, &OpenOptions::default())?;
        if contents(&signatures(&lun)?) == seen.contents {
            others.push(path);
        }
    }
    Ok(others)
}

/// The evidence that identifies a LUN without a name of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// The boot in which the LUN was read.
    pub boot_id: String,
    /// The number of the LUN's disk; the kernel gives it to no other disk in that boot.
    pub disk_sequence: u64,
    /// The LUN's size at that time, in bytes.
    pub size_bytes: u64,
    /// The contents at that time: the kinds, UUIDs and labels of the signatures. `None`: no
    /// signature with a UUID or a label.
    pub contents: Option<String>,
}

impl Seen {
    /// Checks that `now` is the LUN that `self` describes.
    ///
    /// # Errors
    /// Why the evidence does not match, as the end of a sentence.
    pub fn is_still(&self, now: &Seen) -> Result<(), String> {
        if self.boot_id == now.boot_id {
            return match self.disk_sequence == now.disk_sequence {
                true => Ok(()),
                false => Err(another_disk(self.disk_sequence, now.disk_sequence)),
            };
        }
        let describe = |seen: &Seen| {
            let contents = seen.contents.as_deref();
            format!(
                "{} in {} bytes",
                contents.unwrap_or("nothing with a UUID or a label"),
                seen.size_bytes
            )
        };
        if self.contents.is_none() {
            return Err(
                "this host was booted since it was accepted, when nothing with a UUID or a label was on it"
                    .to_owned(),
            );
        }
        if self.contents == now.contents && self.size_bytes == now.size_bytes {
            return Ok(());
        }
        Err(format!(
            "this host was booted since it was accepted: it held {}, and holds {} now",
            describe(self),
            describe(now)
        ))
    }
}

/// The kernel's identifier of this boot.
///
/// # Errors
/// The kernel's error.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

fn contents(signatures: &[Signature]) -> Option<String> {
    let mut texts: Vec<String> = signatures
        .iter()
        .filter(|signature| signature.uuid.is_some() || signature.label.is_some())
        .map(Signature::to_string)
        .collect();
    texts.sort();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// The devices of this host that have the recorded name, as far as sysfs reports it; none if the
/// LUN is not [findable](Identity::is_findable). Opens no device.
fn find(recorded: &Identity, sysfs: &Sysfs) -> Vec<PathBuf> {
    if !recorded.is_findable() {
        return Vec::new();
    }
    let devices = sysfs.disks_and_partitions().unwrap_or_default();
    devices
        .iter()
        .filter(|device| has_name(device, recorded))
        .map(|device| {
            let path = PathBuf::from(device.path());
            stable_name(&path).unwrap_or(path)
        })
        .collect()
}

fn has_name(device: &BlockDevice, recorded: &Identity) -> bool {
    device.wwn() == recorded.wwn
        && device.serial() == recorded.serial
        && device.dm_uuid() == recorded.dm_uuid
        && (recorded.dm_uuid.is_some() || device.partition_number() == recorded.partition_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{FileId, tests::disk};
    use crate::sysfs::fake::FakeSysfs;

    fn seen(boot: &str, disk_sequence: u64, contents: Option<&str>) -> Seen {
        Seen {
            boot_id: boot.to_owned(),
            disk_sequence,
            size_bytes: 1 << 20,
            contents: contents.map(str::to_owned),
        }
    }

    #[test]
    fn within_a_boot_the_disk_counts_and_across_boots_what_is_on_it() {
        let before = seen("a", 7, Some("ext4 u-1"));
        assert_eq!(before.is_still(&before), Ok(()));
        let made = seen("a", 7, Some("xfs u-2"));
        assert_eq!(before.is_still(&made), Ok(()), "a new file system");
        before
            .is_still(&seen("a", 8, Some("ext4 u-1")))
            .unwrap_err();
        assert_eq!(before.is_still(&seen("b", 3, Some("ext4 u-1"))), Ok(()));
        let why = before.is_still(&seen("b", 7, Some("xfs u-2"))).unwrap_err();
        assert!(why.contains("ext4 u-1") && why.contains("xfs u-2"), "{why}");
        before.is_still(&seen("b", 7, None)).unwrap_err();
        seen("a", 7, None)
            .is_still(&seen("b", 7, None))
            .unwrap_err();
        let grown = Seen {
            size_bytes: 2 << 20,
            ..seen("b", 7, Some("ext4 u-1"))
        };
        before.is_still(&grown).unwrap_err();
    }

    #[test]
    fn a_recorded_file_is_opened_also_when_it_has_grown_and_not_when_it_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun.img");
        let make = || fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        make();
        let identity = Lun::open(&path, &OpenOptions::default()).unwrap().identity;
        let open = || {
            let recorded = Recorded {
                path: &path,
                identity: &identity,
                disk_sequence: None,
            };
            Lun::open_recorded(recorded, &OpenOptions::default())
        };
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(2 << 20)
            .unwrap();
        assert_eq!(open().unwrap().identity.size_bytes, 2 << 20);
        fs::rename(&path, folder.path().join("old")).unwrap();
        let error = open().unwrap_err();
        assert!(error.to_string().contains("does not exist"), "{error}");
        make();
        let error = open().unwrap_err();
        assert!(matches!(error, RecordedError::Mismatch { .. }), "{error}");
    }

    #[test]
    fn a_disk_without_a_name_is_opened_only_with_its_number() {
        let nameless = Identity {
            wwn: None,
            serial: None,
            ..disk()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun.img");
        fs::File::create(&path).unwrap().set_len(4096).unwrap();
        let check = |accepted, now| {
            let recorded = Recorded {
                path: &path,
                identity: &nameless,
                disk_sequence: accepted,
            };
            let mut lun = Lun::open(&path, &OpenOptions::default()).unwrap();
            lun.identity = nameless.clone();
            lun.disk_sequence = now;
            recorded.check(&lun)
        };
        check(Some(7), Some(7)).unwrap();
        for (accepted, now) in [
            (Some(7), Some(8)),
            (Some(7), None),
            (None, Some(7)),
            (None, None),
        ] {
            let error = check(accepted, now).unwrap_err();
            assert!(matches!(error, RecordedError::Weak { .. }), "{error}");
        }
    }

    #[test]
    fn a_disk_is_found_under_another_name_by_what_it_is_called_and_never_by_its_size() {
        let sys = FakeSysfs::new();
        let name = [("device/wwid", "naa.600\n"), ("serial", "S1\n")];
        sys.add("sdc", "8:32", &name);
        sys.add("sdc/sdc1", "8:33", &[("partition", "1")]);
        sys.add(
            "sdd",
            "8:48",
            &[("device/wwid", "naa.601\n"), ("serial", "S1\n")],
        );
        sys.add(
            "dm-0",
            "254:0",
            &[("dm/uuid", "LVM-a\n"), ("dm/name", "vg-a\n")],
        );
        // Devices that could be mistaken for a nameless disk, or for a disk with a serial number
        // only.
        sys.add("ram0", "1:0", &[]);
        sys.add("vda", "253:0", &[("serial", "S1\n")]);
        let find = |identity: &Identity| find(identity, &sys.sysfs());
        let path = |path: &str| vec![PathBuf::from(path)];
        assert_eq!(find(&disk()), path("/dev/sdc"));
        let partition = Identity {
            partition_number: Some(1),
            ..disk()
        };
        assert_eq!(find(&partition), path("/dev/sdc1"));
        let nameless = Identity {
            wwn: None,
            serial: None,
            ..disk()
        };
        let mapped = Identity {
            dm_uuid: Some("LVM-a".into()),
            ..nameless.clone()
        };
        assert_eq!(find(&mapped), path("/dev/mapper/vg-a"));
        let serial = Identity {
            serial: Some("S1".into()),
            ..nameless.clone()
        };
        let looped = Identity {
            file: Some(FileId {
                device: 1,
                inode: 12,
            }),
            ..nameless.clone()
        };
        for unknown in [nameless, serial, looped] {
            assert_eq!(find(&unknown), Vec::<PathBuf>::new(), "{unknown:?}");
        }
        sys.add("sde", "8:64", &name);
        assert_eq!(find(&disk()).len(), 2, "two paths to one disk");
    }
}
