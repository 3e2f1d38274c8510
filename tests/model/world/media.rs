//! What is on the LUNs and in their caches.

use super::{Copy, Io, Stage, World, blocks, writes_block};
use crate::{
    disk::{Cell, Value, Values, only},
    setup::{BLOCKS_MAX, OperatorRequest, Setup},
};

impl World {
    /// Whether a LUN has data that is only in its cache.
    pub(crate) fn has_volatile(&self, lun: usize) -> bool {
        let mut cells = self.luns[lun].0.iter();
        cells.any(|cell| cell.durable() != cell.newest())
    }

    /// Whether an I/O is the write to the mirror leg that will fail.
    pub(crate) fn is_doomed(&self, io: &Io) -> bool {
        matches!(io, Io::Mirror { place, .. } if self.doomed == Some(*place))
    }

    /// Loses the data of a LUN that is only in its cache, because the LUN has failed.
    pub(crate) fn lose_cache(&mut self, lun: usize) {
        let before = self.luns[lun];
        self.luns[lun].settle(false);
        let authoritative = self.volume.record().route.authoritative();
        if lun != self.lun_now(authoritative) {
            return;
        }
        for block in 0..BLOCKS_MAX {
            let value = self.luns[lun].0[block].newest();
            if value == before.0[block].newest() {
                continue;
            }
            self.lost[block] |= only(value);
            self.allow_reads(block, only(value));
        }
    }

    /// Lets open reads return the values that a leg fell back to: no error shows the loss before a
    /// flush.
    fn allow_reads(&mut self, block: usize, values: Values) {
        for stage in &mut self.requests {
            if let Stage::Open(open) = stage
                && open.is_read
                && open.allowed[block] != 0
            {
                open.allowed[block] |= values;
            }
        }
    }

    /// Accepts the losses: the application has seen an error of the leg, and knows that unflushed
    /// data may be gone. `also_flushes`: open flushes may have lost data too.
    pub(crate) fn accept_loss(&mut self, also_flushes: bool) {
        for block in 0..BLOCKS_MAX {
            let lost = core::mem::take(&mut self.lost[block]);
            self.possible[block] |= lost;
            for stage in &mut self.requests {
                if let Stage::Open(open) = stage
                    && open.allowed[block] != 0
                    && (also_flushes || open.is_read)
                {
                    open.allowed[block] |= lost;
                }
            }
        }
    }

    /// Forgets the losses after a fail-over: the leg that took over has lost nothing.
    pub(crate) fn note_fail_over(&mut self) {
        if self.volume.counters().fail_overs > 0 {
            self.lost = [0; BLOCKS_MAX];
        }
    }

    pub(crate) fn write_block(&mut self, lun: usize, block: usize, value: Value) {
        let flushes = self.io.iter_mut().filter(|io| io.lun() == lun);
        let newer = flushes.filter_map(|io| match io {
            Io::Request { newer, .. } | Io::Flush { newer, .. } => Some(newer),
            Io::Mirror { .. } => None,
        });
        self.luns[lun].write(block, value, newer);
    }

    /// Applies a completed I/O to the media.
    pub(crate) fn land(&mut self, setup: &Setup, io: &Io) {
        match *io {
            Io::Request {
                request,
                lun,
                newer,
                ..
            } => {
                let (index, lun) = (usize::from(request), usize::from(lun));
                match setup.requests[index].ask {
                    OperatorRequest::Read => self.read(setup, index, lun),
                    OperatorRequest::Write => self.land_write(setup, index, lun),
                    OperatorRequest::ForcedWrite => {
                        self.land_write(setup, index, lun);
                        for block in blocks(setup, index) {
                            self.luns[lun].0[block] = Cell::new(self.luns[lun].0[block].newest());
                        }
                    }
                    OperatorRequest::Flush => self.luns[lun].flushed(newer),
                }
            }
            Io::Mirror { request, lun, .. } => {
                self.land_write(setup, usize::from(request), usize::from(lun));
            }
            Io::Flush { lun, newer, .. } => self.luns[usize::from(lun)].flushed(newer),
        }
    }

    fn land_write(&mut self, setup: &Setup, index: usize, lun: usize) {
        for block in blocks(setup, index) {
            self.write_block(lun, block, index as Value + 1);
        }
    }

    /// Notes whether a read returns only allowed values. This counts when the read is answered.
    fn read(&mut self, setup: &Setup, index: usize, lun: usize) {
        let Stage::Open(open) = self.requests[index] else {
            return;
        };
        let stale = |block: &usize| {
            let value = self.luns[lun].0[*block].newest();
            open.allowed[*block] & only(value) == 0
        };
        if blocks(setup, index).any(|block| stale(&block)) {
            self.misread |= 1 << index;
        } else {
            self.misread &= !(1 << index);
        }
    }

    /// The values that writes in flight may bring to a block of a LUN.
    pub(crate) fn landing(&self, setup: &Setup, lun: usize, block: usize) -> Values {
        let writes = self.io.iter().filter(|io| io.lun() == lun);
        let requests = writes.filter_map(|io| match io {
            Io::Request { request, .. } | Io::Mirror { request, .. } => Some(usize::from(*request)),
            Io::Flush { .. } => None,
        });
        requests
            .filter(|index| writes_block(setup, *index, block))
            .fold(0, |set, index| set | only(index as Value + 1))
    }

    /// The values that copiers, alive or dead, may write to a block of a LUN.
    pub(crate) fn copying(&self, setup: &Setup, lun: usize, block: usize) -> Values {
        let region = block / setup.blocks_per_region;
        let offset = block % setup.blocks_per_region;
        let dead = self
            .ghosts
            .iter()
            .filter(|ghost| usize::from(ghost.lun) == lun && ghost.region == region);
        let dead = dead.fold(0, |set, ghost| set | only(ghost.values[offset]));
        let alive = self
            .copier
            .iter()
            .filter(|copier| usize::from(1 - copier.from) == lun)
            .flat_map(|copier| &copier.regions)
            .filter(|(other, _)| other.0 == region);
        alive.fold(dead, |set, (_, copy)| match copy {
            Copy::Writing(values) => set | only(values[offset]),
            Copy::Claimed | Copy::Written => set,
        })
    }
}
