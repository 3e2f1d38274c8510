//! The configuration of shuntd, its paths, and the stable names of volumes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest path that a unix socket can have, in bytes, without its final zero (`sun_path`).
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The configuration of `shuntd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The directory for what must survive a reboot: the database, the map files, the logs of the
    /// volumes.
    pub state_directory: PathBuf,
    /// The directory for the sockets.
    pub runtime_directory: PathBuf,
    /// The directory for the stable names of the volumes.
    pub device_directory: PathBuf,
    /// The program that serves a volume.
    pub ublk_target: PathBuf,
    /// How long a ublk-target that has served may give no useful answer before shuntd kills it and
    /// starts a new one: a ublk-target that hangs would block applications for ever.
    pub silent_max: Duration,
    /// Which requirements on the host are checked.
    pub host_checks: HostChecks,
}

/// The default of [`Config::silent_max`]: much longer than a host without free memory or processors
/// needs for an answer.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// The requirements on the host that are checked before anything is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostChecks {
    /// This process must be root.
    pub root: bool,
    /// The kernel must have ublk.
    pub ublk: bool,
}

impl Config {
    /// A configuration with all checks, and with the names of volumes in `/dev/shunt`.
    #[must_use]
    pub fn new(state_directory: PathBuf, runtime_directory: PathBuf, ublk_target: PathBuf) -> Self {
        Self {
            state_directory,
            runtime_directory,
            device_directory: PathBuf::from("/dev/shunt"),
            ublk_target,
            silent_max: SILENT_MAX,
            host_checks: HostChecks {
                root: true,
                ublk: true,
            },
        }
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state_directory.join("shunt.db")
    }

    /// The socket for `shunt`.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_directory.join("shuntd.sock")
    }

    /// The directory of all volumes.
    pub(super) fn volumes(&self) -> PathBuf {
        self.state_directory.join("volumes")
    }

    /// The directory of one volume.
    pub(super) fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name)
    }

    /// The map file of a volume.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.volume(name).join("map")
    }

    /// The log of the ublk-target of a volume.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.volume(name).join("ublk-target.log")
    }

    /// The directory for the sockets of all volumes.
    pub(super) fn volume_sockets(&self) -> PathBuf {
        self.runtime_directory.join("volumes")
    }

    /// The socket of the ublk-target of a volume.
    pub(super) fn volume_socket(&self, name: &str) -> PathBuf {
        self.volume_sockets().join(format!("{name}.sock"))
    }

    /// The stable name of a volume.
    pub(super) fn device_link(&self, name: &str) -> PathBuf {
        self.device_directory.join(name)
    }
}

/// Makes the stable name lead to `device`. Returns whether the name was changed. Replaces a
/// symbolic link that leads nowhere or to `own`, a device that this volume had earlier in this
/// boot, and nothing else: any other name belongs to a different volume.
///
/// # Errors
/// A text that says what holds the name, and what to do.
pub(super) fn make_link(link: &Path, device: &Path, own: Option<&Path>) -> Result<bool, String> {
    let failed = |error: io::Error| format!("{} cannot be made: {error}", link.display());
    match std::fs::read_link(link) {
        Ok(found) if found == device => return Ok(false),
        Ok(found) if Some(found.as_path()) == own => {}
        Ok(_) | Err(_) => check_name(link)?,
    }
    let directory = link
        .parent()
        .ok_or_else(|| failed(io::Error::other("it has no directory")))?;
    std::fs::create_dir_all(directory).map_err(failed)?;
    // A name of a volume never begins with a dot.
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(link.file_name().unwrap_or_default());
    let temporary = directory.join(temporary_name);
    match std::fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    std::os::unix::fs::symlink(device, &temporary).map_err(failed)?;
    std::fs::rename(&temporary, link).map_err(failed)?;
    Ok(true)
}

/// Refuses a stable name that is taken: by a link to an existing file, or by anything that is not a
/// link.
///
/// # Errors
/// A text that says what holds the name, and what to do.
pub(super) fn check_name(link: &Path) -> Result<(), String> {
    let found = match std::fs::symlink_metadata(link) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{} cannot be examined: {error}", link.display())),
    };
    let path = link.display();
    if !found.is_symlink() {
        return Err(format!(
            "the name {path} is taken: something that is not a symbolic link is there; next: move it away"
        ));
    }
    match std::fs::metadata(link) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => {
            let leads_to = std::fs::read_link(link).unwrap_or_default();
            Err(format!(
                "the name {path} is taken: it leads to {}, which is not this volume's device; next: detach the volume that \
                 has it (of another shuntd), or `rm {path}` if nothing uses it",
                leads_to.display()
            ))
        }
    }
}

/// Removes the stable name, if it is a symbolic link to `device`.
pub(super) fn remove_link(link: &Path, device: &Path) -> io::Result<()> {
    match std::fs::read_link(link) {
        Ok(target) if target == device => std::fs::remove_file(link),
        Ok(_) => Ok(()),
        // Not there, or not a link: it is not ours.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The kernel's id of the current boot.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_moved_and_removed_only_if_it_is_ours() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("shunt/db");
        let device = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, "").unwrap();
            path
        };
        let (first, second, foreign) = (device("ublkb0"), device("ublkb1"), device("ublkb2"));
        assert_eq!(make_link(&link, &first, None), Ok(true));
        assert_eq!(make_link(&link, &first, None), Ok(false));
        // The volume's device has another number now.
        assert_eq!(make_link(&link, &second, Some(&first)), Ok(true));
        assert_eq!(std::fs::read_link(&link).unwrap(), second);
        // A device of a different volume.
        for own in [None, Some(foreign.as_path())] {
            let refused = make_link(&link, &first, own).unwrap_err();
            assert!(
                refused.contains("ublkb1") && refused.contains("next: "),
                "{refused}"
            );
            assert_eq!(std::fs::read_link(&link).unwrap(), second);
        }
        check_name(&link).unwrap_err();
        // A link that leads nowhere.
        std::fs::remove_file(&second).unwrap();
        check_name(&link).unwrap();
        assert_eq!(make_link(&link, &first, None), Ok(true));
        remove_link(&link, &second).unwrap();
        assert!(link.is_symlink());
        remove_link(&link, &first).unwrap();
        assert!(!link.is_symlink());
        remove_link(&link, &first).unwrap();
        check_name(&link).unwrap();
    }

    #[test]
    fn what_is_not_a_link_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("db");
        std::fs::write(&link, "mine").unwrap();
        make_link(&link, Path::new("/dev/ublkb0"), None).unwrap_err();
        remove_link(&link, Path::new("/dev/ublkb0")).unwrap();
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "mine");
    }
}
