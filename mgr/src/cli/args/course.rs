//! Commands for a session between its start and its end: the copy, the comparison, the roles.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::values::max_pause;

/// A command for a session between its start and its end.
#[derive(Debug, Subcommand)]
pub enum CourseCommand {
    /// Pause the copy
    ///
    /// Applications continue, and writes still go to both legs where they are equal.
    #[command(after_help = "EXAMPLES:
  shunt pause s1
  shunt resume s1")]
    Pause {
        /// The session
        session: String,
    },
    /// Continue the copy
    ///
    /// After a pause, or after the mirror leg failed and was repaired.
    #[command(after_help = "EXAMPLES:
  shunt resume s1
  shunt wait s1 --for source-selected")]
    Resume {
        /// The session
        session: String,
    },
    /// Compare both legs while applications continue
    ///
    /// Reads all of both LUNs, region by region. Applications do not wait for it; only a region
    /// that is written without a pause is held for a moment. Waits until all is compared, with a
    /// progress bar on a terminal; Ctrl-C ends the waiting, not the comparison. Ends with exit
    /// status 1 if anything differs, or could not be compared. What differs is copied again, from
    /// the authoritative leg to the other leg. Until a comparison finds no difference, switch and
    /// undo are refused, and no failure moves the role.
    #[command(after_help = "EXAMPLES:
  shunt verify s1
  shunt verify s1 --repair
  shunt verify s1 --no-wait && shunt status s1")]
    Verify {
        /// The session
        session: String,
        /// Once what differs is copied again, allow switch and undo without another comparison
        #[arg(long)]
        repair: bool,
        /// Begin, and do not wait for the end
        #[arg(long)]
        no_wait: bool,
    },
    /// Make the target authoritative
    ///
    /// Holds requests for a moment, brings both legs to the same contents and moves the role to the
    /// target. The source stays a copy, so that undo brings it back at any time before the commit.
    /// If the pause would be too long, the source stays authoritative and nothing has changed. A
    /// session that tracks (--mode track) is measured first, and its writes are slowed until the
    /// rest to copy fits the pause: the command begins this and does not wait for it.
    #[command(visible_aliases = ["cutover", "select-target"], after_help = "EXAMPLES:
  shunt switch s1
  shunt switch s1 --max-pause 0.5
  shunt wait s1 --for target-selected")]
    Switch {
        /// The session
        session: String,
        /// The limit of the pause
        #[command(flatten)]
        pause: PauseLimit,
    },
    /// Make the source authoritative again
    ///
    /// The opposite of switch, and as quick: the target stays a copy.
    #[command(
        visible_alias = "select-source",
        after_help = "EXAMPLES:
  shunt undo s1
  shunt undo s1 --max-pause 0.5"
    )]
    Undo {
        /// The session
        session: String,
        /// The limit of the pause
        #[command(flatten)]
        pause: PauseLimit,
    },
    /// Make the targets copies of their sources at one instant
    ///
    /// All volumes of the session hold requests for a moment, until no request is in progress on
    /// any of them. From then on the targets are detached and read-only, while applications
    /// continue on the sources. A database over several volumes starts from such copies as after a
    /// power failure. resume mirrors onto the targets again, and copies only what was written
    /// since; cancel ends the session and leaves the copies to you.
    #[command(after_help = "EXAMPLES:
  shunt create backup db:/dev/b log:/dev/c --mode copy
  shunt split backup
  shunt resume backup
  shunt set backup --every 1h --switch at:22:00")]
    Split {
        /// The session
        session: String,
        /// The limit of the pause
        #[command(flatten)]
        pause: PauseLimit,
    },
}

/// How long a change of the role may hold requests.
#[derive(Debug, Clone, Copy, Args)]
pub struct PauseLimit {
    /// How long requests may be held at most; fractions are allowed
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = max_pause)]
    pub max_pause: Duration,
}

impl PauseLimit {
    /// The limit in milliseconds, at least one.
    #[must_use]
    pub fn milliseconds(self) -> u64 {
        u64::try_from(self.max_pause.as_millis())
            .expect("max_pause() accepts at most SECONDS_MAX")
            .max(1)
    }
}
