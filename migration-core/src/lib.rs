//! The decisions of a volume migration, without any I/O.
//!
//! This crate decides everything that can be decided without a disk, a clock or a socket. Its state
//! machines take events and answer with effects; the shells (`ublk-target`, `mgr`) only carry the
//! effects out. Time, results and requests are arguments. All state derives `Clone`, `PartialEq`,
//! `Eq`, `Hash` and `Debug`, so that a model can explore it.
//!
//! * [`volume`]: one volume: requests, legs, write intent, claims, suspension, change of the route.
//! * [`region`], [`bits`]: which regions are dirty.
//! * [`pair`], [`session`]: the states that an operator sees, and the verbs that are allowed in
//!   them.
//! * [`operation`]: what a verb does to the pairs of a session, step by step.
//! * [`schedule`], [`hours`]: what a session does automatically, and in which time.
//! * [`verify`], [`seal`], [`retire`]: whether legs are proved equal, whether a copy is as it was,
//!   what an ended pair leaves behind.
//! * [`come_back`], [`cutover`], [`impact`]: when a target that stalled is written again, how a
//!   session that tracks is switched, how fast a copy may go.
//! * [`map`]: the format of the map file; [`custody`]: whether others can have written to the legs.
//! * [`route`], [`layout`], [`latency`], [`units`]: basic types.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bits;
pub mod come_back;
pub mod custody;
pub mod cutover;
pub mod hours;
pub mod impact;
pub mod latency;
pub mod layout;
pub mod map;
pub mod operation;
pub mod pair;
pub mod region;
pub mod retire;
pub mod route;
pub mod schedule;
pub mod seal;
pub mod session;
pub mod units;
pub mod verify;
pub mod volume;
