//! The file in which `shuntd` names, for one boot, the disks of LUNs that have no name of their
//! own.
//!
//! The file lies beside the socket of the volume. `ublk-target` opens such a LUN only if the file
//! names its disk.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The contents of the file, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disks {
    /// The boot in which the disk numbers hold.
    pub boot_id: String,
    /// The LUNs of the volume that have no name of their own.
    pub disks: Vec<Disk>,
}

/// A LUN without a name of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The recorded path.
    pub path: PathBuf,
    /// The number of the disk ([`lun::Lun::disk_sequence`]), or why the disk is not known to be the
    /// LUN that was accepted.
    pub disk_sequence: Result<u64, String>,
}

impl Disks {
    /// The file of the volume with this socket.
    #[must_use]
    pub fn path(socket: &Path) -> PathBuf {
        socket.with_extension("disks")
    }

    /// Reads the file. A file that is missing, or is of another boot, names no disk.
    ///
    /// # Errors
    /// The file cannot be read, or is not in this form.
    pub fn read(socket: &Path, boot_id: &str) -> io::Result<Self> {
        let text = match std::fs::read(Self::path(socket)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read?,
        };
        let disks: Self = serde_json::from_slice(&text)?;
        if disks.boot_id == boot_id {
            Ok(disks)
        } else {
            Ok(Self::default())
        }
    }

    /// Replaces the file; removes it if it would name no disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, socket: &Path) -> io::Result<()> {
        let path = Self::path(socket);
        if self.disks.is_empty() {
            return match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            };
        }
        let unfinished = path.with_extension("disks-unfinished");
        std::fs::write(&unfinished, serde_json::to_vec(self)?)?;
        std::fs::rename(&unfinished, &path)
    }

    /// What the file says about the LUN at `path`; `None` if it does not name the LUN.
    #[must_use]
    pub fn of(&self, path: &Path) -> Option<Result<u64, &str>> {
        let disk = self.disks.iter().find(|disk| disk.path == path)?;
        Some(disk.disk_sequence.as_ref().copied().map_err(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_known_in_its_boot_only() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("db.sock");
        assert_eq!(Disks::read(&socket, "a").unwrap(), Disks::default());
        let disks = Disks {
            boot_id: "a".into(),
            disks: vec![
                Disk {
                    path: "/dev/ram0".into(),
                    disk_sequence: Ok(7),
                },
                Disk {
                    path: "/dev/ram1".into(),
                    disk_sequence: Err("another disk".into()),
                },
            ],
        };
        disks.write(&socket).unwrap();
        let read = Disks::read(&socket, "a").unwrap();
        assert_eq!(read, disks);
        assert_eq!(read.of(Path::new("/dev/ram0")), Some(Ok(7)));
        assert_eq!(read.of(Path::new("/dev/ram2")), None);
        assert_eq!(Disks::read(&socket, "b").unwrap(), Disks::default());
        Disks::default().write(&socket).unwrap();
        assert!(!Disks::path(&socket).exists());
        std::fs::write(Disks::path(&socket), "{").unwrap();
        Disks::read(&socket, "a").unwrap_err();
    }
}
