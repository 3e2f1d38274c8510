//! Runs the commands for a session between its start and its end.

use migration_proto::manager::Request;

use super::change;
use crate::cli::args::{CourseCommand, Global};
use crate::cli::problem::Stop;
use crate::cli::verify;

/// Runs a command of this group.
pub(super) fn run(global: &Global, command: CourseCommand) -> Result<(), Stop> {
    match command {
        CourseCommand::Pause { session } => change(global, &Request::Pause { session }),
        CourseCommand::Resume { session } => change(global, &Request::Resume { session }),
        CourseCommand::Verify {
            session,
            repair,
            no_wait,
        } => verify::verify(global, session, repair, !no_wait),
        CourseCommand::Switch { session, pause } => {
            let max_pause_ms = pause.milliseconds();
            change(
                global,
                &Request::Switch {
                    session,
                    max_pause_ms,
                },
            )
        }
        CourseCommand::Undo { session, pause } => {
            let max_pause_ms = pause.milliseconds();
            change(
                global,
                &Request::Undo {
                    session,
                    max_pause_ms,
                },
            )
        }
        CourseCommand::Split { session, pause } => {
            let max_pause_ms = pause.milliseconds();
            change(
                global,
                &Request::Split {
                    session,
                    max_pause_ms,
                },
            )
        }
    }
}
