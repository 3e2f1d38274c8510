//! The effects of an operation (`migration_core::operation`), performed on simulated stores and
//! volumes, as `mgr/src/daemon/sessions/operation` performs them on real ones. Which effects there
//! are, in which order, and what is recorded, is decided by the core.

use std::collections::BTreeMap;

use migration_core::{
    units::Time,
    volume::{Call, ChangeError, CopyMode, Reply, Suspended},
};
use seeded_core::{
    operation::{self, Answer, Effect, End, Entry, Event, Freshness, Legs, Seal, Step},
    pair::{Phase, Verb},
    route::{Route, Side},
    schedule::{Policy, next_split},
};

use crate::{
    border::asked,
    daemon::{Daemon, PairRow, seen, wall},
    intention::is_intended,
    world::World,
};

/// The maximum number of requests for one change of the route.
const ATTEMPTS_MAX: u32 = 4;

/// An operation in progress.
#[derive(Debug)]
pub(crate) struct Running {
    doing: Doing,
    machine: operation::Operation,
    /// The effects that have not ended.
    effects: Vec<Effect>,
    /// For each pair, the change of the route that its volume was asked for.
    changes: BTreeMap<usize, Asking>,
}

/// What an operation does.
#[derive(Debug, Clone, Copy)]
enum Doing {
    Verb(Verb),
    /// A volume is recovered.
    Recovery(usize),
}

/// What is true of the target of a pair, whatever is recorded.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TargetTruth {
    /// It bears the mark that it is no copy.
    marked: bool,
    /// Another program may have written to it since it was detached.
    written: bool,
}

/// A change of the route that is requested until its outcome is known.
#[derive(Debug, Default)]
struct Asking {
    /// The call, and the incarnation of ublk-target that got it.
    asked: Option<(Call, u64)>,
    attempts: u32,
}

impl Running {
    fn new(doing: Doing, mut machine: operation::Operation) -> Self {
        Self {
            doing,
            effects: machine.begin(),
            machine,
            changes: BTreeMap::new(),
        }
    }
}

impl World {
    /// Performs one effect of the operation in progress, or a part of it.
    pub(crate) fn step_operation(&mut self) {
        let Some(running) = &self.daemon.operation else {
            return;
        };
        let (doing, index) = (running.doing, self.dice.below(running.effects.len()));
        let effect = running.effects[index].clone();
        let Some(event) = self.perform_effect(doing, effect) else {
            return;
        };
        let Some(running) = &mut self.daemon.operation else {
            return;
        };
        running.effects.remove(index);
        let effects = running.machine.apply(&event);
        let releases = |effect: &Effect| matches!(effect, Effect::Pair(_, Step::Release));
        if effects.iter().any(releases) {
            // The copies must be of this moment.
            self.take_moments();
        }
        if let Some(running) = &mut self.daemon.operation {
            running.effects.extend(effects);
        }
    }

    /// Returns the event that the effect led to; `None`: it has not ended.
    fn perform_effect(&mut self, doing: Doing, effect: Effect) -> Option<Event> {
        match effect {
            Effect::StopCopiers => {
                let mut running = false;
                for site in &mut self.sites {
                    site.copying.stop();
                    running |= site.copying.is_running();
                }
                (!running).then_some(Event::CopiersStopped)
            }
            Effect::CheckTargets(pairs) | Effect::CheckStanding(pairs) => {
                let refused = self.dice.one_in(200).then(|| pairs.first().copied());
                let unfit = refused.flatten().into_iter().collect();
                Some(Event::Checked { unfit })
            }
            Effect::Record(entries) => {
                for entry in entries {
                    self.record(doing, entry);
                }
                Some(Event::Recorded)
            }
            Effect::Pair(pair, step) => {
                let answer = self.perform_step(doing, pair, step)?;
                Some(Event::Pair(pair, answer))
            }
            Effect::Volume(step) => match doing {
                Doing::Recovery(index) => self.perform_volume_step(index, step),
                Doing::Verb(verb) => panic!("{step:?} in a {verb}"),
            },
            Effect::End(end) => {
                self.daemon.operation = None;
                self.note(match end {
                    End::Done if matches!(doing, Doing::Recovery(_)) => "recoveries done",
                    End::Done => "verbs done",
                    End::Failed => "verbs that failed",
                    End::Refused => "verbs refused while they ran",
                });
                None
            }
        }
    }

    fn perform_step(&mut self, doing: Doing, pair: usize, step: Step) -> Option<Answer> {
        match step {
            Step::Inspect(freshness) => self.inspect(pair, freshness),
            Step::AddMirror => self.ask_route(doing, pair, step, None),
            Step::SetRoute { route, copies_rest } => {
                // The sites take the mode of the volume instead.
                debug_assert!(!copies_rest || self.daemon.store.mode == CopyMode::Track);
                self.ask_route(doing, pair, step, Some(route))
            }
            Step::Release => {
                let (site, view) = (&mut self.sites[pair], &self.daemon.views[pair]);
                let ended = view.connected.then(|| site.end_suspension(self.now));
                Some(match ended.flatten() {
                    Some(Suspended::SinceSplit) => Answer::Done,
                    _ => Answer::Refused,
                })
            }
            Step::RetryMirror => {
                if !self.daemon.views[pair].connected {
                    return Some(Answer::Refused);
                }
                let site = &mut self.sites[pair];
                let result = site.try_on_volume(|volume, _| volume.retry_mirror());
                self.refresh(pair);
                match result {
                    Some(Ok(true)) => {
                        self.note("mirror legs tried again");
                        Some(Answer::Done)
                    }
                    Some(Ok(false)) => Some(Answer::Done),
                    Some(Err(_)) | None => Some(Answer::Refused),
                }
            }
            Step::CheckSeal => {
                let dice = self.dice.below(8);
                let truth = &mut self.targets[pair];
                truth.written |= dice == 0;
                Some(Answer::Seal(match dice {
                    0 => Seal::Unknown,
                    1 => Seal::Broken,
                    _ if truth.written => Seal::Unknown,
                    _ => Seal::Unbroken,
                }))
            }
            // Signatures and read-only flags are not simulated; that they cannot be made is.
            Step::MarkUnfinished => {
                let done = !self.dice.one_in(100);
                self.targets[pair].marked |= done;
                Some(if done { Answer::Done } else { Answer::Refused })
            }
            Step::Seal | Step::SetReadOnly(_) | Step::Retire => {
                let row = &self.daemon.store.pairs[pair];
                assert!(
                    step != Step::Retire || row.phase == Phase::Committed,
                    "the source of {row:?} is made inaccessible"
                );
                Some(match self.dice.one_in(100) {
                    true => Answer::Refused,
                    false => Answer::Done,
                })
            }
        }
    }

    /// Checks the moment at which a volume is asked for a route.
    fn check_asked(&mut self, pair: usize, step: Step) {
        let row = &self.daemon.store.pairs[pair];
        let Some(status) = self.sites[pair].status() else {
            return;
        };
        assert!(
            is_intended(row.phase, status.route, step),
            "{step:?} is not recorded as intended: {row:?}, {status:?}"
        );
        let drops = matches!(row.phase, Phase::Committing | Phase::Cancelling);
        assert!(
            !drops || !self.sites[pair].copying.is_running(),
            "a copier may write to the leg that is dropped: {row:?}"
        );
        let truth = &mut self.targets[pair];
        match step {
            Step::AddMirror => {
                assert!(truth.marked, "the target of {row:?} is not marked");
                *truth = TargetTruth::default();
            }
            Step::SetRoute {
                route: Route::Mirrored { .. },
                ..
            } => assert!(
                !truth.written || status.route != Route::Split,
                "what another program wrote to the target stays there: {row:?}"
            ),
            Step::SetRoute { .. }
            | Step::Inspect(_)
            | Step::Release
            | Step::MarkUnfinished
            | Step::Seal
            | Step::CheckSeal
            | Step::SetReadOnly(_)
            | Step::RetryMirror
            | Step::Retire => {}
        }
    }

    fn inspect(&mut self, pair: usize, freshness: Freshness) -> Option<Answer> {
        let impatient = self.dice.one_in(100);
        let view = &self.daemon.views[pair];
        match freshness {
            Freshness::Last => {}
            Freshness::Fresh if view.connected => self.refresh(pair),
            Freshness::Settled if view.connected && view.status.is_some_and(|s| !s.changing) => {}
            Freshness::Fresh | Freshness::Settled => return impatient.then_some(Answer::Unknown),
        }
        let row = &self.daemon.store.pairs[pair];
        let status = self.daemon.views[pair].status;
        let legs = status.map(|status| Legs::of(&seen(row, &status)));
        Some(Answer::Legs(legs.unwrap_or(Legs::Apart)))
    }

    /// As `route_change`: requests the route until it is known whether it is as wanted. `None`: not
    /// yet known.
    fn ask_route(
        &mut self,
        doing: Doing,
        pair: usize,
        step: Step,
        wanted: Option<Route>,
    ) -> Option<Answer> {
        let running = self.daemon.operation.as_ref()?;
        if !running.changes.contains_key(&pair) {
            self.check_asked(pair, step);
        }
        let answer = self.ask_route_once(doing, pair, wanted)?;
        let running = self.daemon.operation.as_mut()?;
        running.changes.remove(&pair);
        Some(answer)
    }

    fn ask_route_once(
        &mut self,
        doing: Doing,
        pair: usize,
        wanted: Option<Route>,
    ) -> Option<Answer> {
        // The end of a pair is rare, and a missing answer matters most there.
        let ends = matches!(doing, Doing::Verb(Verb::Commit | Verb::Cancel));
        let patient = !self.dice.one_in(if ends { 20 } else { 300 });
        let (site, view) = (&mut self.sites[pair], &mut self.daemon.views[pair]);
        let row = &self.daemon.store.pairs[pair];
        let running = self.daemon.operation.as_mut()?;
        let asking = running.changes.entry(pair).or_default();
        if let Some((call, incarnation)) = asking.asked {
            if site.incarnation == incarnation && patient {
                let reply = site.take_reply(call)?;
                asking.asked = None;
                self.refresh(pair);
                return outcome(&reply);
            }
            asking.asked = None;
            view.connected = false;
            return None;
        }
        if !view.connected {
            // The caller waits for the connection, for a time.
            return (!patient).then_some(Answer::Unknown);
        }
        let status = view.status?;
        let is_done = match wanted {
            Some(route) => status.route == route && row.is_ours(&status),
            None => row.is_mirrored(&status),
        };
        let foreign = wanted.is_some() && !row.is_ours(&status);
        if is_done {
            return Some(Answer::Done);
        }
        if foreign {
            return Some(Answer::Refused);
        }
        if asking.attempts == ATTEMPTS_MAX {
            return Some(Answer::Unknown);
        }
        asking.attempts += 1;
        let target = row.target;
        match site.change_route(self.now, status.epoch, wanted.map(asked), target) {
            Some(Ok(call)) => {
                asking.asked = Some((call, site.incarnation));
                None
            }
            Some(Err(error)) => {
                self.note("changes refused");
                self.refresh(pair);
                // A suspension, and nothing that may be this very change.
                let status = self.daemon.views[pair].status;
                let idle = status.is_some_and(|status| !status.changing);
                let answer = match refusal(error) {
                    Answer::Unknown if idle => Answer::Refused,
                    answer => answer,
                };
                (error != ChangeError::StaleEpoch).then_some(answer)
            }
            None => {
                view.connected = false;
                None
            }
        }
    }

    /// Updates the view of a volume: an answer arrives after the view is current.
    fn refresh(&mut self, pair: usize) {
        let status = self.sites[pair].status();
        let view = &mut self.daemon.views[pair];
        view.connected = status.is_some();
        view.status = status.or(view.status);
    }

    fn record(&mut self, doing: Doing, entry: Entry) {
        match entry {
            Entry::Copy(pair) => self.require_held(pair),
            // What may still happen is not recorded as not done.
            Entry::NotStarted(pair) | Entry::NotMoved(pair) | Entry::NotEnded { pair, .. } => {
                assert!(
                    !self.sites[pair].has_requested_change(),
                    "{entry:?}, but its volume changes its route"
                );
            }
            _ => {}
        }
        self.daemon.store.record(entry, self.now);
        let ends = matches!(doing, Doing::Verb(Verb::Commit | Verb::Cancel));
        if ends && matches!(entry, Entry::Unknown(_)) {
            self.note("ends of which the outcome is unknown");
        }
        self.note(match entry {
            Entry::Intended { .. }
            | Entry::Recovers { .. }
            | Entry::MovesBack { .. }
            | Entry::Paused(_)
            | Entry::Retried(_) => "other records",
            Entry::Queued(_) => "pairs queued",
            Entry::Started(_) => "pairs started",
            Entry::Moved {
                to: Side::Target, ..
            } => "pairs switched",
            Entry::Moved {
                to: Side::Source, ..
            } => "pairs undone",
            Entry::MovedBack { .. } => "pairs taken back",
            Entry::NotMoved(_) => "roles that did not move",
            Entry::NotStarted(_) | Entry::NotEnded { .. } | Entry::Unknown(_) => {
                "pairs that did not follow"
            }
            Entry::SwitchByHand | Entry::NextSplit => "other records",
            Entry::Ended {
                side: Side::Target, ..
            } => "pairs committed",
            Entry::Ended {
                side: Side::Source, ..
            } => "pairs cancelled",
            Entry::Copy(_) => "copies at an instant",
            Entry::Sealed(_) => "copies sealed",
            Entry::Spoiled { .. } => "copies that were spoiled",
            Entry::CopyGivenUp { .. } => "copies given up",
            Entry::MirroredAgain {
                from_scratch: true, ..
            } => "targets copied from scratch after a split",
            Entry::MirroredAgain { .. } => "targets mirrored again after a split",
            Entry::NotMirroredAgain { .. } => "targets not mirrored again after a split",
        });
    }
}

impl Daemon {
    /// Begins what a verb does with these pairs.
    pub(crate) fn begin(&mut self, verb: Verb, machine: operation::Operation) {
        self.run(Doing::Verb(verb), machine);
    }

    /// Begins to recover a volume.
    pub(crate) fn begin_recovery(&mut self, volume: usize, machine: operation::Operation) {
        self.run(Doing::Recovery(volume), machine);
    }

    fn run(&mut self, doing: Doing, mut machine: operation::Operation) {
        machine.break_rule(self.broken);
        self.operation = Some(Running::new(doing, machine));
    }
}

impl PairRow {
    pub(crate) fn apply(&mut self, entry: Entry) {
        self.phase = entry.phase().unwrap_or(self.phase);
        if let Some(side) = entry.authoritative() {
            self.authoritative = side;
            self.switched = side == Side::Target;
        }
        let intends = matches!(entry, Entry::Intended { .. });
        self.undone |= intends && entry.phase() == Some(Phase::Undoing);
    }
}

impl crate::daemon::Store {
    fn record(&mut self, entry: Entry, now: Time) {
        let automatic = &mut self.automatic;
        match entry {
            Entry::Paused(paused) => self.paused = paused,
            Entry::SwitchByHand => automatic.policy = Policy::Manual,
            Entry::NextSplit => {
                let next = next_split(automatic.policy, automatic.every, wall(now));
                automatic.policy = next.map_or(Policy::Manual, Policy::At);
            }
            Entry::Ended { pair, side } => self.ended(pair, side),
            entry => {
                if let Some(pair) = entry.pair() {
                    self.pairs[pair].apply(entry);
                }
            }
        }
    }
}

/// What the answer of a volume says about the change that it was asked for; `None`: the change must
/// be requested again.
fn outcome(reply: &Reply) -> Option<Answer> {
    match reply {
        Reply::RouteChanged { .. } => Some(Answer::Done),
        Reply::ChangeFailed(ChangeError::StaleEpoch) => None,
        Reply::ChangeFailed(error) => Some(refusal(*error)),
        other => panic!("a change of the route is answered with {other:?}"),
    }
}

/// The route stays as it is, unless an earlier change is in progress.
fn refusal(error: ChangeError) -> Answer {
    match error {
        ChangeError::Busy => Answer::Unknown,
        _ => Answer::Refused,
    }
}
