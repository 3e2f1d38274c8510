//! Why a path cannot be opened as a LUN.

use std::io;
use std::path::{Path, PathBuf};

use crate::signature::SignatureError;

/// Why a path could not be opened or examined as a LUN. Every text names the path.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing at the path.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },
    /// Neither a block device nor a regular file.
    #[error("{} is a {found}, not a block device or a regular file", path.display())]
    WrongKind {
        /// The path as it was given.
        path: PathBuf,
        /// The kind of the file: "directory", "character device".
        found: &'static str,
    },
    /// The kernel refused an exclusive open: mounted, swap, a holder, or another program's claim.
    #[error("{} is in use: somebody else has claimed the device", path.display())]
    Busy {
        /// The path without symbolic links.
        path: PathBuf,
    },
    /// The process has no permission to open the path.
    #[error("no permission to open {}: {source}", path.display())]
    Permission {
        /// The path as it was given.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The LUN was to be opened for writing, and the kernel refuses writes.
    #[error("{} is read-only", path.display())]
    ReadOnly {
        /// The path without symbolic links.
        path: PathBuf,
    },
    /// The file system of a regular file does not support direct I/O.
    #[error("the file system of {} does not support direct i/o (O_DIRECT)", path.display())]
    DirectUnsupported {
        /// The path without symbolic links.
        path: PathBuf,
    },
    /// Size 0: an empty file, or a device without a medium.
    #[error("{} has a size of 0 bytes", path.display())]
    Empty {
        /// The path without symbolic links.
        path: PathBuf,
    },
    /// The size is not a multiple of the logical block size.
    #[error("the size of {} is {size_bytes} bytes, not a multiple of its logical block size of {logical_block_bytes} bytes", path.display())]
    UnalignedSize {
        /// The path without symbolic links.
        path: PathBuf,
        /// Size in bytes.
        size_bytes: u64,
        /// Logical block size in bytes.
        logical_block_bytes: u32,
    },
    /// The logical block size is below 512 or not a power of two.
    #[error("{} reports a logical block size of {logical_block_bytes} bytes", path.display())]
    OddBlockSize {
        /// The path without symbolic links.
        path: PathBuf,
        /// As reported, in bytes.
        logical_block_bytes: u32,
    },
    /// The path led to a different device before the examination was complete.
    #[error("{} was replaced by another device while it was examined: try again", path.display())]
    Replaced {
        /// The path without symbolic links.
        path: PathBuf,
    },
    /// The signatures on the LUN could not be read.
    #[error("cannot read the signatures on {}: {source}", path.display())]
    Signatures {
        /// The path without symbolic links.
        path: PathBuf,
        /// The cause.
        source: SignatureError,
    },
    /// Any other failure.
    #[error("cannot {action} {}: {source}", path.display())]
    Other {
        /// The path, as given or without symbolic links.
        path: PathBuf,
        /// The action that failed: "open", "read the size of".
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

impl OpenError {
    /// Whether no LUN is at the path.
    pub(crate) fn is_absence(&self) -> bool {
        match self {
            OpenError::NotFound { .. } | OpenError::WrongKind { .. } | OpenError::Empty { .. } => {
                true
            }
            OpenError::Other { source, .. } => matches!(
                source.raw_os_error(),
                Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM)
            ),
            OpenError::Busy { .. }
            | OpenError::Permission { .. }
            | OpenError::ReadOnly { .. }
            | OpenError::DirectUnsupported { .. }
            | OpenError::UnalignedSize { .. }
            | OpenError::OddBlockSize { .. }
            | OpenError::Replaced { .. }
            | OpenError::Signatures { .. } => false,
        }
    }
}

pub(super) fn open_failed(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound { path },
        io::ErrorKind::PermissionDenied => OpenError::Permission { path, source },
        _ => OpenError::Other {
            path,
            action: "open",
            source,
        },
    }
}

/// Makes an [`OpenError::Other`].
pub(crate) fn other(path: &Path, action: &'static str, source: impl Into<io::Error>) -> OpenError {
    OpenError::Other {
        path: path.to_owned(),
        action,
        source: source.into(),
    }
}
