//! The copier, alive and dead.

use seeded_core::{
    units::Epoch,
    volume::{CopierId, Effect, Report},
};

use super::{CLAIM, Copier, Copy, Ghost, Late, NOW, World};
use crate::{
    check::{Checker, Violation, require},
    setup::Setup,
};

const CLAIMED_AT_ONCE: usize = 2;

impl World {
    pub(crate) fn open_copier(&mut self) {
        // An id that differs from the one of a late report; two ids are enough.
        let id = match self.late {
            Some(late) => CopierId(3 - late.copier.0),
            None => CopierId(1),
        };
        if let Ok(epoch) = self.volume.open_copier(id) {
            let from = self.lun_now(self.volume.record().route.authoritative()) as u8;
            self.copier = Some(Copier {
                id,
                epoch,
                from,
                waits: false,
                ends: false,
                regions: Vec::new(),
            });
        }
    }

    pub(crate) fn claim(&mut self, effects: &mut Vec<Effect>) {
        if let Some(copier) = &mut self.copier {
            copier.waits = true;
            self.volume
                .claim(copier.id, CLAIM, CLAIMED_AT_ONCE, effects);
        }
    }

    /// The copier's next step with a region that it has.
    pub(crate) fn copy(
        &mut self,
        setup: &Setup,
        index: usize,
        newest: bool,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let Some(copier) = &self.copier else {
            return Ok(());
        };
        let (id, epoch, from) = (copier.id, copier.epoch, usize::from(copier.from));
        let (region, copy) = copier.regions[index];
        let next = match copy {
            Copy::Claimed => {
                let mut values = [0; 2];
                for (value, block) in values.iter_mut().zip(setup.of_region(region.0)) {
                    let landing = self.landing(setup, from, block);
                    *value = self.luns[from].0[block].newest();
                    if newest && landing != 0 {
                        *value = landing.trailing_zeros() as u8;
                    }
                }
                Some(Copy::Writing(values))
            }
            Copy::Writing(values) => {
                for (value, block) in values.into_iter().zip(setup.of_region(region.0)) {
                    self.write_block(1 - from, block, value);
                }
                Some(Copy::Written)
            }
            Copy::Written => None,
        };
        if let Some(copier) = &mut self.copier {
            match next {
                Some(next) => copier.regions[index].1 = next,
                None => {
                    copier.regions.remove(index);
                }
            }
        }
        if next.is_some() {
            return Ok(());
        }
        let reported = self
            .volume
            .report(NOW, id, &Report::copied(epoch, &[region]), effects);
        require(reported.is_ok(), Checker::StaleActor, || {
            format!("the copier's report is refused: {reported:?}")
        })
    }

    /// The copier's connection ends; what it was writing may land later.
    pub(crate) fn kill_copier(&mut self, effects: &mut Vec<Effect>) {
        let Some(copier) = self.copier.take() else {
            return;
        };
        for (region, copy) in &copier.regions {
            if let Copy::Writing(values) = copy {
                self.ghosts.push(Ghost {
                    lun: 1 - copier.from,
                    region: region.0,
                    values: *values,
                });
            }
        }
        self.volume.close_copier(copier.id, NOW, effects);
        self.late = copier.regions.first().map(|(region, _)| Late {
            copier: copier.id,
            epoch: copier.epoch,
            region: *region,
        });
    }

    pub(crate) fn land_ghost(&mut self, setup: &Setup, index: usize) {
        let ghost = self.ghosts.remove(index);
        for (value, block) in ghost.values.into_iter().zip(setup.of_region(ghost.region)) {
            self.write_block(usize::from(ghost.lun), block, value);
        }
    }

    pub(crate) fn report_old(
        &mut self,
        index: usize,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let Some(copier) = &self.copier else {
            return Ok(());
        };
        let (region, epoch) = (copier.regions[index].0, Epoch(copier.epoch.0 - 1));
        let id = copier.id;
        let reported = self
            .volume
            .report(NOW, id, &Report::copied(epoch, &[region]), effects);
        require(reported.is_err(), Checker::StaleActor, || {
            "a report of an older epoch is accepted".to_owned()
        })
    }

    pub(crate) fn report_late(&mut self, effects: &mut Vec<Effect>) -> Result<(), Violation> {
        let Some(late) = self.late.take() else {
            return Ok(());
        };
        let (copier, epoch) = (late.copier, late.epoch);
        let reported =
            self.volume
                .report(NOW, copier, &Report::copied(epoch, &[late.region]), effects);
        require(reported.is_err(), Checker::StaleActor, || {
            "the report of a copier that is gone is accepted".to_owned()
        })
    }
}
