//! shuntd: its store and its views of the volumes, in the order of events of `mgr/src/daemon`
//! (`owner`: `requests`, `reconcile`, `automatic`). The decisions are those of `pair`, `session`
//! and `schedule`, the steps of a verb those of `operation`.

use std::time::Duration;

use migration_core::{
    units::Time,
    volume::{CopyMode, OnAuthoritativeFailure},
};
use seeded_core::{
    operation::{Entry, Operation, Plan, PlannedPair, SeededBug},
    pair::{Facts, PairState, Phase, Position, Seen, Settlement, Verb, has_switched, settle},
    route::{Route, Side},
    schedule::{
        Attempts, DueAction, Mode, Policy, Schedule, ScheduledPair, Scope, is_to_be_switched,
    },
    session::{self, SessionDecision, Silence, Waiting},
    units::{Time as Instant, WallTime},
};

use crate::operation::Running;
use crate::settings::{MILLISECOND, Settings};
use crate::site::Status;

/// A row of the store.
#[derive(Debug, Clone)]
pub(crate) struct PairRow {
    pub(crate) phase: Phase,
    pub(crate) authoritative: Side,
    /// Whether the target has become authoritative, and that was not taken back.
    pub(crate) switched: bool,
    /// Whether the operator has taken a switch back.
    pub(crate) undone: bool,
    pub(crate) source: usize,
    pub(crate) target: usize,
}

impl PairRow {
    pub(crate) const fn new(source: usize) -> Self {
        Self {
            phase: Phase::Setup,
            authoritative: Side::Source,
            switched: false,
            undone: false,
            source,
            target: 1 - source,
        }
    }

    pub(crate) const fn lun(&self, side: Side) -> usize {
        match side {
            Side::Source => self.source,
            Side::Target => self.target,
        }
    }

    pub(crate) fn is_mirrored(&self, status: &Status) -> bool {
        status.route.has_map() && self.is_ours(status)
    }

    /// As `route_change::is_ours`.
    pub(crate) fn is_ours(&self, status: &Status) -> bool {
        let source = status.source == self.source;
        let target = status.target == Some(self.target);
        match status.route {
            Route::Single(Side::Source) => source,
            Route::Single(Side::Target) => target,
            Route::Mirrored { .. } | Route::Split => source && target,
        }
    }
}

/// The durable state of shuntd. A change of it happens completely or not at all.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) pairs: Vec<PairRow>,
    pub(crate) paused: bool,
    /// The LUN of each volume, outside of a session.
    pub(crate) luns: Vec<usize>,
    pub(crate) policy: OnAuthoritativeFailure,
    pub(crate) mode: CopyMode,
    pub(crate) pairs_max: usize,
    /// Whether a commit makes the sources inaccessible.
    pub(crate) retire: bool,
    pub(crate) automatic: Automatic,
}

/// What a session does automatically.
#[derive(Debug, Clone)]
pub(crate) struct Automatic {
    pub(crate) policy: Policy,
    pub(crate) scope: Scope,
    /// Whether the session is split, and never switched.
    pub(crate) copies: bool,
    /// The interval between two splits; zero: there is no next one.
    pub(crate) every: Duration,
}

impl Automatic {
    /// Nothing is automatic.
    pub(crate) const NOTHING: Self = Self {
        policy: Policy::Manual,
        scope: Scope::Together,
        copies: false,
        every: Duration::ZERO,
    };
}

impl Store {
    pub(crate) fn is_live(&self) -> bool {
        self.pairs.iter().any(|pair| !pair.phase.is_ended())
    }

    /// Records that a pair has ended on `side`.
    pub(crate) fn ended(&mut self, pair: usize, side: Side) {
        let row = &mut self.pairs[pair];
        row.apply(Entry::Ended { pair, side });
        self.luns[pair] = row.lun(side);
    }
}

/// What shuntd knows about a volume.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct View {
    pub(crate) connected: bool,
    pub(crate) failures: u32,
    pub(crate) status: Option<Status>,
}

/// The control plane of one host.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) store: Store,
    /// Whether shuntd lives. Its views and its operation are lost when it dies.
    pub(crate) alive: bool,
    pub(crate) views: Vec<View>,
    pub(crate) operation: Option<Running>,
    /// The rule of operations that is broken on purpose.
    pub(crate) broken: Option<SeededBug>,
    attempts: Attempts,
    /// Whether the operator has ended pairs on another side than the pairs that had ended before: a
    /// failure had moved their role meanwhile.
    pub(crate) apart: bool,
    /// Whether the only pair of the session was switched, whatever is recorded.
    pub(crate) has_switched: bool,
}

impl Daemon {
    pub(crate) fn new(volumes: usize, settings: &Settings) -> Self {
        Self {
            store: Store {
                pairs: Vec::new(),
                paused: false,
                luns: vec![0; volumes],
                policy: settings.policy,
                mode: settings.mode,
                pairs_max: settings.pairs_max,
                retire: true,
                automatic: Automatic::NOTHING,
            },
            alive: true,
            views: vec![View::default(); volumes],
            operation: None,
            broken: None,
            attempts: Attempts::default(),
            apart: false,
            has_switched: false,
        }
    }

    pub(crate) fn die(&mut self) {
        self.alive = false;
        self.operation = None;
        self.attempts = Attempts::default();
        self.views.fill(View::default());
    }

    /// As `volumes/position.rs` in `mgr/src/daemon`.
    pub(crate) fn facts(&self, pair: usize) -> Facts {
        let (row, view) = (&self.store.pairs[pair], &self.views[pair]);
        let seen = view
            .status
            .filter(|_| view.connected || view.failures == 0)
            .map(|status| seen(row, &status))
            .map(|seen| Seen {
                dirty: seen.dirty || !view.connected,
                ..seen
            });
        Facts {
            phase: row.phase,
            paused: self.store.paused,
            last_authoritative: row.authoritative,
            seen,
            comparing: false,
            retired: false,
            outside_hours: false,
        }
    }

    pub(crate) fn positions(&self) -> Vec<Position> {
        let pairs = 0..self.store.pairs.len();
        pairs.map(|pair| self.facts(pair).position()).collect()
    }

    /// As `requests::verb`: decides, and begins the verb if that is the decision.
    pub(crate) fn ask(&mut self, verb: Verb) -> &'static str {
        if self.operation.is_some() {
            return "verbs while another was busy";
        }
        if verb == Verb::Switch && self.store.automatic.copies {
            return "verbs refused";
        }
        let positions = self.positions();
        let pairs = match session::decide_session(verb, &positions) {
            SessionDecision::Do(pairs) => pairs,
            SessionDecision::Already => return "verbs that were done already",
            SessionDecision::Refuse { .. } => return "verbs refused",
        };
        if !self.are_answering(verb, &pairs) {
            return "verbs refused";
        }
        let end = match verb {
            Verb::Commit => Some(Side::Target),
            Verb::Cancel => Some(Side::Source),
            _ => None,
        };
        self.apart |= end.is_some_and(|end| {
            let ended = |position: &&Position| position.state.is_ended();
            let mut ended = positions.iter().filter(ended);
            ended.any(|position| position.authoritative != end)
        });
        self.launch(verb);
        "verbs begun"
    }

    /// As `require_answering` in `mgr/src/daemon/sessions/sight.rs`.
    fn are_answering(&self, verb: Verb, pairs: &[usize]) -> bool {
        pairs.iter().all(|pair| {
            let (row, view) = (&self.store.pairs[*pair], &self.views[*pair]);
            let silence = Silence::of(view.failures, view.status.is_some());
            session::require_contact(verb, row.phase, silence).is_ok()
        })
    }

    /// The automatic action that is due.
    pub(crate) fn due(&self, now: Time) -> Option<DueAction> {
        let automatic = &self.store.automatic;
        let schedule = Schedule {
            mode: match self.store.mode {
                CopyMode::Mirror if automatic.copies => Mode::Copy,
                CopyMode::Mirror => Mode::Mirror,
                CopyMode::Track => Mode::Track,
            },
            policy: automatic.policy,
            scope: automatic.scope,
            paused: self.store.paused,
        };
        let pairs = self.positions().into_iter().zip(&self.store.pairs);
        let pairs: Vec<ScheduledPair> = pairs
            .map(|(position, row)| ScheduledPair {
                position,
                phase: row.phase,
                switched: row.switched,
            })
            .collect();
        schedule.due(&pairs, wall(now))
    }

    /// As `run_due_actions` in `mgr/src/daemon/owner/automatic.rs`. Returns what has begun, if
    /// anything.
    pub(crate) fn run_due_action(&mut self, now: Time) -> Option<&'static str> {
        let action = self.due(now)?;
        if !self.attempts.begin(&action, Instant(now.0)) {
            return None;
        }
        let DueAction { verb, pairs, .. } = action;
        if !self.are_answering(verb, &pairs) {
            return Some("verbs refused that were due");
        }
        let undone = |pair: &usize| self.store.pairs[*pair].undone;
        assert!(
            verb != Verb::Switch || !pairs.iter().any(undone),
            "what the operator has taken back is switched automatically: {self:?}"
        );
        assert!(
            verb != Verb::Switch || !self.has_switched,
            "a switch is repeated automatically: {self:?}"
        );
        self.launch_on(verb, pairs);
        Some(match verb {
            Verb::Switch => "switches that were due",
            Verb::Split => "splits that were due",
            Verb::Start | Verb::Pause | Verb::Resume | Verb::Undo | Verb::Commit | Verb::Cancel => {
                "resumes that were due"
            }
        })
    }

    /// As `requests::begin_verb`.
    pub(crate) fn launch(&mut self, verb: Verb) {
        let positions = self.positions();
        if let SessionDecision::Do(pairs) = session::decide_session(verb, &positions) {
            self.launch_on(verb, pairs);
        }
    }

    /// As `requests::begin_verb_on`.
    fn launch_on(&mut self, verb: Verb, pairs: Vec<usize>) {
        let positions = self.positions();
        let (pairs, later) = match verb {
            Verb::Start => self.turns(pairs),
            _ => (pairs, Vec::new()),
        };
        let planned = |pair: usize| PlannedPair {
            pair,
            phase: self.store.pairs[pair].phase,
            degraded: positions[pair].state == PairState::Degraded,
            is_copy: self.store.pairs[pair].phase == Phase::Split,
        };
        let mut rows = self.store.pairs.iter().enumerate();
        let is_last = rows.all(|(pair, row)| {
            pairs.contains(&pair) || !is_to_be_switched(row.phase, row.authoritative, row.switched)
        });
        let plan = Plan {
            pairs: pairs.into_iter().map(planned).collect(),
            later,
            copies_rest: self.store.mode == CopyMode::Track,
            is_last,
            retire: self.store.retire,
        };
        self.begin(verb, Operation::new(verb, plan));
    }

    /// As `queue::turns`: returns the pairs that get a place now, and the pairs that wait. There is
    /// one session.
    fn turns(&self, asked: Vec<usize>) -> (Vec<usize>, Vec<usize>) {
        let one = Waiting {
            priority: 0,
            since: 0,
        };
        let pairs = 0..self.store.pairs.len();
        let copied = pairs.filter(|pair| self.facts(*pair).holds_place()).count();
        let admitted = session::admit(&vec![one; asked.len()], copied, self.store.pairs_max);
        let places: Vec<usize> = admitted.into_iter().map(|index| asked[index]).collect();
        asked.into_iter().partition(|pair| places.contains(pair))
    }

    /// As `fill_places` in `mgr/src/daemon/owner/automatic.rs`. Returns whether a start has begun.
    pub(crate) fn fill_places(&mut self) -> bool {
        let waits = |pair: &usize| self.views[*pair].connected && self.facts(*pair).wants_place();
        let waiting = (0..self.store.pairs.len()).filter(waits).collect();
        let (pairs, _) = self.turns(waiting);
        if pairs.is_empty() {
            return false;
        }
        self.begin(Verb::Start, Operation::start_queued(pairs));
        true
    }

    /// As `reconcile::settle_pair`. Returns what was recorded or begun, if anything.
    pub(crate) fn settle_pair(&mut self, pair: usize, status: &Status) -> Option<&'static str> {
        let row = &mut self.store.pairs[pair];
        let seen = seen(row, status);
        match settle(row.phase, &seen) {
            Settlement::Nothing => {
                let side = seen.mirrored()?;
                if row.phase.is_ended() || side == row.authoritative {
                    return None;
                }
                row.authoritative = side;
                Some("sides found")
            }
            Settlement::Becomes(Phase::Committed) => {
                self.store.ended(pair, Side::Target);
                Some("phases settled")
            }
            Settlement::Becomes(Phase::Cancelled) => {
                self.store.ended(pair, Side::Source);
                Some("phases settled")
            }
            Settlement::Becomes(phase) => {
                let has_switched = has_switched(row.phase, &seen);
                row.phase = phase;
                row.authoritative = seen.mirrored().unwrap_or(Side::Source);
                row.switched |= has_switched;
                let left =
                    |row: &PairRow| is_to_be_switched(row.phase, row.authoritative, row.switched);
                if has_switched && !self.store.pairs.iter().any(left) {
                    self.store.automatic.policy = Policy::Manual;
                }
                Some("phases settled")
            }
            Settlement::Finish(verb) => {
                let answers = |pair: usize| {
                    let view = &self.views[pair];
                    view.connected && view.status.is_some_and(|status| !status.changing)
                };
                let rows = self.store.pairs.iter().enumerate();
                if !rows
                    .into_iter()
                    .all(|(pair, row)| row.phase.is_ended() || answers(pair))
                {
                    return None;
                }
                if !session::can_finish(verb, &self.positions()) {
                    let row = &mut self.store.pairs[pair];
                    row.phase = Phase::Active;
                    row.authoritative = seen.mirrored().unwrap_or(Side::Source);
                    return Some("ends taken back after a death");
                }
                self.launch(verb);
                Some("verbs finished after a death")
            }
            // Only shuntd requests routes, and it knows its own requests.
            Settlement::Contradiction => panic!("the volume contradicts {row:?}: {status:?}"),
        }
    }
}

/// The wall clock, which nobody sets here.
pub(crate) const fn wall(now: Time) -> WallTime {
    WallTime(now.0 / MILLISECOND)
}

pub(crate) fn seen(row: &PairRow, status: &Status) -> Seen {
    Seen {
        route: status.route,
        ours: row.is_ours(status),
        dirty: status.dirty,
        tracks: status.tracks,
        degraded: status.degraded,
        changing: status.changing,
    }
}
