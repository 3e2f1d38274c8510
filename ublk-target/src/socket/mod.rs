//! The control socket: for root and the process's own user, one thread for each connection, one
//! request at a time on each.
//!
//! This module checks and translates requests; the engine decides. A slow or hostile client delays
//! only itself: the engine never waits for a connection.

mod converse;
mod listen;
mod mirror;
mod status;
mod translate;

use std::{
    collections::HashMap,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicUsize, mpsc::SyncSender},
};

use migration_core::custody::Claim;
use migration_proto::places::{ConnectionId, Places};
use nix::sys::signal::Signal;

use crate::engine::Inbox;

/// The most connections at the same time; [`Places`] decides which connection makes room for a new
/// one.
const CONNECTIONS_MAX: usize = 64;
/// The most threads for connections: connections that have lost their place take a moment to end.
pub const THREADS_MAX: usize = 2 * CONNECTIONS_MAX;

/// Facts that hold for the whole life of the process.
#[derive(Debug)]
pub struct Facts {
    /// `/dev/ublkbN`.
    pub device: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The features that the driver offers.
    pub driver_features: Vec<String>,
    /// Whether the process took over an existing device.
    pub recovered: bool,
    /// The name of the claim on the legs.
    pub claim: Claim,
}

/// An event for the thread that holds the device.
#[derive(Debug)]
pub enum Wake {
    /// A client wants to end the device and the process. The answer is an error if they do not end,
    /// or not cleanly.
    Stop(SyncSender<Result<(), String>>),
    /// A signal that asks for the end of the process. The next signal is sent when the sender is
    /// dropped.
    Signal(Signal, SyncSender<()>),
    /// The engine has ended.
    EngineEnded,
}

/// The state that all connections share.
#[derive(Debug)]
pub struct Server {
    facts: Facts,
    inbox: Arc<Inbox>,
    stop: SyncSender<Wake>,
    threads: AtomicUsize,
    connections: Mutex<Connections>,
}

/// The connections that have a place.
#[derive(Debug)]
struct Connections {
    places: Places,
    /// The streams of the connections. A connection that loses its place is closed by its stream.
    streams: HashMap<ConnectionId, UnixStream>,
}

impl Server {
    /// Creates a server that is not listening yet.
    #[must_use]
    pub fn new(facts: Facts, inbox: Arc<Inbox>, stop: SyncSender<Wake>) -> Arc<Self> {
        Arc::new(Self {
            facts,
            inbox,
            stop,
            threads: AtomicUsize::new(0),
            connections: Mutex::new(Connections {
                places: Places::new(CONNECTIONS_MAX),
                streams: HashMap::new(),
            }),
        })
    }
}
