//! The state of a pair, and what an operator may do in it.
//!
//! A pair's state is never stored. It is derived ([`Facts::position`]) from what the operator asked
//! for (the [`Phase`], durable in shuntd's database) and from what the volume's ublk-target reports
//! ([`Seen`]). The route that ublk-target reports is the truth.
//!
//! ```text
//!   setup --start--> queued --mirror added--> syncing <--pause/resume--> paused
//!     |                                        |   ^
//!   cancel                            nothing dirty| a region turned dirty
//!     v                                        v   |
//!  cancelled <--cancel-- (source rules)   source-selected -switch--> switching --> target-selected
//!                                               ^                                    |      |
//!                                               +------------- switching <--undo-----+    commit
//!                                                                                           v
//!                                                            committed <------------ committing
//! ```
//!
//! `degraded` takes the place of `syncing`, `paused`, `source-selected` and `target-selected` while
//! the mirror leg has failed. `verifying` takes the place of the last two while the legs are
//! compared: the same verbs are allowed, and they end the comparison. `needs-recovery` says that
//! the volume does not answer, or that its route contradicts the phase.
//!
//! From `source-selected` a `split` leads over `splitting` to `split`: the target is detached, as a
//! copy of the source at an instant. A `resume` mirrors onto the target again. The route alone does
//! not say that a copy counts. The volumes of a session are split one by one, and the phase becomes
//! `split` only when all of them were held at the same time.
//!
//! The first table derives the state (`ours` = mirrored, from and to the LUNs that this pair
//! recorded; `Single(side)` = the LUN that this pair recorded for that side). The first row that
//! fits counts.
//!
//! | phase | volume | state |
//! |---|---|---|
//! | splitting | ours, or split from it | splitting |
//! | any that has not ended | is changing its route | switching |
//! | setup | any | setup |
//! | queued | ours, or split from it | as active |
//! | queued | otherwise | paused if the session is, else queued |
//! | starting | ours, or split from it | as active |
//! | starting | otherwise | queued |
//! | active | ours | see below |
//! | active | split from ours | paused |
//! | active | otherwise | needs-recovery |
//! | splitting | otherwise | needs-recovery |
//! | split | split from ours | split |
//! | split | otherwise | as active |
//! | switching, undoing | ours | switching |
//! | switching, undoing | otherwise | needs-recovery |
//! | committing | ours or `Single(target)` | committing |
//! | committing | otherwise | needs-recovery |
//! | cancelling | ours, split from it, or `Single(source)` | paused |
//! | cancelling | otherwise | needs-recovery |
//! | committed | any | retired if the source is, else committed |
//! | cancelled | any | cancelled |
//!
//! `active` and `ours`: degraded; else paused (also outside its hours, if there is something to
//! copy); else tracking if the volume tracks; else syncing if dirty; else verifying if the legs are
//! being compared; else source- or target-selected.
//!
//! The second table says what a verb does: `D` it is done, `=` nothing to do, it is already done,
//! `.` it is refused. Two letters: with the source / the target authoritative.
//!
//! | state | start | pause | resume | switch | undo | split | commit | cancel |
//! |---|---|---|---|---|---|---|---|---|
//! | setup | D | . | . | . | . | . | . | D |
//! | queued | = | D | = | . | . | . | . | D |
//! | syncing | = | D | = | . | . | . | ./D | D/. |
//! | tracking | = | D | = | D | = | . | . | D |
//! | paused | = | = | D | . | . | . | ./D | D/. |
//! | degraded | = | D | D | . | . | . | ./D | D/. |
//! | source-selected | = | D | = | D | = | D | . | D |
//! | splitting | . | . | . | . | . | . | . | . |
//! | split | = | D | D | . | . | = | . | D |
//! | target-selected | = | D | = | = | D | . | D | . |
//! | switching | . | . | . | . | . | . | . | . |
//! | verifying | = | D | = | D/= | =/D | D/. | ./D | D/. |
//! | committing | . | . | . | . | . | . | D | . |
//! | committed | . | . | . | . | . | . | = | . |
//! | retired | . | . | . | . | . | . | = | . |
//! | cancelled | . | . | . | . | . | . | . | = |
//! | failed | . | . | . | . | . | . | ./D | D/. |
//! | needs-recovery | . | . | . | . | . | . | ./D | D/. |

mod decision;
mod settlement;

pub use decision::{Decision, Reason, allowed, decide};
pub use settlement::{Settlement, has_switched, settle};

use core::fmt;

use crate::route::{Route, Side};

/// The state of a pair as the operator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PairState {
    /// Recorded and checked; nothing is mirrored.
    Setup,
    /// The start is asked for. The mirror leg is not added yet, because other pairs are being
    /// copied first.
    Queued,
    /// Both legs are written; dirty regions are being copied.
    Syncing,
    /// Writes go to the source alone, and are copied to the target in passes.
    Tracking,
    /// The operator stopped the copy.
    Paused,
    /// In sync, both legs are written, reads come from the source.
    SourceSelected,
    /// The target is being detached.
    Splitting,
    /// The target is a copy of the source at an instant; what was written since is dirty.
    Split,
    /// The role is moving from one leg to the other.
    Switching,
    /// In sync, both legs are written, reads come from the target.
    TargetSelected,
    /// The mirror leg is being dropped; the target stays.
    Committing,
    /// The target alone is used.
    Committed,
    /// The target alone is used, and the source was made inaccessible.
    Retired,
    /// The migration ended on the source.
    Cancelled,
    /// The migration ended with an error. No facts lead here yet.
    Failed,
    /// The volume does not answer, or its route contradicts what was recorded.
    NeedsRecovery,
    /// The mirror leg failed; the authoritative leg serves alone, and the map records what to copy.
    Degraded,
    /// The legs are being compared.
    Verifying,
}

impl PairState {
    /// Every state.
    pub const ALL: [Self; 18] = [
        Self::Setup,
        Self::Queued,
        Self::Syncing,
        Self::Tracking,
        Self::Paused,
        Self::SourceSelected,
        Self::Splitting,
        Self::Split,
        Self::Switching,
        Self::TargetSelected,
        Self::Committing,
        Self::Committed,
        Self::Retired,
        Self::Cancelled,
        Self::Failed,
        Self::NeedsRecovery,
        Self::Degraded,
        Self::Verifying,
    ];

    /// The name that the operator reads and types.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Queued => "queued",
            Self::Syncing => "syncing",
            Self::Tracking => "tracking",
            Self::Paused => "paused",
            Self::SourceSelected => "source-selected",
            Self::Splitting => "splitting",
            Self::Split => "split",
            Self::Switching => "switching",
            Self::TargetSelected => "target-selected",
            Self::Committing => "committing",
            Self::Committed => "committed",
            Self::Retired => "retired",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::NeedsRecovery => "needs-recovery",
            Self::Degraded => "degraded",
            Self::Verifying => "verifying",
        }
    }

    /// Whether the pair has ended for good: it does not touch the volume any more.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Committed | Self::Retired | Self::Cancelled)
    }
}

impl fmt::Display for PairState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an operator asks of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Begin to mirror and copy.
    Start,
    /// Stop copying.
    Pause,
    /// Continue copying.
    Resume,
    /// Make the target authoritative.
    Switch,
    /// Make the source authoritative again.
    Undo,
    /// Detach the target, as a copy of the source at an instant.
    Split,
    /// End on the target.
    Commit,
    /// End on the source.
    Cancel,
}

impl Verb {
    /// Every verb, in the order in which a migration uses them.
    pub const ALL: [Self; 8] = [
        Self::Start,
        Self::Pause,
        Self::Resume,
        Self::Switch,
        Self::Undo,
        Self::Split,
        Self::Commit,
        Self::Cancel,
    ];

    /// The word that the operator types.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Switch => "switch",
            Self::Undo => "undo",
            Self::Split => "split",
            Self::Commit => "commit",
            Self::Cancel => "cancel",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the operator asked for, as it is stored before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Created.
    Setup,
    /// To be started as soon as fewer pairs are being copied.
    Queued,
    /// The mirror leg is being added.
    Starting,
    /// Mirrored; no change is under way.
    Active,
    /// The targets of the session are being detached.
    Splitting,
    /// All targets of the session were detached at one instant.
    Split,
    /// The role is moving to the target.
    Switching,
    /// The role is moving back to the source.
    Undoing,
    /// The source is being dropped.
    Committing,
    /// The source was dropped.
    Committed,
    /// The target is being dropped.
    Cancelling,
    /// The target was dropped, or never added.
    Cancelled,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 12] = [
        Self::Setup,
        Self::Queued,
        Self::Starting,
        Self::Active,
        Self::Splitting,
        Self::Split,
        Self::Switching,
        Self::Undoing,
        Self::Committing,
        Self::Committed,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// The name that is stored.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Splitting => "splitting",
            Self::Split => "split",
            Self::Switching => "switching",
            Self::Undoing => "undoing",
            Self::Committing => "committing",
            Self::Committed => "committed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// The phase with this stored name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }

    /// Whether the pair is ending on the source, or has ended there.
    #[must_use]
    pub const fn is_cancelled(self) -> bool {
        matches!(self, Self::Cancelling | Self::Cancelled)
    }

    /// Whether the phase is the last one.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Committed | Self::Cancelled)
    }
}

/// What the volume's ublk-target reported last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The route.
    pub route: Route,
    /// Whether the legs that the route uses are the LUNs that this pair recorded.
    pub ours: bool,
    /// Whether the mirror leg may differ anywhere.
    pub dirty: bool,
    /// Whether writes go to the source alone, to be copied in passes.
    pub tracks: bool,
    /// Whether the mirror leg has failed.
    pub degraded: bool,
    /// Whether a change of the route is in progress, even if another session asked for it.
    pub changing: bool,
}

impl Seen {
    /// The authoritative leg, if the volume is mirrored as this pair recorded.
    #[must_use]
    pub const fn mirrored(&self) -> Option<Side> {
        match self.route {
            Route::Mirrored { authoritative } if self.ours => Some(authoritative),
            Route::Mirrored { .. } | Route::Split | Route::Single(_) => None,
        }
    }

    /// Whether the volume is split, and its target is the one that this pair recorded.
    #[must_use]
    pub const fn is_split(&self) -> bool {
        self.ours && matches!(self.route, Route::Split)
    }

    /// The leg that is used alone, if it is the LUN that this pair recorded for that side. In
    /// another session the same side can be a different LUN.
    #[must_use]
    pub const fn single(&self) -> Option<Side> {
        match self.route {
            Route::Single(side) if self.ours => Some(side),
            Route::Single(_) | Route::Mirrored { .. } | Route::Split => None,
        }
    }
}

/// Everything that a pair's state follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Facts {
    /// What the operator asked for.
    pub phase: Phase,
    /// Whether the operator stopped the copy.
    pub paused: bool,
    /// The side that was authoritative when the volume was last seen.
    pub last_authoritative: Side,
    /// What the volume reports; `None` while it does not answer.
    pub seen: Option<Seen>,
    /// Whether the legs are being compared.
    pub comparing: bool,
    /// Whether the leg that is no longer used was made inaccessible.
    pub retired: bool,
    /// Whether the pair is not to be copied at this time of the day.
    pub outside_hours: bool,
}

/// The state together with the authoritative side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The state.
    pub state: PairState,
    /// The authoritative side, in this pair's terms.
    pub authoritative: Side,
}

impl Facts {
    /// The pair's state, as in the first table of the module.
    #[must_use]
    pub fn position(&self) -> Position {
        let mirrored = self.seen.and_then(|seen| seen.mirrored());
        let split = self.seen.is_some_and(|seen| seen.is_split());
        let single = match split {
            true => Some(Side::Source),
            false => self.seen.and_then(|seen| seen.single()),
        };
        let authoritative = match self.phase {
            Phase::Setup | Phase::Cancelled => Side::Source,
            Phase::Committed => Side::Target,
            // Before the mirror leg is added, the volume's leg is the source of this pair, whatever
            // it was in an earlier pair.
            Phase::Queued | Phase::Starting => mirrored.unwrap_or(Side::Source),
            Phase::Active
            | Phase::Splitting
            | Phase::Split
            | Phase::Switching
            | Phase::Undoing
            | Phase::Committing
            | Phase::Cancelling => mirrored.or(single).unwrap_or(self.last_authoritative),
        };
        let changing = self.seen.is_some_and(|seen| seen.changing);
        let state = match self.phase {
            Phase::Splitting if mirrored.is_some() || split => PairState::Splitting,
            // The change may be that of a shuntd that died.
            _ if changing && !self.phase.is_ended() => PairState::Switching,
            Phase::Setup => PairState::Setup,
            Phase::Committed if self.retired => PairState::Retired,
            Phase::Committed => PairState::Committed,
            Phase::Cancelled => PairState::Cancelled,
            Phase::Queued => self.while_mirrored().unwrap_or(if self.paused {
                PairState::Paused
            } else {
                PairState::Queued
            }),
            Phase::Starting => self.while_mirrored().unwrap_or(PairState::Queued),
            Phase::Split if split => PairState::Split,
            Phase::Active | Phase::Split => {
                self.while_mirrored().unwrap_or(PairState::NeedsRecovery)
            }
            Phase::Switching | Phase::Undoing if mirrored.is_some() => PairState::Switching,
            Phase::Committing if mirrored.is_some() || single == Some(Side::Target) => {
                PairState::Committing
            }
            Phase::Cancelling if mirrored.is_some() || single == Some(Side::Source) => {
                PairState::Paused
            }
            Phase::Splitting
            | Phase::Switching
            | Phase::Undoing
            | Phase::Committing
            | Phase::Cancelling => PairState::NeedsRecovery,
        };
        Position {
            state,
            authoritative,
        }
    }

    fn while_mirrored(&self) -> Option<PairState> {
        let seen = self.seen?;
        if seen.is_split() {
            return Some(PairState::Paused);
        }
        let authoritative = seen.mirrored()?;
        Some(if seen.degraded {
            PairState::Degraded
        } else if self.paused || (self.outside_hours && (seen.tracks || seen.dirty)) {
            PairState::Paused
        } else if seen.tracks {
            PairState::Tracking
        } else if seen.dirty {
            PairState::Syncing
        } else if self.comparing {
            PairState::Verifying
        } else {
            selected(authoritative)
        })
    }

    /// Whether the pair is to be started when a place is free.
    #[must_use]
    pub fn wants_place(&self) -> bool {
        let queued = matches!(self.phase, Phase::Queued);
        queued && !self.outside_hours && matches!(self.position().state, PairState::Queued)
    }

    /// Whether the pair has a place: it is being copied, or is about to be.
    #[must_use]
    pub fn holds_place(&self) -> bool {
        matches!(self.phase, Phase::Starting) || self.wants_copier()
    }

    /// Whether a copier should be running.
    #[must_use]
    pub fn wants_copier(&self) -> bool {
        let position = self.position();
        matches!(self.phase, Phase::Active)
            && matches!(position.state, PairState::Syncing | PairState::Tracking)
    }
}

/// The state of a pair whose legs are equal.
const fn selected(authoritative: Side) -> PairState {
    match authoritative {
        Side::Source => PairState::SourceSelected,
        Side::Target => PairState::TargetSelected,
    }
}

#[cfg(test)]
mod tests;
