//! The LUNs under a leg, opened and known to be the right ones.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use lun::{Lun, OpenError, OpenOptions};
use migration_core::layout::{Extent, Layout};
use migration_proto::route::Leg;

/// Why a leg cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LegError {
    /// A LUN could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A LUN is not the one that was recorded.
    #[error("{path} is not the LUN that was recorded: {source}")]
    Identity {
        /// The LUN.
        path: PathBuf,
        /// What differs.
        source: lun::Mismatch,
    },
    /// An extent reaches beyond the end of its LUN.
    #[error("{path} has {actual} bytes, and an extent of the leg ends at {needed}")]
    TooSmall {
        /// The LUN.
        path: PathBuf,
        /// Its size, in bytes.
        actual: u64,
        /// The end of the extent, in bytes.
        needed: u64,
    },
}

/// An open leg. A LUN that has several extents is open once.
#[derive(Debug)]
pub struct OpenLeg {
    /// The LUNs; `layout` numbers them.
    pub luns: Vec<Lun>,
    /// Where the bytes are.
    pub layout: Layout,
}

impl OpenLeg {
    /// Opens every LUN of a leg for direct I/O, claims it, and compares it with what was recorded.
    ///
    /// A claim that a dying predecessor still holds is waited for, up to `busy_limit`.
    ///
    /// # Errors
    /// As [`LegError`] says; nothing is open then.
    pub fn open(leg: &Leg, busy_limit: Duration) -> Result<Self, LegError> {
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut luns: Vec<Lun> = Vec::new();
        let mut extents = Vec::new();
        for extent in &leg.extents {
            let known = paths.iter().position(|path| *path == extent.path);
            let index = match known {
                Some(index) => index,
                None => {
                    luns.push(open_claimed(&extent.path, busy_limit)?);
                    paths.push(extent.path.clone());
                    luns.len() - 1
                }
            };
            let lun = &luns[index];
            let path = || extent.path.clone();
            extent
                .identity
                .matches(&lun.identity)
                .map_err(|source| LegError::Identity {
                    path: path(),
                    source,
                })?;
            let needed = extent.start_bytes.saturating_add(extent.length_bytes);
            let actual = lun.identity.size_bytes;
            if needed > actual {
                return Err(LegError::TooSmall {
                    path: path(),
                    actual,
                    needed,
                });
            }
            extents.push(Extent {
                lun: index,
                start: extent.start_bytes,
                length: extent.length_bytes,
            });
        }
        Ok(Self {
            luns,
            layout: Layout::new(extents),
        })
    }

    /// Whether nobody holds the lock that a copier takes on every LUN of the leg it writes. The kernel keeps it
    /// until the last request of a dead copier is done.
    ///
    /// # Errors
    /// What `flock` says, other than that the lock is taken.
    pub fn is_free_of_copiers(&self) -> std::io::Result<bool> {
        for lun in &self.luns {
            if !lun.try_lock_exclusive()? {
                return Ok(false);
            }
            lun.unlock();
        }
        Ok(true)
    }
}

fn open_claimed(path: &std::path::Path, busy_limit: Duration) -> Result<Lun, OpenError> {
    const RETRY: Duration = Duration::from_millis(5);
    let options = OpenOptions {
        write: true,
        exclusive: true,
        direct: true,
    };
    let started = Instant::now();
    loop {
        match Lun::open(path, &options) {
            Err(OpenError::Busy { .. }) if started.elapsed() < busy_limit => {
                std::thread::sleep(RETRY);
            }
            other => return other,
        }
    }
}
