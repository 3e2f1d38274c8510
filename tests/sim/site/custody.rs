//! The custody of the legs: who holds them, and what others write to them meanwhile.

use map_store::Contents;
use migration_core::{
    custody::{self, BootId, Claim, Custody, Doubt, Found, LegState, Legs, Released, Takeover},
    route::{Route, Side},
};
use migration_proto::route::Descriptor;

use super::{Process, Site, lun_of_leg};
use crate::settings::BLOCKS;

impl Site {
    /// As `ublk_target::custody::take`.
    pub(super) fn take_over(&mut self, contents: &mut Contents) -> std::io::Result<Takeover> {
        let record = contents.chosen.record;
        self.mirror_missing = self.settings.mirror_fails > 0
            && record.route.mirror().is_some()
            && self.dice.one_in(10);
        let missing = record.route.mirror().filter(|_| self.mirror_missing);
        let found = Found {
            custody: contents.custody,
            inherited: self.held.filter(|_| missing.is_none()),
            boot: BootId([self.boot; 16]),
            legs: self.leg_states(&contents.descriptor),
        };
        self.next_claim += 1;
        let new = Claim(self.next_claim);
        let takeover = custody::take_over(record.route, missing, &found, new);
        if let Some(doubt) = takeover.doubt {
            map_store::make_all_dirty(&self.map, &record, &mut contents.dirty)?;
            self.note(match doubt {
                Doubt::NoRecord | Doubt::NotCounted(_) => "doubts of other kinds",
                Doubt::ClaimLapsed => "doubts because a claim lapsed",
                Doubt::LegMissing(_) => "doubts because a leg is missing",
                Doubt::Written(_) => "foreign writes found",
            });
        }
        if takeover.is_new {
            map_store::write_custody(&self.map, &record, &Custody::Held(takeover.claim))?;
        }
        Ok(takeover)
    }

    pub(super) fn leg_states(&self, descriptor: &Descriptor) -> Legs {
        let state = |side: Side| {
            let lun = lun_of_leg(descriptor.leg(side.into())?);
            Some(LegState {
                // Block 0 stands for the fingerprint: every foreign write changes it.
                fingerprint: self.luns[lun].now(0),
                changes: Some(self.counted[lun]),
            })
        };
        Legs {
            source: state(Side::Source),
            target: state(Side::Target),
        }
    }

    /// Ends the process as a unit that is stopped: nothing is in flight, and both legs are flushed.
    /// Returns whether that was possible.
    pub(crate) fn stop_cleanly(&mut self) -> bool {
        let idle = self.application.open.is_empty() && self.copying.is_gone();
        let Process::Serving(serving) = &self.process else {
            return false;
        };
        if !idle || !serving.pending.is_empty() || !serving.changes.is_empty() {
            return false;
        }
        let record = *serving.volume.record();
        let legs = self.leg_states(&serving.descriptor);
        for lun in &mut self.luns {
            let mark = lun.mark();
            lun.make_durable(&mark);
        }
        let boot = BootId([self.boot; 16]);
        let released = Custody::Released(Released { boot, legs });
        map_store::write_custody(&self.map, &record, &released).expect("the map file lives");
        self.kill();
        self.held = None;
        self.note("clean ends of ublk-target");
        true
    }

    /// Lets others write to the mirror leg while no process holds the LUNs.
    pub(crate) fn foreign_write(&mut self) {
        let Ok((route, authoritative)) = self.durable_route() else {
            return;
        };
        let unclaimed = self.held.is_none() && matches!(self.process, Process::Down);
        if route.mirror().is_some() && unclaimed && self.ghosts.is_empty() && self.copying.is_gone()
        {
            self.write_as_others(1 - authoritative, false);
        }
    }

    pub(super) fn write_as_others(&mut self, lun: usize, in_another_system: bool) {
        let value = self.application.foreign_value();
        let block = self.dice.below(BLOCKS);
        self.luns[lun].write(block, value, true);
        // A mount changes the superblock. Writes that do not change the fingerprint are a
        // documented limit.
        self.luns[lun].write(0, value, true);
        self.counted[lun] += u64::from(!in_another_system);
        self.note("foreign writes");
    }

    /// Lets others write between two boots of this host, or after a boot before Shunt runs.
    pub(super) fn write_while_down(&mut self, route: Route, authoritative: usize) {
        let (lun, in_another_system) = (self.dice.below(2), self.dice.one_in(2));
        // shuntd, not ublk-target, judges whether a split target was written to.
        let is_split_target = route == Route::Split && lun != authoritative;
        if self.dice.one_in(3) && !is_split_target {
            self.write_as_others(lun, in_another_system);
            if lun == authoritative {
                let Self {
                    application, luns, ..
                } = self;
                application.accept(|block| luns[lun].now(block));
            }
        }
    }

    /// shuntd keeps the claim of the serving process while it lives.
    pub(crate) fn hold(&mut self) {
        self.held = self.serving().map(|serving| serving.claim);
    }
}
