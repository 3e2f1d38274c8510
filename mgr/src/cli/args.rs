//! The definition of the command line: the only source of help, man pages and completions.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use migration_proto::manager::{
    CutoverAction, CutoverOptions, PairSpec, RetireHow, SessionLimits, SessionMode, SwitchPolicy,
    VerifyPolicy,
};
use migration_proto::route::Side;
use migration_proto::target::OnAuthoritativeFailure;

use super::exit;
use super::session_file::Format;
use super::state::Goal;
use super::values::{
    absolute_path, accepted, floor, max_pause, pair, percent, rate, switch_policy, timeout,
};
use super::when::ScheduleOptions;

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

/// What to do when the authoritative LUN fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    /// error before the switch; after it, go back to the source
    #[default]
    Auto,
    /// applications see the error
    Error,
    /// the other LUN becomes authoritative, and applications continue
    Switch,
}

impl From<OnFailure> for OnAuthoritativeFailure {
    fn from(what: OnFailure) -> Self {
        match what {
            OnFailure::Auto => Self::Auto,
            OnFailure::Error => Self::Error,
            OnFailure::Switch => Self::Switch,
        }
    }
}

/// How writes of applications reach the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// each write also goes to the target, where both LUNs are equal
    Mirror,
    /// writes go to the source alone, and what they change is copied in passes; for slow or distant
    /// targets
    Track,
    /// as mirror, but without a switch: the target becomes a copy of one instant (shunt split)
    Copy,
}

/// What to do after a failed attempt to cut over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnMisfit {
    /// try again, up to --attempts attempts in all
    Retry,
    /// do not slow writes again; switch when the rest fits the pause without that
    Defer,
    /// give up; the source stays authoritative
    Abort,
    /// as retry; after the last attempt switch even if that holds requests for up to 110 seconds
    Force,
    /// only measure; begin the attempts at a second shunt switch
    Wait,
}

/// Options for the copy mode of a session, and for the cutover of a session that tracks.
#[derive(Debug, Clone, Args)]
pub struct CutoverChoice {
    /// How writes of applications reach the target [default: mirror]
    #[arg(long, requires = "session", value_enum, value_name = "HOW")]
    mode: Option<Mode>,
    /// With --mode track: what to do if the rest to copy does not fit the pause of a switch
    /// [default: retry]
    #[arg(long, requires = "session", value_enum, value_name = "WHAT")]
    cutover_action: Option<OnMisfit>,
    /// With --mode track: the number of attempts of a switch [default: 3]
    #[arg(long, requires = "session", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100))]
    attempts: Option<u32>,
    /// With --mode track: how long an attempt may slow writes, in seconds [default: 120]
    #[arg(long, requires = "session", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    cutover_duration: Option<u64>,
    /// With --mode track: the lowest rate to which writes are slowed, in bytes a second
    /// [default: 1MiB]
    #[arg(long, requires = "session", value_name = "BYTES", value_parser = floor)]
    throttle_floor: Option<u64>,
}

impl CutoverChoice {
    pub(super) fn limits(&self) -> SessionLimits {
        SessionLimits {
            mode: self.mode.map(|mode| match mode {
                Mode::Mirror => SessionMode::Mirror,
                Mode::Track => SessionMode::Track,
                Mode::Copy => SessionMode::Copy,
            }),
            cutover_action: self.cutover_action.map(|action| match action {
                OnMisfit::Retry => CutoverAction::Retry,
                OnMisfit::Defer => CutoverAction::Defer,
                OnMisfit::Abort => CutoverAction::Abort,
                OnMisfit::Force => CutoverAction::Force,
                OnMisfit::Wait => CutoverAction::Wait,
            }),
            attempts: self.attempts,
            cutover_duration_seconds: self.cutover_duration,
            throttle_floor_bytes_per_second: self.throttle_floor,
            ..SessionLimits::default()
        }
    }

    pub(super) fn mode(&self) -> SessionMode {
        self.limits().mode.unwrap_or_default()
    }

    pub(super) fn options(&self) -> CutoverOptions {
        let default = CutoverOptions::default();
        CutoverOptions {
            action: self.limits().cutover_action.unwrap_or(default.action),
            attempts: self.attempts.unwrap_or(default.attempts),
            duration_seconds: self.cutover_duration.unwrap_or(default.duration_seconds),
            floor_bytes_per_second: self
                .throttle_floor
                .unwrap_or(default.floor_bytes_per_second),
        }
    }
}

/// How a leg is made inaccessible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum RetireMethod {
    /// the kernel refuses writes to it
    ReadOnly,
    /// the kernel refuses every request to it; SCSI disks only
    Offline,
    /// shuntd keeps it open, so that it cannot be mounted
    #[default]
    Hold,
    /// the signatures by which programs recognise its contents are removed, and saved
    WipeSignatures,
    /// all of its blocks are discarded; cannot be taken back
    Discard,
}

impl From<RetireMethod> for RetireHow {
    fn from(how: RetireMethod) -> Self {
        match how {
            RetireMethod::ReadOnly => Self::ReadOnly,
            RetireMethod::Offline => Self::Offline,
            RetireMethod::Hold => Self::Hold,
            RetireMethod::WipeSignatures => Self::WipeSignatures,
            RetireMethod::Discard => Self::Discard,
        }
    }
}

/// How a copy is verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum VerifyLevel {
    /// the target reported success; verify compares everything on demand
    #[default]
    None,
    /// what was written is read back and compared
    ReadBack,
    /// as read-back, and the whole volume is compared once it is in sync; switch is refused before
    /// that
    Full,
}

impl From<VerifyLevel> for VerifyPolicy {
    fn from(proof: VerifyLevel) -> Self {
        match proof {
            VerifyLevel::None => Self::None,
            VerifyLevel::ReadBack => Self::ReadBack,
            VerifyLevel::Full => Self::Full,
        }
    }
}

/// A command of `shunt`.
#[derive(Debug, Subcommand)]
pub enum Command {
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
    /// Record a session: which volumes go to which targets
    ///
    /// Checks every target and records the pairs; nothing is copied yet. A target that is too
    /// small, in use or the same device as the source is refused, and one that holds a file system,
    /// a partition table or data that is not recognised (its first and last MiB are read) is
    /// refused unless --overwrite is given.
    #[command(after_help = "EXAMPLES:
  shunt create s1 db:/dev/disk/by-id/wwn-0x5000c500d4e5f607
  shunt create night db:/dev/mapper/new-db logs:/dev/mapper/new-logs --overwrite
  shunt create s2 big:/dev/sdd,/dev/sde
  shunt create -f night.toml

FILE:
  session = \"night\"
  rate = \"100MiB\"                   # like the options, and like them not needed
  priority = 80
  verify = \"read-back\"
  on-authoritative-failure = \"auto\"
  overwrite = false
  detect-zeroes = false

  [[pair]]
  volume = \"db\"
  target = \"/dev/mapper/new-db\"

  [[pair]]
  volume = \"logs\"
  target = \"/dev/mapper/new-logs\"")]
    Create {
        /// The name of the new session
        #[arg(required_unless_present = "file")]
        session: Option<String>,
        /// A volume and its target, separated by a colon; several LUNs as a target, end to end, are
        /// separated by commas; a comma in a path is written \,
        #[arg(required_unless_present = "file", value_name = "VOLUME:TARGET", value_parser = pair)]
        pairs: Vec<PairSpec>,
        /// Read the session from this file, in the format that show prints; - is standard input
        #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath,
              conflicts_with_all = ["session", "pairs", "overwrite", "accept_weak_identity", "detect_zeroes", "verify",
                                    "on_authoritative_failure", "rate", "priority", "switch", "mode", "every", "window_hours", "start_at", "max_duration", "switch_pairs",
                                    "max_latency_impact", "accept_unreadable", "retire", "cutover_action", "attempts", "cutover_duration", "throttle_floor"])]
        file: Option<PathBuf>,
        /// Accept targets that hold a file system, a partition table or other data: what they hold
        /// is lost
        #[arg(long)]
        overwrite: bool,
        /// Accept targets that only their size distinguishes from others; see attach
        #[arg(long)]
        accept_weak_identity: bool,
        /// Look for zeroes while copying, and deallocate them on targets that can do so
        #[arg(long)]
        detect_zeroes: bool,
        /// How a copy is verified
        #[arg(long, value_enum, value_name = "PROOF", default_value_t)]
        verify: VerifyLevel,
        /// What to do when the authoritative LUN fails to write while both are equal
        #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
        on_authoritative_failure: OnFailure,
        /// The highest rate of the session's copy, in bytes a second, such as 100MiB, or unlimited
        /// [default: unlimited]
        #[arg(long, value_name = "BYTES", value_parser = rate)]
        rate: Option<u64>,
        /// The order in which queued pairs begin, 100 first [default: 50]
        #[arg(long, value_name = "0-100", value_parser = clap::value_parser!(u8).range(0..=100))]
        priority: Option<u8>,
        /// When the session is switched, or with --mode copy split, but not before it is in sync:
        /// manual, when-synced, at:TIME or event:NAME [default: manual]
        #[arg(long, value_name = "WHEN", value_parser = switch_policy)]
        switch: Option<SwitchPolicy>,
        /// How the source is made inaccessible as soon as the session is committed [default: not at
        /// all]
        #[arg(long, value_enum, value_name = "HOW", requires = "session")]
        retire: Option<RetireMethod>,
        /// How much the copy may increase the latency of applications (99th percentile), such as
        /// 20%, or none for no limit
        #[arg(long, value_name = "PERCENT", value_parser = percent, requires = "session")]
        max_latency_impact: Option<u32>,
        /// Continue the copy past blocks that cannot be read, up to this amount of each source,
        /// such as 1MiB: they become zeroes on the target, and are listed in status, show and
        /// report [default: none]
        #[arg(long, value_name = "BYTES", value_parser = accepted, requires = "session")]
        accept_unreadable: Option<u64>,
        /// The copy mode and the cutover
        #[command(flatten)]
        cutover: CutoverChoice,
        /// The times of the session
        #[command(flatten)]
        when: ScheduleOptions,
    },
    /// Check everything that create would check, and estimate the times of copy and switch
    ///
    /// Reads both LUNs for a second and measures what applications write. Changes nothing. The
    /// estimate is saved, and the history of the session compares it with the result. Ends with
    /// exit status 3 if create would refuse.
    #[command(after_help = "EXAMPLES:
  shunt plan s1 db:/dev/sdc
  shunt plan -f s1.toml --json")]
    Plan {
        /// The name of the planned session
        #[arg(required_unless_present = "file")]
        session: Option<String>,
        /// A volume and its target, separated by a colon
        #[arg(required_unless_present = "file", value_name = "VOLUME:TARGET", value_parser = pair)]
        pairs: Vec<PairSpec>,
        /// Read the session from this file, in the format that show prints; - is standard input
        #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath,
              conflicts_with_all = ["session", "pairs", "overwrite", "accept_weak_identity"])]
        file: Option<PathBuf>,
        /// Accept targets that hold a file system, a partition table or other data
        #[arg(long)]
        overwrite: bool,
        /// Accept targets that only their size distinguishes from others; see attach
        #[arg(long)]
        accept_weak_identity: bool,
    },
    /// Begin mirroring and copying
    ///
    /// From now on writes go to both legs where they are equal, and the rest is copied. The source
    /// stays authoritative. Nothing on the target can be used before the session is
    /// source-selected.
    #[command(after_help = "EXAMPLES:
  shunt start s1
  shunt wait s1 --for source-selected")]
    Start {
        /// The session
        session: String,
    },
    /// Change limits while the copy runs
    ///
    /// With a session, changes the limits of that session; a rate is for all of its pairs together.
    /// --max-pairs is for all sessions of this host: pairs that are started while this number of
    /// pairs is being copied are queued, and begin automatically. A lower number stops no pair that
    /// is being copied.
    #[command(after_help = "EXAMPLES:
  shunt set s1 --rate 100MiB
  shunt set s1 --rate unlimited --priority 90
  shunt set s1 --switch at:22:00 --window-hours 20:00-06:00
  shunt set s1 --max-latency-impact 20%
  shunt set s1 --accept-unreadable 1MiB
  shunt set s1 --mode track --cutover-action abort
  shunt set --max-pairs 8")]
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true)
        .args(["rate", "priority", "on_authoritative_failure", "switch", "max_pairs", "mode", "every", "window_hours", "start_at", "max_duration", "switch_pairs",
                "max_latency_impact", "accept_unreadable", "cutover_action", "attempts", "cutover_duration", "throttle_floor"]))]
    Set {
        /// The session
        #[arg(required_unless_present = "max_pairs")]
        session: Option<String>,
        /// The highest rate of the session's copy, in bytes a second, such as 100MiB, or unlimited
        #[arg(long, value_name = "BYTES", value_parser = rate, requires = "session")]
        rate: Option<u64>,
        /// The order in which queued pairs begin, 100 first
        #[arg(long, value_name = "0-100", requires = "session", value_parser = clap::value_parser!(u8).range(0..=100))]
        priority: Option<u8>,
        /// What to do when the authoritative LUN fails to write while both are equal
        #[arg(long, value_enum, value_name = "WHAT", requires = "session")]
        on_authoritative_failure: Option<OnFailure>,
        /// When the session is switched, or with --mode copy split, but not before it is in sync:
        /// manual, when-synced, at:TIME or event:NAME
        #[arg(long, value_name = "WHEN", requires = "session", value_parser = switch_policy)]
        switch: Option<SwitchPolicy>,
        /// How much the copy may increase the latency of applications (99th percentile), such as
        /// 20%, or none for no limit
        #[arg(long, value_name = "PERCENT", value_parser = percent, requires = "session")]
        max_latency_impact: Option<u32>,
        /// Continue the copy past blocks that cannot be read, up to this amount of each source,
        /// such as 1MiB, or none: they become zeroes on the target, and are listed in status, show
        /// and report
        #[arg(long, value_name = "BYTES", value_parser = accepted, requires = "session")]
        accept_unreadable: Option<u64>,
        /// The copy mode and the cutover
        #[command(flatten)]
        cutover: CutoverChoice,
        /// The times of the session
        #[command(flatten)]
        when: ScheduleOptions,
        /// The highest number of pairs that are copied at the same time, over all sessions; 4 until
        /// it is set
        #[arg(long, value_name = "NUMBER", conflicts_with = "session")]
        max_pairs: Option<u32>,
    },
    /// Report an event that sessions wait for
    ///
    /// Every session with --switch event:NAME is then switched once, as soon as it is in sync.
    #[command(after_help = "EXAMPLES:
  shunt set s1 --switch event:backup-done
  shunt signal backup-done")]
    Signal {
        /// The event
        #[arg(value_name = "NAME")]
        event: String,
    },
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
    /// The state is in the tables named status, which create ignores.
    #[command(after_help = "EXAMPLES:
  shunt show s1 > s1.toml
  shunt show s1 --format json")]
    Show {
        /// The session
        session: String,
        /// The format
        #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
        format: Format,
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
    /// Show the current state, then follow events
    ///
    /// Runs until Ctrl-C. Events are lines of the history, and every change of the state of a pair
    /// or a volume. With --json prints one object a line: first those of status, then events. If
    /// shuntd is restarted meanwhile, waits for it for 30 seconds and shows the current state
    /// again.
    #[command(after_help = "EXAMPLES:
  shunt events
  shunt events s1 --json | jq 'select(.state != null)'")]
    Events {
        /// Only this session
        session: Option<String>,
    },
    /// Show the history
    ///
    /// What happened and when, oldest first, with times in UTC.
    #[command(after_help = "EXAMPLES:
  shunt history
  shunt history s1 --json")]
    History {
        /// Only this session
        session: Option<String>,
    },
    /// Write a report about a session
    ///
    /// One self-contained HTML file: what was still to be copied, rates, how long requests of
    /// applications took, every pause, and the history. With --json prints the same as records.
    #[command(after_help = "EXAMPLES:
  shunt report s1 -o s1.html
  shunt report s1 --json")]
    Report {
        /// The session
        session: String,
        /// The file to write; standard output without it
        #[arg(short, long, value_name = "FILE", value_parser = absolute_path, value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
    },
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
