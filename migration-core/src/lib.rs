//! The decisions of a volume migration, without any I/O.
//!
//! What can be decided without a disk, a clock or a socket is decided here, as state machines that
//! take events and answer with effects; the shells (`ublk-target`, `mgr`) only carry them out. Time,
//! results and requests are arguments. All state derives `Clone`, `PartialEq`, `Eq`, `Hash` and `Debug`, so
//! that a model can explore it.
//!
//! * [`volume`]: one volume: requests, legs, write intent, claims, suspension, change of route.
//! * [`region`], [`bits`]: what is dirty.
//! * [`pair`], [`session`]: what an operator sees and may do.
//! * [`come_back`], [`cutover`], [`impact`]: when a target that stalled is written again, how a switch is brought about, how fast a copy goes.
//! * [`map`]: the format of the map file; [`custody`]: whether others can have written to the legs.
//! * [`route`], [`units`]: the words.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bits;
pub mod come_back;
pub mod custody;
pub mod cutover;
pub mod impact;
pub mod latency;
pub mod layout;
pub mod map;
pub mod pair;
pub mod region;
pub mod route;
pub mod session;
pub mod units;
pub mod volume;
