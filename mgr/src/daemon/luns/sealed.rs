//! Seals the targets of split pairs: makes them read-only, and checks later whether they are
//! unchanged. [`migration_core::seal`] decides what the result means.
//!
//! The kernel refuses writes to a sealed target, and counts the writes that it did. Nothing counts
//! the writes to files, and to devices without statistics.

use lun::{Kind, Lun, OpenOptions};
use migration_core::custody::LegState;
use migration_core::operation;
use migration_core::pair::Phase;
use migration_core::seal::{self, Resealed};
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

/// What is found out about the seal of a target.
#[derive(Debug)]
pub(crate) enum SealState {
    /// The target is unchanged since the split.
    Unbroken,
    /// Why it is not known whether the target has changed.
    Unknown(String),
    /// Why the target has changed, or may have.
    Broken(String),
}

/// Whether the target of a pair is unchanged since the split. A target that cannot be inspected may
/// have changed.
pub(crate) async fn check_seal(pair: &PairRow) -> SealState {
    let (now, read_only) = match inspect(&pair.target).await {
        Ok(found) => found,
        Err(cause) => return SealState::Broken(cause),
    };
    let copy_of = pair.copy_of.as_ref();
    let sealed = copy_of.and_then(|copy_of| copy_of.sealed.as_ref());
    let same_boot = sealed.is_some_and(|sealed| sealed.boot_id == now.boot_id);
    let Err(doubt) = seal::judge(sealed.map(state), state(&now), same_boot, read_only) else {
        return SealState::Unbroken;
    };
    match doubt.seal() {
        operation::Seal::Broken => SealState::Broken(format!("{} {doubt}", pair.target)),
        operation::Seal::Unbroken | operation::Seal::Unknown => {
            SealState::Unknown(doubt.to_string())
        }
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

/// The new record of a target that is sealed again when shuntd starts. `None`: nothing has changed.
fn after_boot(copy_of: CopyOf, now: Sealed) -> Option<CopyOf> {
    let before = copy_of.sealed.as_ref();
    let same_boot = before.is_some_and(|before| before.boot_id == now.boot_id);
    let sealed = match seal::after_boot(before.map(state), state(&now), same_boot) {
        Resealed::AsBefore => return None,
        Resealed::Renewed => Some(now),
        Resealed::InDoubt => None,
    };
    Some(CopyOf { sealed, ..copy_of })
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
    fn after_a_boot_the_record_is_renewed_or_removed_and_keeps_the_instant_of_the_copy() {
        let copy_of = CopyOf {
            at_ms: 5,
            sealed: Some(sealed("a", Some(7))),
        };
        let after = |now| after_boot(copy_of.clone(), now);
        let found = after(sealed("b", Some(0))).unwrap();
        assert_eq!((found.at_ms, found.sealed), (5, Some(sealed("b", Some(0)))));
        let in_doubt = after(sealed("b", Some(1))).unwrap();
        assert_eq!((in_doubt.at_ms, &in_doubt.sealed), (5, &None));
        assert_eq!(after_boot(in_doubt, sealed("c", Some(0))), None);
        assert_eq!(after(sealed("a", Some(0))), None, "the same boot");
    }
}
