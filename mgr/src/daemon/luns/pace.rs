//! Measures the speed of a LUN with a short read test. Writes nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use lun::{Lun, OpenOptions};
use migration_proto::luns::LunPaths;

use super::checks::open_recorded;
use crate::daemon::context::reading;
use crate::store::{LegRow, LunRow};

/// Maximum duration of the read test of a LUN, and the number and the read size of its readers.
const READ_MAX: Duration = Duration::from_secs(1);
const READERS: u64 = 4;
const READ_BYTES: usize = 1 << 20;
/// Number and size of the small reads that measure the latency of a LUN.
const SMALL_READS: u64 = 16;
const SMALL_READ_BYTES: usize = 4096;

/// The result of a read test of a LUN or a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) bytes_per_second: u64,
    /// The median duration of the small reads.
    pub(crate) answer: Duration,
}

/// Reads each LUN of a leg for about a second. The result is the lowest rate and the longest answer
/// time of these LUNs.
pub(crate) async fn pace(paths: &LunPaths) -> Result<Pace, String> {
    let paths = paths.clone();
    reading(move || {
        let mut slowest: Option<Pace> = None;
        for path in paths.paths() {
            let found = measure(path)?;
            slowest = Some(slowest.map_or(found, |slowest| Pace {
                bytes_per_second: slowest.bytes_per_second.min(found.bytes_per_second),
                answer: slowest.answer.max(found.answer),
            }));
        }
        slowest.ok_or_else(|| "it has no LUN".to_owned())
    })
    .await?
}

/// Whether each LUN of a leg can be opened and answers each of a few small reads within `limit`.
pub(crate) async fn answers_within(leg: LegRow, limit: Duration) -> bool {
    let answers = move |lun: &LunRow| {
        let Ok(opened) = open_recorded(lun, &OpenOptions::default()) else {
            return false;
        };
        let size = opened.identity.size_bytes;
        let file = File::from(opened.fd);
        forget(&file);
        small_reads(&file, size).all(|answer| answer.is_ok_and(|answer| answer <= limit))
    };
    reading(move || leg.luns().iter().all(answers))
        .await
        .unwrap_or(false)
}

fn measure(path: &Path) -> Result<Pace, String> {
    let lun = Lun::open(path, &OpenOptions::default()).map_err(|error| error.to_string())?;
    let file = File::from(lun.fd);
    let size = lun.identity.size_bytes;
    forget(&file);
    let mut answers = small_reads(&file, size)
        .collect::<io::Result<Vec<Duration>>>()
        .map_err(|error| error.to_string())?;
    answers.sort_unstable();
    forget(&file);
    let begun = Instant::now();
    let read = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let file = &file;
                scope.spawn(move || read_part(file, size, number, begun))
            })
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap_or(Ok(0)))
            .sum::<io::Result<u64>>()
    });
    let read = read.map_err(|error| error.to_string())?;
    let microseconds = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    forget(&file);
    let rate = u128::from(read) * 1_000_000 / u128::from(microseconds.max(1));
    Ok(Pace {
        bytes_per_second: u64::try_from(rate).unwrap_or(u64::MAX).max(1),
        answer: answers[answers.len() / 2],
    })
}

/// Drops the LUN's clean pages from the page cache, so that the next reads go to the LUN.
fn forget(file: &File) {
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    let _ = nix::fcntl::posix_fadvise(file, 0, 0, advice);
}

/// Measures the duration of small reads that are spread over the LUN.
fn small_reads(file: &File, size: u64) -> impl Iterator<Item = io::Result<Duration>> {
    const BYTES: u64 = SMALL_READ_BYTES as u64;
    (0..SMALL_READS).map(move |number| {
        let mut buffer = [0; SMALL_READ_BYTES];
        let begun = Instant::now();
        file.read_at(&mut buffer, size / SMALL_READS * number / BYTES * BYTES)?;
        Ok(begun.elapsed())
    })
}

/// Reads the part of reader `number` from its start until its end or until `READ_MAX`. Returns the
/// number of bytes read.
fn read_part(file: &File, size: u64, number: u64, begun: Instant) -> io::Result<u64> {
    let (from, to) = (size / READERS * number, size / READERS * (number + 1));
    let mut buffer = vec![0; READ_BYTES];
    let mut at = from;
    while at < to && begun.elapsed() < READ_MAX {
        let length = usize::try_from(to - at)
            .unwrap_or(READ_BYTES)
            .min(READ_BYTES);
        let read = file.read_at(&mut buffer[..length], at)?;
        if read == 0 {
            break;
        }
        at += read as u64;
    }
    Ok(at - from)
}
