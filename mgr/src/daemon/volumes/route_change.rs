//! Asks a volume's ublk-target for a change of the route, and finds out whether it happened.
//!
//! A connection that ends during the request leaves that open. Then shuntd waits for the volume,
//! and its route says what happened: the change is done, or shuntd asks once more. ublk-target
//! refuses a request with an old epoch, so nothing is done twice. What is still open after that is
//! an outcome of its own ([`NotChanged::is_unknown`]), which is never recorded as not done.

use std::time::Duration;

use migration_proto::route::{Leg, Route, Side};
use migration_proto::target::{Refusal, Request, Response, Status};

use super::truth::Truth;
use crate::daemon::handle::{AskError, VolumeHandle};
use crate::store::PairRow;

/// How long a change for which no operator chose a limit may hold requests, in milliseconds.
pub(crate) const DEADLINE_MS: u64 = 5_000;
/// How long ublk-target may take for a change beyond its deadline: more than its own limit for the
/// preparation (`migration_core::volume::PREPARE_NANOSECONDS_MAX`).
const CHANGE_SLACK: Duration = Duration::from_secs(90);
/// How long a volume may take to answer again.
pub(crate) const COME_BACK_MAX: Duration = Duration::from_secs(60);
/// How long ublk-target may take to check a mirror leg again.
const RETRY_MIRROR_MAX: Duration = Duration::from_secs(60);
/// The most requests for one change.
const ATTEMPTS_MAX: u32 = 4;

/// The route is the requested one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The pause, in microseconds; unknown if ublk-target died during the change, or the route was
    /// the requested one already.
    pub(crate) pause_us: Option<u64>,
    /// The epoch of the route.
    pub(crate) epoch: u64,
}

impl Changed {
    /// The status of the volume shows the requested route.
    const fn found(status: &Status) -> Self {
        Self {
            pause_us: None,
            epoch: status.epoch,
        }
    }
}

/// Why the route is not the requested one, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub(crate) struct NotChanged {
    /// The kind of the refusal: the route is as before. `None`: the outcome is unknown, because no
    /// answer came, or an earlier change is in progress.
    pub(crate) refusal: Option<Refusal>,
    /// The cause, in words.
    pub(crate) cause: String,
}

impl NotChanged {
    pub(crate) fn refused(refusal: Refusal, cause: impl Into<String>) -> Self {
        Self {
            refusal: Some(refusal),
            cause: cause.into(),
        }
    }

    /// The change may have happened, or may still happen. The phase stays what it is, and the next
    /// status of the volume settles it (`migration_core::pair::settle`).
    pub(crate) const fn is_unknown(&self) -> bool {
        self.refusal.is_none()
    }
}

impl From<AskError> for NotChanged {
    fn from(error: AskError) -> Self {
        Self {
            refusal: None,
            cause: error.to_string(),
        }
    }
}

/// Whether a volume is mirrored onto the target of a pair.
pub(super) fn is_mirrored_on(status: &Status, pair: &PairRow) -> bool {
    status.route.is_mirrored() && is_ours(status, pair)
}

/// Whether the target of a pair is the other leg of a volume, mirrored or split.
pub(crate) fn is_paired_with(status: &Status, pair: &PairRow) -> bool {
    let has_other = matches!(status.route, Route::Mirrored { .. } | Route::Split);
    has_other && is_ours(status, pair)
}

/// Whether the legs that a volume uses are those of a pair, each on its side.
pub(super) fn is_ours(status: &Status, pair: &PairRow) -> bool {
    let source = || pair.source.is(&status.source);
    let target = || {
        status
            .target
            .as_ref()
            .is_some_and(|leg| pair.target.is(leg))
    };
    match status.route {
        Route::Single { leg: Side::Source } => source(),
        Route::Single { leg: Side::Target } => target(),
        Route::Mirrored { .. } | Route::Split => source() && target(),
    }
}

/// Adds the pair's target as the mirror leg.
pub(crate) async fn add_mirror(
    handle: &VolumeHandle,
    pair: &PairRow,
    target: &Leg,
) -> Result<Changed, NotChanged> {
    let status = handle.status(COME_BACK_MAX).await?;
    let truth = Truth::of_status(&status);
    if !is_paired_with(&status, pair) && !truth.is_single_on(&pair.source) {
        return Err(another(pair, &truth));
    }
    let done = |status: &Status| is_mirrored_on(status, pair);
    let request = |status: &Status| Request::AddMirror {
        epoch: status.epoch,
        target: target.clone(),
        deadline_ms: DEADLINE_MS,
    };
    change(handle, DEADLINE_MS, done, request).await
}

/// Changes the route of a pair that is mirrored or split. `copies_rest`: as in
/// [`Request::SetRoute`].
pub(crate) async fn set_route(
    handle: &VolumeHandle,
    pair: &PairRow,
    route: Route,
    deadline_ms: u64,
    copies_rest: bool,
) -> Result<Changed, NotChanged> {
    let status = handle.status(COME_BACK_MAX).await?;
    if !is_ours(&status, pair) {
        return Err(another(pair, &Truth::of_status(&status)));
    }
    let done = |status: &Status| status.route == route && is_ours(status, pair);
    let request = |status: &Status| Request::SetRoute {
        epoch: status.epoch,
        route,
        deadline_ms,
        copies_rest,
    };
    change(handle, deadline_ms, done, request).await
}

/// The refusal when the volume does not use the LUNs of the pair: the pair must not change its
/// route.
fn another(pair: &PairRow, truth: &Truth) -> NotChanged {
    let cause = format!(
        "volume {} {}, and the pair is {} to {}: the database is older than the map file",
        pair.volume,
        truth.text(),
        pair.source,
        pair.target
    );
    NotChanged::refused(Refusal::WrongRoute, cause)
}

async fn change(
    handle: &VolumeHandle,
    deadline_ms: u64,
    done: impl Fn(&Status) -> bool,
    request: impl Fn(&Status) -> Request,
) -> Result<Changed, NotChanged> {
    let limit = Duration::from_millis(deadline_ms).saturating_add(CHANGE_SLACK);
    let mut last = NotChanged {
        refusal: None,
        cause: "it was not asked for".to_owned(),
    };
    for _ in 0..ATTEMPTS_MAX {
        let status = handle.status(COME_BACK_MAX).await?;
        if done(&status) {
            return Ok(Changed::found(&status));
        }
        match handle.ask(request(&status), limit).await {
            Ok(Response::RouteChanged {
                pause_us, epoch, ..
            }) => {
                return Ok(Changed {
                    pause_us: Some(pause_us),
                    epoch,
                });
            }
            Ok(Response::Refused { reason, cause }) => {
                last = NotChanged::refused(reason, cause);
                let view = handle.view();
                match reason {
                    Refusal::StaleEpoch => {}
                    // The next ublk-target knows the route.
                    Refusal::Ending => last.refusal = None,
                    // The change in progress may be this one, requested before an answer was lost.
                    Refusal::Busy if view.status.is_none_or(|status| status.changing) => {
                        last.refusal = None;
                        return Err(last);
                    }
                    Refusal::Busy
                    | Refusal::NotInSync
                    | Refusal::WrongRoute
                    | Refusal::Deadline
                    | Refusal::BadLeg
                    | Refusal::CopierBusy
                    | Refusal::NotCopier
                    | Refusal::DeviceOpen
                    | Refusal::Failed
                    | Refusal::Malformed => return Err(last),
                }
            }
            Ok(other) => {
                let cause = format!("ublk-target answers a change of the route with {other:?}");
                return Err(NotChanged {
                    refusal: None,
                    cause,
                });
            }
            Err(error) => last = error.into(),
        }
    }
    // The last attempt may have been done before its answer was lost.
    let status = handle.status(COME_BACK_MAX).await?;
    if done(&status) {
        Ok(Changed::found(&status))
    } else {
        Err(last)
    }
}

/// Lets the volume use its mirror leg again.
pub(crate) async fn retry_mirror(handle: &VolumeHandle) -> Result<(), String> {
    let status = handle
        .status(RETRY_MIRROR_MAX)
        .await
        .map_err(|error| error.to_string())?;
    match handle
        .ask(
            Request::RetryMirror {
                epoch: status.epoch,
            },
            RETRY_MIRROR_MAX,
        )
        .await
    {
        Ok(Response::Done) => Ok(()),
        Ok(Response::Refused { cause, .. }) => Err(cause),
        Ok(other) => Err(format!("ublk-target answers with {other:?}")),
        Err(error) => Err(error.to_string()),
    }
}
