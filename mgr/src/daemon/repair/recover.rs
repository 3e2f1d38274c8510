//! Makes a new map file for a volume whose map file is lost or damaged: the operator says which leg
//! is right.
//!
//! The new map file says that the volume uses that leg alone. The other leg is not touched, so a
//! wrong answer can be corrected as long as nobody has used that leg for something else; a new
//! session copies everything again. A map file that is whole is never replaced, and a damaged one
//! that still says which leg is authoritative is believed.
//!
//! Which leg may be named, in which order the steps are done, and what is recorded before the map
//! file is made, is decided by [`migration_core::operation::recover`]; this module carries the
//! steps out.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use migration_core::operation::recover::{
    Examined, Found, Known, LivePair, NotRecovered, Params, Recover, Refusal, VolumeStep,
    has_both_legs,
};
use migration_core::operation::{
    Answer as StepAnswer, Effect, End, Entry, Event as CoreEvent, Operation,
};
use migration_core::route::Side;
use migration_proto::manager::{Failure, HistoryEvent};
use migration_proto::route::{Descriptor, MapSummary};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::daemon::context::{Context, note, now_ms};
use crate::daemon::event::Event;
use crate::daemon::failure::{self, Answer, Done};
use crate::daemon::folders::{make_directory, sync_parent};
use crate::daemon::handle::VolumeHandle;
use crate::daemon::perform::{self, Performer};
use crate::daemon::volumes::attach;
use crate::daemon::volumes::process::{self, DescribeError};
use crate::daemon::volumes::supervisor::supervise;
use crate::daemon::volumes::truth::Truth;
use crate::history;
use crate::store::{Change, LegRow, PairField, PairKey, PairRow, VolumeRow, leg_of};

/// How long the volume may take to come up with the new map file.
const START_MAX: Duration = Duration::from_secs(60);

/// A recovery in progress.
pub(crate) struct Recovery {
    pub(crate) context: Context,
    pub(crate) row: VolumeRow,
    /// The live pair of the volume.
    pub(crate) pair: Option<(PairKey, PairRow)>,
    pub(crate) handle: Option<VolumeHandle>,
    pub(crate) params: Params,
}

/// A recovery that is being performed.
struct Performing {
    recovery: Recovery,
    /// What is wrong with the map file.
    damage: String,
    /// What can still be read of the map file.
    summary: Option<MapSummary>,
    /// Why a step was not done.
    failure: Option<Failure>,
}

impl Recovery {
    pub(crate) async fn run(self) -> Answer {
        let pair = self.pair.as_ref().map(|(key, pair)| LivePair {
            pair: key.position,
            phase: pair.phase,
            authoritative: pair.authoritative,
        });
        let mut machine = Operation::Recover(Recover::new(pair, self.params));
        let mut performing = Performing {
            recovery: self,
            damage: String::new(),
            summary: None,
            failure: None,
        };
        let end = perform::run(&mut machine, &mut performing).await?;
        match machine {
            Operation::Recover(recover) => performing.answer(&recover, end),
            // It does not become another operation.
            Operation::Start(_)
            | Operation::MoveRole(_)
            | Operation::Finish(_)
            | Operation::Split(_)
            | Operation::Pause(_)
            | Operation::Resume(_) => Ok(Done::changed(Vec::new())),
        }
    }

    fn object(&self) -> String {
        failure::volume(&self.row.name)
    }

    fn map(&self) -> PathBuf {
        self.context.config.map(&self.row.name)
    }

    /// Why the leg may not be named, and what to do next.
    fn leg_refusal(&self, refusal: Refusal) -> (String, String) {
        let (name, side) = (&self.row.name, self.params.side);
        let other = side.other();
        let only_source = || format!("`shunt recover {name} --authoritative source`");
        match refusal {
            Refusal::OneLeg => (
                "it has one leg, which counts as its source".to_owned(),
                only_source(),
            ),
            Refusal::NeverAuthoritative => (
                "its target has never been authoritative".to_owned(),
                only_source(),
            ),
            Refusal::AgainstRecord => (
                format!(
                    "the {other} was authoritative when the volume was last seen: the {side} may be older, and what was \
                     written since would be lost"
                ),
                format!(
                    "`shunt recover {name} --authoritative {other}`; if you know better, add --against-record"
                ),
            ),
        }
    }

    fn plan(&self, damage: &str, known: &Known) -> Vec<String> {
        let (name, side) = (&self.row.name, self.params.side);
        let (source, other) = self.legs(known.has_both_legs());
        let why = match known.recorded() {
            Some(record) if record == side => {
                "it was authoritative when the volume was last seen".to_owned()
            }
            Some(record) => {
                format!("although the {record} was authoritative when the volume was last seen")
            }
            None => "a change of the role was under way, so nothing recorded says which".to_owned(),
        };
        let stays = match (&other, side) {
            (Some(target), Side::Target) => target,
            (Some(_) | None, Side::Source) | (None, Side::Target) => &source,
        };
        let mut plan = vec![
            format!("volume {name}: {damage}"),
            format!(
                "a new map file says that the volume uses {} alone ({why}); what is left of the old one is kept beside it",
                stays
            ),
        ];
        if let Some((key, pair)) = self.pair.as_ref().filter(|_| other.is_some()) {
            let given_up = leg_of(pair, side.other());
            plan.push(format!(
                "{} is not written, and no longer used; session {} ends for this volume, and a new one, with --overwrite, \
                 copies everything again",
                given_up,
                key.session
            ));
        }
        plan
    }

    /// Whether the new map file has both legs of the pair.
    fn has_both_legs(&self) -> bool {
        let pair = self.pair.as_ref().map(|(_, pair)| pair.phase);
        pair.is_some_and(has_both_legs)
    }

    /// The legs of the new map file.
    fn legs(&self, has_both_legs: bool) -> (LegRow, Option<LegRow>) {
        match &self.pair {
            Some((_, pair)) if has_both_legs => (pair.source.clone(), Some(pair.target.clone())),
            Some(_) | None => (self.row.leg.clone(), None),
        }
    }

    async fn format(
        &self,
        summary: Option<&MapSummary>,
        side: Side,
        has_both_legs: bool,
    ) -> Result<(), String> {
        let (source, target) = self.legs(has_both_legs);
        let size_bytes = self.row.size_bytes;
        let logical_block_bytes = self.row.logical_block_bytes;
        let descriptor = Descriptor {
            volume: self.row.name.clone(),
            volume_id: self.row.volume_id.clone(),
            size_bytes,
            logical_block_bytes,
            physical_block_bytes: summary.map_or(logical_block_bytes, |summary| {
                summary.descriptor.physical_block_bytes
            }),
            source: source.layout(size_bytes),
            target: target.map(|target| target.layout(size_bytes)),
        };
        process::format(
            &self.context.config.ublk_target,
            &self.map(),
            &descriptor,
            side,
        )
        .await
    }
}

impl Performer for Performing {
    async fn perform(&mut self, effects: Vec<Effect>) -> Result<Vec<CoreEvent>, Failure> {
        let mut events = Vec::new();
        for effect in effects {
            let step = match effect {
                Effect::Record(entries) => {
                    self.record(&entries).await?;
                    events.push(CoreEvent::Recorded);
                    continue;
                }
                Effect::Volume(step) => step,
                // A recovery has no other effects.
                Effect::StopCopiers
                | Effect::CheckTargets(_)
                | Effect::CheckStanding(_)
                | Effect::Pair(..)
                | Effect::End(_) => continue,
            };
            events.push(match step {
                VolumeStep::Examine => CoreEvent::Examined(self.examine().await),
                VolumeStep::EndAttempts => {
                    if let Some(handle) = &self.recovery.handle {
                        handle.abandon().await;
                    }
                    CoreEvent::Volume(StepAnswer::Done)
                }
                VolumeStep::MakeMap {
                    side,
                    has_both_legs,
                } => CoreEvent::Volume(self.make_map(side, has_both_legs).await),
                VolumeStep::Serve => CoreEvent::Volume(self.serve().await),
            });
        }
        Ok(events)
    }
}

impl Performing {
    /// Whether anything is left of the map file of a volume that is not served, and can be read.
    async fn examine(&mut self) -> Examined {
        let recovery = &self.recovery;
        let status = format!(
            "see `shunt status`, and `shunt history` for {}",
            recovery.row.name
        );
        let view = recovery.handle.as_ref().map(VolumeHandle::view);
        if view.as_ref().is_some_and(|view| view.connected) {
            let cause = "it is being served: nothing is to be recovered";
            self.failure = Some(failure::refused(recovery.object(), cause, status));
            return Examined::Served;
        }
        let map = recovery.map();
        match map.try_exists() {
            Ok(true) => {}
            Ok(false) => {
                self.damage = format!("{} is missing", map.display());
                return Examined::Nothing;
            }
            Err(error) => {
                let cause = format!("{} cannot be examined: {error}", map.display());
                self.failure = Some(failure::failed(recovery.object(), cause, status));
                return Examined::Unknown;
            }
        }
        match process::describe(&recovery.context.config.ublk_target, &map).await {
            Err(DescribeError::Damaged(damage)) => {
                self.damage = damage;
                Examined::Nothing
            }
            Err(DescribeError::Unknown(cause)) => {
                let cause = format!("whether its map file is damaged is not known: {cause}");
                let next = "correct that, then the same command again";
                self.failure = Some(failure::failed(recovery.object(), cause, next));
                Examined::Unknown
            }
            Ok(summary) => self.judge(summary),
        }
    }

    /// Judges a map file that can be read, at least in part.
    fn judge(&mut self, summary: MapSummary) -> Examined {
        let row = &self.recovery.row;
        let Descriptor {
            volume, volume_id, ..
        } = &summary.descriptor;
        let (is_ours, has_name) = (*volume_id == row.volume_id, *volume == row.name);
        let found = Found::of(is_ours, has_name, summary.damage.is_some());
        self.damage = match found {
            Found::OfAnother => {
                let map = self.recovery.map();
                format!("{} is that of another volume, {volume}", map.display())
            }
            Found::Damaged | Found::OfNamesake | Found::Whole => {
                summary.damage.clone().unwrap_or_default()
            }
        };
        let has_recorded_legs = self.has_recorded_legs(&summary);
        let route = summary.route.into();
        self.summary = Some(summary).filter(|_| found != Found::OfAnother);
        Examined::Readable {
            found,
            route,
            has_recorded_legs,
        }
    }

    /// Whether what can be read of the map file names the recorded legs.
    fn has_recorded_legs(&self, summary: &MapSummary) -> bool {
        let recovery = &self.recovery;
        let (source, target) = recovery.legs(recovery.has_both_legs());
        let truth = Truth::of_map(summary);
        truth.is_single_on(&recovery.row.leg) || truth.is_of(&source, target.as_ref())
    }

    /// Records the phase that the route of the new map file will settle.
    async fn record(&self, entries: &[Entry]) -> Result<(), Failure> {
        let recovery = &self.recovery;
        let event = HistoryEvent::RecoverBegun {
            leg: recovery.params.side.into(),
            cause: self.damage.clone(),
        };
        let session = recovery.pair.as_ref().map(|(key, _)| key.session.as_str());
        let mut changes = vec![note(session, Some(&recovery.row.name), event)];
        if let Some((key, _)) = &recovery.pair {
            for entry in entries {
                let phase = entry.phase().map(PairField::Phase);
                let side = entry.authoritative().map(PairField::Authoritative);
                let fields = phase.into_iter().chain(side);
                changes.extend(fields.map(|field| Change::SetPair(key.clone(), field)));
            }
        }
        let object = recovery.object();
        recovery.context.record(&object, changes).await
    }

    /// Makes the new map file.
    async fn make_map(&mut self, side: Side, has_both_legs: bool) -> StepAnswer {
        let recovery = &self.recovery;
        let made = match set_aside(&recovery.map()) {
            Ok(()) => {
                let summary = self.summary.as_ref();
                let made = recovery.format(summary, side, has_both_legs).await;
                made.map_err(|cause| (StepAnswer::Unknown, cause))
            }
            Err(cause) => Err((StepAnswer::Refused, cause)),
        };
        let Err((answer, cause)) = made else {
            return StepAnswer::Done;
        };
        let next = format!(
            "correct the cause, then {}",
            failure::recover_command(&recovery.row.name)
        );
        self.failure = Some(failure::failed(recovery.object(), cause, next));
        answer
    }

    /// Serves the volume. If there is no new map file, its supervisor alone is started.
    async fn serve(&mut self) -> StepAnswer {
        let recovery = &self.recovery;
        let handle = supervise(
            attach::setup(&recovery.context, &recovery.row),
            recovery.context.events.clone(),
        );
        let supervised = Event::Supervised(handle.clone());
        recovery.context.notify(supervised).await;
        if self.failure.is_some() {
            return StepAnswer::Refused;
        }
        let up = handle
            .wait_for(START_MAX, |view| view.connected || view.failures > 0)
            .await;
        let problem = match up {
            Ok(view) if view.connected => return StepAnswer::Done,
            Ok(view) => view.problem.unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        let cause = format!("it has a new map file, but does not come up: {problem}");
        let next = "correct the cause; it is restarted automatically";
        self.failure = Some(failure::failed(recovery.object(), cause, next));
        StepAnswer::Refused
    }

    /// What the operator reads.
    fn answer(mut self, recover: &Recover, end: End) -> Answer {
        let failure = match recover.refused() {
            Some(why) => Some(self.refusal(why)),
            None => self.failure.take(),
        };
        match (end, failure) {
            (End::Refused | End::Failed, Some(failure)) => Err(failure),
            (End::Done | End::Refused | End::Failed, _) => Ok(Done {
                changed: !self.recovery.params.dry_run,
                messages: self.recovery.plan(&self.damage, recover.known()),
            }),
        }
    }

    fn refusal(&mut self, why: NotRecovered) -> Failure {
        let recovery = &self.recovery;
        let map = recovery.map();
        let map = map.display();
        let (cause, next) = match why {
            // The volume was detached and attached again since.
            NotRecovered::OfNamesake => (
                format!(
                    "{map} is that of another volume of this name: the database is older than the map file"
                ),
                failure::other_volume_next(&recovery.row.name),
            ),
            NotRecovered::NotDamaged => {
                if let Some(failure) = self.failure.take() {
                    return failure;
                }
                let view = recovery.handle.as_ref().map(VolumeHandle::view);
                let problem = view.and_then(|view| view.problem).unwrap_or_default();
                (
                    format!(
                        "its map file is whole, and is not replaced; what keeps the volume down: {problem}"
                    ),
                    "correct that; the volume is restarted automatically".to_owned(),
                )
            }
            NotRecovered::OtherLegs => {
                let truth = self.summary.as_ref().map(Truth::of_map);
                let truth = truth.map(|truth| truth.text()).unwrap_or_default();
                (
                    format!(
                        "its map file says that it {truth}, which is not what is recorded: the database is older than the map file"
                    ),
                    history::REBUILD.to_owned(),
                )
            }
            NotRecovered::Leg(refusal) => recovery.leg_refusal(refusal),
        };
        failure::refused(recovery.object(), cause, next)
    }
}

/// Renames what is left of a map file, unless a process serves it.
fn set_aside(map: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot set {} aside: {error}", map.display());
    let file = match File::open(map) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = map.parent().unwrap_or(map);
            return make_directory(directory).map_err(failed);
        }
        Err(error) => return Err(failed(error)),
    };
    let _lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        if error == Errno::EWOULDBLOCK {
            format!("{} is locked: a ublk-target serves it", map.display())
        } else {
            failed(error.into())
        }
    })?;
    let kept = map.with_extension(format!("damaged-{}", now_ms()));
    std::fs::rename(map, kept)
        .and_then(|()| sync_parent(map))
        .map_err(failed)
}
