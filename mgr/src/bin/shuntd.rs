//! `shuntd`: the control plane of Shunt. Runs in the foreground.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mgr::daemon::{self, Config};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The program that serves a volume.
const UBLK_TARGET: &str = "ublk-target";

/// Moves live LUNs: keeps the volumes of this host running and carries out the commands of `shunt`.
///
/// Runs in the foreground until SIGTERM or SIGINT; volumes continue without it. Needs no
/// configuration.
/// Log messages go to standard error; SHUNT_LOG sets what is logged (such as `debug`).
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 ended by a signal, 1 could not start, 2 wrong arguments."
)]
struct Arguments {
    /// Where the database, the map files and the logs of the volumes are kept [default:
    /// $SHUNT_STATE_DIR, or /var/lib/shunt]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// Where the sockets are made [default: $SHUNT_RUNTIME_DIR, or /run/shunt]
    #[arg(long, value_name = "DIRECTORY")]
    runtime_dir: Option<PathBuf>,
    /// The program that serves a volume [default: ublk-target beside shuntd, else on PATH]
    #[arg(long, value_name = "PATH")]
    ublk_target: Option<PathBuf>,
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
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shuntd: {}", migration_proto::chain::text(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    let absolute = |path: PathBuf| {
        std::path::absolute(&path).with_context(|| format!("{} is no path", path.display()))
    };
    let ublk_target = match arguments.ublk_target {
        Some(path) => absolute(path)?,
        None => find_ublk_target(),
    };
    let state_directory = given_or(arguments.state_dir, "SHUNT_STATE_DIR", "/var/lib/shunt");
    let runtime_directory = given_or(arguments.runtime_dir, "SHUNT_RUNTIME_DIR", "/run/shunt");
    let config = Config::new(
        absolute(state_directory)?,
        absolute(runtime_directory)?,
        ublk_target,
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let shutdown = async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            info!(signal = name, "ending");
        };
        daemon::run(config, shutdown).await?;
        anyhow::Ok(())
    });
    // Does not wait for threads: one may be blocked in a device that does not answer.
    runtime.shutdown_background();
    result
}

/// The value of the argument, else of the environment variable, else the default.
fn given_or(argument: Option<PathBuf>, variable: &str, default: &str) -> PathBuf {
    let from_environment = || {
        std::env::var_os(variable)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    argument
        .or_else(from_environment)
        .unwrap_or_else(|| PathBuf::from(default))
}

/// The path of ublk-target: beside this program if it is there, else its name, to be found on PATH.
fn find_ublk_target() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.join(UBLK_TARGET)));
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(UBLK_TARGET))
}
