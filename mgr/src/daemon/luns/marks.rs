//! The mark on a target that is not a copy yet.

use lun::OpenOptions;

use super::checks::open_recorded;
use crate::daemon::context::blocking;
use crate::store::PairRow;

/// Writes to the target that it is no copy. Nobody may use the target.
pub(crate) async fn mark_unfinished(session: &str, row: &PairRow) -> Result<(), String> {
    let text = format!("volume {}, session {session}\n", row.volume);
    let target = row.target.clone();
    let marked = blocking(move || {
        let options = OpenOptions {
            write: true,
            exclusive: true,
            ..OpenOptions::default()
        };
        for row in target.luns() {
            let lun = open_recorded(row, &options)?;
            lun.mark_unfinished(&text)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    });
    marked.await.and_then(|marked| marked)
}
