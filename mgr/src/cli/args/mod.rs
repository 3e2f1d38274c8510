//! The definition of the command line: the only source of help, man pages and completions.

mod choices;
mod course;
mod end;
mod record;
mod session;
mod show;
mod volume;

pub use choices::{CutoverChoice, Mode, OnFailure, OnMisfit, RetireMethod, VerifyLevel};
pub use course::{CourseCommand, PauseLimit};
pub use end::{EndCommand, Leg};
pub use record::RecordCommand;
pub use session::{CreateOptions, SessionCommand, SetOptions};
pub use show::ShowCommand;
pub use volume::VolumeCommand;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::cli::exit;
use crate::cli::values::absolute_path;

/// The environment variable with the path of shuntd's socket.
pub const SOCKET_VARIABLE: &str = "SHUNT_SOCKET";

/// The environment variable with the folder of the socket, used without [`SOCKET_VARIABLE`].
pub const RUNTIME_DIR_VARIABLE: &str = "SHUNT_RUNTIME_DIR";

/// The folder of the socket without either variable.
pub const RUNTIME_DIR_DEFAULT: &str = "/run/shunt";

/// The name of the socket in its folder.
pub const SOCKET_NAME: &str = "shuntd.sock";

/// Move live LUNs while applications keep using them, and take them back
///
/// shunt puts a virtual volume over a LUN, copies the LUN to a second LUN while applications read
/// and write the volume, and switches between both LUNs without stopping the applications. Until
/// the commit, each switch can be undone without a copy. shunt is a client of shuntd, which must be
/// running; both need root.
#[derive(Debug, Parser)]
#[command(
    name = "shunt",
    version,
    after_help = top_level_sections(),
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Arguments {
    /// The options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command accepts.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The socket of shuntd [default: $SHUNT_SOCKET, or shuntd.sock in $SHUNT_RUNTIME_DIR, or
    /// /run/shunt/shuntd.sock]
    #[arg(long, global = true, value_name = "PATH", value_parser = absolute_path, value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Print data on standard output and errors on standard error as JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Print only data and errors: no messages, no progress
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// A command of `shunt`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A command that puts a volume over LUNs, or removes it.
    #[command(flatten)]
    Volume(VolumeCommand),
    /// A command that describes a session, starts it, or changes its limits.
    #[command(flatten)]
    Session(SessionCommand),
    /// A command that shows the state, or waits for a state.
    #[command(flatten)]
    Show(ShowCommand),
    /// A command for a session between its start and its end.
    #[command(flatten)]
    Course(CourseCommand),
    /// A command that asks for confirmation.
    #[command(flatten)]
    End(EndCommand),
    /// A command that shows what has happened.
    #[command(flatten)]
    Record(RecordCommand),
    /// Print completions for a shell
    ///
    /// Writes a script for the shell to standard output. Needs no shuntd.
    #[command(after_help = "EXAMPLES:
  shunt completions bash > /etc/bash_completion.d/shunt
  shunt completions zsh > /usr/share/zsh/vendor-completions/_shunt")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the man pages into a folder
    ///
    /// shunt.1 and a page for each command. The folder is created if it does not exist. Needs no
    /// shuntd.
    #[command(after_help = "EXAMPLES:
  shunt man /usr/local/share/man/man1
  man shunt-switch")]
    Man {
        /// The folder
        #[arg(value_name = "DIR", value_parser = absolute_path, value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}

impl Global {
    /// The path of the socket: the option, or from the environment, or the default.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        self.socket.clone().unwrap_or_else(|| {
            socket_of_environment(variable(SOCKET_VARIABLE), variable(RUNTIME_DIR_VARIABLE))
        })
    }
}

fn socket_of_environment(socket: Option<OsString>, runtime_dir: Option<OsString>) -> PathBuf {
    match (socket, runtime_dir) {
        (Some(socket), _) => PathBuf::from(socket),
        (None, Some(directory)) => PathBuf::from(directory).join(SOCKET_NAME),
        (None, None) => PathBuf::from(RUNTIME_DIR_DEFAULT).join(SOCKET_NAME),
    }
}

/// The sections below the options of `shunt --help`, and of shunt(1).
fn top_level_sections() -> String {
    format!(
        "EXAMPLES:
  shunt attach db /dev/disk/by-id/OLD
  shunt create s1 db:/dev/disk/by-id/NEW
  shunt start s1
  shunt wait s1 --for source-selected
  shunt switch s1
  shunt commit s1

ENVIRONMENT:
  {SOCKET_VARIABLE}       the socket of shuntd
  {RUNTIME_DIR_VARIABLE}  the folder of the socket {SOCKET_NAME}, {RUNTIME_DIR_DEFAULT} by default

{}",
        exit::help_section()
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_socket_comes_from_the_environment_unless_given() {
        let value = |text: &str| Some(OsString::from(text));
        let of = |a, b| socket_of_environment(a, b).to_str().unwrap().to_owned();
        assert_eq!(of(None, None), "/run/shunt/shuntd.sock");
        assert_eq!(of(None, value("/r")), "/r/shuntd.sock");
        assert_eq!(of(value("/s"), value("/r")), "/s");
    }
}
