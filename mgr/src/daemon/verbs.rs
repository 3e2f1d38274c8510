//! Performs the verbs of a session, once they are decided.
//!
//! Order of every change: the intention (a phase) is made durable, then ublk-target is asked, then
//! the result is made durable. A crash in between is settled from the route
//! (`migration_core::pair::settle`).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use lun::OpenOptions;
use migration_core::pair::{PairState, Phase};
use migration_core::route::Side;
use migration_proto::manager::Failure;
use migration_proto::route::Route;
use migration_proto::target::{Refusal, Request, Response};

use super::checks::{Used, open_recorded};
use super::clock::steady_ms;
use super::context::{Context, blocking, note, now_ms};
use super::create::{Accepted, check_target};
use super::failure::{self, Answer, Done};
use super::hours;
use super::retire::retire_source;
use super::route_change::{
    COME_BACK_MAX, Changed, DEADLINE_MS, NotChanged, add_mirror, is_mirrored_on, mirrored,
    set_route,
};
use super::schedule;
use super::sealed::set_read_only;
use super::split;
use super::standing::{self, Place};
use super::unreadable;
use super::volume::VolumeHandle;
use crate::copier::Copier;
use crate::moments;
use crate::store::{
    Change, LegRow, OpenMapRow, PairField, PairKey, PairRow, SessionRow, VolumeRow,
};
use crate::units;

/// Delay before queued pairs are retried after a failure that no single pair caused.
const QUEUE_RETRY: Duration = Duration::from_secs(1);
/// How long ublk-target may take to check a mirror leg again.
const RETRY_MIRROR_MAX: Duration = Duration::from_secs(60);

/// An operation on some pairs of a session, with the data that it needs.
pub(super) struct Operation {
    pub(super) context: Context,
    pub(super) session: SessionRow,
    /// The positions of the pairs to work on.
    pub(super) pairs: Vec<usize>,
    /// The rows of the volumes of all pairs, as far as they exist.
    pub(super) volumes: BTreeMap<String, VolumeRow>,
    pub(super) handles: BTreeMap<String, VolumeHandle>,
    /// The copiers to stop first, with what they have copied.
    pub(super) copiers: Vec<(PairKey, Copier, u64)>,
}

/// One pair of an operation.
pub(super) struct Item<'a> {
    pub(super) key: PairKey,
    pub(super) row: &'a PairRow,
    volume: &'a VolumeRow,
    pub(super) handle: &'a VolumeHandle,
}

impl Operation {
    pub(super) fn object(&self) -> String {
        failure::session(&self.session.name)
    }

    fn key(&self, position: usize) -> PairKey {
        PairKey {
            session: self.session.name.clone(),
            position,
        }
    }

    pub(super) fn items(&self) -> Result<Vec<Item<'_>>, Failure> {
        self.pairs
            .iter()
            .map(|position| self.item(*position))
            .collect()
    }

    fn item(&self, position: usize) -> Result<Item<'_>, Failure> {
        let row = &self.session.pairs[position];
        let volume = self.volumes.get(&row.volume);
        let handle = self.handles.get(&row.volume);
        match (volume, handle) {
            (Some(volume), Some(handle)) => Ok(Item {
                key: self.key(position),
                row,
                volume,
                handle,
            }),
            (None, _) | (_, None) => Err(failure::no_volume(&row.volume)),
        }
    }

    /// Stops the copiers, and records the phase `phase` for all pairs, together with the numbers of
    /// copied bytes.
    pub(super) async fn intend(&mut self, phase: Phase, what: &str) -> Result<(), Failure> {
        self.intend_with(phase, what, Vec::new()).await
    }

    async fn intend_with(
        &mut self,
        phase: Phase,
        what: &str,
        others: Vec<Change>,
    ) -> Result<(), Failure> {
        let mut changes = self.stop_copiers().await?;
        changes.extend(others);
        for position in &self.pairs {
            let pair = &self.session.pairs[*position];
            changes.push(Change::SetPair(
                self.key(*position),
                PairField::Phase(phase),
            ));
            changes.push(note(Some(&self.session.name), Some(&pair.volume), what));
        }
        crash_point::here("intention-before");
        self.context.record(&self.object(), changes).await?;
        crash_point::here("intention-after");
        Ok(())
    }

    pub(super) async fn stop_copiers(&mut self) -> Result<Vec<Change>, Failure> {
        let copiers = std::mem::take(&mut self.copiers);
        let changes = copiers
            .iter()
            .map(|(key, _, copied_bytes)| {
                Change::SetPair(key.clone(), PairField::CopiedBytes(*copied_bytes))
            })
            .collect();
        let stopped = blocking(move || {
            for (_, copier, _) in copiers {
                // Whatever the outcome: no copier writes from here on.
                let _ = copier.stop();
            }
        });
        // Without a limit: a write in flight may still land, and nothing else would report that.
        stopped
            .await
            .map_err(|cause| failure::failed(self.object(), cause, "give the command again"))?;
        Ok(changes)
    }

    /// Records what was done to a pair.
    pub(super) async fn record(&self, changes: Vec<Change>) -> Result<(), Failure> {
        crash_point::here("done-before-recorded");
        self.context.record(&self.object(), changes).await?;
        crash_point::here("done-recorded");
        Ok(())
    }

    pub(super) fn note(&self, pair: &PairRow, what: impl Into<String>) -> Change {
        note(Some(&self.session.name), Some(&pair.volume), what)
    }

    /// Adds the mirror legs. `used`: the LUNs in use, without the targets of this session.
    ///
    /// The pairs `later` are queued, because `pairs_max` others are being copied, or because the
    /// session is outside its hours.
    pub(super) async fn start(
        mut self,
        later: Vec<usize>,
        pairs_max: u32,
        used: Vec<Used>,
    ) -> Answer {
        self.check_targets(&later, &used).await?;
        let mut messages = Vec::new();
        let mut changes = Vec::new();
        let hours = self.session.options.hours;
        let (why, way) = match hours.contains(moments::minute_now()) {
            true => (
                format!("{pairs_max} pairs are copied at once"),
                "`shunt set --max-pairs` lets more begin",
            ),
            false => (
                hours::text(hours),
                "`shunt set --window-hours` changes that",
            ),
        };
        for position in later {
            let row = &self.session.pairs[position];
            let what = format!("queued: {why}");
            changes.push(Change::SetPair(
                self.key(position),
                PairField::Phase(Phase::Queued),
            ));
            changes.push(self.note(row, &what));
            messages.push(format!(
                "{} is {what}; it starts automatically ({way})",
                row.volume
            ));
        }
        self.intend_with(Phase::Starting, "start", changes).await?;
        self.add_mirrors(messages).await
    }

    /// Adds the mirror legs of pairs that were queued. A pair whose target is refused now does not
    /// hold up the others.
    pub(super) async fn start_queued(self, used: Vec<Used>) -> Answer {
        let begun = self.start_those_that_fit(used).await;
        if begun.is_err() {
            // The owner retries the pairs that are still queued when it handles this answer.
            tokio::time::sleep(QUEUE_RETRY).await;
        }
        begun
    }

    async fn start_those_that_fit(mut self, used: Vec<Used>) -> Answer {
        let mut fit = Vec::new();
        for position in self.pairs.clone() {
            match self.check_pair(position, &used).await? {
                Ok(()) => fit.push(position),
                Err(cause) => {
                    let row = &self.session.pairs[position];
                    self.record(self.not_started(&self.key(position), row, &cause))
                        .await?;
                }
            }
        }
        self.pairs = fit;
        self.intend(Phase::Starting, "its turn has come").await?;
        self.add_mirrors(Vec::new()).await
    }

    /// Changes for a pair that was not started; it can be started again.
    fn not_started(&self, key: &PairKey, row: &PairRow, cause: &str) -> Vec<Change> {
        let what = format!("not started: {cause}");
        vec![
            Change::SetPair(key.clone(), PairField::Phase(Phase::Setup)),
            Change::SetPair(key.clone(), PairField::Problem(Some(what.clone()))),
            self.note(row, what),
        ]
    }

    /// Changes for a pair when it is unknown whether its route has changed, and the text for the
    /// operator. The phase stays, and the volume's next status settles it.
    pub(super) fn unknown(
        &self,
        key: &PairKey,
        row: &PairRow,
        verb: &str,
        error: &NotChanged,
    ) -> (Vec<Change>, String) {
        let problem = format!("whether the {verb} has happened is not known: {error}");
        let changes = vec![
            Change::SetPair(key.clone(), PairField::Problem(Some(problem.clone()))),
            self.note(row, &problem),
        ];
        let text = format!(
            "pair {}: {problem}; it is recorded when the volume answers",
            row.volume
        );
        (changes, text)
    }

    async fn add_mirrors(&self, mut messages: Vec<String>) -> Answer {
        let mut problems = Vec::new();
        for Item {
            key, row, handle, ..
        } in self.items()?
        {
            let target = row.target.layout(row.size_bytes);
            let begun = match mark_unfinished(&self.session.name, row).await {
                Ok(()) => add_mirror(handle, row, &target).await,
                Err(cause) => Err(NotChanged {
                    refusal: Some(Refusal::BadLeg),
                    cause,
                }),
            };
            match begun {
                Ok(changed) => {
                    let mut changes = self.now_active(&key, row, Side::Source, changed);
                    let set = |field| Change::SetPair(key.clone(), field);
                    changes.push(set(PairField::Begun(steady_ms())));
                    changes.push(set(PairField::InSync(None)));
                    changes.push(self.note(row, format!("mirrored onto {}", row.target)));
                    self.record(changes).await?;
                    messages.push(format!("{} is copied to {}", row.source, row.target));
                }
                Err(error) if error.is_unknown() => {
                    let (changes, problem) = self.unknown(&key, row, "start", &error);
                    self.record(changes).await?;
                    problems.push(problem);
                }
                Err(NotChanged { cause, .. }) => {
                    self.record(self.not_started(&key, row, &cause)).await?;
                    problems.push(format!("pair {}: {cause}", row.volume));
                }
            }
        }
        let name = &self.session.name;
        if problems.is_empty() {
            return Ok(Done::changed(messages));
        }
        let cause = format!("{}; the sources are authoritative", problems.join("; "));
        Err(failure::failed(
            self.object(),
            cause,
            format!("correct the cause, then `shunt start {name}` again, or `shunt cancel {name}`"),
        ))
    }

    /// Checks the targets of all pairs that are to be started now or later.
    async fn check_targets(&self, later: &[usize], used: &[Used]) -> Result<(), Failure> {
        let mut refusals = Vec::new();
        for position in self.pairs.iter().chain(later) {
            if let Err(cause) = self.check_pair(*position, used).await? {
                refusals.push(format!(
                    "pair {}: {cause}",
                    self.session.pairs[*position].volume
                ));
            }
        }
        if refusals.is_empty() {
            return Ok(());
        }
        let name = &self.session.name;
        let next =
            format!("correct the cause, then `shunt start {name}` again, or `shunt cancel {name}`");
        Err(failure::refused(self.object(), refusals.join("; "), next))
    }

    /// Checks whether the target of a pair may be written. The inner error lists all reasons to
    /// refuse.
    async fn check_pair(
        &self,
        position: usize,
        used: &[Used],
    ) -> Result<Result<(), String>, Failure> {
        let Item { row, volume, .. } = self.item(position)?;
        let accepted = Some((&row.target, row.target_contents.as_str()));
        let paths = row.target.paths();
        let accepts = Accepted::by(&self.session.options);
        let checked = check_target(&self.context, volume, paths, accepts, used, accepted).await;
        let mut reasons = checked.err().unwrap_or_default();
        // A target that lies on a volume is found by the check of the target.
        let source = Place::new(
            &row.volume,
            self.device(&row.volume),
            [("source", row.source.paths().paths())],
        );
        match standing::problems(&self.context.config, vec![source]).await {
            Ok(found) => reasons.extend(found.into_values()),
            Err(cause) => reasons.push(cause),
        }
        match reasons.is_empty() {
            true => Ok(Ok(())),
            false => Ok(Err(reasons.join("; "))),
        }
    }

    /// The kernel's device of a volume, from its last status.
    fn device(&self, volume: &str) -> Option<PathBuf> {
        let status = self.handles.get(volume)?.view().status?;
        Some(status.device.clone())
    }

    /// Refuses when a volume of these pairs stands on itself.
    async fn check_standing(&self) -> Result<(), Failure> {
        let places = self.pairs.iter().map(|position| {
            let row = &self.session.pairs[*position];
            let legs = [
                ("source", row.source.paths().paths()),
                ("target", row.target.paths().paths()),
            ];
            Place::new(&row.volume, self.device(&row.volume), legs)
        });
        let cause = match standing::problems(&self.context.config, places.collect()).await {
            Ok(found) if found.is_empty() => return Ok(()),
            Ok(found) => found
                .iter()
                .map(|(volume, problem)| format!("pair {volume}: {problem}"))
                .collect::<Vec<_>>()
                .join("; "),
            Err(cause) => cause,
        };
        let name = &self.session.name;
        let next = format!(
            "correct the cause, then `shunt resume {name}` again, or `shunt cancel {name}`"
        );
        Err(failure::refused(self.object(), cause, next))
    }

    fn now_active(
        &self,
        key: &PairKey,
        row: &PairRow,
        side: Side,
        changed: Changed,
    ) -> Vec<Change> {
        let switched_ms = (side == Side::Target).then(now_ms);
        let mut changes = vec![
            Change::SetPair(key.clone(), PairField::Phase(Phase::Active)),
            Change::SetPair(key.clone(), PairField::Authoritative(side)),
            Change::SetPair(key.clone(), PairField::Problem(None)),
            Change::SetPair(key.clone(), PairField::Switched(switched_ms)),
        ];
        if let Some(pause_us) = changed.pause_us {
            changes.push(Change::SetPair(key.clone(), PairField::LastPause(pause_us)));
        }
        changes.extend(self.open_map(row, side));
        changes
    }

    /// The open map of a volume after the role has moved to `side`.
    fn open_map(&self, row: &PairRow, side: Side) -> Option<Change> {
        let open_map = self.volumes.get(&row.volume)?.open_map.clone()?;
        let leg = leg_of(row, side).paths().clone();
        let open_map = OpenMapRow { leg, ..open_map };
        Some(Change::SetOpenMap(row.volume.clone(), open_map))
    }

    /// Stops the copiers and marks the session as paused.
    pub(super) async fn pause(mut self) -> Answer {
        let mut changes = self.stop_copiers().await?;
        changes.push(Change::SetPaused(self.session.name.clone(), true));
        changes.push(note(Some(&self.session.name), None, "paused"));
        self.record(changes).await?;
        Ok(Done::changed(vec![format!(
            "session {} is paused; writes are mirrored where the legs are equal",
            self.session.name
        )]))
    }

    /// Continues the copy, mirrors split targets again, and retries mirror legs that have failed.
    pub(super) async fn resume(self, states: Vec<PairState>) -> Answer {
        self.check_standing().await?;
        let mut problems = Vec::new();
        let changes = vec![
            Change::SetPaused(self.session.name.clone(), false),
            note(Some(&self.session.name), None, "resumed"),
        ];
        self.record(changes).await?;
        problems.extend(self.mirror_split_again().await?);
        for Item {
            key, row, handle, ..
        } in self.items()?
        {
            if states.get(key.position) != Some(&PairState::Degraded) {
                continue;
            }
            match retry_mirror(handle).await {
                Ok(()) => {
                    self.record(vec![Change::SetPair(key, PairField::Problem(None))])
                        .await?
                }
                Err(cause) => problems.push(format!("pair {}: {cause}", row.volume)),
            }
        }
        if problems.is_empty() {
            let name = &self.session.name;
            let hours = self.session.options.hours;
            return Ok(Done::changed(vec![
                match hours.contains(moments::minute_now()) {
                    true => format!("session {name} continues to copy"),
                    false => format!("session {name}: {}", hours::text(hours)),
                },
            ]));
        }
        let name = &self.session.name;
        Err(failure::failed(
            self.object(),
            problems.join("; "),
            format!(
                "see that nothing uses the leg, or repair it, then `shunt resume {name}` again"
            ),
        ))
    }

    /// Makes `to` authoritative for every pair, or for none.
    pub(super) async fn move_role(self, to: Side, max_pause_ms: u64) -> Answer {
        self.move_role_with(to, max_pause_ms, false).await
    }

    /// Makes the target authoritative where pairs track: what is dirty is copied while requests are
    /// held. The copiers continue.
    pub(super) async fn cut_over(self, max_pause_ms: u64) -> Answer {
        self.move_role_with(Side::Target, max_pause_ms, true).await
    }

    async fn move_role_with(mut self, to: Side, max_pause_ms: u64, copies_rest: bool) -> Answer {
        let (phase, what) = match to {
            Side::Target => (Phase::Switching, "switch"),
            Side::Source => (Phase::Undoing, "undo"),
        };
        let policy = match to {
            Side::Target => Vec::new(),
            Side::Source => schedule::by_hand_from_now_on(&self.session, what),
        };
        self.intend_with(phase, what, policy).await?;
        let mut messages = Vec::new();
        let items = self.items()?;
        for (
            done,
            Item {
                key, row, handle, ..
            },
        ) in items.iter().enumerate()
        {
            let route = mirrored(to.into());
            match set_route(handle, row, route, max_pause_ms, copies_rest).await {
                Ok(changed) => {
                    let mut changes = self.now_active(key, row, to, changed);
                    let expected = row.course.estimate.filter(|_| changed.pause_us.is_some());
                    changes.push(self.note(
                        row,
                        format!(
                            "the {to} is authoritative{}{}",
                            pause_text(changed.pause_us),
                            expected.map_or_else(String::new, |estimate| expected_text(
                                units::pause(estimate.pause_us)
                            ))
                        ),
                    ));
                    if to == Side::Target && done + 1 == items.len() && self.is_last() {
                        changes.extend(schedule::by_hand_from_now_on(&self.session, what));
                    }
                    self.record(changes).await?;
                    let lun = leg_of(row, to);
                    messages.push(format!(
                        "{}: the {to} ({lun}) is authoritative{}",
                        row.volume,
                        pause_text(changed.pause_us)
                    ));
                    messages.extend(unreadable::on_target(row, to));
                }
                Err(error) => {
                    return Err(self
                        .move_back(&items, done, to, max_pause_ms, &error)
                        .await?);
                }
            }
        }
        Ok(Done::changed(messages))
    }

    /// Whether no other pair of the session is to be switched later.
    fn is_last(&self) -> bool {
        let mut pairs = self.session.pairs.iter().enumerate();
        pairs.all(|(position, pair)| {
            self.pairs.contains(&position)
                || pair.phase.is_ended()
                || pair.course.switched_ms.is_some()
                || pair.authoritative == Side::Target
        })
    }

    /// Handles the failure of the pair at `failed`: moves the pairs before it back, so that all
    /// pairs of the session are on the same side. Returns the failure for the operator.
    async fn move_back(
        &self,
        items: &[Item<'_>],
        failed: usize,
        to: Side,
        max_pause_ms: u64,
        error: &NotChanged,
    ) -> Result<Failure, Failure> {
        let back = to.other();
        let mut texts = vec![format!("pair {}: {error}", items[failed].row.volume)];
        for Item {
            key, row, handle, ..
        } in &items[..failed]
        {
            let route = mirrored(back.into());
            match set_route(handle, row, route, max_pause_ms, false).await {
                Ok(changed) => {
                    let mut changes = self.now_active(key, row, back, changed);
                    changes.push(self.note(
                        row,
                        format!(
                            "went back: the {back} is authoritative{}",
                            pause_text(changed.pause_us)
                        ),
                    ));
                    self.record(changes).await?;
                    texts.push(format!("pair {} went back to the {back}", row.volume));
                }
                // The phase is the same on both sides: the next status of the volume settles the
                // role.
                Err(error) if error.is_unknown() => texts.push(format!(
                    "pair {} is on the {to}, and whether it has gone back is not known: {error}",
                    row.volume
                )),
                Err(error) => texts.push(format!(
                    "pair {} stays on the {to}, it did not go back: {error}",
                    row.volume
                )),
            }
        }
        let (name, verb) = (
            &self.session.name,
            if to == Side::Target { "switch" } else { "undo" },
        );
        for (index, Item { key, row, .. }) in items.iter().enumerate().skip(failed) {
            let changes = if index == failed && error.is_unknown() {
                let (changes, text) = self.unknown(key, row, verb, error);
                texts[0] = text;
                changes
            } else {
                vec![
                    Change::SetPair(key.clone(), PairField::Phase(Phase::Active)),
                    self.note(row, format!("the role did not move to the {to}: {error}")),
                ]
            };
            self.record(changes).await?;
        }
        texts.push(format!(
            "the {back} is authoritative unless stated otherwise"
        ));
        let next = match error.refusal {
            Some(Refusal::Deadline) => format!(
                "`shunt {verb} {name}` again, with a longer --max-pause or at a quieter time"
            ),
            Some(Refusal::NotInSync) => {
                format!(
                    "`shunt wait {name} --for {back}-selected`, then `shunt {verb} {name}` again"
                )
            }
            Some(
                Refusal::StaleEpoch
                | Refusal::WrongRoute
                | Refusal::Busy
                | Refusal::BadLeg
                | Refusal::CopierBusy
                | Refusal::NotCopier
                | Refusal::DeviceOpen
                | Refusal::Failed
                | Refusal::Ending
                | Refusal::Malformed,
            )
            | None => format!("see `shunt status {name}`, then `shunt {verb} {name}` again"),
        };
        Ok(if error.refusal == Some(Refusal::NotInSync) {
            failure::refused(self.object(), texts.join("; "), next)
        } else {
            failure::failed(self.object(), texts.join("; "), next)
        })
    }

    /// Ends the migration on `side`: the other leg is dropped.
    pub(super) async fn end(mut self, side: Side) -> Answer {
        let (phase, what) = match side {
            Side::Target => (Phase::Committing, "commit"),
            Side::Source => (Phase::Cancelling, "cancel"),
        };
        let mut messages = Vec::new();
        self.end_what_never_started(side, &mut messages).await?;
        if self.pairs.is_empty() {
            return Ok(Done::changed(messages));
        }
        self.intend(phase, what).await?;
        let (mut problems, mut unknown) = (Vec::new(), false);
        for Item {
            key, row, handle, ..
        } in self.items()?
        {
            let route = Route::Single { leg: side.into() };
            let was_split = split::is_split(handle);
            let is_unfinished = side == Side::Source && !was_split && may_be_dirty(handle).await;
            match set_route(handle, row, route, DEADLINE_MS, false).await {
                Ok(changed) => {
                    let mut changes = ended_changes(&self.session.name, key.position, row, side);
                    changes.extend(self.open_map(row, side));
                    if let Some(pause_us) = changed.pause_us {
                        changes.push(Change::SetPair(key, PairField::LastPause(pause_us)));
                    }
                    if is_unfinished
                        && let Err(cause) = mark_unfinished(&self.session.name, row).await
                    {
                        messages.push(format!("{}: {cause}: it is no copy", row.volume));
                    }
                    if was_split && let Err(cause) = set_read_only(&row.target, false).await {
                        messages.push(format!("{}: {cause}", row.volume));
                    }
                    self.record(changes).await?;
                    messages.push(ended_text(row, side));
                }
                Err(error) if error.is_unknown() => {
                    let (changes, problem) = self.unknown(&key, row, what, &error);
                    self.record(changes).await?;
                    problems.push(problem);
                    unknown = true;
                }
                Err(NotChanged { cause, .. }) => {
                    // The target of a split pair stays the copy that it was.
                    let (phase, stays) = match was_split && row.copy_of.is_some() {
                        true => (Phase::Split, format!("{} is a copy as before", row.target)),
                        false => (
                            Phase::Active,
                            format!("the {side} is authoritative and mirrored as before"),
                        ),
                    };
                    let changes = vec![
                        Change::SetPair(key.clone(), PairField::Phase(phase)),
                        Change::SetPair(key, PairField::Problem(None)),
                        self.note(row, format!("the {what} failed: {cause}")),
                    ];
                    self.record(changes).await?;
                    problems.push(format!("pair {}: {cause}; {stays}", row.volume));
                }
            }
        }
        if problems.is_empty() {
            if let (Side::Target, Some(how)) = (side, self.session.options.retire) {
                for position in &self.pairs {
                    let (context, session) = (&self.context, &self.session);
                    messages.push(retire_source(context, session, *position, how).await);
                }
            }
            return Ok(Done::changed(messages));
        }
        problems.extend(messages);
        let name = &self.session.name;
        let next = match unknown {
            true => format!(
                "see `shunt status {name}`: the {what} is finished automatically when the volume answers"
            ),
            false => format!("`shunt {what} {name}` again ends the others"),
        };
        Err(failure::failed(self.object(), problems.join("; "), next))
    }

    /// Ends pairs that were never mirrored, which needs no ublk-target, and removes them from the
    /// operation.
    async fn end_what_never_started(
        &mut self,
        side: Side,
        messages: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let (mut never, mut begun) = (Vec::new(), Vec::new());
        for position in self.pairs.clone() {
            if self.was_never_mirrored(position).await? {
                never.push(position);
            } else {
                begun.push(position);
            }
        }
        self.pairs = begun;
        for position in never {
            let row = &self.session.pairs[position];
            self.record(ended_changes(&self.session.name, position, row, side))
                .await?;
            messages.push(ended_text(row, side));
        }
        Ok(())
    }

    /// Whether a pair was never mirrored. A start that a crash of shuntd interrupted may still be
    /// in progress, so the status of the volume decides.
    async fn was_never_mirrored(&self, position: usize) -> Result<bool, Failure> {
        let row = &self.session.pairs[position];
        let Some(handle) = self.handles.get(&row.volume) else {
            return Ok(matches!(
                row.phase,
                Phase::Setup | Phase::Queued | Phase::Starting
            ));
        };
        let view = match row.phase {
            Phase::Setup | Phase::Queued => handle.view(),
            Phase::Starting => handle.while_not_changing().await.map_err(|error| {
                let next = format!("`shunt cancel {}` again", self.session.name);
                let cause = format!("whether it was started is not known: {error}");
                failure::failed(failure::pair(&self.session.name, &row.volume), cause, next)
            })?,
            Phase::Active
            | Phase::Splitting
            | Phase::Split
            | Phase::Switching
            | Phase::Undoing
            | Phase::Committing
            | Phase::Committed
            | Phase::Cancelling
            | Phase::Cancelled => return Ok(false),
        };
        let status = view.status;
        Ok(!status.is_some_and(|status| is_mirrored_on(&status, row)))
    }
}

/// Makes ublk-target use its failed mirror leg again.
pub(super) async fn retry_mirror(handle: &VolumeHandle) -> Result<(), String> {
    let status = handle
        .status(RETRY_MIRROR_MAX)
        .await
        .map_err(|error| error.to_string())?;
    match handle
        .ask(
            Request::RetryMirror {
                epoch: status.epoch,
            },
            RETRY_MIRROR_MAX,
        )
        .await
    {
        Ok(Response::Done) => Ok(()),
        Ok(Response::Refused { cause, .. }) => Err(cause),
        Ok(other) => Err(format!("ublk-target answers with {other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether anything may be dirty; true if the volume does not answer.
async fn may_be_dirty(handle: &VolumeHandle) -> bool {
    let status = handle.status(COME_BACK_MAX).await;
    status.map_or(true, |status| status.dirty_bytes > 0)
}

/// Marks the target on its LUNs as no copy. No process may have the target open.
pub(super) async fn mark_unfinished(session: &str, row: &PairRow) -> Result<(), String> {
    let text = format!("volume {}, session {session}\n", row.volume);
    let target = row.target.clone();
    let marked = blocking(move || {
        let options = OpenOptions {
            write: true,
            exclusive: true,
            ..OpenOptions::default()
        };
        for row in target.luns() {
            let lun = open_recorded(row, &options)?;
            lun.mark_unfinished(&text)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    });
    marked.await.and_then(|marked| marked)
}

/// Changes that record that a pair has ended on `side`.
pub(super) fn ended_changes(
    session: &str,
    position: usize,
    row: &PairRow,
    side: Side,
) -> Vec<Change> {
    let key = PairKey {
        session: session.to_owned(),
        position,
    };
    let set = |field| Change::SetPair(key.clone(), field);
    let mut changes = Vec::new();
    match side {
        Side::Target => {
            changes.push(set(PairField::Phase(Phase::Committed)));
            changes.push(Change::SetVolumeLeg(row.volume.clone(), row.target.clone()));
            changes.extend(row.source.unlock());
            let locks = row.target.locks(&failure::volume(&row.volume));
            changes.extend(locks.into_iter().map(Change::MoveLock));
        }
        Side::Source => {
            changes.push(set(PairField::Phase(Phase::Cancelled)));
            changes.extend(row.target.unlock());
        }
    }
    changes.push(set(PairField::Authoritative(side)));
    changes.push(set(PairField::Problem(None)));
    changes.push(note(
        Some(session),
        Some(&row.volume),
        ended_text(row, side),
    ));
    changes
}

fn ended_text(row: &PairRow, side: Side) -> String {
    let (stays, freed) = (leg_of(row, side), leg_of(row, side.other()));
    format!(
        "{} is on {} alone; {} is no longer used",
        row.volume, stays, freed
    )
}

/// The leg of a side of a pair.
pub(super) fn leg_of(row: &PairRow, side: Side) -> &LegRow {
    match side {
        Side::Source => &row.source,
        Side::Target => &row.target,
    }
}

/// The value that `shunt plan` had predicted, for a note about the real one.
pub(super) fn expected_text(what: impl fmt::Display) -> String {
    format!(" (`shunt plan` said {what})")
}

pub(super) fn pause_text(pause_us: Option<u64>) -> String {
    pause_us.map_or_else(String::new, |pause_us| {
        format!(
            ", requests were held for {}.{:03} ms",
            pause_us / 1000,
            pause_us % 1000
        )
    })
}
