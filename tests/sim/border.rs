//! The border between shuntd and the volumes. Operations, states and decisions are those of
//! `seeded_core`, the same sources as `migration_core`, so that their rules can be broken; the
//! volumes are those of `migration_core`, as in the crates that they need.

use migration_core::route::{Route as Served, Side as Leg};
use seeded_core::route::{Route, Side};

/// A route that a volume reports.
pub(crate) const fn reported(route: Served) -> Route {
    match route {
        Served::Single(leg) => Route::Single(side_of(leg)),
        Served::Mirrored { authoritative } => Route::Mirrored {
            authoritative: side_of(authoritative),
        },
        Served::Split => Route::Split,
    }
}

/// A route that a volume is asked for.
pub(crate) const fn asked(route: Route) -> Served {
    match route {
        Route::Single(side) => Served::Single(leg_of(side)),
        Route::Mirrored { authoritative } => Served::Mirrored {
            authoritative: leg_of(authoritative),
        },
        Route::Split => Served::Split,
    }
}

/// The leg of a volume on a side.
pub(crate) const fn leg_of(side: Side) -> Leg {
    match side {
        Side::Source => Leg::Source,
        Side::Target => Leg::Target,
    }
}

const fn side_of(leg: Leg) -> Side {
    match leg {
        Leg::Source => Side::Source,
        Leg::Target => Side::Target,
    }
}
