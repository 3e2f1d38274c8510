//! Whether a target that was split off is as it was sealed.
//!
//! The map does not record what others write to such a target. After the target is mirrored again,
//! those regions would count as equal, and a switch would lose acknowledged writes. So a split
//! target is *sealed*: it is made read-only, and what it looks like is recorded. The kernel counts
//! the writes to it. For a while after a boot nothing refuses writes, and writes of another boot or
//! system are not counted.
//!
//! | recorded | boot | writable | counts and contents | the target is |
//! |---|---|---|---|---|
//! | nothing | any | any | any | in doubt |
//! | a seal | any | yes | any | refused: somebody may need what it holds now |
//! | a seal | a later one | no | any | in doubt |
//! | a seal | the same | no | nothing is counted | in doubt |
//! | a seal | the same | no | different | refused |
//! | a seal | the same | no | the same | as it was |
//!
//! A target in doubt is copied from scratch. A seal of an earlier boot is renewed when shuntd
//! starts ([`after_boot`]), if nothing shows that somebody has written in between.

use core::fmt;

use crate::custody::{self, Difference, LegState};
use crate::operation;

/// Why a sealed target is not known to be as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// It was not sealed, or it was in doubt after an earlier boot.
    NotSealed,
    /// This host was booted since it was sealed.
    Booted,
    /// Nothing counts the writes to it.
    NotCounted,
    /// It is writable since this host was booted.
    WritableSinceBoot,
    /// Somebody made it writable.
    MadeWritable,
    /// Somebody wrote to it.
    Written,
}

impl Doubt {
    /// What the doubt means for a resume.
    #[must_use]
    pub const fn seal(self) -> operation::Seal {
        match self {
            Self::NotSealed | Self::Booted | Self::NotCounted => operation::Seal::Unknown,
            Self::WritableSinceBoot | Self::MadeWritable | Self::Written => operation::Seal::Broken,
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSealed => "what was written to the target since the split is not known",
            Self::Booted => {
                "this host was booted, and the target may have been written to before it was read-only again"
            }
            Self::NotCounted => {
                "nothing counts the writes to the target, so it is not known whether there were any"
            }
            Self::WritableSinceBoot => {
                "is writable since this host was booted, and may hold what Shunt has not written"
            }
            Self::MadeWritable => "was made writable, and may hold what Shunt has not written",
            Self::Written => "was written to by somebody else since the split",
        })
    }
}

/// Decides whether a target is as it was sealed, as in the table of the module. `sealed`: its state
/// at that time, if that is recorded; `same_boot`: whether that was in the current boot;
/// `read_only`: whether writes are refused to all of it.
///
/// # Errors
/// [`Doubt`]
pub fn judge(
    sealed: Option<LegState>,
    now: LegState,
    same_boot: bool,
    read_only: bool,
) -> Result<(), Doubt> {
    let before = sealed.ok_or(Doubt::NotSealed)?;
    match (read_only, same_boot) {
        (false, false) => Err(Doubt::WritableSinceBoot),
        (false, true) => Err(Doubt::MadeWritable),
        (true, false) => Err(Doubt::Booted),
        (true, true) => {
            custody::compare(before, now, true).map_err(|difference| match difference {
                Difference::Written => Doubt::Written,
                Difference::NotCounted => Doubt::NotCounted,
            })
        }
    }
}

/// What becomes of the record of a target that is sealed again when shuntd starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resealed {
    /// It stays as it is.
    AsBefore,
    /// It becomes the state of the target now.
    Renewed,
    /// It is removed: the target is in doubt, whatever later boots count.
    InDoubt,
}

/// Decides about a target that was sealed again, and whose state is `now`. `sealed` and `same_boot`
/// as in [`judge`].
#[must_use]
pub fn after_boot(sealed: Option<LegState>, now: LegState, same_boot: bool) -> Resealed {
    match sealed {
        None => Resealed::AsBefore,
        Some(_) if same_boot => Resealed::AsBefore,
        Some(before) => match custody::compare(before, now, false) {
            Ok(()) => Resealed::Renewed,
            Err(Difference::Written | Difference::NotCounted) => Resealed::InDoubt,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn state(fingerprint: u64, changes: Option<u64>) -> LegState {
        LegState {
            fingerprint,
            changes,
        }
    }

    const SEALED: LegState = state(9, Some(7));
    /// Every way in which a target can look now, with the comparison to `SEALED` in the same boot,
    /// and in a later one.
    const NOW: [(LegState, Result<(), Doubt>, Resealed); 6] = {
        use Resealed::{InDoubt, Renewed};
        [
            (SEALED, Ok(()), InDoubt),
            (state(9, Some(0)), Err(Doubt::Written), Renewed),
            (state(9, Some(8)), Err(Doubt::Written), InDoubt),
            (state(9, None), Err(Doubt::NotCounted), InDoubt),
            (state(8, Some(7)), Err(Doubt::Written), InDoubt),
            // Another boot or system has mounted it, and this boot counts none of its writes.
            (state(8, Some(0)), Err(Doubt::Written), InDoubt),
        ]
    };

    #[test]
    fn a_target_is_what_it_was_while_nothing_is_counted_in_the_same_boot() {
        for (now, same_boot, _) in NOW {
            assert_eq!(judge(Some(SEALED), now, true, true), same_boot, "{now:?}");
            let of = |same_boot, read_only| judge(Some(SEALED), now, same_boot, read_only);
            assert_eq!(of(false, true), Err(Doubt::Booted), "{now:?}");
            assert_eq!(of(true, false), Err(Doubt::MadeWritable), "{now:?}");
            assert_eq!(of(false, false), Err(Doubt::WritableSinceBoot), "{now:?}");
            for (same_boot, read_only) in
                [(true, true), (true, false), (false, true), (false, false)]
            {
                let never = judge(None, now, same_boot, read_only);
                assert_eq!(never, Err(Doubt::NotSealed), "{now:?}");
            }
            let uncounted = judge(Some(state(9, None)), now, true, true);
            assert_eq!(uncounted, Err(Doubt::NotCounted), "{now:?}");
        }
    }

    #[test]
    fn what_somebody_may_need_is_not_overwritten() {
        for (doubt, seal) in [
            (Doubt::NotSealed, operation::Seal::Unknown),
            (Doubt::Booted, operation::Seal::Unknown),
            (Doubt::NotCounted, operation::Seal::Unknown),
            (Doubt::WritableSinceBoot, operation::Seal::Broken),
            (Doubt::MadeWritable, operation::Seal::Broken),
            (Doubt::Written, operation::Seal::Broken),
        ] {
            assert_eq!(doubt.seal(), seal, "{doubt:?}");
        }
    }

    #[test]
    fn a_seal_is_renewed_after_a_boot_if_nothing_was_written_since() {
        for (now, _, later) in NOW {
            assert_eq!(after_boot(Some(SEALED), now, false), later, "{now:?}");
            assert_eq!(after_boot(Some(SEALED), now, true), Resealed::AsBefore);
            // A target in doubt stays in doubt, whatever the next boots count.
            for same_boot in [false, true] {
                assert_eq!(after_boot(None, now, same_boot), Resealed::AsBefore);
            }
        }
        // Nothing counted the writes when it was sealed, but the counts since the boot are known.
        let uncounted = Some(state(9, None));
        assert_eq!(
            after_boot(uncounted, state(9, Some(0)), false),
            Resealed::Renewed
        );
    }
}
