//! What a verb does to the pairs of a session, step by step.
//!
//! An [`Operation`] is begun with what the session looks like, and returns [`Effect`]s. The caller
//! performs each of them and hands back the [`Event`] that it led to; the operation answers with
//! the next effects, and the last one is [`Effect::End`]. There is one effect at a time, except in
//! a split, which asks all volumes at the same time.
//!
//! Every change has the same order: what is intended is durable, then the volume is asked, then
//! what the volume did is durable. An operation can be dropped after any effect (shuntd may die);
//! [`pair::settle`](crate::pair::settle) then finds the phase that follows from the route.
//!
//! A volume that does not answer may still do what it was asked for. That is
//! [`Answer::Unknown`]: the phase stays as it is, and the next report of the volume settles it.
//! An unknown outcome is never recorded as "not done".
//!
//! | verb | module | steps |
//! |---|---|---|
//! | start | [`start`] | check, record, for each pair: mark the target, add it, record |
//! | switch, undo | [`roles`] | stop copiers, record, for each pair: move, record; or all back |
//! | commit, cancel | [`end`] | look, stop copiers, record, for each pair: drop a leg, record |
//! | split | [`split`] | stop copiers, record, split all, release all, record, seal |
//! | pause | [`pause`] | stop copiers, record |
//! | resume | [`resume`] | check, record, mirror onto split targets again, retry failed ones |
//! | recover | [`recover`] | examine, record, end ublk-target, make the map file, serve |
//!
//! The last one is no verb of a session: it concerns a volume whose map file is lost or damaged.

pub mod end;
mod mirror_again;
pub mod pause;
pub mod recover;
pub mod resume;
pub mod roles;
mod seeded;
pub mod split;
pub mod start;
#[cfg(test)]
mod tests;

use alloc::vec;
use alloc::vec::Vec;

use crate::pair::{Phase, Seen, Verb};
use crate::route::{Route, Side};
#[cfg(feature = "seeded-bugs")]
pub use seeded::Rule as SeededBug;

/// What the caller performs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Stop the copiers of the session, and wait until none of them writes any more. Answered by
    /// [`Event::CopiersStopped`].
    StopCopiers,
    /// Check that the targets of these pairs may be written. Answered by [`Event::Checked`].
    CheckTargets(Vec<usize>),
    /// Check that no volume of these pairs lies on itself. Answered by [`Event::Checked`].
    CheckStanding(Vec<usize>),
    /// Make all of this durable, or nothing of it. Answered by [`Event::Recorded`]. If it cannot be
    /// made durable, the operation is dropped.
    Record(Vec<Entry>),
    /// Do something with one pair. Answered by [`Event::Pair`].
    Pair(usize, Step),
    /// Do something with the volume that is recovered. Answered by [`Event::Volume`], and an
    /// examination by [`Event::Examined`].
    Volume(recover::VolumeStep),
    /// Nothing more is to be done.
    End(End),
}

/// Something that is done with one pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// How the volume uses the legs of the pair. Answered by [`Answer::Legs`] or
    /// [`Answer::Unknown`].
    Inspect(Freshness),
    /// Add the target as the mirror leg.
    AddMirror,
    /// Change the route. `copies_rest`: what is dirty is copied while requests are held.
    SetRoute {
        /// The new route.
        route: Route,
        /// Whether the copier continues while requests are held.
        copies_rest: bool,
    },
    /// Let the volume continue with the requests that it holds since its split. [`Answer::Refused`]
    /// if it did not hold them until now.
    Release,
    /// Write to the target that it is no copy.
    MarkUnfinished,
    /// Make the target read-only, and remember how it looks.
    Seal,
    /// Whether the target is as it was sealed. Answered by [`Answer::Seal`].
    CheckSeal,
    /// Let the kernel refuse writes to the target, or accept them.
    SetReadOnly(bool),
    /// Let the volume use its failed mirror leg again.
    RetryMirror,
    /// Make the leg that is no longer used inaccessible.
    Retire,
}

/// Where the answer to a look comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// The last report of the volume.
    Last,
    /// A fresh report, or the last one if no fresh one comes in time. [`Answer::Unknown`] if there
    /// never was one.
    Fresh,
    /// A report of a volume that is not changing its route. [`Answer::Unknown`] if none comes in
    /// time.
    Settled,
}

/// How a volume uses the legs of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Legs {
    /// Not both of them.
    Apart,
    /// Both: they are mirrored.
    Mirrored {
        /// Whether they may differ.
        dirty: bool,
    },
    /// The target is split off, as a copy.
    Split,
}

impl Legs {
    /// How the volume uses the legs, as it has reported. A volume that tracks writes to the source
    /// first: the legs may differ at any moment.
    #[must_use]
    pub const fn of(seen: &Seen) -> Self {
        match seen.route {
            Route::Mirrored { .. } if seen.ours => Self::Mirrored {
                dirty: seen.dirty || seen.tracks,
            },
            Route::Split if seen.ours => Self::Split,
            Route::Mirrored { .. } | Route::Split | Route::Single(_) => Self::Apart,
        }
    }
}

/// Whether anybody wrote to a target that was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Seal {
    /// Nobody did.
    Unbroken,
    /// Nobody knows.
    Unknown,
    /// Somebody may have: it was written to, or made writable.
    Broken,
}

/// What an effect led to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// No copier of the session writes any more.
    CopiersStopped,
    /// These pairs must not be worked on.
    Checked {
        /// The pairs that were refused.
        unfit: Vec<usize>,
    },
    /// It is durable.
    Recorded,
    /// The step with this pair has ended.
    Pair(usize, Answer),
    /// What is left of the map file of the volume.
    Examined(recover::Examined),
    /// The step with the volume has ended: done, refused, or not known.
    Volume(Answer),
}

/// What a step led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is done.
    Done,
    /// It is not done. No route has changed.
    Refused,
    /// It may be done, or may still be done.
    Unknown,
    /// Of [`Step::Inspect`].
    Legs(Legs),
    /// Of [`Step::CheckSeal`].
    Seal(Seal),
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// All of it was done.
    Done,
    /// No route was changed, and no pair was recorded as changed.
    Refused,
    /// Something was not done, or is not known to be done.
    Failed,
}

/// What is recorded. [`Entry::phase`] and [`Entry::authoritative`] say what becomes of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entry {
    /// The verb is about to be done with a pair.
    Intended {
        /// The pair.
        pair: usize,
        /// The verb, as a phase.
        phase: Phase,
    },
    /// The volume of the pair is about to be recovered. The operator has said which leg is right:
    /// until there is a map file, that is what is known of the role.
    Recovers {
        /// The pair.
        pair: usize,
        /// The leg that the volume is to use alone.
        side: Side,
    },
    /// The pair is started later.
    Queued(usize),
    /// The operator stopped the copy, or lets it continue.
    Paused(bool),
    /// The pair is mirrored for the first time.
    Started(usize),
    /// The pair was not started.
    NotStarted(usize),
    /// Whether the pair follows the verb is not known.
    Unknown(usize),
    /// The role has moved.
    Moved {
        /// The pair.
        pair: usize,
        /// To where.
        to: Side,
    },
    /// The role has moved back, because another pair did not follow.
    MovedBack {
        /// The pair.
        pair: usize,
        /// To where.
        to: Side,
    },
    /// The role is about to move back, because another pair did not follow.
    MovesBack {
        /// The pair.
        pair: usize,
        /// The change of the role, as a phase.
        phase: Phase,
    },
    /// The role has not moved.
    NotMoved(usize),
    /// The session is not switched automatically from now on.
    SwitchByHand,
    /// The session is split again after its interval, if it has one.
    NextSplit,
    /// The pair has ended.
    Ended {
        /// The pair.
        pair: usize,
        /// The leg that is used alone from now on.
        side: Side,
    },
    /// The pair has not ended.
    NotEnded {
        /// The pair.
        pair: usize,
        /// The leg that was to be used alone.
        side: Side,
        /// Whether the target is a copy, as before.
        is_copy: bool,
    },
    /// The targets of all these pairs are copies of one instant; that instant is noted.
    Copy(usize),
    /// The copy is sealed.
    Sealed(usize),
    /// The target is no copy: not all volumes held requests at the same time.
    Spoiled {
        /// The pair.
        pair: usize,
        /// What mirroring onto it again led to.
        again: Answer,
    },
    /// The target is a copy no longer: it is to be mirrored onto again.
    CopyGivenUp {
        /// The pair.
        pair: usize,
        /// Whether everything is copied again.
        from_scratch: bool,
    },
    /// The target is mirrored onto again.
    MirroredAgain {
        /// The pair.
        pair: usize,
        /// Whether everything is copied again.
        from_scratch: bool,
    },
    /// The target is not mirrored onto, or that is not known.
    NotMirroredAgain {
        /// The pair.
        pair: usize,
        /// Its phase.
        phase: Option<Phase>,
        /// Whether the target is the copy that it was.
        is_copy: bool,
    },
    /// The failed mirror leg is used again.
    Retried(usize),
}

impl Entry {
    /// The pair that it is about; `None`: the session.
    #[must_use]
    pub const fn pair(&self) -> Option<usize> {
        match self {
            Self::Paused(_) | Self::SwitchByHand | Self::NextSplit => None,
            Self::Intended { pair, .. }
            | Self::Recovers { pair, .. }
            | Self::Queued(pair)
            | Self::Started(pair)
            | Self::NotStarted(pair)
            | Self::Unknown(pair)
            | Self::Moved { pair, .. }
            | Self::MovedBack { pair, .. }
            | Self::MovesBack { pair, .. }
            | Self::NotMoved(pair)
            | Self::Ended { pair, .. }
            | Self::NotEnded { pair, .. }
            | Self::Copy(pair)
            | Self::Sealed(pair)
            | Self::Spoiled { pair, .. }
            | Self::CopyGivenUp { pair, .. }
            | Self::MirroredAgain { pair, .. }
            | Self::NotMirroredAgain { pair, .. }
            | Self::Retried(pair) => Some(*pair),
        }
    }

    /// The phase that the pair has from now on; `None`: the one that it had.
    #[must_use]
    pub const fn phase(&self) -> Option<Phase> {
        match self {
            Self::Intended { phase, .. } | Self::MovesBack { phase, .. } => Some(*phase),
            Self::Recovers { side, .. } => Some(match side {
                Side::Source => Phase::Cancelling,
                Side::Target => Phase::Committing,
            }),
            Self::Queued(_) => Some(Phase::Queued),
            Self::NotStarted(_) => Some(Phase::Setup),
            Self::Started(_)
            | Self::Moved { .. }
            | Self::MovedBack { .. }
            | Self::NotMoved(_)
            | Self::MirroredAgain { .. } => Some(Phase::Active),
            Self::Spoiled { again, .. } => match again {
                Answer::Unknown => None,
                Answer::Done | Answer::Refused | Answer::Legs(_) | Answer::Seal(_) => {
                    Some(Phase::Active)
                }
            },
            Self::Ended { side, .. } => Some(match side {
                Side::Source => Phase::Cancelled,
                Side::Target => Phase::Committed,
            }),
            Self::NotEnded { is_copy, .. } => Some(match is_copy {
                true => Phase::Split,
                false => Phase::Active,
            }),
            Self::Copy(_) => Some(Phase::Split),
            Self::CopyGivenUp { from_scratch, .. } => Some(match from_scratch {
                true => Phase::Starting,
                false => Phase::Active,
            }),
            Self::NotMirroredAgain { phase, .. } => *phase,
            // What may have happened is not recorded as not done.
            Self::Unknown(_)
            | Self::Paused(_)
            | Self::SwitchByHand
            | Self::NextSplit
            | Self::Sealed(_)
            | Self::Retried(_) => None,
        }
    }

    /// The side that is authoritative from now on; `None`: the one that was.
    #[must_use]
    pub const fn authoritative(&self) -> Option<Side> {
        match self {
            Self::Started(_) => Some(Side::Source),
            Self::Moved { to, .. } | Self::MovedBack { to, .. } => Some(*to),
            Self::Ended { side, .. } | Self::Recovers { side, .. } => Some(*side),
            Self::Intended { .. }
            | Self::Queued(_)
            | Self::NotStarted(_)
            | Self::Unknown(_)
            | Self::MovesBack { .. }
            | Self::NotMoved(_)
            | Self::NotEnded { .. }
            | Self::Copy(_)
            | Self::Sealed(_)
            | Self::Spoiled { .. }
            | Self::CopyGivenUp { .. }
            | Self::MirroredAgain { .. }
            | Self::NotMirroredAgain { .. }
            | Self::Retried(_)
            | Self::Paused(_)
            | Self::SwitchByHand
            | Self::NextSplit => None,
        }
    }
}

/// One verb on some pairs of a session, or the recovery of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Mirrors are added.
    Start(start::Start),
    /// The role is moved: a switch or an undo.
    MoveRole(roles::MoveRole),
    /// The migration ends: a commit or a cancel.
    Finish(end::Finish),
    /// The targets become copies of one instant.
    Split(split::Split),
    /// The copy stops.
    Pause(pause::Pause),
    /// The copy continues.
    Resume(resume::Resume),
    /// The map file of a volume is made again.
    Recover(recover::Recover),
}

/// What a verb is to be done with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The pairs that it concerns, in the order of the session.
    pub pairs: Vec<PlannedPair>,
    /// For a start: the pairs that are started when others have been copied.
    pub later: Vec<usize>,
    /// For a switch: whether the copiers continue and copy the rest while requests are held.
    pub copies_rest: bool,
    /// For a switch: whether no other pair of the session is to be switched later.
    pub is_last: bool,
    /// For a commit: whether the sources are made inaccessible afterwards.
    pub retire: bool,
}

/// A pair that a verb concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlannedPair {
    /// Its place in the session.
    pub pair: usize,
    /// Its phase.
    pub phase: Phase,
    /// Whether its mirror leg has failed.
    pub degraded: bool,
    /// Whether its target is recorded as a copy of an instant.
    pub is_copy: bool,
}

impl Operation {
    /// A verb on the pairs of a session. The caller has decided that it is allowed
    /// ([`session::decide_session`](crate::session::decide_session)).
    #[must_use]
    pub fn new(verb: Verb, plan: Plan) -> Self {
        let pairs: Vec<usize> = plan.pairs.iter().map(|planned| planned.pair).collect();
        match verb {
            Verb::Start => Self::Start(start::Start::now(pairs, plan.later)),
            Verb::Pause => Self::Pause(pause::Pause::Stopping),
            Verb::Resume => Self::Resume(resume::Resume::new(plan.pairs)),
            Verb::Switch if plan.copies_rest => {
                Self::MoveRole(roles::MoveRole::cutover(pairs, plan.is_last))
            }
            Verb::Switch => Self::MoveRole(roles::MoveRole::new(Side::Target, pairs, plan.is_last)),
            Verb::Undo => Self::MoveRole(roles::MoveRole::new(Side::Source, pairs, plan.is_last)),
            Verb::Split => Self::Split(split::Split::new(pairs)),
            Verb::Commit => Self::Finish(end::Finish::new(Side::Target, plan.pairs, plan.retire)),
            Verb::Cancel => Self::Finish(end::Finish::new(Side::Source, plan.pairs, false)),
        }
    }

    /// The start of pairs that were queued: their turn has come.
    #[must_use]
    pub const fn start_queued(pairs: Vec<usize>) -> Self {
        Self::Start(start::Start::from_queue(pairs))
    }

    /// The first effects.
    pub fn begin(&mut self) -> Vec<Effect> {
        match self {
            Self::Start(start) => start.begin(),
            Self::MoveRole(roles) => roles.begin(),
            Self::Finish(finish) => finish.begin(),
            Self::Split(split) => split.begin(),
            Self::Pause(pause) => pause.begin(),
            Self::Resume(resume) => resume.begin(),
            Self::Recover(recover) => recover.begin(),
        }
    }

    /// The effects that follow from what an earlier one led to.
    pub fn apply(&mut self, event: &Event) -> Vec<Effect> {
        match self {
            Self::Start(start) => start.apply(event),
            Self::MoveRole(roles) => roles.apply(event),
            Self::Finish(finish) => finish.apply(event),
            Self::Split(split) => split.apply(event),
            Self::Pause(pause) => pause.apply(event),
            Self::Resume(resume) => resume.apply(event),
            Self::Recover(recover) => recover.apply(event),
        }
    }
}

/// The steps of one verb.
trait Stage: Copy + core::fmt::Debug {
    /// Whether `next` may follow: the stage table of the verb.
    fn leads_to(self, next: Self) -> bool;
}

/// Sets the stage.
fn enter<S: Stage>(stage: &mut S, next: S) {
    debug_assert!(stage.leads_to(next), "{stage:?} does not lead to {next:?}");
    *stage = next;
}

/// An event that no effect asked for: the caller is wrong. Nothing more is done, which is always
/// safe: the next report of the volume settles what was begun.
fn unexpected(stage: impl core::fmt::Debug, event: &Event) -> Vec<Effect> {
    debug_assert!(false, "{stage:?} does not wait for {event:?}");
    vec![Effect::End(End::Failed)]
}

fn end(end: End) -> Vec<Effect> {
    vec![Effect::End(end)]
}

/// `Failed` if something failed.
fn ended(failed: bool) -> Vec<Effect> {
    end(if failed { End::Failed } else { End::Done })
}

fn record(entries: impl IntoIterator<Item = Entry>) -> Vec<Effect> {
    vec![Effect::Record(entries.into_iter().collect())]
}

fn step(pair: usize, step: Step) -> Vec<Effect> {
    vec![Effect::Pair(pair, step)]
}

const fn set_route(route: Route) -> Step {
    Step::SetRoute {
        route,
        copies_rest: false,
    }
}

const fn mirrored(authoritative: Side) -> Route {
    Route::Mirrored { authoritative }
}
