//! Runs the commands for a volume.

use migration_proto::luns::LunPaths;
use migration_proto::manager::Request;

use super::change;
use crate::cli::args::{Global, VolumeCommand};
use crate::cli::exit::Exit;
use crate::cli::problem::{Problem, Stop};

/// Runs a command of this group.
pub(super) fn run(global: &Global, command: VolumeCommand) -> Result<(), Stop> {
    match command {
        VolumeCommand::Attach {
            volume,
            luns,
            accept_weak_identity,
        } => {
            let luns = LunPaths::new(luns).map_err(|cause| {
                let next = "name each LUN by its path";
                Problem::failed(format!("volume {volume}"), cause, next).with_exit(Exit::Usage)
            })?;
            let request = Request::Attach {
                volume,
                luns,
                accept_weak_identity,
            };
            change(global, &request)
        }
        VolumeCommand::Detach { volume } => change(global, &Request::Detach { volume }),
    }
}
