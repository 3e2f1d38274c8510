//! The end of shuntd.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use super::Owner;
use crate::daemon::context::blocking;
use crate::daemon::event::Event;
use crate::daemon::failure;
use crate::store::{Change, PairField};

/// How long shuntd waits at its end for copiers whose I/O is in flight.
const COPIERS_END_MAX: Duration = Duration::from_secs(20);
/// How long operations may take to end when shuntd ends.
const ENDING_MAX: Duration = Duration::from_secs(10);

impl Owner {
    /// Ends shuntd: waits for operations within a time limit, then stops the copiers.
    pub(in crate::daemon) async fn end(&mut self, mut events: mpsc::Receiver<Event>) {
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
        let copiers = self.copies.copiers.take_all();
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
