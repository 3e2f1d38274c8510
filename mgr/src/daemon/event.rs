//! The events that the loop of shuntd applies, and what an operation works on.

use std::collections::BTreeMap;

use copier::Outcome;
use migration_proto::manager::Response;
use tokio::sync::oneshot;

use super::failure::Answer;
use super::handle::VolumeHandle;
use crate::store::{Change, PairKey};

/// An event that the owner applies.
#[derive(Debug)]
pub(super) enum Event {
    /// A volume's view has changed.
    Volume(String),
    /// The ublk-target of a volume is about to open LUNs: let it know the disks of LUNs with a weak
    /// identity, then reply.
    KnowDisks {
        volume: String,
        reply: oneshot::Sender<()>,
    },
    /// These changes are durable.
    Changed(Vec<Change>),
    /// A new volume has come up.
    Supervised(VolumeHandle),
    /// A volume is gone.
    Unsupervised(String),
    /// The volumes of a status query have reported, or have not answered in time.
    Refreshed {
        session: Option<String>,
        /// Whether the answer is the beginning of an event stream.
        events: bool,
        reply: oneshot::Sender<Response>,
    },
    /// The result of a comparison of a pair's legs is recorded, or could not be recorded.
    ComparisonSettled(PairKey),
    /// It is time to check whether a volume stands on itself.
    CheckStanding,
    /// The volumes that stand on themselves, each with a description of the problem. An error: the
    /// check failed.
    Standing(Result<BTreeMap<String, String>, String>),
    /// The problems of the state folder and the socket folder have changed.
    Folders(Vec<String>),
    /// A leg that was left behind is held open from now on; without LUNs, no longer.
    Held { key: PairKey, luns: Vec<lun::Lun> },
    /// The operation of a cutover has exchanged the roles, or has failed.
    CutOver { session: String, failed: bool },
    /// A copier has ended.
    CopierEnded {
        key: PairKey,
        run: u64,
        outcome: Outcome,
    },
    /// The probe or the retry of a stalled target has ended; `well` if it succeeded.
    CameBack { key: PairKey, well: bool },
    /// An operation has ended.
    Finished {
        busy: Vec<Busy>,
        answer: Answer,
        reply: Option<oneshot::Sender<Response>>,
    },
}

/// What an operation works on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Busy {
    Volume(String),
    Session(String),
}
