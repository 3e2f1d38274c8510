//! The connection to `ublk-target`, over the copier's ring.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use migration_proto::frame::{self, FrameError, HEADER_BYTES};
use migration_proto::target::abstract_name;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ring::{Completion, Ring};
use crate::{Config, Outcome, Shared};

/// How long `ublk-target` may take for each answer before the first claim.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);

/// How long the kernel may take to finish the connection's pending requests after its shutdown.
const CLOSING_PATIENCE: Duration = Duration::from_secs(1);

/// Why the copier cannot continue.
#[derive(Debug)]
pub(super) enum Abort {
    /// It ended in order; no I/O is in flight.
    Ended(Outcome),
    /// The ring failed: what is in flight is unknown.
    RingFailed(io::Error),
}

impl From<io::Error> for Abort {
    fn from(error: io::Error) -> Self {
        Self::RingFailed(error)
    }
}

impl Abort {
    pub(super) fn disconnected(cause: impl Into<String>) -> Self {
        Self::Ended(Outcome::Disconnected {
            cause: cause.into(),
        })
    }
}

/// Connects to the socket file, or, if that is gone, to the abstract socket named by the volume's
/// UUID.
fn connect(config: &Config) -> io::Result<UnixStream> {
    let error = match UnixStream::connect(&config.socket) {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let Some(volume_id) = &config.volume_id else {
        return Err(error);
    };
    let address = SocketAddr::from_abstract_name(abstract_name(volume_id))?;
    let stream = UnixStream::connect_addr(&address).map_err(|_| error)?;
    let peer = getsockopt(&stream, PeerCredentials)?.uid();
    if peer == 0 || peer == geteuid().as_raw() {
        return Ok(stream);
    }
    Err(io::ErrorKind::PermissionDenied.into())
}

/// The connection and the ring that it shares with the I/O.
pub(super) struct Line<'a> {
    pub(super) ring: Ring,
    pub(super) frames: Frames,
    socket: UnixStream,
    shared: &'a Shared,
}

impl<'a> Line<'a> {
    /// Connects, and starts to listen to the socket and to the owner.
    pub(super) fn connect(
        config: &Config,
        mut ring: Ring,
        shared: &'a Shared,
    ) -> Result<Self, Abort> {
        let socket = connect(config).map_err(|error| {
            Abort::disconnected(format!(
                "cannot connect to {}: {error}",
                config.socket.display()
            ))
        })?;
        ring.watch(shared.wake.as_fd())?;
        ring.receive(socket.as_fd())?;
        Ok(Self {
            ring,
            frames: Frames::default(),
            socket,
            shared,
        })
    }

    /// Whether the owner requested the end.
    pub(super) fn must_stop(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// Sends a request and waits for its answer. Called only while no I/O is in flight.
    pub(super) fn ask<Answer: DeserializeOwned>(
        &mut self,
        request: &impl Serialize,
    ) -> Result<Answer, Abort> {
        let bytes =
            frame::encode(request).map_err(|error| Abort::disconnected(error.to_string()))?;
        self.send(bytes)?;
        let deadline = Instant::now() + GREETING_PATIENCE;
        loop {
            match self.frames.next() {
                Ok(Some(answer)) if !self.ring.is_sending() => return Ok(answer),
                Ok(Some(_)) => return Err(Abort::disconnected("ublk-target answers unasked")),
                Ok(None) => {}
                Err(error) => return Err(Abort::disconnected(error.to_string())),
            }
            if self.must_stop() {
                return Err(Abort::Ended(Outcome::Stopped));
            }
            if Instant::now() >= deadline {
                return Err(Abort::disconnected("ublk-target does not answer"));
            }
            self.ring.wait(Some(deadline))?;
            while let Some(completion) = self.ring.next_completion() {
                if let Some(cause) = self.take(completion)? {
                    return Err(Abort::disconnected(cause));
                }
            }
        }
    }

    /// Starts to send a frame.
    pub(super) fn send(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        self.ring.send(self.socket.as_fd(), bytes)
    }

    /// Handles a completion that is not of a piece: sends the rest, or receives more. Returns why
    /// the connection is lost, if it is.
    pub(super) fn take(&mut self, completion: Completion) -> io::Result<Option<String>> {
        match completion {
            Completion::Io { .. } | Completion::Woken => {}
            Completion::Sent(result) => match u32::try_from(result) {
                Ok(bytes) => {
                    self.ring.sent(self.socket.as_fd(), bytes)?;
                }
                Err(_) if is_transient(result) => {
                    self.ring.sent(self.socket.as_fd(), 0)?;
                }
                Err(_) => return Ok(Some(format!("cannot send: {}", error_text(result)))),
            },
            Completion::Received(result) => match u32::try_from(result) {
                Ok(0) => return Ok(Some("ublk-target closed the connection".to_owned())),
                Ok(bytes) => {
                    self.frames.push(self.ring.received(bytes));
                    self.ring.receive(self.socket.as_fd())?;
                }
                Err(_) if is_transient(result) => self.ring.receive(self.socket.as_fd())?,
                Err(_) => return Ok(Some(format!("cannot receive: {}", error_text(result)))),
            },
        }
        Ok(None)
    }
}

impl Drop for Line<'_> {
    /// Closes the connection. The requests that use the ring's memory end with it, so that the
    /// memory can be freed.
    fn drop(&mut self) {
        // Refused only if the peer has closed already: then the requests end too.
        let _ = self.socket.shutdown(Shutdown::Both);
        let deadline = Instant::now() + CLOSING_PATIENCE;
        while !self.ring.is_quiet() && Instant::now() < deadline {
            if self.ring.wait(Some(deadline)).is_err() {
                return;
            }
            while self.ring.next_completion().is_some() {}
        }
    }
}

fn is_transient(result: i32) -> bool {
    result == -libc::EINTR || result == -libc::EAGAIN
}

fn error_text(result: i32) -> io::Error {
    io::Error::from_raw_os_error(result.wrapping_neg())
}

/// The bytes that were received and not yet decoded.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// Appends received bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Decodes the next message, if it is complete.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = frame::body_length(*header)?;
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = frame::decode(body)?;
        self.bytes.drain(..HEADER_BYTES + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use migration_proto::{Hello, PROTOCOLS, Protocols};

    use super::*;

    #[test]
    fn messages_are_found_however_the_stream_is_cut() {
        let other = Protocols {
            oldest: 7,
            newest: 9,
        };
        let mut bytes = frame::encode(&Hello::current()).unwrap();
        bytes.extend(frame::encode(&Hello { protocols: other }).unwrap());
        for cut in 1..=bytes.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for part in bytes.chunks(cut) {
                frames.push(part);
                while let Some(hello) = frames.next::<Hello>().unwrap() {
                    found.push(hello.protocols);
                }
            }
            assert_eq!(found, [PROTOCOLS, other], "cut at {cut}");
            assert!(frames.bytes.is_empty());
        }
    }

    #[test]
    fn a_length_above_the_limit_is_an_error_at_once() {
        let mut frames = Frames::default();
        frames.push(&u32::MAX.to_le_bytes());
        assert!(frames.next::<Hello>().is_err());
    }
}
