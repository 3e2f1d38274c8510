//! Limits that are changed while the copy runs.

use migration_proto::manager::{LimitChange, SessionLimits, SessionOptions};

use crate::options;
use crate::store::SessionRow;

/// Applies the limits to the options. Returns them with each change.
pub(crate) fn changed(
    row: &SessionRow,
    limits: &SessionLimits,
) -> (SessionOptions, Vec<LimitChange>) {
    let mut options = row.options.clone();
    let changes = options::apply(limits, &mut options);
    (options, changes)
}
