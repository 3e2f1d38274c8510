//! Copies at an instant: the targets of a session are left alone together, and mirrored onto again later.
//!
//! Every volume holds requests from its split on, and is resumed when all of them have been split: there was an instant at which
//! all of them held. One that did not hold so long, because its deadline came or its ublk-target died, spoils the copy; then all
//! are mirrored again. A copy that counts is recorded only after that ([`Phase::Split`]).
//!
//! A target that is left alone is made read-only, so that it stays the copy that the map is about.

use std::time::Duration;

use lun::{Kind, Lun, OpenOptions};
use migration_core::pair::Phase;
use migration_proto::manager::{EVERY_SECONDS_MAX, Failure, SessionMode, SessionOptions};
use migration_proto::route::{Route, Side};
use migration_proto::target::{Request, Response, Suspended};
use tokio::task::JoinSet;
use tracing::warn;

use super::Owner;
use super::context::{blocking, now_ms};
use super::failure::{self, Answer, Done};
use super::route_change::{DEADLINE_MS, NotChanged, mirrored, set_route};
use super::schedule;
use super::verbs::{Item, Operation};
use super::volume::VolumeHandle;
use crate::moments;
use crate::store::{Change, LunRow, PairField, PairRow};

/// How long ublk-target may take to let held requests go.
const RESUME_MAX: Duration = Duration::from_secs(20);

/// What speaks against the options of a session that is to be split.
pub(super) fn check(options: &SessionOptions) -> Result<(), String> {
    let copies = options.mode == SessionMode::Copy;
    if options.every_seconds > 0 && !copies {
        return Err("--every needs --mode copy: other sessions are not split by themselves".into());
    }
    if options.every_seconds > EVERY_SECONDS_MAX {
        return Err(format!(
            "--every of {} s is more than a year",
            options.every_seconds
        ));
    }
    if copies && options.retire.is_some() {
        return Err("--retire needs a commit, and a session of --mode copy has none".into());
    }
    Ok(())
}

/// Why a session whose targets are to be copies is not switched.
pub(super) fn never_switched(name: &str) -> Failure {
    failure::refused(
        failure::session(name),
        "its targets are to be copies at an instant (--mode copy): it is not switched",
        format!("`shunt split {name}`, or `shunt set {name} --mode mirror` first"),
    )
}

/// Whether the target of a pair is left alone, as far as its volume has said.
pub(super) fn is_split(handle: &VolumeHandle) -> bool {
    let status = handle.view().status;
    status.is_some_and(|status| status.route == Route::Split)
}

impl Operation {
    /// Makes the targets of all pairs copies of their sources at one instant, or none.
    pub(super) async fn split(mut self, max_pause_ms: u64) -> Answer {
        self.intend(Phase::Splitting, "split").await?;
        let items = self.items()?;
        let split = self.split_all(&items, max_pause_ms).await;
        let copy_of_ms = now_ms();
        let held = resume_all(&items, &split).await;
        let problems: Vec<String> = items
            .iter()
            .zip(split.into_iter().zip(held))
            .filter_map(|(item, (split, held))| {
                let cause = split.and(held).err()?;
                Some(format!("pair {}: {cause}", item.row.volume))
            })
            .collect();
        if !problems.is_empty() {
            return Err(self.spoiled(&items, problems).await?);
        }
        let mut messages = Vec::new();
        let mut changes = schedule::after_split(&self.session, copy_of_ms);
        for item in &items {
            let status = item.handle.status(RESUME_MAX).await;
            let pause_us = status.map(|status| status.counters.last_pause_us).ok();
            let set = |field| Change::SetPair(item.key.clone(), field);
            changes.push(set(PairField::Phase(Phase::Split)));
            changes.push(set(PairField::CopyOf(Some(copy_of_ms))));
            changes.push(set(PairField::Problem(None)));
            changes.extend(pause_us.map(|pause_us| set(PairField::LastPause(pause_us))));
            let what = format!(
                "{} is a copy of {} as of {}{}",
                item.row.target.path.display(),
                item.row.source.path.display(),
                moments::text(copy_of_ms / 1000),
                super::verbs::pause_text(pause_us)
            );
            changes.push(self.note(item.row, what.clone()));
            messages.push(format!("{}: {what}", item.row.volume));
        }
        self.record(changes).await?;
        for item in &items {
            if let Err(cause) = set_read_only(&item.row.target, true).await {
                messages.push(format!(
                    "{}: {cause}: see that nothing writes to it",
                    item.row.volume
                ));
            }
        }
        Ok(Done::changed(messages))
    }

    /// Splits all at once: a volume that is split holds requests until all are.
    async fn split_all(&self, items: &[Item<'_>], max_pause_ms: u64) -> Vec<Result<(), String>> {
        let mut asked = JoinSet::new();
        for (index, item) in items.iter().enumerate() {
            let (handle, row): (VolumeHandle, PairRow) = (item.handle.clone(), item.row.clone());
            asked.spawn(async move {
                let split = set_route(&handle, &row, Route::Split, max_pause_ms, false).await;
                (index, split.map(drop).map_err(|error| error.to_string()))
            });
        }
        in_order(items.len(), asked).await
    }

    /// At least one volume did not hold requests until all were split: what is on the targets is of several moments.
    async fn spoiled(
        &self,
        items: &[Item<'_>],
        mut problems: Vec<String>,
    ) -> Result<Failure, Failure> {
        for item in items {
            let set = |field| Change::SetPair(item.key.clone(), field);
            let mut changes = vec![
                set(PairField::Phase(Phase::Active)),
                self.note(item.row, format!("no copy: {}", problems[0])),
            ];
            match mirror_again(item.handle, item.row).await {
                Ok(()) => changes.push(set(PairField::Problem(None))),
                Err(cause) => {
                    problems.push(format!("pair {}: {cause}", item.row.volume));
                    changes.push(set(PairField::Problem(Some(cause))));
                }
            }
            self.record(changes).await?;
        }
        let name = &self.session.name;
        let next = format!(
            "`shunt wait {name} --for source-selected`, then `shunt split {name}` again, with a longer --max-pause"
        );
        problems.push("the targets are no copies; the sources are authoritative".to_owned());
        Ok(failure::failed(self.object(), problems.join("; "), next))
    }

    /// Mirrors onto targets again that were left alone. Says what did not come about.
    pub(super) async fn mirror_split_again(&self) -> Result<Vec<String>, Failure> {
        let items = self.items()?;
        let split: Vec<&Item<'_>> = items.iter().filter(|item| is_split(item.handle)).collect();
        for item in split.iter().filter(|item| item.row.phase == Phase::Split) {
            self.require_unwritten(item.row).await?;
        }
        let mut changes = Vec::new();
        // From here on they are copies no more.
        for item in &split {
            let set = |field| Change::SetPair(item.key.clone(), field);
            changes.push(set(PairField::Phase(Phase::Active)));
            changes.push(set(PairField::CopyOf(None)));
        }
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        self.record(changes).await?;
        let mut problems = Vec::new();
        for item in split {
            let outcome = mirror_again(item.handle, item.row).await;
            let problem = outcome.err();
            let what = match &problem {
                None => "mirrored again; what was written since the split is copied".to_owned(),
                Some(cause) => format!("not mirrored again: {cause}"),
            };
            if let Some(cause) = &problem {
                problems.push(format!("pair {}: {cause}", item.row.volume));
            }
            let set = |field| Change::SetPair(item.key.clone(), field);
            let mut changes = vec![self.note(item.row, what)];
            if problem.is_some() && is_split(item.handle) {
                // Nothing was written to it: it is what it was.
                changes.push(set(PairField::Phase(item.row.phase)));
                changes.push(set(PairField::CopyOf(item.row.copy_of_ms)));
            }
            changes.push(set(PairField::Problem(problem)));
            self.record(changes).await?;
        }
        Ok(problems)
    }
}

impl Operation {
    /// What somebody else wrote to a copy is not in the map: mirrored again it would count as equal.
    async fn require_unwritten(&self, row: &PairRow) -> Result<(), Failure> {
        let target = row.target.clone();
        let read_only = blocking(move || {
            let lun = Lun::open(&target.path, &OpenOptions::default());
            lun.map(|lun| lun.read_only || target.identity.kind == Kind::RegularFile)
                .map_err(|error| error.to_string())
        });
        let cause = match read_only.await.and_then(|read_only| read_only) {
            Ok(true) => return Ok(()),
            Ok(false) => format!(
                "{} was made writable, and may hold what Shunt has not written",
                row.target.path.display()
            ),
            Err(cause) => cause,
        };
        let object = failure::pair(&self.session.name, &row.volume);
        let next = format!(
            "`shunt cancel {}`, and a new session, which copies everything",
            self.session.name
        );
        Err(failure::refused(object, cause, next))
    }
}

/// Lets go what the volumes that were split hold. For each, whether it held until now.
async fn resume_all(items: &[Item<'_>], split: &[Result<(), String>]) -> Vec<Result<(), String>> {
    let mut asked = JoinSet::new();
    for (index, item) in items.iter().enumerate() {
        if split[index].is_err() {
            asked.spawn(async move { (index, Ok(())) });
            continue;
        }
        let handle = item.handle.clone();
        asked.spawn(async move {
            let held = match handle.ask(Request::Resume, RESUME_MAX).await {
                Ok(Response::Resumed {
                    ended: Some(Suspended::SinceSplit),
                }) => Ok(()),
                Ok(Response::Resumed { .. }) => {
                    Err("it did not hold requests until all volumes were split".to_owned())
                }
                Ok(other) => Err(format!("ublk-target answers a resume with {other:?}")),
                Err(error) => Err(error.to_string()),
            };
            (index, held)
        });
    }
    in_order(items.len(), asked).await
}

async fn in_order(
    count: usize,
    asked: JoinSet<(usize, Result<(), String>)>,
) -> Vec<Result<(), String>> {
    let mut outcomes = vec![Err("it was not asked".to_owned()); count];
    for (index, outcome) in asked.join_all().await {
        outcomes[index] = outcome;
    }
    outcomes
}

/// Mirrors onto a target that was left alone, if it was.
async fn mirror_again(handle: &VolumeHandle, row: &PairRow) -> Result<(), String> {
    let status = handle.status(RESUME_MAX).await;
    if status.map_err(|error| error.to_string())?.route != Route::Split {
        return Ok(());
    }
    set_read_only(&row.target, false).await?;
    let route = mirrored(Side::Source);
    match set_route(handle, row, route, DEADLINE_MS, false).await {
        Ok(_) => Ok(()),
        Err(NotChanged { cause, .. }) => {
            // Otherwise it has come about after all.
            if is_split(handle)
                && let Err(cause) = set_read_only(&row.target, true).await
            {
                warn!("{cause}");
            }
            Err(cause)
        }
    }
}

/// Lets the kernel refuse writes to a target, or take them again. Nothing for a file.
pub(super) async fn set_read_only(row: &LunRow, read_only: bool) -> Result<(), String> {
    if row.identity.kind == Kind::RegularFile {
        return Ok(());
    }
    let row = row.clone();
    let done = blocking(move || {
        let lun =
            Lun::open(&row.path, &OpenOptions::default()).map_err(|error| error.to_string())?;
        row.identity
            .matches(&lun.identity)
            .map_err(|mismatch| mismatch.to_string())?;
        lun.set_read_only(read_only)
            .map_err(|error| error.to_string())
    });
    done.await.and_then(|done| done)
}

impl Owner {
    /// What a boot has undone is done again: targets that are copies are read-only.
    pub(super) fn copies_read_only_again(&self) {
        let pairs = self.model.sessions.values().flat_map(|row| &row.pairs);
        for pair in pairs.filter(|pair| pair.phase == Phase::Split) {
            let target = pair.target.clone();
            tokio::spawn(async move {
                if let Err(cause) = set_read_only(&target, true).await {
                    warn!(target = %target.path.display(), "not made read-only again: {cause}");
                }
            });
        }
    }
}
