//! Where the map of a volume is stored: its contents, and the file that holds them. Later only
//! `ublk-target` writes them, through its own ring.

mod contents;
mod file;

pub use contents::{
    Contents, MapFileError, make_all_dirty, parse_volume_id, read, read_role, settle_role,
    write_custody,
};
pub use file::{Description, MapFile, describe, format};
