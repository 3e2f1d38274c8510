//! The tables, as a list of schema steps. `user_version` of a database is the number of its schema.
//!
//! | table | holds |
//! |---|---|
//! | volumes | every volume, from before it is attached until it is gone |
//! | open_map | the device that an open of a volume's name gets |
//! | sessions, pairs | what the operator asked for; the state is derived, never stored |
//! | locks | the LUNs in use, each once |
//! | history | one line for everything that changed something; the event is JSON |
//! | history_name | the name of the history: a random number that no other database has |
//! | host | the settings of this host; no row until one is set |
//!
//! Times are milliseconds since 1970. Identities are `lun::Identity` as JSON, options
//! `SessionOptions`, a verification `Verification`, an event `HistoryEvent`.

use rusqlite::Connection;

use super::StoreError;

/// The number of the schema that the first step makes. Databases with a lower number were made by
/// programs that were never released.
const FIRST: i64 = 3;

/// Every step, in order. A step is never changed after a release: a change is a new step.
const STEPS: [&str; 1] = ["
CREATE TABLE volumes (
    name TEXT PRIMARY KEY,
    volume_id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('attaching', 'attached', 'detaching')),
    leg TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    logical_block_bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE open_map (
    volume TEXT PRIMARY KEY REFERENCES volumes (name) ON DELETE CASCADE,
    kernel_device TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    leg TEXT NOT NULL
) STRICT;

CREATE TABLE sessions (
    name TEXT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    created_at_ms INTEGER NOT NULL,
    options TEXT NOT NULL,
    paused INTEGER NOT NULL
) STRICT;

CREATE TABLE pairs (
    session TEXT NOT NULL REFERENCES sessions (name) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    volume TEXT NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    target_contents TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    phase TEXT NOT NULL,
    authoritative TEXT NOT NULL CHECK (authoritative IN ('source', 'target')),
    copied_bytes INTEGER NOT NULL,
    last_pause_us INTEGER,
    problem TEXT,
    verification TEXT,
    retired TEXT,
    copy_of TEXT,
    unreadable TEXT NOT NULL,
    estimate TEXT,
    begun_ms INTEGER,
    in_sync_ms INTEGER,
    switched_ms INTEGER,
    PRIMARY KEY (session, position)
) STRICT;

CREATE UNIQUE INDEX pairs_one_live_session_a_volume ON pairs (volume)
    WHERE phase NOT IN ('committed', 'cancelled');

CREATE TABLE locks (
    key TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    holder TEXT NOT NULL
) STRICT;

CREATE TABLE estimates (
    volume TEXT NOT NULL REFERENCES volumes (name) ON DELETE CASCADE,
    target TEXT NOT NULL,
    estimate TEXT NOT NULL,
    PRIMARY KEY (volume, target)
) STRICT;

CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    session TEXT,
    volume TEXT,
    event TEXT NOT NULL,
    who INTEGER
) STRICT;

CREATE INDEX history_session ON history (session, id);

CREATE TABLE history_name (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL
) STRICT;

INSERT INTO history_name (id, name) VALUES (1, lower(hex(randomblob(4))));

CREATE TABLE samples (
    session TEXT NOT NULL,
    position INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    dirty_bytes INTEGER NOT NULL,
    copy_rate INTEGER NOT NULL,
    read_rate INTEGER NOT NULL,
    write_rate INTEGER NOT NULL,
    median_us INTEGER,
    p99_us INTEGER,
    throttle INTEGER NOT NULL,
    PRIMARY KEY (session, position, at_ms),
    FOREIGN KEY (session, position) REFERENCES pairs (session, position) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE host (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    pairs_max INTEGER NOT NULL
) STRICT;
"];

/// The number of the schema that the last step makes.
pub(crate) const VERSION: i64 = FIRST + STEPS.len() as i64 - 1;

/// Brings a database to [`VERSION`], each step in a transaction of its own.
pub(crate) fn step_up(connection: &mut Connection) -> Result<(), StoreError> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > VERSION {
        return Err(StoreError::Newer {
            found,
            known: VERSION,
        });
    }
    if found != 0 && found < FIRST {
        return Err(StoreError::Older {
            found,
            first: FIRST,
        });
    }
    for (number, step) in (FIRST..).zip(STEPS).filter(|(number, _)| *number > found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_database_is_brought_to_the_last_step() {
        let mut connection = Connection::open_in_memory().unwrap();
        step_up(&mut connection).unwrap();
        step_up(&mut connection).unwrap();
        let version: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap();
        assert_eq!(version, VERSION);
    }

    #[test]
    fn a_database_of_a_newer_program_or_of_one_before_the_first_release_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection
            .pragma_update(None, "user_version", VERSION + 1)
            .unwrap();
        let error = step_up(&mut connection).unwrap_err();
        assert!(matches!(error, StoreError::Newer { .. }), "{error}");
        connection
            .pragma_update(None, "user_version", FIRST - 1)
            .unwrap();
        let error = step_up(&mut connection).unwrap_err();
        assert!(matches!(error, StoreError::Older { .. }), "{error}");
    }
}
