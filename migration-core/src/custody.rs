//! Whether anybody else can have written to the legs since a process of the volume held them.
//!
//! The map says where the legs differ as far as *Shunt* has written to them. It says nothing about
//! what others wrote while no process of the volume held the legs: a file system that was mounted
//! by its UUID before Shunt was up, an array that restored a snapshot, a rescue system. So the map
//! file has a sector that says who holds the legs:
//!
//! ```text
//!            a process claims the legs, and the map says where they may differ
//!    Released ---------------------------------------------------------------> Held{claim}
//!        ^                                                                       |
//!        +---- the process ends cleanly: both legs are flushed and described -----+
//! ```
//!
//! The next process judges ([`judge`]) before it serves. *Kept*: the process got the descriptors
//! with which the legs were claimed, so that nobody else could claim the legs in between.
//! *Unchanged*: the legs were released, and look as they did then. In every other case the mirror
//! leg cannot be trusted: all regions are dirty, and a role moves to that leg only after they were
//! copied or compared.
//!
//! What the description of a leg does not show: a write between two boots of this host, by another
//! system, that changes none of the blocks in [`LegState::fingerprint`]. See
//! `docs/decisions/0019-who-has-written-to-a-leg.md`.

use crate::{
    map::{SECTOR_BYTES, checksum},
    route::{Route, Side},
};

const MAGIC: &[u8; 8] = b"SHNTCUST";

/// Names one uninterrupted claim on the legs of a volume; random, never 0. A process that gets the
/// descriptors of its predecessor continues the same claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim(pub u64);

/// Names one boot of the host: `/proc/sys/kernel/random/boot_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootId(pub [u8; 16]);

/// What a leg looks like at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LegState {
    /// Checksum of the parts of the leg that a mount, a volume manager or a partitioning changes.
    pub fingerprint: u64,
    /// The number of writes and discards that the kernel has counted on the leg's LUNs since it
    /// knows the LUNs; `None` if it does not count.
    pub changes: Option<u64>,
}

/// Both legs; a leg that the route does not use, or that is not there, is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Legs {
    /// The source leg.
    pub source: Option<LegState>,
    /// The target leg.
    pub target: Option<LegState>,
}

impl Legs {
    /// The leg of `side`.
    #[must_use]
    pub const fn get(&self, side: Side) -> Option<LegState> {
        match side {
            Side::Source => self.source,
            Side::Target => self.target,
        }
    }
}

/// The legs as the last process left them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Released {
    /// The boot in which the legs were released.
    pub boot: BootId,
    /// What the legs looked like.
    pub legs: Legs,
}

/// Who holds the legs, as the map file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Custody {
    /// The legs are claimed. The claim outlives its process if the descriptors do.
    Held(Claim),
    /// Nobody has held the legs since the last process ended cleanly.
    Released(Released),
}

/// What the next process finds before it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What the map file says; `None` if it says nothing valid.
    pub custody: Option<Custody>,
    /// The claim whose descriptors this process got; they cover every LUN that the route uses.
    pub inherited: Option<Claim>,
    /// The current boot.
    pub boot: BootId,
    /// What the legs look like. Used only if the legs were released.
    pub legs: Legs,
}

/// Why the legs are not known to be as the map says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// The map file does not say who held the legs.
    NoRecord,
    /// The process that held the legs died, and nobody kept its claim on them.
    ClaimLapsed,
    /// This leg is not there, or was opened again later.
    LegMissing(Side),
    /// The kernel does not count the writes to this leg.
    NotCounted(Side),
    /// This leg was written to since it was released.
    Written(Side),
}

impl core::fmt::Display for Doubt {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoRecord => f.write_str("the map file does not say who held the legs last"),
            Self::ClaimLapsed => f.write_str(
                "the process that held the legs died, and others could write to them meanwhile",
            ),
            Self::LegMissing(side) => {
                write!(
                    f,
                    "the {side} leg was not there, and others could write to it meanwhile"
                )
            }
            Self::NotCounted(side) => {
                write!(f, "the kernel does not count writes to the {side} leg")
            }
            Self::Written(side) => {
                write!(
                    f,
                    "another program wrote to the {side} leg while Shunt did not hold it"
                )
            }
        }
    }
}

/// Decides whether the map of `route` still says where the legs differ. A route without a map makes
/// no such statement, so there is no doubt. While the volume is split, only the source is judged:
/// the caller that mirrors onto the target again has to find out what became of it.
///
/// # Errors
/// [`Doubt`]: every region has to be made dirty.
pub fn judge(route: Route, found: &Found) -> Result<(), Doubt> {
    match (found.custody, found.inherited) {
        _ if !route.has_map() => Ok(()),
        (None, _) => Err(Doubt::NoRecord),
        (Some(Custody::Held(claim)), Some(inherited)) if claim == inherited => Ok(()),
        (Some(Custody::Held(_)), _) => Err(Doubt::ClaimLapsed),
        (Some(Custody::Released(before)), _) => {
            unchanged(route.authoritative(), &before, found)?;
            match route.mirror() {
                Some(mirror) => unchanged(mirror, &before, found),
                None => Ok(()),
            }
        }
    }
}

fn unchanged(side: Side, released: &Released, found: &Found) -> Result<(), Doubt> {
    let missing = Doubt::LegMissing(side);
    let before = released.legs.get(side).ok_or(missing)?;
    let now = found.legs.get(side).ok_or(missing)?;
    let same_boot = released.boot == found.boot;
    compare(before, now, same_boot).map_err(|difference| match difference {
        Difference::NotCounted => Doubt::NotCounted(side),
        Difference::Written => Doubt::Written(side),
    })
}

/// Why a leg that Shunt did not hold may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// The kernel does not count the writes to the leg.
    NotCounted,
    /// The leg was written to.
    Written,
}

/// Checks that a leg looks as it did before. After a reboot the kernel counts from 0, so no write
/// may have been counted in the current boot.
///
/// # Errors
/// [`Difference`]
pub fn compare(before: LegState, now: LegState, same_boot: bool) -> Result<(), Difference> {
    let counted = if same_boot { before.changes } else { Some(0) };
    match (counted, now.changes) {
        (None, _) | (_, None) => Err(Difference::NotCounted),
        (Some(before), Some(now)) if before != now => Err(Difference::Written),
        (Some(_), Some(_)) if before.fingerprint != now.fingerprint => Err(Difference::Written),
        (Some(_), Some(_)) => Ok(()),
    }
}

/// How a process takes over the legs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takeover {
    /// The claim from now on.
    pub claim: Claim,
    /// Why every region has to be made dirty, if it has to be. The regions are made dirty durably
    /// before the claim is written.
    pub doubt: Option<Doubt>,
    /// Whether the claim is new: it has to be written before anything is served.
    pub is_new: bool,
}

/// Decides how a process takes over the legs of a volume with this route. `missing` is the mirror
/// leg of the route, if it is not there; `new` is a claim that was never used.
#[must_use]
pub fn take_over(route: Route, missing: Option<Side>, found: &Found, new: Claim) -> Takeover {
    let doubt = match missing {
        Some(side) => Some(Doubt::LegMissing(side)),
        None => judge(route, found).err(),
    };
    match (found.custody, found.inherited) {
        (Some(Custody::Held(claim)), Some(inherited)) if claim == inherited => Takeover {
            claim,
            doubt,
            is_new: false,
        },
        (Some(Custody::Held(_) | Custody::Released(_)) | None, _) => Takeover {
            claim: new,
            doubt,
            is_new: true,
        },
    }
}

impl Custody {
    /// Encodes the sector of the map file.
    #[must_use]
    pub fn encode(&self, volume_id: &[u8; 16]) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        sector[..8].copy_from_slice(MAGIC);
        sector[16..32].copy_from_slice(volume_id);
        match self {
            Self::Held(claim) => {
                sector[12] = 1;
                sector[32..40].copy_from_slice(&claim.0.to_le_bytes());
            }
            Self::Released(released) => {
                sector[12] = 2;
                sector[32..48].copy_from_slice(&released.boot.0);
                put_leg(&mut sector[48..72], released.legs.source);
                put_leg(&mut sector[72..96], released.legs.target);
            }
        }
        let crc = checksum(&sector[12..]);
        sector[8..12].copy_from_slice(&crc.to_le_bytes());
        sector
    }

    /// Reads what [`Self::encode`] wrote; `None` if the bytes are anything else. Nothing is lost by
    /// that: the legs are in doubt then.
    #[must_use]
    pub fn decode(volume_id: &[u8; 16], sector: &[u8; SECTOR_BYTES]) -> Option<Self> {
        let custody = match sector[12] {
            1 => Self::Held(Claim(u64_at(sector, 32))),
            2 => {
                let mut boot = [0; 16];
                boot.copy_from_slice(&sector[32..48]);
                Self::Released(Released {
                    boot: BootId(boot),
                    legs: Legs {
                        source: leg_at(sector, 48)?,
                        target: leg_at(sector, 72)?,
                    },
                })
            }
            _ => return None,
        };
        (custody.encode(volume_id) == *sector).then_some(custody)
    }
}

const ABSENT: u8 = 0;
const UNCOUNTED: u8 = 1;
const COUNTED: u8 = 2;

fn put_leg(bytes: &mut [u8], leg: Option<LegState>) {
    let Some(leg) = leg else {
        return;
    };
    bytes[..8].copy_from_slice(&leg.fingerprint.to_le_bytes());
    bytes[8] = if leg.changes.is_some() {
        COUNTED
    } else {
        UNCOUNTED
    };
    bytes[16..24].copy_from_slice(&leg.changes.unwrap_or(0).to_le_bytes());
}

/// Reads a leg. `None`: the bytes are not a leg; `Some(None)`: the leg is absent.
fn leg_at(sector: &[u8], offset: usize) -> Option<Option<LegState>> {
    let changes = match sector[offset + 8] {
        ABSENT => return Some(None),
        UNCOUNTED => None,
        COUNTED => Some(u64_at(sector, offset + 16)),
        _ => return None,
    };
    Some(Some(LegState {
        fingerprint: u64_at(sector, offset),
        changes,
    }))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VOLUME: &[u8; 16] = b"0123456789abcdef";
    const BOOT: BootId = BootId([1; 16]);
    const NEXT_BOOT: BootId = BootId([2; 16]);

    const fn leg(fingerprint: u64, changes: Option<u64>) -> LegState {
        LegState {
            fingerprint,
            changes,
        }
    }

    const SOURCE: LegState = leg(5, Some(70));
    const TARGET: LegState = leg(6, Some(80));
    const RELEASED: Released = Released {
        boot: BOOT,
        legs: Legs {
            source: Some(SOURCE),
            target: Some(TARGET),
        },
    };
    const MIRRORED: Route = Route::Mirrored {
        authoritative: Side::Target,
    };

    fn found(custody: Custody, boot: BootId, source: LegState, target: LegState) -> Found {
        let (source, target) = (Some(source), Some(target));
        Found {
            custody: Some(custody),
            inherited: None,
            boot,
            legs: Legs { source, target },
        }
    }

    #[test]
    fn legs_that_were_handed_on_are_as_the_map_says() {
        let mut found = found(Custody::Held(Claim(7)), BOOT, SOURCE, TARGET);
        let judge = |found: &Found| super::judge(MIRRORED, found);
        assert_eq!(judge(&found), Err(Doubt::ClaimLapsed));
        found.inherited = Some(Claim(7));
        assert_eq!(judge(&found), Ok(()));
        found.inherited = Some(Claim(6));
        assert_eq!(
            judge(&found),
            Err(Doubt::ClaimLapsed),
            "the descriptors are those of an older claim"
        );
        found.custody = None;
        assert_eq!(judge(&found), Err(Doubt::NoRecord));
        assert_eq!(
            super::judge(Route::Single(Side::Source), &found),
            Ok(()),
            "no map"
        );
    }

    #[test]
    fn a_claim_goes_on_only_with_its_descriptors() {
        let mut found = found(Custody::Held(Claim(7)), BOOT, SOURCE, TARGET);
        let take = |found: &Found, missing| take_over(MIRRORED, missing, found, Claim(9));
        let lapsed = Takeover {
            claim: Claim(9),
            doubt: Some(Doubt::ClaimLapsed),
            is_new: true,
        };
        assert_eq!(take(&found, None), lapsed);
        found.inherited = Some(Claim(7));
        let kept = Takeover {
            claim: Claim(7),
            doubt: None,
            is_new: false,
        };
        assert_eq!(take(&found, None), kept);
        found.inherited = None;
        let missing = take(&found, Some(Side::Source));
        assert_eq!(missing.doubt, Some(Doubt::LegMissing(Side::Source)));
        assert!(missing.is_new);
    }

    #[test]
    fn released_legs_are_as_the_map_says_while_nothing_is_counted() {
        let judge = |boot, source, target| {
            let found = found(Custody::Released(RELEASED), boot, source, target);
            super::judge(MIRRORED, &found)
        };
        assert_eq!(judge(BOOT, SOURCE, TARGET), Ok(()));
        let written = Err(Doubt::Written(Side::Target));
        assert_eq!(judge(BOOT, SOURCE, leg(6, Some(81))), written);
        assert_eq!(judge(BOOT, SOURCE, leg(7, Some(80))), written);
        assert_eq!(
            judge(BOOT, SOURCE, leg(6, Some(0))),
            written,
            "a device that was made again"
        );
        let uncounted = Err(Doubt::NotCounted(Side::Source));
        assert_eq!(judge(BOOT, leg(5, None), TARGET), uncounted);
    }

    #[test]
    fn after_a_boot_nothing_may_have_been_written_in_it_and_the_contents_have_to_look_the_same() {
        let judge = |route, source, target| {
            let found = found(Custody::Released(RELEASED), NEXT_BOOT, source, target);
            super::judge(route, &found)
        };
        let written = |side| Err(Doubt::Written(side));
        let clean = (leg(5, Some(0)), leg(6, Some(0)));
        assert_eq!(judge(MIRRORED, clean.0, clean.1), Ok(()));
        assert_eq!(judge(MIRRORED, SOURCE, TARGET), written(Side::Target));
        assert_eq!(
            judge(MIRRORED, clean.0, leg(6, Some(1))),
            written(Side::Target)
        );
        let rescued = leg(4, Some(0));
        assert_eq!(
            judge(MIRRORED, rescued, clean.1),
            written(Side::Source),
            "a rescue system"
        );
        let uncounted = Err(Doubt::NotCounted(Side::Target));
        assert_eq!(judge(MIRRORED, clean.0, leg(6, None)), uncounted);
        assert_eq!(
            judge(Route::Split, clean.0, TARGET),
            Ok(()),
            "the target is not ours"
        );
        assert_eq!(judge(Route::Split, rescued, clean.1), written(Side::Source));
    }

    #[test]
    fn a_leg_that_is_or_was_not_there_is_in_doubt() {
        let missing = Err(Doubt::LegMissing(Side::Source));
        let mut found = found(Custody::Released(RELEASED), BOOT, SOURCE, TARGET);
        found.legs.source = None;
        assert_eq!(judge(MIRRORED, &found), missing);
        let mut released = RELEASED;
        released.legs.source = None;
        found.custody = Some(Custody::Released(released));
        found.legs.source = Some(SOURCE);
        assert_eq!(judge(MIRRORED, &found), missing);
    }

    #[test]
    fn the_format_has_not_changed() {
        // Golden values: a change here is a new FORMAT_VERSION.
        assert_eq!(
            checksum(&Custody::Held(Claim(7)).encode(VOLUME)),
            703_293_528
        );
        assert_eq!(
            checksum(&Custody::Released(RELEASED).encode(VOLUME)),
            4_157_631_368
        );
        let mut without = RELEASED;
        without.legs.target = None;
        let custody = Custody::Released(without);
        assert_eq!(
            Custody::decode(VOLUME, &custody.encode(VOLUME)),
            Some(custody)
        );
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_noticed(bit in 0usize..4096, released: bool) {
            let custody = if released { Custody::Released(RELEASED) } else { Custody::Held(Claim(9)) };
            let mut sector = custody.encode(VOLUME);
            prop_assert_eq!(Custody::decode(VOLUME, &sector), Some(custody));
            prop_assert_eq!(Custody::decode(b"other volume 123", &sector), None);
            sector[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Custody::decode(VOLUME, &sector), None);
        }
    }
}
