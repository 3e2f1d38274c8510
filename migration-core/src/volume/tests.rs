//! Single cases. Every order of events is covered by the model and the simulation (`tests/model`,
//! `tests/sim`).

mod bench;
mod cases;
mod compare;
mod copying;
mod failures;
mod lost;
mod split;
mod tracking;

use super::*;
use crate::{
    map::{self, Area, BitmapSector, BlockSize},
    route::Route,
    units::RegionIndex,
};

const REGION: u64 = 64 << 10;
const BLOCK: u64 = 32 << 10;
const REGIONS: usize = 4;
const BLOCKS: usize = 2 * REGIONS;
const TAGS: usize = 5;
const PLACES: usize = 3;
const PATIENCE: u64 = 4_000;
const HOLD: u64 = 1_000;
const CONFIG: Config = Config {
    tags: TAGS,
    places: PLACES,
    patience: PATIENCE,
};

fn geometry() -> Geometry {
    Geometry::new(REGION * REGIONS as u64, REGION).unwrap()
}

/// The record of a volume that is mirrored.
fn mirrored(authoritative: Side) -> RoleRecord {
    RoleRecord {
        epoch: Epoch(2),
        route: Route::Mirrored { authoritative },
        descriptor_slot: 0,
        descriptor_bytes: 0,
        descriptor_crc: 0,
        volume_id: *b"a volume's name.",
        block: BlockSize::Bytes512,
        geometry: geometry(),
    }
}
