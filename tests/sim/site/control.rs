//! Time, and what others ask of the volume.

use migration_core::{
    map,
    route::Route,
    units::{Epoch, Time},
    volume::{
        COPIED_SWEEP_NANOSECONDS, Call, ChangeError, Effect, IDLE_SWEEP_NANOSECONDS, NewMirror,
        Reply, Suspended, Target, Volume,
    },
};

use super::{Site, Status, leg, lun_of, lun_of_leg};
use crate::border::reported;
use crate::settings::{HOLD, SUSPENSION};

impl Site {
    pub(crate) fn tick(&mut self, now: Time) {
        let Some(serving) = self.serving() else {
            return;
        };
        let given_up = serving.volume.mirror_fault().is_some();
        serving.volume.tick(now, &mut serving.effects);
        if !given_up && serving.volume.mirror_fault().is_some() {
            self.note("mirror legs given up after a stall");
        }
    }

    /// A time after which a sweep is due.
    pub(crate) fn sweep_time(&mut self) -> u64 {
        self.dice
            .pick(&[COPIED_SWEEP_NANOSECONDS, IDLE_SWEEP_NANOSECONDS])
    }

    pub(crate) fn suspend(&mut self, now: Time) {
        let call = self.call();
        self.try_on_volume(|volume, effects| {
            volume.suspend(now, call, now.plus(SUSPENSION), effects)
        });
    }

    pub(crate) fn end_suspension(&mut self, now: Time) -> Option<Suspended> {
        let serving = self.serving()?;
        serving.volume.resume(now, &mut serving.effects)
    }

    /// Calls the volume; if it refuses, nothing may have changed.
    pub(crate) fn try_on_volume<T, E: std::fmt::Debug>(
        &mut self,
        call: impl FnOnce(&mut Volume, &mut Vec<Effect>) -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let serving = self.serving()?;
        let before = (serving.volume.clone(), serving.effects.len());
        let result = call(&mut serving.volume, &mut serving.effects);
        if let Err(error) = &result {
            let after = (&serving.volume, serving.effects.len());
            assert!(
                (&before.0, before.1) == after,
                "a refusal changed something: {error:?}"
            );
        }
        Some(result)
    }

    pub(crate) fn status(&mut self) -> Option<Status> {
        let serving = self.serving()?;
        let record = serving.volume.record();
        let regions = serving.volume.regions();
        Some(Status {
            epoch: record.epoch,
            route: reported(record.route),
            source: lun_of_leg(&serving.descriptor.source),
            target: serving.descriptor.target.as_ref().map(lun_of_leg),
            dirty: regions.is_some_and(|regions| regions.dirty_bytes() > 0),
            degraded: serving.volume.mirror_fault().is_some(),
            changing: serving.volume.is_changing(),
            policy: serving.volume.on_authoritative_failure(),
            mode: serving.volume.copy_mode(),
            tracks: serving.volume.tracks(),
        })
    }

    /// Asks for a route, `None` for a new mirror leg on `target`.
    pub(crate) fn change_route(
        &mut self,
        now: Time,
        epoch: Epoch,
        route: Option<Route>,
        target: usize,
    ) -> Option<Result<Call, ChangeError>> {
        let call = self.call();
        let stale = self.serving()?.volume.record().epoch != epoch;
        let target = match route {
            Some(Route::Mirrored { authoritative }) if self.serving()?.volume.tracks() => {
                self.note("cutovers");
                Target::CopyRest(authoritative)
            }
            Some(route) => Target::Route(route),
            None => match self.prepare_mirror(call, target) {
                Ok(target) => target,
                Err(error) => return Some(Err(error)),
            },
        };
        let result = self.try_on_volume(|volume, effects| {
            volume.change_route(now, call, epoch, target, HOLD, effects)
        })?;
        assert!(!stale || result.is_err(), "a stale epoch was accepted");
        let serving = self.serving()?;
        match result {
            Ok(()) => drop(serving.changes.insert(call)),
            Err(_) => drop(serving.new_mirror.take_if(|new| new.0 == call)),
        }
        Some(result.map(|()| call))
    }

    fn prepare_mirror(&mut self, call: Call, target: usize) -> Result<Target, ChangeError> {
        let serving = self.serving().ok_or(ChangeError::Busy)?;
        let side = match serving.volume.record().route {
            Route::Single(side) => side,
            Route::Mirrored { .. } | Route::Split => return Err(ChangeError::WrongRoute),
        };
        if serving.new_mirror.is_some() {
            return Err(ChangeError::Busy);
        }
        let mut descriptor = serving.descriptor.clone();
        descriptor.source = leg(lun_of(&descriptor, side));
        descriptor.target = Some(leg(target));
        let bytes = serde_json::to_vec(&descriptor).expect("JSON");
        let new = NewMirror {
            descriptor_bytes: bytes.len() as u32,
            descriptor_crc: map::checksum(&bytes),
        };
        serving.new_mirror = Some((call, descriptor, bytes));
        Ok(Target::AddMirror(new))
    }

    /// Whether a change of the route is requested that has not ended.
    pub(crate) fn has_requested_change(&mut self) -> bool {
        let serving = self.serving();
        serving.is_some_and(|serving| !serving.changes.is_empty())
    }

    pub(crate) fn take_reply(&mut self, call: Call) -> Option<Reply> {
        let replies = &mut self.serving()?.replies;
        let index = replies.iter().position(|reply| reply.0 == call)?;
        Some(replies.swap_remove(index).1)
    }
}
