//! The LUNs under a leg, opened and known to be the right ones.

use std::{
    os::fd::AsRawFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use lun::{Lun, OpenError, OpenOptions};
use migration_core::layout::{Extent, Layout};
use migration_proto::{route::Leg, target::HeldLun};

use crate::custody::Inherited;

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
    /// Every LUN was open in the last process of the volume, and its claim was handed on.
    pub inherited: bool,
}

impl OpenLeg {
    /// Opens every LUN of a leg for direct I/O, claims it, and compares it with what was recorded.
    ///
    /// A LUN that is among `inherited` is taken from there. A claim that a dying predecessor still
    /// holds is waited for, up to `busy_limit`.
    ///
    /// # Errors
    /// As [`LegError`] says; nothing is open then.
    pub fn open(
        leg: &Leg,
        busy_limit: Duration,
        inherited: Option<&Inherited>,
    ) -> Result<Self, LegError> {
        let mut all_inherited = true;
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut luns: Vec<Lun> = Vec::new();
        let mut extents = Vec::new();
        for extent in &leg.extents {
            let known = paths.iter().position(|path| *path == extent.path);
            let index = match known {
                Some(index) => index,
                None => {
                    let adopted = inherited.and_then(|all| all.adopt(&extent.path, &OPTIONS));
                    all_inherited &= adopted.is_some();
                    luns.push(match adopted {
                        Some(lun) => lun,
                        None => open_claimed(&extent.path, busy_limit)?,
                    });
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
            let recorded_bytes = extent.identity.size_bytes;
            if lun.identity.size_bytes > recorded_bytes {
                tracing::warn!(
                    lun = %extent.path.display(),
                    "it has grown from {recorded_bytes} to {} bytes; the volume keeps its size",
                    lun.identity.size_bytes
                );
            }
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
            inherited: all_inherited,
        })
    }

    /// What is open, as shuntd can have it: descriptor and device of each LUN.
    #[must_use]
    pub fn held(&self) -> Vec<HeldLun> {
        let held = |lun: &Lun| HeldLun {
            path: lun.path.clone(),
            descriptor: lun.fd.as_raw_fd(),
        };
        self.luns.iter().map(held).collect()
    }

    /// Whether the paths of `leg` still lead to what is open.
    #[must_use]
    pub fn is_at(&self, leg: &Leg) -> bool {
        let recorded = leg.extents.iter().filter(|extent| extent.length_bytes > 0);
        let mut extents = self.layout.extents().iter().zip(recorded);
        extents.all(|(open, extent)| {
            let found = self.luns[open.lun].is_at(&extent.path);
            found.is_ok_and(|same| same)
        })
    }

    /// Checksum of those parts of the leg that mounts and volume managers change.
    ///
    /// # Errors
    /// Those of reading.
    pub fn fingerprint(&self) -> std::io::Result<u64> {
        self.layout.extents().iter().try_fold(0_u64, |sum, extent| {
            let part = self.luns[extent.lun].fingerprint(extent.start, extent.length)?;
            Ok(sum.rotate_left(7) ^ part)
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

/// How the LUNs of a leg are opened.
const OPTIONS: OpenOptions = OpenOptions {
    write: true,
    exclusive: true,
    direct: true,
};

fn open_claimed(path: &std::path::Path, busy_limit: Duration) -> Result<Lun, OpenError> {
    const RETRY: Duration = Duration::from_millis(5);
    let started = Instant::now();
    loop {
        match Lun::open(path, &OPTIONS) {
            Err(OpenError::Busy { .. }) if started.elapsed() < busy_limit => {
                std::thread::sleep(RETRY);
            }
            other => return other,
        }
    }
}
