//! The task of one volume: keeps its ublk-target running, polls its status, and sends it requests.
//!
//! ```text
//!            +-----------------------------------------------------------+
//!            v                                                           |
//!   connect to the socket --nobody--> old process gone? --> start `serve`, wait until it answers
//!            |                                                           |
//!            +--> connected: status at intervals, requests --lost--------+  (with back-off)
//!                     |
//!                  Stop answered, process gone: end
//! ```
//!
//! Each volume has one task, which owns the connection and the process; everybody else holds a
//! [`VolumeHandle`]. There are never two processes: a new one is
//! started only when the old one is gone (its pidfd says so), and as a second safeguard ublk-target
//! has a lock of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use migration_proto::target::{EXIT_MAP_DAMAGED, EXIT_OTHER_VOLUME, Refusal, Request, Response};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::backoff::Backoff;
use super::held::HeldLuns;
use super::link::{ConnectError, TargetLink};
use super::process::{ProcessEnd, Setup, last_log_line, spawn_serve};
use crate::daemon::event::Event;
use crate::daemon::failure;
use crate::daemon::folders::identity;
use crate::daemon::handle::{AskError, Command, POLL_IDLE, View, VolumeHandle};

/// How long ublk-target may take to answer a status request.
const STATUS_MAX: Duration = Duration::from_secs(10);
/// The interval between attempts to connect to a starting ublk-target.
const CONNECT_EVERY: Duration = Duration::from_millis(20);
/// A ublk-target that has not answered for this long after its start is reported; shuntd still
/// waits for it.
const START_REPORTED_AFTER: Duration = Duration::from_secs(10);
/// How long shuntd waits for the end of a process that does not listen before it tries to connect
/// again.
const SILENT_RETRY: Duration = Duration::from_secs(1);
/// How long a stopped ublk-target may take to end.
const STOP_MAX: Duration = Duration::from_secs(60);

/// How a connection ended.
enum End {
    /// The connection is lost.
    Lost(String),
    /// The volume needs no supervision any more.
    Over,
}

/// How a process that was started ended before it served.
enum Ended {
    /// It cannot use the map file.
    MapDamaged,
    /// The map file is that of another volume.
    OtherVolume,
    /// In any other way.
    Otherwise(String),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MapDamaged => f.write_str("a damaged map file"),
            Self::OtherVolume => f.write_str("the map file of another volume"),
            Self::Otherwise(how) => f.write_str(how),
        }
    }
}

/// Begins to supervise a volume.
pub(crate) fn supervise(setup: Setup, events: mpsc::Sender<Event>) -> VolumeHandle {
    let (handle, received, publish) = VolumeHandle::new(setup.name.clone());
    let supervisor = Supervisor::new(setup, publish, events);
    tokio::spawn(supervisor.run(received));
    handle
}

/// Owns a volume's connection and process.
pub(crate) struct Supervisor {
    setup: Setup,
    view: watch::Sender<View>,
    events: mpsc::Sender<Event>,
    /// The handle of the process of this volume that was connected last, to wait for its end or to
    /// kill it.
    process: Option<ProcessEnd>,
    /// Device and inode number of the folder with the map file when the supervision began, if it
    /// existed.
    folder: Option<(u64, u64)>,
    /// Whether the connected process serves another volume.
    is_foreign: bool,
    /// The process, if this shuntd started it.
    child: Option<Child>,
    /// When ublk-target last gave a useful answer, was started, or was killed for its silence.
    answered: Instant,
    poll_every: Duration,
    /// The claims of the process that was connected last.
    held: HeldLuns,
}

impl Supervisor {
    pub(crate) fn new(
        setup: Setup,
        view: watch::Sender<View>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            folder: setup.map.parent().and_then(|folder| identity(folder).ok()),
            setup,
            view,
            events,
            process: None,
            is_foreign: false,
            child: None,
            answered: Instant::now(),
            poll_every: POLL_IDLE,
            held: HeldLuns::default(),
        }
    }

    /// Runs until the volume is stopped or abandoned, or no handle is left.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut backoff = Backoff::new();
        loop {
            let mut poll_every = self.poll_every;
            let view = self.view.subscribe();
            let link = tokio::select! {
                link = self.come_up(&mut backoff) => Ok(link),
                asked = refuse_while_down(&mut commands, &view, &mut poll_every) => Err(asked),
            };
            self.poll_every = poll_every;
            let link = match link {
                Ok(link) => link,
                Err(abandoned) => return self.give_up(abandoned).await,
            };
            let since = Instant::now();
            match self.live(link, &mut commands).await {
                End::Over => return,
                End::Lost(problem) => {
                    warn!(
                        volume = self.setup.name,
                        problem, "the connection to ublk-target is lost"
                    );
                    backoff.lived(since.elapsed());
                    self.disconnected(problem).await;
                    self.end_silent();
                }
            }
        }
    }

    /// Retries until there is a connection.
    async fn come_up(&mut self, backoff: &mut Backoff) -> TargetLink {
        loop {
            sleep(backoff.delay).await;
            match self.establish().await {
                Ok(link) => return link,
                Err(problem) => {
                    warn!(
                        volume = self.setup.name,
                        problem, "ublk-target could not be started, trying again"
                    );
                    backoff.failed();
                    self.publish(|view| {
                        view.failures = view.failures.saturating_add(1);
                        view.problem = Some(problem);
                    })
                    .await;
                }
            }
        }
    }

    /// Connects to the running process, or starts one.
    async fn establish(&mut self) -> Result<TargetLink, String> {
        loop {
            match TargetLink::connect(&self.setup.socket, &self.setup.volume_id).await {
                Ok(link) => return Ok(link),
                Err(ConnectError::Strange(problem)) => return Err(problem),
                Err(ConnectError::Silent { pid, problem }) => {
                    self.process = ProcessEnd::of(pid).ok().flatten();
                    self.end_silent();
                    return Err(problem);
                }
                Err(ConnectError::Nobody(_)) => {}
            }
            let Some(process) = &self.process else {
                return self.start().await;
            };
            if timeout(SILENT_RETRY, process.wait()).await.is_ok() {
                self.process = None;
            } else {
                let problem = "its ublk-target runs, but does not listen".to_owned();
                self.publish(|view| view.problem = Some(problem)).await;
                self.end_silent();
            }
        }
    }

    /// Kills a ublk-target that has served but gives no useful answer any more: it holds the
    /// device, so no other process can take over while it lives. Nothing is lost, as with any other
    /// death of it.
    fn end_silent(&mut self) {
        let silent = self.answered.elapsed();
        let Some(process) = self
            .process
            .as_ref()
            .filter(|_| silent >= self.setup.silent_max)
        else {
            return;
        };
        self.answered = Instant::now();
        warn!(
            volume = self.setup.name,
            seconds = silent.as_secs(),
            "ublk-target gives no useful answer, and is ended (SIGKILL)"
        );
        if let Err(error) = process.kill() {
            warn!(volume = self.setup.name, %error, "ublk-target cannot be ended");
        }
    }

    async fn start(&mut self) -> Result<TargetLink, String> {
        let Setup {
            program,
            map,
            socket,
            volume_id,
            log,
            ..
        } = self.setup.clone();
        self.require_same_folder()?;
        if !map.exists() {
            return Err(format!(
                "the map file {} is missing: put it back, or {}",
                map.display(),
                failure::recover_command(&self.setup.name)
            ));
        }
        self.know_disks().await;
        let log_offset = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let child = spawn_serve(&self.setup, &self.held)
            .map_err(|error| format!("cannot run {}: {error}", program.display()))?;
        let again = !std::mem::replace(&mut self.setup.new, false);
        info!(
            volume = self.setup.name,
            pid = child.id(),
            again,
            "ublk-target started"
        );
        self.child = Some(child);
        self.publish(|view| view.restarts += u64::from(again)).await;
        let started = Instant::now();
        let mut reported = false;
        loop {
            match TargetLink::connect(&socket, &volume_id).await {
                Ok(link) => {
                    self.answered = Instant::now();
                    return Ok(link);
                }
                Err(ConnectError::Strange(problem) | ConnectError::Silent { problem, .. }) => {
                    return Err(problem);
                }
                Err(ConnectError::Nobody(_)) => {}
            }
            if let Some(ended) = self.child_ended_within(CONNECT_EVERY).await {
                let said = last_log_line(&log, log_offset).unwrap_or_else(|| {
                    format!(
                        "ublk-target ended with {ended}, its log {} says nothing",
                        log.display()
                    )
                });
                return Err(match ended {
                    Ended::MapDamaged => format!(
                        "{said}; put a whole one back, or {}",
                        failure::recover_command(&self.setup.name)
                    ),
                    Ended::OtherVolume => {
                        format!("{said}; {}", failure::other_volume_next(&self.setup.name))
                    }
                    Ended::Otherwise(_) => said,
                });
            }
            if !reported && started.elapsed() >= START_REPORTED_AFTER {
                reported = true;
                let problem = format!(
                    "ublk-target was started {} s ago and does not answer yet",
                    started.elapsed().as_secs()
                );
                warn!(volume = self.setup.name, problem);
                self.publish(|view| view.problem = Some(problem)).await;
            }
        }
    }

    /// Refuses if the folder of the map file was replaced: a map file in another folder can be an
    /// older copy, with wrong roles and regions.
    fn require_same_folder(&self) -> Result<(), String> {
        let folder = self.setup.map.parent().unwrap_or(&self.setup.map);
        match (self.folder, identity(folder)) {
            (Some(before), Ok(now)) if before != now => Err(format!(
                "the folder {} is not the original one (replaced, or hidden by a mount), and a map file in it may be \
                 old: put the first one back; if this one is right, start shuntd again",
                folder.display()
            )),
            // Without the folder the map file is missing, which is reported elsewhere.
            (_, Ok(_) | Err(_)) => Ok(()),
        }
    }

    /// Gives ublk-target the disks of LUNs with a weak identity, before it opens any LUN.
    async fn know_disks(&self) {
        let (reply, known) = oneshot::channel();
        let volume = self.setup.name.clone();
        let _ = self.events.send(Event::KnowDisks { volume, reply }).await;
        // Without an answer shuntd is ending, and ublk-target refuses disks that it does not know.
        let _ = known.await;
    }

    async fn child_ended_within(&mut self, limit: Duration) -> Option<Ended> {
        let Some(child) = &mut self.child else {
            return Some(Ended::Otherwise("no process".to_owned()));
        };
        match timeout(limit, child.wait()).await {
            Ok(Ok(status)) if status.code() == Some(EXIT_MAP_DAMAGED.into()) => {
                Some(Ended::MapDamaged)
            }
            Ok(Ok(status)) if status.code() == Some(EXIT_OTHER_VOLUME.into()) => {
                Some(Ended::OtherVolume)
            }
            Ok(Ok(status)) => Some(Ended::Otherwise(status.to_string())),
            Ok(Err(error)) => Some(Ended::Otherwise(error.to_string())),
            Err(_) => None,
        }
    }

    /// Serves requests and polls over a connection until the connection ends.
    async fn live(&mut self, link: TargetLink, commands: &mut mpsc::Receiver<Command>) -> End {
        let pid = link.pid;
        match ProcessEnd::of(pid) {
            Ok(Some(process)) => {
                let end = self.serve(link, &process, commands).await;
                // The process of another volume is neither killed nor waited for.
                self.process = (!std::mem::take(&mut self.is_foreign)).then_some(process);
                end
            }
            Ok(None) => End::Lost(format!("ublk-target (pid {pid}) has ended")),
            Err(error) => End::Lost(format!(
                "ublk-target (pid {pid}) cannot be watched: {error}"
            )),
        }
    }

    async fn serve(
        &mut self,
        mut link: TargetLink,
        process: &ProcessEnd,
        commands: &mut mpsc::Receiver<Command>,
    ) -> End {
        let mut poll = ticker(self.poll_every);
        loop {
            let step = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => Step::Command(command),
                    None => return End::Over,
                },
                () = process.wait() => Step::Lost(format!("ublk-target (pid {}) has ended", link.pid)),
                () = link.ended() => Step::Lost(format!("ublk-target (pid {}) closed the connection", link.pid)),
                _ = poll.tick() => Step::Poll,
            };
            let result = match step {
                Step::Lost(problem) => Err(problem),
                Step::Poll => self.refresh(&mut link).await,
                Step::Command(Command::PollEvery(every)) => {
                    self.poll_every = every;
                    poll = ticker(every);
                    Ok(())
                }
                // The client waits no longer.
                Step::Command(Command::Refresh { reply }) if reply.is_closed() => Ok(()),
                Step::Command(Command::Refresh { reply }) => {
                    let refreshed = self.refresh(&mut link).await;
                    let _ = reply.send(());
                    refreshed
                }
                Step::Command(Command::Ask {
                    request,
                    limit,
                    reply,
                }) => self.ask(&mut link, &request, limit, reply).await,
                Step::Command(Command::Stop { reply }) => match self.stop(&mut link, process).await
                {
                    Ok(()) => {
                        let _ = reply.send(Ok(()));
                        return End::Over;
                    }
                    Err(error) => {
                        let _ = reply.send(Err(error.clone()));
                        match error {
                            AskError::Refused(_) => Ok(()),
                            AskError::Down(problem) | AskError::Lost(problem) => Err(problem),
                        }
                    }
                },
                Step::Command(Command::Abandon { reply }) => {
                    self.give_up(Some(reply)).await;
                    return End::Over;
                }
            };
            if let Err(problem) = result {
                return End::Lost(problem);
            }
        }
    }

    async fn ask(
        &mut self,
        link: &mut TargetLink,
        request: &Request,
        limit: Duration,
        reply: oneshot::Sender<Result<Response, AskError>>,
    ) -> Result<(), String> {
        if opens_luns(request) {
            self.know_disks().await;
        }
        if matches!(request, Request::RetryMirror { .. }) {
            // ublk-target may have to open LUNs again whose device has changed.
            self.held.let_go().await;
        }
        match link.ask(request, limit).await {
            Ok(response) => {
                // The view is updated before the answer is sent; a loss right after that is handled
                // by the caller of this function.
                let refreshed = self.refresh(link).await;
                if let Err(problem) = &refreshed {
                    self.disconnected(problem.clone()).await;
                }
                let _ = reply.send(Ok(response));
                refreshed
            }
            Err(problem) => {
                // A request may take long: only a status request without an answer counts as
                // silence.
                self.answered = Instant::now();
                self.disconnected(problem.clone()).await;
                let _ = reply.send(Err(AskError::Lost(problem.clone())));
                Err(problem)
            }
        }
    }

    async fn stop(&mut self, link: &mut TargetLink, process: &ProcessEnd) -> Result<(), AskError> {
        match link.ask(&Request::Stop, STOP_MAX).await {
            Ok(Response::Done) => match timeout(STOP_MAX, process.wait()).await {
                Ok(()) => {
                    self.held.let_go().await;
                    Ok(())
                }
                Err(_) => Err(AskError::Lost(format!(
                    "ublk-target (pid {}) has not ended {} s after it was stopped",
                    link.pid,
                    STOP_MAX.as_secs()
                ))),
            },
            Ok(Response::Refused {
                reason: Refusal::Ending,
                cause,
            }) => Err(AskError::Lost(cause)),
            Ok(Response::Refused { cause, .. }) => Err(AskError::Refused(cause)),
            Ok(other) => Err(AskError::Lost(format!(
                "ublk-target answers a stop with {other:?}"
            ))),
            Err(problem) => {
                self.answered = Instant::now();
                self.disconnected(problem.clone()).await;
                Err(AskError::Lost(problem))
            }
        }
    }

    /// Requests the status and publishes it.
    async fn refresh(&mut self, link: &mut TargetLink) -> Result<(), String> {
        let answer = link.ask(&Request::Status, STATUS_MAX).await;
        if link.is_strange {
            // It is not silent: it must not be ended because this program is older.
            self.answered = Instant::now();
        }
        let status = match answer? {
            Response::Status(status) => status,
            Response::Refused { cause, .. } => {
                return Err(format!("ublk-target does not report its status: {cause}"));
            }
            other => {
                return Err(format!(
                    "ublk-target answers a question for its status with {other:?}"
                ));
            }
        };
        if status.volume_id != self.setup.volume_id {
            self.is_foreign = true;
            return Err(format!(
                "the ublk-target (pid {}) on its socket serves another volume, {}; {}",
                link.pid,
                status.volume,
                failure::other_volume_next(&self.setup.name)
            ));
        }
        self.held.follow(&status).await;
        self.answered = Instant::now();
        self.publish(|view| {
            view.connections += u64::from(!view.connected);
            view.connected = true;
            view.failures = 0;
            view.problem = None;
            view.status = Some(Arc::new(*status));
        })
        .await;
        Ok(())
    }

    async fn disconnected(&self, problem: String) {
        self.publish(|view| {
            view.connected = false;
            view.problem = Some(problem);
        })
        .await;
    }

    async fn publish(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(change);
        // The owner is gone only when shuntd ends.
        let _ = self
            .events
            .send(Event::Volume(self.setup.name.clone()))
            .await;
    }

    /// Ends the supervision. If the volume is abandoned, kills the process that this shuntd
    /// started.
    async fn give_up(&mut self, abandoned: Option<oneshot::Sender<()>>) {
        let Some(reply) = abandoned else {
            return;
        };
        if let Some(mut child) = self.child.take() {
            // An error means that the process has ended already.
            let _ = child.start_kill();
            let _ = timeout(STOP_MAX, child.wait()).await;
        }
        self.held.let_go().await;
        let _ = reply.send(());
    }
}

/// Whether ublk-target may open LUNs for a request.
const fn opens_luns(request: &Request) -> bool {
    match request {
        // A change of the route mirrors onto a split target again.
        Request::AddMirror { .. } | Request::RetryMirror { .. } | Request::SetRoute { .. } => true,
        Request::Status
        | Request::Suspend { .. }
        | Request::Resume
        | Request::SetOnAuthoritativeFailure { .. }
        | Request::SetCopyMode { .. }
        | Request::SetThrottle { .. }
        | Request::OpenCopier
        | Request::Claim { .. }
        | Request::Report { .. }
        | Request::Watch { .. }
        | Request::Compared { .. }
        | Request::Stop => false,
    }
}

enum Step {
    Command(Command),
    Poll,
    Lost(String),
}

fn ticker(every: Duration) -> tokio::time::Interval {
    let mut ticker = interval(every);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// Answers commands while there is no connection. Returns when the volume is abandoned, or no
/// handle is left.
async fn refuse_while_down(
    commands: &mut mpsc::Receiver<Command>,
    view: &watch::Receiver<View>,
    poll_every: &mut Duration,
) -> Option<oneshot::Sender<()>> {
    loop {
        let problem = || {
            view.borrow()
                .problem
                .clone()
                .unwrap_or_else(|| "it is being started".to_owned())
        };
        match commands.recv().await? {
            Command::Ask { reply, .. } => {
                let _ = reply.send(Err(AskError::Down(problem())));
            }
            Command::Stop { reply } => {
                let _ = reply.send(Err(AskError::Down(problem())));
            }
            Command::PollEvery(every) => *poll_every = every,
            Command::Refresh { reply } => {
                let _ = reply.send(());
            }
            Command::Abandon { reply } => return Some(reply),
        }
    }
}
