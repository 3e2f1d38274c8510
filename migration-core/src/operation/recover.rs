//! Making the map file of a volume again, when it is lost or damaged: which leg the operator may
//! name, and what is recorded before.
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

use super::Entry;
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
            Some(pair) => !matches!(pair.phase, Phase::Setup | Phase::Queued),
            None => false,
        }
    }

    /// What is recorded before the map file is made; `None`: no pair changes.
    #[must_use]
    pub fn intention(&self, side: Side) -> Option<Entry> {
        let pair = self.pair.filter(|_| self.has_both_legs())?.pair;
        let phase = match side {
            Side::Source => Phase::Cancelling,
            Side::Target => Phase::Committing,
        };
        Some(Entry::Intended { pair, phase })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
