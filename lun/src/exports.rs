//! LUNs and files that the kernel itself serves to others: NVMe and SCSI targets, RNBD, USB
//! gadgets, OCFS2's heartbeat.
//!
//! No process has such a LUN open, and most of these servers do not claim it. configfs and sysfs
//! list what the servers export. The LUNs that they name are compared by device number or inode,
//! never by the text of a path.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::bounded::Step;
use crate::identity::FileId;
use crate::kernel::status_unsynced;
use crate::proc_text::{DeviceNumber, Mount};
use crate::sysfs::{Sysfs, clean_text};

/// Kernel modules whose exports are listed in configfs.
const MODULES_OF_CONFIGFS: [&str; 2] = ["nvmet", "target_core_mod"];

/// A LUN or a file that the kernel serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) what: Exported,
    /// The server, and the folder that names the export: "nvmet (/sys/kernel/config/nvmet/...)".
    pub(crate) by: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exported {
    Device(DeviceNumber),
    File(FileId),
}

/// Lists everything that this kernel exports.
///
/// Skips a path that does not exist here, because the device is gone or the path belongs to another
/// mount namespace.
///
/// # Errors
/// A server's module is loaded and configfs cannot be read, or a folder cannot be listed. The list
/// is never silently incomplete.
pub(crate) fn exports(sysfs: &Sysfs, mounts: &[Mount], step: &Step) -> io::Result<Vec<Export>> {
    let mut found = Found {
        exports: Vec::new(),
        step,
    };
    match configfs(mounts) {
        Some(root) => found.of_configfs(&root)?,
        None => {
            if let Some(module) = MODULES_OF_CONFIGFS
                .iter()
                .find(|module| sysfs.has_module(module))
            {
                return Err(io::Error::other(format!(
                    "the module {module} is loaded, and what it exports cannot be seen: run mount -t configfs none /sys/kernel/config first"
                )));
            }
        }
    }
    for folder in sysfs.folders("class/rnbd-server/ctl/devices")? {
        if let Some(number) = sysfs.linked_number(&folder.join("block_dev")) {
            found.add(Exported::Device(number), "rnbd-server", &folder);
        }
    }
    for folder in sysfs.folders("kernel/scst_tgt/devices")? {
        // The name is the first line. The second line says whether SCST saves the name.
        let text = read(&folder.join("filename"));
        let name = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        found.path(name, "SCST", &folder);
    }
    Ok(found.exports)
}

/// A mount point at which configfs can be read: as this process sees it, else as process 1 does.
fn configfs(mounts: &[Mount]) -> Option<PathBuf> {
    let points = mounts
        .iter()
        .filter(|mount| mount.file_system == "configfs")
        .map(|mount| mount.mount_point.clone());
    points
        .flat_map(|point| {
            let of_first =
                Path::new("/proc/1/root").join(point.strip_prefix("/").unwrap_or(&point));
            [point, of_first]
        })
        .find(|folder| fs::read_dir(folder).is_ok())
}

struct Found<'a> {
    exports: Vec<Export>,
    step: &'a Step,
}

impl Found<'_> {
    fn of_configfs(&mut self, root: &Path) -> io::Result<()> {
        for namespace in below(root, &["nvmet", "subsystems", "*", "namespaces", "*"])? {
            if is_enabled(&namespace) {
                self.path(&read(&namespace.join("device_path")), "nvmet", &namespace);
            }
        }
        for backstore in below(root, &["target", "core", "*", "*"])? {
            if is_enabled(&backstore) {
                self.backstore(&backstore);
            }
        }
        let gadget = ["usb_gadget", "*", "functions", "*", "*"];
        for lun in below(root, &gadget)? {
            self.path(&read(&lun.join("file")), "USB mass storage gadget", &lun);
        }
        for region in below(root, &["cluster", "*", "heartbeat", "*"])? {
            if let Some(name) = clean_text(&read(&region.join("dev"))) {
                self.path(
                    format!("/dev/{name}").as_bytes(),
                    "OCFS2 heartbeat",
                    &region,
                );
            }
        }
        Ok(())
    }

    /// Adds a backstore of LIO. `udev_path` is what targetcli wrote; `info` names what is open.
    fn backstore(&mut self, folder: &Path) {
        const BY: &str = "LIO backstore";
        let info = read(&folder.join("info"));
        if let Some(number) = device_in_info(&info) {
            self.add(Exported::Device(number), BY, folder);
        }
        if let Some(file) = file_in_info(&info) {
            self.path(file, BY, folder);
        }
        self.path(&read(&folder.join("udev_path")), BY, folder);
    }

    fn path(&mut self, text: &[u8], by: &str, folder: &Path) {
        let path = PathBuf::from(OsString::from_vec(trimmed(text).to_vec()));
        if !path.is_absolute() {
            return;
        }
        self.step.asks(&path);
        let Ok(status) = status_unsynced(&path) else {
            return;
        };
        match status.kind {
            libc::S_IFBLK => self.add(Exported::Device(status.device), by, folder),
            libc::S_IFREG => self.add(Exported::File(status.file), by, folder),
            _ => {}
        }
    }

    fn add(&mut self, what: Exported, by: &str, folder: &Path) {
        let export = Export {
            what,
            by: format!("{by} ({})", folder.display()),
        };
        if !self.exports.contains(&export) {
            self.exports.push(export);
        }
    }
}

fn is_enabled(folder: &Path) -> bool {
    trimmed(&read(&folder.join("enable"))) == b"1"
}

/// Reads `Major: 7 Minor: 0` of an iblock backstore.
fn device_in_info(info: &[u8]) -> Option<DeviceNumber> {
    let text = String::from_utf8_lossy(info);
    let words: Vec<&str> = text.split_whitespace().collect();
    let after = |name: &str| -> Option<u32> {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1)?.parse().ok()
    };
    let number = (after("Major:")?, after("Minor:")?);
    (number != (0, 0)).then_some(number)
}

/// Reads `File: /path of it  Size: 33554432  Mode: ...` of a fileio backstore. The path may contain
/// any byte.
fn file_in_info(info: &[u8]) -> Option<&[u8]> {
    let find = |text: &[u8], part: &[u8]| text.windows(part.len()).position(|at| at == part);
    let rest = &info[find(info, b"File: ")? + b"File: ".len()..];
    let end = b"  Size: ";
    let last = rest.windows(end.len()).rposition(|at| at == end)?;
    Some(&rest[..last])
}

/// The folders that match a pattern below `root`; `*` matches any one folder. Empty if a part of
/// the pattern does not exist.
fn below(root: &Path, pattern: &[&str]) -> io::Result<Vec<PathBuf>> {
    let Some((part, rest)) = pattern.split_first() else {
        return Ok(vec![root.to_owned()]);
    };
    let folders = match *part {
        "*" => crate::sysfs::entries(root)?
            .into_iter()
            .filter(|entry| entry.is_dir())
            .collect(),
        name => vec![root.join(name)],
    };
    let mut found = Vec::new();
    for folder in folders {
        if folder.is_dir() {
            found.extend(below(&folder, rest)?);
        }
    }
    Ok(found)
}

/// The text of an attribute; empty if the attribute is missing or unreadable, as when the export is
/// being removed.
fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

fn trimmed(text: &[u8]) -> &[u8] {
    let end = text
        .iter()
        .rposition(|byte| !matches!(byte, b'\n' | b'\0'))
        .map_or(0, |last| last + 1);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::file_id;
    use crate::sysfs::fake::FakeSysfs;

    struct Config {
        folder: tempfile::TempDir,
        file: PathBuf,
    }

    impl Config {
        fn new() -> Config {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("a file  Size: 7");
            fs::write(&file, "x").unwrap();
            fs::create_dir(folder.path().join("config")).unwrap();
            Config { folder, file }
        }

        fn add(&self, place: &str, attributes: &[(&str, &str)]) {
            let folder = self.folder.path().join("config").join(place);
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in attributes {
                fs::write(folder.join(name), text).unwrap();
            }
        }

        fn mounts(&self) -> Vec<Mount> {
            vec![Mount {
                number: (0, 20),
                mount_point: self.folder.path().join("config"),
                file_system: "configfs".into(),
                source: "none".into(),
            }]
        }

        /// The exports, each with the last folder of its place.
        fn exports(&self, sys: &FakeSysfs) -> Vec<(Exported, String)> {
            exports(&sys.sysfs(), &self.mounts(), &Step::default())
                .unwrap()
                .into_iter()
                .map(|export| {
                    let by = export.by.trim_end_matches(')');
                    (export.what, by.rsplit('/').next().unwrap().to_owned())
                })
                .collect()
        }

        fn the_file(&self) -> Exported {
            Exported::File(file_id(&fs::metadata(&self.file).unwrap()))
        }
    }

    #[test]
    fn exports_are_found_by_what_their_paths_lead_to_and_only_while_they_are_enabled() {
        let (config, sys) = (Config::new(), FakeSysfs::new());
        let alias = config.folder.path().join("alias");
        std::os::unix::fs::symlink(&config.file, &alias).unwrap();
        let path = format!("{}\n", alias.display());
        let namespaces = "nvmet/subsystems/s/namespaces";
        let on = [("enable", "1\n"), ("device_path", path.as_str())];
        let off = [("enable", "0\n"), ("device_path", path.as_str())];
        let lost = [("enable", "1\n"), ("device_path", "/nonexistent/x\n")];
        config.add(&format!("{namespaces}/1"), &on);
        config.add(&format!("{namespaces}/2"), &off);
        config.add(&format!("{namespaces}/3"), &lost);
        let info = format!(
            "Status: ACTIVATED  Max Queue Depth: 0\n        TCM FILEIO ID: 0        File: {}  Size: 33554432  Mode: O_DSYNC Async: 0\n",
            config.file.display()
        );
        config.add(
            "target/core/fileio_0/f",
            &[("enable", "1\n"), ("info", &info)],
        );
        config.add(
            "target/core/fileio_0/g",
            &[("enable", "0\n"), ("info", &info)],
        );
        let info = "Status: ACTIVATED\n        iBlock device: loop5  UDEV PATH: \n        Major: 7 Minor: 5  CLAIMED: IBLOCK\n";
        config.add(
            "target/core/iblock_0/b",
            &[("enable", "1\n"), ("info", info)],
        );
        config.add(
            "target/core/pscsi_0/p",
            &[("enable", "1\n"), ("info", "x"), ("udev_path", &path)],
        );
        config.add(
            "usb_gadget/g/functions/mass_storage.0/lun.0",
            &[("file", &path)],
        );
        config.add(
            "usb_gadget/g/functions/mass_storage.0/lun.1",
            &[("file", "\n")],
        );
        let file = config.the_file();
        let mut found = config.exports(&sys);
        found.sort_by(|a, b| a.1.cmp(&b.1));
        assert_eq!(
            found,
            [
                (file, "1".into()),
                (Exported::Device((7, 5)), "b".into()),
                (file, "f".into()),
                (file, "lun.0".into()),
                (file, "p".into()),
            ]
        );
    }

    #[test]
    fn exports_of_sysfs_are_found() {
        let (config, sys) = (Config::new(), FakeSysfs::new());
        sys.add("sda", "8:0", &[]);
        let root = sys.folder.path();
        let rnbd = root.join("class/rnbd-server/ctl/devices/sda");
        fs::create_dir_all(&rnbd).unwrap();
        std::os::unix::fs::symlink(root.join("devices/sda"), rnbd.join("block_dev")).unwrap();
        let scst = root.join("kernel/scst_tgt/devices/disk1");
        fs::create_dir_all(&scst).unwrap();
        fs::write(
            scst.join("filename"),
            format!("{}\n[key]\n", config.file.display()),
        )
        .unwrap();
        assert_eq!(
            config.exports(&sys),
            [
                (Exported::Device((8, 0)), "sda".into()),
                (config.the_file(), "disk1".into())
            ]
        );
    }

    #[test]
    fn server_whose_exports_cannot_be_seen_is_an_error() {
        let sys = FakeSysfs::new();
        let seen = || exports(&sys.sysfs(), &[], &Step::default());
        assert_eq!(seen().unwrap(), []);
        fs::create_dir_all(sys.folder.path().join("module/nvmet")).unwrap();
        let error = seen().unwrap_err().to_string();
        assert!(
            error.contains("nvmet") && error.contains("mount -t configfs"),
            "{error}"
        );
    }
}
