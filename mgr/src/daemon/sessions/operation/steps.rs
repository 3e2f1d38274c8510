//! One step of an operation with one pair.

use std::time::Duration;

use migration_core::operation::{Answer, Freshness, Legs, Seal, Step};
use migration_proto::target::{Refusal, Request, Response, Status, Suspended};

use crate::daemon::context::Context;
use crate::daemon::handle::VolumeHandle;
use crate::daemon::luns::marks::mark_unfinished;
use crate::daemon::luns::sealed::{SealState, check_seal, seal, set_read_only};
use crate::daemon::sessions::retire::retire_source;
use crate::daemon::volumes::position;
use crate::daemon::volumes::route_change::{
    COME_BACK_MAX, Changed, NotChanged, add_mirror, retry_mirror, set_route,
};
use crate::store::{PairRow, Sealed, SessionRow};

/// How long ublk-target may take to release held requests.
const RELEASE_MAX: Duration = Duration::from_secs(20);

/// One pair of an operation.
pub(crate) struct OperationPair {
    pub(crate) context: Context,
    pub(crate) session: SessionRow,
    pub(crate) position: usize,
    pub(crate) row: PairRow,
    pub(crate) handle: VolumeHandle,
}

/// What a step led to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) answer: Answer,
    /// How long requests were held, in microseconds.
    pub(crate) pause_us: Option<u64>,
    /// The epoch of the changed route.
    pub(crate) epoch: Option<u64>,
    /// Why it was not done.
    pub(crate) error: Option<NotChanged>,
    /// What a seal looks like.
    pub(crate) sealed: Option<Sealed>,
    /// What the operator reads: of a retired leg.
    pub(crate) text: Option<String>,
}

impl Outcome {
    const fn of(answer: Answer) -> Self {
        Self {
            answer,
            pause_us: None,
            epoch: None,
            error: None,
            sealed: None,
            text: None,
        }
    }

    /// Of a look at a volume that does not use the legs.
    pub(crate) const fn apart() -> Self {
        Self::of(Answer::Legs(Legs::Apart))
    }

    fn refused(cause: impl Into<String>) -> Self {
        NotChanged::refused(Refusal::BadLeg, cause).into()
    }
}

impl From<NotChanged> for Outcome {
    fn from(error: NotChanged) -> Self {
        let answer = match error.is_unknown() {
            true => Answer::Unknown,
            false => Answer::Refused,
        };
        Self {
            error: Some(error),
            ..Self::of(answer)
        }
    }
}

impl From<Result<Changed, NotChanged>> for Outcome {
    fn from(changed: Result<Changed, NotChanged>) -> Self {
        match changed {
            Ok(Changed { pause_us, epoch }) => Self {
                pause_us,
                epoch: Some(epoch),
                ..Self::of(Answer::Done)
            },
            Err(error) => error.into(),
        }
    }
}

impl From<Result<(), String>> for Outcome {
    fn from(done: Result<(), String>) -> Self {
        match done {
            Ok(()) => Self::of(Answer::Done),
            Err(cause) => Self::refused(cause),
        }
    }
}

impl OperationPair {
    /// Performs a step. A change of the route may hold requests for `hold_ms`.
    pub(crate) async fn perform(self, step: Step, hold_ms: u64) -> Outcome {
        let (handle, row) = (&self.handle, &self.row);
        match step {
            Step::Inspect(freshness) => self.inspect(freshness).await,
            Step::AddMirror => {
                let target = row.target.layout(row.size_bytes);
                add_mirror(handle, row, &target).await.into()
            }
            Step::SetRoute { route, copies_rest } => {
                set_route(handle, row, route.into(), hold_ms, copies_rest)
                    .await
                    .into()
            }
            Step::Release => self.release().await,
            Step::MarkUnfinished => mark_unfinished(&self.session.name, row).await.into(),
            Step::Seal => match seal(&row.target).await {
                Ok(sealed) => Outcome {
                    sealed: Some(sealed),
                    ..Outcome::of(Answer::Done)
                },
                Err(cause) => Outcome::refused(cause),
            },
            Step::CheckSeal => match check_seal(row).await {
                SealState::Unbroken => Outcome::of(Answer::Seal(Seal::Unbroken)),
                SealState::Unknown(why) => Outcome {
                    text: Some(why),
                    ..Outcome::of(Answer::Seal(Seal::Unknown))
                },
                SealState::Broken(cause) => Outcome {
                    answer: Answer::Seal(Seal::Broken),
                    ..Outcome::refused(cause)
                },
            },
            Step::SetReadOnly(read_only) => set_read_only(&row.target, read_only).await.into(),
            Step::RetryMirror => retry_mirror(handle).await.into(),
            Step::Retire => {
                let how = self.session.options.retire;
                let retired = match how {
                    Some(how) => {
                        let (context, session) = (&self.context, &self.session);
                        Some(retire_source(context, session, self.position, how).await)
                    }
                    None => None,
                };
                Outcome {
                    text: retired,
                    ..Outcome::of(Answer::Done)
                }
            }
        }
    }

    async fn inspect(&self, freshness: Freshness) -> Outcome {
        let last = || self.handle.view().status;
        let legs = match freshness {
            Freshness::Last => last().map(|status| self.legs(&status)),
            Freshness::Fresh => match last().map(|status| self.legs(&status)) {
                // It stays so until shuntd changes it.
                Some(Legs::Split) => Some(Legs::Split),
                before => {
                    self.handle.refresh().await;
                    match (self.handle.status(COME_BACK_MAX).await, before) {
                        (Ok(status), _) => Some(self.legs(&status)),
                        // What was equal may differ by now.
                        (Err(_), Some(Legs::Mirrored { .. })) => {
                            Some(Legs::Mirrored { dirty: true })
                        }
                        (Err(_), Some(legs)) => Some(legs),
                        (Err(error), None) => return NotChanged::from(error).into(),
                    }
                }
            },
            Freshness::Settled => match self.handle.while_not_changing().await {
                Ok(view) => view.status.map(|status| self.legs(&status)),
                Err(error) => return NotChanged::from(error).into(),
            },
        };
        Outcome::of(Answer::Legs(legs.unwrap_or(Legs::Apart)))
    }

    fn legs(&self, status: &Status) -> Legs {
        Legs::of(&position::seen(status, &self.row))
    }

    async fn release(&self) -> Outcome {
        let cause = match self.handle.ask(Request::Resume, RELEASE_MAX).await {
            Ok(Response::Resumed {
                ended: Some(Suspended::SinceSplit),
            }) => {
                let status = self.handle.status(RELEASE_MAX).await;
                return Outcome {
                    pause_us: status.ok().map(|status| status.counters.last_pause_us),
                    ..Outcome::of(Answer::Done)
                };
            }
            Ok(Response::Resumed { .. }) => {
                "it did not hold requests until all volumes were split".to_owned()
            }
            Ok(other) => format!("ublk-target answers a resume with {other:?}"),
            Err(error) => error.to_string(),
        };
        Outcome::refused(cause)
    }
}
