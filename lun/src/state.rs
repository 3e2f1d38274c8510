//! Detects that others have written to a LUN: from its contents where a mount, a volume manager or
//! a partitioning tool writes, and from its path and descriptor.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use twox_hash::XxHash3_128;

use crate::open::{Lun, OpenError, OpenOptions, other};

/// Bytes that are read at the start: partition tables, superblocks (also in a first partition or
/// behind a LUKS2 header of 16 MiB), metadata of LVM and md.
const HEAD_BYTES: u64 = 32 << 20;
/// Bytes that are read at the end: backup partition table, metadata of md and of RAID cards.
const TAIL_BYTES: u64 = 4 << 20;
/// Number of blocks that are read between start and end, evenly spread.
const SAMPLES: u64 = 256;
/// Length of each of these blocks, in bytes; also the alignment of every read.
const SAMPLE_BYTES: u64 = 4096;
/// The longest read, in bytes.
const READ_BYTES_MAX: u64 = 1 << 20;

impl Lun {
    /// Makes a LUN of a descriptor that another process opened, if `path` still leads to the same
    /// device or file. The claim of that open is kept.
    ///
    /// # Errors
    /// [`OpenError::Replaced`] if the path leads elsewhere, and the errors of [`Lun::open`].
    pub fn adopt(descriptor: OwnedFd, path: &Path, opts: &OpenOptions) -> Result<Self, OpenError> {
        let file = File::from(descriptor);
        let clone = file
            .try_clone()
            .map_err(|source| other(path, "open", source))?;
        // The comparison ignores `opts`: the LUN may be read-only now, which is not a replacement.
        let found = Self::from_open_file(clone, path, &OpenOptions::default())?;
        if !found.is_at(path)? {
            return Err(OpenError::Replaced { path: found.path });
        }
        Ok(Self {
            adopted: true,
            ..Self::from_open_file(file, path, opts)?
        })
    }

    /// Whether `path` leads to the open LUN. A device that came back under the same number is a
    /// different one.
    ///
    /// # Errors
    /// The errors of [`Lun::open`].
    pub fn is_at(&self, path: &Path) -> Result<bool, OpenError> {
        let there = Self::open(path, &OpenOptions::default())?;
        Ok(self.device_number == there.device_number
            && self.disk_sequence == there.disk_sequence
            && self.identity.kind == there.identity.kind
            && self.identity.file == there.identity.file)
    }

    /// Waits until everything that was written to the LUN is durable.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn flush(&self) -> io::Result<()> {
        File::from(self.fd.try_clone()?).sync_data()
    }

    /// Computes a checksum of a part of the LUN: its first 32 MiB, its last 4 MiB and 256 blocks in
    /// between. Every rw mount of a usual file system, and every change of partitions, of LVM or of
    /// md, changes the checksum; a write to the middle of a file may not.
    ///
    /// # Errors
    /// The LUN cannot be read.
    pub fn fingerprint(&self, start_bytes: u64, length_bytes: u64) -> io::Result<u64> {
        fingerprint(&File::from(self.fd.try_clone()?), start_bytes, length_bytes)
    }
}

/// Computes [`Lun::fingerprint`] of an open file.
///
/// # Errors
/// The file cannot be read.
pub fn fingerprint(file: &File, start_bytes: u64, length_bytes: u64) -> io::Result<u64> {
    // Room for a buffer that is aligned for direct I/O.
    let mut memory = vec![0; (READ_BYTES_MAX + SAMPLE_BYTES) as usize];
    let shift = memory.as_ptr().align_offset(SAMPLE_BYTES as usize);
    let buffer = &mut memory[shift..shift + READ_BYTES_MAX as usize];
    let mut sum = 0_u64;
    let mut read = |offset: u64, length: u64| -> io::Result<()> {
        let part = &mut buffer[..length as usize];
        file.read_exact_at(part, start_bytes + offset)?;
        sum = XxHash3_128::oneshot_with_seed(sum, part) as u64;
        Ok(())
    };
    let head = length_bytes.min(HEAD_BYTES);
    let tail = length_bytes.saturating_sub(TAIL_BYTES).max(head);
    for (from, to) in [(0, head), (tail, length_bytes)] {
        for offset in (from..to).step_by(READ_BYTES_MAX as usize) {
            read(offset, (to - offset).min(READ_BYTES_MAX))?;
        }
    }
    let step = (tail - head) / SAMPLES / SAMPLE_BYTES * SAMPLE_BYTES;
    if step > 0 {
        for sample in 0..SAMPLES {
            read(head + sample * step, SAMPLE_BYTES)?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 100 << 20;

    fn file(directory: &Path, name: &str) -> (Lun, File) {
        let path = directory.join(name);
        let file = File::create(&path).unwrap();
        file.set_len(SIZE).unwrap();
        let options = OpenOptions {
            write: true,
            ..OpenOptions::default()
        };
        (Lun::open(&path, &options).unwrap(), file)
    }

    #[test]
    fn a_fingerprint_shows_writes_to_both_ends_and_is_that_of_a_part() {
        let directory = tempfile::tempdir().unwrap();
        let (lun, file) = file(directory.path(), "lun");
        let whole = || lun.fingerprint(0, SIZE).unwrap();
        let mut last = whole();
        assert_eq!(whole(), last);
        let between = (90 << 20) + 8192;
        for offset in [0, 1 << 20, (16 << 20) + 1024, SIZE - 512, between] {
            file.write_all_at(b"x", offset).unwrap();
            assert_eq!(whole() == last, offset == between, "{offset}");
            last = whole();
        }
        let part = || lun.fingerprint(64 << 20, 3 << 20).unwrap();
        let before = part();
        file.write_all_at(b"x", 63 << 20).unwrap();
        assert_eq!(part(), before);
        file.write_all_at(b"x", (64 << 20) + 100).unwrap();
        assert_ne!(part(), before);
    }

    #[test]
    fn a_descriptor_is_adopted_only_if_its_path_still_leads_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let (lun, _) = file(directory.path(), "lun");
        let path = directory.path().join("lun");
        let adopt = || Lun::adopt(lun.fd.try_clone().unwrap(), &path, &OpenOptions::default());
        let adopted = adopt().unwrap();
        assert_eq!(adopted.identity, lun.identity);
        assert!(adopted.adopted && !lun.adopted);
        std::fs::rename(&path, directory.path().join("elsewhere")).unwrap();
        assert!(matches!(adopt(), Err(OpenError::NotFound { .. })));
        file(directory.path(), "lun");
        assert!(matches!(adopt(), Err(OpenError::Replaced { .. })));
    }
}
