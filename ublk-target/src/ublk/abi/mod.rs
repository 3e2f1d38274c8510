//! The binary interface of Linux's `ublk_drv`: constants and structures of `<linux/ublk_cmd.h>`.
//!
//! Source: the header of Linux 7.2 (Debian `linux-libc-dev` 7.2.12). Names are the header's own,
//! without `struct` and without `UBLK_F_` for the feature flags, so that one can search for them.
//! The interface was only ever extended, never renumbered, so an older driver understands the part
//! that it has. `tests/abi_layout.rs` compares every value and offset with the header that the C
//! compiler sees.
//!
//! All structures are `repr(C)`, have no hidden padding (asserted in `structures`), and are valid
//! for any bit pattern. "sector" is always 512 bytes here, whatever the logical block size is.

mod features;
mod numbers;
mod structures;

pub use features::Features;
pub use numbers::*;
pub use structures::{
    AutoBufReg, BatchIo, CtrlCmd, CtrlDevInfo, IoCmd, IoDesc, ParamBasic, ParamDevt, ParamDiscard,
    ParamDmaAlign, ParamIntegrity, ParamSegment, ParamZoned, Params,
};
