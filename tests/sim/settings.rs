//! The settings that differ between worlds, and the sizes that do not.

use std::collections::BTreeMap;

use migration_core::volume::{Config, CopyMode, OnAuthoritativeFailure};

use crate::dice::Dice;

pub(crate) const REGION: u64 = 64 << 10;
pub(crate) const BLOCK: u64 = 32 << 10;
pub(crate) const REGIONS: usize = 4;
pub(crate) const BLOCKS: usize = REGIONS * 2;
pub(crate) const TAGS: usize = 5;
pub(crate) const MILLISECOND: u64 = 1_000_000;
/// How long a change of the route may hold requests, in nanoseconds.
pub(crate) const HOLD: u64 = 1000 * MILLISECOND;
/// How long a suspension lasts at most, in nanoseconds.
pub(crate) const SUSPENSION: u64 = 20 * MILLISECOND;
pub(crate) const CONFIG: Config = Config {
    tags: TAGS,
    places: 3,
    patience: 200 * MILLISECOND,
};

/// What happened, and how often.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// The settings of a world. A number for a failure means one chance in that number; 0: never.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) volumes: usize,
    pub(crate) steps: usize,
    /// Whether the completions of each LUN are delayed.
    pub(crate) slow_luns: [bool; 2],
    pub(crate) slow_copier: bool,
    /// How rare deaths are: one chance in this number.
    pub(crate) peace: usize,
    pub(crate) hangs: bool,
    pub(crate) mirror_fails: usize,
    pub(crate) mirror_flush_fails: usize,
    pub(crate) authoritative_fails: usize,
    pub(crate) map_fails: usize,
    pub(crate) copier_fails: usize,
    /// Whether a sector with a role record may be torn.
    pub(crate) torn_role: bool,
    /// Whether any other sector of the map file may be torn. Storage promises that it is not, so
    /// the file must be refused.
    pub(crate) torn_bitmap: bool,
    pub(crate) policy: OnAuthoritativeFailure,
    pub(crate) mode: CopyMode,
    /// The number of pairs that are copied at once.
    pub(crate) pairs_max: usize,
    /// Whether a wrong rule applies: a LUN without a name is identified by its size only.
    pub(crate) luns_by_size_only: bool,
}

impl Settings {
    pub(crate) fn new(dice: &mut Dice) -> Self {
        let faulty = dice.one_in(2);
        Self {
            volumes: dice.pick(&[1, 1, 1, 2, 2, 3]),
            steps: dice.pick(&[3_000, 6_000, 12_000]),
            slow_luns: [dice.one_in(6), dice.one_in(6)],
            slow_copier: dice.one_in(4),
            peace: dice.pick(&[1, 3, 8, 20]),
            hangs: dice.one_in(3),
            mirror_fails: if faulty {
                dice.pick(&[0, 100, 1000])
            } else {
                0
            },
            mirror_flush_fails: if faulty { dice.pick(&[0, 10, 50]) } else { 0 },
            authoritative_fails: if faulty { dice.pick(&[0, 30, 300]) } else { 0 },
            map_fails: if faulty { dice.pick(&[0, 20, 100]) } else { 0 },
            copier_fails: if faulty { dice.pick(&[0, 50, 200]) } else { 0 },
            torn_role: dice.one_in(2),
            torn_bitmap: dice.one_in(10),
            policy: dice.pick(&[
                OnAuthoritativeFailure::Auto,
                OnAuthoritativeFailure::Error,
                OnAuthoritativeFailure::Switch,
            ]),
            mode: dice.pick(&[CopyMode::Mirror, CopyMode::Mirror, CopyMode::Track]),
            pairs_max: dice.pick(&[1, 2, 3]),
            luns_by_size_only: false,
        }
    }

    /// Turns off all failures.
    pub(crate) fn calm(&mut self) {
        self.slow_luns = [false; 2];
        self.slow_copier = false;
        self.hangs = false;
        self.mirror_fails = 0;
        self.mirror_flush_fails = 0;
        self.authoritative_fails = 0;
        self.map_fails = 0;
        self.copier_fails = 0;
    }
}
