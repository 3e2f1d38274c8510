//! A connection: greeting, requests, answers.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::mpsc::sync_channel,
    time::{Duration, Instant},
};

use migration_core::volume::CopierId;
use migration_proto::{
    Hello, Welcome,
    frame::{self, FrameError},
    places::ConnectionId,
    target::{Refusal, Request, Response},
};

use super::{Server, Wake};
use crate::engine::{EngineRequest, refused};

/// Time limit for a client to send its greeting, to complete a message, and to take an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

impl Server {
    pub(super) fn converse(
        &self,
        mut stream: UnixStream,
        id: ConnectionId,
    ) -> Result<(), FrameError> {
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        let hello: Hello = frame::read(&mut Timed::new(&stream))?;
        let welcome = hello.answer();
        frame::write(&mut stream, &welcome)?;
        if matches!(welcome, Welcome::WrongProtocol { .. }) {
            return Ok(());
        }
        loop {
            self.connections().places.became_idle(id);
            let request = match read_request(&stream) {
                Ok(request) => request,
                Err(error @ (FrameError::Malformed(_) | FrameError::TooLarge(_))) => {
                    frame::write(&mut stream, &refused(Refusal::Malformed, error.to_string()))?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            };
            self.connections().places.became_busy(id);
            let last = matches!(request, Request::Stop);
            let response = self.answer(request, CopierId(id), &stream);
            let stopped = last && response == Response::Done;
            frame::write(&mut stream, &response)?;
            if stopped {
                return Ok(());
            }
        }
    }

    fn answer(&self, request: Request, id: CopierId, stream: &UnixStream) -> Response {
        let gone = || refused(Refusal::Ending, "the volume is ending");
        let ask = match self.for_engine(request, id) {
            Ok(ask) => ask,
            Err(response) => return *response,
        };
        let waits_long = matches!(ask, EngineRequest::Claim { .. });
        let answer = self.inbox.ask(ask);
        if waits_long {
            return wait_while_connected(&answer, stream).unwrap_or_else(gone);
        }
        answer.recv().unwrap_or_else(|_| gone())
    }

    pub(super) fn stop(&self) -> Response {
        let (sender, receiver) = sync_channel(1);
        if self.stop.send(Wake::Stop(sender)).is_err() {
            return refused(Refusal::Ending, "the volume is ending already");
        }
        match receiver.recv() {
            Ok(Ok(())) => Response::Done,
            Ok(Err(cause)) => refused(Refusal::DeviceOpen, cause),
            Err(_) => refused(Refusal::Ending, "the volume is ending already"),
        }
    }
}

/// Reads the next request. A connection may be idle for any time.
fn read_request(stream: &UnixStream) -> Result<Request, FrameError> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    loop {
        let mut waiting = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    frame::read(&mut Timed::new(stream))
}

/// A reader with one time limit for a whole message: a client that sends single bytes slowly is
/// disconnected.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a UnixStream) -> Self {
        Self {
            stream,
            until: Instant::now() + CLIENT_TIMEOUT,
        }
    }
}

impl io::Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

/// Waits for an answer that may take long, but stops when the client has disconnected.
fn wait_while_connected(
    answer: &std::sync::mpsc::Receiver<Response>,
    stream: &UnixStream,
) -> Option<Response> {
    use std::sync::mpsc::RecvTimeoutError;
    const LOOK: Duration = Duration::from_millis(100);
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(response) => return Some(response),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if is_closed(stream) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn is_closed(stream: &UnixStream) -> bool {
    use std::os::fd::AsRawFd;
    let mut waiting = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one pollfd, which lives through the call.
    let ready = unsafe { libc::poll(&raw mut waiting, 1, 0) };
    ready > 0 && waiting.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}
