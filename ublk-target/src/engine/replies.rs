//! Translates commands into calls of the volume, and the volume's replies into answers.

use std::sync::mpsc::SyncSender;

use leg::OpenLeg;
use migration_core::{
    custody::Doubt,
    map::RoleRecord,
    region::RegionMap,
    route::{Route, Side},
    units::{Epoch, Geometry, RegionIndex},
    volume::{
        Call, ChangeError, ClaimError, Comparison, CopierId, Errno, NewMirror, Reply, Report,
        Target,
    },
};
use migration_proto::target::{CopyError, Refusal, Response, ServedLeg};

use super::{
    Command, CopierReport, Engine, EngineRequest, NewMirrorLeg, command::refused, register_leg,
    side_index,
};

/// The calls that the volume has not answered yet.
#[derive(Debug, Default)]
pub(super) struct Calls {
    last: u64,
    open: Vec<(Call, SyncSender<Response>)>,
}

impl Calls {
    fn open(&mut self, reply: SyncSender<Response>) -> Call {
        self.last += 1;
        self.open.push((Call(self.last), reply));
        Call(self.last)
    }

    pub(super) fn answer(&mut self, call: Call, response: Response) {
        self.answer_later(call, response)();
    }

    /// Takes the call out of the list; the returned function sends the answer.
    pub(super) fn answer_later(
        &mut self,
        call: Call,
        response: Response,
    ) -> impl FnOnce() + Send + use<> {
        let index = self.open.iter().position(|(open, _)| *open == call);
        let reply = index.map(|index| self.open.swap_remove(index).1);
        move || {
            if let Some(reply) = reply {
                // The client may have disconnected.
                let _ = reply.try_send(response);
            }
        }
    }
}

const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

impl Engine {
    pub(super) fn obey(&mut self, command: Command) {
        match command {
            Command::Snapshot(reply) => {
                if let Some(snapshot) = self.snapshot() {
                    let _ = reply.try_send(snapshot);
                }
            }
            Command::ConnectionClosed(copier) => {
                let now = self.now();
                self.volume.close_copier(copier, now, &mut self.effects);
            }
            Command::EngineRequest(ask, reply) => {
                let call = self.calls.open(reply);
                if let Some(response) = self.ask(call, ask) {
                    self.calls.answer(call, response);
                }
            }
        }
    }

    /// Passes a request to the volume. `None`: a reply of the volume will answer it later.
    fn ask(&mut self, call: Call, ask: EngineRequest) -> Option<Response> {
        let now = self.now();
        match ask {
            EngineRequest::AddMirror { .. } => self.add_mirror(call, ask),
            EngineRequest::SetRoute {
                epoch,
                route,
                deadline_ms,
                copies_rest,
            } => {
                let target = match Route::from(route) {
                    Route::Mirrored { authoritative } if copies_rest => {
                        Target::CopyRest(authoritative)
                    }
                    route => Target::Route(route),
                };
                self.change_route(call, epoch, target, deadline_ms)
            }
            EngineRequest::Suspend { deadline_ms } => {
                let deadline = now.plus(deadline_ms.saturating_mul(NANOSECONDS_PER_MILLISECOND));
                let result = self.volume.suspend(now, call, deadline, &mut self.effects);
                result.err().map(change_refused)
            }
            EngineRequest::Resume => {
                let ended = self.volume.resume(now, &mut self.effects).map(Into::into);
                Some(Response::Resumed { ended })
            }
            EngineRequest::OnAuthoritativeFailure(policy) => {
                self.volume.set_on_authoritative_failure(policy);
                Some(Response::Done)
            }
            EngineRequest::CopyMode(mode) => {
                self.volume.set_copy_mode(mode, &mut self.effects);
                Some(Response::Done)
            }
            EngineRequest::Throttle {
                bytes_per_second,
                for_ms,
            } => {
                let until = now.plus(for_ms.saturating_mul(NANOSECONDS_PER_MILLISECOND));
                let effects = &mut self.effects;
                self.volume
                    .set_throttle(now, bytes_per_second, until, effects);
                Some(Response::Done)
            }
            EngineRequest::ReleaseMirror { epoch } | EngineRequest::RetryMirror { epoch, .. }
                if epoch != self.volume.record().epoch.0 =>
            {
                Some(change_refused(ChangeError::StaleEpoch))
            }
            EngineRequest::ReleaseMirror { .. } => self.release_mirror(call),
            EngineRequest::RetryMirror { leg, .. } => Some(self.retry_mirror(leg)),
            EngineRequest::OpenCopier(copier) => Some(self.open_copier(copier)),
            EngineRequest::Claim {
                copier,
                regions_max,
            } => {
                self.volume
                    .claim(copier, call, regions_max, &mut self.effects);
                None
            }
            EngineRequest::Regions {
                copier,
                epoch,
                said,
            } => {
                let response = self.regions(copier, Epoch(epoch), said);
                Some(response.unwrap_or_else(|refused| refused))
            }
        }
    }

    fn regions(
        &mut self,
        copier: CopierId,
        epoch: Epoch,
        said: CopierReport,
    ) -> Result<Response, Response> {
        let geometry = self.volume.geometry();
        let indexes = |list: Vec<u64>| indexes(geometry, &list);
        let now = self.now();
        let effects = &mut self.effects;
        let response = match said {
            CopierReport::Done {
                copied,
                failed,
                mirror_error,
            } => {
                let (copied, failed) = (indexes(copied)?, indexes(failed)?);
                let report = Report {
                    epoch,
                    copied: &copied,
                    failed: &failed,
                    mirror_error: mirror_error.as_ref().map(errno),
                };
                let was_well = self.volume.mirror_fault().is_none();
                let reported = self.volume.report(now, copier, &report, effects);
                if was_well && self.volume.mirror_fault().is_some() {
                    self.mirror_cause = mirror_error.map(|error| error.cause);
                }
                reported.map(|()| Response::Done)
            }
            CopierReport::ToCompare { regions, hold } => self
                .volume
                .watch(copier, epoch, &indexes(regions)?, hold)
                .map(|watched| Response::Watched {
                    regions: numbers(&watched.watched),
                    dirty: numbers(&watched.dirty),
                }),
            CopierReport::Compared {
                same,
                differing,
                unread,
            } => {
                let found = Comparison {
                    same: indexes(same)?,
                    differing: indexes(differing)?,
                    unread: indexes(unread)?,
                };
                self.volume
                    .compared(copier, epoch, &found, effects)
                    .map(|unknown| Response::Compared {
                        unknown: numbers(&unknown),
                    })
            }
        };
        response.map_err(claim_refused)
    }

    fn change_route(
        &mut self,
        call: Call,
        epoch: u64,
        target: Target,
        deadline_ms: u64,
    ) -> Option<Response> {
        let hold = deadline_ms.saturating_mul(NANOSECONDS_PER_MILLISECOND);
        let now = self.now();
        let effects = &mut self.effects;
        let result = self
            .volume
            .change_route(now, call, Epoch(epoch), target, hold, effects);
        result.err().map(change_refused)
    }

    fn add_mirror(&mut self, call: Call, ask: EngineRequest) -> Option<Response> {
        let EngineRequest::AddMirror {
            epoch,
            leg,
            descriptor,
            deadline_ms,
        } = ask
        else {
            return None;
        };
        if self.new_mirror.is_some() {
            return Some(change_refused(ChangeError::Busy));
        }
        let files = match register_leg(&mut self.ring, leg.into()) {
            Ok(files) => files,
            Err(error) => return Some(refused(Refusal::BadLeg, error.to_string())),
        };
        let target = match &descriptor {
            Some(new) => Target::AddMirror(NewMirror {
                descriptor_bytes: new.bytes.len() as u32,
                descriptor_crc: migration_core::map::checksum(&new.bytes),
            }),
            None => Target::Route(Route::Mirrored {
                authoritative: Side::Source,
            }),
        };
        self.new_mirror = Some(NewMirrorLeg {
            call,
            files,
            descriptor,
        });
        let response = self.change_route(call, epoch, target, deadline_ms);
        if response.is_some()
            && let Some(files) = self.take_new_mirror(call)
        {
            self.release(files, || ());
        }
        response
    }

    /// Closes a failed mirror leg. Answers when the leg is closed.
    fn release_mirror(&mut self, call: Call) -> Option<Response> {
        let Some(side) = self.volume.record().route.mirror() else {
            return Some(claim_refused(ClaimError::NotMirrored));
        };
        if self.volume.mirror_fault().is_none() {
            return Some(Response::Done);
        }
        let Some(leg) = self.legs[side_index(side)].take() else {
            return Some(Response::Done);
        };
        self.mirror_problem = Some("it is being opened again".to_owned());
        let answer = self.calls.answer_later(call, Response::Done);
        self.release(leg, answer);
        None
    }

    fn retry_mirror(&mut self, leg: Result<OpenLeg, String>) -> Response {
        let Some(side) = self.volume.record().route.mirror() else {
            return claim_refused(ClaimError::NotMirrored);
        };
        if self.legs[side_index(side)].is_none() {
            let files = leg.and_then(|leg| {
                register_leg(&mut self.ring, leg.into()).map_err(|error| error.to_string())
            });
            match files {
                Ok(files) => {
                    self.legs[side_index(side)] = Some(files);
                    // Others could write to the leg while it was closed.
                    self.doubt = Some(Doubt::LegMissing(side));
                    self.volume.doubt_mirror(&mut self.effects);
                    self.doubt_unmarked = !self.volume.is_map_written();
                }
                Err(problem) => {
                    self.mirror_problem = Some(problem.clone());
                    return refused(Refusal::BadLeg, problem);
                }
            }
        }
        self.mirror_problem = None;
        match self.volume.retry_mirror() {
            Ok(_) => {
                self.mirror_cause = None;
                Response::Done
            }
            Err(error) => claim_refused(error),
        }
    }

    fn open_copier(&mut self, copier: CopierId) -> Response {
        let record = *self.volume.record();
        let epoch = match self.volume.open_copier(copier) {
            Ok(epoch) => epoch,
            Err(error) => return claim_refused(error),
        };
        let served = |side: migration_core::route::Side| {
            let leg = self.descriptor.leg(side.into())?.clone();
            let files = self.legs[side_index(side)].as_ref()?;
            let open = files.leg.open_luns();
            Some(Box::new(ServedLeg { leg, open }))
        };
        let from = served(record.route.authoritative());
        let to = record.route.mirror().and_then(served);
        match (from, to) {
            (Some(from), Some(to)) => Response::CopierOpened {
                epoch: epoch.0,
                region_bytes: record.geometry.region_bytes(),
                size_bytes: record.geometry.size_bytes(),
                from,
                to,
                compare_first: self.doubt.is_some(),
            },
            _ => claim_refused(ClaimError::NotMirrored),
        }
    }
}

/// Translates a reply of the volume into an answer.
pub(super) fn response(
    reply: &Reply,
    record: &RoleRecord,
    regions: Option<&RegionMap>,
) -> Response {
    let dirty_bytes = regions.map_or(0, RegionMap::dirty_bytes);
    match reply {
        Reply::Suspended => Response::Suspended,
        Reply::SuspendDeadline => change_refused(ChangeError::Deadline),
        Reply::RouteChanged {
            epoch,
            route,
            pause,
        } => Response::RouteChanged {
            epoch: epoch.0,
            route: (*route).into(),
            pause_us: pause / 1000,
        },
        Reply::ChangeFailed(error) => change_refused(*error),
        Reply::Claimed(granted) => {
            let number = |region: &RegionIndex| region.0 as u64;
            let is_never_copied = |region: &&RegionIndex| {
                regions.is_some_and(|regions| regions.is_never_copied(**region))
            };
            Response::Claimed {
                epoch: record.epoch.0,
                regions: granted.iter().map(number).collect(),
                never_copied: granted.iter().filter(is_never_copied).map(number).collect(),
                dirty_bytes,
            }
        }
        Reply::ClaimRefused(error) => claim_refused(*error),
    }
}

fn change_refused(error: ChangeError) -> Response {
    match error {
        ChangeError::StaleEpoch => refused(
            Refusal::StaleEpoch,
            "the route has changed since the caller read it",
        ),
        ChangeError::WrongRoute => refused(
            Refusal::WrongRoute,
            "the present route cannot become that one",
        ),
        ChangeError::NotInSync(bytes) => refused(
            Refusal::NotInSync,
            format!("{bytes} bytes are not yet the same on both legs"),
        ),
        ChangeError::MirrorFailed => refused(
            Refusal::NotInSync,
            "the mirror leg failed and is not being written",
        ),
        ChangeError::Busy => refused(
            Refusal::Busy,
            "another change of the route, or a suspension, is under way",
        ),
        ChangeError::CopierConnected => {
            refused(Refusal::CopierBusy, "the copier is still connected")
        }
        ChangeError::Deadline => refused(
            Refusal::Deadline,
            "requests could not be drained and flushed in the time allowed; they flow again as before",
        ),
        ChangeError::Flush(error) => refused(
            Refusal::Failed,
            format!("a leg could not be flushed: {}", words(error)),
        ),
        ChangeError::Map(error) => refused(
            Refusal::Failed,
            format!("the map file could not be written: {}", words(error)),
        ),
    }
}

/// The error number of the copier's error. `ETIMEDOUT` becomes `EIO`: a device that gives up a
/// request after its own time limit is not a leg that stalls, which is the meaning of `ETIMEDOUT`
/// in the volume.
fn errno(error: &CopyError) -> Errno {
    Errno(match error.errno {
        Some(libc::ETIMEDOUT) | None => libc::EIO,
        Some(errno) => errno,
    })
}

/// Checks the region numbers of a message.
fn indexes(geometry: Geometry, list: &[u64]) -> Result<Vec<RegionIndex>, Response> {
    let index = |region: &u64| {
        let index = usize::try_from(*region).ok();
        index
            .filter(|index| *index < geometry.regions())
            .map(RegionIndex)
    };
    let indexes: Option<Vec<RegionIndex>> = list.iter().map(index).collect();
    indexes.ok_or_else(|| refused(Refusal::Malformed, "a region beyond the end of the volume"))
}

fn numbers(regions: &[RegionIndex]) -> Vec<u64> {
    regions.iter().map(|region| region.0 as u64).collect()
}

fn claim_refused(error: ClaimError) -> Response {
    match error {
        ClaimError::NotMirrored => refused(Refusal::WrongRoute, "the volume has no mirror leg"),
        ClaimError::OtherCopier => refused(Refusal::CopierBusy, "another copier is connected"),
        ClaimError::NotCopier => refused(
            Refusal::NotCopier,
            "this connection has not claimed these regions",
        ),
        ClaimError::StaleEpoch => {
            refused(Refusal::StaleEpoch, "the route has changed since the claim")
        }
        ClaimError::MirrorFailed => refused(
            Refusal::Failed,
            "the mirror leg failed; it waits for the operator to resume",
        ),
        ClaimError::RouteChanging => refused(Refusal::CopierBusy, "the route is being changed"),
        ClaimError::ClaimPending => refused(
            Refusal::Malformed,
            "a claim of this copier is still unanswered",
        ),
    }
}

/// Describes an error number in words.
pub(super) fn words(error: Errno) -> String {
    std::io::Error::from_raw_os_error(error.0).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_the_copier_stays_what_it_is() {
        let said = |errno| {
            let side = migration_proto::route::Side::Target;
            let cause = String::new();
            super::errno(&CopyError { side, errno, cause }).0
        };
        for errno in [libc::ENOSPC, libc::EROFS, libc::EREMOTEIO, libc::EBADE] {
            assert_eq!(said(Some(errno)), errno);
        }
        // A text without a known error number is EIO, and a time-out of the device is not a stall.
        assert_eq!([None, Some(libc::ETIMEDOUT)].map(said), [libc::EIO; 2]);
    }
}
