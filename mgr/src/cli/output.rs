//! Standard output and standard error.

use std::io::{self, Write};

use migration_proto::manager::Record;

use super::args::Global;
use super::problem::Stop;
use super::render;
use crate::units::printable;

pub(super) fn print_records(
    global: &Global,
    records: &[Record],
    human: fn(&[Record]) -> String,
) -> Result<(), Stop> {
    if global.json {
        return print(render::json_lines(records).as_bytes());
    }
    print(human(records).as_bytes())
}

/// Writes data to standard output.
pub(super) fn print(data: &[u8]) -> Result<(), Stop> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(data)?;
    Ok(stdout.flush()?)
}

/// Writes a line for people to standard error, unless `--quiet`; errors of the write are ignored.
pub(super) fn say(global: &Global, line: &str) {
    if !global.quiet {
        let _ = writeln!(io::stderr(), "{}", printable(line));
    }
}
