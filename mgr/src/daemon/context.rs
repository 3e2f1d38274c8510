//! The context of an operation, and helpers for blocking work and history notes.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use migration_proto::manager::{Failure, HistoryEvent};
use tokio::sync::{Mutex, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use super::event::Event;
use super::failure;
use super::paths::Config;
use crate::store::{Change, Note, Store, StoreError, StoreHandle};

/// How long reading LUNs may take.
const READING_MAX: Duration = Duration::from_secs(60);

/// What every operation needs: configuration, database, event queue. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) config: Arc<Config>,
    pub(super) store: StoreHandle,
    pub(super) events: mpsc::Sender<Event>,
    /// The user id of the user who gave the command; `None` if shuntd acts automatically.
    pub(super) who: Option<u32>,
    /// Held while changes are made durable and sent to the owner.
    pub(super) turn: Arc<Mutex<()>>,
}

impl Context {
    /// Makes changes durable, then sends them to the owner.
    pub(super) async fn commit(&self, mut changes: Vec<Change>) -> Result<(), StoreError> {
        for change in &mut changes {
            if let Change::Note(note) = change {
                note.who = self.who;
            }
        }
        self.commit_made(move |_| Ok(((), changes))).await
    }

    /// Makes the changes durable that `make` returns, then sends them to the owner. Nothing else
    /// changes the database in between. Returns what else `make` returns.
    pub(super) async fn commit_made<T: Send + 'static>(
        &self,
        make: impl FnOnce(&Store) -> Result<(T, Vec<Change>), StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        // The owner gets the lines of the history in their order: a client that has seen one of
        // them has seen all before it.
        let _turn = self.turn.lock().await;
        let made = self.store.call(move |store| {
            let (result, mut changes) = make(store)?;
            store.apply_and_place(&mut changes)?;
            Ok((result, changes))
        });
        let (result, changes) = made.await?;
        self.committed(changes).await;
        Ok(result)
    }

    /// Sends durable changes to the owner, and logs the history notes among them.
    async fn committed(&self, changes: Vec<Change>) {
        for change in &changes {
            if let Change::Note(note) = change {
                let Note {
                    session,
                    volume,
                    who,
                    ..
                } = note;
                info!(session, volume, who, "{}", note.sentence());
            }
        }
        self.notify(Event::Changed(changes)).await;
    }

    /// Commits changes as [`Self::commit`] does; an error becomes the failure of an operation on
    /// `object`.
    pub(super) async fn record(&self, object: &str, changes: Vec<Change>) -> Result<(), Failure> {
        self.commit(changes)
            .await
            .map_err(|error| failure::store(object, &error))
    }

    /// Makes changes durable in the background.
    pub(super) fn record_aside(&self, changes: Vec<Change>) {
        let context = self.clone();
        tokio::spawn(async move {
            if let Err(error) = context.commit(changes).await {
                warn!(%error, "a change could not be recorded");
            }
        });
    }

    pub(super) async fn notify(&self, event: Event) {
        // The owner is gone only when shuntd ends.
        let _ = self.events.send(event).await;
    }
}

/// Runs blocking work on a separate thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    spawn_blocking(work)
        .await
        .map_err(|error| format!("internal error: {error}"))
}

/// Runs work that reads LUNs on a separate thread. Gives up after `READING_MAX`, so that a LUN that
/// hangs does not block the caller.
pub(super) async fn reading<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    match timeout(READING_MAX, blocking(work)).await {
        Ok(done) => done,
        Err(_) => Err(format!(
            "a LUN does not answer within {} s",
            READING_MAX.as_secs()
        )),
    }
}

/// Builds a line of the history with the current time.
pub(super) fn note(session: Option<&str>, volume: Option<&str>, event: HistoryEvent) -> Change {
    Change::Note(Note {
        at_ms: now_ms(),
        session: session.map(str::to_owned),
        volume: volume.map(str::to_owned),
        event,
        who: None,
        cursor: None,
    })
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
