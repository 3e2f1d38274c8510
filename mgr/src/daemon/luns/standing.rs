//! Finds volumes that stand on themselves: a leg, or Shunt's own state, lies on a volume of Shunt.
//!
//! I/O to such a volume can wait for itself forever, and shuntd and ublk-target can wait for the
//! volume that they are to serve. `attach` and `create` refuse such legs. This is checked again at
//! each start and resume, and at intervals, because a mount can cause it at any time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

use crate::daemon::context::{Context, blocking};
use crate::daemon::event::Event;
use crate::daemon::paths::Config;
use crate::store::Model;

/// Interval between two checks.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Interval after a check that failed: a file system that does not answer keeps a thread each time.
const CHECK_AFTER_FAILURE: Duration = Duration::from_secs(300);

/// A volume with its device and LUNs, for the check.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) volume: String,
    /// `/dev/ublkbN`.
    pub(crate) device: Option<PathBuf>,
    /// The LUNs of its legs, each with the leg's name.
    pub(crate) luns: Vec<(&'static str, PathBuf)>,
}

impl Place {
    pub(crate) fn new<'a>(
        volume: &str,
        device: Option<PathBuf>,
        legs: impl IntoIterator<Item = (&'static str, &'a [PathBuf])>,
    ) -> Place {
        let luns = legs
            .into_iter()
            .flat_map(|(side, paths)| paths.iter().map(move |path| (side, path.clone())));
        Place {
            volume: volume.to_owned(),
            device,
            luns: luns.collect(),
        }
    }
}

/// For each volume that stands on itself, a description of the problem. An error: the check failed.
pub(crate) async fn problems(
    config: &Config,
    places: Vec<Place>,
) -> Result<BTreeMap<String, String>, String> {
    if places.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut state = vec![
        ("the state", config.state_directory.clone()),
        ("the database", config.database()),
        ("the run folder", config.runtime_directory.clone()),
    ];
    state.extend(
        places
            .iter()
            .map(|place| ("a map file", config.map(&place.volume))),
    );
    let found = blocking(move || {
        judge(&state, &places, |path| {
            lun::volumes_beneath(path).map_err(|error| error.to_string())
        })
    });
    found.await.and_then(|found| found)
}

fn judge(
    state: &[(&str, PathBuf)],
    places: &[Place],
    beneath: impl Fn(&Path) -> Result<Vec<String>, String>,
) -> Result<BTreeMap<String, String>, String> {
    let mut problems = BTreeMap::new();
    for (what, path) in state {
        for device in beneath(path)? {
            let volume = places.iter().find(|place| {
                place
                    .device
                    .as_ref()
                    .is_some_and(|own| *own == Path::new(&device))
            });
            if let Some(place) = volume {
                problems.entry(place.volume.clone()).or_insert_with(|| {
                    format!(
                        "{what} of shuntd, {}, lies on this volume: a stop of the volume stops shuntd, and nothing can start it \
                         again; unmount {device}, or stop shuntd and move the folder",
                        path.display()
                    )
                });
            }
        }
    }
    for place in places {
        for (side, path) in &place.luns {
            if let Some(device) = beneath(path)?.first() {
                problems.entry(place.volume.clone()).or_insert_with(|| {
                    format!(
                        "its {side} {} lies on {device}, which is a volume of Shunt: writes can wait for themselves; move the \
                         {side} to another place",
                        path.display()
                    )
                });
            }
        }
    }
    Ok(problems)
}

/// The volumes that stand on themselves, as far as that was found.
#[derive(Debug, Default)]
pub(crate) struct Standing(BTreeMap<String, String>);

impl Standing {
    /// The problem of a volume that stands on itself.
    pub(crate) fn problem(&self, volume: &str) -> Option<&String> {
        self.0.get(volume)
    }

    /// Checks all volumes; the result comes as [`Event::Standing`]. `device`: the device of a
    /// volume.
    pub(crate) fn check(
        context: &Context,
        model: &Model,
        device: impl Fn(&str) -> Option<PathBuf>,
    ) {
        let places = model.volumes.values().map(|row| {
            let pair = model.live_pair_of(&row.name);
            let target = pair.map(|(session, position)| &session.pairs[position].target);
            let legs = [
                Some(("source", row.leg.paths().paths())),
                target.map(|target| ("target", target.paths().paths())),
            ];
            Place::new(&row.name, device(&row.name), legs.into_iter().flatten())
        });
        let (places, context) = (places.collect(), context.clone());
        tokio::spawn(async move {
            let found = problems(&context.config, places).await;
            context.notify(Event::Standing(found)).await;
        });
    }

    /// Notes the result of a check, and checks again after an interval.
    pub(crate) fn checked(
        &mut self,
        context: &Context,
        found: Result<BTreeMap<String, String>, String>,
    ) {
        let delay = match found {
            Ok(found) => {
                for (volume, problem) in &found {
                    if self.0.get(volume) != Some(problem) {
                        warn!(volume, problem, "a volume stands on itself");
                    }
                }
                self.0 = found;
                CHECK_EVERY
            }
            Err(cause) => {
                warn!(cause, "it is not known whether a volume stands on itself");
                CHECK_AFTER_FAILURE
            }
        };
        check_after(context, delay);
    }
}

/// Checks after an interval; the result comes as [`Event::Standing`].
fn check_after(context: &Context, delay: Duration) {
    let events = context.events.clone();
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        // The owner is gone only when shuntd ends.
        let _ = events.send(Event::CheckStanding).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(volume: &str, device: &str, luns: &[(&'static str, &str)]) -> Place {
        Place {
            volume: volume.to_owned(),
            device: Some(PathBuf::from(device)),
            luns: luns
                .iter()
                .map(|(side, path)| (*side, PathBuf::from(path)))
                .collect(),
        }
    }

    #[test]
    fn state_or_a_leg_on_a_volume_is_a_problem_of_that_volume() {
        let state = [("the state", PathBuf::from("/state"))];
        let places = [
            place("db", "/dev/ublkb0", &[("source", "/dev/sda")]),
            place("logs", "/dev/ublkb1", &[("target", "/mnt/file")]),
        ];
        let beneath = |on: &[(&str, &str)]| {
            let on: Vec<(PathBuf, String)> = on
                .iter()
                .map(|(path, device)| (PathBuf::from(path), (*device).to_owned()))
                .collect();
            let lies = move |path: &Path| {
                Ok(on
                    .iter()
                    .filter(|(on, _)| on == path)
                    .map(|(_, device)| device.clone())
                    .collect())
            };
            judge(&state, &places, lies).unwrap()
        };
        assert_eq!(beneath(&[]), BTreeMap::new());
        let found = beneath(&[("/state", "/dev/ublkb0")]);
        assert_eq!(found.len(), 1);
        assert!(
            found["db"].contains("the state of shuntd, /state"),
            "{found:?}"
        );
        // The device of another shuntd's volume: no problem for the state, but a leg must not lie
        // on it.
        assert_eq!(beneath(&[("/state", "/dev/ublkb7")]), BTreeMap::new());
        for device in ["/dev/ublkb1", "/dev/ublkb7"] {
            let found = beneath(&[("/mnt/file", device)]);
            assert!(found["logs"].contains("its target /mnt/file"), "{found:?}");
        }
    }

    #[test]
    fn what_is_beneath_and_cannot_be_found_out_is_an_error() {
        let state = [("the state", PathBuf::from("/state"))];
        let found = judge(&state, &[], |_| Err("no answer".to_owned()));
        found.unwrap_err();
    }
}
