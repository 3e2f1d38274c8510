//! What the I/O of a volume does to its LUNs and to its map file, and how they fail.

use migration_core::{
    units::Time,
    volume::{IoResult, Op},
};

use super::{EIO, Process, Site, lun_of};
use crate::{
    application::blocks,
    disk::{self, Lun},
    io::{BITMAP_WORD_END, Io, Pending, ROLE_FIELDS_END},
    settings::BLOCKS,
};

impl Site {
    pub(super) fn land(&mut self, io: &Io, part: usize, torn: bool) {
        match io {
            Io::Leg {
                lun,
                op,
                range,
                value,
                mark,
                ..
            } => match op {
                Op::Write { force_unit_access } => {
                    let block = blocks(*range).start + part;
                    self.luns[*lun].write(block, *value, *force_unit_access);
                }
                Op::Flush => self.luns[*lun].make_durable(mark),
                Op::Read | Op::Discard => {}
            },
            Io::Mirror {
                lun, range, value, ..
            } => self.luns[*lun].write(blocks(*range).start + part, *value, false),
            Io::FlushLeg { lun, mark, .. } => self.luns[*lun].make_durable(mark),
            Io::Map(sectors) | Io::Descriptor(sectors) => {
                let torn = torn && self.settings.torn_bitmap;
                self.write_sector(sectors[part], torn, BITMAP_WORD_END);
            }
            Io::Role { sector, .. } => {
                let torn = torn && self.settings.torn_role;
                self.write_sector(**sector, torn, ROLE_FIELDS_END);
            }
        }
    }

    pub(super) fn write_sector(
        &mut self,
        (offset, new): (u64, disk::Sector),
        torn: bool,
        limit: usize,
    ) {
        let old = self.map.get(offset);
        let written = if torn {
            disk::tear(&old, &new, 1 + self.dice.below(limit - 1))
        } else {
            new
        };
        if written == old || written == new {
            if written == new {
                self.torn.remove(&offset);
            }
        } else {
            self.torn.insert(offset);
            self.note("torn sectors");
        }
        self.map.put(offset, written);
    }

    /// Lets a random selection of the parts land.
    pub(super) fn land_some(&mut self, pending: &mut Pending, torn: bool) {
        let dice = &mut self.dice;
        for part in pending.choose(|| dice.one_in(2)) {
            let torn = torn && self.dice.one_in(2);
            self.land(&pending.io, part, torn);
        }
    }

    pub(super) fn land_rest(&mut self, pending: &mut Pending) {
        for part in pending.choose(|| true) {
            self.land(&pending.io, part, false);
        }
    }

    /// Completes a random I/O whose LUN does not hang.
    pub(crate) fn complete_one(&mut self, now: Time) {
        let hung = self.hung;
        let Process::Serving(serving) = &mut self.process else {
            return;
        };
        let able = |pending: &Pending| pending.io.lun().is_none_or(|lun| !hung[lun]);
        let able: Vec<usize> = (0..serving.pending.len())
            .filter(|index| able(&serving.pending[*index]))
            .collect();
        if able.is_empty() {
            return;
        }
        let index = self.dice.pick(&able);
        let lun = serving.pending[index].io.lun();
        let is_slow = lun.is_some_and(|lun| self.settings.slow_luns[lun]);
        if (is_slow || serving.pending[index].is_doomed) && !self.dice.one_in(8) {
            return;
        }
        let mut pending = serving.pending.swap_remove(index);
        if self.dice.one_in(6) {
            // Parts are on the medium before the completion is known.
            self.land_some(&mut pending, false);
            if let Some(serving) = self.serving() {
                serving.pending.push(pending);
            }
            return;
        }
        let result = self.end(&mut pending);
        self.completed(now, &pending.io, result);
    }

    pub(super) fn end(&mut self, pending: &mut Pending) -> IoResult {
        let authoritative = self.authoritative_lun();
        let settings = &self.settings;
        let chance = match &pending.io {
            Io::Leg { lun, .. } if Some(*lun) == authoritative => settings.authoritative_fails,
            Io::FlushLeg { lun, .. } if Some(*lun) == authoritative => settings.authoritative_fails,
            Io::Leg { .. } | Io::Mirror { .. } => settings.mirror_fails,
            Io::FlushLeg { .. } => settings.mirror_flush_fails,
            Io::Map(_) | Io::Descriptor(_) | Io::Role { .. } => settings.map_fails,
        };
        if !pending.is_doomed && !self.dice.one_in(chance) {
            self.land_rest(pending);
            return Ok(());
        }
        match &pending.io {
            Io::FlushLeg { lun, .. } => {
                let lun = *lun;
                if Some(lun) == authoritative {
                    self.application.flush_failed(false);
                    self.note("flushes of the authoritative leg that failed");
                }
                self.may_lose_cache(lun);
                self.note("flushes of a leg that failed");
            }
            Io::Leg { tag, lun, .. } => {
                let (tag, lun) = (*tag, *lun);
                let open = self.application.open.get_mut(&tag).expect("it is open");
                open.failed = true;
                let op = open.request.op;
                if op == Op::Flush {
                    self.application.flush_failed(true);
                } else {
                    self.land_some(pending, false);
                }
                // A failed read says nothing about the cache, and with a single leg nothing is
                // promised.
                let mirrored = self.serving().is_some_and(|s| s.volume.regions().is_some());
                if op != Op::Read && mirrored {
                    self.may_lose_cache(lun);
                }
                self.note("requests that a leg failed to do");
            }
            Io::Mirror { lun, .. } => {
                let lun = *lun;
                self.land_some(pending, false);
                self.may_lose_cache(lun);
                self.note("mirror writes that failed");
            }
            Io::Map(_) | Io::Descriptor(_) | Io::Role { .. } => {
                // A failed write may tear the sector of a role record; storage promises not to tear
                // the others.
                let tears = matches!(pending.io, Io::Role { .. });
                self.land_some(pending, tears);
                self.note("writes to the map file that failed");
            }
        }
        Err(EIO)
    }

    /// Loses the cache of a leg that failed in half of the cases, as if its power was lost for a
    /// moment.
    pub(super) fn may_lose_cache(&mut self, lun: usize) {
        if self.dice.one_in(2) {
            return;
        }
        let now = |lun: &Lun| (0..BLOCKS).map(|block| lun.now(block)).collect::<Vec<_>>();
        let before = now(&self.luns[lun]);
        self.luns[lun].lose_cache(&mut self.dice);
        if let Some(serving) = self.serving() {
            let of_lun = |pending: &&mut Pending| pending.io.lun() == Some(lun);
            serving
                .pending
                .iter_mut()
                .filter(of_lun)
                .for_each(Pending::begin_again);
        }
        self.note("caches lost by a leg that failed");
        if self.authoritative_lun() == Some(lun) {
            let after = now(&self.luns[lun]).into_iter().zip(before);
            for (block, (after, before)) in after.enumerate() {
                if after != before {
                    self.application.lost(block, after);
                }
            }
        }
    }

    /// The mirror leg loses its power for a moment while it is written to. One of its writes in
    /// flight will fail. Until that is known, the leg does what is asked of it, such as a flush.
    pub(crate) fn lose_power_of_mirror(&mut self) {
        // Not in worlds where the authoritative leg fails: before the failure is known, nothing
        // shows that a read from the mirror leg is wrong.
        if self.settings.mirror_fails == 0 || self.settings.authoritative_fails > 0 {
            return;
        }
        let Process::Serving(serving) = &mut self.process else {
            return;
        };
        // The loss matters most while the leg is being flushed.
        let flushes = |pending: &Pending| matches!(pending.io, Io::FlushLeg { .. });
        if !serving.pending.iter().any(flushes) && !self.dice.one_in(8) {
            return;
        }
        let mut pending = serving.pending.iter_mut();
        let write = pending.find_map(|pending| match pending.io {
            Io::Mirror { lun, .. } => Some((lun, pending)),
            _ => None,
        });
        let Some((lun, write)) = write else {
            return;
        };
        write.is_doomed = true;
        self.luns[lun].lose_cache(&mut self.dice);
        self.note("caches lost before a failure was known");
    }

    /// A mirror leg that was given up may lose its cache at any moment, until it is tried again.
    pub(crate) fn may_lose_mirror_cache(&mut self) {
        let Some(serving) = self.serving() else {
            return;
        };
        let given_up = serving.volume.mirror_fault().is_some();
        let mirror = serving.volume.record().route.mirror();
        let lun = mirror.map(|side| lun_of(&serving.descriptor, side));
        if let (true, Some(lun)) = (given_up, lun) {
            self.may_lose_cache(lun);
        }
    }
}
