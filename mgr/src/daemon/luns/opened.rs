//! The LUNs that a ublk-target has open, beside what is recorded of them.

use std::path::Path;

use migration_proto::route::Extent;
use migration_proto::target::{OpenLun, Status};

use super::checks;

/// The LUNs of a volume that are open, each with its recorded extent.
pub(super) fn open_luns(status: &Status) -> impl Iterator<Item = (&Extent, &OpenLun)> {
    let source = status.source.extents.iter().zip(&status.source_open);
    let target = status.target.iter().flat_map(|leg| &leg.extents);
    source.chain(target.zip(&status.target_open))
}

/// The LUNs of a volume that are larger than recorded: their recorded paths and their current
/// sizes.
pub(crate) fn grown(status: &Status) -> impl Iterator<Item = (&Path, u64)> {
    open_luns(status)
        .filter(|(extent, open)| open.size_bytes > extent.identity.size_bytes)
        .map(|(extent, open)| (extent.path.as_path(), open.size_bytes))
}

/// The devices of a volume that are open under another name than the recorded one: the recorded
/// path and the current path.
pub(crate) fn elsewhere(status: &Status) -> impl Iterator<Item = (&Path, &Path)> {
    open_luns(status)
        .filter(|(extent, open)| {
            // A device that is gone is found under neither name.
            open.device.is_some()
                && checks::device_number(&extent.path) != open.device
                && checks::device_number(&open.path) == open.device
        })
        .map(|(extent, open)| (extent.path.as_path(), open.path.as_path()))
}
