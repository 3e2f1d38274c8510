//! What the model (`tests/model`) needs and no program has: rules that can be broken on purpose,
//! and a state without history.
//!
//! The package `seeded-core` builds the sources of this crate a second time, with the feature
//! `seeded-bugs`. Nothing turns the feature on for `migration-core` itself
//! (`tests/architecture/main.rs`). Without it, whether a rule is broken is the constant `false`.

use super::Volume;

/// A rule that the model breaks on purpose, to see that its checkers notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "seeded-bugs"), expect(unreachable_pub))]
pub enum Rule {
    /// A write waits for its marks.
    IntentBeforeWrite,
    /// A region that the copier may copy is not being written.
    NoClaimWhileWritten,
    /// A write that trails on a given-up mirror leg counts as a write in flight.
    NoClaimWhileTrailing,
    /// A copy during which the region was written does not count.
    WriteSpoilsCopy,
    /// A region that is written on the source alone, because the volume tracks, is dirty.
    TrackedWriteIsDirty,
    /// A target that was split is not written.
    SplitIsLeftAlone,
    /// A volume that was split holds requests until it is resumed.
    SplitHolds,
    /// A region that the copier may copy is marked durably.
    CopiedIsMarked,
    /// The regions that a dead copier had claimed are dirty.
    ClaimsDieWithCopier,
    /// Only the copier that is connected may report.
    ReportsFromCopierOnly,
    /// The copier may not report what it claimed before the roles changed.
    ReportsOfThisEpochOnly,
    /// Marks are cleared after flushes.
    SweepFlushes,
    /// Both legs are flushed before marks are cleared.
    SweepFlushesBothLegs,
    /// The flushes of both legs are waited for before marks are cleared.
    SweepAwaitsBothLegs,
    /// All that a leg was given before the end of its flush has ended before marks are cleared.
    SweepAwaitsWrites,
    /// A region that is written during a sweep keeps its mark.
    WriteDuringSweepKeepsMark,
    /// A region that is being written when a sweep begins keeps its mark.
    WriteBeforeSweepKeepsMark,
    /// Overlapping writes follow each other on each leg.
    OverlappingWritesWait,
    /// Overlapping writes follow each other on the mirror leg.
    TrailingWritesAreWaitedFor,
    /// A mirror leg that fails makes regions dirty.
    MirrorFailureIsDirty,
    /// A mirror leg that fails makes more regions dirty than those that are being written: what it
    /// acknowledged before may be gone with its cache.
    LostMirrorCacheIsDirty,
    /// The same for the former authoritative leg, after an exchange of the roles because it failed.
    LostFormerCacheIsDirty,
    /// The same for an authoritative leg that fails and keeps its role.
    LostCacheIsDirty,
    /// A failed flush of the authoritative leg is an error of the application's next flush.
    FailedFlushIsReported,
    /// A failed flush of the authoritative leg is an error of every flush that the application
    /// waits for.
    FailedFlushIsOfAll,
    /// While the roles are exchanged because the authoritative leg failed, the results of that leg
    /// do not count.
    FailedLegIsNotBelieved,
    /// What was given to a mirror leg that cannot be flushed is dirty.
    FailedFlushIsDirty,
    /// Writes to an exclusively claimed region wait.
    ExclusiveClaimHoldsWrites,
    /// Roles are exchanged only if nothing is dirty.
    InSyncBeforeRoles,
    /// Roles are exchanged only when nothing is on the authoritative leg.
    DrainBeforeRoles,
    /// Roles are exchanged only when nothing is on the mirror leg.
    MirrorDrainBeforeRoles,
    /// The legs are flushed between the drain and the exchange of the roles.
    FlushBeforeRoles,
    /// An exchange of the roles is answered when it is durable.
    DurableBeforeAnswer,
    /// A new mirror leg is added only when the last write to the old one has ended.
    NewMirrorAwaitsOldWrites,
    /// A descriptor is written only when the last descriptor write has ended.
    OneDescriptorWrite,
    /// Every region is durably dirty before a mirror leg is added.
    DirtyBeforeMirror,
    /// Requests that a failed or late change of the route has held continue.
    HeldGoesOn,
    /// Requests that wait for a batch of marks are checked again when it is written.
    WaitingGoesOn,
    /// A flush is done before it is answered.
    FlushIsDone,
    /// Only clean regions are read from the mirror leg.
    MirrorReadsAreClean,
    /// Data from the mirror leg counts only if its regions are still clean after the read.
    MirrorReadsStayClean,
    /// The mirror leg is read only when no write to the range is in flight.
    MirrorReadsWait,
    /// A mirror leg that keeps a write waiting too long is given up.
    StalledMirrorIsGivenUp,
}

impl Volume {
    /// Whether the model has broken this rule. Never in a program.
    #[cfg(not(feature = "seeded-bugs"))]
    pub(super) const fn breaks(&self, _: Rule) -> bool {
        false
    }
}

#[cfg(feature = "seeded-bugs")]
mod model {
    use alloc::vec::Vec;

    use super::{Rule, Volume};
    use crate::{
        units::Time,
        volume::{Counters, FlushId, Stage},
    };

    /// A timer that expires.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum Timer {
        /// No timer.
        None,
        /// The deadline of a suspension.
        Suspension,
        /// The deadline of a change of the route.
        Change,
        /// The deadlines of a suspension and of a change.
        Deadlines,
        /// The patience of waiting requests.
        Patience,
        /// The pass of a volume that tracks.
        Pass,
        /// The sweep of copied regions.
        CopiedSweep,
        /// The sweep of idle regions.
        IdleSweep,
    }

    impl Volume {
        pub(in crate::volume) fn breaks(&self, rule: Rule) -> bool {
            self.broken == Some(rule)
        }

        /// Breaks `rule` from now on.
        pub fn break_rule(&mut self, rule: Option<Rule>) {
            self.broken = rule;
        }

        /// Makes a timer due at `now`, so that the clock can stand still and timers expire in any
        /// order.
        pub fn expire(&mut self, now: Time, timer: Timer) {
            match timer {
                Timer::None => {}
                Timer::Suspension => self.gate.expire(now),
                Timer::Change => self.change.iter_mut().for_each(|change| change.expire(now)),
                Timer::Deadlines => {
                    self.expire(now, Timer::Suspension);
                    self.expire(now, Timer::Change);
                }
                Timer::Patience => {
                    let waiting = |slot: &&mut super::super::Slot| slot.stage == Stage::Waiting;
                    for slot in self.slots.iter_mut().filter(waiting) {
                        slot.since = Time(0);
                    }
                }
                Timer::Pass => self.claims.expire_pass(),
                Timer::CopiedSweep => self.intent.expire(now, false),
                Timer::IdleSweep => self.intent.expire(now, true),
            }
        }

        /// Makes states equal that differ only in their history: counters, flush numbers, order in
        /// sets. `in_flight` are the flushes that are not answered, ascending; each flush number is
        /// replaced by its position in `in_flight`, from 1.
        pub fn forget_history(&mut self, in_flight: &[FlushId]) {
            let rank = |flush: FlushId| {
                let before = in_flight.iter().filter(|other| **other <= flush);
                FlushId(before.count() as u64)
            };
            self.counters = Counters::default();
            for flush in &mut self.flushes {
                flush.id = rank(flush.id);
            }
            self.flushes.sort_unstable_by_key(|flush| flush.id);
            self.last_flush = FlushId(in_flight.len() as u64);
            self.intent.rename_flushes(rank);
            self.change
                .iter_mut()
                .for_each(|change| change.rename_flushes(rank));
            self.free_places.sort_unstable_by(|a, b| b.cmp(a));
            self.writes
                .sort_unstable_by_key(|write| (write.range.start, write.tag, write.place));
            self.claims.forget();
        }

        /// Whether the roles are being exchanged because the authoritative leg failed.
        pub fn fails_over(&self) -> bool {
            let mut change = self.change.iter();
            change.any(crate::volume::change::Change::is_fail_over)
        }

        /// The requests that the gate holds or that wait for their turn.
        pub fn delayed_requests(&self) -> Vec<crate::units::Tag> {
            self.held.iter().chain(&self.waiting).copied().collect()
        }
    }
}

#[cfg(feature = "seeded-bugs")]
pub use model::Timer;
