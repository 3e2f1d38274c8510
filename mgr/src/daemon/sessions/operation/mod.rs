//! Performs the verbs of a session. Which steps a verb has, in which order, and what is recorded
//! after each of them, is decided by [`migration_core::operation`]; this module carries the steps
//! out on real volumes, LUNs and rows.
//!
//! | module | what it does |
//! |---|---|
//! | [`steps`] | one step with one pair |
//! | [`words`] | what the operator reads, and in `entries` what is recorded |

mod steps;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use copier::Copier;
use migration_core::operation::{self as core, Effect, Entry, Event, Plan, PlannedPair, Step};
use migration_core::pair::{PairState, Phase, Verb};
use migration_core::schedule::is_to_be_switched;
use migration_proto::manager::{Failure, HistoryEvent, SessionOptions};
use tokio::task::JoinSet;

use crate::daemon::context::{Context, blocking, note, now_ms};
use crate::daemon::failure::{self, Answer};
use crate::daemon::handle::VolumeHandle;
use crate::daemon::luns::checks::{Accepted, Used, check_target};
use crate::daemon::luns::standing::{self, Place};
use crate::daemon::perform::{self, Performer};
use crate::history;
use crate::store::{Change, PairField, PairKey, PairRow, SessionRow, VolumeRow};
use steps::{OperationPair, Outcome};
use words::Report;
pub(crate) use words::entries::ended_changes;

/// Delay before queued pairs are retried after a failure that no single pair caused.
const QUEUE_RETRY: Duration = Duration::from_secs(1);

/// An operation on a session, with the data that it needs.
pub(crate) struct Operation {
    pub(crate) context: Context,
    pub(crate) session: SessionRow,
    /// The rows of the volumes of all pairs, as far as they exist.
    pub(crate) volumes: BTreeMap<String, VolumeRow>,
    pub(crate) handles: BTreeMap<String, VolumeHandle>,
    /// The copiers to stop first, with what they have copied.
    pub(crate) copiers: Vec<(PairKey, Copier, u64)>,
}

/// What the operator asked for, beside the verb and the pairs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terms {
    /// For a switch, an undo and a split: how long requests may be held.
    pub(crate) max_pause_ms: u64,
    /// For a start: the LUNs in use, without the targets of this session.
    pub(crate) used: Vec<Used>,
    /// For a start: how many pairs are copied at the same time.
    pub(crate) pairs_max: u32,
}

/// A verb that is being performed.
struct Performing<'a> {
    operation: &'a mut Operation,
    terms: Terms,
    report: Report,
}

impl Performer for Performing<'_> {
    async fn perform(&mut self, effects: Vec<Effect>) -> Result<Vec<Event>, Failure> {
        let Self {
            operation,
            terms,
            report,
        } = self;
        operation.perform(effects, terms, report).await
    }
}

impl Operation {
    pub(crate) fn object(&self) -> String {
        failure::session(&self.session.name)
    }

    fn key(&self, position: usize) -> PairKey {
        PairKey {
            session: self.session.name.clone(),
            position,
        }
    }

    fn row(&self, position: usize) -> &PairRow {
        &self.session.pairs[position]
    }

    /// Performs a verb on the pairs at `positions`, of which `states` are the states of all pairs
    /// of the session. `later`: the pairs that a start queues.
    pub(crate) async fn verb(
        mut self,
        verb: Verb,
        positions: &[usize],
        later: Vec<usize>,
        states: &[PairState],
        terms: Terms,
    ) -> Answer {
        let answer = match self.require_handles(verb, positions) {
            Ok(()) => {
                let plan = self.plan(positions, later, states, false);
                let machine = core::Operation::new(verb, plan);
                let intent = HistoryEvent::VerbBegun { verb };
                self.run(verb, intent, machine, terms).await
            }
            Err(failure) => Err(failure),
        };
        // Those that a refusal left: to drop a copier would block all of shuntd until its I/O ends.
        self.stop_copiers().await?;
        answer
    }

    /// Switches pairs that track: what is dirty is copied while requests are held, and the copiers
    /// continue.
    pub(crate) async fn cut_over(mut self, positions: &[usize], max_pause_ms: u64) -> Answer {
        let plan = self.plan(positions, Vec::new(), &[], true);
        let terms = Terms {
            max_pause_ms,
            ..Terms::default()
        };
        let machine = core::Operation::new(Verb::Switch, plan);
        let verb = Verb::Switch;
        let intent = HistoryEvent::VerbBegun { verb };
        self.run(verb, intent, machine, terms).await
    }

    /// Starts pairs that were queued. A pair that no longer fits does not hold up the others.
    pub(crate) async fn start_queued(mut self, positions: Vec<usize>, used: Vec<Used>) -> Answer {
        let machine = core::Operation::start_queued(positions);
        let terms = Terms {
            used,
            ..Terms::default()
        };
        let begun = self
            .run(Verb::Start, HistoryEvent::TurnCame, machine, terms)
            .await;
        if begun.is_err() {
            // The pairs that are still queued are retried when this answer is evaluated.
            tokio::time::sleep(QUEUE_RETRY).await;
        }
        begun
    }

    /// Fails if a volume is not supervised, before anything is done. A pair that was never mirrored
    /// can end without.
    fn require_handles(&self, verb: Verb, positions: &[usize]) -> Result<(), Failure> {
        let missing = positions
            .iter()
            .map(|position| self.row(*position))
            .find(|row| {
                let needed = !matches!(row.phase, Phase::Setup | Phase::Queued | Phase::Starting)
                    || verb != Verb::Cancel;
                needed && verb != Verb::Pause && !self.handles.contains_key(&row.volume)
            });
        missing.map_or(Ok(()), |row| Err(failure::no_volume(&row.volume)))
    }

    fn plan(
        &self,
        positions: &[usize],
        later: Vec<usize>,
        states: &[PairState],
        copies_rest: bool,
    ) -> Plan {
        let planned = |position: &usize| PlannedPair {
            pair: *position,
            phase: self.row(*position).phase,
            degraded: states.get(*position) == Some(&PairState::Degraded),
            is_copy: self.row(*position).copy_of.is_some(),
        };
        let mut pairs = self.session.pairs.iter().enumerate();
        let SessionOptions { retire, .. } = self.session.options;
        Plan {
            pairs: positions.iter().map(planned).collect(),
            later,
            copies_rest,
            is_last: pairs.all(|(position, pair)| {
                let switched = pair.progress.switched_ms.is_some();
                positions.contains(&position)
                    || !is_to_be_switched(pair.phase, pair.authoritative, switched)
            }),
            retire: retire.is_some(),
        }
    }

    /// Performs a verb; `intent` is its event in the history.
    async fn run(
        &mut self,
        verb: Verb,
        intent: HistoryEvent,
        mut machine: core::Operation,
        terms: Terms,
    ) -> Answer {
        let mut performing = Performing {
            report: Report::new(verb, intent, terms.pairs_max),
            operation: self,
            terms,
        };
        let end = perform::run(&mut machine, &mut performing).await?;
        let Performing {
            report, operation, ..
        } = performing;
        report.answer(operation, end)
    }

    /// Performs effects at the same time. Returns what they led to.
    async fn perform(
        &mut self,
        effects: Vec<Effect>,
        terms: &Terms,
        report: &mut Report,
    ) -> Result<Vec<Event>, Failure> {
        let mut events = Vec::new();
        let mut steps = Vec::new();
        for effect in effects {
            match effect {
                Effect::StopCopiers => {
                    report.copied = self.stop_copiers().await?;
                    events.push(Event::CopiersStopped);
                }
                Effect::CheckTargets(pairs) => {
                    let mut unfit = Vec::new();
                    for pair in pairs {
                        let reasons = self.reasons_against_target(pair, &terms.used).await?;
                        if !reasons.is_empty() {
                            report.refused(self.row(pair), pair, reasons.join("; "));
                            unfit.push(pair);
                        }
                    }
                    events.push(Event::Checked { unfit });
                }
                Effect::CheckStanding(pairs) => {
                    let unfit = self.check_standing(&pairs, report).await;
                    events.push(Event::Checked { unfit });
                }
                Effect::Record(entries) => {
                    self.record_entries(&entries, report).await?;
                    events.push(Event::Recorded);
                }
                Effect::Pair(pair, step) => steps.push((pair, step)),
                // An operation ends before, and a session is not recovered.
                Effect::End(_) | Effect::Volume(_) => {}
            }
        }
        events.extend(self.perform_steps(steps, terms, report).await?);
        Ok(events)
    }

    async fn perform_steps(
        &self,
        steps: Vec<(usize, Step)>,
        terms: &Terms,
        report: &mut Report,
    ) -> Result<Vec<Event>, Failure> {
        let mut asked = JoinSet::new();
        if steps.iter().any(|(_, step)| *step == Step::Release) {
            // If the split succeeds, all volumes hold requests at this moment.
            report.copy_of_at_ms = now_ms();
        }
        for (index, (pair, step)) in steps.iter().copied().enumerate() {
            let hold_ms = report.hold_ms(step, terms.max_pause_ms);
            let item = match step {
                Step::Inspect(_) => self.item(pair).ok(),
                _ => Some(self.item(pair)?),
            };
            // A volume that does not exist uses nothing.
            let Some(item) = item else {
                asked.spawn(async move { (index, Outcome::apart()) });
                continue;
            };
            asked.spawn(async move { (index, item.perform(step, hold_ms).await) });
        }
        let mut outcomes = asked.join_all().await;
        outcomes.sort_by_key(|(index, _)| *index);
        let events = outcomes.into_iter().map(|(index, outcome)| {
            let (pair, step) = steps[index];
            let answer = outcome.answer;
            report.note(self, pair, step, outcome);
            Event::Pair(pair, answer)
        });
        Ok(events.collect())
    }

    fn item(&self, position: usize) -> Result<OperationPair, Failure> {
        let row = self.row(position);
        match self.handles.get(&row.volume) {
            Some(handle) => Ok(OperationPair {
                context: self.context.clone(),
                session: self.session.clone(),
                position,
                row: row.clone(),
                handle: handle.clone(),
            }),
            None => Err(failure::no_volume(&row.volume)),
        }
    }

    pub(crate) async fn stop_copiers(&mut self) -> Result<Vec<Change>, Failure> {
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

    async fn record_entries(&self, entries: &[Entry], report: &mut Report) -> Result<(), Failure> {
        let mut changes = std::mem::take(&mut report.copied);
        for entry in entries {
            changes.extend(report.changes(self, *entry));
        }
        let intends = |entry: &Entry| matches!(entry, Entry::Intended { .. } | Entry::Queued(_));
        if !entries.iter().any(intends) {
            return self.record(changes).await;
        }
        crash_point::here("intention-before");
        self.context.record(&self.object(), changes).await?;
        crash_point::here("intention-after");
        Ok(())
    }

    /// Records what was done.
    pub(crate) async fn record(&self, changes: Vec<Change>) -> Result<(), Failure> {
        crash_point::here("done-before-recorded");
        self.context.record(&self.object(), changes).await?;
        crash_point::here("done-recorded");
        Ok(())
    }

    fn note(&self, pair: &PairRow, event: HistoryEvent) -> Change {
        note(Some(&self.session.name), Some(&pair.volume), event)
    }

    fn sentence(&self, pair: &PairRow, event: &HistoryEvent) -> String {
        history::sentence(event, Some(&self.session.name), Some(&pair.volume))
    }

    /// All reasons why the target of a pair must not be written; none if it may be.
    async fn reasons_against_target(
        &self,
        position: usize,
        used: &[Used],
    ) -> Result<Vec<String>, Failure> {
        let row = self.row(position);
        let volume = self
            .volumes
            .get(&row.volume)
            .ok_or_else(|| failure::no_volume(&row.volume))?;
        let accepted = Some((&row.target, row.target_contents.as_str()));
        let paths = row.target.paths();
        let accepts = Accepted::by(&self.session.options);
        let checked = check_target(&self.context, volume, paths, accepts, used, accepted).await;
        let mut reasons = checked.err().unwrap_or_default();
        // The check of the target finds it if the target is stacked on the volume itself.
        let source = Place::new(
            &row.volume,
            self.device(&row.volume),
            [("source", row.source.paths().paths())],
        );
        match standing::problems(&self.context.config, vec![source]).await {
            Ok(found) => reasons.extend(found.into_values()),
            Err(cause) => reasons.push(cause),
        }
        Ok(reasons)
    }

    /// The kernel's device of a volume, as it was reported last.
    fn device(&self, volume: &str) -> Option<PathBuf> {
        let status = self.handles.get(volume)?.view().status?;
        Some(status.device.clone())
    }

    /// The pairs whose volume lies on itself; all of them if that is not known.
    async fn check_standing(&self, pairs: &[usize], report: &mut Report) -> Vec<usize> {
        let places = pairs.iter().map(|position| {
            let row = self.row(*position);
            let legs = [
                ("source", row.source.paths().paths()),
                ("target", row.target.paths().paths()),
            ];
            Place::new(&row.volume, self.device(&row.volume), legs)
        });
        match standing::problems(&self.context.config, places.collect()).await {
            Ok(found) => {
                let mut unfit = Vec::new();
                for position in pairs {
                    let row = self.row(*position);
                    if let Some(problem) = found.get(&row.volume) {
                        report.refused(row, *position, problem.clone());
                        unfit.push(*position);
                    }
                }
                unfit
            }
            Err(cause) => {
                report.refusals.push(cause);
                pairs.to_vec()
            }
        }
    }
}
