//! The room of what clients see: the control socket, the requests that wait, the records of
//! `status` and the stream of events.

pub(super) mod deferred;
pub(super) mod feed;
pub(super) mod listening;
pub(super) mod page;
pub(super) mod records;
pub(super) mod refusal;
pub(super) mod socket;
