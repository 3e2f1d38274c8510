//! Targets that are left alone: read-only, and whether they still are what they were.
//!
//! What somebody else writes to such a target is not in the map: mirrored onto again it would count as equal, and a switch would
//! lose what was acknowledged. The kernel refuses writes to it, and counts those that it has done. After a boot nothing has
//! refused them for a while: a LUN to which nothing was written since then is sealed again, any other one is copied anew. So is
//! one whose writes nothing counts: a file, and a device without statistics.

use lun::{Kind, Lun, OpenOptions};
use migration_core::pair::Phase;
use tracing::warn;

use super::checks::open_recorded;
use super::context::blocking;
use super::{Owner, paths};
use crate::store::{Change, CopyOf, LegRow, PairField, PairKey, PairRow, Sealed};

/// Lets the kernel refuse writes, and says what it has counted. Nothing is refused for a file.
pub(super) async fn seal(leg: &LegRow) -> Result<Sealed, String> {
    set_read_only(leg, true).await?;
    Ok(look(leg).await?.0)
}

/// Lets the kernel refuse writes to a target, or take them again. Nothing for a file.
pub(super) async fn set_read_only(leg: &LegRow, read_only: bool) -> Result<(), String> {
    let set = move |lun: &Lun| match lun.identity.kind {
        Kind::RegularFile => Ok(()),
        Kind::BlockDevice => lun
            .set_read_only(read_only)
            .map_err(|error| error.to_string()),
    };
    each(leg, set).await.map(drop)
}

/// Whether the target of a pair is as it was left. `Some`: why that is not known. An error: why it is not.
pub(super) async fn untouched(pair: &PairRow) -> Result<Option<String>, String> {
    let (now, read_only) = look(&pair.target).await?;
    let copy_of = pair.copy_of.as_ref();
    let sealed = copy_of.and_then(|copy_of| copy_of.sealed.as_ref());
    judge(sealed, &now, read_only)
        .map(|unknown| unknown.map(str::to_owned))
        .map_err(|cause| format!("{} {cause}", pair.target))
}

fn judge(
    sealed: Option<&Sealed>,
    now: &Sealed,
    read_only: bool,
) -> Result<Option<&'static str>, &'static str> {
    match sealed {
        None => Ok(Some("the target was not made read-only in time")),
        Some(_) if !read_only => Err("was made writable, and may hold what Shunt has not written"),
        Some(before) if before.boot_id != now.boot_id => Ok(Some(
            "this host was booted, and the target may have been written to before it was read-only again",
        )),
        Some(before) => match (before.changes, now.changes) {
            (Some(before), Some(now)) if before == now => Ok(None),
            (Some(_), Some(_)) => Err("was written to by somebody else since it was left alone"),
            (None, _) | (_, None) => Ok(Some(
                "nothing counts the writes to the target, so that nobody knows whether there were any",
            )),
        },
    }
}

/// What the kernel says of the LUNs now, and whether it refuses writes to all of them.
async fn look(leg: &LegRow) -> Result<(Sealed, bool), String> {
    let found = each(leg, |lun| {
        let is_file = lun.identity.kind == Kind::RegularFile;
        Ok((lun.changes_counted(), lun.read_only || is_file))
    });
    let found = found.await?;
    let sealed = Sealed {
        boot_id: paths::boot_id(),
        changes: found.iter().map(|(changes, _)| *changes).sum(),
    };
    Ok((sealed, found.iter().all(|(_, read_only)| *read_only)))
}

/// Does something with each LUN of a leg, if it is the one that was recorded.
async fn each<T: Send + 'static>(
    leg: &LegRow,
    work: impl Fn(&Lun) -> Result<T, String> + Send + 'static,
) -> Result<Vec<T>, String> {
    let leg = leg.clone();
    let done = blocking(move || {
        let options = OpenOptions::default();
        let luns = leg.luns().iter();
        luns.map(|row| work(&open_recorded(row, &options)?))
            .collect()
    });
    done.await.and_then(|done| done)
}

impl Owner {
    /// What a boot has undone is done again: targets that are copies are read-only.
    pub(super) fn seal_again(&self) {
        for (name, session) in &self.model.sessions {
            for (position, pair) in session.pairs.iter().enumerate() {
                if pair.phase != Phase::Split {
                    continue;
                }
                let key = PairKey {
                    session: name.clone(),
                    position,
                };
                let (target, copy_of) = (pair.target.clone(), pair.copy_of.clone());
                let context = self.context.clone();
                tokio::spawn(async move {
                    let sealed = match seal(&target).await {
                        Ok(sealed) => sealed,
                        Err(cause) => {
                            warn!(%target, "not made read-only again: {cause}");
                            return;
                        }
                    };
                    let Some(copy_of) = copy_of.and_then(|copy_of| after_boot(copy_of, sealed))
                    else {
                        return;
                    };
                    let change = Change::SetPair(key, PairField::CopyOf(Some(copy_of)));
                    if let Err(error) = context.commit(vec![change]).await {
                        warn!(%error, "a target to which nothing was written since the boot will be copied anew");
                    }
                });
            }
        }
    }
}

/// What is recorded of a target that is sealed again, if nothing was written to it since the boot.
fn after_boot(copy_of: CopyOf, now: Sealed) -> Option<CopyOf> {
    let before = copy_of.sealed.as_ref()?;
    let is_new_boot = before.boot_id != now.boot_id;
    (is_new_boot && now.changes == Some(0)).then_some(CopyOf {
        sealed: Some(now),
        ..copy_of
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(boot_id: &str, changes: Option<u64>) -> Sealed {
        Sealed {
            boot_id: boot_id.to_owned(),
            changes,
        }
    }

    #[test]
    fn a_target_is_what_it_was_while_nothing_is_counted() {
        let before = sealed("a", Some(7));
        let judge = |now: &Sealed, read_only| super::judge(Some(&before), now, read_only);
        assert_eq!(judge(&sealed("a", Some(7)), true), Ok(None));
        judge(&sealed("a", Some(7)), false).unwrap_err();
        judge(&sealed("a", Some(8)), true).unwrap_err();
        assert!(judge(&sealed("a", None), true).unwrap().is_some());
        let before = sealed("a", None);
        let uncounted = |now: &Sealed| super::judge(Some(&before), now, true).unwrap();
        assert!(
            uncounted(&sealed("a", None))
                .unwrap()
                .contains("nothing counts")
        );
        assert!(uncounted(&sealed("a", Some(7))).is_some());
        let before = sealed("a", Some(7));
        let judge = |now: &Sealed, read_only| super::judge(Some(&before), now, read_only);
        let why = judge(&sealed("b", Some(7)), true).unwrap();
        assert!(why.unwrap().contains("booted"));
        let why = super::judge(None, &before, true).unwrap();
        assert!(why.is_some());
    }

    #[test]
    fn after_a_boot_it_is_what_it_was_if_nothing_was_written_since() {
        let copy_of = CopyOf {
            at_ms: 5,
            sealed: Some(sealed("a", Some(7))),
        };
        let after = |now| after_boot(copy_of.clone(), now);
        let found = after(sealed("b", Some(0))).unwrap();
        assert_eq!((found.at_ms, found.sealed), (5, Some(sealed("b", Some(0)))));
        assert_eq!(after(sealed("b", Some(1))), None);
        assert_eq!(after(sealed("b", None)), None);
        assert_eq!(after(sealed("a", Some(0))), None, "the same boot");
        let never = CopyOf {
            at_ms: 5,
            sealed: None,
        };
        assert_eq!(after_boot(never, sealed("b", Some(0))), None);
    }
}
