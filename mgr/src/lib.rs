//! The control plane of Shunt.
//!
//! * [`daemon`]: `shuntd`: owns what the operator asked for, supervises one ublk-target for each
//!   volume, runs the copiers (crate `copier`).
//! * [`store`]: the database of shuntd, in SQLite.
//! * [`cli`]: `shunt`, the command line.
//! * [`history`]: the sentences for the events of the history.
//! * `options`: the table of the options of a session.
//! * [`names`]: the rules for names of volumes and sessions.
//! * [`moments`], [`units`]: times and numbers as people read and write them.
//!
//! Not here: the decision which leg is authoritative. ublk-target alone takes it.

pub mod cli;
pub mod daemon;
pub mod history;
pub mod moments;
pub mod names;
mod options;
pub mod store;
pub mod units;
