//! One request on one leg: piece by piece over the leg's extents, until it is complete or has
//! failed.

use io_uring::{opcode, squeue, types};
use migration_core::units::Range;
use migration_core::{
    layout::Layout,
    volume::{Errno, IoResult, Op},
};

use super::ring::LunFile;

/// An open leg with its files in the ring.
#[derive(Debug)]
pub(super) struct LegFiles {
    pub(super) leg: std::sync::Arc<leg::OpenLeg>,
    /// For each LUN of the leg, its file in the ring.
    pub(super) files: Vec<LunFile>,
}

impl LegFiles {
    fn layout(&self) -> &Layout {
        &self.leg.layout
    }
}

/// The progress of a request on a leg.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    pub(super) op: Op,
    pub(super) range: Range,
    /// Bytes that are done; for a flush, the number of LUNs.
    done: u64,
    /// Bytes of the piece that was submitted last.
    piece: u64,
}

/// The next step of a transfer.
#[derive(Debug)]
pub(super) enum Next {
    /// Submit this entry.
    Submit(squeue::Entry),
    /// The transfer is complete, or has failed.
    Done(IoResult),
}

/// The one registered buffer that holds all request buffers.
const BUFFER_INDEX: u16 = 0;

impl Transfer {
    pub(super) const fn new(op: Op, range: Range) -> Self {
        Self {
            op,
            range,
            done: 0,
            piece: 0,
        }
    }

    /// Returns the next piece. `buffer` is the address at which the data of the request begins.
    pub(super) fn next(&mut self, leg: &LegFiles, buffer: *mut u8) -> Next {
        if self.op == Op::Flush {
            return match leg.files.get(self.done as usize) {
                Some(file) => Next::Submit(flush_entry(*file)),
                None => Next::Done(Ok(())),
            };
        }
        let left = self.range.length - self.done;
        if left == 0 {
            return Next::Done(Ok(()));
        }
        let Some(place) = leg.layout().locate(self.range.start + self.done, left) else {
            return Next::Done(Err(Errno(libc::EIO)));
        };
        self.piece = place.length;
        let file = leg.files[place.lun];
        let length = place.length.min(1 << 30) as u32;
        // Reads and writes are never longer than the buffer, so the address stays in the buffer.
        let data = buffer.wrapping_add(self.done as usize);
        let entry = match self.op {
            Op::Read => opcode::ReadFixed::new(file.fd(), data, length, BUFFER_INDEX)
                .offset(place.offset)
                .build(),
            Op::Write { force_unit_access } => {
                let flags = if force_unit_access {
                    libc::RWF_DSYNC
                } else {
                    0
                };
                opcode::WriteFixed::new(file.fd(), data, length, BUFFER_INDEX)
                    .offset(place.offset)
                    .rw_flags(flags)
                    .build()
            }
            Op::Discard => opcode::Fallocate::new(file.fd(), place.length)
                .offset(place.offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            Op::Flush => unreachable!("flushes are answered above"),
        };
        Next::Submit(entry.flags(file.flags()))
    }

    /// Records the result of the last piece; an error ends the transfer.
    pub(super) fn advance(&mut self, result: i32) -> IoResult {
        match (self.op, result) {
            // The kernel asks for a retry.
            (_, result) if result == -libc::EAGAIN || result == -libc::EINTR => Ok(()),
            (Op::Flush, 0) => {
                self.done += 1;
                Ok(())
            }
            (Op::Discard, 0) => {
                self.done += self.piece;
                Ok(())
            }
            // A discard may do nothing.
            (Op::Discard, result) if result == -libc::EOPNOTSUPP => {
                self.done = self.range.length;
                Ok(())
            }
            // No byte was moved: the LUN has shrunk.
            (Op::Read | Op::Write { .. }, 0) => Err(Errno(libc::EIO)),
            (Op::Read | Op::Write { .. }, bytes) if bytes > 0 => {
                self.done += bytes as u64;
                Ok(())
            }
            (_, error) => Err(Errno(error.saturating_neg())),
        }
    }
}

/// Makes a flush of one file, including the metadata that the data needs.
pub(super) fn flush_entry(file: LunFile) -> squeue::Entry {
    opcode::Fsync::new(file.fd())
        .flags(types::FsyncFlags::DATASYNC)
        .build()
        .flags(file.flags())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_write_goes_on_and_nothing_written_is_an_error() {
        let range = Range {
            start: 0,
            length: 4096,
        };
        let mut transfer = Transfer::new(
            Op::Write {
                force_unit_access: false,
            },
            range,
        );
        assert_eq!(transfer.advance(512), Ok(()));
        assert_eq!(transfer.advance(-libc::EAGAIN), Ok(()));
        assert_eq!(transfer.done, 512);
        assert_eq!(transfer.advance(0), Err(Errno(libc::EIO)));
        assert_eq!(transfer.advance(-libc::ENOSPC), Err(Errno(libc::ENOSPC)));
    }

    #[test]
    fn a_discard_that_the_leg_does_not_know_succeeds() {
        let range = Range {
            start: 0,
            length: 1 << 20,
        };
        let mut transfer = Transfer::new(Op::Discard, range);
        assert_eq!(transfer.advance(-libc::EOPNOTSUPP), Ok(()));
        assert_eq!(transfer.done, 1 << 20);
    }
}
