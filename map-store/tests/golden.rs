//! Whole map files, as files: bytes that today's code must read, and must write again.
//!
//! `SHUNT_WRITE_GOLDEN=1 cargo test -p map-store --test golden` writes the files. A file that
//! changes is a new `FORMAT_VERSION`.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{collections::BTreeMap, fmt::Write as _, fs, os::unix::fs::FileExt, path::Path};

use map_store::{make_all_dirty, parse_volume_id, read, settle_role, write_custody};
use migration_core::{
    custody::{BootId, Claim, Custody, LegState, Legs, Released},
    map::{
        self, Area, BitmapSector, BlockSize, RoleRecord, SECTOR_BYTES, SECTOR_WORDS, bitmap_sectors,
    },
    route::{Route, Side},
    units::{Epoch, Geometry},
};

const DESCRIPTOR: &str = r#"{"volume":"db","volume_id":"11111111-1111-1111-1111-111111111111","size_bytes":8388608,"logical_block_bytes":512,"physical_block_bytes":4096,"source":{"extents":[{"path":"/dev/a","identity":{"kind":"block-device","size_bytes":8388608,"logical_block_bytes":512,"serial":"lun0"},"start_bytes":0,"length_bytes":8388608}]},"target":{"extents":[{"path":"/dev/b","identity":{"kind":"block-device","size_bytes":8388608,"logical_block_bytes":512,"serial":"lun1"},"start_bytes":0,"length_bytes":8388608}]}}"#;
const VOLUME_ID: &str = "11111111-1111-1111-1111-111111111111";
/// 128 regions of 64 KiB.
const SIZE_BYTES: u64 = 8 << 20;

fn record(route: Route, block: BlockSize) -> RoleRecord {
    RoleRecord {
        epoch: Epoch(7),
        route,
        descriptor_slot: 0,
        descriptor_bytes: DESCRIPTOR.len() as u32,
        descriptor_crc: map::checksum(DESCRIPTOR.as_bytes()),
        volume_id: parse_volume_id(VOLUME_ID).unwrap(),
        block,
        geometry: Geometry::new(SIZE_BYTES, Geometry::REGION_BYTES_MIN).unwrap(),
    }
}

fn words(area: Area) -> [u64; SECTOR_WORDS] {
    let mut words = [0; SECTOR_WORDS];
    words[0] = match area {
        Area::Dirty => 0b1_0011,
        Area::Intent => 1 << 63,
    };
    words
}

fn released() -> Custody {
    let leg = |fingerprint, changes| {
        Some(LegState {
            fingerprint,
            changes,
        })
    };
    Custody::Released(Released {
        boot: BootId(*b"a boot, 16 bytes"),
        legs: Legs {
            source: leg(0x0123_4567_89ab_cdef, Some(4711)),
            target: leg(42, None),
        },
    })
}

fn cases() -> [(&'static str, RoleRecord, Custody); 3] {
    let mirrored = Route::Mirrored {
        authoritative: Side::Target,
    };
    let held = Custody::Held(Claim(0xfeed));
    [
        (
            "single",
            record(Route::Single(Side::Source), BlockSize::Bytes512),
            held,
        ),
        (
            "mirrored",
            record(mirrored, BlockSize::Bytes512),
            released(),
        ),
        (
            "mirrored-4096",
            record(mirrored, BlockSize::Bytes4096),
            released(),
        ),
    ]
}

/// A map file as the production code writes it, in a temporary file.
fn written(record: &RoleRecord, custody: &Custody) -> fs::File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(map::file_bytes(record.geometry)).unwrap();
    for (offset, bytes) in map::initial_parts(record, DESCRIPTOR.as_bytes()) {
        file.write_all_at(&bytes, offset).unwrap();
    }
    write_custody(&file, record, custody).unwrap();
    if record.route.has_map() {
        for area in [Area::Dirty, Area::Intent] {
            let sector = BitmapSector { area, index: 0 };
            let bytes = sector.encode(&record.volume_id, &words(area));
            file.write_all_at(&bytes, sector.offset(record.geometry))
                .unwrap();
        }
    }
    file
}

/// The sectors that are not all zeroes: where each begins, and its bytes up to the last that is not
/// zero.
fn text(file: &fs::File) -> String {
    let mut text = String::new();
    let length = file.metadata().unwrap().len();
    for offset in (0..length).step_by(SECTOR_BYTES) {
        let mut sector = [0; SECTOR_BYTES];
        file.read_exact_at(&mut sector, offset).unwrap();
        let Some(last) = sector.iter().rposition(|byte| *byte != 0) else {
            continue;
        };
        write!(text, "{offset:>6} ").unwrap();
        for byte in &sector[..=last] {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    writeln!(text, "{length:>6} end").unwrap();
    text
}

/// The file that [`text`] describes.
fn file(text: &str) -> fs::File {
    let file = tempfile::tempfile().unwrap();
    for line in text.lines() {
        let (offset, hex) = line.trim().split_once(' ').unwrap();
        let offset = offset.parse().unwrap();
        if hex == "end" {
            file.set_len(offset).unwrap();
            continue;
        }
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        file.write_all_at(&bytes, offset).unwrap();
    }
    file
}

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.txt"))
}

#[test]
fn the_map_files_of_this_version_are_read_and_written_as_ever() {
    if std::env::var_os("SHUNT_WRITE_GOLDEN").is_some() {
        for (name, record, custody) in cases() {
            fs::write(golden(name), text(&written(&record, &custody))).unwrap();
        }
    }
    for (name, record, custody) in cases() {
        let kept = fs::read_to_string(golden(name)).unwrap();
        assert_eq!(text(&written(&record, &custody)), kept, "{name}");
        let contents = read(&file(&kept), Path::new(name)).unwrap();
        assert_eq!(contents.chosen.record, record, "{name}");
        assert_eq!(contents.custody, Some(custody), "{name}");
        if record.route.has_map() {
            assert_eq!(contents.dirty, words(Area::Dirty), "{name}");
            assert_eq!(contents.intent, words(Area::Intent), "{name}");
        }
    }
}

/// A file that notes where and how much is written to it.
#[derive(Default)]
struct Writes(std::cell::RefCell<BTreeMap<u64, Vec<u8>>>);

impl FileExt for Writes {
    fn read_at(&self, _: &mut [u8], _: u64) -> std::io::Result<usize> {
        unreachable!("nothing is read")
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<usize> {
        self.0.borrow_mut().insert(offset, bytes.to_vec());
        Ok(bytes.len())
    }
}

#[test]
fn everything_is_written_in_whole_blocks() {
    for block in [BlockSize::Bytes512, BlockSize::Bytes4096] {
        // Eleven sectors in each bitmap: the last block of 4096 bytes is not full.
        let geometry = Geometry::new(41_000 << 16, Geometry::REGION_BYTES_MIN).unwrap();
        assert_eq!(bitmap_sectors(geometry), 11);
        let record = RoleRecord {
            geometry,
            ..record(Route::Split, block)
        };
        let writes = Writes::default();
        let mut chosen = map::Chosen {
            record,
            stale_slot: Some(1),
        };
        settle_role(&writes, &mut chosen).unwrap();
        write_custody(&writes, &record, &released()).unwrap();
        let mut dirty = vec![0; 11 * SECTOR_WORDS];
        make_all_dirty(&writes, &record, &mut dirty).unwrap();
        let writes = writes.0.into_inner();
        for (offset, bytes) in &writes {
            assert_eq!(bytes.len(), block.bytes(), "at {offset}");
            assert_eq!(offset % block.bytes() as u64, 0);
        }
        let bitmap: Vec<u8> = writes
            .range(map::BITMAP_OFFSET..)
            .flat_map(|(_, bytes)| bytes.clone())
            .collect();
        let (sectors, _) = bitmap.as_chunks::<SECTOR_BYTES>();
        for (index, sector) in sectors.iter().enumerate() {
            let which = BitmapSector {
                area: Area::Dirty,
                index,
            };
            if index < 11 {
                let words = which.decode(&record.volume_id, sector).unwrap();
                assert_eq!(words, [u64::MAX; SECTOR_WORDS]);
            } else {
                assert_eq!(*sector, [0; SECTOR_BYTES], "padding");
            }
        }
        assert_eq!(sectors.len(), [11, 16][usize::from(block.sectors() == 8)]);
    }
}
