//! The thread that runs control commands, so that a command that never returns costs a thread and
//! does not block the caller.
//!
//! Some kernels never answer some commands (ADD_DEV on Linux 6.18.4, DEL_DEV while a reference is
//! left), and nothing can interrupt them. So the thread owns everything that the kernel touches
//! during a command: the ring, the open file and the buffer. A caller that gives up leaves them all
//! to the thread. The thread keeps waiting, and ends automatically if the kernel ever answers.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::sys::signal::SigSet;

use super::abi::{self, CtrlCmd, CtrlDevInfo, Params};

/// The ring for control commands: the driver takes them in 128-byte SQEs only.
pub(super) type ControlRing = IoUring<squeue::Entry128, cqueue::Entry>;

/// The buffer of a command, read and written by the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload {
    None,
    Features(u64),
    DevInfo(CtrlDevInfo),
    Params(Params),
}

impl Payload {
    /// Address and length in bytes for the kernel; valid while `self` stays where it is.
    fn buffer(&mut self) -> (u64, u16) {
        match self {
            Self::None => (0, 0),
            Self::Features(bits) => ((&raw mut *bits) as u64, abi::UBLK_FEATURES_LEN),
            Self::DevInfo(info) => ((&raw mut *info) as u64, size_of::<CtrlDevInfo>() as u16),
            Self::Params(params) => ((&raw mut *params) as u64, size_of::<Params>() as u16),
        }
    }
}

/// A command for the thread. Its `addr` and `len` come from `payload`.
pub(super) struct Job {
    pub(super) opcode: u32,
    pub(super) header: CtrlCmd,
    pub(super) payload: Payload,
}

/// The thread's answer: the driver's result (0 or more, or a negative error number) with the buffer
/// as the driver left it; or an error of the ring, after which the thread ends.
pub(super) type Answer = io::Result<(i32, Payload)>;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// The time limit has passed; the command may still be running.
    Timeout,
    /// The ring failed or the thread is gone; the command's effect is unknown.
    Broken(io::Error),
}

/// A running thread. After any [`CallError`] it must not be used again.
pub(super) struct Helper {
    jobs: Option<SyncSender<Job>>,
    answers: Receiver<Answer>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// Starts a thread that runs commands on `control` (`/dev/ublk-control`).
    pub(super) fn on_ring(ring: ControlRing, control: File) -> io::Result<Self> {
        let mut ring = ring;
        Self::spawn(move |opcode, header| submit(&mut ring, &control, opcode, header))
    }

    /// Starts a thread that runs commands by `execute`. If `execute` fails, the buffer in the
    /// header is never freed, because the kernel may still use it.
    pub(super) fn spawn(
        mut execute: impl FnMut(u32, &CtrlCmd) -> io::Result<i32> + Send + 'static,
    ) -> io::Result<Self> {
        let (job_sender, jobs) = mpsc::sync_channel::<Job>(1);
        let (answer_sender, answers) = mpsc::sync_channel::<Answer>(1);
        let work = move || {
            // Signals are for the threads that expect them. If blocking fails, signals only
            // interrupt the waits of this thread.
            let _ = SigSet::all().thread_block();
            for job in jobs {
                let answer = run(&mut execute, job);
                let broken = answer.is_err();
                if answer_sender.send(answer).is_err() || broken {
                    return;
                }
            }
        };
        let thread = thread::Builder::new()
            .name("ublk-control".into())
            .spawn(work)?;
        Ok(Self {
            jobs: Some(job_sender),
            answers,
            thread: Some(thread),
        })
    }

    /// Runs a command and waits at most `limit` for the answer.
    pub(super) fn call(&mut self, job: Job, limit: Duration) -> Result<(i32, Payload), CallError> {
        let gone = || {
            CallError::Broken(io::Error::other(
                "the helper thread for control commands has ended",
            ))
        };
        self.jobs
            .as_ref()
            .ok_or_else(gone)?
            .send(job)
            .map_err(|_| gone())?;
        let error = match self.answers.recv_timeout(limit) {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => CallError::Broken(error),
            Err(RecvTimeoutError::Timeout) => CallError::Timeout,
            Err(RecvTimeoutError::Disconnected) => gone(),
        };
        self.abandon();
        Err(error)
    }

    /// Gives the thread up: it ends automatically when its command returns.
    fn abandon(&mut self) {
        self.jobs = None;
        self.thread = None;
    }
}

impl Drop for Helper {
    /// Waits for an idle thread, which ends immediately and closes its file. Does not wait for an
    /// abandoned thread.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

fn run(execute: &mut impl FnMut(u32, &CtrlCmd) -> io::Result<i32>, job: Job) -> Answer {
    let mut payload = Box::new(job.payload);
    let (addr, len) = payload.buffer();
    match execute(
        job.opcode,
        &CtrlCmd {
            addr,
            len,
            ..job.header
        },
    ) {
        Ok(result) => Ok((result, *payload)),
        Err(error) => {
            Box::leak(payload);
            Err(error)
        }
    }
}

/// Submits one command and waits for its completion, however long that takes.
fn submit(
    ring: &mut ControlRing,
    control: &File,
    opcode: u32,
    header: &CtrlCmd,
) -> io::Result<i32> {
    let fd = types::Fd(control.as_raw_fd());
    let entry = opcode::UringCmd80::new(fd, opcode)
        .cmd(header.to_bytes())
        .build();
    // SAFETY: the command's buffer belongs to this thread, which frees it only after the command's
    // completion, and never if this function fails; the file also outlives the ring's use of it.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if let Some(completion) = ring.completion().next() {
            return Ok(completion.result());
        }
    }
}
