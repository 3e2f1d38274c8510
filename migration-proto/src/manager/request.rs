//! What `shunt` asks of `shuntd`.

use serde::{Deserialize, Serialize};

use super::cursor::Cursor;
use super::options::{RetireHow, SessionLimits, SessionOptions};

use crate::luns::LunPaths;
use crate::route::Side;

/// A request to `shuntd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Put a volume over a LUN. Answer: [`Response::Done`](super::Response::Done).
    Attach {
        /// The name of the volume.
        volume: String,
        /// The LUNs of the volume, as absolute paths.
        luns: LunPaths,
        /// Accept LUNs that have no name of their own. If the volume is attached already: confirm
        /// that the LUNs that are at these paths now are those of its LUNs (of either leg) that
        /// were accepted in this way.
        accept_weak_identity: bool,
    },
    /// Take a volume away. Refused while it is open or part of a live session.
    Detach {
        /// The volume.
        volume: String,
    },
    /// Record a session.
    Create {
        /// The name of the session.
        session: String,
        /// The pairs of the session.
        pairs: Vec<PairSpec>,
        /// The options of the session.
        options: SessionOptions,
    },
    /// Begin to mirror and copy.
    Start {
        /// The session.
        session: String,
    },
    /// Stop copying; writes are still mirrored where the regions are clean.
    Pause {
        /// The session.
        session: String,
    },
    /// Continue copying, also after the mirror leg failed.
    Resume {
        /// The session.
        session: String,
    },
    /// Make the target authoritative.
    Switch {
        /// The session.
        session: String,
        /// How long requests may be held, in milliseconds.
        max_pause_ms: u64,
    },
    /// Make the source authoritative again.
    Undo {
        /// The session.
        session: String,
        /// How long requests may be held, in milliseconds.
        max_pause_ms: u64,
    },
    /// Detach the targets of all pairs, as copies of their sources at one instant.
    Split {
        /// The session.
        session: String,
        /// How long requests may be held, in milliseconds.
        max_pause_ms: u64,
    },
    /// End the migration on the target. Cannot be taken back.
    Commit {
        /// The session.
        session: String,
    },
    /// End the migration on the source.
    Cancel {
        /// The session.
        session: String,
    },
    /// Change limits of a session that has not ended.
    SetSession {
        /// The session.
        session: String,
        /// The limits to change.
        limits: SessionLimits,
    },
    /// Change the limits of this host.
    SetHost {
        /// How many pairs of all sessions are copied at once, 1 to
        /// [`PAIRS_MAX_MAX`](super::PAIRS_MAX_MAX).
        pairs_max: u32,
    },
    /// Let the sessions that wait for an event be switched as soon as they are in sync.
    Signal {
        /// The event.
        event: String,
    },
    /// Compare both legs of each pair while applications continue.
    Verify {
        /// The session.
        session: String,
        /// Copy differing regions again.
        repair: bool,
    },
    /// Make a new map file for a volume whose map file is lost or damaged. The volume uses one leg
    /// from then on.
    Recover {
        /// The volume.
        volume: String,
        /// The leg whose data is right.
        authoritative: Side,
        /// Recover also if the other leg was authoritative when the volume was last seen.
        against_record: bool,
        /// Change nothing; only say what would be done.
        dry_run: bool,
    },
    /// Free the locks on LUNs whose holder is gone.
    FreeLocks {
        /// Change nothing; only say which locks would be freed. `changed` in the answer says
        /// whether there are any.
        dry_run: bool,
    },
    /// Check all that `Create` would check, and estimate how long the session would take. Changes
    /// nothing, but keeps the estimate. Answer: [`Response::Records`](super::Response::Records) of
    /// [`Record::Plan`](super::Record::Plan).
    Plan {
        /// The name of the session.
        session: String,
        /// The pairs of the session.
        pairs: Vec<PairSpec>,
        /// The options of the session.
        options: SessionOptions,
    },
    /// Make the legs that an ended session left behind inaccessible.
    Retire {
        /// The session.
        session: String,
        /// The method.
        how: RetireHow,
    },
    /// Make the legs that an ended session left behind accessible again, as far as that is
    /// possible.
    TakeBack {
        /// The session.
        session: String,
    },
    /// Report all volumes, sessions and pairs, or one session. Answer:
    /// [`Response::Records`](super::Response::Records).
    Status {
        /// Only this session.
        session: Option<String>,
    },
    /// Report the history: who did what, and when. Answer:
    /// [`Response::Records`](super::Response::Records) of [`Record::Event`](super::Record::Event),
    /// oldest first.
    History {
        /// Only this session.
        session: Option<String>,
        /// Report the first lines after this place instead of the last ones of the history; none
        /// if there are no more. Refused if it is not known what came after the place.
        after: Option<Cursor>,
    },
    /// Report the progress of the pairs of a session. Answer:
    /// [`Response::Records`](super::Response::Records) of
    /// [`Record::Sample`](super::Record::Sample), in the order of time.
    Samples {
        /// The session.
        session: String,
    },
    /// Report the current state, then the events that follow. Answer:
    /// [`Response::Events`](super::Response::Events), after [`EVENTS_WAIT_MS`] at the latest.
    Events {
        /// Only this session.
        session: Option<String>,
        /// [`Response::Events::next`](super::Response::Events::next) of the last answer; `None`
        /// asks for the current state.
        after: Option<u64>,
    },
}

impl Request {
    /// Whether the request changes nothing, so that it can be sent again.
    #[must_use]
    pub const fn is_question(&self) -> bool {
        matches!(
            self,
            Self::Status { .. }
                | Self::History { .. }
                | Self::Samples { .. }
                | Self::Plan { .. }
                | Self::Events { .. }
        )
    }
}

/// How long the answer to [`Request::Events`] may take while there is no event, in milliseconds.
pub const EVENTS_WAIT_MS: u64 = 10_000;

/// One pair of a session to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSpec {
    /// The volume to move.
    pub volume: String,
    /// The LUNs of the target, as absolute paths.
    pub target: LunPaths,
}
