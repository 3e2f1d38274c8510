//! The history: one line for everything that changed something.

use migration_proto::manager::Cursor;
use rusqlite::{Connection, OptionalExtension, Rows, Transaction, params};

use super::read::{json, unsigned};
use super::{Note, Store, StoreError, integer, json_text};

/// The most lines of history that are kept.
const HISTORY_LINES_MAX: i64 = 100_000;

/// Why it is not known what came after a place in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The place is in the history of another database.
    #[error("the database was made again since then: the place is in another history")]
    OtherHistory,
    /// Lines after the place are no longer kept.
    #[error("it is too old: only the last {HISTORY_LINES_MAX} lines of the history are kept")]
    TooOld,
    /// The history does not have the line of the place.
    #[error("the history does not have that line: an older database was put back")]
    OlderDatabase,
}

impl Store {
    /// The last lines of the history, oldest first; only those of `session` if it is named.
    ///
    /// # Errors
    /// Errors of SQLite.
    pub fn history(&self, session: Option<&str>, lines_max: u32) -> Result<Vec<Note>, StoreError> {
        last_lines(&self.connection, &self.history, session, lines_max)
    }

    /// The end of the history.
    ///
    /// # Errors
    /// Errors of SQLite; a row that this program did not write.
    pub fn history_end(&self) -> Result<Cursor, StoreError> {
        let last = self.history(None, 1)?.pop();
        Ok(last.and_then(|note| note.cursor).unwrap_or(Cursor {
            history: self.history.clone(),
            line: 0,
            at_ms: 0,
        }))
    }

    /// The first lines of the history after a place in it, oldest first; only those of `session` if
    /// it is named.
    ///
    /// # Errors
    /// Errors of SQLite; a row that this program did not write.
    pub fn history_after(
        &self,
        after: &Cursor,
        session: Option<&str>,
        lines_max: u32,
    ) -> Result<Result<Vec<Note>, Lost>, StoreError> {
        if let Some(lost) = why_lost(&self.connection, &self.history, after)? {
            return Ok(Err(lost));
        }
        lines_after(&self.connection, after, session, lines_max).map(Ok)
    }
}

/// Adds a line, and removes the oldest one if there are too many.
pub(super) fn add_note(transaction: &Transaction<'_>, note: &Note) -> Result<(), StoreError> {
    transaction.execute(
        "INSERT INTO history (at_ms, session, volume, event, who) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            integer(note.at_ms),
            note.session,
            note.volume,
            json_text(&note.event),
            note.who
        ],
    )?;
    transaction.execute(
        "DELETE FROM history WHERE id <= ?1 - ?2",
        params![transaction.last_insert_rowid(), HISTORY_LINES_MAX],
    )?;
    Ok(())
}

pub(super) fn name_of(connection: &Connection) -> Result<String, StoreError> {
    Ok(connection.query_row("SELECT name FROM history_name", [], |row| row.get(0))?)
}

/// The last lines of the history called `name`, oldest first.
fn last_lines(
    connection: &Connection,
    name: &str,
    session: Option<&str>,
    lines_max: u32,
) -> Result<Vec<Note>, StoreError> {
    let mut query = connection.prepare(&select(session, "ORDER BY id DESC"))?;
    let mut notes = notes(query.query(params![0, lines_max, session])?, name)?;
    notes.reverse();
    Ok(notes)
}

/// The first lines of the history after a place in it.
fn lines_after(
    connection: &Connection,
    after: &Cursor,
    session: Option<&str>,
    lines_max: u32,
) -> Result<Vec<Note>, StoreError> {
    let mut query = connection.prepare(&select(session, "ORDER BY id"))?;
    let line = integer(after.line);
    notes(
        query.query(params![line, lines_max, session])?,
        &after.history,
    )
}

/// The statement for at most `?2` lines after line `?1`; those of session `?3` if there is one.
/// Without a session the text does not name it: SQLite would look for the session's lines among
/// all lines, instead of in the index.
pub(super) fn select(session: Option<&str>, order: &str) -> String {
    let of_session = match session {
        Some(_) => "session = ?3",
        None => "?3 IS NULL",
    };
    format!(
        "SELECT at_ms, session, volume, event, who, id FROM history
         WHERE id > ?1 AND {of_session} {order} LIMIT ?2"
    )
}

fn notes(mut rows: Rows<'_>, history: &str) -> Result<Vec<Note>, StoreError> {
    let mut notes = Vec::new();
    while let Some(row) = rows.next()? {
        let at_ms = unsigned(row.get(0)?, "history.at_ms")?;
        notes.push(Note {
            at_ms,
            session: row.get(1)?,
            volume: row.get(2)?,
            event: json(row.get(3)?, "history.event")?,
            who: row.get(4)?,
            cursor: Some(Cursor {
                history: history.to_owned(),
                line: unsigned(row.get(5)?, "history.id")?,
                at_ms,
            }),
        });
    }
    Ok(notes)
}

/// Why it is not known what came after a place in the history called `name`; `None` if it is known.
fn why_lost(
    connection: &Connection,
    name: &str,
    place: &Cursor,
) -> Result<Option<Lost>, StoreError> {
    if place.history != name {
        return Ok(Some(Lost::OtherHistory));
    }
    let first: Option<i64> =
        connection.query_row("SELECT min(id) FROM history", [], |row| row.get(0))?;
    let line = integer(place.line);
    if line == 0 {
        return Ok(first.is_some_and(|first| first > 1).then_some(Lost::TooOld));
    }
    let at_ms: Option<i64> = connection
        .query_row(
            "SELECT at_ms FROM history WHERE id = ?1",
            params![line],
            |row| row.get(0),
        )
        .optional()?;
    Ok(match at_ms {
        Some(at_ms) if at_ms == integer(place.at_ms) => None,
        None if first.is_some_and(|first| line < first) => Some(Lost::TooOld),
        Some(_) | None => Some(Lost::OlderDatabase),
    })
}
