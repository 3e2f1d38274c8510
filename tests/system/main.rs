//! Tests of complete migrations on real ublk devices. `scripts/test` runs them in a machine, one
//! test at a time.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod copies;
mod custody;
mod cutover;
mod deaths;
mod ending;
mod exclusion;
mod failing;
mod faults;
mod figures;
mod interrupted;
mod legs;
mod logged;
mod lost;
mod main_path;
mod points;
mod refusals;
mod sessions;
mod shapes;
mod sockets;
mod surroundings;
mod verify;
