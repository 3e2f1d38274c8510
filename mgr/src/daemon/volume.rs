//! The way to one volume: what is known of it, and what can be asked of it. The task at the other end is in `supervisor`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use migration_proto::target::{Request, Response, Status};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::Event;
use super::supervisor::Supervisor;

/// How often a volume is asked how it is.
pub(super) const POLL_IDLE: Duration = Duration::from_secs(1);
/// The same while it is being copied.
pub(super) const POLL_COPYING: Duration = Duration::from_millis(250);
/// How long a volume may take to answer and to end a change of its route.
const CHANGE_MAX: Duration = Duration::from_secs(90);
/// How long who asks for what is known waits for what is so now: a volume that hangs is shown as it was last.
const REFRESH_MAX: Duration = Duration::from_millis(500);
/// The most requests that wait for one volume.
const COMMANDS_MAX: usize = 32;

/// What is known of a volume.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct View {
    /// Whether its ublk-target answers.
    pub(super) connected: bool,
    /// What it said last, also while it does not answer.
    pub(super) status: Option<Arc<Status>>,
    /// One more at every connection.
    pub(super) connections: u64,
    /// How often it was started again.
    pub(super) restarts: u64,
    /// How often it could not be started since it last answered.
    pub(super) failures: u32,
    /// Why it does not answer.
    pub(super) problem: Option<String>,
}

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    /// Nothing was sent: there is no connection.
    #[error("its ublk-target does not answer: {0}")]
    Down(String),
    /// The connection ended: whether it was done is unknown.
    #[error("{0}")]
    Lost(String),
    /// Refused.
    #[error("{0}")]
    Refused(String),
}

/// What the task is told.
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

/// What a volume is made of.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) name: String,
    pub(super) volume_id: String,
    pub(super) program: PathBuf,
    pub(super) map: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) log: PathBuf,
    /// How long its ublk-target may give no useful answer before it is ended.
    pub(super) silent_max: Duration,
    /// It has never been served: starting it is not starting it again.
    pub(super) new: bool,
}

/// The way to a volume. When the last one is dropped the task ends, and ublk-target goes on.
#[derive(Debug, Clone)]
pub(super) struct VolumeHandle {
    pub(super) name: String,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
}

/// Begins to supervise a volume.
pub(super) fn supervise(setup: Setup, events: mpsc::Sender<Event>) -> VolumeHandle {
    let (commands, received) = mpsc::channel(COMMANDS_MAX);
    let (publish, view) = watch::channel(View::default());
    let handle = VolumeHandle {
        name: setup.name.clone(),
        commands,
        view,
    };
    let supervisor = Supervisor::new(setup, publish, events);
    tokio::spawn(supervisor.run(received));
    handle
}

impl VolumeHandle {
    /// What is known now.
    pub(super) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Waits until the view fulfils the condition.
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

    /// Waits until it answers, and returns what it said last.
    pub(super) async fn status(&self, limit: Duration) -> Result<Arc<Status>, AskError> {
        let view = self.wait_for(limit, |view| view.connected).await?;
        view.status
            .ok_or_else(|| AskError::Down("it has not said how it is".to_owned()))
    }

    /// Waits until it answers and no change of its route is under way.
    pub(super) async fn while_not_changing(&self) -> Result<View, AskError> {
        let settled = |view: &View| {
            let status = view.status.as_ref();
            view.connected && status.is_some_and(|status| !status.changing)
        };
        self.wait_for(CHANGE_MAX, settled).await
    }

    /// Asks; the answer comes after the view has been brought up to date.
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

    /// Stops the device, and waits until the process is gone. The handle is of no more use after that.
    pub(super) async fn stop(&self) -> Result<(), AskError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Stop { reply }).await?;
        answer.await.map_err(|_| gone())?
    }

    /// Gives up a volume that did not come up: kills the process that was started for it.
    pub(super) async fn abandon(&self) {
        let (reply, answer) = oneshot::channel();
        if self.send(Command::Abandon { reply }).await.is_ok() {
            // It has ended by itself: just as well.
            let _ = answer.await;
        }
    }

    /// Brings the view up to date, if the volume answers soon.
    pub(super) async fn refresh(&self) {
        let (reply, answer) = oneshot::channel();
        let refreshed = async {
            if self.send(Command::Refresh { reply }).await.is_ok() {
                // It is being taken away: the view stays as it is.
                let _ = answer.await;
            }
        };
        // Late: the view stays as it is.
        let _ = timeout(REFRESH_MAX, refreshed).await;
    }

    /// Asks for the status at this interval, the next time at once.
    pub(super) fn poll_every(&self, every: Duration) {
        // A full queue has requests in it, and each of them is followed by a status.
        let _ = self.commands.try_send(Command::PollEvery(every));
    }

    async fn send(&self, command: Command) -> Result<(), AskError> {
        self.commands.send(command).await.map_err(|_| gone())
    }
}

fn gone() -> AskError {
    AskError::Down("the volume is being taken away".to_owned())
}
