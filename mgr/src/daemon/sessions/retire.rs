//! Makes the legs that an ended session no longer uses inaccessible (retire), and accessible again
//! (take back).
//!
//! After a commit that leg is the source, after a cancel the target. Two disks with the same file
//! system are a trap, because programs look for file systems by their UUID. What will be done to a
//! leg is durable before it is done, together with the data that is needed to take it back. What is
//! left behind, and what may be done to it, is decided by [`migration_core::retire`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lun::{Lun, OpenError, OpenOptions, Saved, bring_online};
use migration_core::retire::{self, AfterFailure, Decision, How};
use migration_core::route::Side;
use migration_proto::manager::{Failure, FailureKind, HistoryEvent, RetireHow};
use tracing::warn;

use super::sight::Sight;
use crate::daemon::context::{Context, blocking, note};
use crate::daemon::event::Event;
use crate::daemon::failure::{self, Answer, Done};
use crate::daemon::luns::checks::open_recorded;
use crate::history;
use crate::store::{
    Change, LegRow, LunRow, Model, PairField, PairKey, PairRow, Retired, SessionRow, leg_of,
    lock_key,
};

/// How long ublk-target may take to release a leg, and the interval between two attempts to retire
/// it.
const LET_GO_MAX: Duration = Duration::from_secs(3);
const LET_GO_LOOK: Duration = Duration::from_millis(100);
/// How long another program may hold a lock on a leg: udev does for a moment after each change.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);
/// Maximum passes over a LUN: removing one signature can expose another.
const WIPE_ROUNDS_MAX: usize = 16;

/// The legs that shuntd keeps open so that no other program can open them.
#[derive(Debug, Default)]
pub(crate) struct HeldLuns(BTreeMap<PairKey, Vec<Lun>>);

/// The leg of a pair that is locked because it was made inaccessible.
pub(crate) fn retired_leg(pair: &PairRow) -> Option<&LegRow> {
    let how = pair.retired.as_ref().map(|retired| retired.how.into());
    Some(leg_of(pair, retire::locked(pair.phase, how)?))
}

fn holder(side: Side, volume: &str, session: &str) -> String {
    format!("the retired {side} of {volume} in session {session}")
}

/// A pair whose leg is to be retired, or taken back.
pub(crate) struct Leg {
    key: PairKey,
    volume: String,
    side: Side,
    row: LegRow,
    retired: Option<Retired>,
}

impl Leg {
    fn of(session: &SessionRow, position: usize, pair: &PairRow) -> Option<Self> {
        let side = retire::left_behind(pair.phase)?;
        Some(Self::on(&session.name, position, pair, side))
    }

    fn on(session: &str, position: usize, pair: &PairRow, side: Side) -> Self {
        Self {
            key: PairKey {
                session: session.to_owned(),
                position,
            },
            volume: pair.volume.clone(),
            side,
            row: leg_of(pair, side).clone(),
            retired: pair.retired.clone(),
        }
    }

    fn object(&self) -> String {
        failure::pair(&self.key.session, &self.volume)
    }

    /// Opens the LUNs of the leg exclusively and locks them, if they are the recorded ones.
    async fn open(&self, write: bool) -> Result<Vec<Lun>, String> {
        let row = self.row.clone();
        let opened = blocking(move || {
            let options = OpenOptions {
                write,
                exclusive: true,
                ..OpenOptions::default()
            };
            let open = |row: &LunRow| {
                let lun = open_recorded(row, &options)?;
                match lun.lock_exclusive_within(LOCK_WAIT_MAX) {
                    Ok(true) => Ok(lun),
                    Ok(false) => Err(format!(
                        "{} is locked by another program",
                        row.path.display()
                    )),
                    Err(error) => Err(error.to_string()),
                }
            };
            row.luns().iter().map(open).collect()
        });
        opened.await.and_then(|opened| opened)
    }

    fn refused(&self, cause: String) -> Failure {
        let next = format!(
            "make sure that nothing uses {}, then give the command again",
            self.row
        );
        failure::refused(self.object(), cause, next)
    }

    fn failed(&self, cause: String) -> Failure {
        let next = format!("`shunt retire {} --take-back`", self.key.session);
        failure::failed(self.object(), cause, next)
    }

    fn set(&self, retired: Option<Retired>) -> Change {
        Change::SetPair(self.key.clone(), PairField::Retired(retired))
    }

    fn note(&self, event: HistoryEvent) -> Change {
        note(Some(&self.key.session), Some(&self.volume), event)
    }

    fn sentence(&self, event: &HistoryEvent) -> String {
        let sentence = history::sentence(event, Some(&self.key.session), Some(&self.volume));
        format!("{}: {sentence}", self.volume)
    }

    /// Makes durable that the leg is retired, with the blocks that will be wiped, and that its
    /// locks belong to the retired leg now.
    async fn intend(&self, context: &Context, retired: &Retired) -> Result<(), Failure> {
        let mut changes = vec![self.set(Some(retired.clone()))];
        let holder = holder(self.side, &self.volume, &self.key.session);
        let locks = self.row.locks(&holder);
        changes.extend(locks.into_iter().map(Change::MoveLock));
        context.record(&self.object(), changes).await
    }

    async fn retire(self, context: &Context, how: RetireHow) -> Result<String, Failure> {
        let luns = self.open(true).await.map_err(|cause| self.refused(cause))?;
        let mut retired = Retired {
            how,
            saved: vec![Vec::new(); luns.len()],
        };
        if how == RetireHow::WipeSignatures {
            self.wipe(context, luns, &mut retired).await?;
        } else {
            self.intend(context, &retired).await?;
            let done = blocking(move || {
                for (index, lun) in luns.iter().enumerate() {
                    retire_lun(lun, how).map_err(|error| (index, error.to_string()))?;
                }
                Ok(luns)
            });
            match done.await.map_err(|cause| self.failed(cause))? {
                Ok(luns) if how == RetireHow::Hold => {
                    let key = self.key.clone();
                    context.notify(Event::Held { key, luns }).await;
                }
                Ok(luns) => close(luns).await,
                Err((lun, cause)) => return self.not_retired(context, how, lun, cause).await,
            }
        }
        let mut changes = Vec::new();
        if !How::from(how).can_be_taken_back() {
            changes.extend(self.row.unlock());
        }
        let blocks: usize = retired.saved.iter().map(Vec::len).sum();
        let event = HistoryEvent::Retired {
            leg: self.side.into(),
            lun: self.row.paths().clone(),
            how,
            blocks: (how == RetireHow::WipeSignatures).then_some(blocks as u64),
        };
        changes.push(self.note(event.clone()));
        context.record(&self.object(), changes).await?;
        Ok(self.sentence(&event))
    }

    /// Records what becomes of the leg after its LUN with this index could not be retired. The
    /// error is what the operator reads.
    async fn not_retired(
        &self,
        context: &Context,
        how: RetireHow,
        lun: usize,
        cause: String,
    ) -> Result<String, Failure> {
        let mut changes = vec![self.set(None)];
        changes.extend(self.row.unlock());
        match How::from(how).after_failure(lun) {
            AfterFailure::PartLost => {
                let cause = format!("{cause}; part of it may be discarded already");
                changes.push(self.note(HistoryEvent::NotRetired {
                    cause: cause.clone(),
                }));
                context.record(&self.object(), changes).await?;
                let next = format!("`shunt retire {} --how discard` again", self.key.session);
                Err(failure::failed(self.object(), cause, next))
            }
            AfterFailure::Untouched => {
                context.record(&self.object(), changes).await?;
                Err(self.refused(cause))
            }
            AfterFailure::PartRetired => {
                Err(self.failed(format!("{cause}; what stands before it was retired")))
            }
        }
    }

    async fn wipe(
        &self,
        context: &Context,
        luns: Vec<Lun>,
        retired: &mut Retired,
    ) -> Result<(), Failure> {
        for (index, lun) in luns.into_iter().enumerate() {
            self.wipe_one(context, index, lun, retired).await?;
        }
        Ok(())
    }

    async fn wipe_one(
        &self,
        context: &Context,
        index: usize,
        mut lun: Lun,
        retired: &mut Retired,
    ) -> Result<(), Failure> {
        for _ in 0..WIPE_ROUNDS_MAX {
            let (back, found): (Lun, Result<Vec<Saved>, String>) = blocking(move || {
                let found = lun.blocks_with_signatures();
                (lun, found.map_err(|error| error.to_string()))
            })
            .await
            .map_err(|cause| self.failed(cause))?;
            let blocks = found.map_err(|cause| self.failed(cause))?;
            if blocks.is_empty() {
                self.intend(context, retired).await?;
                close(vec![back]).await;
                return Ok(());
            }
            retired.saved[index].extend(blocks.clone());
            self.intend(context, retired).await?;
            let (back, wiped) = blocking(move || {
                let wiped = back.wipe(&blocks);
                (back, wiped.map_err(|error| error.to_string()))
            })
            .await
            .map_err(|cause| self.failed(cause))?;
            wiped.map_err(|cause| self.failed(cause))?;
            lun = back;
        }
        Err(self.failed("there are still signatures after the last pass".to_owned()))
    }

    async fn take_back(self, context: &Context) -> Result<Option<String>, Failure> {
        let Some(retired) = self.retired.clone() else {
            return Ok(None);
        };
        if !How::from(retired.how).can_be_taken_back() {
            let next = "copy it again with a new session, if it is needed";
            let cause = "what was discarded cannot be taken back";
            return Err(failure::refused(self.object(), cause, next));
        }
        if retired.how == RetireHow::Hold {
            let key = self.key.clone();
            let luns = Vec::new();
            context.notify(Event::Held { key, luns }).await;
        } else if retired.how == RetireHow::Offline {
            let row = self.row.clone();
            let done = blocking(move || {
                let mut luns = row.luns().iter();
                luns.try_for_each(|lun| bring_online(&lun.path).map_err(|error| error.to_string()))
            });
            done.await
                .and_then(|done| done)
                .map_err(|cause| self.refused(cause))?;
        } else {
            let write = retired.how == RetireHow::WipeSignatures;
            let luns = self
                .open(write)
                .await
                .map_err(|cause| self.refused(cause))?;
            let done = blocking(move || {
                let mut each = luns.iter().zip(&retired.saved);
                each.try_for_each(|(lun, saved)| {
                    let done = match retired.how {
                        RetireHow::ReadOnly => lun.set_read_only(false),
                        _ => lun.restore(saved),
                    };
                    done.map_err(|error| error.to_string())
                })
            });
            done.await
                .and_then(|done| done)
                .map_err(|cause| self.failed(cause))?;
        }
        let event = HistoryEvent::RetireTakenBack {
            leg: self.side.into(),
            lun: self.row.paths().clone(),
        };
        let mut changes = vec![self.set(None), self.note(event.clone())];
        changes.extend(self.row.unlock());
        context.record(&self.object(), changes).await?;
        Ok(Some(self.sentence(&event)))
    }

    /// Retires the leg again after a boot, or the end of shuntd, has undone that.
    async fn again(self, context: &Context) -> Result<(), String> {
        let Some(Retired { how, .. }) = self.retired else {
            return Ok(());
        };
        if How::from(how).is_lasting() {
            return Ok(());
        }
        let luns = self.open(false).await?;
        if how == RetireHow::Hold {
            let key = self.key.clone();
            context.notify(Event::Held { key, luns }).await;
            return Ok(());
        }
        let done = blocking(move || luns.iter().try_for_each(|lun| retire_lun(lun, how)));
        done.await?.map_err(|error| error.to_string())
    }
}

/// Makes one LUN inaccessible. Nothing is done here for `Hold`, which keeps the LUN open, and for
/// `WipeSignatures`, which [`Leg::wipe`] does.
fn retire_lun(lun: &Lun, how: RetireHow) -> Result<(), OpenError> {
    match how {
        RetireHow::ReadOnly => lun.set_read_only(true),
        RetireHow::Offline => lun.take_offline(),
        RetireHow::Discard => lun.discard_all(),
        RetireHow::Hold | RetireHow::WipeSignatures => Ok(()),
    }
}

/// Retires the source of a pair that has just been committed. Returns in words what was done, or
/// why the source was not retired.
pub(super) async fn retire_source(
    context: &Context,
    session: &SessionRow,
    position: usize,
    how: RetireHow,
) -> String {
    let begun = Instant::now();
    loop {
        let leg = Leg::on(
            &session.name,
            position,
            &session.pairs[position],
            Side::Source,
        );
        match leg.retire(context, how).await {
            Ok(done) => return done,
            // ublk-target closes the leg a moment after it has dropped it from the route. Only what
            // was refused is tried again: a wipe that failed has recorded the blocks that it wiped,
            // and a second wipe would record only the remaining ones.
            Err(failure)
                if failure.kind == FailureKind::Refused && begun.elapsed() < LET_GO_MAX =>
            {
                tokio::time::sleep(LET_GO_LOOK).await;
            }
            Err(Failure {
                object,
                cause,
                next,
                ..
            }) => {
                let name = &session.name;
                let how = how.name();
                return format!(
                    "{object}: the source is not retired: {cause}; next: {next}, `shunt retire {name} --how {how}`"
                );
            }
        }
    }
}

/// Closes LUNs on a thread that may block.
async fn close(luns: Vec<Lun>) {
    let _ = blocking(move || drop(luns)).await;
}

impl HeldLuns {
    /// Keeps the LUNs of a leg open from now on; without LUNs, closes those that were kept open.
    pub(crate) fn keep(&mut self, key: PairKey, luns: Vec<Lun>) {
        let before = match luns.is_empty() {
            false => self.0.insert(key, luns),
            true => self.0.remove(&key),
        };
        // Closing them may block.
        tokio::task::spawn_blocking(move || drop(before));
    }
}

/// Retires legs of a session, or takes them back (`how` is `None`).
pub(crate) async fn work(
    context: Context,
    name: String,
    legs: Vec<Leg>,
    how: Option<RetireHow>,
) -> Answer {
    let mut messages = Vec::new();
    for leg in legs {
        match how {
            Some(how) => messages.push(leg.retire(&context, how).await?),
            None => messages.extend(leg.take_back(&context).await?),
        }
    }
    finished(&name, how, messages)
}

pub(crate) fn legs(row: &SessionRow) -> Vec<Leg> {
    let pairs = row.pairs.iter().enumerate();
    pairs
        .filter_map(|(position, pair)| Leg::of(row, position, pair))
        .collect()
}

/// The legs that are not retired in this way already. Refuses if one of them must not be
/// retired.
pub(crate) fn legs_to_retire(
    sight: Sight<'_>,
    row: &SessionRow,
    how: RetireHow,
) -> Result<Vec<Leg>, Failure> {
    let name = &row.name;
    if row.is_live() {
        let state = migration_core::session::state(&sight.positions(row));
        let state = state.map_or("", migration_core::pair::PairState::name);
        let cause = format!("it is {state}: both legs are used until it has ended");
        let next = sight.end_first(row);
        return Err(failure::refused(failure::session(name), cause, next));
    }
    let used = sight.volumes.used_luns(sight.model, None);
    let mut fit = Vec::new();
    for leg in legs(row) {
        let keys: Vec<String> = leg.row.luns().iter().map(lock_key).collect();
        let user = used.iter().find(|used| keys.contains(&lock_key(&used.lun)));
        let retired = leg.retired.as_ref().map(|retired| retired.how.into());
        match How::from(how).decide(retired, user.is_some()) {
            Decision::Do => fit.push(leg),
            Decision::Already => {}
            Decision::RetiredAs(other) => {
                let other = RetireHow::from(other).name();
                let cause = format!("its {} is retired as {other}", leg.side);
                let next = format!("`shunt retire {name} --take-back` first");
                return Err(failure::refused(leg.object(), cause, next));
            }
            Decision::InUse => {
                let cause = user.map_or_else(String::new, |user| {
                    format!("{} is in use: {}", user.lun.path.display(), user.holder)
                });
                let next = "see `shunt status`";
                return Err(failure::refused(leg.object(), cause, next));
            }
        }
    }
    Ok(fit)
}

/// Retires legs again at the start of shuntd, where retirement does not outlast a boot or
/// shuntd.
pub(crate) fn retire_again(context: &Context, model: &Model) {
    for row in model.sessions.values() {
        for leg in legs(row) {
            let context = context.clone();
            tokio::spawn(async move {
                let (object, row) = (leg.object(), leg.row.clone());
                if let Err(cause) = leg.again(&context).await {
                    warn!(object, cause, "{row} is not retired as it was");
                }
            });
        }
    }
}

/// Refuses a session name whose old session has retired legs: only that session can take them
/// back.
pub(crate) fn require_nothing_retired(model: &Model, session: &str) -> Result<(), Failure> {
    let Some(row) = model.sessions.get(session) else {
        return Ok(());
    };
    let lasts = |pair: &PairRow| {
        let retired = pair.retired.as_ref();
        retired.is_some_and(|retired| How::from(retired.how).can_be_taken_back())
    };
    if !row.pairs.iter().any(lasts) {
        return Ok(());
    }
    let cause = "the session of that name has retired legs, which would be forgotten";
    let next = format!("`shunt retire {session} --take-back` first, or choose another name");
    Err(failure::refused(failure::session(session), cause, next))
}

fn finished(session: &str, how: Option<RetireHow>, messages: Vec<String>) -> Answer {
    if !messages.is_empty() {
        return Ok(Done::changed(messages));
    }
    Ok(Done::already(match how {
        Some(how) => format!(
            "what session {session} left behind is {} already",
            how.name()
        ),
        None => format!("nothing of session {session} is retired"),
    }))
}
