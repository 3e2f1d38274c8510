//! The room of the repairs: a new database, a new map file, locks whose holder is gone.

pub(super) mod locks;
pub(super) mod rebuild;
pub(super) mod recover;
