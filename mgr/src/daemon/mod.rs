//! `shuntd`: one task owns all state. It waits, names the event, applies it, and starts what
//! follows.
//!
//! ```text
//!  shunt --socket--> requests --+                        +--> operations (attach, switch): tasks
//!                               v                        |      record, ask ublk-target, record
//!  volumes (one task each) -> events --> Owner --starts--+--> copiers: threads
//!  copiers, operations ------> events --^                +--> answers
//! ```
//!
//! | file | purpose |
//! |---|---|
//! | `mod` | start, the loop, the end |
//! | `requests`, `deferred` | handles a request, or defers it |
//! | `reconcile` | reacts to the report of a volume: settling, copiers, stable names |
//! | `attach`, `create`, `operation` | the operations |
//! | `plan`, `pace` | estimates a session before it is created; measures the speed of a LUN |
//! | `verify` | comparing the legs, and the verbs that a comparison forbids |
//! | `queue`, `set` | how many pairs are copied at once; limits that can be changed live |
//! | `schedule`, `hours` | sessions that are switched, started, stopped and paused automatically |
//! | `cutover` | the switch of sessions that track |
//! | `come_back` | recovery of targets that stalled |
//! | `split`, `sealed` | sessions of copies; whether a split target is as it was |
//! | `retire` | the legs that an ended session has left behind |
//! | `feed` | the stream of events |
//! | `truth` | compares the map files with the database |
//! | `rebuild` | makes a new database when the old one is damaged or missing |
//! | `recover` | makes a new map file when the old one is damaged or missing |
//! | `locks` | locks whose holder is gone |
//! | `route_change` | changes a route, whichever process dies meanwhile |
//! | `volume`, `supervisor`, `link`, `process` | keeps one ublk-target running, talks to it |
//! | `held` | the claims on LUNs while a ublk-target is replaced |
//! | `checks`, `weak` | whether a LUN may become a leg; LUNs with a weak identity |
//! | `unreadable` | parts of a source that cannot be read |
//! | `standing` | volumes that stand on themselves |
//! | `twice` | warnings about programs that find a member on the volume and on its legs |
//! | `copies` | the running copiers |
//! | `gauge` | measures the I/O of applications and the progress of the copies |
//! | `records`, `failure` | what the operator reads |
//! | `partitions` | the partitions of a volume and their names |
//! | `folders` | creates, locks and watches the state folder and the socket folder |
//! | `clock` | a clock for durations, independent of changes of the wall clock |
//! | `socket`, `paths`, `context` | the control socket, paths, what operations need |
//!
//! Invariants:
//! 1. The [`Model`] is what the database holds: it changes when a change is durable
//!    ([`Event::Changed`]).
//! 2. At most one operation works on a session and on a volume at a time (`busy`).
//! 3. There is at most one copier for a pair, and none while an operation works on its session,
//!    except during a cutover.
//! 4. A start gives places to at most as many pairs as may be copied at once; no more copiers than
//!    that run.
//! 5. The loop never waits for a disk, a process or a device.

#[path = "volumes/attach.rs"]
mod attach;
#[path = "luns/checks.rs"]
mod checks;
mod clock;
#[path = "copies/come_back.rs"]
mod come_back;
mod context;
#[path = "copies/copiers.rs"]
mod copies;
#[path = "sessions/create.rs"]
mod create;
#[path = "sessions/cutover.rs"]
mod cutover;
#[path = "api/deferred.rs"]
mod deferred;
mod failure;
#[path = "api/feed.rs"]
mod feed;
mod folders;
#[path = "copies/gauge.rs"]
mod gauge;
#[path = "volumes/held.rs"]
mod held;
#[path = "sessions/hours.rs"]
mod hours;
#[path = "volumes/link.rs"]
mod link;
#[path = "repair/locks.rs"]
mod locks;
#[path = "sessions/operation/mod.rs"]
mod operation;
#[path = "luns/pace.rs"]
mod pace;
#[path = "volumes/partitions.rs"]
mod partitions;
mod paths;
#[path = "sessions/plan.rs"]
mod plan;
#[path = "volumes/process.rs"]
mod process;
#[path = "sessions/queue.rs"]
mod queue;
#[path = "repair/rebuild.rs"]
mod rebuild;
#[path = "owner/reconcile.rs"]
mod reconcile;
#[path = "api/records.rs"]
mod records;
#[path = "repair/recover.rs"]
mod recover;
#[path = "owner/requests.rs"]
mod requests;
#[path = "sessions/retire.rs"]
mod retire;
#[path = "volumes/route_change.rs"]
mod route_change;
#[path = "sessions/schedule.rs"]
mod schedule;
#[path = "luns/sealed.rs"]
mod sealed;
#[path = "sessions/set.rs"]
mod set;
#[path = "api/socket.rs"]
mod socket;
#[path = "sessions/split.rs"]
mod split;
#[path = "luns/standing.rs"]
mod standing;
#[path = "volumes/supervisor.rs"]
mod supervisor;
#[path = "volumes/truth.rs"]
mod truth;
#[path = "luns/twice.rs"]
mod twice;
#[path = "luns/unreadable.rs"]
mod unreadable;
#[path = "sessions/verify.rs"]
mod verify;
#[path = "handle.rs"]
mod volume;
#[path = "luns/weak.rs"]
mod weak;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use copier::Outcome;
use migration_core::route::Side;
use migration_proto::manager::{Failure, FailureKind, Response};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tracing::{info, warn};

use crate::store::{Change, Model, PairField, PairKey, StoreError, StoreHandle, VolumeState};
use come_back::StallRecoveries;
use context::{Context, blocking};
use copies::Copies;
use cutover::Cutovers;
use deferred::Deferred;
use failure::Answer;
use feed::Feed;
use folders::Folders;
use gauge::Gauges;
pub use paths::{Config, HostChecks};
use schedule::Attempts;
use socket::Call;
use verify::Comparison;
use volume::VolumeHandle;

/// How long shuntd waits at its end for copiers whose I/O is in flight.
const COPIERS_END_MAX: Duration = Duration::from_secs(20);
/// Maximum number of events that wait for the owner.
const EVENTS_MAX: usize = 256;
/// Maximum number of requests that wait for the owner.
const REQUESTS_MAX: usize = 64;
/// How long requests wait after the start of shuntd until every volume has reported.
const READY_MAX: Duration = Duration::from_secs(5);
/// How long operations may take to end when shuntd ends.
const ENDING_MAX: Duration = Duration::from_secs(10);

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
        failure::store_remedy(source)
    )]
    Store {
        /// The database.
        path: PathBuf,
        /// The cause.
        source: StoreError,
    },
}

/// An event that the owner applies.
#[derive(Debug)]
enum Event {
    /// A volume's view has changed.
    Volume(String),
    /// The ublk-target of a volume is about to open LUNs: let it know the disks of LUNs with a weak
    /// identity, then reply.
    KnowDisks {
        volume: String,
        reply: oneshot::Sender<()>,
    },
    /// These changes are durable.
    Changed(Vec<Change>),
    /// A new volume has come up.
    Supervised(VolumeHandle),
    /// A volume is gone.
    Unsupervised(String),
    /// The volumes of a status query have reported, or have not answered in time.
    Refreshed {
        session: Option<String>,
        /// Whether the answer is the beginning of an event stream.
        events: bool,
        reply: oneshot::Sender<Response>,
    },
    /// The result of a comparison of a pair's legs is recorded, or could not be recorded.
    ComparisonSettled(PairKey),
    /// It is time to check whether a volume stands on itself.
    CheckStanding,
    /// The volumes that stand on themselves, each with a description of the problem. An error: the
    /// check failed.
    Standing(Result<BTreeMap<String, String>, String>),
    /// The problems of the state folder and the socket folder have changed.
    Folders(Vec<String>),
    /// A leg that was left behind is held open from now on; without LUNs, no longer.
    Held { key: PairKey, luns: Vec<lun::Lun> },
    /// The operation of a cutover has exchanged the roles, or has failed.
    CutOver { session: String, failed: bool },
    /// A copier has ended.
    CopierEnded {
        key: PairKey,
        run: u64,
        outcome: Outcome,
    },
    /// The probe or the retry of a stalled target has ended; `well` if it succeeded.
    CameBack { key: PairKey, well: bool },
    /// An operation has ended.
    Finished {
        busy: Vec<Busy>,
        answer: Answer,
        reply: Option<oneshot::Sender<Response>>,
    },
}

/// What an operation works on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Busy {
    Volume(String),
    Session(String),
}

/// Runs shuntd until `shutdown` is done. Then copiers are stopped, and every ublk-target continues
/// to run.
///
/// # Errors
/// [`StartError`]; no volume is supervised and no request is accepted then.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
    if config.host_checks.root && !nix::unistd::geteuid().is_root() {
        return Err(StartError::NotRoot);
    }
    let folders = Folders::prepare(&config)?;
    clock::begin(&config.runtime_directory);
    let (store, model) = rebuild::open(&config).await?;
    let store = StoreHandle::start(store).map_err(|source| StartError::Io {
        what: "start a thread for",
        path: config.database(),
        source,
    })?;
    let control = config.control_socket();
    let listener = socket::bind(&control).map_err(|source| StartError::Io {
        what: "listen on",
        path: control.clone(),
        source,
    })?;
    info!(state = %config.state_directory.display(), socket = %control.display(), "shuntd is up");

    let (events_in, events) = mpsc::channel(EVENTS_MAX);
    let (calls_in, calls) = mpsc::channel(REQUESTS_MAX);
    let admission = socket::Admission {
        root_only: config.host_checks.root,
    };
    let keeping = tokio::spawn(folders::keep(
        folders,
        config.clone(),
        listener,
        (calls_in, admission),
        events_in.clone(),
    ));
    let context = Context {
        config: Arc::new(config.clone()),
        store: store.clone(),
        events: events_in,
        who: None,
    };
    if config.host_checks.ublk && !model.volumes.is_empty() {
        // After a reboot the module may not be loaded yet.
        if let Err(problem) = attach::require_ublk().await {
            warn!(problem, "volumes cannot come up");
        }
    }
    let mut owner = Owner::new(context, model);
    owner.bring_up();
    let events = owner.work(events, calls, shutdown).await;
    owner.end(events).await;
    // SQLite removes its log by name when it closes. Close it before the folder's lock is released:
    // after that the log can be that of another shuntd.
    store.close().await;
    // The next start removes the socket too. Remove it before the folder's lock is released: after
    // that it can be the socket of another shuntd.
    let _ = std::fs::remove_file(&control);
    keeping.abort();
    info!("shuntd has ended; the volumes continue to run");
    Ok(())
}

/// The owner of all state.
struct Owner {
    context: Context,
    model: Model,
    handles: BTreeMap<String, VolumeHandle>,
    copies: Copies,
    busy: BTreeMap<Busy, &'static str>,
    /// The automatic operations, and the requests that wait for them.
    deferred: Deferred,
    /// The volumes that have not reported since the start of shuntd.
    silent: BTreeSet<String>,
    /// For each volume, the claim on its legs whose doubt is in the history.
    doubted: BTreeMap<String, u64>,
    /// For each volume whose stable name does not lead to its device, the reason.
    unnamed: BTreeMap<String, String>,
    /// The problems of the state folder and the socket folder.
    problems: Vec<String>,
    /// The volumes that are polled at the short interval.
    watched: BTreeSet<String>,
    /// The pairs whose legs are to be compared.
    to_compare: BTreeMap<PairKey, Comparison>,
    /// The pairs that an operation is about to start: their places are reserved.
    starting: BTreeSet<PairKey>,
    /// The automatic starts, switches and splits that were attempted, with their back-off.
    attempts: Attempts,
    /// The recovery of targets that stalled.
    come_backs: StallRecoveries,
    /// The cutovers of sessions that track.
    cutovers: Cutovers,
    /// For each volume, the lines that the history has got since the start of shuntd about LUNs
    /// that have grown or are found under a different name.
    noted_luns: BTreeMap<String, BTreeSet<String>>,
    /// For each volume, the connection in which its partitions were last searched.
    partitioned: BTreeMap<String, u64>,
    /// The legs that are kept open.
    held: retire::HeldLuns,
    /// The measurements of application I/O.
    gauges: Gauges,
    /// The stream of events.
    feed: Feed,
    /// The states that were published last.
    states: BTreeMap<feed::Watched, &'static str>,
    /// The volumes that stand on themselves, each with a description of the problem.
    standing: BTreeMap<String, String>,
}

impl Owner {
    fn new(context: Context, model: Model) -> Self {
        let copies = Copies::new(context.events.clone());
        Self {
            context,
            model,
            handles: BTreeMap::new(),
            copies,
            busy: BTreeMap::new(),
            deferred: Deferred::default(),
            silent: BTreeSet::new(),
            doubted: BTreeMap::new(),
            unnamed: BTreeMap::new(),
            problems: Vec::new(),
            watched: BTreeSet::new(),
            to_compare: BTreeMap::new(),
            starting: BTreeSet::new(),
            attempts: Attempts::default(),
            come_backs: StallRecoveries::new(),
            cutovers: Cutovers::new(),
            noted_luns: BTreeMap::new(),
            partitioned: BTreeMap::new(),
            held: retire::HeldLuns::default(),
            gauges: Gauges::default(),
            feed: Feed::new(),
            states: BTreeMap::new(),
            standing: BTreeMap::new(),
        }
    }

    /// Begins to supervise the recorded volumes.
    fn bring_up(&mut self) {
        for row in self.model.volumes.values() {
            let begun = self.context.config.map(&row.name).exists();
            if row.state == VolumeState::Attached || begun {
                let handle = volume::supervise(
                    attach::setup(&self.context, row),
                    self.context.events.clone(),
                );
                self.handles.insert(row.name.clone(), handle);
                self.silent.insert(row.name.clone());
            }
        }
        self.forget_unfinished_volumes();
        self.retire_again();
        self.seal_again();
        self.check_standing();
    }

    async fn work(
        &mut self,
        mut events: mpsc::Receiver<Event>,
        mut calls: mpsc::Receiver<Call>,
        shutdown: impl Future<Output = ()>,
    ) -> mpsc::Receiver<Event> {
        let mut shutdown = std::pin::pin!(shutdown);
        let ready_at = tokio::time::Instant::now() + READY_MAX;
        loop {
            let waiting = !self.silent.is_empty();
            let deferred_until = self.deferred.until();
            tokio::select! {
                biased;
                () = &mut shutdown => return events,
                Some(event) = events.recv() => self.apply(event),
                () = sleep_until(ready_at), if waiting => self.silent.clear(),
                () = sleep_until(deferred_until.unwrap_or_else(Instant::now).into()), if deferred_until.is_some() => {
                    self.answer_deferred();
                }
                Some(call) = calls.recv(), if !waiting => self.take(call),
                else => return events,
            }
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Volume(name) => self.volume_reported(&name),
            Event::KnowDisks { volume, reply } => self.know_disks(&volume, reply),
            Event::Changed(changes) => {
                for change in changes {
                    self.changed(change);
                }
            }
            Event::Supervised(handle) => {
                let name = handle.name.clone();
                self.handles.insert(name.clone(), handle);
                self.volume_reported(&name);
            }
            Event::Unsupervised(name) => {
                self.handles.remove(&name);
                self.unnamed.remove(&name);
                self.noted_luns.remove(&name);
                self.partitioned.remove(&name);
                self.watched.remove(&name);
            }
            Event::CheckStanding => self.check_standing(),
            Event::Standing(found) => self.standing_checked(found),
            Event::ComparisonSettled(key) => self.comparison_settled(&key),
            Event::Refreshed {
                session,
                events,
                reply,
            } => self.reply_with_status(session.as_deref(), events, reply),
            Event::Held { key, luns } => self.held(key, luns),
            Event::Folders(problems) => self.problems = problems,
            Event::CameBack { key, well } => self.came_back(&key, well),
            Event::CutOver { session, failed } => self.cut_over_ended(&session, failed),
            Event::CopierEnded { key, run, outcome } => self.copier_ended(&key, run, &outcome),
            Event::Finished {
                busy,
                answer,
                reply,
            } => self.finished(&busy, answer, reply),
        }
        self.fill_places();
        self.start_due_sessions();
        self.run_due_actions();
        self.keep_hours();
        self.pause_overdue_sessions();
        self.pace_cutovers();
        self.answer_deferred();
        self.tell_states();
    }

    fn changed(&mut self, change: Change) {
        if let Change::Note(note) = &change {
            self.on_note(note);
        }
        match &change {
            Change::SetPair(key, PairField::Phase(phase)) if phase.is_ended() => {
                self.gauges.forget(key);
                self.come_backs.forget(key);
            }
            Change::SetPair(key, PairField::Authoritative(Side::Target)) => {
                self.cutovers.forget_last(&key.session);
            }
            Change::AddSession(row) => self.cutovers.forget_last(&row.name),
            _ => {}
        }
        let limits_of = match &change {
            Change::SetOptions(session, _) => Some(session.clone()),
            _ => None,
        };
        self.model.apply(change);
        if let Some(session) = limits_of {
            self.copies.need_not_wait_of(&session);
            self.limits_changed(&session);
        }
    }

    fn finished(
        &mut self,
        busy: &[Busy],
        answer: Answer,
        reply: Option<oneshot::Sender<Response>>,
    ) {
        self.deferred.ended(busy);
        for busy in busy {
            self.busy.remove(busy);
            if let Busy::Session(name) = busy {
                self.starting.retain(|key| key.session != *name);
            }
        }
        if let Err(Failure {
            kind,
            object,
            cause,
            ..
        }) = &answer
        {
            match kind {
                FailureKind::Refused | FailureKind::NotFound => info!(object, cause, "refused"),
                FailureKind::Failed => warn!(object, cause, "failed"),
            }
        }
        match reply {
            // The client may have disconnected.
            Some(reply) => drop(reply.send(failure::response(answer))),
            None => drop(answer),
        }
        let volumes: Vec<String> = self.handles.keys().cloned().collect();
        for volume in volumes {
            self.volume_reported(&volume);
        }
    }

    /// Starts an operation that works on `busy`. The caller has checked that these objects are
    /// free.
    fn spawn_operation(
        &mut self,
        busy: Vec<Busy>,
        what: &'static str,
        reply: Option<oneshot::Sender<Response>>,
        operation: impl Future<Output = Answer> + Send + 'static,
    ) {
        for busy in &busy {
            self.busy.insert(busy.clone(), what);
        }
        if reply.is_none() {
            self.deferred.begun(&busy);
        }
        let events = self.context.events.clone();
        tokio::spawn(async move {
            // A panic must not leave its objects busy for ever.
            let answer = tokio::spawn(operation).await.unwrap_or_else(|error| {
                Err(failure::failed(
                    what,
                    format!("internal error: {error}"),
                    "see the log of shuntd and `shunt status`",
                ))
            });
            // The owner is gone only when shuntd ends.
            let _ = events
                .send(Event::Finished {
                    busy,
                    answer,
                    reply,
                })
                .await;
        });
    }

    /// Makes changes durable in the background.
    fn record_aside(&self, changes: Vec<Change>) {
        let context = self.context.clone();
        tokio::spawn(async move {
            if let Err(error) = context.commit(changes).await {
                warn!(%error, "a change could not be recorded");
            }
        });
    }

    /// Makes the result of a comparison durable in the background.
    fn record_comparison(&self, key: PairKey, changes: Vec<Change>) {
        let context = self.context.clone();
        tokio::spawn(async move {
            if let Err(error) = context.commit(changes).await {
                warn!(%error, "the result of a comparison could not be recorded");
            }
            context.notify(Event::ComparisonSettled(key)).await;
        });
    }

    /// Ends shuntd: waits for operations within a time limit, then stops the copiers.
    async fn end(&mut self, mut events: mpsc::Receiver<Event>) {
        let until = Instant::now() + ENDING_MAX;
        while !self.busy.is_empty() {
            match timeout(
                until.saturating_duration_since(Instant::now()),
                events.recv(),
            )
            .await
            {
                Ok(Some(Event::Finished {
                    busy,
                    answer,
                    reply,
                })) => {
                    for busy in &busy {
                        self.busy.remove(busy);
                    }
                    if let Some(reply) = reply {
                        let _ = reply.send(failure::response(answer));
                    }
                }
                Ok(Some(Event::Changed(changes))) => {
                    for change in changes {
                        self.model.apply(change);
                    }
                }
                Ok(Some(
                    Event::Volume(_)
                    | Event::KnowDisks { .. }
                    | Event::Supervised(_)
                    | Event::Unsupervised(_)
                    | Event::Refreshed { .. }
                    | Event::CheckStanding
                    | Event::Standing(_)
                    | Event::ComparisonSettled(_)
                    | Event::CutOver { .. }
                    | Event::CameBack { .. }
                    | Event::Held { .. }
                    | Event::Folders(_)
                    | Event::CopierEnded { .. },
                )) => {}
                Ok(None) | Err(_) => {
                    warn!("an operation has not ended; it is settled at the next start");
                    break;
                }
            }
        }
        // No event is read from here on: a copier that ends must not wait for room in the queue.
        drop(events);
        let copiers = self.copies.take_all();
        let changes = copiers
            .iter()
            .map(|(key, _, copied_bytes)| {
                Change::SetPair(key.clone(), PairField::CopiedBytes(*copied_bytes))
            })
            .collect::<Vec<_>>();
        let stopped = blocking(move || {
            for (_, copier, _) in copiers {
                let _ = copier.stop();
            }
        });
        match timeout(COPIERS_END_MAX, stopped).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error, "a copier did not stop"),
            Err(_) => warn!("a copier has I/O in flight to a LUN that does not answer"),
        }
        if let Err(error) = self
            .context
            .store
            .call(move |store| store.apply(&changes))
            .await
        {
            warn!(%error, "what was copied could not be recorded");
        }
    }
}
