//! Reads block devices in sysfs (Documentation/ABI/stable/sysfs-block of Linux). The root is an
//! argument, so that tests can build one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::proc_text::{DeviceNumber, parse_device_number};
use crate::vpd;

/// A sysfs, usually `/sys`.
#[derive(Clone, Debug)]
pub(crate) struct Sysfs {
    root: PathBuf,
}

/// The folder of one block device (disk or partition) in sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    folder: PathBuf,
}

impl Sysfs {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Sysfs {
        Sysfs { root: root.into() }
    }

    /// The device with this number. An error if sysfs does not have it.
    pub(crate) fn device(&self, (major, minor): DeviceNumber) -> io::Result<BlockDevice> {
        let folder = fs::canonicalize(self.root.join(format!("dev/block/{major}:{minor}")))?;
        Ok(BlockDevice { folder })
    }

    /// All whole disks of this host that can be opened, in order of their names.
    pub(crate) fn disks(&self) -> io::Result<Vec<BlockDevice>> {
        let mut disks = linked_devices(&self.root.join("block"))?;
        disks.retain(|disk| {
            disk.number().is_some() && disk.attribute("hidden").as_deref() != Some("1")
        });
        Ok(disks)
    }

    /// All whole disks with their partitions.
    pub(crate) fn disks_and_partitions(&self) -> io::Result<Vec<BlockDevice>> {
        let mut all = Vec::new();
        for disk in self.disks()? {
            let partitions = disk.partitions()?;
            all.push(disk);
            all.extend(partitions);
        }
        Ok(all)
    }

    /// Number of the character device `/dev/ublkcN`, which the server of `/dev/ublkbN` holds open.
    pub(crate) fn ublk_character_device(&self, index: u32) -> Option<DeviceNumber> {
        let text =
            fs::read_to_string(self.root.join(format!("class/ublk-char/ublkc{index}/dev"))).ok()?;
        parse_device_number(text.trim())
    }

    /// Whether a module is loaded, or built in with parameters.
    pub(crate) fn has_module(&self, name: &str) -> bool {
        self.root.join("module").join(name).exists()
    }

    /// The folders in a folder; none if the folder does not exist.
    pub(crate) fn folders(&self, place: &str) -> io::Result<Vec<PathBuf>> {
        let mut folders = entries(&self.root.join(place))?;
        folders.retain(|folder| folder.is_dir());
        Ok(folders)
    }

    /// The number of the block device to whose folder a link leads.
    pub(crate) fn linked_number(&self, link: &Path) -> Option<DeviceNumber> {
        let folder = fs::canonicalize(link).ok()?;
        BlockDevice { folder }.number()
    }

    /// Lists every mounted btrfs: its UUID and the kernel's names of its devices.
    pub(crate) fn btrfs_members(&self) -> io::Result<Vec<(String, Vec<String>)>> {
        let mut all = Vec::new();
        for entry in entries(&self.root.join("fs/btrfs"))? {
            let members: Vec<String> = linked_devices(&entry.join("devices"))?
                .iter()
                .map(BlockDevice::name)
                .collect();
            if let (Some(uuid), false) = (entry.file_name(), members.is_empty()) {
                all.push((uuid.to_string_lossy().into_owned(), members));
            }
        }
        Ok(all)
    }
}

impl BlockDevice {
    /// The kernel's name: `sda1`, `dm-0`.
    pub(crate) fn name(&self) -> String {
        // In sysfs a '!' replaces the '/' of names such as cciss/c0d0.
        self.folder
            .file_name()
            .map(|name| name.to_string_lossy().replace('!', "/"))
            .unwrap_or_default()
    }

    /// The name as an operator writes it: `/dev/sda1`, `/dev/mapper/data`.
    pub(crate) fn path(&self) -> String {
        match self.attribute("dm/name") {
            Some(name) => format!("/dev/mapper/{name}"),
            None => format!("/dev/{}", self.name()),
        }
    }

    pub(crate) fn number(&self) -> Option<DeviceNumber> {
        parse_device_number(&self.attribute("dev")?)
    }

    /// The text of an attribute, trimmed. `None`: missing, unreadable, or empty.
    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        clean_text(&self.bytes(name)?)
    }

    pub(crate) fn attribute_u64(&self, name: &str) -> Option<u64> {
        self.attribute(name)?.parse().ok()
    }

    pub(crate) fn partition_number(&self) -> Option<u32> {
        self.attribute("partition")?.parse().ok()
    }

    /// The disk of a partition; the device itself otherwise.
    pub(crate) fn whole_disk(&self) -> BlockDevice {
        match (self.folder.join("partition").exists(), self.folder.parent()) {
            (true, Some(parent)) => BlockDevice {
                folder: parent.to_owned(),
            },
            (true, None) | (false, _) => self.clone(),
        }
    }

    /// The partitions that the kernel knows on this disk, by number.
    pub(crate) fn partitions(&self) -> io::Result<Vec<BlockDevice>> {
        let mut partitions: Vec<BlockDevice> = entries(&self.folder)?
            .into_iter()
            .filter(|folder| folder.join("partition").exists())
            .map(|folder| BlockDevice { folder })
            .collect();
        partitions.sort_by_key(BlockDevice::partition_number);
        Ok(partitions)
    }

    /// The devices that stand on this one (device-mapper, md, bcache).
    pub(crate) fn holders(&self) -> io::Result<Vec<BlockDevice>> {
        linked_devices(&self.folder.join("holders"))
    }

    /// The devices on which this one stands.
    pub(crate) fn slaves(&self) -> io::Result<Vec<BlockDevice>> {
        linked_devices(&self.folder.join("slaves"))
    }

    pub(crate) fn dm_uuid(&self) -> Option<String> {
        self.attribute("dm/uuid")
    }

    /// The path of the file beneath a loop device.
    pub(crate) fn loop_backing_path(&self) -> Option<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let mut text = self.bytes("loop/backing_file")?;
        while text.last() == Some(&b'\n') {
            text.pop();
        }
        (!text.is_empty()).then(|| PathBuf::from(std::ffi::OsString::from_vec(text)))
    }

    /// The world-wide name of the disk: the kernel's `wwid` (NVMe, SCSI), else SCSI page 0x83, else
    /// the name of the paths of a multipath map, else the driver's name for the disk. `None` also
    /// for a name of nothing but zeroes, which some devices report.
    pub(crate) fn wwn(&self) -> Option<String> {
        let disk = self.whole_disk();
        let own = disk
            .attribute("wwid")
            .or_else(|| disk.attribute("device/wwid"))
            .or_else(|| vpd::wwn(&disk.bytes("device/vpd_pg83")?));
        own.or_else(|| disk.multipath_wwn())
            .or_else(|| disk.driver_name())
            .filter(|name| says_something(name))
    }

    /// The driver's name for a disk without a world-wide name, with the driver as its type: an md
    /// array's UUID, the identifier of an nbd's server, the image of an rbd, the UUID of the device
    /// beneath a bcache.
    fn driver_name(&self) -> Option<String> {
        let name = self.name();
        let attribute = |name| self.attribute(name);
        if name.starts_with("md") {
            return attribute("md/uuid").map(|uuid| format!("md.{uuid}"));
        }
        if name.starts_with("nbd") {
            return attribute("backend").map(|backend| format!("nbd.{backend}"));
        }
        if name.starts_with("bcache") {
            return attribute("bcache/backing_dev_uuid").map(|uuid| format!("bcache.{uuid}"));
        }
        if !name.starts_with("rbd") {
            return None;
        }
        let place = [
            "device/cluster_fsid",
            "device/pool_id",
            "device/image_id",
            "device/snap_id",
        ];
        let place: Option<Vec<String>> = place.into_iter().map(attribute).collect();
        place.map(|place| format!("rbd.{}", place.join("/")))
    }

    /// The serial number: virtio, NVMe and MMC have a file, SCSI has page 0x80.
    pub(crate) fn serial(&self) -> Option<String> {
        let disk = self.whole_disk();
        disk.attribute("serial")
            .or_else(|| disk.attribute("device/serial"))
            .or_else(|| vpd::serial(&disk.bytes("device/vpd_pg80")?))
    }

    /// The name that all paths of a multipath map (or of a partition of one) have, in the spelling
    /// of the paths; the map's own UUID only if there are no paths or the paths have no name.
    fn multipath_wwn(&self) -> Option<String> {
        let uuid = self.dm_uuid()?;
        let map = multipath_map_of(&uuid)?;
        let mut names: Vec<String> = self
            .slaves()
            .ok()?
            .iter()
            .filter_map(BlockDevice::wwn)
            .collect();
        names.sort();
        names.dedup();
        match &names[..] {
            [] => wwn_from_multipath_uuid(map),
            [name] => Some(name.clone()),
            // Paths to different LUNs in one map: no name is better than the name of one of them.
            [_, _, ..] => None,
        }
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.folder.join(name)).ok()
    }
}

/// The `PARTUUID` of a uevent text, in lower case. Kernels before 6.11 or so do not report it.
pub(crate) fn partition_uuid_in_uevent(text: &str) -> Option<String> {
    text.lines()
        .find_map(|line| line.strip_prefix("PARTUUID="))
        .filter(|uuid| !uuid.is_empty())
        .map(str::to_ascii_lowercase)
}

/// Number of the partition in a device-mapper UUID that kpartx made: `part2-mpath-3600...`.
pub(crate) fn partition_number_in_dm_uuid(uuid: &str) -> Option<u32> {
    let (number, _) = uuid.strip_prefix("part")?.split_once('-')?;
    number.parse().ok()
}

/// Whether a device-mapper UUID is that of a whole multipath map.
pub(crate) fn is_multipath_uuid(uuid: &str) -> bool {
    uuid.starts_with("mpath-")
}

/// Trims the text of an attribute or an identification page: removes padding (blanks, newlines,
/// zero bytes), and replaces other bytes that are not printable by '?'. `None` if nothing is left.
pub(crate) fn clean_text(bytes: &[u8]) -> Option<String> {
    let text: String = String::from_utf8_lossy(bytes)
        .trim_matches(|c: char| c.is_whitespace() || c == '\0')
        .chars()
        .map(|c| if c.is_control() && c != '\n' { '?' } else { c })
        .collect();
    (!text.is_empty()).then_some(text)
}

/// The part of a device-mapper UUID after `mpath-`, also in the UUID of a partition map.
fn multipath_map_of(uuid: &str) -> Option<&str> {
    match uuid.strip_prefix("mpath-") {
        Some(map) => Some(map),
        None => partition_number_in_dm_uuid(uuid)
            .and_then(|_| uuid.split_once("-mpath-").map(|(_, map)| map)),
    }
}

/// Converts scsi_id's spelling of a name (a digit for its type, then the value) to the kernel's
/// spelling.
fn wwn_from_multipath_uuid(map: &str) -> Option<String> {
    if map.starts_with("eui.") || map.starts_with("nvme.") || map.starts_with("uuid.") {
        return Some(map.to_owned());
    }
    let value = map.get(1..)?;
    if !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    match (map.as_bytes()[0], value.len()) {
        (b'3', 16 | 32) => Some(format!("naa.{}", value.to_ascii_lowercase())),
        (b'2', 16 | 24 | 32) => Some(format!("eui.{}", value.to_ascii_lowercase())),
        _ => None,
    }
}

fn says_something(name: &str) -> bool {
    let value = name.split_once('.').map_or(name, |(_, value)| value);
    value.chars().any(|c| c.is_alphanumeric() && c != '0')
}

fn linked_devices(folder: &Path) -> io::Result<Vec<BlockDevice>> {
    let mut devices = Vec::new();
    for link in entries(folder)? {
        match fs::canonicalize(&link) {
            Ok(folder) => devices.push(BlockDevice { folder }),
            // The device was removed between the listing and now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(devices)
}

/// The entries of a folder in order of their names; none if the folder does not exist.
pub(crate) fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = listing
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Builds a sysfs in a temporary folder.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use std::os::unix::fs::symlink;

    pub(crate) struct FakeSysfs {
        pub(crate) folder: tempfile::TempDir,
    }

    impl FakeSysfs {
        pub(crate) fn new() -> FakeSysfs {
            let folder = tempfile::tempdir().unwrap();
            for name in ["dev/block", "block", "devices"] {
                fs::create_dir_all(folder.path().join(name)).unwrap();
            }
            FakeSysfs { folder }
        }

        pub(crate) fn sysfs(&self) -> Sysfs {
            Sysfs::new(self.folder.path())
        }

        /// Adds a disk (`sda`) or a partition (`sda/sda1`).
        pub(crate) fn add(&self, place: &str, number: &str, attributes: &[(&str, &str)]) {
            let folder = self.folder.path().join("devices").join(place);
            fs::create_dir_all(folder.join("holders")).unwrap();
            fs::create_dir_all(folder.join("slaves")).unwrap();
            fs::write(folder.join("dev"), format!("{number}\n")).unwrap();
            for (name, text) in attributes {
                fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
                fs::write(folder.join(name), text).unwrap();
            }
            symlink(&folder, self.folder.path().join("dev/block").join(number)).unwrap();
            if !place.contains('/') {
                symlink(&folder, self.folder.path().join("block").join(place)).unwrap();
            }
        }

        /// Makes `upper` stand on `lower`.
        pub(crate) fn stack(&self, upper: &str, lower: &str) {
            let devices = self.folder.path().join("devices");
            let name = |place: &str| place.rsplit('/').next().unwrap().to_owned();
            symlink(
                devices.join(upper),
                devices.join(lower).join("holders").join(name(upper)),
            )
            .unwrap();
            symlink(
                devices.join(lower),
                devices.join(upper).join("slaves").join(name(lower)),
            )
            .unwrap();
        }

        pub(crate) fn btrfs(&self, uuid: &str, member: &str) {
            let folder = self
                .folder
                .path()
                .join("fs/btrfs")
                .join(uuid)
                .join("devices");
            fs::create_dir_all(&folder).unwrap();
            symlink(
                self.folder.path().join("devices").join(member),
                folder.join(member.rsplit('/').next().unwrap()),
            )
            .unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::FakeSysfs;
    use super::*;

    #[test]
    fn partition_uuid_is_found_in_a_uevent_text_only_under_its_own_name() {
        let table = [
            ("MAJOR=8\nPARTN=1\nPARTUUID=ABCD-01\n", Some("abcd-01")),
            ("MAJOR=8\nPARTN=1\nPARTNAME=PARTUUID=x\n", None),
            ("PARTUUID=\n", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(
                partition_uuid_in_uevent(text).as_deref(),
                expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn multipath_uuids_are_spelled_as_the_kernel_spells_names() {
        let table = [
            (
                "mpath-3600508b400105e210000900000490000",
                Some("naa.600508b400105e210000900000490000"),
            ),
            (
                "part2-mpath-3600508B400105E21",
                Some("naa.600508b400105e21"),
            ),
            ("mpath-20123456789abcdef", Some("eui.0123456789abcdef")),
            ("mpath-eui.0123456789abcdef", Some("eui.0123456789abcdef")),
            ("mpath-SVENDOR_disk_1", None),
            ("mpath-", None),
            ("mpath-3\u{e9}", None),
        ];
        for (uuid, expected) in table {
            let map = multipath_map_of(uuid).unwrap();
            assert_eq!(wwn_from_multipath_uuid(map).as_deref(), expected, "{uuid}");
        }
        for uuid in [
            "LVM-mpath-3600508b400105e21",
            "partx-mpath-3600508b400105e21",
            "CRYPT-LUKS2-abc",
        ] {
            assert_eq!(multipath_map_of(uuid), None, "{uuid}");
        }
    }

    #[test]
    fn a_disk_without_a_world_wide_name_has_the_name_that_its_driver_knows_it_by() {
        let rbd = [
            ("device/cluster_fsid", "f-1"),
            ("device/pool_id", "2"),
            ("device/image_id", "10ab"),
            ("device/snap_id", "head"),
        ];
        type Attributes<'a> = &'a [(&'a str, &'a str)];
        let table: [(&str, Attributes<'_>, Option<&str>); 9] = [
            ("md127", &[("md/uuid", "0a1b-2c\n")], Some("md.0a1b-2c")),
            ("md0", &[("md/uuid", "00000000-0000\n")], None),
            ("nbd0", &[("backend", "export-7\n")], Some("nbd.export-7")),
            ("nbd1", &[], None),
            ("rbd0", &rbd, Some("rbd.f-1/2/10ab/head")),
            ("rbd1", &rbd[..2], None),
            (
                "bcache0",
                &[("bcache/backing_dev_uuid", "b-1")],
                Some("bcache.b-1"),
            ),
            // The device beneath a bcache has this folder too.
            ("vdx", &[("bcache/backing_dev_uuid", "b-1")], None),
            ("ram0", &[], None),
        ];
        let sys = FakeSysfs::new();
        for (index, (name, attributes, expected)) in table.into_iter().enumerate() {
            let number = (300, u32::try_from(index).unwrap());
            sys.add(name, &format!("300:{index}"), attributes);
            let device = sys.sysfs().device(number).unwrap();
            assert_eq!(device.wwn().as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn partition_takes_name_and_serial_from_its_disk() {
        let sys = FakeSysfs::new();
        sys.add(
            "sda",
            "8:0",
            &[
                ("device/wwid", "naa.5000c500a1b2c3d4\n"),
                ("device/vpd_pg80", "\0\u{0}"),
                ("serial", "S1\n"),
            ],
        );
        sys.add(
            "sda/sda2",
            "8:2",
            &[("partition", "2\n"), ("start", "2048\n")],
        );
        let partition = sys.sysfs().device((8, 2)).unwrap();
        assert_eq!(partition.name(), "sda2");
        assert_eq!(partition.partition_number(), Some(2));
        assert_eq!(partition.whole_disk().name(), "sda");
        assert_eq!(partition.wwn().as_deref(), Some("naa.5000c500a1b2c3d4"));
        assert_eq!(partition.serial().as_deref(), Some("S1"));
        let disk = sys.sysfs().device((8, 0)).unwrap();
        assert_eq!(disk.whole_disk(), disk);
        assert_eq!(disk.partitions().unwrap(), vec![partition]);
    }

    #[test]
    fn map_takes_the_name_its_paths_agree_on_and_its_uuids_only_without_paths() {
        let sys = FakeSysfs::new();
        sys.add("sda", "8:0", &[("device/wwid", "naa.5000c500a1b2c3d4")]);
        sys.add("sdb", "8:16", &[("device/wwid", "naa.5000c500a1b2c3d4")]);
        sys.add("sdc", "8:32", &[("device/wwid", "naa.5000c500a1b2c3d5")]);
        sys.add(
            "dm-0",
            "253:0",
            &[
                ("dm/uuid", "mpath-36000000000000001\n"),
                ("dm/name", "mpatha"),
            ],
        );
        let map = sys.sysfs().device((253, 0)).unwrap();
        assert_eq!(map.wwn().as_deref(), Some("naa.6000000000000001"));
        sys.stack("dm-0", "sda");
        sys.stack("dm-0", "sdb");
        assert_eq!(map.wwn().as_deref(), Some("naa.5000c500a1b2c3d4"));
        sys.stack("dm-0", "sdc");
        assert_eq!(map.wwn(), None);
    }

    #[test]
    fn partition_of_a_map_takes_the_name_of_its_paths() {
        let sys = FakeSysfs::new();
        sys.add("sda", "8:0", &[("device/wwid", "naa.5000c500a1b2c3d4")]);
        sys.add("dm-0", "253:0", &[("dm/uuid", "mpath-SVENDOR_1")]);
        sys.add("dm-1", "253:1", &[("dm/uuid", "part1-mpath-SVENDOR_1")]);
        sys.stack("dm-0", "sda");
        sys.stack("dm-1", "dm-0");
        let partition = sys.sysfs().device((253, 1)).unwrap();
        assert_eq!(partition.wwn().as_deref(), Some("naa.5000c500a1b2c3d4"));
    }

    #[test]
    fn name_of_nothing_but_zeroes_is_no_name() {
        let sys = FakeSysfs::new();
        sys.add("nvme0n1", "259:0", &[("wwid", "eui.0000000000000000\n")]);
        assert_eq!(sys.sysfs().device((259, 0)).unwrap().wwn(), None);
    }

    #[test]
    fn device_that_sysfs_does_not_know_is_an_error() {
        assert!(FakeSysfs::new().sysfs().device((8, 0)).is_err());
    }

    #[test]
    fn hidden_disks_are_left_out() {
        let sys = FakeSysfs::new();
        sys.add("nvme0c0n1", "259:1", &[("hidden", "1\n")]);
        sys.add("nvme0n1", "259:0", &[("hidden", "0\n")]);
        let names: Vec<String> = sys
            .sysfs()
            .disks()
            .unwrap()
            .iter()
            .map(BlockDevice::name)
            .collect();
        assert_eq!(names, ["nvme0n1"]);
    }

    #[test]
    fn text_is_trimmed_and_made_printable() {
        let table: [(&[u8], Option<&str>); 4] = [
            (b"  a b \n\0", Some("a b")),
            (b"\0\0", None),
            (b"", None),
            (b"a\x1b[31m", Some("a?[31m")),
        ];
        for (bytes, expected) in table {
            assert_eq!(clean_text(bytes).as_deref(), expected, "{bytes:?}");
        }
    }
}
