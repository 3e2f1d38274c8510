//! Comparing the legs of a pair: when that is done, and what its result forbids.
//!
//! Whether the states of a session allow a comparison is decided by
//! [`session::may_be_compared`](crate::session::may_be_compared); which results of single regions
//! count, by [`volume`](crate::volume).
//!
//! | last comparison | switch | undo | any other verb |
//! |---|---|---|---|
//! | clean | allowed | allowed | allowed |
//! | none, or incomplete | refused if the session requires one | allowed | allowed |
//! | different | refused | refused | allowed |

use crate::pair::Verb;

/// A comparison of the legs of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Comparison {
    /// Whether a difference is no reason to refuse a switch once it is copied again.
    pub repair: bool,
    /// Whether the comparison has ended and its result is being recorded. Until that is done it
    /// counts as in progress.
    pub over: bool,
}

impl Comparison {
    /// A comparison that has not ended.
    #[must_use]
    pub const fn new(repair: bool) -> Self {
        Self {
            repair,
            over: false,
        }
    }
}

/// How the legs of a pair are compared, or will be as soon as they are in sync; `None`: they are
/// not compared.
///
/// `asked`: what the operator asked for. `required`: the session requires a comparison.
/// `compared`: there was one.
#[must_use]
pub fn wanted(asked: Option<Comparison>, required: bool, compared: bool) -> Option<Comparison> {
    asked.or((required && !compared).then_some(Comparison::new(false)))
}

/// What the last comparison of the whole legs of a pair has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// There was none.
    Nothing,
    /// The whole volume was compared, and nothing differs any more.
    Clean,
    /// Parts could not be compared; nothing is known to differ.
    Incomplete,
    /// The legs are known to differ, and what differed was not copied again on purpose.
    Different,
}

impl Found {
    /// What a comparison says that found `differing` bytes, and could not compare `unknown` ones.
    /// `repaired`: what differed is copied again.
    #[must_use]
    pub const fn of(differing: u64, unknown: u64, repaired: bool) -> Self {
        match (differing, unknown) {
            (1.., _) if !repaired => Self::Different,
            (_, 0) => Self::Clean,
            (_, 1..) => Self::Incomplete,
        }
    }
}

/// Why a role must not move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unproved {
    /// The legs differed when they were compared last.
    Different,
    /// The session requires that the whole legs were compared.
    NotCompared,
}

/// Whether a verb may be done with a pair, as in the table of the module. `required`: the session
/// requires a comparison.
///
/// # Errors
/// [`Unproved`]
pub const fn may_move(verb: Verb, required: bool, found: Found) -> Result<(), Unproved> {
    match (verb, found) {
        (Verb::Switch | Verb::Undo, Found::Different) => Err(Unproved::Different),
        (Verb::Switch, Found::Nothing | Found::Incomplete) if required => {
            Err(Unproved::NotCompared)
        }
        (
            Verb::Start
            | Verb::Pause
            | Verb::Resume
            | Verb::Switch
            | Verb::Undo
            | Verb::Split
            | Verb::Commit
            | Verb::Cancel,
            Found::Nothing | Found::Clean | Found::Incomplete | Found::Different,
        ) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_a_comparison_forbids_what_the_table_says() {
        const OK: Result<(), Unproved> = Ok(());
        let (different, unproved) = (Err(Unproved::Different), Err(Unproved::NotCompared));
        // The results of a switch, of a switch if a comparison is required, and of an undo.
        for (found, switch, required, undo) in [
            (Found::Nothing, OK, unproved, OK),
            (Found::Clean, OK, OK, OK),
            (Found::Incomplete, OK, unproved, OK),
            (Found::Different, different, different, different),
        ] {
            for verb in Verb::ALL {
                let (expected, if_required) = match verb {
                    Verb::Switch => (switch, required),
                    Verb::Undo => (undo, undo),
                    Verb::Start
                    | Verb::Pause
                    | Verb::Resume
                    | Verb::Split
                    | Verb::Commit
                    | Verb::Cancel => (OK, OK),
                };
                assert_eq!(may_move(verb, false, found), expected, "{verb} {found:?}");
                assert_eq!(may_move(verb, true, found), if_required, "{verb} {found:?}");
            }
        }
    }

    #[test]
    fn what_differed_counts_until_it_is_copied_again() {
        for (differing, unknown, repaired, found) in [
            (0, 0, false, Found::Clean),
            (0, 0, true, Found::Clean),
            (0, 1, false, Found::Incomplete),
            (0, 1, true, Found::Incomplete),
            (1, 0, false, Found::Different),
            (1, 0, true, Found::Clean),
            (1, 1, false, Found::Different),
            (1, 1, true, Found::Incomplete),
        ] {
            assert_eq!(Found::of(differing, unknown, repaired), found);
        }
    }

    #[test]
    fn legs_are_compared_because_somebody_asked_or_once_because_the_session_requires_it() {
        let repair = Comparison::new(true);
        let over = Comparison {
            over: true,
            ..repair
        };
        let first = Some(Comparison::new(false));
        for (asked, required, compared, expected) in [
            (None, false, false, None),
            (None, false, true, None),
            (None, true, false, first),
            (None, true, true, None),
            (Some(repair), false, true, Some(repair)),
            (Some(repair), true, false, Some(repair)),
            // Its result is not recorded yet.
            (Some(over), true, false, Some(over)),
        ] {
            let found = wanted(asked, required, compared);
            assert_eq!(found, expected, "{asked:?} {required} {compared}");
        }
    }
}
