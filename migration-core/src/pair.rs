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

use alloc::vec::Vec;
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

/// What happens to a phase that was stored before a crash, once the volume's route is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settlement {
    /// There is nothing to settle.
    Nothing,
    /// The phase becomes this one; the route says that the change has happened, or that it has not.
    Becomes(Phase),
    /// The change can only be finished: the verb is to be performed again, if the session allows it
    /// ([`session::can_finish`](crate::session::can_finish)).
    Finish(Verb),
    /// The route contradicts the phase; the operator decides.
    Contradiction,
}

/// Decides what to do about a pair whose volume has just answered, while no operation on the pair
/// is running.
///
/// While the volume is changing its route, nothing is decided: a change outlives the shuntd that
/// asked for it. An example is a start that was given up and happens all the same.
///
/// A start and a change of role that did not happen are taken back: the operator can ask again. A
/// commit and a cancel are finished, because other pairs of the session may have ended already.
/// They are not finished if the role has moved automatically in the meantime: then the leg to be
/// dropped is authoritative.
#[must_use]
pub fn settle(phase: Phase, seen: &Seen) -> Settlement {
    let mirrored = seen.mirrored();
    match phase {
        // It is not known yet whether the change succeeds.
        _ if seen.changing => Settlement::Nothing,
        Phase::Committed | Phase::Cancelled => Settlement::Nothing,
        Phase::Setup | Phase::Queued => match mirrored {
            Some(_) => Settlement::Becomes(Phase::Active),
            None => Settlement::Nothing,
        },
        // A copy does not count before all volumes of the session have been held at the same time.
        Phase::Splitting => match mirrored {
            Some(_) => Settlement::Becomes(Phase::Active),
            None if seen.is_split() => Settlement::Becomes(Phase::Active),
            None => Settlement::Contradiction,
        },
        Phase::Split => match mirrored {
            Some(_) => Settlement::Becomes(Phase::Active),
            None if seen.is_split() => Settlement::Nothing,
            None => Settlement::Contradiction,
        },
        Phase::Starting => match mirrored {
            Some(_) => Settlement::Becomes(Phase::Active),
            // The target was to be mirrored onto again, and that has not begun.
            None if seen.is_split() => Settlement::Becomes(Phase::Active),
            None => Settlement::Becomes(Phase::Setup),
        },
        Phase::Active => match mirrored {
            Some(_) => Settlement::Nothing,
            None if seen.is_split() => Settlement::Nothing,
            None => Settlement::Contradiction,
        },
        Phase::Switching | Phase::Undoing => match mirrored {
            Some(_) => Settlement::Becomes(Phase::Active),
            None => Settlement::Contradiction,
        },
        Phase::Committing => match (mirrored, seen.single()) {
            (Some(Side::Target), _) => Settlement::Finish(Verb::Commit),
            (Some(Side::Source), _) => Settlement::Becomes(Phase::Active),
            (None, Some(Side::Target)) => Settlement::Becomes(Phase::Committed),
            (None, Some(Side::Source) | None) => Settlement::Contradiction,
        },
        Phase::Cancelling => match (mirrored, seen.single()) {
            (Some(Side::Source), _) => Settlement::Finish(Verb::Cancel),
            (Some(Side::Target), _) => Settlement::Becomes(Phase::Active),
            (None, _) if seen.is_split() => Settlement::Finish(Verb::Cancel),
            (None, Some(Side::Source)) => Settlement::Becomes(Phase::Cancelled),
            (None, Some(Side::Target) | None) => Settlement::Contradiction,
        },
    }
}

/// What a verb leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Do what the verb asks.
    Do,
    /// Nothing to do: the pair is already in that state.
    Already,
    /// The verb is not allowed in this state.
    Refuse {
        /// The reason.
        reason: Reason,
    },
}

/// Why a verb is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The session has not been started.
    NotStarted,
    /// Other pairs are being copied first.
    Queued,
    /// The target is detached.
    Split,
    /// Regions are dirty, or may become so while the copy is stopped.
    NotInSync,
    /// The mirror leg has failed.
    MirrorFailed,
    /// The source is authoritative and must not be.
    SourceRules,
    /// The target is authoritative and must not be.
    TargetRules,
    /// A change is under way.
    UnderWay,
    /// The pair has ended.
    Ended,
    /// The volume does not answer, or its route contradicts what was recorded.
    NeedsRecovery,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStarted => "it has not been started",
            Self::Queued => "it waits for its turn",
            Self::Split => "the target is a detached copy",
            Self::NotInSync => "the two legs are not in sync",
            Self::MirrorFailed => "the leg that is not authoritative has failed",
            Self::SourceRules => "the source is authoritative",
            Self::TargetRules => "the target is authoritative",
            Self::UnderWay => "a change is under way",
            Self::Ended => "it has ended",
            Self::NeedsRecovery => {
                "the volume does not answer, or its route is not the one that was recorded"
            }
        })
    }
}

/// Decides whether a verb is allowed, as in the second table of the module.
#[must_use]
pub fn decide(verb: Verb, position: Position) -> Decision {
    use Decision::{Already, Do};
    const fn refuse(reason: Reason) -> Decision {
        Decision::Refuse { reason }
    }
    match position.state {
        PairState::Setup => match verb {
            Verb::Start | Verb::Cancel => Do,
            Verb::Pause | Verb::Resume | Verb::Switch | Verb::Undo | Verb::Split | Verb::Commit => {
                refuse(Reason::NotStarted)
            }
        },
        PairState::Queued => match verb {
            Verb::Start | Verb::Resume => Already,
            Verb::Pause | Verb::Cancel => Do,
            Verb::Switch | Verb::Undo | Verb::Split | Verb::Commit => refuse(Reason::Queued),
        },
        PairState::Syncing => match verb {
            Verb::Start | Verb::Resume => Already,
            Verb::Pause => Do,
            Verb::Switch | Verb::Undo | Verb::Split => refuse(Reason::NotInSync),
            Verb::Commit | Verb::Cancel => decide_end(verb, position.authoritative),
        },
        PairState::Tracking => match verb {
            Verb::Start | Verb::Resume | Verb::Undo => Already,
            Verb::Pause | Verb::Switch => Do,
            Verb::Split => refuse(Reason::NotInSync),
            Verb::Commit | Verb::Cancel => decide_end(verb, Side::Source),
        },
        PairState::Paused => match verb {
            Verb::Start | Verb::Pause => Already,
            Verb::Resume => Do,
            Verb::Switch | Verb::Undo | Verb::Split => refuse(Reason::NotInSync),
            Verb::Commit | Verb::Cancel => decide_end(verb, position.authoritative),
        },
        PairState::Degraded => match verb {
            Verb::Start => Already,
            Verb::Pause | Verb::Resume => Do,
            Verb::Switch | Verb::Undo | Verb::Split => refuse(Reason::MirrorFailed),
            Verb::Commit | Verb::Cancel => decide_end(verb, position.authoritative),
        },
        PairState::SourceSelected => match verb {
            Verb::Start | Verb::Resume | Verb::Undo => Already,
            Verb::Pause | Verb::Switch | Verb::Split => Do,
            Verb::Commit | Verb::Cancel => decide_end(verb, Side::Source),
        },
        PairState::Split => match verb {
            Verb::Start | Verb::Split => Already,
            Verb::Pause | Verb::Resume => Do,
            Verb::Switch | Verb::Undo => refuse(Reason::Split),
            Verb::Commit | Verb::Cancel => decide_end(verb, Side::Source),
        },
        PairState::TargetSelected => match verb {
            Verb::Start | Verb::Resume | Verb::Switch => Already,
            Verb::Pause | Verb::Undo => Do,
            Verb::Split => refuse(Reason::TargetRules),
            Verb::Commit | Verb::Cancel => decide_end(verb, Side::Target),
        },
        PairState::Switching | PairState::Splitting => refuse(Reason::UnderWay),
        PairState::Verifying => {
            let state = selected(position.authoritative);
            decide(verb, Position { state, ..position })
        }
        PairState::Committing => match verb {
            Verb::Commit => Do,
            Verb::Start
            | Verb::Pause
            | Verb::Resume
            | Verb::Switch
            | Verb::Undo
            | Verb::Split
            | Verb::Cancel => refuse(Reason::UnderWay),
        },
        PairState::Committed | PairState::Retired => match verb {
            Verb::Commit => Already,
            Verb::Start
            | Verb::Pause
            | Verb::Resume
            | Verb::Switch
            | Verb::Undo
            | Verb::Split
            | Verb::Cancel => refuse(Reason::Ended),
        },
        PairState::Cancelled => match verb {
            Verb::Cancel => Already,
            Verb::Start
            | Verb::Pause
            | Verb::Resume
            | Verb::Switch
            | Verb::Undo
            | Verb::Split
            | Verb::Commit => refuse(Reason::Ended),
        },
        PairState::Failed | PairState::NeedsRecovery => match verb {
            Verb::Commit | Verb::Cancel => decide_end(verb, position.authoritative),
            Verb::Start | Verb::Pause | Verb::Resume | Verb::Switch | Verb::Undo | Verb::Split => {
                refuse(Reason::NeedsRecovery)
            }
        },
    }
}

/// Decides about a commit or a cancel. A commit needs nothing of the source, and a cancel nothing
/// of the target: only the leg that stays must be authoritative.
const fn decide_end(verb: Verb, authoritative: Side) -> Decision {
    match (verb, authoritative) {
        (Verb::Commit, Side::Source) => Decision::Refuse {
            reason: Reason::SourceRules,
        },
        (Verb::Cancel, Side::Target) => Decision::Refuse {
            reason: Reason::TargetRules,
        },
        (
            Verb::Start
            | Verb::Pause
            | Verb::Resume
            | Verb::Switch
            | Verb::Undo
            | Verb::Split
            | Verb::Commit
            | Verb::Cancel,
            Side::Source | Side::Target,
        ) => Decision::Do,
    }
}

/// The verbs that would change something, in the order in which a migration uses them.
#[must_use]
pub fn allowed(position: Position) -> Vec<Verb> {
    Verb::ALL
        .into_iter()
        .filter(|verb| decide(*verb, position) == Decision::Do)
        .collect()
}

#[cfg(test)]
mod tests;
