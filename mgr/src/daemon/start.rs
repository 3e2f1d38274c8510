//! The start of shuntd, and the order of its end.

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::api::{listening, socket};
use super::context::Context;
use super::failure::StartError;
use super::folders::Folders;
use super::owner::Owner;
use super::paths::Config;
use super::repair::rebuild;
use super::volumes::attach;
use super::{clock, work};
use crate::store::StoreHandle;

/// Maximum number of events that wait for the owner.
const EVENTS_MAX: usize = 256;
/// Maximum number of requests that wait for the owner.
const REQUESTS_MAX: usize = 64;

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
    let history_end = store.history_end().map_err(|source| StartError::Store {
        path: config.database(),
        source,
    })?;
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
    let keeping = tokio::spawn(listening::keep(
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
        turn: Arc::default(),
    };
    if config.host_checks.ublk && !model.volumes.is_empty() {
        // After a reboot the module may not be loaded yet.
        if let Err(problem) = attach::require_ublk().await {
            warn!(problem, "volumes cannot come up");
        }
    }
    let mut owner = Owner::new(context, model, history_end);
    owner.bring_up();
    let events = work(&mut owner, events, calls, shutdown).await;
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
