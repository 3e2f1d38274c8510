//! Makes a new map file for a volume whose map file is lost or damaged: the operator says which leg
//! is right.
//!
//! The new map file says that the volume uses that leg alone. The other leg is not touched, so a
//! wrong answer can be corrected as long as nobody has used that leg for something else; a new
//! session copies everything again. A map file that is whole is never replaced, and a damaged one
//! that still says which leg is authoritative is believed.
//!
//! Which leg may be named, and what is recorded before the map file is made, is decided by
//! [`migration_core::operation::recover`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use migration_core::operation::recover::{Found, Known, LivePair, Refusal};
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
use crate::daemon::volumes::attach;
use crate::daemon::volumes::process::{self, DescribeError};
use crate::daemon::volumes::supervisor::supervise;
use crate::daemon::volumes::truth::Truth;
use crate::history;
use crate::store::{Change, LegRow, PairField, PairKey, PairRow, VolumeRow, leg_of};

/// How long the volume may take to come up with the new map file.
const START_MAX: Duration = Duration::from_secs(60);

/// The parameters of a recovery, as the operator requests it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecoverParams {
    pub(crate) side: Side,
    pub(crate) against_record: bool,
    pub(crate) dry_run: bool,
}

/// A recovery in progress.
pub(crate) struct Recovery {
    pub(crate) context: Context,
    pub(crate) row: VolumeRow,
    /// The live pair of the volume.
    pub(crate) pair: Option<(PairKey, PairRow)>,
    pub(crate) handle: Option<VolumeHandle>,
    pub(crate) params: RecoverParams,
}

impl Recovery {
    pub(crate) async fn run(self) -> Answer {
        let (damage, summary) = self.examine().await?;
        let known = self.known(summary.as_ref());
        self.check_legs(summary.as_ref(), &known)?;
        self.check(&known)?;
        let plan = self.plan(&damage, &known);
        if self.params.dry_run {
            return Ok(Done {
                changed: false,
                messages: plan,
            });
        }
        self.intend(&damage, &known).await?;
        if let Some(handle) = &self.handle {
            handle.abandon().await;
        }
        let replaced = self.replace(summary.as_ref(), &known).await;
        // Even if that failed, a supervisor must run for the volume.
        let handle = supervise(
            attach::setup(&self.context, &self.row),
            self.context.events.clone(),
        );
        self.context.notify(Event::Supervised(handle.clone())).await;
        replaced?;
        let up = handle
            .wait_for(START_MAX, |view| view.connected || view.failures > 0)
            .await;
        let problem = match up {
            Ok(view) if view.connected => return Ok(Done::changed(plan)),
            Ok(view) => view.problem.unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        let cause = format!("it has a new map file, but does not come up: {problem}");
        let next = "correct the cause; it is restarted automatically";
        Err(failure::failed(self.object(), cause, next))
    }

    fn object(&self) -> String {
        failure::volume(&self.row.name)
    }

    fn map(&self) -> PathBuf {
        self.context.config.map(&self.row.name)
    }

    /// Returns what is wrong with the map file, and what can still be read of it. Refuses if
    /// nothing is wrong with it.
    async fn examine(&self) -> Result<(String, Option<MapSummary>), Failure> {
        let status = format!(
            "see `shunt status`, and `shunt history` for {}",
            self.row.name
        );
        let view = self.handle.as_ref().map(VolumeHandle::view);
        if view.as_ref().is_some_and(|view| view.connected) {
            let cause = "it is being served: nothing is to be recovered";
            return Err(failure::refused(self.object(), cause, status));
        }
        let map = self.map();
        match map.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok((format!("{} is missing", map.display()), None)),
            Err(error) => {
                let cause = format!("{} cannot be examined: {error}", map.display());
                return Err(failure::failed(self.object(), cause, status));
            }
        }
        match process::describe(&self.context.config.ublk_target, &map).await {
            Err(DescribeError::Damaged(damage)) => Ok((damage, None)),
            Err(DescribeError::Unknown(cause)) => {
                let cause = format!("whether its map file is damaged is not known: {cause}");
                let next = "correct that, then the same command again";
                Err(failure::failed(self.object(), cause, next))
            }
            Ok(summary) => self.judge(&map, summary, view.and_then(|view| view.problem)),
        }
    }

    /// Judges a map file that can be read, at least in part.
    fn judge(
        &self,
        map: &Path,
        summary: MapSummary,
        problem: Option<String>,
    ) -> Result<(String, Option<MapSummary>), Failure> {
        let Descriptor {
            volume, volume_id, ..
        } = &summary.descriptor;
        let (is_ours, has_name) = (*volume_id == self.row.volume_id, *volume == self.row.name);
        let map = map.display();
        match Found::of(is_ours, has_name, summary.damage.is_some()) {
            Found::OfAnother => {
                let what = format!("{map} is that of another volume, {volume}");
                Ok((what, None))
            }
            Found::Damaged => Ok((summary.damage.clone().unwrap_or_default(), Some(summary))),
            // The volume was detached and attached again since.
            Found::OfNamesake => {
                let cause = format!(
                    "{map} is that of another volume of this name: the database is older than the map file"
                );
                let next = failure::other_volume_next(&self.row.name);
                Err(failure::refused(self.object(), cause, next))
            }
            Found::Whole => {
                let problem = problem.unwrap_or_default();
                let cause = format!(
                    "its map file is whole, and is not replaced; what keeps the volume down: {problem}"
                );
                let next = "correct that; the volume is restarted automatically";
                Err(failure::refused(self.object(), cause, next))
            }
        }
    }

    /// What is known of the volume. `summary`: what can still be read of its map file.
    fn known(&self, summary: Option<&MapSummary>) -> Known {
        Known {
            pair: self.pair.as_ref().map(|(key, pair)| LivePair {
                pair: key.position,
                phase: pair.phase,
                authoritative: pair.authoritative,
            }),
            route: summary.map(|summary| summary.route.into()),
        }
    }

    /// Checks that what can be read of the map file names the recorded legs.
    fn check_legs(&self, summary: Option<&MapSummary>, known: &Known) -> Result<(), Failure> {
        let (source, target) = self.legs(known);
        let Some(truth) = summary.map(Truth::of_map) else {
            return Ok(());
        };
        if truth.is_single_on(&self.row.leg) || truth.is_of(&source, target.as_ref()) {
            return Ok(());
        }
        let cause = format!(
            "its map file says that it {}, which is not what is recorded: the database is older than the map file",
            truth.text()
        );
        Err(failure::refused(self.object(), cause, history::REBUILD))
    }

    fn check(&self, known: &Known) -> Result<(), Failure> {
        let (name, side) = (&self.row.name, self.params.side);
        let Err(refusal) = known.may_name(side, self.params.against_record) else {
            return Ok(());
        };
        let other = side.other();
        let only_source = || format!("`shunt recover {name} --authoritative source`");
        let (cause, next) = match refusal {
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
        };
        Err(failure::refused(self.object(), cause, next))
    }

    fn plan(&self, damage: &str, known: &Known) -> Vec<String> {
        let (name, side) = (&self.row.name, self.params.side);
        let (source, other) = self.legs(known);
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

    /// The legs of the new map file.
    fn legs(&self, known: &Known) -> (LegRow, Option<LegRow>) {
        match &self.pair {
            Some((_, pair)) if known.has_both_legs() => {
                (pair.source.clone(), Some(pair.target.clone()))
            }
            Some(_) | None => (self.row.leg.clone(), None),
        }
    }

    /// Records the phase that the route of the new map file will settle.
    async fn intend(&self, damage: &str, known: &Known) -> Result<(), Failure> {
        let (name, side) = (&self.row.name, self.params.side);
        let event = HistoryEvent::RecoverBegun {
            leg: side.into(),
            cause: damage.to_owned(),
        };
        let session = self.pair.as_ref().map(|(key, _)| key.session.as_str());
        let mut changes = vec![note(session, Some(name), event)];
        let phase = known.intention(side).and_then(|entry| entry.phase());
        if let (Some((key, _)), Some(phase)) = (&self.pair, phase) {
            changes.push(Change::SetPair(key.clone(), PairField::Phase(phase)));
        }
        self.context.record(&self.object(), changes).await
    }

    async fn replace(&self, summary: Option<&MapSummary>, known: &Known) -> Result<(), Failure> {
        let map = self.map();
        let failed = |cause: String| {
            let next = format!(
                "correct the cause, then {}",
                failure::recover_command(&self.row.name)
            );
            failure::failed(self.object(), cause, next)
        };
        set_aside(&map).map_err(failed)?;
        let (source, target) = self.legs(known);
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
        let program = &self.context.config.ublk_target;
        process::format(program, &map, &descriptor, self.params.side)
            .await
            .map_err(failed)
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
