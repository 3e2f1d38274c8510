//! Making the map file of a volume again, when it is lost or damaged: which leg the operator may
//! name, and in which order it is done.
//!
//! The new map file says that the volume uses the leg alone that the operator names. The other leg
//! is not touched. The phase of the pair is durable before the map file is made; the route of the
//! new map file then settles it ([`pair::settle`](crate::pair::settle)), as after a crash in a
//! commit or a cancel.
//!
//! | pair | recorded as authoritative | the operator may name | legs of the new map file |
//! |---|---|---|---|
//! | none | the source | the source | that of the volume |
//! | setup, queued | the side of the pair | the source | that of the volume |
//! | starting | the side of the pair | the source | both of the pair |
//! | switching, undoing | nothing | either | both of the pair |
//! | any other phase | the side of the pair | either | both of the pair |
//!
//! What can still be read of the old map file counts more than that, if it says that both legs were
//! used. The side that is not recorded as authoritative may only be named against the record.

use alloc::vec;
use alloc::vec::Vec;

use super::seeded::{Broken, Rule};
use super::{Answer, Effect, End, Entry, Event, Stage, end, ended, enter, record, unexpected};
use crate::pair::Phase;
use crate::route::{Route, Side};

/// What a map file turns out to be that can be read, at least in part. One that cannot be read at
/// all, or is missing, is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// It is damaged. It is made again.
    Damaged,
    /// It is that of a volume with a different name. It is made again.
    OfAnother,
    /// It is that of a volume that has this name, and was attached at a different time. It is not
    /// replaced: the database is older, and has to follow.
    OfNamesake,
    /// It is undamaged. It is never replaced.
    Whole,
}

impl Found {
    /// Judges a map file. `is_ours`: it has the identifier of the volume; `has_name`: it has the
    /// name of the volume.
    #[must_use]
    pub const fn of(is_ours: bool, has_name: bool, is_damaged: bool) -> Self {
        match (is_ours, has_name) {
            (false, true) => Self::OfNamesake,
            (false, false) => Self::OfAnother,
            (true, _) if is_damaged => Self::Damaged,
            (true, _) => Self::Whole,
        }
    }
}

/// The live pair of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LivePair {
    /// Its place in the session.
    pub pair: usize,
    /// Its phase.
    pub phase: Phase,
    /// The side that was authoritative when the volume was last seen.
    pub authoritative: Side,
}

/// What is known of a volume whose map file is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Known {
    /// The live pair, if the volume is in one.
    pub pair: Option<LivePair>,
    /// The route that can still be read of the old map file.
    pub route: Option<Route>,
}

/// Something that is done with the volume that is recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeStep {
    /// Find out what is left of the map file. Answered by [`Event::Examined`].
    Examine,
    /// End the attempts to serve the volume.
    EndAttempts,
    /// Keep what is left of the map file beside, and make a new one. [`Answer::Unknown`] if it may
    /// have been made.
    MakeMap {
        /// The leg that the volume uses alone.
        side: Side,
        /// Whether it has both legs of the pair, or the leg of the volume.
        has_both_legs: bool,
    },
    /// Serve the volume. [`Answer::Refused`] if that does not succeed for now: it is attempted
    /// again automatically.
    Serve,
}

/// What is left of a map file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Examined {
    /// Everything: the volume is served.
    Served,
    /// That is not known.
    Unknown,
    /// Nothing that can be read.
    Nothing,
    /// It can be read, at least in part.
    Readable {
        /// What it turns out to be.
        found: Found,
        /// Its route.
        route: Route,
        /// Whether its legs are those that are recorded.
        has_recorded_legs: bool,
    },
}

/// Why a volume is not recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotRecovered {
    /// The volume is served, or its map file is not known to be damaged, or is undamaged.
    NotDamaged,
    /// The map file is that of a volume that was attached at a different time.
    OfNamesake,
    /// The map file names legs that are not recorded: the database is older.
    OtherLegs,
    /// The leg may not be named.
    Leg(Refusal),
}

/// The recovery of a volume.
///
/// ```text
/// Examining --> Intending --> EndingAttempts --> Making --> Serving --> end
///     |
///     +--> end (refused, or only a plan)
/// ```
///
/// The volume is served even if its map file was not made, or that is not known: from then on it is
/// attempted again automatically, and the operator can repeat the command. The phase is not taken
/// back: the route settles it as soon as there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recover {
    known: Known,
    params: Params,
    stage: RecoverStage,
    /// Why the volume is not recovered.
    refused: Option<NotRecovered>,
    failed: bool,
    pub(super) broken: Broken,
}

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Params {
    /// The leg that the volume is to use alone.
    pub side: Side,
    /// Even if the other one is recorded as authoritative.
    pub against_record: bool,
    /// Nothing is done: the operator asks for the plan.
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RecoverStage {
    /// What is left of the map file.
    Examining,
    /// The intention is being recorded.
    Intending,
    /// The attempts to serve the volume are being ended.
    EndingAttempts,
    /// The map file is being made.
    Making,
    /// The volume is being served.
    Serving,
}

impl Stage for RecoverStage {
    fn leads_to(self, next: Self) -> bool {
        match self {
            Self::Examining => matches!(next, Self::Intending),
            Self::Intending => matches!(next, Self::EndingAttempts),
            Self::EndingAttempts => matches!(next, Self::Making),
            Self::Making => matches!(next, Self::Serving),
            Self::Serving => false,
        }
    }
}

impl Recover {
    /// The recovery of a volume of which `pair` is the live pair.
    #[must_use]
    pub const fn new(pair: Option<LivePair>, params: Params) -> Self {
        Self {
            known: Known { pair, route: None },
            params,
            stage: RecoverStage::Examining,
            refused: None,
            failed: false,
            broken: Broken::NOTHING,
        }
    }

    /// What is known of the volume; the route since it was examined.
    #[must_use]
    pub const fn known(&self) -> &Known {
        &self.known
    }

    /// Why the volume is not recovered, if that was decided ([`End::Refused`]).
    #[must_use]
    pub const fn refused(&self) -> Option<NotRecovered> {
        self.refused
    }

    pub(super) fn begin(&self) -> Vec<Effect> {
        vec![Effect::Volume(VolumeStep::Examine)]
    }

    pub(super) fn apply(&mut self, event: &Event) -> Vec<Effect> {
        match (self.stage, event) {
            (RecoverStage::Examining, Event::Examined(examined)) => match self.decide(*examined) {
                Err(refused) => {
                    self.refused = Some(refused);
                    end(End::Refused)
                }
                Ok(()) if self.params.dry_run => end(End::Done),
                Ok(()) => self.intend(),
            },
            (RecoverStage::Intending, Event::Recorded) => {
                self.go(RecoverStage::EndingAttempts, VolumeStep::EndAttempts)
            }
            // Whatever became of them: a map file that is served is not replaced.
            (RecoverStage::EndingAttempts, Event::Volume(_)) => {
                let make = VolumeStep::MakeMap {
                    side: self.params.side,
                    has_both_legs: self.known.has_both_legs(),
                };
                self.go(RecoverStage::Making, make)
            }
            (RecoverStage::Making, Event::Volume(answer)) => {
                match answer {
                    Answer::Done => {}
                    Answer::Refused | Answer::Unknown => self.failed = true,
                    Answer::Legs(_) | Answer::Seal(_) => return unexpected(self.stage, event),
                }
                self.go(RecoverStage::Serving, VolumeStep::Serve)
            }
            (RecoverStage::Serving, Event::Volume(answer)) => {
                ended(self.failed || *answer != Answer::Done)
            }
            (stage, event) => unexpected(stage, event),
        }
    }

    /// Whether the volume is recovered.
    fn decide(&mut self, examined: Examined) -> Result<(), NotRecovered> {
        let route = match examined {
            Examined::Served | Examined::Unknown => return Err(NotRecovered::NotDamaged),
            Examined::Nothing => None,
            Examined::Readable {
                found,
                route,
                has_recorded_legs,
            } => match found {
                Found::Whole => return Err(NotRecovered::NotDamaged),
                Found::OfNamesake => return Err(NotRecovered::OfNamesake),
                Found::OfAnother => None,
                Found::Damaged if !has_recorded_legs => return Err(NotRecovered::OtherLegs),
                Found::Damaged => Some(route),
            },
        };
        self.known.route = route.filter(|_| !self.broken.breaks(Rule::MapFileCounts));
        let mut known = self.known;
        if self.broken.breaks(Rule::MovingRoleIsUnknown) {
            let moving = known.pair.iter_mut();
            let moving = moving.filter(|pair| is_moving(pair.phase));
            moving.for_each(|pair| pair.phase = Phase::Active);
        }
        let Params {
            side,
            against_record,
            dry_run: _,
        } = self.params;
        known
            .may_name(side, against_record)
            .map_err(NotRecovered::Leg)
    }

    fn intend(&mut self) -> Vec<Effect> {
        enter(&mut self.stage, RecoverStage::Intending);
        if self.broken.breaks(Rule::RecoveryIsIntended) {
            return self.apply(&Event::Recorded);
        }
        record(self.known.intention(self.params.side))
    }

    fn go(&mut self, stage: RecoverStage, next: VolumeStep) -> Vec<Effect> {
        enter(&mut self.stage, stage);
        vec![Effect::Volume(next)]
    }
}

/// Whether the new map file of a volume whose live pair is in this phase has both legs of the pair.
#[must_use]
pub const fn has_both_legs(phase: Phase) -> bool {
    !matches!(phase, Phase::Setup | Phase::Queued)
}

/// Whether the role of a pair in this phase may be on either side.
const fn is_moving(phase: Phase) -> bool {
    matches!(phase, Phase::Switching | Phase::Undoing)
}

/// Why a leg may not be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The volume has one leg, which counts as its source.
    OneLeg,
    /// The target has never been authoritative.
    NeverAuthoritative,
    /// The other side is recorded as authoritative.
    AgainstRecord,
}

impl Known {
    /// The side that is authoritative, as far as that is recorded anywhere.
    #[must_use]
    pub fn recorded(&self) -> Option<Side> {
        let Some(pair) = self.pair else {
            return Some(Side::Source);
        };
        let mirrored = self.route.and_then(|route| match route {
            Route::Mirrored { .. } | Route::Split => Some(route.authoritative()),
            Route::Single(_) => None,
        });
        let recorded = match pair.phase {
            Phase::Switching | Phase::Undoing => None,
            Phase::Setup
            | Phase::Queued
            | Phase::Starting
            | Phase::Active
            | Phase::Splitting
            | Phase::Split
            | Phase::Committing
            | Phase::Committed
            | Phase::Cancelling
            | Phase::Cancelled => Some(pair.authoritative),
        };
        mirrored.or(recorded)
    }

    /// Whether the operator may name `side`. `against_record`: even if the other one is recorded as
    /// authoritative.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn may_name(&self, side: Side, against_record: bool) -> Result<(), Refusal> {
        let only_source = match self.pair.map(|pair| pair.phase) {
            None => Some(Refusal::OneLeg),
            Some(Phase::Setup | Phase::Queued | Phase::Starting) => {
                Some(Refusal::NeverAuthoritative)
            }
            Some(
                Phase::Active
                | Phase::Splitting
                | Phase::Split
                | Phase::Switching
                | Phase::Undoing
                | Phase::Committing
                | Phase::Committed
                | Phase::Cancelling
                | Phase::Cancelled,
            ) => None,
        };
        match (side, only_source) {
            (Side::Target, Some(refusal)) => Err(refusal),
            (Side::Source | Side::Target, _) => match self.recorded() {
                Some(recorded) if recorded != side && !against_record => {
                    Err(Refusal::AgainstRecord)
                }
                Some(_) | None => Ok(()),
            },
        }
    }

    /// Whether the new map file has both legs of the pair, or the leg of the volume.
    #[must_use]
    pub const fn has_both_legs(&self) -> bool {
        match self.pair {
            Some(pair) => has_both_legs(pair.phase),
            None => false,
        }
    }

    /// What is recorded before the map file is made; `None`: no pair changes.
    #[must_use]
    pub fn intention(&self, side: Side) -> Option<Entry> {
        let pair = self.pair.filter(|_| self.has_both_legs())?.pair;
        Some(Entry::Recovers { pair, side })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Operation;
    use crate::pair::{Seen, Settlement, settle};

    const SIDES: [Side; 2] = [Side::Source, Side::Target];

    const fn known(phase: Phase, authoritative: Side, route: Option<Route>) -> Known {
        Known {
            pair: Some(LivePair {
                pair: 3,
                phase,
                authoritative,
            }),
            route,
        }
    }

    /// What the old map file can still say.
    const ROUTES: [Option<Route>; 6] = [
        None,
        Some(Route::Single(Side::Source)),
        Some(Route::Single(Side::Target)),
        Some(Route::Mirrored {
            authoritative: Side::Source,
        }),
        Some(Route::Mirrored {
            authoritative: Side::Target,
        }),
        Some(Route::Split),
    ];

    #[test]
    fn a_volume_without_a_pair_has_one_leg() {
        for route in ROUTES {
            let known = Known { pair: None, route };
            assert_eq!(known.recorded(), Some(Side::Source));
            assert!(!known.has_both_legs());
            for against_record in [false, true] {
                assert_eq!(known.may_name(Side::Source, against_record), Ok(()));
                let target = known.may_name(Side::Target, against_record);
                assert_eq!(target, Err(Refusal::OneLeg));
            }
            for side in SIDES {
                assert_eq!(known.intention(side), None);
            }
        }
    }

    #[test]
    fn a_route_with_two_legs_counts_more_than_the_database() {
        for phase in Phase::ALL {
            for authoritative in SIDES {
                let recorded = match phase {
                    Phase::Switching | Phase::Undoing => None,
                    _ => Some(authoritative),
                };
                for route in ROUTES {
                    let expected = match route {
                        Some(Route::Mirrored { authoritative }) => Some(authoritative),
                        Some(Route::Split) => Some(Side::Source),
                        Some(Route::Single(_)) | None => recorded,
                    };
                    let found = known(phase, authoritative, route).recorded();
                    assert_eq!(found, expected, "{phase:?} {authoritative} {route:?}");
                }
            }
        }
    }

    #[test]
    fn the_side_that_is_recorded_may_be_named_and_the_other_one_against_the_record() {
        for phase in Phase::ALL {
            let only_source = matches!(phase, Phase::Setup | Phase::Queued | Phase::Starting);
            for (authoritative, route) in SIDES
                .into_iter()
                .flat_map(|side| ROUTES.map(|route| (side, route)))
            {
                let known = known(phase, authoritative, route);
                for side in SIDES {
                    let (plain, against) = match known.recorded() {
                        _ if only_source && side == Side::Target => (
                            Err(Refusal::NeverAuthoritative),
                            Err(Refusal::NeverAuthoritative),
                        ),
                        Some(recorded) if recorded != side => (Err(Refusal::AgainstRecord), Ok(())),
                        Some(_) | None => (Ok(()), Ok(())),
                    };
                    assert_eq!(known.may_name(side, false), plain, "{known:?} {side}");
                    assert_eq!(known.may_name(side, true), against, "{known:?} {side}");
                }
            }
        }
    }

    /// The new map file settles what was intended, whenever shuntd dies in between.
    #[test]
    fn the_new_map_file_ends_the_pair_on_the_leg_that_was_named() {
        for phase in Phase::ALL.into_iter().filter(|phase| !phase.is_ended()) {
            for side in SIDES {
                let known = known(phase, Side::Source, None);
                if known.may_name(side, true).is_err() {
                    continue;
                }
                let has_both_legs = !matches!(phase, Phase::Setup | Phase::Queued);
                assert_eq!(known.has_both_legs(), has_both_legs, "{phase:?}");
                let intended = known.intention(side).and_then(|entry| entry.phase());
                assert_eq!(intended.is_some(), has_both_legs, "{phase:?}");
                let seen = Seen {
                    route: Route::Single(side),
                    ours: true,
                    dirty: false,
                    tracks: false,
                    degraded: false,
                    changing: false,
                };
                let expected = match (intended, side) {
                    (None, _) => Settlement::Nothing,
                    (Some(_), Side::Source) => Settlement::Becomes(Phase::Cancelled),
                    (Some(_), Side::Target) => Settlement::Becomes(Phase::Committed),
                };
                let settled = settle(intended.unwrap_or(phase), &seen);
                assert_eq!(settled, expected, "{phase:?} {side}");
            }
        }
    }

    /// A recovery in progress: the effects so far, and what is recorded.
    #[derive(Debug, Clone)]
    struct World {
        operation: Operation,
        next: Vec<Effect>,
        effects: Vec<Effect>,
        phase: Phase,
        authoritative: Side,
        /// The route, once there is a map file.
        route: Option<Route>,
    }

    impl World {
        fn after(mut self, event: &Event) -> Self {
            self.next = self.operation.apply(event);
            self
        }

        /// Performs the next effect, with every answer that is possible.
        fn next(mut self) -> Vec<Self> {
            assert_eq!(self.next.len(), 1, "{self:?}");
            let effect = self.next.remove(0);
            self.effects.push(effect.clone());
            let answers = [Answer::Done, Answer::Refused, Answer::Unknown];
            match effect {
                Effect::Volume(VolumeStep::Examine) => {
                    let examined = Event::Examined(Examined::Nothing);
                    vec![self.after(&examined)]
                }
                Effect::Record(entries) => {
                    for entry in entries {
                        self.phase = entry.phase().unwrap_or(self.phase);
                        self.authoritative = entry.authoritative().unwrap_or(self.authoritative);
                    }
                    vec![self.after(&Event::Recorded)]
                }
                Effect::Volume(VolumeStep::MakeMap { side, .. }) => {
                    let worlds = answers.map(|answer| {
                        let mut world = self.clone();
                        world.route = (answer != Answer::Refused).then_some(Route::Single(side));
                        world.after(&Event::Volume(answer))
                    });
                    worlds.into()
                }
                Effect::Volume(VolumeStep::EndAttempts | VolumeStep::Serve) => answers
                    .map(|answer| self.clone().after(&Event::Volume(answer)))
                    .into(),
                Effect::StopCopiers
                | Effect::CheckTargets(_)
                | Effect::CheckStanding(_)
                | Effect::Pair(..)
                | Effect::End(_) => panic!("{effect:?} is no step of a recovery"),
            }
        }
    }

    /// Whenever shuntd dies, and whatever is not answered: the phase agrees with the map file.
    #[test]
    fn a_recovery_records_the_leg_before_it_makes_the_map_file() {
        for (phase, side) in Phase::ALL
            .into_iter()
            .filter(|phase| !phase.is_ended())
            .flat_map(|phase| SIDES.map(|side| (phase, side)))
        {
            let params = Params {
                side,
                against_record: true,
                dry_run: false,
            };
            let pair = known(phase, Side::Source, None).pair;
            let mut operation = Operation::Recover(Recover::new(pair, params));
            let next = operation.begin();
            let mut waiting = vec![World {
                operation,
                next,
                effects: Vec::new(),
                phase,
                authoritative: Side::Source,
                route: None,
            }];
            let mut ends = Vec::new();
            while let Some(world) = waiting.pop() {
                if let Some(route) = world.route {
                    let seen = Seen {
                        route,
                        ours: true,
                        dirty: false,
                        tracks: false,
                        degraded: false,
                        changing: false,
                    };
                    let settled = settle(world.phase, &seen);
                    assert_ne!(settled, Settlement::Contradiction, "{world:?}");
                }
                // If no map file is made, what the operator has said is what is known of the role.
                let is_recorded = matches!(world.phase, Phase::Committing | Phase::Cancelling);
                if is_recorded && world.phase != phase {
                    let repeated = known(world.phase, world.authoritative, None);
                    assert_eq!(repeated.recorded(), Some(side), "{world:?}");
                }
                match world.next[..] {
                    [Effect::End(end)] => ends.push((end, world)),
                    _ => waiting.extend(world.next()),
                }
            }
            for (end, world) in &ends {
                let serve = Effect::Volume(VolumeStep::Serve);
                let served = world.effects.last() == Some(&serve);
                assert_eq!(served, *end != End::Refused, "{world:?}");
                assert!(*end != End::Done || world.route.is_some(), "{world:?}");
            }
            let done = ends.iter().any(|(end, _)| *end == End::Done);
            let never = matches!(phase, Phase::Setup | Phase::Queued | Phase::Starting);
            assert_eq!(done, side == Side::Source || !never, "{phase:?} {side}");
        }
    }

    #[test]
    fn what_is_found_decides_whether_a_volume_is_recovered() {
        let readable = |found, has_recorded_legs| Examined::Readable {
            found,
            route: Route::Mirrored {
                authoritative: Side::Target,
            },
            has_recorded_legs,
        };
        let against = NotRecovered::Leg(Refusal::AgainstRecord);
        for (examined, source, target) in [
            (Examined::Served, Some(NotRecovered::NotDamaged), None),
            (Examined::Unknown, Some(NotRecovered::NotDamaged), None),
            (
                readable(Found::Whole, true),
                Some(NotRecovered::NotDamaged),
                None,
            ),
            (
                readable(Found::OfNamesake, true),
                Some(NotRecovered::OfNamesake),
                None,
            ),
            (
                readable(Found::Damaged, false),
                Some(NotRecovered::OtherLegs),
                None,
            ),
            (Examined::Nothing, None, Some(against)),
            // What a map file of a different volume says does not count.
            (readable(Found::OfAnother, false), None, Some(against)),
            (readable(Found::Damaged, true), Some(against), None),
        ] {
            let never = source.filter(|refused| *refused != against);
            for (side, refused) in [(Side::Source, source), (Side::Target, never.or(target))] {
                for dry_run in [false, true] {
                    let params = Params {
                        side,
                        against_record: false,
                        dry_run,
                    };
                    let pair = known(Phase::Active, Side::Source, None).pair;
                    let mut recover = Recover::new(pair, params);
                    let effects = recover.apply(&Event::Examined(examined));
                    assert_eq!(recover.refused(), refused, "{examined:?} {side}");
                    let expected = match (refused, dry_run) {
                        (Some(_), _) => end(End::Refused),
                        (None, true) => end(End::Done),
                        (None, false) => record(recover.known().intention(side)),
                    };
                    assert_eq!(effects, expected, "{examined:?} {side}");
                }
            }
        }
    }

    #[test]
    fn only_a_damaged_map_file_and_that_of_a_different_volume_are_replaced() {
        for (is_ours, has_name, is_damaged, found) in [
            (true, true, false, Found::Whole),
            (true, true, true, Found::Damaged),
            (true, false, false, Found::Whole),
            (true, false, true, Found::Damaged),
            (false, true, false, Found::OfNamesake),
            (false, true, true, Found::OfNamesake),
            (false, false, false, Found::OfAnother),
            (false, false, true, Found::OfAnother),
        ] {
            assert_eq!(Found::of(is_ours, has_name, is_damaged), found);
        }
    }
}
