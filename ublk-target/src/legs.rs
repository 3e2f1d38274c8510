//! Opens the LUNs of a leg and checks that they are the right ones.

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
    /// A LUN could not be opened, or is not the recorded one.
    #[error(transparent)]
    Recorded(#[from] RecordedError),
    /// A LUN has no name of its own, and shuntd has no evidence that it is the accepted LUN.
    #[error("{path} has no name of its own (no world-wide name, serial or UUID), and {cause}")]
    NotAccepted {
        /// The recorded path.
        path: PathBuf,
        /// Why the evidence is missing.
        cause: String,
    },
    /// The list of the accepted disks, for LUNs without a name of their own, cannot be read.
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

/// An open leg. A LUN with several extents is opened only once.
#[derive(Debug)]
pub struct OpenLeg {
    /// The LUNs, in the order in which `layout` numbers them.
    pub luns: Vec<Lun>,
    /// Maps addresses of the leg to places on its LUNs.
    pub layout: Layout,
    /// Whether the descriptor of every LUN was inherited from the last process of the volume.
    pub inherited: bool,
    /// For each extent of the leg, the index of its LUN in `luns`.
    lun_of: Vec<usize>,
}

impl OpenLeg {
    /// Opens every LUN of a leg for direct I/O, claims it, and compares it with its recorded
    /// identity.
    ///
    /// A LUN whose descriptor is in `inherited` is taken from there. If another process has claimed
    /// a LUN, such as a predecessor that is still ending, the open is retried for up to
    /// `busy_limit`. `socket` is the volume's control socket: the file with the disks of LUNs
    /// without a name of their own is beside it.
    ///
    /// # Errors
    /// See [`LegError`]; no LUN stays open then.
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

    /// Lists the open LUN of each extent of the leg.
    #[must_use]
    pub fn open_luns(&self) -> Vec<OpenLun> {
        let luns = self.lun_of.iter();
        luns.map(|index| OpenLun::of(&self.luns[*index])).collect()
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

/// The options with which all LUNs of a leg are opened.
const OPTIONS: OpenOptions = OpenOptions {
    write: true,
    exclusive: true,
    direct: true,
};

/// Makes the record by which the LUN of an extent is found and checked.
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
