//! Commands that end a session or give data up, and ask for confirmation.

use clap::{Subcommand, ValueEnum};
use migration_proto::route::Side;

use super::choices::RetireMethod;

/// A command that asks for confirmation.
#[derive(Debug, Subcommand)]
pub enum EndCommand {
    /// End the migration on the target; cannot be taken back
    ///
    /// After a switch only. The source leg is given up and is no longer a copy: undo is impossible
    /// from then on. Asks on a terminal; elsewhere needs --yes.
    #[command(
        visible_alias = "finalize",
        after_help = "EXAMPLES:
  shunt commit s1
  shunt commit s1 --yes"
    )]
    Commit {
        /// The session
        session: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// End the migration on the source and drop what was copied
    ///
    /// Before a switch only. The volume continues on the source alone; a new migration copies
    /// everything again. Asks on a terminal; elsewhere needs --yes.
    #[command(after_help = "EXAMPLES:
  shunt cancel s1
  shunt cancel s1 --yes")]
    Cancel {
        /// The session
        session: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Make what an ended session left behind inaccessible
    ///
    /// After a commit that is the source, after a cancel the target. It still holds the same file
    /// system as the volume, with the same UUID: until it is retired, it can be mounted by mistake.
    /// All but discard can be taken back; read-only, offline and hold are applied again whenever
    /// shuntd starts.
    #[command(after_help = "EXAMPLES:
  shunt retire s1 --how wipe-signatures
  shunt retire s1 --take-back
  shunt retire s1 --how discard --yes")]
    Retire {
        /// The session
        session: String,
        /// How the LUN is made inaccessible
        #[arg(long, value_enum, value_name = "HOW", default_value_t)]
        how: RetireMethod,
        /// Make the LUN accessible again
        #[arg(long, conflicts_with_all = ["how", "yes"])]
        take_back: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Replace the lost or damaged map file of a volume, or free locks that nobody holds
    ///
    /// The map file says which leg of a volume is right. If it is lost or damaged, the volume is
    /// not served, and shuntd does not guess: name the leg that is right. The volume then uses that
    /// leg alone. The other leg is not written and no longer used; a new session copies everything
    /// again. A volume that is served, and a map file that is whole, are refused. Shows what would
    /// be done and asks on a terminal; elsewhere needs --yes.
    ///
    /// With --locks: a LUN is locked for the volume or the session that uses it. Lists the locks
    /// whose holder no longer exists, because the database was changed by hand or partly lost, and
    /// frees them.
    #[command(after_help = "EXAMPLES:
  shunt status
  shunt recover db --authoritative source
  shunt recover --locks")]
    Recover {
        /// The volume
        #[arg(required_unless_present = "locks", requires = "authoritative")]
        volume: Option<String>,
        /// The leg whose data is right
        #[arg(long, value_name = "LEG", value_enum)]
        authoritative: Option<Leg>,
        /// Continue even if the other leg was authoritative when the volume was last seen
        #[arg(long, requires = "volume")]
        against_record: bool,
        /// Free the locks on LUNs whose holder is gone
        #[arg(long, conflicts_with_all = ["volume", "authoritative"])]
        locks: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// A leg of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Leg {
    /// The LUN that the volume was on when the session was created
    Source,
    /// The LUN that the volume moves to
    Target,
}

impl Leg {
    /// The side that the leg is in the protocol of shuntd.
    #[must_use]
    pub const fn side(self) -> Side {
        match self {
            Self::Source => Side::Source,
            Self::Target => Side::Target,
        }
    }

    /// The name of the leg on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}
