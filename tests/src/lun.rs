//! LUNs: the disks of the machine, files behind loop devices, and device-mapper on top of them.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{load_module, run, sh};

/// Prepares a disk of the machine, without signatures. Disks 0 and 1 have the same size, disk 2 is
/// smaller. No megabyte is the same as on another disk or as before, so that a region that is not
/// copied is noticed. All disks but 0, which is usually a source, begin and end with zeroes, so
/// that `create` accepts them as targets without `--overwrite`.
#[must_use]
pub fn disk(number: u32) -> String {
    let path = format!("/dev/disk/by-id/virtio-lun{number}");
    sh("wipefs", &["--all", "--force", "--quiet", &path]);
    scribble(&path);
    if number != 0 {
        blank_ends(&path);
    }
    path
}

/// Writes zeroes to the first and the last MiB of a LUN, which `create` reads of a target.
fn blank_ends(path: &str) {
    const END: u64 = 1 << 20;
    let lun = File::options().write(true).open(path).expect("a lun");
    let zeroes = vec![0; END as usize];
    for start in [0, size_of_open(&lun).saturating_sub(END)] {
        lun.write_all_at(&zeroes, start).expect("a write");
    }
    lun.sync_all().expect("a flush");
}

/// Writes data that was never there into every megabyte of a LUN, away from the places of
/// signatures.
///
/// # Panics
/// If it cannot be written.
pub fn scribble(path: &str) {
    const STEP: u64 = 1 << 20;
    let lun = File::options().write(true).open(path).expect("a lun");
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    let mark = format!("{path} {}", now.as_nanos());
    for start in (STEP / 2..size_of_open(&lun).saturating_sub(4096)).step_by(STEP as usize) {
        lun.write_all_at(mark.as_bytes(), start).expect("a write");
    }
    lun.sync_all().expect("a flush");
}

fn size_of_open(mut lun: &File) -> u64 {
    lun.seek(SeekFrom::End(0)).expect("its size")
}

/// Whether a LUN can be opened exclusively, as mount, mkfs and LVM do.
#[must_use]
pub fn is_free(lun: &str) -> bool {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(lun)
        .is_ok()
}

/// The size of a block device, in bytes.
#[must_use]
pub fn size(path: &str) -> u64 {
    sh("blockdev", &["--getsize64", path])
        .trim()
        .parse()
        .expect("a size")
}

/// Whether two LUNs are equal, byte for byte.
#[must_use]
pub fn are_equal(first: &str, second: &str) -> bool {
    are_equal_in(&[first, second])
}

/// Whether the beginnings of two LUNs are equal, byte for byte.
#[must_use]
pub fn are_equal_up_to(first: &str, second: &str, bytes: u64) -> bool {
    are_equal_in(&["--bytes", &bytes.to_string(), first, second])
}

fn are_equal_in(arguments: &[&str]) -> bool {
    let output = run("shunt-compare", arguments);
    match output.status.code() {
        Some(0) => true,
        Some(1) => {
            println!("{}", String::from_utf8_lossy(&output.stdout));
            false
        }
        other => panic!(
            "shunt-compare: {other:?} {}",
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

/// A checksum of a LUN or file: fast in an emulated machine, and good enough to notice a change.
///
/// # Panics
/// If it cannot be read.
#[must_use]
pub fn checksum(path: &str) -> String {
    let mut file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut buffer = vec![0; 1 << 20];
    let mut sum: u64 = 0;
    loop {
        let length = file
            .read(&mut buffer)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        if length == 0 {
            return format!("{sum:016x}");
        }
        for word in buffer[..length].chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            // The factor is odd, so that no bit of what came before is lost.
            sum = sum
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(u64::from_le_bytes(bytes));
        }
    }
}

/// Reads one megabyte, bypassing the page cache.
///
/// # Errors
/// Those of the device.
pub fn read_megabyte(path: &str, number: u64) -> std::io::Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new_in("/run").expect("a file");
    let to = format!("of={}", file.path().display());
    let (from, skip) = (format!("if={path}"), format!("skip={number}"));
    dd(&[&from, &to, &skip, "iflag=direct"])?;
    std::fs::read(file.path())
}

/// Fills one megabyte with a byte, bypassing the page cache.
///
/// # Errors
/// Those of the device.
pub fn write_megabyte(path: &str, number: u64, byte: u8) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in("/run").expect("a file");
    std::io::Write::write_all(&mut file, &vec![byte; 1 << 20]).expect("its content");
    let from = format!("if={}", file.path().display());
    let (to, seek) = (format!("of={path}"), format!("seek={number}"));
    dd(&[&from, &to, &seek, "oflag=direct", "conv=notrunc"])
}

fn dd(arguments: &[&str]) -> std::io::Result<()> {
    let all: Vec<&str> = ["bs=1M", "count=1", "status=none"]
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    let output = run("dd", &all);
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(std::io::Error::other(text))
}

/// A file behind a loop device; removed when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    /// `/dev/loopN`.
    pub path: String,
    _file: tempfile::NamedTempFile,
}

impl LoopDevice {
    /// A loop device with sectors of a size.
    #[must_use]
    pub fn new(size_bytes: u64, sector_bytes: u32) -> Self {
        load_module("loop");
        let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        file.as_file().set_len(size_bytes).expect("its size");
        let sector = sector_bytes.to_string();
        let name = file.path().to_string_lossy().into_owned();
        let path = sh(
            "losetup",
            &["--find", "--show", "--sector-size", &sector, &name],
        );
        // A loop device that was read-only when it was detached is still read-only.
        sh("blockdev", &["--setrw", path.trim()]);
        Self {
            path: path.trim().to_owned(),
            _file: file,
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", &self.path]);
    }
}

/// A device-mapper device over a whole LUN; removed when dropped.
#[derive(Debug)]
pub struct Mapped {
    name: String,
    sectors: u64,
    below: PathBuf,
}

impl Mapped {
    /// Creates a `linear` device.
    #[must_use]
    pub fn linear(name: &str, below: &str) -> Self {
        let new = Self::named(name, below);
        new.create(&new.table("linear", "0"));
        new
    }

    /// Creates a device whose writes take `milliseconds`, and whose reads are not delayed.
    #[must_use]
    pub fn slow_writes(name: &str, below: &str, milliseconds: u32) -> Self {
        load_module("dm-delay");
        let new = Self::named(name, below);
        let table = new.table("delay", &format!("0 0 {} 0 {milliseconds}", below));
        new.create(&table);
        new
    }

    /// Creates a device whose flushes take `milliseconds`, and whose reads and writes are not
    /// delayed.
    #[must_use]
    pub fn slow_flushes(name: &str, below: &str, milliseconds: u32) -> Self {
        load_module("dm-delay");
        let new = Self::named(name, below);
        let table = new.table(
            "delay",
            &format!("0 0 {below} 0 0 {below} 0 {milliseconds}"),
        );
        new.create(&table);
        new
    }

    fn named(name: &str, below: &str) -> Self {
        Self {
            name: name.to_owned(),
            sectors: size(below) / 512,
            below: PathBuf::from(below),
        }
    }

    /// Creates a `linear` device without a UUID: only its size identifies it.
    #[must_use]
    pub fn nameless(name: &str, below: &str) -> Self {
        let new = Self::named(name, below);
        let table = new.table("linear", "0");
        sh("dmsetup", &["create", name, "--table", &table]);
        new
    }

    /// Renames the device while it is in use; the old node disappears.
    pub fn rename(&mut self, name: &str) {
        sh("dmsetup", &["rename", &self.name, name]);
        sh("udevadm", &["settle"]);
        self.name = name.to_owned();
    }

    /// Creates the device with a UUID, which identifies it as it does a logical volume. The UUID is
    /// a different one for another LUN below.
    fn create(&self, table: &str) {
        let below = self.below.file_name().unwrap_or_default();
        let (name, uuid) = (
            &self.name,
            format!("SHUNT-{}-{}", self.name, below.to_string_lossy()),
        );
        sh(
            "dmsetup",
            &["create", name, "--uuid", &uuid, "--table", table],
        );
    }

    fn table(&self, kind: &str, rest: &str) -> String {
        format!("0 {} {kind} {} {rest}", self.sectors, self.below.display())
    }

    /// `/dev/mapper/NAME`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    /// Makes every I/O fail from now on. Replaces the table while the device is in use.
    pub fn break_it(&self) {
        self.reload(&format!("0 {} error", self.sectors));
    }

    /// Makes I/O to one megabyte fail from now on. Replaces the table while the device is in use.
    pub fn break_megabyte(&self, number: u64) {
        const SECTORS: u64 = 2048;
        self.break_sectors(&[(number * SECTORS, SECTORS)]);
    }

    /// Makes I/O to parts of the device fail. `parts`: the first sector and the number of sectors
    /// of each, ascending.
    pub fn break_sectors(&self, parts: &[(u64, u64)]) {
        let below = self.below.display();
        let mut table = String::new();
        let mut end = 0;
        for (start, sectors) in parts {
            let before = start - end;
            table += &format!("{end} {before} linear {below} {end}\n{start} {sectors} error\n");
            end = start + sectors;
        }
        let rest = self.sectors - end;
        self.reload(&format!("{table}{end} {rest} linear {below} {end}"));
    }

    /// The number of bytes written to the device since it was made.
    ///
    /// # Panics
    /// If the kernel does not say.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        let device = std::fs::canonicalize(self.path()).expect("a device");
        let name = device.file_name().expect("a name").to_string_lossy();
        let stat =
            std::fs::read_to_string(format!("/sys/block/{name}/stat")).expect("its counters");
        let sectors = stat.split_whitespace().nth(6).expect("sectors written");
        sectors.parse::<u64>().expect("a number") * 512
    }

    /// Makes each read and write take `milliseconds` from now on. Replaces the table while the
    /// device is in use.
    pub fn slow_down(&self, milliseconds: u32) {
        load_module("dm-delay");
        self.reload(&self.table("delay", &format!("0 {milliseconds}")));
    }

    /// Corrupts one byte of each write from now on. Replaces the table while the device is in use.
    pub fn spoil_writes(&self) {
        load_module("dm-flakey");
        let always = "0 0 3600 5 corrupt_bio_byte 32 w 170 0";
        self.reload(&self.table("flakey", always));
    }

    /// Makes all I/O hang from now on, until [`Self::let_go`].
    pub fn hang(&self) {
        sh(
            "dmsetup",
            &["suspend", "--noflush", "--nolockfs", &self.name],
        );
    }

    /// Lets the I/O that hangs continue.
    pub fn let_go(&self) {
        sh("dmsetup", &["resume", &self.name]);
    }

    /// Makes the device `linear` again.
    pub fn mend_it(&self) {
        self.reload(&self.table("linear", "0"));
    }

    fn reload(&self, table: &str) {
        sh("dmsetup", &["suspend", "--noflush", &self.name]);
        sh("dmsetup", &["reload", &self.name, "--table", table]);
        sh("dmsetup", &["resume", &self.name]);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // In a test that fails, a volume still uses the device: it is removed when the volume ends.
        let _ = run("dmsetup", &["remove", "--retry", "--deferred", &self.name]);
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    /// The mount point.
    pub at: tempfile::TempDir,
}

impl Mounted {
    /// Mounts a device such that nothing is written to it.
    #[must_use]
    pub fn read_only(device: &str) -> Self {
        let at = tempfile::tempdir_in("/var/tmp").expect("a folder");
        sh(
            "mount",
            &["-o", "ro,noload", device, &at.path().to_string_lossy()],
        );
        Self { at }
    }

    /// Mounts a device.
    #[must_use]
    pub fn new(device: &str) -> Self {
        let at = tempfile::tempdir_in("/var/tmp").expect("a folder");
        sh("mount", &[device, &at.path().to_string_lossy()]);
        Self { at }
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &[&self.at.path().to_string_lossy()]);
    }
}

/// A disk of `scsi_debug`, which can be pulled out and put back with its contents; removed when
/// dropped.
#[derive(Debug)]
pub struct ScsiDisk {
    folder: tempfile::TempDir,
}

impl ScsiDisk {
    /// Creates a disk of this size.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn new(megabytes: u32) -> Self {
        sh(
            "modprobe",
            &["scsi_debug", &format!("dev_size_mb={megabytes}"), "delay=0"],
        );
        sh("udevadm", &["settle"]);
        let new = Self {
            folder: tempfile::tempdir_in("/run").expect("a folder"),
        };
        new.lead_to_it();
        new
    }

    /// A path that stays, whatever the kernel calls the disk.
    #[must_use]
    pub fn path(&self) -> String {
        self.link().to_string_lossy().into_owned()
    }

    /// Pulls the disk out, even while it is in use.
    pub fn pull(&self) {
        let device = Self::device().join("device/delete");
        std::fs::write(device, "1").expect("pull it out");
    }

    /// Puts the disk back.
    pub fn put_back(&self) {
        let hosts = std::fs::read_dir(Self::adapter()).expect("an adapter");
        for host in hosts.flatten().map(|entry| entry.file_name()) {
            let scan = Path::new("/sys/class/scsi_host").join(host).join("scan");
            if scan.exists() {
                std::fs::write(scan, "- - -").expect("a scan");
            }
        }
        sh("udevadm", &["settle"]);
        self.lead_to_it();
    }

    fn lead_to_it(&self) {
        let device = std::fs::canonicalize(Self::device()).expect("the disk");
        let _ = std::fs::remove_file(self.link());
        let node = Path::new("/dev").join(device.file_name().expect("a name"));
        std::os::unix::fs::symlink(node, self.link()).expect("a link");
    }

    fn link(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn adapter() -> PathBuf {
        PathBuf::from("/sys/bus/pseudo/drivers/scsi_debug/adapter0")
    }

    /// The folder of the disk in sysfs.
    fn device() -> PathBuf {
        let mut found = None;
        crate::wait_until("a disk of scsi_debug", || {
            let blocks = std::fs::read_dir("/sys/block").into_iter().flatten();
            found = blocks.flatten().map(|entry| entry.path()).find(|block| {
                let device = std::fs::canonicalize(block.join("device")).unwrap_or_default();
                let name = device.to_string_lossy().into_owned();
                name.contains("/adapter0/")
            });
            found.is_some()
        });
        found.expect("found above")
    }
}

impl Drop for ScsiDisk {
    fn drop(&mut self) {
        // In a test that fails, the disk is still in use.
        let _ = run("modprobe", &["--remove", "scsi_debug"]);
    }
}

/// A disk of `null_blk` in memory with a limited throughput; removed when dropped.
#[derive(Debug)]
pub struct SlowDisk {
    folder: PathBuf,
    name: String,
}

impl SlowDisk {
    /// Creates a disk of this size and throughput.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn new(megabytes: u32, megabytes_per_second: u32) -> Self {
        sh("modprobe", &["null_blk", "nr_devices=0"]);
        let configuration = Path::new("/sys/kernel/config");
        if !configuration.join("nullb").exists() {
            let folder = configuration.to_string_lossy();
            sh("mount", &["-t", "configfs", "none", &folder]);
        }
        let folder = configuration.join("nullb/slow");
        std::fs::create_dir(&folder).expect("a disk of null_blk");
        let set = |key: &str, value: u32| {
            std::fs::write(folder.join(key), value.to_string()).expect("a setting of null_blk");
        };
        set("size", megabytes);
        set("memory_backed", 1);
        set("mbps", megabytes_per_second);
        // A request larger than a fiftieth of the throughput of a second would never complete.
        set("max_sectors", megabytes_per_second * 2048 / 64);
        set("power", 1);
        sh("udevadm", &["settle"]);
        let index = std::fs::read_to_string(folder.join("index")).expect("its number");
        let name = ["slow".to_owned(), format!("nullb{}", index.trim())]
            .into_iter()
            .find(|name| Path::new("/sys/block").join(name).exists())
            .expect("its name");
        Self { folder, name }
    }

    /// The path of the disk.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // In a test that fails, the disk is still in use.
        let _ = std::fs::write(self.folder.join("power"), "0");
        let _ = std::fs::remove_dir(&self.folder);
    }
}
