//! Writes to the mirror leg, which may outlive their requests, and the buffers that hold their
//! data.
//!
//! A request's data is in its tag's buffer. If the application is answered before the mirror leg
//! has written the data, the write keeps the buffer and the tag gets a spare one: there are as many
//! spare buffers as places.

use migration_core::{
    route::Side,
    units::{Range, Tag},
    volume::{Op, Place},
};

use super::transfer::Transfer;

/// One write to the mirror leg, in its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct MirrorWrite {
    pub(super) transfer: Transfer,
    pub(super) side: Side,
    /// The number of the buffer with the write's data.
    pub(super) buffer: usize,
    /// The tag of the write's request, until the request is answered.
    tag: Option<Tag>,
}

/// All writes to the mirror leg, and which buffer belongs to which tag.
#[derive(Debug)]
pub(super) struct Mirror {
    writes: Vec<MirrorWrite>,
    place_of_tag: Vec<Option<Place>>,
    buffer_of_tag: Vec<usize>,
    spare_buffers: Vec<usize>,
    in_flight: usize,
}

impl Mirror {
    /// Creates an idle table for `tags` and `places`. There are `tags + places` buffers, numbered
    /// from 0.
    pub(super) fn new(tags: usize, places: usize) -> Self {
        let idle = MirrorWrite {
            transfer: Transfer::new(Op::Flush, Range::default()),
            side: Side::Target,
            buffer: 0,
            tag: None,
        };
        Self {
            writes: vec![idle; places],
            place_of_tag: vec![None; tags],
            buffer_of_tag: (0..tags).collect(),
            spare_buffers: (tags..tags + places).collect(),
            in_flight: 0,
        }
    }

    /// The buffer of a tag's request.
    pub(super) fn buffer(&self, tag: Tag) -> usize {
        self.buffer_of_tag[usize::from(tag.0)]
    }

    /// The write in a place.
    pub(super) fn write(&mut self, place: Place) -> &mut MirrorWrite {
        &mut self.writes[usize::from(place.0)]
    }

    /// The number of writes that are not done, including those of answered requests.
    pub(super) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Starts the write of a request's data to the mirror leg.
    pub(super) fn begin(&mut self, place: Place, tag: Tag, side: Side, range: Range) {
        let op = Op::Write {
            force_unit_access: false,
        };
        *self.write(place) = MirrorWrite {
            transfer: Transfer::new(op, range),
            side,
            buffer: self.buffer(tag),
            tag: Some(tag),
        };
        self.place_of_tag[usize::from(tag.0)] = Some(place);
        self.in_flight += 1;
    }

    /// Called when the application is answered. If the mirror leg still writes the request's data,
    /// the write keeps the buffer and the tag gets a spare one.
    pub(super) fn answered(&mut self, tag: Tag) {
        if let Some(place) = self.place_of_tag[usize::from(tag.0)].take()
            && let Some(spare) = self.spare_buffers.pop()
        {
            self.write(place).tag = None;
            self.buffer_of_tag[usize::from(tag.0)] = spare;
        }
    }

    /// Called when the write in `place` is done. Frees its buffer if the request was answered
    /// before.
    pub(super) fn done(&mut self, place: Place) {
        let MirrorWrite { tag, buffer, .. } = *self.write(place);
        self.in_flight = self.in_flight.saturating_sub(1);
        match tag {
            Some(tag) => self.place_of_tag[usize::from(tag.0)] = None,
            None => self.spare_buffers.push(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_is_still_to_be_written_is_in_nobody_elses_buffer() {
        let range = Range {
            start: 0,
            length: 4096,
        };
        let mut mirror = Mirror::new(1, 2);
        mirror.begin(Place(0), Tag(0), Side::Target, range);
        assert_eq!(mirror.writes[0].buffer, mirror.buffer(Tag(0)));
        mirror.answered(Tag(0));
        mirror.begin(Place(1), Tag(0), Side::Target, range);
        mirror.answered(Tag(0));
        let mut used = [
            mirror.write(Place(0)).buffer,
            mirror.write(Place(1)).buffer,
            mirror.buffer(Tag(0)),
        ];
        used.sort_unstable();
        assert_eq!(used, [0, 1, 2]);
        assert_eq!(mirror.in_flight(), 2);
        mirror.done(Place(1));
        mirror.done(Place(0));
        // The write is done before the answer: the tag keeps its buffer.
        mirror.begin(Place(0), Tag(0), Side::Target, range);
        let own = mirror.buffer(Tag(0));
        mirror.done(Place(0));
        mirror.answered(Tag(0));
        assert_eq!(mirror.buffer(Tag(0)), own);
        assert_eq!(mirror.spare_buffers.len(), 2);
        assert_eq!(mirror.in_flight(), 0);
    }
}
