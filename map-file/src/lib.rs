//! The map file: creating, locking and reading it. Later only `ublk-target` writes the file,
//! through its own ring.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use migration_core::{
    custody::Custody,
    map::{self, Area, BitmapSector, Chosen, MapError, RoleRecord, SECTOR_BYTES},
    route::{Route, Side},
    units::{Epoch, Geometry},
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

/// A map file that is locked by this process and was read.
#[derive(Debug)]
pub struct MapFile {
    /// The file, opened so that every write is durable when it returns. Holds the lock.
    pub file: File,
    /// The path of the file.
    pub path: PathBuf,
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

/// Creates a map file with route `Single(leg)` and epoch 1. All of its space is allocated, so that
/// no later write can find the file system full.
///
/// # Errors
/// [`MapFileError`]; an existing file is never touched.
pub fn format(path: &Path, descriptor: &Descriptor, leg: Side) -> Result<(), MapFileError> {
    let unusable = |cause: String| MapFileError::Descriptor {
        path: path.to_owned(),
        cause,
    };
    let bytes = serde_json::to_vec(descriptor).map_err(|error| unusable(error.to_string()))?;
    if bytes.len() > map::DESCRIPTOR_BYTES_MAX {
        return Err(unusable(format!("{} bytes are too long", bytes.len())));
    }
    let record = RoleRecord {
        epoch: Epoch(1),
        route: Route::Single(leg),
        descriptor_slot: 0,
        descriptor_bytes: u32::try_from(bytes.len())
            .map_err(|error| unusable(error.to_string()))?,
        descriptor_crc: map::checksum(&bytes),
        volume_id: parse_volume_id(&descriptor.volume_id).map_err(unusable)?,
        geometry: Geometry::for_size(descriptor.size_bytes)
            .map_err(|error| unusable(error.to_string()))?,
    };
    check_descriptor(path, &record, descriptor)?;
    write_new(path, &record, &bytes).map_err(|source| MapFileError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Writes a new map file under another name first, so that the file at `path` is whole or does not
/// exist.
fn write_new(path: &Path, record: &RoleRecord, descriptor: &[u8]) -> io::Result<()> {
    if path.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let unfinished = path.with_extension("unfinished");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    let result = (|| {
        let zeroes = vec![0; 1 << 20];
        let mut left = map::file_bytes(record.geometry);
        while left > 0 {
            let part = left.min(zeroes.len() as u64);
            file.write_all(&zeroes[..part as usize])?;
            left -= part;
        }
        for (offset, bytes) in map::initial_parts(record, descriptor) {
            file.write_all_at(&bytes, offset)?;
        }
        file.sync_all()?;
        // Unlike a rename, a link never replaces a file that was created meanwhile.
        std::fs::hard_link(&unfinished, path)?;
        std::fs::remove_file(&unfinished)?;
        match path.parent() {
            Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
            Some(_) | None => File::open(".")?.sync_all(),
        }
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    result
}

impl MapFile {
    /// Opens, locks and reads a map file. Waits up to `lock_limit` for a lock that a dying
    /// predecessor still holds.
    ///
    /// # Errors
    /// [`MapFileError`]
    pub fn open(path: &Path, lock_limit: Duration) -> Result<Self, MapFileError> {
        let io_error = |source| MapFileError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DSYNC)
            .open(path)
            .map_err(io_error)?;
        lock(&file, lock_limit).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => MapFileError::Locked {
                path: path.to_owned(),
            },
            _ => io_error(source),
        })?;
        let mut contents = read(&file, path)?;
        settle_role(&file, &mut contents.chosen).map_err(io_error)?;
        Ok(Self::new(file, path, contents))
    }

    /// Refuses the map file if it is not that of the volume with this UUID.
    ///
    /// # Errors
    /// [`MapFileError::OtherVolume`]
    pub fn require_volume(&self, volume_id: &str) -> Result<(), MapFileError> {
        if self.descriptor.volume_id == volume_id {
            return Ok(());
        }
        Err(MapFileError::OtherVolume {
            path: self.path.clone(),
            found: self.descriptor.volume.clone(),
        })
    }

    fn new(file: File, path: &Path, contents: Contents) -> Self {
        let Contents {
            chosen,
            descriptor,
            custody,
            dirty,
            intent,
        } = contents;
        Self {
            file,
            path: path.to_owned(),
            chosen,
            descriptor,
            custody,
            dirty,
            intent,
        }
    }

    /// Duplicates the descriptor of the file; both have the same lock.
    ///
    /// # Errors
    /// [`MapFileError::Io`] if the descriptor cannot be duplicated.
    pub fn duplicate(&self) -> Result<Self, MapFileError> {
        let file = self.file.try_clone();
        let file = file.map_err(|source| self.error(source))?;
        Ok(Self {
            file,
            path: self.path.clone(),
            chosen: self.chosen,
            descriptor: self.descriptor.clone(),
            custody: self.custody,
            dirty: self.dirty.clone(),
            intent: self.intent.clone(),
        })
    }

    /// Makes every region dirty, as [`make_all_dirty`].
    ///
    /// # Errors
    /// Those of the file. Some regions may be dirty then; that costs a copy, but no data.
    pub fn make_all_dirty(&mut self) -> Result<(), MapFileError> {
        make_all_dirty(&self.file, &self.chosen.record, &mut self.dirty)
            .map_err(|source| self.error(source))
    }

    /// Writes who holds the legs, as [`write_custody`].
    ///
    /// # Errors
    /// Those of the file.
    pub fn write_custody(&mut self, custody: Custody) -> Result<(), MapFileError> {
        write_custody(&self.file, &self.chosen.record, &custody)
            .map_err(|source| self.error(source))?;
        self.custody = Some(custody);
        Ok(())
    }

    fn error(&self, source: io::Error) -> MapFileError {
        MapFileError::Io {
            path: self.path.clone(),
            source,
        }
    }

    /// Reads a map file without locking it, for tools that change nothing.
    ///
    /// # Errors
    /// [`MapFileError`]
    pub fn open_read_only(path: &Path) -> Result<Self, MapFileError> {
        let file = File::open(path).map_err(|source| MapFileError::Io {
            path: path.to_owned(),
            source,
        })?;
        let contents = read(&file, path)?;
        Ok(Self::new(file, path, contents))
    }
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
    let sector = chosen.record.encode();
    let stale = chosen.stale_slot.unwrap_or(0);
    for slot in [stale, 1 - stale] {
        file.write_all_at(&sector, map::ROLE_OFFSETS[slot])?;
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
    for (index, words) in dirty.chunks(map::SECTOR_WORDS).enumerate() {
        let area = Area::Dirty;
        let sector = BitmapSector { area, index };
        let bytes = sector.encode(&record.volume_id, words);
        file.write_all_at(&bytes, sector.offset(record.geometry))?;
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
    file.write_all_at(&custody.encode(&record.volume_id), map::CUSTODY_OFFSET)
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

/// What a map file says, even if a part of the file is damaged.
#[derive(Debug)]
pub struct Description {
    /// The role record that holds.
    pub record: RoleRecord,
    /// What the volume is.
    pub descriptor: Descriptor,
    /// What is damaged apart from these, so that the volume is not served.
    pub damage: Option<MapFileError>,
}

/// Reads a map file without locking it, or at least its role and descriptor if the rest is damaged.
/// While the volume is served, a sector may be read during a write to it: damage is reported only
/// if several attempts in a row find it.
///
/// # Errors
/// [`MapFileError`], if there is no role or no descriptor.
pub fn describe(path: &Path) -> Result<Description, MapFileError> {
    const LOOKS_MAX: u32 = 3;
    const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);
    let mut looks = 1;
    loop {
        let whole = MapFile::open_read_only(path);
        if looks == LOOKS_MAX || whole.is_ok() {
            return match whole {
                Ok(map) => Ok(Description {
                    record: map.chosen.record,
                    descriptor: map.descriptor,
                    damage: None,
                }),
                Err(damage) => describe_damaged(path, damage),
            };
        }
        looks += 1;
        std::thread::sleep(LOOK_AGAIN_AFTER);
    }
}

fn describe_damaged(path: &Path, damage: MapFileError) -> Result<Description, MapFileError> {
    let Ok(file) = File::open(path) else {
        return Err(damage);
    };
    match read_role(&file, path) {
        Ok((chosen, descriptor)) => Ok(Description {
            record: chosen.record,
            descriptor,
            damage: Some(damage),
        }),
        Err(_) => Err(damage),
    }
}

/// Checks that the role record and the descriptor agree, and that the legs are long enough.
fn check_descriptor(
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

fn lock(file: &File, limit: Duration) -> io::Result<()> {
    const RETRY: Duration = Duration::from_millis(5);
    let started = Instant::now();
    loop {
        // SAFETY: flock takes a descriptor that `file` keeps open, and a flag.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock || started.elapsed() >= limit {
            return Err(error);
        }
        std::thread::sleep(RETRY);
    }
}
