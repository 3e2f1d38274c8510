//! Moves pieces through this host: each is read from one leg and written to the other, in a buffer
//! of the ring.

mod salvage;
mod transfer;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use lun::Lun;
use migration_proto::route::Side;
use migration_proto::target::CopyError;

use self::salvage::{Source, is_of_a_block, read_around};
use self::transfer::{Fault, Phase, Step, Transfer, checksum, is_zero};
use super::{Ending, Legs, Mover, Report};
use crate::ring::{Ring, Slot};
use crate::window::{End, Piece};
use crate::{AcceptUnreadable, OnTarget, Shared, Task};

/// What is done with every piece.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Orders {
    /// The task.
    pub(crate) task: Task,
    /// Whether a piece is written only if the legs differ there.
    pub(crate) compare_first: bool,
    /// Whether zeroes are deallocated on the mirror leg, where it can do that.
    pub(crate) detect_zeroes: bool,
}

/// The mover that reads and writes.
pub(crate) struct Host<'a> {
    orders: Orders,
    shared: &'a Shared,
    accept_unreadable: Option<AcceptUnreadable>,
    /// For each LUN: whether it refused to deallocate, and is not asked again.
    zero_refused: Vec<bool>,
    /// For each slot: the piece in flight.
    transfers: Vec<Option<Transfer>>,
    free: Vec<Slot>,
}

impl<'a> Host<'a> {
    /// A mover with a ring of `slots` buffers, between legs with `luns` LUNs together.
    pub(crate) fn new(
        orders: Orders,
        slots: u32,
        luns: usize,
        shared: &'a Shared,
        accept_unreadable: Option<AcceptUnreadable>,
    ) -> Self {
        Self {
            orders,
            shared,
            accept_unreadable,
            zero_refused: vec![false; luns],
            transfers: vec![None; slots as usize],
            free: (0..slots).rev().map(Slot).collect(),
        }
    }

    fn submit(&mut self, ring: &mut Ring, slot: Slot, transfer: Transfer) -> io::Result<()> {
        let (at_bytes, rest) = (transfer.done_bytes(), transfer.rest());
        match transfer.phase() {
            Phase::Reading | Phase::Checking => ring.read(slot, at_bytes, rest)?,
            Phase::Writing => ring.write(slot, at_bytes, rest)?,
            Phase::Zeroing => ring.deallocate(slot, rest)?,
        }
        self.transfers[slot.0 as usize] = Some(transfer);
        Ok(())
    }

    /// Handles the result of an I/O. `None`: the phase in which the piece is now is to be
    /// submitted.
    fn advance(
        &mut self,
        ring: &mut Ring,
        legs: &Legs,
        slot: Slot,
        transfer: &mut Transfer,
        result: i32,
    ) -> Option<Ending> {
        let piece = transfer.piece;
        let step = transfer.completed(result);
        match step {
            Step::Submit => None,
            Step::Filled => {
                crash_point::here("copier-read");
                self.filled(ring, slot, transfer);
                None
            }
            Step::ZeroRefused => {
                self.zero_refused[piece.to.lun] = true;
                None
            }
            Step::Written | Step::Zeroed => {
                crash_point::here("copier-written");
                if step == Step::Zeroed {
                    let zero_bytes = &self.shared.progress.zero_bytes;
                    zero_bytes.fetch_add(u64::from(piece.length_bytes), Ordering::Relaxed);
                }
                if transfer.checksum.is_none() {
                    return Some(Ending::Same);
                }
                transfer.begin(Phase::Checking);
                None
            }
            Step::Checked => {
                let found = checksum(ring.bytes(slot, piece.length_bytes));
                self.checked(legs, transfer, transfer.checksum == Some(found))
            }
            Step::Failed(fault) => self.faulted(ring, legs, slot, transfer, fault),
        }
    }

    /// Begins the phase after the read: the buffer has the data of the source.
    fn filled(&self, ring: &Ring, slot: Slot, transfer: &mut Transfer) {
        let bytes = ring.bytes(slot, transfer.piece.length_bytes);
        let compares_first = self.compares_first(transfer);
        let compares = match self.orders.task {
            Task::Copy { read_back } => read_back || compares_first,
            Task::Compare => true,
        };
        transfer.checksum = compares.then(|| checksum(bytes));
        let refused = self.zero_refused[transfer.piece.to.lun];
        transfer.begin(match self.orders.task {
            Task::Compare => Phase::Checking,
            Task::Copy { .. } if compares_first => Phase::Checking,
            Task::Copy { .. } if self.orders.detect_zeroes && !refused && is_zero(bytes) => {
                Phase::Zeroing
            }
            Task::Copy { .. } => Phase::Writing,
        });
    }

    /// Whether the piece is compared before it is written.
    const fn compares_first(&self, transfer: &Transfer) -> bool {
        match self.orders.task {
            Task::Copy { .. } => self.orders.compare_first && !transfer.differs,
            Task::Compare => false,
        }
    }

    /// Handles a piece that was read from both legs, or read back.
    fn checked(&self, legs: &Legs, transfer: &mut Transfer, same: bool) -> Option<Ending> {
        if same {
            return Some(Ending::Same);
        }
        let piece = &transfer.piece;
        match self.orders.task {
            Task::Compare => Some(Ending::Differs),
            Task::Copy { .. } if self.compares_first(transfer) => {
                let differing_bytes = &self.shared.progress.differing_bytes;
                differing_bytes.fetch_add(u64::from(piece.length_bytes), Ordering::Relaxed);
                // The buffer holds the data of the other leg now, so the piece is read again.
                transfer.differs = true;
                transfer.begin(Phase::Reading);
                None
            }
            Task::Copy { .. } => {
                let error = CopyError {
                    side: legs.side(End::To),
                    errno: None,
                    cause: format!(
                        "{} bytes at {} of {} do not read back as they were written",
                        piece.length_bytes,
                        piece.to.offset,
                        legs.luns.path(piece.to.lun).display()
                    ),
                };
                Some(Ending::Failed {
                    end: End::To,
                    error,
                })
            }
        }
    }

    /// Handles an error: reads around it, or reports it.
    fn faulted(
        &mut self,
        ring: &mut Ring,
        legs: &Legs,
        slot: Slot,
        transfer: &mut Transfer,
        fault: Fault,
    ) -> Option<Ending> {
        let error = describe(legs, transfer, fault);
        let error = match self.read_around(ring, legs, slot, transfer, fault) {
            None => error,
            Some(Err(cause)) => {
                let cause = format!("{}; {cause}", error.cause);
                CopyError { cause, ..error }
            }
            Some(Ok(())) => {
                self.filled(ring, slot, transfer);
                return None;
            }
        };
        let end = fault.end;
        Some(Ending::Failed { end, error })
    }

    /// Reads a piece around the blocks that the source cannot read, if the operator has accepted
    /// that they are lost: fills the buffer with all readable blocks. The lost blocks are recorded;
    /// in their place the buffer has zeroes, or the data of the target. Blocks for as long as the
    /// LUN retries them.
    ///
    /// `None`: the error is not of unreadable blocks of the source. `Some(Err(_))`: the blocks are
    /// not accepted as lost, or reading around them failed.
    fn read_around(
        &mut self,
        ring: &mut Ring,
        legs: &Legs,
        slot: Slot,
        transfer: &Transfer,
        fault: Fault,
    ) -> Option<Result<(), String>> {
        let piece = &transfer.piece;
        let error = io::Error::from_raw_os_error(fault.errno?);
        if fault.end != End::From || legs.side(End::From) != Side::Source || !is_of_a_block(&error)
        {
            return None;
        }
        let Some(accept) = self.accept_unreadable.as_mut() else {
            let how = "`shunt set SESSION --accept-unreadable BYTES` continues past blocks that the source cannot read";
            return Some(Err(how.to_owned()));
        };
        let (from, to) = (legs.luns.get(piece.from.lun)?, legs.luns.get(piece.to.lun)?);
        let buffer = ring.bytes_mut(slot, piece.length_bytes);
        let accept = |lost| accept(lost, transfer.is_first);
        Some(fill(buffer, piece, [from, to], &self.shared.stop, accept))
    }
}

impl Mover for Host<'_> {
    fn in_flight(&self) -> usize {
        self.transfers.len() - self.free.len()
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn begin(&mut self, ring: &mut Ring, piece: Piece, is_first: bool) -> io::Result<()> {
        let slot = self
            .free
            .pop()
            .expect("there is room, as the caller checked");
        self.submit(ring, slot, Transfer::new(piece, is_first))
    }

    fn completed(
        &mut self,
        ring: &mut Ring,
        legs: &Legs,
        slot: Slot,
        result: i32,
    ) -> io::Result<Option<Report>> {
        let Some(mut transfer) = self.transfers[slot.0 as usize].take() else {
            return Ok(None);
        };
        match self.advance(ring, legs, slot, &mut transfer, result) {
            None => self.submit(ring, slot, transfer).map(|()| None),
            Some(ending) => {
                self.free.push(slot);
                let piece = transfer.piece;
                Ok(Some(Report { piece, ending }))
            }
        }
    }
}

fn describe(legs: &Legs, transfer: &Transfer, fault: Fault) -> CopyError {
    let piece = &transfer.piece;
    let place = match fault.end {
        End::From => piece.from,
        End::To => piece.to,
    };
    let verb = match transfer.phase() {
        Phase::Reading | Phase::Checking => "read",
        Phase::Writing | Phase::Zeroing => "write",
    };
    let what = match fault.errno {
        Some(errno) => io::Error::from_raw_os_error(errno).to_string(),
        None => "the LUN ends before that".to_owned(),
    };
    CopyError {
        side: legs.side(fault.end),
        errno: fault.errno,
        cause: format!(
            "cannot {verb} {} bytes at {} of {}: {what}",
            piece.length_bytes,
            place.offset,
            legs.luns.path(place.lun).display()
        ),
    }
}

/// Fills the buffer of a piece with all blocks that `from` can read.
fn fill(
    buffer: &mut [u8],
    piece: &Piece,
    [from, to]: [&Lun; 2],
    stop: &AtomicBool,
    accept: impl FnOnce(Vec<Range<u64>>) -> Result<OnTarget, String>,
) -> Result<(), String> {
    let block_bytes = from.identity.logical_block_bytes as usize;
    let file = |lun: &Lun| lun.fd.try_clone().map(File::from);
    let mut source = Descriptor {
        file: file(from).map_err(|error| error.to_string())?,
        size_bytes: from.identity.size_bytes,
        block_bytes,
        stop,
    };
    let lost = read_around(&mut source, buffer, piece.from.offset, block_bytes)
        .map_err(|error| format!("read again in parts: {error}"))?;
    let in_volume = |at: usize| piece.volume_offset_bytes + at as u64;
    let parts = lost.iter();
    let parts = parts.map(|part| in_volume(part.start)..in_volume(part.end));
    if accept(parts.collect())? == OnTarget::Zeroes {
        return Ok(());
    }
    let target = file(to).map_err(|error| error.to_string())?;
    for part in lost {
        let place = piece.to.offset + part.start as u64;
        target
            .read_exact_at(&mut buffer[part], place)
            .map_err(|error| format!("nor can the target be read there: {error}"))?;
    }
    Ok(())
}

/// A LUN that is read without the ring.
struct Descriptor<'a> {
    file: File,
    size_bytes: u64,
    block_bytes: usize,
    stop: &'a AtomicBool,
}

impl Source for Descriptor<'_> {
    fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn read(&mut self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset_bytes)
    }

    fn answers(&mut self) -> bool {
        let mut block = salvage::Block::zeroed();
        let block = &mut block.0[..self.block_bytes.min(salvage::BLOCK_BYTES_MAX)];
        let last = self.size_bytes.saturating_sub(block.len() as u64);
        [0, last]
            .into_iter()
            .any(|offset| self.file.read_exact_at(block, offset).is_ok())
    }
}
