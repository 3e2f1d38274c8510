//! The control socket: `shunt` asks, the owner answers.
//!
//! Each connection has a task of its own, and cannot harm others: frames have a limit, a frame that was begun must be finished in
//! time, and there are at most [`CONNECTIONS_MAX`] connections.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use migration_proto::frame::FrameError;
use migration_proto::manager::{Failure, FailureKind, Request, Response};
use migration_proto::{Hello, Welcome};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{failure, link};

/// The most connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// How long a frame that was begun, and a greeting, may take.
const FRAME_MAX: Duration = Duration::from_secs(10);
/// How long a connection may be idle.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// How long to wait when the kernel gives no connection (no descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A request with the way back for its answer.
pub(super) type Call = (Request, oneshot::Sender<Response>);

/// Who may ask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admission {
    /// Only root.
    pub(super) root_only: bool,
}

/// Makes the socket, for root only.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    // Until now the mode is that of the umask; SO_PEERCRED is asked at every connection as well.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts connections for ever.
pub(super) async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, admission: Admission) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "no connection can be accepted on the control socket");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            warn!("a connection was closed: there are {CONNECTIONS_MAX} already");
            continue;
        };
        let calls = calls.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, calls, admission).await {
                debug!(%error, "a connection to the control socket ended");
            }
            drop(place);
        });
    }
}

async fn converse(
    mut stream: UnixStream,
    calls: mpsc::Sender<Call>,
    admission: Admission,
) -> Result<(), FrameError> {
    let hello: Hello = match within(FRAME_MAX, link::read(&mut stream)).await {
        Ok(hello) => hello,
        Err(error) => return refuse_message(&mut stream, error).await,
    };
    let welcome = hello.answer();
    send(&mut stream, &welcome).await?;
    if matches!(welcome, Welcome::WrongProtocol { .. }) {
        return Ok(());
    }
    if admission.root_only && stream.peer_cred()?.uid() != 0 {
        let failure = failure::refused("shuntd", "only root may use it", "run shunt as root");
        return send(&mut stream, &Response::Failed(failure)).await;
    }
    loop {
        let request: Request = match next_request(&mut stream).await {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => return refuse_message(&mut stream, error).await,
        };
        let (reply, answer) = oneshot::channel();
        let response = match calls.send((request, reply)).await {
            Ok(()) => answer.await.unwrap_or_else(|_| ending()),
            Err(_) => ending(),
        };
        match send(&mut stream, &response).await {
            Err(FrameError::TooLarge(bytes)) => send(&mut stream, &too_large(bytes)).await?,
            other => other?,
        }
    }
}

/// The next request; `None` when the client has left, or has been idle for too long.
async fn next_request(stream: &mut UnixStream) -> Result<Option<Request>, FrameError> {
    let first = match timeout(IDLE_MAX, stream.read_u8()).await {
        Ok(Ok(first)) => first,
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => return Ok(None),
    };
    within(FRAME_MAX, link::read_rest(stream, first))
        .await
        .map(Some)
}

async fn send<T: serde::Serialize>(stream: &mut UnixStream, message: &T) -> Result<(), FrameError> {
    within(FRAME_MAX, link::write(stream, message)).await
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, FrameError>>,
) -> Result<T, FrameError> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

/// Says what was wrong with a message, if that still reaches anybody, and ends the connection.
async fn refuse_message(stream: &mut UnixStream, error: FrameError) -> Result<(), FrameError> {
    match &error {
        FrameError::Closed => return Ok(()),
        FrameError::TooLarge(_) | FrameError::Malformed(_) => {
            let failure = failure::refused(
                "the message",
                error.to_string(),
                "use the shunt of this version",
            );
            send(stream, &Response::Failed(failure)).await?;
        }
        FrameError::Io(_) => {}
    }
    Err(error)
}

fn too_large(bytes: usize) -> Response {
    Response::Failed(failure::failed(
        "the answer",
        format!("its {bytes} bytes do not fit into one message"),
        "ask for one session",
    ))
}

fn ending() -> Response {
    Response::Failed(Failure {
        kind: FailureKind::Failed,
        object: "shuntd".to_owned(),
        cause: "it is ending; what it has begun is finished or explained when it is started again"
            .to_owned(),
        next: "start shuntd, then see `shunt status`".to_owned(),
    })
}
