//! Records what a source cannot read, if the operator has accepted that; it becomes zeroes on the
//! target.

use copier::{AcceptUnreadable, OnTarget};
use migration_core::route::Side;
use migration_proto::manager::{HistoryEvent, UnreadablePart};
use tokio::runtime::Handle;

use crate::daemon::context::{Context, note};
use crate::store::{Change, PairField, PairKey, PairRow, SessionRow};

/// The callback by which a copier of the pair decides about parts that it cannot read; `None` if
/// the session accepts none. In a region that is copied for the first time such parts are recorded,
/// up to the limit of the session, and become zeroes. In any other region the target may have the
/// only good copy: parts that were recorded before keep the target's data if the pair was in sync
/// when the copier started, and become zeroes otherwise; new parts are an error.
pub(crate) fn accept(
    context: &Context,
    key: &PairKey,
    session: &SessionRow,
    row: &PairRow,
) -> Option<AcceptUnreadable> {
    let limit = session.options.accept_unreadable_bytes;
    if limit == 0 {
        return None;
    }
    let (context, key, volume) = (context.clone(), key.clone(), row.volume.clone());
    let mut known = row.unreadable.clone();
    let runtime = Handle::current();
    let was_in_sync = row.progress.in_sync_ms.is_some();
    Some(Box::new(move |ranges, is_first| {
        let found = ranges.into_iter().map(|range| UnreadablePart {
            offset_bytes: range.start,
            length_bytes: range.end - range.start,
        });
        let found: Vec<UnreadablePart> = found.collect();
        let all = with(&known, &found);
        if all == known {
            // Recorded already, but maybe not yet zeroes on the target.
            return Ok(match is_first || !was_in_sync {
                true => OnTarget::Zeroes,
                false => OnTarget::Kept,
            });
        }
        if !is_first {
            return Err(
                "blocks of it that may have been copied before cannot be read any more, and the target may have the only good \
                 copy; next: write them again through the volume, or cancel the session and create another"
                    .to_owned(),
            );
        }
        let bytes: u64 = all.iter().map(|part| part.length_bytes).sum();
        if bytes > limit {
            return Err(format!(
                "{bytes} bytes of it cannot be read, and {limit} were accepted; next: `shunt set {} --accept-unreadable BYTES`, or \
                 cancel the session",
                key.session
            ));
        }
        let changes = found.iter().map(|part| {
            let event = HistoryEvent::Unreadable {
                offset_bytes: part.offset_bytes,
                length_bytes: part.length_bytes,
            };
            note(Some(&key.session), Some(&volume), event)
        });
        let changes = changes
            .chain([Change::SetPair(
                key.clone(),
                PairField::Unreadable(all.clone()),
            )])
            .collect();
        runtime
            .block_on(context.commit(changes))
            .map_err(|error| format!("it could not be recorded: {error}"))?;
        known = all;
        Ok(OnTarget::Zeroes)
    }))
}

/// Merges both lists, ascending; parts that touch become one.
fn with(known: &[UnreadablePart], found: &[UnreadablePart]) -> Vec<UnreadablePart> {
    let mut parts = [known, found].concat();
    parts.sort_unstable();
    let mut all: Vec<UnreadablePart> = Vec::new();
    for part in parts {
        match all.last_mut() {
            Some(last) if part.offset_bytes <= last.offset_bytes + last.length_bytes => {
                let end = part.offset_bytes + part.length_bytes;
                last.length_bytes = last.length_bytes.max(end - last.offset_bytes);
            }
            _ => all.push(part),
        }
    }
    all
}

/// The message about unreadable parts that the operator needs after a switch to the target.
pub(crate) fn on_target(row: &PairRow, to: Side) -> Option<String> {
    let bytes: u64 = row.unreadable.iter().map(|part| part.length_bytes).sum();
    (to == Side::Target && bytes > 0).then(|| {
        format!(
            "{}: {bytes} bytes could not be read from the source and are zeroes on the target: `shunt status` says where",
            row.volume
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset_bytes: u64, length_bytes: u64) -> UnreadablePart {
        UnreadablePart {
            offset_bytes,
            length_bytes,
        }
    }

    #[test]
    fn parts_that_touch_are_one_and_none_counts_twice() {
        let known = [part(512, 512), part(4096, 1024)];
        assert_eq!(with(&known, &[]), known);
        assert_eq!(with(&known, &[part(4608, 512)]), known);
        let all = with(
            &known,
            &[part(1024, 512), part(8192, 512), part(4608, 1024)],
        );
        assert_eq!(all, [part(512, 1024), part(4096, 1536), part(8192, 512)]);
    }
}
