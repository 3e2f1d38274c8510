//! Map files that are damaged or lost, and the operator who recovers the volume.

use migration_core::route::Route as Served;
use seeded_core::{
    operation::{
        Answer, Effect, End, Event, Operation,
        recover::{Examined, Found, LivePair, Params, Recover, VolumeStep},
    },
    pair::Phase,
    route::Side,
};

use crate::{
    border::{leg_of, reported},
    dice::Dice,
    site::Site,
    world::World,
};

/// Decides when map files are damaged or lost. Separate from the dice of the world, so that worlds
/// in which none is do not change.
pub(crate) struct Losses {
    dice: Dice,
    /// Whether map files are damaged or lost in this world.
    happen: bool,
}

impl Losses {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed.rotate_left(17) ^ 0x105e5);
        let happen = dice.one_in(4);
        Self { dice, happen }
    }

    pub(crate) fn end(&mut self) {
        self.happen = false;
    }
}

impl World {
    /// Damages or removes the map file of a volume, now and then: most often while the role of its
    /// pair is moving.
    pub(crate) fn may_lose_map(&mut self, index: usize) {
        if !self.losses.happen || self.sites[index].is_refused() {
            return;
        }
        let row = self.daemon.store.pairs.get(index);
        let chance = match row.map(|row| (row.phase, row.authoritative)) {
            Some((Phase::Switching | Phase::Undoing, recorded)) => {
                // It matters most when the role has moved and that is not recorded.
                let moved = self.right_side(index) != recorded;
                if moved { 10 } else { 60 }
            }
            Some(_) | None => 6_000,
        };
        if self.losses.dice.one_in(chance) {
            let removed = self.losses.dice.one_in(2);
            self.sites[index].lose_map(removed);
            self.note(match removed {
                true => "map files lost",
                false => "map files damaged",
            });
        }
    }

    /// The operator recovers a volume whose map file is damaged or lost.
    pub(crate) fn may_recover(&mut self) {
        let free = self.daemon.alive && self.daemon.operation.is_none();
        let refused = self.sites.iter().position(Site::is_refused);
        if let Some(index) = refused.filter(|_| free)
            && self.losses.dice.one_in(20)
        {
            self.begin_recovery(index);
        }
    }

    fn begin_recovery(&mut self, index: usize) {
        let row = self.daemon.store.pairs.get(index);
        let pair = row.filter(|row| !row.phase.is_ended()).map(|row| LivePair {
            pair: index,
            phase: row.phase,
            authoritative: row.authoritative,
        });
        let examined = self.examine(index);
        let recovery = |side, against_record, dry_run| {
            let params = Params {
                side,
                against_record,
                dry_run,
            };
            Operation::Recover(Recover::new(pair, params))
        };
        let accepts = |side: &Side| {
            let mut plan = recovery(*side, false, true);
            plan.break_rule(self.daemon.broken);
            plan.begin();
            plan.apply(&Event::Examined(examined)) == [Effect::End(End::Done)]
        };
        let accepted: Vec<Side> = [Side::Source, Side::Target]
            .into_iter()
            .filter(accepts)
            .collect();
        let right = self.right_side(index);
        // Without a failure of the authoritative leg only shuntd moves roles.
        let moves_alone = self.sites[index].settings.authoritative_fails > 0;
        let against_record = match accepted[..] {
            [side] => {
                assert!(
                    side == right || moves_alone,
                    "the {side} would be named, but the {right} is authoritative: {row:?}"
                );
                side != right
            }
            [_, _] => {
                let readable =
                    matches!(examined, Examined::Readable { route, .. } if route.has_map());
                assert!(!readable, "what the map file says does not count: {row:?}");
                false
            }
            _ => panic!("no leg may be named: {row:?}, {examined:?}"),
        };
        // The operator knows better.
        let operation = recovery(right, against_record, false);
        let has_pair = pair.is_some();
        self.daemon.begin_recovery(index, operation);
        self.daemon.apart |= has_pair;
        self.note("recoveries begun");
    }

    /// What is left of the map file of a volume.
    fn examine(&self, index: usize) -> Examined {
        let site = &self.sites[index];
        if !site.is_refused() {
            return Examined::Served;
        }
        match site.readable_route() {
            None => Examined::Nothing,
            Some(route) => Examined::Readable {
                found: Found::Damaged,
                route: reported(route),
                has_recorded_legs: true,
            },
        }
    }

    /// The side that is authoritative, whatever is recorded.
    fn right_side(&self, index: usize) -> Side {
        let (_, lun) = self.sites[index].true_route();
        let row = self.daemon.store.pairs.get(index);
        match row.filter(|row| !row.phase.is_ended()) {
            Some(row) if row.target == lun => Side::Target,
            Some(_) | None => Side::Source,
        }
    }

    /// `None`: the step has not ended.
    pub(crate) fn perform_volume_step(&mut self, index: usize, step: VolumeStep) -> Option<Event> {
        let answer = match step {
            VolumeStep::Examine => return Some(Event::Examined(self.examine(index))),
            VolumeStep::EndAttempts => Answer::Done,
            VolumeStep::MakeMap {
                side,
                has_both_legs,
            } => {
                let answer = match self.losses.dice.below(12) {
                    0 => Answer::Refused,
                    1 | 2 => Answer::Unknown,
                    _ => Answer::Done,
                };
                let made = match answer {
                    Answer::Unknown => self.losses.dice.one_in(2),
                    answer => answer == Answer::Done,
                };
                if made {
                    self.make_map(index, side, has_both_legs);
                }
                answer
            }
            VolumeStep::Serve => {
                let is_up = self.daemon.views[index].connected;
                let impatient = self.losses.dice.one_in(100);
                match (is_up, impatient) {
                    (true, _) => Answer::Done,
                    (false, true) => Answer::Refused,
                    (false, false) => return None,
                }
            }
        };
        Some(Event::Volume(answer))
    }

    fn make_map(&mut self, index: usize, side: Side, has_both_legs: bool) {
        let right = self.right_side(index);
        assert_eq!(side, right, "the leg that is used from now on");
        let (_, lun) = self.sites[index].true_route();
        let row = self.daemon.store.pairs.get(index);
        let (source, target) = match row.filter(|_| has_both_legs) {
            Some(row) => (row.source, Some(row.target)),
            None => {
                assert_eq!(self.daemon.store.luns[index], lun, "the LUN of the volume");
                (lun, None)
            }
        };
        self.sites[index].make_map(Served::Single(leg_of(side)), source, target);
        self.note("map files made again");
    }
}
