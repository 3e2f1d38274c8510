//! The completions of the ring: each becomes an event for the volume.

use migration_core::{
    route::Side,
    units::{Range, Tag},
    volume::{Errno, FlushId, IoResult, Op, Place, Request},
};

use super::{Engine, EngineError, ring::Token, transfer::Transfer};
use crate::ublk::{FetchOutcome, IoOperation};

impl Engine {
    /// Handles a completion: passes it to the volume as an event.
    pub(super) fn complete(&mut self, token: Token, result: i32) -> Result<(), EngineError> {
        match token {
            Token::Device(tag) => self.device_completed(tag, FetchOutcome::decode(result))?,
            Token::Leg(tag, side) => self.leg_completed(tag, side, result),
            Token::Mirror(place) => self.mirror_completed(place, result),
            Token::FlushLeg(side, flush) => self.flush_completed(side, flush, io_result(result, 0)),
            Token::Map(bytes) => {
                self.file_writes_pending -= 1;
                self.map_completed(io_result(result, bytes));
            }
            Token::Role(slot) => {
                self.file_writes_pending -= 1;
                crash_point::here(if self.volume.is_changing() {
                    "role-durable"
                } else {
                    "second-role-slot-durable"
                });
                let bytes = self.volume.record().block.bytes();
                let result = io_result(result, bytes as u32);
                self.volume
                    .role_written(self.now(), slot, result, &mut self.effects);
            }
            Token::Descriptor(bytes) => {
                self.file_writes_pending -= 1;
                crash_point::here("descriptor-written");
                let result = io_result(result, bytes);
                self.volume
                    .descriptor_written(self.now(), result, &mut self.effects);
            }
            Token::Timer(_) => {
                let now = self.now();
                self.volume.tick(now, &mut self.effects);
            }
            Token::Wake => {
                self.listen();
                while let Some(command) = self.inbox.take() {
                    self.obey(command);
                    self.perform_effects();
                }
            }
        }
        Ok(())
    }

    fn device_completed(&mut self, tag: Tag, outcome: FetchOutcome) -> Result<(), EngineError> {
        match outcome {
            FetchOutcome::Request => {
                self.request(tag);
                Ok(())
            }
            FetchOutcome::Abort => {
                self.tags_aborted += 1;
                Ok(())
            }
            FetchOutcome::NeedGetData => Err(EngineError::Fetch {
                tag: tag.0,
                errno: nix::errno::Errno::EPROTO,
            }),
            FetchOutcome::Failed(errno) => Err(EngineError::Fetch { tag: tag.0, errno }),
        }
    }

    /// Handles a new request of the application.
    fn request(&mut self, tag: Tag) {
        self.arrivals[usize::from(tag.0)] = self.now();
        let slot = self.io_slot(tag);
        let request = self.requests[usize::from(slot.queue)].get(slot.tag);
        let (start, length) = (
            request.start_sector.saturating_mul(512),
            request.byte_count(),
        );
        let op = match request.operation {
            IoOperation::Read => Op::Read,
            IoOperation::Write => Op::Write {
                force_unit_access: request.is_fua(),
            },
            IoOperation::Flush => Op::Flush,
            IoOperation::Discard => Op::Discard,
            IoOperation::WriteZeroes | IoOperation::Other(_) => {
                return self.answer(tag, Err(Errno(libc::EOPNOTSUPP)));
            }
        };
        let carries_data = matches!(op, Op::Read | Op::Write { .. });
        let too_long = carries_data && length > u64::from(self.shape.request_bytes_max);
        let beyond = start.saturating_add(length) > self.volume.geometry().size_bytes();
        if op != Op::Flush && (too_long || beyond) {
            return self.answer(tag, Err(Errno(libc::EIO)));
        }
        let range = if op == Op::Flush {
            Range::default()
        } else {
            Range { start, length }
        };
        self.transfers[usize::from(tag.0)] = Transfer::new(op, range);
        let now = self.now();
        self.volume
            .request(now, tag, Request { op, range }, &mut self.effects);
    }

    fn leg_completed(&mut self, tag: Tag, side: Side, result: i32) {
        match self.transfers[usize::from(tag.0)].advance(result) {
            Ok(()) => self.continue_transfer(tag, side),
            Err(error) => self.leg_done(tag, side, Err(error)),
        }
    }

    fn mirror_completed(&mut self, place: Place, result: i32) {
        match self.mirror.write(place).transfer.advance(result) {
            Ok(()) => self.continue_mirror_write(place),
            Err(error) => self.mirror_done(place, Err(error)),
        }
    }

    pub(super) fn mirror_done(&mut self, place: Place, result: IoResult) {
        crash_point::here("mirror-done");
        self.mirror.done(place);
        let now = self.now();
        self.volume
            .mirror_done(now, place, result, &mut self.effects);
    }

    pub(super) fn leg_done(&mut self, tag: Tag, side: Side, result: IoResult) {
        if matches!(self.transfers[usize::from(tag.0)].op, Op::Write { .. }) {
            crash_point::here("authoritative-done");
        }
        let now = self.now();
        self.volume
            .leg_done(now, tag, side, result, &mut self.effects);
    }

    pub(super) fn flush_completed(&mut self, side: Side, flush: FlushId, result: IoResult) {
        let Some(index) = self
            .flushes
            .iter()
            .position(|f| f.flush == flush && f.side == side)
        else {
            return;
        };
        let pending = &mut self.flushes[index];
        pending.files_pending -= 1;
        pending.result = pending.result.and(result);
        if pending.files_pending == 0 {
            crash_point::here(if self.volume.is_changing() {
                "flushed-in-change"
            } else {
                "flushed-in-sweep"
            });
            let done = self.flushes.swap_remove(index);
            let now = self.now();
            self.volume
                .leg_flushed(now, side, flush, done.result, &mut self.effects);
        }
    }

    fn map_completed(&mut self, result: IoResult) {
        self.map_writes_pending -= 1;
        self.map_write_result = self.map_write_result.and(result);
        if self.map_writes_pending == 0 {
            crash_point::here("map-after");
            let result = core::mem::replace(&mut self.map_write_result, Ok(()));
            let now = self.now();
            self.volume.map_written(now, result, &mut self.effects);
            self.doubt_unmarked &= !self.volume.is_map_written();
        }
    }
}

/// Checks the result of an I/O that must have moved `bytes`.
fn io_result(result: i32, bytes: u32) -> IoResult {
    match u32::try_from(result) {
        Ok(moved) if moved == bytes => Ok(()),
        Ok(_) => Err(Errno(libc::EIO)),
        Err(_) => Err(Errno(result.saturating_neg())),
    }
}
