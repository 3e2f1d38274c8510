//! The LUNs under a leg, opened and known to be the right ones.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use lun::{Lun, OpenError, OpenOptions, Recorded, RecordedError};
use migration_core::layout::{Extent, Layout};
use migration_proto::{
    disks::Disks,
    route::{self, Leg},
    target::{HeldLun, OpenLun},
};

use crate::custody::Inherited;

/// Why a leg cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LegError {
    /// A LUN could not be opened, or is not the one that was recorded.
    #[error(transparent)]
    Recorded(#[from] RecordedError),
    /// A LUN has no name of its own, and shuntd does not know that it is the one that was accepted.
    #[error("{path} has no name of its own (no world-wide name, serial or UUID), and {cause}")]
    NotAccepted {
        /// The recorded path.
        path: PathBuf,
        /// Why it is not known.
        cause: String,
    },
    /// The disks of LUNs without a name of their own are not known.
    #[error("read which disks of this boot were accepted: {0}")]
    Disks(#[from] io::Error),
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
    /// For each extent of the leg, its LUN in `luns`.
    lun_of: Vec<usize>,
}

impl OpenLeg {
    /// Opens every LUN of a leg for direct I/O, claims it, and compares it with what was recorded.
    ///
    /// A LUN that is among `inherited` is taken from there. A claim that a dying predecessor still
    /// holds is waited for, up to `busy_limit`. `socket` is that of the volume: beside it is the file
    /// with the disks of LUNs that have no name of their own.
    ///
    /// # Errors
    /// As [`LegError`] says; nothing is open then.
    pub fn open(
        leg: &Leg,
        socket: &Path,
        busy_limit: Duration,
        inherited: Option<&Inherited>,
    ) -> Result<Self, LegError> {
        let disks = match leg
            .extents
            .iter()
            .all(|extent| extent.identity.is_distinct())
        {
            true => Disks::default(),
            false => Disks::read(socket, &lun::boot_id()?)?,
        };
        let mut all_inherited = true;
        let mut lun_of = Vec::new();
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut luns: Vec<Lun> = Vec::new();
        let mut extents = Vec::new();
        for extent in &leg.extents {
            let known = paths.iter().position(|path| *path == extent.path);
            let index = match known {
                Some(index) => index,
                None => {
                    let recorded = recorded(extent, &disks)?;
                    let path = recorded.locate()?;
                    let adopted = match inherited {
                        Some(all) => all.adopt(&path, &OPTIONS).map_err(RecordedError::from)?,
                        None => None,
                    };
                    all_inherited &= adopted.is_some();
                    let lun = match adopted {
                        Some(lun) => lun,
                        None => open_claimed(&path, busy_limit).map_err(RecordedError::from)?,
                    };
                    recorded.check(&lun)?;
                    luns.push(lun);
                    paths.push(extent.path.clone());
                    luns.len() - 1
                }
            };
            let lun = &luns[index];
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
                    path: extent.path.clone(),
                    actual,
                    needed,
                });
            }
            lun_of.push(index);
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
            lun_of,
        })
    }

    /// What is open for each extent of the leg.
    #[must_use]
    pub fn open_luns(&self) -> Vec<OpenLun> {
        let luns = self.lun_of.iter();
        luns.map(|index| OpenLun::of(&self.luns[*index])).collect()
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

    /// Whether what is open is still where the LUNs of `leg` are found.
    #[must_use]
    pub fn is_at(&self, leg: &Leg) -> bool {
        let mut extents = leg.extents.iter().zip(&self.lun_of);
        extents.all(|(extent, index)| {
            let lun = &self.luns[*index];
            let recorded = Recorded {
                path: &extent.path,
                identity: &extent.identity,
                disk_sequence: lun.disk_sequence,
            };
            let path = recorded.locate();
            path.is_ok_and(|path| lun.is_at(&path).is_ok_and(|same| same))
        })
    }

    /// Checksum of those parts of the leg that mounts and volume managers change.
    ///
    /// # Errors
    /// Those of reading, or that it takes longer than `limit`.
    pub fn fingerprint(&self, limit: Duration) -> io::Result<u64> {
        let mut parts = Vec::new();
        for extent in self.layout.extents() {
            let file = File::from(self.luns[extent.lun].fd.try_clone()?);
            parts.push((file, extent.start, extent.length));
        }
        let (done, answer) = mpsc::channel();
        // On a thread of its own, which stays behind if the leg hangs.
        thread::spawn(move || {
            let sum = parts.iter().try_fold(0_u64, |sum, (file, start, length)| {
                let part = lun::fingerprint(file, *start, *length)?;
                Ok(sum.rotate_left(7) ^ part)
            });
            // Nobody waits any more if that took too long.
            let _ = done.send(sum);
        });
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
        answer.recv_timeout(limit).map_err(late)?
    }

    /// Whether nobody holds the lock that a copier takes on every LUN of the leg it writes. The kernel keeps it
    /// until the last request of a dead copier is done.
    ///
    /// # Errors
    /// What `flock` says, other than that the lock is taken.
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

/// How the LUNs of a leg are opened.
const OPTIONS: OpenOptions = OpenOptions {
    write: true,
    exclusive: true,
    direct: true,
};

/// What is known of the LUN of an extent.
fn recorded<'a>(extent: &'a route::Extent, disks: &Disks) -> Result<Recorded<'a>, LegError> {
    let disk_sequence = disks.of(&extent.path).transpose();
    let disk_sequence = disk_sequence.map_err(|cause| LegError::NotAccepted {
        path: extent.path.clone(),
        cause: cause.to_owned(),
    })?;
    Ok(Recorded {
        path: &extent.path,
        identity: &extent.identity,
        disk_sequence,
    })
}

fn open_claimed(path: &Path, busy_limit: Duration) -> Result<Lun, OpenError> {
    const RETRY: Duration = Duration::from_millis(5);
    let started = Instant::now();
    loop {
        match Lun::open(path, &OPTIONS) {
            Err(OpenError::Busy { .. }) if started.elapsed() < busy_limit => {
                thread::sleep(RETRY);
            }
            other => return other,
        }
    }
}
