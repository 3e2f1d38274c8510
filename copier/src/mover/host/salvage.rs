//! Reading around blocks that a LUN cannot read, if the operator has accepted that they are lost.
//!
//! A LUN that is temporarily away returns the same errors as a LUN with a bad block. So a block is
//! given up only if another part of the LUN can be read after the error, and the block fails once
//! more after that.

use std::io;
use std::ops::Range;

/// The largest logical block of a LUN, in bytes.
pub(super) const BLOCK_BYTES_MAX: usize = 4096;

/// A block, aligned in memory as direct I/O requires.
#[repr(align(4096))]
pub(super) struct Block(pub(super) [u8; BLOCK_BYTES_MAX]);

impl Block {
    pub(super) fn zeroed() -> Box<Self> {
        Box::new(Self([0; BLOCK_BYTES_MAX]))
    }
}

/// The LUN to read from.
pub(super) trait Source {
    /// Reads all of `buffer` at `offset_bytes` of the LUN.
    fn read(&mut self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()>;

    /// Whether the LUN reads anything at all.
    fn answers(&mut self) -> bool;

    /// Whether the copy is to end.
    fn must_stop(&self) -> bool {
        false
    }
}

/// Reads all readable blocks at `offset_bytes` of the LUN into `buffer`, and fills the others with
/// zeroes. Returns the parts of the buffer that were filled.
///
/// # Errors
/// Errors of the LUN that are not those of single blocks. The contents of the buffer are
/// then undefined.
pub(super) fn read_around(
    source: &mut impl Source,
    buffer: &mut [u8],
    offset_bytes: u64,
    block_bytes: usize,
) -> io::Result<Vec<Range<usize>>> {
    let mut lost: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    // Halved while blocks fail, and doubled again after that.
    let mut length = buffer.len();
    while at < buffer.len() {
        // A bad disk may retry for minutes in total.
        if source.must_stop() {
            return Err(io::Error::other("the copy is to stop"));
        }
        let end = buffer.len().min(at + length);
        let part = &mut buffer[at..end];
        let place = offset_bytes + at as u64;
        match source.read(part, place) {
            Ok(()) => length *= 2,
            Err(error) if !is_of_a_block(&error) => return Err(error),
            Err(_) if part.len() > block_bytes => {
                length = (part.len() / 2).next_multiple_of(block_bytes);
                continue;
            }
            Err(error) => {
                if !source.answers() {
                    return Err(error);
                }
                match source.read(part, place) {
                    Ok(()) => {}
                    Err(error) if is_of_a_block(&error) => {
                        part.fill(0);
                        match lost.last_mut() {
                            Some(last) if last.end == at => last.end = end,
                            _ => lost.push(at..end),
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        at = end;
    }
    Ok(lost)
}

/// Whether an error can be that of single blocks: an error of the medium, of its checksums, or one
/// that the kernel does not explain.
pub(super) fn is_of_a_block(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    errno.is_some_and(|errno| [libc::EIO, libc::ENODATA, libc::EILSEQ].contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 512;

    /// A LUN whose byte at `n` is `n / 512`, with bad blocks.
    #[derive(Default)]
    struct Fake {
        bad: Vec<u64>,
        errno: i32,
        away: bool,
        /// Whether the LUN, with its blocks, can be read again once it was asked for another part.
        comes_back: bool,
        reads: usize,
    }

    impl Source for Fake {
        fn read(&mut self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
            self.reads += 1;
            let first = offset_bytes / BLOCK as u64;
            let blocks = first..first + (buffer.len() / BLOCK) as u64;
            assert!(
                offset_bytes.is_multiple_of(BLOCK as u64) && buffer.len().is_multiple_of(BLOCK)
            );
            if self.away || self.bad.iter().any(|block| blocks.contains(block)) {
                return Err(io::Error::from_raw_os_error(self.errno));
            }
            for (bytes, block) in buffer.chunks_mut(BLOCK).zip(blocks) {
                bytes.fill(block as u8);
            }
            Ok(())
        }

        fn answers(&mut self) -> bool {
            if self.comes_back {
                self.away = false;
            }
            !self.away
        }
    }

    fn read(fake: &mut Fake, blocks: usize) -> io::Result<(Vec<u8>, Vec<Range<usize>>)> {
        let mut buffer = vec![0xff; blocks * BLOCK];
        let lost = read_around(fake, &mut buffer, 10 * BLOCK as u64, BLOCK)?;
        Ok((buffer, lost))
    }

    #[test]
    fn only_the_bad_blocks_are_lost() {
        for bad in [
            vec![10],
            vec![17],
            vec![25],
            vec![12, 13, 20],
            (10..26).collect(),
        ] {
            let mut fake = Fake {
                bad: bad.clone(),
                errno: libc::EIO,
                ..Fake::default()
            };
            let (buffer, lost) = read(&mut fake, 16).unwrap();
            let mut found = Vec::new();
            for part in lost {
                assert!(buffer[part.clone()].iter().all(|byte| *byte == 0));
                found.extend((part.start / BLOCK..part.end / BLOCK).map(|block| block as u64 + 10));
            }
            assert_eq!(found, bad);
            for (bytes, block) in buffer.chunks(BLOCK).zip(10u64..) {
                if !bad.contains(&block) {
                    assert!(
                        bytes.iter().all(|byte| u64::from(*byte) == block),
                        "{block}"
                    );
                }
            }
        }
    }

    #[test]
    fn one_bad_block_of_a_large_piece_costs_few_reads() {
        let mut fake = Fake {
            bad: vec![700],
            errno: libc::ENODATA,
            ..Fake::default()
        };
        let (_, lost) = read(&mut fake, 1024).unwrap();
        assert_eq!(lost.len(), 1);
        assert!(fake.reads < 40, "{}", fake.reads);
    }

    #[test]
    fn nothing_is_given_up_while_the_lun_is_away() {
        let mut fake = Fake {
            away: true,
            errno: libc::EIO,
            ..Fake::default()
        };
        let error = read(&mut fake, 16).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));

        // The LUN was away for a moment: the block is read after all.
        let mut fake = Fake {
            away: true,
            comes_back: true,
            errno: libc::EIO,
            ..Fake::default()
        };
        let (buffer, lost) = read(&mut fake, 16).unwrap();
        assert_eq!((buffer[0], lost), (10, vec![]));
    }

    #[test]
    fn an_error_that_is_not_of_a_block_is_an_error() {
        for errno in [libc::ENODEV, libc::ENOLINK, libc::ETIMEDOUT, libc::EINVAL] {
            let mut fake = Fake {
                bad: vec![12],
                errno,
                ..Fake::default()
            };
            assert_eq!(read(&mut fake, 16).unwrap_err().raw_os_error(), Some(errno));
        }
    }
}
