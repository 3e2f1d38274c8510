//! A clock for durations that outlive a process: the kernel's time since the boot plus an offset.
//! The offset makes the clock equal to the wall clock at the start of the first shuntd of this
//! boot.
//!
//! The wall clock can be set forwards and backwards; it is used only for times that people read and
//! for times of day. Within a boot this clock never jumps. Across a boot it is as accurate as the
//! wall clock was when the offset was chosen.

use std::path::Path;
use std::sync::OnceLock;

use migration_core::units::Time;
use tracing::warn;

use super::context::now_ms;
use super::paths::boot_id;

/// The offset that is added to the time since the boot, in milliseconds.
static OFFSET_MS: OnceLock<u64> = OnceLock::new();

/// The file in the socket folder that keeps the offset for the next shuntd of this boot.
const FILE: &str = "boot-clock";

/// Reads the offset from the socket folder, or chooses it and stores it there.
pub(super) fn begin(runtime_directory: &Path) {
    let path = runtime_directory.join(FILE);
    let boot = boot_id();
    let kept = std::fs::read_to_string(&path).ok();
    let kept = kept.and_then(|text| parse(&text, &boot));
    let offset_ms = *OFFSET_MS.get_or_init(|| kept.unwrap_or_else(offset_now));
    if kept != Some(offset_ms)
        && let Err(error) = std::fs::write(&path, format!("{boot} {offset_ms}\n"))
    {
        warn!(%error, "{} cannot be written: after a restart of shuntd durations follow the wall clock", path.display());
    }
}

/// Milliseconds that can be compared with those of an earlier call, also of another process; not a
/// time to show.
pub(super) fn steady_ms() -> u64 {
    let offset_ms = *OFFSET_MS.get_or_init(offset_now);
    since_boot_ms().saturating_add(offset_ms)
}

/// A time of the steady clock, in milliseconds, as the core counts time.
pub(super) const fn time(steady_ms: u64) -> Time {
    const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;
    Time(steady_ms.saturating_mul(NANOSECONDS_PER_MILLISECOND))
}

fn offset_now() -> u64 {
    now_ms().saturating_sub(since_boot_ms())
}

/// Parses a stored offset; `None` if it is malformed or from a different boot.
fn parse(text: &str, boot: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    (words.next()? == boot)
        .then(|| words.next()?.parse().ok())
        .flatten()
}

/// Milliseconds since the boot, including the time in system suspend.
fn since_boot_ms() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes to a timespec that lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1000 + part(time.tv_nsec) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_offset_of_this_boot_is_taken() {
        for (text, offset) in [
            ("b 5\n", Some(5)),
            ("a 5\n", None),
            ("b x", None),
            ("b", None),
            ("", None),
        ] {
            assert_eq!(parse(text, "b"), offset, "{text:?}");
        }
    }

    #[test]
    fn the_offset_is_kept_for_the_next_process_and_the_clock_never_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        begin(folder.path());
        let first = steady_ms();
        let kept = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        let offset = parse(&kept, &boot_id()).unwrap();
        assert_eq!(Some(&offset), OFFSET_MS.get());
        assert!(steady_ms() >= first && first >= offset);
    }
}
