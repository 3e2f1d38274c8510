//! I/O that was submitted and has not been completed. It lands in parts: blocks of a leg, or
//! sectors of the map file.

use migration_core::{
    map::SECTOR_BYTES,
    route::Side,
    units::{Range, Tag},
    volume::{FlushId, Op, Place},
};

use crate::{
    application::blocks,
    disk::{Mark, Sector, Value},
};

#[derive(Debug, Clone)]
pub(crate) enum Io {
    Leg {
        tag: Tag,
        side: Side,
        lun: usize,
        op: Op,
        range: Range,
        value: Value,
        mark: Mark,
    },
    Mirror {
        place: Place,
        lun: usize,
        range: Range,
        value: Value,
    },
    FlushLeg {
        side: Side,
        lun: usize,
        flush: FlushId,
        mark: Mark,
    },
    Map(Vec<(u64, Sector)>),
    Descriptor(Vec<(u64, Sector)>),
    Role {
        slot: usize,
        sector: Box<(u64, Sector)>,
    },
}

impl Io {
    pub(crate) fn lun(&self) -> Option<usize> {
        match self {
            Self::Leg { lun, .. } | Self::Mirror { lun, .. } | Self::FlushLeg { lun, .. } => {
                Some(*lun)
            }
            Self::Map(_) | Self::Descriptor(_) | Self::Role { .. } => None,
        }
    }

    fn parts(&self) -> usize {
        match self {
            Self::Leg { op, range, .. } => match op {
                Op::Write { .. } => blocks(*range).len(),
                Op::Flush => 1,
                Op::Read | Op::Discard => 0,
            },
            Self::Mirror { range, .. } => blocks(*range).len(),
            Self::FlushLeg { .. } | Self::Role { .. } => 1,
            Self::Map(sectors) | Self::Descriptor(sectors) => sectors.len(),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) io: Io,
    /// A bit for each part that is on the medium.
    landed: u64,
    /// Whether the I/O will fail because its leg has lost its power; ublk-target does not know yet.
    pub(crate) is_doomed: bool,
}

impl Pending {
    pub(crate) const fn new(io: Io) -> Self {
        Self {
            io,
            landed: 0,
            is_doomed: false,
        }
    }

    /// Forgets which parts have landed: the medium has lost what was not durable, and what is
    /// acknowledged later must land again.
    pub(crate) const fn begin_again(&mut self) {
        self.landed = 0;
    }

    /// Chooses parts to land now, each at most once.
    pub(crate) fn choose(&mut self, mut chosen: impl FnMut() -> bool) -> Vec<usize> {
        let parts: Vec<usize> = (0..self.io.parts())
            .filter(|part| self.landed & (1 << part) == 0 && chosen())
            .collect();
        for part in &parts {
            self.landed |= 1 << part;
        }
        parts
    }
}

/// The end of the bytes in a bitmap sector that may change, and within which it is torn. In a
/// volume with few regions these are the checksum and the first word.
pub(crate) const BITMAP_WORD_END: usize = 24;
/// The same for a role sector: the fields end before byte 72; the rest is zero in the old and the
/// new sector.
pub(crate) const ROLE_FIELDS_END: usize = 72;
const _: () = assert!(ROLE_FIELDS_END < SECTOR_BYTES);
