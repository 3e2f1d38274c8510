//! What the effects of the volume do to the world.

use seeded_core::{
    map::Area,
    route::{Route, Side},
    volume::{Call, Effect, Reply},
};

use super::{CLAIM, Copy, Io, VOLUME_ID, World};
use crate::{
    check::{Checker, Violation, require},
    disk::MapWrite,
    setup::{BLOCKS_MAX, Setup},
};

impl World {
    pub(crate) fn perform(&mut self, setup: &Setup, effects: Vec<Effect>) -> Result<(), Violation> {
        for effect in effects {
            self.perform_one(setup, effect)?;
        }
        Ok(())
    }

    fn perform_one(&mut self, setup: &Setup, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::Leg { tag, side, .. } => self.io.push(Io::Request {
                request: tag.0 as u8,
                side,
                lun: self.lun_now(side) as u8,
                newer: [0; BLOCKS_MAX],
            }),
            Effect::MirrorWrite { tag, place, side } => self.io.push(Io::Mirror {
                request: tag.0 as u8,
                place,
                lun: self.lun_now(side) as u8,
            }),
            Effect::Answer { tag, result } => {
                return self.answered(setup, usize::from(tag.0), result);
            }
            Effect::FlushLeg { side, flush } => self.io.push(Io::Flush {
                flush,
                side,
                lun: self.lun_now(side) as u8,
                newer: [0; BLOCKS_MAX],
            }),
            Effect::WriteMap => self.map.map_write = Some(self.encoded_batch()),
            Effect::WriteDescriptor { .. } => {
                let free = !core::mem::replace(&mut self.map.descriptor_write, true);
                require(free, Checker::OneAuthoritative, || {
                    "two descriptors are being written to one slot".to_owned()
                })?;
                let is_mirror = |io: &Io| matches!(io, Io::Mirror { .. });
                let quiet = !self.io.iter().any(is_mirror);
                return require(quiet, Checker::Drained, || {
                    "a mirror leg is added while an old one is still written".to_owned()
                });
            }
            Effect::WriteRole { record, slot } => {
                let free = self.map.role_write.is_none();
                self.map.role_write = Some((record, slot));
                return require(free, Checker::OneAuthoritative, || {
                    "two role records are being written".to_owned()
                });
            }
            Effect::Reply { call, reply } => return self.replied(call, reply),
            Effect::Die { .. } => self.must_die = true,
        }
        Ok(())
    }

    /// The batch of map sectors, encoded with the production codec as for the map file.
    fn encoded_batch(&self) -> MapWrite {
        let mut write = MapWrite {
            dirty: None,
            intent: None,
        };
        for sector in self.volume.map_batch() {
            let bytes = self.volume.encode_sector(*sector);
            let words = sector.decode(&VOLUME_ID, &bytes).expect("a whole sector");
            match sector.area {
                Area::Dirty => write.dirty = Some(words[0] as u8),
                Area::Intent => write.intent = Some(words[0] as u8),
            }
        }
        write
    }

    fn replied(&mut self, call: Call, reply: Reply) -> Result<(), Violation> {
        match reply {
            Reply::RouteChanged { epoch, route, .. } => {
                // If the process dies now, the next one must find exactly this.
                for chosen in self.map.outcomes() {
                    let record = chosen.ok().map(|chosen| chosen.record);
                    let found = record.map(|record| (record.epoch, record.route));
                    require(
                        found == Some((epoch, route)),
                        Checker::OneAuthoritative,
                        || format!("the answer says {route:?}, a successor may find {found:?}"),
                    )?;
                }
                self.copy = None;
                if route == Route::Split {
                    let held = self.volume.is_suspended();
                    require(held, Checker::Drained, || {
                        "split, and does not hold".to_owned()
                    })?;
                    self.drained = true;
                    let source = self.lun_now(Side::Source);
                    let cells = &self.luns[source].0;
                    self.copy = Some(core::array::from_fn(|block| cells[block].newest()));
                }
            }
            Reply::ChangeFailed(_) | Reply::SuspendDeadline => {}
            Reply::Suspended => self.drained = true,
            Reply::Claimed(regions) => {
                let epoch = self.volume.record().epoch;
                if let Some(copier) = self.copier.as_mut().filter(|_| call == CLAIM) {
                    copier.waits = false;
                    copier.epoch = epoch;
                    copier.ends = regions.is_empty() && copier.regions.is_empty();
                    copier
                        .regions
                        .extend(regions.into_iter().map(|region| (region, Copy::Claimed)));
                }
            }
            Reply::ClaimRefused(_) => {
                if let Some(copier) = &mut self.copier {
                    (copier.waits, copier.ends) = (false, true);
                }
            }
        }
        Ok(())
    }
}
