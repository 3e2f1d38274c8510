//! The partitions of a volume: asks the kernel to look for them, and gives each partition a stable
//! name, `/dev/shunt/NAME-partN`.

use std::io;
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

use super::names::{make_link, remove_link};

/// The text between the name of the volume and the number of the partition.
const INFIX: &str = "-part";

/// Whether a volume of this name could be mistaken for a partition of a different volume.
pub(crate) fn is_partition_name(name: &str) -> bool {
    let number = name.rsplit_once(INFIX).map(|(_, number)| number);
    number.is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Looks for the partitions of a volume's device and makes their names. `own` is the device that
/// the volume had before. Blocks.
pub(crate) fn make_names(link: &Path, device: &Path, own: Option<&Path>) {
    let partitions = match lun::read_partitions(device) {
        Ok(partitions) => partitions,
        Err(error) => return debug!(%error, "no partitions of {}", device.display()),
    };
    for (number, node) in partitions {
        let number = number.to_string();
        let own = own.map(|device| node_of(device, &number));
        if let Err(problem) = make_link(&name_of(link, &number), &node, own.as_deref()) {
            warn!("{problem}");
        }
    }
}

/// Removes the stable names of the partitions of a volume's device.
pub(super) fn remove_names(link: &Path, device: &Path) -> io::Result<()> {
    let Some(directory) = link.parent() else {
        return Ok(());
    };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.rsplit_once(INFIX).map(|(_, number)| number);
        if let Some(number) = number.filter(|number| path == name_of(link, number)) {
            remove_link(&path, &node_of(device, number))?;
        }
    }
    Ok(())
}

/// The path of the kernel's node for a partition.
fn node_of(device: &Path, number: &str) -> PathBuf {
    let mut node = device.as_os_str().to_owned();
    node.push(format!("p{number}"));
    PathBuf::from(node)
}

fn name_of(link: &Path, number: &str) -> PathBuf {
    let mut name = link.as_os_str().to_owned();
    name.push(format!("{INFIX}{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_partition_could_have_is_recognised() {
        for name in ["db-part1", "a-part12", "a-part-part0"] {
            assert!(is_partition_name(name), "{name}");
        }
        for name in ["db", "db-part", "db-partx", "part1", "db-part1a"] {
            assert!(!is_partition_name(name), "{name}");
        }
    }

    #[test]
    fn only_the_names_of_this_device_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("db");
        let device = Path::new("/dev/ublkb7");
        let names = [
            ("db-part1", "/dev/ublkb7p1", false),
            ("db-part12", "/dev/ublkb7p12", false),
            ("db-part2", "/dev/ublkb8p2", true),
            ("db-party", "/dev/ublkb7", true),
            ("other-part1", "/dev/ublkb7p1", true),
        ];
        for (name, to, _) in names {
            std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
        }
        remove_names(&link, device).unwrap();
        for (name, _, stays) in names {
            assert_eq!(folder.path().join(name).is_symlink(), stays, "{name}");
        }
        remove_names(&folder.path().join("none/db"), device).unwrap();
    }
}
