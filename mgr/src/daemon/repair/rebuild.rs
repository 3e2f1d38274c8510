//! Opens the database, or rebuilds it from the map files when it is damaged or missing.
//!
//! The map files hold the truth about every route, so the volumes and the mirrored migrations are
//! restored. What only the database holds is lost: names of sessions, sessions that were not
//! started or have ended, whether a copy was paused, the history. So each mirrored volume gets a
//! session of its own, paused: nothing is written to a LUN before the operator has checked it.
//!
//! A database that exists but is older than the map files (restored from a backup) gets the volumes
//! that it lacks.
//!
//! The new database is made under another name and then renamed, so that a database under the final
//! name is always complete. The damaged one is kept. A database that is locked, was written by a
//! newer program, or cannot be read for another reason is not touched, and shuntd does not start.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use migration_core::route::{Route, Side};
use migration_proto::manager::HistoryEvent;
use migration_proto::route::MapSummary;
use tracing::{info, warn};

use crate::daemon::context::{note, now_ms};
use crate::daemon::failure::{self, StartError};
use crate::daemon::paths::Config;
use crate::daemon::volumes::process;
use crate::daemon::volumes::truth::{self, Truth};
use crate::history;
use crate::names;
use crate::store::{Change, LegRow, Model, Store, StoreError, VolumeRow, VolumeState};

/// The name suffixes of a database and of the files that SQLite keeps beside it.
const COMPANIONS: [&str; 3] = ["", "-wal", "-shm"];
/// The problem shown for a pair that was found in a map file.
const FOUND: &str = "the database was lost, and this was found in the map file of the volume: see `shunt history`, then resume, commit \
                     or cancel it";

/// Opens the database. Rebuilds it if it is damaged, or missing although there are volumes.
pub(crate) async fn open(config: &Config) -> Result<(Store, Model), StartError> {
    let database = config.database();
    let why = if is_there(&database).map_err(|source| io_error("examine", &database, source))? {
        match open_and_load(&database) {
            Err(error) if error.is_damage() => error.to_string(),
            Err(source) => return Err(store_error(&database, source)),
            Ok((store, model)) => return follow_the_maps(config, store, model).await,
        }
    } else {
        let volumes = volumes(config)?;
        if volumes.is_empty() {
            set_aside(&database)?;
            return open_and_load(&database).map_err(|source| store_error(&database, source));
        }
        "the database is missing, and there are volumes".to_owned()
    };
    warn!(why, "another database is made from the map files");
    rebuild(config, &why).await
}

/// Updates a database that is older than the map files: adds the volumes that it lacks, and the
/// routes that none of its sessions explains.
async fn follow_the_maps(
    config: &Config,
    mut store: Store,
    model: Model,
) -> Result<(Store, Model), StartError> {
    let failed = |source| store_error(&config.database(), source);
    let mut changed = false;
    for name in volumes(config)? {
        if !config.map(&name).exists() {
            continue;
        }
        let found = match process::describe(&config.ublk_target, &config.map(&name)).await {
            Ok(found) => found,
            Err(error) => {
                warn!(
                    volume = name,
                    %error, "its map file cannot be compared with the database"
                );
                continue;
            }
        };
        let missing = match model.volumes.get(&name) {
            Some(row) if found.descriptor.volume_id != row.volume_id => Err(format!(
                "the map file is that of another volume, {}: {}",
                found.descriptor.volume,
                failure::other_volume_next(&name)
            )),
            Some(row) => truth::adoption(&model, row, &Truth::of_map(&found)),
            None => changes(&name, &found, true).map(|(mut changes, event)| {
                changes.push(note(None, Some(&name), event));
                changes
            }),
        };
        let recorded = match missing {
            Ok(changes) if changes.is_empty() => continue,
            Ok(changes) => match store.apply(&changes) {
                Err(error) if error.is_conflict() => Err(error.to_string()),
                other => Ok(other.map_err(failed)?),
            },
            Err(cause) => Err(cause),
        };
        match recorded {
            Ok(()) => changed = true,
            Err(cause) => {
                warn!(
                    volume = name,
                    cause, "the database is older than its map file, and does not follow it"
                );
            }
        }
    }
    let model = match changed {
        true => store.load().map_err(failed)?,
        false => model,
    };
    Ok((store, model))
}

fn open_and_load(database: &Path) -> Result<(Store, Model), StoreError> {
    let store = Store::open(database)?;
    let model = store.load()?;
    Ok((store, model))
}

/// Whether there is a database. An empty file counts as none: SQLite would take it for a new
/// database.
fn is_there(database: &Path) -> io::Result<bool> {
    match std::fs::metadata(database) {
        Ok(metadata) => Ok(metadata.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The names of the volumes that have a directory.
fn volumes(config: &Config) -> Result<Vec<String>, StartError> {
    let directory = config.volumes();
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&directory)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    };
    read().map_err(|source| io_error("read", &directory, source))
}

async fn rebuild(config: &Config, why: &str) -> Result<(Store, Model), StartError> {
    let database = config.database();
    let unfinished = beside(&database, ".unfinished");
    for companion in COMPANIONS {
        remove(&beside(&unfinished, companion))?;
    }
    let failed = |source| store_error(&unfinished, source);
    let mut store = Store::open(&unfinished).map_err(failed)?;
    store
        .apply(&[note(
            None,
            None,
            HistoryEvent::DatabaseRebuilt {
                cause: why.to_owned(),
            },
        )])
        .map_err(failed)?;
    for name in volumes(config)? {
        let event = match restore(config, &mut store, &name).await.map_err(failed)? {
            Restored::Recorded(event) => {
                info!(
                    volume = name,
                    "{}",
                    history::sentence(&event, None, Some(&name))
                );
                event
            }
            Restored::Refused(cause) => {
                warn!(volume = name, cause, "the volume could not be restored");
                HistoryEvent::VolumeNotRestored {
                    cause,
                    database: database.display().to_string(),
                }
            }
        };
        store
            .apply(&[note(None, Some(&name), event)])
            .map_err(failed)?;
    }
    // Closing the database moves everything into the one file that is renamed.
    drop(store);
    let log = beside(&unfinished, "-wal");
    if log.exists() {
        let left = io::Error::other("SQLite left its write-ahead log");
        return Err(io_error("finish", &log, left));
    }
    set_aside(&database)?;
    std::fs::rename(&unfinished, &database)
        .and_then(|()| File::open(&config.state_directory)?.sync_all())
        .map_err(|source| io_error("finish", &database, source))?;
    open_and_load(&database).map_err(|source| store_error(&database, source))
}

/// What became of a volume whose map file was found.
enum Restored {
    /// It is recorded; this is the event for the history.
    Recorded(HistoryEvent),
    /// Why it cannot be recorded.
    Refused(String),
}

/// Records one volume as its map file describes it.
async fn restore(config: &Config, store: &mut Store, name: &str) -> Result<Restored, StoreError> {
    let found = match process::describe(&config.ublk_target, &config.map(name)).await {
        Ok(found) => found,
        Err(error) => return Ok(Restored::Refused(error.to_string())),
    };
    let (changes, event) = match changes(name, &found, false) {
        Ok(changes) => changes,
        Err(cause) => return Ok(Restored::Refused(cause)),
    };
    match store.apply(&changes) {
        Ok(()) => Ok(Restored::Recorded(event)),
        Err(error) if error.is_conflict() => Ok(Restored::Refused(error.to_string())),
        Err(error) => Err(error),
    }
}

/// The changes that record one volume as its map file describes it, and the event for the history.
/// `older_database`: whether there is a database that lacks the volume.
fn changes(
    name: &str,
    found: &MapSummary,
    older_database: bool,
) -> Result<(Vec<Change>, HistoryEvent), String> {
    let descriptor = &found.descriptor;
    names::check(name).map_err(|error| error.to_string())?;
    if descriptor.volume != name {
        return Err(format!(
            "its map file is that of volume {}",
            descriptor.volume
        ));
    }
    let leg = |side: Side| -> Result<LegRow, String> {
        let leg = descriptor.leg(side.into());
        LegRow::of(leg.ok_or_else(|| format!("its map file names no {side}"))?)
            .ok_or_else(|| format!("its {side} is not made of whole LUNs"))
    };
    let route = Route::from(found.route);
    let first = match route {
        Route::Single(side) => leg(side)?,
        Route::Mirrored { .. } | Route::Split => leg(Side::Source)?,
    };
    let row = VolumeRow {
        name: name.to_owned(),
        volume_id: descriptor.volume_id.clone(),
        state: VolumeState::Attached,
        leg: first.clone(),
        size_bytes: descriptor.size_bytes,
        logical_block_bytes: descriptor.logical_block_bytes,
        open_map: None,
    };
    let mut changes = vec![Change::AddVolume(row.clone())];
    let locks = first.locks(&failure::volume(name));
    changes.extend(locks.into_iter().map(Change::Lock));
    let authoritative = route.authoritative();
    if !route.has_map() {
        let event = HistoryEvent::VolumeRestored {
            older_database,
            lun: first.paths().clone(),
        };
        return Ok((changes, event));
    }
    let target = leg(Side::Target)?;
    let session = truth::session_name(name, &descriptor.volume_id);
    let event = HistoryEvent::SessionRestored {
        older_database,
        found_session: session.clone(),
        source: first.paths().clone(),
        target: target.paths().clone(),
        authoritative: authoritative.into(),
    };
    changes.extend(truth::found_session(
        &row,
        session,
        first,
        target,
        authoritative,
        FOUND,
    ));
    Ok((changes, event))
}

/// Renames what is left of a database, with its WAL and shared-memory files, so that the new
/// database never replays the old WAL.
fn set_aside(database: &Path) -> Result<(), StartError> {
    let suffix = format!(".damaged-{}", now_ms());
    for companion in COMPANIONS {
        let from = beside(database, companion);
        let to = beside(&beside(database, &suffix), companion);
        match std::fs::rename(&from, &to) {
            Ok(()) => warn!(kept = %to.display(), "set aside"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io_error("set aside", &from, source)),
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), StartError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The path with `suffix` appended to its last component.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> StartError {
    StartError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

fn store_error(path: &Path, source: StoreError) -> StartError {
    StartError::Store {
        path: path.to_owned(),
        source,
    }
}
