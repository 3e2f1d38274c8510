//! The control plane of Shunt.
//!
//! * [`daemon`]: `shuntd`: owns what the operator asked for, supervises one ublk-target a volume, runs the copiers.
//! * [`store`]: what it remembers, in SQLite.
//! * [`copier`]: copies dirty regions.
//! * [`cli`]: `shunt`, the command line.
//! * [`names`]: the names of volumes and sessions.
//!
//! Absent: every decision about which leg is authoritative. ublk-target alone takes it.

pub mod cli;
pub mod copier;
pub mod daemon;
pub mod moments;
pub mod names;
pub mod store;
pub mod units;
