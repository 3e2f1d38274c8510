//! Holds the current view of one volume, and sends requests to its task in `volumes::supervisor`.

use std::sync::Arc;
use std::time::Duration;

use migration_proto::target::{Request, Response, Status};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// The interval of status polls.
pub(super) const POLL_IDLE: Duration = Duration::from_secs(1);
/// The interval of status polls while the volume is being copied.
pub(super) const POLL_COPYING: Duration = Duration::from_millis(250);
/// How long a volume may take to answer and to finish a change of its route.
const CHANGE_MAX: Duration = Duration::from_secs(90);
/// How long a status query waits for a fresh answer; a volume that does not answer in time is shown
/// with its last known status.
const REFRESH_MAX: Duration = Duration::from_millis(500);
/// The most requests that wait for one volume.
const COMMANDS_MAX: usize = 32;

/// The current view of a volume.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct View {
    /// Whether its ublk-target answers.
    pub(super) connected: bool,
    /// The last status, also while ublk-target does not answer.
    pub(super) status: Option<Arc<Status>>,
    /// The number of connections made.
    pub(super) connections: u64,
    /// The number of restarts of ublk-target.
    pub(super) restarts: u64,
    /// The number of failed starts since ublk-target last answered.
    pub(super) failures: u32,
    /// Why ublk-target does not answer.
    pub(super) problem: Option<String>,
}

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    /// Nothing was sent: there is no connection.
    #[error("its ublk-target does not answer: {0}")]
    Down(String),
    /// The connection ended: whether the request was done is unknown.
    #[error("{0}")]
    Lost(String),
    /// Refused.
    #[error("{0}")]
    Refused(String),
}

/// The commands to the task of a volume.
pub(super) enum Command {
    Ask {
        request: Box<Request>,
        limit: Duration,
        reply: oneshot::Sender<Result<Response, AskError>>,
    },
    PollEvery(Duration),
    /// Answered when the view is up to date, or cannot be.
    Refresh {
        reply: oneshot::Sender<()>,
    },
    Stop {
        reply: oneshot::Sender<Result<(), AskError>>,
    },
    Abandon {
        reply: oneshot::Sender<()>,
    },
}

/// Access to a volume's task. When the last handle is dropped the task ends; ublk-target keeps
/// running.
#[derive(Debug, Clone)]
pub(super) struct VolumeHandle {
    pub(super) name: String,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
}

impl VolumeHandle {
    /// A handle, and what its task needs: the commands that it receives and the view that it
    /// publishes.
    pub(super) fn new(name: String) -> (Self, mpsc::Receiver<Command>, watch::Sender<View>) {
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let (publish, view) = watch::channel(View::default());
        let handle = Self {
            name,
            commands,
            view,
        };
        (handle, received, publish)
    }

    /// The current view.
    pub(super) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Waits until the view fulfils `condition`, for at most `limit`.
    pub(super) async fn wait_for(
        &self,
        limit: Duration,
        condition: impl FnMut(&View) -> bool,
    ) -> Result<View, AskError> {
        let mut view = self.view.clone();
        match timeout(limit, view.wait_for(condition)).await {
            Ok(Ok(view)) => Ok(view.clone()),
            Ok(Err(_)) => Err(AskError::Down("it is gone".to_owned())),
            Err(_) => {
                let problem = self
                    .view()
                    .problem
                    .unwrap_or_else(|| format!("nothing happened within {} s", limit.as_secs()));
                Err(AskError::Down(problem))
            }
        }
    }

    /// Waits until ublk-target answers, and returns its last status.
    pub(super) async fn status(&self, limit: Duration) -> Result<Arc<Status>, AskError> {
        let view = self.wait_for(limit, |view| view.connected).await?;
        view.status
            .ok_or_else(|| AskError::Down("it has not reported its status".to_owned()))
    }

    /// Waits until ublk-target answers and no change of the route is in progress.
    pub(super) async fn while_not_changing(&self) -> Result<View, AskError> {
        let settled = |view: &View| {
            let status = view.status.as_ref();
            view.connected && status.is_some_and(|status| !status.changing)
        };
        self.wait_for(CHANGE_MAX, settled).await
    }

    /// Sends a request and returns the answer, after the view was updated.
    pub(super) async fn ask(
        &self,
        request: Request,
        limit: Duration,
    ) -> Result<Response, AskError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Ask {
            request: Box::new(request),
            limit,
            reply,
        })
        .await?;
        answer.await.map_err(|_| gone())?
    }

    /// Stops the device, and waits until the process is gone. The handle is of no use after that.
    pub(super) async fn stop(&self) -> Result<(), AskError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Stop { reply }).await?;
        answer.await.map_err(|_| gone())?
    }

    /// Gives up a volume that did not come up: kills the process that was started for it.
    pub(super) async fn abandon(&self) {
        let (reply, answer) = oneshot::channel();
        if self.send(Command::Abandon { reply }).await.is_ok() {
            // Without an answer the task has ended already, which is all that is wanted.
            let _ = answer.await;
        }
    }

    /// Updates the view, if the volume answers soon.
    pub(super) async fn refresh(&self) {
        let (reply, answer) = oneshot::channel();
        let refreshed = async {
            if self.send(Command::Refresh { reply }).await.is_ok() {
                // Without an answer the volume's task has ended: the view stays as it is.
                let _ = answer.await;
            }
        };
        // If the answer is late, the view stays as it is.
        let _ = timeout(REFRESH_MAX, refreshed).await;
    }

    /// Sets the interval of status polls; the first poll follows immediately.
    pub(super) fn poll_every(&self, every: Duration) {
        // If the queue is full, it holds requests, and a status follows each of them.
        let _ = self.commands.try_send(Command::PollEvery(every));
    }

    async fn send(&self, command: Command) -> Result<(), AskError> {
        self.commands.send(command).await.map_err(|_| gone())
    }
}

fn gone() -> AskError {
    AskError::Down("the volume is being taken away".to_owned())
}
