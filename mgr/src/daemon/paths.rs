//! The configuration of shuntd, and its paths.

use std::path::PathBuf;
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

/// The kernel's id of the current boot.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| String::new(), |text| text.trim().to_owned())
}
