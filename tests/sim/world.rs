//! A host with some volumes, shuntd and an operator, in which everything may happen at any moment.

use std::time::{Duration, Instant};

use migration_core::{
    units::{Epoch, Time},
    volume::CopyMode,
};
use seeded_core::{
    operation::SeededBug,
    pair::{PairState, Phase, Position, Verb},
    retire::left_behind,
    route::{Route, Side},
    schedule::{Policy, Scope},
    session,
    units::WallTime,
};

use crate::{
    border::asked,
    copies::Moment,
    daemon::{Automatic, Daemon, PairRow, Store, wall},
    dice::Dice,
    operation::TargetTruth,
    recovery::Losses,
    settings::{Counts, MILLISECOND, Settings},
    site::{Site, Start},
};

/// How many steps a world may take to come to rest.
const REST_STEPS_MAX: usize = 60_000;

/// A rule that is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    Nothing,
    /// A LUN without a name is identified by its size only.
    LunsBySizeOnly,
    /// A rule of operations is broken.
    Operation(SeededBug),
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    /// Decides what sessions do automatically. Separate from the dice of the world, so that worlds
    /// in which nothing is automatic do not change.
    automatic: Dice,
    pub(crate) losses: Losses,
    /// How rarely the operator commits: one chance in this number. Commits matter in some worlds,
    /// and in others a migration lasts for a while.
    commits: usize,
    settings: Settings,
    origin: Instant,
    pub(crate) now: Time,
    pub(crate) sites: Vec<Site>,
    pub(crate) daemon: Daemon,
    /// The contents of the volumes at the last split.
    pub(crate) moments: Vec<Moment>,
    /// The targets of the pairs.
    pub(crate) targets: Vec<TargetTruth>,
    /// Epochs that a client that was frozen may still use.
    old_epochs: Vec<(usize, Epoch)>,
    counts: Counts,
}

impl World {
    pub(crate) fn new(seed: u64, wrong: Wrong) -> Self {
        let mut dice = Dice::new(seed);
        let settings = Settings {
            luns_by_size_only: wrong == Wrong::LunsBySizeOnly,
            ..Settings::new(&mut dice)
        };
        let sites = (0..settings.volumes)
            .map(|number| Site::new(number, seed, settings.clone()))
            .collect();
        let mut daemon = Daemon::new(settings.volumes, &settings);
        daemon.broken = match wrong {
            Wrong::Operation(rule) => Some(rule),
            Wrong::Nothing | Wrong::LunsBySizeOnly => None,
        };
        Self {
            daemon,
            losses: Losses::new(seed),
            commits: Dice::new(seed ^ 0xc0331).pick(&[80, 80, 80, 8]),
            targets: vec![TargetTruth::default(); settings.volumes],
            automatic: Dice::new(seed.rotate_left(32) ^ 0x5eed),
            dice,
            origin: Instant::now(),
            now: Time(1),
            sites,
            moments: Vec::new(),
            old_epochs: Vec::new(),
            counts: Counts::new(),
            settings,
        }
    }

    pub(crate) fn run(mut self) -> Counts {
        for _ in 0..self.settings.steps {
            self.step();
        }
        self.come_to_rest();
        self.into_counts()
    }

    fn into_counts(mut self) -> Counts {
        for site in &self.sites {
            for (what, count) in &site.counts {
                *self.counts.entry(what).or_default() += count;
            }
        }
        self.counts
    }

    pub(crate) fn note(&mut self, what: &'static str) {
        if crate::is_traced() {
            eprintln!("{:>16} session: {what}", self.now.0);
        }
        *self.counts.entry(what).or_default() += 1;
    }

    fn step(&mut self) {
        self.now = self.now.plus(self.dice.below(MILLISECOND as usize) as u64);
        let index = self.dice.below(self.sites.len());
        let now = self.now;
        let site = &mut self.sites[index];
        match self.dice.below(200) {
            0..32 => site.new_request(now),
            32..78 => site.complete_one(now),
            78..116 => site.step_copier(self.origin, now),
            116..157 => self.step_daemon(),
            157..162 => self.ask_verb(),
            162..166 => site.bury_copier(now),
            166..172 => site.land_ghost(),
            172..184 => self.let_time_pass(index),
            184 if self.dice.one_in(2) => site.suspend(now),
            185 => drop(site.end_suspension(now)),
            186 => self.ask_with_an_old_epoch(index),
            188..190 if self.settings.hangs => {
                let lun = self.dice.below(2);
                site.hung[lun] = self.dice.one_in(4);
            }
            191 => site.may_lose_mirror_cache(),
            195..200 => site.lose_power_of_mirror(),
            190 if self.dice.one_in(self.settings.peace) => self.let_die(index),
            192..194 => {
                site.foreign_write();
                site.come_back_under_other_names();
            }
            194 if self.dice.one_in(self.settings.peace)
                && site.stop_cleanly()
                && self.dice.one_in(2) =>
            {
                site.foreign_write();
            }
            _ => {}
        }
        self.perform();
        self.die_at_a_bad_moment(index);
        self.may_lose_map(index);
        self.may_recover();
        self.note_switch();
        self.check_ended_pairs();
        self.check_copies();
    }

    /// Kills a process, or cuts the power, while the map file is being written.
    fn die_at_a_bad_moment(&mut self, index: usize) {
        let Settings {
            torn_role,
            torn_bitmap,
            ..
        } = self.settings;
        let peace = if torn_bitmap { 5 } else { 60 } * self.settings.peace;
        if self.sites[index].writes_map() && self.dice.one_in(peace) {
            match self.dice.below(4) {
                _ if torn_role || torn_bitmap => self.lose_power(),
                0 => self.sites[index].kill(),
                1 => self.kill_daemon(),
                _ => self.lose_power(),
            }
        }
    }

    fn perform(&mut self) {
        for site in &mut self.sites {
            site.perform();
        }
    }

    /// Lets time pass: a long time until sweeps are due, a shorter one until patience ends, or
    /// none.
    fn let_time_pass(&mut self, index: usize) {
        let nanoseconds = match self.dice.below(60) {
            0 => self.sites[index].sweep_time(),
            1..4 => 250 * MILLISECOND,
            4..12 => 60 * MILLISECOND,
            _ => 0,
        };
        self.now = self.now.plus(nanoseconds);
        for site in &mut self.sites {
            site.tick(self.now);
        }
    }

    // ---- deaths ----------------------------------------------------------------------------

    fn let_die(&mut self, index: usize) {
        let site = &mut self.sites[index];
        match self.dice.below(12) {
            0..2 => site.kill_copier(),
            2..4 => site.kill(),
            4..8 => site.doom(),
            8..11 => self.kill_daemon(),
            _ => self.lose_power(),
        }
    }

    fn kill_daemon(&mut self) {
        if self.daemon.alive {
            if self.daemon.operation.is_some() {
                self.note("deaths of shuntd in an operation");
            }
            self.daemon.die();
            self.note("deaths of shuntd");
            for site in &mut self.sites {
                site.kill_copier();
                site.held = None;
            }
        }
    }

    fn lose_power(&mut self) {
        self.daemon.die();
        for site in &mut self.sites {
            site.lose_power();
        }
        self.note("power losses");
    }

    // ---- shuntd ----------------------------------------------------------------------------

    fn step_daemon(&mut self) {
        if !self.daemon.alive {
            if self.dice.one_in(2) {
                self.daemon.alive = true;
            }
            return;
        }
        let index = self.dice.below(self.sites.len());
        if self.daemon.operation.is_some() && self.dice.one_in(2) {
            self.step_operation();
        } else {
            self.supervise(index);
        }
    }

    /// Keeps a ublk-target running, and evaluates its status.
    fn supervise(&mut self, index: usize) {
        let may_die = self.settings.steps > 0;
        let (site, view) = (&mut self.sites[index], &mut self.daemon.views[index]);
        match site.start(self.now, may_die) {
            Start::Waits | Start::Goes => {
                view.connected = false;
                return;
            }
            Start::Died | Start::Refused => {
                view.connected = false;
                view.failures += 1;
                return;
            }
            Start::Serves => {}
        }
        let Some(status) = site.status() else {
            return;
        };
        site.hold();
        view.connected = true;
        view.failures = 0;
        view.status = Some(status);
        self.old_epochs.push((index, status.epoch));
        if self.daemon.operation.is_some() || index >= self.daemon.store.pairs.len() {
            return;
        }
        if let Some(what) = self.daemon.settle_pair(index, &status) {
            return self.note(what);
        }
        if self.daemon.fill_places() {
            return self.note("queued pairs started");
        }
        if let Some(what) = self.daemon.run_due_action(self.now) {
            return self.note(what);
        }
        let Store { policy, mode, .. } = self.daemon.store;
        let site = &mut self.sites[index];
        if status.policy != policy
            && let Some(serving) = site.serving()
        {
            serving.volume.set_on_authoritative_failure(policy);
        }
        if status.mode != mode
            && let Some(serving) = site.serving()
        {
            serving.volume.set_copy_mode(mode, &mut serving.effects);
        }
        if self.daemon.facts(index).wants_copier() {
            site.start_copier(self.origin, self.now);
        }
    }

    // ---- the operator ----------------------------------------------------------------------

    fn ask_verb(&mut self) {
        if !self.daemon.alive {
            return;
        }
        if !self.daemon.store.is_live() {
            // The pairs of the next session take the place of those of this one, whose sources may
            // still be retired.
            if self.daemon.operation.is_none() {
                self.create();
            }
            return;
        }
        let positions = self.daemon.positions();
        let allowed = session::allowed(&positions);
        let verb = if allowed.is_empty() || self.dice.one_in(5) {
            self.dice.pick(&Verb::ALL)
        } else {
            // Prefers the verbs that advance the migration, rather than a pause.
            let further = match self.dice.one_in(4) {
                true => [Verb::Start, Verb::Resume, Verb::Split, Verb::Undo],
                false => [Verb::Start, Verb::Resume, Verb::Switch, Verb::Undo],
            };
            let further = further.into_iter().find(|verb| allowed.contains(verb));
            let any = self.dice.pick(&allowed);
            further.filter(|_| !self.dice.one_in(3)).unwrap_or(any)
        };
        // A migration must last for a while, and a copy must be able to end.
        let hinders = matches!(verb, Verb::Commit | Verb::Cancel | Verb::Pause);
        let chance = match verb {
            Verb::Commit => self.commits,
            _ => 80,
        };
        if hinders && !self.dice.one_in(chance) {
            return;
        }
        let what = self.daemon.ask(verb);
        self.note(what);
    }

    fn create(&mut self) {
        let store = &mut self.daemon.store;
        store.pairs = store.luns.iter().map(|lun| PairRow::new(*lun)).collect();
        store.paused = false;
        self.daemon.apart = false;
        self.targets.fill(TargetTruth::default());
        self.daemon.has_switched = false;
        self.daemon.store.automatic = self.choose_automatic();
        self.note("sessions");
    }

    /// In one of four sessions something is automatic.
    fn choose_automatic(&mut self) -> Automatic {
        let dice = &mut self.automatic;
        let policy = match dice.below(8) {
            0 => Policy::WhenSynced,
            1 => Policy::At(WallTime(wall(self.now).0 + dice.below(10_000) as u64)),
            _ => return Automatic::NOTHING,
        };
        let copies = self.daemon.store.mode == CopyMode::Mirror && dice.one_in(2);
        let scope = dice.pick(&[Scope::Together, Scope::Each]);
        let every = Duration::from_millis(dice.pick(&[0, 300, 2_000]));
        Automatic {
            policy,
            scope,
            copies,
            // Only sessions that are split have an interval.
            every: if copies { every } else { Duration::ZERO },
        }
    }

    /// Requests a change with an old epoch, as a client that was frozen does; it must be refused.
    fn ask_with_an_old_epoch(&mut self, index: usize) {
        let old = self.old_epochs.iter().rev();
        let current = self.sites[index].status().map(|status| status.epoch);
        let Some((_, epoch)) = old
            .copied()
            .find(|(site, epoch)| *site == index && Some(*epoch) != current)
        else {
            return;
        };
        let authoritative = self.dice.pick(&[Side::Source, Side::Target]);
        let route = self.dice.pick(&[
            Route::Mirrored { authoritative },
            Route::Single(authoritative),
        ]);
        if self.sites[index]
            .change_route(self.now, epoch, Some(asked(route)), 1)
            .is_some()
        {
            self.note("stale epochs refused");
        }
    }

    /// Notes that the only pair of the session is switched, even if a process dies before
    /// that is recorded.
    fn note_switch(&mut self) {
        let ([site], [row]) = (&mut self.sites[..], &self.daemon.store.pairs[..]) else {
            return;
        };
        let is_there = |route: Route| route.authoritative() == Side::Target;
        let moves = row.phase == Phase::Switching;
        self.daemon.has_switched |= moves && site.status().is_some_and(|s| is_there(s.route));
    }

    // ---- checks ----------------------------------------------------------------------------

    /// Checks that a pair that is recorded as ended has ended in the map file.
    fn check_ended_pairs(&self) {
        for (row, site) in self.daemon.store.pairs.iter().zip(&self.sites) {
            let Some(left) = left_behind(row.phase) else {
                continue;
            };
            let Ok((route, lun)) = site.durable_route() else {
                continue;
            };
            assert!(
                !route.has_map() && lun == row.lun(left.other()),
                "the pair is {}, but the volume is {route:?} with lun {lun}: {row:?}",
                row.phase.name()
            );
        }
    }

    /// Lets the world come to rest: nothing fails or dies any more. Everything must end, and all
    /// pairs must be on one side, unless the operator has ended them on two.
    fn come_to_rest(&mut self) {
        self.settings.calm();
        self.losses.end();
        self.settings.steps = 0;
        self.daemon.store.mode = CopyMode::Mirror;
        // A session that is split again and again does not come to rest.
        if self.daemon.store.automatic.copies {
            self.daemon.store.automatic = Automatic::NOTHING;
        }
        for site in &mut self.sites {
            site.settings.calm();
            site.hung = [false; 2];
        }
        for step in 0..REST_STEPS_MAX {
            self.rest_step();
            if step % 16 == 0 && self.is_at_rest() {
                break;
            }
        }
        let positions = self.daemon.positions();
        for site in &mut self.sites {
            let daemon = &self.daemon;
            site.check_at_the_end(|| format!("{positions:?}, {daemon:?}"));
        }
        assert!(
            self.is_at_rest(),
            "the session does not come to rest: {positions:?}, {:?}",
            self.daemon
        );
    }

    fn rest_step(&mut self) {
        let jump = self.dice.pick(&[0, 1, 1, 20, 20, 120]);
        self.now = self.now.plus(jump * MILLISECOND);
        let now = self.now;
        for site in &mut self.sites {
            site.tick(now);
            site.complete_one(now);
            site.land_ghost();
            site.bury_copier(now);
            site.step_copier(self.origin, now);
        }
        self.perform();
        self.step_daemon();
        self.perform();
        self.check_ended_pairs();
        self.check_copies();
        self.may_recover();
        if self.dice.one_in(20) {
            self.ask_for_rest();
        }
    }

    /// The operator gives the command that the state requires.
    fn ask_for_rest(&mut self) {
        let daemon = &mut self.daemon;
        let settled = daemon.views.iter().all(|view| view.connected);
        if !daemon.alive || !settled || daemon.operation.is_some() || !daemon.store.is_live() {
            return;
        }
        let positions = daemon.positions();
        let allowed = session::allowed(&positions);
        let is = |state: PairState| positions.iter().any(|position| position.state == state);
        let under_way = [
            PairState::Switching,
            PairState::Splitting,
            PairState::Committing,
        ];
        let under_way = under_way.into_iter().any(is);
        assert!(
            !allowed.is_empty() || under_way,
            "there is no next command: {positions:?} {:?}",
            daemon.store
        );
        let ended: Vec<Side> = positions
            .iter()
            .filter(|position| position.state.is_ended())
            .map(|position| position.authoritative)
            .collect();
        let first = ended.first().copied();
        let wanted = if is(PairState::NeedsRecovery) {
            vec![Verb::Cancel, Verb::Commit]
        } else if is(PairState::Setup) {
            vec![self.dice.pick(&[Verb::Start, Verb::Cancel]), Verb::Cancel]
        } else if is(PairState::Degraded) || is(PairState::Paused) || is(PairState::Split) {
            vec![Verb::Resume]
        } else {
            match first {
                Some(side) if ended.iter().any(|other| *other != side) => {
                    vec![Verb::Commit, Verb::Cancel]
                }
                Some(Side::Target) => vec![Verb::Commit, Verb::Switch],
                Some(Side::Source) => vec![Verb::Cancel, Verb::Undo],
                None if one_side(&positions) => vec![],
                None => vec![self.dice.pick(&[Verb::Switch, Verb::Undo])],
            }
        };
        let verb = wanted.into_iter().find(|verb| allowed.contains(verb));
        if let Some(verb) = verb {
            self.daemon.ask(verb);
        }
    }

    fn is_at_rest(&mut self) -> bool {
        let positions = self.daemon.positions();
        let known = self.daemon.views.iter().all(|view| view.connected);
        let rests = |state: PairState| {
            matches!(
                state,
                PairState::SourceSelected
                    | PairState::TargetSelected
                    | PairState::Committed
                    | PairState::Cancelled
            )
        };
        known
            && self.daemon.operation.is_none()
            && self.daemon.due(self.now).is_none()
            && positions.iter().all(|position| rests(position.state))
            && (one_side(&positions) || self.daemon.apart)
            && self.sites.iter_mut().all(Site::is_quiet)
    }
}

fn one_side(positions: &[Position]) -> bool {
    let first = positions.first().map(|position| position.authoritative);
    positions
        .iter()
        .all(|position| Some(position.authoritative) == first)
}
