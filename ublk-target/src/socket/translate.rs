//! Translates the request of a client into one for the engine.

use migration_core::volume::CopierId;
use migration_proto::{
    route::Route,
    target::{CLAIM_REGIONS_MAX, Refusal, Request, Response, WATCH_REGIONS_MAX},
};

use super::Server;
use crate::engine::{CopierReport, EngineRequest, refused};

impl Server {
    /// Translates a request for the engine. The error is the answer, if the engine is not asked.
    pub(super) fn for_engine(
        &self,
        request: Request,
        copier: CopierId,
    ) -> Result<EngineRequest, Box<Response>> {
        let regions = |epoch, said| EngineRequest::Regions {
            copier,
            epoch,
            said,
        };
        Ok(match request {
            Request::Status => return Err(Box::new(self.status())),
            Request::Stop => return Err(Box::new(self.stop())),
            Request::AddMirror {
                epoch,
                target,
                deadline_ms,
            } => self.open_mirror(epoch, target, deadline_ms)?,
            Request::OpenCopier => {
                self.may_copy()?;
                EngineRequest::OpenCopier(copier)
            }
            Request::Claim { regions_max } => claim(copier, regions_max)?,
            Request::Report {
                epoch,
                copied,
                failed,
                error,
            } => {
                let mirror_error = error.filter(|error| self.is_mirror(error.side));
                let said = CopierReport::Done {
                    copied,
                    failed,
                    mirror_error,
                };
                regions(epoch, said)
            }
            Request::Watch {
                epoch,
                regions: watched,
                hold,
            } => regions(epoch, watch(watched, hold)?),
            Request::Compared {
                epoch,
                same,
                differing,
                unread,
            } => {
                let said = CopierReport::Compared {
                    same,
                    differing,
                    unread,
                };
                regions(epoch, said)
            }
            Request::SetRoute {
                epoch,
                route: Route::Mirrored { .. },
                deadline_ms,
                ..
            } if self.is_split() => self.open_split_leg(epoch, deadline_ms)?,
            Request::SetRoute {
                epoch,
                route,
                deadline_ms,
                copies_rest,
            } => EngineRequest::SetRoute {
                epoch,
                route,
                deadline_ms,
                copies_rest,
            },
            Request::Suspend { deadline_ms } => EngineRequest::Suspend { deadline_ms },
            Request::Resume => EngineRequest::Resume,
            Request::SetOnAuthoritativeFailure { policy } => {
                EngineRequest::OnAuthoritativeFailure(policy.into())
            }
            Request::SetCopyMode { mode } => EngineRequest::CopyMode(mode.into()),
            Request::SetThrottle {
                bytes_per_second,
                for_ms,
            } => EngineRequest::Throttle {
                bytes_per_second,
                for_ms,
            },
            Request::RetryMirror { epoch } => return Err(Box::new(self.retry_mirror(epoch))),
        })
    }
}

fn claim(copier: CopierId, regions_max: u32) -> Result<EngineRequest, Box<Response>> {
    if !(1..=CLAIM_REGIONS_MAX).contains(&regions_max) {
        let cause = format!("a claim is for 1 to {CLAIM_REGIONS_MAX} regions");
        return Err(Box::new(refused(Refusal::Malformed, cause)));
    }
    Ok(EngineRequest::Claim {
        copier,
        regions_max: regions_max as usize,
    })
}

fn watch(regions: Vec<u64>, hold: bool) -> Result<CopierReport, Box<Response>> {
    if regions.len() > WATCH_REGIONS_MAX {
        let cause = format!("at most {WATCH_REGIONS_MAX} regions are watched");
        return Err(Box::new(refused(Refusal::Malformed, cause)));
    }
    Ok(CopierReport::ToCompare { regions, hold })
}
