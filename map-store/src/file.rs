//! The map as a file: creating, locking and opening it.

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
    map::{self, BlockSize, Chosen, RoleRecord},
    route::{Route, Side},
    units::{Epoch, Geometry},
};
use migration_proto::route::Descriptor;

use crate::contents::{
    Contents, MapFileError, check_descriptor, make_all_dirty, parse_volume_id, read, read_role,
    settle_role, write_custody,
};

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
        // Known when the file exists.
        block: BlockSize::Bytes512,
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
        let record = RoleRecord {
            block: BlockSize::of_file_on(lun::file_block_bytes(&file)),
            ..*record
        };
        for (offset, bytes) in map::initial_parts(&record, descriptor) {
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
