//! Whether a LUN without known signatures holds data: a raw database, plain dm-crypt, a guest's
//! disk with an unknown table.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::inspect::Fnv;
use crate::kernel;
use crate::open::{Lun, OpenError, other};

/// Bytes that are read at the start and at the end of the LUN.
const EDGE_BYTES: u64 = 1 << 20;
/// Size of the blocks that [`Filled`] counts, in bytes.
const BLOCK_BYTES: usize = 4096;
/// Alignment of the memory of direct I/O, in bytes: no device asks for more than a page.
const MEMORY_ALIGNMENT_BYTES: usize = 4096;

/// Data at the start or at the end of a LUN that has no known signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unrecognised {
    /// Blocks of the first MiB.
    pub first: Filled,
    /// Blocks of the last MiB that are not also in the first MiB.
    pub last: Filled,
    /// A checksum of the bytes that were read at both ends.
    pub fingerprint: String,
}

/// The number of blocks of 4 KiB that were read, and how many of them are not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Blocks that were read.
    pub blocks: usize,
    /// Blocks with at least one byte that is not zero.
    pub not_zero: usize,
}

impl Lun {
    /// Reads the first and the last MiB, past the page cache where the file system supports direct
    /// I/O. `None`: all bytes are zero.
    ///
    /// # Errors
    /// The LUN cannot be read.
    pub(crate) fn unrecognised(&self) -> Result<Option<Unrecognised>, OpenError> {
        let size_bytes = self.identity.size_bytes;
        let first_bytes = size_bytes.min(EDGE_BYTES);
        let last_bytes = (size_bytes - first_bytes).min(EDGE_BYTES);
        let failed = |source| other(&self.path, "read", source);
        let file = self.for_reading().map_err(failed)?;
        let mut checksum = Fnv::new();
        let mut edge = |offset_bytes, bytes| -> io::Result<Filled> {
            let mut memory = vec![0; bytes + MEMORY_ALIGNMENT_BYTES];
            let start = memory.as_ptr().align_offset(MEMORY_ALIGNMENT_BYTES);
            let buffer = &mut memory[start..start + bytes];
            file.read_exact_at(buffer, offset_bytes)?;
            checksum.bytes(buffer);
            let blocks = buffer.chunks(BLOCK_BYTES);
            Ok(Filled {
                blocks: blocks.len(),
                not_zero: blocks
                    .filter(|block| block.iter().any(|byte| *byte != 0))
                    .count(),
            })
        };
        let length = |bytes| usize::try_from(bytes).map_err(io::Error::other);
        let first = length(first_bytes)
            .and_then(|bytes| edge(0, bytes))
            .map_err(failed)?;
        let last = length(last_bytes)
            .and_then(|bytes| edge(size_bytes - last_bytes, bytes))
            .map_err(failed)?;
        Ok((first.not_zero + last.not_zero > 0).then(|| Unrecognised {
            first,
            last,
            fingerprint: checksum.word(),
        }))
    }

    /// Opens the same LUN again, with direct I/O if its file system supports that.
    fn for_reading(&self) -> io::Result<File> {
        let direct = File::options()
            .read(true)
            .custom_flags(kernel::O_DIRECT)
            .open(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        match direct {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(File::from(self.fd.try_clone()?))
            }
            opened => opened,
        }
    }
}

impl fmt::Display for Unrecognised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unrecognised { first, last, .. } = self;
        write!(f, "data that is not recognised (first MiB: {first}")?;
        if last.blocks > 0 {
            write!(f, "; last MiB: {last}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} blocks not zero", self.not_zero, self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::OpenOptions;

    fn found(size_bytes: u64, bytes_at: &[u64]) -> Option<Unrecognised> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lun");
        let file = File::create(&path).unwrap();
        file.set_len(size_bytes).unwrap();
        for offset in bytes_at {
            file.write_all_at(b"x", *offset).unwrap();
        }
        let lun = Lun::open(&path, &OpenOptions::default()).unwrap();
        lun.unrecognised().unwrap()
    }

    #[test]
    fn zeroes_at_both_ends_are_no_data() {
        assert_eq!(found(4096, &[]), None);
        assert_eq!(found(8 << 20, &[1 << 20, (7 << 20) - 1]), None);
    }

    #[test]
    fn data_at_either_end_is_counted_in_blocks() {
        let table = [
            (
                8 << 20,
                vec![(1 << 20) - 1],
                "first MiB: 1 of 256 blocks not zero; last MiB: 0 of 256 blocks not zero",
            ),
            (
                8 << 20,
                vec![0, 7 << 20, (8 << 20) - 1],
                "first MiB: 1 of 256 blocks not zero; last MiB: 2 of 256 blocks not zero",
            ),
            // The two ends overlap, or one read covers the whole LUN.
            (
                (1 << 20) + 8192,
                vec![(1 << 20) + 8191],
                "first MiB: 0 of 256 blocks not zero; last MiB: 1 of 2 blocks not zero",
            ),
            (8192, vec![5000], "first MiB: 1 of 2 blocks not zero"),
        ];
        for (size_bytes, bytes_at, text) in table {
            let found = found(size_bytes, &bytes_at).unwrap().to_string();
            assert_eq!(found, format!("data that is not recognised ({text})"));
        }
    }

    #[test]
    fn fingerprint_changes_with_the_data() {
        let first = found(8192, &[1]).unwrap();
        assert_eq!(first, found(8192, &[1]).unwrap());
        assert_ne!(first.fingerprint, found(8192, &[2]).unwrap().fingerprint);
    }
}
