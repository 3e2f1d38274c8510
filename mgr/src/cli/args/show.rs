//! Commands that show the state, or wait for a state.

use std::time::Duration;

use clap::Subcommand;

use crate::cli::state::Goal;
use crate::cli::values::timeout;

/// A command that shows the state, or waits for a state.
#[derive(Debug, Subcommand)]
pub enum ShowCommand {
    /// Show volumes, sessions and pairs, and what may be done now
    ///
    /// Without a session shows everything. With --json prints one object a line, with "type"
    /// (host, volume, session or pair) and "schema".
    #[command(after_help = "EXAMPLES:
  shunt status
  shunt status s1 --watch
  shunt status --json | jq 'select(.type == \"pair\") | .dirty_bytes'")]
    Status {
        /// Only this session
        session: Option<String>,
        /// Refresh every second, until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
    /// Print a session as a file that create -f reads, with its current state
    ///
    /// The state is in the tables named status, which create ignores. With --json prints the same
    /// records as status.
    #[command(after_help = "EXAMPLES:
  shunt show s1 > s1.toml
  shunt show s1 --json")]
    Show {
        /// The session
        session: String,
    },
    /// List volumes and sessions, one line each
    ///
    /// A short overview; status shows more.
    #[command(after_help = "EXAMPLES:
  shunt list
  shunt list --json")]
    List,
    /// Wait until a session is in a state
    ///
    /// On a terminal shows a progress bar with rate and time left. Ends with exit status 0 in the
    /// state, 6 when the time ran out, and 1 when the state cannot be reached any more. If shuntd
    /// is restarted meanwhile, waits for it for 30 seconds.
    #[command(after_help = "EXAMPLES:
  shunt wait s1 --for source-selected
  shunt wait s1 --for source-selected --timeout 3600 && shunt switch s1")]
    Wait {
        /// The session
        session: String,
        /// The state
        #[arg(long = "for", value_name = "STATE")]
        goal: Goal,
        /// How long to wait at most; 0 checks once [default: no limit]
        #[arg(long, value_name = "SECONDS", value_parser = timeout)]
        timeout: Option<Duration>,
    },
}
