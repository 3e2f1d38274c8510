//! The requests of shuntd, its copier and the tools to one `ublk-target`, and the answers.
//!
//! `ublk-target` alone decides the route. Every request that could change the route names the epoch
//! that the client knows; a stale client is refused.

use serde::{Deserialize, Deserializer, Serialize};

use crate::route::{Leg, Route};

/// The exit status of `ublk-target serve` when the map file is damaged: a restart does not help.
pub const EXIT_MAP_DAMAGED: u8 = 4;
/// The exit status of `ublk-target serve` when the map file is that of another volume.
pub const EXIT_OTHER_VOLUME: u8 = 5;

/// The name of the second socket of a volume's `ublk-target`, in the abstract namespace. It is used
/// when the folder of the first socket is gone. Any user may take such a name, so a client checks
/// that root is at the other end.
#[must_use]
pub fn abstract_name(volume_id: &str) -> String {
    format!("shunt/ublk-target/{volume_id}")
}

/// Reads a field that may be null, but not missing: serde would read a missing one as null, which
/// would mean that there is no problem.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer)
}

/// A request to `ublk-target`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Report the state of the volume. Answer: [`Response::Status`].
    Status,
    /// `Single` to `Mirrored`: the current leg becomes the source, every region is dirty.
    /// Answer: [`Response::RouteChanged`].
    AddMirror {
        /// The epoch that the client knows.
        epoch: u64,
        /// The leg that the data is copied to.
        target: Leg,
        /// How long requests may be held, in milliseconds.
        deadline_ms: u64,
    },
    /// Change the route: switch, undo, split, mirror again, commit or cancel. Answer:
    /// [`Response::RouteChanged`].
    SetRoute {
        /// The epoch that the client knows.
        epoch: u64,
        /// The route to change to.
        route: Route,
        /// How long requests may be held, in milliseconds.
        deadline_ms: u64,
        /// Accept dirty regions; they are copied while requests are held. Only for a change to
        /// `Mirrored`, and only while a copier is connected.
        copies_rest: bool,
    },
    /// Hold new requests and wait until nothing is in flight. Answer: [`Response::Suspended`].
    Suspend {
        /// The time after which ublk-target automatically lets the requests go, in milliseconds.
        deadline_ms: u64,
    },
    /// Let held requests go. Answer: [`Response::Resumed`].
    Resume,
    /// Set what to do when the authoritative leg fails; [`OnAuthoritativeFailure::Auto`] before the
    /// first request. Answer: [`Response::Done`].
    SetOnAuthoritativeFailure {
        /// What to do.
        policy: OnAuthoritativeFailure,
    },
    /// Set what writes do to the mirror leg; [`CopyMode::Mirror`] before the first request. Answer:
    /// [`Response::Done`].
    SetCopyMode {
        /// The mode.
        mode: CopyMode,
    },
    /// Limit the rate of writes while the volume is mirrored or split. Answer: [`Response::Done`].
    SetThrottle {
        /// The limit, in bytes; 0 ends it.
        bytes_per_second: u64,
        /// The time after which the limit ends automatically, in milliseconds.
        for_ms: u64,
    },
    /// Try the mirror leg again after it failed. Answer: [`Response::Done`].
    RetryMirror {
        /// The epoch that the client knows.
        epoch: u64,
    },
    /// Make this connection the copier's. Refused while another copier is connected, or has I/O in
    /// flight on the mirror leg (its lock is then held). The copier locks the mirror leg before it
    /// claims. Answer: [`Response::CopierOpened`].
    OpenCopier,
    /// Copier: claim regions. Answered when there is at least one region; with none when nothing is
    /// dirty, or when the copier holds regions and no other can be granted now. Answer:
    /// [`Response::Claimed`].
    Claim {
        /// The most regions to grant; at least 1, at most [`CLAIM_REGIONS_MAX`].
        regions_max: u32,
    },
    /// Copier: report regions that were copied, or could not be. Answer: [`Response::Done`].
    Report {
        /// The epoch of the grant.
        epoch: u64,
        /// Regions that are now the same on the mirror leg.
        copied: Vec<u64>,
        /// Regions that could not be copied; they stay dirty.
        failed: Vec<u64>,
        /// Why the regions in `failed` were not copied; or an error of the mirror leg, as soon as
        /// it is known.
        error: Option<CopyError>,
    },
    /// Copier: watch these regions, which are about to be compared. Answer: [`Response::Watched`].
    Watch {
        /// The epoch that the copier was opened with.
        epoch: u64,
        /// The regions, at most [`WATCH_REGIONS_MAX`].
        regions: Vec<u64>,
        /// Hold further writes to a region that is being written, for a while, so that the region
        /// becomes quiet.
        hold: bool,
    },
    /// Copier: report the result of comparing regions that are watched. Answer:
    /// [`Response::Compared`].
    Compared {
        /// The epoch that the copier was opened with.
        epoch: u64,
        /// Regions that are the same on both legs.
        same: Vec<u64>,
        /// Regions that differ; they become dirty.
        differing: Vec<u64>,
        /// Regions that could not be read.
        unread: Vec<u64>,
    },
    /// Stop the device and end the process. Refused while the device is open, if the kernel can say
    /// that. Answer: [`Response::Done`], then the connection closes.
    Stop,
}

/// What to do when the authoritative leg fails to write or to flush. Under every policy, reads of
/// what both legs have are done on the mirror leg.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OnAuthoritativeFailure {
    /// As `switch` while the target is authoritative, otherwise as `error`.
    #[default]
    Auto,
    /// The application gets the error.
    Error,
    /// If both legs are equal, the other leg becomes authoritative, and the application gets no
    /// error.
    Switch,
}

impl From<OnAuthoritativeFailure> for migration_core::volume::OnAuthoritativeFailure {
    fn from(policy: OnAuthoritativeFailure) -> Self {
        match policy {
            OnAuthoritativeFailure::Auto => Self::Auto,
            OnAuthoritativeFailure::Error => Self::Error,
            OnAuthoritativeFailure::Switch => Self::Switch,
        }
    }
}

impl From<migration_core::volume::OnAuthoritativeFailure> for OnAuthoritativeFailure {
    fn from(policy: migration_core::volume::OnAuthoritativeFailure) -> Self {
        use migration_core::volume::OnAuthoritativeFailure as Core;
        match policy {
            Core::Auto => Self::Auto,
            Core::Error => Self::Error,
            Core::Switch => Self::Switch,
        }
    }
}

/// Why requests are held until somebody resumes the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suspended {
    /// A client asked for the suspension.
    Asked,
    /// The volume was split; requests have been held ever since.
    SinceSplit,
}

impl From<migration_core::volume::Suspended> for Suspended {
    fn from(why: migration_core::volume::Suspended) -> Self {
        match why {
            migration_core::volume::Suspended::Asked => Self::Asked,
            migration_core::volume::Suspended::SinceSplit => Self::SinceSplit,
        }
    }
}

/// What a write of the application does to the mirror leg.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyMode {
    /// The write is done there too, where the legs are equal.
    #[default]
    Mirror,
    /// Nothing, while the source is authoritative: what was written is copied later, in passes.
    Track,
}

impl CopyMode {
    /// The name that the operator types.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mirror => "mirror",
            Self::Track => "track",
        }
    }
}

impl From<CopyMode> for migration_core::volume::CopyMode {
    fn from(mode: CopyMode) -> Self {
        match mode {
            CopyMode::Mirror => Self::Mirror,
            CopyMode::Track => Self::Track,
        }
    }
}

impl From<migration_core::volume::CopyMode> for CopyMode {
    fn from(mode: migration_core::volume::CopyMode) -> Self {
        match mode {
            migration_core::volume::CopyMode::Mirror => Self::Mirror,
            migration_core::volume::CopyMode::Track => Self::Track,
        }
    }
}

/// The number of parts into which [`Status::dirty_percent`] divides a volume.
pub const MAP_PARTS: usize = 120;

/// The most regions that one claim may ask for.
pub const CLAIM_REGIONS_MAX: u32 = 256;

/// The most regions that may be watched at once.
pub const WATCH_REGIONS_MAX: usize = migration_core::volume::WATCHED_REGIONS_MAX;

/// Why a region could not be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyError {
    /// The leg that failed.
    pub side: crate::route::Side,
    /// The error number of the kernel, if the kernel reported the error.
    pub errno: Option<i32>,
    /// The cause in words, with the place.
    pub cause: String,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// The answer to [`Request::Status`].
    Status(Box<Status>),
    /// The new route is durable and requests flow.
    RouteChanged {
        /// The epoch from now on.
        epoch: u64,
        /// The route from now on.
        route: Route,
        /// The pause: from the first request held to the first request let go, in microseconds; 0
        /// if none was held.
        pause_us: u64,
    },
    /// Nothing is in flight; new requests are held.
    Suspended,
    /// Requests flow.
    Resumed {
        /// Why requests were held; absent if the suspension had already ended (by its deadline), or
        /// there was none.
        #[serde(deserialize_with = "present")]
        ended: Option<Suspended>,
    },
    /// This connection is the copier's from now on.
    CopierOpened {
        /// The epoch of the claims to come.
        epoch: u64,
        /// The size of a region, in bytes. The last region of the volume may be shorter.
        region_bytes: u64,
        /// The size of the volume, in bytes.
        size_bytes: u64,
        /// The leg to read.
        from: Box<ServedLeg>,
        /// The leg to write.
        to: Box<ServedLeg>,
        /// Whether to compare first and write only differences: the legs may be equal in most
        /// places.
        compare_first: bool,
    },
    /// Regions to copy; none when nothing is dirty (`dirty_bytes` is 0), or nothing else can be
    /// granted now.
    Claimed {
        /// The epoch that a report must name.
        epoch: u64,
        /// The regions, ascending.
        regions: Vec<u64>,
        /// The granted regions that are known to be copied for the first time since the mirror leg
        /// was added.
        never_copied: Vec<u64>,
        /// Dirty bytes after this grant (the granted regions count as dirty).
        dirty_bytes: u64,
    },
    /// The regions that may be compared now. Regions of the request that are in neither list are
    /// being written.
    Watched {
        /// Watched from now on.
        regions: Vec<u64>,
        /// Regions that are dirty: still to be copied.
        dirty: Vec<u64>,
    },
    /// The result of the comparison is recorded.
    Compared {
        /// Regions whose result does not count: they were written meanwhile, or have become dirty.
        unknown: Vec<u64>,
    },
    /// The request was done; there is nothing to report.
    Done,
    /// The request was refused or failed. Nothing changed, except that with [`Refusal::Ending`]
    /// that is unknown.
    Refused {
        /// The kind, for programs.
        reason: Refusal,
        /// The cause in words, for people.
        cause: String,
    },
}

/// Why `ublk-target` refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The client names an epoch that is not the current one.
    StaleEpoch,
    /// Regions are dirty: the mirror leg is not a full copy.
    NotInSync,
    /// The request is not possible from the current route.
    WrongRoute,
    /// Requests could not be drained and flushed before the deadline; the old route holds.
    Deadline,
    /// Another change of the route or a suspension is under way.
    Busy,
    /// The leg cannot be used: missing, in use, too small, not the one that was recorded.
    BadLeg,
    /// Another copier is connected, or its I/O is not finished.
    CopierBusy,
    /// The connection is not the copier's, or the copier has not claimed the region.
    NotCopier,
    /// The device is open.
    DeviceOpen,
    /// A leg or the map file failed.
    Failed,
    /// The process is ending. Whether the request was done is unknown.
    Ending,
    /// The request makes no sense.
    Malformed,
}

/// The current state of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The name of the volume.
    pub volume: String,
    /// The volume's UUID.
    pub volume_id: String,
    /// The process id of this ublk-target.
    pub pid: u32,
    /// `/dev/ublkbN`.
    pub device: std::path::PathBuf,
    /// The epoch: it grows by one at every change of the route.
    pub epoch: u64,
    /// The route.
    pub route: Route,
    /// The size of the volume, in bytes.
    pub size_bytes: u64,
    /// The size of a region, in bytes.
    pub region_bytes: u64,
    /// Bytes of the regions in which the mirror leg may differ; 0 in `Single`.
    pub dirty_bytes: u64,
    /// How much of each of [`MAP_PARTS`] equal parts of the volume may differ, in percent, rounded
    /// up. There are fewer parts if there are fewer regions, and none in `Single`.
    pub dirty_percent: Vec<u8>,
    /// Bytes of the regions that the copier has claimed.
    pub claimed_bytes: u64,
    /// Regions copied since this process started (a region copied twice counts twice), in bytes.
    pub copied_bytes: u64,
    /// Why the mirror leg is not written; absent if it is.
    #[serde(deserialize_with = "present")]
    pub degraded: Option<String>,
    /// The number of writes that the mirror leg has not ended, if it was given up because it kept
    /// other writes waiting.
    #[serde(deserialize_with = "present")]
    pub stalled_writes: Option<u32>,
    /// The last failure of the authoritative leg, if it failed since the roles were exchanged.
    #[serde(deserialize_with = "present")]
    pub authoritative_problem: Option<String>,
    /// What to do when the authoritative leg fails.
    pub on_authoritative_failure: OnAuthoritativeFailure,
    /// What writes do to the mirror leg.
    pub copy_mode: CopyMode,
    /// The limit to the rate of writes, in bytes a second; 0: writes are not slowed.
    pub throttle_bytes_per_second: u64,
    /// Why the map file cannot be written, if it cannot; writes that need a mark in it wait.
    #[serde(deserialize_with = "present")]
    pub map_problem: Option<String>,
    /// Whether new requests are held.
    pub suspended: bool,
    /// Whether a change of the route is in progress.
    pub changing: bool,
    /// Whether a copier is connected.
    pub copier: bool,
    /// The source leg.
    pub source: Leg,
    /// The target leg.
    #[serde(deserialize_with = "present")]
    pub target: Option<Leg>,
    /// The open LUN of each extent of the source leg; empty if the leg is not open.
    pub source_open: Vec<OpenLun>,
    /// The same for the target leg.
    pub target_open: Vec<OpenLun>,
    /// The counters, since this process started.
    pub counters: Counters,
    /// The latency of reads since this process started, from arrival to answer: the counts of
    /// [`migration_core::latency::Histogram`].
    pub read_latency: Vec<u64>,
    /// The same for writes.
    pub write_latency: Vec<u64>,
    /// The features of the driver, by name.
    pub driver_features: Vec<String>,
    /// The name of the claim on the legs. The program that starts the next process and passes on
    /// the descriptors in `held` names this claim.
    pub claim: u64,
    /// The descriptors of this process that claim the LUNs of the legs.
    pub held: Vec<HeldLun>,
    /// Why the whole mirror leg is copied or compared again; absent when that is done, or not
    /// needed.
    #[serde(deserialize_with = "present")]
    pub doubt: Option<String>,
    /// Whether this process took over a device whose process had died.
    pub recovered: bool,
}

/// The descriptor of a LUN that `ublk-target` has open.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeldLun {
    /// The path of the LUN, without symbolic links.
    pub path: std::path::PathBuf,
    /// The number of the descriptor in the process.
    pub descriptor: i32,
}

/// A leg, and the devices that `ublk-target` has open for it. A copier refuses to use other
/// devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServedLeg {
    /// The leg.
    pub leg: Leg,
    /// The LUN that is open for each extent.
    pub open: Vec<OpenLun>,
}

/// A LUN that `ublk-target` has open, as it was at the open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenLun {
    /// The path of the LUN, without symbolic links.
    pub path: std::path::PathBuf,
    /// The size of the LUN, in bytes. It may be larger than the recorded size.
    pub size_bytes: u64,
    /// The major and minor number, if the LUN is a block device.
    #[serde(deserialize_with = "present")]
    pub device: Option<(u32, u32)>,
    /// The number of the disk; the kernel gives it to no other disk in this boot.
    #[serde(deserialize_with = "present")]
    pub disk_sequence: Option<u64>,
}

impl OpenLun {
    /// Describes an open LUN.
    #[must_use]
    pub fn of(lun: &lun::Lun) -> Self {
        Self {
            path: lun.path.clone(),
            size_bytes: lun.identity.size_bytes,
            device: lun.device_number,
            disk_sequence: lun.disk_sequence,
        }
    }

    /// Whether both are the same device. Files cannot be distinguished here; their identity does
    /// that.
    #[must_use]
    pub fn is_same_device(&self, other: &Self) -> bool {
        self.device == other.device && self.disk_sequence == other.disk_sequence
    }
}

/// The counters of `ublk-target`, since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Read requests answered.
    pub reads: u64,
    /// Write requests answered.
    pub writes: u64,
    /// Flush requests answered.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests answered with an error.
    pub failed: u64,
    /// Reads that the mirror leg did, because the authoritative one could not.
    pub mirror_reads: u64,
    /// Exchanges of the roles because the authoritative leg failed.
    pub fail_overs: u64,
    /// Requests that had to wait for another write, a claim, the write intent or the mirror leg.
    pub waited: u64,
    /// Durable writes to the map file.
    pub map_writes: u64,
    /// The last pause: from the first request held to the first let go, in microseconds.
    pub last_pause_us: u64,
}
