//! Asking a volume's ublk-target for another route, and knowing afterwards whether it has happened.
//!
//! A connection that ends on the way leaves that open. Then the volume is waited for, and its route says what has happened: done,
//! or asked for once more. ublk-target refuses a request with an old epoch, so nothing is done twice.

use std::time::Duration;

use migration_proto::route::{Leg, Route, Side};
use migration_proto::target::{Refusal, Request, Response, Status};

use super::volume::{AskError, VolumeHandle};
use crate::store::PairRow;

/// How long a change that nobody waits for on the application's side may hold requests, in milliseconds.
pub(super) const DEADLINE_MS: u64 = 5_000;
/// How long ublk-target may take for a change beyond its deadline: more than it gives itself to prepare
/// (`migration_core::volume::PREPARE_NANOSECONDS_MAX`).
const CHANGE_SLACK: Duration = Duration::from_secs(90);
/// How long a volume may take to come back.
pub(super) const COME_BACK_MAX: Duration = Duration::from_secs(60);
/// How often a change is asked for.
const ATTEMPTS_MAX: u32 = 4;

/// The route is as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Changed {
    /// The pause, in microseconds; unknown if ublk-target died on the way, or the route was so already.
    pub(super) pause_us: Option<u64>,
}

/// Why the route is not as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub(super) struct NotChanged {
    /// What ublk-target said it was, if it refused.
    pub(super) refusal: Option<Refusal>,
    /// In words.
    pub(super) cause: String,
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
    let target = status.target.as_ref();
    status.route.is_mirrored() && target.is_some_and(|target| pair.target.is(target))
}

/// Whether the target of a pair is the other leg of a volume, be it written or left alone.
pub(super) fn is_paired_with(status: &Status, pair: &PairRow) -> bool {
    let has_other = matches!(status.route, Route::Mirrored { .. } | Route::Split);
    let target = status.target.as_ref();
    has_other && target.is_some_and(|target| pair.target.is(target))
}

/// Adds the pair's target as the mirror leg.
pub(super) async fn add_mirror(
    handle: &VolumeHandle,
    pair: &PairRow,
    target: &Leg,
) -> Result<Changed, NotChanged> {
    let done = |status: &Status| is_mirrored_on(status, pair);
    let request = |status: &Status| Request::AddMirror {
        epoch: status.epoch,
        target: target.clone(),
        deadline_ms: DEADLINE_MS,
    };
    change(handle, DEADLINE_MS, done, request).await
}

/// Changes the route of a pair that is mirrored or split. `copies_rest`: as in [`Request::SetRoute`].
pub(super) async fn set_route(
    handle: &VolumeHandle,
    pair: &PairRow,
    route: Route,
    deadline_ms: u64,
    copies_rest: bool,
) -> Result<Changed, NotChanged> {
    let status = handle.status(COME_BACK_MAX).await?;
    let has_other = !matches!(status.route, Route::Single { .. });
    if has_other && !is_paired_with(&status, pair) {
        let cause = format!(
            "volume {} is mirrored onto another lun than {}",
            pair.volume, pair.target
        );
        return Err(NotChanged {
            refusal: None,
            cause,
        });
    }
    let done = |status: &Status| status.route == route;
    let request = |status: &Status| Request::SetRoute {
        epoch: status.epoch,
        route,
        deadline_ms,
        copies_rest,
    };
    change(handle, deadline_ms, done, request).await
}

/// The route in which both legs are used and `authoritative` rules.
pub(super) const fn mirrored(authoritative: Side) -> Route {
    Route::Mirrored { authoritative }
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
            return Ok(Changed { pause_us: None });
        }
        match handle.ask(request(&status), limit).await {
            Ok(Response::RouteChanged { pause_us, .. }) => {
                return Ok(Changed {
                    pause_us: Some(pause_us),
                });
            }
            Ok(Response::Refused { reason, cause }) => {
                last = NotChanged {
                    refusal: Some(reason),
                    cause,
                };
                if reason != Refusal::StaleEpoch {
                    return Err(last);
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
        Ok(Changed { pause_us: None })
    } else {
        Err(last)
    }
}
