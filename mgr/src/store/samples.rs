//! Samples of the pairs, one every few seconds. Older samples are thinned out, so that a session of
//! any length needs the same space.

use rusqlite::{Connection, Row, Transaction, params};

use super::{PairKey, StoreError, integer};

/// The most samples of a pair. When there are more, every second sample of the pair is deleted.
const LINES_MAX: u32 = 2000;

/// A sample: what a pair did in the time before `at_ms`. Rates are per second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The pair.
    pub pair: PairKey,
    /// The time of the sample, in milliseconds since 1970.
    pub at_ms: u64,
    /// What was still to be copied, in bytes.
    pub dirty_bytes: u64,
    /// Copied, in bytes.
    pub copy_rate: u64,
    /// Read by applications, in bytes.
    pub read_rate: u64,
    /// Written by applications, in bytes.
    pub write_rate: u64,
    /// The median latency of the applications' requests, in microseconds; `None` without requests.
    pub median_us: Option<u64>,
    /// The 99th percentile of their latency, in microseconds; `None` without requests.
    pub p99_us: Option<u64>,
    /// The rate to which writes were slowed, in bytes; 0: they were not slowed.
    pub throttle: u64,
}

pub(super) fn add(transaction: &Transaction<'_>, sample: &Sample) -> Result<(), StoreError> {
    let (session, position) = (&sample.pair.session, sample.pair.position as i64);
    // The session may have been replaced meanwhile: then the sample is dropped.
    transaction.execute(
        "INSERT OR REPLACE INTO samples (session, position, at_ms, dirty_bytes, copy_rate, read_rate, write_rate,
            median_us, p99_us, throttle)
         SELECT session, position, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 FROM pairs WHERE session = ?1 AND position = ?2",
        params![
            session,
            position,
            integer(sample.at_ms),
            integer(sample.dirty_bytes),
            integer(sample.copy_rate),
            integer(sample.read_rate),
            integer(sample.write_rate),
            sample.median_us.map(integer),
            sample.p99_us.map(integer),
            integer(sample.throttle),
        ],
    )?;
    let lines: u32 = transaction.query_row(
        "SELECT count(*) FROM samples WHERE session = ?1 AND position = ?2",
        params![session, position],
        |row| row.get(0),
    )?;
    if lines > LINES_MAX {
        transaction.execute(
            "DELETE FROM samples WHERE session = ?1 AND position = ?2 AND at_ms IN (
                SELECT at_ms FROM (
                    SELECT at_ms, row_number() OVER (ORDER BY at_ms) AS line FROM samples
                    WHERE session = ?1 AND position = ?2)
                WHERE line % 2 = 0)",
            params![session, position],
        )?;
    }
    Ok(())
}

/// The samples of a session in the order of time. If there are more than `lines_max`, only every
/// second, third, ... sample is returned.
pub(super) fn read(
    connection: &Connection,
    session: &str,
    lines_max: u32,
) -> Result<Vec<Sample>, StoreError> {
    let mut statement = connection.prepare(
        "SELECT session, position, at_ms, dirty_bytes, copy_rate, read_rate, write_rate, median_us, p99_us, throttle
         FROM (
            SELECT *, row_number() OVER (PARTITION BY position ORDER BY at_ms) AS line,
                   (SELECT count(*) FROM samples WHERE session = ?1) AS lines
            FROM samples WHERE session = ?1)
         WHERE line % (1 + lines / ?2) = 0 ORDER BY at_ms, position",
    )?;
    let rows = statement.query_map(params![session, lines_max], sample)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn sample(row: &Row<'_>) -> rusqlite::Result<Sample> {
    let position: i64 = row.get(1)?;
    let number = |column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
    let optional = |column: usize| {
        row.get::<_, Option<i64>>(column)
            .map(|value| value.map(i64::unsigned_abs))
    };
    Ok(Sample {
        pair: PairKey {
            session: row.get(0)?,
            position: usize::try_from(position).unwrap_or_default(),
        },
        at_ms: number(2)?,
        dirty_bytes: number(3)?,
        copy_rate: number(4)?,
        read_rate: number(5)?,
        write_rate: number(6)?,
        median_us: optional(7)?,
        p99_us: optional(8)?,
        throttle: number(9)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{opened, with_session};
    use super::super::{Change, PairKey};
    use super::*;

    fn at(at_ms: u64, position: usize) -> Sample {
        Sample {
            pair: PairKey {
                session: "s1".into(),
                position,
            },
            at_ms,
            dirty_bytes: at_ms,
            copy_rate: 1,
            read_rate: 2,
            write_rate: 3,
            median_us: None,
            p99_us: Some(4),
            throttle: 5,
        }
    }

    #[test]
    fn what_was_sampled_is_read_and_old_lines_become_fewer() {
        let (_directory, mut store) = opened();
        with_session(&mut store, "s1");
        let changes: Vec<Change> = (1..=u64::from(LINES_MAX) + 1)
            .map(|at_ms| Change::Sample(at(at_ms, 0)))
            .collect();
        store.apply(&changes).unwrap();
        let all = store.samples("s1", 10_000).unwrap();
        assert_eq!(all.len(), LINES_MAX as usize / 2 + 1);
        assert_eq!(all[0], at(1, 0));
        assert_eq!(all[1], at(3, 0));
        let few = store.samples("s1", 100).unwrap();
        assert!(few.len() <= 100 && few.len() > 50, "{}", few.len());
        assert_eq!(store.samples("other", 100).unwrap(), []);
    }

    #[test]
    fn a_pair_that_is_gone_has_no_lines() {
        let (_directory, mut store) = opened();
        with_session(&mut store, "s1");
        store.apply(&[Change::Sample(at(1, 7))]).unwrap();
        assert_eq!(store.samples("s1", 100).unwrap(), []);
    }
}
