//! Requests that wait because shuntd is automatically working on their session or volume.
//!
//! An operation that an operator started refuses the next command, so that the second of two
//! operators learns of it. An operation that shuntd started automatically, such as the start of a
//! pair whose turn has come, ends soon and does not concern the operator.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use migration_proto::manager::Request;

use super::socket::Call;
use crate::daemon::event::Busy;

/// Maximum wait of a request; after that it is refused, and the answer names the operation in
/// progress.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The automatic operations of shuntd, and the requests that wait for them.
#[derive(Debug, Default)]
pub(crate) struct Deferred {
    /// The sessions and volumes that automatic operations work on.
    own: BTreeSet<Busy>,
    calls: VecDeque<(Call, Instant)>,
}

impl Deferred {
    /// Notes that an automatic operation has begun.
    pub(crate) fn begun(&mut self, busy: &[Busy]) {
        self.own.extend(busy.iter().cloned());
    }

    /// Notes that an operation has ended.
    pub(crate) fn ended(&mut self, busy: &[Busy]) {
        for busy in busy {
            self.own.remove(busy);
        }
    }

    /// When the request that has waited longest must be answered.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.calls.front().map(|(_, until)| *until)
    }

    /// Lets a request wait.
    pub(crate) fn defer(&mut self, call: Call) {
        self.calls.push_back((call, Instant::now() + WAIT_MAX));
    }

    /// All requests that wait, each with the end of its wait.
    pub(crate) fn take_waiting(&mut self) -> VecDeque<(Call, Instant)> {
        std::mem::take(&mut self.calls)
    }

    /// Lets a request that has waited wait until `until`. `Some`: it need not wait any longer.
    pub(crate) fn defer_again(&mut self, call: Call, until: Instant) -> Option<Call> {
        if until > Instant::now() && self.holds_up(&call.request) {
            self.calls.push_back((call, until));
            None
        } else {
            Some(call)
        }
    }

    pub(crate) fn holds_up(&self, request: &Request) -> bool {
        works_on(request).iter().any(|busy| self.own.contains(busy))
    }
}

/// The sessions and volumes that a request works on.
fn works_on(request: &Request) -> Vec<Busy> {
    match request {
        Request::Attach { volume, .. }
        | Request::Detach { volume }
        | Request::Recover { volume, .. } => vec![Busy::Volume(volume.clone())],
        Request::Create { session, pairs, .. } | Request::Plan { session, pairs, .. } => {
            let volumes = pairs.iter().map(|pair| Busy::Volume(pair.volume.clone()));
            volumes.chain([Busy::Session(session.clone())]).collect()
        }
        Request::Start { session }
        | Request::Pause { session }
        | Request::Resume { session }
        | Request::Switch { session, .. }
        | Request::Undo { session, .. }
        | Request::Split { session, .. }
        | Request::Commit { session }
        | Request::Cancel { session }
        | Request::Retire { session, .. }
        | Request::TakeBack { session }
        | Request::Verify { session, .. }
        | Request::SetSession { session, .. } => vec![Busy::Session(session.clone())],
        Request::Status { .. }
        | Request::Events { .. }
        | Request::History { .. }
        | Request::Samples { .. }
        | Request::SetHost { .. }
        | Request::Signal { .. }
        | Request::FreeLocks { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_touches_the_same_is_held_up() {
        let mut deferred = Deferred::default();
        let own = [Busy::Session("s1".into()), Busy::Volume("db".into())];
        let start = |session: &str| Request::Start {
            session: session.into(),
        };
        let detach = Request::Detach {
            volume: "db".into(),
        };
        let look = Request::Status { session: None };
        assert!(!deferred.holds_up(&start("s1")));
        deferred.begun(&own);
        assert!(deferred.holds_up(&start("s1")) && deferred.holds_up(&detach));
        assert!(!deferred.holds_up(&start("s2")) && !deferred.holds_up(&look));
        deferred.ended(&own[..1]);
        assert!(!deferred.holds_up(&start("s1")) && deferred.holds_up(&detach));
    }
}
