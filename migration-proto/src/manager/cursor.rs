//! A place in the history.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The separator of the parts of a cursor.
const SEPARATOR: char = '-';

/// A place in the history: after a line, or before the first one. Written as
/// `HISTORY-LINE-MOMENT`; clients treat the text as one word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cursor {
    /// The name of the history, in hexadecimal digits. A database that is made again has another
    /// history.
    pub history: String,
    /// The number of the line, counted from 1; 0: before the first line.
    pub line: u64,
    /// The moment of the line, in milliseconds since the Unix epoch; 0 before the first line. Two
    /// lines with one number differ in it; they exist if an older database is put back.
    pub at_ms: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            history,
            line,
            at_ms,
        } = self;
        write!(f, "{history}{SEPARATOR}{line}{SEPARATOR}{at_ms}")
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.split(SEPARATOR);
            let history = parts.next()?.to_owned();
            let is_name = !history.is_empty() && history.chars().all(|c| c.is_ascii_hexdigit());
            let mut number = || parts.next()?.parse().ok();
            let cursor = Self {
                history,
                line: number()?,
                at_ms: number()?,
            };
            (is_name && parts.next().is_none()).then_some(cursor)
        };
        parse().ok_or_else(|| format!("{text:?} is not a cursor, as `shunt events` prints it"))
    }
}

impl TryFrom<String> for Cursor {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cursor> for String {
    fn from(cursor: Cursor) -> Self {
        cursor.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_one_word_and_is_read_as_it_was_written() {
        let text = "9f3a01bc-1042-1763687825123";
        let cursor: Cursor = text.parse().unwrap();
        assert_eq!((cursor.line, cursor.at_ms), (1042, 1_763_687_825_123));
        assert_eq!(cursor.to_string(), text);
        let json = serde_json::to_string(&cursor).unwrap();
        assert_eq!(json, format!("{text:?}"));
        assert_eq!(serde_json::from_str::<Cursor>(&json).unwrap(), cursor);
        for wrong in ["", "7", "a-1", "-1-2", "a-1-2-3", "a--2", "x y-1-2", "a-1-"] {
            wrong.parse::<Cursor>().unwrap_err();
        }
    }
}
