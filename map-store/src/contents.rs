//! The contents of a map: from bytes to values and back, whatever holds the bytes.

use std::{
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use migration_core::{
    custody::Custody,
    map::{self, Area, BitmapSector, Chosen, MapError, RoleRecord, SECTOR_BYTES},
    route::Side,
};
use migration_proto::route::Descriptor;

/// Why a map file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MapFileError {
    /// The file could not be opened, read or written.
    #[error("map file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The contents are damaged. They are never guessed.
    #[error(
        "map file {path} is damaged: {source}; nothing is served until the operator says which leg is right"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: MapError,
    },
    /// Another release wrote the file. It may be whole, so it is not damaged.
    #[error(
        "map file {path} is of format version {version}, this program knows {known}; nothing is served; install the \
         release that knows version {version}",
        known = map::FORMAT_VERSION
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// The version of its format.
        version: u32,
    },
    /// The file ends before all that it should hold.
    #[error(
        "map file {path} is damaged: it is cut off before byte {offset}; nothing is served until the operator says which \
         leg is right"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where the read that failed begins, in bytes.
        offset: u64,
    },
    /// The descriptor has a valid checksum and makes no sense.
    #[error("map file {path}: its descriptor cannot be used: {cause}")]
    Descriptor {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// It is the map file of another volume.
    #[error("map file {path} is that of another volume, {found}; nothing is served")]
    OtherVolume {
        /// The file.
        path: PathBuf,
        /// The name of that volume.
        found: String,
    },
    /// Another process serves the volume.
    #[error("map file {path} is locked: another ublk-target serves this volume")]
    Locked {
        /// The file.
        path: PathBuf,
    },
}

impl MapFileError {
    fn of_contents(path: &Path, source: MapError) -> Self {
        let path = path.to_owned();
        match source {
            MapError::Version(version) => Self::OtherVersion { path, version },
            source => Self::Damaged { path, source },
        }
    }
}

/// The 16 bytes of a UUID in its usual spelling.
///
/// # Errors
/// A text that says what is wrong.
pub fn parse_volume_id(text: &str) -> Result<[u8; 16], String> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut id = [0; 16];
    if digits.len() != 32 {
        return Err(format!("{text:?} is not a UUID"));
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|error| error.to_string())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| format!("{text:?} is not a UUID"))?;
    }
    Ok(id)
}

/// The contents of a map file, as they were read.
#[derive(Debug)]
pub struct Contents {
    /// The role record that holds, and the slot that has to be refreshed.
    pub chosen: Chosen,
    /// What the volume is.
    pub descriptor: Descriptor,
    /// Who holds the legs; `None` if that is not known.
    pub custody: Option<Custody>,
    /// The words of the dirty bitmap; empty in `Single`.
    pub dirty: Vec<u64>,
    /// The words of the write intent bitmap; empty in `Single`.
    pub intent: Vec<u64>,
}

/// Reads and checks an open map file, or something else that has its bytes. `path` is for the
/// errors.
///
/// # Errors
/// [`MapFileError`]
pub fn read(file: &impl FileExt, path: &Path) -> Result<Contents, MapFileError> {
    let damaged = |source| MapFileError::of_contents(path, source);
    let (chosen, descriptor) = read_role(file, path)?;
    let record = &chosen.record;
    let read_area = |area| -> Result<Vec<u64>, MapFileError> {
        let mut words = Vec::new();
        if record.route.has_map() {
            for index in 0..map::bitmap_sectors(record.geometry) {
                let which = BitmapSector { area, index };
                let sector = sector_at(file, path, which.offset(record.geometry))?;
                words.extend(which.decode(&record.volume_id, &sector).map_err(damaged)?);
            }
        }
        Ok(words)
    };
    let (dirty, intent) = (read_area(Area::Dirty)?, read_area(Area::Intent)?);
    let sector = sector_at(file, path, map::CUSTODY_OFFSET)?;
    let custody = Custody::decode(&record.volume_id, &sector);
    Ok(Contents {
        chosen,
        descriptor,
        custody,
        dirty,
        intent,
    })
}

/// Writes the record that holds to both slots, durably, before anybody acts on it: if a write of a
/// predecessor failed, the record may be in the page cache alone.
///
/// # Errors
/// Those of the file.
pub fn settle_role(file: &impl FileExt, chosen: &mut Chosen) -> io::Result<()> {
    let block = chosen.record.block.holding(&chosen.record.encode());
    let stale = chosen.stale_slot.unwrap_or(0);
    for slot in [stale, 1 - stale] {
        file.write_all_at(&block, map::ROLE_OFFSETS[slot])?;
    }
    chosen.stale_slot = None;
    Ok(())
}

/// Makes every region dirty, in a map file that is opened for durable writes and in the words that
/// were read from it: the legs may differ anywhere.
///
/// # Errors
/// Those of the file.
pub fn make_all_dirty(
    file: &impl FileExt,
    record: &RoleRecord,
    dirty: &mut [u64],
) -> io::Result<()> {
    dirty.fill(u64::MAX);
    let sectors_per_block = record.block.sectors();
    let blocks = dirty.chunks(map::SECTOR_WORDS * sectors_per_block);
    for (words, number) in blocks.zip(0..) {
        let sector = |part| BitmapSector {
            area: Area::Dirty,
            index: number * sectors_per_block + part,
        };
        let mut block = Vec::with_capacity(record.block.bytes());
        for (words, part) in words.chunks(map::SECTOR_WORDS).zip(0..) {
            block.extend(sector(part).encode(&record.volume_id, words));
        }
        block.resize(record.block.bytes(), 0);
        file.write_all_at(&block, sector(0).offset(record.geometry))?;
    }
    Ok(())
}

/// Writes who holds the legs to a map file that is opened for durable writes.
///
/// # Errors
/// Those of the file.
pub fn write_custody(
    file: &impl FileExt,
    record: &RoleRecord,
    custody: &Custody,
) -> io::Result<()> {
    let sector = custody.encode(&record.volume_id);
    file.write_all_at(&record.block.holding(&sector), map::CUSTODY_OFFSET)
}

/// Reads the role record that holds and the descriptor, whatever the rest of the map file is.
///
/// # Errors
/// [`MapFileError`], if there is no role or no descriptor.
pub fn read_role(file: &impl FileExt, path: &Path) -> Result<(Chosen, Descriptor), MapFileError> {
    let damaged = |source| MapFileError::of_contents(path, source);
    let slots = [
        sector_at(file, path, map::ROLE_OFFSETS[0])?,
        sector_at(file, path, map::ROLE_OFFSETS[1])?,
    ];
    let chosen = RoleRecord::choose([&slots[0], &slots[1]]).map_err(damaged)?;
    let record = &chosen.record;
    let mut bytes = vec![0; record.descriptor_bytes as usize];
    let offset = map::DESCRIPTOR_OFFSETS[usize::from(record.descriptor_slot)];
    read_at(file, path, offset, &mut bytes)?;
    record.check_descriptor(&bytes).map_err(damaged)?;
    let descriptor: Descriptor =
        serde_json::from_slice(&bytes).map_err(|error| MapFileError::Descriptor {
            path: path.to_owned(),
            cause: error.to_string(),
        })?;
    check_descriptor(path, record, &descriptor)?;
    Ok((chosen, descriptor))
}

fn sector_at(
    file: &impl FileExt,
    path: &Path,
    offset: u64,
) -> Result<[u8; SECTOR_BYTES], MapFileError> {
    let mut sector = [0; SECTOR_BYTES];
    read_at(file, path, offset, &mut sector)?;
    Ok(sector)
}

/// Reads `bytes` at `offset`. A file that ends too early is damaged: its whole length is allocated
/// when it is created.
fn read_at(
    file: &impl FileExt,
    path: &Path,
    offset: u64,
    bytes: &mut [u8],
) -> Result<(), MapFileError> {
    let path = path.to_owned();
    file.read_exact_at(bytes, offset)
        .map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => MapFileError::Truncated { path, offset },
            _ => MapFileError::Io { path, source },
        })
}

/// Checks that the role record and the descriptor agree, and that the legs are long enough.
pub(crate) fn check_descriptor(
    path: &Path,
    record: &RoleRecord,
    descriptor: &Descriptor,
) -> Result<(), MapFileError> {
    let unusable = |cause: String| {
        Err(MapFileError::Descriptor {
            path: path.to_owned(),
            cause,
        })
    };
    if parse_volume_id(&descriptor.volume_id) != Ok(record.volume_id) {
        return unusable(format!("it is of volume {}", descriptor.volume_id));
    }
    let size = record.geometry.size_bytes();
    if descriptor.size_bytes != size {
        return unusable(format!(
            "it says {} bytes, the role record {size}",
            descriptor.size_bytes
        ));
    }
    for side in [Side::Source, Side::Target] {
        let used = side == record.route.authoritative() || record.route.has_map();
        match descriptor.leg(side.into()) {
            Some(leg) if leg.length_bytes() < size => {
                return unusable(format!(
                    "the {side} leg has {} bytes of {size}",
                    leg.length_bytes()
                ));
            }
            None if used => {
                return unusable(format!("the route needs a {side} leg, and there is none"));
            }
            Some(_) | None => {}
        }
    }
    Ok(())
}
