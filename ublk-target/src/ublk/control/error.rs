//! The errors of control commands.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

use super::CONTROL_PATH;
use super::command::{Attempt, Command};
use crate::ublk::abi::Features;
use crate::ublk::device::{DevInfoError, DeviceId};
use crate::ublk::params::ParamsError;

/// The kernel-internal ENOTSUPP, which the driver returns for commands that a device's features
/// exclude.
pub(super) const ENOTSUPP: i32 = 524;

/// Why an operation on a ublk device failed.
#[derive(Debug, Error)]
pub enum ControlError {
    /// There is no `/dev/ublk-control`.
    #[error(
        "open {CONTROL_PATH}: {errno}: the ublk_drv module is not loaded or the kernel has none: run `modprobe \
         ublk_drv` (it needs CONFIG_BLK_DEV_UBLK and kernel >= 6.1, this program 6.5)"
    )]
    NoDriver {
        /// ENOENT, ENXIO or ENODEV.
        errno: Errno,
    },
    /// The process has no permission to open the control file.
    #[error("open {CONTROL_PATH}: {errno}: it takes root or CAP_SYS_ADMIN and access to the file")]
    OpenPermission {
        /// EACCES or EPERM.
        errno: Errno,
    },
    /// The control file can not be opened for another reason.
    #[error("open {CONTROL_PATH}: {errno}")]
    Open {
        /// The cause.
        errno: Errno,
    },
    /// The ring or the thread for control commands cannot be created.
    #[error(
        "set up io_uring for ublk control commands: {source} (see sysctl kernel.io_uring_disabled)"
    )]
    Setup {
        /// The cause.
        source: io::Error,
    },
    /// The process has no permission to run the command.
    #[error("{attempt}: not permitted: it takes CAP_SYS_ADMIN")]
    Permission {
        /// The command.
        attempt: Attempt,
    },
    /// No answer in time. The command's effect, now or later, is unknown.
    #[error("{attempt}: no answer from the kernel in {limit:?}; it may still take effect")]
    Timeout {
        /// The command.
        attempt: Attempt,
        /// The time limit.
        limit: Duration,
    },
    /// The ring failed during the command. The command's effect is unknown.
    #[error("{attempt}: lost its io_uring: {source}")]
    Broken {
        /// The command.
        attempt: Attempt,
        /// The cause.
        source: io::Error,
    },
    /// The command was not sent, because an earlier one of this handle got no answer.
    #[error("{attempt}: not sent, because {earlier} got no answer before on this control handle")]
    Poisoned {
        /// The command that was not sent.
        attempt: Attempt,
        /// The command that got no answer.
        earlier: Attempt,
    },
    /// The driver does not have the command.
    #[error("{attempt}: this kernel's ublk driver does not have the command (Linux {} has)", attempt.command.since())]
    Unsupported {
        /// The command.
        attempt: Attempt,
    },
    /// The driver lacks features.
    #[error("this kernel's ublk driver lacks {missing}; it has {offered}")]
    MissingFeatures {
        /// The features that are required and not offered.
        missing: Features,
        /// The features that are offered.
        offered: Features,
    },
    /// The driver refused the command.
    #[error("{attempt}: {errno}{}{}", if hint.is_empty() { "" } else { ": " }, hint)]
    Kernel {
        /// The command.
        attempt: Attempt,
        /// The driver's answer.
        errno: Errno,
        /// The meaning of `errno` after this command; may be empty.
        hint: &'static str,
    },
    /// Parameters that cannot be encoded, or that the driver reported and that are not valid.
    #[error("{attempt}: {source}")]
    Params {
        /// The command.
        attempt: Attempt,
        /// What is wrong.
        source: ParamsError,
    },
    /// A device description of the driver that is not valid.
    #[error("{attempt}: the driver's answer makes no sense: {source}")]
    DevInfo {
        /// The command.
        attempt: Attempt,
        /// What is wrong.
        source: DevInfoError,
    },
    /// Two devices carry the same mark.
    #[error(
        "ublk devices {first} and {second} both carry the mark {tag:#x}: delete the one that is not in use"
    )]
    DuplicateTag {
        /// The mark.
        tag: u64,
        /// One device.
        first: DeviceId,
        /// The other.
        second: DeviceId,
    },
    /// The devices can not be listed.
    #[error("list ublk devices in {}: {source}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The character device can not be opened.
    #[error("open {} of ublk device {device}, tried for {limit:?}: {source}", path.display())]
    Cdev {
        /// The device.
        device: DeviceId,
        /// The device's file.
        path: PathBuf,
        /// The time limit.
        limit: Duration,
        /// The error of the last try.
        source: io::Error,
    },
    /// The block layer's time limit can not be set.
    #[error("write {milliseconds} to {} of ublk device {device}: {source}", path.display())]
    IoTimeout {
        /// The device.
        device: DeviceId,
        /// The file.
        path: PathBuf,
        /// The value, in milliseconds.
        milliseconds: u32,
        /// The cause.
        source: io::Error,
    },
}

impl ControlError {
    /// The driver's error number, if the driver refused the command. A caller decides by it whether
    /// to retry.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    pub(super) fn open(error: &io::Error) -> Self {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        match errno {
            Errno::ENOENT | Errno::ENXIO | Errno::ENODEV => Self::NoDriver { errno },
            Errno::EACCES | Errno::EPERM => Self::OpenPermission { errno },
            errno => Self::Open { errno },
        }
    }

    /// The error of a command that the driver answered with `-number`.
    pub(super) fn answer(attempt: Attempt, number: i32) -> Self {
        let errno = Errno::from_raw(number);
        // Before 6.5 the driver treats GET_FEATURES as an unknown command, or as a command to a
        // missing device.
        let unknown_get_features = attempt.command == Command::GetFeatures
            && matches!(errno, Errno::EINVAL | Errno::ENODEV);
        if number == ENOTSUPP || errno == Errno::EOPNOTSUPP || unknown_get_features {
            return Self::Unsupported { attempt };
        }
        match errno {
            Errno::EPERM => Self::Permission { attempt },
            errno => Self::Kernel {
                attempt,
                errno,
                hint: attempt.command.hint(errno),
            },
        }
    }
}
