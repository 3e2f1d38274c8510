//! The control socket of a volume, as shuntd uses it.

use std::{os::unix::net::UnixStream, path::Path};

use migration_proto::{
    Hello, Welcome, frame,
    target::{Request, Response, Status},
};

/// A connection to a volume's `ublk-target`.
#[derive(Debug)]
pub struct Connection(UnixStream);

impl Connection {
    /// Connects and greets.
    ///
    /// # Panics
    /// If nobody serves the volume.
    #[must_use]
    pub fn open(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).expect("the volume's socket");
        frame::write(&mut stream, &Hello::current()).expect("send a greeting");
        let welcome: Welcome = frame::read(&mut stream).expect("an answer");
        assert!(matches!(welcome, Welcome::Ready { .. }), "{welcome:?}");
        Self(stream)
    }

    /// Sends a request, and waits for the answer.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn ask(&mut self, request: &Request) -> Response {
        self.send(request);
        frame::read(&mut self.0).expect("an answer")
    }

    /// Sends a request, and does not wait for the answer.
    ///
    /// # Panics
    /// If it cannot be sent.
    pub fn send(&mut self, request: &Request) {
        frame::write(&mut self.0, request).expect("send a request");
    }

    /// The status of the volume.
    ///
    /// # Panics
    /// If the volume does not send it.
    pub fn status(&mut self) -> Status {
        match self.ask(&Request::Status) {
            Response::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Runs `action` while nothing is in flight and new requests are held.
    ///
    /// # Panics
    /// If the volume does not suspend, or did not stay suspended.
    pub fn while_suspended<T>(&mut self, action: impl FnOnce() -> T) -> T {
        let deadline_ms = 60_000;
        assert_eq!(
            self.ask(&Request::Suspend { deadline_ms }),
            Response::Suspended
        );
        let result = action();
        let resumed = Response::Resumed {
            ended: Some(migration_proto::target::Suspended::Asked),
        };
        assert_eq!(
            self.ask(&Request::Resume),
            resumed,
            "the suspension ended too early"
        );
        result
    }
}
