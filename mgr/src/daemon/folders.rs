//! The state folder and the socket folder: creates, locks and watches them while shuntd runs.
//!
//! Both folders are locked for the life of the process, so that no second shuntd uses either of
//! them. Both can disappear while shuntd runs: programs that clean up empty `/run`, and a mount
//! hides what is beneath it. shuntd creates the socket folder again. It cannot do that with the
//! state folder: files that are opened by path, such as a map file, are missing, and `status`
//! reports that.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::failure::StartError;
use super::paths::Config;

/// The file in each folder that is locked; it holds the process id of the lock's holder.
const LOCK_FILE: &str = "shuntd.lock";

/// A folder that is open and locked.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The device and the inode.
    pub(super) identity: (u64, u64),
    /// `None` if the folder is the same as the other folder.
    _lock: Option<Flock<File>>,
}

/// The state folder and the socket folder.
#[derive(Debug)]
pub(super) struct Folders {
    pub(super) state: Folder,
    pub(super) runtime: Folder,
}

impl Folders {
    /// Creates and locks the folders.
    pub(super) fn prepare(config: &Config) -> Result<Self, StartError> {
        let state = Folder::open(&config.state_directory, "--state-dir", None)?;
        let runtime = open_runtime(config, &state)?;
        make(&config.volumes())?;
        Ok(Self { state, runtime })
    }

    /// Describes what is wrong with the state folder; `None` if nothing is.
    pub(super) fn state_problem(&self) -> Option<String> {
        let path = self.state.path.display();
        let cause = match identity(&self.state.path) {
            Ok(found) if found == self.state.identity => return None,
            Ok(found) if found.0 != self.state.identity.0 => {
                format!("hidden by a mount; next: `umount {path}`")
            }
            Ok(_) => format!("replaced by another folder; next: move the first one back to {path}"),
            Err(error) => format!("not there ({error}); next: move it back to {path}"),
        };
        Some(format!(
            "the state folder {path} is {cause}: until then a volume whose ublk-target ends is not served again"
        ))
    }

    pub(super) fn runtime_is_lost(&self, config: &Config) -> bool {
        let found = identity(&self.runtime.path);
        found.is_err()
            || found.is_ok_and(|found| found != self.runtime.identity)
            || !config.control_socket().exists()
            || !config.volume_sockets().exists()
    }
}

pub(super) fn open_runtime(config: &Config, state: &Folder) -> Result<Folder, StartError> {
    let runtime = Folder::open(&config.runtime_directory, "--runtime-dir", Some(state))?;
    make(&config.volume_sockets())?;
    Ok(runtime)
}

impl Folder {
    /// Creates a folder if it does not exist, and locks it, unless it is the same folder as
    /// `locked`.
    fn open(
        path: &Path,
        argument: &'static str,
        locked: Option<&Self>,
    ) -> Result<Self, StartError> {
        make(path)?;
        let found = identity(path).map_err(|source| StartError::Io {
            what: "examine",
            path: path.to_owned(),
            source,
        })?;
        let lock = match locked {
            Some(other) if other.identity == found => None,
            Some(_) | None => Some(lock(path, argument)?),
        };
        Ok(Self {
            path: path.to_owned(),
            identity: found,
            _lock: lock,
        })
    }
}

/// The device and the inode of a folder.
pub(super) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn lock(folder: &Path, argument: &'static str) -> Result<Flock<File>, StartError> {
    let path = folder.join(LOCK_FILE);
    let failed = |what| {
        let path = path.clone();
        move |source| StartError::Io { what, path, source }
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut file) => {
            note_holder(&mut file).map_err(failed("write"))?;
            Ok(file)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            // The holder of the lock may not have written its process id yet.
            let _ = file.read_to_string(&mut holder);
            Err(StartError::AlreadyRunning {
                folder: folder.to_owned(),
                argument,
                pid: holder.trim().parse().ok(),
            })
        }
        Err((_, error)) => Err(failed("lock")(error.into())),
    }
}

fn note_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

pub(super) fn make(path: &Path) -> Result<(), StartError> {
    make_directory(path).map_err(|source| StartError::Io {
        what: "make the directory",
        path: path.to_owned(),
        source,
    })
}

/// Creates a directory that only this user may enter, and makes it durable. An existing directory
/// keeps its mode, but its group and others lose the permission to write.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        .collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for made in missing {
        sync_parent(made)?;
    }
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o022 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(mode & !0o022))?;
    }
    Ok(())
}

/// Makes durable that `path` was created in its parent folder, or removed from it.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        Some(_) | None => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: &Path) -> Config {
        Config::new(root.join("a/state"), root.join("run"), "/bin/true".into())
    }

    #[test]
    fn a_folder_is_locked_once_and_the_holder_is_named() {
        let root = tempfile::tempdir().unwrap();
        let first = config(root.path());
        let held = Folders::prepare(&first).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&first.state_directory), 0o700);
        assert_eq!(mode(&first.volumes()), 0o700);
        let other = root.path().join("other");
        let same_state = Config {
            runtime_directory: other.clone(),
            ..first.clone()
        };
        let same_runtime = Config {
            state_directory: other,
            ..first.clone()
        };
        for (second, folder, argument) in [
            (same_state, &first.state_directory, "--state-dir"),
            (same_runtime, &first.runtime_directory, "--runtime-dir"),
        ] {
            let error = Folders::prepare(&second).unwrap_err().to_string();
            let pid = format!("pid {}", std::process::id());
            for word in [folder.to_str().unwrap(), argument, &pid] {
                assert!(error.contains(word), "{error}");
            }
        }
        drop(held);
        Folders::prepare(&first).unwrap();
        // One folder for both.
        let one = Config {
            runtime_directory: first.state_directory.clone(),
            ..first
        };
        Folders::prepare(&one).unwrap();
    }

    #[test]
    fn folders_that_are_replaced_or_gone_are_found() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        let folders = Folders::prepare(&config).unwrap();
        std::fs::write(config.control_socket(), "").unwrap();
        assert_eq!(folders.state_problem(), None);
        assert!(!folders.runtime_is_lost(&config));
        let away = root.path().join("away");
        std::fs::rename(&config.state_directory, &away).unwrap();
        let problem = folders.state_problem().unwrap();
        assert!(
            problem.contains("not there") && problem.contains("next: "),
            "{problem}"
        );
        std::fs::create_dir(&config.state_directory).unwrap();
        let problem = folders.state_problem().unwrap();
        assert!(problem.contains("replaced"), "{problem}");
        std::fs::remove_dir_all(&config.runtime_directory).unwrap();
        assert!(folders.runtime_is_lost(&config));
        make(&config.volume_sockets()).unwrap();
        std::fs::write(config.control_socket(), "").unwrap();
        assert!(folders.runtime_is_lost(&config));
    }
}
