//! The worlds. Each is small enough for a complete exploration, and has its own kinds of failures.

use seeded_core::volume::{CopyMode, OnAuthoritativeFailure, SeededBug};

use crate::{
    check::Checker,
    setup::{Budget, FLUSH, OperatorRequest, PLAIN, Setup, Start, one, two},
};

const NOTHING: Budget = PLAIN.budget;
const KILL: Budget = Budget {
    kills: 1,
    ..NOTHING
};
const POWER: Budget = Budget {
    power_losses: 1,
    ..NOTHING
};

/// Explored in continuous integration.
pub(crate) const EXHAUSTIVE: &[&Setup] = &[
    &COPY,
    &COPY_POWER,
    &COPY_THREE,
    &AGAIN,
    &SWITCH,
    &SWITCH_POWER,
    &UNDO,
    &SUSPEND,
    &SWEEP,
    &SWEEP_POWER,
    &START,
    &START_POWER,
    &CANCEL,
    &RESTART,
    &FLUSH_FAILS,
    &FLUSH_LOSES,
    &FLUSH_LOSES_OVER,
    &MIRROR_FAILS,
    &MIRROR_LOSES,
    &MIRROR_RESETS,
    &STALL,
    &HANG,
    &MAP_FAILS,
    &ROLE_FAILS,
    &FAIL_OVER,
    &READS,
    &TRACK,
    &TRACK_KILL,
    &TRACK_POWER,
    &TRACK_MODES,
    &SPLIT,
    &SPLIT_KILL,
    &SPLIT_POWER,
];

/// Explored by hand.
pub(crate) const LARGE: &[&Setup] = &[
    &Setup {
        name: "switch-large",
        requests: &[
            one(OperatorRequest::Write, 0),
            one(OperatorRequest::Write, 0),
            FLUSH,
        ],
        budget: Budget {
            exchanges: 2,
            kills: 1,
            ..POWER
        },
        ..SWITCH
    },
    &Setup {
        name: "copy-large",
        budget: Budget {
            copier_deaths: 1,
            ..KILL
        },
        ..COPY_THREE
    },
    &Setup {
        name: "sweep-large",
        regions: 2,
        requests: &[
            one(OperatorRequest::Write, 0),
            one(OperatorRequest::Write, 1),
        ],
        ..SWEEP
    },
    &Setup {
        name: "track-large",
        budget: Budget {
            exchanges: 2,
            copier_deaths: 1,
            ..KILL
        },
        ..TRACK
    },
    &Setup {
        name: "track-modes-large",
        requests: &[
            one(OperatorRequest::Write, 0),
            one(OperatorRequest::Write, 0),
            one(OperatorRequest::Write, 0),
        ],
        ..TRACK_MODES
    },
];

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

/// Two writes to one block while its region is copied.
const COPY: Setup = Setup {
    name: "copy",
    start: Start::Mirrored { dirty: 0b01 },
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    budget: Budget {
        copier_deaths: 1,
        ..KILL
    },
    ..PLAIN
};

const COPY_POWER: Setup = Setup {
    name: "copy-power",
    start: Start::Mirrored { dirty: 0b11 },
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
        FLUSH,
    ],
    budget: POWER,
    ..COPY
};

/// Three regions. One write covers two of them, of which one is dirty.
const COPY_THREE: Setup = Setup {
    name: "copy-three",
    regions: 3,
    start: Start::Mirrored { dirty: 0b110 },
    requests: &[
        two(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 1),
    ],
    budget: NOTHING,
    ..COPY
};

/// Both halves of one region are written: the region is finally copied with an exclusive claim.
const AGAIN: Setup = Setup {
    name: "again",
    regions: 1,
    blocks_per_region: 2,
    start: Start::Mirrored { dirty: 1 },
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 1),
        one(OperatorRequest::Write, 0),
    ],
    budget: NOTHING,
    patience: true,
    ..PLAIN
};

const SWITCH: Setup = Setup {
    name: "switch",
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    budget: Budget {
        exchanges: 1,
        ..KILL
    },
    ..PLAIN
};

const SWITCH_POWER: Setup = Setup {
    name: "switch-power",
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::ForcedWrite, 1),
        FLUSH,
    ],
    budget: Budget {
        exchanges: 1,
        ..POWER
    },
    ..PLAIN
};

const UNDO: Setup = Setup {
    name: "undo",
    requests: &[one(OperatorRequest::Write, 0), FLUSH],
    budget: Budget {
        exchanges: 2,
        ..POWER
    },
    ..PLAIN
};

const SUSPEND: Setup = Setup {
    name: "suspend",
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Read, 0),
    ],
    budget: Budget {
        suspensions: 1,
        exchanges: 1,
        ..KILL
    },
    ..PLAIN
};

const SWEEP: Setup = Setup {
    name: "sweep",
    regions: 1,
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    budget: KILL,
    sweeps: true,
    ..PLAIN
};

const SWEEP_POWER: Setup = Setup {
    name: "sweep-power",
    regions: 2,
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 1),
    ],
    budget: POWER,
    ..SWEEP
};

/// The start of a migration, and its end.
const START: Setup = Setup {
    name: "start",
    start: Start::Single,
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Read, 0),
    ],
    budget: Budget {
        starts: 1,
        ends: 1,
        ..KILL
    },
    ..PLAIN
};

const START_POWER: Setup = Setup {
    name: "start-power",
    requests: &[one(OperatorRequest::Write, 0), FLUSH],
    budget: Budget {
        starts: 1,
        exchanges: 1,
        ends: 1,
        ..POWER
    },
    ..START
};

/// A migration is cancelled and started again, with a dead copier.
const CANCEL: Setup = Setup {
    name: "cancel",
    regions: 1,
    start: Start::Mirrored { dirty: 1 },
    requests: &[one(OperatorRequest::Write, 0)],
    budget: Budget {
        starts: 1,
        ends: 2,
        copier_deaths: 1,
        exchanges: 1,
        ..NOTHING
    },
    ..PLAIN
};

/// A mirror leg hangs and is given up; a new mirror leg is added, twice.
const RESTART: Setup = Setup {
    name: "restart",
    regions: 1,
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    budget: Budget {
        starts: 2,
        ends: 1,
        ..NOTHING
    },
    patience: true,
    ..PLAIN
};

/// A flush of the mirror leg fails, and the leg loses what it had cached.
const FLUSH_FAILS: Setup = Setup {
    name: "flush-fails",
    requests: &[one(OperatorRequest::Write, 0)],
    budget: Budget {
        mirror_faults: 1,
        exchanges: 1,
        ..NOTHING
    },
    sweeps: true,
    ..PLAIN
};

const MIRROR_FAILS: Setup = Setup {
    name: "mirror-fails",
    regions: 1,
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    budget: Budget {
        mirror_faults: 1,
        ..KILL
    },
    ..PLAIN
};

/// The mirror leg fails, and has lost data that it had acknowledged.
const MIRROR_LOSES: Setup = Setup {
    name: "mirror-loses",
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 1),
    ],
    budget: Budget {
        mirror_faults: 1,
        exchanges: 1,
        ..NOTHING
    },
    sweeps: true,
    ..PLAIN
};

/// The mirror leg has lost data that it had acknowledged, and a flush ends before that is known.
const MIRROR_RESETS: Setup = Setup {
    name: "mirror-resets",
    budget: Budget {
        mirror_faults: 1,
        ..NOTHING
    },
    resets: true,
    ..MIRROR_LOSES
};

/// A sweep, a switch or the application flushes the authoritative leg. The flush fails, and the leg
/// has lost data that it had acknowledged.
const FLUSH_LOSES: Setup = Setup {
    name: "flush-loses",
    regions: 1,
    requests: &[one(OperatorRequest::Write, 0), FLUSH, FLUSH],
    budget: Budget {
        authoritative_faults: 1,
        exchanges: 1,
        ..NOTHING
    },
    sweeps: true,
    ..PLAIN
};

/// As [`FLUSH_LOSES`], but the other leg takes over if it can.
const FLUSH_LOSES_OVER: Setup = Setup {
    name: "flush-loses-over",
    requests: &[one(OperatorRequest::Write, 0), FLUSH],
    policy: OnAuthoritativeFailure::Switch,
    budget: Budget {
        authoritative_faults: 1,
        exchanges: 1,
        ..NOTHING
    },
    ..FLUSH_LOSES
};

/// A world with one place. The mirror leg is given up while it still writes, and retried.
const STALL: Setup = Setup {
    name: "stall",
    places: 1,
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 1),
    ],
    budget: NOTHING,
    patience: true,
    ..PLAIN
};

/// The mirror leg never answers again.
const HANG: Setup = Setup {
    name: "hang",
    budget: Budget {
        suspensions: 1,
        exchanges: 1,
        ..NOTHING
    },
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    mirror_hangs: true,
    ..STALL
};

const MAP_FAILS: Setup = Setup {
    name: "map-fails",
    regions: 1,
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    budget: Budget {
        map_faults: 2,
        power_losses: 1,
        ..NOTHING
    },
    sweeps: true,
    ..PLAIN
};

/// A role record cannot be written: the process ends, and the next one reads the map file.
const ROLE_FAILS: Setup = Setup {
    name: "role-fails",
    requests: &[one(OperatorRequest::Write, 0)],
    budget: Budget {
        map_faults: 2,
        exchanges: 2,
        ..POWER
    },
    ..PLAIN
};

const FAIL_OVER: Setup = Setup {
    name: "fail-over",
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
        FLUSH,
    ],
    budget: Budget {
        authoritative_faults: 1,
        ..KILL
    },
    policy: OnAuthoritativeFailure::Switch,
    ..PLAIN
};

/// Reads from the mirror leg, and writes that fail.
const READS: Setup = Setup {
    name: "reads",
    start: Start::Mirrored { dirty: 0b10 },
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Read, 0),
        one(OperatorRequest::Read, 1),
    ],
    budget: Budget {
        authoritative_faults: 2,
        mirror_faults: 1,
        ..NOTHING
    },
    ..PLAIN
};

/// Writes go to the source alone; the rest is copied while requests are held.
const TRACK: Setup = Setup {
    name: "track",
    regions: 1,
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    budget: Budget {
        exchanges: 1,
        copier_deaths: 1,
        ..NOTHING
    },
    mode: CopyMode::Track,
    ..PLAIN
};

const TRACK_KILL: Setup = Setup {
    name: "track-kill",
    requests: &[one(OperatorRequest::Write, 0)],
    budget: Budget {
        exchanges: 2,
        ..KILL
    },
    ..TRACK
};

const TRACK_POWER: Setup = Setup {
    name: "track-power",
    requests: &[one(OperatorRequest::Write, 0), FLUSH],
    budget: Budget {
        exchanges: 1,
        ..POWER
    },
    sweeps: true,
    ..TRACK
};

/// The copy mode changes between mirroring and tracking, also during a copy.
const TRACK_MODES: Setup = Setup {
    name: "track-modes",
    regions: 1,
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    budget: Budget {
        exchanges: 1,
        modes: 2,
        ..NOTHING
    },
    mode: CopyMode::Mirror,
    ..PLAIN
};

/// The target becomes a copy at an instant, and is mirrored onto again.
const SPLIT: Setup = Setup {
    name: "split",
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    budget: Budget {
        splits: 1,
        ..NOTHING
    },
    ..PLAIN
};

const SPLIT_KILL: Setup = Setup {
    name: "split-kill",
    regions: 1,
    requests: &[
        one(OperatorRequest::Write, 0),
        one(OperatorRequest::Write, 0),
    ],
    budget: Budget {
        splits: 1,
        ends: 1,
        ..KILL
    },
    ..PLAIN
};

const SPLIT_POWER: Setup = Setup {
    name: "split-power",
    regions: 1,
    requests: &[one(OperatorRequest::Write, 0), FLUSH],
    budget: Budget {
        splits: 1,
        mirror_faults: 1,
        ..POWER
    },
    sweeps: true,
    ..PLAIN
};
