//! What the targets of a split must hold: copies of one instant.

use migration_core::route::{Route, Side};
use seeded_core::pair::Phase;

use crate::{
    disk::Value,
    settings::BLOCKS,
    site::{Site, lun_of},
    world::World,
};

/// The contents of a volume's source at a moment, and whether requests were held then.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    held: bool,
    source: Vec<Value>,
}

impl World {
    /// Remembers what the volumes hold: the copies must be of this moment.
    pub(crate) fn take_moments(&mut self) {
        self.moments = self.sites.iter_mut().map(moment).collect();
    }

    /// Checks that a volume held requests when the moment of the copies was taken.
    pub(crate) fn require_held(&self, pair: usize) {
        let moment = &self.moments[pair];
        assert!(moment.held, "{moment:?} counts as a copy");
    }

    /// Checks that every target that counts as a copy holds the moment that all volumes share,
    /// whatever dies.
    pub(crate) fn check_copies(&self) {
        let pairs = self.daemon.store.pairs.iter().enumerate();
        for (pair, row) in pairs.filter(|(_, row)| row.phase == Phase::Split) {
            let target = &self.sites[pair].luns[row.target];
            for (block, value) in self.moments[pair].source.iter().enumerate() {
                assert_eq!(target.now(block), *value, "block {block} of the copy");
                assert!(target.is_durable(block), "block {block} of the copy");
            }
        }
    }
}

fn moment(site: &mut Site) -> Moment {
    let held = site.serving().is_some_and(|serving| {
        let volume = &serving.volume;
        volume.is_suspended() && volume.record().route == Route::Split
    });
    let source = site
        .serving()
        .map(|serving| lun_of(&serving.descriptor, Side::Source));
    let source = source.map_or_else(Vec::new, |lun| {
        (0..BLOCKS).map(|block| site.luns[lun].now(block)).collect()
    });
    Moment { held, source }
}
