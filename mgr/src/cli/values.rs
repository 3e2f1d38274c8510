//! Parsers for values on the command line: paths, pairs, times. Those for the options of a session
//! are in [`options::forms`](crate::options::forms).

use std::path::PathBuf;
use std::time::Duration;

use migration_proto::luns::LunPaths;
use migration_proto::manager::PairSpec;

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
    fn seconds_may_have_fractions_but_no_nonsense() {
        assert_eq!(max_pause("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(timeout("0"), Ok(Duration::ZERO));
        for wrong in ["0", "-1", "nan", "inf", "1e30", "", "5s"] {
            max_pause(wrong).unwrap_err();
        }
    }
}
