//! A clock for durations that outlive a process: it counts as the kernel does since the boot, and begins where the wall clock
//! stood when the first shuntd of this boot started.
//!
//! The wall clock is set forwards and backwards; it is only for what people read and for times of day. Within a boot this clock
//! never jumps. Across a boot it is as good as the wall clock was at its start.

use std::path::Path;
use std::sync::OnceLock;

use tracing::warn;

use super::context::now_ms;
use super::paths::boot_id;

/// What is added to the time since the boot, in milliseconds.
static OFFSET_MS: OnceLock<u64> = OnceLock::new();

/// The file in the folder of the sockets that keeps the offset for the next shuntd of this boot.
const FILE: &str = "boot-clock";

/// Takes the offset from the folder of the sockets, or chooses it and leaves it there.
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

/// Milliseconds that can be compared with those of an earlier call, also of another process: not a time to be shown.
pub(super) fn steady_ms() -> u64 {
    let offset_ms = *OFFSET_MS.get_or_init(offset_now);
    since_boot_ms().saturating_add(offset_ms)
}

fn offset_now() -> u64 {
    now_ms().saturating_sub(since_boot_ms())
}

/// The offset, if it is of this boot.
fn parse(text: &str, boot: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    (words.next()? == boot)
        .then(|| words.next()?.parse().ok())
        .flatten()
}

/// Milliseconds since the boot, those of a suspension among them.
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
