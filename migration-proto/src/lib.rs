//! The messages between `shunt`, `shuntd` and `ublk-target`, and how they travel.
//!
//! Every message is one frame: a 32-bit little-endian length, then that many bytes of JSON
//! ([`frame`]). A connection starts with [`Hello`]; the answer, [`Welcome`], says which version of
//! the protocol is spoken. After that the client sends one request and reads one response, in turn.
//! Two protocols share this: [`target`] (shuntd and tools to `ublk-target`) and [`manager`]
//! (`shunt` to `shuntd`).
//!
//! A field that is not known is an error in a request, because it could be a condition; in an
//! answer it is ignored, because the answer of a later release may say more. What says where data
//! lies ([`route::Leg`] and what is in it), and the options of a session, are never read without a
//! part of it. Unknown variants are errors, except in the history: an unknown code is read as
//! [`manager::HistoryEvent::Unknown`].

pub mod chain;
mod convert;
pub mod disks;
pub mod frame;
mod greeting;
pub mod luns;
pub mod manager;
pub mod places;
pub mod route;
pub mod target;

pub use greeting::{Hello, NoCommonProtocol, PROTOCOLS, Protocols, Welcome};
