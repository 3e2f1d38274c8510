//! A stand-in for `ublk-target`: a thread that speaks the protocol and grants the regions that a
//! test decides.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use lun::{Lun, OpenOptions};
use migration_proto::Hello;
use migration_proto::frame::{self, FrameError};
use migration_proto::route::{Extent, Leg, Route, Side};
use migration_proto::target::{CopyError, Counters, OpenLun, Request, Response, ServedLeg, Status};
use tempfile::TempDir;

pub(super) const EPOCH: u64 = 7;
pub(super) const KIB: u64 = 1 << 10;
/// The bytes in the target files before the copy; later only outside the extents.
pub(super) const OLD: u8 = 0xEE;

pub(super) fn direct(write: bool) -> OpenOptions {
    OpenOptions {
        write,
        exclusive: false,
        direct: true,
    }
}

/// Bytes that differ at every sector and between seeds.
pub(super) fn pattern(seed: u64, length: u64) -> Vec<u8> {
    let word = |at: u64| (at ^ seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..length / 8)
        .flat_map(|at| word(at + 1).to_le_bytes())
        .collect()
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

pub(super) fn extent(path: &Path, start_bytes: u64, length_bytes: u64) -> Extent {
    Extent {
        path: path.to_owned(),
        identity: Lun::open(path, &direct(false)).unwrap().identity,
        start_bytes,
        length_bytes,
    }
}

fn served(leg: &Leg, device: Option<(u32, u32)>) -> Box<ServedLeg> {
    let extents = leg.extents.iter();
    let open = extents.map(|extent| OpenLun {
        path: extent.path.clone(),
        size_bytes: extent.identity.size_bytes,
        device,
        disk_sequence: None,
    });
    Box::new(ServedLeg {
        leg: leg.clone(),
        open: open.collect(),
    })
}

/// A volume with its legs, as the stand-in serves it.
pub(super) struct Volume {
    pub(super) folder: TempDir,
    pub(super) region_bytes: u64,
    pub(super) size_bytes: u64,
    pub(super) from: Leg,
    pub(super) to: Leg,
    /// The device that the stand-in reports as open for `to`.
    pub(super) to_device: Option<(u32, u32)>,
    /// Regions that are never found quiet unless their writes are held.
    pub(super) busy: Vec<u64>,
    /// Whether copiers are to write only where the legs differ.
    pub(super) compare_first: bool,
}

impl Volume {
    /// One whole file on each side.
    pub(super) fn simple(regions: u64, region_bytes: u64) -> Self {
        let size_bytes = regions * region_bytes;
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        write_file(&from, &pattern(1, size_bytes));
        write_file(&to, &vec![OLD; size_bytes as usize]);
        Self {
            region_bytes,
            size_bytes,
            from: Leg {
                extents: vec![extent(&from, 0, size_bytes)],
            },
            to: Leg {
                extents: vec![extent(&to, 0, size_bytes)],
            },
            to_device: None,
            busy: Vec::new(),
            compare_first: false,
            folder,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn regions(&self) -> u64 {
        self.size_bytes.div_ceil(self.region_bytes)
    }

    pub(super) fn region_length(&self, region: u64) -> u64 {
        self.region_bytes
            .min(self.size_bytes - region * self.region_bytes)
    }

    /// The contents of a leg, in the order of the volume's addresses.
    pub(super) fn contents(&self, leg: &Leg) -> Vec<u8> {
        let mut all = Vec::new();
        for extent in &leg.extents {
            let mut bytes = vec![0; extent.length_bytes as usize];
            let file = File::open(&extent.path).unwrap();
            file.read_exact_at(&mut bytes, extent.start_bytes).unwrap();
            all.extend(bytes);
        }
        all.truncate(self.size_bytes as usize);
        all
    }

    pub(super) fn same(&self, region: u64) -> bool {
        let start = (region * self.region_bytes) as usize;
        let end = start + self.region_length(region) as usize;
        self.contents(&self.from)[start..end] == self.contents(&self.to)[start..end]
    }

    pub(super) fn assert_untouched(&self) {
        assert!(self.contents(&self.to).iter().all(|byte| *byte == OLD));
    }

    pub(super) fn assert_copied(&self) {
        assert!(self.contents(&self.from) == self.contents(&self.to));
    }
}

/// The stand-in's reaction to a claim.
pub(super) enum Answer {
    /// Grants at most this many regions, or holds the claim while none is left.
    Grant(usize),
    /// Never answers the claim; the copier closes the connection.
    Never,
    /// Closes the connection.
    HangUp,
    /// Sends this response.
    Say(Response),
}

/// The requests that the stand-in received.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) copied: Vec<u64>,
    pub(super) failed: Vec<u64>,
    pub(super) errors: Vec<CopyError>,
    pub(super) claims: usize,
    pub(super) found_busy: Vec<u64>,
    pub(super) same: Vec<u64>,
    pub(super) differing: Vec<u64>,
    pub(super) unread: Vec<u64>,
}

/// Decides on each claim: called with the volume, the requests received so far, and the regions
/// that are left to grant.
pub(super) type OnClaim = Box<dyn FnMut(&Volume, &Seen, &mut Vec<u64>) -> Answer + Send>;

/// A thread in the place of `ublk-target`.
pub(super) struct Target {
    thread: JoinHandle<(Volume, Seen)>,
    pub(super) socket: PathBuf,
}

impl Target {
    /// `to_grant` lists the dirty regions in the order in which they are granted.
    pub(super) fn start(volume: Volume, mut to_grant: Vec<u64>, mut on_claim: OnClaim) -> Self {
        let socket = volume.path("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        to_grant.reverse();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Seen::default();
            serve(
                &volume,
                &mut stream,
                &mut seen,
                &mut to_grant,
                &mut on_claim,
            );
            (volume, seen)
        });
        Self { thread, socket }
    }

    pub(super) fn join(self) -> (Volume, Seen) {
        self.thread.join().unwrap()
    }
}

pub(super) fn serve(
    volume: &Volume,
    stream: &mut UnixStream,
    seen: &mut Seen,
    to_grant: &mut Vec<u64>,
    on_claim: &mut OnClaim,
) {
    let hello: Hello = frame::read(stream).unwrap();
    frame::write(stream, &hello.answer()).unwrap();
    let mut held: Vec<u64> = Vec::new();
    let bytes_of =
        |regions: &[u64]| -> u64 { regions.iter().map(|at| volume.region_length(*at)).sum() };
    loop {
        let request = match frame::read::<Request>(stream) {
            Ok(request) => request,
            Err(FrameError::Closed) => return,
            Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{error}"),
        };
        let response = match request {
            Request::Status => Response::Status(Box::new(status(volume))),
            Request::OpenCopier => Response::CopierOpened {
                epoch: EPOCH,
                region_bytes: volume.region_bytes,
                size_bytes: volume.size_bytes,
                from: served(&volume.from, None),
                to: served(&volume.to, volume.to_device),
                compare_first: volume.compare_first,
            },
            Request::Claim { regions_max } => {
                seen.claims += 1;
                match on_claim(volume, seen, to_grant) {
                    Answer::HangUp => return,
                    Answer::Say(response) => response,
                    Answer::Grant(at_most) if !to_grant.is_empty() || held.is_empty() => {
                        let count = at_most.min(regions_max as usize).min(to_grant.len());
                        let regions = to_grant.split_off(to_grant.len() - count);
                        let regions: Vec<u64> = regions.into_iter().rev().collect();
                        held.extend(&regions);
                        Response::Claimed {
                            epoch: EPOCH,
                            dirty_bytes: bytes_of(&held) + bytes_of(to_grant),
                            never_copied: Vec::new(),
                            regions,
                        }
                    }
                    Answer::Grant(_) | Answer::Never => {
                        // Like the real `ublk-target`: no answer as long as there is nothing to
                        // grant.
                        let next = frame::read::<Request>(stream);
                        assert!(matches!(next, Err(FrameError::Closed)), "{next:?}");
                        return;
                    }
                }
            }
            Request::Report {
                epoch,
                copied,
                failed,
                error,
            } => {
                assert_eq!(epoch, EPOCH);
                held.retain(|region| !copied.contains(region) && !failed.contains(region));
                // Failed regions stay dirty, and are granted again after the others.
                to_grant.splice(0..0, failed.iter().copied());
                seen.copied.extend(copied);
                seen.failed.extend(failed);
                seen.errors.extend(error);
                Response::Done
            }
            Request::Watch { regions, hold, .. } => {
                let (busy, granted): (Vec<u64>, Vec<u64>) = regions
                    .into_iter()
                    .partition(|region| volume.busy.contains(region) && !hold);
                seen.found_busy.extend(busy);
                Response::Watched {
                    regions: granted,
                    dirty: Vec::new(),
                }
            }
            Request::Compared {
                same,
                differing,
                unread,
                ..
            } => {
                seen.same.extend(same);
                seen.differing.extend(differing);
                seen.unread.extend(unread);
                Response::Compared {
                    unknown: Vec::new(),
                }
            }
            other => panic!("{other:?}"),
        };
        frame::write(stream, &response).unwrap();
    }
}

pub(super) fn status(volume: &Volume) -> Status {
    Status {
        volume: "test".to_owned(),
        volume_id: String::new(),
        pid: 1,
        device: "/dev/ublkb0".into(),
        epoch: EPOCH,
        route: Route::Mirrored {
            authoritative: Side::Source,
        },
        size_bytes: volume.size_bytes,
        region_bytes: volume.region_bytes,
        dirty_bytes: 0,
        dirty_percent: Vec::new(),
        claimed_bytes: 0,
        copied_bytes: 0,
        degraded: None,
        stalled_writes: None,
        authoritative_problem: None,
        on_authoritative_failure: migration_proto::target::OnAuthoritativeFailure::default(),
        copy_mode: migration_proto::target::CopyMode::default(),
        throttle_bytes_per_second: 0,
        map_problem: None,
        suspended: false,
        changing: false,
        copier: false,
        source: volume.from.clone(),
        target: Some(volume.to.clone()),
        source_open: Vec::new(),
        target_open: Vec::new(),
        counters: Counters::default(),
        read_latency: Vec::new(),
        write_latency: Vec::new(),
        claim: 1,
        held: Vec::new(),
        doubt: None,
        driver_features: Vec::new(),
        recovered: false,
    }
}

pub(super) fn grant(at_most: usize) -> OnClaim {
    Box::new(move |_, _, _| Answer::Grant(at_most))
}
