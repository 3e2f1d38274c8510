//! One volume: its LUNs, its map file, its application, and the ublk-target that may serve it.

mod checks;
mod control;
mod custody;
mod disks;
mod engine;
mod lives;
mod names;

use std::collections::BTreeSet;

use map_store::Contents;
use migration_core::{
    custody::{Claim, Takeover},
    map::{self, BlockSize, RoleRecord},
    route::{Route, Side},
    units::{Epoch, Geometry},
    volume::{Call, CopyMode, Effect, Errno, OnAuthoritativeFailure, Reply, Volume},
};
use migration_proto::route::{Descriptor, Extent, Leg};

use self::names::Names;
use crate::{
    application::Application,
    copier::Copying,
    dice::Dice,
    disk::{self, Lun, MapDisk, Value},
    io::Pending,
    settings::{BLOCKS, Counts, REGION, REGIONS, Settings},
};

const EIO: Errno = Errno(5);
const SIZE: u64 = REGION * REGIONS as u64;

pub(crate) enum Process {
    /// No process serves the volume.
    Down,
    /// The map file is read, the role settled, and the legs are claimed.
    Prepared(Box<Contents>, Takeover),
    Serving(Box<Serving>),
    /// The map file is damaged or lost: nothing is served until the operator says which leg is
    /// right.
    Refused,
}

/// A ublk-target that serves its volume.
pub(crate) struct Serving {
    pub(crate) volume: Volume,
    pub(crate) effects: Vec<Effect>,
    pending: Vec<Pending>,
    pub(crate) descriptor: Descriptor,
    claim: Claim,
    new_mirror: Option<(Call, Descriptor, Vec<u8>)>,
    /// Requested changes of the route that have not ended.
    changes: BTreeSet<Call>,
    replies: Vec<(Call, Reply)>,
}

/// The status that a ublk-target reports of its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) epoch: Epoch,
    pub(crate) route: seeded_core::route::Route,
    pub(crate) source: usize,
    pub(crate) target: Option<usize>,
    pub(crate) dirty: bool,
    pub(crate) degraded: bool,
    pub(crate) changing: bool,
    pub(crate) policy: OnAuthoritativeFailure,
    pub(crate) mode: CopyMode,
    pub(crate) tracks: bool,
}

/// The progress of a process that is being started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Waits,
    Goes,
    Died,
    Serves,
    Refused,
}

pub(crate) struct Site {
    number: usize,
    pub(crate) dice: Dice,
    pub(crate) settings: Settings,
    pub(crate) counts: Counts,
    pub(crate) luns: [Lun; 2],
    pub(crate) map: MapDisk,
    /// Sectors of the map file that were torn.
    torn: BTreeSet<u64>,
    /// The route and the authoritative LUN of a map file that is lost.
    lost: Option<(Route, usize)>,
    pub(crate) process: Process,
    /// A number that increases at each death, so that each process has its own.
    pub(crate) incarnation: u64,
    /// I/O that dead processes had submitted.
    ghosts: Vec<Pending>,
    pub(crate) application: Application,
    pub(crate) copying: Copying,
    /// Whether each LUN hangs, that is, completes nothing at present.
    pub(crate) hung: [bool; 2],
    next_call: u64,
    /// The number of effects after which the process dies.
    dies_after: Option<usize>,
    /// The claim that shuntd would hand on to the next process.
    pub(crate) held: Option<Claim>,
    next_claim: u64,
    /// The number of the boot of the host.
    boot: u8,
    /// Writes to each LUN that the kernel has counted since the boot.
    counted: [u64; 2],
    /// Whether the process that starts next finds no mirror leg.
    mirror_missing: bool,
    names: Names,
}

fn leg(lun: usize) -> Leg {
    let identity = lun::Identity {
        kind: lun::Kind::RegularFile,
        size_bytes: SIZE,
        logical_block_bytes: 512,
        wwn: None,
        serial: Some(lun.to_string()),
        partition_uuid: None,
        partition_number: None,
        partition_start_bytes: None,
        file: None,
        file_offset_bytes: None,
        dm_uuid: None,
    };
    let extent = Extent {
        path: format!("/lun{lun}").into(),
        identity,
        start_bytes: 0,
        length_bytes: SIZE,
    };
    Leg {
        extents: vec![extent],
    }
}

fn lun_of_leg(wanted: &Leg) -> usize {
    usize::from(*wanted == leg(1))
}

/// The LUN of a side.
pub(crate) fn lun_of(descriptor: &Descriptor, side: Side) -> usize {
    let leg = descriptor.leg(side.into()).expect("the leg is there");
    lun_of_leg(leg)
}

pub(crate) fn geometry() -> Geometry {
    Geometry::new(SIZE, REGION).expect("the sizes fit")
}

/// A new map file. `source` and `target`: the LUNs of the legs.
fn new_map(number: usize, route: Route, source: usize, target: Option<usize>) -> MapDisk {
    let id = format!("00000000-0000-4000-8000-{number:012x}");
    let volume_id = map_store::parse_volume_id(&id).expect("a UUID");
    let descriptor = Descriptor {
        volume: format!("v{number}"),
        volume_id: id,
        size_bytes: SIZE,
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        source: leg(source),
        target: target.map(leg),
    };
    let bytes = serde_json::to_vec(&descriptor).expect("JSON");
    let record = RoleRecord {
        epoch: Epoch(1),
        route,
        descriptor_slot: 0,
        descriptor_bytes: bytes.len() as u32,
        descriptor_crc: map::checksum(&bytes),
        volume_id,
        block: [BlockSize::Bytes512, BlockSize::Bytes4096][number % 2],
        geometry: geometry(),
    };
    let map = MapDisk::default();
    for (offset, bytes) in map::initial_parts(&record, &bytes) {
        for (offset, sector) in disk::sectors(offset, &bytes) {
            map.put(offset, sector);
        }
    }
    map
}

impl Site {
    pub(crate) fn new(number: usize, seed: u64, settings: Settings) -> Self {
        let names = Names::new(seed, number, settings.luns_by_size_only);
        let map = new_map(number, Route::Single(Side::Source), 0, None);
        Self {
            number,
            dice: Dice::new(seed.wrapping_mul(1009).wrapping_add(number as u64 + 1)),
            settings,
            counts: Counts::new(),
            luns: [Lun::new(BLOCKS, 0), Lun::new(BLOCKS, Value::MAX)],
            map,
            torn: BTreeSet::new(),
            lost: None,
            process: Process::Down,
            incarnation: 0,
            ghosts: Vec::new(),
            application: Application::new(),
            copying: Copying::default(),
            hung: [false; 2],
            next_call: 0,
            dies_after: None,
            held: None,
            next_claim: 0,
            boot: 0,
            counted: [0; 2],
            mirror_missing: false,
            names,
        }
    }

    pub(crate) fn note(&mut self, what: &'static str) {
        if crate::is_traced() {
            eprintln!("{:>16} {what}", self.number);
        }
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn serving(&mut self) -> Option<&mut Serving> {
        match &mut self.process {
            Process::Serving(serving) => Some(serving),
            Process::Down | Process::Prepared(..) | Process::Refused => None,
        }
    }

    pub(crate) fn call(&mut self) -> Call {
        self.next_call += 1;
        Call(self.next_call)
    }

    pub(crate) fn authoritative_lun(&mut self) -> Option<usize> {
        let serving = self.serving()?;
        let side = serving.volume.record().route.authoritative();
        Some(lun_of(&serving.descriptor, side))
    }
}
