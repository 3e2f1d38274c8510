//! The room of the LUNs: whether a LUN may become a leg, and what is done to one.

pub(super) mod checks;
pub(super) mod marks;
pub(super) mod opened;
pub(super) mod pace;
pub(super) mod sealed;
pub(super) mod standing;
pub(super) mod twice;
pub(super) mod unreadable;
pub(super) mod weak;
