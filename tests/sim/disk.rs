//! The disks of the simulation: legs with volatile caches, and the map file.

use std::{
    cell::{Cell as Shared, RefCell},
    collections::BTreeMap,
    io,
    os::unix::fs::FileExt,
};

use migration_core::map::SECTOR_BYTES;

use crate::dice::Dice;

/// The content of a block: a number that no other write of its volume writes. 0: never written.
pub(crate) type Value = u64;

/// A block of a LUN: all its versions, and the index of the first version that a power loss may
/// leave.
#[derive(Debug, Clone)]
struct Cell {
    versions: Vec<Value>,
    durable: usize,
}

impl Cell {
    fn new(value: Value) -> Self {
        Self {
            versions: vec![value],
            durable: 0,
        }
    }

    fn now(&self) -> Value {
        self.versions[self.versions.len() - 1]
    }
}

/// The index of the newest version of each block: a flush that begins now covers these.
pub(crate) type Mark = Vec<usize>;

/// A LUN. It writes a block completely or not at all; its cache keeps and loses blocks in any
/// order.
#[derive(Debug, Clone)]
pub(crate) struct Lun {
    cells: Vec<Cell>,
}

impl Lun {
    pub(crate) fn new(blocks: usize, value: Value) -> Self {
        Self {
            cells: (0..blocks).map(|_| Cell::new(value)).collect(),
        }
    }

    pub(crate) fn now(&self, block: usize) -> Value {
        self.cells[block].now()
    }

    pub(crate) fn write(&mut self, block: usize, value: Value, durable: bool) {
        let cell = &mut self.cells[block];
        cell.versions.push(value);
        if durable {
            cell.durable = cell.versions.len() - 1;
        }
    }

    pub(crate) fn mark(&self) -> Mark {
        let cells = self.cells.iter();
        cells.map(|cell| cell.versions.len() - 1).collect()
    }

    pub(crate) fn make_durable(&mut self, mark: &Mark) {
        for (cell, version) in self.cells.iter_mut().zip(mark) {
            // The cache may have been lost since the flush began.
            cell.durable = cell.durable.max(*version).min(cell.versions.len() - 1);
        }
    }

    /// Whether a power loss would leave the block as it is.
    pub(crate) fn is_durable(&self, block: usize) -> bool {
        let cell = &self.cells[block];
        cell.durable == cell.versions.len() - 1
    }

    /// Lets each block fall back to a version between the durable one and the newest one.
    pub(crate) fn lose_cache(&mut self, dice: &mut Dice) {
        for cell in &mut self.cells {
            let kept = cell.durable + dice.below(cell.versions.len() - cell.durable);
            cell.versions.truncate(kept + 1);
        }
    }

    /// The power fails and comes back.
    pub(crate) fn lose_power(&mut self, dice: &mut Dice) {
        self.lose_cache(dice);
        for cell in &mut self.cells {
            *cell = Cell::new(cell.now());
        }
    }
}

pub(crate) type Sector = [u8; SECTOR_BYTES];

/// A torn sector, as an interrupted write leaves it: its first `kept` bytes are new, the rest is
/// old.
pub(crate) fn tear(old: &Sector, new: &Sector, kept: usize) -> Sector {
    let mut torn = *old;
    torn[..kept].copy_from_slice(&new[..kept]);
    torn
}

/// The map file. Every write that has landed is durable, because the real file is opened with
/// `O_DSYNC`.
#[derive(Debug, Default)]
pub(crate) struct MapDisk {
    sectors: RefCell<BTreeMap<u64, Sector>>,
    /// The number of writes after which the writer dies, and the number of bytes of the next write
    /// that land.
    dies_after: Shared<Option<(u32, usize)>>,
}

impl MapDisk {
    pub(crate) fn get(&self, offset: u64) -> Sector {
        let found = self.sectors.borrow().get(&offset).copied();
        found.unwrap_or([0; SECTOR_BYTES])
    }

    pub(crate) fn put(&self, offset: u64, sector: Sector) {
        self.sectors.borrow_mut().insert(offset, sector);
    }

    pub(crate) fn dies_after(&self, death: Option<(u32, usize)>) {
        self.dies_after.set(death);
    }
}

/// Splits bytes into sectors; the last sector is padded with zeroes.
pub(crate) fn sectors(offset: u64, bytes: &[u8]) -> Vec<(u64, Sector)> {
    let chunks = bytes.chunks(SECTOR_BYTES).zip(0u64..);
    chunks
        .map(|(chunk, index)| {
            let mut sector = [0; SECTOR_BYTES];
            sector[..chunk.len()].copy_from_slice(chunk);
            (offset + index * SECTOR_BYTES as u64, sector)
        })
        .collect()
}

impl FileExt for MapDisk {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        for (chunk, index) in buffer.chunks_mut(SECTOR_BYTES).zip(0u64..) {
            let sector = self.get(offset + index * SECTOR_BYTES as u64);
            chunk.copy_from_slice(&sector[..chunk.len()]);
        }
        Ok(buffer.len())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        match self.dies_after.get() {
            Some((0, kept)) => {
                for (offset, sector) in sectors(offset, bytes) {
                    self.put(offset, tear(&self.get(offset), &sector, kept));
                }
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Some((left, kept)) => self.dies_after.set(Some((left - 1, kept))),
            None => {}
        }
        for (offset, sector) in sectors(offset, bytes) {
            self.put(offset, sector);
        }
        Ok(bytes.len())
    }
}
