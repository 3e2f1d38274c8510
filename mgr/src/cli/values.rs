//! Parsers for values on the command line and in session files: paths, rates, shares, times.

use std::path::PathBuf;
use std::time::Duration;

use migration_proto::luns::LunPaths;
use migration_proto::manager::{PairSpec, SwitchPolicy};

use super::session_file::{NO_IMPACT_LIMIT, NOTHING_ACCEPTED, UNLIMITED};
use crate::moments;

/// The lowest rate that can be given, in bytes a second.
const RATE_MIN: u64 = 1 << 10;

/// The longest time that can be given, in seconds: some 136 years.
const SECONDS_MAX: f64 = u32::MAX as f64;

/// Makes a path absolute. Symbolic links stay: the operator chooses the name of a LUN.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| format!("not a path: {error}"))
}

/// Reads paths separated by commas. A single path is made absolute; several must be absolute
/// already, so that a comma that belongs to a path is not taken for the separator of two LUNs.
fn absolute_paths(text: &str) -> Result<LunPaths, String> {
    // A backslash that escapes nothing belongs to the name of a single LUN.
    let paths = text
        .parse()
        .or_else(|cause: String| match text.contains(',') {
            true => Err(cause),
            false => LunPaths::new(vec![PathBuf::from(text)]),
        })?;
    if let [path] = paths.paths() {
        return LunPaths::new(vec![
            std::path::absolute(path).map_err(|error| format!("not a path: {error}"))?,
        ]);
    }
    match paths.paths().iter().find(|path| !path.is_absolute()) {
        None => Ok(paths),
        Some(path) => Err(format!(
            "a comma separates two LUNs, and {} is not an absolute path; if the comma belongs to the path, write it as \\,",
            path.display()
        )),
    }
}

/// Reads `VOLUME:TARGET`. Only the first colon separates: names in /dev/disk/by-path contain
/// colons.
pub(super) fn pair(text: &str) -> Result<PairSpec, String> {
    match text.split_once(':') {
        Some((volume, target)) if !volume.is_empty() && !target.is_empty() => Ok(PairSpec {
            volume: volume.to_owned(),
            target: absolute_paths(target)?,
        }),
        _ => Err("not a volume and a target with a colon between them, such as db:/dev/sdc".into()),
    }
}

/// Reads a rate in bytes a second; 0 stands for unlimited.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    if text == UNLIMITED {
        return Ok(0);
    }
    let wrong = "not a number of bytes such as 100MiB, at least 1KiB, or unlimited";
    let bytes = parse_size::parse_size(text).map_err(|_| wrong.to_owned())?;
    if bytes < RATE_MIN {
        return Err(wrong.to_owned());
    }
    Ok(bytes)
}

/// Reads the lowest rate of a throttle, in bytes a second; it cannot be unlimited.
pub(super) fn floor(text: &str) -> Result<u64, String> {
    match rate(text) {
        Ok(0) | Err(_) => Err("not a number of bytes such as 4MiB, at least 1KiB".to_owned()),
        floor => floor,
    }
}

/// Reads how many bytes of a source may be unreadable; 0 stands for none.
pub(super) fn accepted(text: &str) -> Result<u64, String> {
    if text == NOTHING_ACCEPTED {
        return Ok(0);
    }
    parse_size::parse_size(text)
        .map_err(|_| "not a number of bytes such as 1MiB, or none".to_owned())
}

/// Reads a share such as `20%`; 0 stands for none.
pub(super) fn percent(text: &str) -> Result<u32, String> {
    if text == NO_IMPACT_LIMIT {
        return Ok(0);
    }
    let number = text.trim_end_matches('%').trim_end().parse();
    let wrong = "not a share such as 20%, from 1% to 1000%, or none";
    number
        .ok()
        .filter(|percent| (1..=1000).contains(percent))
        .ok_or_else(|| wrong.to_owned())
}

/// Reads when a session is switched.
pub(super) fn switch_policy(text: &str) -> Result<SwitchPolicy, String> {
    match text.split_once(':') {
        None if text == "manual" => Ok(SwitchPolicy::Manual),
        None if text == "when-synced" => Ok(SwitchPolicy::WhenSynced),
        Some(("at", time)) => moments::parse(time).map(SwitchPolicy::At),
        Some(("event", name)) if !name.is_empty() => Ok(SwitchPolicy::OnEvent(name.to_owned())),
        _ => Err("not manual, when-synced, at:TIME or event:NAME".to_owned()),
    }
}

/// The text that [`switch_policy`] reads.
pub(super) fn switch_policy_text(policy: &SwitchPolicy) -> String {
    match policy {
        SwitchPolicy::Manual => "manual".to_owned(),
        SwitchPolicy::WhenSynced => "when-synced".to_owned(),
        SwitchPolicy::At(at_ms) => format!("at:{}", moments::text(at_ms / 1000)),
        SwitchPolicy::OnEvent(event) => format!("event:{event}"),
    }
}

pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    seconds(text).ok_or_else(|| format!("not a number of seconds from 0 to {SECONDS_MAX}"))
}

pub(super) fn max_pause(text: &str) -> Result<Duration, String> {
    seconds(text)
        .filter(|limit| *limit >= Duration::from_millis(1))
        .ok_or_else(|| format!("not a number of seconds from 0.001 to {SECONDS_MAX}"))
}

fn seconds(text: &str) -> Option<Duration> {
    let number: f64 = text.parse().ok()?;
    if !(0.0..=SECONDS_MAX).contains(&number) {
        return None;
    }
    Duration::try_from_secs_f64(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_colon_of_a_pair_separates() {
        let spec = pair("db:/dev/disk/by-path/pci-0000:00:1f.2-ata-1").unwrap();
        assert_eq!(spec.volume, "db");
        assert_eq!(
            spec.target.to_string(),
            "/dev/disk/by-path/pci-0000:00:1f.2-ata-1"
        );
        for wrong in ["db", "db:", ":/dev/sdc", ":"] {
            pair(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_rate_has_a_unit_and_is_not_nothing() {
        assert_eq!(rate("100MiB"), Ok(100 << 20));
        assert_eq!(rate("5 MB"), Ok(5_000_000));
        assert_eq!(rate("65536"), Ok(65_536));
        assert_eq!(rate("unlimited"), Ok(0));
        for wrong in ["0", "1", "-1MiB", "fast", "", "1Xi"] {
            rate(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_policy_is_read_as_it_is_shown() {
        for text in [
            "manual",
            "when-synced",
            "event:backup-done",
            "at:2030-01-02 03:04:05Z",
        ] {
            let policy = switch_policy(text).unwrap();
            assert_eq!(switch_policy_text(&policy), text);
        }
        for wrong in ["", "at", "at:", "at:soon", "event:", "later", "manual:x"] {
            switch_policy(wrong).unwrap_err();
        }
    }

    #[test]
    fn seconds_may_have_fractions_but_no_nonsense() {
        assert_eq!(max_pause("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(timeout("0"), Ok(Duration::ZERO));
        for wrong in ["0", "-1", "nan", "inf", "1e30", "", "5s"] {
            max_pause(wrong).unwrap_err();
        }
    }
}
