//! The rules that can be broken: where a breach is noticed, and by whom.

use seeded_core::volume::SeededBug;

use crate::{
    check::Checker,
    setup::Setup,
    worlds::{
        AGAIN, CANCEL, COPY, COPY_THREE, FAIL_OVER, FLUSH_FAILS, FLUSH_LOSES, HANG, MIRROR_FAILS,
        MIRROR_LOSES, MIRROR_RESETS, READS, RESTART, SPLIT, SPLIT_POWER, STALL, START, SUSPEND,
        SWEEP, SWEEP_POWER, SWITCH, SWITCH_POWER, TRACK, UNDO,
    },
};

/// For each rule that can be broken: a world in which the breach is noticed, and the checker that
/// notices it.
pub(crate) const BROKEN: &[(SeededBug, &Setup, Checker)] = &[
    (
        SeededBug::IntentBeforeWrite,
        &COPY,
        Checker::DurablyCleanIsEqual,
    ),
    (SeededBug::NoClaimWhileWritten, &COPY, Checker::CleanIsEqual),
    (
        SeededBug::NoClaimWhileTrailing,
        &COPY_THREE,
        Checker::CleanIsEqual,
    ),
    (SeededBug::WriteSpoilsCopy, &COPY, Checker::CleanIsEqual),
    (SeededBug::WriteSpoilsCopy, &TRACK, Checker::CleanIsEqual),
    (
        SeededBug::TrackedWriteIsDirty,
        &TRACK,
        Checker::CleanIsEqual,
    ),
    (SeededBug::SplitIsLeftAlone, &SPLIT, Checker::CopyStays),
    (SeededBug::SplitHolds, &SPLIT, Checker::Drained),
    (
        SeededBug::FlushBeforeRoles,
        &SPLIT_POWER,
        Checker::CopyStays,
    ),
    (SeededBug::ClaimsDieWithCopier, &COPY, Checker::CleanIsEqual),
    (SeededBug::CopiedIsMarked, &FAIL_OVER, Checker::CleanIsEqual),
    (SeededBug::ReportsFromCopierOnly, &COPY, Checker::StaleActor),
    (
        SeededBug::ExclusiveClaimHoldsWrites,
        &AGAIN,
        Checker::CleanIsEqual,
    ),
    (
        SeededBug::SweepFlushes,
        &SWEEP_POWER,
        Checker::DurablyCleanIsEqual,
    ),
    (
        SeededBug::SweepFlushesBothLegs,
        &SWEEP_POWER,
        Checker::DurablyCleanIsEqual,
    ),
    (
        SeededBug::SweepAwaitsBothLegs,
        &SWEEP_POWER,
        Checker::DurablyCleanIsEqual,
    ),
    (
        SeededBug::SweepAwaitsWrites,
        &MIRROR_RESETS,
        Checker::DurablyCleanIsEqual,
    ),
    (
        SeededBug::WriteDuringSweepKeepsMark,
        &SWEEP,
        Checker::DurablyCleanIsEqual,
    ),
    (
        SeededBug::WriteBeforeSweepKeepsMark,
        &SWEEP,
        Checker::DurablyCleanIsEqual,
    ),
    (
        SeededBug::OverlappingWritesWait,
        &COPY,
        Checker::CleanIsEqual,
    ),
    (
        SeededBug::TrailingWritesAreWaitedFor,
        &COPY,
        Checker::CleanIsEqual,
    ),
    (
        SeededBug::MirrorFailureIsDirty,
        &MIRROR_FAILS,
        Checker::CleanIsEqual,
    ),
    (
        SeededBug::LostMirrorCacheIsDirty,
        &MIRROR_LOSES,
        Checker::CleanIsEqual,
    ),
    (
        SeededBug::LostMirrorCacheIsDirty,
        &STALL,
        Checker::CleanIsEqual,
    ),
    (
        SeededBug::LostFormerCacheIsDirty,
        &FAIL_OVER,
        Checker::CleanIsEqual,
    ),
    (
        SeededBug::LostCacheIsDirty,
        &FLUSH_LOSES,
        Checker::CleanIsEqual,
    ),
    (
        SeededBug::FailedFlushIsReported,
        &FLUSH_LOSES,
        Checker::FlushedWrite,
    ),
    (
        SeededBug::FailedFlushIsOfAll,
        &FLUSH_LOSES,
        Checker::FlushedWrite,
    ),
    (
        SeededBug::ReportsOfThisEpochOnly,
        &COPY,
        Checker::StaleActor,
    ),
    (
        SeededBug::NewMirrorAwaitsOldWrites,
        &RESTART,
        Checker::Drained,
    ),
    (
        SeededBug::OneDescriptorWrite,
        &RESTART,
        Checker::OneAuthoritative,
    ),
    (SeededBug::LostCacheIsDirty, &READS, Checker::CleanIsEqual),
    (
        SeededBug::FailedLegIsNotBelieved,
        &FAIL_OVER,
        Checker::FlushedWrite,
    ),
    (
        SeededBug::FailedFlushIsDirty,
        &FLUSH_FAILS,
        Checker::CleanIsEqual,
    ),
    (SeededBug::InSyncBeforeRoles, &CANCEL, Checker::FlushedWrite),
    (
        SeededBug::DrainBeforeRoles,
        &SWITCH,
        Checker::AcknowledgedWrite,
    ),
    (
        SeededBug::MirrorDrainBeforeRoles,
        &SWITCH,
        Checker::AcknowledgedWrite,
    ),
    (
        SeededBug::FlushBeforeRoles,
        &SWITCH_POWER,
        Checker::FlushedWrite,
    ),
    (
        SeededBug::DurableBeforeAnswer,
        &SWITCH,
        Checker::OneAuthoritative,
    ),
    (
        SeededBug::DirtyBeforeMirror,
        &START,
        Checker::DurablyCleanIsEqual,
    ),
    (SeededBug::HeldGoesOn, &SUSPEND, Checker::Settles),
    (SeededBug::WaitingGoesOn, &SWITCH, Checker::Settles),
    (SeededBug::FlushIsDone, &UNDO, Checker::FlushedWrite),
    (SeededBug::MirrorReadsAreClean, &READS, Checker::Read),
    (SeededBug::MirrorReadsStayClean, &READS, Checker::Read),
    (SeededBug::MirrorReadsWait, &READS, Checker::Read),
    (SeededBug::StalledMirrorIsGivenUp, &HANG, Checker::Settles),
];
