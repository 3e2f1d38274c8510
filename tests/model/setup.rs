//! The initial state of a world, and the events that may happen in it.

use seeded_core::volume::{CopyMode, OnAuthoritativeFailure, SeededBug};

/// The maximum number of blocks of a world.
pub(crate) const BLOCKS_MAX: usize = 4;

/// The operation of a request of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperatorRequest {
    Read,
    Write,
    ForcedWrite,
    Flush,
}

/// A request of the application, which is issued once, at any moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) ask: OperatorRequest,
    pub(crate) first: usize,
    pub(crate) blocks: usize,
}

/// A request for one block.
pub(crate) const fn one(ask: OperatorRequest, first: usize) -> Request {
    Request {
        ask,
        first,
        blocks: 1,
    }
}

/// A request for two blocks.
pub(crate) const fn two(ask: OperatorRequest, first: usize) -> Request {
    Request {
        ask,
        first,
        blocks: 2,
    }
}

pub(crate) const FLUSH: Request = Request {
    ask: OperatorRequest::Flush,
    first: 0,
    blocks: 0,
};

/// The route at the start. The target differs from the source where it is dirty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Single,
    /// `Mirrored{source}`; these regions (one bit each) are marked in the dirty bitmap.
    Mirrored {
        dirty: u8,
    },
}

/// How often each kind of event may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Budget {
    /// Deaths of ublk-target.
    pub(crate) kills: u8,
    pub(crate) power_losses: u8,
    pub(crate) copier_deaths: u8,
    /// Writes and flushes that the mirror leg fails.
    pub(crate) mirror_faults: u8,
    /// Requests that the authoritative leg fails.
    pub(crate) authoritative_faults: u8,
    /// Writes to the map file that fail.
    pub(crate) map_faults: u8,
    /// Exchanges of the roles that the operator asks for.
    pub(crate) exchanges: u8,
    /// Splits. A split target can always be mirrored onto again.
    pub(crate) splits: u8,
    /// Starts of a migration.
    pub(crate) starts: u8,
    /// Commits and cancels.
    pub(crate) ends: u8,
    pub(crate) suspensions: u8,
    /// Changes between mirroring and tracking.
    pub(crate) modes: u8,
}

/// The setup of a world.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) name: &'static str,
    pub(crate) regions: usize,
    pub(crate) blocks_per_region: usize,
    pub(crate) start: Start,
    pub(crate) requests: &'static [Request],
    /// Writes to the mirror leg that may be in flight at once.
    pub(crate) places: usize,
    pub(crate) budget: Budget,
    pub(crate) policy: OnAuthoritativeFailure,
    pub(crate) mode: CopyMode,
    /// Whether marks are swept.
    pub(crate) sweeps: bool,
    /// Whether a request can wait longer than the patience of the volume.
    pub(crate) patience: bool,
    /// Whether the mirror leg can lose its cache before one of its writes is known to have failed.
    pub(crate) resets: bool,
    /// Whether the mirror leg never answers while the world settles; the application must still be
    /// served.
    pub(crate) mirror_hangs: bool,
    /// The rule that the core breaks in this world.
    pub(crate) broken: Option<SeededBug>,
}

impl Setup {
    pub(crate) const fn blocks(&self) -> usize {
        self.regions * self.blocks_per_region
    }

    /// The blocks of a region.
    pub(crate) const fn of_region(&self, region: usize) -> core::ops::Range<usize> {
        region * self.blocks_per_region..(region + 1) * self.blocks_per_region
    }
}

/// The base of the other worlds: two regions in sync, no failures.
pub(crate) const PLAIN: Setup = Setup {
    name: "plain",
    regions: 2,
    blocks_per_region: 1,
    start: Start::Mirrored { dirty: 0 },
    requests: &[],
    places: 2,
    budget: Budget {
        kills: 0,
        power_losses: 0,
        copier_deaths: 0,
        mirror_faults: 0,
        authoritative_faults: 0,
        map_faults: 0,
        exchanges: 0,
        splits: 0,
        starts: 0,
        ends: 0,
        suspensions: 0,
        modes: 0,
    },
    policy: OnAuthoritativeFailure::Error,
    mode: CopyMode::Mirror,
    sweeps: false,
    patience: false,
    resets: false,
    mirror_hangs: false,
    broken: None,
};
