//! A virtual machine whose disks have caches that a power loss empties, as seen by the host.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use crate::volatile::VolatileDisk;

/// A machine that runs this program, and whose output is read line by line.
#[derive(Debug)]
pub struct Machine {
    guest: Child,
    disks: Vec<VolatileDisk>,
    lines: Receiver<String>,
    _sockets: tempfile::TempDir,
}

impl Machine {
    /// Boots the machine. `disks`: the serial and the file of each disk, in the order in which the
    /// machine finds them. `arguments`: those of this program, which runs in the machine.
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
        // No sockets below target/, where the guest can write.
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
    /// The program has ended, or it printed no line within the limit.
    pub fn line(&self, limit: Duration) -> Result<String, RecvTimeoutError> {
        self.lines.recv_timeout(limit)
    }

    /// Ends the machine at this moment. `random` decides how much of the unflushed data of its
    /// disks is kept; see [`VolatileDisk::lose_power`]. Returns the number of sectors that were
    /// lost.
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
