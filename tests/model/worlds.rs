//! The worlds. Each is small enough for a complete exploration, and has its own kinds of failures.

use seeded_core::volume::{CopyMode, OnAuthoritativeFailure};

use crate::setup::{Budget, FLUSH, OperatorRequest, PLAIN, Setup, Start, one, two};

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

/// Two writes to one block while its region is copied.
pub(crate) const COPY: Setup = Setup {
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
pub(crate) const COPY_THREE: Setup = Setup {
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
pub(crate) const AGAIN: Setup = Setup {
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

pub(crate) const SWITCH: Setup = Setup {
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

pub(crate) const SWITCH_POWER: Setup = Setup {
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

pub(crate) const UNDO: Setup = Setup {
    name: "undo",
    requests: &[one(OperatorRequest::Write, 0), FLUSH],
    budget: Budget {
        exchanges: 2,
        ..POWER
    },
    ..PLAIN
};

pub(crate) const SUSPEND: Setup = Setup {
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

pub(crate) const SWEEP: Setup = Setup {
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

pub(crate) const SWEEP_POWER: Setup = Setup {
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
pub(crate) const START: Setup = Setup {
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
pub(crate) const CANCEL: Setup = Setup {
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
pub(crate) const RESTART: Setup = Setup {
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
pub(crate) const FLUSH_FAILS: Setup = Setup {
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

pub(crate) const MIRROR_FAILS: Setup = Setup {
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
pub(crate) const MIRROR_LOSES: Setup = Setup {
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
pub(crate) const MIRROR_RESETS: Setup = Setup {
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
pub(crate) const FLUSH_LOSES: Setup = Setup {
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
pub(crate) const STALL: Setup = Setup {
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
pub(crate) const HANG: Setup = Setup {
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

pub(crate) const FAIL_OVER: Setup = Setup {
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
pub(crate) const READS: Setup = Setup {
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
pub(crate) const TRACK: Setup = Setup {
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
pub(crate) const SPLIT: Setup = Setup {
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

pub(crate) const SPLIT_POWER: Setup = Setup {
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
