//! Measures the I/O of applications on the volumes of pairs, and the progress of the copies: the
//! current values for `status`, and samples that are kept for `report`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use migration_core::latency::Histogram;
use migration_proto::manager::{ApplicationRecord, JSON_SCHEMA, Record, Response, SampleRecord};
use migration_proto::target::Status;
use tokio::sync::oneshot;

use crate::daemon::clock::steady_ms;
use crate::daemon::context::Context;
use crate::daemon::failure;
use crate::daemon::handle::View;
use crate::store::{Change, PairKey, Sample, SessionRow};

/// Minimum window of the values that are shown.
const WINDOW: Duration = Duration::from_secs(1);
/// Interval between samples that are kept, while a copier runs and otherwise.
const KEEP_EVERY: Duration = Duration::from_secs(2);
const KEEP_EVERY_IDLE: Duration = Duration::from_secs(30);
/// Maximum number of samples in an answer.
const LINES_MAX: u32 = 2000;

/// The measurements of every pair.
#[derive(Debug, Default)]
pub(crate) struct Gauges(BTreeMap<PairKey, Gauge>);

#[derive(Debug)]
struct Gauge {
    /// The reading at the start of the current window.
    shown_since: Reading,
    /// The values of the last complete window.
    shown: ApplicationRecord,
    /// The reading at the start of the current sample.
    kept_since: Reading,
}

/// The counters of a volume at one moment.
#[derive(Debug, Clone)]
struct Reading {
    at: Instant,
    pid: u32,
    read_bytes: u64,
    written_bytes: u64,
    copied_bytes: u64,
    latency: Histogram,
}

impl Reading {
    fn new(status: &Status, at: Instant) -> Self {
        let reads = Histogram::from_counts(&status.read_latency);
        Self {
            at,
            pid: status.pid,
            read_bytes: status.counters.read_bytes,
            written_bytes: status.counters.written_bytes,
            copied_bytes: status.copied_bytes,
            latency: reads.with(&Histogram::from_counts(&status.write_latency)),
        }
    }

    /// The application record since an earlier reading, with the rate of the copy. `None` if a new
    /// process has restarted the counters from zero.
    fn since(&self, before: &Self) -> Option<(ApplicationRecord, u64)> {
        if self.pid != before.pid {
            return None;
        }
        let microseconds = self.at.duration_since(before.at).as_micros().max(1);
        let rate = |now: u64, then: u64| {
            let bytes = u128::from(now.saturating_sub(then));
            u64::try_from(bytes * 1_000_000 / microseconds).unwrap_or(u64::MAX)
        };
        let latency = self.latency.since(&before.latency);
        let quantile = |of_thousand| latency.quantile(of_thousand).map(|time| time / 1000);
        let application = ApplicationRecord {
            read_bytes_per_second: rate(self.read_bytes, before.read_bytes),
            write_bytes_per_second: rate(self.written_bytes, before.written_bytes),
            median_us: quantile(500),
            p99_us: quantile(990),
            undisturbed_p99_us: None,
        };
        Some((application, rate(self.copied_bytes, before.copied_bytes)))
    }
}

impl Gauges {
    /// Handles a status report of a volume. Returns the sample to keep, when it is time for one.
    pub(crate) fn read(
        &mut self,
        key: &PairKey,
        status: &Status,
        copying: bool,
        now: Instant,
    ) -> Option<Sample> {
        let reading = Reading::new(status, now);
        let Some(gauge) = self.0.get_mut(key) else {
            let gauge = Gauge {
                shown_since: reading.clone(),
                shown: ApplicationRecord::default(),
                kept_since: reading,
            };
            self.0.insert(key.clone(), gauge);
            return None;
        };
        if now.duration_since(gauge.shown_since.at) >= WINDOW {
            if let Some((application, _)) = reading.since(&gauge.shown_since) {
                gauge.shown = application;
            }
            gauge.shown_since = reading.clone();
        }
        let every = if copying { KEEP_EVERY } else { KEEP_EVERY_IDLE };
        if now.duration_since(gauge.kept_since.at) < every {
            return None;
        }
        let measured = reading.since(&gauge.kept_since);
        gauge.kept_since = reading;
        let (application, copy_rate) = measured?;
        Some(Sample {
            pair: key.clone(),
            at_ms: steady_ms(),
            dirty_bytes: status.dirty_bytes,
            copy_rate,
            read_rate: application.read_bytes_per_second,
            write_rate: application.write_bytes_per_second,
            median_us: application.median_us,
            p99_us: application.p99_us,
            throttle: status.throttle_bytes_per_second,
        })
    }

    /// Handles the view of a volume: keeps a sample when it is time for one.
    pub(crate) fn reported(
        &mut self,
        context: &Context,
        key: &PairKey,
        view: &View,
        copying: bool,
    ) {
        let Some(status) = view.status.as_deref().filter(|_| view.connected) else {
            return;
        };
        if let Some(sample) = self.read(key, status, copying, Instant::now()) {
            context.record_aside(vec![Change::Sample(sample)]);
        }
    }

    /// The I/O of applications on a pair's volume.
    pub(crate) fn application(&self, key: &PairKey) -> Option<ApplicationRecord> {
        self.0.get(key).map(|gauge| gauge.shown)
    }

    /// Forgets a pair that has ended.
    pub(crate) fn forget(&mut self, key: &PairKey) {
        self.0.remove(key);
    }
}

/// Answers with the samples of a session.
pub(crate) fn send_samples(context: &Context, row: &SessionRow, reply: oneshot::Sender<Response>) {
    let session = row.name.clone();
    let volumes: Vec<String> = row.pairs.iter().map(|pair| pair.volume.clone()).collect();
    let store = context.store.clone();
    tokio::spawn(async move {
        let samples = store
            .call(move |store| store.samples(&session, LINES_MAX))
            .await;
        let response = match samples {
            Ok(samples) => Response::Records {
                records: samples
                    .into_iter()
                    .filter_map(|sample| record(sample, &volumes))
                    .collect(),
            },
            Err(error) => Response::Failed(failure::store("samples", &error)),
        };
        // The client may have disconnected.
        let _ = reply.send(response);
    });
}

fn record(sample: Sample, volumes: &[String]) -> Option<Record> {
    Some(Record::Sample(SampleRecord {
        schema: JSON_SCHEMA,
        at_ms: sample.at_ms,
        volume: volumes.get(sample.pair.position)?.clone(),
        dirty_bytes: sample.dirty_bytes,
        copy_bytes_per_second: sample.copy_rate,
        application: ApplicationRecord {
            read_bytes_per_second: sample.read_rate,
            write_bytes_per_second: sample.write_rate,
            median_us: sample.median_us,
            p99_us: sample.p99_us,
            undisturbed_p99_us: None,
        },
        throttle_bytes_per_second: sample.throttle,
    }))
}
