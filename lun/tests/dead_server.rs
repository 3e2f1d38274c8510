//! A file system whose server is dead must not delay an examination. The server is a FUSE daemon in
//! this process that answers until a file is open and never after that. Needs root and `/dev/fuse`;
//! reports a skip when it cannot run.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lun::in_use;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

// The numbers of Linux's include/uapi/linux/fuse.h.
const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const INIT: u32 = 26;
const INODE: u64 = 2;
const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_644;

/// `struct fuse_attr`: 88 bytes.
fn attributes(inode: u64, mode: u32) -> Vec<u8> {
    let mut bytes = vec![0; 88];
    bytes[..8].copy_from_slice(&inode.to_le_bytes());
    bytes[60..64].copy_from_slice(&mode.to_le_bytes());
    bytes[64..68].copy_from_slice(&1u32.to_le_bytes());
    bytes
}

/// The answer to a request; `None` for requests that this server never answers.
fn answer(operation: u32) -> Option<Vec<u8>> {
    match operation {
        INIT => {
            let mut init = vec![0; 64];
            init[..4].copy_from_slice(&7u32.to_le_bytes());
            init[4..8].copy_from_slice(&31u32.to_le_bytes());
            init[20..24].copy_from_slice(&65536u32.to_le_bytes());
            Some(init)
        }
        LOOKUP => {
            // Names and attributes expire immediately: the kernel has to ask for them again each
            // time.
            let mut entry = vec![0; 40];
            entry[..8].copy_from_slice(&INODE.to_le_bytes());
            entry.extend(attributes(INODE, REGULAR));
            Some(entry)
        }
        OPEN => Some(vec![0; 16]),
        _ => None,
    }
}

/// Serves until `ended` is closed. Then the kernel fails all pending requests.
fn serve(mut device: File, ended: PipeReader) {
    let mut request = vec![0; 1 << 20];
    let mut opened = false;
    loop {
        let mut ready =
            [&device.as_fd(), &ended.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
        poll(&mut ready, PollTimeout::NONE).unwrap();
        let is_ended = ready[1].any().unwrap_or(true);
        if is_ended {
            return;
        }
        let length = device.read(&mut request).unwrap();
        assert!(length >= 40);
        let operation = u32::from_le_bytes(request[4..8].try_into().unwrap());
        let Some(body) = answer(operation).filter(|_| !opened) else {
            continue;
        };
        opened |= operation == OPEN;
        let total = u32::try_from(16 + body.len()).unwrap();
        let mut reply = total.to_le_bytes().to_vec();
        reply.extend(0u32.to_le_bytes());
        reply.extend(&request[8..16]);
        reply.extend(body);
        device.write_all(&reply).unwrap();
    }
}

struct DeadServer {
    folder: tempfile::TempDir,
    alive: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl DeadServer {
    fn mount() -> Option<DeadServer> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .ok()?;
        let folder = tempfile::tempdir().unwrap();
        let options = format!(
            "fd={},rootmode={DIRECTORY:o},user_id=0,group_id=0",
            device.as_raw_fd()
        );
        mount(
            Some("dead"),
            folder.path(),
            Some("fuse"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .ok()?;
        let (ended, alive) = pipe().unwrap();
        Some(DeadServer {
            folder,
            alive: Some(alive),
            thread: Some(thread::spawn(move || serve(device, ended))),
        })
    }
}

impl Drop for DeadServer {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = umount2(self.folder.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn who_has_a_lun_open_is_found_although_a_process_has_a_file_of_a_dead_server_open() {
    let Some(server) = DeadServer::mount() else {
        let reason = "no FUSE here, or not root";
        assert!(
            std::env::var_os("SHUNT_NO_SKIP").is_none(),
            "SHUNT_NO_SKIP is set, and this test cannot run: {reason}"
        );
        eprintln!("skipped: {reason}");
        return;
    };
    // The scan reaches this descriptor, like one of a process that hangs.
    let held = File::open(server.folder.path().join("file")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let lun = folder.path().join("lun.img");
    fs::write(&lun, [0; 4096]).unwrap();
    let (done, result) = channel();
    thread::spawn(move || done.send(in_use(&lun)));
    let found = result.recv_timeout(Duration::from_secs(15));
    drop(server);
    drop(held);
    assert_eq!(found.expect("an answer").unwrap(), []);
}
