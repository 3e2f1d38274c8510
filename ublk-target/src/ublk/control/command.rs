//! The control commands, and how errors name them.

use std::fmt;

use nix::errno::Errno;

use crate::ublk::abi;
use crate::ublk::device::DeviceId;

/// A control command.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// Read the features of the driver.
    GetFeatures,
    /// Create a device.
    AddDev,
    /// Describe a device.
    GetDevInfo,
    /// Set the block device's parameters.
    SetParams,
    /// Read the block device's parameters.
    GetParams,
    /// Make the block device appear.
    StartDev,
    /// Remove the block device.
    StopDev,
    /// Remove the block device unless it is open.
    TryStopDev,
    /// Delete a device.
    DelDev,
    /// Begin to take over a device.
    StartUserRecovery,
    /// End the takeover.
    EndUserRecovery,
}

impl Command {
    /// The header's name, without `UBLK_U_CMD_`.
    pub const fn name(self) -> &'static str {
        self.entry().1
    }

    pub(super) const fn opcode(self) -> u32 {
        self.entry().0
    }

    /// The first Linux version that has the command with the encoding of this module.
    pub(super) const fn since(self) -> &'static str {
        self.entry().2
    }

    const fn entry(self) -> (u32, &'static str, &'static str) {
        match self {
            Self::GetFeatures => (abi::UBLK_U_CMD_GET_FEATURES, "GET_FEATURES", "6.5"),
            Self::AddDev => (abi::UBLK_U_CMD_ADD_DEV, "ADD_DEV", "6.4"),
            Self::GetDevInfo => (abi::UBLK_U_CMD_GET_DEV_INFO, "GET_DEV_INFO", "6.4"),
            Self::SetParams => (abi::UBLK_U_CMD_SET_PARAMS, "SET_PARAMS", "6.4"),
            Self::GetParams => (abi::UBLK_U_CMD_GET_PARAMS, "GET_PARAMS", "6.4"),
            Self::StartDev => (abi::UBLK_U_CMD_START_DEV, "START_DEV", "6.4"),
            Self::StopDev => (abi::UBLK_U_CMD_STOP_DEV, "STOP_DEV", "6.4"),
            Self::TryStopDev => (abi::UBLK_U_CMD_TRY_STOP_DEV, "TRY_STOP_DEV", "7.0"),
            Self::DelDev => (abi::UBLK_U_CMD_DEL_DEV, "DEL_DEV", "6.4"),
            Self::StartUserRecovery => (
                abi::UBLK_U_CMD_START_USER_RECOVERY,
                "START_USER_RECOVERY",
                "6.4",
            ),
            Self::EndUserRecovery => (
                abi::UBLK_U_CMD_END_USER_RECOVERY,
                "END_USER_RECOVERY",
                "6.4",
            ),
        }
    }

    /// The meaning of an error number after this command, where the error number's own text does
    /// not say it.
    pub(super) const fn hint(self, errno: Errno) -> &'static str {
        match (self, errno) {
            (_, Errno::ENODEV) => "there is no such ublk device",
            (_, Errno::EINTR) => "the kernel's wait was interrupted",
            (Self::AddDev, Errno::EEXIST) => "the number is taken",
            (Self::AddDev, Errno::EINVAL) => {
                "the driver refuses the number, the queues or the mix of features"
            }
            (Self::SetParams, Errno::EACCES) => {
                "the device was started already, its parameters are fixed"
            }
            (Self::SetParams, Errno::EINVAL) => "the driver refuses the parameters",
            (Self::StartDev, Errno::EEXIST) => "the device was started already",
            (Self::StartDev, Errno::EINVAL) => {
                "no parameters were set, or the pid is not the server's"
            }
            (Self::TryStopDev, Errno::EBUSY) => "the block device is open",
            (Self::StartUserRecovery, Errno::EBUSY) => {
                "the previous server still has a reference to the device"
            }
            (Self::StartUserRecovery, Errno::EINVAL) => {
                "the device can not be recovered, or an earlier recovery of it has begun and not ended"
            }
            (Self::EndUserRecovery, Errno::EBUSY) => "the device does not wait for recovery",
            (Self::EndUserRecovery, Errno::EINVAL) => {
                "the device can not be recovered, or the pid is not the server's"
            }
            _ => "",
        }
    }
}

/// A command and its device, as an error names them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attempt {
    /// The command.
    pub command: Command,
    /// The device; `None` for GET_FEATURES, and for ADD_DEV when the driver chooses the number.
    pub device: Option<DeviceId>,
}

impl fmt::Display for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.command.name();
        match (self.command, self.device) {
            (_, Some(id)) => write!(formatter, "{name} of ublk device {id}"),
            (Command::AddDev, None) => write!(formatter, "{name} of a new ublk device"),
            (_, None) => formatter.write_str(name),
        }
    }
}
