//! Automatic recovery of targets that kept applications waiting: when such a target answers again,
//! the writes that it missed are copied, and then writes are mirrored to it again.
//!
//! `migration_core::come_back` decides when. There is no automatic recovery if the target failed in
//! a different way, if the copy is paused or outside its hours, or if the target is authoritative:
//! in these cases the operator runs `shunt resume`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use migration_core::come_back::{StallObservation, StallRecovery, Step};
use migration_core::pair::Phase;
use migration_core::route::Side;
use migration_core::units::Time;
use migration_proto::manager::HistoryEvent;
use migration_proto::target::{CopyMode, Status};

use crate::daemon::context::{Context, note};
use crate::daemon::event::Event;
use crate::daemon::handle::VolumeHandle;
use crate::daemon::luns::pace::answers_within;
use crate::daemon::volumes::position;
use crate::daemon::volumes::route_change::retry_mirror;
use crate::moments;
use crate::store::{PairKey, PairRow, SessionRow};

/// Maximum duration of each read of a probe: a slower target has not recovered.
const ANSWER_MAX: Duration = Duration::from_millis(250);

/// The state of the recovery of every pair's target.
#[derive(Debug)]
pub(crate) struct StallRecoveries {
    begun: Instant,
    pairs: BTreeMap<PairKey, StallRecovery>,
}

impl StallRecoveries {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            pairs: BTreeMap::new(),
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The copy mode of a pair: `Track` while its target recovers, otherwise the mode of the
    /// session.
    pub(crate) fn copy_mode(&self, session: &SessionRow, key: &PairKey) -> CopyMode {
        match self.pairs.get(key).is_some_and(StallRecovery::tracks) {
            true => CopyMode::Track,
            false => session.options.mode.copy_mode(),
        }
    }

    pub(crate) fn forget(&mut self, key: &PairKey) {
        self.pairs.remove(key);
    }

    fn observe(&mut self, key: &PairKey, observed: StallObservation) -> Option<Step> {
        let now = self.now();
        let come_back = self.pairs.entry(key.clone()).or_default();
        let step = come_back.observe(now, observed);
        if come_back.is_new() {
            self.pairs.remove(key);
        }
        step
    }

    /// Handles a status report of a volume whose session has no operation in progress.
    pub(crate) fn reported(
        &mut self,
        context: &Context,
        (session, pair): (&SessionRow, &PairRow),
        handle: &VolumeHandle,
        key: &PairKey,
        status: &Status,
    ) {
        let observed = observe(session, pair, status);
        let (target, volume) = (pair.target.clone(), pair.volume.clone());
        let tracks_anyway = session.options.mode.copy_mode() == CopyMode::Track;
        let (context, handle, of) = (context.clone(), handle.clone(), key.clone());
        match self.observe(key, observed) {
            None => {}
            Some(Step::Probe) => drop(tokio::spawn(async move {
                let well = answers_within(target, ANSWER_MAX).await;
                context.notify(Event::CameBack { key: of, well }).await;
            })),
            Some(Step::Retry) => drop(tokio::spawn(async move {
                let well = retry_mirror(&handle).await.is_ok();
                if well {
                    let event = HistoryEvent::TargetAnswers;
                    let note = note(Some(&of.session), Some(&volume), event);
                    // If this note is lost, the note that the target has caught up still follows,
                    // unless the session tracks anyway.
                    let _ = context.commit(vec![note]).await;
                }
                context.notify(Event::CameBack { key: of, well }).await;
            })),
            Some(Step::Mirrored) if tracks_anyway => {}
            Some(Step::Mirrored) => {
                let event = HistoryEvent::TargetCaughtUp;
                context.record_aside(vec![note(Some(&of.session), Some(&volume), event)]);
            }
        }
    }

    /// Handles the result of a probe or a retry.
    pub(crate) fn answered(&mut self, key: &PairKey, well: bool) {
        let now = self.now();
        if let Some(come_back) = self.pairs.get_mut(key) {
            come_back.answered(now, well);
        }
    }
}

fn observe(session: &SessionRow, pair: &PairRow, status: &Status) -> StallObservation {
    let seen = position::seen(status, pair);
    let may = matches!(pair.phase, Phase::Active)
        && seen.mirrored() == Some(Side::Source)
        && !session.paused
        && session.options.hours.contains(moments::minute_now());
    let under_way = status.stalled_writes;
    StallObservation {
        stalled: may && under_way.is_some(),
        failed: seen.degraded && under_way.is_none(),
        under_way: under_way.unwrap_or(0),
        tracks: seen.tracks,
        dirty_bytes: status.dirty_bytes,
        size_bytes: status.size_bytes,
    }
}
