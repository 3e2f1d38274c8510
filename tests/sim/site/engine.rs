//! The engine of ublk-target: requests, effects, completions.

use migration_core::{
    map::{self, ROLE_OFFSETS},
    route::Route,
    units::{Tag, Time},
    volume::{Call, ChangeError, Effect, IoResult, Op, Reply},
};

use super::{Process, Serving, Site, lun_of};
use crate::{
    application::blocks,
    disk,
    io::{Io, Pending},
};

impl Site {
    pub(crate) fn new_request(&mut self, now: Time) {
        if let Some(tag) = self.application.ask(&mut self.dice) {
            self.issue(now, tag);
        }
    }

    /// Gives a request to the volume. While no process serves the volume, the driver keeps the
    /// request.
    pub(super) fn issue(&mut self, now: Time, tag: Tag) {
        let request = self.application.open[&tag].request;
        if let Some(serving) = self.serving() {
            let effects = &mut serving.effects;
            serving.volume.request(now, tag, request, effects);
        }
    }

    /// Performs all effects, also those that they cause themselves, or dies in between.
    pub(crate) fn perform(&mut self) {
        loop {
            let Some(serving) = self.serving() else {
                return;
            };
            if serving.effects.is_empty() {
                break;
            }
            for effect in std::mem::take(&mut serving.effects) {
                if self.dies_after == Some(0) || matches!(effect, Effect::Die { .. }) {
                    self.note("deaths between two effects");
                    self.kill();
                    return;
                }
                self.dies_after = self.dies_after.map(|left| left - 1);
                self.perform_one(effect);
            }
        }
        if let Some(serving) = self.serving() {
            serving.volume.check_invariants();
        }
        self.check_clean_is_equal();
    }

    fn perform_one(&mut self, effect: Effect) {
        let Process::Serving(serving) = &mut self.process else {
            return;
        };
        let record = *serving.volume.record();
        let io = match effect {
            Effect::Leg { tag, side, op } => {
                let lun = lun_of(&serving.descriptor, side);
                let open = &self.application.open[&tag];
                if side != record.route.authoritative() {
                    assert_eq!(op, Op::Read);
                    *self.counts.entry("reads from the mirror").or_default() += 1;
                }
                Io::Leg {
                    tag,
                    side,
                    lun,
                    op,
                    range: open.request.range,
                    value: open.value,
                    mark: self.luns[lun].mark(),
                }
            }
            Effect::MirrorWrite { tag, place, side } => {
                let open = &self.application.open[&tag];
                Io::Mirror {
                    place,
                    lun: lun_of(&serving.descriptor, side),
                    range: open.request.range,
                    value: open.value,
                }
            }
            Effect::FlushLeg { side, flush } => {
                let lun = lun_of(&serving.descriptor, side);
                Io::FlushLeg {
                    side,
                    lun,
                    flush,
                    mark: self.luns[lun].mark(),
                }
            }
            Effect::WriteMap => {
                let sectors = serving.volume.map_batch().iter();
                let sectors = sectors.map(|sector| {
                    let bytes = serving.volume.encode_sector(*sector);
                    (sector.offset(record.geometry), bytes)
                });
                Io::Map(sectors.collect())
            }
            Effect::WriteDescriptor { slot } => {
                let (_, _, bytes) = serving.new_mirror.as_ref().expect("a new mirror leg");
                let offset = map::DESCRIPTOR_OFFSETS[usize::from(slot)];
                Io::Descriptor(disk::sectors(offset, bytes))
            }
            Effect::WriteRole { record: next, slot } => {
                if next.epoch > record.epoch {
                    self.check_exchange(&next);
                }
                Io::Role {
                    slot,
                    sector: Box::new((ROLE_OFFSETS[slot], next.encode())),
                }
            }
            Effect::Answer { tag, result } => return self.answer(tag, result),
            Effect::Reply { call, reply } => return self.replied(call, reply),
            Effect::Die { .. } => return,
        };
        if let Some(serving) = self.serving() {
            serving.pending.push(Pending::new(io));
        }
    }

    fn answer(&mut self, tag: Tag, result: IoResult) {
        let trails = self.pending_mirror_writes() > 0;
        self.note(match result {
            Ok(()) if trails => "answers while a mirror write trails",
            Ok(()) => "answers",
            Err(_) => "errors answered",
        });
        self.application.answered(tag, result);
    }

    pub(crate) fn writes_map(&mut self) -> bool {
        let Some(serving) = self.serving() else {
            return false;
        };
        let mut pending = serving.pending.iter();
        pending.any(|pending| pending.io.lun().is_none())
    }

    fn pending_mirror_writes(&mut self) -> usize {
        let Some(serving) = self.serving() else {
            return 0;
        };
        let pending = serving.pending.iter();
        pending
            .filter(|pending| matches!(pending.io, Io::Mirror { .. }))
            .count()
    }

    fn replied(&mut self, call: Call, reply: Reply) {
        let Process::Serving(serving) = &mut self.process else {
            return;
        };
        if let Reply::RouteChanged { .. } | Reply::ChangeFailed(_) = reply {
            serving.changes.remove(&call);
            let new = serving.new_mirror.take_if(|new| new.0 == call);
            if let (Some((_, descriptor, _)), Reply::RouteChanged { .. }) = (new, &reply) {
                serving.descriptor = descriptor;
            }
        }
        match reply {
            Reply::RouteChanged { route, .. } => self.note(match route {
                Route::Mirrored { .. } => "roles changed, mirrors added",
                Route::Split => "targets split",
                Route::Single(_) => "mirrors dropped",
            }),
            Reply::ChangeFailed(error) => self.note(match error {
                ChangeError::Deadline => "changes past their deadline",
                ChangeError::StaleEpoch
                | ChangeError::WrongRoute
                | ChangeError::NotInSync(_)
                | ChangeError::MirrorFailed
                | ChangeError::Busy
                | ChangeError::CopierConnected
                | ChangeError::Flush(_)
                | ChangeError::Map(_) => "changes that failed",
            }),
            Reply::Suspended => {
                self.check_drained();
                self.note("suspensions");
            }
            Reply::SuspendDeadline => self.note("suspensions past their deadline"),
            Reply::Claimed(_) | Reply::ClaimRefused(_) => {
                let dirty = serving
                    .volume
                    .regions()
                    .map_or(0, |regions| regions.dirty_bytes());
                let epoch = serving.volume.record().epoch;
                self.copying.claim_answered(call, &reply, epoch, dirty);
                return;
            }
        }
        if let Some(serving) = self.serving() {
            serving.replies.push((call, reply));
        }
    }

    pub(super) fn completed(&mut self, now: Time, io: &Io, result: IoResult) {
        if let (
            Io::Leg {
                tag,
                lun,
                op: Op::Read,
                range,
                ..
            },
            Ok(()),
        ) = (io, result)
        {
            let lun = &self.luns[*lun];
            let read = blocks(*range).map(|block| (block, lun.now(block)));
            self.application.has_read(*tag, read.collect());
        }
        let Some(Serving {
            volume, effects, ..
        }) = self.serving()
        else {
            return;
        };
        let failed_over = volume.counters().fail_overs;
        let given_up = volume.mirror_fault();
        match io {
            Io::Leg { tag, side, .. } => volume.leg_done(now, *tag, *side, result, effects),
            Io::Mirror { place, .. } => volume.mirror_done(now, *place, result, effects),
            Io::FlushLeg { side, flush, .. } => {
                volume.leg_flushed(now, *side, *flush, result, effects);
            }
            Io::Map(_) => volume.map_written(now, result, effects),
            Io::Role { slot, .. } => volume.role_written(now, *slot, result, effects),
            Io::Descriptor(_) => volume.descriptor_written(now, result, effects),
        }
        let exchanged = volume.counters().fail_overs > failed_over;
        let gives_up = given_up.is_none() && volume.mirror_fault().is_some();
        if exchanged {
            self.application.failed_over();
            self.note("roles moved by a failure");
        } else if gives_up {
            self.note("mirror legs given up");
        }
    }
}
