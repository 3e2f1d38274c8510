//! The state of shuntd in one SQLite database: volumes, sessions, pairs, locks, the open map and
//! the history.
//!
//! The database holds what the operator asked for. The truth about a volume's route is in its map
//! file, which only ublk-target writes; where the two disagree, the map file is right.
//!
//! Invariants: an intention is durable (WAL, `synchronous=FULL`) before it is acted on; all changes
//! of one [`Store::apply`] are made, or none; a LUN is locked at most once.
//!
//! Calls block. [`StoreHandle`] gives them a thread of their own, in order.

mod handle;
mod history;
mod model;
mod read;
mod rows;
mod samples;
mod schema;

use std::path::{Path, PathBuf};

use lun::Seen;
use migration_core::route::Side;
use migration_proto::manager::Cursor;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};
use serde::Serialize;

pub use handle::StoreHandle;
pub use history::Lost;
pub use model::{Change, Model, PairField, leg_of};
pub use rows::{
    CopyOf, Estimate, LegRow, Lock, LunRow, Note, OpenMapRow, PairKey, PairRow, Progress, Retired,
    Sealed, SessionRow, VolumeRow, VolumeState,
};
pub use samples::Sample;

/// How long a call waits for another process that has the database locked, in milliseconds.
const BUSY_TIMEOUT_MS: u64 = 5_000;
/// The mode of the database.
const PRIVATE: u32 = 0o600;

/// Why the store could not be read or changed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A newer program wrote the database.
    #[error(
        "the database has schema {found}, this program knows {known}: start the newer shuntd again"
    )]
    Newer {
        /// The schema that it has.
        found: i64,
        /// The last schema that this program knows.
        known: i64,
    },
    /// A program that was never released wrote the database.
    #[error(
        "the database has schema {found}, and the first one that this program knows is {first}"
    )]
    Older {
        /// The schema that it has.
        found: i64,
        /// The first schema that this program knows.
        first: i64,
    },
    /// The LUN is in use.
    #[error("{path} is in use already: {holder}")]
    Locked {
        /// The LUN.
        path: PathBuf,
        /// Who uses it.
        holder: String,
    },
    /// A row that this program did not write.
    #[error("the database holds {value:?} in {column}, which this program does not understand")]
    Unreadable {
        /// The column.
        column: &'static str,
        /// The value.
        value: String,
    },
    /// A change names a row that does not exist.
    #[error("the database has no {0}")]
    Missing(String),
    /// A path cannot be written as text.
    #[error("the path {0:?} is not valid UTF-8")]
    NotUtf8(PathBuf),
    /// SQLite found damage when it checked the database.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// SQLite failed.
    #[error("the database failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The store is closed.
    #[error("the database is closed")]
    Closed,
}

impl StoreError {
    /// Whether the database itself is damaged, so that retries cannot help.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged(_) => true,
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            ),
            Self::Newer { .. }
            | Self::Older { .. }
            | Self::Locked { .. }
            | Self::Unreadable { .. }
            | Self::Missing(_)
            | Self::NotUtf8(_)
            | Self::Closed => false,
        }
    }

    /// Whether another process has the database locked.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Sqlite(error) if matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        ))
    }

    /// Whether a uniqueness constraint refused the row.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Locked { .. })
            || matches!(self, Self::Sqlite(error)
                if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation))
    }
}

/// The database.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    /// The name of the history ([`Cursor::history`]).
    history: String,
}

impl Store {
    /// Opens or creates the database and brings it to the current schema.
    ///
    /// # Errors
    /// SQLite cannot open the database, it is damaged, or a newer program wrote it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        make_private(path);
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_millis(BUSY_TIMEOUT_MS))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        schema::step_up(&mut connection)?;
        examine(&connection)?;
        let history = history::name_of(&connection)?;
        Ok(Self {
            connection,
            history,
        })
    }

    /// Makes all changes durable, or none.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if a LUN is in use already; [`StoreError::Missing`] if a row does not
    /// exist; errors of SQLite.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.transact(changes).map(drop)
    }

    /// As [`Self::apply`]; each line of the history among the changes gets its place.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_and_place(&mut self, changes: &mut [Change]) -> Result<(), StoreError> {
        let mut numbers = self.transact(changes)?.into_iter();
        for change in changes {
            if let Change::Note(note) = change {
                note.cursor = numbers.next().map(|line| Cursor {
                    history: self.history.clone(),
                    line,
                    at_ms: note.at_ms,
                });
            }
        }
        Ok(())
    }

    /// Makes all changes durable, or none; returns the numbers of the lines of the history.
    fn transact(&mut self, changes: &[Change]) -> Result<Vec<u64>, StoreError> {
        let transaction = self.connection.transaction()?;
        let mut numbers = Vec::new();
        for change in changes {
            apply_one(&transaction, change)?;
            if matches!(change, Change::Note(_)) {
                numbers.push(transaction.last_insert_rowid().unsigned_abs());
            }
        }
        transaction.commit()?;
        Ok(numbers)
    }

    /// The lock of a LUN, if the LUN is in use.
    ///
    /// # Errors
    /// Errors of SQLite.
    pub fn lock_of(&self, key: &str) -> Result<Option<Lock>, StoreError> {
        read::lock(&self.connection, key)
    }

    /// The locks of all LUNs in use.
    ///
    /// # Errors
    /// Errors of SQLite.
    pub fn locks(&self) -> Result<Vec<Lock>, StoreError> {
        read::locks(&self.connection)
    }

    /// Loads everything that is recorded, except locks, history, samples and estimates.
    ///
    /// # Errors
    /// Errors of SQLite; a row that this program did not write.
    pub fn load(&self) -> Result<Model, StoreError> {
        read::model(&self.connection)
    }

    /// The last estimate for copying a volume to a leg ([`LegRow::key`]).
    ///
    /// # Errors
    /// Errors of SQLite; a row that this program did not write.
    pub fn estimate(&self, volume: &str, target: &str) -> Result<Option<Estimate>, StoreError> {
        read::estimate(&self.connection, volume, target)
    }

    /// The samples of a session's pairs in the order of time, at most `lines_max`.
    ///
    /// # Errors
    /// Errors of SQLite.
    pub fn samples(&self, session: &str, lines_max: u32) -> Result<Vec<Sample>, StoreError> {
        samples::read(&self.connection, session, lines_max)
    }
}

/// The key of a LUN's lock: the strongest name in the LUN's identity, or, if it has none, the
/// recorded path, whatever that leads to now.
#[must_use]
pub fn lock_key(lun: &LunRow) -> String {
    let identity = &lun.identity;
    let partition = identity
        .partition_number
        .map_or_else(String::new, |number| format!(":{number}"));
    if let Some(uuid) = &identity.dm_uuid {
        format!("dm:{uuid}")
    } else if let Some(file) = &identity.file {
        format!("file:{}:{}{partition}", file.device, file.inode)
    } else if let Some(wwn) = &identity.wwn {
        format!("wwn:{wwn}{partition}")
    } else if let Some(serial) = &identity.serial {
        format!("serial:{serial}:{}{partition}", identity.size_bytes)
    } else if let Some(uuid) = &identity.partition_uuid {
        format!("partition:{uuid}")
    } else {
        format!("path:{}", lun.path.display())
    }
}

/// Reads every page, so that damage is found now and not when a row is needed.
fn examine(connection: &Connection) -> Result<(), StoreError> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    match found.as_str() {
        "ok" => Ok(()),
        _ => Err(StoreError::Damaged(found)),
    }
}

fn apply_one(transaction: &Transaction<'_>, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::AddVolume(row) => add_volume(transaction, row),
        Change::SetVolumeState(name, state) => one_row(
            transaction.execute(
                "UPDATE volumes SET state = ?2 WHERE name = ?1",
                params![name, state.name()],
            )?,
            || format!("volume {name}"),
        ),
        Change::SetVolumeLeg(name, leg) => one_row(
            transaction.execute(
                "UPDATE volumes SET leg = ?2 WHERE name = ?1",
                params![name, json_text(leg)],
            )?,
            || format!("volume {name}"),
        ),
        Change::SetSeen(path, seen) => set_seen(transaction, path, seen),
        Change::SetOpenMap(name, row) => {
            transaction.execute(
                "INSERT OR REPLACE INTO open_map (volume, kernel_device, boot_id, leg) VALUES (?1, ?2, ?3, ?4)",
                params![name, path_text(&row.kernel_device)?, row.boot_id, row.leg.to_string()],
            )?;
            Ok(())
        }
        Change::RemoveVolume(name) => one_row(
            transaction.execute("DELETE FROM volumes WHERE name = ?1", params![name])?,
            || format!("volume {name}"),
        ),
        Change::AddSession(row) => add_session(transaction, row),
        Change::SetPaused(name, paused) => one_row(
            transaction.execute(
                "UPDATE sessions SET paused = ?2 WHERE name = ?1",
                params![name, paused],
            )?,
            || format!("session {name}"),
        ),
        Change::SetOptions(name, options) => one_row(
            transaction.execute(
                "UPDATE sessions SET options = ?2 WHERE name = ?1",
                params![name, json_text(options)],
            )?,
            || format!("session {name}"),
        ),
        Change::SetPairsMax(pairs_max) => {
            transaction.execute(
                "INSERT OR REPLACE INTO host (id, pairs_max) VALUES (1, ?1)",
                params![pairs_max],
            )?;
            Ok(())
        }
        Change::SetPair(key, field) => set_pair(transaction, key, field),
        Change::Lock(lock) => add_lock(transaction, lock),
        Change::MoveLock(lock) => {
            transaction.execute("DELETE FROM locks WHERE key = ?1", params![lock.key])?;
            add_lock(transaction, lock)
        }
        Change::Unlock(key) => {
            transaction.execute("DELETE FROM locks WHERE key = ?1", params![key])?;
            Ok(())
        }
        Change::Note(note) => history::add_note(transaction, note),
        Change::Sample(sample) => samples::add(transaction, sample),
        Change::KeepEstimate {
            volume,
            target,
            estimate,
        } => {
            transaction.execute(
                "INSERT OR REPLACE INTO estimates (volume, target, estimate) VALUES (?1, ?2, ?3)",
                params![volume, target, json_text(estimate)],
            )?;
            Ok(())
        }
    }
}

fn set_seen(transaction: &Transaction<'_>, path: &Path, seen: &Seen) -> Result<(), StoreError> {
    for (table, column, name) in [
        ("volumes", "leg", "volumes.leg"),
        ("pairs", "source", "pairs.source"),
        ("pairs", "target", "pairs.target"),
    ] {
        let mut query = transaction.prepare(&format!("SELECT rowid, {column} FROM {table}"))?;
        let legs = query.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))?;
        let legs: Vec<(i64, String)> = legs.collect::<Result<_, _>>()?;
        for (row, text) in legs {
            let mut leg: LegRow = read::json(text, name)?;
            if leg.set_seen(path, seen) {
                transaction.execute(
                    &format!("UPDATE {table} SET {column} = ?2 WHERE rowid = ?1"),
                    params![row, json_text(&leg)],
                )?;
            }
        }
    }
    Ok(())
}

fn add_volume(transaction: &Transaction<'_>, row: &VolumeRow) -> Result<(), StoreError> {
    transaction.execute(
        "INSERT INTO volumes (name, volume_id, state, leg, size_bytes, logical_block_bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            row.name,
            row.volume_id,
            row.state.name(),
            json_text(&row.leg),
            integer(row.size_bytes),
            row.logical_block_bytes,
        ],
    )?;
    Ok(())
}

fn add_session(transaction: &Transaction<'_>, row: &SessionRow) -> Result<(), StoreError> {
    let live: bool = transaction.query_row(
        "SELECT EXISTS (SELECT 1 FROM pairs WHERE session = ?1 AND phase NOT IN ('committed', 'cancelled'))",
        params![row.name],
        |found| found.get(0),
    )?;
    if !live {
        transaction.execute("DELETE FROM sessions WHERE name = ?1", params![row.name])?;
    }
    transaction.execute(
        "INSERT INTO sessions (name, id, created_at_ms, options, paused) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            row.name,
            row.id,
            integer(row.created_at_ms),
            json_text(&row.options),
            row.paused
        ],
    )?;
    for (position, pair) in row.pairs.iter().enumerate() {
        add_pair(transaction, &row.name, position, pair)?;
    }
    Ok(())
}

fn add_pair(
    transaction: &Transaction<'_>,
    session: &str,
    position: usize,
    pair: &PairRow,
) -> Result<(), StoreError> {
    transaction.execute(
        "INSERT INTO pairs (session, position, volume, source, target, target_contents, size_bytes, phase, authoritative, copied_bytes, last_pause_us, problem, verification,
            retired, copy_of, estimate, begun_ms, in_sync_ms, switched_ms, unreadable)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
        params![
            session,
            position as i64,
            pair.volume,
            json_text(&pair.source),
            json_text(&pair.target),
            pair.target_contents,
            integer(pair.size_bytes),
            pair.phase.name(),
            side_text(pair.authoritative),
            integer(pair.copied_bytes),
            pair.last_pause_us.map(integer),
            pair.problem,
            pair.verification.as_ref().map(json_text),
            pair.retired.as_ref().map(json_text),
            pair.copy_of.as_ref().map(json_text),
            pair.progress.estimate.as_ref().map(json_text),
            pair.progress.begun_ms.map(integer),
            pair.progress.in_sync_ms.map(integer),
            pair.progress.switched_ms.map(integer),
            json_text(&pair.unreadable),
        ],
    )?;
    Ok(())
}

fn set_pair(
    transaction: &Transaction<'_>,
    key: &PairKey,
    field: &PairField,
) -> Result<(), StoreError> {
    let set = |column: &str, value: &dyn rusqlite::ToSql| {
        let changed = transaction.execute(
            &format!("UPDATE pairs SET {column} = ?3 WHERE session = ?1 AND position = ?2"),
            params![key.session, key.position as i64, value],
        )?;
        one_row(changed, || {
            format!("pair {} of session {}", key.position, key.session)
        })
    };
    match field {
        PairField::Phase(phase) => set("phase", &phase.name()),
        PairField::Authoritative(side) => set("authoritative", &side_text(*side)),
        PairField::CopiedBytes(bytes) => set("copied_bytes", &integer(*bytes)),
        PairField::LastPause(pause_us) => set("last_pause_us", &integer(*pause_us)),
        PairField::Problem(problem) => set("problem", problem),
        PairField::Verification(found) => set("verification", &json_text(found)),
        PairField::CopyOf(copy_of) => set("copy_of", &copy_of.as_ref().map(json_text)),
        PairField::Unreadable(parts) => set("unreadable", &json_text(parts)),
        PairField::Retired(retired) => set("retired", &retired.as_ref().map(json_text)),
        PairField::Begun(at_ms) => set("begun_ms", &integer(*at_ms)),
        PairField::InSync(at_ms) => set("in_sync_ms", &at_ms.map(integer)),
        PairField::Switched(at_ms) => set("switched_ms", &at_ms.map(integer)),
    }
}

fn add_lock(transaction: &Transaction<'_>, lock: &Lock) -> Result<(), StoreError> {
    let added = transaction.execute(
        "INSERT INTO locks (key, path, holder) VALUES (?1, ?2, ?3)",
        params![lock.key, path_text(&lock.path)?, lock.holder],
    );
    match added {
        Ok(_) => Ok(()),
        Err(rusqlite::Error::SqliteFailure(failure, _))
            if failure.code == ErrorCode::ConstraintViolation =>
        {
            let holder = transaction
                .query_row(
                    "SELECT holder FROM locks WHERE key = ?1",
                    params![lock.key],
                    |row| row.get(0),
                )
                .optional()?
                .unwrap_or_default();
            Err(StoreError::Locked {
                path: lock.path.clone(),
                holder,
            })
        }
        Err(error) => Err(error.into()),
    }
}

fn one_row(changed: usize, object: impl FnOnce() -> String) -> Result<(), StoreError> {
    if changed == 1 {
        Ok(())
    } else {
        Err(StoreError::Missing(object()))
    }
}

fn path_text(path: &Path) -> Result<&str, StoreError> {
    path.to_str()
        .ok_or_else(|| StoreError::NotUtf8(path.to_owned()))
}

fn json_text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("rows have only text, numbers, truth values and options")
}

/// Converts to SQLite's signed integers; sizes and times stay far below the limit.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

const fn side_text(side: Side) -> &'static str {
    match side {
        Side::Source => "source",
        Side::Target => "target",
    }
}

/// Creates the database, durably, for this user only; SQLite gives its log the same mode. Errors
/// are ignored: opening the database reports them.
fn make_private(path: &Path) {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(PRIVATE)
        .open(path);
    if let Ok(file) = file {
        let _ = file.set_permissions(std::fs::Permissions::from_mode(PRIVATE));
        let _ = path
            .parent()
            .map(|folder| std::fs::File::open(folder).and_then(|folder| folder.sync_all()));
    }
}

#[cfg(test)]
mod tests;
