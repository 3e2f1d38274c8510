//! The contract of `shunt-map`.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

mod common;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use common::{Ended, json_lines, run};
use lun::{Identity, Kind};
use migration_core::{
    map::{self, Area, BitmapSector, BlockSize, MapError, RoleRecord, SECTOR_WORDS},
    route::{Route, Side},
    units::{Epoch, Geometry},
};
use migration_proto::route::{Descriptor, Extent, Leg};

const PROGRAM: &str = env!("CARGO_BIN_EXE_shunt-map");
/// 5000 regions of 1 MiB: two sectors of each bitmap.
const SIZE: u64 = 5000 << 20;
const VOLUME_ID: &str = "6f1c2a40-5a0d-4f6e-9d1b-0a1b2c3d4e5f";

fn leg(path: &str) -> Leg {
    let identity = Identity {
        kind: Kind::RegularFile,
        size_bytes: SIZE,
        logical_block_bytes: 512,
        wwn: None,
        serial: Some("S-1".to_owned()),
        partition_uuid: None,
        partition_number: None,
        partition_start_bytes: None,
        file: None,
        file_offset_bytes: None,
        dm_uuid: None,
    };
    Leg {
        extents: vec![Extent {
            path: path.into(),
            identity,
            start_bytes: 0,
            length_bytes: SIZE,
        }],
    }
}

/// A map file in a folder of its own.
struct Map {
    directory: tempfile::TempDir,
    descriptor: Vec<u8>,
}

impl Map {
    /// A map file as `ublk-target format` creates it.
    fn single() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let descriptor = Descriptor {
            volume: "db".to_owned(),
            volume_id: VOLUME_ID.to_owned(),
            size_bytes: SIZE,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            source: leg("/dev/old"),
            target: Some(leg("/dev/new")),
        };
        let map = Self {
            directory,
            descriptor: serde_json::to_vec(&descriptor).unwrap(),
        };
        map_store::format(&map.path(), &descriptor, Side::Source).unwrap();
        map
    }

    /// As the file was created: it depends on the file system.
    fn block(&self) -> BlockSize {
        let map = map_store::MapFile::open_read_only(&self.path());
        map.unwrap().chosen.record.block
    }

    /// A map file with a mirror leg, and regions 0, 1, 4 and 4999 dirty.
    fn mirrored() -> Self {
        let map = Self::single();
        let record = map.record(7, Side::Source);
        map.write(map::ROLE_OFFSETS[0], &record.encode());
        map.write(map::ROLE_OFFSETS[1], &record.encode());
        for area in [Area::Dirty, Area::Intent] {
            for index in 0..map::bitmap_sectors(record.geometry) {
                let mut words = [0; SECTOR_WORDS];
                if area == Area::Dirty {
                    // The second sector begins with region 3968; 4999 is its bit 1031.
                    words[[0, 16][index]] = [0b1_0011, 1 << 7][index];
                }
                let which = BitmapSector { area, index };
                map.write(
                    which.offset(record.geometry),
                    &which.encode(&record.volume_id, &words),
                );
            }
        }
        map
    }

    fn record(&self, epoch: u64, authoritative: Side) -> RoleRecord {
        RoleRecord {
            epoch: Epoch(epoch),
            route: Route::Mirrored { authoritative },
            descriptor_slot: 0,
            descriptor_bytes: self.descriptor.len() as u32,
            descriptor_crc: map::checksum(&self.descriptor),
            volume_id: map_store::parse_volume_id(VOLUME_ID).unwrap(),
            block: self.block(),
            geometry: Geometry::for_size(SIZE).unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("db.map")
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        fs::OpenOptions::new()
            .write(true)
            .open(self.path())
            .unwrap()
            .write_all_at(bytes, offset)
            .unwrap();
    }

    fn flip(&self, offset: u64) {
        let mut byte = [0];
        fs::File::open(self.path())
            .unwrap()
            .read_exact_at(&mut byte, offset)
            .unwrap();
        self.write(offset, &[byte[0] ^ 0x10]);
    }

    fn cut(&self, length: u64) {
        fs::OpenOptions::new()
            .write(true)
            .open(self.path())
            .unwrap()
            .set_len(length)
            .unwrap();
    }

    fn check(&self) -> Ended {
        shunt_map("check", &self.path(), &[])
    }

    fn dump(&self) -> Ended {
        shunt_map("dump", &self.path(), &[])
    }

    /// Asserts that `check` and `dump` report the damage `what`, and that `check` names the way
    /// out. Returns the messages of `check`.
    fn assert_damaged(&self, what: &str) -> String {
        let check = self.check();
        assert_eq!(check.status, Some(1), "{check:?}");
        assert!(
            check.stdout.is_empty() && check.stderr.contains(what),
            "{what}: {check:?}"
        );
        assert!(
            check.stderr.contains("Way out: ") && check.stderr.contains("Never put an older copy"),
            "{check:?}"
        );
        let dump = self.dump();
        assert_eq!(dump.status, Some(1), "{dump:?}");
        assert!(
            dump.stdout.contains("role 0 ") && dump.stderr.contains(what),
            "{dump:?}"
        );
        let json = shunt_map("dump", &self.path(), &["--json"]);
        assert_eq!(json.status, Some(1));
        assert_eq!(json_lines(&json.stdout)[0]["whole"], false);
        check.stderr
    }
}

fn shunt_map(command: &str, path: &Path, options: &[&str]) -> Ended {
    run(
        PROGRAM,
        [command, path.to_str().unwrap()].iter().chain(options),
    )
}

#[test]
fn help_and_senseless_command_lines() {
    let senseless: &[&[&str]] = &[
        &[],
        &["no-such"],
        &["check"],
        &["check", "a", "b"],
        &["check", "a", "--json"],
        &["dump", "a", "--no-such"],
    ];
    common::check_contract(PROGRAM, senseless);
    for command in ["check", "dump"] {
        let help = run(PROGRAM, [command, "--help"]);
        assert_eq!(
            (help.status, help.stdout.contains("EXAMPLES:")),
            (Some(0), true)
        );
    }
}

#[test]
fn a_whole_file_is_ok_in_one_line() {
    let single = Map::single().check();
    assert_eq!(single.status, Some(0), "{single:?}");
    assert!(single.stdout.starts_with("ok: ") && single.stdout.lines().count() == 1);
    assert!(
        single
            .stdout
            .contains("volume db, epoch 1, single, source leg"),
        "{single:?}"
    );
    let mirrored = Map::mirrored().check();
    assert_eq!(mirrored.status, Some(0), "{mirrored:?}");
    assert!(
        mirrored
            .stdout
            .contains("epoch 7, mirrored, source leg authoritative, 4 dirty regions"),
        "{mirrored:?}"
    );
}

#[test]
fn dump_shows_everything() {
    let map = Map::mirrored();
    let dump = map.dump();
    assert_eq!(dump.status, Some(0), "{dump:?}");
    for expected in [
        "role 0       valid, holds: epoch 7, mirrored, source leg authoritative, descriptor 0",
        "role 1       valid, holds: epoch 7",
        "geometry     4.9 GiB (5242880000 bytes), 5000 regions of 1 MiB",
        "descriptor 0 valid: volume db (6f1c2a40-5a0d-4f6e-9d1b-0a1b2c3d4e5f)",
        "  source     /dev/old, 5242880000 bytes from byte 0, serial S-1",
        "descriptor 1 not in use",
        "dirty        4 regions, 4 MiB: 0-1, 4, 4999",
        "intent       0 regions, 0 bytes",
    ] {
        assert!(
            dump.stdout.contains(expected),
            "{expected}: {}",
            dump.stdout
        );
    }
    let records = json_lines(&shunt_map("dump", &map.path(), &["--json"]).stdout);
    assert!(records.iter().all(|record| record["schema"] == 1));
    let of = |kind: &str| {
        records
            .iter()
            .filter(|record| record["type"] == kind)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(of("file")[0]["whole"], true);
    assert_eq!(
        (of("role").len(), of("descriptor").len(), of("bitmap").len()),
        (2, 2, 2)
    );
    assert_eq!(
        of("role")[0]["route"],
        serde_json::json!({"kind": "mirrored", "authoritative": "source"})
    );
    assert_eq!(of("descriptor")[0]["descriptor"]["volume"], "db");
    assert_eq!(
        of("bitmap")[0]["ranges"][2],
        serde_json::json!({"first": 4999, "count": 1})
    );
}

#[test]
fn a_torn_role_write_is_no_damage() {
    let map = Map::mirrored();
    let mut torn = map.record(8, Side::Target).encode();
    torn[300] ^= 1;
    map.write(map::ROLE_OFFSETS[0], &torn);
    let check = map.check();
    assert_eq!(check.status, Some(0), "{check:?}");
    assert!(
        check.stdout.contains("epoch 7")
            && check.stdout.contains("role record 0 is older or not valid")
    );
    assert!(map.dump().stdout.contains("role 0       not valid"));
}

#[test]
fn a_newer_role_record_holds() {
    let map = Map::mirrored();
    map.write(map::ROLE_OFFSETS[0], &map.record(8, Side::Target).encode());
    let check = map.check();
    assert_eq!(check.status, Some(0), "{check:?}");
    assert!(
        check
            .stdout
            .contains("epoch 8, mirrored, target leg authoritative"),
        "{check:?}"
    );
    assert!(map.dump().stdout.contains("role 1       valid: epoch 7"));
}

#[test]
fn role_records_that_contradict_each_other_are_shown_and_not_guessed() {
    let map = Map::mirrored();
    map.write(map::ROLE_OFFSETS[0], &map.record(7, Side::Target).encode());
    let text = map.assert_damaged("the field `epoch` of the role record makes no sense");
    assert!(
        text.contains("Which leg is authoritative cannot be read"),
        "{text}"
    );
    let dump = map.dump().stdout;
    assert!(
        dump.contains("epoch 7, mirrored, target") && dump.contains("epoch 7, mirrored, source"),
        "{dump}"
    );
    assert!(
        dump.contains("/dev/old") && dump.contains("/dev/new"),
        "{dump}"
    );
}

#[test]
fn a_flipped_bit_in_both_role_records_is_found_and_the_descriptor_is_shown() {
    let map = Map::mirrored();
    map.flip(map::ROLE_OFFSETS[0] + 24);
    map.flip(map::ROLE_OFFSETS[1] + 24);
    map.assert_damaged("neither of the two role records is valid");
    assert!(map.dump().stdout.contains("/dev/old"));
}

#[test]
fn a_flipped_bit_in_the_descriptor_is_found() {
    let map = Map::mirrored();
    map.flip(map::DESCRIPTOR_OFFSETS[0] + 30);
    let text = map.assert_damaged("descriptor 0 does not match its checksum");
    assert!(
        text.contains("The role record names the authoritative leg: source"),
        "{text}"
    );
}

#[test]
fn a_flipped_bit_in_a_bitmap_is_found_and_the_rest_is_shown() {
    let map = Map::mirrored();
    let geometry = Geometry::for_size(SIZE).unwrap();
    map.flip(
        BitmapSector {
            area: Area::Dirty,
            index: 1,
        }
        .offset(geometry)
            + 100,
    );
    let text = map.assert_damaged("the dirty bitmap is damaged: sectors 1");
    assert!(text.contains("source (/dev/old)"), "{text}");
    assert!(
        map.dump()
            .stdout
            .contains("3 regions, 3 MiB: 0-1, 4; damaged sectors: 1"),
        "{}",
        map.dump().stdout
    );
}

#[test]
fn a_file_that_was_cut_anywhere_is_found() {
    for length in [
        0, 1, 511, 512, 4096, 4608, 8192, 9000, 139_264, 140_000, 147_455,
    ] {
        let map = Map::mirrored();
        map.cut(length);
        // Without a whole role record the required length of the file is not known.
        map.assert_damaged(if length < 512 {
            "neither of the two"
        } else {
            "the file was cut"
        });
    }
    let single = Map::single();
    single.cut(139_264);
    single.assert_damaged("the file was cut");
}

#[test]
fn another_version_is_refused_by_its_number() {
    let map = Map::single();
    let mut sector = map.record(1, Side::Source).encode();
    sector[8] = 9;
    sector[12..16].fill(0);
    let crc = map::checksum(&sector);
    sector[12..16].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(RoleRecord::decode(&sector), Err(MapError::Version(9)));
    map.write(map::ROLE_OFFSETS[0], &sector);
    map.assert_damaged("format version 9");
    assert!(
        map.dump()
            .stdout
            .contains("role 0       refused: it is of format version 9")
    );
    // Not damaged: it may be whole for the release that wrote it.
    let described = map_store::describe(&map.path());
    assert!(
        matches!(
            described,
            Err(map_store::MapFileError::OtherVersion { version: 9, .. })
        ),
        "{described:?}"
    );
}

#[test]
fn a_descriptor_of_another_volume_is_refused() {
    let map = Map::single();
    let mut record = map.record(1, Side::Source);
    record.volume_id[3] ^= 1;
    record.route = Route::Single(Side::Source);
    map.write(map::ROLE_OFFSETS[0], &record.encode());
    map.write(map::ROLE_OFFSETS[1], &record.encode());
    map.assert_damaged("it is of volume 6f1c2a40");
}

#[test]
fn a_foreign_file_is_no_map_file() {
    let map = Map::single();
    for contents in [
        b"#!/bin/sh\n".repeat(20_000),
        vec![0; 200_000],
        vec![0xff; 200_000],
    ] {
        fs::write(map.path(), contents).unwrap();
        map.assert_damaged("neither of the two role records is valid");
    }
}

#[test]
fn what_cannot_be_read_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [
        directory.path().join("missing"),
        directory.path().to_owned(),
        pipe,
        "/dev/null".into(),
    ] {
        for command in ["check", "dump"] {
            let ended = shunt_map(command, &path, &[]);
            assert_eq!(ended.status, Some(3), "{ended:?}");
            assert!(
                ended.stdout.is_empty() && ended.stderr.contains(path.to_str().unwrap()),
                "{ended:?}"
            );
        }
    }
}

#[test]
fn bits_flipped_anywhere_are_survived() {
    let map = Map::mirrored();
    for offset in (0..600).step_by(13).chain((8192..8300).step_by(9)) {
        map.flip(offset);
        assert!(
            map.check().status.is_some_and(|status| status < 2),
            "{offset}"
        );
        map.flip(offset);
    }
    assert_eq!(map.check().status, Some(0));
}
