//! The program `ublk-target`: shuntd starts it, one process a volume.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use migration_core::route::Side;
use ublk_target::{
    custody::{Inherited, InheritedArgument},
    serve::{self, Options},
};

/// The data plane of Shunt. It is started by shuntd; by hand only to look for faults.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create the map file of a new volume; its descriptor comes as JSON on standard input.
    Format {
        /// The file to create; an existing one is refused.
        #[arg(long)]
        map: PathBuf,
        /// The only leg that the new volume uses.
        #[arg(long, value_enum, default_value_t = Leg::Source)]
        leg: Leg,
    },
    /// Print what a map file says, as JSON: the role, the descriptor, and what is damaged. Changes nothing.
    Describe {
        /// The map file.
        #[arg(long)]
        map: PathBuf,
    },
    /// Serve a volume until it is stopped. Exits with 3 if another process serves it, with 4 if the
    /// map file is damaged.
    Serve {
        /// The map file.
        #[arg(long)]
        map: PathBuf,
        /// The control socket.
        #[arg(long)]
        socket: PathBuf,
        /// The UUID of the volume; a map file of another one is refused.
        #[arg(long)]
        volume_id: Option<String>,
        /// The claim of the last process of the volume on its LUNs, and the descriptors of them:
        /// CLAIM:DESCRIPTOR,DESCRIPTOR... For shuntd.
        #[arg(long, hide = true)]
        inherited: Option<InheritedArgument>,
        /// Hardware queues; at most one a processor, and one with a driver that cannot recover several.
        #[arg(long, default_value_t = 1)]
        queues: u16,
        /// Requests that a queue can have open.
        #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=1024))]
        queue_depth: u16,
    },
}

/// A leg, on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Leg {
    Source,
    Target,
}

impl From<Leg> for Side {
    fn from(leg: Leg) -> Self {
        match leg {
            Leg::Source => Self::Source,
            Leg::Target => Self::Target,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("SHUNT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let outcome = match arguments.command {
        Command::Format { map, leg } => serve::format(&map, std::io::stdin().lock(), leg.into()),
        Command::Describe { map } => serve::describe(&map, std::io::stdout().lock()),
        Command::Serve {
            map,
            socket,
            volume_id,
            inherited,
            queues,
            queue_depth,
        } => serve::serve(Options {
            map,
            socket,
            volume_id,
            inherited: inherited.as_ref().map(Inherited::take),
            queues,
            queue_depth,
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "ublk-target: {}",
                migration_proto::chain::text(error.as_ref())
            );
            serve::exit_code(&error)
        }
    }
}
