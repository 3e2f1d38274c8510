//! LUNs with a volatile cache, and the map file.

use std::{cell::RefCell, collections::HashMap};

use seeded_core::{
    map::{self, Chosen, MapError, RoleRecord},
    units::Epoch,
};

use crate::setup::BLOCKS_MAX;

/// What a block can hold: 0 what the source held first, `n + 1` what request `n` writes, [`ELSE`] something else.
pub(crate) type Value = u8;

/// What a target holds before it is copied to.
pub(crate) const ELSE: Value = 7;

/// A set of values, one bit each.
pub(crate) type Values = u8;

/// The set of one value.
pub(crate) const fn only(value: Value) -> Values {
    1 << value
}

/// A block: all that it held since what is on stable storage. Nibbles of value + 1, the newest in the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Cell(u64);

impl Cell {
    pub(crate) const fn new(value: Value) -> Self {
        Self(value as u64 + 1)
    }

    pub(crate) const fn newest(self) -> Value {
        (self.0 & 15) as u8 - 1
    }

    const fn versions(self) -> u32 {
        16 - self.0.leading_zeros() / 4
    }

    pub(crate) const fn durable(self) -> Value {
        ((self.0 >> ((self.versions() - 1) * 4)) & 15) as u8 - 1
    }

    /// Says whether the block changed.
    fn write(&mut self, value: Value) -> bool {
        let changed = self.newest() != value;
        if changed {
            assert!(self.versions() < 16, "a world with too many versions");
            self.0 = self.0 << 4 | (u64::from(value) + 1);
        }
        changed
    }

    /// What it held before its last `newer` changes, or something later, is on stable storage.
    const fn make_durable(&mut self, newer: u8) {
        let kept = (newer as u32 + 1) * 4;
        if kept < 64 {
            self.0 &= (1 << kept) - 1;
        }
    }

    /// What it may be after a power loss.
    pub(crate) fn after_power_loss(self) -> Values {
        (0..self.versions()).fold(0, |set, version| {
            set | only((self.0 >> (version * 4) & 15) as u8 - 1)
        })
    }
}

/// A flush in flight: how often each block changed since it was asked for.
pub(crate) type Newer = [u8; BLOCKS_MAX];

/// One LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Lun(pub(crate) [Cell; BLOCKS_MAX]);

impl Lun {
    pub(crate) fn write<'a>(
        &mut self,
        block: usize,
        value: Value,
        flushes: impl Iterator<Item = &'a mut Newer>,
    ) {
        if self.0[block].write(value) {
            flushes.for_each(|newer| newer[block] += 1);
        }
    }

    pub(crate) fn flushed(&mut self, newer: Newer) {
        for (cell, newer) in self.0.iter_mut().zip(newer) {
            cell.make_durable(newer);
        }
    }

    /// The cache is gone, or has reached the media.
    pub(crate) fn settle(&mut self, kept: bool) {
        for cell in &mut self.0 {
            *cell = Cell::new(if kept { cell.newest() } else { cell.durable() });
        }
    }
}

/// A write of bitmap sectors in flight: the new words, as far as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MapWrite {
    pub(crate) dirty: Option<u8>,
    pub(crate) intent: Option<u8>,
}

/// The map file: what is on stable storage, and what is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MapFile {
    /// `None`: torn.
    pub(crate) slots: [Option<RoleRecord>; 2],
    pub(crate) dirty: u8,
    pub(crate) intent: u8,
    pub(crate) map_write: Option<MapWrite>,
    pub(crate) role_write: Option<(RoleRecord, usize)>,
    pub(crate) descriptor_write: bool,
}

/// What became of a role record in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RoleFate {
    Lost,
    Landed,
    Torn,
}

impl MapFile {
    pub(crate) fn choose(&self) -> Result<Chosen, MapError> {
        choose(self.slots)
    }

    /// The record that a successor would find, for each fate of what is in flight.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = Result<Chosen, MapError>> {
        let fates = if self.role_write.is_some() { 3 } else { 1 };
        let fates = [RoleFate::Lost, RoleFate::Landed, RoleFate::Torn]
            .into_iter()
            .take(fates);
        let file = *self;
        fates.map(move |fate| {
            let mut file = file;
            file.land_role(fate);
            file.choose()
        })
    }

    /// The regions that a successor may find clean.
    pub(crate) fn clean_outcomes(&self) -> u8 {
        let write = self.map_write.unwrap_or(MapWrite {
            dirty: None,
            intent: None,
        });
        let dirty = self.dirty & write.dirty.unwrap_or(u8::MAX);
        let intent = self.intent & write.intent.unwrap_or(u8::MAX);
        !(dirty | intent)
    }

    pub(crate) fn land_role(&mut self, fate: RoleFate) {
        if let Some((record, slot)) = self.role_write.take() {
            match fate {
                RoleFate::Lost => {}
                RoleFate::Landed => self.slots[slot] = Some(record),
                RoleFate::Torn => self.slots[slot] = None,
            }
        }
    }

    pub(crate) fn land_map(&mut self, dirty: bool, intent: bool) {
        if let Some(write) = self.map_write.take() {
            self.dirty = write.dirty.filter(|_| dirty).unwrap_or(self.dirty);
            self.intent = write.intent.filter(|_| intent).unwrap_or(self.intent);
        }
    }

    /// The epoch of each slot, to be shown.
    pub(crate) fn epochs(&self) -> [Option<Epoch>; 2] {
        self.slots.map(|slot| slot.map(|record| record.epoch))
    }
}

type Slots = [Option<RoleRecord>; 2];

/// By the production codec; the few different pairs of slots are remembered.
fn choose(slots: Slots) -> Result<Chosen, MapError> {
    thread_local! {
        static KNOWN: RefCell<HashMap<Slots, Result<Chosen, MapError>>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        *known.entry(slots).or_insert_with(|| {
            let bytes = slots.map(|slot| slot.map_or([0; map::SECTOR_BYTES], |slot| slot.encode()));
            RoleRecord::choose([&bytes[0], &bytes[1]])
        })
    })
}
