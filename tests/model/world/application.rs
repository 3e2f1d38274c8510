//! The requests of the application, and what it may rely on.

use seeded_core::{
    units::{Range, Tag},
    volume::{Effect, IoResult, Op},
};

use super::{NOW, Open, REGION_BYTES, Stage, World, writes_block};
use crate::{
    check::{Checker, Violation, require},
    disk::{Value, Values, only},
    setup::{BLOCKS_MAX, OperatorRequest, Setup},
};

impl World {
    /// The values of unanswered writes to a block.
    pub(crate) fn in_flight(&self, setup: &Setup, block: usize) -> Values {
        let open = |index: &usize| matches!(self.requests[*index], Stage::Open(_));
        let writes = (0..setup.requests.len()).filter(open);
        writes
            .filter(|index| writes_block(setup, *index, block))
            .fold(0, |set, index| set | only(index as Value + 1))
    }

    pub(crate) fn issue(&mut self, setup: &Setup, index: usize) {
        let is_write = matches!(
            setup.requests[index].ask,
            OperatorRequest::Write | OperatorRequest::ForcedWrite
        );
        let is_read = setup.requests[index].ask == OperatorRequest::Read;
        // Kept only for reads and flushes, the only requests that use it, so that there are fewer
        // states.
        let allowed = core::array::from_fn(|block| {
            if is_write {
                0
            } else {
                let lost = if is_read { self.lost[block] } else { 0 };
                self.possible[block] | self.in_flight(setup, block) | lost
            }
        });
        for block in (0..BLOCKS_MAX).filter(|block| writes_block(setup, index, *block)) {
            let value = only(index as Value + 1);
            self.survivors[block] |= value;
            for stage in &mut self.requests {
                if let Stage::Open(open) = stage
                    && open.allowed[block] != 0
                {
                    open.allowed[block] |= value;
                }
            }
        }
        self.requests[index] = Stage::Open(Open {
            delivered: false,
            is_read,
            allowed,
            concurrent: [0; BLOCKS_MAX],
        });
    }

    /// Delivers a request to the volume.
    pub(crate) fn deliver(&mut self, setup: &Setup, index: usize, effects: &mut Vec<Effect>) {
        if let Stage::Open(open) = &mut self.requests[index] {
            open.delivered = true;
        }
        let request = setup.requests[index];
        let block_bytes = REGION_BYTES / setup.blocks_per_region as u64;
        let range = Range {
            start: request.first as u64 * block_bytes,
            length: request.blocks as u64 * block_bytes,
        };
        let request = seeded_core::volume::Request {
            op: operation(request.ask),
            range,
        };
        self.volume
            .request(NOW, Tag(index as u16), request, effects);
    }

    pub(super) fn answered(
        &mut self,
        setup: &Setup,
        index: usize,
        result: IoResult,
    ) -> Result<(), Violation> {
        let Stage::Open(open) = core::mem::replace(&mut self.requests[index], Stage::Done) else {
            return Err(Violation::new(Checker::Answer, "an answer to no request"));
        };
        let misread = self.misread >> index & 1 == 1;
        self.failed &= !(1 << index);
        self.misread &= !(1 << index);
        require(!(misread && result.is_ok()), Checker::Read, || {
            format!("request {index} reads what is not there")
        })?;
        let request = setup.requests[index];
        require(
            result.is_ok() || self.authoritative_failed,
            Checker::Answer,
            || {
                format!(
                    "request {index} is answered with an error, but the authoritative leg did not fail"
                )
            },
        )?;
        let is_write = matches!(
            request.ask,
            OperatorRequest::Write | OperatorRequest::ForcedWrite
        );
        if result.is_err() && request.ask != OperatorRequest::Read {
            // After a failed write the leg promises nothing, also to open flushes. After a failed
            // flush, an open flush must fail too.
            self.accept_loss(is_write);
        }
        for block in (0..setup.blocks()).filter(|block| writes_block(setup, index, *block)) {
            let value = only(index as Value + 1);
            if result.is_ok() {
                self.possible[block] = open.concurrent[block] | value;
                self.lost[block] = 0;
                if request.ask == OperatorRequest::ForcedWrite {
                    self.survivors[block] = self.possible[block] | self.in_flight(setup, block);
                }
            } else {
                self.possible[block] |= value;
            }
            for (other, stage) in self.requests.iter_mut().enumerate() {
                if let Stage::Open(open) = stage
                    && writes_block(setup, other, block)
                {
                    open.concurrent[block] |= value;
                }
            }
        }
        if request.ask == OperatorRequest::Flush && result.is_ok() && !is_write {
            for block in 0..setup.blocks() {
                self.survivors[block] &= open.allowed[block];
            }
        }
        Ok(())
    }
}

const fn operation(ask: OperatorRequest) -> Op {
    match ask {
        OperatorRequest::Read => Op::Read,
        OperatorRequest::Write => Op::Write {
            force_unit_access: false,
        },
        OperatorRequest::ForcedWrite => Op::Write {
            force_unit_access: true,
        },
        OperatorRequest::Flush => Op::Flush,
    }
}
