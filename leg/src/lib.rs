//! Opens a leg: finds and opens its LUNs, compares each with what was recorded, and lays them end
//! to end. `ublk-target` and the copiers open their legs here, and differ only in what they pass to
//! [`OpenLeg::open`].
//!
//! Not here: a single LUN, which is [`lun::Recorded`].

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use lun::{Lun, OpenError, Recorded, RecordedError};
use migration_core::layout::{Extent, Layout};
use migration_proto::{
    route::{self, Leg},
    target::{HeldLun, OpenLun},
};

/// Why a leg cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LegError {
    /// A LUN could not be opened, or is not known to be the recorded one.
    #[error(transparent)]
    Recorded(#[from] RecordedError),
    /// An extent reaches beyond the end of its LUN.
    #[error(
        "the extent of {length} bytes at {start} does not fit on {path}, which has {actual} bytes"
    )]
    TooSmall {
        /// The recorded path.
        path: PathBuf,
        /// The size of the LUN, in bytes.
        actual: u64,
        /// The start of the extent, in bytes.
        start: u64,
        /// The length of the extent, in bytes.
        length: u64,
    },
    /// The sum of the extents does not fit into 64 bits.
    #[error("the extents of the leg are larger than any LUN")]
    TooLarge,
}

/// An open leg. A LUN with several extents is opened only once.
#[derive(Debug)]
pub struct OpenLeg {
    /// The LUNs, in the order in which `layout` numbers them.
    pub luns: Vec<Lun>,
    /// Maps addresses of the leg to places on its LUNs.
    pub layout: Layout,
    /// For each extent of the leg, the index of its LUN in `luns`.
    lun_of: Vec<usize>,
}

impl OpenLeg {
    /// Opens every LUN of a leg, compares it with its recorded identity, and checks that its
    /// extents fit on it.
    ///
    /// `disk_of` returns the number of the disk ([`Lun::disk_sequence`]) of the extent with this
    /// index, if it is known, or why it is not. The number is needed, and compared, only for a LUN
    /// without a name of its own. `open` opens a LUN at the name that leads to it now.
    ///
    /// # Errors
    /// See [`LegError`]; no LUN stays open then.
    pub fn open(
        leg: &Leg,
        disk_of: impl Fn(usize, &route::Extent) -> Result<Option<u64>, String>,
        open: impl Fn(&Path) -> Result<Lun, OpenError>,
    ) -> Result<Self, LegError> {
        let mut luns: Vec<Lun> = Vec::new();
        let mut lun_of: Vec<usize> = Vec::new();
        let mut extents = Vec::new();
        for (number, extent) in leg.extents.iter().enumerate() {
            let not_known = |cause| RecordedError::Weak {
                path: extent.path.clone(),
                cause,
            };
            let recorded = Recorded {
                path: &extent.path,
                identity: &extent.identity,
                disk_sequence: disk_of(number, extent).map_err(not_known)?,
            };
            let before = leg.extents[..number].iter();
            let mut known = before.zip(&lun_of);
            let index = match known.find(|(other, _)| other.path == extent.path) {
                Some((_, index)) => {
                    recorded.check(&luns[*index])?;
                    *index
                }
                None => add(&mut luns, recorded.open_with(&open)?),
            };
            check_end(extent, &luns[index])?;
            lun_of.push(index);
            extents.push(Extent {
                lun: index,
                start: extent.start_bytes,
                length: extent.length_bytes,
            });
        }
        Ok(Self {
            luns,
            layout: Layout::new(extents).ok_or(LegError::TooLarge)?,
            lun_of,
        })
    }

    /// The open LUN of each extent of the leg.
    pub fn lun_of_each_extent(&self) -> impl Iterator<Item = &Lun> {
        self.lun_of.iter().map(|index| &self.luns[*index])
    }

    /// Lists the open LUN of each extent of the leg.
    #[must_use]
    pub fn open_luns(&self) -> Vec<OpenLun> {
        self.lun_of_each_extent().map(OpenLun::of).collect()
    }

    /// Lists the path and the descriptor of each open LUN, so that shuntd can duplicate the
    /// descriptors.
    #[must_use]
    pub fn held(&self) -> Vec<HeldLun> {
        let held = |lun: &Lun| HeldLun {
            path: lun.path.clone(),
            descriptor: lun.fd.as_raw_fd(),
        };
        self.luns.iter().map(held).collect()
    }

    /// Whether the names of `leg` still lead to the open LUNs.
    #[must_use]
    pub fn is_at(&self, leg: &Leg) -> bool {
        let mut extents = leg.extents.iter().zip(self.lun_of_each_extent());
        extents.all(|(extent, lun)| {
            let recorded = Recorded {
                path: &extent.path,
                identity: &extent.identity,
                disk_sequence: lun.disk_sequence,
            };
            let path = recorded.locate();
            path.is_ok_and(|path| lun.is_at(&path).is_ok_and(|same| same))
        })
    }

    /// Computes a checksum of the parts of the leg that mounts and volume managers change.
    ///
    /// # Errors
    /// A LUN cannot be read, or reading takes longer than `limit`.
    pub fn fingerprint(&self, limit: Duration) -> io::Result<u64> {
        let mut parts = Vec::new();
        for extent in self.layout.extents() {
            let file = File::from(self.luns[extent.lun].fd.try_clone()?);
            parts.push((file, extent.start, extent.length));
        }
        let (done, answer) = mpsc::channel();
        // Read on a new thread, which is abandoned if the leg hangs.
        thread::spawn(move || {
            let sum = parts.iter().try_fold(0_u64, |sum, (file, start, length)| {
                let part = lun::fingerprint(file, *start, *length)?;
                Ok(sum.rotate_left(7) ^ part)
            });
            // The receiver is gone if the time limit has passed.
            let _ = done.send(sum);
        });
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
        answer.recv_timeout(limit).map_err(late)?
    }

    /// Whether no copier holds its lock on any LUN of the leg. The kernel keeps the lock of a dead
    /// copier until the copier's last request is done.
    ///
    /// # Errors
    /// The error of `flock`, except that the lock is taken.
    pub fn is_free_of_copiers(&self) -> io::Result<bool> {
        for lun in &self.luns {
            if !lun.try_lock_exclusive()? {
                return Ok(false);
            }
            lun.unlock();
        }
        Ok(true)
    }
}

/// Adds a LUN to the list, unless it is there under another name. Returns its index.
fn add(luns: &mut Vec<Lun>, lun: Lun) -> usize {
    let known = luns.iter().position(|known| known.path == lun.path);
    known.unwrap_or_else(|| {
        luns.push(lun);
        luns.len() - 1
    })
}

fn check_end(extent: &route::Extent, lun: &Lun) -> Result<(), LegError> {
    let end = extent.start_bytes.checked_add(extent.length_bytes);
    let actual = lun.identity.size_bytes;
    if end.is_some_and(|end| end <= actual) {
        return Ok(());
    }
    Err(LegError::TooSmall {
        path: extent.path.clone(),
        actual,
        start: extent.start_bytes,
        length: extent.length_bytes,
    })
}

#[cfg(test)]
mod tests;
