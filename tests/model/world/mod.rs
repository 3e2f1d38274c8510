//! The state of a world, and what effects and completions do to it.

mod application;
mod copier;
mod effects;
mod media;

use seeded_core::{
    map::{BlockSize, RoleRecord},
    route::{Route, Side},
    units::{Epoch, Geometry, RegionIndex, Time},
    volume::{Call, Config, CopierId, Effect, FlushId, IoResult, Place, Timer, Volume},
};

use crate::{
    check::{Checker, Violation},
    disk::{Cell, ELSE, Lun, MapFile, Newer, Value, Values, only},
    setup::{BLOCKS_MAX, Budget, OperatorRequest, Setup, Start},
};

const REGION_BYTES: u64 = Geometry::REGION_BYTES_MIN;
const VOLUME_ID: [u8; 16] = *b"a volume's name.";
/// The maximum number of requests of a world.
pub(crate) const REQUESTS_MAX: usize = 4;
/// The time of all events. The clock stands still; events make timers expire.
pub(crate) const NOW: Time = Time(1_000_000_000_000);
/// A duration that never passes, because the clock stands still.
const LONG: u64 = 1_000_000_000;
const CLAIM: Call = Call(1);
pub(crate) const CHANGE: Call = Call(2);
pub(crate) const SUSPEND: Call = Call(3);
pub(crate) const DEADLINE: Time = NOW.plus(LONG);
pub(crate) const HOLD: u64 = LONG;

/// A request that the application waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Open {
    /// Whether the volume has the request. The driver delivers it again after a death of
    /// ublk-target.
    pub(crate) delivered: bool,
    /// For a read: the values that each block may return. For a flush: the values that may survive
    /// a power loss once the flush is answered.
    pub(crate) allowed: [Values; BLOCKS_MAX],
    is_read: bool,
    /// For a write: the values of the writes that were answered while it was in flight.
    concurrent: [Values; BLOCKS_MAX],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Idle,
    Open(Open),
    Done,
}

/// An I/O in flight on a LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Io {
    Request {
        request: u8,
        side: Side,
        lun: u8,
        newer: Newer,
    },
    Mirror {
        request: u8,
        place: Place,
        lun: u8,
    },
    Flush {
        flush: FlushId,
        side: Side,
        lun: u8,
        newer: Newer,
    },
}

impl Io {
    pub(crate) const fn lun(&self) -> usize {
        match self {
            Self::Request { lun, .. } | Self::Mirror { lun, .. } | Self::Flush { lun, .. } => {
                *lun as usize
            }
        }
    }
}

/// The progress of the copy of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Copy {
    Claimed,
    /// The region was read, and the write of these values is in flight.
    Writing([Value; 2]),
    Written,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Copier {
    pub(crate) id: CopierId,
    epoch: Epoch,
    /// The LUN that the copier reads; it writes the other LUN.
    pub(crate) from: u8,
    pub(crate) waits: bool,
    /// Whether a claim was refused, or answered with nothing to do.
    pub(crate) ends: bool,
    pub(crate) regions: Vec<(RegionIndex, Copy)>,
}

/// A dead copier's write in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ghost {
    lun: u8,
    region: usize,
    values: [Value; 2],
}

/// A report that is delivered after its copier's connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Late {
    copier: CopierId,
    epoch: Epoch,
    region: RegionIndex,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) volume: Volume,
    pub(crate) luns: [Lun; 2],
    /// Which LUN is the source, for each descriptor slot.
    source_lun: [u8; 2],
    pub(crate) map: MapFile,
    /// The I/O in flight, sorted: any of it may complete next.
    pub(crate) io: Vec<Io>,
    pub(crate) requests: [Stage; REQUESTS_MAX],
    /// The values that each block may have, as the application knows it; more than one after
    /// concurrent writes.
    pub(crate) possible: [Values; BLOCKS_MAX],
    /// The values that each block may have after a power loss.
    pub(crate) survivors: [Values; BLOCKS_MAX],
    pub(crate) copier: Option<Copier>,
    /// The writes in flight of dead copiers, sorted.
    pub(crate) ghosts: Vec<Ghost>,
    pub(crate) late: Option<Late>,
    pub(crate) budget: Budget,
    /// Whether the authoritative leg has failed.
    pub(crate) authoritative_failed: bool,
    /// The values that blocks of the authoritative leg fell back to when it failed and lost its
    /// cache, until the application has seen an error.
    pub(crate) lost: [Values; BLOCKS_MAX],
    /// Requests that the authoritative leg has failed and that are not answered yet, one bit each.
    pub(crate) failed: u8,
    /// Reads that returned a value that was never there or is there no longer, one bit each.
    misread: u8,
    /// The write to the mirror leg that will fail because the leg has lost its power.
    pub(crate) doomed: Option<Place>,
    /// Whether the volume has reported that it is drained: by
    /// [`Reply::Suspended`](seeded_core::volume::Reply::Suspended), or by a split.
    pub(crate) drained: bool,
    /// The contents that the target is a copy of, from the end of a split on.
    pub(crate) copy: Option<[Value; BLOCKS_MAX]>,
    /// Whether the core has requested [`Effect::Die`].
    pub(crate) must_die: bool,
}

/// The outcome of an I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// The I/O failed, but has changed the media.
    FailedDone,
    /// The I/O failed and has not changed the media. The cache of the LUN is lost, except for a
    /// read.
    FailedLost,
}

impl Outcome {
    pub(crate) const fn result(self) -> IoResult {
        match self {
            Self::Done => Ok(()),
            Self::FailedDone | Self::FailedLost => Err(seeded_core::volume::Errno(5)),
        }
    }
}

impl World {
    pub(crate) fn new(setup: &Setup) -> Self {
        assert!(setup.blocks() <= BLOCKS_MAX && setup.requests.len() <= REQUESTS_MAX);
        let geometry = Geometry::new(REGION_BYTES * setup.regions as u64, REGION_BYTES);
        let (route, dirty) = match setup.start {
            Start::Single => (Route::Single(Side::Source), u8::MAX),
            Start::Mirrored { dirty } => {
                let authoritative = Side::Source;
                (Route::Mirrored { authoritative }, dirty)
            }
        };
        let record = RoleRecord {
            epoch: Epoch(1),
            route,
            descriptor_slot: 0,
            descriptor_bytes: 0,
            descriptor_crc: 0,
            volume_id: VOLUME_ID,
            block: BlockSize::Bytes512,
            geometry: geometry.expect("a geometry"),
        };
        let map = MapFile {
            slots: [Some(record); 2],
            dirty: if route.has_map() { dirty } else { 0 },
            intent: 0,
            map_write: None,
            role_write: None,
            descriptor_write: false,
        };
        let target = core::array::from_fn(|block| {
            let differs = dirty >> (block / setup.blocks_per_region) & 1 == 1;
            Cell::new(if differs { ELSE } else { 0 })
        });
        let mut world = Self {
            volume: load(setup, &map).expect("a map file"),
            luns: [Lun([Cell::new(0); BLOCKS_MAX]), Lun(target)],
            source_lun: [0; 2],
            map,
            io: Vec::new(),
            requests: [Stage::Idle; REQUESTS_MAX],
            possible: [only(0); BLOCKS_MAX],
            survivors: [only(0); BLOCKS_MAX],
            copier: None,
            ghosts: Vec::new(),
            late: None,
            budget: setup.budget,
            authoritative_failed: false,
            lost: [0; BLOCKS_MAX],
            failed: 0,
            misread: 0,
            doomed: None,
            drained: false,
            copy: None,
            must_die: false,
        };
        world.forget_history();
        world
    }

    /// The LUN of a leg, as a record's descriptor says.
    pub(crate) fn lun_of(&self, record: &RoleRecord, side: Side) -> usize {
        let source = self.source_lun[usize::from(record.descriptor_slot)];
        usize::from(match side {
            Side::Source => source,
            Side::Target => 1 - source,
        })
    }

    fn lun_now(&self, side: Side) -> usize {
        self.lun_of(self.volume.record(), side)
    }

    /// Makes the LUN that is not in use the target of the descriptor in the free slot.
    pub(crate) fn name_new_mirror(&mut self) {
        let record = *self.volume.record();
        let source = self.lun_now(record.route.authoritative()) as u8;
        self.source_lun[usize::from(1 - record.descriptor_slot)] = source;
    }

    /// See [`Volume::forget_history`]. Also sorts the lists that are sets.
    pub(crate) fn forget_history(&mut self) {
        let mut flushes: Vec<FlushId> = self.io.iter().filter_map(flush_id).collect();
        flushes.sort_unstable();
        self.volume.forget_history(&flushes);
        for io in &mut self.io {
            if let Io::Flush { flush, .. } = io {
                let place = flushes.iter().position(|other| *other == *flush);
                *flush = FlushId(place.expect("it is in the list") as u64 + 1);
            }
        }
        self.io.sort_unstable();
        self.ghosts.sort_unstable();
        if let Some(copier) = &mut self.copier {
            copier.regions.sort_unstable();
        }
        if !self.volume.is_suspended() {
            self.drained = false;
        }
    }

    /// Starts a new process, which reads the map file.
    pub(crate) fn reload(
        &mut self,
        setup: &Setup,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        self.io.clear();
        self.doomed = None;
        self.map.map_write = None;
        self.map.role_write = None;
        self.map.descriptor_write = false;
        self.must_die = false;
        self.drained = false;
        self.failed = 0;
        self.misread = 0;
        self.volume = load(setup, &self.map).map_err(|error| {
            Violation::new(Checker::OneAuthoritative, format!("the map file: {error}"))
        })?;
        self.volume.begin(effects);
        Ok(())
    }
}

/// The blocks of a request.
pub(crate) fn blocks(setup: &Setup, index: usize) -> core::ops::Range<usize> {
    let request = setup.requests[index];
    request.first..request.first + request.blocks
}

/// Whether a request writes a block.
pub(crate) fn writes_block(setup: &Setup, index: usize, block: usize) -> bool {
    matches!(
        setup.requests[index].ask,
        OperatorRequest::Write | OperatorRequest::ForcedWrite
    ) && blocks(setup, index).contains(&block)
}

const fn flush_id(io: &Io) -> Option<FlushId> {
    match io {
        Io::Flush { flush, .. } => Some(*flush),
        Io::Request { .. } | Io::Mirror { .. } => None,
    }
}

fn load(setup: &Setup, map: &MapFile) -> Result<Volume, seeded_core::map::MapError> {
    let chosen = map.choose()?;
    let config = Config {
        tags: setup.requests.len(),
        places: setup.places,
        patience: LONG,
    };
    let mirrored = chosen.record.route.has_map();
    let words = |word: u8| {
        let mut words = vec![
            0;
            if mirrored {
                seeded_core::map::SECTOR_WORDS
            } else {
                0
            }
        ];
        words
            .iter_mut()
            .take(1)
            .for_each(|first| *first = u64::from(word));
        words
    };
    let (dirty, intent) = (words(map.dirty), words(map.intent));
    let mut volume = Volume::load(&config, chosen.record, chosen.stale_slot, &dirty, &intent);
    volume.set_on_authoritative_failure(setup.policy);
    volume.set_copy_mode(setup.mode, &mut Vec::new());
    volume.break_rule(setup.broken);
    if !setup.sweeps {
        volume.expire(Time(u64::MAX), Timer::IdleSweep);
    }
    Ok(volume)
}
