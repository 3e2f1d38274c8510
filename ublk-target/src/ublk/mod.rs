//! The ublk protocol: everything that passes between this process and the kernel's `ublk_drv`.
//!
//! ```text
//!   Control --- job ---> helper thread --- 128-byte SQE ---> /dev/ublk-control
//!      ^                      |                              (may block for ever)
//!      +------ answer --------+
//!
//!   I/O thread: fetch() / commit_and_fetch() --- 64-byte SQE ---> /dev/ublkcN (registered file)
//!               IoDescriptors::get(tag)      <--- shared memory ---
//! ```
//!
//! - [`abi`] is the header, nothing else.
//! - [`control`] sends control commands, each with a time limit.
//! - [`device`] and [`params`] are the contents of the commands, in types of this crate and checked
//!   on the way in.
//! - [`io`] has what an I/O thread needs; it never allocates.
//! - [`node`] finds devices and their files.
//!
//! Absent here: any policy (which flags, what order, when to retry), the I/O loop itself, and all
//! legacy opcodes: a driver older than Linux 6.5 is refused because it cannot report its features.
//!
//! The facts about drivers in this module are those of Debian's 6.12 and 7.2 kernels. The module
//! reads the driver's features and never checks the kernel's version.

pub mod abi;
pub mod control;
pub mod device;
mod helper;
pub mod io;
pub mod node;
pub mod params;

pub use abi::Features;
pub use control::{Attempt, Command, Control, ControlError};
pub use device::{DevInfo, DeviceId, DeviceState, NewDevice};
pub use io::{FetchOutcome, IoDescriptors, IoOperation, IoRequest, IoSlot};
pub use node::{device_ids, set_io_timeout, wait_for_cdev};
pub use params::{DeviceParams, DiscardParams};
