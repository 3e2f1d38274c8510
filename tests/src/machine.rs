//! A virtual machine whose disks have caches that a power loss empties, as the host sees it.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use crate::volatile::VolatileDisk;

/// A machine that runs a program of ours, and whose output is read line by line.
#[derive(Debug)]
pub struct Machine {
    guest: Child,
    disks: Vec<VolatileDisk>,
    lines: Receiver<String>,
    _sockets: tempfile::TempDir,
}

impl Machine {
    /// Boots. `disks`: the serial and the file of each, in the order in which the machine is to
    /// find them. `arguments`: of this program, which runs in the machine.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn boot(
        vm: &Path,
        kernel: &str,
        limit: Duration,
        disks: &[(&str, &Path)],
        arguments: &[String],
    ) -> Self {
        // Below target/, which the guest can write to, there are no sockets.
        let sockets = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let mut command = Command::new(vm);
        command.args(["--kernel", kernel]);
        command.args(["--timeout", &limit.as_secs().to_string()]);
        let mut served = Vec::new();
        for (serial, path) in disks {
            let socket = sockets.path().join(serial);
            served.push(VolatileDisk::serve(path, &socket).expect("a disk"));
            let drive = format!(
                "driver=nbd,server.type=unix,server.path={},node-name=d-{serial},cache.direct=on",
                socket.display()
            );
            let device = format!("virtio-blk-pci,drive=d-{serial},serial={serial}");
            for argument in ["-blockdev", &drive, "-device", &device] {
                command.args(["--qemu-arg", argument]);
            }
        }
        let mut guest = command
            .arg("--")
            .arg(std::env::current_exe().expect("this program"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/vm");
        let output = BufReader::new(guest.stdout.take().expect("its output"));
        let (said, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if said.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            guest,
            disks: served,
            lines,
            _sockets: sockets,
        }
    }

    /// The next line of the program's output.
    ///
    /// # Errors
    /// The program has ended, or there was none within the limit.
    pub fn line(&self, limit: Duration) -> Result<String, RecvTimeoutError> {
        self.lines.recv_timeout(limit)
    }

    /// Ends the machine at this moment. Of what its disks had not flushed `random` decides how much
    /// is kept; see [`VolatileDisk::lose_power`]. Returns how many sectors were lost.
    ///
    /// # Panics
    /// If the disks fail.
    pub fn lose_power(self, random: impl FnMut(u64) -> u64) -> u64 {
        VolatileDisk::lose_power(&self.disks, random).expect("the disks")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: kill takes numbers only.
        unsafe { libc::kill(self.guest.id().cast_signed(), libc::SIGTERM) };
        let _ = self.guest.wait();
    }
}
