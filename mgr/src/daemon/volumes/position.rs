//! What the status of a volume says about the pair that it belongs to.

use migration_core::pair::{Facts, Seen};
use migration_proto::route::Side;
use migration_proto::target::{CopyMode, Status};

use super::route_change::is_ours;
use crate::daemon::handle::View;
use crate::moments;
use crate::store::{PairRow, SessionRow};

/// The facts about a pair in the status of its volume.
pub(crate) fn seen(status: &Status, pair: &PairRow) -> Seen {
    Seen {
        route: status.route.into(),
        ours: is_ours(status, pair),
        dirty: status.dirty_bytes > 0,
        tracks: status.copy_mode == CopyMode::Track
            && status.route.is_mirrored()
            && status.route.authoritative() == Side::Source,
        degraded: status.degraded.is_some(),
        changing: status.changing,
    }
}

/// The facts that a pair's state follows from. While ublk-target is being restarted, the route that
/// it last reported still holds, but whether the legs are in sync is not known: the new process may
/// have to copy again what was not durably clean. When ublk-target cannot be started, nothing is
/// known.
///
/// `comparing`: the legs of the pair are being compared, or are to be.
pub(crate) fn facts(
    session: &SessionRow,
    pair: &PairRow,
    view: Option<&View>,
    comparing: bool,
) -> Facts {
    let seen = view
        .filter(|view| view.connected || view.failures == 0)
        .and_then(|view| {
            let seen = seen(view.status.as_deref()?, pair);
            Some(Seen {
                dirty: seen.dirty || !view.connected,
                ..seen
            })
        });
    Facts {
        phase: pair.phase,
        paused: session.paused,
        last_authoritative: pair.authoritative,
        seen,
        comparing,
        retired: pair.retired.is_some(),
        outside_hours: !session.options.hours.contains(moments::minute_now()),
    }
}
