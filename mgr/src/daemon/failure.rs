//! Results of operations, in the words that the operator reads.

use std::io;
use std::path::PathBuf;

use migration_proto::manager::{Failure, FailureKind, Response};

use crate::history::REBUILD;
use crate::store::StoreError;

/// The command by which the operator frees such locks.
pub(super) const FREE_LOCKS: &str = "shunt recover --locks";

/// Why `shuntd` does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process does not run as root.
    #[error("shuntd must be run by root: it opens disks and makes devices")]
    NotRoot,
    /// Another shuntd uses the same folder.
    #[error(
        "another shuntd{} works in {}; next: stop that one, or name another {argument}",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        folder.display()
    )]
    AlreadyRunning {
        /// The folder.
        folder: PathBuf,
        /// The argument that names it.
        argument: &'static str,
        /// The process, if it is known.
        pid: Option<u32>,
    },
    /// A directory or a file cannot be made or opened.
    #[error(
        "cannot {what} {}: {source}; running volumes continue without shuntd; next: correct that, or name another \
         --state-dir or --runtime-dir, and start shuntd again",
        path.display()
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The database cannot be used.
    #[error(
        "cannot use the database {}: {source}; running volumes continue without shuntd; next: {}",
        path.display(),
        store_remedy(source)
    )]
    Store {
        /// The database.
        path: PathBuf,
        /// The cause.
        source: StoreError,
    },
}

/// The result of a request that changes something.
pub(super) type Answer = Result<Done, Failure>;

/// The result of a request that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Done {
    /// False if nothing had to be changed.
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

/// A refusal: a safety check or the current state forbids the operation; nothing changed.
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

/// A failure: an error occurred during the operation.
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

/// The failure of an operation on `object` because of a database error.
pub(super) fn store(object: impl Into<String>, error: &StoreError) -> Failure {
    match error {
        StoreError::Locked { .. } => refused(
            object,
            error.to_string(),
            format!(
                "name another lun, or see `shunt status`; if nothing there has it: `{}`",
                FREE_LOCKS
            ),
        ),
        StoreError::NotUtf8(_) => {
            refused(object, error.to_string(), "name the lun by another path")
        }
        StoreError::Newer { .. }
        | StoreError::Older { .. }
        | StoreError::Unreadable { .. }
        | StoreError::Missing(_)
        | StoreError::Damaged(_)
        | StoreError::Sqlite(_)
        | StoreError::Closed => failed(
            object,
            format!(
                "{error}; applications continue, and `shunt status` shows the authoritative leg"
            ),
            format!("{}, then give the command again", store_remedy(error)),
        ),
    }
}

/// What the operator can do about a database that cannot be used.
pub(super) fn store_remedy(error: &StoreError) -> &'static str {
    if error.is_damage() {
        "start shuntd again: it sets the damaged database aside and makes a new one from the map files"
    } else if error.is_busy() {
        "end the process that has shunt.db in the state directory locked (fuser names it)"
    } else {
        match error {
            StoreError::Newer { .. } => "start the newer shuntd",
            StoreError::Older { .. } | StoreError::Unreadable { .. } => {
                "move shunt.db in the state directory away, and start shuntd: it makes a new one from the map files"
            }
            StoreError::Locked { .. }
            | StoreError::Missing(_)
            | StoreError::NotUtf8(_)
            | StoreError::Damaged(_)
            | StoreError::Sqlite(_)
            | StoreError::Closed => "check the free space and the health of the state directory",
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

/// The holder of the lock on a target, in words.
pub(super) fn target_of(volume: &str, session: &str) -> String {
    format!("the target of volume {volume} in session {session}")
}

/// The next step for the operator: the command that recovers the volume.
pub(super) fn recover_command(volume: &str) -> String {
    format!("say which leg is right: `shunt recover {volume} --authoritative source|target`")
}

/// The next step when the map file, or the process, belongs to another volume.
pub(super) fn other_volume_next(volume: &str) -> String {
    format!(
        "put the map file of {volume} back; or, if {volume} was attached again since the database was saved, {REBUILD}"
    )
}
