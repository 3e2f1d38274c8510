//! LUNs with a volatile cache, and the map file.

use std::{cell::RefCell, collections::HashMap};

use seeded_core::{
    map::{self, Chosen, MapError, RoleRecord},
    units::Epoch,
};

use crate::setup::BLOCKS_MAX;

/// The content of a block: 0 is what the source held first, `n + 1` what request `n` writes, and
/// [`ELSE`] something else.
pub(crate) type Value = u8;

/// The content of a target before the copy.
pub(crate) const ELSE: Value = 7;

/// A set of values, one bit each.
pub(crate) type Values = u8;

/// The set of one value.
pub(crate) const fn only(value: Value) -> Values {
    1 << value
}

/// The versions of a block, from the one on stable storage to the newest. Each nibble is a value
/// plus one; the lowest nibble is the newest version.
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

    /// Writes a value; returns whether the block changed.
    fn write(&mut self, value: Value) -> bool {
        let changed = self.newest() != value;
        if changed {
            assert!(self.versions() < 16, "a world with too many versions");
            self.0 = self.0 << 4 | (u64::from(value) + 1);
        }
        changed
    }

    /// Forgets the versions older than the one before the last `newer` changes: that version, or a
    /// later one, is on stable storage.
    const fn make_durable(&mut self, newer: u8) {
        let kept = (newer as u32 + 1) * 4;
        if kept < 64 {
            self.0 &= (1 << kept) - 1;
        }
    }

    /// The values that the block may have after a power loss.
    pub(crate) fn after_power_loss(self) -> Values {
        (0..self.versions()).fold(0, |set, version| {
            set | only((self.0 >> (version * 4) & 15) as u8 - 1)
        })
    }
}

/// For a flush in flight: how often each block changed since the flush was issued.
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

    /// Ends the cache. `kept`: its contents have reached the media; otherwise they are lost.
    pub(crate) fn settle(&mut self, kept: bool) {
        for cell in &mut self.0 {
            *cell = Cell::new(if kept { cell.newest() } else { cell.durable() });
        }
    }
}

/// A write of bitmap sectors in flight: the new word of each bitmap that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MapWrite {
    pub(crate) dirty: Option<u8>,
    pub(crate) intent: Option<u8>,
}

/// The map file: what is on stable storage, and what is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MapFile {
    /// The two slots of the role record; `None`: torn.
    pub(crate) slots: [Option<RoleRecord>; 2],
    pub(crate) dirty: u8,
    pub(crate) intent: u8,
    pub(crate) map_write: Option<MapWrite>,
    pub(crate) role_write: Option<(RoleRecord, usize)>,
    pub(crate) descriptor_write: bool,
}

/// The fate of a role record in flight.
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

    /// The record that the next ublk-target would find, for each fate of the record in flight.
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

    /// The regions that the next ublk-target may find clean, one bit each.
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

    /// The epoch of each slot, for messages.
    pub(crate) fn epochs(&self) -> [Option<Epoch>; 2] {
        self.slots.map(|slot| slot.map(|record| record.epoch))
    }
}

type Slots = [Option<RoleRecord>; 2];

/// Chooses the record with the production codec. The results are cached, because few pairs of slots
/// differ.
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
