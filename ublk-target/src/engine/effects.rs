//! Performs the effects of the volume.

use io_uring::opcode;
use migration_core::{
    map::{self, BitmapSector, SECTOR_BYTES},
    route::{Route, Side},
    units::Tag,
    volume::{Call, Effect, Errno, FlushId, IoResult, Op, Place, Reply},
};

use super::{
    Engine, EngineError, LegFiles, LegFlush, replies,
    ring::{DEVICE_FILE, MAP_FILE, Token},
    side_index,
    transfer::{self, Next, Transfer},
};
use crate::ublk;

impl Engine {
    /// Performs all effects, including those that other effects cause.
    pub(super) fn perform_effects(&mut self) {
        let mut index = 0;
        while index < self.effects.len() {
            let effect = core::mem::replace(&mut self.effects[index], Effect::WriteMap);
            index += 1;
            self.perform(effect);
        }
        self.effects.clear();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Leg { tag, side, op } => {
                let transfer = &mut self.transfers[usize::from(tag.0)];
                *transfer = Transfer::new(op, transfer.range);
                self.continue_transfer(tag, side);
            }
            Effect::MirrorWrite { tag, place, side } => {
                let range = self.transfers[usize::from(tag.0)].range;
                self.mirror.begin(place, tag, side, range);
                self.continue_mirror_write(place);
            }
            Effect::Answer { tag, result } => {
                self.answer(tag, result);
                crash_point::here_after("answered", || drop(self.ring.submit()));
            }
            Effect::FlushLeg { side, flush } => self.flush_leg(side, flush),
            Effect::WriteMap => self.write_map(),
            Effect::WriteDescriptor { slot } => self.write_descriptor(slot),
            Effect::WriteRole { record, slot } => {
                self.role_buffer[..SECTOR_BYTES].copy_from_slice(&record.encode());
                let (data, length) = (self.role_buffer.as_ptr(), record.block.bytes() as u32);
                let is_new = record.epoch != self.volume.record().epoch;
                crash_point::here(if is_new {
                    "role-before"
                } else {
                    "second-role-slot"
                });
                self.write_to_map(data, length, map::ROLE_OFFSETS[slot], Token::Role(slot));
                crash_point::here_after("role-submitted", || drop(self.ring.submit()));
            }
            Effect::Reply { call, reply } => self.reply(call, reply),
            Effect::Die { error } => self.died = Some(EngineError::Role(error.0)),
        }
    }

    /// Submits the next piece of a request on a leg, or reports to the volume that the request is
    /// done.
    pub(super) fn continue_transfer(&mut self, tag: Tag, side: Side) {
        let index = usize::from(tag.0);
        let Some(leg) = &self.legs[side_index(side)] else {
            // The volume never uses a leg that is not part of its route.
            return self.leg_done(tag, side, Err(Errno(libc::ENXIO)));
        };
        let buffer = self.buffers.address(self.mirror.buffer(tag));
        match self.transfers[index].next(leg, buffer) {
            Next::Submit(entry) => self.ring.push(entry, Token::Leg(tag, side)),
            Next::Done(result) => self.leg_done(tag, side, result),
        }
    }

    /// Submits the next piece of a write to the mirror leg, or reports to the volume that the write
    /// is done.
    pub(super) fn continue_mirror_write(&mut self, place: Place) {
        let write = self.mirror.write(place);
        let Some(leg) = &self.legs[side_index(write.side)] else {
            // The leg was dropped meanwhile.
            return self.mirror_done(place, Err(Errno(libc::ENXIO)));
        };
        let buffer = self.buffers.address(write.buffer);
        match write.transfer.next(leg, buffer) {
            Next::Submit(entry) => self.ring.push(entry, Token::Mirror(place)),
            Next::Done(result) => self.mirror_done(place, result),
        }
    }

    /// Answers the application and offers the tag to the driver for its next request.
    pub(super) fn answer(&mut self, tag: Tag, result: IoResult) {
        // The driver reads the buffer named in a commit for reads only, so a write's buffer may
        // change.
        self.mirror.answered(tag);
        let transfer = &self.transfers[usize::from(tag.0)];
        let took = self.now().since(self.arrivals[usize::from(tag.0)]);
        match transfer.op {
            Op::Read => self.latencies.reads.note(took),
            Op::Write { .. } => self.latencies.writes.note(took),
            Op::Flush | Op::Discard => {}
        }
        let result = match (result, transfer.op) {
            // ENODEV is the driver's own code for a tag that it takes back: a leg's error must not
            // look like it.
            (Err(Errno(libc::ENODEV)), _) => -libc::EIO,
            (Err(error), _) => -error.0,
            (Ok(()), Op::Read | Op::Write { .. }) => transfer.range.length as i32,
            (Ok(()), Op::Flush | Op::Discard) => 0,
        };
        let entry = ublk::io::commit_and_fetch(DEVICE_FILE, self.io_slot(tag), result, 0);
        self.ring.push(entry, Token::Device(tag));
    }

    fn flush_leg(&mut self, side: Side, flush: FlushId) {
        let files = self.legs[side_index(side)]
            .as_ref()
            .map_or(&[][..], |leg| &leg.files);
        self.flushes.push(LegFlush {
            side,
            flush,
            files_pending: files.len().max(1),
            result: Ok(()),
        });
        if files.is_empty() {
            // A change of the route has removed the leg; nothing waits for this flush any more.
            return self.flush_completed(side, flush, Err(Errno(libc::ENXIO)));
        }
        for file in files {
            self.ring
                .push(transfer::flush_entry(*file), Token::FlushLeg(side, flush));
        }
    }

    /// Writes the current batch in whole blocks; adjacent sectors are joined into one write.
    fn write_map(&mut self) {
        crash_point::here("map-before");
        let record = self.volume.record();
        let (geometry, block_bytes) = (record.geometry, record.block.bytes());
        let batch: &[BitmapSector] = self.volume.map_batch();
        let mut writes = [(0, 0, 0); super::MAP_BATCH_SECTORS_MAX];
        let (mut count, mut end) = (0, 0);
        for sector in batch {
            let offset = sector.offset(geometry);
            match writes[..count].last_mut() {
                Some((_, length, start)) if *start + *length as u64 == offset => {
                    *length += SECTOR_BYTES
                }
                Some(_) | None => {
                    end = pad(&mut *self.map_buffer, end, block_bytes);
                    writes[count] = (end, SECTOR_BYTES, offset);
                    count += 1;
                }
            }
            let bytes = self.volume.encode_sector(*sector);
            self.map_buffer[end..end + SECTOR_BYTES].copy_from_slice(&bytes);
            end += SECTOR_BYTES;
        }
        pad(&mut *self.map_buffer, end, block_bytes);
        self.map_writes_pending = count;
        for (at, length, offset) in writes[..count].iter().copied() {
            let length = length.next_multiple_of(block_bytes) as u32;
            let data = self.map_buffer[at..].as_ptr();
            self.write_to_map(data, length, offset, Token::Map(length));
        }
    }

    fn write_descriptor(&mut self, slot: u8) {
        let new = self.new_mirror.as_mut();
        let Some(new) = new.and_then(|new| new.descriptor.as_mut()) else {
            let now = self.now();
            let result = Err(Errno(libc::EINVAL));
            return self
                .volume
                .descriptor_written(now, result, &mut self.effects);
        };
        self.descriptor_buffer = core::mem::take(&mut new.bytes);
        let block_bytes = self.volume.record().block.bytes();
        let padded = self.descriptor_buffer.len().next_multiple_of(block_bytes);
        self.descriptor_buffer.resize(padded, 0);
        let (data, length) = (
            self.descriptor_buffer.as_ptr(),
            self.descriptor_buffer.len() as u32,
        );
        let offset = map::DESCRIPTOR_OFFSETS[usize::from(slot)];
        self.write_to_map(data, length, offset, Token::Descriptor(length));
    }

    /// Writes to the map file. The file is open with `O_DSYNC`: a completed write is durable.
    fn write_to_map(&mut self, data: *const u8, length: u32, offset: u64, token: Token) {
        self.file_writes_pending += 1;
        let entry = opcode::Write::new(MAP_FILE, data, length)
            .offset(offset)
            .build();
        self.ring.push(entry, token);
    }

    fn reply(&mut self, call: Call, reply: Reply) {
        crash_point::here("reply-before");
        let dropped = match reply {
            Reply::RouteChanged { route, .. } => self.install_legs(call, route),
            Reply::ChangeFailed(_) => self.take_new_mirror(call),
            Reply::Suspended
            | Reply::SuspendDeadline
            | Reply::Claimed(_)
            | Reply::ClaimRefused(_) => None,
        };
        let response = replies::response(&reply, self.volume.record(), self.volume.regions());
        let splits = matches!(
            reply,
            Reply::RouteChanged {
                route: Route::Split,
                ..
            }
        );
        match dropped {
            // This volume holds requests until the others of the session have split too: the answer
            // does not wait until the leg is closed.
            Some(leg) if splits => {
                self.release(leg, || ());
                self.calls.answer(call, response);
            }
            Some(leg) => {
                let answer = self.calls.answer_later(call, response);
                self.release(leg, answer);
            }
            None => self.calls.answer(call, response),
        }
        crash_point::here("replied");
    }

    /// Adapts the open legs to the route. No request of the application is in flight on them.
    /// Returns the leg that is dropped.
    fn install_legs(&mut self, call: Call, route: Route) -> Option<LegFiles> {
        if let Some(new) = self.new_mirror.take_if(|new| new.call == call) {
            let [source, target] = &mut self.legs;
            let current = source.take().or(target.take());
            self.legs = [current, Some(new.files)];
            if let Some(new) = new.descriptor {
                self.descriptor = new.descriptor.into();
            }
            return None;
        }
        match route {
            Route::Single(side) => {
                (self.mirror_problem, self.mirror_cause) = (None, None);
                self.legs[side_index(side.other())].take()
            }
            Route::Split => {
                (self.mirror_problem, self.mirror_cause) = (None, None);
                self.legs[side_index(Side::Target)].take()
            }
            Route::Mirrored { .. } => None,
        }
    }

    pub(super) fn take_new_mirror(&mut self, call: Call) -> Option<LegFiles> {
        let new = self.new_mirror.take_if(|new| new.call == call)?;
        Some(new.files)
    }

    /// Closes a leg. Calls `then` when the leg is free for others; drops `then` without a call if
    /// no thread can be started.
    pub(super) fn release(&mut self, leg: LegFiles, then: impl FnOnce() + Send + 'static) {
        // A queued flush may name the leg's descriptor, whose number can be reused once it is
        // closed.
        let _ = self.ring.submit();
        for file in leg.files {
            self.ring.unregister_lun(file);
        }
        // Closing a block device may block, so another thread does it; this thread does it only if
        // no other thread can be started.
        let close = move || {
            drop(leg.leg);
            then();
        };
        let _ = std::thread::Builder::new()
            .name("close".to_owned())
            .spawn(close);
    }
}

/// Writes zeroes from `end` to the end of the block; returns that.
fn pad(buffer: &mut [u8], end: usize, block_bytes: usize) -> usize {
    let padded = end.next_multiple_of(block_bytes);
    buffer[end..padded].fill(0);
    padded
}
