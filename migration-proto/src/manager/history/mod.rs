//! The events of the history: a code and typed fields for each kind of thing that happens. The
//! sentences that people read are made where they are shown.

mod fields;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use migration_core::pair::{PairState, Phase, Verb};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::options::{RetireHow, SessionMode, SwitchPolicy};
use crate::luns::LunPaths;
use crate::route::{Route, Side};
pub use fields::{CopierTask, CutoverMisfit, LimitChange};
use fields::{pair_state, phase, verb};

/// What happened: one line of the history, without its time and the objects that it concerns.
///
/// No field has the name of a field of [`EventRecord`](super::EventRecord), of which an event is a
/// part. A `cause` is text from elsewhere: an error of the kernel, or a reason to refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "code", rename_all = "snake_case", remote = "Self")]
pub enum HistoryEvent {
    /// An attach has begun.
    AttachBegun {
        /// The LUNs of the volume.
        lun: LunPaths,
        /// What identifies these LUNs.
        identity: String,
        /// Those of these LUNs that have no name of their own and were accepted all the same.
        weak_identity: Vec<PathBuf>,
    },
    /// A volume was attached.
    Attached {
        /// The device of the kernel, `/dev/ublkbN`.
        device: PathBuf,
    },
    /// An attach failed, and was undone.
    AttachFailed {
        /// The cause.
        cause: String,
    },
    /// An attach that a crash of shuntd interrupted is complete.
    AttachFinished,
    /// A detach has begun.
    DetachBegun,
    /// A volume was detached.
    Detached {
        /// The LUNs that have its data.
        lun: LunPaths,
    },
    /// A detach failed; the volume is still attached.
    NotDetached {
        /// The cause.
        cause: String,
    },
    /// The outcome of a detach is unknown.
    DetachUnknown {
        /// The cause.
        cause: String,
    },
    /// A LUN is larger than when it was recorded.
    LunGrown {
        /// The LUN.
        lun: PathBuf,
        /// The size of the LUN, in bytes.
        lun_bytes: u64,
        /// The size of the volume, in bytes.
        volume_bytes: u64,
    },
    /// A LUN was found under another path than the recorded one.
    LunFoundElsewhere {
        /// The recorded path.
        lun: PathBuf,
        /// The path that leads to the LUN.
        found: PathBuf,
    },
    /// A LUN without a name of its own has the contents of the LUN that was accepted.
    LunRecognised {
        /// The LUN.
        lun: PathBuf,
        /// The contents that only this LUN has; `null` if that is not known.
        contents: Option<String>,
    },
    /// The operator accepted a LUN without a name of its own again.
    LunAccepted {
        /// The LUN.
        lun: PathBuf,
        /// The size of the LUN, in bytes.
        lun_bytes: u64,
        /// The UUID or label on the LUN; `null` if there is none.
        contents: Option<String>,
    },
    /// A volume's route in the map file is newer than the database, and was recorded.
    RouteFound {
        /// The route in the map file.
        route: Route,
        /// The LUNs of the source leg; `null` if the map file names none.
        source: Option<LunPaths>,
        /// The LUNs of the target leg; `null` if the map file names none.
        target: Option<LunPaths>,
        /// The LUNs that were recorded.
        recorded: LunPaths,
    },
    /// The route of a volume contradicts the recorded phase of its pair.
    RouteContradicts {
        /// The recorded phase.
        #[serde(with = "phase")]
        #[cfg_attr(test, schemars(with = "fields::PhaseName"))]
        phase: Phase,
        /// The route of the volume.
        route: Route,
        /// The LUNs of the source leg; `null` if the map file names none.
        source: Option<LunPaths>,
        /// The LUNs of the target leg; `null` if the map file names none.
        target: Option<LunPaths>,
        /// Whether the volume uses legs of the pair.
        is_own: bool,
    },

    /// The database was lost, and was made again from the map files.
    DatabaseRebuilt {
        /// Why it was lost.
        cause: String,
    },
    /// A volume that the database lacked was recorded from its map file.
    VolumeRestored {
        /// Whether there was a database, older than the map file.
        older_database: bool,
        /// The LUNs of the volume.
        lun: LunPaths,
    },
    /// A mirrored volume that the database lacked was recorded with a session for it.
    SessionRestored {
        /// Whether there was a database, older than the map file.
        older_database: bool,
        /// The name of the new session.
        found_session: String,
        /// The LUNs of the source leg.
        source: LunPaths,
        /// The LUNs of the target leg.
        target: LunPaths,
        /// The authoritative leg.
        authoritative: Side,
    },
    /// A volume could not be recorded from its map file.
    VolumeNotRestored {
        /// The cause.
        cause: String,
        /// The path of the database.
        database: String,
    },
    /// A lock without a holder was freed.
    LockFreed {
        /// The locked LUN.
        lun: PathBuf,
        /// The recorded holder.
        holder: String,
    },
    /// The replacement of a damaged map file has begun.
    RecoverBegun {
        /// The leg that the volume will use.
        leg: Side,
        /// What is damaged.
        cause: String,
    },

    /// A pair was created.
    Created {
        /// The LUNs of the source.
        source: LunPaths,
        /// The LUNs of the target.
        target: LunPaths,
        /// What identifies the LUNs of the target.
        identity: String,
        /// Those of these LUNs that have no name of their own and were accepted all the same.
        weak_identity: Vec<PathBuf>,
        /// Whether the contents of the target may be overwritten.
        overwrite: bool,
    },
    /// A verb has begun on a pair.
    VerbBegun {
        /// The verb.
        #[serde(with = "verb")]
        #[cfg_attr(test, schemars(with = "fields::VerbName"))]
        verb: Verb,
    },
    /// The start of a queued pair has begun.
    TurnCame,
    /// A verb that was due was refused.
    DueVerbRefused {
        /// The verb.
        #[serde(with = "verb")]
        #[cfg_attr(test, schemars(with = "fields::VerbName"))]
        verb: Verb,
        /// The reason to refuse.
        cause: String,
    },
    /// A commit or a cancel failed; the pair stays as it was.
    VerbFailed {
        /// The verb.
        #[serde(with = "verb")]
        #[cfg_attr(test, schemars(with = "fields::VerbName"))]
        verb: Verb,
        /// The cause.
        cause: String,
    },
    /// The outcome of a verb is unknown.
    VerbUnknown {
        /// The verb.
        #[serde(with = "verb")]
        #[cfg_attr(test, schemars(with = "fields::VerbName"))]
        verb: Verb,
        /// The cause.
        cause: String,
    },
    /// A verb was interrupted by a crash, and the route of the volume shows what became of it.
    VerbInterrupted {
        /// The recorded phase.
        #[serde(with = "phase")]
        #[cfg_attr(test, schemars(with = "fields::PhaseName"))]
        from: Phase,
        /// The phase from now on.
        #[serde(with = "phase")]
        #[cfg_attr(test, schemars(with = "fields::PhaseName"))]
        to: Phase,
        /// The authoritative leg.
        authoritative: Side,
    },
    /// A pair waits because enough pairs are being copied.
    Queued {
        /// The most pairs that are copied at once.
        pairs_max: u32,
    },
    /// A pair waits until the copy window of its session opens.
    QueuedForHours {
        /// The first minute of the window, counted from midnight.
        from_minute: u16,
        /// The first minute after the window, counted from midnight.
        to_minute: u16,
    },
    /// A pair is mirrored, and its copy begins.
    Started {
        /// The LUNs of the target.
        target: LunPaths,
    },
    /// The start of a pair failed.
    NotStarted {
        /// The cause.
        cause: String,
    },
    /// The legs of a pair are equal.
    InSync {
        /// What was copied since the start, in bytes.
        copied_bytes: u64,
        /// How long the first complete copy took, in milliseconds; `null` after later ones.
        took_ms: Option<u64>,
        /// How long `shunt plan` expected the copy to take, in seconds; `null` without a plan.
        expected_seconds: Option<u64>,
    },
    /// The copy of a session was paused.
    Paused,
    /// The copy of a session continues.
    Resumed,
    /// The copy of a session was paused at the end of its maximum duration.
    MaxDurationOver {
        /// The maximum duration, in seconds.
        max_duration_seconds: u64,
    },
    /// The copy of a session stopped at the end of its copy window.
    HoursOver {
        /// The first minute of the window, counted from midnight.
        from_minute: u16,
        /// The first minute after the window, counted from midnight.
        to_minute: u16,
    },

    /// A copier cannot work.
    CopierBlocked {
        /// The task of the copier.
        task: CopierTask,
        /// Whether the task is retried; `null` if it waits until the mirror leg is accepted again.
        retried: Option<bool>,
        /// The cause.
        cause: String,
    },
    /// A copier failed on a leg.
    CopierLegFailed {
        /// The task of the copier.
        task: CopierTask,
        /// The leg.
        leg: Side,
        /// Whether the task is retried.
        retried: bool,
        /// The cause.
        cause: String,
    },
    /// A copier failed.
    CopierFailed {
        /// The task of the copier.
        task: CopierTask,
        /// Whether the task is retried.
        retried: bool,
        /// The cause.
        cause: String,
    },
    /// A part of the source cannot be read, and becomes zeroes on the target.
    Unreadable {
        /// The start of the part, in bytes.
        offset_bytes: u64,
        /// The length of the part, in bytes.
        length_bytes: u64,
    },
    /// A target that stalled answers again; the writes that it missed are being copied.
    TargetAnswers,
    /// A target that stalled has all writes; writes are mirrored again.
    TargetCaughtUp,
    /// All of the mirror leg is compared again.
    LegsInDoubt {
        /// The authoritative leg.
        authoritative: Side,
        /// Why the mirror leg may differ.
        cause: String,
    },
    /// A comparison of the legs has begun.
    CompareBegun,
    /// A comparison of the legs has ended. All bytes are counted in whole regions.
    Compared {
        /// How much was compared, in bytes.
        compared_bytes: u64,
        /// How much of that differed, in bytes.
        differing_bytes: u64,
        /// The address of the first region that differed, in bytes; `null` if none did.
        first_difference_bytes: Option<u64>,
        /// How much could not be compared, in bytes.
        unknown_bytes: u64,
        /// Whether a difference is no reason to refuse a switch once it is copied again.
        repaired: bool,
        /// Why a part could not be compared; `null` if no error was the reason.
        cause: Option<String>,
    },

    /// The role of a pair moved: a switch or an undo.
    RoleMoved {
        /// The leg that was authoritative.
        from: Side,
        /// The leg that is authoritative now.
        to: Side,
        /// The epoch of the new route; `null` if it is not known.
        epoch: Option<u64>,
        /// How long requests were held, in microseconds; `null` if that is not known.
        held_us: Option<u64>,
        /// How long `shunt plan` expected requests to be held, in microseconds; `null` without a
        /// plan.
        expected_us: Option<u64>,
    },
    /// The role of a pair moved back, because another pair of the session did not follow.
    RoleMovedBack {
        /// The leg that is authoritative again.
        to: Side,
        /// How long requests were held, in microseconds; `null` if that is not known.
        held_us: Option<u64>,
    },
    /// A switch or an undo did not move the role of a pair.
    RoleNotMoved {
        /// The leg that was to become authoritative.
        to: Side,
        /// The cause.
        cause: String,
    },
    /// The authoritative leg failed, and ublk-target made the other one authoritative.
    FailedOver {
        /// The leg that failed.
        from: Side,
        /// The leg that is authoritative now.
        to: Side,
        /// The state of the leg that failed.
        cause: String,
    },
    /// Another leg is authoritative than was recorded.
    AuthoritativeFound {
        /// The authoritative leg.
        to: Side,
    },
    /// A pair ended: its volume uses one leg alone.
    Ended {
        /// The leg that the volume uses.
        leg: Side,
        /// The LUNs of that leg.
        lun: LunPaths,
        /// The LUNs that are no longer used.
        freed: LunPaths,
    },
    /// A cancel was interrupted, so that it is unknown whether the target is a copy.
    CopyUnknown {
        /// The LUNs of the target.
        target: LunPaths,
    },

    /// The target of a pair was detached, as a copy of the source at an instant.
    Split {
        /// The LUNs of the source.
        source: LunPaths,
        /// The LUNs of the target.
        target: LunPaths,
        /// The instant, in milliseconds since the Unix epoch.
        copy_of_at_ms: u64,
        /// How long requests were held, in microseconds; `null` if that is not known.
        held_us: Option<u64>,
    },
    /// A split failed; the target is no copy.
    NotSplit {
        /// The cause.
        cause: String,
    },
    /// The target of a split pair is mirrored again.
    MirroredAgain {
        /// Why everything is copied; `null` if only what was written since the split is.
        full_copy_cause: Option<String>,
    },
    /// The target of a split pair could not be mirrored again.
    NotMirroredAgain {
        /// The cause.
        cause: String,
    },
    /// Whether the target of a split pair is mirrored again is unknown.
    MirroredAgainUnknown {
        /// The cause.
        cause: String,
    },

    /// A cutover has begun: writes are slowed until the rest can be copied within the pause.
    CutoverBegun {
        /// How long requests may be held, in milliseconds.
        max_pause_ms: u64,
    },
    /// The operator asked again for a cutover that is in progress.
    CutoverRequestedAgain {
        /// How long requests may be held, in milliseconds.
        max_pause_ms: u64,
    },
    /// A cutover slows writes.
    CutoverSlowsWrites {
        /// What applications write, in bytes a second.
        write_bytes_per_second: u64,
        /// What can be copied, in bytes a second.
        copy_bytes_per_second: u64,
        /// How long requests would be held now, in microseconds; `null` if that is not known.
        predicted_pause_us: Option<u64>,
    },
    /// A cutover holds requests.
    CutoverHoldsRequests {
        /// How long requests are held at most, in milliseconds.
        hold_max_ms: u64,
        /// What applications write, in bytes a second.
        write_bytes_per_second: u64,
        /// What applications wrote before writes were slowed, in bytes a second; `null` if they
        /// were not.
        unslowed_bytes_per_second: Option<u64>,
        /// What can be copied, in bytes a second.
        copy_bytes_per_second: u64,
    },
    /// All attempts of a cutover failed.
    CutoverGaveUp {
        /// Why the last attempt failed; `null` if that is not known.
        misfit: Option<CutoverMisfit>,
        /// How long requests might be held, in microseconds.
        max_pause_us: u64,
        /// The lowest rate to which writes might be slowed, in bytes a second.
        floor_bytes_per_second: u64,
        /// How long writes might be slowed in one attempt, in seconds.
        duration_seconds: u64,
    },
    /// A cutover ended because of the state of a pair.
    CutoverStopped {
        /// The volume of the pair.
        pair_volume: String,
        /// The state of the pair.
        #[serde(with = "pair_state")]
        #[cfg_attr(test, schemars(with = "fields::PairStateName"))]
        pair_state: PairState,
    },

    /// A leg that an ended pair left behind was made inaccessible.
    Retired {
        /// The leg.
        leg: Side,
        /// The LUNs of the leg.
        lun: LunPaths,
        /// How the leg was made inaccessible.
        how: RetireHow,
        /// With [`RetireHow::WipeSignatures`]: the number of blocks that were wiped; `null`
        /// otherwise.
        blocks: Option<u64>,
    },
    /// A leg could not be made inaccessible.
    NotRetired {
        /// The cause.
        cause: String,
    },
    /// A commit was interrupted, so that the source was not made inaccessible.
    RetireInterrupted {
        /// The LUNs of the source.
        lun: LunPaths,
    },
    /// A leg that was made inaccessible is accessible again.
    RetireTakenBack {
        /// The leg.
        leg: Side,
        /// The LUNs of the leg.
        lun: LunPaths,
    },

    /// The limits of a session were changed.
    LimitsSet {
        /// The changes.
        changes: Vec<LimitChange>,
    },
    /// The most pairs that are copied at once on this host was changed.
    PairsMaxSet {
        /// The new limit.
        pairs_max: u32,
    },
    /// A verb changed when the session is switched or split.
    SwitchPolicySet {
        /// The verb.
        #[serde(with = "verb")]
        #[cfg_attr(test, schemars(with = "fields::VerbName"))]
        verb: Verb,
        /// The new policy.
        policy: SwitchPolicy,
        /// The mode of the session.
        mode: SessionMode,
    },
    /// The event that a session waited for was signalled.
    Signalled {
        /// The name of the event.
        signal: String,
        /// The mode of the session.
        mode: SessionMode,
    },

    /// The state of a pair or of a volume changed. Sent to clients, and never stored.
    StateChanged {
        /// The name of the new state.
        state: String,
    },
    /// An event that this version does not know, or of which it does not know a value. Never made.
    #[serde(other)]
    Unknown,
}

impl Serialize for HistoryEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The derived function, which `remote` makes an inherent one.
        Self::serialize(self, serializer)
    }
}

/// One event that is not understood must not hide all others: the history is only read.
impl<'de> Deserialize<'de> for HistoryEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self::deserialize(value).unwrap_or(Self::Unknown))
    }
}

impl HistoryEvent {
    /// The leg that became authoritative with this event, if the role moved.
    #[must_use]
    pub fn moved_to(&self) -> Option<Side> {
        if let Self::RoleMoved { to, .. }
        | Self::RoleMovedBack { to, .. }
        | Self::FailedOver { to, .. }
        | Self::AuthoritativeFound { to } = self
        {
            return Some(*to);
        }
        if let Self::VerbInterrupted {
            from,
            to,
            authoritative,
        } = self
        {
            // A failure can move the role during a commit or cancel, which then does not end.
            let moved = matches!(
                (from, to, authoritative),
                (Phase::Switching, _, Side::Target)
                    | (Phase::Undoing, _, Side::Source)
                    | (Phase::Committing, Phase::Active, Side::Source)
                    | (Phase::Cancelling, Phase::Active, Side::Target)
            );
            return moved.then_some(*authoritative);
        }
        None
    }

    /// How long requests were held, in microseconds, if this event held requests.
    #[must_use]
    pub const fn held_us(&self) -> Option<u64> {
        if let Self::RoleMoved { held_us, .. }
        | Self::RoleMovedBack { held_us, .. }
        | Self::Split { held_us, .. } = self
        {
            *held_us
        } else {
            None
        }
    }
}
