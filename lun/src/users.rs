//! Lists the users of a volume's device, as texts for a refusal.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::finding::Finding;
use crate::open::number_of;
use crate::openers::openers;
use crate::usage::in_use;

/// Lists who uses the block device at `device`, except the process `server` that serves it. Empty
/// if `device` is not a block device: then nothing can have it open.
///
/// # Errors
/// A text that names what could not be examined.
pub fn users(device: &Path, server: u32) -> Result<Vec<String>, String> {
    let number = match fs::metadata(device) {
        Ok(metadata) if metadata.file_type().is_block_device() => number_of(metadata.rdev()),
        Ok(_) | Err(_) => return Ok(Vec::new()),
    };
    let findings =
        in_use(device).map_err(|error| format!("may be open, and cannot be examined: {error}"))?;
    let mut users: Vec<String> = findings
        .iter()
        .filter(|finding| finding.is_in_use() && !matches!(finding, Finding::OpenedBy { .. }))
        .map(Finding::to_string)
        .collect();
    let openers = openers(number)
        .map_err(|error| format!("may be open, and /proc cannot be searched: {error}"))?;
    users.extend(
        openers
            .iter()
            .filter(|opener| opener.pid != server)
            .map(|opener| format!("is open in {opener}")),
    );
    Ok(users)
}
