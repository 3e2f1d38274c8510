//! Frames over a tokio stream, and a connection to one ublk-target.

use std::io;
use std::path::Path;
use std::time::Duration;

use migration_proto::frame::{self, FrameError, HEADER_BYTES};
use migration_proto::target::{Request, Response, abstract_name};
use migration_proto::{Hello, Welcome};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a greeting may take.
const GREETING_MAX: Duration = Duration::from_secs(5);

/// Writes one message.
pub(crate) async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), FrameError> {
    Ok(stream.write_all(&frame::encode(message)?).await?)
}

/// Reads one message.
pub(crate) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, FrameError> {
    let first = match stream.read_u8().await {
        Ok(first) => first,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(FrameError::Closed);
        }
        Err(error) => return Err(error.into()),
    };
    read_rest(stream, first).await
}

/// Reads the rest of a message whose first byte has been read.
pub(crate) async fn read_rest<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    first: u8,
) -> Result<T, FrameError> {
    let mut header = [first; HEADER_BYTES];
    stream.read_exact(&mut header[1..]).await?;
    let length = frame::body_length(header)?;
    // Allocate memory for the bytes received, not for the announced length.
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    frame::decode(&body)
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody listens.
    #[error("nobody listens: {0}")]
    Nobody(io::Error),
    /// The process at the other end accepts connections, but does not answer.
    #[error("{problem}")]
    Silent {
        /// The process id.
        pid: u32,
        /// Which answer is missing.
        problem: String,
    },
    /// A process listens, but does not answer as a ublk-target of this version does.
    #[error("{0}")]
    Strange(String),
}

/// A connection to one ublk-target.
#[derive(Debug)]
pub(crate) struct TargetLink {
    stream: UnixStream,
    /// The process at the other end, as the kernel reports it.
    pub(crate) pid: u32,
    /// Whether an answer came that this program does not understand: the process may be of another
    /// release, and serves.
    pub(crate) is_strange: bool,
}

impl TargetLink {
    /// Connects and greets: through the socket file, or if that fails through the abstract socket
    /// that is named after the volume's id.
    pub(super) async fn connect(socket: &Path, volume_id: &str) -> Result<Self, ConnectError> {
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) => Self::connect_by_id(volume_id)
                .await
                .map_err(|_| ConnectError::Nobody(error))?,
        };
        let strange = |error: &dyn std::fmt::Display| {
            ConnectError::Strange(format!("ublk-target does not answer the greeting: {error}"))
        };
        let pid = stream
            .peer_cred()
            .ok()
            .and_then(|peer| peer.pid())
            .and_then(|pid| u32::try_from(pid).ok())
            .ok_or_else(|| strange(&"the kernel does not say which process it is"))?;
        let mut link = Self {
            stream,
            pid,
            is_strange: false,
        };
        let greeting = timeout(GREETING_MAX, async {
            write(&mut link.stream, &Hello::current()).await?;
            read::<Welcome>(&mut link.stream).await
        });
        match greeting.await {
            Ok(Ok(welcome)) => match welcome.accept() {
                Ok(_) => Ok(link),
                Err(error) => Err(ConnectError::Strange(format!(
                    "no common protocol with the running ublk-target (pid {pid}): {error}; start the shuntd of the \
                     release that it belongs to"
                ))),
            },
            // The process ended during the greeting.
            Ok(Err(FrameError::Closed | FrameError::Io(_))) => Err(ConnectError::Nobody(
                io::Error::from(io::ErrorKind::ConnectionReset),
            )),
            Ok(Err(error)) => Err(strange(&error)),
            Err(_) => Err(ConnectError::Silent {
                pid,
                problem: format!(
                    "ublk-target (pid {pid}) does not answer the greeting within {} s",
                    GREETING_MAX.as_secs()
                ),
            }),
        }
    }

    async fn connect_by_id(volume_id: &str) -> io::Result<UnixStream> {
        // A path that begins with a zero byte is a name in the abstract namespace.
        let stream = UnixStream::connect(format!("\0{}", abstract_name(volume_id))).await?;
        let peer = stream.peer_cred()?.uid();
        if peer == 0 || peer == nix::unistd::geteuid().as_raw() {
            return Ok(stream);
        }
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Sends a request and waits for the response. After an error the connection cannot be used any
    /// more.
    pub(crate) async fn ask(
        &mut self,
        request: &Request,
        limit: Duration,
    ) -> Result<Response, String> {
        let exchange = timeout(limit, async {
            write(&mut self.stream, request).await?;
            read(&mut self.stream).await
        });
        match exchange.await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error @ (FrameError::Malformed(_) | FrameError::TooLarge(_)))) => {
                self.is_strange = true;
                Err(format!(
                    "ublk-target (pid {}) gives an answer that is not understood ({error}); start the shuntd of the \
                     release that it belongs to",
                    self.pid
                ))
            }
            Ok(Err(error)) => Err(format!(
                "the connection to ublk-target (pid {}) ended: {error}",
                self.pid
            )),
            Err(_) => Err(format!(
                "ublk-target (pid {}) did not answer within {} s",
                self.pid,
                limit.as_secs()
            )),
        }
    }

    /// Returns when the peer has closed the connection, or has sent something that was not
    /// requested. To be called only between two requests.
    pub(crate) async fn ended(&self) {
        loop {
            if self.stream.readable().await.is_err() {
                return;
            }
            // Readiness can be left over from the last response.
            match self.stream.try_read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}
