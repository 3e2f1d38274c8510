//! What must be recorded before a volume is asked for a route. The model and the simulation both
//! check it.

use seeded_core::{
    operation::Step,
    pair::Phase,
    route::{Route, Side},
};

/// Whether `phase` is the recorded intention for a step that may change the route of a volume,
/// which is `route` now.
pub(crate) fn is_intended(phase: Phase, route: Route, step: Step) -> bool {
    match step {
        Step::AddMirror => phase == Phase::Starting,
        Step::SetRoute { route: wanted, .. } => match wanted {
            // Everything is copied again, to a target that was detached.
            Route::Single(Side::Source) => matches!(phase, Phase::Cancelling | Phase::Starting),
            Route::Single(Side::Target) => phase == Phase::Committing,
            Route::Split => phase == Phase::Splitting,
            // A target that was detached, or whose split is spoiled, becomes the mirror leg.
            Route::Mirrored {
                authoritative: Side::Source,
            } if route == Route::Split => matches!(phase, Phase::Active | Phase::Splitting),
            Route::Mirrored {
                authoritative: Side::Source,
            } => phase == Phase::Undoing,
            Route::Mirrored {
                authoritative: Side::Target,
            } => phase == Phase::Switching,
        },
        Step::Inspect(_)
        | Step::Release
        | Step::MarkUnfinished
        | Step::Seal
        | Step::CheckSeal
        | Step::SetReadOnly(_)
        | Step::RetryMirror
        | Step::Retire => true,
    }
}
