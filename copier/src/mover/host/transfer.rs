//! The way of one piece: read, then written or deallocated, then maybe read back; or read from both
//! legs. Decides what follows each completion.
//!
//! ```text
//! Reading --complete--> (zeroes?) --no---> Writing --complete--> written ---> done
//!    |                      |                 ^                     |
//!    |                      +--yes--> Zeroing +--refused            | read back
//!    | compare                           +-------complete------> zeroed --+
//!    +--------------------------------------------------------------------+-> Checking -> checked
//! ```
//!
//! If the legs may be equal in most places, a piece is compared first, and read again only if it
//! differs.

use crate::ring::Span;
use crate::window::{End, Piece};

/// The number of retries of a piece after `EAGAIN` or `EINTR` before that counts as an error.
const RETRIES_MAX: u32 = 64;

/// No LUN transfers less than this, in bytes; a shorter remainder means that the LUN ends there.
const SECTOR_BYTES: u32 = 512;

/// The I/O that a piece is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The read.
    Reading,
    /// The write.
    Writing,
    /// The deallocation that replaces a write of zeroes.
    Zeroing,
    /// The read from the leg `to`.
    Checking,
}

/// The next step after a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Submit the rest of the current phase.
    Submit,
    /// All is read: call [`Transfer::begin`], then submit.
    Filled,
    /// The LUN cannot deallocate: the phase is now [`Phase::Writing`]; submit it.
    ZeroRefused,
    /// The piece is written to the other leg.
    Written,
    /// The piece reads as zeroes on the other leg.
    Zeroed,
    /// The buffer holds the data of the other leg.
    Checked,
    /// The piece failed.
    Failed(Fault),
}

/// Why a piece failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    /// The end that failed.
    pub(super) end: End,
    /// The error number; `None` if the LUN ended too early.
    pub(super) errno: Option<i32>,
}

/// A piece and its progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transfer {
    /// The piece.
    pub(super) piece: Piece,
    phase: Phase,
    done_bytes: u32,
    retries: u32,
    /// The checksum of what was read, if it is to be compared.
    pub(super) checksum: Option<u128>,
    /// Whether the piece was compared, and the other leg has different data.
    pub(super) differs: bool,
    /// Whether its region is known to be copied for the first time.
    pub(super) is_first: bool,
}

impl Transfer {
    /// A piece whose read is to be submitted.
    pub(super) fn new(piece: Piece, is_first: bool) -> Self {
        Self {
            piece,
            phase: Phase::Reading,
            done_bytes: 0,
            retries: 0,
            checksum: None,
            differs: false,
            is_first,
        }
    }

    /// The I/O that the piece is waiting for.
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// The bytes of the current phase that are done: where the rest begins in the buffer.
    pub(super) fn done_bytes(&self) -> u32 {
        self.done_bytes
    }

    /// The rest of the current phase.
    pub(super) fn rest(&self) -> Span {
        let place = match self.phase {
            Phase::Reading => self.piece.from,
            Phase::Writing | Phase::Zeroing | Phase::Checking => self.piece.to,
        };
        Span {
            lun: place.lun,
            offset_bytes: place.offset + u64::from(self.done_bytes),
            length_bytes: self.piece.length_bytes - self.done_bytes,
        }
    }

    /// Begins another phase.
    pub(super) fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.done_bytes = 0;
    }

    /// Handles the result of the current phase: a count of bytes, or a negative error number.
    pub(super) fn completed(&mut self, result: i32) -> Step {
        let end = match self.phase {
            Phase::Reading => End::From,
            Phase::Writing | Phase::Zeroing | Phase::Checking => End::To,
        };
        if let Ok(bytes) = u32::try_from(result) {
            return match self.phase {
                Phase::Reading => self.moved(bytes, end, Step::Filled),
                Phase::Writing => self.moved(bytes, end, Step::Written),
                Phase::Zeroing => Step::Zeroed,
                Phase::Checking => self.moved(bytes, end, Step::Checked),
            };
        }
        let errno = result.wrapping_neg();
        let again = errno == libc::EAGAIN || errno == libc::EINTR;
        if again && self.retries < RETRIES_MAX {
            self.retries += 1;
            return Step::Submit;
        }
        // Some file systems and older devices return EINVAL where EOPNOTSUPP is meant.
        if self.phase == Phase::Zeroing && (errno == libc::EOPNOTSUPP || errno == libc::EINVAL) {
            self.begin(Phase::Writing);
            return Step::ZeroRefused;
        }
        Step::Failed(Fault {
            end,
            errno: Some(errno),
        })
    }

    fn moved(&mut self, bytes: u32, end: End, complete: Step) -> Step {
        self.done_bytes = self
            .done_bytes
            .saturating_add(bytes)
            .min(self.piece.length_bytes);
        if self.done_bytes == self.piece.length_bytes {
            complete
        } else if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            // The end of a file. The rest would be refused for its alignment, or never end.
            Step::Failed(Fault { end, errno: None })
        } else {
            Step::Submit
        }
    }
}

/// A 128-bit checksum that detects differences, but is no protection against deliberate collisions.
pub(super) fn checksum(bytes: &[u8]) -> u128 {
    twox_hash::XxHash3_128::oneshot(bytes)
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // In blocks, so that a block with data ends the search, and each block is one OR over wide
    // words.
    let (blocks, rest) = bytes.as_chunks::<128>();
    blocks.iter().all(|block| {
        let (words, _) = block.as_chunks::<16>();
        words
            .iter()
            .fold(0, |sum, word| sum | u128::from_ne_bytes(*word))
            == 0
    }) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use migration_core::layout::Place;

    use crate::window::RegionSlot;

    const LENGTH: u32 = 8192;

    fn transfer() -> Transfer {
        let place = |lun, offset| Place {
            lun,
            offset,
            length: u64::from(LENGTH),
        };
        let piece = Piece {
            region: RegionSlot(0),
            volume_offset_bytes: 0,
            from: place(1, 10_000),
            to: place(2, 20_000),
            length_bytes: LENGTH,
        };
        Transfer::new(piece, false)
    }

    fn span(lun: usize, offset_bytes: u64, length_bytes: u32) -> Span {
        Span {
            lun,
            offset_bytes,
            length_bytes,
        }
    }

    fn fault(end: End, errno: Option<i32>) -> Step {
        Step::Failed(Fault { end, errno })
    }

    #[test]
    fn a_piece_is_read_then_written() {
        let mut transfer = transfer();
        assert_eq!(transfer.completed(8192), Step::Filled);
        transfer.begin(Phase::Writing);
        assert_eq!(
            (transfer.phase(), transfer.done_bytes()),
            (Phase::Writing, 0)
        );
        assert_eq!(transfer.completed(8192), Step::Written);
    }

    #[test]
    fn short_reads_and_writes_are_finished() {
        let mut transfer = transfer();
        assert_eq!(transfer.rest(), span(1, 10_000, 8192));
        assert_eq!(transfer.completed(512), Step::Submit);
        assert_eq!(transfer.done_bytes(), 512);
        assert_eq!(transfer.rest(), span(1, 10_512, 8192 - 512));
        assert_eq!(transfer.completed(8192 - 512), Step::Filled);
        transfer.begin(Phase::Writing);
        assert_eq!(transfer.rest(), span(2, 20_000, 8192));
        assert_eq!(transfer.completed(4096), Step::Submit);
        assert_eq!(transfer.rest(), span(2, 24_096, 4096));
        assert_eq!(transfer.completed(4096), Step::Written);
    }

    #[test]
    fn the_end_of_a_lun_is_an_error_of_its_side() {
        for count in [0, 100, 4097] {
            let mut reading = transfer();
            assert_eq!(reading.completed(count), fault(End::From, None), "{count}");
            let mut writing = transfer();
            writing.begin(Phase::Writing);
            assert_eq!(writing.completed(count), fault(End::To, None), "{count}");
        }
    }

    #[test]
    fn eagain_and_eintr_are_tried_again_but_not_for_ever() {
        let mut transfer = transfer();
        for _ in 0..RETRIES_MAX / 2 {
            assert_eq!(transfer.completed(-libc::EAGAIN), Step::Submit);
            assert_eq!(transfer.completed(-libc::EINTR), Step::Submit);
        }
        assert_eq!(
            transfer.completed(-libc::EAGAIN),
            fault(End::From, Some(libc::EAGAIN))
        );
    }

    #[test]
    fn errors_name_the_side_that_failed() {
        let mut reading = transfer();
        assert_eq!(
            reading.completed(-libc::EIO),
            fault(End::From, Some(libc::EIO))
        );
        let mut writing = transfer();
        writing.begin(Phase::Writing);
        assert_eq!(
            writing.completed(-libc::ENOSPC),
            fault(End::To, Some(libc::ENOSPC))
        );
        let mut zeroing = transfer();
        zeroing.begin(Phase::Zeroing);
        assert_eq!(
            zeroing.completed(-libc::EIO),
            fault(End::To, Some(libc::EIO))
        );
        // Only a deallocation may be refused.
        let mut writing = transfer();
        writing.begin(Phase::Writing);
        assert_eq!(
            writing.completed(-libc::EINVAL),
            fault(End::To, Some(libc::EINVAL))
        );
    }

    #[test]
    fn a_refused_deallocation_becomes_a_write_of_the_whole_piece() {
        for errno in [libc::EOPNOTSUPP, libc::EINVAL] {
            let mut transfer = transfer();
            assert_eq!(transfer.completed(8192), Step::Filled);
            transfer.begin(Phase::Zeroing);
            assert_eq!(transfer.completed(-errno), Step::ZeroRefused);
            assert_eq!(
                (transfer.phase(), transfer.done_bytes()),
                (Phase::Writing, 0)
            );
        }
        let mut transfer = transfer();
        transfer.begin(Phase::Zeroing);
        assert_eq!(transfer.completed(0), Step::Zeroed);
    }

    #[test]
    fn one_set_bit_anywhere_is_not_zero() {
        for length in [0, 1, 127, 128, 512, 1000] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1 << (at % 8);
                assert!(!is_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
    }
}
