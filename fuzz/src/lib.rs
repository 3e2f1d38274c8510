//! The properties of every decoder, for any bytes. Each target is a function of bytes, as every
//! fuzzer needs it. `tests/mutations.rs` runs the targets with the other tests.
//!
//! A target panics if a property is violated: decoding does not panic; a decoded value is encoded
//! to bytes that decode to the same value; a sector of the map file that is accepted is encoded to
//! the same bytes.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{fmt::Debug, os::unix::fs::FileExt, path::Path};

use map_store::MapFile;
use migration_core::{
    map::{self, Area, BitmapSector, RoleRecord, SECTOR_BYTES},
    route::{Route, Side},
    units::{Epoch, Geometry},
};
use migration_proto::{Hello, Welcome, frame, manager, route::Descriptor, target};
use serde::{Serialize, de::DeserializeOwned};

/// The name of a target, which is also the name of its folder in `corpus`, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("frame", any_frame),
    ("target", any_target_message),
    ("manager", any_manager_message),
    ("role", any_role_record),
    ("bitmap", any_bitmap_sector),
    ("descriptor", any_descriptor),
    ("map-file", any_map_file),
];

const VOLUME_ID: [u8; 16] = [0x11; 16];

fn same_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) {
    if let Ok(message) = frame::decode::<T>(body) {
        let bytes = frame::encode(&message).expect("what was read can be written");
        let again: T = frame::read(&mut bytes.as_slice()).expect("what was written can be read");
        assert_eq!(again, message);
    }
}

/// Decodes a stream of frames, cut anywhere.
pub fn any_frame(bytes: &[u8]) {
    let mut stream = bytes;
    while frame::read::<target::Request>(&mut stream).is_ok() {}
    let mut stream = bytes;
    while frame::read::<manager::Request>(&mut stream).is_ok() {}
    let _ = frame::read::<Hello>(&mut &*bytes);
}

/// Decodes the body of a frame on the socket of ublk-target.
pub fn any_target_message(bytes: &[u8]) {
    same_again::<Hello>(bytes);
    same_again::<Welcome>(bytes);
    same_again::<target::Request>(bytes);
    same_again::<target::Response>(bytes);
}

/// Decodes the body of a frame on the socket of shuntd.
pub fn any_manager_message(bytes: &[u8]) {
    same_again::<manager::Request>(bytes);
    same_again::<manager::Response>(bytes);
}

/// A sector with these bytes, and zeroes after them. The first byte is not part of the sector: if
/// its lowest bit is set, `seal` makes the checksum right.
fn sector(bytes: &[u8], seal: impl Fn(&mut [u8; SECTOR_BYTES])) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    let (sealed, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let length = bytes.len().min(SECTOR_BYTES);
    sector[..length].copy_from_slice(&bytes[..length]);
    if sealed & 1 == 1 {
        seal(&mut sector);
    }
    sector
}

fn seal_role(sector: &mut [u8; SECTOR_BYTES]) {
    sector[12..16].fill(0);
    let crc = map::checksum(sector);
    sector[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// Decodes a slot of the role record. The first byte says whether the checksum is made right.
pub fn any_role_record(bytes: &[u8]) {
    let sector = sector(bytes, seal_role);
    let decoded = RoleRecord::decode(&sector);
    if let Ok(Some(record)) = decoded {
        assert_eq!(record.encode(), sector, "{record:?}");
    }
    let other = role(Route::Single(Side::Source)).encode();
    let _ = RoleRecord::choose([&sector, &other]);
    let _ = RoleRecord::choose([&sector, &sector]);
}

/// Decodes a sector of a bitmap. The first byte says whether the checksum is made right.
pub fn any_bitmap_sector(bytes: &[u8]) {
    let sector = sector(bytes, |sector| {
        let crc = map::checksum(&sector[4..]);
        sector[..4].copy_from_slice(&crc.to_le_bytes());
    });
    for area in [Area::Dirty, Area::Intent] {
        for index in [0, 1, 1056] {
            let which = BitmapSector { area, index };
            if let Ok(words) = which.decode(&VOLUME_ID, &sector) {
                assert_eq!(which.encode(&VOLUME_ID, &words), sector);
            }
        }
    }
}

/// Decodes the descriptor of a map file.
pub fn any_descriptor(bytes: &[u8]) {
    if let Ok(descriptor) = serde_json::from_slice::<Descriptor>(bytes) {
        let text = serde_json::to_vec(&descriptor).expect("what was read can be written");
        let again: Descriptor = serde_json::from_slice(&text).expect("what was written");
        assert_eq!(again, descriptor);
        let _ = map_store::parse_volume_id(&descriptor.volume_id);
        let extents = descriptor.source.extents.iter();
        let sum: u128 = extents.map(|extent| u128::from(extent.length_bytes)).sum();
        assert_eq!(
            u128::from(descriptor.source.length_bytes()),
            sum.min(u64::MAX.into())
        );
    }
}

fn role(route: Route) -> RoleRecord {
    RoleRecord {
        epoch: Epoch(3),
        route,
        descriptor_slot: 0,
        descriptor_bytes: DESCRIPTOR.len() as u32,
        descriptor_crc: map::checksum(DESCRIPTOR),
        volume_id: VOLUME_ID,
        block: map::BlockSize::Bytes512,
        geometry: Geometry::for_size(8 << 20).expect("a geometry"),
    }
}

const DESCRIPTOR: &[u8] = include_bytes!("../corpus/descriptor/two-legs");

/// Opens a whole map file: a good one that `bytes` change. The first byte is flags (1: `Mirrored`;
/// 2: the checksums of the role records are made right; 4: the file is cut). Then follow any number
/// of changes: an offset (4 bytes), a length (1 byte) and that many bytes.
pub fn any_map_file(bytes: &[u8]) {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder");
    }
    FOLDER.with(|folder| try_map_file(&folder.path().join("map"), bytes));
}

fn try_map_file(path: &Path, bytes: &[u8]) {
    let (flags, mut rest) = bytes.split_first().unwrap_or((&0, &[]));
    let route = if flags & 1 == 1 {
        Route::Mirrored {
            authoritative: Side::Source,
        }
    } else {
        Route::Single(Side::Source)
    };
    let record = role(route);
    let length = map::file_bytes(record.geometry) as usize;
    let mut file = vec![0; length];
    let mut put = |offset: u64, bytes: &[u8]| {
        let start = (offset as usize).min(length);
        let end = (start + bytes.len()).min(length);
        file[start..end].copy_from_slice(&bytes[..end - start]);
    };
    for (offset, bytes) in map::initial_parts(&record, DESCRIPTOR) {
        put(offset, &bytes);
    }
    for area in [Area::Dirty, Area::Intent] {
        let which = BitmapSector { area, index: 0 };
        let words = [0; map::SECTOR_WORDS];
        put(
            which.offset(record.geometry),
            &which.encode(&VOLUME_ID, &words),
        );
    }
    while let Some((head, tail)) = rest.split_first_chunk::<5>() {
        let offset = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as u64;
        let (change, tail) = tail.split_at(tail.len().min(head[4].into()));
        put(offset % length as u64, change);
        rest = tail;
    }
    if flags & 2 == 2 {
        for offset in map::ROLE_OFFSETS {
            let slot = &mut file[offset as usize..][..SECTOR_BYTES];
            seal_role(slot.try_into().expect("a sector"));
        }
    }
    if flags & 4 == 4 {
        let cut = bytes.iter().fold(0, |sum: usize, byte| {
            sum.wrapping_mul(31) ^ usize::from(*byte)
        });
        file.truncate(cut % length);
    }
    std::fs::write(path, &file).expect("a temporary file");
    let opened = MapFile::open_read_only(path);
    assert!(
        opened.is_ok() || bytes.len() > 1 || flags & 4 == 4,
        "{opened:?}"
    );
    if let Ok(map) = opened {
        let regions = map.chosen.record.geometry.regions();
        let words = map.dirty.len().max(map.intent.len());
        assert!(
            map.dirty.len() == map.intent.len() && words * 64 < regions + 2 * map::SECTOR_REGIONS
        );
        let mut held = [0; SECTOR_BYTES];
        let slot = map.chosen.stale_slot.map_or(0, |stale| 1 - stale);
        map.file
            .read_exact_at(&mut held, map::ROLE_OFFSETS[slot])
            .expect("it was read");
        assert_eq!(map.chosen.record.encode(), held);
    }
}
