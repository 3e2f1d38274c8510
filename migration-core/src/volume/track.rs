//! Tracking, and the throttle of writes: with them a migration to a distant or slow target can end.
//!
//! In [`CopyMode::Track`] writes go to the source alone, and the regions that they make dirty are
//! copied in passes. What is dirty when a pass begins may be copied until the next pass, so that a
//! region that is written all the time is not copied all the time. No write waits for the copier.
//! The legs become equal only while requests are held
//! ([`Target::CopyRest`](super::Target::CopyRest)). To keep that short, writes can be slowed
//! before.
//!
//! While the target is authoritative both legs are written in either mode: an undo copies nothing.

use alloc::vec::Vec;

use super::{Effect, Volume};
use crate::{
    region::RegionMap,
    route::{Route, Side},
    units::{Tag, Time},
};

/// What a write of the application does to the mirror leg.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CopyMode {
    /// The write is done there too, where the legs are equal.
    #[default]
    Mirror,
    /// Nothing, while the source is authoritative; the region is copied later.
    Track,
}

/// How early a slowed write may start, in nanoseconds: a shell that wakes up late does not slow
/// writes further.
const LATENESS_NANOSECONDS: u64 = 10_000_000;

/// The throttle: a limit to the rate of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Throttle {
    bytes_per_second: u64,
    /// When the throttle ends, unless it is renewed.
    until: Time,
    /// When the next write may start.
    next: Time,
    /// The time of the volume's last event.
    now: Time,
}

impl Throttle {
    fn lets_go(&self) -> bool {
        self.now >= self.next
    }

    fn take(&mut self, bytes: u64) {
        let per_second = u128::from(self.bytes_per_second.max(1));
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / per_second;
        let earliest = self.now.0.saturating_sub(LATENESS_NANOSECONDS);
        let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        self.next = Time(self.next.0.max(earliest)).plus(nanoseconds);
    }
}

impl Volume {
    /// What a write does to the mirror leg.
    #[must_use]
    pub const fn copy_mode(&self) -> CopyMode {
        self.copy_mode
    }

    /// Sets what a write does to the mirror leg.
    pub fn set_copy_mode(&mut self, mode: CopyMode, effects: &mut Vec<Effect>) {
        self.copy_mode = mode;
        if self.tracks() {
            self.unreserve(None);
            self.share_claims();
            self.begin_pass();
        }
        self.retry_waiting(effects);
        self.retry_claim(effects);
        self.write_map(effects);
    }

    /// Whether writes go to the authoritative leg alone, to be copied later.
    #[must_use]
    pub fn tracks(&self) -> bool {
        let from_source = Route::Mirrored {
            authoritative: Side::Source,
        };
        self.copy_mode == CopyMode::Track && self.record.route == from_source
    }

    pub(super) fn next_pass(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.tracks() && self.take_pass_timer(now) {
            self.begin_pass();
            self.retry_claim(effects);
        }
    }

    /// Begins a pass: what is dirty now may be copied until the next pass.
    pub(super) fn begin_pass(&mut self) {
        let dirty = self.regions.as_ref().map_or(0, RegionMap::dirty_regions);
        self.set_pass(dirty);
    }

    /// Limits writes to `bytes_per_second` until the time `until`, while the volume is mirrored or
    /// split; 0 ends the limit.
    pub fn set_throttle(
        &mut self,
        now: Time,
        bytes_per_second: u64,
        until: Time,
        effects: &mut Vec<Effect>,
    ) {
        let next = self.throttle.map_or(now, |throttle| throttle.next);
        // A wait at a low rate does not apply at a higher rate.
        let sooner = self
            .throttle
            .is_none_or(|throttle| throttle.bytes_per_second < bytes_per_second);
        self.throttle = (bytes_per_second > 0).then_some(Throttle {
            bytes_per_second,
            until,
            next: if sooner { next.min(now) } else { next },
            now,
        });
        self.retry_waiting(effects);
        self.write_map(effects);
    }

    /// The limit to the rate of writes, in bytes a second, if there is one.
    #[must_use]
    pub fn throttle(&self) -> Option<u64> {
        self.throttle.map(|throttle| throttle.bytes_per_second)
    }

    pub(super) fn note_time(&mut self, now: Time) {
        if let Some(throttle) = &mut self.throttle {
            throttle.now = now;
        }
    }

    /// Starts slowed writes that are due, and ends a throttle that was not renewed.
    pub(super) fn check_throttle(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.note_time(now);
        let Some(throttle) = self.throttle else {
            return;
        };
        if throttle.until <= now {
            self.throttle = None;
        }
        if self.throttle.is_none() || throttle.lets_go() {
            self.retry_waiting(effects);
        }
    }

    /// Whether the throttle lets a write start. The time that a write waits for the throttle does
    /// not count as waiting for the mirror leg.
    pub(super) fn passes_throttle(&mut self, tag: Tag) -> bool {
        match self.throttle {
            Some(throttle) if !throttle.lets_go() => {
                self.slot(tag).since = throttle.now;
                false
            }
            Some(_) | None => true,
        }
    }

    pub(super) fn take_from_throttle(&mut self, bytes: u64) {
        if let Some(throttle) = &mut self.throttle {
            throttle.take(bytes);
        }
    }

    /// When the throttle lets the next write start, if requests are waiting.
    pub(super) fn throttle_deadline(&self) -> Option<Time> {
        let throttle = self.throttle?;
        let waits = !self.waiting.is_empty() && !self.gate.is_closed();
        (waits && !throttle.lets_go()).then_some(throttle.next.min(throttle.until))
    }
}
