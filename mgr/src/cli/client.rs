//! The connection to shuntd: a greeting, then requests and responses in turn.
//!
//! Every wait has a limit ([`Limits`]). After any failure the connection is unusable: drop the
//! [`Client`] and connect again.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use migration_proto::frame::{self, FrameError};
use migration_proto::manager::{EVENTS_WAIT_MS, Request, Response};
use migration_proto::{Hello, NoCommonProtocol, Welcome};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// Time limits of the waits for shuntd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For the connection and the answer to the greeting.
    pub greeting: Duration,
    /// For the answer to a question: status, history, samples, and events besides their own wait.
    pub question: Duration,
    /// For the answer to a plan or to a command that changes something, besides the pause that it
    /// allows.
    pub change: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            greeting: Duration::from_secs(10),
            question: Duration::from_secs(30),
            change: Duration::from_secs(600),
        }
    }
}

/// Why the client could not connect to shuntd.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing listens on the socket.
    #[error("nothing answers on the socket {}: shuntd does not run ({source})", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// There is no permission to use the socket.
    #[error("no permission to use the socket {}: shunt must be run as root ({source})", socket.display())]
    NoPermission {
        /// The socket.
        socket: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The socket cannot be used for another reason.
    #[error("cannot connect to the socket {}: {source}", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The greeting failed.
    #[error("the greeting on the socket {} failed: {source}", socket.display())]
    Greeting {
        /// The socket.
        socket: PathBuf,
        /// Why the greeting failed.
        source: ExchangeError,
    },
    /// shuntd speaks none of the versions of the protocol that this build speaks.
    #[error("no common protocol with shuntd on the socket {}: {source}", socket.display())]
    WrongProtocol {
        /// The socket.
        socket: PathBuf,
        /// The versions.
        source: NoCommonProtocol,
    },
}

/// Why a message was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// shuntd closed the connection before its answer was complete.
    #[error("the connection was closed before the answer")]
    Closed,
    /// The answer did not come in time.
    #[error("no answer within {limit:?}")]
    NoAnswer {
        /// The limit.
        limit: Duration,
    },
    /// The message could not be encoded; nothing was sent.
    #[error("the request cannot be sent: {0}")]
    Unsendable(FrameError),
    /// The answer does not belong to this protocol.
    #[error("the answer cannot be understood: {0}")]
    Malformed(FrameError),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

/// A connection on which shuntd has answered the greeting.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    limits: Limits,
    program_version: String,
}

impl Client {
    /// Connects to `socket` and sends the greeting.
    ///
    /// # Errors
    /// See the variants of [`ConnectError`].
    pub fn connect(socket: &Path, limits: Limits) -> Result<Self, ConnectError> {
        let stream = connect_within(socket, limits.greeting)
            .map_err(|source| connect_error(socket, source))?;
        let greeting = |source| ConnectError::Greeting {
            socket: socket.to_owned(),
            source,
        };
        let welcome: Welcome =
            exchange(&stream, &Hello::current(), limits.greeting).map_err(greeting)?;
        let program_version = welcome
            .accept()
            .map_err(|source| ConnectError::WrongProtocol {
                socket: socket.to_owned(),
                source,
            })?;
        Ok(Self {
            stream,
            limits,
            program_version,
        })
    }

    /// The program version of the connected shuntd.
    #[must_use]
    pub fn program_version(&self) -> &str {
        &self.program_version
    }

    /// Sends a request and waits for its response.
    ///
    /// # Errors
    /// See the variants of [`ExchangeError`]. After any but [`ExchangeError::Unsendable`] it is not
    /// known whether shuntd carried the request out.
    pub fn request(&mut self, request: &Request) -> Result<Response, ExchangeError> {
        let limit = self.limits.for_request(request);
        self.request_within(request, limit)
    }

    /// As [`Client::request`], with the caller's limit.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn request_within(
        &mut self,
        request: &Request,
        limit: Duration,
    ) -> Result<Response, ExchangeError> {
        exchange(&self.stream, request, limit)
    }
}

impl Limits {
    /// How long the answer to `request` may take.
    #[must_use]
    pub fn for_request(&self, request: &Request) -> Duration {
        match request {
            Request::Status { .. } | Request::History { .. } | Request::Samples { .. } => {
                self.question
            }
            Request::Events { .. } => self
                .question
                .saturating_add(Duration::from_millis(EVENTS_WAIT_MS)),
            Request::Switch { max_pause_ms, .. }
            | Request::Undo { max_pause_ms, .. }
            | Request::Split { max_pause_ms, .. } => self
                .change
                .saturating_add(Duration::from_millis(*max_pause_ms)),
            Request::Attach { .. }
            | Request::Detach { .. }
            | Request::Recover { .. }
            | Request::FreeLocks { .. }
            | Request::Create { .. }
            | Request::Start { .. }
            | Request::Plan { .. }
            | Request::Retire { .. }
            | Request::TakeBack { .. }
            | Request::Pause { .. }
            | Request::Resume { .. }
            | Request::Verify { .. }
            | Request::SetSession { .. }
            | Request::SetHost { .. }
            | Request::Signal { .. }
            | Request::Commit { .. }
            | Request::Cancel { .. } => self.change,
        }
    }
}

/// Connects; waits at most `limit` if the server's queue of connections is full.
fn connect_within(path: &Path, limit: Duration) -> Result<UnixStream, Errno> {
    let address = UnixAddr::new(path)?;
    let descriptor = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    let rest = i64::from(limit.subsec_micros());
    // The send timeout of a socket is also the limit of connect (unix(7), `unix_stream_connect` in
    // the kernel). Zero would mean no limit.
    let timeout = TimeVal::new(seconds, rest.max(1));
    setsockopt(&descriptor, sockopt::SendTimeout, &timeout)?;
    connect(descriptor.as_raw_fd(), &address)?;
    Ok(UnixStream::from(descriptor))
}

fn connect_error(socket: &Path, errno: Errno) -> ConnectError {
    let socket = socket.to_owned();
    let source = io::Error::from(errno);
    match errno {
        Errno::ENOENT | Errno::ECONNREFUSED => ConnectError::NotRunning { socket, source },
        Errno::EACCES | Errno::EPERM => ConnectError::NoPermission { socket, source },
        _ => ConnectError::Socket { socket, source },
    }
}

/// Sends one message and reads the answer.
fn exchange<Question: serde::Serialize, Answer: serde::de::DeserializeOwned>(
    stream: &UnixStream,
    question: &Question,
    limit: Duration,
) -> Result<Answer, ExchangeError> {
    let bytes = frame::encode(question).map_err(ExchangeError::Unsendable)?;
    let mut timed = Timed {
        stream,
        deadline: Instant::now() + limit,
    };
    match timed.write_all(&bytes) {
        Ok(()) => {}
        // The server may have sent the reason before it closed the connection.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => return Err(io_error(error, limit)),
    }
    frame::read(&mut timed).map_err(|error| match error {
        FrameError::Closed => ExchangeError::Closed,
        FrameError::Io(error) => io_error(error, limit),
        FrameError::TooLarge(_) | FrameError::Malformed(_) => ExchangeError::Malformed(error),
    })
}

fn io_error(error: io::Error, limit: Duration) -> ExchangeError {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ExchangeError::NoAnswer { limit },
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => ExchangeError::Closed,
        _ => ExchangeError::Io(error),
    }
}

/// A stream with one deadline for all reads and writes, so that an answer that arrives byte by byte
/// cannot take for ever.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
