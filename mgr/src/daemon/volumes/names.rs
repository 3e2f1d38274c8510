//! The stable names of volumes: symbolic links to their devices.

use std::io;
use std::path::Path;

use tokio::task::spawn_blocking;
use tracing::warn;

use super::{Volumes, attach, partitions};
use crate::daemon::context::Context;
use crate::daemon::handle::View;
use crate::store::{Change, Model, VolumeRow, VolumeState, leg_of};

/// Makes the stable name lead to `device`. Returns whether the name was changed. Replaces a
/// symbolic link that leads nowhere or to `own`, a device that this volume had earlier in this
/// boot, and nothing else: any other name belongs to a different volume.
///
/// # Errors
/// A text that says what holds the name, and what to do.
pub(super) fn make_link(link: &Path, device: &Path, own: Option<&Path>) -> Result<bool, String> {
    let failed = |error: io::Error| format!("{} cannot be made: {error}", link.display());
    match std::fs::read_link(link) {
        Ok(found) if found == device => return Ok(false),
        Ok(found) if Some(found.as_path()) == own => {}
        Ok(_) | Err(_) => check_name(link)?,
    }
    let directory = link
        .parent()
        .ok_or_else(|| failed(io::Error::other("it has no directory")))?;
    std::fs::create_dir_all(directory).map_err(failed)?;
    // A name of a volume never begins with a dot.
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(link.file_name().unwrap_or_default());
    let temporary = directory.join(temporary_name);
    match std::fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    std::os::unix::fs::symlink(device, &temporary).map_err(failed)?;
    std::fs::rename(&temporary, link).map_err(failed)?;
    Ok(true)
}

/// Refuses a stable name that is taken: by a link to an existing file, or by anything that is not a
/// link.
///
/// # Errors
/// A text that says what holds the name, and what to do.
pub(super) fn check_name(link: &Path) -> Result<(), String> {
    let found = match std::fs::symlink_metadata(link) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{} cannot be examined: {error}", link.display())),
    };
    let path = link.display();
    if !found.is_symlink() {
        return Err(format!(
            "the name {path} is taken: something that is not a symbolic link is there; next: move it away"
        ));
    }
    match std::fs::metadata(link) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => {
            let leads_to = std::fs::read_link(link).unwrap_or_default();
            Err(format!(
                "the name {path} is taken: it leads to {}, which is not this volume's device; next: detach the volume that \
                 has it (of another shuntd), or `rm {path}` if nothing uses it",
                leads_to.display()
            ))
        }
    }
}

/// Removes the stable name, if it is a symbolic link to `device`.
pub(super) fn remove_link(link: &Path, device: &Path) -> io::Result<()> {
    match std::fs::read_link(link) {
        Ok(target) if target == device => std::fs::remove_file(link),
        Ok(_) => Ok(()),
        // Not there, or not a link: it is not ours.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

impl Volumes {
    /// Makes the stable name of a volume lead to its device, and records that in the open map. Done
    /// at every report: a name that was removed is made again, and a name that another volume holds
    /// is reported as a problem of this volume.
    pub(crate) fn make_names(
        &mut self,
        context: &Context,
        model: &Model,
        row: &VolumeRow,
        view: &View,
    ) {
        let Some(status) = &view.status else {
            return;
        };
        if row.state != VolumeState::Attached {
            return;
        }
        let link = context.config.device_link(&row.name);
        let own = attach::own_device(row);
        match make_link(&link, &status.device, own) {
            Ok(is_new) => {
                self.unnamed.remove(&row.name);
                if is_new {
                    remove_stale_names(context, model, &row.name, &status.device);
                }
            }
            Err(problem) => {
                if self.unnamed.get(&row.name) != Some(&problem) {
                    warn!(volume = row.name, "{problem}");
                    self.unnamed.insert(row.name.clone(), problem);
                }
                return;
            }
        }
        let connected = self.partitioned.insert(row.name.clone(), view.connections);
        if connected != Some(view.connections) {
            let (device, own) = (status.device.clone(), own.map(Path::to_owned));
            drop(spawn_blocking(move || {
                partitions::make_names(&link, &device, own.as_deref());
            }));
        }
        let in_use = model
            .live_pair_of(&row.name)
            .map_or(&row.leg, |(session, at)| {
                let pair = &session.pairs[at];
                leg_of(pair, pair.authoritative)
            });
        let leg = row
            .open_map
            .as_ref()
            .map_or(in_use.paths(), |open_map| &open_map.leg);
        let open_map = attach::open_map(status, leg);
        if row.open_map.as_ref() != Some(&open_map) {
            context.record_aside(vec![Change::SetOpenMap(row.name.clone(), open_map)]);
        }
    }
}

/// Removes the names of other volumes that lead to `device`: their devices had this number
/// before.
fn remove_stale_names(context: &Context, model: &Model, volume: &str, device: &Path) {
    for name in model.volumes.keys().filter(|name| *name != volume) {
        let link = context.config.device_link(name);
        let removed =
            partitions::remove_names(&link, device).and_then(|()| remove_link(&link, device));
        if let Err(error) = removed {
            warn!(volume = name, %error, "the stale name {} cannot be removed", link.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_moved_and_removed_only_if_it_is_ours() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("shunt/db");
        let device = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, "").unwrap();
            path
        };
        let (first, second, foreign) = (device("ublkb0"), device("ublkb1"), device("ublkb2"));
        assert_eq!(make_link(&link, &first, None), Ok(true));
        assert_eq!(make_link(&link, &first, None), Ok(false));
        // The volume's device has another number now.
        assert_eq!(make_link(&link, &second, Some(&first)), Ok(true));
        assert_eq!(std::fs::read_link(&link).unwrap(), second);
        // A device of a different volume.
        for own in [None, Some(foreign.as_path())] {
            let refused = make_link(&link, &first, own).unwrap_err();
            assert!(
                refused.contains("ublkb1") && refused.contains("next: "),
                "{refused}"
            );
            assert_eq!(std::fs::read_link(&link).unwrap(), second);
        }
        check_name(&link).unwrap_err();
        // A link that leads nowhere.
        std::fs::remove_file(&second).unwrap();
        check_name(&link).unwrap();
        assert_eq!(make_link(&link, &first, None), Ok(true));
        remove_link(&link, &second).unwrap();
        assert!(link.is_symlink());
        remove_link(&link, &first).unwrap();
        assert!(!link.is_symlink());
        remove_link(&link, &first).unwrap();
        check_name(&link).unwrap();
    }

    #[test]
    fn what_is_not_a_link_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("db");
        std::fs::write(&link, "mine").unwrap();
        make_link(&link, Path::new("/dev/ublkb0"), None).unwrap_err();
        remove_link(&link, Path::new("/dev/ublkb0")).unwrap();
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "mine");
    }
}
