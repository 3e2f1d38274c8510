//! The copier of a volume: the production plan of its conversation, with simulated disks.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use copier::{
    Outcome,
    conversation::Conversation,
    plan::Plan,
    window::{End, Piece, Sizes, Window},
};
use migration_core::{
    layout::{Extent, Layout},
    route::Side,
    units::{Epoch, RegionIndex, Time},
    volume::{Call, CopierId, Errno, Reply, Report},
};
use migration_proto::target::{CopyError, Refusal, Request, Response};

use crate::{
    dice::Dice,
    disk::{Lun, Value},
    settings::{BLOCK, REGION, REGIONS},
    site::{Site, lun_of},
};

/// The number of pieces that are in flight at once.
const QUEUE_DEPTH: usize = 3;

#[derive(Debug)]
struct Copier {
    id: CopierId,
    plan: Plan,
    from: usize,
    to: usize,
    from_side: Side,
    /// The pieces in progress, each with the value that was read, once it was.
    pieces: Vec<(Piece, Option<Value>)>,
    claim: Option<Call>,
    answers: VecDeque<Response>,
    connected: bool,
}

/// A write in flight of a dead copier: LUN, block, data.
type Ghost = (usize, usize, Value);

#[derive(Debug, Default)]
pub(crate) struct Copying {
    copier: Option<Copier>,
    /// Writes of dead copiers. They hold the lock of the mirror leg until they have landed.
    ghosts: Vec<Ghost>,
    /// Copiers whose connection has ended, which ublk-target does not know yet.
    closing: Vec<CopierId>,
}

/// The plan's clock: only differences count.
fn clock(origin: Instant, now: Time) -> Instant {
    origin + Duration::from_nanos(now.0)
}

fn block(piece: &Piece) -> usize {
    (piece.from.offset / BLOCK) as usize
}

fn refused(cause: impl std::fmt::Debug) -> Response {
    Response::Refused {
        reason: Refusal::Failed,
        cause: format!("{cause:?}"),
    }
}

impl Copying {
    /// Whether no copier lives and no write of a dead one is left.
    pub(crate) fn is_gone(&self) -> bool {
        self.copier.is_none() && self.ghosts.is_empty()
    }

    pub(crate) const fn is_running(&self) -> bool {
        self.copier.is_some()
    }

    pub(crate) fn stop(&mut self) {
        if let Some(copier) = &mut self.copier {
            copier.plan.stop();
        }
    }

    /// Ends all connections, because ublk-target is gone.
    pub(crate) fn connection_lost(&mut self) {
        self.closing.clear();
        if let Some(copier) = &mut self.copier {
            copier.connected = false;
            copier.claim = None;
        }
    }

    pub(crate) fn claim_answered(
        &mut self,
        call: Call,
        reply: &Reply,
        epoch: Epoch,
        dirty_bytes: u64,
    ) {
        let Some(copier) = self.copier.as_mut().filter(|c| c.claim == Some(call)) else {
            return;
        };
        copier.claim = None;
        copier.answers.push_back(match reply {
            Reply::Claimed(regions) => Response::Claimed {
                epoch: epoch.0,
                regions: regions.iter().map(|region| region.0 as u64).collect(),
                never_copied: Vec::new(),
                dirty_bytes,
            },
            other => refused(other),
        });
    }

    /// Kills the copier; its writes in flight land later or never.
    pub(crate) fn kill(&mut self) {
        if let Some(copier) = self.copier.take() {
            for (piece, value) in &copier.pieces {
                if let Some(value) = value {
                    self.ghosts.push((copier.to, block(piece), *value));
                }
            }
            if copier.connected {
                self.closing.push(copier.id);
            }
        }
    }

    pub(crate) fn lose_power(&mut self, luns: &mut [Lun; 2], dice: &mut Dice) {
        self.kill();
        self.closing.clear();
        for (lun, block, value) in self.ghosts.drain(..) {
            if dice.one_in(2) {
                luns[lun].write(block, value, false);
            }
        }
    }
}

impl Site {
    pub(crate) fn kill_copier(&mut self) {
        if self.copying.is_running() {
            self.copying.kill();
            self.note("deaths of a copier");
        }
    }

    /// Reports to ublk-target that a copier is gone, or lets a ghost land or vanish.
    pub(crate) fn bury_copier(&mut self, now: Time) {
        if let Some(id) = self.copying.closing.pop() {
            if let Some(serving) = self.serving() {
                serving.volume.close_copier(id, now, &mut serving.effects);
            }
            return;
        }
        let hung = self.hung;
        let index = self.copying.ghosts.iter().position(|ghost| !hung[ghost.0]);
        if let Some(index) = index {
            let (lun, block, value) = self.copying.ghosts.swap_remove(index);
            if self.dice.one_in(2) {
                self.luns[lun].write(block, value, false);
                self.note("ghosts of a copier");
            }
        }
    }

    /// Starts a new copier, if no write of an earlier one can still reach the mirror leg.
    pub(crate) fn start_copier(&mut self, origin: Instant, now: Time) {
        if !self.copying.is_gone() {
            return;
        }
        let id = CopierId(self.call().0);
        let opened = self.try_on_volume(|volume, _| volume.open_copier(id));
        let (Some(Ok(epoch)), Some(serving)) = (opened, self.serving()) else {
            return;
        };
        let from_side = serving.volume.record().route.authoritative();
        let from = lun_of(&serving.descriptor, from_side);
        let bytes = REGION * REGIONS as u64;
        let sizes = Sizes {
            region_bytes: REGION,
            volume_bytes: bytes,
            io_bytes: BLOCK as u32,
        };
        let leg = |lun| {
            let (start, length) = (0, bytes);
            Layout::new([Extent { lun, start, length }]).expect("a short leg")
        };
        let window = Window::new(sizes, leg(from), leg(1 - from)).expect("the sizes fit");
        let queue_bytes = QUEUE_DEPTH as u64 * BLOCK;
        self.copying.copier = Some(Copier {
            id,
            plan: Plan::new(epoch.0, window, queue_bytes, clock(origin, now)),
            from,
            to: 1 - from,
            from_side,
            pieces: Vec::new(),
            claim: None,
            answers: VecDeque::new(),
            connected: true,
        });
        self.note("copiers started");
    }

    /// Does a random step of the copier.
    pub(crate) fn step_copier(&mut self, origin: Instant, now: Time) {
        if self.settings.slow_copier && !self.dice.one_in(8) {
            return;
        }
        let at = clock(origin, now);
        let Some(copier) = &mut self.copying.copier else {
            return;
        };
        if !copier.connected && self.dice.one_in(3) {
            copier.plan.give_up("the connection ended".to_owned());
        }
        match self.dice.below(8) {
            0..2 => {
                if copier.pieces.len() < QUEUE_DEPTH
                    && let Some(piece) = copier.plan.next_piece()
                {
                    copier.pieces.push((piece, None));
                }
            }
            2..5 => self.copy_piece(),
            5..7 => {
                if let Some(answer) = copier.answers.pop_front() {
                    copier.plan.answered(answer, at);
                } else if copier.connected
                    && let Some(request) = copier.plan.next_request(at, 0)
                {
                    self.ask_for_copier(request, now);
                }
            }
            _ => drop(copier.plan.look_at_the_clock(at, 0)),
        }
        self.end_copier();
    }

    fn copy_piece(&mut self) {
        let Some(copier) = &mut self.copying.copier else {
            return;
        };
        if copier.pieces.is_empty() {
            return;
        }
        let index = self.dice.below(copier.pieces.len());
        let (piece, read) = copier.pieces[index];
        let lun = if read.is_none() {
            copier.from
        } else {
            copier.to
        };
        if self.hung[lun] {
            return;
        }
        if self.dice.one_in(self.settings.copier_fails) {
            let side = if read.is_none() {
                copier.from_side
            } else {
                copier.from_side.other()
            };
            let error = CopyError {
                side: side.into(),
                errno: None,
                cause: "broken".to_owned(),
            };
            copier.pieces.swap_remove(index);
            let end = if read.is_none() { End::From } else { End::To };
            copier.plan.piece_failed(piece.region, end, error);
            return self.note("pieces that could not be copied");
        }
        match read {
            None => copier.pieces[index].1 = Some(self.luns[copier.from].now(block(&piece))),
            Some(value) => {
                copier.pieces.swap_remove(index);
                copier.plan.piece_done(piece.region);
                self.luns[lun].write(block(&piece), value, false);
                self.note("pieces copied");
            }
        }
    }

    fn ask_for_copier(&mut self, request: Request, now: Time) {
        let call = self.call();
        let Some(copier) = &mut self.copying.copier else {
            return;
        };
        let id = copier.id;
        match request {
            Request::Claim { regions_max } => {
                copier.claim = Some(call);
                if let Some(serving) = self.serving() {
                    let effects = &mut serving.effects;
                    serving
                        .volume
                        .claim(id, call, regions_max as usize, effects);
                }
            }
            Request::Report {
                epoch,
                copied,
                failed,
                error,
            } => {
                let mirror = self
                    .serving()
                    .and_then(|serving| serving.volume.record().route.mirror());
                let mirror_error = error
                    .filter(|error| Some(error.side.into()) == mirror)
                    .map(|_| Errno(5));
                let regions = |list: &[u64]| -> Vec<RegionIndex> {
                    list.iter()
                        .map(|region| RegionIndex(*region as usize))
                        .collect()
                };
                let (copied, failed) = (regions(&copied), regions(&failed));
                let result = self.try_on_volume(|volume, effects| {
                    let report = Report {
                        epoch: Epoch(epoch),
                        copied: &copied,
                        failed: &failed,
                        mirror_error,
                    };
                    volume.report(now, id, &report, effects)
                });
                let answer = match result {
                    Some(Ok(())) => Response::Done,
                    Some(Err(error)) => refused(error),
                    None => return,
                };
                if let Some(copier) = &mut self.copying.copier {
                    copier.answers.push_back(answer);
                }
            }
            other => panic!("the copier asks for {other:?}"),
        }
    }

    fn end_copier(&mut self) {
        let outcome = self.copying.copier.as_ref().and_then(|c| c.plan.outcome());
        let Some(outcome) = outcome.cloned() else {
            return;
        };
        let copier = self.copying.copier.take().expect("it has ended");
        assert!(copier.pieces.is_empty(), "a copier ends with I/O in flight");
        if copier.connected {
            self.copying.closing.push(copier.id);
        }
        self.note(match outcome {
            Outcome::InSync => "copies in sync",
            Outcome::Stopped => "copiers stopped",
            Outcome::Disconnected { .. } => "copiers disconnected",
            Outcome::Refused { .. } => "copiers refused",
            Outcome::Failed { .. } => "copiers failed",
            Outcome::Compared(_) => panic!("nothing is to be compared"),
            Outcome::Broken { cause } => panic!("{cause}"),
        });
    }
}
