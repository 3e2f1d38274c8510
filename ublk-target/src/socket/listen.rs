//! The sockets, and a thread and a place for each connection.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use migration_core::volume::CopierId;
use migration_proto::{
    frame::FrameError,
    places::{Admitted, ConnectionId},
    target::abstract_name,
};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::{Connections, Server, THREADS_MAX};
use crate::engine::Command;

/// Stack of a connection's thread, in bytes. All memory of this process is locked, so the whole
/// stack takes memory.
const STACK_BYTES: usize = 256 << 10;
/// Interval at which the end of another connection's thread, or of the predecessor's hold of the
/// name, is checked.
const THREAD_POLL: Duration = Duration::from_millis(1);
/// How long a process waits until its predecessor releases the abstract name.
const NAME_LIMIT: Duration = Duration::from_secs(1);

impl Server {
    /// Listens on the socket file `path`, in a new thread. Replaces an old socket file: the lock of
    /// the map file guarantees that nobody serves it.
    ///
    /// # Errors
    /// The socket cannot be created.
    pub fn listen(self: &Arc<Self>, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        self.accept_on(listener)
    }

    /// Listens on a name in the abstract namespace too, for a shuntd that finds no socket file
    /// ([`abstract_name`]).
    ///
    /// # Errors
    /// The name is taken.
    pub fn listen_by_id(self: &Arc<Self>, volume_id: &str) -> io::Result<()> {
        let address = SocketAddr::from_abstract_name(abstract_name(volume_id))?;
        let started = Instant::now();
        // The kernel may have closed the predecessor's map file but not its sockets yet.
        let listener = loop {
            match UnixListener::bind_addr(&address) {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && started.elapsed() < NAME_LIMIT =>
                {
                    std::thread::sleep(THREAD_POLL);
                }
                other => break other?,
            }
        };
        self.accept_on(listener)
    }

    fn accept_on(self: &Arc<Self>, listener: UnixListener) -> io::Result<()> {
        let server = Arc::clone(self);
        std::thread::Builder::new()
            .name("accept".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                for stream in listener.incoming() {
                    match stream {
                        Ok(stream) => server.accept(stream),
                        Err(error) => {
                            tracing::warn!(%error, "a connection could not be accepted");
                            std::thread::sleep(Duration::from_millis(100));
                        }
                    }
                }
            })?;
        Ok(())
    }

    fn accept(self: &Arc<Self>, stream: UnixStream) {
        if let Err(error) = self.begin(stream) {
            tracing::warn!(%error, "a connection could not be served");
        }
    }

    fn begin(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        require_root_or_own_user(&stream)?;
        while self.threads.load(Ordering::Acquire) >= THREADS_MAX {
            std::thread::sleep(THREAD_POLL);
        }
        let Some(id) = self.admit(&stream)? else {
            return Ok(());
        };
        self.threads.fetch_add(1, Ordering::AcqRel);
        let server = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("connection".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                match server.converse(stream, id) {
                    Ok(()) | Err(FrameError::Closed) => {}
                    Err(error) => tracing::debug!(%error, "a connection ended"),
                }
                server.inbox.send(Command::ConnectionClosed(CopierId(id)));
                server.leave(id);
                server.threads.fetch_sub(1, Ordering::AcqRel);
            });
        if spawned.is_err() {
            self.leave(id);
            self.threads.fetch_sub(1, Ordering::AcqRel);
        }
        spawned.map(drop)
    }

    /// Gives a connection a place. Another connection may lose its place for that. `None`: all
    /// others are being answered.
    fn admit(&self, stream: &UnixStream) -> io::Result<Option<ConnectionId>> {
        let stream = stream.try_clone()?;
        let mut connections = self.connections();
        let Some(Admitted { id, instead_of }) = connections.places.admit() else {
            return Ok(None);
        };
        connections.streams.insert(id, stream);
        if let Some(other) = instead_of.and_then(|other| connections.streams.remove(&other)) {
            // The other connection's thread finds the end of the stream. An error means that the
            // stream is closed already.
            let _ = other.shutdown(std::net::Shutdown::Both);
        }
        Ok(Some(id))
    }

    fn leave(&self, id: ConnectionId) {
        let mut connections = self.connections();
        connections.places.leave(id);
        connections.streams.remove(&id);
    }

    /// Locks the table of connections. A poisoned lock is usable: nothing under the lock panics
    /// half-way.
    pub(super) fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn require_root_or_own_user(stream: &UnixStream) -> io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    // SAFETY: geteuid has no preconditions.
    let own = unsafe { libc::geteuid() };
    if peer.uid() == 0 || peer.uid() == own {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}
