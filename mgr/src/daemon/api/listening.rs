//! Accepts connections to the control socket, and makes the socket folder and the socket again when
//! they are gone.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::warn;

use super::socket::{self, Admission, Call};
use crate::daemon::context::blocking;
use crate::daemon::event::Event;
use crate::daemon::failure::StartError;
use crate::daemon::folders::{Folders, identity, make, open_runtime};
use crate::daemon::paths::Config;

/// Interval between checks of the folders.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// Creates the missing parts of the socket folder, and listens on the control socket. A folder that
/// is still the one that was opened stays locked: a second lock would be refused.
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

/// Accepts connections to the control socket, checks the folders, and creates the socket folder
/// again when it is gone. Reports problems of the folders to the owner. Runs until it is aborted.
pub(crate) async fn keep(
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
        // A folder on a LUN that hangs must not block anything else.
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
                warn!(folder = %config.runtime_directory.display(), "the socket folder or a part of it was gone, and is created again");
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
            // The owner is gone only when shuntd ends.
            let _ = events.send(Event::Folders(problems)).await;
        }
    }
}

/// The task that accepts connections. It ends when this value is dropped.
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
