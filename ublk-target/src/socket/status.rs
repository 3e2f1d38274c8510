//! The status of the volume, as clients read it.

use std::io;

use migration_proto::target::{Counters, OpenLun, Refusal, Response, Status};

use super::Server;
use crate::engine::{Snapshot, refused};

impl Server {
    pub(super) fn status(&self) -> Response {
        let Some(snapshot) = self.inbox.snapshot() else {
            return refused(Refusal::Ending, "the volume is ending");
        };
        let Snapshot {
            descriptor,
            record,
            counters,
            ..
        } = &snapshot;
        let problem = |what: &str, error: migration_core::volume::Errno| {
            format!("{what}: {}", io::Error::from_raw_os_error(error.0))
        };
        let mirror = match &snapshot.mirror_problem {
            Some(missing) => Some(format!("the mirror leg is not there: {missing}")),
            None => snapshot
                .mirror_fault
                .map(|error| match &snapshot.mirror_cause {
                    Some(cause) => format!("the mirror leg failed: {cause}"),
                    None => problem("the mirror leg failed", error),
                }),
        };
        let authoritative = snapshot
            .authoritative_fault
            .map(|error| problem("the authoritative leg failed", error));
        let [source_open, target_open] = open_luns(&snapshot);
        let map = snapshot
            .map_fault
            .map(|error| problem("the map file cannot be written", error));
        let mut held = snapshot.authoritative.held();
        if let Some(mirror) = snapshot
            .mirror
            .as_ref()
            .filter(|_| !snapshot.doubt_unmarked)
        {
            held.extend(mirror.held());
        }
        Response::Status(Box::new(Status {
            volume: descriptor.volume.clone(),
            volume_id: descriptor.volume_id.clone(),
            pid: std::process::id(),
            device: self.facts.device.clone(),
            epoch: record.epoch.0,
            route: record.route.into(),
            size_bytes: record.geometry.size_bytes(),
            region_bytes: record.geometry.region_bytes(),
            dirty_bytes: snapshot.dirty_bytes,
            dirty_percent: snapshot.dirty_percent.clone(),
            claimed_bytes: snapshot.claimed_bytes,
            copied_bytes: counters.copied_bytes,
            degraded: mirror,
            stalled_writes: snapshot.stalled_writes,
            authoritative_problem: authoritative,
            on_authoritative_failure: snapshot.on_authoritative_failure.into(),
            copy_mode: snapshot.copy_mode.into(),
            throttle_bytes_per_second: snapshot.throttle.unwrap_or(0),
            map_problem: map,
            suspended: snapshot.suspended,
            changing: snapshot.changing,
            copier: snapshot.copier,
            source: descriptor.source.clone(),
            target: descriptor.target.clone(),
            source_open,
            target_open,
            counters: Counters {
                reads: counters.reads,
                writes: counters.writes,
                flushes: counters.flushes,
                read_bytes: counters.read_bytes,
                written_bytes: counters.written_bytes,
                failed: counters.failed,
                mirror_reads: counters.mirror_reads,
                fail_overs: counters.fail_overs,
                waited: counters.waited,
                map_writes: counters.map_writes,
                last_pause_us: counters.last_pause / 1000,
            },
            read_latency: snapshot.latencies.reads.counts().to_vec(),
            write_latency: snapshot.latencies.writes.counts().to_vec(),
            driver_features: self.facts.driver_features.clone(),
            claim: self.facts.claim.0,
            held,
            doubt: snapshot.doubt.map(|doubt| doubt.to_string()),
            recovered: self.facts.recovered,
        }))
    }
}

/// Lists the open LUNs of the source leg and of the target leg.
fn open_luns(snapshot: &Snapshot) -> [Vec<OpenLun>; 2] {
    let authoritative = snapshot.authoritative.open_luns();
    let mirror = snapshot.mirror.as_ref();
    let mirror = mirror.map(|leg| leg.open_luns()).unwrap_or_default();
    match snapshot.record.route.authoritative() {
        migration_core::route::Side::Source => [authoritative, mirror],
        migration_core::route::Side::Target => [mirror, authoritative],
    }
}
