//! The claims on the LUNs of a volume, kept while its ublk-target dies and a new one is started.
//!
//! A block device that was opened exclusively cannot be opened exclusively by anybody else until
//! the last duplicate of that descriptor is closed. shuntd has duplicates of the descriptors of a
//! running ublk-target, and starts the next ublk-target with them. So neither an operator nor a
//! program that udev starts can claim a LUN in between, and the next ublk-target knows that the map
//! still says where the legs differ.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use migration_proto::target::{HeldLun, Status};
use tracing::warn;

use super::process;
use crate::daemon::context::blocking;

/// The claims of one volume.
#[derive(Debug, Default)]
pub(crate) struct HeldLuns {
    /// The name of the claim, from the status of the process.
    claim: u64,
    /// The process whose descriptors were duplicated.
    pid: u32,
    luns: Vec<(HeldLun, OwnedFd)>,
}

impl HeldLuns {
    /// Keeps duplicates of what the process of `status` has open, and closes all other descriptors.
    pub(crate) async fn follow(&mut self, status: &Status) {
        let same_process = self.pid == status.pid && self.claim == status.claim;
        (self.pid, self.claim) = (status.pid, status.claim);
        let (kept, closed): (Vec<_>, Vec<_>) = std::mem::take(&mut self.luns)
            .into_iter()
            .partition(|(lun, _)| same_process && status.held.contains(lun));
        self.luns = kept;
        for lun in &status.held {
            if self.luns.iter().any(|(known, _)| known == lun) {
                continue;
            }
            match process::duplicate(status.pid, lun.descriptor) {
                Ok(descriptor) => self.luns.push((lun.clone(), descriptor)),
                Err(error) => warn!(
                    lun = %lun.path.display(),
                    %error,
                    "this LUN does not stay claimed if its ublk-target dies: the whole mirror leg is compared then"
                ),
            }
        }
        // Close them last: a claim that was handed on must not lapse.
        close(closed).await;
    }

    /// Releases all claims.
    pub(super) async fn let_go(&mut self) {
        close(std::mem::take(&mut self.luns)).await;
    }

    /// The value of the argument `--inherited` of the next ublk-target; `None` if nothing is held.
    pub(crate) fn argument(&self) -> Option<String> {
        let descriptors = self.descriptors();
        let numbers: Vec<String> = descriptors.iter().map(RawFd::to_string).collect();
        (!numbers.is_empty()).then(|| format!("{}:{}", self.claim, numbers.join(",")))
    }

    /// The descriptors that the next ublk-target inherits, under the same numbers.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        self.luns.iter().map(|(_, open)| open.as_raw_fd()).collect()
    }
}

/// Closes descriptors on a separate thread: closing the last descriptor of a block device waits for
/// the device.
async fn close(luns: Vec<(HeldLun, OwnedFd)>) {
    if !luns.is_empty() {
        let closed = blocking(move || drop(luns)).await;
        if let Err(error) = closed {
            warn!(error, "LUNs could not be closed");
        }
    }
}
