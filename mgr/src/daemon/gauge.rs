//! What applications do with the volumes of pairs, and how the copies go on: what `status` shows now, and what is kept for
//! `report`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use migration_core::latency::Histogram;
use migration_proto::manager::{ApplicationRecord, JSON_SCHEMA, Record, Response, SampleRecord};
use migration_proto::target::Status;
use tokio::sync::oneshot;

use super::Owner;
use super::clock::steady_ms;
use super::failure;
use super::volume::View;
use crate::store::{Change, PairKey, Sample};

/// Over how long is measured what is shown, at least.
const WINDOW: Duration = Duration::from_secs(1);
/// How often a line is kept while something is copied, and otherwise.
const KEEP_EVERY: Duration = Duration::from_secs(2);
const KEEP_EVERY_IDLE: Duration = Duration::from_secs(30);
/// The most lines of an answer.
const LINES_MAX: u32 = 2000;

/// What every pair's volume said.
#[derive(Debug, Default)]
pub(super) struct Gauges(BTreeMap<PairKey, Gauge>);

#[derive(Debug)]
struct Gauge {
    /// The beginning of the window that is being measured.
    shown_since: Reading,
    /// What came of the last one.
    shown: ApplicationRecord,
    /// The beginning of the line that is being measured.
    kept_since: Reading,
}

/// What a volume said at one moment.
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

    /// `None`: another process has begun to count anew.
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
    /// A volume said how it is. Returns the line that is to be kept, when it is time for one.
    pub(super) fn read(
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

    /// What applications do with a pair's volume.
    pub(super) fn application(&self, key: &PairKey) -> Option<ApplicationRecord> {
        self.0.get(key).map(|gauge| gauge.shown)
    }

    /// The pair has ended.
    pub(super) fn forget(&mut self, key: &PairKey) {
        self.0.remove(key);
    }
}

impl Owner {
    pub(super) fn read_gauge(&mut self, key: &PairKey, view: &View) {
        let Some(status) = view.status.as_deref().filter(|_| view.connected) else {
            return;
        };
        let copying = self.copies.is_running(key);
        if let Some(sample) = self.gauges.read(key, status, copying, Instant::now()) {
            self.record_aside(vec![Change::Sample(sample)]);
        }
    }

    pub(super) fn samples(&self, session: String, reply: oneshot::Sender<Response>) {
        let Some(row) = self.model.sessions.get(&session) else {
            return Self::refuse(reply, failure::no_session(&session));
        };
        let volumes: Vec<String> = row.pairs.iter().map(|pair| pair.volume.clone()).collect();
        let store = self.context.store.clone();
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
            // Whoever asked may have left.
            let _ = reply.send(response);
        });
    }
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
