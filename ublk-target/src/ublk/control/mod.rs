//! Control commands to the ublk driver, each with a time limit.
//!
//! One command at a time. A command that gets no answer in time is *not* undone: it may still take
//! effect later. The handle then refuses every further command: open a new one, and check the state
//! of the device.

mod command;
mod error;

pub use command::{Attempt, Command};
pub use error::ControlError;

use std::fmt;
use std::fs::File;
use std::time::Duration;

use nix::errno::Errno;

use crate::ublk::abi::{CtrlCmd, CtrlDevInfo, Features, Params};
use crate::ublk::device::{DevInfo, DeviceId, NewDevice};
use crate::ublk::helper::{CallError, ControlRing, Helper, Job, Payload};
use crate::ublk::node;
use crate::ublk::params::DeviceParams;

/// The driver's control file.
const CONTROL_PATH: &str = "/dev/ublk-control";
/// Size of the helper's ring in commands: it runs one at a time.
const RING_ENTRIES: u32 = 1;

/// A handle on the ublk driver. It can be moved to any thread. A thread that wants to send a
/// command while another command is running opens its own handle.
pub struct Control {
    helper: Helper,
    /// The command that got no answer. No other command is sent after it.
    unanswered: Option<Attempt>,
}

impl fmt::Debug for Control {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Control")
            .field("unanswered", &self.unanswered)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Opens `/dev/ublk-control` and starts the helper thread.
    pub fn open() -> Result<Self, ControlError> {
        let file = File::options().read(true).write(true).open(CONTROL_PATH);
        let file = file.map_err(|error| ControlError::open(&error))?;
        let setup = |source| ControlError::Setup { source };
        let ring = ControlRing::builder().build(RING_ENTRIES).map_err(setup)?;
        let helper = Helper::on_ring(ring, file).map_err(setup)?;
        Ok(Self {
            helper,
            unanswered: None,
        })
    }

    /// Reads the driver's features. A driver older than Linux 6.5 cannot report them:
    /// [`ControlError::Unsupported`](error::ControlError::Unsupported).
    pub fn get_features(&mut self, limit: Duration) -> Result<Features, ControlError> {
        let attempt = Attempt {
            command: Command::GetFeatures,
            device: None,
        };
        match self.call(attempt, 0, Payload::Features(0), limit)? {
            Payload::Features(bits) => Ok(Features::from_bits(bits)),
            other => {
                unreachable!("the helper returns the kind of buffer it was given, not {other:?}")
            }
        }
    }

    /// Reads the driver's features. An error names the features of `required` that the driver
    /// lacks.
    pub fn require_features(
        &mut self,
        required: Features,
        limit: Duration,
    ) -> Result<Features, ControlError> {
        let offered = self.get_features(limit)?;
        let missing = required.difference(offered);
        if missing.is_empty() {
            Ok(offered)
        } else {
            Err(ControlError::MissingFeatures { missing, offered })
        }
    }

    /// Creates a device and its `/dev/ublkcN`. The driver may change the request: compare the
    /// returned description with `device`.
    pub fn add_dev(
        &mut self,
        device: &NewDevice,
        limit: Duration,
    ) -> Result<DevInfo, ControlError> {
        let attempt = Attempt {
            command: Command::AddDev,
            device: device.id,
        };
        self.call_dev_info(attempt, device.encode(), limit)
    }

    /// Reads the current description of a device.
    pub fn get_dev_info(&mut self, id: DeviceId, limit: Duration) -> Result<DevInfo, ControlError> {
        let attempt = Attempt {
            command: Command::GetDevInfo,
            device: Some(id),
        };
        self.call_dev_info(attempt, CtrlDevInfo::default(), limit)
    }

    /// Sets the block device's parameters; only before [`Self::start_dev`] (EACCES after it, also
    /// in recovery). The driver silently drops kinds of parameters that it does not know: compare
    /// with [`Self::get_params`].
    pub fn set_params(
        &mut self,
        id: DeviceId,
        params: &DeviceParams,
        limit: Duration,
    ) -> Result<(), ControlError> {
        let attempt = Attempt {
            command: Command::SetParams,
            device: Some(id),
        };
        let params = params
            .encode()
            .map_err(|source| ControlError::Params { attempt, source })?;
        self.call(attempt, 0, Payload::Params(params), limit)
            .map(drop)
    }

    /// Reads the block device's parameters.
    pub fn get_params(
        &mut self,
        id: DeviceId,
        limit: Duration,
    ) -> Result<DeviceParams, ControlError> {
        let attempt = Attempt {
            command: Command::GetParams,
            device: Some(id),
        };
        let empty = Params {
            len: size_of::<Params>() as u32,
            ..Params::default()
        };
        match self.call(attempt, 0, Payload::Params(empty), limit)? {
            Payload::Params(params) => DeviceParams::decode(&params)
                .map_err(|source| ControlError::Params { attempt, source }),
            other => {
                unreachable!("the helper returns the kind of buffer it was given, not {other:?}")
            }
        }
    }

    /// Makes `/dev/ublkbN` appear. Waits until every tag of every queue was fetched, and reads the
    /// partition table through the device: the I/O threads must be running already. `pid` is the
    /// server's.
    pub fn start_dev(
        &mut self,
        id: DeviceId,
        pid: u32,
        limit: Duration,
    ) -> Result<(), ControlError> {
        self.call_plain(Command::StartDev, id, pid.into(), limit)
    }

    /// Removes `/dev/ublkbN`, also while it is open: I/O that is not answered fails with EIO.
    pub fn stop_dev(&mut self, id: DeviceId, limit: Duration) -> Result<(), ControlError> {
        self.call_plain(Command::StopDev, id, 0, limit)
    }

    /// Removes `/dev/ublkbN` unless somebody has it open (EBUSY). Needs SAFE_STOP_DEV.
    pub fn try_stop_dev(&mut self, id: DeviceId, limit: Duration) -> Result<(), ControlError> {
        self.call_plain(Command::TryStopDev, id, 0, limit)
    }

    /// Deletes a device. Waits until the last reference to the device is gone, so drop descriptors,
    /// rings and `/dev/ublkcN` first. After a
    /// [`ControlError::Timeout`](error::ControlError::Timeout) the kernel completes the deletion
    /// when the last reference is gone.
    pub fn del_dev(&mut self, id: DeviceId, limit: Duration) -> Result<(), ControlError> {
        self.call_plain(Command::DelDev, id, 0, limit)
    }

    /// Starts to take over a device whose server is gone; EBUSY until the server's last reference
    /// is gone. On a driver without [`Features::QUIESCE`] a second start is EINVAL with one queue
    /// and may crash the kernel with several.
    pub fn start_user_recovery(
        &mut self,
        id: DeviceId,
        limit: Duration,
    ) -> Result<(), ControlError> {
        self.call_plain(Command::StartUserRecovery, id, 0, limit)
    }

    /// Ends the takeover: waits until every tag was fetched, then requests flow. `pid` is the new
    /// server's.
    pub fn end_user_recovery(
        &mut self,
        id: DeviceId,
        pid: u32,
        limit: Duration,
    ) -> Result<(), ControlError> {
        self.call_plain(Command::EndUserRecovery, id, pid.into(), limit)
    }

    /// Finds the device that carries the mark `tag`. `limit` is the time limit for each device that
    /// exists.
    ///
    /// The device's state says nothing about its server: Linux 6.12 reports a device as live for a
    /// while, up to 30 s, after its server was killed.
    ///
    /// The mark 0 is the mark of other servers' devices, and is never found. A device that does not
    /// answer is skipped. If no other device carries the mark, the skipped device's
    /// [`ControlError::Timeout`](error::ControlError::Timeout) is returned, because it could be the
    /// wanted device.
    pub fn find_device(
        &mut self,
        tag: u64,
        limit: Duration,
    ) -> Result<Option<DevInfo>, ControlError> {
        let mut found: Option<DevInfo> = None;
        let mut silent = None;
        for id in if tag == 0 {
            Vec::new()
        } else {
            node::device_ids()?
        } {
            match (self.get_dev_info(id, limit), found) {
                (Ok(info), _) if info.tag != tag => {}
                (Ok(info), None) => found = Some(info),
                (Ok(_), Some(first)) => {
                    return Err(ControlError::DuplicateTag {
                        tag,
                        first: first.id,
                        second: id,
                    });
                }
                // The device was deleted in the meantime.
                (Err(error), _) if error.errno() == Some(Errno::ENODEV) => {}
                (Err(error @ ControlError::Timeout { .. }), _) => {
                    tracing::warn!(device = id.0, "ublk device does not answer");
                    *self = Self::open()?;
                    silent.get_or_insert(error);
                }
                (Err(error), _) => return Err(error),
            }
        }
        match (found, silent) {
            (None, Some(error)) => Err(error),
            (found, _) => Ok(found),
        }
    }

    fn call_plain(
        &mut self,
        command: Command,
        id: DeviceId,
        data: u64,
        limit: Duration,
    ) -> Result<(), ControlError> {
        let attempt = Attempt {
            command,
            device: Some(id),
        };
        self.call(attempt, data, Payload::None, limit).map(drop)
    }

    fn call_dev_info(
        &mut self,
        attempt: Attempt,
        info: CtrlDevInfo,
        limit: Duration,
    ) -> Result<DevInfo, ControlError> {
        match self.call(attempt, 0, Payload::DevInfo(info), limit)? {
            Payload::DevInfo(info) => {
                DevInfo::decode(&info).map_err(|source| ControlError::DevInfo { attempt, source })
            }
            other => {
                unreachable!("the helper returns the kind of buffer it was given, not {other:?}")
            }
        }
    }

    fn call(
        &mut self,
        attempt: Attempt,
        data: u64,
        payload: Payload,
        limit: Duration,
    ) -> Result<Payload, ControlError> {
        if let Some(earlier) = self.unanswered {
            return Err(ControlError::Poisoned { attempt, earlier });
        }
        let header = CtrlCmd {
            dev_id: attempt.device.map_or(u32::MAX, |id| id.0),
            queue_id: CtrlCmd::NO_QUEUE,
            data,
            ..CtrlCmd::default()
        };
        let job = Job {
            opcode: attempt.command.opcode(),
            header,
            payload,
        };
        match self.helper.call(job, limit) {
            Ok((result, payload)) if result >= 0 => Ok(payload),
            Ok((result, _)) => Err(ControlError::answer(attempt, result.saturating_neg())),
            Err(error) => {
                self.unanswered = Some(attempt);
                Err(match error {
                    CallError::Timeout => ControlError::Timeout { attempt, limit },
                    CallError::Broken(source) => ControlError::Broken { attempt, source },
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::mpsc;

    use super::error::ENOTSUPP;
    use crate::ublk::abi;

    const LIMIT: Duration = Duration::from_secs(60);

    fn assert_send<T: Send>(value: T) -> T {
        value
    }

    /// Makes a handle whose "driver" is a function.
    fn control(driver: impl FnMut(u32, &CtrlCmd) -> io::Result<i32> + Send + 'static) -> Control {
        assert_send(Control {
            helper: Helper::spawn(driver).unwrap(),
            unanswered: None,
        })
    }

    fn new_device() -> NewDevice {
        NewDevice {
            id: None,
            queue_count: 1,
            queue_depth: 4,
            io_buffer_bytes_max: 4096,
            features: Features::USER_RECOVERY,
            tag: 9,
        }
    }

    #[test]
    fn a_buffer_that_the_driver_filled_comes_back() {
        let mut control = control(|opcode, header| {
            assert_eq!((opcode, header.len), (abi::UBLK_U_CMD_GET_FEATURES, 8));
            assert_eq!((header.dev_id, header.queue_id), (u32::MAX, u16::MAX));
            // SAFETY: the header points to a live u64 of the helper thread, which is this one.
            unsafe { (header.addr as *mut u64).write(0x1fe) };
            Ok(0)
        });
        assert_eq!(control.get_features(LIMIT).unwrap().bits(), 0x1fe);
        let error = control
            .require_features(Features::QUIESCE | Features::ZONED, LIMIT)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("this kernel's ublk driver lacks QUIESCE; it has "),
            "{error}"
        );
    }

    #[test]
    fn add_dev_returns_what_the_driver_made_of_it() {
        let mut control = control(|_, header| {
            // SAFETY: as above, a live CtrlDevInfo.
            let info = unsafe { &mut *(header.addr as *mut CtrlDevInfo) };
            assert_eq!((info.dev_id, header.dev_id), (u32::MAX, u32::MAX));
            *info = CtrlDevInfo {
                dev_id: 5,
                flags: 0,
                ..*info
            };
            Ok(0)
        });
        let info = control.add_dev(&new_device(), LIMIT).unwrap();
        assert_eq!(
            (info.id, info.features, info.tag),
            (DeviceId(5), Features::default(), 9)
        );
    }

    #[test]
    fn pid_and_device_are_passed_to_the_driver() {
        let mut control = control(|opcode, header| {
            assert_eq!(opcode, abi::UBLK_U_CMD_START_DEV);
            assert_eq!(
                (header.dev_id, header.data, header.addr, header.len),
                (3, 77, 0, 0)
            );
            Ok(0)
        });
        control.start_dev(DeviceId(3), 77, LIMIT).unwrap();
    }

    #[test]
    fn a_command_without_an_answer_times_out_and_the_handle_says_so_afterwards() {
        let (release, wait) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        let mut control = control(move |_, header| {
            let _ = wait.recv();
            // SAFETY: the caller has given up, and the buffer still exists: the test checks exactly
            // that.
            unsafe { (header.addr as *mut CtrlDevInfo).write(CtrlDevInfo::default()) };
            ended.send(()).unwrap();
            Ok(0)
        });
        let error = control
            .add_dev(&new_device(), Duration::from_millis(1))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "ADD_DEV of a new ublk device: no answer from the kernel in 1ms; it may still take effect"
        );
        let error = control.stop_dev(DeviceId(1), LIMIT).unwrap_err();
        assert!(matches!(error, ControlError::Poisoned { .. }));
        assert_eq!(
            error.to_string(),
            "STOP_DEV of ublk device 1: not sent, because ADD_DEV of a new ublk device got no answer before on this \
             control handle"
        );
        drop(control);
        release.send(()).unwrap();
        end.recv_timeout(LIMIT).unwrap();
    }

    #[test]
    fn a_broken_ring_poisons_the_handle_too() {
        let mut control = control(|_, _| Err(io::Error::from_raw_os_error(libc::EBADF)));
        assert!(matches!(
            control.get_features(LIMIT),
            Err(ControlError::Broken { .. })
        ));
        assert!(matches!(
            control.get_features(LIMIT),
            Err(ControlError::Poisoned { .. })
        ));
    }

    #[test]
    fn a_helper_that_dies_is_an_error_and_no_hang() {
        let mut control = control(|_, _| panic!("expected by the test"));
        assert!(matches!(
            control.get_features(LIMIT),
            Err(ControlError::Broken { .. })
        ));
    }

    #[test]
    fn the_drivers_refusals_name_command_device_and_cause() {
        let refused = |number: i32| {
            let mut control = control(move |_, _| Ok(-number));
            control.start_user_recovery(DeviceId(2), LIMIT).unwrap_err()
        };
        let error = refused(libc::EBUSY);
        assert_eq!(error.errno(), Some(Errno::EBUSY));
        assert_eq!(
            error.to_string(),
            "START_USER_RECOVERY of ublk device 2: EBUSY: Device or resource busy: the previous server still has a \
             reference to the device"
        );
        assert_eq!(
            refused(libc::ENOMEM).to_string(),
            "START_USER_RECOVERY of ublk device 2: ENOMEM: Out of memory"
        );
        assert!(matches!(
            refused(libc::EPERM),
            ControlError::Permission { .. }
        ));
        assert!(matches!(
            refused(libc::EOPNOTSUPP),
            ControlError::Unsupported { .. }
        ));
        assert!(matches!(
            refused(ENOTSUPP),
            ControlError::Unsupported { .. }
        ));
    }

    #[test]
    fn a_driver_without_get_features_is_named_as_too_old() {
        for number in [libc::EINVAL, libc::ENODEV, libc::EOPNOTSUPP] {
            let error = control(move |_, _| Ok(-number))
                .get_features(LIMIT)
                .unwrap_err();
            assert_eq!(
                error.to_string(),
                "GET_FEATURES: this kernel's ublk driver does not have the command (Linux 6.5 has)"
            );
        }
    }

    #[test]
    fn a_missing_control_file_says_how_to_load_the_module() {
        let error = ControlError::open(&io::Error::from_raw_os_error(libc::ENOENT));
        assert!(matches!(error, ControlError::NoDriver { .. }));
        assert!(error.to_string().contains("modprobe ublk_drv"), "{error}");
        let error = ControlError::open(&io::Error::from_raw_os_error(libc::EACCES));
        assert!(matches!(error, ControlError::OpenPermission { .. }));
    }

    #[test]
    fn parameters_that_can_not_be_encoded_never_reach_the_driver() {
        let mut control = control(|_, _| unreachable!("nothing is sent"));
        let params = DeviceParams {
            size_bytes: 0,
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            io_min_bytes: 512,
            io_opt_bytes: 512,
            request_bytes_max: 4096,
            read_only: false,
            rotational: false,
            volatile_cache: false,
            fua: false,
            discard: None,
            dma_alignment_bytes: None,
        };
        let error = control.set_params(DeviceId(4), &params, LIMIT).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("SET_PARAMS of ublk device 4: device size of 0 bytes"),
            "{error}"
        );
    }
}
