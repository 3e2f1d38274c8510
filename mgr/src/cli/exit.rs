//! The exit codes of `shunt`: one table for the help, the man pages and the code.

/// How a command of `shunt` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// The command is done, or there was nothing to do.
    Done = 0,
    /// Something failed on the way.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A safety check or the current state forbids the command; nothing changed.
    Refused = 3,
    /// There is no such volume or session.
    NotFound = 4,
    /// shuntd cannot be reached.
    Unreachable = 5,
    /// A time limit ran out.
    TimeRanOut = 6,
}

/// One row of [`TABLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The outcome that the row describes.
    pub exit: Exit,
    /// The name of the outcome in `"kind"` of an error record.
    pub kind: &'static str,
    /// The meaning of the code, for people.
    pub meaning: &'static str,
}

/// Every exit code, in order. The index of a row is its code.
pub const TABLE: [Row; 7] = [
    Row {
        exit: Exit::Done,
        kind: "done",
        meaning: "done, or already in effect",
    },
    Row {
        exit: Exit::Failed,
        kind: "failed",
        meaning: "something failed on the way",
    },
    Row {
        exit: Exit::Usage,
        kind: "usage",
        meaning: "the command line is wrong",
    },
    Row {
        exit: Exit::Refused,
        kind: "refused",
        meaning: "refused: a safety check or the current state forbids it; nothing changed",
    },
    Row {
        exit: Exit::NotFound,
        kind: "not-found",
        meaning: "no such volume or session",
    },
    Row {
        exit: Exit::Unreachable,
        kind: "unreachable",
        meaning: "shuntd cannot be reached, or speaks another protocol",
    },
    Row {
        exit: Exit::TimeRanOut,
        kind: "time-ran-out",
        meaning: "the time ran out",
    },
];

impl Exit {
    /// The code that the process ends with.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The row of [`TABLE`].
    #[must_use]
    pub const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

/// [`TABLE`] as a section of the help and of the man pages.
#[must_use]
pub fn help_section() -> String {
    let mut text = String::from("EXIT STATUS:");
    for row in &TABLE {
        text.push_str(&format!("\n  {}  {}", row.exit.code(), row.meaning));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_a_row_is_its_code() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(usize::from(row.exit.code()), index);
            assert_eq!(row.exit.row(), row);
        }
    }

    #[test]
    fn kinds_are_unique() {
        let kinds: std::collections::BTreeSet<_> = TABLE.iter().map(|row| row.kind).collect();
        assert_eq!(kinds.len(), TABLE.len());
    }
}
