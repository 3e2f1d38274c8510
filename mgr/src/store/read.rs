//! Converts rows to values. A row that this program did not write is an error, never a guess.

use std::path::PathBuf;

use migration_core::pair::Phase;
use migration_core::route::Side;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;

use super::{
    Estimate, Lock, Model, OpenMapRow, PairRow, Progress, SessionRow, StoreError, VolumeRow,
    VolumeState,
};

pub(super) fn model(connection: &Connection) -> Result<Model, StoreError> {
    let mut model = Model::default();
    let mut query = connection.prepare(
        "SELECT name, volume_id, state, leg, size_bytes, logical_block_bytes FROM volumes",
    )?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let mut volume = volume(row)?;
        volume.open_map = open_map(connection, &volume.name)?;
        model.volumes.insert(volume.name.clone(), volume);
    }
    let mut query =
        connection.prepare("SELECT name, id, created_at_ms, options, paused FROM sessions")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let session = SessionRow {
            id: row.get(1)?,
            created_at_ms: unsigned(row.get(2)?, "sessions.created_at_ms")?,
            options: json(row.get(3)?, "sessions.options")?,
            paused: row.get(4)?,
            pairs: pairs(connection, &name)?,
            name,
        };
        model.sessions.insert(session.name.clone(), session);
    }
    let chosen = connection
        .query_row("SELECT pairs_max FROM host", [], |row| row.get(0))
        .optional()?;
    model.pairs_max = chosen.unwrap_or(model.pairs_max);
    Ok(model)
}

pub(super) fn lock(connection: &Connection, key: &str) -> Result<Option<Lock>, StoreError> {
    let found = connection
        .query_row(
            "SELECT key, path, holder FROM locks WHERE key = ?1",
            params![key],
            lock_row,
        )
        .optional()?;
    Ok(found)
}

pub(super) fn locks(connection: &Connection) -> Result<Vec<Lock>, StoreError> {
    let mut statement = connection.prepare("SELECT key, path, holder FROM locks ORDER BY key")?;
    let locks = statement.query_map([], lock_row)?;
    Ok(locks.collect::<Result<_, _>>()?)
}

fn lock_row(row: &Row<'_>) -> rusqlite::Result<Lock> {
    Ok(Lock {
        key: row.get(0)?,
        path: PathBuf::from(row.get::<_, String>(1)?),
        holder: row.get(2)?,
    })
}

pub(super) fn estimate(
    connection: &Connection,
    volume: &str,
    target: &str,
) -> Result<Option<Estimate>, StoreError> {
    let found = connection
        .query_row(
            "SELECT estimate FROM estimates WHERE volume = ?1 AND target = ?2",
            params![volume, target],
            |row| row.get(0),
        )
        .optional()?;
    json_or_none(found, "estimates.estimate")
}

fn volume(row: &Row<'_>) -> Result<VolumeRow, StoreError> {
    let state: String = row.get(2)?;
    Ok(VolumeRow {
        name: row.get(0)?,
        volume_id: row.get(1)?,
        state: VolumeState::from_name(&state).ok_or(StoreError::Unreadable {
            column: "volumes.state",
            value: state,
        })?,
        leg: json(row.get(3)?, "volumes.leg")?,
        size_bytes: unsigned(row.get(4)?, "volumes.size_bytes")?,
        logical_block_bytes: row.get(5)?,
        open_map: None,
    })
}

fn open_map(connection: &Connection, volume: &str) -> Result<Option<OpenMapRow>, StoreError> {
    let mut query =
        connection.prepare("SELECT kernel_device, boot_id, leg FROM open_map WHERE volume = ?1")?;
    let mut rows = query.query(params![volume])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let leg: String = row.get(2)?;
    Ok(Some(OpenMapRow {
        kernel_device: PathBuf::from(row.get::<_, String>(0)?),
        boot_id: row.get(1)?,
        leg: leg.parse().map_err(|_| StoreError::Unreadable {
            column: "open_map.leg",
            value: leg,
        })?,
    }))
}

fn pairs(connection: &Connection, session: &str) -> Result<Vec<PairRow>, StoreError> {
    let mut query = connection.prepare(
        "SELECT volume, source, target, target_contents, size_bytes, phase, authoritative, copied_bytes,
            last_pause_us, problem, verification, retired, copy_of, estimate, begun_ms,
            in_sync_ms, switched_ms, unreadable
         FROM pairs WHERE session = ?1 ORDER BY position",
    )?;
    let mut rows = query.query(params![session])?;
    let mut pairs = Vec::new();
    while let Some(row) = rows.next()? {
        pairs.push(pair(row)?);
    }
    Ok(pairs)
}

fn pair(row: &Row<'_>) -> Result<PairRow, StoreError> {
    let phase: String = row.get(5)?;
    let authoritative: String = row.get(6)?;
    Ok(PairRow {
        volume: row.get(0)?,
        source: json(row.get(1)?, "pairs.source")?,
        target: json(row.get(2)?, "pairs.target")?,
        target_contents: row.get(3)?,
        size_bytes: unsigned(row.get(4)?, "pairs.size_bytes")?,
        phase: Phase::from_name(&phase).ok_or(StoreError::Unreadable {
            column: "pairs.phase",
            value: phase,
        })?,
        authoritative: match authoritative.as_str() {
            "source" => Side::Source,
            "target" => Side::Target,
            _ => {
                return Err(StoreError::Unreadable {
                    column: "pairs.authoritative",
                    value: authoritative,
                });
            }
        },
        copied_bytes: unsigned(row.get(7)?, "pairs.copied_bytes")?,
        last_pause_us: time(row.get(8)?, "pairs.last_pause_us")?,
        problem: row.get(9)?,
        verification: json_or_none(row.get(10)?, "pairs.verification")?,
        retired: json_or_none(row.get(11)?, "pairs.retired")?,
        copy_of: json_or_none(row.get(12)?, "pairs.copy_of")?,
        unreadable: json(row.get(17)?, "pairs.unreadable")?,
        progress: Progress {
            estimate: json_or_none(row.get(13)?, "pairs.estimate")?,
            begun_ms: time(row.get(14)?, "pairs.begun_ms")?,
            in_sync_ms: time(row.get(15)?, "pairs.in_sync_ms")?,
            switched_ms: time(row.get(16)?, "pairs.switched_ms")?,
        },
    })
}

fn time(value: Option<i64>, column: &'static str) -> Result<Option<u64>, StoreError> {
    value.map(|value| unsigned(value, column)).transpose()
}

/// Parses a column that was stored as JSON.
pub(super) fn json<T: DeserializeOwned>(
    text: String,
    column: &'static str,
) -> Result<T, StoreError> {
    serde_json::from_str(&text).map_err(|_| StoreError::Unreadable {
        column,
        value: text,
    })
}

fn json_or_none<T: DeserializeOwned>(
    text: Option<String>,
    column: &'static str,
) -> Result<Option<T>, StoreError> {
    text.map(|text| json(text, column)).transpose()
}

pub(super) fn unsigned(value: i64, column: &'static str) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| StoreError::Unreadable {
        column,
        value: value.to_string(),
    })
}
