//! How an operation ends, in the words that the operator reads.

use migration_proto::manager::{Failure, FailureKind, Response};

use super::locks;
use crate::store::StoreError;

/// How a request that changes something ends.
pub(super) type Answer = Result<Done, Failure>;

/// The request is fulfilled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Done {
    /// False: it was so already.
    pub(super) changed: bool,
    /// What happened; one line each.
    pub(super) messages: Vec<String>,
}

impl Done {
    pub(super) fn changed(messages: Vec<String>) -> Self {
        Self {
            changed: true,
            messages,
        }
    }

    pub(super) fn already(message: impl Into<String>) -> Self {
        Self {
            changed: false,
            messages: vec![message.into()],
        }
    }
}

pub(super) fn response(answer: Answer) -> Response {
    match answer {
        Ok(Done { changed, messages }) => Response::Done { changed, messages },
        Err(failure) => Response::Failed(failure),
    }
}

/// A safety check or the present state forbids it; nothing changed.
pub(super) fn refused(
    object: impl Into<String>,
    cause: impl Into<String>,
    next: impl Into<String>,
) -> Failure {
    Failure {
        kind: FailureKind::Refused,
        object: object.into(),
        cause: cause.into(),
        next: next.into(),
    }
}

/// Something broke on the way.
pub(super) fn failed(
    object: impl Into<String>,
    cause: impl Into<String>,
    next: impl Into<String>,
) -> Failure {
    Failure {
        kind: FailureKind::Failed,
        ..refused(object, cause, next)
    }
}

pub(super) fn no_volume(name: &str) -> Failure {
    Failure {
        kind: FailureKind::NotFound,
        ..refused(
            volume(name),
            "there is no such volume",
            format!("see `shunt list`, or make it with `shunt attach {name} LUN`"),
        )
    }
}

pub(super) fn no_session(name: &str) -> Failure {
    Failure {
        kind: FailureKind::NotFound,
        ..refused(
            session(name),
            "there is no such session",
            format!("see `shunt list`, or make it with `shunt create {name} VOLUME:TARGET`"),
        )
    }
}

/// What the database says, as a failure of an operation on `object`.
pub(super) fn store(object: impl Into<String>, error: &StoreError) -> Failure {
    match error {
        StoreError::Locked { .. } => refused(
            object,
            error.to_string(),
            format!(
                "name another lun, or see `shunt status`; if nothing there has it: `{}`",
                locks::COMMAND
            ),
        ),
        StoreError::NotUtf8(_) => {
            refused(object, error.to_string(), "name the lun by another path")
        }
        StoreError::Newer { .. }
        | StoreError::Unreadable { .. }
        | StoreError::Missing(_)
        | StoreError::Damaged(_)
        | StoreError::Sqlite(_)
        | StoreError::Closed => failed(
            object,
            format!(
                "{error}; applications go on, and the authoritative leg is what `shunt status` says"
            ),
            format!("{}, then give the command again", store_remedy(error)),
        ),
    }
}

/// What the operator does about a database that cannot be used.
pub(super) fn store_remedy(error: &StoreError) -> &'static str {
    if error.is_damage() {
        "start shuntd again: it sets the damaged database aside and makes another from the map files"
    } else if error.is_busy() {
        "end the process that has shunt.db in the state directory locked (fuser names it)"
    } else {
        match error {
            StoreError::Newer { .. } => "start the newer shuntd",
            StoreError::Unreadable { .. } => {
                "move shunt.db in the state directory away, and start shuntd: it makes another from the map files"
            }
            StoreError::Locked { .. }
            | StoreError::Missing(_)
            | StoreError::NotUtf8(_)
            | StoreError::Damaged(_)
            | StoreError::Sqlite(_)
            | StoreError::Closed => "look at the space and the health of the state directory",
        }
    }
}

pub(super) fn volume(name: &str) -> String {
    format!("volume {name}")
}

pub(super) fn session(name: &str) -> String {
    format!("session {name}")
}

pub(super) fn pair(session: &str, volume: &str) -> String {
    format!("session {session}, pair {volume}")
}

/// Who has the lock of a target.
pub(super) fn target_of(volume: &str, session: &str) -> String {
    format!("the target of volume {volume} in session {session}")
}
