//! The events, which can happen next, and what they do to a world.

mod happen;
mod possible;
mod progress;

pub(crate) use happen::apply;
pub(crate) use possible::all;
pub(crate) use progress::{progress, settled};

use seeded_core::volume::Timer;

use crate::{disk::RoleFate, world::Outcome};

/// An operation of the operator that changes the route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Start,
    Exchange,
    /// Splits the target off as a copy.
    Split,
    /// Mirrors onto the split target again.
    Join,
    /// Commit or cancel.
    End,
}

/// What a power loss leaves of a LUN. The checker examines the fate of every block by its own
/// rules; the exploration continues from these outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheFate {
    /// Only what is on stable storage.
    Lost,
    /// All completed writes.
    Kept,
    /// All completed writes, and those in flight.
    Landed,
}

/// An event. I/O, regions and ghosts are identified by their index in the lists of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The application issues a request.
    Issue(u8),
    /// The driver delivers a request again, after a death of ublk-target.
    Deliver(u8),
    IoDone(u8, Outcome),
    MapWritten(Outcome),
    RoleWritten(Outcome),
    DescriptorWritten,
    CopierOpens,
    CopierClaims,
    /// The copier does its next step with a region. `true`: its read sees the writes in flight
    /// there.
    CopierCopies(u8, bool),
    CopierEnds,
    CopierDies,
    LateReport,
    /// The copier reports a region that it has claimed, with an older epoch.
    OldReport(u8),
    GhostLands(u8),
    GhostVanishes(u8),
    Changes(Change),
    Suspends,
    Resumes,
    RetriesMirror,
    /// A mirror leg that was given up loses the contents of its cache.
    MirrorForgets,
    /// The mirror leg loses its power for a moment: this write to it will fail, but ublk-target
    /// does not know yet.
    MirrorResets(u8),
    /// The copy mode changes between mirroring and tracking.
    ChangesMode,
    Tick(Timer),
    /// ublk-target dies. Of the writes in flight, those of the mask reach the media.
    Kill(u16),
    /// The host loses its power.
    PowerLoss {
        luns: [CacheFate; 2],
        dirty: bool,
        intent: bool,
        role: RoleFate,
    },
}
