//! Locks on LUNs whose holder is gone.
//!
//! A lock is removed together with its holder, in one transaction. So such a lock exists only if
//! somebody has changed the database, or if part of the database was lost. shuntd never frees such
//! a lock automatically: it reports to the operator whose lock it was.

use std::collections::BTreeSet;

use migration_proto::manager::HistoryEvent;

use crate::daemon::context::{Context, now_ms};
use crate::daemon::failure::{self, Answer, Done};
use crate::daemon::sessions::retire::retired_leg;
use crate::history;
use crate::store::{Change, LegRow, Lock, Model, Note, lock_key};

/// Frees the locks that nobody holds; with `dry_run` only lists them.
pub(crate) async fn free(context: Context, dry_run: bool) -> Answer {
    let object = "locks";
    // One database call, so that nobody takes a lock between the check and the change.
    let who = context.who;
    let orphans = context.commit_made(move |store| {
        let orphans = orphans(&store.load()?, store.locks()?);
        let changes = match dry_run {
            true => Vec::new(),
            false => orphans.iter().flat_map(|lock| changes(lock, who)).collect(),
        };
        Ok((orphans, changes))
    });
    let orphans = orphans
        .await
        .map_err(|error| failure::store(object, &error))?;
    let mut messages: Vec<String> = orphans
        .iter()
        .map(|lock| history::sentence(&event(lock), None, None))
        .collect();
    if orphans.is_empty() {
        messages.push("every lock has its holder".to_owned());
    }
    Ok(Done {
        changed: !orphans.is_empty(),
        messages,
    })
}

fn orphans(model: &Model, locks: Vec<Lock>) -> Vec<Lock> {
    let volumes = model.volumes.values().map(|row| &row.leg);
    let pairs = model.sessions.values().flat_map(|row| &row.pairs);
    let of_pairs = pairs.filter_map(|pair| match pair.phase.is_ended() {
        true => retired_leg(pair),
        false => Some(&pair.target),
    });
    let luns = volumes.chain(of_pairs).flat_map(LegRow::luns);
    let held: BTreeSet<String> = luns.map(lock_key).collect();
    let is_orphan = |lock: &Lock| !held.contains(&lock.key);
    locks.into_iter().filter(is_orphan).collect()
}

fn changes(lock: &Lock, who: Option<u32>) -> [Change; 2] {
    let note = Note {
        at_ms: now_ms(),
        session: None,
        volume: None,
        event: event(lock),
        who,
        cursor: None,
    };
    [Change::Unlock(lock.key.clone()), Change::Note(note)]
}

fn event(lock: &Lock) -> HistoryEvent {
    HistoryEvent::LockFreed {
        lun: lock.path.clone(),
        holder: lock.holder.clone(),
    }
}
