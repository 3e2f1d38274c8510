//! Which processes have a LUN open: a scan of `/proc/PID/fd`.
//!
//! A process may have a file of a dead server open, and following the link of that descriptor must
//! not wait for the server. So the scan asks the kernel only for what it knows about each
//! descriptor ([`status_unsynced`]), and has a time limit for file systems that
//! nevertheless ask their server.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounded::{Step, within};
use crate::identity::FileId;
use crate::kernel::{Status, status_unsynced};
use crate::proc_text::DeviceNumber;

/// The write bit of a link in `/proc/PID/fd`: the descriptor is open for writing.
const WRITE_BIT: u32 = 0o200;
/// Time limit of a scan.
const SCAN_MAX: Duration = Duration::from_secs(20);

/// A process that has a LUN open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opener {
    /// Process id.
    pub pid: u32,
    /// Name of the process's program (`/proc/PID/comm`, at most 15 characters); empty if the
    /// process is gone.
    pub command: String,
    /// Whether one of the process's descriptors can write.
    pub write: bool,
}

/// A file that a process may have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    BlockDevice(DeviceNumber),
    CharacterDevice(DeviceNumber),
    File(FileId),
}

/// Lists the processes that have the block device with this major and minor number open, by process
/// id. Includes this process, if it has the device open.
///
/// Not seen: processes of other users when not root, mappings whose descriptor is closed, and opens
/// by the kernel itself (mounts, swap).
///
/// # Errors
/// `/proc` cannot be listed, or the scan exceeds its time limit: then the text names what does not
/// answer. Processes and descriptors that vanish or are hidden during the scan are skipped.
pub fn openers(device_number: (u32, u32)) -> io::Result<Vec<Opener>> {
    let target = [Opened::BlockDevice(device_number)];
    within(SCAN_MAX, move |step| {
        openers_of(Path::new("/proc"), &target, step)
    })?
}

pub(crate) fn openers_of(proc: &Path, targets: &[Opened], step: &Step) -> io::Result<Vec<Opener>> {
    let mut found: BTreeMap<u32, bool> = BTreeMap::new();
    for process in fs::read_dir(proc)? {
        let process = process?;
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            if let Some(write) = opens(&descriptor.path(), targets, step) {
                *found.entry(pid).or_default() |= write;
            }
        }
    }
    Ok(found
        .into_iter()
        .map(|(pid, write)| Opener {
            pid,
            command: command(proc, pid),
            write,
        })
        .collect())
}

/// Whether `pid` is this process, or a child of this process between fork and exec: such a child
/// has copies of all descriptors.
pub(crate) fn is_this_process(proc: &Path, pid: u32) -> bool {
    let own = std::process::id();
    if pid == own {
        return true;
    }
    let program = |pid: u32| fs::read_link(proc.join(format!("{pid}/exe"))).ok();
    // The program name in the status text need not be UTF-8.
    let parent = fs::read(proc.join(format!("{pid}/status")))
        .ok()
        .and_then(|text| parent_in_status(&String::from_utf8_lossy(&text)));
    parent == Some(own) && program(pid).is_some() && program(pid) == program(own)
}

/// `PPid` of a `/proc/PID/status` text.
fn parent_in_status(text: &str) -> Option<u32> {
    text.lines()
        .find_map(|line| line.strip_prefix("PPid:"))?
        .trim()
        .parse()
        .ok()
}

/// Whether this descriptor is one of the targets (`Some`), and whether it can write.
fn opens(descriptor: &Path, targets: &[Opened], step: &Step) -> Option<bool> {
    // Sockets and the like have no path; their status is not needed.
    let path = fs::read_link(descriptor)
        .ok()
        .filter(|path| path.is_absolute())?;
    step.asks(&path);
    let status = status_unsynced(descriptor).ok()?;
    targets.iter().any(|target| target.is(&status)).then(|| {
        fs::symlink_metadata(descriptor)
            .is_ok_and(|link| link.permissions().mode() & WRITE_BIT != 0)
    })
}

impl Opened {
    fn is(self, status: &Status) -> bool {
        match self {
            Opened::BlockDevice(number) => status.kind == libc::S_IFBLK && status.device == number,
            Opened::CharacterDevice(number) => {
                status.kind == libc::S_IFCHR && status.device == number
            }
            Opened::File(file) => status.kind == libc::S_IFREG && status.file == file,
        }
    }
}

impl fmt::Display for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let purpose = if self.write { "writing" } else { "reading" };
        write!(f, "{} (pid {}, for {purpose})", self.command, self.pid)
    }
}

fn command(proc: &Path, pid: u32) -> String {
    fs::read(proc.join(format!("{pid}/comm")))
        .ok()
        .and_then(|text| crate::sysfs::clean_text(&text))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::{file_id, number_of};
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    fn me(openers: &[Opener]) -> Option<&Opener> {
        openers
            .iter()
            .find(|opener| opener.pid == std::process::id())
    }

    #[test]
    fn own_open_of_a_file_is_found_with_its_mode_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun");
        fs::write(&path, [0; 512]).unwrap();
        let target = [Opened::File(file_id(&fs::metadata(&path).unwrap()))];
        let scan = || openers_of(Path::new("/proc"), &target, &Step::default()).unwrap();
        assert_eq!(me(&scan()), None);
        let reading = File::open(&path).unwrap();
        assert!(me(&scan()).is_some_and(|opener| !opener.write && !opener.command.is_empty()));
        let writing = File::options().write(true).open(&path).unwrap();
        assert!(me(&scan()).is_some_and(|opener| opener.write));
        drop((reading, writing));
        assert_eq!(me(&scan()), None);
    }

    #[test]
    fn character_device_is_not_taken_for_the_block_device_of_its_number() {
        let null = File::open("/dev/null").unwrap();
        let number = number_of(null.metadata().unwrap().rdev());
        let scan = |target| openers_of(Path::new("/proc"), &[target], &Step::default()).unwrap();
        assert!(me(&scan(Opened::CharacterDevice(number))).is_some());
        assert_eq!(me(&scan(Opened::BlockDevice(number))), None);
    }

    #[test]
    fn parent_is_read_from_a_status_text() {
        let table = [
            ("Name:\tcat\nPPid:\t41\nTracerPid:\t0\n", Some(41)),
            ("TracerPid:\t7\n", None),
            ("PPid:\tx\n", None),
            ("", None),
        ];
        for (text, parent) in table {
            assert_eq!(parent_in_status(text), parent, "{text:?}");
        }
    }

    #[test]
    fn child_that_is_another_program_is_not_this_process() {
        let _alone = crate::testing::alone();
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let answer = is_this_process(Path::new("/proc"), child.id());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!answer);
        assert!(is_this_process(Path::new("/proc"), std::process::id()));
    }

    #[test]
    fn missing_proc_is_an_error_and_not_an_empty_answer() {
        assert!(openers_of(Path::new("/nonexistent"), &[], &Step::default()).is_err());
    }
}
