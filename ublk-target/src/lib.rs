//! The data plane of Shunt: one ublk volume a process.
//!
//! * [`ublk`]: the kernel's interface.
//! * [`legs`]: what the volume stands on; [`custody`]: who held that before.
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
