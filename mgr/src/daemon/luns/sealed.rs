//! Seals the targets of split pairs: makes them read-only, and checks later whether they are
//! unchanged.
//!
//! The map does not record what others write to such a target. After the target is mirrored again,
//! those regions would count as equal, and a switch would lose acknowledged writes. The kernel
//! refuses writes to a sealed target, and counts the writes that it did. For a while after a boot
//! nothing refuses writes, and writes of another boot or system are not counted. So after a boot a
//! LUN is sealed again only if nothing was written to it in this boot and its fingerprint is
//! unchanged. Any other LUN is recorded as in doubt, and is copied from scratch. That also applies
//! to LUNs whose writes nothing counts: files, and devices without statistics.

use lun::{Kind, Lun, OpenOptions};
use migration_core::custody::{self, Difference, LegState};
use migration_core::pair::Phase;
use tracing::warn;

use super::checks::open_recorded;
use crate::daemon::context::{Context, reading};
use crate::daemon::paths;
use crate::store::{Change, CopyOf, LegRow, Model, PairField, PairKey, PairRow, Sealed};

/// Makes a target read-only, and returns the kernel's count of its writes. A file stays writable.
pub(crate) async fn seal(leg: &LegRow) -> Result<Sealed, String> {
    set_read_only(leg, true).await?;
    Ok(inspect(leg).await?.0)
}

/// Makes a target read-only or writable in the kernel. Does nothing to a file.
pub(crate) async fn set_read_only(leg: &LegRow, read_only: bool) -> Result<(), String> {
    let set = move |lun: &Lun| match lun.identity.kind {
        Kind::RegularFile => Ok(()),
        Kind::BlockDevice => lun
            .set_read_only(read_only)
            .map_err(|error| error.to_string()),
    };
    each(leg, set).await.map(drop)
}

/// Whether the target of a pair is unchanged since the split. `None`: it is. `Some`: why that is
/// not known. An error: why it has, or may have, changed.
pub(crate) async fn untouched(pair: &PairRow) -> Result<Option<String>, String> {
    let (now, read_only) = inspect(&pair.target).await?;
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
        None => Ok(Some(
            "what was written to the target since the split is not known",
        )),
        // Somebody may need what it holds now.
        Some(before) if !read_only && before.boot_id != now.boot_id => {
            Err("is writable since this host was booted, and may hold what Shunt has not written")
        }
        Some(_) if !read_only => Err("was made writable, and may hold what Shunt has not written"),
        Some(before) if before.boot_id != now.boot_id => Ok(Some(
            "this host was booted, and the target may have been written to before it was read-only again",
        )),
        Some(before) => match custody::compare(state(before), state(now), true) {
            Ok(()) => Ok(None),
            Err(Difference::Written) => Err("was written to by somebody else since the split"),
            Err(Difference::NotCounted) => Ok(Some(
                "nothing counts the writes to the target, so it is not known whether there were any",
            )),
        },
    }
}

fn state(sealed: &Sealed) -> LegState {
    LegState {
        fingerprint: sealed.fingerprint,
        changes: sealed.changes,
    }
}

/// The current counts and fingerprint of a leg, and whether the kernel refuses writes to all its
/// LUNs.
async fn inspect(leg: &LegRow) -> Result<(Sealed, bool), String> {
    let found = each(leg, |lun| {
        let is_file = lun.identity.kind == Kind::RegularFile;
        let fingerprint = lun
            .fingerprint(0, lun.identity.size_bytes)
            .map_err(|error| format!("{}: {error}", lun.path.display()))?;
        Ok((lun.changes_counted(), lun.read_only || is_file, fingerprint))
    });
    let found = found.await?;
    let sealed = Sealed {
        boot_id: paths::boot_id(),
        changes: found.iter().map(|(changes, ..)| *changes).sum(),
        fingerprint: found
            .iter()
            .fold(0, |sum: u64, (.., one)| sum.rotate_left(1) ^ one),
    };
    Ok((sealed, found.iter().all(|(_, read_only, _)| *read_only)))
}

/// Calls `work` with each LUN of a leg, if it is the recorded one.
async fn each<T: Send + 'static>(
    leg: &LegRow,
    work: impl Fn(&Lun) -> Result<T, String> + Send + 'static,
) -> Result<Vec<T>, String> {
    let leg = leg.clone();
    let done = reading(move || {
        let options = OpenOptions::default();
        let luns = leg.luns().iter();
        luns.map(|row| work(&open_recorded(row, &options)?))
            .collect()
    });
    done.await.and_then(|done| done)
}

/// Makes the targets of split pairs read-only again: a boot has undone that.
pub(crate) fn seal_again(context: &Context, model: &Model) {
    for (name, session) in &model.sessions {
        for (position, pair) in session.pairs.iter().enumerate() {
            if pair.phase != Phase::Split {
                continue;
            }
            let key = PairKey {
                session: name.clone(),
                position,
            };
            let (target, copy_of) = (pair.target.clone(), pair.copy_of.clone());
            let context = context.clone();
            tokio::spawn(async move {
                let sealed = match seal(&target).await {
                    Ok(sealed) => sealed,
                    Err(cause) => {
                        warn!(%target, "not made read-only again: {cause}");
                        return;
                    }
                };
                let Some(copy_of) = copy_of.and_then(|copy_of| after_boot(copy_of, sealed)) else {
                    return;
                };
                let change = Change::SetPair(key, PairField::CopyOf(Some(copy_of)));
                if let Err(error) = context.commit(vec![change]).await {
                    warn!(%error, "a target to which nothing was written since the boot will be copied from scratch");
                }
            });
        }
    }
}

/// The new record of a target that is sealed again after a boot: its current state, or that it is
/// in doubt, which later boots keep. `None`: nothing has changed.
fn after_boot(copy_of: CopyOf, now: Sealed) -> Option<CopyOf> {
    let before = copy_of.sealed.as_ref()?;
    let is_known = custody::compare(state(before), state(&now), false).is_ok();
    (before.boot_id != now.boot_id).then_some(CopyOf {
        sealed: is_known.then_some(now),
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
            fingerprint: 9,
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
        let why = judge(&sealed("b", Some(7)), false).unwrap_err();
        assert!(why.contains("booted"));
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
        // A target that was written to stays in doubt, whatever the next boot counts. So does a
        // target that another boot or system has mounted: this boot counts none of its writes.
        let mounted = Sealed {
            fingerprint: 8,
            ..sealed("b", Some(0))
        };
        for written in [sealed("b", Some(1)), sealed("b", None), mounted] {
            let in_doubt = after(written).unwrap();
            assert_eq!((in_doubt.at_ms, &in_doubt.sealed), (5, &None));
            assert_eq!(after_boot(in_doubt, sealed("c", Some(0))), None);
        }
        assert_eq!(after(sealed("a", Some(0))), None, "the same boot");
        let never = CopyOf {
            at_ms: 5,
            sealed: None,
        };
        assert_eq!(after_boot(never, sealed("b", Some(0))), None);
    }
}
