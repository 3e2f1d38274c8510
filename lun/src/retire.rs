//! Makes a LUN that is no longer used inaccessible, and accessible again. These functions change a
//! LUN, on request only.
//!
//! The caller has opened the LUN exclusively, and has checked that it is the right one and that
//! nobody uses it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::open::{Lun, OpenError, other};
use crate::signature::{run_on, signatures};
use crate::sysfs::{BlockDevice, Sysfs};

/// Size of a block that is wiped with a signature, in bytes. Every magic number is shorter than a
/// block and lies within one.
const BLOCK_BYTES: u64 = 4096;

/// A block as it was before a signature was wiped from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Offset of the block, in bytes from the start of the LUN.
    pub offset_bytes: u64,
    /// The contents of the block, as hexadecimal digits.
    pub contents: String,
}

impl Lun {
    /// Makes the kernel refuse writes to the block device, or accept them again. Lasts until the
    /// next boot.
    ///
    /// # Errors
    /// The error of `blockdev`.
    pub fn set_read_only(&self, read_only: bool) -> Result<(), OpenError> {
        let flag = if read_only { "--setro" } else { "--setrw" };
        run_on(self, "blockdev", &[flag])
    }

    /// The number of writes and discards of the block device that this host has completed since the
    /// boot, or since the device was created. `None` for a file, and where the kernel does not
    /// count.
    #[must_use]
    pub fn changes_counted(&self) -> Option<u64> {
        changes_counted(&Sysfs::new("/sys").device(self.device_number?).ok()?)
    }

    /// Makes the kernel refuse every request to the SCSI disk; [`bring_online`] ends that. Lasts
    /// until the next boot.
    ///
    /// # Errors
    /// The LUN is not a SCSI disk, or the kernel's error.
    pub fn take_offline(&self) -> Result<(), OpenError> {
        let state = self.device_number.map(|(major, minor)| {
            PathBuf::from(format!("/sys/dev/block/{major}:{minor}/device/state"))
        });
        set_state(&self.path, state, "offline")
    }

    /// Reads the blocks in which libblkid recognises a signature. The caller saves these blocks and
    /// then wipes them ([`Lun::wipe`]). Wiping one signature can expose another: the caller repeats
    /// both steps until the result is empty.
    ///
    /// # Errors
    /// The LUN cannot be read, or `wipefs` is missing: `blkid` does not report where signatures
    /// are.
    pub fn blocks_with_signatures(&self) -> Result<Vec<Saved>, OpenError> {
        let file = File::from(self.duplicate()?);
        let mut blocks = Vec::new();
        for signature in signatures(self)? {
            let Some(offset) = signature.offset else {
                let cause = io::Error::other("wipefs is needed to locate them");
                return Err(other(&self.path, "find the signatures of", cause));
            };
            blocks.push(offset / BLOCK_BYTES * BLOCK_BYTES);
        }
        blocks.sort_unstable();
        blocks.dedup();
        let saved = |offset_bytes: u64| {
            let mut block = vec![0; self.block_length(offset_bytes)];
            file.read_exact_at(&mut block, offset_bytes)
                .map_err(|source| other(&self.path, "read", source))?;
            Ok(Saved {
                offset_bytes,
                contents: to_hexadecimal(&block),
            })
        };
        blocks.into_iter().map(saved).collect()
    }

    /// Overwrites these blocks with zeroes. [`Lun::restore`] puts them back.
    ///
    /// # Errors
    /// The LUN cannot be written.
    pub fn wipe(&self, blocks: &[Saved]) -> Result<(), OpenError> {
        let file = File::from(self.duplicate()?);
        let problem = |source| other(&self.path, "wipe", source);
        for block in blocks {
            let zeroes = vec![0; self.block_length(block.offset_bytes)];
            file.write_all_at(&zeroes, block.offset_bytes)
                .map_err(problem)?;
        }
        file.sync_all().map_err(problem)
    }

    /// Restores the blocks that [`Lun::wipe`] has overwritten; blocks that were saved later are
    /// written first.
    ///
    /// # Errors
    /// The saved blocks are damaged, or the LUN cannot be written.
    pub fn restore(&self, saved: &[Saved]) -> Result<(), OpenError> {
        let file = File::from(self.duplicate()?);
        for block in saved.iter().rev() {
            let contents = from_hexadecimal(&block.contents)
                .filter(|contents| contents.len() == self.block_length(block.offset_bytes))
                .ok_or_else(|| {
                    let cause = io::Error::other("what was saved of it is damaged");
                    other(&self.path, "restore", cause)
                })?;
            file.write_all_at(&contents, block.offset_bytes)
                .map_err(|source| other(&self.path, "restore", source))?;
        }
        file.sync_all()
            .map_err(|source| other(&self.path, "restore", source))
    }

    /// Discards all blocks of the LUN. Its contents are lost.
    ///
    /// # Errors
    /// The error of `blkdiscard`.
    pub fn discard_all(&self) -> Result<(), OpenError> {
        run_on(self, "blkdiscard", &["--force"])
    }

    fn block_length(&self, offset_bytes: u64) -> usize {
        let rest = self.identity.size_bytes.saturating_sub(offset_bytes);
        usize::try_from(rest.min(BLOCK_BYTES)).unwrap_or_default()
    }
}

/// Makes the kernel accept requests to a SCSI disk again. The disk is named by its path, because an
/// offline disk cannot be opened.
///
/// # Errors
/// The path leads nowhere, the device is not a SCSI disk, or the kernel's error.
pub fn bring_online(path: &Path) -> Result<(), OpenError> {
    let device = path
        .canonicalize()
        .map_err(|source| other(path, "find", source))?;
    let state = device.file_name().map(|name| {
        let block = Path::new("/sys/class/block").join(name);
        block.join("device/state")
    });
    set_state(path, state, "running")
}

fn set_state(path: &Path, state: Option<PathBuf>, word: &str) -> Result<(), OpenError> {
    let state = state.filter(|state| state.exists()).ok_or_else(|| {
        let cause = io::Error::other("only a SCSI disk can be taken offline");
        other(path, "change the state of", cause)
    })?;
    // The kernel accepts the word only with the end of the line.
    fs::write(&state, format!("{word}\n"))
        .map_err(|source| other(path, "change the state of", source))
}

fn to_hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    digits.len().is_multiple_of(2).then_some(())?;
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(byte).collect()
}

/// Reads `stat`: its fifth field is the number of completed writes, its twelfth (since Linux 4.18)
/// the number of completed discards.
fn changes_counted(device: &BlockDevice) -> Option<u64> {
    if device.whole_disk().attribute_u64("queue/iostats")? == 0 {
        return None;
    }
    let stat = device.attribute("stat")?;
    let field = |number: usize| {
        let text = stat.split_whitespace().nth(number)?;
        text.parse::<u64>().ok()
    };
    Some(field(4)? + field(11)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;
    use crate::sysfs::fake::FakeSysfs;
    use std::process::Command;

    #[test]
    fn writes_and_discards_are_counted_unless_the_kernel_does_not_count() {
        let sys = FakeSysfs::new();
        let stat = "   1  2  3  4  50  6  7  8  0  9  10  600  11  12  13  14  15";
        for (place, number, iostats) in [("sda", "8:0", "1"), ("sdb", "8:16", "0")] {
            let attributes = [("queue/iostats", iostats), ("stat", stat)];
            sys.add(place, number, &attributes);
        }
        sys.add("sda/sda1", "8:1", &[("partition", "1"), ("stat", stat)]);
        let counted = |number| changes_counted(&sys.sysfs().device(number).unwrap());
        assert_eq!(counted((8, 0)), Some(650));
        assert_eq!(counted((8, 1)), Some(650));
        assert_eq!(counted((8, 16)), None);
    }

    #[test]
    fn what_is_wiped_is_not_found_and_can_be_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun");
        File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let made = Command::new("/sbin/mkfs.ext4")
            .arg("-q")
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let before = fs::read(&path).unwrap();
        let options = OpenOptions {
            write: true,
            ..OpenOptions::default()
        };
        let lun = Lun::open(&path, &options).unwrap();
        assert_eq!(signatures(&lun).unwrap()[0].kind, "ext4");
        let mut saved = Vec::new();
        loop {
            let blocks = lun.blocks_with_signatures().unwrap();
            if blocks.is_empty() {
                break;
            }
            lun.wipe(&blocks).unwrap();
            saved.extend(blocks);
        }
        assert_eq!(signatures(&lun).unwrap(), []);
        assert!(!saved.is_empty());
        // Nothing else has changed.
        let after = fs::read(&path).unwrap();
        let differing = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert!(differing <= saved.len() * BLOCK_BYTES as usize);
        lun.restore(&saved).unwrap();
        assert_eq!(fs::read(&path).unwrap(), before);
        saved[0].contents.pop();
        lun.restore(&saved).unwrap_err();
        lun.take_offline().unwrap_err();
        bring_online(&path).unwrap_err();
        bring_online(Path::new("/dev/no-such-disk")).unwrap_err();
    }

    #[test]
    fn hexadecimal_digits_are_read_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hexadecimal(&to_hexadecimal(&bytes)), Some(bytes));
        assert_eq!(from_hexadecimal("0g"), None);
        assert_eq!(from_hexadecimal("123"), None);
    }
}
