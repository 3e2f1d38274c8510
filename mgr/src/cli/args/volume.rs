//! Commands for a volume: attach and detach.

use std::path::PathBuf;

use clap::{Subcommand, ValueHint};

use crate::cli::values::absolute_path;

/// A command that puts a volume over LUNs, or removes it.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Put a volume over a LUN, or over several
    ///
    /// Applications then open /dev/shunt/VOLUME instead of the LUN. The data of the LUN stays as it
    /// is. A LUN that is mounted, in use or already part of a volume is refused. Several LUNs are
    /// one volume, end to end, in the order in which they are named.
    #[command(after_help = "EXAMPLES:
  shunt attach db /dev/disk/by-id/wwn-0x5000c500a0b1c2d3
  shunt attach big /dev/sdb /dev/sdc
  mount /dev/shunt/db /var/lib/postgresql")]
    Attach {
        /// The name of the new volume
        volume: String,
        /// Its LUN: a block device, or a regular file for trials; or several, end to end
        #[arg(required = true, value_name = "LUN", value_parser = absolute_path, value_hint = ValueHint::FilePath)]
        luns: Vec<PathBuf>,
        /// Accept a LUN that only its size distinguishes from others (no world-wide name, serial or
        /// UUID), for this boot, and later as long as its contents show that it is the same LUN;
        /// for a volume that is attached: accept the LUN that is there now
        #[arg(long)]
        accept_weak_identity: bool,
    },
    /// Remove a volume
    ///
    /// The authoritative LUN keeps the data and can be used directly again. A volume that is open,
    /// or part of a session that has not ended, is refused.
    #[command(after_help = "EXAMPLES:
  umount /var/lib/postgresql
  shunt detach db")]
    Detach {
        /// The volume
        volume: String,
    },
}
