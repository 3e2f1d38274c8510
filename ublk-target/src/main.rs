//! The program `ublk-target`: shuntd starts one process for each volume.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use migration_core::route::Side;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};
use ublk_target::{
    custody::{Inherited, InheritedArgument},
    serve::{self, Options},
};

/// The data plane of Shunt. shuntd starts it; start it by hand for diagnosis only.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create the map file of a new volume; reads the volume's descriptor as JSON from standard
    /// input.
    Format {
        /// The file to create; an existing one is refused.
        #[arg(long)]
        map: PathBuf,
        /// The only leg that the new volume uses.
        #[arg(long, value_enum, default_value_t = Leg::Source)]
        leg: Leg,
    },
    /// Print the contents of a map file as JSON: the role, the descriptor, and what is damaged.
    /// Changes nothing.
    Describe {
        /// The map file.
        #[arg(long)]
        map: PathBuf,
    },
    /// Serve a volume until it is stopped. Exits with 3 if another process serves the volume, with
    /// 4 if the map file is damaged, with 5 if the map file belongs to another volume.
    Serve {
        /// The map file.
        #[arg(long)]
        map: PathBuf,
        /// The control socket.
        #[arg(long)]
        socket: PathBuf,
        /// The UUID of the volume; the map file of any other volume is refused.
        #[arg(long)]
        volume_id: Option<String>,
        /// The last process's claim on the volume's LUNs, and the LUNs' descriptors:
        /// CLAIM:DESCRIPTOR,DESCRIPTOR... For shuntd.
        #[arg(long, hide = true)]
        inherited: Option<InheritedArgument>,
        /// Hardware queues: at most one for each processor, and only one with a driver that cannot
        /// recover several.
        #[arg(long, default_value_t = 1)]
        queues: u16,
        /// Maximum number of requests in progress in each queue.
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
    let filter = std::env::var("SHUNT_LOG").ok();
    let filter = filter.and_then(|text| text.parse::<Targets>().ok());
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .finish()
        .with(filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO)))
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
