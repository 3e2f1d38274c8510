//! The copier's thread: greets `ublk-target`, opens the legs, and performs what the plan decides.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lun::Lun;
use migration_proto::route::Side;
use migration_proto::target::{CopyError, Refusal, Request, Response, ServedLeg};
use migration_proto::{Hello, Welcome, frame};

use crate::compare::Comparing;
use crate::conversation::Conversation;
use crate::line::{Abort, Line};
use crate::open::{Luns, OpenLegs, open_legs};
use crate::plan::Plan;
use crate::ring::{self, Completion, Ring, Slot};
use crate::salvage::{self, Source, is_of_a_block, read_around};
use crate::transfer::{Fault, Phase, Step, Transfer, checksum, is_zero};
use crate::window::{End, Piece, Sizes, Window};
use crate::{AcceptUnreadable, Config, OnTarget, Outcome, Shared, Task};

/// The answer of `ublk-target` that accepts the copier.
struct Opened {
    epoch: u64,
    region_bytes: u64,
    size_bytes: u64,
    from: Box<ServedLeg>,
    to: Box<ServedLeg>,
    from_side: Side,
    /// Whether regions are written only where the legs differ.
    compare_first: bool,
}

/// The state of the thread after the greeting.
struct Copying<'a> {
    config: &'a Config,
    shared: &'a Shared,
    accept_unreadable: Option<AcceptUnreadable>,
    line: Line<'a>,
    luns: Luns,
    /// For each LUN: whether it refused to deallocate, and is not asked again.
    zero_refused: Vec<bool>,
    from_side: Side,
    compare_first: bool,
    plan: Box<dyn Conversation>,
    /// For each slot: the piece in flight.
    transfers: Vec<Option<Transfer>>,
    free: Vec<Slot>,
}

/// Runs one copier from the connection to the end. Everything is closed and unlocked when this
/// returns, except after a failure of the ring.
pub(super) fn run(
    config: &Config,
    ring: Ring,
    shared: &Shared,
    accept_unreadable: Option<AcceptUnreadable>,
) -> Outcome {
    if let Err(error) = ring::set_io_flusher() {
        tracing::debug!(%error, "the copier is not an I/O flusher");
    }
    match prepare(config, ring, shared, accept_unreadable).and_then(Copying::run) {
        Ok(outcome) | Err(Abort::Ended(outcome)) => outcome,
        // What is in flight is unknown. The kernel keeps the LUNs locked until their I/O is done.
        Err(Abort::RingFailed(error)) => Outcome::Broken {
            cause: format!("io_uring failed: {error}"),
        },
    }
}

fn prepare<'a>(
    config: &'a Config,
    ring: Ring,
    shared: &'a Shared,
    accept_unreadable: Option<AcceptUnreadable>,
) -> Result<Copying<'a>, Abort> {
    let mut line = Line::connect(config, ring, shared)?;
    let opened = greet(&mut line)?;
    let sizes = Sizes {
        region_bytes: opened.region_bytes,
        volume_bytes: opened.size_bytes,
        io_bytes: config.io_bytes,
    };
    let OpenLegs { luns, from, to } = open_legs(&opened.from, &opened.to).map_err(Abort::Ended)?;
    let window = Window::new(sizes, from, to).map_err(|error| {
        Abort::Ended(Outcome::Refused {
            reason: Refusal::BadLeg,
            cause: error.to_string(),
        })
    })?;
    line.ring.register_files(&luns.descriptors())?;
    let queue_bytes = u64::from(config.queue_depth) * u64::from(config.io_bytes);
    let (epoch, now) = (opened.epoch, Instant::now());
    let plan: Box<dyn Conversation> = match config.task {
        Task::Copy { .. } => Box::new(Plan::new(epoch, window, queue_bytes, now)),
        Task::Compare => {
            let size_bytes = opened.size_bytes;
            Box::new(Comparing::new(epoch, window, size_bytes, queue_bytes, now))
        }
    };
    Ok(Copying {
        config,
        shared,
        accept_unreadable,
        line,
        zero_refused: vec![false; luns.count()],
        luns,
        from_side: opened.from_side,
        compare_first: opened.compare_first,
        plan,
        transfers: vec![None; config.queue_depth as usize],
        free: (0..config.queue_depth).rev().map(Slot).collect(),
    })
}

/// The exchange before the first claim.
fn greet(line: &mut Line<'_>) -> Result<Opened, Abort> {
    match line.ask(&Hello::current())? {
        Welcome::Ready { .. } => {}
        Welcome::WrongProtocol { speaks } => {
            return Err(Abort::Ended(Outcome::Refused {
                reason: Refusal::Malformed,
                cause: format!(
                    "ublk-target speaks protocol {speaks}, the copier {}",
                    migration_proto::PROTOCOL_VERSION
                ),
            }));
        }
    }
    // The status is needed only to name the sides. A change of the roles in between shows in the
    // epoch.
    let (status_epoch, from_side) = match line.ask(&Request::Status)? {
        Response::Status(status) => (status.epoch, status.route.authoritative()),
        other => return Err(unexpected(other)),
    };
    match line.ask(&Request::OpenCopier)? {
        Response::CopierOpened {
            epoch,
            region_bytes,
            size_bytes,
            from,
            to,
            compare_first,
        } if epoch == status_epoch => Ok(Opened {
            epoch,
            region_bytes,
            size_bytes,
            from,
            to,
            from_side,
            compare_first,
        }),
        Response::CopierOpened { epoch, .. } => Err(Abort::Ended(Outcome::Refused {
            reason: Refusal::StaleEpoch,
            cause: format!("the epoch changed from {status_epoch} to {epoch} meanwhile"),
        })),
        other => Err(unexpected(other)),
    }
}

fn unexpected(response: Response) -> Abort {
    match response {
        Response::Refused { reason, cause } => Abort::Ended(Outcome::Refused { reason, cause }),
        _ => Abort::disconnected("ublk-target broke the protocol: unexpected answer to a greeting"),
    }
}

impl Copying<'_> {
    fn run(mut self) -> Result<Outcome, Abort> {
        let outcome = self.copy()?;
        // The LUNs are unlocked first: a new copier may be opened as soon as the connection is
        // closed.
        self.line.ring.unregister_files()?;
        self.luns.close();
        drop(self.line);
        Ok(outcome)
    }

    fn copy(&mut self) -> io::Result<Outcome> {
        let mut busy_since = None;
        loop {
            if self.line.must_stop() {
                self.plan.stop();
            }
            self.begin_pieces()?;
            let now = Instant::now();
            self.count_time(&mut busy_since, now);
            let limit = self.shared.limits.bytes_per_second.load(Ordering::Relaxed);
            if !self.line.ring.is_sending()
                && let Some(request) = self.plan.next_request(now, limit)
            {
                match frame::encode(&request) {
                    Ok(bytes) => self.line.send(bytes)?,
                    Err(error) => self.plan.give_up(error.to_string()),
                }
            }
            let look_again_at = self.plan.look_at_the_clock(now, limit);
            if let Some(outcome) = self.plan.outcome() {
                return Ok(outcome.clone());
            }
            self.line.ring.wait(look_again_at)?;
            while let Some(completion) = self.line.ring.next_completion() {
                self.take(completion)?;
            }
            self.take_answers();
        }
    }

    /// Counts the time during which anything was in flight. `since`: the start of what is not
    /// counted yet.
    fn count_time(&self, since: &mut Option<Instant>, now: Instant) {
        if let Some(since) = *since {
            let passed = now.duration_since(since).as_nanos();
            let nanoseconds = &self.shared.progress.copying_nanoseconds;
            nanoseconds.fetch_add(u64::try_from(passed).unwrap_or(0), Ordering::Relaxed);
        }
        let is_busy = self.free.len() < self.transfers.len();
        *since = is_busy.then_some(now);
    }

    fn begin_pieces(&mut self) -> io::Result<()> {
        let depth = self.shared.limits.depth.load(Ordering::Relaxed) as usize;
        while let Some(&slot) = self.free.last() {
            let in_flight = self.transfers.len() - self.free.len();
            if depth > 0 && in_flight >= depth {
                break;
            }
            let Some(piece) = self.plan.next_piece() else {
                break;
            };
            self.free.pop();
            self.submit(slot, Transfer::new(piece))?;
        }
        Ok(())
    }

    fn take(&mut self, completion: Completion) -> io::Result<()> {
        let Completion::Io { slot, result } = completion else {
            if let Some(cause) = self.line.take(completion)? {
                self.plan.give_up(cause);
            }
            return Ok(());
        };
        let Some(mut transfer) = self.transfers[slot.0 as usize].take() else {
            return Ok(());
        };
        let piece = transfer.piece;
        let step = transfer.completed(result);
        match step {
            Step::Submit => return self.submit(slot, transfer),
            Step::Filled => {
                crash_point::here("copier-read");
                let next = self.after_reading(slot, &mut transfer);
                transfer.begin(next);
                return self.submit(slot, transfer);
            }
            Step::ZeroRefused => {
                self.zero_refused[piece.to.file.0 as usize] = true;
                return self.submit(slot, transfer);
            }
            Step::Written | Step::Zeroed => {
                crash_point::here("copier-written");
                if step == Step::Zeroed {
                    let zero_bytes = &self.shared.progress.zero_bytes;
                    zero_bytes.fetch_add(u64::from(piece.length_bytes), Ordering::Relaxed);
                }
                if transfer.checksum.is_some() {
                    transfer.begin(Phase::Checking);
                    return self.submit(slot, transfer);
                }
                self.copied(&piece);
            }
            Step::Checked => {
                let found = checksum(self.line.ring.bytes(slot, piece.length_bytes));
                let same = transfer.checksum == Some(found);
                if !same && self.compares_first(&transfer) {
                    let differing_bytes = &self.shared.progress.differing_bytes;
                    differing_bytes.fetch_add(u64::from(piece.length_bytes), Ordering::Relaxed);
                    // The buffer holds the data of the other leg now, so the piece is read again.
                    transfer.differs = true;
                    transfer.begin(Phase::Reading);
                    return self.submit(slot, transfer);
                }
                self.checked(&transfer, same);
            }
            Step::Failed(fault) => {
                let error = self.describe(&transfer, fault);
                match self.read_around(slot, &transfer, fault) {
                    None => self.failed(&piece, fault.end, error),
                    Some(Err(cause)) => {
                        let cause = format!("{}; {cause}", error.cause);
                        self.failed(&piece, fault.end, CopyError { cause, ..error });
                    }
                    Some(Ok(())) => {
                        let next = self.after_reading(slot, &mut transfer);
                        transfer.begin(next);
                        return self.submit(slot, transfer);
                    }
                }
            }
        }
        self.free.push(slot);
        Ok(())
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
        slot: Slot,
        transfer: &Transfer,
        fault: Fault,
    ) -> Option<Result<(), String>> {
        let piece = &transfer.piece;
        let error = io::Error::from_raw_os_error(fault.errno?);
        if fault.end != End::From || self.from_side != Side::Source || !is_of_a_block(&error) {
            return None;
        }
        let Some(accept) = self.accept_unreadable.as_mut() else {
            let how = "`shunt set SESSION --accept-unreadable BYTES` continues past blocks that the source cannot read";
            return Some(Err(how.to_owned()));
        };
        let (from, to) = (
            self.luns.get(piece.from.file)?,
            self.luns.get(piece.to.file)?,
        );
        let buffer = self.line.ring.bytes_mut(slot, piece.length_bytes);
        let is_first = self.plan.is_never_copied(piece.region);
        let accept = |lost| accept(lost, is_first);
        Some(fill(buffer, piece, [from, to], &self.shared.stop, accept))
    }

    /// The next phase of a piece that was read into the buffer.
    fn after_reading(&self, slot: Slot, transfer: &mut Transfer) -> Phase {
        let bytes = self.line.ring.bytes(slot, transfer.piece.length_bytes);
        let compares_first = self.compares_first(transfer);
        let compares = match self.config.task {
            Task::Copy { read_back } => read_back || compares_first,
            Task::Compare => true,
        };
        transfer.checksum = compares.then(|| checksum(bytes));
        let refused = self.zero_refused[transfer.piece.to.file.0 as usize];
        match self.config.task {
            Task::Compare => Phase::Checking,
            Task::Copy { .. } if compares_first => Phase::Checking,
            Task::Copy { .. } if self.config.detect_zeroes && !refused && is_zero(bytes) => {
                Phase::Zeroing
            }
            Task::Copy { .. } => Phase::Writing,
        }
    }

    /// Whether the piece is compared before it is written.
    const fn compares_first(&self, transfer: &Transfer) -> bool {
        match self.config.task {
            Task::Copy { .. } => self.compare_first && !transfer.differs,
            Task::Compare => false,
        }
    }

    fn copied(&mut self, piece: &Piece) {
        let copied_bytes = &self.shared.progress.copied_bytes;
        copied_bytes.fetch_add(u64::from(piece.length_bytes), Ordering::Relaxed);
        self.plan.piece_done(piece.region);
    }

    /// Handles a piece that was read from both legs, or read back.
    fn checked(&mut self, transfer: &Transfer, same: bool) {
        let piece = &transfer.piece;
        match self.config.task {
            Task::Compare => {
                let compared_bytes = &self.shared.progress.compared_bytes;
                compared_bytes.fetch_add(u64::from(piece.length_bytes), Ordering::Relaxed);
                if same {
                    self.plan.piece_done(piece.region);
                } else {
                    self.plan.piece_differs(piece.region);
                }
            }
            Task::Copy { .. } if same => self.copied(piece),
            Task::Copy { .. } => {
                let error = CopyError {
                    side: self.side(End::To),
                    errno: None,
                    cause: format!(
                        "{} bytes at {} of {} do not read back as they were written",
                        piece.length_bytes,
                        piece.to.offset_bytes,
                        self.luns.path(piece.to.file).display()
                    ),
                };
                self.failed(piece, End::To, error);
            }
        }
    }

    fn failed(&mut self, piece: &Piece, end: End, error: CopyError) {
        self.plan.piece_failed(piece.region, end, error);
        self.shared
            .progress
            .failed_regions
            .store(u64::from(self.plan.failed_regions()), Ordering::Relaxed);
    }

    /// The side at an end of the copy.
    fn side(&self, end: End) -> Side {
        match (end, self.from_side) {
            (End::From, side) => side,
            (End::To, Side::Source) => Side::Target,
            (End::To, Side::Target) => Side::Source,
        }
    }

    fn take_answers(&mut self) {
        loop {
            match self.line.frames.next() {
                Ok(Some(response)) => self.plan.answered(response, Instant::now()),
                Ok(None) => break,
                Err(error) => {
                    self.plan.give_up(error.to_string());
                    break;
                }
            }
        }
    }

    fn submit(&mut self, slot: Slot, transfer: Transfer) -> io::Result<()> {
        let (at_bytes, rest) = (transfer.done_bytes(), transfer.rest());
        match transfer.phase() {
            Phase::Reading | Phase::Checking => self.line.ring.read(slot, at_bytes, rest)?,
            Phase::Writing => self.line.ring.write(slot, at_bytes, rest)?,
            Phase::Zeroing => self.line.ring.deallocate(slot, rest)?,
        }
        self.transfers[slot.0 as usize] = Some(transfer);
        Ok(())
    }

    fn describe(&self, transfer: &Transfer, fault: Fault) -> CopyError {
        let piece = &transfer.piece;
        let place = match fault.end {
            End::From => piece.from,
            End::To => piece.to,
        };
        let verb = match transfer.phase() {
            Phase::Reading | Phase::Checking => "read",
            Phase::Writing | Phase::Zeroing => "write",
        };
        let side = self.side(fault.end);
        let what = match fault.errno {
            Some(errno) => io::Error::from_raw_os_error(errno).to_string(),
            None => "the LUN ends before that".to_owned(),
        };
        CopyError {
            side,
            errno: fault.errno,
            cause: format!(
                "cannot {verb} {} bytes at {} of {}: {what}",
                piece.length_bytes,
                place.offset_bytes,
                self.luns.path(place.file).display()
            ),
        }
    }
}

/// Fills the buffer of a piece with all blocks that `from` can read.
fn fill(
    buffer: &mut [u8],
    piece: &Piece,
    [from, to]: [&Lun; 2],
    stop: &AtomicBool,
    accept: impl FnOnce(Vec<std::ops::Range<u64>>) -> Result<OnTarget, String>,
) -> Result<(), String> {
    let block_bytes = from.identity.logical_block_bytes as usize;
    let file = |lun: &Lun| lun.fd.try_clone().map(File::from);
    let mut source = Descriptor {
        file: file(from).map_err(|error| error.to_string())?,
        size_bytes: from.identity.size_bytes,
        block_bytes,
        stop,
    };
    let lost = read_around(&mut source, buffer, piece.from.offset_bytes, block_bytes)
        .map_err(|error| format!("read again in parts: {error}"))?;
    let in_volume = |at: usize| piece.volume_offset_bytes + at as u64;
    let parts = lost.iter();
    let parts = parts.map(|part| in_volume(part.start)..in_volume(part.end));
    if accept(parts.collect())? == OnTarget::Zeroes {
        return Ok(());
    }
    let target = file(to).map_err(|error| error.to_string())?;
    for part in lost {
        let place = piece.to.offset_bytes + part.start as u64;
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
