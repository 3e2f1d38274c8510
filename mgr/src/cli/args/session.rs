//! Commands that describe a session: create and plan, start, set and signal.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use migration_proto::manager::{PairSpec, SessionLimits, SessionOptions, SwitchPolicy};

use super::choices::{CutoverChoice, OnFailure, RetireMethod, VerifyLevel};
use crate::cli::values::pair;
use crate::cli::when::ScheduleOptions;
use crate::options;
use crate::options::forms::{accepted, percent, rate, switch_policy};

/// A command that describes a session, starts it, or changes its limits.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
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
              conflicts_with_all = ["session", "pairs"].into_iter().chain(options::ids()))]
        file: Option<PathBuf>,
        /// The options of the session
        #[command(flatten)]
        options: CreateOptions,
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
        /// The limits of the session
        #[command(flatten)]
        limits: SetOptions,
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
}

/// The options of a new session.
#[derive(Debug, Clone, Args)]
pub struct CreateOptions {
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
}

impl CreateOptions {
    /// The options of the session: the defaults, with the options that are given.
    pub(in crate::cli) fn into_options(self) -> SessionOptions {
        let limits = SessionLimits {
            rate_bytes_per_second: self.rate,
            priority: self.priority,
            on_authoritative_failure: Some(self.on_authoritative_failure.into()),
            switch: self.switch,
            max_latency_impact_percent: self.max_latency_impact,
            accept_unreadable_bytes: self.accept_unreadable,
            ..self.when.limits(self.cutover.limits())
        };
        let mut options = SessionOptions {
            overwrite: self.overwrite,
            accept_weak_identity: self.accept_weak_identity,
            detect_zeroes: self.detect_zeroes,
            verify: self.verify.into(),
            retire: self.retire.map(Into::into),
            ..SessionOptions::default()
        };
        options::apply(&limits, &mut options);
        options
    }
}

/// The limits of a session that can be changed.
#[derive(Debug, Clone, Args)]
pub struct SetOptions {
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
}

impl SetOptions {
    /// The limits that are given.
    pub(in crate::cli) fn into_limits(self) -> SessionLimits {
        SessionLimits {
            rate_bytes_per_second: self.rate,
            priority: self.priority,
            on_authoritative_failure: self.on_authoritative_failure.map(Into::into),
            switch: self.switch,
            max_latency_impact_percent: self.max_latency_impact,
            accept_unreadable_bytes: self.accept_unreadable,
            ..self.when.limits(self.cutover.limits())
        }
    }
}
