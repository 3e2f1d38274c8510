//! Makes copies at an instant: splits all targets of a session from their sources together, and
//! mirrors them again later.
//!
//! Every volume holds requests from its split on, and is resumed when all of them have been split,
//! so there is an instant at which all of them held. A volume that held for less, because its
//! deadline passed or its ublk-target died, spoils the copy; then all are mirrored again. A copy is
//! recorded as valid only after that check ([`Phase::Split`]).
//!
//! The target of a split pair is sealed ([`super::sealed`]), so that it stays the copy that the map
//! describes.

use std::collections::BTreeMap;
use std::time::Duration;

use migration_core::pair::Phase;
use migration_proto::manager::{EVERY_SECONDS_MAX, Failure, SessionMode, SessionOptions};
use migration_proto::route::{Route, Side};
use migration_proto::target::{Refusal, Request, Response, Suspended};
use tokio::task::JoinSet;
use tracing::warn;

use super::context::now_ms;
use super::failure::{self, Answer, Done};
use super::route_change::{DEADLINE_MS, NotChanged, add_mirror, mirrored, set_route};
use super::schedule;
use super::sealed::{seal, set_read_only, untouched};
use super::verbs::{Item, Operation, mark_unfinished};
use super::volume::VolumeHandle;
use crate::moments;
use crate::store::{Change, CopyOf, PairField, PairRow};

/// How long ublk-target may take to let held requests go.
const RESUME_MAX: Duration = Duration::from_secs(20);

/// Checks the options of a session that concern splits. The error says why they are refused.
pub(super) fn check(options: &SessionOptions) -> Result<(), String> {
    let copies = options.mode == SessionMode::Copy;
    if options.every_seconds > 0 && !copies {
        return Err("--every needs --mode copy: other sessions are not split automatically".into());
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

/// The refusal of a switch for a session whose targets are to be copies.
pub(super) fn never_switched(name: &str) -> Failure {
    failure::refused(
        failure::session(name),
        "its targets are to be copies at an instant (--mode copy): it is not switched",
        format!("`shunt split {name}`, or `shunt set {name} --mode mirror` first"),
    )
}

/// Whether a volume is split, by its last status.
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
            let copy_of = CopyOf {
                at_ms: copy_of_ms,
                sealed: None,
            };
            changes.push(set(PairField::CopyOf(Some(copy_of))));
            changes.push(set(PairField::Problem(None)));
            changes.extend(pause_us.map(|pause_us| set(PairField::LastPause(pause_us))));
            let what = format!(
                "{} is a copy of {} as of {}{}",
                item.row.target,
                item.row.source,
                moments::text(copy_of_ms / 1000),
                super::verbs::pause_text(pause_us)
            );
            changes.push(self.note(item.row, what.clone()));
            messages.push(format!("{}: {what}", item.row.volume));
        }
        self.record(changes).await?;
        for item in &items {
            match seal(&item.row.target).await {
                Ok(sealed) => {
                    let copy_of = CopyOf {
                        at_ms: copy_of_ms,
                        sealed: Some(sealed),
                    };
                    let field = PairField::CopyOf(Some(copy_of));
                    self.record(vec![Change::SetPair(item.key.clone(), field)])
                        .await?;
                }
                Err(cause) => messages.push(format!(
                    "{}: {cause}: see that nothing writes to it",
                    item.row.volume
                )),
            }
        }
        Ok(Done::changed(messages))
    }

    /// Splits all volumes in parallel: each holds requests from its split until all are split.
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

    /// Mirrors all pairs again after at least one volume did not hold requests until all were
    /// split: the targets would be copies of different instants. Returns the failure for the
    /// operator.
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
                Err(NotChanged { cause, .. }) => {
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

    /// Mirrors split targets again. Returns the problems of the pairs for which that failed.
    pub(super) async fn mirror_split_again(&self) -> Result<Vec<String>, Failure> {
        let items = self.items()?;
        let split: Vec<&Item<'_>> = items.iter().filter(|item| is_split(item.handle)).collect();
        let mut anew = BTreeMap::new();
        for item in &split {
            let found = untouched(item.row).await;
            let why = found.map_err(|cause| self.touched(item.row, cause))?;
            anew.extend(why.map(|why| (item.key.clone(), why)));
        }
        let mut changes = Vec::new();
        // From here on the targets count as copies no more.
        for item in &split {
            let phase = match anew.contains_key(&item.key) {
                true => Phase::Starting,
                false => Phase::Active,
            };
            let set = |field| Change::SetPair(item.key.clone(), field);
            changes.push(set(PairField::Phase(phase)));
            changes.push(set(PairField::CopyOf(None)));
            if phase == Phase::Starting {
                // What was copied before no longer counts.
                changes.push(set(PairField::InSync(None)));
                changes.push(set(PairField::Unreadable(Vec::new())));
            }
        }
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        self.record(changes).await?;
        let mut problems = Vec::new();
        for item in split {
            let why = anew.get(&item.key);
            let outcome = match why {
                None => mirror_again(item.handle, item.row).await,
                Some(_) => self.copy_anew(item).await,
            };
            let unknown = outcome.as_ref().is_err_and(NotChanged::is_unknown);
            let problem = outcome.err().map(|error| error.cause);
            let what = match (&problem, why) {
                (None, None) => {
                    "mirrored again; what was written since the split is copied".to_owned()
                }
                (None, Some(why)) => format!("mirrored again; everything is copied, because {why}"),
                (Some(cause), _) if unknown => {
                    format!("whether it is mirrored again is not known: {cause}")
                }
                (Some(cause), _) => format!("not mirrored again: {cause}"),
            };
            if let Some(cause) = &problem {
                problems.push(format!("pair {}: {cause}", item.row.volume));
            }
            let set = |field| Change::SetPair(item.key.clone(), field);
            let mut changes = vec![self.note(item.row, what)];
            if unknown {
                // The phase stays: the target is no copy any more, and the volume's next status
                // settles the phase.
            } else if problem.is_some() && is_split(item.handle) {
                // Nothing was written to the target: it is still the copy.
                changes.push(set(PairField::Phase(item.row.phase)));
                changes.push(set(PairField::CopyOf(item.row.copy_of.clone())));
            } else if why.is_some() {
                let phase = match problem {
                    None => Phase::Active,
                    Some(_) => Phase::Setup,
                };
                changes.push(set(PairField::Phase(phase)));
            }
            changes.push(set(PairField::Problem(problem)));
            self.record(changes).await?;
        }
        Ok(problems)
    }
}

impl Operation {
    fn touched(&self, row: &PairRow, cause: String) -> Failure {
        let object = failure::pair(&self.session.name, &row.volume);
        let next = format!(
            "`shunt cancel {}`, and a new session, which copies everything",
            self.session.name
        );
        failure::refused(object, cause, next)
    }

    /// Discards what is known of a split target, and starts as if it had never been copied to.
    async fn copy_anew(&self, item: &Item<'_>) -> Result<(), NotChanged> {
        let (handle, row) = (item.handle, item.row);
        let route = Route::Single { leg: Side::Source };
        set_route(handle, row, route, DEADLINE_MS, false).await?;
        let bad = |cause| NotChanged::refused(Refusal::BadLeg, cause);
        set_read_only(&row.target, false).await.map_err(bad)?;
        let target = row.target.layout(row.size_bytes);
        mark_unfinished(&self.session.name, row)
            .await
            .map_err(bad)?;
        add_mirror(handle, row, &target).await.map(drop)
    }
}

/// Lets the split volumes resume. Returns for each whether it held requests until now.
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

/// Mirrors a split target again. Does nothing if the volume is not split.
async fn mirror_again(handle: &VolumeHandle, row: &PairRow) -> Result<(), NotChanged> {
    // A split whose answer was lost may be in progress.
    let view = handle.while_not_changing().await?;
    if view
        .status
        .is_some_and(|status| status.route != Route::Split)
    {
        return Ok(());
    }
    set_read_only(&row.target, false)
        .await
        .map_err(|cause| NotChanged::refused(Refusal::BadLeg, cause))?;
    let route = mirrored(Side::Source);
    match set_route(handle, row, route, DEADLINE_MS, false).await {
        Ok(_) => Ok(()),
        Err(error) => {
            // In the other cases the change has happened after all, or may still happen.
            if !error.is_unknown()
                && is_split(handle)
                && let Err(cause) = set_read_only(&row.target, true).await
            {
                warn!("{cause}");
            }
            Err(error)
        }
    }
}
