//! Finds who uses a LUN: mounts, swap, holders, exports, partitions in use, other paths, open
//! descriptors, and claims without a known owner.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bounded::{Step, within};
use crate::exports::{Export, Exported, exports};
use crate::finding::Finding;
use crate::identity::Kind;
use crate::kernel::status_unsynced;
use crate::open::{Lun, OpenError, OpenOptions, other};
use crate::openers::{Opened, is_this_process, openers_of};
use crate::proc_text::{DeviceNumber, Mount, parse_mountinfo, parse_swaps};
use crate::stack::block_device_at;
use crate::sysfs::{BlockDevice, Sysfs, is_multipath_uuid};

/// Time limit of [`in_use`].
const IN_USE_MAX: Duration = Duration::from_secs(20);

/// The kernel's texts about this host, read once for each examination.
pub(crate) struct Host {
    pub(crate) sysfs: Sysfs,
    pub(crate) proc: PathBuf,
    pub(crate) mounts: Vec<Mount>,
    /// Paths of swap areas.
    pub(crate) swaps: Vec<PathBuf>,
    /// What the kernel exports.
    pub(crate) exports: Vec<Export>,
    /// Records which path is being examined.
    pub(crate) step: Step,
}

/// Lists who uses the LUN at `path` now. Empty: no visible user. Also works for a volume's own
/// device.
///
/// This process is not counted as an opener; its own claim is found as [`Finding::InUse`].
///
/// # Errors
/// The path is no LUN, the kernel's files about the host cannot be read, or something does not
/// answer in time. The list is never silently incomplete.
pub fn in_use(path: &Path) -> Result<Vec<Finding>, OpenError> {
    let asked = path.to_owned();
    within(IN_USE_MAX, move |step| {
        let lun = Lun::open(&asked, &OpenOptions::default())?;
        let host = Host::read(&lun.path, step)?;
        uses_of_lun(&lun, &host)
    })
    .map_err(|source| other(path, "find who uses", source))?
}

impl Host {
    /// Reads this host's texts. `path` is the LUN's path, for the error.
    pub(crate) fn read(path: &Path, step: &Step) -> Result<Host, OpenError> {
        let proc = PathBuf::from("/proc");
        let mut mounts = mounts_in(&proc.join("self/mountinfo"))
            .map_err(|source| other(path, "list the mounts to check", source))?;
        // A service can have its own mount namespace; then process 1 sees what the operator sees.
        for mount in mounts_in(&proc.join("1/mountinfo")).unwrap_or_default() {
            if !mounts.contains(&mount) {
                mounts.push(mount);
            }
        }
        let swaps = match fs::read(proc.join("swaps")) {
            Ok(text) => parse_swaps(&text).map_err(|error| {
                other(
                    path,
                    "list the swap areas to check",
                    io::Error::other(error),
                )
            })?,
            // A kernel without swap.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(other(path, "list the swap areas to check", source)),
        };
        let sysfs = Sysfs::new("/sys");
        let exports = exports(&sysfs, &mounts, step)
            .map_err(|source| other(path, "find who serves", source))?;
        Ok(Host {
            sysfs,
            proc,
            mounts,
            swaps,
            exports,
            step: step.clone(),
        })
    }
}

/// Lists all uses of an open LUN.
pub(crate) fn uses_of_lun(lun: &Lun, host: &Host) -> Result<Vec<Finding>, OpenError> {
    let failed = |source| other(&lun.path, "find who uses", source);
    let mut findings = match lun.device_number {
        Some(number) => {
            let device = host.sysfs.device(number).map_err(failed)?;
            let mut findings = uses_of_device(&device, host).map_err(failed)?;
            findings.extend(other_paths(&device, host).map_err(failed)?);
            // A loop device also leads to its file.
            findings.extend(exported_file(lun, host));
            findings
        }
        None => uses_of_file(lun, host).map_err(failed)?,
    };
    if lun.identity.kind == Kind::BlockDevice
        && is_claimed(lun, host)?
        && !findings.iter().any(Finding::explains_a_claim)
    {
        findings.push(Finding::InUse);
    }
    findings.extend(opened_by(lun, host).map_err(failed)?);
    Ok(findings)
}

/// Lists the uses of a device, of its partitions, and of its disk if the device is a partition.
pub(crate) fn uses_of_device(device: &BlockDevice, host: &Host) -> io::Result<Vec<Finding>> {
    let mut findings = direct_uses(device, host)?;
    let partitions = device.partitions()?;
    for partition in &partitions {
        for used in direct_uses(partition, host)? {
            findings.push(Finding::PartitionInUse {
                partition: partition.path(),
                by: used.to_string(),
            });
        }
    }
    if !partitions.is_empty() {
        findings.push(Finding::HasPartitions {
            partitions: partitions.iter().map(BlockDevice::path).collect(),
        });
    }
    let disk = device.whole_disk();
    if disk != *device {
        for used in direct_uses(&disk, host)? {
            findings.push(Finding::DiskInUse {
                disk: disk.path(),
                by: used.to_string(),
            });
        }
    }
    Ok(findings)
}

/// Lists mounts, swap, holders and exports of exactly this device.
fn direct_uses(device: &BlockDevice, host: &Host) -> io::Result<Vec<Finding>> {
    let Some(number) = device.number() else {
        return Ok(Vec::new());
    };
    let mut findings: Vec<Finding> = mount_points(device, number, host)?
        .into_iter()
        .map(|at| Finding::Mounted { at })
        .collect();
    if host
        .swaps
        .iter()
        .any(|area| block_device_at(area) == Some(number))
    {
        findings.push(Finding::Swap);
    }
    let mut names = Vec::new();
    for holder in device.holders()? {
        match holder.dm_uuid() {
            Some(uuid) if is_multipath_uuid(&uuid) => {
                findings.push(Finding::MultipathComponent { map: holder.path() })
            }
            uuid => names.push(holder_name(&holder, uuid.as_deref())),
        }
    }
    names.extend(loops_over(host, |backing| {
        block_device_at(backing) == Some(number)
    })?);
    if !names.is_empty() {
        findings.push(Finding::Holders { names });
    }
    findings.extend(exported(Exported::Device(number), host));
    Ok(findings)
}

fn exported(what: Exported, host: &Host) -> Option<Finding> {
    let by: Vec<String> = host
        .exports
        .iter()
        .filter(|export| export.what == what)
        .map(|export| export.by.clone())
        .collect();
    (!by.is_empty()).then_some(Finding::Exported { by })
}

fn exported_file(lun: &Lun, host: &Host) -> Option<Finding> {
    exported(Exported::File(lun.identity.file?), host)
}

fn uses_of_file(lun: &Lun, host: &Host) -> io::Result<Vec<Finding>> {
    let is_the_lun = |path: &Path| {
        status_unsynced(path).is_ok_and(|status| {
            status.kind == libc::S_IFREG && Some(status.file) == lun.identity.file
        })
    };
    let mut findings: Vec<Finding> = exported_file(lun, host).into_iter().collect();
    if host.swaps.iter().any(|area| is_the_lun(area)) {
        findings.push(Finding::Swap);
    }
    let names = loops_over(host, is_the_lun)?;
    if !names.is_empty() {
        findings.push(Finding::Holders { names });
    }
    Ok(findings)
}

/// Where the device is mounted, without repetition. A mount's device is identified by its number;
/// by its source where the number is anonymous; for btrfs by the list of members, of which the
/// source is only one.
fn mount_points(
    device: &BlockDevice,
    number: DeviceNumber,
    host: &Host,
) -> io::Result<Vec<String>> {
    let mut points: Vec<String> = Vec::new();
    let mut add = |point: String| {
        if !points.contains(&point) {
            points.push(point);
        }
    };
    let is_anonymous = |mount: &Mount| mount.number.0 == 0 && mount.source.is_absolute();
    for mount in &host.mounts {
        if mount.number == number
            || (is_anonymous(mount) && block_device_at(&mount.source) == Some(number))
        {
            add(mount.mount_point.display().to_string());
        }
    }
    let name = device.name();
    for (uuid, members) in host.sysfs.btrfs_members()? {
        if !members.contains(&name) {
            continue;
        }
        let mut visible = false;
        for mount in host
            .mounts
            .iter()
            .filter(|mount| mount.file_system == "btrfs")
        {
            let source =
                block_device_at(&mount.source).and_then(|source| host.sysfs.device(source).ok());
            if source.is_some_and(|source| members.contains(&source.name())) {
                visible = true;
                add(mount.mount_point.display().to_string());
            }
        }
        if !visible {
            add(format!("btrfs {uuid}"));
        }
    }
    Ok(points)
}

fn holder_name(holder: &BlockDevice, dm_uuid: Option<&str>) -> String {
    let what = match dm_uuid {
        Some(uuid) if uuid.starts_with("LVM-") => "logical volume",
        Some(uuid) if uuid.starts_with("CRYPT-") => "encrypted volume",
        Some(_) => "device-mapper device",
        None if holder.attribute("dm/name").is_some() => "device-mapper device",
        None if holder.attribute("md/level").is_some() => "md array",
        None if holder.name().starts_with("bcache") => "bcache device",
        None => "block device",
    };
    format!("{what} {}", holder.path())
}

/// Names of the loop devices whose backing file satisfies `is_it`. The kernel does not list them as
/// holders.
fn loops_over(host: &Host, is_it: impl Fn(&Path) -> bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for disk in host.sysfs.disks()? {
        let is_over = disk.loop_backing_path().is_some_and(|backing| {
            host.step.asks(&backing);
            is_it(&backing)
        });
        if is_over {
            names.push(format!("loop device {}", disk.path()));
        }
    }
    Ok(names)
}

/// Lists other disks with this disk's world-wide name, unless one of the two stands on the other or
/// a holder joins them.
fn other_paths(device: &BlockDevice, host: &Host) -> io::Result<Option<Finding>> {
    let disk = device.whole_disk();
    let Some(wwn) = disk.wwn() else {
        return Ok(None);
    };
    let (own_holders, own_slaves) = (disk.holders()?, disk.slaves()?);
    let mut names = Vec::new();
    for candidate in host.sysfs.disks()? {
        if candidate == disk || candidate.wwn().as_ref() != Some(&wwn) {
            continue;
        }
        // Maps have the name of their paths; a stack of devices is reported as a holder.
        let is_stacked = candidate.dm_uuid().is_some()
            || own_slaves.contains(&candidate)
            || (disk.dm_uuid().is_some() && !candidate.holders()?.is_empty());
        let is_joined = candidate
            .holders()?
            .iter()
            .any(|holder| own_holders.contains(holder));
        if !is_stacked && !is_joined {
            names.push(candidate.path());
        }
    }
    Ok((!names.is_empty()).then_some(Finding::OtherPaths { names }))
}

/// Whether the kernel refuses an exclusive open. The probe is read-only, so that its close does not
/// trigger udev.
fn is_claimed(lun: &Lun, host: &Host) -> Result<bool, OpenError> {
    let probe = OpenOptions {
        write: false,
        exclusive: true,
        direct: false,
    };
    match Lun::open_with(&lun.path, &probe, &host.sysfs) {
        Ok(probe)
            if probe.device_number != lun.device_number
                || probe.disk_sequence != lun.disk_sequence =>
        {
            Err(OpenError::Replaced {
                path: lun.path.clone(),
            })
        }
        Ok(_) => Ok(false),
        Err(OpenError::Busy { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn opened_by(lun: &Lun, host: &Host) -> io::Result<Option<Finding>> {
    let mut targets = Vec::new();
    if let Some(number) = lun.device_number {
        targets.push(Opened::BlockDevice(number));
        let partitions = host.sysfs.device(number)?.partitions()?;
        targets.extend(
            partitions
                .iter()
                .filter_map(BlockDevice::number)
                .map(Opened::BlockDevice),
        );
    } else {
        targets.extend(lun.identity.file.map(Opened::File));
    }
    let mut openers = openers_of(&host.proc, &targets, &host.step)?;
    openers.retain(|opener| !is_this_process(&host.proc, opener.pid));
    Ok((!openers.is_empty()).then_some(Finding::OpenedBy { openers }))
}

fn mounts_in(path: &Path) -> io::Result<Vec<Mount>> {
    parse_mountinfo(&fs::read(path)?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::fake::FakeSysfs;

    fn host(sys: &FakeSysfs, mountinfo: &str) -> Host {
        Host {
            sysfs: sys.sysfs(),
            proc: "/proc".into(),
            mounts: parse_mountinfo(mountinfo.as_bytes()).unwrap(),
            swaps: Vec::new(),
            exports: Vec::new(),
            step: Step::default(),
        }
    }

    fn uses(host: &Host, number: DeviceNumber) -> Vec<String> {
        uses_of_device(&host.sysfs.device(number).unwrap(), host)
            .unwrap()
            .iter()
            .map(Finding::to_string)
            .collect()
    }

    fn disk_with_two_partitions() -> FakeSysfs {
        let sys = FakeSysfs::new();
        sys.add("sda", "8:0", &[("device/wwid", "naa.5000c500a1b2c3d4")]);
        sys.add("sda/sda1", "8:1", &[("partition", "1")]);
        sys.add("sda/sda2", "8:2", &[("partition", "2")]);
        sys.add("sdb", "8:16", &[]);
        sys
    }

    #[test]
    fn unused_disk_has_no_findings() {
        let sys = disk_with_two_partitions();
        let host = host(&sys, "1 0 8:1 / /boot rw - ext4 /dev/sda1 rw\n");
        assert_eq!(uses(&host, (8, 16)), Vec::<String>::new());
        assert_eq!(
            uses(&host, (8, 2)),
            Vec::<String>::new(),
            "the other partition is not in use"
        );
    }

    #[test]
    fn mounts_of_a_disk_and_its_partitions_are_named_once_each() {
        let sys = disk_with_two_partitions();
        let mountinfo = "1 0 8:1 / /boot rw - ext4 /dev/sda1 rw\n2 0 8:1 /x /boot rw - ext4 /dev/sda1 rw\n3 0 8:0 / /odd rw - xfs /dev/sda rw\n";
        let host = host(&sys, mountinfo);
        assert_eq!(
            uses(&host, (8, 0)),
            [
                "is mounted at /odd: unmount it first",
                "has the partition /dev/sda1, which is mounted at /boot: unmount it first",
                "has partitions: /dev/sda1, /dev/sda2",
            ]
        );
        assert_eq!(
            uses(&host, (8, 2)),
            ["is a partition of /dev/sda, which is mounted at /odd: unmount it first"]
        );
    }

    #[test]
    fn holders_are_named_with_what_they_are_and_multipath_with_its_map() {
        let sys = disk_with_two_partitions();
        sys.add(
            "dm-0",
            "253:0",
            &[
                ("dm/name", "mpatha\n"),
                ("dm/uuid", "mpath-35000c500a1b2c3d4\n"),
            ],
        );
        sys.add(
            "dm-1",
            "253:1",
            &[("dm/name", "vg-data\n"), ("dm/uuid", "LVM-abc\n")],
        );
        sys.add("dm-2", "253:2", &[("dm/name", "bare\n")]);
        sys.add("md0", "9:0", &[("md/level", "raid1\n")]);
        sys.stack("dm-0", "sda");
        sys.stack("dm-1", "sdb");
        sys.stack("dm-2", "sdb");
        sys.stack("md0", "sda/sda2");
        let host = host(&sys, "");
        assert_eq!(
            uses(&host, (8, 16)),
            [
                "is used by logical volume /dev/mapper/vg-data, device-mapper device /dev/mapper/bare: name that one, or deactivate it first"
            ]
        );
        assert_eq!(
            uses(&host, (8, 0)),
            [
                "is only one path of the multipath map /dev/mapper/mpatha: name the map instead",
                "has the partition /dev/sda2, which is used by md array /dev/md0: name that one, or deactivate it first",
                "has partitions: /dev/sda1, /dev/sda2",
            ]
        );
    }

    #[test]
    fn member_of_a_mounted_btrfs_is_mounted_though_no_mount_names_it() {
        let sys = disk_with_two_partitions();
        sys.btrfs("0f1e2d", "sdb");
        sys.btrfs("0f1e2d", "sda/sda1");
        let host = host(&sys, "1 0 0:33 / /srv rw - btrfs /nonexistent/sdb rw\n");
        assert_eq!(
            uses(&host, (8, 16)),
            ["is mounted at btrfs 0f1e2d: unmount it first"]
        );
    }

    #[test]
    fn disk_of_the_same_name_is_another_path_unless_a_map_joins_them() {
        let sys = disk_with_two_partitions();
        sys.add("sdc", "8:32", &[("device/wwid", "naa.5000c500a1b2c3d4")]);
        sys.add("sdd", "8:48", &[("device/wwid", "naa.5000c500a1b2c3d5")]);
        let host = host(&sys, "");
        let paths = |number| other_paths(&host.sysfs.device(number).unwrap(), &host).unwrap();
        let expected = |name: &str| {
            Some(Finding::OtherPaths {
                names: vec![name.into()],
            })
        };
        assert_eq!(paths((8, 0)), expected("/dev/sdc"));
        assert_eq!(
            paths((8, 1)),
            expected("/dev/sdc"),
            "a partition's disk counts"
        );
        assert_eq!(paths((8, 32)), expected("/dev/sda"));
        assert_eq!((paths((8, 48)), paths((8, 16))), (None, None));
        sys.add(
            "dm-0",
            "253:0",
            &[
                ("dm/name", "mpatha"),
                ("dm/uuid", "mpath-35000c500a1b2c3d4"),
            ],
        );
        sys.stack("dm-0", "sda");
        sys.stack("dm-0", "sdc");
        assert_eq!(
            (paths((8, 0)), paths((8, 32)), paths((253, 0))),
            (None, None, None)
        );
    }

    #[test]
    fn loop_device_over_a_file_is_a_holder_of_it() {
        let sys = FakeSysfs::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun.img");
        fs::write(&path, [0; 4096]).unwrap();
        sys.add(
            "loop3",
            "7:3",
            &[("loop/backing_file", &format!("{}\n", path.display()))],
        );
        sys.add(
            "loop4",
            "7:4",
            &[("loop/backing_file", "/nonexistent/x (deleted)\n")],
        );
        let lun = Lun::open(&path, &OpenOptions::default()).unwrap();
        assert_eq!(
            uses_of_lun(&lun, &host(&sys, "")).unwrap(),
            [Finding::Holders {
                names: vec!["loop device /dev/loop3".into()]
            }]
        );
    }

    #[test]
    fn exports_of_a_disk_and_of_its_partitions_are_uses() {
        let sys = disk_with_two_partitions();
        let export = |number| Export {
            what: Exported::Device(number),
            by: "nvmet (/c/1)".into(),
        };
        let host = Host {
            exports: vec![export((8, 16)), export((8, 1))],
            ..host(&sys, "")
        };
        let text = "is exported by the kernel: nvmet (/c/1): disable that export first";
        assert_eq!(uses(&host, (8, 16)), [text]);
        assert_eq!(
            uses(&host, (8, 0)),
            [
                format!("has the partition /dev/sda1, which {text}"),
                "has partitions: /dev/sda1, /dev/sda2".to_owned()
            ]
        );
        assert_eq!(uses(&host, (8, 2)), Vec::<String>::new());
        let found = uses_of_device(&host.sysfs.device((8, 0)).unwrap(), &host).unwrap();
        assert!(found[0].is_in_use() && found[0].explains_a_claim());
    }

    #[test]
    fn exported_file_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun.img");
        fs::write(&path, [0; 4096]).unwrap();
        let lun = Lun::open(&path, &OpenOptions::default()).unwrap();
        let host = Host {
            exports: vec![Export {
                what: Exported::File(lun.identity.file.unwrap()),
                by: "LIO backstore (/c/f)".into(),
            }],
            ..host(&FakeSysfs::new(), "")
        };
        let found = uses_of_lun(&lun, &host).unwrap();
        assert!(
            matches!(&found[..], [Finding::Exported { .. }]),
            "{found:?}"
        );
    }

    #[test]
    fn swap_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swap");
        fs::write(&path, [0; 4096]).unwrap();
        let lun = Lun::open(&path, &OpenOptions::default()).unwrap();
        let host = Host {
            swaps: vec![path],
            ..host(&FakeSysfs::new(), "")
        };
        assert_eq!(uses_of_lun(&lun, &host).unwrap(), [Finding::Swap]);
    }

    #[test]
    fn own_open_is_not_a_use_and_a_child_that_writes_is() {
        let _alone = crate::testing::alone();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun.img");
        fs::write(&path, [0; 4096]).unwrap();
        let _mine = fs::File::options().write(true).open(&path).unwrap();
        assert_eq!(in_use(&path).unwrap(), []);
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .stdout(fs::File::options().append(true).open(&path).unwrap())
            .spawn()
            .unwrap();
        let findings = in_use(&path).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        match &findings[..] {
            [Finding::OpenedBy { openers }] => {
                assert_eq!((openers[0].pid, openers[0].write), (child.id(), true));
            }
            odd => panic!("{odd:?}"),
        }
    }
}
