//! A ublk device as the driver describes it, in types of this crate.

use std::fmt;

use thiserror::Error;

use super::abi::{self, CtrlDevInfo, Features};

/// Number of a ublk device: the `N` of `/dev/ublkbN` and `/dev/ublkcN`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeviceId(pub u32);

impl fmt::Display for DeviceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// State of a device (`UBLK_S_DEV_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeviceState {
    /// No block device: not started yet, or stopped.
    Dead,
    /// A server answers requests.
    Live,
    /// The server is gone; requests wait for the next one.
    Quiesced,
    /// The server is gone; requests fail until the next one.
    FailIo,
}

impl DeviceState {
    fn decode(state: u16) -> Option<Self> {
        match state {
            abi::UBLK_S_DEV_DEAD => Some(Self::Dead),
            abi::UBLK_S_DEV_LIVE => Some(Self::Live),
            abi::UBLK_S_DEV_QUIESCED => Some(Self::Quiesced),
            abi::UBLK_S_DEV_FAIL_IO => Some(Self::FailIo),
            _ => None,
        }
    }
}

/// The request of ADD_DEV. The driver may give less: see [`DevInfo`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewDevice {
    /// The wanted number; `None`: the driver takes a free one.
    pub id: Option<DeviceId>,
    /// Hardware queues, 1 or more.
    pub queue_count: u16,
    /// Tags per queue, 1 to [`abi::UBLK_MAX_QUEUE_DEPTH`].
    pub queue_depth: u16,
    /// Largest data of one request in bytes, a multiple of the page size, at most 32 MiB.
    pub io_buffer_bytes_max: u32,
    /// Wanted features.
    pub features: Features,
    /// The server's mark on the device (`ublksrv_flags`), by which a later process recognises it;
    /// not 0.
    pub tag: u64,
}

impl NewDevice {
    pub(super) fn encode(&self) -> CtrlDevInfo {
        CtrlDevInfo {
            nr_hw_queues: self.queue_count,
            queue_depth: self.queue_depth,
            max_io_buf_bytes: self.io_buffer_bytes_max,
            dev_id: self.id.map_or(u32::MAX, |id| id.0),
            flags: self.features.bits(),
            ublksrv_flags: self.tag,
            ..CtrlDevInfo::default()
        }
    }
}

/// The driver's description of a device. After ADD_DEV compare it with the request: the driver
/// lowers `queue_count` to the number of CPUs, rounds `io_buffer_bytes_max` down to pages, silently
/// drops features that it does not know, and adds some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DevInfo {
    /// Number of the device.
    pub id: DeviceId,
    /// Hardware queues.
    pub queue_count: u16,
    /// Tags per queue.
    pub queue_depth: u16,
    /// State at the time of the command.
    pub state: DeviceState,
    /// Largest data of one request in bytes.
    pub io_buffer_bytes_max: u32,
    /// Process of the server that last started or recovered the device; the process may be gone.
    pub server_pid: Option<u32>,
    /// Features of the device.
    pub features: Features,
    /// The mark that the device got in ADD_DEV (`ublksrv_flags`).
    pub tag: u64,
    /// User that created the device.
    pub owner_uid: u32,
    /// Group that created the device.
    pub owner_gid: u32,
}

/// A device description of the driver that is not valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DevInfoError {
    /// A state that this program does not know.
    #[error("unknown device state {0}")]
    State(u16),
    /// Queues or tags outside of the interface's limits.
    #[error("{queue_count} queues of {queue_depth} tags are outside of the interface's limits")]
    Geometry {
        /// Hardware queues.
        queue_count: u16,
        /// Tags per queue.
        queue_depth: u16,
    },
}

impl DevInfo {
    pub(super) fn decode(info: &CtrlDevInfo) -> Result<Self, DevInfoError> {
        let queues = 1..=abi::UBLK_MAX_NR_QUEUES;
        let tags = 1..=abi::UBLK_MAX_QUEUE_DEPTH;
        if !queues.contains(&u32::from(info.nr_hw_queues)) || !tags.contains(&info.queue_depth) {
            return Err(DevInfoError::Geometry {
                queue_count: info.nr_hw_queues,
                queue_depth: info.queue_depth,
            });
        }
        Ok(Self {
            id: DeviceId(info.dev_id),
            queue_count: info.nr_hw_queues,
            queue_depth: info.queue_depth,
            state: DeviceState::decode(info.state).ok_or(DevInfoError::State(info.state))?,
            io_buffer_bytes_max: info.max_io_buf_bytes,
            server_pid: u32::try_from(info.ublksrv_pid).ok().filter(|pid| *pid != 0),
            features: Features::from_bits(info.flags),
            tag: info.ublksrv_flags,
            owner_uid: info.owner_uid,
            owner_gid: info.owner_gid,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> NewDevice {
        NewDevice {
            id: None,
            queue_count: 1,
            queue_depth: 64,
            io_buffer_bytes_max: 512 << 10,
            features: Features::USER_RECOVERY,
            tag: 0xfeed,
        }
    }

    #[test]
    fn a_new_device_without_a_number_lets_the_driver_choose() {
        assert_eq!(wanted().encode().dev_id, u32::MAX);
        assert_eq!(
            NewDevice {
                id: Some(DeviceId(3)),
                ..wanted()
            }
            .encode()
            .dev_id,
            3
        );
    }

    #[test]
    fn what_add_dev_sends_is_read_back_the_same() {
        let info = DevInfo::decode(&CtrlDevInfo {
            dev_id: 7,
            ..wanted().encode()
        })
        .unwrap();
        assert_eq!(info.id, DeviceId(7));
        assert_eq!((info.queue_count, info.queue_depth), (1, 64));
        assert_eq!(info.io_buffer_bytes_max, 512 << 10);
        assert_eq!((info.features, info.tag), (Features::USER_RECOVERY, 0xfeed));
        assert_eq!((info.state, info.server_pid), (DeviceState::Dead, None));
    }

    #[test]
    fn a_server_pid_of_minus_one_is_no_server() {
        let raw = CtrlDevInfo {
            ublksrv_pid: -1,
            ..wanted().encode()
        };
        assert_eq!(DevInfo::decode(&raw).unwrap().server_pid, None);
        let raw = CtrlDevInfo {
            ublksrv_pid: 42,
            ..wanted().encode()
        };
        assert_eq!(DevInfo::decode(&raw).unwrap().server_pid, Some(42));
    }

    #[test]
    fn an_unknown_state_is_an_error_and_not_a_guess() {
        let raw = CtrlDevInfo {
            state: 4,
            ..wanted().encode()
        };
        assert_eq!(DevInfo::decode(&raw), Err(DevInfoError::State(4)));
    }

    #[test]
    fn a_geometry_outside_of_the_limits_is_an_error() {
        for (nr_hw_queues, queue_depth) in [(0, 64), (4097, 64), (1, 0), (1, 4097)] {
            let raw = CtrlDevInfo {
                nr_hw_queues,
                queue_depth,
                ..wanted().encode()
            };
            assert!(matches!(
                DevInfo::decode(&raw),
                Err(DevInfoError::Geometry { .. })
            ));
        }
    }
}
