//! The crate on real block devices: loop devices of this host. Needs root and free loop devices;
//! reports a skip when it cannot run.
//!
//! One test at a time: a losetup that looks for a free device opens those of other tests.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lun::{
    Finding, Kind, Lun, OpenError, OpenOptions, SignatureUsage, in_use, inspect, openers,
    overwrite_word,
};

const READ: OpenOptions = OpenOptions {
    write: false,
    exclusive: false,
    direct: false,
};
const CLAIM: OpenOptions = OpenOptions {
    write: true,
    exclusive: true,
    direct: true,
};

struct LoopDevice {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl LoopDevice {
    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn number(&self) -> (u32, u32) {
        Lun::open(&self.path, &READ).unwrap().device_number.unwrap()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        forget_partitions(&self.path);
        run("losetup", &["--detach", self.path.to_str().unwrap()]);
    }
}

/// The kernel keeps the partitions of a detached loop device for its next user.
fn forget_partitions(path: &Path) {
    let _ = Command::new("partx").arg("--delete").arg(path).output();
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .status()
        .is_ok_and(|status| status.success())
}

/// Reports that a test cannot run here; panics if `SHUNT_NO_SKIP` is set.
fn skip(reason: &str) {
    assert!(
        std::env::var_os("SHUNT_NO_SKIP").is_none(),
        "SHUNT_NO_SKIP is set, and this test cannot run: {reason}"
    );
    eprintln!("skipped: {reason}");
}

fn loop_device(options: &[&str]) -> Option<LoopDevice> {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let output = Command::new("losetup")
        .args(["--find", "--show"])
        .args(options)
        .arg(&image)
        .output();
    let name = output
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8(output.stdout).unwrap());
    if name.is_none() {
        skip("no loop device here (not root, or no driver)");
    }
    let device = LoopDevice {
        folder,
        path: name?.trim().into(),
    };
    forget_partitions(&device.path);
    Some(device)
}

/// The texts of all findings except who has the device open: udev or another losetup may have it
/// open at this moment.
fn texts(findings: &[Finding]) -> Vec<String> {
    findings
        .iter()
        .filter(|finding| !matches!(finding, Finding::OpenedBy { .. }))
        .map(Finding::to_string)
        .collect()
}

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn unused_device_opens_in_every_way_and_is_the_lun_of_its_file() {
    let _alone = alone();
    let Some(device) = loop_device(&[]) else {
        return;
    };
    let lun = Lun::open(&device.path, &CLAIM).unwrap();
    assert_eq!(
        (lun.identity.kind, lun.identity.size_bytes),
        (Kind::BlockDevice, 32 << 20)
    );
    assert!(lun.disk_sequence.is_some() && lun.max_io_bytes >= 4096 && !lun.read_only);
    let file = Lun::open(&device.image(), &READ).unwrap();
    assert!(lun.is_same_lun(&file) && file.is_same_lun(&lun));
    let Some(another) = loop_device(&[]) else {
        return;
    };
    assert!(!lun.is_same_lun(&Lun::open(&another.path, &READ).unwrap()));
    assert_eq!(lun.read_identity().unwrap(), lun.identity);
}

#[test]
fn claimed_device_is_busy_and_in_use_until_it_is_closed() {
    let _alone = alone();
    let Some(device) = loop_device(&[]) else {
        return;
    };
    assert_eq!(texts(&in_use(&device.path).unwrap()), Vec::<String>::new());
    let claimed = Lun::open(&device.path, &CLAIM).unwrap();
    let error = Lun::open(&device.path, &CLAIM).unwrap_err();
    assert!(
        matches!(error, OpenError::Busy { .. })
            && error.to_string().contains(device.path.to_str().unwrap()),
        "{error}"
    );
    assert_eq!(
        in_use(&device.path)
            .unwrap()
            .iter()
            .filter(|f| **f == Finding::InUse)
            .count(),
        1
    );
    let me = openers(device.number())
        .unwrap()
        .into_iter()
        .find(|opener| opener.pid == std::process::id())
        .unwrap();
    assert!(me.write && !me.command.is_empty());
    drop(claimed);
    assert_eq!(texts(&in_use(&device.path).unwrap()), Vec::<String>::new());
    assert!(
        !openers(device.number())
            .unwrap()
            .iter()
            .any(|opener| opener.pid == std::process::id())
    );
}

#[test]
fn read_only_device_is_refused_for_writing_and_found() {
    let _alone = alone();
    let Some(device) = loop_device(&["--read-only"]) else {
        return;
    };
    let error = Lun::open(
        &device.path,
        &OpenOptions {
            write: true,
            ..READ
        },
    )
    .unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::ReadOnly { .. } | OpenError::Permission { .. }
        ),
        "{error}"
    );
    assert_eq!(
        texts(&inspect(&device.path, &[]).unwrap().findings),
        ["is read-only: make it writable first"]
    );
}

#[test]
fn file_beneath_a_loop_device_is_held_by_it() {
    let _alone = alone();
    let Some(device) = loop_device(&[]) else {
        return;
    };
    let expected = Finding::Holders {
        names: vec![format!("loop device {}", device.path.display())],
    };
    assert!(in_use(&device.image()).unwrap().contains(&expected));
}

#[test]
fn mounted_file_system_is_found_with_its_mount_point_and_what_it_protects() {
    let _alone = alone();
    let Some(device) = loop_device(&[]) else {
        return;
    };
    let path = device.path.to_str().unwrap();
    if !run("mkfs.ext4", &["-q", path]) {
        skip("no mkfs.ext4 here");
        return;
    }
    let before = inspect(&device.path, &[]).unwrap();
    assert_eq!(texts(&before.findings), Vec::<String>::new());
    assert_eq!(before.signatures.len(), 1);
    assert_eq!(
        (
            before.signatures[0].kind.as_str(),
            before.signatures[0].usage
        ),
        ("ext4", SignatureUsage::Filesystem)
    );
    let word = overwrite_word(&before.lun.identity, &before.signatures, None);
    drop(before);

    let mount_point = device.folder.path().join("mount point");
    fs::create_dir(&mount_point).unwrap();
    assert!(run("mount", &[path, mount_point.to_str().unwrap()]));
    let state = mount_point.join("shunt/state");
    let findings = inspect(&device.path, &[&state, device.folder.path()]);
    let claim = Lun::open(&device.path, &CLAIM);
    assert!(run("umount", &[mount_point.to_str().unwrap()]));
    let mounted = findings.unwrap();
    assert_eq!(
        texts(&mounted.findings),
        [
            format!("is mounted at {}: unmount it first", mount_point.display()),
            format!("holds {}: choose another", state.display())
        ]
    );
    assert_eq!(
        overwrite_word(&mounted.lun.identity, &mounted.signatures, None),
        word
    );
    assert!(matches!(claim, Err(OpenError::Busy { .. })));
    drop(mounted);
    assert!(Lun::open(&device.path, &CLAIM).is_ok());
}

#[test]
fn loop_device_over_a_block_device_is_a_holder_of_it() {
    let _alone = alone();
    let Some(device) = loop_device(&[]) else {
        return;
    };
    let output = Command::new("losetup")
        .args(["--find", "--show"])
        .arg(&device.path)
        .output()
        .unwrap();
    let upper = String::from_utf8(output.stdout).unwrap();
    let findings = in_use(&device.path);
    assert!(run("losetup", &["--detach", upper.trim()]));
    assert_eq!(
        texts(&findings.unwrap()),
        [format!(
            "is used by loop device {}: name that one, or deactivate it first",
            upper.trim()
        )]
    );
}

#[test]
fn active_swap_area_is_found() {
    let _alone = alone();
    let Some(device) = loop_device(&[]) else {
        return;
    };
    let path = device.path.to_str().unwrap();
    if !run("mkswap", &["--quiet", path]) || !run("swapon", &[path]) {
        skip("no swap here");
        return;
    }
    let findings = in_use(&device.path);
    assert!(run("swapoff", &[path]));
    assert_eq!(
        texts(&findings.unwrap()),
        ["is an active swap area: run swapoff on it first"]
    );
}

#[test]
fn partitions_are_told_apart_and_the_mounted_one_speaks_against_the_disk() {
    let _alone = alone();
    let Some(device) = loop_device(&[]) else {
        return;
    };
    write_two_partitions(&device.path);
    let path = device.path.to_str().unwrap();
    let (first, second) = (format!("{path}p1"), format!("{path}p2"));
    // blockdev --rereadpt is refused where the driver scans no partitions; partx reports each
    // partition to the kernel itself.
    let known = run("partx", &["--add", path]) && wait_for(Path::new(&second));
    if !known {
        skip("no partitions on loop devices here");
        return;
    }
    let one = Lun::open(Path::new(&first), &READ).unwrap().identity;
    let two = Lun::open(Path::new(&second), &READ).unwrap().identity;
    assert_eq!(
        (
            one.partition_number,
            one.partition_start_bytes,
            one.size_bytes
        ),
        (Some(1), Some(1 << 20), 8 << 20)
    );
    assert_eq!(one.partition_uuid.as_deref(), Some("1234abcd-01"));
    assert_eq!(two.partition_uuid.as_deref(), Some("1234abcd-02"));
    let disk = Lun::open(&device.path, &READ).unwrap().identity;
    assert!(
        !one.same_device_hint(&two) && one.same_device_hint(&disk) && disk.same_device_hint(&two)
    );

    let has_partitions = format!("has partitions: {first}, {second}");
    let unused = inspect(&device.path, &[]).unwrap();
    assert_eq!(
        texts(&unused.findings),
        std::slice::from_ref(&has_partitions)
    );
    assert_eq!(unused.signatures[0].usage, SignatureUsage::PartitionTable);
    drop(unused);

    assert!(run("mkfs.ext4", &["-q", &first]));
    let mount_point = device.folder.path().join("mount");
    fs::create_dir(&mount_point).unwrap();
    assert!(run("mount", &[&first, mount_point.to_str().unwrap()]));
    let (of_disk, of_second) = (in_use(&device.path), in_use(Path::new(&second)));
    assert!(run("umount", &[mount_point.to_str().unwrap()]));
    let by = format!(
        "has the partition {first}, which is mounted at {}: unmount it first",
        mount_point.display()
    );
    assert_eq!(texts(&of_disk.unwrap()), [by, has_partitions]);
    assert_eq!(texts(&of_second.unwrap()), Vec::<String>::new());
}

/// A DOS table: 8 MiB from 1 MiB on, then 8 MiB more.
fn write_two_partitions(path: &Path) {
    let mut sector = [0_u8; 512];
    sector[440..444].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
    for (index, start) in [2048_u32, 2048 + 16384].into_iter().enumerate() {
        let entry = &mut sector[446 + 16 * index..446 + 16 * (index + 1)];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&16384_u32.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let device = File::options().write(true).open(path).unwrap();
    device.write_all_at(&sector, 0).unwrap();
    device.sync_all().unwrap();
}

fn wait_for(path: &Path) -> bool {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while std::time::Instant::now() < deadline {
        if path.exists() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}
