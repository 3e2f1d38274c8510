//! The checks at any moment, at a change of the roles, and at the end.

use migration_core::volume::Op;
use migration_core::{map::RoleRecord, region::RegionState, route::Route, units::RegionIndex};

use super::{Process, Site, geometry, lun_of};
use crate::{
    application::blocks,
    io::Io,
    settings::{BLOCKS, REGIONS},
};

impl Site {
    /// Checks invariant 2 where no write is in flight.
    pub(super) fn check_clean_is_equal(&self) {
        let Process::Serving(serving) = &self.process else {
            return;
        };
        let Some(regions) = serving.volume.regions() else {
            return;
        };
        if serving.pending.iter().any(|pending| pending.is_doomed) {
            return;
        }
        // The roles are about to move to the leg that has lost nothing; until then nothing is read.
        if serving.volume.is_changing() && self.application.has_lost() {
            return;
        }
        for region in (0..REGIONS).map(RegionIndex) {
            if regions.get(region) != RegionState::Clean {
                continue;
            }
            let here = geometry().range(region);
            let trails = serving.pending.iter().any(
                |pending| matches!(&pending.io, Io::Mirror { range, .. } if range.overlaps(here)),
            );
            let busy = self.application.open.values().any(|open| {
                matches!(open.request.op, Op::Write { .. }) && open.request.range.overlaps(here)
            });
            if !trails && !busy {
                for block in blocks(here) {
                    let values = [self.luns[0].now(block), self.luns[1].now(block)];
                    assert_eq!(values[0], values[1], "clean block {block} differs");
                }
            }
        }
    }

    /// Checks invariant 5.
    pub(super) fn check_drained(&self) {
        let Process::Serving(serving) = &self.process else {
            return;
        };
        let (record, fault) = (serving.volume.record(), serving.volume.mirror_fault());
        let given_up = fault.is_some() || record.route.mirror().is_none();
        for pending in &serving.pending {
            match &pending.io {
                Io::Leg { .. } => panic!("invariant 5: {:?} after the drain", pending.io),
                Io::Mirror { .. } => assert!(given_up, "invariant 5: {:?}", pending.io),
                Io::FlushLeg { .. } | Io::Map(_) | Io::Descriptor(_) | Io::Role { .. } => {}
            }
        }
    }

    /// Checks invariant 6, at the moment at which the change is issued.
    pub(super) fn check_exchange(&self, next: &RoleRecord) {
        self.check_drained();
        let Process::Serving(serving) = &self.process else {
            return;
        };
        let record = serving.volume.record();
        let (Route::Mirrored { .. }, Route::Mirrored { authoritative }) =
            (record.route, next.route)
        else {
            return;
        };
        let new = lun_of(&serving.descriptor, authoritative);
        let asked = !serving.changes.is_empty();
        for block in 0..BLOCKS {
            assert!(
                self.luns[new].is_durable(block),
                "invariant 6: block {block} of the next authoritative leg is not flushed"
            );
            if asked {
                assert_eq!(
                    self.luns[new].now(block),
                    self.luns[1 - new].now(block),
                    "invariant 6: block {block} differs at the change of the role"
                );
            }
        }
    }

    /// Whether no request is open, nothing is in flight, and no region is dirty.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let copier_gone = self.copying.is_gone();
        let requests = self.application.open.is_empty();
        let ghosts = self.ghosts.is_empty();
        let Some(serving) = self.serving() else {
            return false;
        };
        let clean = serving
            .volume
            .regions()
            .is_none_or(|regions| regions.dirty_regions() == 0);
        copier_gone
            && requests
            && ghosts
            && clean
            && serving.pending.is_empty()
            && serving.changes.is_empty()
    }

    pub(crate) fn check_at_the_end(&mut self, session: impl Fn() -> String) {
        if !self.is_quiet() {
            let (open, copier) = (self.application.open.clone(), format!("{:?}", self.copying));
            let engine = self
                .serving()
                .map(|serving| format!("{:?}, pending {:?}", serving.volume, serving.pending));
            panic!(
                "it does not come to rest: {}, open {open:?}, copier {copier}, {engine:?}",
                session()
            );
        }
        self.check_clean_is_equal();
        let lun = self.authoritative_lun().expect("it serves");
        for block in 0..BLOCKS {
            self.application.check(block, self.luns[lun].now(block));
        }
    }
}
