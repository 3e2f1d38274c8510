//! The application of a volume, and the oracle: what it may read, and what a power loss may leave.

use std::collections::{BTreeMap, BTreeSet};

use migration_core::{
    units::{Range, Tag},
    volume::{IoResult, Op, Request},
};

use crate::{
    dice::Dice,
    disk::Value,
    settings::{BLOCK, BLOCKS, TAGS},
};

/// The blocks of a range.
pub(crate) fn blocks(range: Range) -> std::ops::Range<usize> {
    (range.start / BLOCK) as usize..range.end().div_ceil(BLOCK) as usize
}

/// A request that is not answered yet.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) request: Request,
    pub(crate) value: Value,
    /// For a read: the values that each block may return. For a flush: the values that may survive
    /// a power loss once the flush is answered.
    allowed: Vec<BTreeSet<Value>>,
    /// For a write: the values of the writes that were answered while it was in flight.
    concurrent: Vec<BTreeSet<Value>>,
    /// The value of this request. Greater values belong to requests that began later.
    begun: Value,
    /// Whether a leg has failed to do the request.
    pub(crate) failed: bool,
    /// The blocks and values that a leg read last for this request.
    read: Vec<(usize, Value)>,
}

#[derive(Debug)]
pub(crate) struct Application {
    pub(crate) open: BTreeMap<Tag, Open>,
    /// The values that a read of each block may return.
    possible: Vec<BTreeSet<Value>>,
    /// The values that each block may have after a power loss.
    survivors: Vec<BTreeSet<Value>>,
    next_value: Value,
    /// The values that blocks of the authoritative leg fell back to when it failed and lost its
    /// cache, until an error is answered.
    lost: Vec<BTreeSet<Value>>,
    /// A flush that the application did not ask for has failed, and no flush of the application is
    /// answered with the error yet.
    pub(crate) flush_fails: bool,
    /// The blocks that the application writes and reads at present. The other blocks are idle, and
    /// may lose their marks.
    focus: std::ops::Range<usize>,
}

impl Application {
    pub(crate) fn new() -> Self {
        Self {
            open: BTreeMap::new(),
            possible: vec![BTreeSet::from([0]); BLOCKS],
            survivors: vec![BTreeSet::from([0]); BLOCKS],
            lost: vec![BTreeSet::new(); BLOCKS],
            flush_fails: false,
            next_value: 1,
            focus: 0..BLOCKS,
        }
    }

    /// The values of the writes to a block that are not answered yet.
    fn in_flight(&self, block: usize) -> Vec<Value> {
        let writes = self
            .open
            .values()
            .filter(|open| matches!(open.request.op, Op::Write { .. }));
        writes
            .filter(|open| blocks(open.request.range).contains(&block))
            .map(|open| open.value)
            .collect()
    }

    /// A new value for a write of others; no request has it.
    pub(crate) const fn foreign_value(&mut self) -> Value {
        self.next_value += 1;
        self.next_value - 1
    }

    /// Issues a random request, if a tag is free; returns the tag.
    pub(crate) fn ask(&mut self, dice: &mut Dice) -> Option<Tag> {
        let mut tags = (0..TAGS as u16).map(Tag);
        let tag = tags.find(|tag| !self.open.contains_key(tag))?;
        let op = match dice.below(17) {
            0..4 => Op::Read,
            4..7 => Op::Flush,
            7..9 => Op::Write {
                force_unit_access: true,
            },
            9 => Op::Discard,
            _ => Op::Write {
                force_unit_access: false,
            },
        };
        if dice.one_in(200) {
            let start = dice.below(BLOCKS);
            self.focus = start..start + 1 + dice.below(BLOCKS - start);
        }
        let first = self.focus.start + dice.below(self.focus.len());
        let count = 1 + dice.below(2.min(self.focus.end - first));
        let range = match op {
            Op::Flush => Range::default(),
            Op::Read | Op::Write { .. } | Op::Discard => Range {
                start: first as u64 * BLOCK,
                length: count as u64 * BLOCK,
            },
        };
        let value = self.next_value;
        self.next_value += 1;
        let allowed = (0..BLOCKS)
            .map(|block| {
                let mut set = self.possible[block].clone();
                set.extend(self.in_flight(block));
                if op == Op::Read {
                    set.extend(&self.lost[block]);
                }
                set
            })
            .collect();
        if matches!(op, Op::Write { .. }) {
            for block in blocks(range) {
                self.survivors[block].insert(value);
            }
        }
        self.open.insert(
            tag,
            Open {
                request: Request { op, range },
                value,
                allowed,
                concurrent: vec![BTreeSet::new(); BLOCKS],
                begun: value,
                failed: op == Op::Flush && self.flush_fails,
                read: Vec::new(),
            },
        );
        Some(tag)
    }

    /// Notes what a leg read for a request. It need not be the answer.
    pub(crate) fn has_read(&mut self, tag: Tag, read: Vec<(usize, Value)>) {
        self.open.get_mut(&tag).expect("an open request").read = read;
    }

    /// Checks the answer to a request.
    pub(crate) fn answered(&mut self, tag: Tag, result: IoResult) {
        let mut done = self.open.remove(&tag).expect("an open request");
        let is_flush = done.request.op == Op::Flush;
        if is_flush && result.is_err() {
            done.failed |= std::mem::take(&mut self.flush_fails);
        }
        let may_fail = done.failed || done.request.op == Op::Discard;
        assert!(
            result.is_ok() || may_fail,
            "{result:?} is answered, and no leg has failed to do {:?}",
            done.request
        );
        assert!(
            result.is_err() || !is_flush || !self.flush_fails,
            "the error of a flush is not reported"
        );
        if result.is_err() && (is_flush || matches!(done.request.op, Op::Write { .. })) {
            self.accept_loss(!is_flush);
        }
        match (done.request.op, result) {
            (Op::Write { force_unit_access }, Ok(())) => {
                self.written(&done);
                if force_unit_access {
                    for block in blocks(done.request.range) {
                        let mut survivors = self.possible[block].clone();
                        survivors.extend(self.in_flight(block));
                        self.survivors[block] = survivors;
                    }
                }
            }
            // The write may have been done, completely or in part.
            (Op::Write { .. }, Err(_)) => {
                for block in blocks(done.request.range) {
                    self.possible[block].insert(done.value);
                    self.note_concurrent(block, done.value);
                }
            }
            (Op::Flush, Ok(())) => {
                for block in 0..BLOCKS {
                    let allowed = &done.allowed[block];
                    self.survivors[block].retain(|v| allowed.contains(v) || *v > done.begun);
                }
            }
            (Op::Read, Ok(())) => {
                let blocks = done.read.iter().map(|(block, _)| *block);
                assert!(blocks.eq(self::blocks(done.request.range)), "{done:?}");
                for (block, value) in &done.read {
                    let allowed = &done.allowed[*block];
                    assert!(
                        allowed.contains(value) || *value > done.begun,
                        "block {block} read {value}, allowed {allowed:?}"
                    );
                }
            }
            (Op::Flush | Op::Read, Err(_)) | (Op::Discard, _) => {}
        }
    }

    fn written(&mut self, done: &Open) {
        for block in blocks(done.request.range) {
            let mut possible = done.concurrent[block].clone();
            possible.insert(done.value);
            self.possible[block] = possible;
            self.lost[block].clear();
            self.note_concurrent(block, done.value);
        }
    }

    /// Notes that a flush of the authoritative leg failed: open flushes may fail with it. `own`:
    /// the application asked for the flush. If not, every flush must fail until one is answered
    /// with the error.
    pub(crate) fn flush_failed(&mut self, own: bool) {
        let flushes = self.open.values_mut();
        for open in flushes.filter(|open| open.request.op == Op::Flush) {
            open.failed = true;
        }
        self.flush_fails |= !own;
    }

    /// Notes that a block of the authoritative leg fell back to `value` when the leg lost its
    /// cache. Reads may return it, because they cannot notice the loss.
    pub(crate) fn lost(&mut self, block: usize, value: Value) {
        self.lost[block].insert(value);
        for open in self.open.values_mut() {
            if open.request.op == Op::Read {
                open.allowed[block].insert(value);
            }
        }
    }

    pub(crate) fn has_lost(&self) -> bool {
        self.lost.iter().any(|lost| !lost.is_empty())
    }

    /// Accepts the losses after an error was answered. `also_flushes`: after the error of a write a
    /// leg promises nothing, also to open flushes.
    pub(crate) fn accept_loss(&mut self, also_flushes: bool) {
        for block in 0..BLOCKS {
            let lost = std::mem::take(&mut self.lost[block]);
            for open in self.open.values_mut() {
                if open.request.op == Op::Read || also_flushes {
                    open.allowed[block].extend(&lost);
                }
            }
            self.possible[block].extend(lost);
        }
    }

    /// Forgets the losses: the other leg has taken over, and has lost nothing.
    pub(crate) fn failed_over(&mut self) {
        self.flush_fails = false;
        self.lost.iter_mut().for_each(BTreeSet::clear);
    }

    /// Forgets unreported errors, because the process that knew of them dies.
    pub(crate) fn forget_errors(&mut self) {
        self.flush_fails = false;
        self.accept_loss(true);
        // The error was already the answer to another flush; the next process does not know it
        // (decision 0010).
        for open in self.open.values_mut().filter(|open| open.failed) {
            for (allowed, possible) in open.allowed.iter_mut().zip(&self.possible) {
                allowed.extend(possible);
            }
        }
    }

    fn note_concurrent(&mut self, block: usize, value: Value) {
        for other in self.open.values_mut() {
            other.concurrent[block].insert(value);
        }
    }

    /// Checks what the authoritative leg holds after a power loss, and begins again from there.
    pub(crate) fn restarted(&mut self, found: impl Fn(usize) -> Value) {
        self.open.clear();
        self.failed_over();
        for block in 0..BLOCKS {
            let value = found(block);
            let survivors = &self.survivors[block];
            assert!(
                survivors.contains(&value),
                "after the power loss block {block} has {value}, not one of {survivors:?}"
            );
        }
        self.accept(found);
    }

    /// Takes the contents of the authoritative leg while nothing runs as the data, whoever wrote
    /// them.
    pub(crate) fn accept(&mut self, found: impl Fn(usize) -> Value) {
        for block in 0..BLOCKS {
            let value = found(block);
            self.possible[block] = BTreeSet::from([value]);
            self.survivors[block] = BTreeSet::from([value]);
        }
    }

    /// Checks a block of the authoritative leg while no request is open.
    pub(crate) fn check(&self, block: usize, value: Value) {
        let possible = &self.possible[block];
        assert!(
            possible.contains(&value),
            "block {block} is {value} in the end, not one of {possible:?}"
        );
    }
}
