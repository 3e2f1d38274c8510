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
//! The rooms, from the lowest: a room uses itself and what stands above it in this table, and
//! nothing below. `tests/architecture/rooms.rs` reads the table.
//!
//! | room | purpose |
//! |---|---|
//! | `base` | the context of operations, events, failures, paths, folders, the clock, handles |
//! | `luns` | whether a LUN may become a leg; marks, seals and read tests of LUNs |
//! | `volumes` | one ublk-target each: keeps it running, asks it, attaches, detaches, names it |
//! | `copies` | the running copiers, the load of applications, targets that stalled |
//! | `sessions` | the verbs, options, places and cutovers of sessions; retired legs |
//! | `repair` | a lost database, a lost map file, locks whose holder is gone |
//! | `api` | the control socket, requests that wait, records, the stream of events |
//! | `owner` | all state: what an event or a request leads to, and what is due |
//! | `loop` | this file and `start` |
//!
//! `base` is made of the files `clock`, `context`, `event`, `failure`, `folders`, `handle`,
//! `paths` and `perform`.
//!
//! Invariants:
//! 1. The [`Model`](crate::store::Model) is what the database holds: it changes when a change is
//!    durable ([`Event::Changed`]).
//! 2. At most one operation works on a session and on a volume at a time (`busy`).
//! 3. There is at most one copier for a pair, and none while an operation works on its session,
//!    except during a cutover.
//! 4. A start gives places to at most as many pairs as may be copied at once; no more copiers than
//!    that run.
//! 5. The loop never waits for a disk, a process or a device.

mod api;
mod clock;
mod context;
mod copies;
mod event;
mod failure;
mod folders;
mod handle;
mod luns;
mod owner;
mod paths;
mod perform;
mod repair;
mod sessions;
mod start;
mod volumes;

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::sleep_until;

use api::socket::Call;
use event::Event;
pub use failure::StartError;
use owner::Owner;
pub use paths::{Config, HostChecks};
pub use start::run;

/// How long requests wait after the start of shuntd until every volume has reported.
const READY_MAX: Duration = Duration::from_secs(5);

/// The loop: until `shutdown` is done.
async fn work(
    owner: &mut Owner,
    mut events: mpsc::Receiver<Event>,
    mut calls: mpsc::Receiver<Call>,
    shutdown: impl Future<Output = ()>,
) -> mpsc::Receiver<Event> {
    let mut shutdown = std::pin::pin!(shutdown);
    let ready_at = tokio::time::Instant::now() + READY_MAX;
    loop {
        let waiting = owner.is_waiting();
        let deferred_until = owner.deferred_until();
        let everything_at = owner.everything_at();
        tokio::select! {
            biased;
            () = &mut shutdown => return events,
            Some(event) = events.recv() => owner.apply(event),
            () = sleep_until(ready_at), if waiting => owner.wait_no_longer(),
            () = sleep_until(deferred_until.unwrap_or_else(Instant::now).into()), if deferred_until.is_some() => {
                owner.answer_deferred();
            }
            () = sleep_until(everything_at.unwrap_or_else(Instant::now).into()), if everything_at.is_some() => {
                owner.visit_everything();
            }
            Some(call) = calls.recv(), if !waiting => owner.take(call),
            else => return events,
        }
    }
}
