//! The folders of state and of sockets: made, locked, and watched while shuntd lives.
//!
//! Both are locked for the life of the process, so that no second shuntd works in either. Both can be taken away from a shuntd
//! that lives: cleaners empty `/run`, and a mount hides what is beneath it. The folder of the sockets is made again. The state
//! cannot be: what is opened by its path, such as a map file, is not there, and `status` reports that.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::warn;

use super::context::blocking;
use super::paths::Config;
use super::socket::{self, Admission, Call};
use super::{Event, StartError};

/// How often the folders are checked.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// The file in each folder that is locked; it holds the process id of the holder.
const LOCK_FILE: &str = "shuntd.lock";

/// A folder that is open and locked.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The device and the inode.
    identity: (u64, u64),
    /// Absent if the other folder is the same one.
    _lock: Option<Flock<File>>,
}

/// Both folders.
#[derive(Debug)]
pub(super) struct Folders {
    state: Folder,
    runtime: Folder,
}

impl Folders {
    /// Makes and locks the folders.
    pub(super) fn prepare(config: &Config) -> Result<Self, StartError> {
        let state = Folder::open(&config.state_directory, "--state-dir", None)?;
        let runtime = open_runtime(config, &state)?;
        make(&config.volumes())?;
        Ok(Self { state, runtime })
    }

    /// What is wrong with the folder of the state, in words.
    fn state_problem(&self) -> Option<String> {
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

    fn runtime_is_lost(&self, config: &Config) -> bool {
        let found = identity(&self.runtime.path);
        found.is_err()
            || found.is_ok_and(|found| found != self.runtime.identity)
            || !config.control_socket().exists()
            || !config.volume_sockets().exists()
    }
}

fn open_runtime(config: &Config, state: &Folder) -> Result<Folder, StartError> {
    let runtime = Folder::open(&config.runtime_directory, "--runtime-dir", Some(state))?;
    make(&config.volume_sockets())?;
    Ok(runtime)
}

/// What is gone of the folder of the sockets is made again. A folder that is still the one that was
/// opened stays locked: a second lock of it would be refused.
fn make_runtime_again(
    config: &Config,
    folders: &mut Folders,
) -> Result<std::os::unix::net::UnixListener, StartError> {
    let found = identity(&config.runtime_directory);
    if found.is_ok_and(|found| found == folders.runtime.identity) {
        make(&config.volume_sockets())?;
    } else {
        folders.runtime = open_runtime(config, &folders.state)?;
    }
    let control = config.control_socket();
    socket::listen(&control).map_err(|source| StartError::Io {
        what: "listen on",
        path: control,
        source,
    })
}

impl Folder {
    /// Makes a folder if it is not there, and locks it, unless it is the same as `locked`.
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
            // Its holder may not have written yet.
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

fn make(path: &Path) -> Result<(), StartError> {
    make_directory(path).map_err(|source| StartError::Io {
        what: "make the directory",
        path: path.to_owned(),
        source,
    })
}

/// Makes a directory that only this user may enter, durably. One that is there keeps its mode, except that others may not
/// write to it.
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

/// Makes durable that `path` has been made in its folder, or removed from it.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        Some(_) | None => File::open(".")?.sync_all(),
    }
}

/// Accepts connections to the control socket, checks the folders, and makes that of the sockets again when it is gone. Reports
/// to the owner what is wrong with them. Runs until it is aborted.
pub(super) async fn keep(
    mut folders: Folders,
    config: Config,
    listener: tokio::net::UnixListener,
    (calls, admission): (mpsc::Sender<Call>, Admission),
    events: mpsc::Sender<Event>,
) {
    let mut _listening = Listening::begin(listener, &calls, admission);
    let mut reported = Vec::new();
    loop {
        sleep(CHECK_EVERY).await;
        let checked = config.clone();
        // A folder on a LUN that hangs must hold up nothing else.
        let found = blocking(move || {
            let problem = folders.state_problem();
            let again = folders
                .runtime_is_lost(&checked)
                .then(|| make_runtime_again(&checked, &mut folders));
            (folders, problem, again)
        });
        let Ok((kept, problem, again)) = found.await else {
            return;
        };
        folders = kept;
        let mut problems: Vec<String> = problem.into_iter().collect();
        match again.map(|again| again.map(socket::to_tokio)) {
            None => {}
            Some(Ok(Ok(listener))) => {
                warn!(folder = %config.runtime_directory.display(), "the folder of the sockets was gone, or a part of it, and is made again");
                _listening = Listening::begin(listener, &calls, admission);
            }
            Some(Ok(Err(error))) => problems.push(format!("no control socket: {error}")),
            Some(Err(error)) => problems.push(error.to_string()),
        }
        if problems != reported {
            for problem in &problems {
                warn!("{problem}");
            }
            reported.clone_from(&problems);
            // The owner is gone at the end of shuntd only.
            let _ = events.send(Event::Folders(problems)).await;
        }
    }
}

/// The task that accepts connections; ends when this is dropped.
struct Listening(tokio::task::JoinHandle<()>);

impl Listening {
    fn begin(
        listener: tokio::net::UnixListener,
        calls: &mpsc::Sender<Call>,
        admission: Admission,
    ) -> Self {
        Self(tokio::spawn(socket::serve(
            listener,
            calls.clone(),
            admission,
        )))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
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
