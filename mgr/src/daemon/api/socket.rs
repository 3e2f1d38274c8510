//! The control socket: `shunt` asks, the owner answers.
//!
//! Each connection has a task of its own and cannot harm others: the size of a frame is limited, a
//! frame must be finished in time, and there are at most [`CONNECTIONS_MAX`] connections;
//! [`Places`] decides which connection makes room for a new one.

use std::collections::HashMap;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migration_proto::frame::FrameError;
use migration_proto::manager::{Failure, FailureKind, Request, Response};
use migration_proto::places::{Admitted, ConnectionId, Places};
use migration_proto::{Hello, Welcome};
use tokio::io::AsyncReadExt;
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::feed;
use crate::daemon::failure;
use crate::daemon::volumes::link;

/// The most connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// How long a greeting may take, and a frame from its first byte on.
const FRAME_MAX: Duration = Duration::from_secs(10);
/// How long a connection may be idle.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// How long to wait when the kernel cannot accept a connection (no descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A request with the channel for its answer.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    /// The number of the user who sent it.
    pub(crate) who: u32,
    pub(crate) reply: oneshot::Sender<Response>,
}

/// The users whose requests are answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admission {
    /// Only root.
    pub(crate) root_only: bool,
}

/// Makes the socket, for root only.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    to_tokio(listen(path)?)
}

/// Makes the socket without a tokio runtime.
pub(crate) fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    // Until now the umask decides the mode; SO_PEERCRED is checked at every connection as well.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub(super) fn to_tokio(listener: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Accepts connections for ever.
pub(crate) async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, admission: Admission) {
    let seats = Seats::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "no connection can be accepted on the control socket");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Some(seat) = seats.admit() else {
            warn!("a connection was closed: {CONNECTIONS_MAX} requests are being answered");
            continue;
        };
        let (calls, id) = (calls.clone(), seat.id);
        let task = tokio::spawn(async move {
            if let Err(error) = converse(stream, calls, admission, &seat).await {
                debug!(%error, "a connection to the control socket ended");
            }
        });
        seats.lock().tasks.insert(id, task.abort_handle());
    }
}

/// The connections that have a place.
#[derive(Debug, Clone)]
struct Seats(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    places: Places,
    /// The task of each connection, aborted when the connection loses its place.
    tasks: HashMap<ConnectionId, AbortHandle>,
}

/// The place of one connection, given back when it is dropped.
#[derive(Debug)]
struct Seat {
    id: ConnectionId,
    seats: Seats,
}

impl Default for Seats {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Taken {
            places: Places::new(CONNECTIONS_MAX),
            tasks: HashMap::new(),
        })))
    }
}

impl Seats {
    /// Gives a connection a place; an idle connection may lose its place for that.
    fn admit(&self) -> Option<Seat> {
        let mut taken = self.lock();
        let Admitted { id, instead_of } = taken.places.admit()?;
        if let Some(other) = instead_of.and_then(|other| taken.tasks.remove(&other)) {
            other.abort();
        }
        Some(Seat {
            id,
            seats: self.clone(),
        })
    }

    /// Locks the places. A poisoned lock is usable: nothing that could panic half-way is done under
    /// it.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn places(&self, change: impl FnOnce(&mut Places, ConnectionId)) {
        change(&mut self.seats.lock().places, self.id);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.places.leave(self.id);
        taken.tasks.remove(&self.id);
    }
}

async fn converse(
    mut stream: UnixStream,
    calls: mpsc::Sender<Call>,
    admission: Admission,
    seat: &Seat,
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
    let caller = stream.peer_cred()?;
    if admission.root_only && caller.uid() != 0 {
        let failure = failure::refused("shuntd", "only root may use it", "run shunt as root");
        return send(&mut stream, &Response::Failed(failure)).await;
    }
    let who = user(caller);
    loop {
        seat.places(Places::became_idle);
        let request: Request = match next_request(&mut stream).await {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => return refuse_message(&mut stream, error).await,
        };
        // A client that waits for a future event can make room for others.
        if !feed::waits(&request) {
            seat.places(Places::became_busy);
        }
        // A question can be asked again: a client that waits for news does so when shuntd is back,
        // if the connection ends without an answer.
        let is_question = request.is_question();
        let (reply, answer) = oneshot::channel();
        let call = Call {
            request,
            who,
            reply,
        };
        let answered = match calls.send(call).await {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        };
        let response = match answered {
            Some(response) => response,
            None if is_question => return Ok(()),
            None => ending(),
        };
        match send(&mut stream, &response).await {
            Err(FrameError::TooLarge(bytes)) => send(&mut stream, &too_large(bytes)).await?,
            other => other?,
        }
    }
}

/// The user who logged in, even if the client process runs as another user. A number: resolving the
/// name may need the network, and shuntd must not wait for that.
fn user(caller: UCred) -> u32 {
    let login = caller.pid().and_then(|pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/loginuid")).ok()?;
        let uid: u32 = text.trim().parse().ok()?;
        // `u32::MAX`: the process does not belong to a login.
        (uid != u32::MAX).then_some(uid)
    });
    login.unwrap_or(caller.uid())
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

/// Answers a malformed message with its error, if the client still reads, and ends the connection.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client gets for a request to a shuntd that ends before it answers.
    async fn at_the_end(request: &Request) -> Result<Response, FrameError> {
        let (mut client, stream) = UnixStream::pair().unwrap();
        let (calls, mut called) = mpsc::channel(1);
        let seat = Seats::default().admit().unwrap();
        let admission = Admission { root_only: false };
        tokio::spawn(async move { converse(stream, calls, admission, &seat).await });
        link::write(&mut client, &Hello::current()).await.unwrap();
        let _: Welcome = link::read(&mut client).await.unwrap();
        link::write(&mut client, request).await.unwrap();
        drop(called.recv().await.unwrap());
        link::read(&mut client).await
    }

    #[tokio::test]
    async fn a_question_to_a_shuntd_that_ends_can_be_asked_again() {
        let events = Request::Events {
            session: None,
            after: Some(7),
        };
        let answer = at_the_end(&events).await;
        assert!(matches!(answer, Err(FrameError::Closed)), "{answer:?}");
        let session = "s1".to_owned();
        match at_the_end(&Request::Commit { session }).await {
            Ok(Response::Failed(failure)) => assert!(failure.cause.contains("ending")),
            other => panic!("{other:?}"),
        }
    }
}
