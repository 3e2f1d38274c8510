//! The copier's thread: greets `ublk-target`, opens the legs, and performs what the plan decides.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use migration_proto::route::Side;
use migration_proto::target::{Refusal, Request, Response, ServedLeg};
use migration_proto::{Hello, Welcome, frame};

use crate::compare::Comparing;
use crate::conversation::Conversation;
use crate::line::{Abort, Line};
use crate::mover::{Ending, Host, Legs, Mover, Orders, Report};
use crate::open::{OpenLegs, open_legs};
use crate::plan::Plan;
use crate::ring::{self, Completion, Ring};
use crate::window::{Sizes, Window};
use crate::{AcceptUnreadable, Config, Outcome, Shared, Task};

/// The answer of `ublk-target` that accepts the copier.
struct Opened {
    epoch: u64,
    region_bytes: u64,
    size_bytes: u64,
    from: Box<ServedLeg>,
    to: Box<ServedLeg>,
    from_side: Side,
    /// Whether regions are written only where the legs differ.
    compare_first: bool,
}

/// The state of the thread after the greeting.
struct Copying<'a, Way> {
    task: Task,
    shared: &'a Shared,
    line: Line<'a>,
    legs: Legs,
    plan: Box<dyn Conversation>,
    mover: Way,
}

/// Runs one copier from the connection to the end. Everything is closed and unlocked when this
/// returns, except after a failure of the ring.
pub(super) fn run(
    config: &Config,
    ring: Ring,
    shared: &Shared,
    accept_unreadable: Option<AcceptUnreadable>,
) -> Outcome {
    if let Err(error) = ring::set_io_flusher() {
        tracing::debug!(%error, "the copier is not an I/O flusher");
    }
    match prepare(config, ring, shared, accept_unreadable).and_then(Copying::run) {
        Ok(outcome) | Err(Abort::Ended(outcome)) => outcome,
        // What is in flight is unknown. The kernel keeps the LUNs locked until their I/O is done.
        Err(Abort::RingFailed(error)) => Outcome::Broken {
            cause: format!("io_uring failed: {error}"),
        },
    }
}

fn prepare<'a>(
    config: &'a Config,
    ring: Ring,
    shared: &'a Shared,
    accept_unreadable: Option<AcceptUnreadable>,
) -> Result<Copying<'a, Host<'a>>, Abort> {
    let mut line = Line::connect(config, ring, shared)?;
    let opened = greet(&mut line)?;
    let sizes = Sizes {
        region_bytes: opened.region_bytes,
        volume_bytes: opened.size_bytes,
        io_bytes: config.io_bytes,
    };
    let OpenLegs { luns, from, to } = open_legs(&opened.from, &opened.to).map_err(Abort::Ended)?;
    let window = Window::new(sizes, from, to).map_err(|error| {
        Abort::Ended(Outcome::Refused {
            reason: Refusal::BadLeg,
            cause: error.to_string(),
        })
    })?;
    line.ring.register_files(&luns.descriptors())?;
    let queue_bytes = u64::from(config.queue_depth) * u64::from(config.io_bytes);
    let (epoch, now) = (opened.epoch, Instant::now());
    let plan: Box<dyn Conversation> = match config.task {
        Task::Copy { .. } => Box::new(Plan::new(epoch, window, queue_bytes, now)),
        Task::Compare => {
            let size_bytes = opened.size_bytes;
            Box::new(Comparing::new(epoch, window, size_bytes, queue_bytes, now))
        }
    };
    let orders = Orders {
        task: config.task,
        compare_first: opened.compare_first,
        detect_zeroes: config.detect_zeroes,
    };
    let slots = config.queue_depth;
    Ok(Copying {
        task: config.task,
        shared,
        line,
        mover: Host::new(orders, slots, luns.count(), shared, accept_unreadable),
        legs: Legs {
            luns,
            from_side: opened.from_side,
        },
        plan,
    })
}

/// The exchange before the first claim.
fn greet(line: &mut Line<'_>) -> Result<Opened, Abort> {
    let welcome: Welcome = line.ask(&Hello::current())?;
    if let Err(error) = welcome.accept() {
        return Err(Abort::Ended(Outcome::Refused {
            reason: Refusal::Malformed,
            cause: format!("no common protocol with ublk-target: {error}"),
        }));
    }
    // The status is needed only to name the sides. A change of the roles in between shows in the
    // epoch.
    let (status_epoch, from_side) = match line.ask(&Request::Status)? {
        Response::Status(status) => (status.epoch, status.route.authoritative()),
        other => return Err(unexpected(other)),
    };
    match line.ask(&Request::OpenCopier)? {
        Response::CopierOpened {
            epoch,
            region_bytes,
            size_bytes,
            from,
            to,
            compare_first,
        } if epoch == status_epoch => Ok(Opened {
            epoch,
            region_bytes,
            size_bytes,
            from,
            to,
            from_side,
            compare_first,
        }),
        Response::CopierOpened { epoch, .. } => Err(Abort::Ended(Outcome::Refused {
            reason: Refusal::StaleEpoch,
            cause: format!("the epoch changed from {status_epoch} to {epoch} meanwhile"),
        })),
        other => Err(unexpected(other)),
    }
}

fn unexpected(response: Response) -> Abort {
    match response {
        Response::Refused { reason, cause } => Abort::Ended(Outcome::Refused { reason, cause }),
        _ => Abort::disconnected("ublk-target broke the protocol: unexpected answer to a greeting"),
    }
}

impl<Way: Mover> Copying<'_, Way> {
    fn run(mut self) -> Result<Outcome, Abort> {
        let outcome = self.copy()?;
        // The LUNs are unlocked first: a new copier may be opened as soon as the connection is
        // closed.
        self.line.ring.unregister_files()?;
        self.legs.luns.close();
        drop(self.line);
        Ok(outcome)
    }

    fn copy(&mut self) -> io::Result<Outcome> {
        let mut busy_since = None;
        loop {
            if self.line.must_stop() {
                self.plan.stop();
            }
            self.begin_pieces()?;
            let now = Instant::now();
            self.count_time(&mut busy_since, now);
            let limit = self.shared.limits.bytes_per_second.load(Ordering::Relaxed);
            if !self.line.ring.is_sending()
                && let Some(request) = self.plan.next_request(now, limit)
            {
                match frame::encode(&request) {
                    Ok(bytes) => self.line.send(bytes)?,
                    Err(error) => self.plan.give_up(error.to_string()),
                }
            }
            let look_again_at = self.plan.look_at_the_clock(now, limit);
            if let Some(outcome) = self.plan.outcome() {
                return Ok(outcome.clone());
            }
            self.line.ring.wait(look_again_at)?;
            while let Some(completion) = self.line.ring.next_completion() {
                self.take(completion)?;
            }
            self.take_answers();
        }
    }

    /// Counts the time during which anything was in flight. `since`: the start of what is not
    /// counted yet.
    fn count_time(&self, since: &mut Option<Instant>, now: Instant) {
        if let Some(since) = *since {
            let passed = now.duration_since(since).as_nanos();
            let nanoseconds = &self.shared.progress.copying_nanoseconds;
            nanoseconds.fetch_add(u64::try_from(passed).unwrap_or(0), Ordering::Relaxed);
        }
        *since = (self.mover.in_flight() > 0).then_some(now);
    }

    fn begin_pieces(&mut self) -> io::Result<()> {
        let depth = self.shared.limits.depth.load(Ordering::Relaxed) as usize;
        while self.mover.has_room() && (depth == 0 || self.mover.in_flight() < depth) {
            let Some(piece) = self.plan.next_piece() else {
                break;
            };
            let is_first = self.plan.is_never_copied(piece.region);
            self.mover.begin(&mut self.line.ring, piece, is_first)?;
        }
        Ok(())
    }

    fn take(&mut self, completion: Completion) -> io::Result<()> {
        let Completion::Io { slot, result } = completion else {
            if let Some(cause) = self.line.take(completion)? {
                self.plan.give_up(cause);
            }
            return Ok(());
        };
        let ring = &mut self.line.ring;
        if let Some(report) = self.mover.completed(ring, &self.legs, slot, result)? {
            self.piece_ended(report);
        }
        Ok(())
    }

    fn piece_ended(&mut self, Report { piece, ending }: Report) {
        let progress = &self.shared.progress;
        let done_bytes = match self.task {
            Task::Copy { .. } => &progress.copied_bytes,
            Task::Compare => &progress.compared_bytes,
        };
        let length_bytes = u64::from(piece.length_bytes);
        match ending {
            Ending::Same => {
                done_bytes.fetch_add(length_bytes, Ordering::Relaxed);
                self.plan.piece_done(piece.region);
            }
            Ending::Differs => {
                done_bytes.fetch_add(length_bytes, Ordering::Relaxed);
                self.plan.piece_differs(piece.region);
            }
            Ending::Failed { end, error } => {
                self.plan.piece_failed(piece.region, end, error);
                let failed_regions = u64::from(self.plan.failed_regions());
                progress
                    .failed_regions
                    .store(failed_regions, Ordering::Relaxed);
            }
        }
    }

    fn take_answers(&mut self) {
        loop {
            match self.line.frames.next() {
                Ok(Some(response)) => self.plan.answered(response, Instant::now()),
                Ok(None) => break,
                Err(error) => {
                    self.plan.give_up(error.to_string());
                    break;
                }
            }
        }
    }
}
