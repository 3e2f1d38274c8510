//! Requests that come while shuntd is doing something by itself with their session or volume: they wait for that.
//!
//! What an operator has begun refuses the next command, so that the second of two operators is told. What nobody has asked
//! for, such as the start of a pair whose turn has come, is over in a moment, and is not the operator's affair.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use migration_proto::manager::Request;

use super::socket::Call;
use super::{Busy, Owner};

/// A request waits no longer than that; then it is told what is under way.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// What shuntd does by itself, and who waits for that.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// What it works on.
    own: BTreeSet<Busy>,
    calls: VecDeque<(Call, Instant)>,
}

impl Deferred {
    /// Something is begun that nobody has asked for.
    pub(super) fn begun(&mut self, busy: &[Busy]) {
        self.own.extend(busy.iter().cloned());
    }

    /// Something has ended.
    pub(super) fn ended(&mut self, busy: &[Busy]) {
        for busy in busy {
            self.own.remove(busy);
        }
    }

    /// When somebody has waited long enough.
    pub(super) fn until(&self) -> Option<Instant> {
        self.calls.front().map(|(_, until)| *until)
    }

    fn holds_up(&self, request: &Request) -> bool {
        works_on(request).iter().any(|busy| self.own.contains(busy))
    }
}

impl Owner {
    /// Answers a request, now or a little later.
    pub(super) fn take(&mut self, call: Call) {
        if self.deferred.holds_up(&call.request) {
            let until = Instant::now() + WAIT_MAX;
            self.deferred.calls.push_back((call, until));
        } else {
            self.answer_call(call);
        }
    }

    /// Answers those that need not wait any more.
    pub(super) fn answer_deferred(&mut self) {
        let now = Instant::now();
        for (call, until) in std::mem::take(&mut self.deferred.calls) {
            if until > now && self.deferred.holds_up(&call.request) {
                self.deferred.calls.push_back((call, until));
            } else {
                self.answer_call(call);
            }
        }
    }

    /// What is begun now is begun for this user.
    fn answer_call(&mut self, call: Call) {
        let Call {
            request,
            who,
            reply,
        } = call;
        self.context.who = Some(who);
        self.answer(request, reply);
        self.context.who = None;
    }
}

/// What a request needs for itself.
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
