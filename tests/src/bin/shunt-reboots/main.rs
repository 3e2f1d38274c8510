//! Resets a machine repeatedly, changes one of its LUNs before it boots, and compares every byte
//! with a log that the host keeps.
//!
//! The host boots a virtual machine with both LUNs and a disk with Shunt's state. The guest waits
//! until the pair is in sync, runs an application that verifies what it reads, and changes sides at
//! least twice. After the boot and after each change it hands the contents of the volume to the
//! host. Then it writes until the host ends it.
#![allow(clippy::expect_used)]

mod guest;
mod host;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

use guest::{Load, guest};
use host::host;

/// Resets a machine and changes its LUNs before it boots
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Boot machines and end them
    Host(Plan),
    /// Run inside the machine
    Guest {
        /// Folder that the host sees too
        #[arg(long)]
        folder: PathBuf,
        /// Number of this life of the machine with these LUNs
        #[arg(long)]
        life: u64,
        /// How long the application runs between the boot and the first change of sides
        #[arg(long)]
        load_seconds: u64,
        /// How long each writer waits after a flush, in milliseconds
        #[arg(long)]
        think_ms: u64,
        /// Number of changes of sides
        #[arg(long)]
        changes: u64,
    },
}

#[derive(Debug, Parser)]
struct Plan {
    /// The kernel
    #[arg(long)]
    kernel: String,
    /// Path of scripts/vm
    #[arg(long)]
    vm: PathBuf,
    /// Number of reboots; the mishaps between them are used in turn
    #[arg(long)]
    reboots: u64,
    /// How long the application runs after each boot
    #[arg(long, default_value_t = 300)]
    load_seconds: u64,
    /// How long each writer waits after a flush during that time, in milliseconds
    #[arg(long, default_value_t = 0)]
    think_ms: u64,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const VOLUME: &str = "db";
const SESSION: &str = "move";
/// The line that reports that the guest has changed sides and writes until the host ends it.
const READY: &str = "now";
/// The time limit until the volume is served after a boot. The machine is emulated and shared.
const SERVED_WITHIN: Duration = Duration::from_secs(600);
/// The time limit until both legs are known to be equal.
const IN_SYNC_WITHIN: Duration = Duration::from_secs(900);

fn main() -> ExitCode {
    match Arguments::parse().role {
        Role::Host(plan) => host(&plan),
        Role::Guest {
            folder,
            life,
            load_seconds,
            think_ms,
            changes,
        } => {
            let load = Load {
                length: Duration::from_secs(load_seconds),
                think: Duration::from_millis(think_ms),
            };
            guest(&folder, life, load, changes)
        }
    }
}
