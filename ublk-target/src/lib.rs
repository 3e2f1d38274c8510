//! The data plane of Shunt: one process for each ublk volume.
//!
//! * [`ublk`]: the kernel's interface.
//! * [`legs`]: the LUNs of the volume; [`custody`]: who held the legs before.
//! * [`engine`]: the one thread that does all I/O and owns the volume's state machine.
//! * [`socket`]: the control socket; it asks the engine, and never decides.
//! * [`ending`]: panics, signals, and the clean stop.
//! * [`serve`]: the order in which all of this starts, recovers and ends.

pub mod custody;
pub mod ending;
pub mod engine;
pub mod legs;
pub mod serve;
pub mod socket;
pub mod ublk;
