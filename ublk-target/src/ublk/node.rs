//! The files of ublk devices: finding devices, opening their character device, one setting in
//! sysfs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::control::ControlError;
use super::device::DeviceId;

/// The directory in which the driver lists its character devices.
const CLASS_DIRECTORY: &str = "/sys/class/ublk-char";
/// Interval between two tries to open a character device.
const CDEV_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Lists the devices that exist, lowest number first. Empty if the driver is not loaded.
pub fn device_ids() -> Result<Vec<DeviceId>, ControlError> {
    device_ids_in(Path::new(CLASS_DIRECTORY)).map_err(|source| ControlError::List {
        path: CLASS_DIRECTORY.into(),
        source,
    })
}

fn device_ids_in(directory: &Path) -> io::Result<Vec<DeviceId>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("ublkc"))
            .and_then(|digits| digits.parse().ok());
        ids.extend(number.map(DeviceId));
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Opens `/dev/ublkcN` for reading and writing. Retries for at most `limit`: devtmpfs or udev
/// create the file a little after ADD_DEV, and the device can be open only once, so it is busy
/// until the previous server's last reference is gone.
///
/// The descriptor is closed on exec. A copy of it in another process, such as a forked child, would
/// delay recovery and DEL_DEV.
pub fn wait_for_cdev(id: DeviceId, limit: Duration) -> Result<File, ControlError> {
    let path = PathBuf::from(format!("/dev/ublkc{id}"));
    open_within(&path, limit).map_err(|source| ControlError::Cdev {
        device: id,
        path,
        limit,
        source,
    })
}

fn open_within(path: &Path, limit: Duration) -> io::Result<File> {
    let started = Instant::now();
    loop {
        let error = match File::options().read(true).write(true).open(path) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        // ENXIO and ENODEV: a stale file of an earlier device of this number, which udev has not
        // replaced yet.
        let may_pass = matches!(
            error.raw_os_error(),
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV | libc::EBUSY | libc::EINTR)
        );
        if !may_pass || started.elapsed() >= limit {
            return Err(error);
        }
        thread::sleep(CDEV_POLL_INTERVAL);
    }
}

/// Sets the time after which the block layer asks the driver about a request (`queue/io_timeout`),
/// in milliseconds; must not be 0.
///
/// For drivers without QUIESCE (such as Linux 6.12's): if a killed server held every tag, only this
/// timeout makes them notice its death, and the default is 30 s. A live server that holds a request
/// longer sees no error.
pub fn set_io_timeout(id: DeviceId, milliseconds: u32) -> Result<(), ControlError> {
    let path = PathBuf::from(format!("/sys/block/ublkb{id}/queue/io_timeout"));
    // Reading the value has no side effect; writing it waits until no request is in flight.
    let present = fs::read_to_string(&path).unwrap_or_default();
    if present.trim() == milliseconds.to_string() {
        return Ok(());
    }
    fs::write(&path, milliseconds.to_string()).map_err(|source| ControlError::IoTimeout {
        device: id,
        path,
        milliseconds,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed_by_number_and_other_names_are_ignored() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["ublkc10", "ublkc2", "ublkc", "ublkcx", "other"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(
            device_ids_in(directory.path()).unwrap(),
            [DeviceId(2), DeviceId(10)]
        );
    }

    #[test]
    fn no_driver_means_no_devices() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            device_ids_in(&directory.path().join("ublk-char"))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_character_device_that_does_not_come_is_an_error_when_the_time_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let error = open_within(&directory.path().join("ublkc0"), Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_character_device_that_comes_late_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ublkc0");
        let (started, is_started) = std::sync::mpsc::channel();
        let opener = thread::spawn({
            let path = path.clone();
            move || {
                started.send(()).unwrap();
                open_within(&path, Duration::from_secs(60))
            }
        });
        is_started.recv().unwrap();
        fs::write(&path, "").unwrap();
        opener.join().unwrap().unwrap();
    }
}
